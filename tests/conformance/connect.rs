//! CONNECT and CONNACK (sections 3.1 and 3.2), but for sessions and wills.

use super::{Bed, PATIENCE};
use crate::common::client::{Client, Heard, Hello, Will, packet, properties, publish, subscribe, text, unsubscribe};
use crate::common::gateway::Gateway;
use forebay::sources::mqtt::put_user;
use std::net::SocketAddr;

super::checks! { connect:
    comes_first, comes_once, wants_its_protocol_name, wants_its_protocol_level, wants_its_reserved_flag_zero,
    will_bits_want_a_will, will_fields_are_there, will_topics_are_topics, will_qos_3_closes, login_fields_are_as_the_flags_say,
    a_password_wants_a_user, fields_have_their_order, client_id_is_there, texts_are_utf8, usual_client_ids_are_taken,
    an_empty_client_id_gets_a_new_one, an_empty_client_id_wants_a_clean_session, a_bad_client_id_is_refused,
    malformed_closes, a_bad_login_closes, connack_is_first_and_only, nothing_counts_after_a_refusal,
    codes_are_of_the_table, maximum_qos_is_told, no_response_information_is_sent, problem_information_is_kept_back,
    answers_fit_the_maximum_packet_size, authentication_methods_are_refused,
}

/// A CONNECT from its parts: level, flags, and everything behind the keep-alive (and, in MQTT 5,
/// behind empty properties).
fn connect(bed: &Bed, flags: u8, payload: &[u8]) -> Vec<u8> {
    connect_with(bed, flags, &[], payload)
}

fn connect_with(bed: &Bed, flags: u8, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[if bed.is_v5 { 5 } else { 4 }, flags, 0, 0]);
    if bed.is_v5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.extend_from_slice(payload);
    packet(0x10, &body)
}

/// A CONNECT that does not conform ends the connection: without a CONNACK in 3.1.1.
fn assert_malformed(bed: &Bed, bytes: &[u8], what: &str) {
    if let Some(code) = bed.refusal(bytes, what) {
        assert!(bed.is_v5 && (0x81..=0x82).contains(&code), "{what}: {code:#x}");
    }
}

fn will_payload(bed: &Bed, topic: &[u8]) -> Vec<u8> {
    let none: &[u8] = if bed.is_v5 { &[0] } else { &[] };
    [none, &(topic.len() as u16).to_be_bytes(), topic, &text("dead")].concat()
}

fn comes_first(bed: &Bed) {
    for bytes in [
        bed.publish(1, 1, "x"),
        bed.publish(0, 0, "x"),
        subscribe(bed.is_v5, 1, &[], &[("#", 0)]),
        vec![0xC0, 0],
        vec![0xE0, 0],
        vec![0xF0, 0],
    ] {
        let before = bed.accepted();
        assert_eq!(bed.refusal(&bytes, "another packet first"), None, "it gets no answer");
        assert_eq!(bed.accepted(), before);
    }
}

fn comes_once(bed: &Bed) {
    let client = bed.client("faulty");
    let hello = Hello { is_v5: bed.is_v5, client: &client, ..Hello::default() };
    bed.assert_cut_off(&hello.bytes(), &[0x82], "a second CONNECT");
}

fn wants_its_protocol_name(bed: &Bed) {
    for name in ["MQTX", "mqtt", "", "HTTP/"] {
        let mut body = text(name);
        body.extend_from_slice(&[if bed.is_v5 { 5 } else { 4 }, 2, 0, 0]);
        body.extend(if bed.is_v5 { vec![0] } else { vec![] });
        body.extend(text("x"));
        let code = bed.refusal(&packet(0x10, &body), name);
        assert!(matches!(code, None | Some(0x84)), "{name}: {code:?}");
    }
}

fn wants_its_protocol_level(bed: &Bed) {
    let code = |level: u8, behind: &[u8]| {
        let body = [&text("MQTT")[..], &[level, 2, 0, 0], behind, &text("x")].concat();
        bed.refusal(&packet(0x10, &body), "another protocol level")
    };
    assert_eq!(code(3, &[]), Some(1));
    assert_eq!(code(6, &[0]), Some(0x84));
    assert_eq!(code(0xFF, &[0]), Some(0x84));
}

fn wants_its_reserved_flag_zero(bed: &Bed) {
    assert_malformed(bed, &connect(bed, 0x03, &text("x")), "the reserved flag");
}

fn will_bits_want_a_will(bed: &Bed) {
    for (flags, what) in [(0x0A, "QoS 1"), (0x12, "QoS 2"), (0x22, "retain")] {
        assert_malformed(bed, &connect(bed, flags, &text("x")), what);
    }
}

