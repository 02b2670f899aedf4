//! Bytes: strings, lengths, flags, identifiers (chapters 1 and 2, and what is malformed wherever it stands).

use super::{Bed, PATIENCE};
use crate::common::client::{Client, Heard, Hello, answer, packet, properties, publish, subscribe, text, unsubscribe};

super::checks! { wire:
    ill_formed_utf8_closes, the_null_character_closes, a_byte_order_mark_is_kept, string_pairs_are_utf8,
    lengths_are_minimal, reserved_flags_close, packet_id_zero_closes, no_properties_is_length_zero,
    both_qos_bits_close, dup_at_qos_0_closes, types_that_do_not_exist_close, cut_packets_close,
    too_large_a_packet_closes, faults_leave_others_alone, packets_come_in_any_pieces,
}

/// A surrogate, an overlong form, and a byte that is none.
const ILL_FORMED: [&[u8]; 3] = [b"\xED\xA0\x80", b"\xC0\xAF", b"\xFF"];

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// SUBSCRIBE, UNSUBSCRIBE or PUBLISH at QoS 1 with a string of any bytes.
fn with_string(bed: &Bed, first: u8, string: &[u8]) -> Vec<u8> {
    let none: &[u8] = if bed.is_v5 { &[0] } else { &[] };
    packet(
        first,
        &match first {
            0x82 => [&[0, 9], none, &counted(string), &[1]].concat(),
            0xA2 => [&[0, 9], none, &counted(string)].concat(),
            _ => [&counted(string)[..], &[0, 9], none, b"x"].concat(),
        },
    )
}

fn assert_no_string_takes(bed: &Bed, string: &[u8]) {
    for (first, what) in [(0x32, "topic name"), (0x82, "filter of SUBSCRIBE"), (0xA2, "filter of UNSUBSCRIBE")] {
        bed.assert_cut_off(&with_string(bed, first, string), &[0x81, 0x82], what);
    }
    if bed.is_v5 {
        for property in [0x03, 0x08] {
            let properties = [&[property][..], &counted(string)].concat();
            let bytes = publish(true, 1, 9, &bed.topic(), &properties, b"x");
            bed.assert_cut_off(&bytes, &[0x81, 0x82], "content type and response topic");
        }
    }
}

fn ill_formed_utf8_closes(bed: &Bed) {
    for string in ILL_FORMED {
        assert_no_string_takes(bed, string);
    }
}

fn the_null_character_closes(bed: &Bed) {
    assert_no_string_takes(bed, b"a\0b");
}

fn a_byte_order_mark_is_kept(bed: &Bed) {
    let mut client = bed.connect("bom");
    client.send(&publish(bed.is_v5, 1, 1, "\u{FEFF}unmatched/\u{FEFF}", &[], b"x"));
    assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0x40, 0, 1]));
    let letters = bed.gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let letters: serde_json::Value = serde_json::from_slice(&letters.stdout).expect("JSON");
    let topics: Vec<_> = letters.as_array().into_iter().flatten().map(|letter| letter["topic"].clone()).collect();
    assert!(topics.contains(&"\u{FEFF}unmatched/\u{FEFF}".into()), "{topics:?}");
}

fn string_pairs_are_utf8(bed: &Bed) {
    for string in ILL_FORMED.into_iter().chain([&b"\0"[..]]) {
        for pair in [[string, b"value"], [b"name", string]] {
            let properties = [&[0x26][..], &counted(pair[0]), &counted(pair[1])].concat();
            let bytes = publish(true, 1, 9, &bed.topic(), &properties, b"x");
            bed.assert_cut_off(&bytes, &[0x81, 0x82], "user property");
        }
    }
}

fn lengths_are_minimal(bed: &Bed) {
    use std::io::Read;
    let mut client = bed.connect("lengths");
    client.send(&[0xC0, 0]);
    let mut pong = [0; 2];
    client.stream.read_exact(&mut pong).expect("a PINGRESP");
    assert_eq!(pong, [0xD0, 0]);
    // 124 filters fill one byte of the remaining length in MQTT 5, one more needs two.
    for count in [124, 125] {
        let filters = vec!["conform/nowhere"; count];
        client.send(&unsubscribe(bed.is_v5, 9, &filters));
        let body = 2 + if bed.is_v5 { 1 + count } else { 0 };
        let mut header = vec![0xB0];
        header.extend(if body < 128 { vec![body as u8] } else { vec![(body & 0x7F | 0x80) as u8, (body >> 7) as u8] });
        let mut unsuback = vec![0; header.len() + body];
        client.stream.read_exact(&mut unsuback).expect("an UNSUBACK");
        assert_eq!(unsuback[..header.len()], header);
    }
}

fn reserved_flags_close(bed: &Bed) {
    let mut connect = Hello { is_v5: bed.is_v5, ..Hello::default() }.bytes();
    connect[0] = 0x11;
    bed.refusal(&connect, "CONNECT");
    let all: [(&str, Vec<u8>); 8] = [
        ("PUBACK", answer(0x41, 1)),
        ("PUBREC", answer(0x51, 1)),
        ("PUBREL", answer(0x60, 1)),
        ("PUBCOMP", answer(0x71, 1)),
        ("SUBSCRIBE", [&[0x80], &subscribe(bed.is_v5, 9, &[], &[("a", 0)])[1..]].concat()),
        ("UNSUBSCRIBE", [&[0xA0], &unsubscribe(bed.is_v5, 9, &["a"])[1..]].concat()),
        ("PINGREQ", vec![0xC1, 0]),
        ("DISCONNECT", vec![0xE1, 0]),
    ];
    for (what, bytes) in all {
        // An acknowledgement of nothing is a protocol error beside.
        let codes: &[u8] = if matches!(what, "PUBACK" | "PUBREC" | "PUBCOMP") { &[0x81, 0x82] } else { &[0x81] };
        bed.assert_cut_off(&bytes, codes, what);
    }
    if bed.is_v5 {
        bed.assert_cut_off(&packet(0xF1, &[]), &[0x81], "AUTH");
    }
}

