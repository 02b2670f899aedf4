//! Lines that are paid by the byte: what an event takes on the line, and budgets that hold.

use crate::common::broker::{Arrived, Collector};
use crate::common::centre::Centre;
use crate::common::client::{Client, Hello, publish};
use crate::common::free_address;
use crate::common::gateway::{CONTRACT, Gateway, scratch_folder, sum};
use crate::common::pki::Pki;
use crate::common::plant::PlantBroker;
use crate::common::proxy::Proxy;
use std::collections::BTreeSet;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// A payload of 256 bytes whose values do not repeat.
fn payload_of_256(number: u32) -> String {
    let noise: String =
        (0..8).map(|part| format!("{:08x}", number.wrapping_mul(2_654_435_761).rotate_left(part * 5) ^ part)).collect();
    let text = format!(
        r#"{{"msg_id":"{number:08}","seq":{number},"state":"running","temperature":{}.{:03},"pressure":{}.{:02},"spindle":{},"serial":"{noise}","note":""#,
        20 + number % 50,
        number * 7 % 1000,
        number % 9,
        number * 13 % 100,
        number.wrapping_mul(48_271) % 12_000,
    );
    let mut state = number;
    let mut letter = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (state >> 24) as u8 % 26)
    };
    let note: String = (0..254 - text.len()).map(|_| letter()).collect();
    text + &note + "\"}"
}

/// Publishes events for `topics` in turn and waits until central has them.
fn hand_in(gateway: &Gateway, topics: usize, numbers: std::ops::Range<u32>) {
    let (mut client, _) =
        Client::connect(gateway.address, &Hello { is_v5: false, client: "press", ..Hello::default() });
    for number in numbers {
        let topic = format!("plant/line1/m{:02}/state", number as usize % topics);
        client.publish(false, (number % 65_000 + 1) as u16, &topic, payload_of_256(number).as_bytes());
    }
    gateway.await_status("central has them", LONG, |status| sum(status, "queued") == 0);
}

/// Bytes on the line per event, with TLS, both directions; headers of TCP and IP are not in it.
fn bytes_per_event(pki: &Pki, broker_lines: &str, destination_lines: &str, lanes: &str) -> f64 {
    const EVENTS: u32 = 1000;
    let folder = scratch_folder("metered-bytes");
    let tls = free_address();
    let lines =
        format!("{broker_lines}{}{broker_lines}max_inflight_messages 0\n", PlantBroker::tls_lines(pki, tls.port()));
    let _broker = PlantBroker::start(folder.path(), &lines);
    let line = Proxy::start(tls);
    let destination = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtts://localhost:{}\"\nkeep_alive = \"10m\"\ntls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}\n{destination_lines}{lanes}",
        line.address().port(),
        pki.ca.display(),
        pki.client_cert.display(),
        pki.client_key.display(),
    );
    let gateway = Gateway::start("metered-bytes", &destination);
    gateway.await_status("all links are up", LONG, |status| {
        status["links"].as_array().is_some_and(|links| links.iter().all(|link| link["is_up"] == true))
    });
    hand_in(&gateway, 8, 0..100);
    let before = line.carried();
    // All at once: the link carries what has come together.
    let (mut client, _) = Client::connect(gateway.address, &Hello { is_v5: false, client: "m", ..Hello::default() });
    let all: Vec<u8> = (100..100 + EVENTS)
        .flat_map(|number| {
            let topic = format!("plant/line1/m{:02}/state", number % 8);
            publish(false, 1, number as u16 + 1, &topic, &[], payload_of_256(number).as_bytes())
        })
        .collect();
    client.send(&all);
    gateway.await_status("central has them", LONG, |status| {
        sum(status, "queued") == 0 && sum(status, "delivered") >= u64::from(EVENTS + 100)
    });
    (line.carried() - before) as f64 / f64::from(EVENTS)
}

