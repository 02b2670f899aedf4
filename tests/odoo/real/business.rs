//! The events of the business, each made to happen in the real Odoo by what people do there.

use super::super::Plant;
use super::{Hints, Real, hook};
use crate::common::free_address;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The name of a customer and a price: neither is ever told.
const PERSON: &str = "Ada Quiet";
const PRICE: &str = "7317.19";

struct Story<'a> {
    real: &'a Real,
    plant: &'a Plant,
}

impl Story<'_> {
    /// Waits for a change of a record that has this name.
    fn told(&self, stream: &str, id: i64, name: &str) -> Value {
        self.told_where(stream, name, |data| data["id"] == id)
    }

    fn told_where(&self, stream: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let event = self.plant.await_event(stream, name, |event| {
            event["data"]["events"].as_array().is_some_and(|names| names.contains(&json!(name)))
                && wanted(&event["data"])
        });
        event["data"].clone()
    }

    /// The same for a change of state, with what it was before.
    fn moved(&self, stream: &str, id: i64, name: &str, from: &str, to: &str) {
        let data = self.told_where(stream, name, |data| {
            let changed = &data["changed"];
            let state = changed.get("state").or(changed.get("working_state"));
            data["id"] == id && state.is_some_and(|state| state["from"] == from && state["to"] == to)
        });
        assert_eq!((&data["state"], data.get("unknown_state")), (&json!(to), None));
        assert!(!data["reference"].is_null(), "people know it by a name: {data:#}");
    }

    fn ids(&self, model: &str, domain: &Value) -> Vec<i64> {
        let found = self.real.call(&format!("{model}/search"), &json!({"domain": domain, "order": "id"}));
        found.as_array().expect("ids").iter().filter_map(Value::as_i64).collect()
    }

    /// A component of an order.
    fn component(&self, order: i64, name: &str) -> Value {
        self.told_where("component", name, |data| data["record"]["raw_material_production_id"]["id"] == order)
    }
}

#[test]
fn every_event_of_manufacturing_is_told_by_its_name() {
    let Some(real) = Real::start() else { return };
    ["C-BALL", "C-SEAL", "C-BOLT"].into_iter().for_each(|code| real.fill_stock(code));
    // A run that was broken off left it blocked.
    let center = real.find("mrp.workcenter", &json!([["code", "=", "TST"]]));
    let blocked = json!({"domain": [["id", "=", center], ["working_state", "=", "blocked"]]});
    if real.call("mrp.workcenter/search_count", &blocked) != 0 {
        real.act("mrp.workcenter", "unblock", center);
    }
    let mut plant = real.plant("odoo-business", "5s", &format!("deletions = \"5s\"\n{}", hook(free_address())));
    plant.gateway.run();
    plant.await_problem("");
    let _hints = Hints::install(&real, &plant);
    let story = Story { real: &real, plant: &plant };
    orders(&story);
    rest(&story);
}

fn orders(story: &Story<'_>) {
    let real = story.real;
    let at = |hours: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        at.to_string()[..19].replace('T', " ")
    };
    let order = real.order("P-VALVE", &json!({"origin": "STORY", "date_start": at(24), "date_deadline": at(90)}));
    story.told("production.order", order, "created");
    real.write("mrp.production", order, &json!({"product_qty": 5}));
    let changed = story.told("production.order", order, "quantity_changed");
    assert_eq!(changed["changed"]["product_qty"], json!({"from": 4.0, "to": 5.0}));
    real.write("mrp.production", order, &json!({"date_start": at(48)}));
    story.told("production.order", order, "rescheduled");
    real.write("mrp.production", order, &json!({"date_deadline": at(80)}));
    story.told("production.order", order, "due_date_changed");
    real.act("mrp.production", "action_confirm", order);
    story.moved("production.order", order, "released", "draft", "confirmed");
    story.component(order, "reserved");
    let works = story.ids("mrp.workorder", &json!([["production_id", "=", order]]));
    let (first, second) = (works[0], works[1]);
    let ready = story.told("work.order", first, "ready");
    assert_eq!(ready["changed"]["production_availability"], json!({"from": null, "to": "assigned"}), "{ready:#}");
    real.act("mrp.workorder", "button_start", first);
    story.moved("work.order", first, "started", "ready", "progress");
    story.moved("production.order", order, "started", "confirmed", "progress");
    let timed = |name: &str| story.told_where("work.center.time", name, |data| data["record"]["workorder_id"] == first);
    timed("began");
    // A pause shows once it has lasted: Odoo counts in hundredths of minutes.
    std::thread::sleep(Duration::from_millis(1500));
    real.act("mrp.workorder", "button_pending", first);
    story.told("work.order", first, "paused");
    timed("ended");
    real.write("mrp.workorder", first, &json!({"duration_expected": 0.04}));
    real.act("mrp.workorder", "button_start", first);
    std::thread::sleep(Duration::from_millis(2500));
    real.act("mrp.workorder", "button_pending", first);
    story.told("work.order", first, "overrun");
    real.act("mrp.workorder", "button_finish", first);
    story.moved("work.order", first, "finished", "progress", "done");
    story.moved("work.order", second, "ready", "blocked", "ready");
    real.write("mrp.production", order, &json!({"qty_producing": 2}));
    real.write("mrp.production", order, &json!({"qty_producing": 5}));
    story.told("production.order", order, "progressed");
    real.act("mrp.workorder", "button_finish", second);
    story.moved("production.order", order, "to_close", "progress", "to_close");
    let bolt = real.find("product.product", &json!([["default_code", "=", "C-BOLT"]]));
    let scrap = real.create("stock.scrap", &json!({"production_id": order, "product_id": bolt, "scrap_qty": 1}));
    real.act("stock.scrap", "action_validate", scrap);
    let scrapped = story.told("scrap", scrap, "scrapped");
    assert_eq!(scrapped["record"]["production_id"]["id"], order);
    real.act("mrp.production", "button_mark_done", order);
    story.moved("production.order", order, "done", "to_close", "done");
    story.component(order, "consumed");
    story.told_where("stock.move", "produced", |data| data["record"]["production_id"] == order);
    let valve = real.find("product.product", &json!([["default_code", "=", "P-VALVE"]]));
    let unbuild = real.create("mrp.unbuild", &json!({"product_id": valve, "product_qty": 1, "mo_id": order}));
    real.act("mrp.unbuild", "action_validate", unbuild);
    story.told("unbuild", unbuild, "unbuilt");
    // Cases that nobody has.
    let short = real.order("P-SKID", &json!({"origin": "STORY"}));
    real.act("mrp.production", "action_confirm", short);
    story.component(short, "short");
    real.act("mrp.production", "action_cancel", short);
    story.moved("production.order", short, "cancelled", "confirmed", "cancel");
    real.act("mrp.production", "unlink", short);
    story.told("production.order", short, "deleted");
}

