//! PUBLISH towards the gateway and its acknowledgements (sections 3.3 to 3.7 and 4.3).

use super::{Bed, PATIENCE, SILENCE};
use crate::common::client::{Client, Heard, Hello, answer, publish};

super::checks! { publish:
    topic_names_hold_no_wildcard, topic_names_are_not_empty, qos_decides_the_answer, qos_0_has_no_packet_id,
    acks_come_in_order, qos_2_acks_come_in_order, an_id_is_free_after_puback, qos_2_is_taken_once, qos_2_id_is_free_after_pubcomp,
    pubrel_of_nothing_is_answered, qos_2_goes_on_after_its_expiry, qos_2_survives_a_reconnect,
    alias_zero_closes, an_alias_above_the_maximum_closes, every_alias_up_to_the_maximum_is_taken,
    aliases_end_with_the_connection, response_topics_hold_no_wildcard, a_subscription_identifier_closes,
    more_than_receive_maximum_is_answered, receive_maximum_is_taken, ack_codes_are_of_the_table,
    acks_of_nothing_do_no_harm, retain_is_taken_like_any_other,
}

fn expect(client: &mut Client, packet: &[u8], what: &str) {
    assert_eq!(client.hear(PATIENCE), Heard::Packet(packet.to_vec()), "{what}");
}

fn topic_names_hold_no_wildcard(bed: &Bed) {
    for topic in ["a/+", "a/#", "+", "#", "a+b"] {
        bed.assert_cut_off(&publish(bed.is_v5, 1, 1, topic, &[], b"x"), &[0x81, 0x82, 0x90], topic);
    }
}

fn topic_names_are_not_empty(bed: &Bed) {
    bed.assert_cut_off(&publish(bed.is_v5, 1, 1, "", &[], b"x"), &[0x81, 0x82, 0x90], "no topic");
}

fn qos_decides_the_answer(bed: &Bed) {
    let before = bed.accepted();
    let mut client = bed.connect("a");
    client.send(&bed.publish(0, 0, "zero"));
    client.send(&[0xC0, 0]);
    expect(&mut client, &[0xD0], "nothing answers QoS 0");
    client.send(&bed.publish(1, 0x1234, "one"));
    expect(&mut client, &[0x40, 0x12, 0x34], "PUBACK with its id");
    client.send(&bed.publish(2, 0xFFFF, "two"));
    expect(&mut client, &[0x50, 0xFF, 0xFF], "PUBREC with its id");
    client.send(&answer(0x62, 0xFFFF));
    expect(&mut client, &[0x70, 0xFF, 0xFF], "PUBCOMP with its id");
    bed.await_accepted(before + 3, "each is one event");
}

