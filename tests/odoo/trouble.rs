//! Whatever is wrong with Odoo is named with what to do, harms nothing else, and ends by itself.

use super::fake::{Fault, Odoo};
use super::{Plant, is};
use crate::common::client::{Client, Hello};
use crate::common::gateway::payload;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The fault is named with what to do and since when, and gone once the fault is.
fn check(name: &str, fault: Fault, words: &[&str]) {
    let odoo = Odoo::start();
    odoo.fault(fault);
    let plant = Plant::start(name, &odoo, "", "");
    let problem = plant.await_problem("degraded: ");
    for word in words.iter().chain(&["since 20"]) {
        assert!(problem.contains(word), "\"{word}\" is not in: {problem}");
    }
    assert!(!problem.contains("Traceback") && !plant.gateway.log().contains("Traceback"), "{problem}");
    assert!(!plant.gateway.log().contains(super::fake::KEY), "the key is in the log");
    // The devices notice nothing.
    let (mut device, _) = Client::connect(plant.gateway.address, &Hello { client: "press-4", ..Hello::default() });
    device.publish(true, 1, "plant/l1/press-4/state", payload(1, 1).as_bytes());
    odoo.fault(Fault::None);
    plant.await_problem("");
    let id = odoo.newest("mrp.production", "state", "confirmed");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
}

#[test]
fn a_wrong_key_is_named() {
    check("odoo-key", Fault::Error("wrong key"), &["refuses the login", "Invalid apikey", "key_file"]);
}

#[test]
fn a_wrong_database_is_named() {
    check("odoo-db", Fault::Error("wrong database"), &["no database \"plant\"", "check database and url"]);
}

#[test]
fn a_page_instead_of_json_is_named() {
    check("odoo-page", Fault::Page(200), &["HTML", "check url"]);
}

#[test]
fn a_proxy_without_its_odoo_is_named() {
    check("odoo-proxy", Fault::Page(502), &["proxy answers 502", "will retry"]);
}

#[test]
fn a_connection_that_ends_is_named() {
    check("odoo-closed", Fault::Closed, &["connection to 127.0.0.1", "ended"]);
}

#[test]
fn a_wrong_address_is_named() {
    let plant = Plant::prepare("odoo-nowhere", "http://127.0.0.1:9", "500ms", "", "");
    let mut plant = plant;
    plant.gateway.run();
    let problem = plant.await_problem("cannot reach Odoo at 127.0.0.1:9");
    assert!(problem.contains("check url"), "{problem}");
}

