//! The MQTT listener, as devices of every kind see it.

use crate::common::client::{Client, Hello, packet, publish, text};
use crate::common::gateway::{Gateway, accepted, payload, scratch_folder};
use crate::common::leak;
use crate::common::pki::Pki;
use forebay::sources::mqtt::put_user;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const STATE: &str = "plant/line1/m01/state";

/// The properties of a CONNACK of MQTT 5: identifier and value.
fn connack_properties(connack: &[u8]) -> Vec<(u8, u32)> {
    let mut rest = &connack[4..];
    let mut found = Vec::new();
    while let [id, tail @ ..] = rest {
        let length = match id {
            0x11 | 0x27 => 4,
            0x13 | 0x21 | 0x22 => 2,
            0x12 | 0x1F => 2 + usize::from(u16::from_be_bytes([tail[0], tail[1]])),
            _ => 1,
        };
        let value =
            if length <= 4 { tail[..length].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)) } else { 0 };
        found.push((*id, value));
        rest = &tail[length..];
    }
    found
}

#[test]
fn both_versions_are_served_on_one_port() {
    let gateway = Gateway::start("versions", "");
    for is_v5 in [false, true] {
        let hello = Hello { is_v5, ..Hello::default() };
        let (mut client, connack) = Client::connect(gateway.address, &hello);
        assert_eq!((connack[1], connack[2]), (0, 0), "no session is present, and the client is let in");
        let answer = client.publish(is_v5, 7, STATE, payload(1, usize::from(is_v5)).as_bytes());
        assert_eq!(answer.len(), 3, "success in the shortest form");
        client.send(&[0xC0, 0]);
        assert_eq!(client.receive(), Some(vec![0xD0]));
        client.send(&publish(is_v5, 0, 0, STATE, &[], payload(2, usize::from(is_v5)).as_bytes()));
        client.send(&[0xE0, 0]);
        assert!(client.receive().is_none());
    }
    gateway.await_status("all four are accepted", Duration::from_secs(5), |status| accepted(status) == 4);
}

#[test]
fn what_is_not_there_is_declined_by_the_proper_means() {
    let gateway = Gateway::start("declined", "");
    let (mut client, connack) = Client::connect(gateway.address, &Hello::default());
    let properties = connack_properties(&connack);
    for expected in [(0x21, 256), (0x22, 64)] {
        assert!(properties.contains(&expected), "{expected:?} is missing in {properties:?}");
    }
    // QoS 2 towards subscribers is not there: the best there is is granted.
    client.send(&packet(0x82, &[&[0, 9, 0][..], &text("a/#"), &[2], &text("b/#/c"), &[0]].concat()));
    assert_eq!(client.receive(), Some(vec![0x90, 0, 9, 0, 1, 0x8F]));
    client.send(&packet(0xA2, &[&[0, 10, 0][..], &text("x/#")].concat()));
    assert_eq!(client.receive(), Some(vec![0xB0, 0, 10, 0, 0x11]));

    let (mut client, _) = Client::connect(gateway.address, &Hello { is_v5: false, ..Hello::default() });
    client.send(&packet(0x82, &[&[0, 9][..], &text("a/#/b"), &[1]].concat()));
    assert_eq!(client.receive(), Some(vec![0x90, 0, 9, 0x80]));
}