fn will_fields_are_there(bed: &Bed) {
    assert_malformed(bed, &connect(bed, 0x06, &text("x")), "no will");
    let none: &[u8] = if bed.is_v5 { &[0] } else { &[] };
    let only_topic = [&text("x")[..], none, &text(&bed.topic())].concat();
    assert_malformed(bed, &connect(bed, 0x06, &only_topic), "a will without a payload");
    let unasked = [text("x"), will_payload(bed, bed.topic().as_bytes())].concat();
    assert_malformed(bed, &connect(bed, 0x02, &unasked), "a will without the flag");
}

fn will_topics_are_topics(bed: &Bed) {
    for topic in ["", "a/#", "+"] {
        let code = bed.refusal(&connect(bed, 0x06, &[text("x"), will_payload(bed, topic.as_bytes())].concat()), topic);
        assert!(matches!(code, None | Some(0x81 | 0x82 | 0x90)), "{topic}: {code:?}");
    }
}

fn will_qos_3_closes(bed: &Bed) {
    let payload = [text("x"), will_payload(bed, bed.topic().as_bytes())].concat();
    assert_malformed(bed, &connect(bed, 0x1E, &payload), "QoS 3");
}

fn login_fields_are_as_the_flags_say(bed: &Bed) {
    let (id, user, both) = (text("x"), text("user"), [text("user"), text("password")].concat());
    assert_malformed(bed, &connect(bed, 0x02, &[&id[..], &user].concat()), "a user without the flag");
    assert_malformed(bed, &connect(bed, 0x82, &id), "no user with the flag");
    assert_malformed(bed, &connect(bed, 0x82, &[&id[..], &both].concat()), "a password without the flag");
    assert_malformed(bed, &connect(bed, 0xC2, &[&id[..], &user].concat()), "no password with the flag");
}

fn a_password_wants_a_user(bed: &Bed) {
    assert_malformed(bed, &connect(bed, 0x42, &[text("x"), text("password")].concat()), "a password alone");
}

fn fields_have_their_order(bed: &Bed) {
    let (topic, client) = (bed.topic(), bed.client("all"));
    let will = Will { topic: &topic, payload: b"\0\xFF", qos: 1, retain: true, properties: vec![] };
    let hello = Hello { client: &client, login: Some(("user", "password")), will: Some(will), ..Hello::default() };
    let (client, connack) = bed.connect_with(&hello);
    assert_eq!(connack.code, 0);
    bed.leave(client);
}

fn client_id_is_there(bed: &Bed) {
    assert_malformed(bed, &connect(bed, 0x02, &[]), "no client id");
    assert_malformed(bed, &connect(bed, 0x02, &[0, 9, b'x']), "half a client id");
}

fn texts_are_utf8(bed: &Bed) {
    for bad in [&b"\xED\xA0\x80"[..], b"\xFF", b"a\0b"] {
        let counted = [&(bad.len() as u16).to_be_bytes()[..], bad].concat();
        assert_malformed(bed, &connect(bed, 0x02, &counted), "client id");
        assert_malformed(bed, &connect(bed, 0x82, &[&text("x")[..], &counted].concat()), "user name");
        assert_malformed(bed, &connect(bed, 0x06, &[text("x"), will_payload(bed, bad)].concat()), "will topic");
    }
}

fn usual_client_ids_are_taken(bed: &Bed) {
    for id in ["0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ", "a", "9"] {
        let (client, connack) = bed.connect_with(&Hello { client: id, ..Hello::default() });
        assert_eq!(connack.code, 0, "{id}");
        bed.leave(client);
    }
}

fn an_empty_client_id_gets_a_new_one(bed: &Bed) {
    let hello = Hello { client: "", ..Hello::default() };
    let ((mut one, first), (mut other, second)) = (bed.connect_with(&hello), bed.connect_with(&hello));
    assert_eq!((first.code, second.code), (0, 0));
    // Neither has taken the other's place.
    bed.assert_alive(&mut one);
    bed.assert_alive(&mut other);
    if bed.is_v5 {
        let assigned = |connack: &super::Connack| {
            let value = connack.properties.iter().find(|(id, _)| *id == 0x12).expect("an assigned client id");
            String::from_utf8(value.1[2..].to_vec()).expect("UTF-8")
        };
        let (first, second) = (assigned(&first), assigned(&second));
        assert!(!first.is_empty() && first != second, "{first} {second}");
        // It is the client's own from now on.
        let _third = bed.connect_with(&Hello { client: &first, ..Hello::default() });
        bed.assert_ended(&mut one, &[0x8E], "taken over");
    }
}