fn rest(story: &Story<'_>) {
    let real = story.real;
    let center = real.find("mrp.workcenter", &json!([["code", "=", "TST"]]));
    let loss = real.find("mrp.workcenter.productivity.loss", &json!([["loss_type", "=", "availability"]]));
    let stop = real.create("mrp.workcenter.productivity", &json!({"workcenter_id": center, "loss_id": loss}));
    real.act("mrp.workcenter.productivity", "button_block", stop);
    story.moved("work.center", center, "blocked", "normal", "blocked");
    let began = story.told("work.center.time", stop, "began");
    assert_eq!((&began["record"]["loss_type"], began["record"].get("user_id")), (&json!("availability"), None));
    let blocked = format!("mrp.workcenter/{center}");
    let opened =
        story.plant.await_event("exception.opened", "blocked", |event| event["data"]["subject"] == blocked.as_str());
    assert!(opened["data"]["reason"].as_str().is_some_and(|reason| reason.contains("TST is blocked: ")), "{opened:#}");
    real.act("mrp.workcenter", "unblock", center);
    story.moved("work.center", center, "unblocked", "blocked", "normal");
    story.told("work.center.time", stop, "ended");
    story.plant.await_event("exception.closed", "unblocked", |event| event["data"]["subject"] == blocked.as_str());
    // Master data changes slowly: nothing of it is lost either.
    let line = real.find("mrp.bom.line", &json!([["bom_id.code", "=", "P-SKID/A"]]));
    for quantity in [2, 1] {
        real.write("mrp.bom.line", line, &json!({"product_qty": quantity}));
        story.told_where("bill.of.materials.line", "quantity_changed", |data| {
            data["id"] == line && data["record"]["product_qty"].as_f64() == Some(f64::from(quantity))
        });
    }
    let product = real.create("product.product", &json!({"name": "A spare", "default_code": format!("S-{line}")}));
    story.told("product", product, "created");
    real.write("product.product", product, &json!({"default_code": "S-NEW"}));
    story.told("product", product, "code_changed");
    real.write("product.product", product, &json!({"active": false}));
    story.told("product", product, "archived");
    real.write("product.product", product, &json!({"active": true}));
    story.told("product", product, "restored");
    real.act("product.product", "unlink", product);
    story.told("product", product, "deleted");
}

/// Read access of the gateway's group to a model, until the value is dropped.
struct Granted<'a>(&'a Real, i64);

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        self.0.act("ir.model.access", "unlink", self.1);
    }
}

fn grant<'a>(real: &'a Real, model: &str) -> Granted<'a> {
    let group = real.find("res.groups", &json!([["name", "=", "Gateway: read production"]]));
    let number = real.find("ir.model", &json!([["model", "=", model]]));
    let right = json!({"name": "tests", "model_id": number, "group_id": group, "perm_read": true,
        "perm_write": false, "perm_create": false, "perm_unlink": false});
    let granted = Granted(real, real.create("ir.model.access", &right));
    // A call of the account that comes while Odoo commits leaves the old rights in its cache; a write empties that.
    let start = Instant::now();
    while real.ask(&real.viewer_key, &format!("{model}/search_count"), &json!({"domain": []})).get("debug").is_some() {
        assert!(start.elapsed() < Duration::from_secs(20), "the right is not granted");
        real.write("ir.model.access", granted.1, &json!({"name": "tests"}));
    }
    granted
}

