//! What may be wrong with an Odoo, tried on the real one over both protocols.

use super::super::{Plant, front, is};
use super::{Real, said};
use serde_json::json;

/// What `forebay odoo check` says, and whether all is well.
fn check(plant: &Plant) -> (bool, String) {
    let output = plant.gateway.command(&["odoo", "check", "CONFIG"]);
    (output.status.success(), said(&output))
}

/// Replaces a text in a file of the gateway's.
fn edit(plant: &Plant, file: &str, from: &str, to: &str) {
    let file = plant.gateway.folder.join(file);
    let text = std::fs::read_to_string(&file).expect("read");
    assert!(text.contains(from), "{from} is not in {}", file.display());
    std::fs::write(&file, text.replacen(from, to, 1)).expect("written");
}

/// Makes one thing wrong, and sees it named.
fn named(plant: &Plant, file: &str, from: &str, to: &str, words: &[&str]) {
    edit(plant, file, from, to);
    let (is_good, text) = check(plant);
    assert!(!is_good || to.contains("nonsense_field"), "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
    assert!(!text.contains("Traceback"), "{text}");
    edit(plant, file, to, from);
}

fn is_all_named(real: &Real, url: &str) {
    let plant = real.plant("odoo-wrong", "1s", "user = \"viewer\"");
    edit(&plant, "forebay.toml", &real.url, url);
    let (is_good, text) = check(&plant);
    println!("{text}");
    // Least privilege: the account reads all that the contracts want, and can write nothing of it.
    assert!(is_good && !text.contains("may also write") && !text.contains("not visible"), "{text}");
    let key = &real.viewer_key;
    let wrong_key = "0".repeat(40);
    named(&plant, "odoo.key", key, &wrong_key, &["refuses the login", "key_file"]);
    named(&plant, "forebay.toml", "\"plant\"\nkey", "\"elsewhere\"\nkey", &["there is no", "database"]);
    named(&plant, "forebay.toml", url, "http://127.0.0.1:9", &["cannot reach Odoo at 127.0.0.1:9", "check url"]);
    let unbuild = "contracts/odoo/unbuild.toml";
    named(&plant, unbuild, "mrp.unbuild", "mrp.nonsense", &["unbuild", "is the module installed"]);
    named(
        &plant,
        unbuild,
        "\"mo_id\", \"company_id\"",
        "\"mo_id\", \"nonsense_field\"",
        &["not visible", "nonsense_field"],
    );
    named(&plant, unbuild, "mrp.unbuild", "ir.config_parameter", &["lacks the right", "read access"]);
    named(&plant, unbuild, "[odoo]", "[odoo]\ndomain = [[\"nonsense\", \"=\", 1]]", &["unbuild", "Invalid field"]);
}

#[test]
fn what_is_wrong_with_the_real_odoo_is_named() {
    let Some(real) = Real::start() else { return };
    is_all_named(&real, &real.url);
    // The key of an administrator, and of one that may write.
    let plant = real.plant("odoo-admin", "1s", "");
    std::fs::write(plant.gateway.folder.join("odoo.key"), &real.admin_key).expect("written");
    let (is_good, text) = check(&plant);
    assert!(
        !is_good && text.contains("belongs to an administrator") && text.contains("administrator = true"),
        "{text}"
    );
    edit(&plant, "forebay.toml", "key_file = \"odoo.key\"", "key_file = \"odoo.key\"\nadministrator = true");
    let (is_good, text) = check(&plant);
    assert!(is_good && text.contains("may also write"), "{text}");
}

#[test]
fn the_real_odoo_is_read_over_jsonrpc_too() {
    let Some(real) = Real::start() else { return };
    // A proxy that lets JSON-2 not through makes it answer as 14 to 18 do.
    let url = format!("http://{}", front::only_jsonrpc(real.address()));
    is_all_named(&real, &url);
    let mut plant = real.plant("odoo-jsonrpc", "1s", "user = \"viewer\"\ndeletions = \"2s\"");
    edit(&plant, "forebay.toml", &real.url, &url);
    // A wrong key is named, and read anew once it is right.
    std::fs::write(plant.gateway.folder.join("odoo.key"), "0".repeat(40)).expect("written");
    plant.gateway.run();
    let problem = plant.await_problem("refuses the login");
    assert!(problem.starts_with("degraded: ") && problem.contains("since 20"), "{problem}");
    std::fs::write(plant.gateway.folder.join("odoo.key"), &real.viewer_key).expect("written");
    plant.await_problem("");
    let order = real.order("P-VALVE", &json!({"origin": "JSONRPC"}));
    plant.await_event("production.order", "created", |event| is(event, order, "created"));
    real.act("mrp.production", "action_confirm", order);
    let released = plant.await_event("production.order", "released", |event| is(event, order, "released"));
    assert_eq!(released["data"]["changed"]["state"], json!({"from": "draft", "to": "confirmed"}));
    assert!(released["data"]["record"]["product_id"]["name"].as_str().is_some_and(|name| name.contains("Ball valve")));
    real.act("mrp.production", "action_cancel", order);
    plant.await_event("production.order", "cancelled", |event| is(event, order, "cancelled"));
    real.act("mrp.production", "unlink", order);
    plant.await_event("production.order", "deleted", |event| is(event, order, "deleted"));
}
