//! SUBSCRIBE, UNSUBSCRIBE and what comes of them (sections 3.8 to 3.11, 4.5 to 4.9).

use super::{Bed, PATIENCE};
use crate::common::client::{Client, Delivery, Heard, Hello, answer, packet, properties, subscribe, unsubscribe};

super::checks! { subscribe:
    each_filter_has_its_code_in_order, any_requested_qos_is_accepted, bad_filters_are_refused, no_filter_closes,
    options_that_do_not_exist_close, the_same_filter_replaces, deliveries_keep_the_granted_qos,
    the_last_value_comes_first, retain_handling_is_kept, filters_match_level_by_level, nothing_is_normalised,
    overlapping_filters_deliver_at_the_highest_qos, identifiers_come_along, ids_are_unused_and_not_zero,
    receive_maximum_is_kept, maximum_packet_size_is_kept, aliases_are_only_for_who_asked, deliveries_keep_their_order,
    dup_is_the_delivery_s_own, every_subscriber_gets_it, unsubscribing_is_answered, unsubscribing_ends_it,
    unsubscribing_is_exact, unsubscribing_leaves_deliveries_whole, shares_are_spread, bad_shares_are_refused,
    no_local_on_a_share_closes, a_refused_share_goes_to_nobody_else, the_last_value_outlives_sessions,
}

fn number(bed: &Bed, client: &mut Client, number: i64) {
    bed.event(client, &format!(r#"{{"n":{number}}}"#));
}

fn n(delivery: &Delivery) -> i64 {
    Bed::data(delivery)["n"].as_i64().unwrap_or_else(|| panic!("{delivery:?}"))
}

fn each_filter_has_its_code_in_order(bed: &Bed) {
    let mut client = bed.connect("a");
    let codes = bed.subscribe(&mut client, &[("a/b", 1), ("a/+", 0), ("a/#", 2), ("a", 1), ("+/b", 0)]);
    assert_eq!(codes.len(), 5);
    assert_eq!([codes[0], codes[1], codes[3], codes[4]], [1, 0, 1, 0]);
    let listed: &[u8] =
        if bed.is_v5 { &[0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2] } else { &[0, 1, 2, 0x80] };
    assert!(codes.iter().all(|code| listed.contains(code)), "{codes:x?}");
}

fn any_requested_qos_is_accepted(bed: &Bed) {
    let mut client = bed.connect("a");
    let codes = bed.subscribe(&mut client, &[("a", 0), ("b", 1), ("c", 2)]);
    assert!(codes[0] == 0 && codes[1] == 1 && (1..=2).contains(&codes[2]), "{codes:x?}");
}

/// Either that filter alone is refused, or the connection ends.
fn assert_bad_filter(bed: &Bed, filter: &str) {
    let mut client = bed.connect("a");
    client.send(&subscribe(bed.is_v5, 9, &[], &[(filter, 1)]));
    match client.hear(PATIENCE) {
        Heard::End => assert!(!bed.is_v5, "\"{filter}\""),
        Heard::Packet(packet) if packet[0] == 0xE0 => assert!(packet[1] >= 0x80, "\"{filter}\": {packet:?}"),
        Heard::Packet(packet) => {
            assert!(packet[0] == 0x90 && packet.last() >= Some(&0x80), "\"{filter}\": {packet:?}");
        }
        Heard::Nothing => panic!("\"{filter}\" has no answer"),
    }
}

fn bad_filters_are_refused(bed: &Bed) {
    for filter in ["", "a/#/b", "#/a", "a#", "a/b#", "a+", "+a/b", "a/+b/c", "##", "++"] {
        assert_bad_filter(bed, filter);
    }
    // A good one beside them works.
    let mut client = bed.connect("b");
    assert_eq!(bed.subscribe(&mut client, &[("+", 0), ("#", 0), ("/", 0), ("+/+/#", 0)]), [0; 4]);
}

fn no_filter_closes(bed: &Bed) {
    let none: &[u8] = if bed.is_v5 { &[0, 9, 0] } else { &[0, 9] };
    bed.assert_cut_off(&packet(0x82, none), &[0x81, 0x82], "SUBSCRIBE to nothing");
    bed.assert_cut_off(&packet(0xA2, none), &[0x81, 0x82], "UNSUBSCRIBE from nothing");
}

fn options_that_do_not_exist_close(bed: &Bed) {
    let bad: &[u8] = if bed.is_v5 { &[0x03, 0x30, 0x40, 0x80] } else { &[0x03, 0x04, 0x10, 0x80, 0xFF] };
    for options in bad {
        bed.assert_cut_off(&subscribe(bed.is_v5, 9, &[], &[("a", *options)]), &[0x81, 0x82], "options");
    }
}

fn the_same_filter_replaces(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), bed.subscriber("a", 1));
    number(bed, &mut device, 1);
    let first = bed.delivery(&mut client);
    assert_eq!((n(&first), first.qos), (1, 1));
    assert_eq!(bed.subscribe(&mut client, &[(&bed.event_topic(), 0)]), [0]);
    let again = bed.delivery(&mut client);
    assert_eq!((n(&again), again.retain), (1, true), "the last value is sent again");
    number(bed, &mut device, 2);
    let second = bed.delivery(&mut client);
    assert_eq!((n(&second), second.qos), (2, 0));
    bed.assert_silent(&mut client);
}

