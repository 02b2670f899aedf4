//! Sessions: clean and kept, resumed, taken over, expired; keep-alive and goodbye (sections 3.1.2,
//! 3.12, 3.14, 4.1 and 4.4).

use super::{Bed, PATIENCE, SILENCE};
use crate::common::client::{Client, Delivery, Heard, Hello, answer, packet, properties, publish};
use crate::common::gateway::Gateway;
use forebay::sources::mqtt::put_user;
use std::time::{Duration, Instant};

super::checks! { session:
    a_new_one_is_made, it_is_resumed, a_clean_start_discards_it, it_lasts_while_connected, it_expires,
    it_belongs_to_its_client_id, deliveries_are_repeated_with_dup, refused_deliveries_are_not_repeated,
    repeats_keep_their_order, the_latest_connection_has_it, keep_alive_is_kept, pings_are_answered,
    goodbye_is_final, goodbye_codes_are_of_the_table, a_publish_without_permission_counts_nothing,
}

fn number(bed: &Bed, client: &mut Client, number: i64) {
    bed.event(client, &format!(r#"{{"n":{number}}}"#));
}

fn n(delivery: &Delivery) -> i64 {
    Bed::data(delivery)["n"].as_i64().unwrap_or_else(|| panic!("{delivery:?}"))
}

/// A kept session that subscribes to the running check's events.
fn subscribed(bed: &Bed, who: &str) -> Client {
    let (mut client, _) = bed.resume(who);
    assert_eq!(bed.subscribe(&mut client, &[(&bed.event_topic(), 1)]), [1]);
    client
}

fn a_new_one_is_made(bed: &Bed) {
    let (client, has_session) = bed.resume("a");
    assert!(!has_session);
    bed.leave(client);
    let (_, has_session) = bed.resume("a");
    assert!(has_session);
}

fn it_is_resumed(bed: &Bed) {
    let mut device = bed.connect("device");
    let client = subscribed(bed, "a");
    bed.leave(client);
    (1..=3).for_each(|value| number(bed, &mut device, value));
    let (mut client, has_session) = bed.resume("a");
    assert!(has_session);
    for value in 1..=3 {
        let delivery = bed.delivery(&mut client);
        assert_eq!((n(&delivery), delivery.qos, delivery.retain), (value, 1, false));
    }
    number(bed, &mut device, 4);
    assert_eq!(n(&bed.delivery(&mut client)), 4, "its subscription is there still");
}

fn a_clean_start_discards_it(bed: &Bed) {
    let mut device = bed.connect("device");
    let client = subscribed(bed, "a");
    bed.leave(client);
    number(bed, &mut device, 1);
    let mut client = bed.connect("a");
    number(bed, &mut device, 2);
    bed.assert_silent(&mut client);
    bed.leave(client);
    let (mut client, has_session) = bed.resume("a");
    assert!(!has_session, "what a clean start began ended with its connection");
    bed.assert_silent(&mut client);
}

fn it_lasts_while_connected(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), bed.subscriber("a", 1));
    for value in 1..=3 {
        bed.assert_silent(&mut client);
        number(bed, &mut device, value);
        assert_eq!(n(&bed.delivery(&mut client)), value);
    }
}

fn it_expires(bed: &Bed) {
    let id = bed.client("a");
    let hello = Hello { client: &id, is_clean: false, properties: vec![0x11, 0, 0, 0, 1], ..Hello::default() };
    let (client, _) = bed.connect_with(&hello);
    client.die();
    let (client, connack) = bed.connect_with(&hello);
    assert!(connack.has_session, "within its second");
    client.die();
    std::thread::sleep(Duration::from_millis(2500));
    let (mut client, connack) = bed.connect_with(&hello);
    assert!(!connack.has_session, "after its second");
    // DISCONNECT may set another time, but for one that was 0.
    client.send(&packet(0xE0, &[0, 5, 0x11, 0, 0, 0, 60]));
    assert_eq!(client.hear(PATIENCE), Heard::End);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(bed.connect_with(&hello).1.has_session, "DISCONNECT prolonged it");
    let mut client = bed.connect("b");
    client.send(&packet(0xE0, &[0, 5, 0x11, 0, 0, 0, 60]));
    bed.assert_ended(&mut client, &[0x82], "a session that was to end cannot be prolonged");
}

