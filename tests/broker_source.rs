//! A broker of the plant as the source: what it acknowledged to its publishers arrives at central.

use crate::common::broker::{Collector, Mosquitto, check_arrivals, missing};
use crate::common::client::{Client, Hello, packet, publish, text};
use crate::common::devices::Devices;
use crate::common::free_address;
use crate::common::gateway::{CONTRACT, Gateway, accepted, payload, scratch_folder, sum};
use crate::common::need::Need;
use crate::common::pki::Pki;
use crate::common::plant::PlantBroker;
use crate::common::random::Random;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

const STATE: &str = "plant/line1/m01/state";
const LONG: Duration = Duration::from_secs(60);

/// The source's part of a configuration. `more` are lines of it.
fn source(url: &str, more: &str) -> String {
    let topics = if more.contains("topics") { "" } else { "topics = [\"plant/#\"]\n" };
    format!("\n[[source.broker]]\nname = \"plant\"\nurl = \"{url}\"\n{topics}{more}")
}

/// A gateway whose contract takes what the broker has; nothing is started.
fn prepare(name: &str, rest: &str) -> Gateway {
    let gateway = Gateway::prepare(name, rest);
    let contract = CONTRACT.replace("source = \"mqtt\"", "source = \"broker\"");
    std::fs::write(gateway.folder.join("contracts/state.toml"), contract).expect("written");
    gateway
}

fn start(name: &str, rest: &str) -> Gateway {
    let mut gateway = prepare(name, rest);
    gateway.run();
    gateway
}

fn of_broker(status: &serde_json::Value) -> serde_json::Value {
    let sources = status["sources"].as_array().expect("sources");
    sources.iter().find(|source| source["kind"] == "broker").expect("a broker").clone()
}

/// Waits until the source says that it works.
fn await_subscribed(gateway: &Gateway) {
    gateway.await_status("it is subscribed", LONG, |status| of_broker(status)["problem"].is_null());
}

fn publisher(to: SocketAddr) -> Client {
    Client::connect(to, &Hello { is_v5: false, client: "publisher", ..Hello::default() }).0
}

#[test]
fn what_the_broker_acknowledged_survives_fifteen_kills_of_the_gateway() {
    let mut random = Random::seeded();
    for protocol in ["5", "3.1.1"] {
        let folder = scratch_folder("source-kills");
        let pki = Pki::write(folder.path());
        let central = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(central.plain, "test/plant/machine.state/#");
        let broker = PlantBroker::start(folder.path(), "");
        let more = format!("protocol = \"{protocol}\"\n{}", central.destination(&pki, central.tls.port()));
        let mut gateway = start("source-kills", &source(&format!("mqtt://{}", broker.plain), &more));
        await_subscribed(&gateway);
        let devices = Devices::start(broker.plain, 10, 1, Duration::from_millis(2));
        for round in 0..15 {
            let before = collector.count();
            let start = Instant::now();
            while collector.count() < before + 20 {
                assert!(start.elapsed() < LONG, "nothing arrives after kill {round}: {:#}", gateway.status());
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(random.below(200)));
            gateway.kill();
            gateway.run();
        }
        let acknowledged = devices.stop();
        assert!(acknowledged.len() > 500, "only {} were acknowledged; the load did not go on", acknowledged.len());
        await_all(&gateway, &collector, &acknowledged);
        check_arrivals(&collector.arrived(), &acknowledged);
    }
}

