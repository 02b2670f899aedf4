//! Devices, adapters and gateways as people really meet them: each test is what somebody met elsewhere.

use super::plant::{Plant, prepare};
use super::quirky::{Quirks, Quirky};
use crate::common::gateway::scratch_folder;
use forebay::config::Config;
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn source(device: &Quirky, more: &str) -> String {
    format!(
        "[[source.modbus]]\nname = \"bus\"\nurl = \"{}\"\nbackoff = \"200ms\"\nbackoff_max = \"1s\"\n{more}\nunit = [{{ name = \"u\", unit = 1, device = \"t\" }}]\n",
        device.url()
    )
}

/// Points at these holding registers, named after them.
fn table(addresses: &[u16]) -> String {
    let points = addresses.iter().map(|at| format!("[[point]]\nname = \"p{at}\"\naddress = {at}\n"));
    format!("[group.g]\ninterval = \"100ms\"\n{}", points.collect::<String>())
}

fn forebay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay")).args(arguments).output().expect("it runs")
}

fn is_good(event: &Value) -> bool {
    event["quality"] == "good"
}

#[test]
fn a_device_that_needs_a_moment_after_connecting_is_read() {
    let second = Duration::from_secs(1);
    for is_rtu in [false, true] {
        for (deaf, ignores_first, closes_within, timeout) in [
            (second / 5, 0, Duration::ZERO, "1s"),
            (second * 3 / 2, 0, Duration::ZERO, "1s"),
            (second * 3 / 2, 0, Duration::ZERO, "200ms"),
            (Duration::ZERO, 1, Duration::ZERO, "300ms"),
            (Duration::ZERO, 2, Duration::ZERO, "300ms"),
            (Duration::ZERO, 0, second, "300ms"),
        ] {
            let quirks = Quirks { is_rtu, deaf, ignores_first, closes_within, ..Quirks::default() };
            let what = format!("{quirks:?}, {timeout}");
            let device = Quirky::start(&[7; 8], quirks);
            let plant = Plant::start(&source(&device, &format!("timeout = \"{timeout}\"")), &[("t", &table(&[0]))]);
            let event = plant.await_event("u/g", &what, is_good);
            assert_eq!(event["values"], json!({"p0": 7}), "{what}");
        }
    }
}

#[test]
fn a_dead_unit_costs_the_others_no_connection() {
    // Each new connection is deaf for so long that a request with its repeat is lost.
    let quirks = Quirks { deaf: Duration::from_secs(1), dead: [1, 2].into(), ..Quirks::default() };
    let device = Quirky::start(&[7], quirks);
    let units = "unit = [{ name = \"a\", unit = 1, device = \"t\" }, { name = \"b\", unit = 2, device = \"t\" }, { name = \"c\", unit = 3, device = \"t\" }, { name = \"d\", unit = 4, device = \"t\" }]\n";
    let one = source(&device, "timeout = \"200ms\"");
    let bus = &one[..one.find("unit = [").expect("its units")];
    let table = table(&[0]).replace("[group.g]\n", "[group.g]\nreport = \"always\"\n");
    let plant = Plant::start(&format!("{bus}{units}"), &[("t", &table)]);
    let count = |topic: &str| plant.of(topic).len();
    for topic in ["c/g", "d/g"] {
        plant.await_event(topic, "a value", is_good);
    }
    let after = (count("c/g"), count("d/g"));
    plant.await_nth("c/g", "more values", after.0 + 30, |_| true);
    for (topic, after) in [("c/g", after.0), ("d/g", after.1)] {
        let events = plant.of(topic);
        assert!(
            events[after..].iter().all(is_good),
            "{topic}: {:#?}",
            events[after..].iter().find(|event| !is_good(event))
        );
    }
}

#[test]
fn a_scan_finds_units_that_were_asked_too_early_and_says_what_they_do_not_serve() {
    let quirks = Quirks { deaf: Duration::from_millis(1500), dead: [2].into(), ..Quirks::default() };
    let device = Quirky::start(&[7], quirks);
    let scan = |arguments: &[&str]| {
        let url = device.url();
        let output = forebay(&[&["modbus", "scan", &url, "--timeout", "500ms", "--pause", "20ms"], arguments].concat());
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), said(&output.stdout), said(&output.stderr))
    };
    let (code, out, error) = scan(&["--units", "1-5", "--json"]);
    let mut found: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    found.sort_by_key(|line| line["unit"].as_u64());
    let units: Vec<_> = found.iter().map(|line| line["unit"].clone()).collect();
    assert_eq!((units, code), (vec![json!(1), json!(3), json!(4), json!(5)], Some(0)), "{error}");
    assert!(found.iter().all(|line| line["serves_table"] == true && line["raw"] == 7), "{out}");
    device.change(|quirks| quirks.deaf = Duration::ZERO);
    let (code, out, error) = scan(&["--units", "1-3", "--table", "input"]);
    assert_eq!(out.matches("answers, but it does not serve the table \"input\"").count(), 2, "{out}");
    assert!(
        error.contains("2 found, 2 of them without the table \"input\"; --table holding asks for another one"),
        "{error}"
    );
    assert_eq!(code, Some(0), "they are there");
    let (code, out, error) = scan(&["--units", "1", "--table", "input", "--addresses", "0-9"]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "no register is found");
    assert!(error.contains("unit 1 answers, but it does not serve the table \"input\" (exception 1"), "{error}");
}

