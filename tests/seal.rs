//! Secrets and environments: what others could read, what belongs elsewhere and what `production` does not allow is
//! named with file, line, key and what mends it; no secret is repeated.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, SMALL_BUDGETS, payload, program_for_everybody, scratch_folder};
use crate::common::need;
use crate::common::pki::Pki;
use rcgen::{CertificateParams, KeyPair, SanType};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const DESTINATION: &str = "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://localhost:1\"\n";
/// A user that no file here belongs to.
const NOBODY: u32 = 65_534;
/// A key that nobody uses, as somebody may paste it.
const PASTED: &str = "-----BEGIN PRIVATE KEY-----\\nc2VzYW1l\\n-----END PRIVATE KEY-----";

fn written(folder: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, text).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("mode");
    file
}

/// A certificate that nobody has signed, with these URIs.
fn certificate(cert: &Path, key: &Path, uris: &[&str]) {
    let mut params = CertificateParams::new(vec!["gw-01".to_owned()]).expect("parameters");
    params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("a URI"))));
    let pair = KeyPair::generate().expect("key");
    std::fs::write(cert, params.self_signed(&pair).expect("certificate").pem()).expect("written");
    std::fs::write(key, pair.serialize_pem()).expect("written");
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

/// A configuration that is not started, with files beside it.
struct Plant {
    gateway: Gateway,
    program: PathBuf,
}

impl Plant {
    fn new(config: impl Fn(&str) -> String) -> Self {
        let gateway = Gateway::prepare("seal", DESTINATION);
        let text = std::fs::read_to_string(gateway.config()).expect("read");
        std::fs::write(gateway.config(), config(&text)).expect("written");
        Self { gateway, program: env!("CARGO_BIN_EXE_forebay").into() }
    }

    fn folder(&self) -> &Path {
        &self.gateway.folder
    }

    /// A certificate with these URIs, as `gw.pem` and `gw.key`.
    fn with_certificate(self, uris: &[&str]) -> Self {
        certificate(&self.folder().join("gw.pem"), &self.folder().join("gw.key"), uris);
        self
    }

    /// What `check` and `run` say, and whether it is good; they agree.
    fn said_with(&self, change: impl Fn(&mut Command)) -> (bool, String) {
        let say = |verb: &str| {
            let mut command = Command::new(&self.program);
            command.args([verb, "--config"]).arg(self.gateway.config());
            change(&mut command);
            let output = command.output().expect("runs");
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(!text.contains("sesame") && !text.contains("c2VzYW1l"), "{verb} repeats a secret: {text}");
            (output.status.success(), text)
        };
        let (is_good, text) = say("check");
        if !is_good {
            let (runs, other) = say("run");
            assert!(
                !runs && text.lines().filter(|line| line.contains("forebay.toml:")).all(|line| other.contains(line))
            );
        }
        (is_good, text)
    }

    fn refused(&self, words: &[&str]) -> String {
        let (is_good, text) = self.said_with(|_| ());
        assert!(!is_good, "{text}");
        holds(&text, words);
        text
    }

    fn warned(&self, words: &[&str]) -> String {
        let (is_good, text) = self.said_with(|_| ());
        assert!(is_good, "{text}");
        holds(&text, words);
        text
    }
}

fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "\"{word}\" is missing in: {text}");
    }
}

/// With a line in the listener.
fn with(config: &str, line: &str) -> String {
    config.replace("name = \"devices\"\n", &format!("name = \"devices\"\n{line}\n"))
}

/// A configuration that `production` has nothing against.
fn for_production(config: &str) -> String {
    config.replace("\"test\"", "\"production\"").replace(
        "mqtt://localhost:1\"",
        "mqtts://localhost:1\"\ntls = { ca = \"gw.pem\", cert = \"gw.pem\", key = \"gw.key\" }",
    )
}

