//! One bad thing costs itself: a value, a record, a right, an answer. All else is reported, and the address is never blamed.

use super::fake::{Bad, Fault, Odoo};
use super::{Plant, is};
use crate::common::random::Random;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The notes of the status as one text, once they have a part.
fn await_note(plant: &Plant, part: &str) -> String {
    let start = Instant::now();
    loop {
        let notes = plant.gateway.status()["notes"].to_string();
        if notes.contains(part) {
            return notes;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "\"{part}\" is not in: {notes}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Values that Python writes, or fails to read, by type of field; what events say of each.
const SPOILED: [(&str, Bad, &str); 7] = [
    ("product_qty", Bad::Raw("NaN"), "NaN"),
    ("qty_producing", Bad::Raw("-Infinity"), "-Infinity"),
    ("product_qty", Bad::Raw("1e999"), "1e999"),
    ("date_start", Bad::Text("1-01-01 00:00:00"), "1-01-01"),
    ("date_deadline", Bad::Text("2026-02-30 10:00:00"), "2026-02-30"),
    ("date_start", Bad::Unreadable("year 20260 is out of range"), "year 20260 is out of range"),
    ("name", Bad::Unreadable("'utf-8' codec can't decode byte 0xff"), "codec"),
];

#[test]
fn one_impossible_value_costs_only_itself_whatever_it_is() {
    let mut random = Random::seeded();
    let odoo = Odoo::start();
    let like = odoo.newest("mrp.production", "state", "confirmed");
    let ids: Vec<i64> = (0..230)
        .map(|number| {
            odoo.create("mrp.production", like, json!({"name": format!("WH/MO/5{number:04}"), "state": "draft"}))
        })
        .collect();
    let mut spoiled: Vec<(i64, &str, &str)> = Vec::new();
    for (field, bad, words) in SPOILED {
        let id = ids[random.below(ids.len() as u64) as usize];
        if spoiled.iter().any(|(other, ..)| *other == id) {
            continue;
        }
        odoo.spoil("mrp.production", id, field, Some(bad));
        spoiled.push((id, field, words));
    }
    let plant = Plant::start("odoo-spoiled", &odoo, "", "");
    plant.await_event("production.order", "the last", |event| is(event, ids[229], "loaded"));
    plant.await_problem("");
    let loaded = plant.events("production.order");
    for id in &ids {
        let of_id: Vec<&Value> = loaded.iter().filter(|event| event["data"]["id"] == *id).collect();
        assert_eq!(of_id.len(), 1, "order {id}");
        let data = &of_id[0]["data"];
        match spoiled.iter().find(|(other, ..)| other == id) {
            Some((_, field, words)) => {
                assert!(data["record"][field].is_null(), "{data:#}");
                assert!(data["invalid"][field].as_str().is_some_and(|what| what.contains(words)), "{words}: {data:#}");
                assert_eq!(data["invalid"].as_object().map(serde_json::Map::len), Some(1), "{data:#}");
                assert_eq!(data["record"]["state"], "draft", "the other fields are there");
            }
            None => assert!(data.get("invalid").is_none() && !data["record"]["product_qty"].is_null(), "{data:#}"),
        }
    }
    // What is corrected in Odoo is reported, and what changes in between as well.
    let (id, field, _) = spoiled[0];
    odoo.write("mrp.production", id, json!({"state": "confirmed"}));
    plant.await_event("production.order", "released", |event| is(event, id, "released"));
    odoo.spoil("mrp.production", id, field, None);
    odoo.write("mrp.production", id, json!({"priority": "1"}));
    plant.await_event("production.order", "the corrected value", |event| {
        event["data"]["id"] == id && !event["data"]["record"][field].is_null()
    });
    assert_eq!(plant.gateway.status()["dead"]["total"], 0);
}

#[test]
fn a_record_that_odoo_cannot_read_is_named_with_what_to_do() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    odoo.spoil("mrp.production", id, "date_start", Some(Bad::Unreadable("year 20260 is out of range")));
    let plant = Plant::start("odoo-named", &odoo, "", "");
    let note = await_note(&plant, "year 20260 is out of range");
    for word in ["production.order", &format!("mrp.production {id}"), "date_start", "null", "correct it in Odoo"] {
        assert!(note.contains(word), "\"{word}\" is not in {note}");
    }
    plant.await_problem("");
}

#[test]
fn a_contract_may_make_a_dead_letter_of_an_impossible_value() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let mut plant = Plant::prepare("odoo-strict", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/production-order.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, text.replacen("[odoo]", "[odoo]\non_invalid = \"dead-letter\"", 1)).expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    odoo.spoil("mrp.production", id, "product_qty", Some(Bad::Raw("NaN")));
    odoo.write("mrp.production", id, json!({"state": "progress"}));
    plant.gateway.await_status("a dead letter", Duration::from_secs(20), |status| status["dead"]["total"] == 1);
    let letters = plant.gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let letters: Value = serde_json::from_slice(&letters.stdout).expect("JSON");
    let reason = letters[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("record.product_qty") && reason.contains("NaN"), "{letters:#}");
    odoo.spoil("mrp.production", id, "product_qty", None);
    odoo.write("mrp.production", id, json!({"state": "done"}));
    plant.await_event("production.order", "done", |event| is(event, id, "done"));
}

#[test]
fn one_missing_right_costs_one_field() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    odoo.deny_field("mrp.production", "bom_id", true);
    let plant = Plant::start("odoo-right", &odoo, "", "");
    let loaded = plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    assert_eq!(loaded["data"]["record"].get("bom_id"), None, "what is not known is not made up");
    assert!(!loaded["data"]["record"]["product_id"].is_null());
    let note = await_note(&plant, "bom_id");
    assert!(note.contains("production.order") && note.contains("right"), "{note}");
    plant.await_problem("");
    odoo.write("mrp.production", id, json!({"state": "progress"}));
    plant.await_event("production.order", "started", |event| is(event, id, "started"));
}