fn an_empty_client_id_wants_a_clean_session(bed: &Bed) {
    assert_eq!(bed.refusal(&connect(bed, 0x00, &text("")), "a session of nobody"), Some(2));
}

fn a_bad_client_id_is_refused(bed: &Bed) {
    let code = bed.refusal(&connect(bed, 0x02, &text(&"x".repeat(60_000))), "60,000 characters");
    assert_eq!(code, Some(if bed.is_v5 { 0x85 } else { 2 }));
}

fn malformed_closes(bed: &Bed) {
    assert_malformed(bed, &packet(0x10, &text("MQTT")), "nothing behind the name");
    assert_malformed(bed, &connect(bed, 0x02, &[&text("x")[..], b"more"].concat()), "bytes behind the end");
    if bed.is_v5 {
        for (properties, what) in [
            (&[0x21, 0, 9, 0x21, 0, 9][..], "Receive Maximum twice"),
            (&[0x21, 0, 0], "Receive Maximum 0"),
            (&[0x27, 0, 0, 0, 0], "Maximum Packet Size 0"),
            (&[0x17, 2], "Request Problem Information 2"),
            (&[0x19, 2], "Request Response Information 2"),
            (&[0x24, 1], "a property of CONNACK"),
            (&[0x7E, 1], "a property that does not exist"),
            (&[0x11, 0, 0], "half a property"),
            (&[0x16, 0, 1, b'x'], "authentication data without a method"),
        ] {
            assert_malformed(bed, &connect_with(bed, 0x02, properties, &text("x")), what);
        }
    }
}

/// A gateway that knows one user.
fn guarded() -> Gateway {
    let mut gateway = Gateway::prepare("conform-login", "");
    put_user(&gateway.folder.join("passwd"), "press", b"right").expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}passwords = \"passwd\"\n")).expect("written");
    gateway.run();
    gateway
}

fn code_of(address: SocketAddr, hello: &Hello<'_>) -> u8 {
    let (mut client, connack) = Client::connect(address, hello);
    assert_eq!(connack[1], 0, "no session is present");
    if connack[2] != 0 {
        assert_eq!(client.hear(PATIENCE), Heard::End, "the connection ends behind a refusal");
    }
    connack[2]
}

fn a_bad_login_closes(bed: &Bed) {
    let gateway = guarded();
    let code = |login| code_of(gateway.address, &Hello { is_v5: bed.is_v5, login, ..Hello::default() });
    assert_eq!(code(Some(("press", "right"))), 0);
    assert_eq!(code(Some(("press", "wrong"))), if bed.is_v5 { 0x86 } else { 4 });
    assert_eq!(code(Some(("nobody", "right"))), if bed.is_v5 { 0x86 } else { 4 });
    assert_eq!(code(None), if bed.is_v5 { 0x87 } else { 5 });
}

fn connack_is_first_and_only(bed: &Bed) {
    let id = bed.client("eager");
    let hello = Hello { is_v5: bed.is_v5, client: &id, ..Hello::default() };
    let mut client = Client::dial(bed.gateway.address);
    client.send(&[hello.bytes(), bed.publish(1, 1, "x"), vec![0xC0, 0]].concat());
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let Heard::Packet(packet) = client.hear(PATIENCE) else { panic!("{kinds:x?} and no more") };
        kinds.push(packet[0]);
    }
    assert_eq!(kinds[0], 0x20);
    kinds[1..].sort_unstable();
    assert_eq!(kinds[1..], [0x40, 0xD0]);
}

fn nothing_counts_after_a_refusal(bed: &Bed) {
    let before = bed.accepted();
    let refused = if bed.is_v5 {
        connect_with(bed, 0x02, &[0x15, 0, 1, b'x'], &text("x"))
    } else {
        connect(bed, 0x00, &text(""))
    };
    let mut client = Client::dial(bed.gateway.address);
    client.send(&[refused, bed.publish(1, 1, "x"), vec![0xC0, 0]].concat());
    let Heard::Packet(connack) = client.hear(PATIENCE) else { panic!("a CONNACK is due") };
    assert!(connack[0] == 0x20 && connack[2] != 0, "{connack:?}");
    assert_eq!(client.hear(PATIENCE), Heard::End);
    bed.await_accepted(before, "nothing is taken");
}

fn codes_are_of_the_table(bed: &Bed) {
    let gateway = guarded();
    let listed: &[u8] = if bed.is_v5 {
        &[
            0, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A,
            0x9B, 0x9C, 0x9D, 0x9F,
        ]
    } else {
        &[0, 1, 2, 3, 4, 5]
    };
    let long = "x".repeat(60_000);
    for (client, login) in [("x", None), ("x", Some(("press", "wrong"))), (&long, Some(("press", "right")))] {
        let code = code_of(gateway.address, &Hello { is_v5: bed.is_v5, client, login, ..Hello::default() });
        assert!(listed.contains(&code), "{code:#x}");
    }
}