#[test]
fn a_secret_that_others_can_read_is_refused_in_production_and_warned_of_elsewhere() {
    let plant = Plant::new(for_production).with_certificate(&[]);
    plant.warned(&["good"]);
    written(plant.folder(), "gw.key", &std::fs::read_to_string(plant.folder().join("gw.key")).expect("read"), 0o644);
    let mend = format!("mend it with: chmod o-rwx {}/gw.key", plant.folder().display());
    plant.refused(&["forebay.toml:12: destination[0].tls.key: ", "can be read by everybody", "mode 0644", &mend]);
    // What it names is what mends it.
    assert!(Command::new("sh").args(["-c", mend.trim_start_matches("mend it with: ")]).status().expect("sh").success());
    plant.warned(&["good"]);
    let plant = Plant::new(|config| for_production(config).replace("production", "test")).with_certificate(&[]);
    written(plant.folder(), "gw.key", &std::fs::read_to_string(plant.folder().join("gw.key")).expect("read"), 0o666);
    plant.warned(&["warning: ", "destination[0].tls.key: ", "read and changed by everybody", "chmod o-rwx"]);
    // Whoever the secret is for: each kind once.
    let plant = Plant::new(|config| {
        format!(
            "mask_key = \"mask.key\"\n{}[[source.http]]\nname = \"h\"\nlisten = \"127.0.0.1:0\"\ntokens = \"tokens\"\n\
             [[source.broker]]\nname = \"b\"\nurl = \"mqtt://localhost:2\"\ntopics = [\"x/#\"]\nuser = \"u\"\npassword_file = \"plant.password\"\n\
             [[source.odoo]]\nname = \"o\"\nurl = \"http://localhost:8069\"\ndatabase = \"d\"\nkey_file = \"odoo.key\"\n\
             hook = {{ listen = \"127.0.0.1:0\", token_file = \"hook.token\" }}\n",
            with(&config.replace("\"test\"", "\"production\""), "passwords = \"users\"")
                .replace(DESTINATION.trim_start(), "")
        )
    });
    let names = ["mask.key", "users", "tokens", "plant.password", "odoo.key", "hook.token"];
    // Whoever can change a password is as good as whoever can read it.
    for (mode, verb) in [(0o604, "read"), (0o602, "changed"), (0o606, "read and changed")] {
        for name in names {
            let text = if name == "users" || name == "tokens" { "" } else { "0123456789abcdef0123456789abcdef\n" };
            written(plant.folder(), name, text, mode);
        }
        let said = plant.refused(&[
            "forebay.toml:1: mask_key: ",
            "source.mqtt[0].passwords: ",
            "source.http[0].tokens: ",
            "source.broker[0].password_file: ",
            "source.odoo[0].key_file: ",
            "source.odoo[0].hook.token_file: ",
        ]);
        let told = said.matches(&format!("can be {verb} by everybody")).count();
        assert_eq!(told, names.len(), "mode {mode:04o}: {said}");
    }
}