/// Waits until every message that was acknowledged has arrived, as long as more and more do.
fn await_all(gateway: &Gateway, collector: &Collector, acknowledged: &[(usize, usize)]) {
    let mut progress = (0, Instant::now());
    loop {
        let arrived = collector.arrived();
        let missing = missing(&arrived, acknowledged);
        if missing.is_empty() {
            break;
        }
        if arrived.len() > progress.0 {
            progress = (arrived.len(), Instant::now());
        }
        assert!(
            progress.1.elapsed() < LONG,
            "{} of {} are missing, from {:?} to {:?}; {} arrived; {:#}",
            missing.len(),
            acknowledged.len(),
            missing.first(),
            missing.last(),
            arrived.len(),
            of_broker(&gateway.status()),
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let status = gateway.await_status("the backlog drains", LONG, |status| sum(status, "queued") == 0);
    assert_eq!(status["dead"]["total"], 0, "nothing is a dead letter");
}

#[test]
fn a_broker_that_restarts_loses_nothing_and_one_that_dies_is_subscribed_to_again() {
    let folder = scratch_folder("source-restart");
    let pki = Pki::write(folder.path());
    let central = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(central.plain, "test/plant/machine.state/#");
    let mut broker = PlantBroker::start(folder.path(), "");
    let gateway = start(
        "source-restart",
        &source(&format!("mqtt://{}", broker.plain), &central.destination(&pki, central.tls.port())),
    );
    await_subscribed(&gateway);
    let devices = Devices::start(broker.plain, 5, 1, Duration::from_millis(2));
    for _ in 0..4 {
        let before = collector.count();
        collector.await_count(before + 50, LONG);
        broker.stop();
        gateway.await_status("the loss shows", LONG, |status| {
            let problem = of_broker(status)["problem"].clone();
            problem
                .as_str()
                .is_some_and(|why| why.contains("broke") || why.contains("does not answer") || why.contains("ended"))
                && status["problems"].as_array().is_some_and(|all| {
                    all.iter().any(|one| one.as_str().is_some_and(|one| one.starts_with("source plant")))
                })
        });
        broker.run();
    }
    let acknowledged = devices.stop();
    await_all(&gateway, &collector, &acknowledged);
    check_arrivals(&collector.arrived(), &acknowledged);

    // SIGKILL and no file: the broker knows no session any more.
    broker.kill();
    for entry in std::fs::read_dir(folder.path().join("plant-broker")).expect("folder") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "db") {
            std::fs::remove_file(path).expect("removed");
        }
    }
    broker.run();
    await_subscribed(&gateway);
    let before = collector.count();
    publisher(broker.plain).publish(false, 1, STATE, payload(77, 1).as_bytes());
    collector.await_count(before + 1, LONG);
}

#[test]
fn a_subscription_that_is_refused_shows_and_is_tried_again() {
    for protocol in ["5", "3.1.1"] {
        // A broker that refuses the second of two filters, the first time.
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let address = listener.local_addr().expect("address");
        let is_v5 = protocol == "5";
        let (refused_sender, refused) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(LONG)).expect("set");
            let mut seat = Client::over(stream);
            assert_eq!(seat.receive().expect("CONNECT")[0], 0x10);
            seat.send(if is_v5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] });
            let first = seat.receive().expect("SUBSCRIBE");
            assert_eq!(first[0], 0x82);
            let [high, low] = [first[1], first[2]];
            seat.send(&if is_v5 { vec![0x90, 5, high, low, 0, 1, 0x87] } else { vec![0x90, 4, high, low, 1, 0x80] });
            let again = seat.receive().expect("SUBSCRIBE");
            refused_sender.send(again.clone()).expect("awaited");
            let [high, low] = [again[1], again[2]];
            seat.send(&if is_v5 { vec![0x90, 4, high, low, 0, 1] } else { vec![0x90, 3, high, low, 1] });
            while let Some(packet) = seat.receive() {
                if packet[0] == 0xC0 {
                    seat.send(&[0xD0, 0]);
                }
            }
        });
        let more = format!("protocol = \"{protocol}\"\ntopics = [\"plant/#\", \"secret/#\"]\n");
        let gateway = start("source-refused", &source(&format!("mqtt://{address}"), &more));
        let status = gateway.await_status("the refusal shows", LONG, |status| {
            of_broker(status)["problem"].as_str().is_some_and(|why| why.contains("secret/#"))
        });
        let problem = of_broker(&status)["problem"].as_str().expect("a problem").to_owned();
        assert!(problem.contains(if is_v5 { "0x87 not authorized" } else { "0x80 failure" }), "{problem}");
        assert!(!problem.contains("plant/#"), "{problem}");
        let again = loop {
            match refused.recv_timeout(Duration::from_millis(20)) {
                Ok(again) => break again,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(error) => panic!("{error}"),
            }
        };
        let again = String::from_utf8_lossy(&again).into_owned();
        assert!(again.contains("secret/#") && !again.contains("plant/#"), "{again:?}");
        await_subscribed(&gateway);
    }
}

