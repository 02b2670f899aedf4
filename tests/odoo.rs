//! Odoo as a source: what changes there arrives at central as events of the business, and nothing is missed.
//!
//! The quick tests ask recorded answers of a real Odoo 19 (`odoo/recorded.json`) that a small server
//! gives; `tests/run --odoo` drives the real one (`odoo/real.rs`).

pub mod fake;
mod faults;
mod front;
mod hinted;
mod languages;
mod lasting;
mod learning;
mod real;
mod reconciling;
mod secured;
mod trouble;
mod versions;
mod watching;

use crate::common::broker::{Arrived, Collector, Mosquitto};
use crate::common::gateway::{Gateway, scratch_folder};
use crate::common::pki::Pki;
use fake::Odoo;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// A gateway that reads an Odoo, and who subscribes at its centre.
pub struct Plant {
    pub gateway: Gateway,
    pub collector: Collector,
    pub broker: Mosquitto,
    /// Its files stand in the folder that `$PKI` stands for.
    pub pki: Pki,
    _folder: tempfile::TempDir,
}

/// The contracts that come with the program, with an interval that fits a test, or with their own.
pub fn contracts(to: &Path, set: &str, interval: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/contracts").join(set);
    let to = to.join(set);
    std::fs::create_dir_all(to.join("schemas")).expect("folder");
    for entry in std::fs::read_dir(from.join("schemas")).expect("schemas").flatten() {
        std::fs::copy(entry.path(), to.join("schemas").join(entry.file_name())).expect("copied");
    }
    for entry in std::fs::read_dir(&from).expect("contracts").flatten().filter(|entry| entry.path().is_file()) {
        let text = std::fs::read_to_string(entry.path()).expect("text");
        let lines =
            text.lines().map(|line| if line.starts_with("interval") && !interval.is_empty() { interval } else { line });
        let text: Vec<_> = lines.collect();
        std::fs::write(to.join(entry.file_name()), text.join("\n") + "\n").expect("written");
    }
}

impl Plant {
    /// `source` goes into `[[source.odoo]]`, `rest` behind it. Without an interval the contracts keep theirs.
    pub fn prepare(name: &str, url: &str, interval: &str, source: &str, rest: &str) -> Self {
        let folder = scratch_folder(name);
        let pki = Pki::write(folder.path());
        let broker = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(broker.plain, "test/plant/#");
        let gateway = Gateway::prepare(name, "");
        let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n", broker.plain);
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        let odoo = format!(
            "\n[[source.odoo]]\nname = \"erp\"\nurl = \"{url}\"\ndatabase = \"plant\"\nkey_file = \"odoo.key\"\n{source}\n"
        );
        let odoo = odoo.replace("$PKI", &folder.path().display().to_string());
        std::fs::write(gateway.config(), config + &odoo + rest + &destination).expect("written");
        std::fs::write(gateway.folder.join("odoo.key"), fake::KEY).expect("written");
        let to = gateway.folder.join("contracts");
        let interval = if interval.is_empty() { String::new() } else { format!("interval = \"{interval}\"") };
        contracts(&to, "odoo", &interval);
        contracts(&to, "watch", "");
        Self { gateway, collector, broker, pki, _folder: folder }
    }

    pub fn start(name: &str, odoo: &Odoo, source: &str, rest: &str) -> Self {
        let mut plant = Self::prepare(name, &odoo.url(), "500ms", source, rest);
        plant.gateway.run();
        plant
    }

    /// The events of a stream at central, each once.
    pub fn events(&self, stream: &str) -> Vec<Value> {
        events(&self.collector.arrived(), stream)
    }

