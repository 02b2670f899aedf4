//! Exceptions of the business are raised on the gateway, with the WAN up or down.

use super::fake::Odoo;
use super::{Plant, is};
use crate::common::client::{Client, Hello};
use crate::common::proxy::{Cut, Proxy};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn exceptions(plant: &Plant) -> Vec<Value> {
    let output = plant.gateway.command(&["exceptions", "--json", "CONFIG"]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

pub fn await_exception(plant: &Plant, kind: &str, subject: &str, is_there: bool) {
    let start = Instant::now();
    loop {
        let open = exceptions(plant);
        if open.iter().any(|one| one["kind"] == kind && one["subject"] == subject) == is_there {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{kind} of {subject} is {}: {open:#?}", !is_there);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A WAN between the gateway and its centre.
pub fn through(plant: &Plant) -> Proxy {
    let wan = Proxy::start(plant.broker.plain);
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    let config = config.replace(&plant.broker.plain.to_string(), &wan.address().to_string());
    std::fs::write(plant.gateway.config(), config).expect("written");
    wan
}

/// Waits until the exception of an order that was not released stands open behind a WAN that is cut, a kill in between;
/// then lets the WAN through, and returns the event that tells of it, with the time at which it came about.
pub fn told_once_the_wan_is_back(plant: &mut Plant, wan: &Proxy, subject: &str) -> Value {
    let before = jiff::Timestamp::now();
    await_exception(plant, "order-not-released", subject, true);
    // A crash tells nothing twice.
    plant.gateway.kill();
    plant.gateway.run();
    await_exception(plant, "order-not-released", subject, true);
    let after = jiff::Timestamp::now();
    std::thread::sleep(Duration::from_secs(3));
    // Others of that Odoo may have been late before.
    let is_ours = |event: &Value| event["data"]["subject"] == subject;
    assert!(!plant.events("exception.opened").iter().any(is_ours), "the WAN is cut");
    wan.restore();
    let opened = plant.await_event("exception.opened", "opened", is_ours);
    let at: jiff::Timestamp = opened["time"].as_str().and_then(|time| time.parse().ok()).expect("a time");
    assert!((before..=after).contains(&at), "it happened while the WAN was cut: {at} is not in {before} to {after}");
    opened
}

#[test]
fn an_order_stuck_before_release_is_told_with_the_wan_cut_and_central_has_it_later() {
    let odoo = Odoo::start();
    let like = odoo.newest("mrp.production", "state", "confirmed");
    let quiet = json!({"state": "done", "date_deadline": false});
    odoo.write("mrp.production", like, quiet);
    let mut plant =
        Plant::prepare("odoo-watch", &odoo.url(), "500ms", "deletions = \"1s\"", "[watch]\nevery = \"1s\"\n");
    let wan = through(&plant);
    plant.gateway.run();
    plant.await_problem("");
    wan.cut(Cut::Refuse);
    let start = "2026-01-05 08:00:00";
    let order = odoo.create(
        "mrp.production",
        like,
        json!({
            "name": "WH/MO/90001", "state": "draft", "date_start": start, "date_deadline": false,
        }),
    );
    let subject = format!("mrp.production/{order}");
    let opened = told_once_the_wan_is_back(&mut plant, &wan, &subject);
    assert_eq!(opened["data"]["since"], "2026-01-05T08:00:00.000000Z");
    assert_eq!(opened["data"]["reference"], "WH/MO/90001");
    odoo.write("mrp.production", order, json!({"date_start": "2026-01-06 08:00:00"}));
    let updated =
        plant.await_event("exception.updated", "updated", |event| event["data"]["subject"] == subject.as_str());
    assert_eq!(updated["data"]["since"], "2026-01-06T08:00:00.000000Z");
    odoo.unlink("mrp.production", order);
    plant.await_event("production.order", "deleted", |event| is(event, order, "deleted"));
    let closed = plant.await_event("exception.closed", "closed", |event| event["data"]["subject"] == subject.as_str());
    assert_eq!((&closed["data"]["id"], &updated["data"]["id"]), (&opened["data"]["id"], &opened["data"]["id"]));
    await_exception(&plant, "order-not-released", &subject, false);
    for stream in ["exception.opened", "exception.updated", "exception.closed"] {
        let told = plant.events(stream).iter().filter(|event| event["data"]["subject"] == subject.as_str()).count();
        assert_eq!(told, 1, "{stream}");
    }
}

#[test]
fn odoo_and_the_shop_floor_are_looked_at_together() {
    let odoo = Odoo::start();
    let center = odoo.newest("mrp.workcenter", "code", "SAW");
    let work_order = odoo.newest("mrp.workorder", "workcenter_id", json!([center, "Sawing"]));
    odoo.write("mrp.workorder", work_order, json!({"state": "ready"}));
    let rest = "[watch]\nevery = \"1s\"\nrule.machine-without-order.after = \"0s\"\nrule.order-without-machine.after = \"0s\"\n\
                [watch.machines]\nwork_centers = { press-4 = \"SAW\" }\n";
    let mut plant = Plant::prepare("odoo-floor", &odoo.url(), "500ms", "", rest);
    plant.gateway.run();
    plant.await_problem("");
    let (mut device, _) = Client::connect(plant.gateway.address, &Hello { client: "press-4", ..Hello::default() });
    let mut say = |number: u16, state: &str| {
        let body = format!(r#"{{"msg_id": "{number}", "state": "{state}"}}"#);
        device.publish(true, number, "plant/l1/press-4/state", body.as_bytes());
    };
    say(1, "running");
    await_exception(&plant, "machine-without-order", "machine/press-4", true);
    odoo.write("mrp.workorder", work_order, json!({"state": "progress"}));
    await_exception(&plant, "machine-without-order", "machine/press-4", false);
    say(2, "idle");
    let subject = format!("mrp.workorder/{work_order}");
    await_exception(&plant, "order-without-machine", &subject, true);
    say(3, "running");
    await_exception(&plant, "order-without-machine", &subject, false);
    odoo.write("mrp.workcenter", center, json!({"working_state": "blocked"}));
    await_exception(&plant, "work-center-blocked", &format!("mrp.workcenter/{center}"), true);
}