/// The broker's own lists of who may do what, with Mosquitto's plugin.
#[test]
fn mosquitto_s_refusal_is_understood() {
    let plugin = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib/arm-linux-gnueabihf"]
        .map(|folder| format!("{folder}/mosquitto_dynamic_security.so"));
    let plugin = plugin.iter().find(|path| std::path::Path::new(path).exists());
    if !Need::MosquittoPlugin.is_met(plugin.is_some(), "Mosquitto has come without its plugin for access rights") {
        return;
    }
    let plugin = plugin.expect("found");
    let folder = scratch_folder("source-acl");
    let file = folder.path().join("security.json");
    std::fs::write(&file, r#"{"defaultACLAccess":{"publishClientSend":true,"publishClientReceive":true,"subscribe":false,"unsubscribe":true},
        "clients":[],"groups":[{"groupname":"anybody","roles":[{"rolename":"reader"}],"clients":[]}],
        "roles":[{"rolename":"reader","acls":[{"acltype":"subscribePattern","topic":"plant/#","allow":true}]}],"anonymousGroup":"anybody"}"#)
        .expect("written");
    let broker =
        PlantBroker::start(folder.path(), &format!("plugin {plugin}\nplugin_opt_config_file {}\n", file.display()));
    let more = "topics = [\"plant/#\", \"secret/#\"]\n";
    let gateway = start("source-acl", &source(&format!("mqtt://{}", broker.plain), more));
    let status = gateway.await_status("the refusal shows", LONG, |status| {
        of_broker(status)["problem"].as_str().is_some_and(|why| why.contains("secret/#"))
    });
    let problem = of_broker(&status)["problem"].as_str().expect("a problem").to_owned();
    assert!(problem.contains("\"secret/#\": 0x87 not authorized") && !problem.contains("plant/#"), "{problem}");
    publisher(broker.plain).publish(false, 1, STATE, payload(1, 1).as_bytes());
    gateway.await_status("the other one works", LONG, |status| accepted(status) == 1);
}

#[test]
fn tls_with_a_client_certificate_and_a_login() {
    let folder = scratch_folder("source-tls");
    let pki = Pki::write(folder.path());
    let port = free_address().port();
    let passwords = folder.path().join("passwords");
    std::fs::write(&passwords, "").expect("written");
    let made =
        std::process::Command::new("mosquitto_passwd").args(["-b"]).arg(&passwords).args(["gateway", "right"]).status();
    assert!(made.expect("mosquitto_passwd").success());
    let lines =
        format!("allow_anonymous false\npassword_file {}\n{}", passwords.display(), PlantBroker::tls_lines(&pki, port));
    let broker = PlantBroker::start(folder.path(), &lines);
    std::fs::write(folder.path().join("password"), "wrong\n").expect("written");
    let more = format!(
        "user = \"gateway\"\npassword_file = \"{}\"\ntls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}\n",
        folder.path().join("password").display(),
        pki.ca.display(),
        pki.client_cert.display(),
        pki.client_key.display(),
    );
    let gateway = start("source-tls", &source(&format!("mqtts://localhost:{port}"), &more));
    gateway.await_status("the refusal shows", LONG, |status| {
        of_broker(status)["problem"].as_str().is_some_and(|why| why.contains("refuses the connection"))
    });
    // The password is read anew at each attempt.
    std::fs::write(folder.path().join("password"), "right\n").expect("written");
    await_subscribed(&gateway);
    let hello = Hello { is_v5: false, client: "publisher", login: Some(("gateway", "right")), ..Hello::default() };
    Client::connect(broker.plain, &hello).0.publish(false, 1, STATE, payload(1, 1).as_bytes());
    gateway.await_status("it arrives", LONG, |status| accepted(status) == 1);
    assert!(!gateway.log().contains("right") && !gateway.log().contains("wrong"), "no password is logged");
}

#[test]
fn of_two_gateways_that_share_each_message_comes_to_one() {
    for protocol in ["5", "3.1.1"] {
        let folder = scratch_folder("source-share");
        let broker = PlantBroker::start(folder.path(), "");
        let more = format!("protocol = \"{protocol}\"\nshare = \"forebay\"\n");
        let gateways: Vec<_> = (0..2)
            .map(|index| {
                let more = format!("{more}client_id = \"gateway-{index}\"\n");
                let gateway = start("source-share", &source(&format!("mqtt://{}", broker.plain), &more));
                await_subscribed(&gateway);
                gateway
            })
            .collect();
        let mut client = publisher(broker.plain);
        for number in 1..=200u16 {
            client.publish(false, number, STATE, payload(1, number.into()).as_bytes());
        }
        let start = Instant::now();
        let counts = || gateways.iter().map(|gateway| accepted(&gateway.status())).collect::<Vec<_>>();
        while counts().iter().sum::<u64>() < 200 {
            assert!(start.elapsed() < LONG, "{:?}", counts());
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_millis(300));
        let counts = counts();
        assert_eq!(counts.iter().sum::<u64>(), 200, "{counts:?}");
        assert!(counts.iter().all(|count| *count > 20), "both get some: {counts:?}");
    }
}