fn deliveries_keep_the_granted_qos(bed: &Bed) {
    let mut device = bed.connect("device");
    let (mut zero, mut one) = (bed.subscriber("zero", 0), bed.subscriber("one", 1));
    number(bed, &mut device, 1);
    let delivery = bed.delivery(&mut zero);
    assert_eq!((n(&delivery), delivery.qos, delivery.id, delivery.dup), (1, 0, 0, false));
    let delivery = bed.delivery(&mut one);
    assert!(n(&delivery) == 1 && delivery.qos == 1 && delivery.id > 0 && !delivery.dup, "{delivery:?}");
}

fn the_last_value_comes_first(bed: &Bed) {
    let mut device = bed.connect("device");
    (1..=3).for_each(|value| number(bed, &mut device, value));
    let mut client = bed.subscriber("a", 1);
    let last = bed.delivery(&mut client);
    assert_eq!((n(&last), last.retain), (3, true));
    number(bed, &mut device, 4);
    let live = bed.delivery(&mut client);
    assert_eq!((n(&live), live.retain), (4, false));
    bed.assert_silent(&mut client);
}

fn retain_handling_is_kept(bed: &Bed) {
    let mut device = bed.connect("device");
    number(bed, &mut device, 1);
    let mut client = bed.connect("a");
    let topic = bed.event_topic();
    assert_eq!(bed.subscribe(&mut client, &[(&topic, 0x21)]), [1]);
    bed.assert_silent(&mut client);
    assert_eq!(bed.subscribe(&mut client, &[(&topic, 0x11)]), [1]);
    bed.assert_silent(&mut client);
    assert_eq!(bed.subscribe(&mut client, &[(&topic, 0x01)]), [1]);
    assert_eq!(n(&bed.delivery(&mut client)), 1);
    let mut other = bed.connect("b");
    assert_eq!(bed.subscribe(&mut other, &[(&topic, 0x11)]), [1]);
    assert_eq!(n(&bed.delivery(&mut other)), 1);
}

fn filters_match_level_by_level(bed: &Bed) {
    let (mut device, topic) = (bed.connect("device"), bed.event_topic());
    let key = bed.event_key();
    let good = [
        topic.clone(),
        format!("{topic}/#"),
        format!("+/plant/+/v1/{key}"),
        format!("+/+/+/+/{key}"),
        format!("test/plant/conform.any/+/{key}"),
    ];
    for (index, filter) in good.iter().enumerate() {
        let mut client = bed.connect("good");
        assert_eq!(bed.subscribe(&mut client, &[(filter, 1)]), [1], "{filter}");
        if index > 0 {
            assert_eq!(n(&bed.delivery(&mut client)), index as i64 - 1, "{filter}: the last value");
        }
        number(bed, &mut device, index as i64);
        let delivery = bed.delivery(&mut client);
        assert_eq!((n(&delivery), &delivery.topic), (index as i64, &topic), "{filter}");
    }
    let bad = ["+", "+/+/+/+", "+/+/+/+/+/+", "test/plant", "test/plant/conform.any/v2/#", "conform/#", "$SYS/#"];
    let mut client = bed.connect("bad");
    bed.subscribe(&mut client, &bad.map(|filter| (filter, 1)));
    number(bed, &mut device, 99);
    bed.assert_silent(&mut client);
}