#[test]
fn one_model_without_a_right_stops_no_other() {
    let odoo = Odoo::start();
    odoo.fault(Fault::ErrorOf("stock.move", "no right"));
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let plant = Plant::start("odoo-right", &odoo, "", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    let problem = plant.await_problem("component, stock.move cannot be read");
    assert!(problem.contains("lacks the right") && problem.contains("read access"), "{problem}");
    let output = plant.gateway.command(&["odoo", "check", "CONFIG"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    let of = |stream: &str| {
        text.lines().find(|line| line.starts_with(stream)).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert!(of("component").contains(" no ") && of("component").contains("lacks the right"), "{text}");
    assert!(of("production.order").contains(" yes"), "{text}");
    // A model that this Odoo does not have, and a field.
    odoo.fault(Fault::ErrorOf("mrp.unbuild", "no model"));
    let problem = plant.await_problem("unbuild cannot be read");
    assert!(problem.contains("does not exist") && problem.contains("module"), "{problem}");
}

#[test]
fn fields_and_conditions_that_this_odoo_does_not_have_are_named() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let mut plant = Plant::prepare("odoo-field", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/production-order.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, text.replacen("\"origin\", ", "\"origin\", \"nonsense\", ", 1)).expect("written");
    plant.gateway.run();
    // What is there is read.
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    let words = "production.order: fields not read: nonsense not available for this account";
    let is_noted = |status: &Value| status["notes"].to_string().contains(words);
    plant.gateway.await_status("a note", Duration::from_secs(20), is_noted);
    let output = plant.gateway.command(&["odoo", "check", "CONFIG"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("missing, or not visible to this account: nonsense"), "{text}");
    // A domain with such a field fails as a whole, for its contract alone.
    odoo.fault(Fault::ErrorOf("mrp.unbuild", "no field"));
    let problem = plant.await_problem("unbuild cannot be read");
    assert!(problem.contains("Invalid field") && problem.contains("name fields and values"), "{problem}");
    assert!(!problem.contains("production.order"), "{problem}");
}

#[test]
fn an_administrators_key_is_refused_unless_it_is_wanted() {
    let odoo = Odoo::start();
    odoo.make_administrator();
    let mut plant = Plant::start("odoo-admin", &odoo, "", "");
    plant.await_problem("the key belongs to an administrator");
    assert!(plant.events("production.order").is_empty());
    plant.gateway.stop();
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    let config = config.replace("key_file = \"odoo.key\"", "key_file = \"odoo.key\"\nadministrator = true");
    std::fs::write(plant.gateway.config(), config).expect("written");
    plant.gateway.run();
    plant.await_problem("");
}

#[test]
fn an_older_odoo_is_read_over_jsonrpc() {
    let odoo = Odoo::start();
    odoo.fault(Fault::Legacy);
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let mut plant = Plant::start("odoo-legacy", &odoo, "user = \"gateway\"\ndeletions = \"1s\"", "");
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    odoo.write("mrp.production", id, json!({"state": "done"}));
    plant.await_event("production.order", "done", |event| is(event, id, "done"));
    odoo.unlink("mrp.production", id);
    plant.await_event("production.order", "deleted", |event| is(event, id, "deleted"));
    plant.await_problem("");
    // There too, an administrator's key is refused.
    plant.gateway.stop();
    odoo.make_administrator();
    plant.gateway.run();
    plant.await_problem("the key belongs to an administrator");
}

#[test]
fn polling_slows_down_with_odoo_and_recovers() {
    let odoo = Odoo::start();
    let plant = Plant::start("odoo-slowness", &odoo, "", "");
    plant.await_problem("");
    odoo.fault(Fault::Slow(Duration::from_millis(600)));
    let is_noted = |status: &Value| status["notes"].to_string().contains("Odoo is slow");
    plant.gateway.await_status("a note", Duration::from_secs(30), is_noted);
    odoo.take_calls();
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(6));
    let orders = odoo.take_calls().iter().filter(|call| *call == "mrp.production/search_read").count();
    assert!(orders <= 3, "{orders} polls in {:?} of an Odoo that takes over 0.6 s for each", start.elapsed());
    odoo.fault(Fault::None);
    plant.gateway.await_status("no note", Duration::from_secs(40), |status| !is_noted(status));
}

#[test]
fn a_record_that_does_not_fit_its_schema_is_a_dead_letter_and_the_poll_goes_on() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let mut plant = Plant::prepare("odoo-schema", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/schemas/record.v1.json");
    let mut schema: Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
    schema["properties"]["record"] = json!({"type": "object", "properties": {"priority": {"enum": ["0", "1"]}}});
    std::fs::write(&file, schema.to_string()).expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    odoo.write("mrp.production", id, json!({"priority": "9"}));
    let has_letter = |status: &Value| status["dead"]["total"] == 1;
    plant.gateway.await_status("a dead letter", Duration::from_secs(20), has_letter);
    odoo.write("mrp.production", id, json!({"priority": "1"}));
    plant.await_event("production.order", "the next change", |event| event["data"]["record"]["priority"] == "1");
    let letters = plant.gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let letters: Value = serde_json::from_slice(&letters.stdout).expect("JSON");
    assert!(letters[0]["reason"].as_str().is_some_and(|reason| reason.starts_with("/record/priority")), "{letters:#}");
}

#[test]
fn idle_takes_one_call_of_each_contract_and_interval() {
    let odoo = Odoo::start();
    let plant = Plant::start("odoo-idle", &odoo, "", "");
    plant.await_problem("");
    std::thread::sleep(Duration::from_secs(1));
    odoo.take_calls();
    std::thread::sleep(Duration::from_secs(5));
    let calls = odoo.take_calls();
    let polls = calls.iter().filter(|call| *call == "mrp.production/search_read").count();
    assert!((5..=11).contains(&polls), "{polls} polls in 5 s at 500 ms");
    assert!(calls.iter().all(|call| call.ends_with("/search_read")), "{calls:?}");
}

#[test]
fn what_is_wrong_in_the_configuration_is_refused_with_a_reason() {
    let odoo = Odoo::start();
    let refused = |source: &str, rest: &str, words: &[&str]| {
        let plant = Plant::prepare("odoo-refused", &odoo.url(), "500ms", source, rest);
        let output = plant.gateway.command(&["check", "CONFIG"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for word in words {
            assert!(text.contains(word), "\"{word}\" is not in: {text}");
        }
    };
    refused("overlap = \"1s\"", "", &["source.odoo[0].overlap", "30s to 1d"]);
    refused(
        "hook = { listen = \"127.0.0.1:0\", token_file = \"odoo.toml\" }",
        "",
        &["hook.token_file", "cannot be read"],
    );
    refused("tls = { ca = \"nowhere.pem\" }\nnonsense = 1", "", &["nonsense"]);
    refused("", "[watch]\nevery = \"0s\"\n", &["watch.every"]);
    refused("", "[watch]\nrule.order-lost.after = \"1h\"\n", &["order-lost", "order-late"]);
    let plant = Plant::prepare("odoo-contract", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/scrap.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(
        &file,
        text.replace("match = { source = \"odoo\" }", "match = { source = \"odoo\" }\nkeep = [\"/record\"]"),
    )
    .expect("written");
    let output = plant.gateway.command(&["check", "CONFIG"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("scrap.toml") && text.contains("keep") && text.contains("odoo.fields"), "{text}");
}

#[test]
fn a_second_set_of_contracts_is_off_until_it_is_switched_on() {
    let odoo = Odoo::start();
    let plant = Plant::prepare("odoo-around", &odoo.url(), "500ms", "", "");
    super::contracts(&plant.gateway.folder.join("contracts"), "odoo-around", "interval = \"1s\"");
    let listed = || {
        let output = plant.gateway.command(&["contracts", "check", "CONFIG"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!listed().contains("sales.order"), "{}", listed());
    let file = plant.gateway.folder.join("contracts/odoo-around/sales-order.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, text.replace("enabled = false", "enabled = true")).expect("written");
    assert!(listed().contains("sales.order.v1"), "{}", listed());
}

#[test]
fn a_field_that_another_system_owns_says_so() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let mut plant = Plant::prepare("odoo-owner", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/production-order.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    let owners = "system_of_record = { date_start = \"planning\" }\n\n[[odoo.event]]";
    std::fs::write(&file, text.replacen("[[odoo.event]]", owners, 1)).expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    odoo.write("mrp.production", id, json!({"date_start": "2027-01-05 08:00:00", "priority": "1"}));
    let moved = plant.await_event("production.order", "rescheduled", |event| is(event, id, "rescheduled"));
    let changed = &moved["data"]["changed"];
    assert_eq!(
        (&changed["date_start"]["to"], &changed["date_start"]["system_of_record"]),
        (&json!("2027-01-05T08:00:00Z"), &json!("planning"))
    );
    assert_eq!(changed["priority"].get("system_of_record"), None);
    assert_eq!(
        (&moved["data"]["system_of_record"], &moved["data"]["owned_elsewhere"]),
        (&json!("odoo"), &json!({"date_start": "planning"}))
    );
}