/// A contract without an id: every copy would be an event.
const BLIND: &str = r#"
name = "plant.raw"
version = "1.0.0"
owner = "tests"
match = { source = "broker", topic = "raw/#" }
accepts = "any"
"#;

#[test]
fn retained_messages_are_no_events_unless_wanted_and_never_at_a_reconnect() {
    for (protocol, retained) in [("5", false), ("5", true), ("3.1.1", false), ("3.1.1", true)] {
        let folder = scratch_folder("source-retained");
        let mut broker = PlantBroker::start(folder.path(), "");
        let retain = |client: &mut Client, id: u16, body: &str| {
            let mut bytes = publish(false, 1, id, "raw/a", &[], body.as_bytes());
            bytes[0] |= 1;
            client.send(&bytes);
            assert_eq!(client.receive().map(|packet| packet[0]), Some(0x40));
        };
        retain(&mut publisher(broker.plain), 1, "old");
        let more = format!("protocol = \"{protocol}\"\nretained = {retained}\ntopics = [\"raw/#\"]\n");
        let mut gateway = prepare("source-retained", &source(&format!("mqtt://{}", broker.plain), &more));
        std::fs::write(gateway.folder.join("contracts/raw.toml"), BLIND).expect("written");
        gateway.run();
        await_subscribed(&gateway);
        // While the subscription is there, a message to be retained is like any other.
        retain(&mut publisher(broker.plain), 1, "new");
        let wanted = 1 + u64::from(retained);
        gateway.await_status("the first", LONG, |status| accepted(status) == wanted);
        gateway.stop();
        gateway.run();
        await_subscribed(&gateway);
        broker.stop();
        broker.run();
        await_subscribed(&gateway);
        publisher(broker.plain).publish(false, 2, "raw/b", b"last");
        let status = gateway.await_status("the last", LONG, |status| accepted(status) > wanted);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(accepted(&gateway.status()), wanted + 1, "{protocol} {retained}: {status:#}");
    }
}

/// Each is acknowledged at once, though it is no event: nothing waits for the next sign of life.
#[test]
fn many_retained_messages_do_not_hold_up_the_next_one() {
    let folder = scratch_folder("source-many");
    let broker = PlantBroker::start(folder.path(), "");
    let mut client = publisher(broker.plain);
    for id in 1..=600u16 {
        let mut bytes = publish(false, 1, id, &format!("plant/old/{id}"), &[], b"{}");
        bytes[0] |= 1;
        client.send(&bytes);
        assert_eq!(client.receive().map(|packet| packet[0]), Some(0x40));
    }
    let more = "protocol = \"3.1.1\"\nkeep_alive = \"1h\"\n";
    let gateway = start("source-many", &source(&format!("mqtt://{}", broker.plain), more));
    await_subscribed(&gateway);
    client.publish(false, 1, STATE, payload(1, 1).as_bytes());
    let status = gateway.await_status("it arrives", LONG, |status| accepted(status) == 1);
    assert_eq!(
        (of_broker(&status)["received"].as_u64(), status["dead"]["total"].as_u64()),
        (Some(601), Some(0)),
        "{status:#}"
    );
}