#[test]
fn a_right_that_is_withdrawn_while_the_gateway_runs_costs_one_field() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start("odoo-withdrawn", &odoo, "", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    odoo.deny_field("mrp.production", "bom_id", true);
    odoo.write("mrp.production", id, json!({"state": "progress"}));
    let started = plant.await_event("production.order", "started", |event| is(event, id, "started"));
    assert_eq!(started["data"]["record"].get("bom_id"), None);
    assert_eq!(started["data"]["changed"].as_object().map(serde_json::Map::len), Some(1), "{started:#}");
}

#[test]
fn an_answer_that_cannot_be_read_blames_nobodys_address_and_stops_no_other_model() {
    let odoo = Odoo::start();
    let id = odoo.newest("product.product", "active", true);
    odoo.fault(Fault::Garbled("mrp.production"));
    let plant = Plant::start("odoo-garbled", &odoo, "", "");
    let problem = plant.await_problem("cannot be read");
    assert!(problem.contains("production.order") && problem.contains("mrp.production"), "{problem}");
    assert!(!problem.contains("url"), "{problem}");
    plant.await_event("product", "the other models", |event| is(event, id, "loaded"));
    odoo.fault(Fault::None);
    plant.await_problem("");
}

#[test]
fn a_server_that_asks_for_a_pause_is_left_alone_for_so_long() {
    for (name, status, after) in [("odoo-429", 429, "4"), ("odoo-503", 503, "5")] {
        let odoo = Odoo::start();
        let plant = Plant::start(name, &odoo, "", "");
        plant.await_problem("");
        odoo.fault(Fault::RetryAfter(status, after.to_owned()));
        odoo.take_calls();
        let start = Instant::now();
        while odoo.take_calls().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(10), "no call");
            std::thread::sleep(Duration::from_millis(5));
        }
        let asked = Instant::now();
        let problem = plant.await_problem("Retry-After");
        assert!(problem.contains("before 20"), "{problem}");
        odoo.fault(Fault::None);
        // Those that were in progress when the server asked for the pause.
        odoo.take_calls();
        let start = Instant::now();
        while odoo.take_calls().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(20), "it never asks again");
            std::thread::sleep(Duration::from_millis(5));
        }
        let paused = asked.elapsed();
        let wanted = Duration::from_secs(after.parse().expect("seconds"));
        // At most two calls are in progress when the answer comes.
        assert!(paused + Duration::from_millis(500) > wanted, "{status}: asked again after {paused:?}");
        plant.await_problem("");
    }
}

#[test]
fn a_byte_order_mark_in_the_key_file_is_no_part_of_the_key() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let mut plant = Plant::prepare("odoo-bom", &odoo.url(), "500ms", "", "");
    let key = format!("\u{feff}{}\r\n", super::fake::KEY);
    std::fs::write(plant.gateway.folder.join("odoo.key"), key).expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
}
