//! TLS both ways: the gateway asks an Odoo with a certificate of the plant's own authority, and hears its hints.

use super::fake::Odoo;
use super::{Plant, front, is};
use crate::common::{free_address, gateway::scratch_folder};
use serde_json::json;
use std::process::Command;
use std::time::Duration;

#[test]
fn an_odoo_behind_tls_is_believed_by_the_authority_that_is_set() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let folder = scratch_folder("odoo-front");
    let (address, authority) = front::tls(folder.path(), odoo.address);
    let url = format!("https://{address}");
    let mut plant = Plant::prepare("odoo-untrusted", &url, "500ms", "", "");
    plant.gateway.run();
    let problem = plant.await_problem("degraded: TLS with");
    assert!(problem.contains("the file of tls.ca"), "{problem}");
    plant.gateway.stop();
    let tls = format!("tls = {{ ca = \"{}\" }}", authority.display());
    let mut plant = Plant::prepare("odoo-trusted", &url, "500ms", &tls, "");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
}

#[test]
fn hints_come_over_tls() {
    let odoo = Odoo::start();
    let id = odoo.newest("mrp.production", "state", "confirmed");
    let address = free_address();
    let hook = format!(
        "hook = {{ listen = \"{address}\", token_file = \"hook.token\", url = \"https://{address}\", \
         tls = {{ cert = \"$PKI/server.pem\", key = \"$PKI/server.key\" }} }}"
    );
    let mut plant = Plant::prepare("odoo-hook-tls", &odoo.url(), "1h", &hook, "");
    std::fs::write(plant.gateway.folder.join("hook.token"), "0123456789abcdef01234567\n").expect("written");
    plant.gateway.run();
    plant.await_event("production.order", "the first load", |event| is(event, id, "loaded"));
    plant.await_problem("");
    odoo.write("mrp.production", id, json!({"state": "progress"}));
    let post = |scheme: &str| {
        let output = Command::new("curl")
            .args(["-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", "--cacert"])
            .arg(&plant.pki.ca)
            .args(["--json", &json!({"_id": id, "_model": "mrp.production"}).to_string()])
            .arg(format!("{scheme}://{address}/odoo/hook/0123456789abcdef01234567"))
            .output()
            .expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let answer = post("https");
    let (status, took) = answer.split_once(' ').expect("status and time");
    assert_eq!(status, "204");
    let took = Duration::from_secs_f64(took.parse().expect("seconds"));
    assert!(took < Duration::from_millis(500), "Odoo's user waited {took:?}");
    plant.await_event("production.order", "started", |event| is(event, id, "started"));
    // Without TLS nothing is taken, and the token is in no log.
    assert!(post("http").starts_with("000"));
    assert!(!plant.gateway.log().contains("0123456789abcdef01234567"));
}