/// Messages whose PUBACK never left come again after a cut line, and are no second event although
/// no contract names an id; those whose PUBACK may have arrived are events again.
#[test]
fn a_redelivery_is_known_only_where_it_is_certain() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    let serve = |is_resumed: bool, listener: &TcpListener| {
        let (stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(LONG)).expect("set");
        let mut seat = Client::over(stream);
        assert_eq!(seat.receive().expect("CONNECT")[0], 0x10);
        seat.send(&[0x20, 3, u8::from(is_resumed), 0, 0]);
        let subscribe = seat.receive().expect("SUBSCRIBE");
        (seat, [subscribe[1], subscribe[2]])
    };
    let message = |dup: bool, id: u16, body: &str| {
        let mut bytes = publish(true, 1, id, "raw/a", &[], body.as_bytes());
        bytes[0] |= if dup { 8 } else { 0 };
        bytes
    };
    let gateway = prepare("source-redelivery", &source(&format!("mqtt://{address}"), "topics = [\"raw/#\"]\n"));
    // A long linger: the line is cut before there is a receipt.
    let slow = BLIND.replace("owner", "lane = \"slow\"\nowner");
    std::fs::write(gateway.folder.join("contracts/raw.toml"), slow).expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}\n[lane.slow]\nlinger = \"1500ms\"\n")).expect("written");
    let mut gateway = gateway;
    gateway.spawn();

    let (mut seat, [high, low]) = serve(false, &listener);
    seat.send(&[0x90, 4, high, low, 0, 1]);
    // The first finds the lane idle and is acknowledged at once; the others wait for the linger.
    seat.send(&message(false, 1, "first"));
    assert_eq!(seat.receive(), Some(vec![0x40, 0, 1]));
    seat.send(&message(false, 2, "second"));
    seat.send(&message(false, 3, "third"));
    gateway.await_status("they came", LONG, |status| of_broker(status)["received"] == 3);
    drop(seat);
    let (mut seat, [high, low]) = serve(true, &listener);
    seat.send(&[0x90, 4, high, low, 0, 1]);
    // 1: its PUBACK had left. 2: the same again. 3: another message under that id.
    seat.send(&message(true, 1, "first"));
    seat.send(&message(true, 2, "second"));
    seat.send(&message(true, 3, "another"));
    seat.send(&message(false, 2, "second"));
    for id in [1, 2, 3, 2] {
        assert_eq!(seat.receive(), Some(vec![0x40, 0, id]), "in the order of the messages");
    }
    let status = gateway.status();
    assert_eq!((accepted(&status), of_broker(&status)["redelivered"].as_u64()), (6, Some(1)), "{status:#}");
}

#[test]
fn a_message_that_is_too_large_is_a_dead_letter_and_ends_nothing() {
    let folder = scratch_folder("source-large");
    let broker = PlantBroker::start(folder.path(), "");
    let gateway = start("source-large", &source(&format!("mqtt://{}", broker.plain), ""));
    await_subscribed(&gateway);
    let mut client = publisher(broker.plain);
    client.publish(false, 1, STATE, &vec![b'x'; 9 << 20]);
    client.publish(false, 2, STATE, payload(1, 1).as_bytes());
    let status =
        gateway.await_status("both are there", LONG, |status| accepted(status) == 1 && status["dead"]["total"] == 1);
    assert_eq!(of_broker(&status)["refused"], 0, "the connection stays: {status:#}");
    let letters = String::from_utf8_lossy(&gateway.command(&["dead", "list", "CONFIG"]).stdout).into_owned();
    assert!(letters.contains("payload: is 9437184 bytes long"), "{letters}");
}