#[test]
fn what_surrounds_production_is_told_once_it_is_switched_on_and_without_persons_and_prices() {
    let Some(real) = Real::start() else { return };
    let mut plant = real.plant("odoo-around", "1s", "");
    let folder = plant.gateway.folder.join("contracts");
    super::super::contracts(&folder, "odoo-around", "interval = \"1s\"");
    for entry in std::fs::read_dir(folder.join("odoo-around")).expect("contracts").flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        // Partners and prices are for those who ask for them.
        if !text.contains("classification = ") {
            std::fs::write(entry.path(), text.replace("enabled = false", "enabled = true")).expect("written");
        }
    }
    plant.gateway.run();
    // Invoices take a right that manufacturing does not.
    let problem = plant.await_problem("invoice cannot be read");
    assert!(problem.contains("lacks the right") && problem.contains("since 20"), "{problem}");
    let _right = grant(&real, "account.move");
    plant.await_problem("");
    let story = Story { real: &real, plant: &plant };
    let partner = real.create("res.partner", &json!({"name": PERSON}));
    let valve = real.find("product.product", &json!([["default_code", "=", "P-VALVE"]]));
    let price: Value = serde_json::from_str(PRICE).expect("a number");
    sales(&story, partner, valve, &price);
    purchases(&story, partner, &price);
    let item = json!({"name": "x", "quantity": 1, "price_unit": price});
    let invoice = json!({"move_type": "out_invoice", "partner_id": partner, "invoice_line_ids": [[0, 0, item]]});
    let invoice = real.create("account.move", &invoice);
    real.act("account.move", "action_post", invoice);
    story.told("invoice", invoice, "posted");
    let arrived = plant.collector.arrived();
    for event in &arrived {
        let text = event.event()["data"].to_string();
        assert!(!text.contains(PERSON) && !text.contains(PRICE), "{text}");
    }
}

fn sales(story: &Story<'_>, partner: i64, valve: i64, price: &Value) {
    let real = story.real;
    let line = json!({"product_id": valve, "product_uom_qty": 2, "price_unit": price});
    let order = real.create("sale.order", &json!({"partner_id": partner, "order_line": [[0, 0, line]]}));
    story.told("sales.order", order, "created");
    real.act("sale.order", "action_confirm", order);
    story.moved("sales.order", order, "confirmed", "draft", "sale");
    let line = real.find("sale.order.line", &json!([["order_id", "=", order]]));
    story.told("sales.order.line", line, "confirmed");
    real.write("sale.order", order, &json!({"commitment_date": "2030-01-07 08:00:00"}));
    let promised = story.told("sales.order", order, "promised_date_changed");
    assert_eq!(promised["changed"]["commitment_date"], json!({"from": null, "to": "2030-01-07T08:00:00Z"}));
    real.write("sale.order.line", line, &json!({"product_uom_qty": 3}));
    story.told("sales.order.line", line, "quantity_changed");
    let shipment = real.find("stock.picking", &json!([["sale_id", "=", order]]));
    let start = Instant::now();
    real.act("stock.picking", "action_assign", shipment);
    real.act("stock.picking", "button_validate", shipment);
    story.told("stock.transfer", shipment, "done");
    story.told("sales.order", order, "delivery_changed");
    story.told("sales.order.line", line, "delivered");
    println!("a shipment is told by transfer, order and line after {:?}", start.elapsed());
}

fn purchases(story: &Story<'_>, partner: i64, price: &Value) {
    let real = story.real;
    let ball = real.find("product.product", &json!([["default_code", "=", "C-BALL"]]));
    let line = json!({"product_id": ball, "product_qty": 10, "price_unit": price});
    let order = real.create("purchase.order", &json!({"partner_id": partner, "order_line": [[0, 0, line]]}));
    story.told("purchase.order", order, "created");
    real.act("purchase.order", "button_confirm", order);
    story.moved("purchase.order", order, "confirmed", "draft", "purchase");
    let line = real.find("purchase.order.line", &json!([["order_id", "=", order]]));
    story.told("purchase.order.line", line, "created");
    real.write("purchase.order.line", line, &json!({"date_planned": "2030-01-07 08:00:00"}));
    story.told("purchase.order.line", line, "rescheduled");
    story.told("purchase.order", order, "rescheduled");
    let receipt = real.find("stock.picking", &json!([["purchase_id", "=", order]]));
    real.act("stock.picking", "button_validate", receipt);
    story.told("stock.transfer", receipt, "done");
    story.told("purchase.order", order, "receipt_changed");
    story.told("purchase.order.line", line, "received");
}