/// A server without QoS 2 says so, and one that does not say so takes it.
fn maximum_qos_is_told(bed: &Bed) {
    let (mut client, connack) = bed.connect_with(&Hello { client: &bed.client("qos"), ..Hello::default() });
    client.send(&bed.publish(2, 5, "x"));
    match connack.number(0x24) {
        None => assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0x50, 0, 5]), "a PUBREC"),
        Some(maximum) => {
            assert!(maximum < 2, "Maximum QoS is 0 or 1");
            bed.assert_ended(&mut client, &[0x9B], "QoS 2");
        }
    }
}

fn no_response_information_is_sent(bed: &Bed) {
    for asked in [vec![], vec![0x19, 0]] {
        let hello = Hello { client: &bed.client("asks"), properties: asked, ..Hello::default() };
        assert_eq!(bed.connect_with(&hello).1.number(0x1A), None);
    }
}

fn problem_information_is_kept_back(bed: &Bed) {
    let hello = Hello { client: &bed.client("terse"), properties: vec![0x17, 0], ..Hello::default() };
    let (mut client, _) = bed.connect_with(&hello);
    client.send(&subscribe(true, 9, &[], &[("$share/x", 1), ("a/#/b", 1)]));
    client.send(&unsubscribe(true, 9, &["nowhere"]));
    client.send(&bed.publish(1, 9, "x"));
    client.send(&[0xC0, 0]);
    loop {
        match client.hear(PATIENCE) {
            Heard::Packet(packet) if packet[0] == 0xD0 => break,
            // An end with DISCONNECT may say why.
            Heard::Packet(packet) if packet[0] == 0xE0 => break,
            Heard::Packet(packet) if packet.len() > 3 => {
                let from = if packet[0] & 0xF0 == 0x40 { 4 } else { 3 };
                let found = properties(&packet[from..]).0;
                assert!(found.iter().all(|(id, _)| !matches!(id, 0x1F | 0x26)), "{packet:?}");
            }
            Heard::Packet(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reason strings go where there is no room for them.
fn answers_fit_the_maximum_packet_size(bed: &Bed) {
    let size = |packet: &[u8]| 1 + packet.len();
    let mut client = Client::dial(bed.gateway.address);
    client.send(&connect_with(bed, 0x02, &[0x27, 0, 0, 0, 16, 0x15, 0, 1, b'x'], &text("x")));
    if let Heard::Packet(packet) = client.hear(PATIENCE) {
        assert!(size(&packet) <= 16, "CONNACK: {packet:?}");
    }
    // As large as a CONNACK is at least, so that the client is let in.
    let limit = 40;
    let faults = [
        publish(true, 1, 1, "a/+", &[], b"x"),
        publish(true, 1, 1, "a", &[0x23, 0xFF, 0xFF], b"x"),
        vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F],
        packet(0x82, &[0, 1]),
        vec![0x00, 0],
    ];
    for fault in faults {
        let properties = vec![0x27, 0, 0, 0, limit as u8];
        let (mut client, _) = bed.connect_with(&Hello { client: &bed.client("small"), properties, ..Hello::default() });
        client.send(&bed.publish(1, 7, "x"));
        client.send(&subscribe(true, 8, &[], &[("a/#/b", 1)]));
        client.send(&unsubscribe(true, 9, &["nowhere"]));
        client.send(&fault);
        while let Heard::Packet(packet) = client.hear(PATIENCE) {
            assert!(size(&packet) <= limit, "{} bytes: {packet:?}", size(&packet));
        }
    }
}

fn authentication_methods_are_refused(bed: &Bed) {
    let code = bed.refusal(&connect_with(bed, 0x02, &[0x15, 0, 5, b'S', b'C', b'R', b'A', b'M'], &text("x")), "SCRAM");
    assert!(matches!(code, None | Some(0x87 | 0x8C)), "{code:?}");
    let (mut client, connack) = bed.connect_with(&Hello { client: &bed.client("plain"), ..Hello::default() });
    assert!(connack.number(0x15).is_none() && connack.number(0x16).is_none(), "nobody asked for authentication");
    client.send(&packet(0xF0, &[0x19, 8, 0x15, 0, 5, b'S', b'C', b'R', b'A', b'M']));
    bed.assert_ended(&mut client, &[0x82], "AUTH without a method in CONNECT");
}