fn it_belongs_to_its_client_id(bed: &Bed) {
    let mut device = bed.connect("device");
    let client = subscribed(bed, "a");
    bed.leave(client);
    number(bed, &mut device, 1);
    let (mut other, has_session) = bed.resume("A");
    assert!(!has_session);
    bed.assert_silent(&mut other);
    let (mut client, has_session) = bed.resume("a");
    assert!(has_session);
    assert_eq!(n(&bed.delivery(&mut client)), 1);
}

fn deliveries_are_repeated_with_dup(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), subscribed(bed, "a"));
    number(bed, &mut device, 1);
    let first = bed.unanswered(&mut client);
    assert_eq!((n(&first), first.dup), (1, false));
    bed.assert_silent(&mut client);
    client.die();
    let (mut client, _) = bed.resume("a");
    let again = bed.unanswered(&mut client);
    assert_eq!((n(&again), again.dup, again.id), (1, true, first.id));
    client.send(&answer(0x40, again.id));
    bed.assert_silent(&mut client);
    bed.leave(client);
    let (mut client, _) = bed.resume("a");
    bed.assert_silent(&mut client);
}

fn refused_deliveries_are_not_repeated(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), subscribed(bed, "a"));
    number(bed, &mut device, 1);
    let [high, low] = bed.unanswered(&mut client).id.to_be_bytes();
    client.send(&packet(0x40, &[high, low, 0x83]));
    bed.assert_silent(&mut client);
    client.die();
    let (mut client, _) = bed.resume("a");
    bed.assert_silent(&mut client);
}

fn repeats_keep_their_order(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), subscribed(bed, "a"));
    (1..=10).for_each(|value| number(bed, &mut device, value));
    let first: Vec<_> = (1..=10).map(|_| bed.unanswered(&mut client).id).collect();
    client.die();
    let (mut client, _) = bed.resume("a");
    for (value, id) in (1..=10).zip(first) {
        let again = bed.delivery(&mut client);
        assert_eq!((n(&again), again.id, again.dup), (value, id, true));
    }
}

fn the_latest_connection_has_it(bed: &Bed) {
    let (mut device, mut client) = (bed.connect("device"), subscribed(bed, "a"));
    let (mut second, has_session) = bed.resume("a");
    assert!(has_session);
    bed.assert_ended(&mut client, &[0x8E], "taken over");
    number(bed, &mut device, 1);
    assert_eq!(n(&bed.delivery(&mut second)), 1);
    let mut third = bed.connect("a");
    bed.assert_ended(&mut second, &[0x8E], "taken over by a clean one");
    bed.assert_alive(&mut third);
}

fn keep_alive_is_kept(bed: &Bed) {
    let hello = Hello { client: &bed.client("a"), keep_alive: 1, ..Hello::default() };
    let (mut client, connack) = bed.connect_with(&hello);
    let seconds = connack.number(0x13).unwrap_or(1);
    for _ in 0..3 {
        assert_eq!(client.hear(Duration::from_millis(800)), Heard::Nothing);
        bed.assert_alive(&mut client);
    }
    let start = Instant::now();
    bed.assert_ended(&mut client, &[0x8D], "silence");
    let waited = start.elapsed();
    assert!(waited.as_millis() > 1400 && waited.as_secs() < 3 + u64::from(seconds), "{waited:?}");
}

fn pings_are_answered(bed: &Bed) {
    let mut client = bed.connect("a");
    client.send(&[0xC0, 0, 0xC0, 0, 0xC0, 0]);
    for _ in 0..3 {
        assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0xD0]));
    }
}

