//! Modbus/TCP, with and without TLS: types, refusals, slow answers, garbage, lost connections.

use super::plant::{Devices, Plant, TWINS, prepare, twins};
use crate::common::gateway::scratch_folder;
use crate::common::pki::Pki;
use crate::common::proxy::{Cut, Proxy};
use serde_json::{Value, json};
use std::time::Duration;

fn source(port: u16, more: &str) -> String {
    format!(
        "[[source.modbus]]\nname = \"bus\"\nurl = \"tcp://127.0.0.1:{port}\"\ntimeout = \"200ms\"\nbackoff = \"100ms\"\nbackoff_max = \"400ms\"\n{more}\nunit = [{{ name = \"u\", unit = 1, device = \"t\" }}]\n"
    )
}

/// `ABCD` in registers, for each order.
fn registers(bytes: &[u8], order: &str) -> Vec<u16> {
    let mut words: Vec<u16> = bytes
        .chunks(2)
        .map(|pair| match order {
            "ABCD" | "CDAB" => u16::from_be_bytes([pair[0], pair[1]]),
            _ => u16::from_le_bytes([pair[0], pair[1]]),
        })
        .collect();
    if matches!(order, "CDAB" | "DCBA") {
        words.reverse();
    }
    words
}

#[test]
fn all_types_and_orders_of_a_foreign_device_are_read() {
    let kinds: [(&str, Vec<u8>, Value); 12] = [
        ("u16", 65_000u16.to_be_bytes().into(), json!(65_000)),
        ("i16", (-1234i16).to_be_bytes().into(), json!(-1234)),
        ("u32", 4_000_000_123u32.to_be_bytes().into(), json!(4_000_000_123u64)),
        ("i32", (-70_000i32).to_be_bytes().into(), json!(-70_000)),
        ("u64", (u64::MAX - 5).to_be_bytes().into(), json!(u64::MAX - 5)),
        ("i64", (-5_000_000_000i64).to_be_bytes().into(), json!(-5_000_000_000i64)),
        ("f32", 12.3f32.to_be_bytes().into(), json!(12.3)),
        ("f64", (-0.001f64).to_be_bytes().into(), json!(-0.001)),
        ("bcd16", vec![0x12, 0x34], json!(1234)),
        ("bcd32", vec![0x12, 0x34, 0x56, 0x78], json!(12_345_678)),
        ("bcd64", vec![0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56], json!(1_234_567_890_123_456i64)),
        ("text", b"Press 4\0".to_vec(), json!("Press 4")),
    ];
    let (mut table, mut holding, mut wanted) =
        (String::from("[group.g]\ninterval = \"100ms\"\n"), Vec::new(), json!({}));
    for order in ["ABCD", "CDAB", "BADC", "DCBA"] {
        for (kind, bytes, value) in &kinds {
            // Texts have bytes, and no words.
            let order = match (*kind, order) {
                ("text", "CDAB") => "ABCD",
                ("text", "DCBA") => "BADC",
                (_, order) => order,
            };
            let name = format!("{kind}_{}", holding.len());
            let length = if *kind == "text" { "length = 4\n" } else { "" };
            table += &format!(
                "[[point]]\nname = \"{name}\"\naddress = {}\ntype = \"{kind}\"\norder = \"{order}\"\n{length}",
                holding.len()
            );
            holding.extend(registers(bytes, order));
            wanted[&name] = value.clone();
        }
    }
    let bit = holding.len();
    holding.push(0b1010_0000_0001_0000);
    table += &format!(
        "[[point]]\nname = \"bit\"\naddress = {bit}\nbit = 4\n[[point]]\nname = \"part\"\naddress = {bit}\nbits = [13, 15]\n"
    );
    (wanted["bit"], wanted["part"]) = (json!(true), json!(5));
    table += "[[point]]\nname = \"coil\"\ntable = \"coil\"\naddress = 3\n[[point]]\nname = \"discrete\"\ntable = \"discrete\"\naddress = 17\n";
    (wanted["coil"], wanted["discrete"]) = (json!(true), json!(true));
    table += "[[point]]\nname = \"input\"\ntable = \"input\"\naddress = 1\nscale = 0.1\noffset = -40\nunit = \"°C\"\n";
    wanted["input"] = json!(-15.5);
    let (mut coils, mut discrete) = (vec![0; 16], vec![0; 32]);
    (coils[3], discrete[17]) = (1, 1);
    let devices = Devices::start(
        "tcp",
        json!({"units": [1], "holding": holding, "input": [7, 245], "coils": coils, "discrete": discrete}),
    );
    let plant = Plant::start(&source(devices.port(), ""), &[("t", &table)]);
    let event = plant.await_event("u/g", "a snapshot", |event| event["reason"] == "start");
    assert_eq!(event["quality"], "good", "{event:#}");
    assert_eq!(event["values"], wanted);
    assert_eq!(event["units"], json!({"input": "°C"}));
}