/// Whoever can change what the gateway reads decides what it does. Each place is opened to everybody, alone, and mended by the
/// command that is named.
#[test]
fn what_everybody_can_change_is_refused_in_production_and_warned_of_elsewhere() {
    let plant = |environment: &str| {
        let plant = Plant::new(|config| {
            let config = for_production(config).replace("production", environment);
            config
                .replace("key = \"gw.key\"", "key = \"keys/gw.key\"")
                .replace("data_dir = \"data\"", "data_dir = \"data\"\nsocket = \"run/forebay.sock\"")
        });
        let plant = plant.with_certificate(&[]);
        for folder in ["keys", "data", "data/journal", "schemas", "run"] {
            std::fs::create_dir(plant.folder().join(folder)).expect("folder");
        }
        let at = |name: &str| plant.folder().join(name);
        std::fs::rename(at("gw.key"), at("keys/gw.key")).expect("moved");
        std::fs::rename(at("contracts/state.json"), at("schemas/state.json")).expect("moved");
        let contract = std::fs::read_to_string(at("contracts/state.toml")).expect("read");
        std::fs::write(at("contracts/state.toml"), contract.replace("\"state.json\"", "\"../schemas/state.json\""))
            .expect("written");
        std::os::unix::fs::symlink("../linked.json", at("contracts/other.json")).expect("linked");
        std::fs::write(at("linked.json"), "{}").expect("written");
        plant
    };
    const PLACES: [(&str, u32, &str); 13] = [
        ("forebay.toml", 0o646, "forebay.toml: "),
        ("", 0o707, "forebay.toml: "),
        ("contracts", 0o777, "forebay.toml: contracts: "),
        ("contracts", 0o1777, "forebay.toml: contracts: "),
        ("contracts/state.toml", 0o602, "forebay.toml: contracts: "),
        ("schemas/state.json", 0o666, "forebay.toml: contracts: "),
        ("schemas", 0o777, "forebay.toml: contracts: "),
        ("linked.json", 0o666, "forebay.toml: contracts: "),
        ("keys", 0o773, "forebay.toml:13: destination[0].tls.key: "),
        ("gw.pem", 0o646, "forebay.toml:13: destination[0].tls."),
        ("data", 0o703, "forebay.toml:4: data_dir: "),
        ("data/journal", 0o777, "forebay.toml:4: data_dir: "),
        ("run", 0o777, "forebay.toml:5: socket: "),
    ];
    let production = plant("production");
    let test = plant("test");
    production.warned(&["good"]);
    for (name, mode, key) in PLACES {
        for plant in [&production, &test] {
            // A folder that is named with a slash at its end is another text.
            let path = if name.is_empty() { plant.folder().to_owned() } else { plant.folder().join(name) };
            let before = std::fs::metadata(&path).expect("there").permissions();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
            let mend = format!("mend it with: chmod o-w {}\n", path.display());
            let words = [key, "can be changed by everybody", &format!("mode {mode:04o}"), &mend];
            if std::ptr::eq(plant, &test) {
                plant.warned(&words);
                plant.warned(&["warning: "]);
                std::fs::set_permissions(&path, before).expect("mode");
                continue;
            }
            plant.refused(&words);
            let command = mend.trim_start_matches("mend it with: ");
            assert!(Command::new("sh").args(["-c", command]).status().expect("sh").success());
            assert!(!plant.warned(&["good"]).contains("everybody"), "{name}: what is named mends it");
        }
    }
}

#[test]
fn a_secret_in_the_configuration_is_refused_and_not_repeated() {
    Plant::new(|config| config.replace("mqtt://localhost:1", "mqtts://gw:sesame@central")).refused(&[
        "forebay.toml:11: destination[0].url: ",
        "…@central",
        "password_file",
    ]);
    Plant::new(|config| {
        format!("{config}\n[[source.modbus]]\nname = \"m\"\nurl = \"tcp://gw:sesame@plc:502\"\nunit = []\n")
    })
    .refused(&["source.modbus[0].url: ", "…@plc:502"]);
    let tls = format!("mqtts://localhost:1\"\ntls = {{ ca = \"gw.pem\", cert = \"gw.pem\", key = \"{PASTED}\" }}");
    Plant::new(|config| config.replace("mqtt://localhost:1\"", &tls)).with_certificate(&[]).refused(&[
        "forebay.toml:12: destination[0].tls.key: ",
        "belongs into a file",
        "credential:NAME",
    ]);
    Plant::new(|config| config.replace("mqtt://localhost:1\"", "mqtt://localhost:1\"\npassword = \"sesame\"")).refused(
        &["forebay.toml:12: destination[0]", "unknown field `password`", "the configuration does not contain secrets"],
    );
    Plant::new(|config| {
        config.replace("mqtt://localhost:1\"", "mqtt://localhost:1\"\nuser = \"gw\"\npassword_file = [\"sesame\"]")
    })
    .refused(&["forebay.toml:13: destination[0].password_file: is no path"]);
}

