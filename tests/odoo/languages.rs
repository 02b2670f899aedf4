//! Names in the language that central wants.

use super::fake::Odoo;
use super::{Plant, is};
use serde_json::{Value, json};

/// A product with a German name, and the text field described as translated.
fn german(odoo: &Odoo) -> i64 {
    odoo.add_field(
        "product.product",
        "name",
        (json!({"type": "char", "store": true, "translate": true}), json!("Valve")),
    );
    odoo.activate("de_DE");
    let id = odoo.newest("product.product", "active", true);
    odoo.translate("product.product", id, "name", ("de_DE", "Ventil"));
    id
}

fn name(event: &Value) -> &Value {
    &event["data"]["record"]["name"]
}

#[test]
fn names_are_in_the_language_of_the_source_and_a_change_in_it_is_reported() {
    let odoo = Odoo::start();
    let id = german(&odoo);
    let plant = Plant::start("odoo-german", &odoo, "language = \"de_DE\"", "");
    let loaded = plant.await_event("product", "the first load", |event| is(event, id, "loaded"));
    assert_eq!(name(&loaded), "Ventil");
    odoo.translate("product.product", id, "name", ("de_DE", "Kugelhahn"));
    let renamed = plant.await_event("product", "renamed", |event| *name(event) == "Kugelhahn");
    assert_eq!(renamed["data"]["changed"]["name"], json!({"from": "Ventil", "to": "Kugelhahn"}));
}

#[test]
fn without_a_setting_names_are_in_the_language_of_the_account() {
    let odoo = Odoo::start();
    let id = german(&odoo);
    odoo.set_language("de_DE");
    let plant = Plant::start("odoo-account-language", &odoo, "", "");
    let loaded = plant.await_event("product", "the first load", |event| is(event, id, "loaded"));
    assert_eq!(name(&loaded), "Ventil");
}

#[test]
fn a_language_that_is_not_active_is_named_and_names_are_in_english_meanwhile() {
    let odoo = Odoo::start();
    let id = german(&odoo);
    let plant = Plant::start("odoo-inactive", &odoo, "language = \"fr_FR\"", "");
    let loaded = plant.await_event("product", "the first load", |event| is(event, id, "loaded"));
    assert_eq!(name(&loaded), "Valve");
    let notes = plant.gateway.status()["notes"].to_string();
    assert!(notes.contains("language fr_FR is not active in Odoo") && notes.contains("Languages"), "{notes}");
    plant.await_problem("");
}

#[test]
fn a_contract_may_have_several_languages() {
    let odoo = Odoo::start();
    let id = german(&odoo);
    let mut plant = Plant::prepare("odoo-languages", &odoo.url(), "500ms", "", "");
    let file = plant.gateway.folder.join("contracts/odoo/product.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    let text = text.replacen("[odoo]", "[odoo]\nlanguages = [\"de_DE\", \"en_US\"]", 1);
    std::fs::write(&file, text).expect("written");
    plant.gateway.run();
    let loaded = plant.await_event("product", "the first load", |event| is(event, id, "loaded"));
    assert_eq!((name(&loaded), &loaded["data"]["record"]["name@en_US"]), (&json!("Ventil"), &json!("Valve")));
    odoo.write("product.product", id, json!({"name": "Ball valve"}));
    let renamed = plant.await_event("product", "renamed", |event| !event["data"]["changed"]["name@en_US"].is_null());
    assert_eq!(renamed["data"]["changed"], json!({"name@en_US": {"from": "Valve", "to": "Ball valve"}}));
}
