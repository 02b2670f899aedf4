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
    let user = if real.version < 19 { "" } else { "user = \"viewer\"" };
    let plant = real.plant("odoo-wrong", "1s", user);
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
    named(&plant, unbuild, "mrp.unbuild", "account.payment", &["lacks the right", "read access"]);
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
fn what_is_wrong_with_the_real_odoo_14_is_named() {
    let Some(real) = Real::of(14) else { return };
    is_all_named(&real, &real.url);
}

#[test]
fn the_rights_that_are_printed_are_those_that_the_account_needs() {
    let Some(real) = Real::start() else { return };
    are_enough(&real);
}

#[test]
fn the_rights_that_are_printed_for_odoo_14_are_those_that_the_account_needs() {
    let Some(real) = Real::of(14) else { return };
    are_enough(&real);
}

/// Imports what `forebay odoo account --print` prints, makes an account with it, and reads with that account.
fn are_enough(real: &Real) {
    let plant = real.plant("odoo-printed", "1s", "");
    let version = real.version.to_string();
    let output = plant.gateway.command(&["odoo", "account", "--print", "--odoo", &version, "CONFIG"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said(&output).contains("Import records"), "{}", said(&output));
    let row = |line: &str| -> Vec<String> {
        let cells = line.strip_prefix('"').and_then(|line| line.strip_suffix('"')).expect("quoted cells");
        cells.split("\",\"").map(str::to_owned).collect()
    };
    let rows: Vec<Vec<String>> = printed.lines().map(row).collect();
    // As the web client imports a file.
    let imported = real.call("res.groups/load", &json!({"fields": rows[0], "data": rows[1..]}));
    assert!(imported["ids"].is_array() && imported["messages"] == json!([]), "{imported:#}");
    let script = format!(
        "group = env.ref('__import__.forebay_gw_read', raise_if_not_found=False) or env['res.groups'].browse({ids})\n\
         user = env['res.users'].with_context(active_test=False).search([('login', '=', 'printed')])\n\
         user = user or env['res.users'].with_context(no_reset_password=True).create({{'login': 'printed', 'name': 'Printed'}})\n\
         user['group_ids' if 'group_ids' in user._fields else 'groups_id'] = [(6, 0, group.ids)]\n\
         keys = env['res.users.apikeys'].with_user(user).sudo()\n\
         print('KEY', keys._generate(None, 'tests') if {version} < 18 else keys._generate(None, 'tests', None))\n\
         env.cr.commit()\n",
        ids = imported["ids"]
    );
    let file = plant.gateway.folder.join("script.py");
    std::fs::write(&file, script).expect("written");
    let mut shell = real.tool("up");
    shell.args(["shell", "--log-level=error"]).stdin(std::fs::File::open(&file).expect("the script"));
    let text = super::run(&mut shell);
    let key = text.lines().find_map(|line| line.split("KEY ").nth(1)).unwrap_or_else(|| panic!("no key: {text}"));
    std::fs::write(plant.gateway.folder.join("odoo.key"), key).expect("written");
    if real.version < 19 {
        edit(&plant, "forebay.toml", "user = \"viewer\"", "user = \"printed\"");
    }
    let (is_good, text) = check(&plant);
    assert!(is_good && !text.contains("not visible") && !text.contains("not read"), "{text}");
    assert!(!text.contains("may also write"), "{text}");
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