fn goodbye_is_final(bed: &Bed) {
    let (mut client, before) = (bed.connect("a"), bed.accepted());
    client.send(&[vec![0xE0, 0], bed.publish(1, 1, "late")].concat());
    assert_eq!(client.hear(PATIENCE), Heard::End);
    bed.await_accepted(before, "nothing counts behind DISCONNECT");
}

fn goodbye_codes_are_of_the_table(bed: &Bed) {
    const LISTED: [u8; 29] = [
        0, 4, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98,
        0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
    ];
    let faults = [
        publish(true, 1, 1, "a/#", &[], b"x"),
        publish(true, 1, 1, "a", &[0x23, 0xFF, 0xFF], b"x"),
        vec![0x82, 0xFF, 0xFF, 0xFF, 0x7F],
        vec![0x00, 0],
        packet(0xF0, &[]),
    ];
    for fault in faults {
        let mut client = bed.connect("a");
        client.send(&fault);
        let Heard::Packet(goodbye) = client.hear(PATIENCE) else { panic!("a DISCONNECT is due") };
        assert!(goodbye[0] == 0xE0 && LISTED.contains(&goodbye[1]), "{goodbye:?}");
        if goodbye.len() > 2 {
            assert!(properties(&goodbye[2..]).0.iter().all(|(id, _)| matches!(id, 0x1F | 0x26 | 0x1C)), "{goodbye:?}");
        }
        assert_eq!(client.hear(PATIENCE), Heard::End, "nothing comes behind it");
    }
    // Whatever the client says, it is the end.
    for body in [&[0x00][..], &[0x04], &[0x80], &[0x98], &[0x7F], &[0, 2, 0x1F, 0]] {
        let mut client = bed.connect("a");
        client.send(&packet(0xE0, body));
        match client.hear(PATIENCE) {
            Heard::End => {}
            other => assert!(matches!(&other, Heard::Packet(packet) if packet[0] == 0xE0), "{body:?}: {other:?}"),
        }
    }
}

/// By default a device publishes where one level of the topic is its user name or client id.
fn a_publish_without_permission_counts_nothing(bed: &Bed) {
    let mut gateway = Gateway::prepare("conform-acl", "");
    std::fs::write(gateway.folder.join("contracts/any.toml"), super::CONTRACT).expect("written");
    put_user(&gateway.folder.join("passwd"), "press", b"right").expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}passwords = \"passwd\"\n")).expect("written");
    gateway.run();
    let hello = Hello { is_v5: bed.is_v5, client: "c1", login: Some(("press", "right")), ..Hello::default() };
    for (qos, first) in [(1, 0x40), (2, 0x50)] {
        let (mut client, _) = Client::connect(gateway.address, &hello);
        client.send(&publish(bed.is_v5, qos, 1, "conform/others/x", &[], b"x"));
        match client.hear(PATIENCE) {
            // 3.1.1 has no word for it: it acknowledges, or ends the connection.
            Heard::End => assert!(!bed.is_v5),
            Heard::Packet(packet) if packet[0] == 0xE0 => assert_eq!(packet[1], 0x87),
            Heard::Packet(packet) => {
                assert_eq!((packet[0], packet.get(3)), (first, bed.is_v5.then_some(&0x87)));
                // The id is free again, without a PUBREL where there was a refusal.
                if !bed.is_v5 && qos == 2 {
                    client.send(&answer(0x62, 1));
                    assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0x70, 0, 1]));
                }
                client.send(&publish(bed.is_v5, qos, 1, "conform/press/x", &[], b"x"));
                assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![first, 0, 1]));
                if qos == 2 {
                    client.send(&answer(0x62, 1));
                    assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0x70, 0, 1]));
                }
                continue;
            }
            Heard::Nothing => panic!("no answer"),
        }
        let (mut client, _) = Client::connect(gateway.address, &hello);
        client.send(&publish(bed.is_v5, 1, 1, "conform/press/x", &[], b"x"));
        assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0x40, 0, 1]));
    }
    std::thread::sleep(SILENCE);
    assert_eq!(crate::common::gateway::accepted(&gateway.status()), 2, "what it may publish, and nothing else");
}
