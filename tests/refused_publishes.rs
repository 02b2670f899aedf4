//! A publish that the listener does not take as an event: the connection lives, and so do the device's other events.
//!
//! Users met brokers that close the connection over one publish. Client libraries send that publish again after each
//! reconnect, for ever, and nothing behind it arrives.

use crate::common::client::{Client, Heard, Hello, packet, properties, publish, text};
use crate::common::gateway::{Gateway, accepted, payload};
use crate::common::random::Random;
use forebay::sources::mqtt::put_user;
use std::time::Duration;

const STATE: &str = "plant/line1/m01/state";

/// Dead letters as `forebay dead list --json` has them, the oldest first.
fn letters(gateway: &Gateway) -> Vec<serde_json::Value> {
    let output = gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let mut letters: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    letters.sort_by_key(|letter| letter["id"].as_u64());
    letters
}

/// What `forebay dead requeue` says of a letter.
fn requeued(gateway: &Gateway, letter: &serde_json::Value) -> String {
    let again = gateway.command(&["dead", "requeue", &letter["id"].to_string(), "CONFIG"]);
    String::from_utf8_lossy(&again.stdout).into_owned() + &String::from_utf8_lossy(&again.stderr)
}

fn reasons(gateway: &Gateway) -> Vec<String> {
    letters(gateway).iter().map(|letter| letter["reason"].as_str().expect("a reason").to_owned()).collect()
}

/// A publish of any size.
fn large(is_v5: bool, qos: u8, id: u16, topic: &str, bytes: usize) -> Vec<u8> {
    publish(is_v5, qos, id, topic, &[], &vec![b'7'; bytes])
}

/// Receives acknowledgements of these packet ids, in this order; returns their reason codes.
fn acknowledged(client: &mut Client, ids: &[u16]) -> Vec<u8> {
    let codes = ids.iter().map(|id| {
        let answer = client.receive().expect("the connection lives");
        assert_eq!((answer[0], u16::from_be_bytes([answer[1], answer[2]])), (0x40, *id), "{answer:?}");
        answer.get(3).copied().unwrap_or(0)
    });
    codes.collect()
}

#[test]
fn one_publish_above_the_limit_does_not_lock_a_device_out() {
    let gateway = Gateway::start("too-large", "");
    let cases = [(false, 300_000), (true, 300_000), (false, 1_500_000), (true, 9_000_000)];
    for (round, (is_v5, bytes)) in cases.into_iter().enumerate() {
        let (mut client, _) = Client::connect(gateway.address, &Hello { is_v5, ..Hello::default() });
        client.send(&large(is_v5, 1, 1, STATE, bytes));
        for id in 2..7 {
            let number = usize::from(id) + 100 * round;
            client.send(&publish(is_v5, 1, id, STATE, &[], payload(1, number).as_bytes()));
        }
        assert_eq!(acknowledged(&mut client, &[1, 2, 3, 4, 5, 6]), [0; 6], "{bytes} bytes, MQTT 5: {is_v5}");
    }
    assert_eq!(accepted(&gateway.status()), 20);
    let letters = letters(&gateway);
    assert_eq!(letters.len(), 4);
    let reason = letters[2]["reason"].as_str().expect("a reason");
    assert_eq!(reason, "payload: is 1500000 bytes long; the largest that is taken has 262144");
    assert_eq!(letters[2]["topic"], STATE);
    let said = requeued(&gateway, &letters[2]);
    assert!(said.contains("only the start of it is kept"), "a part of a payload is no event: {said}");
}

#[test]
fn what_connack_announces_is_taken() {
    for payload_max in [1_000, 40_000, 256 << 10] {
        let gateway = Gateway::prepare("announced", "");
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        std::fs::write(gateway.config(), format!("{config}payload_max = {payload_max}\n")).expect("written");
        let contract = "name = \"any\"\nversion = \"1.0.0\"\nowner = \"t\"\naccepts = \"any\"\nmatch = { source = \"mqtt\", topic = \"#\" }\n";
        std::fs::write(gateway.folder.join("contracts/any.toml"), contract).expect("written");
        let mut gateway = gateway;
        gateway.run();
        let (mut client, connack) = Client::connect(gateway.address, &Hello::default());
        let (found, _) = properties(&connack[3..]);
        let (_, announced) = found.iter().find(|(id, _)| *id == 0x27).expect("a Maximum Packet Size");
        let announced = u32::from_be_bytes(announced[..].try_into().expect("four bytes")) as usize;
        for (id, bytes) in [(1, announced), (2, announced - 1), (3, announced + 1)] {
            let header = large(true, 1, id, "x", bytes).len() - bytes;
            let packet = large(true, 1, id, "x", bytes - header);
            client.send(&packet);
            assert_eq!(acknowledged(&mut client, &[id]), [0]);
            let kept = letters(&gateway).len();
            assert_eq!(
                kept,
                usize::from(bytes > announced),
                "a packet of {} bytes, {announced} announced",
                packet.len()
            );
        }
    }
}