#[test]
fn credentials_and_variables_take_the_place_of_files_and_what_is_missing_is_named() {
    let places = "mqtts://localhost:1\"\nuser = \"gw\"\npassword_file = \"env:PLANT_PASSWORD\"\n\
        tls = { ca = \"gw.pem\", cert = \"gw.pem\", key = \"credential:tls-key\" }";
    let small = |config: &str| format!("{config}{SMALL_BUDGETS}");
    let plant = Plant::new(|config| small(&config.replace("mqtt://localhost:1\"", places))).with_certificate(&[]);
    let clean = |command: &mut Command| {
        command.env_remove("CREDENTIALS_DIRECTORY").env_remove("PLANT_PASSWORD");
    };
    let (is_good, text) = plant.said_with(clean);
    assert!(!is_good, "{text}");
    holds(&text, &["forebay.toml:14: destination[0].tls: ", "credential:tls-key", "LoadCredential=tls-key"]);
    holds(
        &text,
        &["forebay.toml:13: destination[0].password_file: ", "no variable PLANT_PASSWORD", "EnvironmentFile="],
    );
    let credentials = plant.folder().join("credentials");
    std::fs::create_dir(&credentials).expect("folder");
    let given = |command: &mut Command| {
        command.env("CREDENTIALS_DIRECTORY", &credentials).env("PLANT_PASSWORD", "sesame");
    };
    let (is_good, text) = plant.said_with(given);
    assert!(!is_good, "{text}");
    holds(&text, &["no credential \"tls-key\"", "LoadCredential=tls-key", "/etc/credstore/tls-key"]);
    // systemd guards what it hands over: its mode is not ours to judge.
    std::fs::rename(plant.folder().join("gw.key"), credentials.join("tls-key")).expect("moved");
    std::fs::set_permissions(credentials.join("tls-key"), std::fs::Permissions::from_mode(0o444)).expect("mode");
    let (is_good, text) = plant.said_with(given);
    assert!(is_good && !text.contains("warning"), "{text}");
}

#[test]
fn events_reach_central_with_a_key_that_systemd_hands_over() {
    let folder = scratch_folder("credential");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
    let credentials = folder.path().join("credentials");
    std::fs::create_dir(&credentials).expect("folder");
    std::fs::rename(&pki.client_key, credentials.join("tls-key")).expect("moved");
    let destination = broker.destination(&pki, broker.tls.port());
    let mut gateway = Gateway::prepare(
        "credential",
        &destination.replace(&pki.client_key.display().to_string(), "credential:tls-key"),
    );
    gateway.environment.push(("CREDENTIALS_DIRECTORY".into(), credentials.display().to_string()));
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 1).as_bytes());
    collector.await_count(1, PATIENCE);
}

#[test]
fn a_certificate_of_another_environment_is_refused_with_file_line_and_key() {
    const PRODUCTION: &str = "forebay:environment:production";
    let plant = Plant::new(for_production).with_certificate(&["forebay:environment:test"]);
    plant.refused(&[
        "forebay.toml:12: destination[0].tls: ",
        "gw.pem: belongs to environment \"test\" (alternative name URI:forebay:environment:test), not to \"production\"",
    ]);
    Plant::new(for_production).with_certificate(&[PRODUCTION]).warned(&["good"]);
    // The listener's as well.
    let plant = Plant::new(|config| with(config, "tls = { cert = \"gw.pem\", key = \"gw.key\" }"));
    plant.with_certificate(&[PRODUCTION]).refused(&[
        "source.mqtt[0].tls: ",
        "belongs to environment \"production\"",
        "not to \"test\"",
    ]);
    // One without is taken, unless the configuration wants it.
    Plant::new(for_production).with_certificate(&[]).warned(&["good"]);
    let sealed = |config: &str| format!("sealed_certificates = true\n{}", for_production(config));
    Plant::new(sealed).with_certificate(&[PRODUCTION]).warned(&["good"]);
    Plant::new(sealed).with_certificate(&[]).refused(&[
        "forebay.toml:13: destination[0].tls: ",
        "names no environment",
        "alternative name URI:forebay:environment:production",
    ]);
}

