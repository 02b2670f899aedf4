//! What the gateway has learnt about an Odoo is learnt again: fields, rights, companies, languages, versions.

use super::fake::Odoo;
use super::{Plant, is};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn a_field_that_vanishes_and_comes_back_is_read_again_by_itself() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start("odoo-vanish", &odoo, "", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    odoo.remove_field("mrp.production", "priority", true);
    odoo.write("mrp.production", id, json!({"state": "progress"}));
    let started = plant.await_event("production.order", "started", |event| is(event, id, "started"));
    assert_eq!(started["data"]["record"].get("priority"), None);
    plant.await_problem("");
    // Somebody changes it while the gateway cannot see it, and nothing else afterwards.
    odoo.write_at("mrp.production", id, json!({"priority": "1"}), odoo.now() - 3600);
    odoo.remove_field("mrp.production", "priority", false);
    let start = Instant::now();
    let changed = loop {
        let found = plant
            .events("production.order")
            .into_iter()
            .find(|event| event["data"]["id"] == id && event["data"]["record"]["priority"] == "1");
        if let Some(found) = found {
            break found;
        }
        assert!(start.elapsed() < Duration::from_secs(240), "it is not read again within minutes");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(changed["data"]["changed"]["priority"], json!({"from": "0", "to": "1"}));
}

#[test]
fn a_key_that_ends_soon_is_named_with_its_date() {
    let odoo = Odoo::start();
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(72);
    odoo.set_key_expiry(&soon.to_string()[..19].replace('T', " "));
    let plant = Plant::start("odoo-expiry", &odoo, "", "");
    let day = &soon.to_string()[..10];
    let note = format!("the API key expires on {day}");
    plant.gateway.await_status("a note", Duration::from_secs(20), |status| status["notes"].to_string().contains(&note));
    let output = plant.gateway.command(&["odoo", "check", "CONFIG"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains(&format!("the key expires on {day}")), "{said}");
}

#[test]
fn a_load_that_is_asked_for_reports_each_record_once_more() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let product = odoo.newest("product.product", "active", true);
    let plant = Plant::start("odoo-again", &odoo, "", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_event("product", "the first load", |event| is(event, product, "loaded"));
    plant.await_problem("");
    let loads = |stream: &str, id: i64| -> Vec<Value> {
        plant.events(stream).into_iter().filter(|event| is(event, id, "loaded")).collect()
    };
    // What no poll sees is found by it.
    odoo.write_by_sql("mrp.production", id, json!({"priority": "1"}));
    let output = plant.gateway.command(&["odoo", "load", "--again", "--model", "mrp.production", "CONFIG"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("production.order") && !said.contains("product.product"),
        "{said}"
    );
    let start = Instant::now();
    while loads("production.order", id).len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(20), "not loaded again");
        std::thread::sleep(Duration::from_millis(20));
    }
    let again = &loads("production.order", id)[1];
    assert_eq!(again["data"]["changed"]["priority"], json!({"from": "0", "to": "1"}));
    assert_eq!(loads("product", product).len(), 1, "the others are left as they are");
    let status = plant.gateway.status();
    assert_eq!(status["repeats"]["duplicates"], 0, "central gets them: {status:#}");
    let output = plant.gateway.command(&["odoo", "load", "--again", "--model", "no.model", "CONFIG"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("there are") && said.contains("mrp.production"), "{said}");
}

#[test]
fn a_company_that_is_withdrawn_and_given_back_is_neither_deleted_nor_forgotten() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    odoo.see_companies(&[1, 2]);
    let of_two = json!({"company_id": [2, "Company B"], "state": "confirmed"});
    let ids: Vec<i64> = (0..3).map(|_| odoo.create("mrp.production", id, of_two.clone())).collect();
    let plant = Plant::start("odoo-withdraw", &odoo, "deletions = \"1s\"\nreconcile = \"5s\"", "");
    for id in &ids {
        plant.await_event("production.order", "the first load", |event| is(event, *id, "loaded"));
    }
    plant.await_problem("");
    odoo.see_companies(&[1]);
    for id in &ids {
        let hidden = plant.await_event("production.order", "hidden", |event| is(event, *id, "hidden"));
        assert!(["company", "access"].contains(&hidden["data"]["reason"].as_str().expect("a reason")), "{hidden:#}");
    }
    // One changes meanwhile, one is deleted, one stays as it was.
    odoo.write_at("mrp.production", ids[1], json!({"state": "progress"}), odoo.now() - 3600);
    odoo.unlink("mrp.production", ids[2]);
    odoo.see_companies(&[1, 2]);
    plant.await_event("production.order", "visible again", |event| is(event, ids[0], "visible"));
    let changed = plant.await_event("production.order", "visible again", |event| is(event, ids[1], "visible"));
    assert_eq!(changed["data"]["changed"]["state"], json!({"from": "confirmed", "to": "progress"}));
    plant.await_event("production.order", "deleted", |event| is(event, ids[2], "deleted"));
    let deleted = |id: i64| plant.events("production.order").iter().any(|event| is(event, id, "deleted"));
    assert!(!deleted(ids[0]) && !deleted(ids[1]));
    assert_eq!(plant.gateway.status()["repeats"]["duplicates"], 0);
}

#[test]
fn a_company_that_is_given_later_is_reported() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    odoo.see_companies(&[1]);
    let other = odoo.create("mrp.production", id, json!({"company_id": [2, "Company B"], "state": "confirmed"}));
    odoo.write_at("mrp.production", other, json!({}), odoo.now() - 86_400);
    let plant = Plant::start("odoo-given", &odoo, "reconcile = \"3s\"", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    odoo.see_companies(&[1, 2]);
    plant.await_event("production.order", "visible", |event| event["data"]["id"] == other);
}