fn nothing_is_normalised(bed: &Bed) {
    let (mut device, mut client, topic) = (bed.connect("device"), bed.connect("a"), bed.event_topic());
    let others = [topic.to_uppercase(), format!("/{topic}"), format!("{topic}/"), topic.replacen('/', "//", 1)];
    for other in &others {
        assert_eq!(bed.subscribe(&mut client, &[(other, 1)]), [1]);
    }
    number(bed, &mut device, 1);
    bed.assert_silent(&mut client);
}

fn overlapping_filters_deliver_at_the_highest_qos(bed: &Bed) {
    let (mut device, mut client, topic) = (bed.connect("device"), bed.connect("a"), bed.event_topic());
    let wide = format!("+/plant/conform.any/v1/{}", bed.event_key());
    assert_eq!(bed.subscribe(&mut client, &[(&topic, 0), (&wide, 1)]), [0, 1]);
    number(bed, &mut device, 1);
    let mut found = vec![bed.delivery(&mut client)];
    // A copy for each is allowed too.
    while let Heard::Packet(packet) = client.hear(super::SILENCE) {
        found.push(Delivery::read(bed.is_v5, &packet));
    }
    assert!(found.len() <= 2 && found.iter().all(|delivery| n(delivery) == 1), "{found:?}");
    assert_eq!(found.iter().map(|delivery| delivery.qos).max(), Some(1));
}

fn identifiers_come_along(bed: &Bed) {
    let (mut device, topic) = (bed.connect("device"), bed.event_topic());
    let (mut client, connack) = bed.connect_with(&Hello { client: &bed.client("a"), ..Hello::default() });
    let wide = format!("+/plant/conform.any/v1/{}", bed.event_key());
    let has_identifiers = connack.number(0x29) != Some(0);
    for (filter, identifier) in [(&topic, &[0x0B, 1][..]), (&wide, &[0x0B, 0xFF, 0xFF, 0xFF, 0x7F])] {
        client.send(&subscribe(true, 9, identifier, &[(filter, 1)]));
        if !has_identifiers {
            // A server without them says so, and ends the connection that uses one all the same.
            return bed.assert_ended(&mut client, &[0xA1], "subscription identifiers");
        }
        assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0x90, 0, 9, 0, 1]));
    }
    number(bed, &mut device, 1);
    let mut found = Vec::new();
    let mut identifiers = |delivery: Delivery| {
        found.extend(delivery.properties.into_iter().filter(|(id, _)| *id == 0x0B).map(|(_, value)| value));
    };
    identifiers(bed.delivery(&mut client));
    while let Heard::Packet(packet) = client.hear(super::SILENCE) {
        identifiers(Delivery::read(true, &packet));
    }
    found.sort();
    assert_eq!(found, [vec![1], vec![0xFF, 0xFF, 0xFF, 0x7F]]);
    client.send(&subscribe(true, 9, &[0x0B, 0], &[("a", 1)]));
    while let Heard::Packet(packet) = client.hear(PATIENCE) {
        assert!(packet[0] == 0xE0 && matches!(packet[1], 0x81 | 0x82), "identifier 0: {packet:?}");
    }
}

fn ids_are_unused_and_not_zero(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), bed.subscriber("a", 1));
    (1..=20).for_each(|value| number(bed, &mut device, value));
    let mut ids: Vec<_> = (1..=20)
        .map(|value| {
            let delivery = bed.unanswered(&mut client);
            assert_eq!((n(&delivery), delivery.dup), (value, false));
            delivery.id
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() == 20 && ids[0] > 0, "{ids:?}");
}

fn receive_maximum_is_kept(bed: &Bed) {
    let mut device = bed.connect("device");
    let hello = Hello { client: &bed.client("a"), properties: vec![0x21, 0, 2], ..Hello::default() };
    let (mut client, _) = bed.connect_with(&hello);
    assert_eq!(bed.subscribe(&mut client, &[(&bed.event_topic(), 1)]), [1]);
    (1..=5).for_each(|value| number(bed, &mut device, value));
    let (first, second) = (bed.unanswered(&mut client), bed.unanswered(&mut client));
    assert_eq!((n(&first), n(&second)), (1, 2));
    // Everything else is answered meanwhile.
    bed.assert_silent(&mut client);
    client.send(&unsubscribe(true, 3, &["nowhere"]));
    assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0xB0, 0, 3, 0, 0x11]));
    client.send(&answer(0x40, first.id));
    let third = bed.unanswered(&mut client);
    assert_eq!(n(&third), 3);
    bed.assert_silent(&mut client);
    client.send(&[answer(0x40, second.id), answer(0x40, third.id)].concat());
    assert_eq!((n(&bed.unanswered(&mut client)), n(&bed.unanswered(&mut client))), (4, 5));
}

