//! What a device says arrives at central as its contract says, or is a dead letter that says why not.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::client::{Client, Hello, publish, text};
use crate::common::gateway::{Gateway, accepted, payload, scratch_folder, sum};
use crate::common::pki::Pki;
use std::time::Duration;

struct Plant {
    gateway: Gateway,
    collector: Collector,
    _broker: Mosquitto,
    _folder: tempfile::TempDir,
}

impl Plant {
    fn start(name: &str, contracts: &[(&str, &str)]) -> Self {
        let folder = scratch_folder(name);
        let pki = Pki::write(folder.path());
        let broker = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(broker.plain, "test/plant/#");
        let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n", broker.plain);
        let mut gateway = Gateway::prepare(name, &format!("mask_key = \"mask.key\"\n{destination}"));
        std::fs::write(gateway.folder.join("mask.key"), [7; 32]).expect("written");
        for (file, text) in contracts {
            std::fs::write(gateway.folder.join("contracts").join(file), text).expect("written");
        }
        gateway.run();
        Self { gateway, collector, _broker: broker, _folder: folder }
    }

    fn connect(&self) -> Client {
        Client::connect(self.gateway.address, &Hello { client: "press-4", ..Hello::default() }).0
    }

    /// The events that arrived, without the gateway's status.
    fn events(&self, count: usize) -> Vec<(String, serde_json::Value)> {
        self.gateway.await_status("everything is delivered", Duration::from_secs(20), |status| {
            sum(status, "queued") == 0 && accepted(status) as usize == count
        });
        std::thread::sleep(Duration::from_millis(200));
        let arrived = self.collector.arrived().into_iter().filter(|event| !event.topic.contains("gateway.status"));
        let events: Vec<_> = arrived.map(|event| (event.topic.clone(), event.event())).collect();
        assert_eq!(events.len(), count);
        events
    }