#[test]
fn faults_end_the_connection_with_the_right_code_and_nobody_else_s() {
    let gateway = Gateway::start("faults", "");
    let (mut bystander, _) = Client::connect(gateway.address, &Hello { client: "bystander", ..Hello::default() });
    let check = |bytes: &[u8], code: u8, what: &str| {
        let (mut client, _) = Client::connect(gateway.address, &Hello { client: "faulty", ..Hello::default() });
        client.send(bytes);
        assert_eq!(client.disconnect_code(), code, "{what}");
    };
    check(&publish(true, 1, 0, STATE, &[], b"{}"), 0x82, "packet id 0");
    check(&publish(true, 1, 1, "plant/#", &[], b"{}"), 0x90, "wildcard");
    check(&publish(true, 1, 1, "", &[0x23, 0, 5], b"{}"), 0x82, "alias that stands for nothing");
    check(&publish(true, 1, 1, STATE, &[0x23, 0, 65], b"{}"), 0x94, "alias above the maximum");
    check(&packet(0x36, b"\x00\x01a\x00\x01\x00"), 0x81, "QoS 3");
    check(&Hello::default().bytes(), 0x82, "a second CONNECT");
    check(&packet(0xF0, &[]), 0x82, "AUTH");
    check(&[0x82, 0xFF, 0xFF, 0xFF, 0x7F], 0x95, "larger than the maximum packet size");
    check(&packet(0x40, &[0, 1]), 0x82, "PUBACK of nothing");
    bystander.publish(true, 1, STATE, payload(1, 1).as_bytes());
    let status = gateway.await_status("faults are counted", Duration::from_secs(5), |status| {
        status["sources"][0]["refused"].as_u64() >= Some(9)
    });
    assert_eq!(accepted(&status), 1);
    assert!(gateway.log().contains("client refused"), "one of them is logged");
}

#[test]
fn topic_aliases_stand_for_topics() {
    let gateway = Gateway::start("aliases", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.send(&publish(true, 1, 1, STATE, &[0x23, 0, 3], payload(1, 1).as_bytes()));
    client.send(&publish(true, 1, 2, "", &[0x23, 0, 3], payload(1, 2).as_bytes()));
    assert_eq!(client.receive(), Some(vec![0x40, 0, 1]));
    assert_eq!(client.receive(), Some(vec![0x40, 0, 2]));
    let status = gateway.status();
    assert_eq!((accepted(&status), &status["dead"]["total"]), (2, &0.into()));
}

#[test]
fn a_client_id_belongs_to_the_latest_connection() {
    let gateway = Gateway::start("takeover", "");
    let (mut first, _) = Client::connect(gateway.address, &Hello::default());
    first.publish(true, 1, STATE, payload(1, 1).as_bytes());
    let (mut second, _) = Client::connect(gateway.address, &Hello::default());
    assert_eq!(first.disconnect_code(), 0x8E, "session taken over");
    second.publish(true, 1, STATE, payload(1, 2).as_bytes());
}

#[test]
fn silence_beyond_the_keep_alive_ends_the_connection() {
    let gateway = Gateway::start("keepalive", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello { keep_alive: 1, ..Hello::default() });
    let start = Instant::now();
    assert_eq!(client.disconnect_code(), 0x8D);
    let waited = start.elapsed();
    assert!((1400..4000).contains(&waited.as_millis()), "{waited:?}");
}

#[test]
fn receive_maximum_is_kept_and_acknowledgements_are_pipelined_in_order() {
    let gateway = Gateway::start("pipeline", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let mut all = Vec::new();
    for id in 1..=256u16 {
        all.extend(publish(true, 1, id, STATE, &[], payload(1, id.into()).as_bytes()));
    }
    client.send(&all);
    for id in 1..=256u16 {
        let [high, low] = id.to_be_bytes();
        assert_eq!(client.receive(), Some(vec![0x40, high, low]));
    }
    let mut gateway = gateway;
    gateway.kill();
}

#[test]
fn only_who_may_is_let_in() {
    let gateway = Gateway::prepare("logins", "");
    let passwords = gateway.folder.join("passwd");
    put_user(&passwords, "press", b"correct horse").expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}passwords = \"passwd\"\n")).expect("written");
    let mut gateway = gateway;
    gateway.run();
    let code = |is_v5: bool, login: Option<(&str, &str)>| {
        let (_, connack) = Client::connect(gateway.address, &Hello { is_v5, login, ..Hello::default() });
        connack[2]
    };
    assert_eq!(code(true, Some(("press", "correct horse"))), 0);
    assert_eq!(code(false, Some(("press", "correct horse"))), 0);
    assert_eq!(code(true, Some(("press", "wrong"))), 0x86);
    assert_eq!(code(false, Some(("press", "wrong"))), 4);
    assert_eq!(code(true, Some(("nobody", "correct horse"))), 0x86);
    assert_eq!(code(true, None), 0x87);
    assert_eq!(code(false, None), 5);
    let log = gateway.log();
    assert!(!log.contains("correct horse") && !log.contains("wrong\""), "no password in the log: {log}");
}

