//! From values to events, through the whole gateway.

use super::plant::{Devices, GROUPS, Plant, prepare};
use crate::common::gateway::scratch_folder;
use forebay::config::Config;
use serde_json::json;
use std::time::Duration;

const TABLE: &str = r#"
[group.g]
interval = "50ms"
[[point]]
name = "power"
address = 0
scale = 0.1
unit = "kW"
deadband = 1.0
[[point]]
name = "good"
address = 1
counter = true
[[point]]
name = "state"
address = 2
values = { 0 = "off", 1 = "running" }
[[point]]
name = "door"
address = 3
bit = 0
edge = "both"
"#;

fn source(devices: &Devices) -> String {
    format!(
        "[[source.modbus]]\nname = \"bus\"\nurl = \"tcp://127.0.0.1:{}\"\nunit = [{{ name = \"press-4\", unit = 1, device = \"t\" }}]\n",
        devices.port()
    )
}

fn devices() -> Devices {
    Devices::start("tcp", json!({"units": [1], "holding": [100, 65_534, 1, 0, 0]}))
}

#[test]
fn a_change_becomes_one_event_of_its_group() {
    let mut devices = devices();
    let plant = Plant::start(&source(&devices), &[("t", TABLE)]);
    let topic = "press-4/g";
    let start = plant.await_event(topic, "a snapshot", |event| event["reason"] == "start");
    assert_eq!(start["values"], json!({"power": 10, "good": 65_534, "state": "running", "door": false}));
    devices.tell("set 1 holding 0 105");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(plant.of(topic).len(), 1, "within the deadband nothing is told");
    devices.tell("set 1 holding 0 115");
    let event = plant.await_nth(topic, "beyond it", 1, |_| true);
    assert_eq!((&event["changed"], &event["values"]["power"]), (&json!(["power"]), &json!(11.5)));
    devices.tell("set 1 holding 1 3");
    let event = plant.await_nth(topic, "it rolls over", 2, |_| true);
    assert_eq!((&event["counts"], &event["values"]["good"]), (&json!({"good": {"step": 5}}), &json!(3)));
    devices.tell("set 1 holding 3 1");
    let event = plant.await_nth(topic, "the door", 3, |_| true);
    let edge = &event["edges"][0];
    assert_eq!((&edge["point"], &edge["to"], &edge["seen"]), (&json!("door"), &json!(true), &event["ts"]));
    assert!(edge["after"].as_str() < edge["seen"].as_str());
    devices.tell("set 1 holding 2 9");
    let event = plant.await_nth(topic, "no word for it", 4, |_| true);
    assert_eq!((&event["quality"], &event["reason"]), (&json!("bad"), &json!("quality")));
    assert_eq!(event["bad"], json!({"state": {"reason": "9 is no value of the enumeration (0, 1)", "raw": [9]}}));
    assert!(event["values"]["state"].is_null(), "no value is invented: {event}");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(plant.of(topic).len(), 5);
    assert_eq!(plant.events()[0].origin, "bus/press-4");
}

#[test]
fn a_contract_for_a_point_has_it_in_events_of_its_own() {
    let point = GROUPS.replace("modbus.group", "modbus.point").replace("{group}\"", "{group}/good\"");
    let everything = "name = \"all\"\nversion = \"1.0.0\"\nowner = \"tests\"\nmatch = { source = \"modbus\", topic = \"#\" }\nkey = \"{topic}\"\n";
    let mut devices = devices();
    let contracts = [("groups", GROUPS), ("point", &point), ("all", everything)];
    let plant = Plant::start_with(&source(&devices), &[("t", TABLE)], &contracts);
    let group = plant.await_event("press-4/g", "the rest", |_| true);
    assert_eq!(group["values"], json!({"power": 10, "state": "running", "door": false}));
    let start = plant.await_event("press-4/g/good", "the point", |_| true);
    assert_eq!((&start["value"], &start["reason"]), (&json!(65_534), &json!("start")));
    devices.tell("set 1 holding 1 65535");
    let event = plant.await_nth("press-4/g/good", "it counts", 1, |_| true);
    assert_eq!((&event["value"], &event["count"]), (&json!(65_535), &json!({"step": 1})));
    assert_eq!((plant.of("press-4/g").len(), plant.dead()), (1, 0), "a catch-all splits nothing");
}

#[test]
fn check_warns_of_groups_that_no_contract_takes() {
    let folder = scratch_folder("modbus-unmatched");
    let source = "[[source.modbus]]\nname = \"bus\"\nurl = \"tcp://127.0.0.1:1502\"\nunit = [{ name = \"u\", device = \"t\" }, { name = \"v\", device = \"t\" }]\n";
    let other = GROUPS.replace("{unit}/{group}", "u/x");
    prepare(folder.path(), source, &[("t", TABLE)], &[("other", &other)]);
    let config = Config::load(&folder.path().join("forebay.toml")).expect("good all the same");
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    let wanted = "source.modbus[0]: no contract matches \"u/g\", nor 1 more groups: the events become dead letters";
    assert!(warnings.iter().any(|warning| warning.ends_with(wanted)), "{warnings:?}");
}

#[test]
fn every_start_begins_with_a_snapshot() {
    let mut devices = devices();
    let mut plant = Plant::start(&source(&devices), &[("t", TABLE)]);
    plant.await_event("press-4/g", "a snapshot", |event| event["reason"] == "start");
    plant.stop();
    devices.tell("set 1 holding 1 7");
    plant.run();
    let event = plant.await_nth("press-4/g", "another", 1, |event| event["reason"] == "start");
    assert_eq!(event["values"]["good"], 7);
    assert!(event["counts"].is_null(), "what was not seen is no step");
    let status = plant.status();
    let source = &status["sources"][1];
    assert_eq!((&source["kind"], &source["name"], &source["problem"]), (&json!("modbus"), &json!("bus"), &json!(null)));
    assert!(source["received"].as_u64() > Some(0) && source["connections"] == 1, "{source}");
}