#[test]
fn what_is_not_allowed_is_refused_without_the_end_of_the_connection() {
    let gateway = Gateway::prepare("not-allowed", "");
    put_user(&gateway.folder.join("users"), "m01", b"long enough").expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}passwords = \"users\"\n")).expect("written");
    let mut gateway = gateway;
    gateway.run();
    let hello = |is_v5| Hello { is_v5, login: Some(("m01", "long enough")), ..Hello::default() };
    let elsewhere = "plant/line1/m02/state";
    for is_v5 in [true, false] {
        let (mut client, _) = Client::connect(gateway.address, &hello(is_v5));
        let start = 10 * usize::from(is_v5);
        // The acknowledgement of the first is outstanding when the second is refused.
        let packets = [(1, STATE), (2, elsewhere), (3, STATE), (4, elsewhere)];
        let bytes = packets
            .map(|(id, topic)| publish(is_v5, 1, id, topic, &[], payload(1, start + usize::from(id)).as_bytes()));
        client.send(&bytes.concat());
        let expected = if is_v5 { [0, 0x87, 0, 0x87] } else { [0; 4] };
        assert_eq!(acknowledged(&mut client, &[1, 2, 3, 4]), expected);
    }
    let kept = letters(&gateway);
    assert_eq!(kept.len(), 2, "MQTT 3.1.1 has no reason codes, so the events are kept: {kept:?}");
    assert!(kept[0]["reason"].as_str().expect("text").starts_with("rights: "), "{kept:?}");
    let said = requeued(&gateway, &kept[0]);
    assert!(said.contains("no right to publish"), "an operator does not grant it by accident: {said}");
}

#[test]
fn a_setting_decides_between_a_dead_letter_and_a_reason_code() {
    let gateway = Gateway::prepare("refusals-by-code", "");
    put_user(&gateway.folder.join("users"), "m01", b"long enough").expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let more =
        "passwords = \"users\"\npayload_max = \"1KB\"\ntoo_large = \"reason-code\"\nnot_allowed = \"dead-letter\"\n";
    std::fs::write(gateway.config(), format!("{config}{more}")).expect("written");
    let mut gateway = gateway;
    gateway.run();
    let hello = Hello { login: Some(("m01", "long enough")), ..Hello::default() };
    let (mut client, _) = Client::connect(gateway.address, &hello);
    client.send(&large(true, 1, 1, STATE, 300_000));
    client.send(&publish(true, 1, 2, "plant/line1/m02/state", &[], payload(1, 2).as_bytes()));
    client.send(&large(true, 0, 0, STATE, 300_000));
    client.send(&publish(true, 1, 3, STATE, &[], payload(1, 3).as_bytes()));
    assert_eq!(acknowledged(&mut client, &[1, 2, 3]), [0x83, 0, 0]);
    assert_eq!(reasons(&gateway).len(), 1, "too large has an answer, not allowed a letter");
    client.send(&large(true, 2, 4, STATE, 300_000));
    assert_eq!(client.receive(), Some(vec![0x50, 0, 4, 0x83]), "PUBREC ends the exchange");
    client.send(&[0xC0, 0]);
    assert_eq!(client.receive(), Some(vec![0xD0]));
}

/// Publishes of any kind, size, topic and QoS, cut into any pieces: each QoS 1 publish gets its answer, in order.
#[test]
fn whatever_is_refused_each_publish_has_its_answer_in_order() {
    let gateway = Gateway::prepare("refused-at-random", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}payload_max = \"2KB\"\ntopic_max = 64\n")).expect("written");
    let mut gateway = gateway;
    gateway.run();
    let mut random = Random::seeded();
    for round in 0..8 {
        let is_v5 = random.below(2) == 0;
        let client = format!("client{round}");
        let (mut client, _) = Client::connect(gateway.address, &Hello { is_v5, client: &client, ..Hello::default() });
        let (mut bytes, mut expected, mut good) = (Vec::new(), Vec::new(), 0);
        let before = accepted(&gateway.status());
        for id in 1..=30u16 {
            let qos = random.below(2) as u8;
            let number = usize::from(id) + 100 * round;
            let is_good = match random.below(4) {
                0 => {
                    let size = [3_000, 20_000, 200_000, 400_000][random.below(4) as usize];
                    bytes.extend(large(is_v5, qos, id, STATE, size));
                    false
                }
                1 => {
                    let topic = "t".repeat([65, 1_000, 65_000][random.below(3) as usize]);
                    bytes.extend(publish(is_v5, qos, id, &topic, &[], b"{}"));
                    false
                }
                _ => {
                    bytes.extend(publish(is_v5, qos, id, STATE, &[], payload(1, number).as_bytes()));
                    true
                }
            };
            good += u64::from(is_good);
            if qos == 1 {
                expected.push(id);
            }
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = (1 + random.below(100_000) as usize).min(rest.len());
            client.send(&rest[..length]);
            rest = &rest[length..];
        }
        acknowledged(&mut client, &expected);
        client.send(&[0xC0, 0]);
        assert_eq!(client.receive(), Some(vec![0xD0]), "the connection lives");
        gateway.await_status("all good ones are taken", Duration::from_secs(10), |status| {
            accepted(status) == before + good
        });
    }
}

#[test]
fn a_packet_that_is_no_publish_still_ends_the_connection_when_it_is_too_large() {
    let gateway = Gateway::start("large-others", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.send(&packet(0x82, &[&[0, 9, 0][..], &text(&"x".repeat(60_000)).repeat(6)].concat())[..100]);
    assert_eq!(client.disconnect_code(), 0x95);
    let (mut client, _) = Client::connect(gateway.address, &Hello { is_v5: false, ..Hello::default() });
    client.send(&[0x82, 0xFF, 0xFF, 0xFF, 0x7F]);
    assert_eq!(client.hear(Duration::from_secs(10)), Heard::End);
}
