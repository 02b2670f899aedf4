//! Clients that others have written, against a real gateway: each is a program in `foreign/` that prints
//! `ok NAME` or `FAIL NAME reason` for each of its checks. `tests/foreign/setup` installs what they need.

use crate::common::free_address;
use crate::common::gateway::{Gateway, accepted};
use crate::common::pki::Pki;
use forebay::sources::mqtt::put_user;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each client checks, in MQTT 3.1.1 and in 5, and how many events come of it at least.
const CHECKS: [(&str, u64); 10] = [
    ("qos0", 0),
    ("qos1", 20),
    ("qos2", 20),
    ("large", 1),
    ("many", 1000),
    ("subscribe", 20),
    ("session", 10),
    ("will", 1),
    ("login", 5),
    ("tls", 5),
];

/// Checks that have to fail for now, all clients' or one's: the gateway lacks what they are about, or
/// cuts a client off that has more in flight than its Receive Maximum (mqtt.js does not look at it).
const AWAITS: &[(&str, &[&str])] = &[];

const CONTRACT: &str = r#"
name = "foreign.event"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "foreign/{machine}/x" }
key = "{machine}"
id = "/id"
"#;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign")
}

/// Where `tests/foreign/setup` puts what it installs.
pub(crate) fn installed(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache");
    let path = cache.unwrap_or_else(home).join("forebay-tests").join(name);
    assert!(path.exists(), "{} is missing; run tests/foreign/setup", path.display());
    path
}

/// Runs a client against a gateway of its own.
fn check(client: &str, command: impl FnOnce(&Path) -> Command) {
    let mut gateway = Gateway::prepare(&format!("foreign-{client}"), "");
    let pki = Pki::write(&gateway.folder);
    put_user(&gateway.folder.join("passwd"), "press", b"right").expect("written");
    std::fs::write(gateway.folder.join("contracts/foreign.toml"), CONTRACT).expect("written");
    let (login, tls) = (free_address(), free_address());
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let more = format!(
        r#"{config}
[[source.mqtt]]
name = "logins"
listen = "{login}"
passwords = "passwd"
[[source.mqtt]]
name = "certificates"
listen = "{tls}"
tls = {{ cert = "server.pem", key = "server.key", client_ca = "ca.pem" }}
"#
    );
    std::fs::write(gateway.config(), more).expect("written");
    gateway.run();
    crate::common::await_port(tls);
    let awaited = AWAITS.iter().filter(|(of, _)| of.is_empty() || *of == client);
    let awaited: Vec<&str> = awaited.flat_map(|(_, names)| names.iter().copied()).collect();
    let output = command(&gateway.folder)
        .env("FOREIGN_PORT", gateway.address.port().to_string())
        .env("FOREIGN_LOGIN_PORT", login.port().to_string())
        .env("FOREIGN_TLS_PORT", tls.port().to_string())
        .env("FOREIGN_CA", &pki.ca)
        .env("FOREIGN_CERT", &pki.client_cert)
        .env("FOREIGN_KEY", &pki.client_key)
        .env("FOREIGN_AWAITED", awaited.join(" "))
        .output()
        .expect("the client starts; run tests/foreign/setup");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    let mut problems = Vec::new();
    let mut events = 0;
    for (name, count) in
        CHECKS.iter().flat_map(|(name, count)| [3, 5].map(|version| (format!("{name}-{version}"), count)))
    {
        let is_ok = said.lines().any(|line| line == format!("ok {name}"));
        let failure = said.lines().find(|line| line.starts_with(&format!("FAIL {name} ")));
        match (is_ok, failure, awaited.contains(&name.as_str())) {
            (true, None, false) => events += count,
            (false, Some(_), true) => {}
            (true, None, true) => problems.push(format!("{name} passes: take it out of AWAITS")),
            (false, Some(failure), false) => problems.push(failure.to_owned()),
            _ => problems.push(format!("{name} is said neither to pass nor to fail")),
        }
    }
    assert!(problems.is_empty(), "{client}:\n{}", problems.join("\n"));
    assert_eq!(output.status.success(), awaited.is_empty(), "{}", output.status);
    let status = gateway.status();
    assert!(accepted(&status) >= events, "{client} had {events} acknowledged: {status:#}");
    assert_eq!(status["dead"]["total"], 0, "{status:#}");
}

/// The Python that `tests/foreign/setup` made.
pub fn python_of_tests() -> PathBuf {
    installed("python").join("bin/python")
}

fn python(script: &str) -> Command {
    let mut command = Command::new(python_of_tests());
    command.arg("-B").arg(folder().join(script));
    command
}

#[test]
fn paho_for_python() {
    check("paho", |_| python("with_paho.py"));
}

#[test]
fn aiomqtt() {
    check("aiomqtt", |_| python("with_aiomqtt.py"));
}

#[test]
fn mqtt_js() {
    check("mqttjs", |_| {
        let mut command = Command::new("node");
        command.arg(folder().join("mqttjs.mjs")).env("FOREIGN_NODE", installed("node"));
        command
    });
}

#[test]
fn mosquitto_s_own_clients() {
    check("mosquitto", |_| Command::new(folder().join("mosquitto.sh")));
}

#[test]
fn paho_for_c() {
    assert!(Path::new("/usr/include/MQTTClient.h").exists(), "libpaho-mqtt-dev is missing; run tests/foreign/setup");
    check("libpaho", |scratch| {
        let program = scratch.join("libpaho");
        let source = folder().join("libpaho.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-Wall", "-Wextra", "-o"]).arg(&program).arg(source).arg("-lpaho-mqtt3cs");
        assert!(compiler.status().expect("a C compiler; run tests/foreign/setup").success());
        Command::new(program)
    });
}