#[test]
fn while_the_journal_takes_nothing_the_broker_keeps_the_messages_and_the_line_stays() {
    let folder = scratch_folder("source-full");
    let broker = PlantBroker::start(folder.path(), "");
    // Central is down: the budget of the lane is used up soon.
    let elsewhere = scratch_folder("source-full-central");
    let mut central = PlantBroker::start(elsewhere.path(), "");
    central.stop();
    let destination = format!(
        "[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n[lane.critical]\nbudget = \"8MiB\"\n",
        central.plain
    );
    let more = format!("keep_alive = \"5s\"\n{destination}");
    let gateway = start("source-full", &source(&format!("mqtt://{}", broker.plain), &more));
    await_subscribed(&gateway);
    let mut client = publisher(broker.plain);
    let count = 1200u16;
    for id in 1..=count {
        let noise = Random::with_seed(id.into()).text(16_000);
        let body = format!(r#"{{"msg_id":"01-{id:08}","seq":{id},"note":"{noise}"}}"#);
        client.publish(false, id, STATE, body.as_bytes());
    }
    gateway.await_status("the lane is full", LONG, |status| {
        status["lanes"].as_array().into_iter().flatten().any(|lane| !lane["problem"].is_null())
    });
    // Longer than one and a half times the keep-alive.
    std::thread::sleep(Duration::from_secs(9));
    let status = gateway.status();
    let source = of_broker(&status);
    assert!(accepted(&status) < u64::from(count), "{status:#}");
    assert_eq!((source["connections"].as_u64(), source["refused"].as_u64()), (Some(1), Some(0)), "{source:#}");
    let rss = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("status");
    let line = rss.lines().find(|line| line.starts_with("VmRSS")).expect("RSS").to_owned();
    println!("{line}, accepted {}", accepted(&status));
    central.run();
    let status = gateway.await_status("all of it", LONG, |status| accepted(status) == u64::from(count));
    let source = of_broker(&status);
    assert_eq!(
        (source["received"].as_u64(), source["refused"].as_u64()),
        (Some(u64::from(count)), Some(0)),
        "{source:#}"
    );
}

#[test]
fn a_subscription_that_is_no_longer_configured_is_ended() {
    let folder = scratch_folder("source-stale");
    let broker = PlantBroker::start(folder.path(), "");
    let config = |topics: &str| source(&format!("mqtt://{}", broker.plain), &format!("topics = {topics}\n"));
    let mut gateway = start("source-stale", &config(r#"["plant/#", "other/#"]"#));
    await_subscribed(&gateway);
    gateway.stop();
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), text.replace(r#"["plant/#", "other/#"]"#, r#"["plant/#"]"#)).expect("written");
    gateway.run();
    await_subscribed(&gateway);
    let mut client = publisher(broker.plain);
    client.publish(false, 1, "other/a", b"{}");
    client.publish(false, 2, STATE, payload(1, 1).as_bytes());
    let status = gateway.await_status("the wanted one", LONG, |status| accepted(status) == 1);
    assert_eq!(
        (of_broker(&status)["received"].as_u64(), status["dead"]["total"].as_u64()),
        (Some(1), Some(0)),
        "{status:#}"
    );
}

#[test]
fn a_wrong_source_is_refused_with_the_line_and_what_is_allowed() {
    let check = |lines: &str, expected: &[&str]| {
        let gateway = prepare("source-wrong", &format!("\n[[source.broker]]\nname = \"plant\"\n{lines}"));
        let output = gateway.command(&["check", "CONFIG"]);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "{lines}: {said}");
        for part in expected {
            assert!(said.contains(part), "{lines}: \"{part}\" is not in {said}");
        }
    };
    let url = "url = \"mqtt://127.0.0.1:1883\"\n";
    check(url, &["missing field `topics`"]);
    check(&format!("{url}topics = []"), &["source.broker[0].topics", "plant/#"]);
    check(&format!("{url}topics = [\"a/#/b\"]"), &["forebay.toml:12", "a/#/b", "is no topic filter"]);
    check(&format!("{url}topics = [\"$share/g/a\"]"), &["set share"]);
    check(&format!("{url}topics = [\"a\"]\nqos = 2"), &["source.broker[0].qos", "0 and 1"]);
    check(&format!("{url}topics = [\"a\"]\nshare = \"a/b\""), &["source.broker[0].share"]);
    check(&format!("{url}topics = [\"a\"]\nkeep_alive = \"1s\""), &["5s to 1h"]);
    check(&format!("{url}topics = [\"a\"]\nsession_expiry = \"10s\""), &["at least 1m"]);
    check(&format!("{url}topics = [\"a\"]\nreceive_maximum = 0"), &["1 to 65535"]);
    check(&format!("{url}topics = [\"a\"]\nuser = \"me\""), &["go together"]);
    check(&format!("{url}topics = [\"a\"]\nname2 = 1"), &["unknown field `name2`"]);
    check("url = \"broker\"\ntopics = [\"a\"]", &["source.broker[0].url", "mqtts://host:8883"]);
    check(
        &format!("{url}topics = [\"#\"]\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1\"\n"),
        &["source.broker[0].topics", "would return"],
    );
}

#[test]
fn what_the_gateway_says_to_the_broker() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    let _gateway = start("source-hello", &source(&format!("mqtt://{address}"), "receive_maximum = 9\n"));
    let (stream, _) = listener.accept().expect("a connection");
    let mut seat = Client::over(stream);
    let connect = seat.receive().expect("CONNECT");
    // Flags: no clean start. Properties: session expiry of seven days, Receive Maximum 9, and no Maximum Packet Size.
    let mut expected = [&[0x10][..], &text("MQTT"), &[5, 0, 0, 30, 8, 0x11]].concat();
    expected.extend_from_slice(&(7u32 * 86_400).to_be_bytes());
    expected.extend_from_slice(&[0x21, 0, 9]);
    expected.extend(text("forebay-test-plant-gw-source-plant"));
    assert_eq!(connect, expected);
    seat.send(&[0x20, 3, 0, 0, 0]);
    let subscribe = seat.receive().expect("SUBSCRIBE");
    // QoS 1, No Local, no retained messages.
    assert_eq!(
        packet(subscribe[0], &subscribe[1..]),
        packet(0x82, &[&[0, 1, 0][..], &text("plant/#"), &[0x25]].concat())
    );
}