/// What would be read as an id is payload: the contract refuses anything but its JSON.
fn qos_0_has_no_packet_id(bed: &Bed) {
    let (mut client, before) = (bed.connect("a"), bed.accepted());
    let state = format!(r#"{{"msg_id":"{}"}}"#, bed.event_key());
    client.send(&publish(bed.is_v5, 0, 0, "plant/line1/m01/state", &[], state.as_bytes()));
    bed.await_accepted(before + 1, "its payload is whole");
}

fn acks_come_in_order(bed: &Bed) {
    let mut client = bed.connect("a");
    let all: Vec<u8> = (1..=200).flat_map(|id| bed.publish(1, id, &id.to_string())).collect();
    client.send(&all);
    for id in 1..=200u16 {
        expect(&mut client, &[&[0x40][..], &id.to_be_bytes()].concat(), "PUBACKs in order");
    }
}

fn qos_2_acks_come_in_order(bed: &Bed) {
    let mut client = bed.connect("a");
    client.send(&(1..=100).flat_map(|id| bed.publish(2, id, &id.to_string())).collect::<Vec<u8>>());
    for id in 1..=100u16 {
        expect(&mut client, &[&[0x50][..], &id.to_be_bytes()].concat(), "PUBRECs in order");
    }
    client.send(&(1..=100).rev().flat_map(|id| answer(0x62, id)).collect::<Vec<u8>>());
    for id in (1..=100u16).rev() {
        expect(&mut client, &[&[0x70][..], &id.to_be_bytes()].concat(), "PUBCOMPs in the order of the PUBRELs");
    }
}

/// Also with DUP and the same payload: on one connection nothing is sent again.
fn an_id_is_free_after_puback(bed: &Bed) {
    let (mut client, before) = (bed.connect("a"), bed.accepted());
    for dup in [0, 8, 8] {
        let mut bytes = bed.publish(1, 7, "same");
        bytes[0] |= dup;
        client.send(&bytes);
        expect(&mut client, &[0x40, 0, 7], "PUBACK");
    }
    bed.await_accepted(before + 3, "each is a publication");
}

fn qos_2_is_taken_once(bed: &Bed) {
    let (mut client, before) = (bed.connect("a"), bed.accepted());
    for dup in [0, 8, 8] {
        let mut bytes = bed.publish(2, 7, "once");
        bytes[0] |= dup;
        client.send(&bytes);
        expect(&mut client, &[0x50, 0, 7], "PUBREC as often as it is sent");
    }
    bed.await_accepted(before + 1, "one event");
    client.send(&answer(0x62, 7));
    expect(&mut client, &[0x70, 0, 7], "PUBCOMP");
    bed.await_accepted(before + 1, "still one event");
}

fn qos_2_id_is_free_after_pubcomp(bed: &Bed) {
    let (mut client, before) = (bed.connect("a"), bed.accepted());
    for dup in [0, 0, 8] {
        let mut bytes = bed.publish(2, 7, "same");
        bytes[0] |= dup;
        client.send(&bytes);
        expect(&mut client, &[0x50, 0, 7], "PUBREC");
        client.send(&answer(0x62, 7));
        expect(&mut client, &[0x70, 0, 7], "PUBCOMP");
    }
    bed.await_accepted(before + 3, "each is a publication");
}

fn pubrel_of_nothing_is_answered(bed: &Bed) {
    let mut client = bed.connect("a");
    client.send(&answer(0x62, 0x0203));
    let Heard::Packet(pubcomp) = client.hear(PATIENCE) else { panic!("a PUBCOMP is due") };
    assert_eq!(pubcomp[..3], [0x70, 2, 3]);
    // MQTT 5 may say that it knows no such id.
    assert!(pubcomp.len() == 3 || bed.is_v5 && pubcomp[3] == 0x92, "{pubcomp:?}");
    bed.assert_alive(&mut client);
}

fn qos_2_goes_on_after_its_expiry(bed: &Bed) {
    let (mut client, before) = (bed.connect("a"), bed.accepted());
    client.send(&publish(true, 2, 7, &bed.topic(), &[2, 0, 0, 0, 1], b"short"));
    expect(&mut client, &[0x50, 0, 7], "PUBREC");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    client.send(&answer(0x62, 7));
    expect(&mut client, &[0x70, 0, 7], "PUBCOMP");
    bed.await_accepted(before + 1, "it is an event all the same");
}

fn qos_2_survives_a_reconnect(bed: &Bed) {
    let before = bed.accepted();
    let (mut client, _) = bed.resume("a");
    client.send(&bed.publish(2, 7, "held"));
    expect(&mut client, &[0x50, 0, 7], "PUBREC");
    client.die();
    let (mut client, has_session) = bed.resume("a");
    assert!(has_session);
    let mut again = bed.publish(2, 7, "held");
    again[0] |= 8;
    client.send(&again);
    expect(&mut client, &[0x50, 0, 7], "PUBREC for the one it holds");
    client.send(&answer(0x62, 7));
    expect(&mut client, &[0x70, 0, 7], "PUBCOMP");
    bed.await_accepted(before + 1, "one event");
}

fn alias_zero_closes(bed: &Bed) {
    bed.assert_cut_off(&publish(true, 1, 1, &bed.topic(), &[0x23, 0, 0], b"x"), &[0x82, 0x94], "alias 0");
}

/// The largest alias that the gateway takes.
fn alias_maximum(bed: &Bed) -> (Client, u16) {
    let (client, connack) = bed.connect_with(&Hello { client: &bed.client("alias"), ..Hello::default() });
    (client, connack.number(0x22).unwrap_or(0) as u16)
}

fn an_alias_above_the_maximum_closes(bed: &Bed) {
    let (_, maximum) = alias_maximum(bed);
    let [high, low] = (maximum + 1).to_be_bytes();
    bed.assert_cut_off(&publish(true, 1, 1, &bed.topic(), &[0x23, high, low], b"x"), &[0x94], "above the maximum");
}

fn every_alias_up_to_the_maximum_is_taken(bed: &Bed) {
    let (mut client, maximum) = alias_maximum(bed);
    let before = bed.accepted();
    for alias in 1..=maximum {
        let [high, low] = alias.to_be_bytes();
        client.send(&publish(true, 1, 1, &bed.topic(), &[0x23, high, low], b"set"));
        expect(&mut client, &[0x40, 0, 1], "PUBACK");
        client.send(&publish(true, 1, 1, "", &[0x23, high, low], b"used"));
        expect(&mut client, &[0x40, 0, 1], "PUBACK");
    }
    bed.await_accepted(before + 2 * u64::from(maximum), "each found its topic");
}

fn aliases_end_with_the_connection(bed: &Bed) {
    let (mut client, _) = bed.resume("alias");
    client.send(&publish(true, 1, 1, &bed.topic(), &[0x23, 0, 1], b"set"));
    expect(&mut client, &[0x40, 0, 1], "PUBACK");
    bed.leave(client);
    let (mut client, _) = bed.resume("alias");
    client.send(&publish(true, 1, 1, "", &[0x23, 0, 1], b"used"));
    bed.assert_ended(&mut client, &[0x82, 0x94], "an alias of another connection");
}

fn response_topics_hold_no_wildcard(bed: &Bed) {
    let bytes = publish(true, 1, 1, &bed.topic(), &[0x08, 0, 3, b'a', b'/', b'#'], b"x");
    bed.assert_cut_off(&bytes, &[0x81, 0x82, 0x90], "a response topic with a wildcard");
}

fn a_subscription_identifier_closes(bed: &Bed) {
    bed.assert_cut_off(&publish(true, 1, 1, &bed.topic(), &[0x0B, 1], b"x"), &[0x81, 0x82], "it is for servers");
}

/// Exchanges of QoS 2 stay open until PUBREL, so that they fill Receive Maximum for certain.
fn open_exchanges(bed: &Bed, more: u16) -> Client {
    let (mut client, connack) = bed.connect_with(&Hello { client: &bed.client("many"), ..Hello::default() });
    let maximum = connack.number(0x21).map_or(u16::MAX, |value| value as u16);
    assert!(maximum < 2000, "the default is small enough to be filled");
    let all: Vec<u8> = (1..=maximum + more).flat_map(|id| bed.publish(2, id, "x")).collect();
    client.send(&all);
    for id in 1..=maximum {
        expect(&mut client, &[&[0x50][..], &id.to_be_bytes()].concat(), "PUBREC in order");
    }
    client
}

fn receive_maximum_is_taken(bed: &Bed) {
    let mut client = open_exchanges(bed, 0);
    bed.assert_alive(&mut client);
    client.send(&answer(0x62, 1));
    expect(&mut client, &[0x70, 0, 1], "PUBCOMP");
    client.send(&bed.publish(2, 1, "y"));
    expect(&mut client, &[0x50, 0, 1], "there is room again");
}

fn more_than_receive_maximum_is_answered(bed: &Bed) {
    let mut client = open_exchanges(bed, 1);
    let Heard::Packet(packet) = client.hear(PATIENCE) else { panic!("an answer is due") };
    // Cut off with the reason, or taken all the same; never forgotten.
    assert!(packet[..2] == [0xE0, 0x93] || packet[0] == 0x50, "{packet:?}");
}

fn ack_codes_are_of_the_table(bed: &Bed) {
    let listed = |first: u8| -> &[u8] {
        match first {
            0x40 | 0x50 => &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
            _ => &[0, 0x92],
        }
    };
    let mut client = bed.connect("a");
    let broken = publish(bed.is_v5, 1, 1, "plant/line1/m01/state", &[], b"no JSON");
    let unmatched = publish(bed.is_v5, 2, 2, "unmatched", &[], b"x");
    for bytes in [broken, unmatched, bed.publish(2, 3, "x"), answer(0x62, 3), answer(0x62, 0x7777)] {
        client.send(&bytes);
        let Heard::Packet(ack) = client.hear(PATIENCE) else { panic!("an answer is due") };
        assert!(matches!(ack[0], 0x40 | 0x50 | 0x70), "{ack:?}");
        let code = if bed.is_v5 { ack.get(3).copied().unwrap_or(0) } else { 0 };
        assert!(listed(ack[0]).contains(&code), "{ack:?}");
    }
}

/// PUBACK, PUBREC and PUBCOMP that answer nothing: the gateway ends the connection or goes on, and lives.
fn acks_of_nothing_do_no_harm(bed: &Bed) {
    for first in [0x40, 0x50, 0x70] {
        let mut client = bed.connect("a");
        client.send(&answer(first, 9));
        match client.hear(SILENCE) {
            Heard::Nothing | Heard::End => {}
            Heard::Packet(packet) => assert!(bed.is_v5 && matches!(packet[0], 0xE0 | 0x62), "{packet:?}"),
        }
        bed.connect("b");
    }
}

fn retain_is_taken_like_any_other(bed: &Bed) {
    let (mut client, before) = (bed.connect("a"), bed.accepted());
    for payload in ["kept", ""] {
        let mut bytes = bed.publish(1, 7, payload);
        bytes[0] |= 1;
        client.send(&bytes);
        expect(&mut client, &[0x40, 0, 7], "PUBACK");
    }
    bed.await_accepted(before + 2, "both are events");
}