#[test]
fn production_refuses_what_is_open_or_unproven() {
    let refused = |change: &dyn Fn(&str) -> String, words: &[&str]| {
        let change = |config: &str| change(&for_production(config));
        Plant::new(change).with_certificate(&[]).refused(words);
    };
    refused(
        &|config| with(&config.replace("listen = \"127.0.0.1:", "listen = \"0.0.0.0:"), "anonymous = true"),
        &["forebay.toml:8: source.mqtt[0].anonymous: ", "not allowed in environment \"production\"", "client_ca"],
    );
    refused(
        &|config| format!("{config}[[source.http]]\nname = \"h\"\nlisten = \"0.0.0.0:0\"\nanonymous = true\n"),
        &["forebay.toml:16: source.http[0].anonymous: ", "not allowed in environment \"production\""],
    );
    refused(
        &|config| config.replace("mqtts://localhost:1", "mqtt://central.example.com"),
        &["destination[0].tls: ", "speaks no TLS"],
    );
    refused(
        &|config| {
            config.replace(
                "mqtts://localhost:1\"\ntls = { ca = \"gw.pem\", cert = \"gw.pem\", key = \"gw.key\" }",
                "mqtt://central.example.com\"",
            )
        },
        &["forebay.toml:11: destination[0].url: ", "without TLS", "not allowed in environment \"production\""],
    );
    // There is no word for TLS without proof.
    for word in ["insecure = true", "verify = false"] {
        refused(
            &|config| config.replace("tls = { ", &format!("tls = {{ {word}, ")),
            &["forebay.toml:12", "unknown field"],
        );
    }
}

#[test]
fn a_topic_that_is_the_same_in_every_environment_is_refused() {
    let plant = Plant::new(str::to_owned);
    let contract = plant.folder().join("contracts/state.toml");
    let text = std::fs::read_to_string(&contract).expect("read");
    std::fs::write(&contract, format!("{text}topic = \"production/{{site}}/{{stream}}/{{key}}\"\n")).expect("written");
    plant.refused(&["state.toml:10: topic: ", "{environment}"]);
}