fn packet_id_zero_closes(bed: &Bed) {
    bed.assert_cut_off(&bed.publish(1, 0, "x"), &[0x81, 0x82], "PUBLISH at QoS 1");
    bed.assert_cut_off(&bed.publish(2, 0, "x"), &[0x81, 0x82], "PUBLISH at QoS 2");
    bed.assert_cut_off(&subscribe(bed.is_v5, 0, &[], &[("a", 0)]), &[0x81, 0x82], "SUBSCRIBE");
    bed.assert_cut_off(&unsubscribe(bed.is_v5, 0, &["a"]), &[0x81, 0x82], "UNSUBSCRIBE");
}

fn no_properties_is_length_zero(bed: &Bed) {
    let mut client = bed.connect("lengths");
    for bytes in [subscribe(true, 9, &[], &[("a", 0)]), unsubscribe(true, 9, &["a"])] {
        client.send(&bytes);
        let Heard::Packet(answer) = client.hear(PATIENCE) else { panic!("an answer is due") };
        let (_, length) = properties(&answer[3..]);
        assert_eq!(answer.len(), 3 + length + 1, "one code behind the properties: {answer:?}");
    }
}

fn both_qos_bits_close(bed: &Bed) {
    bed.assert_cut_off(&bed.publish(3, 1, "x"), &[0x81], "QoS 3");
}

fn dup_at_qos_0_closes(bed: &Bed) {
    let mut bytes = bed.publish(0, 0, "x");
    bytes[0] |= 8;
    bed.assert_cut_off(&bytes, &[0x81, 0x82], "DUP at QoS 0");
}

fn types_that_do_not_exist_close(bed: &Bed) {
    bed.assert_cut_off(&[0x00, 0], &[0x81, 0x82], "type 0");
    bed.assert_cut_off(&[0xF0, 0], &[0x81, 0x82], "type 15 in 3.1.1, AUTH without a method in 5");
    for first in [0x20, 0x90, 0xB0, 0xD0] {
        bed.assert_cut_off(&packet(first, &[0, 1, 0]), &[0x81, 0x82], "what only servers send");
    }
}

fn cut_packets_close(bed: &Bed) {
    let bad = [0x81, 0x82];
    bed.assert_cut_off(&packet(0x32, &[0, 9, b'a']), &bad, "a topic that is longer than its packet");
    bed.assert_cut_off(&packet(0x32, &[0, 1, b'a', 0]), &bad, "half a packet identifier");
    bed.assert_cut_off(&packet(0x82, &[0, 1]), &bad, "SUBSCRIBE without anything");
    bed.assert_cut_off(&packet(0x62, &[0]), &bad, "half a PUBREL");
    bed.assert_cut_off(&packet(0xC0, &[0]), &bad, "PINGREQ with a body");
    bed.assert_cut_off(&[0x30, 0x80, 0x80, 0x80, 0x80, 1], &bad, "a length of five bytes");
    if bed.is_v5 {
        let topic = text(&bed.topic());
        bed.assert_cut_off(&packet(0x30, &[&topic[..], &[9, 1]].concat()), &bad, "properties beyond the packet");
        bed.assert_cut_off(&packet(0x30, &[&topic[..], &[2, 0x7E, 0]].concat()), &bad, "a property that is none");
        bed.assert_cut_off(&packet(0x30, &[&topic[..], &[3, 0x21, 0, 9]].concat()), &bad, "a property of CONNECT");
        bed.assert_cut_off(&packet(0x30, &[&topic[..], &[4, 1, 0, 1, 0]].concat()), &bad, "a property twice");
    } else {
        bed.assert_cut_off(&packet(0xE0, &[0]), &bad, "DISCONNECT with a body");
    }
}

fn too_large_a_packet_closes(bed: &Bed) {
    bed.assert_cut_off(&[0x82, 0xFF, 0xFF, 0xFF, 0x7F], &[0x95], "256 MB");
}

fn faults_leave_others_alone(bed: &Bed) {
    let mut bystander = bed.connect("bystander");
    for bytes in [&[0xFF; 64][..], &[0x30, 0x80, 0x80, 0x80, 0x80], &[0x00, 0]] {
        bed.assert_cut_off(bytes, &[0x81, 0x82], "nonsense");
        bed.assert_alive(&mut bystander);
    }
    bed.event(&mut bystander, "x");
}

fn packets_come_in_any_pieces(bed: &Bed) {
    let before = bed.accepted();
    let client = bed.client("pieces");
    let hello = Hello { is_v5: bed.is_v5, client: &client, ..Hello::default() };
    let all = [hello.bytes(), bed.publish(1, 1, "a"), bed.publish(1, 2, "b"), vec![0xC0, 0]].concat();
    let mut client = Client::dial(bed.gateway.address);
    for byte in &all {
        client.send(&[*byte]);
    }
    let mut kinds = Vec::new();
    while kinds.len() < 4 {
        match client.hear(PATIENCE) {
            Heard::Packet(packet) => kinds.push(packet[0]),
            other => panic!("{other:?} after {kinds:x?}"),
        }
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [0x20, 0x40, 0x40, 0xD0]);
    bed.await_accepted(before + 2, "both publishes are taken");
}