/// The table in the page on delivery, as the program behaves.
#[test]
fn the_bytes_of_an_event_are_those_of_the_page() {
    let folder = scratch_folder("metered-pki");
    let pki = Pki::write(folder.path());
    let (none, compact) = ("max_topic_alias 0\n", "envelope = \"compact\"\n");
    let batch = "[lane.critical]\nbatch = { events = 500, age = \"1s\" }\n";
    let packed = "[lane.critical]\nbatch = { events = 500, age = \"1s\", compression = \"zstd\" }\n";
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/delivery.md")).expect("the page");
    let mut wrong = Vec::new();
    let mut measured = Vec::new();
    for (name, broker_lines, destination_lines, lanes) in [
        ("plain", none, "", ""),
        ("topic alias", "", "", ""),
        ("compact", none, compact, ""),
        ("compact, topic alias", "", compact, ""),
        ("batch", none, "", batch),
        ("batch with zstd", none, "", packed),
    ] {
        let bytes = bytes_per_event(&pki, broker_lines, destination_lines, lanes);
        println!("{name}: {bytes:.0} bytes");
        measured.push(bytes);
        let row = page.lines().find(|line| line.starts_with(&format!("| {name} |")));
        let stated = row.and_then(|row| row.split('|').nth(2)?.trim().parse::<f64>().ok());
        if stated.is_none_or(|stated| (bytes / stated - 1.0).abs() > 0.06) {
            wrong.push(format!("{name}: {bytes:.0} bytes, the page says {row:?}"));
        }
    }
    assert!(measured.is_sorted_by(|a, b| a > b) || measured[4] > measured[3], "{measured:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// With more topics than aliases, through reconnects, each event keeps the topic of its key.
#[test]
fn a_topic_alias_never_changes_the_topic_of_an_event() {
    let folder = scratch_folder("metered-alias");
    let mut broker = PlantBroker::start(folder.path(), "");
    let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
    let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n", broker.plain);
    let gateway = Gateway::start("metered-alias", &destination);
    let (mut sent, mut seen) = (0, BTreeSet::new());
    for _ in 0..3 {
        hand_in(&gateway, 23, sent..sent + 500);
        sent += 500;
        broker.stop();
        broker.run();
    }
    let check = |arrived: &Arrived| {
        let event = arrived.event();
        let subject = event["subject"].as_str().expect("a key").to_owned();
        assert_eq!(arrived.topic, format!("test/plant/machine.state/v1/{subject}"));
        event["data"]["msg_id"].as_str().expect("an id").to_owned()
    };
    for arrived in collector.await_count(sent as usize, LONG) {
        seen.insert(check(&arrived));
    }
    assert_eq!(seen.len(), sent as usize);
}

/// The compact form at central: the payload as it was, and every attribute.
#[test]
fn a_compact_event_has_its_payload_and_every_attribute() {
    let centre = Centre::start();
    let gateway = Gateway::start("metered-compact", &(centre.destination("central") + "envelope = \"compact\"\n"));
    hand_in(&gateway, 1, 7..8);
    let of_plant = |centre: &Centre| centre.arrived().into_iter().find(|one| one.topic.contains("machine.state"));
    centre.await_that("the event", LONG, |centre| of_plant(centre).is_some());
    let arrival = of_plant(&centre).expect("an event");
    assert_eq!(arrival.topic, "test/plant/machine.state/v1/m00");
    assert_eq!(arrival.events[0]["msg_id"], "00000007", "the payload is no envelope");
    let value =
        |name: &str| arrival.properties.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!(value("i"), Some("00000007"));
    assert_eq!(value("s"), Some("gw/devices/press"));
    assert_eq!(value("n"), Some("1"));
    assert_eq!((value("k"), value("y"), arrival.content_type.as_str()), (None, None, ""), "the topic has them");
    assert!(value("p").is_some() && value("t").is_some() && value("r").is_some(), "{:?}", arrival.properties);
}

/// Contracts of two lanes; the key is in the topic.
fn two_lanes(gateway: &Gateway) {
    let contract = |name: &str, lane: &str| {
        let text = CONTRACT.replace("machine.state", name).replace("critical", lane);
        let text = text.replace("plant/{line}/{machine}/state", &format!("{lane}/{{machine}}"));
        text.replace("schema = \"state.json\"\n", "")
    };
    std::fs::remove_file(gateway.folder.join("contracts/state.toml")).expect("removed");
    for (name, lane) in [("alarm", "critical"), ("reading", "standard")] {
        let file = gateway.folder.join(format!("contracts/{name}.toml"));
        std::fs::write(file, contract(name, lane)).expect("written");
    }
}

fn event(client: &mut Client, lane: &str, number: u16, bytes: usize) {
    let text = format!(r#"{{"msg_id":"{lane}-{number}","pad":"{}"}}"#, "x".repeat(bytes));
    client.publish(false, number, &format!("{lane}/m1"), text.as_bytes());
}

/// At the limit only the lanes that are named go on, also after a crash, until the budget is raised.
#[test]
fn a_budget_that_is_used_up_stops_all_lanes_but_those_that_are_named() {
    let folder = scratch_folder("metered-budget");
    let broker = PlantBroker::start(folder.path(), "");
    let line = Proxy::start(broker.plain);
    let readings = Collector::start(broker.plain, "test/plant/reading/#");
    let alarms = Collector::start(broker.plain, "test/plant/alarm/#");
    let destination = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\nbudget = {{ day = \"1MB\", beyond = [\"critical\"] }}\n",
        line.address()
    );
    let mut gateway = Gateway::prepare("metered-budget", &destination);
    two_lanes(&gateway);
    gateway.run();
    let connect = |gateway: &Gateway, client: &str| {
        Client::connect(gateway.address, &Hello { is_v5: false, client, ..Hello::default() }).0
    };
    let mut client = connect(&gateway, "press");
    for number in 1..=150 {
        event(&mut client, "standard", number, 10_000);
    }
    let stopped = |status: &serde_json::Value| {
        let stopped = status["budgets"][0]["stopped"].as_array().map_or(0, Vec::len);
        stopped == 2 && status["problems"].to_string().contains("budget for")
    };
    let status = gateway.await_status("the budget is used up", LONG, stopped);
    let problems = status["problems"].to_string();
    assert!(problems.contains("(1.00 MB) is used up") && problems.contains("standard, bulk"), "{problems}");
    // What the meter counts is what the line carried, and an estimate of headers.
    let (counted, carried) = (status["budgets"][0]["day"]["bytes"].as_u64().expect("bytes"), line.carried());
    assert!(counted >= carried && counted < carried + carried / 6, "{counted} counted, {carried} carried");
    assert!(carried < 1_000_000 + (192 << 10), "{carried} bytes");
    let before = readings.count();
    assert!(before < 100, "{before} of 150 have arrived");
    event(&mut client, "critical", 151, 100);
    alarms.await_count(1, LONG);
    // A crash forgets nothing of it.
    gateway.kill();
    gateway.run();
    gateway.await_status("it is still used up", LONG, stopped);
    let mut client = connect(&gateway, "press");
    event(&mut client, "critical", 152, 100);
    alarms.await_count(2, LONG);
    assert_eq!(readings.count(), before, "the readings wait");
    // With a larger budget all of it arrives.
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace("1MB", "100MB")).expect("written");
    assert!(gateway.command(&["reload", "CONFIG"]).status.success());
    gateway.await_status("the backlog drains", LONG, |status| sum(status, "queued") == 0);
    readings.await_count(150, LONG);
    assert_eq!(gateway.status()["budgets"][0]["stopped"].as_array().map_or(0, Vec::len), 0);
}

/// What an idle destination carries, in five minutes with `FOREBAY_ROUNDS`, else in half a minute.
#[test]
fn an_idle_destination_with_a_budget_carries_little() {
    let folder = scratch_folder("metered-idle");
    let pki = Pki::write(folder.path());
    let tls = free_address();
    let broker = PlantBroker::start(folder.path(), &PlantBroker::tls_lines(&pki, tls.port()));
    let line = Proxy::start(tls);
    let destination = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtts://localhost:{}\"\nbudget = {{ day = \"50MB\" }}\ntls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}\n",
        line.address().port(),
        pki.ca.display(),
        pki.client_cert.display(),
        pki.client_key.display(),
    );
    let gateway = Gateway::start("metered-idle", &destination);
    gateway.await_status("all links are up", LONG, |status| {
        status["links"].as_array().is_some_and(|links| links.iter().all(|link| link["is_up"] == true))
    });
    let seconds = if std::env::var_os("FOREBAY_ROUNDS").is_some() { 620 } else { 30 };
    std::thread::sleep(Duration::from_secs(2));
    let used = || gateway.status()["budgets"][0]["bytes"].as_u64().expect("bytes");
    let (before, carried) = (used(), line.carried());
    std::thread::sleep(Duration::from_secs(seconds));
    let (bytes, carried) = (used() - before, line.carried() - carried);
    println!(
        "idle for {seconds} s: {bytes} bytes counted, {carried} carried by TCP; {} a day",
        bytes * 86_400 / seconds
    );
    assert!(bytes * 86_400 / seconds <= 1_000_000, "{bytes} bytes in {seconds} s");
    drop(broker);
}

#[test]
fn a_budget_that_cannot_be_is_refused_with_file_and_line() {
    let gateway = Gateway::prepare("metered-check", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    for (budget, said) in [
        ("{}", "limits nothing; expected day, month or both"),
        ("{ day = \"10kB\" }", "10.0 kB is too little; at least 1.00 MB are needed"),
        ("{ day = \"fast\" }", "is not a number of bytes"),
        ("{ day = \"5MB\", month = \"2MB\" }", "5.00 MB a day are more than the 2.00 MB of a month"),
        (
            "{ day = \"5MB\", beyond = [\"fast\"] }",
            "there is no lane \\\"fast\\\"; the lanes are critical, standard, bulk",
        ),
        ("{ day = \"5MB\", lane.fast.day = \"5MB\" }", "there is no lane \\\"fast\\\""),
        ("{ day = \"5MB\", lane.bulk = {} }", "limits nothing"),
        ("{ week = \"5MB\" }", "unknown field `week`"),
        ("\"50MB\"", "budget"),
    ] {
        let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://a\"\nbudget = {budget}\n");
        let text = config.clone() + &destination;
        let line = 1 + text.lines().position(|line| line.starts_with("budget")).expect("a line");
        std::fs::write(gateway.config(), text).expect("written");
        let output = gateway.command(&["check", "--json", "CONFIG"]);
        let all = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && all.contains(said), "{budget}: {all}");
        assert!(all.contains(&format!("\"line\":{line}")) || all.contains(&format!(":{line}")), "{budget}: {all}");
    }
}