#[test]
fn what_the_service_cannot_read_or_write_is_named_with_owner_mode_user_and_what_mends_it() {
    if !need::root("a second user") {
        return;
    }
    let as_nobody = |command: &mut Command| {
        command.uid(NOBODY).gid(NOBODY);
    };
    let mut plant = Plant::new(|config| {
        for_production(config).replace("data_dir = \"data\"", "data_dir = \"data\"\nsocket = \"sockets/forebay.sock\"")
    });
    let folder = scratch_folder("seal-program");
    plant.program = program_for_everybody(folder.path());
    let plant = plant.with_certificate(&[]);
    let at = |name: &str| plant.folder().join(name);
    std::fs::set_permissions(plant.folder(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    let (is_good, text) = plant.said_with(as_nobody);
    assert!(!is_good, "{text}");
    let (user, group) = ("nobody", "nogroup");
    holds(
        &text,
        &[
            &format!("forebay.toml:13: destination[0].tls: {}: cannot be read: ", at("gw.key").display()),
            &format!("belongs to root:root, mode 0600, and this process runs as {user}:{group}"),
            &format!("mend it with: chgrp {group} {0} && chmod g+r {0}", at("gw.key").display()),
            &format!("forebay.toml:4: data_dir: {} does not exist", at("data").display()),
            &format!("mend it with: install -d -o {user} -g {group} -m 0750 {}", at("data").display()),
            &format!("forebay.toml:5: socket: its folder {} does not exist", at("sockets").display()),
        ],
    );
    // Each command, given as it stands.
    for line in text.lines().filter_map(|line| line.split_once("mend it with: ")) {
        assert!(Command::new("sh").args(["-c", line.1]).status().expect("sh").success(), "{}", line.1);
    }
    let (is_good, text) = plant.said_with(as_nobody);
    assert!(is_good, "{text}");
    // A journal that root has begun.
    std::fs::create_dir_all(at("data/journal/critical")).expect("folder");
    written(&at("data/journal/critical"), "1.redb", "", 0o600);
    for path in ["data/journal", "data/journal/critical"] {
        chown(at(path), Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    let (is_good, text) = plant.said_with(as_nobody);
    assert!(!is_good, "{text}");
    let mend = format!("mend it with: chown -R {user}:{group} {}", at("data").display());
    holds(&text, &["forebay.toml:4: data_dir: ", "1.redb belongs to root:root, mode 0600", &mend]);
    // Root, who may write everything, gets the same answer, as the user of the service.
    let output = Command::new(&plant.program).args(["check", "--config"]).arg(plant.gateway.config()).output();
    let output = output.expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{text}");
    holds(&text, &["data_dir: ", "belongs to nobody, and this process is root", "sudo -u nobody forebay"]);
    holds(&text, &["1.redb belongs to root:root, mode 0600", "(as user nobody, who runs the service)"]);
    // A folder on the way that is shut.
    std::fs::create_dir(at("keys")).expect("folder");
    std::fs::rename(at("gw.key"), at("keys/gw.key")).expect("moved");
    std::fs::set_permissions(at("keys"), std::fs::Permissions::from_mode(0o700)).expect("mode");
    let config =
        std::fs::read_to_string(plant.gateway.config()).expect("read").replace("\"gw.key\"", "\"keys/gw.key\"");
    std::fs::write(plant.gateway.config(), config).expect("written");
    let (_, text) = plant.said_with(as_nobody);
    holds(&text, &[&format!("chgrp {group} {0} && chmod g+x {0}", at("keys").display())]);
}

/// Whether memory that a process may write holds some bytes.
fn is_in_memory(process: u32, wanted: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).expect("its memory");
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("its maps");
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let bounds = line.split([' ', '-']).take(2).map(|text| u64::from_str_radix(text, 16).expect("hex"));
        let [from, to] = bounds.collect::<Vec<_>>()[..] else { panic!("{line}") };
        let mut bytes = vec![0; (to - from) as usize];
        memory.read_exact_at(&mut bytes, from).is_ok() && memchr::memmem::find(&bytes, wanted).is_some()
    })
}

#[test]
fn a_password_and_the_text_of_a_key_are_overwritten_in_memory_after_use() {
    const PASSWORD: &str = "7f3a91c2-open-sesame-58d04be6";
    let folder = scratch_folder("memory");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
    let destination = broker.destination(&pki, broker.tls.port());
    let password = written(folder.path(), "password", &format!("{PASSWORD}\n"), 0o600);
    let mut gateway = Gateway::prepare(
        "memory",
        &format!("{destination}user = \"gateway-user\"\npassword_file = \"{}\"\n", password.display()),
    );
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 1).as_bytes());
    collector.await_count(1, PATIENCE);
    // Every connection has its login behind it.
    let up = |status: &serde_json::Value| {
        status["links"].as_array().is_some_and(|links| links.iter().all(|link| link["is_up"] == true))
    };
    gateway.await_status("links are up", PATIENCE, up);
    let key = std::fs::read_to_string(&pki.client_key).expect("read");
    let line = key.lines().nth(1).expect("a line of the key");
    // What is no secret is there, so that the search finds something.
    assert!(is_in_memory(gateway.pid(), b"gateway-user"));
    assert!(!is_in_memory(gateway.pid(), PASSWORD.as_bytes()), "the password");
    assert!(!is_in_memory(gateway.pid(), line.as_bytes()), "the key");
}

