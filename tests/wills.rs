//! Wills: every way in which a session ends or continues, with every setting of a will.

use crate::common::client::{Client, Delivery, Hello, Will, packet, subscribe};
use crate::common::gateway::Gateway;
use std::collections::BTreeMap;
use std::time::Duration;

/// Seconds of a delay: longer than a takeover takes on a busy machine.
const DELAY: u32 = 2;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// DISCONNECT with reason code 0: the will is dropped.
    Normal,
    /// DISCONNECT with reason code 4, which asks for the will.
    WithWill,
    /// The line dies.
    Line,
    /// The gateway closes the connection because of a fault.
    Fault,
    /// Another connection takes the client id over.
    TakenOver,
}

/// What the client does after the end of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    /// It connects again before the delay is over and continues the session.
    Resumes,
    /// It connects again before the delay is over and begins a new session.
    StartsClean,
    /// It begins a new session that ends with its connection.
    StartsCleanWithoutSession,
}

/// A will and its session.
#[derive(Clone, Copy, Debug)]
struct Setting {
    is_v5: bool,
    delay: u32,
    expiry: u32,
}

const SETTINGS: [Setting; 6] = [
    Setting { is_v5: true, delay: 0, expiry: 0 },
    Setting { is_v5: true, delay: 0, expiry: 60 },
    Setting { is_v5: true, delay: DELAY, expiry: 0 },
    Setting { is_v5: true, delay: DELAY, expiry: 60 },
    Setting { is_v5: true, delay: 3600, expiry: DELAY },
    Setting { is_v5: false, delay: 0, expiry: 60 },
];

fn hello<'a>(client: &'a str, setting: Setting, is_clean: bool, expiry: u32) -> Hello<'a> {
    let Setting { is_v5, delay, .. } = setting;
    let properties = if is_v5 { [&[0x11][..], &expiry.to_be_bytes()].concat() } else { vec![] };
    let will = Will {
        topic: "wills/x",
        payload: b"",
        properties: if delay > 0 { [&[0x18][..], &delay.to_be_bytes()].concat() } else { vec![] },
        ..Will::default()
    };
    Hello { is_v5, client, is_clean, properties, will: Some(will), ..Hello::default() }
}

/// Events that a will becomes, by MQTT 5, sections 3.1.2.5 and 3.1.3.2.2: it is published when its delay is over or when
/// its session ends, whichever is first, unless the session continues before.
fn expected(setting: Setting, end: End, after: After) -> usize {
    let is_resumed = after == After::Resumes;
    let waits = setting.delay.min(setting.expiry) > 0;
    usize::from(end != End::Normal && !(waits && is_resumed))
}

fn connect(gateway: &Gateway, hello: &Hello<'_>) -> Client {
    let (client, connack) = Client::connect(gateway.address, hello);
    assert_eq!(connack[2], 0, "{hello:?}");
    client
}

