//! How long a change in Odoo takes to the central subscriber, by polls and by hints.

use super::super::Plant;
use super::{Hints, INTERVAL, Real, hook, said, webhook};
use crate::common::free_address;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// From a change in Odoo to the central subscriber: the 95th percentile of some changes.
fn latency(real: &Real, plant: &Plant) -> Duration {
    let order = real.find("mrp.production", &json!([["state", "=", "draft"]]));
    let mut took = Vec::new();
    for number in 0..if real.is_long { 40 } else { 8 } {
        // A field whose change is hinted at; no two changes after each other have the same value.
        let due = format!("2031-01-{:02} {:02}:00:00", 1 + number / 24, number % 24);
        real.write("mrp.production", order, &json!({"date_deadline": due}));
        let due = format!("{}Z", due.replace(' ', "T"));
        let start = Instant::now();
        plant.await_event("production.order", "the change", |event| {
            event["data"]["changed"]["date_deadline"]["to"] == due.as_str()
        });
        took.push(start.elapsed());
        // Not in step with the polls.
        std::thread::sleep(Duration::from_millis(700 + 130 * (number as u64 % 7)));
    }
    took.sort();
    took[took.len() * 95 / 100]
}

#[test]
fn the_real_odoo_is_told_of_in_time() {
    let Some(real) = Real::start() else { return };
    let plant = {
        let mut plant = real.plant("odoo-polled", &format!("{}s", INTERVAL.as_secs()), "");
        plant.gateway.run();
        plant.await_problem("");
        plant
    };
    let polled = latency(&real, &plant);
    println!("from a change in Odoo to central by polling every {INTERVAL:?}: p95 {polled:?}");
    drop(plant);
    let mut plant = real.plant("odoo-hinted", "60s", &hook(free_address()));
    plant.gateway.run();
    plant.await_problem("");
    let hints = Hints::install(&real, &plant);
    let hinted = latency(&real, &plant);
    println!("the same by hint over TLS, polling every 60 s: p95 {hinted:?}");
    drop(hints);
    assert!(polled < INTERVAL + Duration::from_secs(1), "{polled:?}");
    assert!(hinted < Duration::from_secs(2), "{hinted:?}");
}

#[test]
fn setting_the_real_odoo_up_twice_is_once_and_removing_leaves_nothing() {
    let Some(real) = Real::start() else { return };
    let plant = real.plant("odoo-webhook", "60s", &hook(free_address()));
    let rules = || -> Vec<Value> {
        ["base.automation", "ir.cron", "res.groups", "ir.model"]
            .map(|model| {
                // The group of the account's rights begins with the same words, and stays.
                let name = if model == "res.groups" { "Forebay gw: changes" } else { "Forebay gw:%" };
                let domain = json!([["name", "=like", name]]);
                real.call(
                    &format!("{model}/search_count"),
                    &json!({"domain": domain, "context": {"active_test": false}}),
                )
            })
            .into()
    };
    // The account that reads may not; it says who may.
    let refused = webhook(&plant, "--install", "odoo.key");
    assert!(!refused.status.success() && said(&refused).contains("key of an administrator"), "{}", said(&refused));
    let nothing = vec![json!(0); 4];
    assert_eq!(rules(), nothing);
    for _ in 0..2 {
        let output = webhook(&plant, "--install", "admin.key");
        assert!(output.status.success(), "{}", said(&output));
        // Changed and deleted, for each of three models; a scheduled action, a group that may read, and the table.
        assert_eq!(rules(), [json!(6), json!(1), json!(1), json!(1)], "{}", said(&output));
    }
    let output = webhook(&plant, "--remove", "admin.key");
    assert!(output.status.success() && said(&output).contains("6 automations are removed"), "{}", said(&output));
    assert_eq!(rules(), nothing);
    let key = std::fs::read_to_string(plant.gateway.folder.join("admin.key")).expect("a key");
    let data = plant.gateway.folder.join("data");
    assert!(!data.exists() || !holds(&data, key.as_bytes()), "the administrator's key is kept");
}

fn holds(folder: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| match entry.path() {
        path if path.is_dir() => holds(&path, needle),
        path => std::fs::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle)),
    })
}