fn maximum_packet_size_is_kept(bed: &Bed) {
    let mut device = bed.connect("device");
    let hello = Hello { client: &bed.client("a"), properties: vec![0x27, 0, 0, 4, 0], ..Hello::default() };
    let (mut client, _) = bed.connect_with(&hello);
    assert_eq!(bed.subscribe(&mut client, &[(&bed.event_topic(), 1)]), [1]);
    bed.event(&mut device, &format!(r#"{{"n":1,"text":"{}"}}"#, "x".repeat(1024)));
    number(bed, &mut device, 2);
    assert_eq!(n(&bed.delivery(&mut client)), 2, "what is too large is left out, and what follows comes");
}

fn aliases_are_only_for_who_asked(bed: &Bed) {
    let mut device = bed.connect("device");
    let asked = Hello { client: &bed.client("b"), properties: vec![0x22, 0, 1], ..Hello::default() };
    let mut clients = [bed.connect("a"), bed.connect_with(&asked).0];
    for client in &mut clients {
        assert_eq!(bed.subscribe(client, &[(&bed.event_topic(), 1)]), [1]);
    }
    for value in 1..=3 {
        number(bed, &mut device, value);
        for (client, maximum) in clients.iter_mut().zip([0, 1]) {
            let delivery = bed.delivery(client);
            assert_eq!(n(&delivery), value);
            for (_, alias) in delivery.properties.iter().filter(|(id, _)| *id == 0x23) {
                assert!(alias[..] == [0, 1] && maximum == 1, "{delivery:?}");
            }
        }
    }
}

fn deliveries_keep_their_order(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), bed.subscriber("a", 1));
    let all: Vec<u8> = (1..=100).flat_map(|value| bed.publish(1, value, &format!(r#"{{"n":{value}}}"#))).collect();
    device.send(&all);
    let mut last = 0;
    while last < 100 {
        let value = n(&bed.delivery(&mut client));
        assert_eq!(value, last + 1);
        last = value;
    }
}

fn dup_is_the_delivery_s_own(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), bed.subscriber("a", 1));
    let mut bytes = bed.publish(1, 7, r#"{"n":1}"#);
    bytes[0] |= 8;
    device.send(&bytes);
    let delivery = bed.delivery(&mut client);
    assert_eq!((n(&delivery), delivery.dup), (1, false));
}

fn every_subscriber_gets_it(bed: &Bed) {
    let mut device = bed.connect("device");
    let mut clients: Vec<_> = ["a", "b", "c"].iter().map(|who| bed.subscriber(who, 1)).collect();
    // Its own events too.
    assert_eq!(bed.subscribe(&mut device, &[(&bed.event_topic(), 0)]), [0]);
    device.send(&bed.publish(0, 0, r#"{"n":1}"#));
    for client in clients.iter_mut().chain([&mut device]) {
        assert_eq!(n(&bed.delivery(client)), 1);
    }
}

fn unsubscribing_is_answered(bed: &Bed) {
    let mut client = bed.connect("a");
    assert_eq!(bed.subscribe(&mut client, &[("a/b", 1), ("a/+", 1)]), [1, 1]);
    client.send(&unsubscribe(bed.is_v5, 0x0102, &["a/b", "nowhere", "a/+"]));
    let Heard::Packet(unsuback) = client.hear(PATIENCE) else { panic!("an UNSUBACK is due") };
    assert_eq!(unsuback[..3], [0xB0, 1, 2]);
    if bed.is_v5 {
        let (_, length) = properties(&unsuback[3..]);
        assert_eq!(unsuback[3 + length..], [0, 0x11, 0]);
    } else {
        assert_eq!(unsuback.len(), 3);
    }
    client.send(&unsubscribe(bed.is_v5, 3, &["nowhere"]));
    assert!(matches!(client.hear(PATIENCE), Heard::Packet(packet) if packet[..3] == [0xB0, 0, 3]));
}

fn unsubscribing_ends_it(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), bed.subscriber("a", 1));
    number(bed, &mut device, 1);
    assert_eq!(n(&bed.delivery(&mut client)), 1);
    client.send(&unsubscribe(bed.is_v5, 3, &[&bed.event_topic()]));
    assert!(matches!(client.hear(PATIENCE), Heard::Packet(packet) if packet[0] == 0xB0));
    number(bed, &mut device, 2);
    bed.assert_silent(&mut client);
}

fn unsubscribing_is_exact(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), bed.subscriber("a", 1));
    let others = [format!("{}/#", bed.event_topic()), "#".into(), "+/plant/#".into()];
    client.send(&unsubscribe(bed.is_v5, 3, &[&others[0], &others[1], &others[2]]));
    assert!(matches!(client.hear(PATIENCE), Heard::Packet(packet) if packet[0] == 0xB0));
    number(bed, &mut device, 1);
    assert_eq!(n(&bed.delivery(&mut client)), 1);
}