#[test]
fn a_refusal_is_told_in_words_and_costs_only_its_own_points() {
    let table = "[group.g]\ninterval = \"50ms\"\n[[point]]\nname = \"there\"\naddress = 0\n[[point]]\nname = \"not_there\"\naddress = 900\n";
    let mut devices = Devices::start("tcp", twins());
    let plant = Plant::start(&source(devices.port(), ""), &[("t", table)]);
    let event = plant.await_event("u/g", "a snapshot", |event| event["reason"] == "start");
    assert_eq!((&event["quality"], &event["values"]), (&json!("bad"), &json!({"there": 111})));
    assert_eq!(
        event["bad"]["not_there"],
        json!({"reason": "exception 2: illegal address, the device has no such register"})
    );
    for (code, words) in
        [(1, "exception 1: illegal function"), (4, "exception 4: device failure"), (6, "exception 6: busy")]
    {
        devices.tell(&format!("refuse {code}"));
        plant.await_event("u/g", words, |event| {
            event["bad"]["there"]["reason"].as_str().is_some_and(|reason| reason.starts_with(words))
        });
    }
    devices.tell("refuse 11");
    let event = plant.await_event("u/g", "a gateway that does not reach it", |event| event["quality"] == "stale");
    assert!(event["why"].as_str().is_some_and(|why| why.starts_with("exception 11: gateway target silent")), "{event}");
    devices.tell("refuse 0");
    let count = plant.of("u/g").len();
    plant.await_nth("u/g", "there again", count - 1, |event| event["values"] == json!({"there": 111}));
    assert_eq!(plant.dead(), 0);
}

#[test]
fn slow_answers_are_good_and_too_slow_ones_are_none() {
    let mut devices = Devices::start("tcp", twins());
    devices.tell("slow 0.1");
    let plant = Plant::start(&source(devices.port(), ""), &[("t", TWINS)]);
    plant.await_event("u/a", "slow", |event| event["values"] == json!({"value": 111}));
    devices.tell("slow 0.3");
    let event = plant.await_event("u/a", "too slow", |event| event["quality"] == "stale");
    assert_eq!(event["why"], "no answer within 200ms");
    assert_eq!(event["last"], json!({"value": 111}));
    assert!(event["values"].is_null() && event["last_heard"].is_string(), "{event}");
    plant.await_problem("status says so", |problem| problem == "u: no answer within 200ms");
    devices.tell("slow 0");
    let count = plant.of("u/a").len();
    plant.await_nth("u/a", "back", count - 1, |event| event["quality"] == "good");
    plant.await_problem("and that it is over", str::is_empty);
    only_their_own(&plant);
}

/// No event has a value that is not its point's.
fn only_their_own(plant: &Plant) {
    for event in plant.events() {
        for (name, value) in event.data["values"].as_object().into_iter().flatten() {
            assert_eq!(value, if name == "value" { 111 } else { 222 }, "{event:?}");
        }
    }
}

#[test]
fn late_answers_and_garbage_never_become_values() {
    let mut devices = Devices::start("tcp", twins());
    let proxy = Proxy::start(devices.address());
    let plant = Plant::start(&source(proxy.address().port(), "retries = 0"), &[("t", TWINS)]);
    plant.await_event("u/b", "good", |event| event["quality"] == "good");
    for round in 0..5 {
        proxy.delay(Duration::from_millis(150 + round * 40));
        std::thread::sleep(Duration::from_millis(300));
        proxy.delay(Duration::ZERO);
        let count = plant.of("u/b").len();
        plant.await_nth("u/b", "good again", count, |event| event["quality"] == "good");
    }
    for disturbance in ["garbage 3", "noise 9", "garbage 1", "noise 300"] {
        devices.tell(disturbance);
        let count = plant.of("u/a").len();
        plant.await_nth("u/a", disturbance, count + 2, |event| event["quality"] == "good");
    }
    only_their_own(&plant);
}