#[test]
fn a_will_is_published_when_the_standard_says_so_however_its_session_ends() {
    let mut gateway = Gateway::prepare("will-pairs", "");
    let contract = "name = \"will\"\nversion = \"1.0.0\"\nowner = \"t\"\nlane = \"critical\"\nkey = \"{/client}\"\nmatch = { source = \"mqtt\", topic = \"wills/x\" }\n";
    std::fs::write(gateway.folder.join("contracts/will.toml"), contract).expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}sessions_per_name_max = 1000\n")).expect("written");
    gateway.run();
    let watcher = Hello { client: "watcher", ..Hello::default() };
    let mut watcher = connect(&gateway, &watcher);
    watcher.send(&subscribe(true, 1, &[], &[("test/plant/will/#", 0)]));
    watcher.receive().expect("a SUBACK");

    let mut cases = BTreeMap::new();
    let mut open = Vec::new();
    for setting in SETTINGS {
        for end in [End::Normal, End::WithWill, End::Line, End::Fault, End::TakenOver] {
            for after in [After::Nothing, After::Resumes, After::StartsClean, After::StartsCleanWithoutSession] {
                // A takeover is a connection; MQTT 3.1.1 has no DISCONNECT with a will, and a clean session has no expiry.
                let is_possible =
                    (end != End::TakenOver || after != After::Nothing) && (setting.is_v5 || end != End::WithWill);
                if !is_possible {
                    continue;
                }
                let name = format!("c{}", cases.len());
                let payload = format!("{{\"client\":\"{name}\"}}");
                let mut hello = hello(&name, setting, false, setting.expiry);
                hello.will.as_mut().expect("a will").payload = payload.as_bytes();
                let mut client = connect(&gateway, &hello);
                match end {
                    End::Normal => client.send(&[0xE0, 0]),
                    End::WithWill => client.send(&[0xE0, 1, 4]),
                    End::Line => client.stream.shutdown(std::net::Shutdown::Both).expect("shut down"),
                    End::Fault => client.send(&packet(0xF0, &[])),
                    End::TakenOver => {}
                }
                if end != End::TakenOver {
                    // The gateway notices the end before the client connects again.
                    while client.receive().is_some() {}
                    await_gone(&gateway, &name);
                }
                open.push(client);
                let again = |is_clean, expiry| {
                    connect(&gateway, &Hello { will: None, ..self::hello(&name, setting, is_clean, expiry) })
                };
                match after {
                    After::Nothing => {}
                    After::Resumes => open.push(again(false, 60)),
                    After::StartsClean => open.push(again(true, 60)),
                    After::StartsCleanWithoutSession => open.push(again(true, 0)),
                }
                cases.insert(name, (setting, end, after));
            }
        }
    }
    // Its delay begins last, so that all others are over when its will arrives.
    let last = Setting { is_v5: true, delay: DELAY + 1, expiry: 60 };
    let mut control = hello("control", last, true, 60);
    control.will.as_mut().expect("a will").payload = b"{\"client\":\"control\"}";
    connect(&gateway, &control).die();

    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        let packet = watcher.receive().expect("the watcher stays");
        let delivery = Delivery::read(true, &packet);
        let event: serde_json::Value = serde_json::from_slice(&delivery.payload).expect("an event");
        let name = event["data"]["client"].as_str().expect("a name").to_owned();
        if name == "control" {
            break;
        }
        *found.entry(name).or_default() += 1;
    }
    let wrong: Vec<_> = cases
        .iter()
        .filter(|(name, (setting, end, after))| {
            found.get(*name).copied().unwrap_or(0) != expected(*setting, *end, *after)
        })
        .map(|(name, case)| (case, found.get(name).copied().unwrap_or(0)))
        .collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), cases.len());
}

/// Waits until the gateway knows that a client has gone.
fn await_gone(gateway: &Gateway, name: &str) {
    let start = std::time::Instant::now();
    loop {
        let output = gateway.command(&["devices", "--json", "CONFIG"]);
        let devices: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let all = devices.as_array().or_else(|| devices["devices"].as_array()).expect("a list").clone();
        if all.iter().any(|device| device["client"] == name && device["connected_since"].is_null()) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{name}: {devices:#}");
    }
}

/// A will of a session that ended by a clean start, when the gateway dies before it is published: it is on the disk.
#[test]
fn the_will_of_an_ended_session_survives_a_kill() {
    let mut gateway = Gateway::prepare("will-kill", "");
    let contract = "name = \"will\"\nversion = \"1.0.0\"\nowner = \"t\"\nlane = \"critical\"\nkey = \"{client}\"\nmatch = { source = \"mqtt\", topic = \"wills/x\" }\n";
    std::fs::write(gateway.folder.join("contracts/will.toml"), contract).expect("written");
    gateway.run();
    let setting = Setting { is_v5: true, delay: 3600, expiry: 7200 };
    let count = 20;
    let mut clients = Vec::new();
    for number in 0..count {
        let name = format!("c{number}");
        let payload = format!("{{\"number\":{number}}}");
        let mut first = hello(&name, setting, true, 7200);
        first.will.as_mut().expect("a will").payload = payload.as_bytes();
        clients.push(connect(&gateway, &first));
        clients.push(connect(&gateway, &Hello { will: None, ..hello(&name, setting, true, 7200) }));
    }
    gateway.kill();
    gateway.run();
    gateway.await_status("each will is an event", Duration::from_secs(20), |status| {
        // A will that was published just before the kill may be published again.
        crate::common::gateway::accepted(status) >= count
    });
}