#[test]
fn tls_of_both_versions_lets_in_whose_certificate_is_known() {
    let folder = scratch_folder("tls");
    let (pki, others) = (Pki::write(folder.path()), folder.path().join("others"));
    std::fs::create_dir(&others).expect("folder");
    let stranger = Pki::write(&others);
    let mut gateway = Gateway::prepare("tls-listener", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let tls = format!(
        "tls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\", crl = \"{}\" }}\n",
        pki.server_cert.display(),
        pki.server_key.display(),
        pki.ca.display(),
        pki.crl.display()
    );
    std::fs::write(gateway.config(), format!("{config}{tls}")).expect("written");
    gateway.run();
    let send = |version: &str, certificate: Option<(&Path, &Path)>, number: usize| {
        let mut command = Command::new("mosquitto_pub");
        command.args(["-h", "localhost", "-p", &gateway.address.port().to_string(), "-q", "1"]);
        // One's own topic has the name in the certificate as a level.
        command.args(["-t", "plant/line1/gw-01/state"]);
        command.args(["-m", &payload(1, number), "--tls-version", version, "--cafile"]).arg(&pki.ca);
        if let Some((certificate, key)) = certificate {
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        command.output().expect("mosquitto_pub starts; apt-get install mosquitto-clients").status.success()
    };
    let known = (&*pki.client_cert, &*pki.client_key);
    let unknown = (&*stranger.client_cert, &*stranger.client_key);
    let revoked = (&*pki.revoked.0, &*pki.revoked.1);
    assert!(send("tlsv1.2", Some(known), 1));
    assert!(send("tlsv1.3", Some(known), 2));
    for version in ["tlsv1.2", "tlsv1.3"] {
        assert!(!send(version, None, 3), "{version} without a certificate");
        assert!(!send(version, Some(unknown), 4), "{version} with a certificate of somebody else");
        assert!(!send(version, Some(revoked), 5), "{version} with a certificate that is revoked");
    }
    // No TLS at all: an end, not a wait for ever.
    let mut plain = Client::dial(gateway.address);
    plain.send(&Hello::default().bytes());
    while plain.receive().is_some() {}
    let status = gateway.status();
    assert_eq!(accepted(&status), 2, "{status:#}");
    let log = gateway.log();
    assert!(log.contains("TLS") && log.contains("certificate"), "the log says why: {log}");
}

#[test]
fn tail_shows_what_is_taken_and_only_what_was_asked_for() {
    let gateway = Gateway::start("tail", "");
    let follow = |more: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["tail", "--config"])
            .arg(gateway.config())
            .args(more)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("tail starts");
        let (sender, lines) = std::sync::mpsc::channel();
        let output = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(output)).map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        (child, lines)
    };
    let (mut all, lines) = follow(&[]);
    let (mut data, values) = follow(&["--json", "--stream", "machine.state"]);
    let (mut none, nothing) = follow(&["--stream", "machine.count"]);
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    // They may join a little later than the first event.
    let patience = Duration::from_secs(10);
    let start = Instant::now();
    let mut seen = (None, None);
    for number in 1.. {
        client.publish(true, number, STATE, payload(1, number.into()).as_bytes());
        seen = (seen.0.or_else(|| lines.try_recv().ok()), seen.1.or_else(|| values.try_recv().ok()));
        if let (Some(line), Some(value)) = &seen {
            assert!(line.contains("machine.state") && line.contains("m01") && line.contains("msg_id"), "{line}");
            let value: serde_json::Value = serde_json::from_str(value).expect("JSON");
            assert_eq!((&value["stream"], &value["key"]), (&"machine.state".into(), &"m01".into()), "{value}");
            assert!(value["data"]["msg_id"].is_string(), "{value}");
            break;
        }
        assert!(start.elapsed() < patience, "{seen:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(nothing.try_recv().is_err(), "another stream was asked for");
    for child in [&mut all, &mut data, &mut none] {
        crate::common::kill(child);
    }
}

#[test]
fn strangers_get_an_answer_they_understand() {
    let gateway = Gateway::start("strangers", "");
    let answer = |bytes: &[u8]| {
        let mut client = Client::dial(gateway.address);
        client.send(bytes);
        client.receive()
    };
    let mut old = text("MQIsdp");
    old.extend_from_slice(&[3, 2, 0, 0]);
    old.extend(text("x"));
    assert_eq!(answer(&packet(0x10, &old)), Some(vec![0x20, 0, 1]), "3.1");
    let mut future = text("MQTT");
    future.extend_from_slice(&[6, 2, 0, 0, 0]);
    future.extend(text("x"));
    assert_eq!(answer(&packet(0x10, &future)).map(|packet| packet[2]), Some(0x84), "MQTT 6");
    assert_eq!(answer(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), None, "HTTP");
    let (_, connack) = Client::connect(gateway.address, &Hello { client: "", ..Hello::default() });
    assert!(connack_properties(&connack).iter().any(|(id, _)| *id == 0x12), "an assigned client id");
    let (_, connack) =
        Client::connect(gateway.address, &Hello { is_v5: false, client: "", is_clean: false, ..Hello::default() });
    assert_eq!(connack[2], 2, "identifier rejected");
}

#[test]
fn who_sends_no_connect_is_cut_off() {
    let gateway = Gateway::prepare("slow", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}connect_wait_max = \"300ms\"\nconnections_max = 5\n"))
        .expect("written");
    let mut gateway = gateway;
    gateway.run();
    let start = Instant::now();
    let mut slow = Client::dial(gateway.address);
    slow.stream.write_all(&[0x10, 50, 0, 4]).expect("sent");
    assert!(slow.receive().is_none());
    assert!(start.elapsed() < Duration::from_secs(3));
    // At the limit of connections the next one of the same address is refused, and served when there is room.
    let mut clients: Vec<_> = (0..5)
        .map(|index| Client::connect(gateway.address, &Hello { client: &format!("c{index}"), ..Hello::default() }).0)
        .collect();
    let next = || Client::connect(gateway.address, &Hello { client: "next", ..Hello::default() }).1[2];
    assert_eq!(next(), 0x97);
    clients.pop();
    gateway.await_status("one has left", Duration::from_secs(5), |status| status["sources"][0]["connections"] == 4);
    assert_eq!(next(), 0);
}