#[test]
fn a_link_that_is_cut_is_told_of_and_polling_resumes_alone() {
    // A minute with `tests/run --long`; the times shrink together.
    let unit = if std::env::var_os("FOREBAY_ROUNDS").is_some() { 20 } else { 1 };
    let table = TWINS.replace("interval", &format!("bad_after = \"{}ms\"\ninterval", unit * 1500));
    for how in [Cut::Refuse, Cut::Silent] {
        let devices = Devices::start("tcp", twins());
        let proxy = Proxy::start(devices.address());
        let plant = Plant::start(&source(proxy.address().port(), ""), &[("t", &table)]);
        plant.await_event("u/a", "good", |event| event["quality"] == "good");
        plant.await_event("u/b", "good", |event| event["quality"] == "good");
        proxy.cut(how);
        std::thread::sleep(Duration::from_secs(unit * 3));
        proxy.restore();
        let gone = plant.of("u/a").iter().position(|event| event["quality"] == "stale").expect("it was told");
        plant.await_nth("u/a", "back", gone, |event| event["quality"] == "good");
        let events = plant.of("u/a");
        let told: Vec<_> = events[gone..].iter().take(3).map(|event| (&event["quality"], &event["reason"])).collect();
        let (stale, bad, good) = (json!("stale"), json!("bad"), json!("good"));
        let quality = json!("quality");
        assert_eq!(told, [(&stale, &quality), (&bad, &quality), (&good, &quality)], "{how:?}");
        assert!(events[gone..gone + 2].iter().all(|event| event["values"].is_null() && event["why"].is_string()));
        assert_eq!(events[gone + 2]["values"], json!({"value": 111}));
        only_their_own(&plant);
    }
}

#[test]
fn a_device_that_restarts_or_hangs_up_is_found_again() {
    let devices = Devices::start("tcp", twins());
    let port = devices.port();
    let plant = Plant::start(&source(port, ""), &[("t", TWINS)]);
    plant.await_event("u/a", "good", |event| event["quality"] == "good");
    drop(devices);
    let event = plant.await_event("u/a", "gone", |event| event["quality"] == "stale");
    let why = event["why"].as_str().unwrap_or_default();
    assert!(why.contains("refused") || why.contains("ended") || why.contains("reset"), "{why}");
    let mut spec = twins();
    spec["port"] = port.into();
    let count = plant.of("u/a").len();
    let _devices = Devices::start("tcp", spec);
    plant.await_nth("u/a", "back", count - 1, |event| event["quality"] == "good");
}

#[test]
fn tls_shows_a_certificate_and_wants_the_right_one() {
    let folder = scratch_folder("modbus-pki");
    let pki = Pki::write(folder.path());
    let mut spec = twins();
    for (name, path) in [("cert", &pki.server_cert), ("key", &pki.server_key), ("ca", &pki.ca)] {
        spec[name] = path.display().to_string().into();
    }
    let devices = Devices::start("tls", spec);
    let files = |ca: &str| {
        format!(
            "tls = {{ ca = \"{ca}\", cert = \"{}\", key = \"{}\" }}",
            pki.client_cert.display(),
            pki.client_key.display()
        )
    };
    let with = |ca: &str| source(devices.port(), &files(ca)).replace("tcp://127.0.0.1", "tls://localhost");
    let plant = Plant::start(&with(&pki.ca.display().to_string()), &[("t", TWINS)]);
    plant.await_event("u/a", "good", |event| event["values"] == json!({"value": 111}));
    let other = scratch_folder("modbus-pki-other");
    let wrong = Pki::write(other.path());
    let plant = Plant::start(&with(&wrong.ca.display().to_string()), &[("t", TWINS)]);
    let event = plant.await_event("u/a", "not trusted", |event| event["quality"] == "bad");
    assert!(event["why"].as_str().is_some_and(|why| why.contains("certificate")), "{event}");
}

#[test]
fn a_table_that_cannot_be_is_refused_with_file_line_and_point() {
    let folder = scratch_folder("modbus-check");
    let table = "[[point]]\nname = \"first\"\naddress = 10\ntype = \"f32\"\n\n[[point]]\nname = \"second\"\naddress = 11\n\n[[point]]\nname = \"third\"\naddress = 30\ntype = \"u24\"\n";
    let sources = source(1502, "").replace("device = \"t\" }", "device = \"t\" }, { name = \"v\", device = \"none\" }");
    prepare(folder.path(), &sources, &[("t", table)], &[]);
    let check = || {
        let problems = forebay::config::Config::load(&folder.path().join("forebay.toml")).expect_err("refused");
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let said = check();
    assert!(said.contains("devices/t.toml:13: point[2].type: point \"third\": unknown value `u24`"), "{said}");
    assert!(said.contains("unit[1].device: \"none\" has no table: there is no "), "{said}");
    std::fs::write(folder.path().join("devices/t.toml"), table.replace("u24", "u16")).expect("written");
    let said = check();
    assert!(
        said.contains(
            "devices/t.toml:8: point[1].address: point \"second\": overlaps point \"first\" (holding 10 to 11)"
        ),
        "{said}"
    );
}