#[test]
fn with_a_pause_after_connecting_the_first_request_is_answered() {
    let device = Quirky::start(&[7], Quirks { deaf: Duration::from_millis(400), ..Quirks::default() });
    let plant = Plant::start(&source(&device, "connect_pause = \"600ms\""), &[("t", &table(&[0]))]);
    let start = plant.await_event("u/g", "a snapshot", |_| true);
    assert_eq!(start["quality"], "good", "it was never silent");
    device.change(|quirks| quirks.deaf = Duration::from_millis(1500));
    for timeout in ["1s", "200ms"] {
        let output = forebay(&["modbus", "read", &device.url(), "--count", "1", "--timeout", timeout]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn one_missing_register_costs_only_its_own_point() {
    let quirks = Quirks { missing: [3].into(), ..Quirks::default() };
    let device = Quirky::start(&[10, 11, 12, 13, 14], quirks);
    let plant = Plant::start(&source(&device, ""), &[("t", &table(&[0, 2, 3, 4]))]);
    let event = plant.await_event("u/g", "a snapshot", |event| event["reason"] == "start");
    assert_eq!(event["values"], json!({"p0": 10, "p2": 12, "p4": 14}));
    let refused = json!({"p3": {"reason": "exception 2: illegal address, the device has no such register"}});
    assert_eq!(event["bad"], refused, "and nothing is said of the others");
    device.asked();
    let start = Instant::now();
    while device.asked().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "it is polled");
    }
    let start = Instant::now();
    let mut asked = Vec::new();
    while asked.len() < 6 {
        asked.extend(device.asked());
        assert!(start.elapsed() < Duration::from_secs(10), "{asked:?}");
    }
    assert!(asked.iter().all(|(at, count)| !(*at..at + count).contains(&3)), "it is remembered: {asked:?}");
    let table_file = scratch_folder("modbus-missing");
    let file = table_file.path().join("t.toml");
    std::fs::write(&file, table(&[0, 2, 3, 4])).expect("written");
    let file = file.display().to_string();
    let output = forebay(&["modbus", "read", &device.url(), "--device", &file, "--json", "--pause", "20ms"]);
    let points: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let values: Vec<_> = points.as_array().expect("a list").iter().map(|point| point["value"].clone()).collect();
    assert_eq!(values, [json!(10), json!(12), json!(null), json!(14)], "{points:#}");
}

#[test]
fn a_register_that_appears_is_read_after_the_device_was_away() {
    let quirks = Quirks { missing: [1].into(), ..Quirks::default() };
    let device = Quirky::start(&[10, 11, 12], quirks);
    let plant = Plant::start(&source(&device, "timeout = \"100ms\""), &[("t", &table(&[0, 1, 2]))]);
    plant.await_event("u/g", "without it", |event| event["bad"]["p1"].is_object());
    device.change(|quirks| (quirks.missing, quirks.deaf) = ([].into(), Duration::from_secs(3600)));
    plant.await_event("u/g", "silent", |event| event["quality"] == "stale");
    device.change(|quirks| quirks.deaf = Duration::ZERO);
    let event = plant.await_event("u/g", "with it", is_good);
    assert_eq!(event["values"], json!({"p0": 10, "p1": 11, "p2": 12}));
}

#[test]
fn a_device_that_takes_ten_registers_at_once_is_read_whole() {
    let device = Quirky::start(&(0..60).collect::<Vec<_>>(), Quirks { longest: 10, ..Quirks::default() });
    let addresses: Vec<u16> = (0..60).collect();
    let plant = Plant::start(&source(&device, ""), &[("t", &table(&addresses))]);
    let event = plant.await_event("u/g", "a snapshot", |event| event["reason"] == "start");
    assert_eq!(event["values"].as_object().map(serde_json::Map::len), Some(60), "{event}");
    assert_eq!(event["quality"], "good");
}

#[test]
fn an_adapter_that_echoes_is_read() {
    let device = Quirky::start(&[7, 8], Quirks { is_rtu: true, has_echo: true, ..Quirks::default() });
    for echo in ["", "echo = true"] {
        let plant = Plant::start(&source(&device, echo), &[("t", &table(&[0, 1]))]);
        let event = plant.await_event("u/g", "behind its echo", is_good);
        assert_eq!(event["values"], json!({"p0": 7, "p1": 8}), "{echo}");
    }
    let output = forebay(&["modbus", "read", &device.url(), "--count", "2", "--json"]);
    let points: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&points[0]["value"], &points[1]["value"]), (&json!(7), &json!(8)));
}