/// Malformed packets, slow senders and many connects leave nothing behind.
#[test]
fn ten_thousand_connects_leak_nothing() {
    let gateway = Gateway::prepare("leak", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}connects_per_second_max = 100000\n")).expect("written");
    let mut gateway = gateway;
    leak::prepare(&mut gateway);
    gateway.run();
    let round = |count: usize| {
        for index in 0..count {
            let mut client = Client::dial(gateway.address);
            match index % 5 {
                0 => client.send(&[0xFF; 64]),
                1 => client.send(&Hello::default().bytes()[..5]),
                2 => client.send(
                    &[Hello { client: &format!("c{index}"), ..Hello::default() }.bytes(), vec![0x00, 0x00]].concat(),
                ),
                3 => client.send(
                    &[
                        Hello { client: &format!("c{index}"), ..Hello::default() }.bytes(),
                        publish(true, 1, 1, STATE, &[], b"nonsense"),
                    ]
                    .concat(),
                ),
                _ => {}
            }
        }
    };
    // Three rounds are 10,200 connections: 100 bytes of each are found, and 500 of each event.
    leak::await_no_growth(&gateway, || {
        round(3400);
        gateway
            .await_status("they are gone", Duration::from_secs(15), |status| status["sources"][0]["connections"] == 0);
    });
}
