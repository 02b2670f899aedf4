//! Hints: Odoo notes changes in an outbox, and a scheduled action posts once. States that no poll sees are reported.

use super::fake::Odoo;
use super::{Plant, is};
use crate::common::http::Client;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef01234567";

/// A gateway that polls once an hour, and the address of its hook.
fn start(name: &str, odoo: &Odoo) -> (Plant, SocketAddr) {
    let address = crate::common::free_address();
    let hook = format!("hook = {{ listen = \"{address}\", token_file = \"hook.token\" }}");
    let mut plant = Plant::prepare(name, &odoo.url(), "1h", &hook, "");
    std::fs::write(plant.gateway.folder.join("hook.token"), TOKEN).expect("written");
    plant.gateway.run();
    (plant, address)
}

/// What the scheduled action posts: the newest row of the outbox.
fn post(address: SocketAddr) {
    let body = r#"{"_action": "Forebay gw: post(#7)", "_id": 1, "_model": "x_forebay_gw"}"#;
    let answer = Client::dial(address).post(&format!("/odoo/hook/{TOKEN}"), &[], body.as_bytes());
    assert_eq!(answer.status, 204);
}

fn names(plant: &Plant, id: i64) -> Vec<Value> {
    let of_id = plant.events("production.order").into_iter().filter(|event| event["data"]["id"] == id);
    of_id.map(|event| event["data"]["event"].clone()).collect()
}

#[test]
fn every_state_of_a_quick_order_is_reported_in_order() {
    let odoo = Odoo::start();
    let like = odoo.newest("mrp.production", "state", "confirmed");
    odoo.note("mrp.production", like, Some("confirmed"));
    let (plant, address) = start("odoo-quick", &odoo);
    plant.await_event("production.order", "the first load", |event| is(event, like, "loaded"));
    plant.await_problem("");
    // One that is known, and one that nobody has read before it is done.
    let id = odoo.create("mrp.production", like, json!({"name": "WH/MO/95001", "state": "draft"}));
    for state in ["draft", "confirmed", "progress", "done"] {
        odoo.write("mrp.production", id, json!({"state": state}));
        odoo.note("mrp.production", id, Some(state));
    }
    for state in ["progress", "to_close", "done"] {
        odoo.write("mrp.production", like, json!({"state": state}));
        odoo.note("mrp.production", like, Some(state));
    }
    let began = Instant::now();
    post(address);
    plant.await_event("production.order", "done", |event| is(event, id, "done"));
    plant.await_event("production.order", "done", |event| is(event, like, "done"));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(json!(names(&plant, id)), json!(["created", "released", "started", "done"]));
    assert_eq!(json!(names(&plant, like)), json!(["loaded", "started", "to_close", "done"]));
    let mut state = Value::Null;
    for event in plant.events("production.order").iter().filter(|event| event["data"]["id"] == id) {
        let change = &event["data"]["changed"]["state"];
        assert!(change.is_null() || change["from"] == state, "{event:#}");
        state = event["data"]["state"].clone();
        assert_eq!(event["data"]["reference"], "WH/MO/95001");
    }
}

#[test]
fn a_crash_repeats_no_state_that_was_passed() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    odoo.note("mrp.production", id, Some("confirmed"));
    let (mut plant, address) = start("odoo-passed-crash", &odoo);
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    for state in ["progress", "to_close", "done"] {
        odoo.write("mrp.production", id, json!({"state": state}));
        odoo.note("mrp.production", id, Some(state));
    }
    post(address);
    plant.await_event("production.order", "started", |event| is(event, id, "started"));
    plant.gateway.kill();
    plant.gateway.run();
    plant.await_event("production.order", "done", |event| is(event, id, "done"));
    assert_eq!(json!(names(&plant, id)), json!(["loaded", "started", "to_close", "done"]));
}

#[test]
fn a_deletion_that_is_noted_is_reported_at_once() {
    let odoo = Odoo::start();
    let like = odoo.newest("mrp.production", "state", "confirmed");
    let id = odoo.create("mrp.production", like, json!({"name": "WH/MO/95002", "state": "draft"}));
    let (plant, address) = start("odoo-noted", &odoo);
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    odoo.note("mrp.production", id, None);
    odoo.unlink("mrp.production", id);
    post(address);
    plant.await_event("production.order", "deleted", |event| is(event, id, "deleted"));
}