#[test]
fn a_gateway_with_transaction_numbers_of_its_own_is_read_with_the_switch() {
    let device = Quirky::start(&[7], Quirks { has_own_numbers: true, ..Quirks::default() });
    let plant = Plant::start(&source(&device, "timeout = \"200ms\""), &[("t", &table(&[0]))]);
    let event = plant.await_event("u/g", "nothing fits", |event| event["why"].is_string());
    let why = event["why"].as_str().unwrap_or_default();
    assert!(why.contains("transaction number") && why.contains("set ignore_transaction_numbers"), "{why}");
    let more = "ignore_transaction_numbers = true";
    let plant = Plant::start(&source(&device, more), &[("t", &table(&[0]))]);
    assert_eq!(plant.await_event("u/g", "with the switch", is_good)["values"], json!({"p0": 7}));
    let output = forebay(&["modbus", "read", &device.url(), "--count", "1", "--ignore-transaction-numbers"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_message_says_which_unit_answered() {
    let device = Quirky::start(&[7], Quirks { answers_as: Some(0), ..Quirks::default() });
    let plant = Plant::start(&source(&device, ""), &[("t", &table(&[0]))]);
    let event = plant.await_event("u/g", "another unit", |event| event["why"].is_string());
    let why = event["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("unit 0 answered a request to unit 1; ") && why.ends_with("set its unit to 0"), "{why}");
    let output = forebay(&["modbus", "scan", &device.url(), "--units", "1-3", "--pause", "20ms"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("unit 1: unit 0 answered a request to unit 1; ") && said.contains("likewise 2 more units"),
        "{said}"
    );
    let zero = source(&device, "").replace("unit = 1", "unit = 0");
    let plant = Plant::start(&zero, &[("t", &table(&[0]))]);
    plant.await_event("u/g", "as unit 0", is_good);
}

#[test]
fn a_byte_of_padding_in_the_answer_is_no_fault() {
    let device = Quirky::start(&[7], Quirks { padding: 1, ..Quirks::default() });
    let plant = Plant::start(&source(&device, ""), &[("t", &table(&[0]))]);
    assert_eq!(plant.await_event("u/g", "padded", is_good)["values"], json!({"p0": 7}));
}

#[test]
fn texts_absences_and_scale_registers_of_real_devices_are_read() {
    let table = r#"
[group.g]
interval = "100ms"
[[point]]
name = "serial"
address = 0
type = "text"
length = 4
[[point]]
name = "place"
address = 4
type = "text"
length = 4
[[point]]
name = "energy"
address = 8
type = "u64"
counter = true
absent = ["0xFFFFFFFFFFFFFFFF"]
[[point]]
name = "power"
address = 12
type = "i16"
scale_from = "power_sf"
absent = ["0x8000"]
[[point]]
name = "power_sf"
address = 13
type = "i16"
[[point]]
name = "temperature"
address = 14
type = "f32"
absent = [-9999.0]
[[point]]
name = "swapped"
address = 16
type = "u64"
order = "EFGHABCD"
[[point]]
name = "word"
address = 20
[[point]]
name = "alarm"
address = 20
bit = 3
"#;
    let registers = [
        [0x534E, 0x3132, 0x33FF, 0xFFFF].to_vec(),
        [0x4BFC, 0x686C, 0x6572, 0x0D0A].to_vec(),
        [0, 0, 15, 16_960].to_vec(),
        [2305, 0xFFFF].to_vec(),
        [0xC61C, 0x3C00].to_vec(),
        [0, 2, 0, 1].to_vec(),
        [8].to_vec(),
    ]
    .concat();
    let device = Quirky::start(&registers, Quirks::default());
    let plant = Plant::start(&source(&device, ""), &[("t", table)]);
    let event = plant.await_event("u/g", "a snapshot", |event| event["reason"] == "start");
    assert_eq!(event["quality"], "good", "{event:#}");
    assert_eq!(event["absent"], json!(["temperature"]));
    assert_eq!(
        event["values"],
        json!({"serial": "SN123", "place": "Kühler", "energy": 1_000_000, "power": 230.5, "power_sf": -1,
            "swapped": 4_294_967_298u64, "word": 8, "alarm": true})
    );
    device.set(8, &[0xFFFF; 4]);
    device.set(13, &[0]);
    let night = plant.await_nth("u/g", "at night", 1, |event| event["values"]["power"] == 2305);
    assert_eq!((&night["quality"], &night["counts"]), (&json!("good"), &json!(null)), "{night:#}");
    device.set(8, &[0, 0, 15, 16_963]);
    let morning = plant.await_nth("u/g", "in the morning", 2, |event| event["counts"].is_object());
    assert_eq!(morning["counts"], json!({"energy": {"step": 3}}));
}

#[test]
fn a_total_that_falls_and_returns_is_counted_once() {
    let table = "[group.g]\ninterval = \"50ms\"\n[[point]]\nname = \"energy\"\naddress = 0\ntype = \"u32\"\nscale = 0.1\ncounter = true\n[[point]]\nname = \"beat\"\naddress = 2\n";
    let device = Quirky::start(&[0, 10_020, 0], Quirks::default());
    let plant = Plant::start(&source(&device, ""), &[("t", table)]);
    plant.await_event("u/g", "a snapshot", |_| true);
    // The last digit falls, the meter shows 0 for a moment, and it counts again.
    for (beat, energy) in [10_019, 10_020, 0, 10_020, 10_025].into_iter().enumerate() {
        device.set(1, &[energy]);
        let beat = beat as u16 + 1;
        device.set(2, &[beat]);
        plant.await_event("u/g", "it was read", |event| event["values"]["beat"] == beat);
    }
    let events = plant.of("u/g");
    let steps: f64 = events.iter().filter_map(|event| event["counts"]["energy"]["step"].as_f64()).sum();
    assert!((steps - 0.5).abs() < 1e-9, "{events:#?}");
    assert!(events.iter().all(|event| event["counts"]["energy"]["resets"].is_null()), "{events:#?}");
}

#[test]
fn devices_shows_units_and_points_with_state_reason_and_since_when() {
    let device = Quirky::start(&[10, 11], Quirks { missing: [1].into(), ..Quirks::default() });
    let plant = Plant::start(&source(&device, "timeout = \"100ms\""), &[("t", &table(&[0, 1]))]);
    plant.await_event("u/g", "a snapshot", |_| true);
    let unit = plant.devices().remove(0);
    assert_eq!((&unit["kind"], &unit["unit"], &unit["number"]), (&json!("modbus"), &json!("u"), &json!(1)));
    assert_eq!(unit["state"], "bad");
    assert_eq!((&unit["points"][0]["state"], &unit["points"][1]["state"]), (&json!("good"), &json!("bad")));
    let reason = unit["points"][1]["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("exception 2") && unit["points"][1]["since"].is_string(), "{unit:#}");
    plant.await_problem("some values are worth a note, and no problem", str::is_empty);
    let text = plant.print_devices();
    assert!(text.contains("1 of 2") && text.contains("u/g/p1"), "{text}");
    device.change(|quirks| quirks.deaf = Duration::from_secs(3600));
    plant.await_problem("silence", |problem| problem == "u: no answer within 100ms");
    let unit = plant.devices().remove(0);
    assert_eq!((&unit["state"], &unit["reason"]), (&json!("silent"), &json!("no answer within 100ms")));
    device.change(|quirks| (quirks.deaf, quirks.missing) = (Duration::ZERO, [0, 1].into()));
    plant.await_problem("a connection without a value is no health", |problem| {
        problem.starts_with("u: 2 of 2 points have no value, such as p0: exception 2")
    });
}

#[test]
fn settings_that_do_not_fit_the_bus_are_refused_and_a_second_source_is_a_warning() {
    let folder = scratch_folder("modbus-settings");
    let load = |sources: &str| {
        prepare(folder.path(), sources, &[("t", &table(&[0]))], &[]);
        Config::load(&folder.path().join("forebay.toml"))
    };
    let unit = "unit = [{ name = \"u\", device = \"t\" }]\n";
    for (settings, wanted) in [
        ("url = \"tcp://a:1\"\necho = true", "is no serial line, so nothing echoes"),
        ("url = \"rtu-tcp://a:1\"\nignore_transaction_numbers = true", "have no transaction numbers"),
        ("url = \"tcp://a:1\"\nconnect_pause = \"2m\"", "2m is out of bounds; 0s to 1m are allowed"),
    ] {
        let problems = load(&format!("[[source.modbus]]\nname = \"a\"\n{settings}\n{unit}")).expect_err(wanted);
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|problem| problem.contains(wanted)), "{said:?}");
    }
    let twice = ["a", "b"].map(|name| format!("[[source.modbus]]\nname = \"{name}\"\nurl = \"tcp://a:1\"\n{unit}"));
    let config = load(&twice.concat()).expect("both are read");
    let said: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|warning| warning.contains("many devices serve one connection at a time")), "{said:?}");
}