fn unsubscribing_leaves_deliveries_whole(bed: &Bed) {
    let mut device = bed.connect("device");
    let (mut client, _) = bed.resume("a");
    let topic = bed.event_topic();
    assert_eq!(bed.subscribe(&mut client, &[(&topic, 1)]), [1]);
    number(bed, &mut device, 1);
    let begun = bed.unanswered(&mut client);
    client.send(&unsubscribe(bed.is_v5, 3, &[&topic]));
    assert!(matches!(client.hear(PATIENCE), Heard::Packet(packet) if packet[0] == 0xB0));
    client.die();
    // It was begun and never acknowledged: it comes again.
    let (mut client, _) = bed.resume("a");
    let again = bed.delivery(&mut client);
    assert_eq!((n(&again), again.id, again.dup), (1, begun.id, true));
    bed.assert_silent(&mut client);
}

fn shares_are_spread(bed: &Bed) {
    let (mut device, filter) = (bed.connect("device"), format!("$share/group/{}", bed.event_topic()));
    let (mut one, mut zero) = (bed.connect("one"), bed.connect("zero"));
    assert_eq!(bed.subscribe(&mut one, &[(&filter, 1)]), [1]);
    assert_eq!(bed.subscribe(&mut zero, &[(&filter, 0)]), [0]);
    (1..=20).for_each(|value| number(bed, &mut device, value));
    let mut found = Vec::new();
    for (client, qos) in [(&mut one, 1), (&mut zero, 0)] {
        while let Heard::Packet(packet) = client.hear(super::SILENCE) {
            let delivery = Delivery::read(true, &packet);
            assert_eq!((delivery.qos, &delivery.topic), (qos, &bed.event_topic()));
            found.push(n(&delivery));
        }
    }
    found.sort_unstable();
    assert_eq!(found, (1..=20).collect::<Vec<_>>(), "each event once");
}

fn bad_shares_are_refused(bed: &Bed) {
    for filter in ["$share", "$share/", "$share/a", "$share/a/", "$share//b", "$share/a+/b", "$share/a#/b", "$share/#"]
    {
        assert_bad_filter(bed, filter);
    }
}

fn no_local_on_a_share_closes(bed: &Bed) {
    bed.assert_cut_off(&subscribe(true, 9, &[], &[("$share/a/b", 0x05)]), &[0x82], "No Local on a share");
}

fn a_refused_share_goes_to_nobody_else(bed: &Bed) {
    let (mut device, filter) = (bed.connect("device"), format!("$share/group/{}", bed.event_topic()));
    let mut clients = [bed.connect("a"), bed.connect("b")];
    for client in &mut clients {
        assert_eq!(bed.subscribe(client, &[(&filter, 1)]), [1]);
    }
    number(bed, &mut device, 1);
    let mut times = 0;
    for client in &mut clients {
        if let Heard::Packet(packet) = client.hear(super::SILENCE * 3) {
            let delivery = Delivery::read(true, &packet);
            client.send(&refusing_puback(delivery.id, 0x80));
            times += 1;
        }
    }
    assert_eq!(times, 1, "one member has it");
    for client in &mut clients {
        bed.assert_silent(client);
    }
}

fn refusing_puback(id: u16, code: u8) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    packet(0x40, &[high, low, code])
}

fn the_last_value_outlives_sessions(bed: &Bed) {
    let mut device = bed.connect("device");
    number(bed, &mut device, 1);
    bed.leave(device);
    let mut client = bed.subscriber("a", 1);
    assert_eq!(n(&bed.delivery(&mut client)), 1);
    bed.leave(client);
    let mut client = bed.subscriber("b", 0);
    let last = bed.delivery(&mut client);
    assert_eq!((n(&last), last.retain, last.qos), (1, true, 0));
}
