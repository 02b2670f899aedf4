//! Serial lines over pseudo terminals and device servers: answers carry no number there.

use super::plant::{Devices, Plant, TWINS, twins};
use forebay::sources::modbus::address::{Address, Parity, Serial};
use forebay::sources::modbus::transport::{Ask, Dial, Fault};
use forebay::sources::modbus::value::Table;
use serde_json::json;
use std::time::Duration;

fn source(url: &str, more: &str) -> String {
    format!(
        "[[source.modbus]]\nname = \"bus\"\nurl = \"{url}\"\ntimeout = \"100ms\"\nbackoff = \"50ms\"\nbackoff_max = \"200ms\"\n{more}\n"
    )
}

const ONE: &str = "unit = [{ name = \"u\", unit = 1, device = \"t\" }]";

fn url(transport: &str, devices: &Devices) -> String {
    match transport {
        "rtu" => format!("rtu:{}", devices.path()),
        _ => format!("rtu-tcp://127.0.0.1:{}", devices.port()),
    }
}

#[test]
fn a_late_answer_would_be_taken_for_the_next_one() {
    // What the library does by itself: the reason for all the care in the test below.
    let mut devices = Devices::start("rtu", twins());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let dial = Dial {
            serial: Serial { baud: 115_200, parity: Parity::None, stop_bits: Some(1) },
            ..Dial::new(Address::Serial(devices.path().into()), Duration::from_secs(1))
        };
        let ask = |address| Ask::Read(Table::Holding, address, 1);
        let timeout = Duration::from_millis(100);
        let mut line = dial.connect(Duration::ZERO).await.expect("connected");
        assert_eq!(line.ask(1, &ask(0), timeout).await, Ok(vec![111]));
        devices.tell("hold 0.15");
        assert_eq!(line.ask(1, &ask(0), timeout).await, Err(Fault::NoAnswer(timeout)));
        let wrong = line.ask(1, &ask(10), timeout).await;
        assert_eq!(wrong, Ok(vec![111]), "the register at 10 holds 222");
    });
}

#[test]
fn the_value_of_a_request_is_never_the_one_before() {
    for transport in ["rtu", "rtu-tcp"] {
        let mut devices = Devices::start(transport, twins());
        let plant = Plant::start(&source(&url(transport, &devices), ONE), &[("t", TWINS)]);
        plant.await_event("u/a", "good", |event| event["quality"] == "good");
        plant.await_event("u/b", "good", |event| event["quality"] == "good");
        // Late by less and by far more than the line is listened to after a timeout.
        for round in 0..24 {
            devices.tell(&format!("hold {}", 0.105 + f64::from(round % 8) * 0.03));
            if round % 3 == 0 {
                devices.tell("lose 1");
            }
            let count = plant.of("u/b").len();
            plant.await_nth("u/b", "good again", count + 2, |event| event["quality"] == "good");
        }
        let events = plant.events();
        for event in &events {
            for (name, value) in event.data["values"].as_object().into_iter().flatten() {
                assert_eq!(value, if name == "value" { 111 } else { 222 }, "{transport}: {event:?}");
            }
        }
        let silences = events.iter().filter(|event| event.data["quality"] == "stale").count();
        println!("{transport}: {} events, {silences} of them stale, no wrong value", events.len());
    }
}

#[test]
fn garbage_on_the_line_is_survived() {
    let mut devices = Devices::start("rtu", twins());
    let plant = Plant::start(&source(&url("rtu", &devices), ONE), &[("t", TWINS)]);
    plant.await_event("u/a", "good", |event| event["quality"] == "good");
    for disturbance in ["garbage 1", "noise 5", "garbage 4", "noise 200", "lose 3"] {
        devices.tell(disturbance);
        let count = plant.of("u/a").len();
        plant.await_nth("u/a", disturbance, count + 3, |event| event["quality"] == "good");
    }
    for event in plant.of("u/a") {
        assert!(event["values"].is_null() || event["values"] == json!({"value": 111}), "{event}");
    }
}

#[test]
fn ten_dead_of_247_do_not_slow_the_others() {
    let dead = [3, 20, 41, 77, 100, 101, 150, 199, 230, 247];
    let living: Vec<u32> = (1..=247).filter(|unit| !dead.contains(unit)).collect();
    let mut devices = Devices::start("rtu", json!({"units": living, "holding": [1, 2, 3, 4]}));
    let units: Vec<_> =
        (1..=247).map(|unit| format!("{{ name = \"u{unit}\", unit = {unit}, device = \"t\" }}")).collect();
    let table = "[group.g]\ninterval = \"3s\"\nreport = \"always\"\n[[point]]\nname = \"v\"\naddress = 1\n";
    let more = format!("serial = {{ baud = 115200 }}\nunit = [{}]", units.join(", "));
    let source = source(&url("rtu", &devices), &more).replace("backoff_max = \"200ms\"", "backoff_max = \"60s\"");
    let plant = Plant::start(&source.replace("backoff = \"50ms\"", "backoff = \"1s\""), &[("t", table)]);
    for unit in 1..=247 {
        let is_dead = dead.contains(&unit);
        let event = plant.await_event(&format!("u{unit}/g"), "a first event", |_| true);
        assert_eq!(event["quality"], if is_dead { "bad" } else { "good" }, "unit {unit}: {event}");
        if !is_dead {
            assert_eq!(event["values"], json!({"v": 2}));
        }
    }
    plant.await_problem("the dead are named", |problem| problem.ends_with("and 7 more"));
    // Once the dead are known, everybody else is asked on the beat.
    std::thread::sleep(Duration::from_secs(4));
    let before = devices.asked();
    std::thread::sleep(Duration::from_secs(12));
    let after = devices.asked();
    for unit in &living {
        let name = unit.to_string();
        let asked = after[&name] - before[&name];
        assert!((3..=5).contains(&asked), "unit {unit} was asked {asked} times in 12 s, every 3 s");
    }
    assert_eq!(plant.dead(), 0);
}