    fn letters(&self) -> Vec<serde_json::Value> {
        let output = self.gateway.command(&["dead", "list", "--json", "CONFIG"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

const MASKED: &str = r#"
name = "operator.action"
version = "2.1.0"
owner = "tests"
match = { source = "mqtt", topic = "op/{cell}" }
key = "{cell}/{/order}"
keep = ["/order", "/operator", "/deep/kept"]
mask = ["/operator"]
"#;

const ANYTHING: &str = r##"
name = "raw.anything"
version = "1.0.0"
owner = "tests"
lane = "bulk"
match = { source = "mqtt", topic = "#" }
accepts = "any"
"##;

const FLAGGED: &str = r#"
name = "flagged.value"
version = "1.0.0"
owner = "tests"
match = { source = "mqtt", topic = "flag/{x}" }
time = "/ts"
schema = "state.json"
on_violation = "flag"
"#;

#[test]
fn what_is_not_kept_is_never_stored_and_what_is_masked_is_a_keyed_hash() {
    let plant = Plant::start("mask", &[("op.toml", MASKED)]);
    let mut client = plant.connect();
    let said = br#"{"order":"WH/MO/7","operator":"Jane Doe","pin":"0000","deep":{"kept":1,"other":2}}"#;
    client.publish(true, 1, "op/cell%1", said);
    client.publish(true, 2, "op/c1", br#"{"operator":"Jane Doe","pin":"0000"}"#);
    let events = plant.events(1);
    let (topic, event) = &events[0];
    assert_eq!(topic, "test/plant/operator.action/v2/cell%251/WH/MO/7");
    assert_eq!(event["subject"], "cell%1/WH/MO/7");
    assert_eq!(event["type"], "com.example.operator.action.v2");
    assert_eq!(event["source"], "/plant/gw/devices/press-4");
    let data = &event["data"];
    assert_eq!((&data["order"], &data["deep"]), (&"WH/MO/7".into(), &serde_json::json!({"kept": 1})));
    assert!(
        data["operator"].as_str().is_some_and(|text| text.starts_with("hmac-sha256:") && text.len() == 44),
        "{data}"
    );
    assert!(data.get("pin").is_none());
    // The dead letter is minimised too.
    let id = plant.letters()[0]["id"].to_string();
    let letter = plant.gateway.command(&["dead", "show", &id, "--json", "CONFIG"]);
    let letter: serde_json::Value = serde_json::from_slice(&letter.stdout).expect("JSON");
    assert_eq!(letter["reason"], "/order: is missing, or is neither text nor number");
    let kept = letter["payload_text"].as_str().expect("text");
    assert!(kept.contains("hmac-sha256:") && !kept.contains("Jane") && !kept.contains("pin"), "{kept}");
    let folder = plant.gateway.folder.join("data");
    let output =
        std::process::Command::new("grep").args(["-rlE", "Jane Doe|0000\""]).arg(folder).output().expect("grep");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Once only the last value of a repeated name was masked; the earlier ones were stored and sent as they were.
#[test]
fn no_value_of_a_repeated_name_escapes_a_mask() {
    let whole = MASKED.replace("keep = [\"/order\", \"/operator\", \"/deep/kept\"]\n", "");
    let contract = whole.replace("[\"/operator\"]", "[\"/operator\", \"/deep/pin\"]");
    let plant = Plant::start("repeated", &[("op.toml", &contract)]);
    let mut client = plant.connect();
    let many: String = (0..40).map(|index| format!("\"n{index}\":0,\"operator\":\"Jane Doe\",")).collect();
    let said = [
        r#"{"order":1,"operator":"Jane Doe","operator":"Jane Doe"}"#.to_owned(),
        r#"{"order":2,"operator":"Jane Doe","\u006fperator":"Jane Doe"}"#.to_owned(),
        r#"{"order":3,"deep":{"pin":"Jane Doe","pin":"Jane Doe"}}"#.to_owned(),
        r#"{"order":4,"deep":{"pin":"Jane Doe"},"deep":{"pin":1}}"#.to_owned(),
        r#"{"order":5,"deep":{"pin":"Jane Doe"},"deep":7}"#.to_owned(),
        format!("{{{many}\"order\":6}}"),
        // This one has no order: it becomes a dead letter.
        r#"{"operator":"Jane Doe","operator":"Jane Doe"}"#.to_owned(),
    ];
    for (said, id) in said.iter().zip(1..) {
        client.publish(true, id, "op/c1", said.as_bytes());
    }
    plant.events(6);
    let events = plant.collector.arrived();
    let sent: String = events.iter().map(|event| String::from_utf8_lossy(&event.payload)).collect();
    assert!(sent.contains("hmac-sha256:") && !sent.contains("Jane"), "{sent}");
    assert_eq!(plant.letters().len(), 1);
    let folder = plant.gateway.folder.join("data");
    let output = std::process::Command::new("grep").args(["-rl", "Jane Doe"]).arg(folder).output().expect("grep");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_catch_all_takes_what_no_narrower_contract_does() {
    let plant = Plant::start("catchall", &[("any.toml", ANYTHING)]);
    let mut client = plant.connect();
    client.publish(true, 1, "plant/line1/m01/state", payload(1, 1).as_bytes());
    client.publish(true, 2, "some/where", br#"{"a":1}"#);
    client.send(&publish(true, 1, 3, "some/where", &[&[0x03][..], &text("image/x")].concat(), &[0, 255, 1]));
    client.receive();
    let events = plant.events(3);
    let of = |stream: &str| -> Vec<_> {
        events.iter().filter(|(topic, _)| topic.contains(stream)).map(|(_, event)| event).collect()
    };
    assert_eq!(of("machine.state").len(), 1);
    let any = of("raw.anything");
    assert_eq!(any[0]["data"], serde_json::json!({"a": 1}));
    assert_eq!((&any[1]["data_base64"], &any[1]["datacontenttype"]), (&"AP8B".into(), &"image/x".into()));
    assert!(any[0]["id"].as_str().is_some_and(|id| id.len() == 36), "an id is minted");
    assert!(plant.letters().is_empty());
}

#[test]
fn a_flagged_violation_is_delivered_and_marked() {
    let plant = Plant::start("flag", &[("flag.toml", FLAGGED)]);
    let mut client = plant.connect();
    client.publish(true, 1, "flag/a", br#"{"msg_id":"1","ts":"2026-11-23T08:00:00+01:00"}"#);
    client.publish(true, 2, "flag/a", br#"{"msg_id":"1","ts":1764000000.5,"state":"dancing"}"#);
    let events = plant.events(2);
    assert_eq!(events[0].1["time"], "2026-11-23T07:00:00.000000Z");
    assert!(events[0].1.get("violation").is_none());
    assert_eq!(events[1].1["time"], "2025-11-24T16:00:00.500000Z");
    assert!(events[1].1["violation"].as_str().is_some_and(|why| why.starts_with("/state: ")), "{}", events[1].1);
}

#[test]
fn repeats_are_recognised_across_restarts_and_a_restarted_counter_loses_nothing() {
    let mut plant = Plant::start("repeats", &[]);
    let topic = "plant/line1/m01/state";
    for _ in 0..2 {
        let mut client = plant.connect();
        client.publish(true, 1, topic, payload(1, 1).as_bytes());
        client.publish(true, 2, topic, payload(1, 1).as_bytes());
        plant.gateway.stop();
        plant.gateway.run();
    }
    let mut client = plant.connect();
    client.publish(true, 1, topic, payload(1, 1).as_bytes());
    assert_eq!(plant.gateway.status()["repeats"]["duplicates"], 1);
    // The same id with another payload is another event.
    let other = payload(1, 1).replace("longer", "different");
    client.publish(true, 2, topic, other.as_bytes());
    client.publish(true, 3, topic, other.as_bytes());
    // After kill -9 too.
    plant.gateway.kill();
    plant.gateway.run();
    let mut client = plant.connect();
    client.publish(true, 1, topic, payload(1, 1).as_bytes());
    assert_eq!(plant.gateway.status()["repeats"]["duplicates"], 1);
    let events = {
        plant
            .gateway
            .await_status("everything is delivered", Duration::from_secs(20), |status| sum(status, "queued") == 0);
        std::thread::sleep(Duration::from_millis(200));
        let all = plant.collector.arrived().into_iter().filter(|event| event.topic.contains("machine.state"));
        let mut events: Vec<_> = all.map(|event| event.event()).collect();
        // After kill -9 some come again.
        events.sort_by_key(|event| event["sequence"].to_string());
        events.dedup_by_key(|event| event["sequence"].to_string());
        events
    };
    assert_eq!(events.len(), 2, "{events:#?}");
    assert_eq!(events[0]["id"], "01-00000001");
    assert_eq!(
        (events[1]["originalid"].as_str(), events[1]["id"].as_str().map(str::len)),
        (Some("01-00000001"), Some(36))
    );
}

#[test]
fn a_shutdown_gives_the_acknowledgements_in_flight() {
    let mut plant = Plant::start("drain", &[("any.toml", ANYTHING)]);
    let mut client = plant.connect();
    client.publish(true, 1, "some/where", b"{}");
    // The bulk lane lingers: these are not on the disk when the signal comes.
    for id in 2..=5 {
        client.send(&publish(true, 1, id, "some/where", &[], b"{}"));
    }
    std::thread::sleep(Duration::from_millis(60));
    plant.gateway.stop();
    for id in 2..=5 {
        assert_eq!(client.receive(), Some(vec![0x40, 0, id]));
    }
    assert_eq!(client.disconnect_code(), 0x8B, "server shutting down");
    assert!(plant.gateway.log().contains("the journal is closed"), "{}", plant.gateway.log());
    plant.gateway.run();
    plant.gateway.await_status("all five are there", Duration::from_secs(10), |status| {
        accepted(status) == 5 && sum(status, "queued") == 0
    });
}

#[test]
fn central_sees_whether_the_gateway_lives() {
    let mut plant = Plant::start("alive", &[]);
    let state = |plant: &Plant| {
        let all = plant.collector.arrived();
        let last = all.iter().rfind(|event| event.topic == "test/plant/gateway.status/v1/gw").expect("a status");
        last.event()["data"]["state"].as_str().map(str::to_owned)
    };
    let wait = |plant: &Plant, wanted: &str| {
        let start = std::time::Instant::now();
        while plant.collector.count() == 0 || state(plant).as_deref() != Some(wanted) {
            assert!(start.elapsed() < Duration::from_secs(10), "{wanted} does not come");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait(&plant, "online");
    plant.gateway.kill();
    wait(&plant, "offline");
    plant.gateway.run();
    wait(&plant, "online");
    plant.gateway.stop();
    wait(&plant, "offline");
}
