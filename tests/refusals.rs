//! What is wrong is refused with a word that helps, and nothing is started or changed.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::client::{Client, Hello};
use crate::common::free_address;
use crate::common::gateway::{Gateway, SMALL_BUDGETS, payload, scratch_folder};
use crate::common::pki::Pki;
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
    // Certificates that nobody would use, and a centre that gets everything readable.
    check(
        |config| config.replace("mqtt://localhost:1\"", "mqtt://localhost:1\"\ntls = { ca = \"gone.pem\" }"),
        &["destination[0].tls", "speaks no TLS", "mqtts://"],
    );
    check(
        |config| config.replace("listen = \"127.0.0.1:", "listen = \"localhost:"),
        &["source.mqtt[0].listen: \"localhost:", "address:port", "0.0.0.0:1883", "a host name is not allowed"],
    );
    check(|config| config.replace("data_dir = \"data\"", "data_dir = \"\""), &["data_dir: \"\"", "no folder"]);
    check(
        |config| config.replace("data_dir = \"data\"", "data_dir = \"contracts/state.toml\""),
        &["data_dir", "state.toml is a file"],
    );
    check(
        |config| config.replace("data_dir = \"data\"", "data_dir = \"data\"\ndisk_reserve = \"900000TB\""),
        &["disk_reserve", "can never be free"],
    );
    // So are values that do not even fit.
    check(
        |config| {
            config
                .replace("data_dir = \"data\"", "data_dir = \"data\"\ndisk_reserve = \"much\"")
                .replace("url =", "window = \"wide\"\nwished = 3\nurl =")
                .replace("name = \"devices\"", "name = \"devices\"\nconnect_wait_max = \"soon\"")
        },
        &[
            "4 problems",
            "disk_reserve",
            "\"much\"",
            "destination[0].window",
            "`wished`",
            "connect_wait_max",
            "\"soon\"",
        ],
    );
    // Problems in several tables are said at once.
    check(
        |config| {
            config
                .replace("site = \"plant\"", "site = \"pl ant\"")
                .replace("mqtt://localhost:1", "http://x")
                .replace("name = \"devices\"", "name = \"devices\"\nreceive_maximum = 0")
        },
        &["site", "destination[0].url", "receive_maximum", "3 problems"],
    );
}

#[test]
fn a_password_in_a_url_is_not_repeated() {
    check(
        |config| config.replace("mqtt://localhost:1", "mqtts://gw:sesame-open@central:8883"),
        &["destination[0].url", "…@central:8883", "password_file"],
    );
    let gateway = Gateway::prepare("url", "\n[[destination]]\nname = \"central\"\nurl = \"mqtts://gw:sesame@x\"\n");
    for command in ["check", "run"] {
        let text = said(&gateway.command(&[command, "CONFIG"]));
        assert!(!text.contains("sesame"), "{text}");
    }
}

