//! What takes long: first loads, the daily sweep, and records that are not for this gateway.

use super::fake::{Fault, Odoo};
use super::{Plant, is};
use crate::common::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn a_first_load_shows_how_far_it_is_and_goes_on_after_a_crash() {
    let odoo = Odoo::start();
    let like = odoo.newest("mrp.production", "state", "confirmed");
    let ids: BTreeSet<i64> = (0..900)
        .map(|number| {
            odoo.create("mrp.production", like, json!({"name": format!("WH/MO/6{number:04}"), "state": "draft"}))
        })
        .collect();
    odoo.fault(Fault::Slow(Duration::from_millis(400)));
    let mut plant = Plant::start("odoo-load", &odoo, "", "");
    let noted = |plant: &Plant| {
        let start = Instant::now();
        loop {
            let notes = plant.gateway.status()["notes"].to_string();
            if let Some((_, rest)) = notes.split_once("first load of production.order: ") {
                let (loaded, rest) = rest.split_once(" of ").expect("both numbers");
                let total: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break (loaded.parse::<usize>().expect("a number"), total.parse::<usize>().expect("a number"));
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no progress: {notes}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let (loaded, total) = noted(&plant);
    assert!(loaded < total && loaded % 200 == 0 && total > 900, "{loaded} of {total}");
    plant.gateway.kill();
    plant.gateway.run();
    odoo.fault(Fault::None);
    plant.await_problem("");
    let last = ids.last().copied().expect("ids");
    plant.await_event("production.order", "the last", |event| event["data"]["id"] == last);
    let told: Vec<Value> = plant.events("production.order");
    let loads: Vec<i64> = told
        .iter()
        .filter(|event| event["data"]["event"] == "loaded")
        .filter_map(|event| event["data"]["id"].as_i64())
        .collect();
    let once: BTreeSet<i64> = loads.iter().copied().collect();
    assert_eq!(loads.len(), once.len(), "each once");
    assert!(ids.is_subset(&once), "{} of {} are told", ids.intersection(&once).count(), ids.len());
}

#[test]
fn past_the_bound_of_its_memory_records_are_told_without_what_they_were() {
    let odoo = Odoo::start();
    let like = odoo.newest("mrp.production", "state", "confirmed");
    let mut random = Random::seeded();
    // Texts that do not compress.
    let mut text = || (0..200).map(|_| format!("{:08x}", random.below(1 << 32))).collect::<String>();
    let ids: Vec<i64> = (0..1400)
        .map(|number| {
            let values = json!({"name": format!("WH/MO/7{number:04}"), "state": "draft", "origin": text()});
            odoo.create("mrp.production", like, values)
        })
        .collect();
    let plant = Plant::start("odoo-full", &odoo, "records_memory = \"1MiB\"", "");
    let (first, last) = (ids[0], ids[1399]);
    plant.await_event("production.order", "the last", |event| is(event, last, "loaded"));
    let notes = || plant.gateway.status()["notes"].to_string();
    let start = Instant::now();
    while !notes().contains("production.order: records_memory is used up") {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", notes());
        std::thread::sleep(Duration::from_millis(50));
    }
    odoo.write("mrp.production", first, json!({"state": "confirmed"}));
    odoo.write("mrp.production", last, json!({"state": "confirmed"}));
    plant.await_event("production.order", "one that is known", |event| is(event, first, "released"));
    plant.await_event("production.order", "one that is not", |event| {
        event["data"]["id"] == last && event["data"]["state"] == "confirmed"
    });
    let told: Vec<Value> = plant.events("production.order");
    let of_last = told.iter().filter(|event| event["data"]["id"] == last && event["data"]["state"] == "confirmed");
    let ids: BTreeSet<&str> = of_last.filter_map(|event| event["id"].as_str()).collect();
    assert_eq!(ids.len(), 1, "however often it is read, it is one event in effect");
}

#[test]
fn the_sweep_finds_what_was_committed_an_hour_late() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start("odoo-sweep", &odoo, "sweep = \"1h\"", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    odoo.advance(1800);
    std::thread::sleep(Duration::from_secs(2));
    // Its transaction began long before every window.
    odoo.write_at("mrp.production", id, json!({"state": "cancel"}), odoo.now() - 1200);
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        !plant.events("production.order").iter().any(|event| is(event, id, "cancelled")),
        "no window reaches so far"
    );
    odoo.advance(1900);
    plant.await_event("production.order", "cancelled", |event| is(event, id, "cancelled"));
}

#[test]
fn records_of_another_company_are_not_for_a_contract_that_names_one() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let company = |number: i64| json!([number, "A company"]);
    odoo.write("mrp.production", id, json!({"company_id": company(1)}));
    let mut plant = Plant::prepare("odoo-company", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/production-order.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, text.replacen("[odoo]", "[odoo]\ncompany = 1", 1)).expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    let made = |number: i64, name: &str| {
        odoo.create("mrp.production", id, json!({"name": name, "company_id": company(number)}))
    };
    let (theirs, ours) = (made(2, "WH/MO/50001"), made(1, "WH/MO/50002"));
    plant.await_event("production.order", "created", |event| is(event, ours, "created"));
    assert!(!plant.events("production.order").iter().any(|event| event["data"]["id"] == theirs));
}

#[test]
fn two_odoos_are_read_side_by_side_and_one_that_is_down_harms_not_the_other() {
    let (odoo, other) = (Odoo::start(), Odoo::start());
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let late = json!({"state": "draft", "date_start": "2026-01-05 08:00:00", "date_deadline": false});
    odoo.write("mrp.production", id, late.clone());
    other.write("mrp.production", id, late);
    let second = format!(
        "[[source.odoo]]\nname = \"second\"\nurl = \"{}\"\ndatabase = \"plant\"\nkey_file = \"odoo.key\"\n",
        other.url()
    );
    let mut plant = Plant::prepare("odoo-two", &odoo.url(), "500ms", "", &format!("{second}[watch]\nevery = \"1s\"\n"));
    plant.gateway.run();
    let subject = format!("mrp.production/{id}");
    let opened = |source: &str| {
        plant.await_event("exception.opened", source, |event| {
            event["data"]["subject"] == subject.as_str()
                && event["data"]["source"] == source
                && event["data"]["kind"] == "order-not-released"
        })
    };
    let (ours, theirs) = (opened("erp"), opened("second"));
    assert_ne!(ours["data"]["id"], theirs["data"]["id"], "the same number of two databases is two records");
    other.fault(Fault::Page(502));
    odoo.write("mrp.production", id, json!({"state": "confirmed"}));
    plant.await_event("production.order", "released", |event| is(event, id, "released"));
    let closed = plant.await_event("exception.closed", "closed", |event| event["data"]["id"] == ours["data"]["id"]);
    assert_eq!(closed["data"]["source"], "erp");
    assert!(!plant.events("exception.closed").iter().any(|event| event["data"]["id"] == theirs["data"]["id"]));
    let is_degraded = |status: &Value| {
        let sources = status["sources"].as_array().cloned().unwrap_or_default();
        let problem = |name: &str| {
            let source = sources.iter().find(|source| source["name"] == name).expect("a source");
            source["problem"].as_str().unwrap_or_default().to_owned()
        };
        problem("erp").is_empty() && problem("second").starts_with("degraded: ") && problem("second").contains("502")
    };
    plant.gateway.await_status("one is degraded", Duration::from_secs(20), is_degraded);
}

#[test]
fn a_crash_repeats_nothing_of_a_contract_with_a_device_of_its_own() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let mut plant = Plant::prepare("odoo-device", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/production-order.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, text.replacen("match =", "device = \"hall 3\"\nmatch =", 1)).expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    // The event of the second change depends on the first one.
    for state in ["progress", "to_close"] {
        odoo.write("mrp.production", id, json!({"state": state}));
        plant.await_event("production.order", state, |event| {
            event["data"]["id"] == id && event["data"]["state"] == state
        });
    }
    plant.gateway.kill();
    plant.gateway.run();
    plant.await_problem("");
    odoo.write("mrp.production", id, json!({"state": "done"}));
    plant.await_event("production.order", "done", |event| is(event, id, "done"));
    let told: Vec<_> = plant.events("production.order").into_iter().filter(|event| event["data"]["id"] == id).collect();
    let states: Vec<&Value> = told.iter().map(|event| &event["data"]["state"]).collect();
    assert_eq!(json!(states), json!(["confirmed", "progress", "to_close", "done"]));
    assert_eq!(told[0]["source"], "/plant/gw/erp/hall%203");
}