#[test]
fn a_centre_of_another_environment_gets_nothing() {
    let of = |environment: &'static str| {
        let folder = scratch_folder("peer");
        let pki = Pki::write_with(folder.path(), |server| {
            let uri = format!("forebay:environment:{environment}");
            server.subject_alt_names.push(SanType::URI(uri.as_str().try_into().expect("a URI")));
        });
        let broker = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(broker.plain, "#");
        let gateway = Gateway::start("peer", &broker.destination(&pki, broker.tls.port()));
        let (mut client, _) = Client::connect(gateway.address, &Hello::default());
        client.publish(true, 1, "plant/line1/m01/state", payload(1, 1).as_bytes());
        (gateway, collector, broker, folder)
    };
    let (gateway, collector, _broker, _folder) = of("production");
    let said = "the server belongs to environment \\\"production\\\"";
    gateway.await_status("it is said", PATIENCE, |status| status["problems"].to_string().contains(said));
    assert_eq!(collector.count(), 0, "neither an event nor a status");
    let (_gateway, collector, _broker, _folder) = of("test");
    collector.await_count(1, PATIENCE);
}

#[test]
fn another_environment_than_the_journals_is_refused_before_anything_starts() {
    let mut gateway = Gateway::start("moved", "");
    gateway.stop();
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace("\"test\"", "\"production\"")).expect("written");
    Plant { gateway, program: env!("CARGO_BIN_EXE_forebay").into() }
        .refused(&["forebay.toml:1: environment: ", "belongs to environment \"test\", not to \"production\""]);
}

#[test]
fn a_reload_with_a_certificate_of_another_environment_is_refused_and_events_flow_on() {
    let folder = scratch_folder("sealed-reload");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
    let gateway = Gateway::start("sealed-reload", &broker.destination(&pki, broker.tls.port()));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 1).as_bytes());
    collector.await_count(1, PATIENCE);
    certificate(&pki.client_cert, &pki.client_key, &["forebay:environment:production"]);
    let output = gateway.command(&["reload", "CONFIG"]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{text}");
    holds(
        &text,
        &[
            "forebay.toml:",
            "destination[0].tls: ",
            "client.pem: belongs to environment \"production\"",
            "not to \"test\"",
        ],
    );
    client.publish(true, 2, "plant/line1/m01/state", payload(1, 2).as_bytes());
    collector.await_count(2, PATIENCE);
    // Nor does a new connection show it.
    assert!(gateway.status()["problems"].to_string().contains("belongs to environment"));
}

#[test]
fn the_name_of_a_gateway_stays_when_settings_or_the_host_change() {
    let mut plant = Plant::new(str::to_owned);
    plant.gateway.run();
    plant.gateway.stop();
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    let without = config.replace("name = \"gw\"\n", "");
    assert_ne!(config, without);
    // Another name is refused, by check and at the start.
    std::fs::write(plant.gateway.config(), config.replace("name = \"gw\"\n", "name = \"other\"\n")).expect("written");
    plant.refused(&["forebay.toml:3: name: ", "belongs to gateway \"gw\", not to \"other\"", "set name = \"gw\""]);
    plant.gateway.spawn();
    assert_eq!(plant.gateway.await_exit(), Some(1));
    // Without one, the journal knows it, whatever the host is called.
    std::fs::write(plant.gateway.config(), without).expect("written");
    plant.warned(&["name: is not set", "the journal belongs to \"gw\"", "set name = \"gw\""]);
    plant.gateway.run();
    assert_eq!(plant.gateway.status()["name"], "gw");
}

#[test]
fn a_file_system_that_is_mounted_read_only_is_named_as_such() {
    if !need::root("a read-only mount") {
        return;
    }
    let plant = Plant::new(|config| config.replace("data_dir = \"data\"", "data_dir = \"ro/data\""));
    let folder = plant.folder().join("ro");
    std::fs::create_dir(&folder).expect("folder");
    let script = format!(
        "mount -t tmpfs none {0} && mkdir {0}/data && mount -o remount,ro {0} && exec {1} check --config {2}",
        folder.display(),
        plant.program.display(),
        plant.gateway.config().display()
    );
    let said = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().expect("unshare");
    let said = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    holds(&said, &["data_dir: ", "read-only", "ReadWritePaths="]);
    assert!(!said.contains("chown"), "{said}");
}