#[test]
fn what_is_allowed_and_seldom_meant_is_warned_of() {
    let warned = |change: &dyn Fn(&str) -> String, words: &[&str]| {
        let gateway = Gateway::prepare(
            "doubt",
            &format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://localhost:1\"\n{SMALL_BUDGETS}"),
        );
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        std::fs::write(gateway.config(), change(&config)).expect("written");
        std::fs::create_dir(gateway.folder.join("empty")).expect("folder");
        std::fs::write(gateway.folder.join("empty/STATE.TOML"), "").expect("written");
        let pki = crate::common::pki::Pki::write(&gateway.folder);
        drop(pki);
        let passwd =
            "press:$argon2id$v=19$m=7168,t=5,p=1$c29tZXNhbHRzb21lc2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
        std::fs::write(gateway.folder.join("passwd"), passwd).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(gateway.folder.join("passwd"), mode).expect("mode");
        let output = gateway.command(&["check", "CONFIG"]);
        let text = said(&output);
        assert!(output.status.success(), "{text}");
        for word in words {
            assert!(text.contains(word), "\"{word}\" is missing in: {text}");
        }
        text
    };
    let text = warned(&str::to_owned, &["good, with 1 contract"]);
    assert!(!text.contains("warning"), "{text}");
    warned(
        &|config| config.split("[[source").next().unwrap_or_default().to_owned(),
        &["warning", "nothing can come in", "nothing leaves"],
    );
    warned(
        &|config| config.replace("data_dir = \"data\"", "data_dir = \"data\"\ncontracts = \"empty\""),
        &["every event becomes a dead letter", "STATE.TOML: is not read", "\".toml\""],
    );
    warned(&|config| format!("{config}\n[lane.critcal]\nbudget = \"1GB\"\n"), &["lane.critcal", "no contract names"]);
    warned(
        &|config| {
            let (top, _) = config.split_once("[[destination]]").unwrap_or_default();
            format!("{top}passwords = \"passwd\"\n")
                .replace("\"test\"", "\"production\"")
                .replace("127.0.0.1:", "0.0.0.0:")
        },
        &["source.mqtt[0].passwords", "plain text", "set tls"],
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
    let keyed = |text: &str, more: &str| format!("{text}\n{more}\n");
    with(&|text| keyed(text, "keep = [\"/state\"]\nmask = [\"/operator\"]"), &["mask", "mask_key"]);
    with(&|text| format!("{text}\ndedupes = \"1h\"\n"), &["unknown field `dedupes`"]);
}

/// A mask on a field that is dropped hides nothing, and its author thinks otherwise.
#[test]
fn a_mask_on_a_field_that_is_not_kept_is_refused() {
    let gateway = Gateway::prepare("mask", "mask_key = \"mask.key\"\n");
    std::fs::write(gateway.folder.join("mask.key"), [7; 32]).expect("written");
    let file = gateway.folder.join("contracts/state.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    let check = |keep: &str| {
        std::fs::write(&file, format!("{text}keep = {keep}\nmask = [\"/operator/name\"]\n")).expect("written");
        let output = gateway.command(&["contracts", "check", "CONFIG"]);
        (output.status.code(), said(&output))
    };
    let (code, text) = check(r#"["/msg_id", "/state"]"#);
    assert!(
        code == Some(1) && text.contains("mask[0]") && text.contains("\"/operator/name\" is not in keep"),
        "{text}"
    );
    for keep in [r#"["/msg_id", "/operator"]"#, r#"["/msg_id", "/operator/name/first"]"#, "[]"] {
        let (code, text) = check(keep);
        assert_eq!(code, Some(0), "{text}");
    }
}

#[test]
fn a_copy_of_a_contract_is_to_be_removed() {
    let gateway = Gateway::prepare("copy", "");
    let file = gateway.folder.join("contracts/state.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(gateway.folder.join("contracts/state-2.toml"), &text).expect("written");
    let said_of_copy = said(&gateway.command(&["check", "CONFIG"]));
    assert!(said_of_copy.contains("duplicates") && said_of_copy.contains("remove one of the two"), "{said_of_copy}");
    std::fs::write(gateway.folder.join("contracts/state-2.toml"), text.replace("/state\"", "/other\""))
        .expect("written");
    let said_of_other = said(&gateway.command(&["check", "CONFIG"]));
    assert!(said_of_other.contains("as does") && said_of_other.contains("another name"), "{said_of_other}");
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
    std::fs::write(&seal, before.replace("format = 3", "format = 4")).expect("written");
    let untouched = files(&gateway.folder.join("data"));
    let output = gateway.command(&["run", "CONFIG"]);
    assert!(
        output.status.code() == Some(1) && said(&output).contains("has format 4; this Forebay reads up to 3"),
        "{}",
        said(&output)
    );
    assert_eq!(files(&gateway.folder.join("data")), untouched);

    std::fs::write(&seal, before.replace("\"test\"", "\"production\"")).expect("written");
    let untouched = files(&gateway.folder.join("data"));
    let output = gateway.command(&["run", "CONFIG"]);
    assert!(said(&output).contains("belongs to environment \"production\", not to \"test\""), "{}", said(&output));
    assert_eq!(files(&gateway.folder.join("data")), untouched);

    // One of an older format is opened, and from then on it is one of this.
    std::fs::write(&seal, before.replace("format = 3", "format = 1")).expect("written");
    gateway.run();
    assert_eq!(std::fs::read_to_string(&seal).expect("read"), before);
    assert_eq!(crate::common::gateway::accepted(&gateway.status()), 1);
}

#[test]
fn a_corrupt_segment_is_set_aside_and_the_gateway_runs_on() {
    let mut gateway =
        Gateway::start("corrupt", "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:1\"\n");
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
    // New events get numbers that the lost ones never had, and each is in one account.
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 99).as_bytes());
    let whole = |status: &serde_json::Value| {
        let to = &status["lanes"][0]["destinations"][0];
        status["lanes"][0]["accepted"] == 21 && to["set_aside"] == 20 && to["queued"] == 1
    };
    gateway.await_status("21 = 20 set aside + 1 queued", Duration::from_secs(10), whole);
    // And so it stays.
    gateway.stop();
    gateway.run();
    gateway.await_status("the same after a restart", Duration::from_secs(10), whole);
}

fn overwrite(file: &Path, from: usize, count: usize) {
    let mut bytes = std::fs::read(file).expect("read");
    bytes[from..from + count].iter_mut().for_each(|byte| *byte ^= 0x5A);
    std::fs::write(file, bytes).expect("written");
}

/// A hundred bytes of `state.redb` once made a million events that nobody had sent: the numbers that
/// are passed over after its loss counted as accepted, queued and dead.
#[test]
fn damage_of_the_marks_is_named_and_changes_no_account() {
    let folder = scratch_folder("marks");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
    let mut gateway = Gateway::start("marks", &broker.destination(&pki, broker.tls.port()));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 1).as_bytes());
    client.publish(true, 2, "plant/line1/m01/state", payload(1, 2).as_bytes());
    client.publish(true, 3, "unknown/topic", b"lost its way");
    let balances = |accepted: u64| {
        move |status: &serde_json::Value| {
            let to = &status["lanes"][0]["destinations"][0];
            status["lanes"][0]["accepted"] == accepted
                && to["delivered"] == accepted
                && to["queued"] == 0
                && to["set_aside"] == 0
                && status["lanes"][1]["accepted"] == 0
                && status["dead"]["total"] == 1
        }
    };
    gateway.await_status("2 delivered, 1 dead", Duration::from_secs(20), balances(2));
    gateway.stop();
    let state = gateway.folder.join("data/journal/state.redb");
    let length = std::fs::metadata(&state).expect("it is there").len() as usize;
    // Wherever it is hit.
    for (round, from) in [0, 4096, 8192 + 300, length / 2].into_iter().enumerate() {
        if from + 100 > length {
            continue;
        }
        let number = round as u64 + 3;
        overwrite(&state, from, 100);
        gateway.run();
        let status = gateway.await_status("still balanced", Duration::from_secs(20), balances(number - 1));
        let is_aside = status["set_aside"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|file| file.as_str().is_some_and(|file| file.ends_with("state.redb.damaged")));
        if is_aside {
            assert!(gateway.log().contains("state.redb is damaged"), "{}", gateway.log());
            assert!(status.to_string().contains("damaged file set aside"), "{status:#}");
        }
        assert!(round != 0 || is_aside, "{status:#}");
        let listed = gateway.command(&["dead", "list", "CONFIG"]);
        assert!(said(&listed).contains("unknown/topic"), "{}", said(&listed));
        let (mut client, _) = Client::connect(gateway.address, &Hello::default());
        client.publish(true, 1, "plant/line1/m01/state", payload(1, number as usize).as_bytes());
        gateway.await_status("a new one counts once", Duration::from_secs(20), balances(number));
        // Killed, so that nothing is noted on the way out, and started twice.
        gateway.kill();
        gateway.run();
        gateway.stop();
        gateway.run();
        gateway.await_status("the same after a restart", Duration::from_secs(20), balances(number));
        gateway.stop();
    }
    // An event may arrive twice after the kill, with the number it had.
    let arrived = collector.arrived();
    let numbered: std::collections::BTreeMap<u64, String> = arrived
        .iter()
        .map(|arrived| {
            let event = arrived.event();
            let sequence = event["sequence"].as_str().and_then(|text| text.parse().ok());
            (sequence.expect("a sequence"), event["id"].to_string())
        })
        .collect();
    let ids: std::collections::BTreeSet<_> = numbered.values().collect();
    assert_eq!(ids.len(), numbered.len(), "one number an event: {numbered:?}");
    assert!(
        arrived.iter().all(|arrived| {
            let event = arrived.event();
            let id = event["id"].to_string();
            numbered.values().any(|known| *known == id)
        }),
        "and one event a number: {numbered:?}"
    );
    assert!(numbered.keys().last() > Some(&1_000_000), "behind every number that may have been given: {numbered:?}");
    assert!(gateway.log().contains("its sequence skips these numbers"), "{}", gateway.log());
}

#[test]
fn no_payload_password_or_key_is_in_the_log() {
    let gateway = Gateway::start("secrets", "");
    let (client, _) = Client::connect(
        gateway.address,
        &Hello { client: "someone", login: Some(("someone", "sesame-open")), ..Hello::default() },
    );
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
