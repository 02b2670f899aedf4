//! What no poll can see is found within the time of a reconciliation, and nothing is invented.

use super::fake::Odoo;
use super::{Plant, is};
use serde_json::{Value, json};
use std::time::Duration;

/// A gateway that reconciles every two seconds, with an order that it knows.
fn start(name: &str, odoo: &Odoo) -> (Plant, i64) {
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start(name, odoo, "reconcile = \"2s\"\ndeletions = \"1s\"", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    (plant, id)
}

fn of(plant: &Plant, id: i64) -> Vec<Value> {
    plant.events("production.order").into_iter().filter(|event| event["data"]["id"] == id).collect()
}

#[test]
fn a_backup_that_is_put_back_is_noticed() {
    let odoo = Odoo::start();
    let (plant, id) = start("odoo-backup", &odoo);
    odoo.write_at("mrp.production", id, json!({"priority": "1"}), odoo.now() - 7200);
    plant.await_event("production.order", "known", |event| event["data"]["record"]["priority"] == "1");
    let backup = odoo.back_up();
    odoo.write("mrp.production", id, json!({"state": "done"}));
    plant.await_event("production.order", "done", |event| is(event, id, "done"));
    let newer = odoo.create("mrp.production", id, json!({"name": "WH/MO/90001", "state": "draft"}));
    plant.await_event("production.order", "created", |event| is(event, newer, "created"));
    odoo.restore(backup);
    let back = plant.await_event("production.order", "back", |event| {
        event["data"]["id"] == id && event["data"]["changed"]["state"]["from"] == "done"
    });
    assert_eq!((&back["data"]["state"], &back["data"]["rewound"]), (&json!("confirmed"), &json!(true)));
    plant.await_event("production.order", "deleted", |event| is(event, newer, "deleted"));
    // Odoo gives the number again, to another order.
    let again = odoo.create("mrp.production", id, json!({"name": "WH/MO/90002", "state": "confirmed"}));
    assert_eq!(again, newer);
    plant.await_event("production.order", "another order", |event| {
        event["data"]["id"] == newer && event["data"]["reference"] == "WH/MO/90002"
    });
    assert_eq!(plant.gateway.status()["repeats"]["duplicates"], 0, "nothing is taken for a repeat");
}

#[test]
fn a_state_that_goes_back_and_forth_through_backups_is_reported_each_time() {
    let odoo = Odoo::start();
    let (plant, id) = start("odoo-forth", &odoo);
    let before = odoo.back_up();
    odoo.write_at("mrp.production", id, json!({"state": "done"}), odoo.now() - 60);
    plant.await_event("production.order", "done", |event| is(event, id, "done"));
    let after = odoo.back_up();
    for rows in [before.clone(), after.clone(), before, after] {
        let told = of(&plant, id).len();
        odoo.restore(rows);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while of(&plant, id).len() == told {
            assert!(std::time::Instant::now() < deadline, "event {} is missing", told + 1);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let states: Vec<Value> = of(&plant, id).iter().map(|event| event["data"]["state"].clone()).collect();
    assert_eq!(json!(states), json!(["confirmed", "done", "confirmed", "done", "confirmed", "done"]));
}

#[test]
fn what_sql_and_postgresql_change_without_a_write_date_is_found() {
    let odoo = Odoo::start();
    let (plant, id) = start("odoo-sql", &odoo);
    odoo.write_by_sql("mrp.production", id, json!({"priority": "1"}));
    let changed = plant.await_event("production.order", "changed by SQL", |event| {
        event["data"]["id"] == id && event["data"]["record"]["priority"] == "1"
    });
    assert_eq!(changed["data"]["changed"], json!({"priority": {"from": "0", "to": "1"}}));
    let line = odoo.newest("mrp.bom.line", "product_qty", 1.0);
    odoo.write("mrp.bom.line", line, json!({"operation_id": [4, "Cut blank"]}));
    plant.await_event("bill.of.materials.line", "bound", |event| event["data"]["record"]["operation_id"] == 4);
    odoo.write_by_sql("mrp.bom.line", line, json!({"operation_id": false}));
    let emptied = plant.await_event("bill.of.materials.line", "emptied", |event| {
        event["data"]["changed"]["operation_id"]["from"] == 4
    });
    assert!(emptied["data"]["record"]["operation_id"].is_null());
}

#[test]
fn a_hidden_record_is_not_deleted_and_is_reported_when_it_is_visible_again() {
    let odoo = Odoo::start();
    let (plant, id) = start("odoo-hidden", &odoo);
    for round in 1..=2 {
        odoo.hide_record("mrp.production", id, true);
        let start = std::time::Instant::now();
        let hidden = || of(&plant, id).iter().filter(|event| event["data"]["event"] == "hidden").count();
        while hidden() < round {
            assert!(start.elapsed() < Duration::from_secs(20), "not reported");
            std::thread::sleep(Duration::from_millis(20));
        }
        odoo.hide_record("mrp.production", id, false);
        let visible = || of(&plant, id).iter().filter(|event| event["data"]["event"] == "visible").count();
        while visible() < round {
            assert!(start.elapsed() < Duration::from_secs(20), "not reported");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(!of(&plant, id).iter().any(|event| is(event, id, "deleted")));
    odoo.hide_record("mrp.production", id, true);
    odoo.unlink("mrp.production", id);
    plant.await_event("production.order", "deleted", |event| is(event, id, "deleted"));
}

#[test]
fn a_record_that_moves_between_contracts_leaves_one_and_enters_the_other() {
    let odoo = Odoo::start();
    let move_id = odoo.newest("stock.move", "state", "done");
    odoo.write("stock.move", move_id, json!({"raw_material_production_id": [20, "WH/MO/00020"], "state": "assigned"}));
    let plant = Plant::start("odoo-moved", &odoo, "reconcile = \"2s\"", "");
    plant.await_event("component", "the first load", |event| is(event, move_id, "loaded"));
    plant.await_problem("");
    odoo.write("stock.move", move_id, json!({"raw_material_production_id": false}));
    let left = plant.await_event("component", "left", |event| is(event, move_id, "hidden"));
    assert_eq!(left["data"]["reason"], "contract");
    plant.await_event("stock.move", "entered", |event| event["data"]["id"] == move_id);
    odoo.write("stock.move", move_id, json!({"raw_material_production_id": [20, "WH/MO/00020"]}));
    plant.await_event("component", "back", |event| is(event, move_id, "visible"));
}
