//! Odoo 14 to 19, each by what it accepts: the server refuses every parameter and method that a version does not have.

use super::fake::Odoo;
use super::{Plant, is};
use serde_json::{Value, json};

fn check(version: u32) {
    let odoo = Odoo::of(version);
    let id = odoo.newest("mrp.production", "state", "confirmed");
    if version < 17 {
        // Up to 16 the planned start had a name of its own, and `date_start` was the actual one.
        let both = json!({"date_planned_start": "2026-12-24 06:00:00", "date_start": "2026-12-24 07:31:00"});
        odoo.write_at("mrp.production", id, both, odoo.now() - 3600);
    }
    odoo.see_companies(&[1]);
    let source = "user = \"gateway\"\ndeletions = \"1s\"\nreconcile = \"2s\"";
    let plant = Plant::start(&format!("odoo-{version}"), &odoo, source, "");
    let loaded = plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    if version < 17 {
        assert_eq!(loaded["data"]["record"]["date_start"], "2026-12-24T06:00:00Z", "the planned start");
        assert_eq!(loaded["data"]["record"].get("date_planned_start"), None, "one name for all versions");
    }
    plant.await_problem("");
    odoo.write("mrp.production", id, json!({"state": "progress"}));
    plant.await_event("production.order", "started", |event| is(event, id, "started"));
    odoo.hide_record("mrp.production", id, true);
    plant.await_event("production.order", "hidden", |event| is(event, id, "hidden"));
    odoo.hide_record("mrp.production", id, false);
    plant.await_event("production.order", "visible", |event| is(event, id, "visible"));
    odoo.write_by_sql("mrp.production", id, json!({"priority": "1"}));
    plant.await_event("production.order", "by SQL", |event| event["data"]["record"]["priority"] == "1");
    odoo.unlink("mrp.production", id);
    plant.await_event("production.order", "deleted", |event| is(event, id, "deleted"));
    plant.await_problem("");
    let output = plant.gateway.command(&["odoo", "check", "--json", "CONFIG"]);
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{found:#}");
    assert!(found[0]["version"].as_str().is_some_and(|text| text.starts_with(&version.to_string())), "{found:#}");
    assert_eq!(found[0]["companies"], json!([1]));
}

#[test]
fn odoo_14_is_read() {
    check(14);
}

#[test]
fn odoo_15_is_read() {
    check(15);
}

#[test]
fn odoo_16_is_read() {
    check(16);
}

#[test]
fn odoo_17_is_read() {
    check(17);
}

#[test]
fn odoo_18_is_read() {
    check(18);
}

#[test]
fn odoo_19_is_read() {
    check(19);
}

#[test]
fn the_check_finds_what_the_gateway_could_not_read() {
    let odoo = Odoo::start();
    odoo.deny_field("mrp.production", "bom_id", true);
    odoo.remove_field("mrp.workorder", "sequence", true);
    let plant = Plant::prepare("odoo-check", &odoo.url(), "500ms", "", "");
    let output = plant.gateway.command(&["odoo", "check", "CONFIG"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |stream: &str| said.lines().find(|line| line.starts_with(stream)).unwrap_or_default().to_owned();
    assert!(line("production.order ").contains("bom_id") && line("production.order ").contains("right"), "{said}");
    assert!(!line("work.order ").contains("sequence"), "not every version has it, and the contract says so: {said}");
}
