//! `forebay modbus import | read | scan`, as somebody uses them who commissions a machine.

use super::plant::Devices;
use crate::common::gateway::scratch_folder;
use serde_json::{Value, json};
use std::process::{Command, Output};

fn forebay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay")).arg("modbus").args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_list_is_imported_and_its_table_reads_a_device() {
    let folder = scratch_folder("modbus-import");
    let list = folder.path().join("Press 4.csv");
    let csv = "Register;Name;Type;Unit;Factor\r\n40001;Temperature;INT16;\u{b0}C;0,1\r\n40002;Energy;UINT32;kWh;\r\n40001;Twice;UINT16;;\r\n";
    // As it comes from a spreadsheet: Latin-1.
    let bytes: Vec<u8> = csv.chars().map(|letter| letter as u8).collect();
    std::fs::write(&list, bytes).expect("written");
    let table = folder.path().join("press.toml");
    let (list, table) = (list.display().to_string(), table.display().to_string());
    let output = forebay(&["import", &list, "--output", &table]);
    assert_eq!(output.status.code(), Some(1), "a line was left out");
    let said = text(&output.stderr);
    assert!(said.contains("Press 4.csv:4: left out: point \"twice\": overlaps point \"temperature\""), "{said}");
    let devices = Devices::start("tcp", json!({"units": [3], "holding": [235, 1, 2, 0]}));
    let url = format!("tcp://127.0.0.1:{}", devices.port());
    let output = forebay(&["read", &url, "--unit", "3", "--device", &table, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("this command only reads, at most 10 requests per second"));
    let points: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(points[0]["value"], 23.5);
    assert_eq!((&points[0]["unit"], &points[1]["value"]), (&json!("°C"), &json!(65_538)));
    let again = forebay(&["import", &list, "--output", &table]);
    assert!(text(&again.stderr).contains("cannot be created"), "nothing is written over");
}

#[test]
fn registers_are_read_as_a_table_for_people() {
    let devices = Devices::start("tcp", json!({"units": [1], "holding": [0x4144, 0xCCCD, 0, 0]}));
    let url = format!("tcp://127.0.0.1:{}", devices.port());
    let output = forebay(&["read", &url, "--type", "f32", "--count", "1"]);
    let said = text(&output.stdout);
    let row: Vec<_> = said.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(row, ["holding_0", "holding", "0", "4144", "cccd", "12.3"], "{said}");
    let output = forebay(&["read", &url, "--address", "900", "--count", "1"]);
    assert!(text(&output.stdout).contains("exception 2: illegal address"), "{}", text(&output.stdout));
    let output = forebay(&["read", &url, "--unit", "9", "--timeout", "200ms", "--count", "1"]);
    assert!(!output.status.success() && text(&output.stdout).contains("no answer within 200ms"));
}

#[test]
fn a_scan_finds_devices_and_registers() {
    let devices = Devices::start("rtu", json!({"units": [2, 5], "holding": [1, 2, 3]}));
    let url = format!("rtu:{}", devices.path());
    let common = ["--timeout", "100ms", "--pause", "20ms", "--json"];
    let output = forebay(&[&["scan", &url, "--units", "1-6"], &common[..]].concat());
    let lines = |output: &Output| -> Vec<Value> {
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let found: Vec<_> = lines(&output).iter().map(|line| line["unit"].clone()).collect();
    assert_eq!(found, [2, 5], "{}", text(&output.stderr));
    let output = forebay(&[&["scan", &url, "--units", "5", "--addresses", "0-6"], &common[..]].concat());
    let found: Vec<_> = lines(&output).iter().map(|line| (line["address"].clone(), line["raw"].clone())).collect();
    assert_eq!(found, [(json!(0), json!(1)), (json!(1), json!(2)), (json!(2), json!(3))]);
}