    /// Waits for an event of a stream.
    pub fn await_event(&self, stream: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            if let Some(found) = self.events(stream).into_iter().find(|event| wanted(event)) {
                return found;
            }
            let seen: Vec<_> = self.events(stream).iter().map(|event| event["data"]["events"].to_string()).collect();
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {stream} has {seen:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn problem(&self) -> String {
        let status = self.gateway.status();
        let sources = status["sources"].as_array().cloned().unwrap_or_default();
        let Some(odoo) = sources.into_iter().find(|source| source["kind"] == "odoo") else {
            return "it is not started yet".into();
        };
        odoo["problem"].as_str().unwrap_or_default().to_owned()
    }

    pub fn await_problem(&self, part: &str) -> String {
        self.await_problem_for(part, Duration::from_secs(40))
    }

    /// Waits until the source's problem has a part, or until there is none where the part is empty.
    pub fn await_problem_for(&self, part: &str, patience: Duration) -> String {
        let start = Instant::now();
        loop {
            let problem = self.problem();
            if problem.contains(part) && (!part.is_empty() || problem.is_empty()) {
                return problem;
            }
            assert!(start.elapsed() < patience, "\"{part}\" is not in: {problem}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The events of a stream, each `source` and `id` once, in order.
pub fn events(arrived: &[Arrived], stream: &str) -> Vec<Value> {
    let topic = format!("test/plant/{stream}/v1/");
    let mut seen = std::collections::HashSet::new();
    let of_stream = arrived.iter().filter(|event| event.topic.starts_with(&topic)).map(Arrived::event);
    of_stream.filter(|event| seen.insert((event["source"].to_string(), event["id"].to_string()))).collect()
}

fn is(event: &Value, id: i64, name: &str) -> bool {
    event["data"]["id"] == id && event["data"]["events"].as_array().is_some_and(|names| names.contains(&json!(name)))
}

#[test]
fn changes_become_events_with_what_was_and_what_is() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start("odoo-changes", &odoo, "", "");
    let loaded = plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    assert_eq!(loaded["subject"], id.to_string());
    assert_eq!(loaded["source"], "/plant/gw/erp/plant");
    assert_eq!(loaded["data"]["state"], "confirmed");
    assert!(loaded["data"]["reference"].as_str().is_some_and(|name| name.starts_with("WH/MO/")), "{loaded:#}");
    plant.await_problem("");
    odoo.write("mrp.production", id, json!({"state": "progress", "qty_producing": 1.0}));
    let started = plant.await_event("production.order", "started", |event| is(event, id, "started"));
    assert_eq!(started["data"]["changed"]["state"], json!({"from": "confirmed", "to": "progress"}));
    assert_eq!(started["data"]["event"], "started");
    assert_eq!(started["data"]["system_of_record"], "odoo");
    assert!(is(&started, id, "progressed"), "one change may mean several things: {started:#}");
    assert_eq!(
        started["data"]["write_date"].as_str(),
        started["time"].as_str().map(|t| t.replace(".000000Z", "Z")).as_deref()
    );
    // A state of another version passes with a mark.
    odoo.write("mrp.production", id, json!({"state": "quality_hold"}));
    let unknown = plant.await_event("production.order", "changed", |event| event["data"]["state"] == "quality_hold");
    assert_eq!((&unknown["data"]["event"], &unknown["data"]["unknown_state"]), (&json!("changed"), &json!(true)));
    // A write that changes nothing is nothing; the gateway's own is an echo.
    let before = plant.events("production.order").len();
    odoo.write("mrp.production", id, json!({}));
    odoo.write_as("mrp.production", id, json!({"priority": "1"}), fake::OWN_ID);
    let echo = plant.await_event("production.order", "echo", |event| event["data"]["echo"] == true);
    assert_eq!(echo["data"]["changed"], json!({"priority": {"from": "0", "to": "1"}}));
    assert_eq!(plant.events("production.order").len(), before + 1);
    let new = odoo.create("mrp.production", id, json!({"name": "WH/MO/99001", "state": "draft"}));
    let created = plant.await_event("production.order", "created", |event| is(event, new, "created"));
    assert_eq!(created["data"]["changed"], json!({}));
    odoo.unlink("mrp.production", new);
    let start = Instant::now();
    plant.gateway.await_status("works", Duration::from_secs(5), |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty)
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_value_that_comes_back_within_a_second_is_three_events() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start("odoo-aba", &odoo, "", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    // Odoo says whole seconds, so that these three are written at the same time.
    let at = odoo.now();
    for priority in ["1", "0", "1", "0"] {
        odoo.write_at("mrp.production", id, json!({"priority": priority}), at);
        let before = plant.events("production.order").len();
        let start = Instant::now();
        while plant.events("production.order").len() == before {
            assert!(start.elapsed() < Duration::from_secs(10), "priority {priority} is not told");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let told: Vec<_> = plant.events("production.order").into_iter().filter(|event| event["data"]["id"] == id).collect();
    let told: Vec<_> = told.iter().map(|event| event["data"]["record"]["priority"].as_str().unwrap_or("?")).collect();
    assert_eq!(told, ["0", "1", "0", "1", "0"]);
}

#[test]
fn a_slow_transaction_and_a_deletion_are_found() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start("odoo-slow", &odoo, "deletions = \"1s\"", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    // Written 20 s ago, committed now: behind every cursor.
    odoo.write_at("mrp.production", id, json!({"state": "cancel"}), odoo.now() - 20);
    plant.await_event("production.order", "cancelled", |event| is(event, id, "cancelled"));
    odoo.unlink("mrp.production", id);
    let deleted = plant.await_event("production.order", "deleted", |event| is(event, id, "deleted"));
    assert_eq!(deleted["data"]["record"]["state"], "cancel", "what was last known of it");
    // Archived records are records.
    let product = odoo.newest("product.product", "active", true);
    odoo.write("product.product", product, json!({"active": false}));
    plant.await_event("product", "archived", |event| is(event, product, "archived"));
}

#[test]
fn a_lost_company_is_no_mass_deletion_at_the_first_look() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    for number in 0..30 {
        odoo.create("mrp.production", id, json!({"name": format!("WH/MO/7{number:04}"), "state": "draft"}));
    }
    let plant = Plant::start("odoo-lost", &odoo, "deletions = \"2s\"", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    odoo.hide("mrp.production", true);
    let start = Instant::now();
    while !plant.gateway.log().contains("most records are missing at once") {
        assert!(start.elapsed() < Duration::from_secs(20), "no doubt");
        std::thread::sleep(Duration::from_millis(5));
    }
    odoo.hide("mrp.production", false);
    std::thread::sleep(Duration::from_secs(5));
    let deleted = plant.events("production.order").iter().filter(|event| event["data"]["event"] == "deleted").count();
    assert_eq!(deleted, 0);
}

#[test]
fn crashes_repeat_nothing_and_lose_nothing() {
    let odoo = Odoo::start();
    let first = odoo.newest("mrp.production", "state", "confirmed");
    let ids: Vec<i64> = (0..40)
        .map(|number| {
            odoo.create("mrp.production", first, json!({"name": format!("WH/MO/8{number:04}"), "state": "confirmed"}))
        })
        .collect();
    let mut plant = Plant::start("odoo-crash", &odoo, "deletions = \"1s\"", "");
    plant.await_event("production.order", "the first load", |event| is(event, ids[39], "loaded"));
    let states = ["progress", "to_close", "done"];
    for (round, state) in states.iter().enumerate() {
        for id in ids.iter().skip(usize::from(round > 1)) {
            odoo.write("mrp.production", *id, json!({"state": state, "qty_producing": round}));
            std::thread::sleep(Duration::from_millis(5));
        }
        plant.gateway.kill();
        if round == 1 {
            odoo.unlink("mrp.production", ids[0]);
        }
        plant.gateway.run();
    }
    for id in &ids[1..] {
        plant.await_event("production.order", "the final state", |event| {
            event["data"]["id"] == *id && event["data"]["state"] == "done"
        });
    }
    plant.await_event("production.order", "deleted", |event| is(event, ids[0], "deleted"));
    // Every copy aside, no change is told twice: what one event leaves, the next begins with.
    for id in &ids {
        let mut state = Value::Null;
        for event in plant.events("production.order").iter().filter(|event| event["data"]["id"] == *id) {
            let change = &event["data"]["changed"]["state"];
            if !change.is_null() {
                assert_eq!(change["from"], state, "{event:#}");
                assert_ne!(change["from"], change["to"]);
            }
            state = event["data"]["state"].clone();
        }
    }
    let status = plant.gateway.status();
    assert_eq!((&status["repeats"]["id_conflicts"], &status["dead"]["total"]), (&json!(0), &json!(0)), "{status:#}");
}

#[test]
fn a_hint_is_answered_at_once_and_read_at_once() {
    use crate::common::http::Client;
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let address = crate::common::free_address();
    let hook = format!("hook = {{ listen = \"{address}\", token_file = \"hook.token\", url = \"http://{address}\" }}");
    let mut plant = Plant::prepare("odoo-hint", &odoo.url(), "1h", &hook, "");
    std::fs::write(plant.gateway.folder.join("hook.token"), "0123456789abcdef01234567\n").expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    odoo.write("mrp.production", id, json!({"state": "progress"}));
    let body = format!(r#"{{"_action": "x", "_id": {id}, "_model": "mrp.production", "state": "draft"}}"#);
    let path = "/odoo/hook/0123456789abcdef01234567";
    let began = Instant::now();
    let answer = Client::dial(address).post(path, &[("content-type", "application/json")], body.as_bytes());
    assert_eq!(answer.status, 204);
    assert!(began.elapsed() < Duration::from_millis(250), "Odoo's user waited {:?}", began.elapsed());
    plant.await_event("production.order", "started", |event| is(event, id, "started"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    odoo.unlink("mrp.production", id);
    Client::dial(address).post(path, &[], body.as_bytes());
    plant.await_event("production.order", "deleted", |event| is(event, id, "deleted"));
    assert_eq!(Client::dial(address).post("/odoo/hook/wrong", &[], body.as_bytes()).status, 404);
    assert_eq!(Client::dial(address).post(path, &[], b"<html>").status, 400);
    let printed = plant.gateway.command(&["odoo", "webhook", "--print", "CONFIG"]);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(
        printed.contains("automation rules for mrp.production") && printed.contains(&format!("http://{address}{path}")),
        "{printed}"
    );
}
