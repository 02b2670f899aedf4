//! What is wrong is refused with a word that helps, and nothing is started or changed.

use crate::common::client::{Client, Hello};
use crate::common::free_address;
use crate::common::gateway::{Gateway, payload, scratch_folder};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Checks a configuration with one thing wrong; each of `words` must be in what it says.
fn check(change: impl Fn(&str) -> String, words: &[&str]) {
    let gateway = Gateway::prepare("check", "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://localhost:1\"\n");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), change(&config)).expect("written");
    let output = gateway.command(&["check", "CONFIG"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is missing in: {text}");
    }
    // `run` says the same, and starts nothing.
    let output = gateway.command(&["run", "CONFIG"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(words[0]), "{}", said(&output));
    assert!(!gateway.folder.join("data").exists(), "nothing is started");
}

#[test]
fn a_wrong_configuration_names_file_line_key_value_and_what_is_allowed() {
    check(
        |config| config.replace("site = \"plant\"", "site = \"pl ant\""),
        &["forebay.toml:2: site: \"pl ant\"", "letters, digits"],
    );
    check(
        |config| config.replace("site =", "sight ="),
        &["forebay.toml:2", "unknown field `sight`", "expected one of"],
    );
    check(
        |config| config.replace("mqtt://localhost:1", "http://x"),
        &["destination[0].url", "\"http://x\"", "mqtts://host:8883"],
    );
    check(
        |config| config.replace("name = \"devices\"", "name = \"devices\"\nreceive_maximum = 0"),
        &["source.mqtt[0].receive_maximum", "1 to 65535"],
    );
    check(
        |config| config.replace("name = \"devices\"", "name = \"devices\"\npayload_max = \"64MB\""),
        &["payload_max", "64.0 MB", "8.39 MB"],
    );
    check(
        |config| config.replace("name = \"devices\"", "name = \"devices\"\nconnect_wait_max = \"soon\""),
        &["source.mqtt[0].connect_wait_max", "\"soon\"", "250ms"],
    );
    check(
        |config| format!("{config}\n[lane.critical]\nbudget = \"1MB\"\n"),
        &["lane.critical.budget", "1.00 MB", "at least"],
    );
    check(|config| format!("{config}\n[lane.dead]\nbudget = \"1GB\"\n"), &["lane.dead", "taken"]);
    check(
        |config| config.replace("127.0.0.1:", "0.0.0.0:"),
        &["source.mqtt[0].listen", "nobody could log in", "anonymous = true"],
    );
    check(
        |config| config.replace("name = \"devices\"", "name = \"devices\"\npasswords = \"none\""),
        &["source.mqtt[0].passwords", "none: cannot be read"],
    );
    check(
        |config| format!("{config}\n[[destination]]\nname = \"central\"\nurl = \"mqtt://x\"\n"),
        &["destination[1].name", "\"central\" is taken"],
    );
    check(|config| config.replace("\"test\"", "\"production\""), &["destination[0].url", "without TLS", "production"]);
    check(|config| config.replace("environment =", "environment = ="), &["forebay.toml:1"]);
    check(
        |config| config.replace("mqtt://localhost:1\"", "mqtts://localhost:1\"\ntls = { ca = \"gone.pem\" }"),
        &["destination[0].tls", "gone.pem: cannot be read"],
    );
}

#[test]
fn a_wrong_contract_names_file_line_key_value_and_what_is_allowed() {
    let with = |change: &dyn Fn(&str) -> String, words: &[&str]| {
        let gateway = Gateway::prepare("contract", "");
        let file = gateway.folder.join("contracts/state.toml");
        let text = std::fs::read_to_string(&file).expect("read");
        std::fs::write(&file, change(&text)).expect("written");
        let output = gateway.command(&["check", "CONFIG"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "\"{word}\" is missing in: {said}");
        }
    };
    with(&|text| text.replace("\"{machine}\"", "\"{cell}\""), &["state.toml:7: key", "\"{cell}\"", "\"{machine}\""]);
    with(&|text| text.replace("\"/msg_id\"", "\"msg_id\""), &["state.toml:8: id", "\"msg_id\" is no JSON pointer"]);
    with(&|text| text.replace("critical", "urgent"), &["lane", "\"urgent\" is no lane", "\"critical\""]);
    with(&|text| text.replace("1.0.0", "one"), &["version", "\"one\"", "1.2.0"]);
    with(&|text| text.replace("state.json", "gone.json"), &["schema", "gone.json: cannot be read"]);
    with(&|text| text.replace("plant/{line}", "plant/#/{line}"), &["match.topic", "\"#\""]);
    with(&|text| text.replace("machine.state", "gateway.state"), &["name", "the gateway's own"]);
    with(&|text| format!("{text}\nmask = [\"/operator\"]\n"), &["mask", "mask_key"]);
    with(&|text| format!("{text}\ndedupes = \"1h\"\n"), &["unknown field `dedupes`"]);
}

#[test]
fn two_contracts_for_the_same_topics_are_refused() {
    let gateway = Gateway::prepare("clash", "");
    let text = std::fs::read_to_string(gateway.folder.join("contracts/state.toml")).expect("read");
    std::fs::write(
        gateway.folder.join("contracts/other.toml"),
        text.replace("machine.state", "other.state")
            .replace("{machine}/state", "+/state")
            .replace("\"{machine}\"", "\"{line}\""),
    )
    .expect("written");
    let output = gateway.command(&["check", "CONFIG", "--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["good"], false);
    assert!(
        answer["problems"][0]["message"].as_str().is_some_and(|text| text.contains("just as narrowly")),
        "{answer}"
    );
}

#[test]
fn a_change_that_breaks_consumers_needs_a_new_major_version() {
    let mut gateway = Gateway::start("change", "");
    gateway.stop();
    let contract = gateway.folder.join("contracts/state.toml");
    let schema = gateway.folder.join("contracts/state.json");
    let (old_contract, old_schema) =
        (std::fs::read_to_string(&contract).expect("read"), std::fs::read_to_string(&schema).expect("read"));
    let check = |version: &str, new_schema: &str| {
        std::fs::write(&contract, old_contract.replace("1.0.0", version)).expect("written");
        std::fs::write(&schema, new_schema).expect("written");
        let output = gateway.command(&["contracts", "check", "CONFIG"]);
        (output.status.code(), said(&output))
    };
    let (code, text) = check("1.0.0", &old_schema);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("in force"), "{text}");
    let (code, text) = check("1.1.0", &old_schema.replace(r#""seq":{"type":"integer"},"#, ""));
    assert_eq!(code, Some(1));
    assert!(text.contains("/seq: is removed") && text.contains("new major version"), "{text}");
    let (code, text) = check("1.1.0", &old_schema.replace(r#""integer""#, r#""string""#));
    assert!(code == Some(1) && text.contains("/seq: changes its type"), "{text}");
    let (code, text) = check("1.1.0", &old_schema.replace(r#","fault""#, ""));
    assert!(code == Some(1) && text.contains("/state: no longer allows \"fault\""), "{text}");
    let (code, text) = check("2.0.0", &old_schema.replace(r#""seq":{"type":"integer"},"#, ""));
    assert!(code == Some(0) && text.contains("new"), "{text}");
    let (code, text) = check("1.1.0", &old_schema.replace(r#""seq":"#, r#""extra":{"type":"string"},"seq":"#));
    assert!(code == Some(0) && text.contains("replaces 1.0.0"), "{text}");
}

#[test]
fn a_second_gateway_on_the_same_journal_is_refused_and_the_first_named() {
    let gateway = Gateway::start("second", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace(&gateway.address.to_string(), &free_address().to_string()))
        .expect("written");
    let output = gateway.command(&["run", "CONFIG"]);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(text.contains("in use by process") && text.contains(&gateway.pid().to_string()), "{text}");
}

#[test]
fn a_port_in_use_is_named() {
    let gateway = Gateway::prepare("port", "");
    let _taken = TcpListener::bind(gateway.address).expect("bound");
    let output = gateway.command(&["run", "CONFIG"]);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(text.contains(&gateway.address.to_string()) && text.contains("another program has the port"), "{text}");
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "LOCK") {
                found.push((path.display().to_string(), std::fs::read(&path).expect("read")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_journal_of_a_newer_format_or_another_environment_is_refused_untouched() {
    let mut gateway = Gateway::start("newer", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 1).as_bytes());
    gateway.stop();
    let seal = gateway.folder.join("data/journal/journal.toml");
    let before = std::fs::read_to_string(&seal).expect("read");
    std::fs::write(&seal, before.replace("format = 1", "format = 2")).expect("written");
    let untouched = files(&gateway.folder.join("data"));
    let output = gateway.command(&["run", "CONFIG"]);
    assert!(
        output.status.code() == Some(1) && said(&output).contains("has format 2; this Forebay reads up to 1"),
        "{}",
        said(&output)
    );
    assert_eq!(files(&gateway.folder.join("data")), untouched);

    std::fs::write(&seal, before.replace("\"test\"", "\"production\"")).expect("written");
    let untouched = files(&gateway.folder.join("data"));
    let output = gateway.command(&["run", "CONFIG"]);
    assert!(said(&output).contains("belongs to environment \"production\", not to \"test\""), "{}", said(&output));
    assert_eq!(files(&gateway.folder.join("data")), untouched);
}

#[test]
fn a_corrupt_segment_is_set_aside_and_the_gateway_runs_on() {
    let mut gateway = Gateway::start("corrupt", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=20 {
        client.publish(true, number, "plant/line1/m01/state", payload(1, number.into()).as_bytes());
    }
    gateway.stop();
    let segment = gateway.folder.join("data/journal/critical/00000000000000000001.redb");
    let mut bytes = std::fs::read(&segment).expect("read");
    for (index, byte) in bytes.iter_mut().enumerate().skip(4096) {
        *byte ^= (index % 251) as u8;
    }
    std::fs::write(&segment, &bytes).expect("written");
    gateway.run();
    let status = gateway.status();
    let aside = status["set_aside"][0].as_str().expect("it is reported");
    assert!(aside.ends_with("critical/00000000000000000001.redb.damaged"), "{aside}");
    assert!(gateway.log().contains("set aside"), "{}", gateway.log());
    // New events get numbers that the lost ones never had.
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 99).as_bytes());
    let status = gateway.await_status("it is accepted", Duration::from_secs(5), |status| {
        status["lanes"][0]["accepted"].as_u64() > Some(0)
    });
    assert!(status["lanes"][0]["accepted"].as_u64() > Some(1_000_000), "{status:#}");
}

#[test]
fn no_payload_password_or_key_is_in_the_log() {
    let gateway = Gateway::start("secrets", "");
    let (client, _) =
        Client::connect(gateway.address, &Hello { login: Some(("someone", "sesame-open")), ..Hello::default() });
    client.stream.shutdown(std::net::Shutdown::Both).ok();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", br#"{"msg_id":"1","state":"very-private-state"}"#);
    client.publish(true, 2, "unknown/topic", b"very-private-payload");
    let letters = gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let letters: serde_json::Value = serde_json::from_slice(&letters.stdout).expect("JSON");
    let reasons: Vec<_> = letters
        .as_array()
        .into_iter()
        .flatten()
        .map(|letter| letter["reason"].as_str().unwrap_or("").to_owned())
        .collect();
    assert!(
        reasons.iter().any(|reason| reason.starts_with("/state: "))
            && reasons.iter().any(|reason| reason.starts_with("topic: ")),
        "{reasons:?}"
    );
    for text in [gateway.log(), reasons.join(" ")] {
        assert!(!text.contains("very-private") && !text.contains("sesame"), "{text}");
    }
    let shown = gateway.command(&["dead", "show", "1", "CONFIG"]);
    assert!(said(&shown).contains("very-private-state"), "the letter itself has it: {}", said(&shown));
    let missing = gateway.command(&["dead", "show", "77", "CONFIG"]);
    assert!(
        missing.status.code() == Some(1) && said(&missing).contains("there is no dead letter 77"),
        "{}",
        said(&missing)
    );
}

#[test]
fn a_command_without_a_gateway_says_so() {
    let folder = scratch_folder("nobody");
    let gateway = Gateway::prepare_in(folder.path(), "");
    let output = gateway.command(&["status", "CONFIG"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("no gateway answers at"), "{}", said(&output));
}
