//! The reference consumer of `central/`: it drops twins, finds what is missing, and explains the rest.

use crate::common::broker::Mosquitto;
use crate::common::devices::Devices;
use crate::common::gateway::{Gateway, scratch_folder, sum};
use crate::common::pki::Pki;
use crate::common::plant::PlantBroker;
use crate::foreign::python_of_tests;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const STATE: &str = "com.example.machine.state.v1";
const T1: &str = "2026-11-23T08:00:00Z";
const T2: &str = "2026-11-23T09:00:00Z";

/// The consumer, its state, and the broker it asks.
struct Consumer {
    state: PathBuf,
    broker: SocketAddr,
    protocol: &'static str,
}

impl Consumer {
    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(python_of_tests());
        command
            .arg("-B")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/central/consumer.py"))
            .args(["test/#", "--json", "--keep", "--port", &self.broker.port().to_string()])
            .args(["--protocol", self.protocol, "--client", &format!("central-{}", self.protocol)])
            .arg("--state")
            .arg(&self.state)
            .args(more);
        command
    }

    /// Takes what the broker has; returns the report.
    fn take(&self) -> Value {
        report(&self.command(&["--idle", "1"]).output().expect("python runs; run tests/foreign/setup"))
    }

    /// Starts it and returns when it has subscribed.
    fn start(&self) -> Child {
        use std::io::BufRead;
        let mut child = self.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python runs");
        let mut said = std::io::BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("read");
        assert_eq!(line.trim(), "subscribed");
        // It may say more, and must not wait for a reader.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        child
    }
}

#[track_caller]
fn report(output: &Output) -> Value {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    assert_eq!(output.status.success(), report["is_good"] == true, "the exit code says the same");
    report
}

fn stream<'a>(report: &'a Value, kind: &str) -> &'a Value {
    let found = report["streams"].as_array().expect("a list").iter().find(|one| one["type"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {report:#}"))
}

/// Publishes as a gateway would. `properties` are the words of `mosquitto_pub -D`.
fn publish(broker: SocketAddr, topic: &str, payload: &[u8], properties: &[&[&str]]) {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &broker.port().to_string(), "-V", "mqttv5", "-q", "1", "-t", topic, "-s"]);
    for property in properties {
        command.args(["-D", "publish"]).args(*property);
    }
    let mut child = command.stdin(Stdio::piped()).spawn().expect("mosquitto_pub; apt-get install mosquitto-clients");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), payload).expect("written");
    assert!(child.wait().expect("ends").success());
}

fn event(kind: &str, sequence: u64, id: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "type": kind, "source": "/plant/gw/devices/m1", "id": id, "time": T1, "subject": "m1",
           "recordedtime": T1, "sequence": format!("{sequence:020}"), "datacontenttype": "application/json", "data": data})
}

fn state(sequence: u64) -> Value {
    event(STATE, sequence, &format!("id-{sequence}"), json!({"seq": sequence}))
}

fn ledger(number: u64, first: u64, last: u64, held: &[u64], at: &str) -> Value {
    let mut digest = Sha256::new();
    held.iter().for_each(|sequence| digest.update(format!("id-{sequence}\n")));
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let data = json!({"stream": "machine.state.v1", "from": T1, "to": at, "first": first, "last": last,
                      "count": held.len(), "digest": digest, "watermark": {"time": at, "sequence": last}});
    event("com.example.gateway.ledger.v1", number, &format!("ledger-{number}"), data)
}

fn shed(first: u64, last: u64, count: u64) -> Value {
    let streams = json!([{"stream": "machine.state.v1", "count": count, "first": first, "last": last}]);
    let data = json!({"cause": "shed", "lane": "bulk", "destination": "central", "streams": streams,
                      "from": T1, "to": T1, "count": count});
    event("com.example.gateway.loss.v1", 1, "loss-1", data)
}

const TOPIC: &str = "test/plant/machine.state/v1/m1";
const STRUCTURED: &[&str] = &["content-type", "application/cloudevents+json"];
const BATCH: &[&str] = &["content-type", "application/cloudevents-batch+json"];
const ZSTD: &[&str] = &["content-type", "application/cloudevents-batch+json+zstd"];

#[test]
fn the_consumer_tells_what_is_missing_from_what_is_lost_or_was_never_there() {
    let folder = scratch_folder("consumer");
    let broker = PlantBroker::start(folder.path(), "");
    let consumer = Consumer { state: folder.path().join("state.db"), broker: broker.plain, protocol: "5" };
    assert_eq!(consumer.take()["events"], 0);
    // What follows comes while it is away, and is kept in its session.
    let send = |event: &Value, more: &[&[&str]]| {
        let properties: Vec<_> = [STRUCTURED].iter().chain(more).copied().collect();
        publish(broker.plain, TOPIC, event.to_string().as_bytes(), &properties);
    };
    for sequence in [1, 2, 3, 3] {
        send(&state(sequence), &[]);
    }
    // 4 is shed, 5 is missing, 7 was never given.
    send(&state(6), &[&["user-property", "backfill", "true"]]);
    let batch = json!([state(8), state(9)]);
    publish(broker.plain, TOPIC, batch.to_string().as_bytes(), &[BATCH]);
    let attributes = state(10);
    let mut binary: Vec<Vec<&str>> = vec![vec!["content-type", "application/json"]];
    for name in ["specversion", "type", "source", "id", "time", "subject", "recordedtime", "sequence"] {
        binary.push(vec!["user-property", name, attributes[name].as_str().expect("text")]);
    }
    let binary: Vec<&[&str]> = binary.iter().map(Vec::as_slice).collect();
    publish(broker.plain, TOPIC, attributes["data"].to_string().as_bytes(), &binary);
    let packed = zstd::bulk::compress(json!([state(11), state(12)]).to_string().as_bytes(), 1).expect("packs");
    publish(broker.plain, TOPIC, &packed, &[ZSTD]);
    for event in [ledger(1, 1, 3, &[1, 2, 3], T1), ledger(2, 6, 8, &[6, 8], T2), shed(4, 4, 1)] {
        publish(broker.plain, "test/plant/gateway.ledger/v1/gw", event.to_string().as_bytes(), &[STRUCTURED]);
    }

    let report = consumer.take();
    let found = stream(&report, STATE);
    assert_eq!(found["missing_ranges"], json!([[5, 5]]), "{report:#}");
    assert_eq!((&found["lost"], &found["never_given"]), (&json!({"shed": 1}), &json!(1)), "{report:#}");
    assert_eq!(found["complete"], json!({"time": T1, "sequence": 3}), "{report:#}");
    assert_eq!((&found["events"], &found["last"]), (&json!(9), &json!(12)), "{report:#}");
    let counts = (&report["events"], &report["doubled"], &report["backfill"], &report["is_good"]);
    assert_eq!(counts, (&json!(12), &json!(1), &json!(1), &json!(false)), "{report:#}");

    send(&state(5), &[&["user-property", "replay", "true"]]);
    let report = consumer.take();
    let found = stream(&report, STATE);
    assert_eq!((&report["is_good"], &report["replay"]), (&json!(true), &json!(1)), "{report:#}");
    assert_eq!(found["complete"], json!({"time": T2, "sequence": 8}), "{report:#}");
    // What was replayed once more is a twin, and changes nothing.
    send(&state(5), &[&["user-property", "replay", "true"]]);
    assert_eq!(consumer.take()["doubled"], 2);
}

#[test]
fn the_consumer_puts_times_right_that_were_given_while_the_gateway_did_not_know_the_time() {
    let folder = scratch_folder("consumer-clock");
    let broker = PlantBroker::start(folder.path(), "");
    let consumer = Consumer { state: folder.path().join("state.db"), broker: broker.plain, protocol: "5" };
    consumer.take();
    let at = |sequence: u64, time: &str, recorded: &str, is_marked: bool| {
        let mut event = state(sequence);
        event["time"] = time.into();
        event["recordedtime"] = recorded.into();
        if is_marked {
            event["clockstatus"] = "untrusted".into();
        }
        publish(broker.plain, TOPIC, event.to_string().as_bytes(), &[STRUCTURED]);
    };
    let lost = "1970-01-01T00:16:41.500000Z";
    at(1, lost, lost, true);
    // A device that knows the time, and one that says when something was an hour ago.
    at(2, T1, "1970-01-01T00:16:42.000000Z", true);
    at(3, "2026-11-23T08:00:10.000000Z", "2026-11-23T08:00:10.000000Z", true);
    at(4, T2, T2, false);
    assert_eq!(stream(&consumer.take(), STATE)["clock"], json!({"corrected": 0, "unknown": 3}));
    let correction = |number: u64, offset: Value| {
        let data = json!({"status": "untrusted", "cause": "set", "offset_seconds": offset, "from": "1970-01-01T00:16:40.000000Z",
            "to": "1970-01-01T00:16:50.000000Z", "set_to": "2026-11-23T08:00:10.000000Z",
            "streams": [{"lane": "critical", "stream": "machine.state.v1", "first": 1, "last": 2}]});
        let event = event("com.example.gateway.clock.v1", number, &format!("clock-{number}"), data);
        publish(broker.plain, "test/plant/gateway.clock/v1/gw", event.to_string().as_bytes(), &[STRUCTURED]);
    };
    correction(1, Value::Null);
    assert_eq!(stream(&consumer.take(), STATE)["clock"], json!({"corrected": 0, "unknown": 3}));
    correction(2, json!(1_795_420_400.25));
    let report = consumer.take();
    assert_eq!(stream(&report, STATE)["clock"], json!({"corrected": 2, "unknown": 0}), "{report:#}");
    let said = consumer.command(&["--times"]).output().expect("python runs");
    let said = String::from_utf8(said.stdout).expect("text");
    let times: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|event| event["type"] == STATE)
        .map(|event| json!([event["sequence"], event["time"], event["recordedtime"], event["clock"]]))
        .collect();
    assert_eq!(
        Value::from(times),
        json!([
            [1, "2026-11-23T08:10:01.750000Z", "2026-11-23T08:10:01.750000Z", "corrected"],
            [2, T1, "2026-11-23T08:10:02.250000Z", "corrected"],
            [3, "2026-11-23T08:00:10.000000Z", "2026-11-23T08:00:10.000000Z", "right"],
            [4, T2, T2, "right"]
        ])
    );
}

#[test]
fn the_consumer_finds_a_wrong_digest_a_number_given_twice_and_what_the_ledger_had_and_it_has_not() {
    let folder = scratch_folder("consumer-wrong");
    let broker = PlantBroker::start(folder.path(), "");
    let consumer = Consumer { state: folder.path().join("state.db"), broker: broker.plain, protocol: "5" };
    consumer.take();
    for event in [
        state(1),
        state(2),
        event(STATE, 2, "another", json!({})),
        ledger(1, 1, 2, &[1, 3], T1),
        ledger(2, 3, 5, &[3, 4, 5], T2),
    ] {
        publish(broker.plain, TOPIC, event.to_string().as_bytes(), &[STRUCTURED]);
    }
    publish(broker.plain, TOPIC, b"no event", &[STRUCTURED]);
    let report = consumer.take();
    let problems = report["problems"].to_string();
    for word in ["the digest of 1 to 2 differs", "sequence 2 was given to id-2 and to another", "cannot be read"] {
        assert!(problems.contains(word), "{word}: {report:#}");
    }
    assert_eq!(stream(&report, STATE)["missing_ranges"], json!([[3, 5]]), "the watermark says that they were sent");
    assert_eq!(report["is_good"], false);
}

#[test]
fn over_mqtt_3_1_1_topic_prefixes_and_first_bytes_tell() {
    let folder = scratch_folder("consumer-3");
    let broker = PlantBroker::start(folder.path(), "");
    let consumer = Consumer { state: folder.path().join("state.db"), broker: broker.plain, protocol: "3.1.1" };
    consumer.take();
    publish(broker.plain, TOPIC, state(1).to_string().as_bytes(), &[]);
    publish(broker.plain, &format!("backfill/{TOPIC}"), json!([state(2), state(3)]).to_string().as_bytes(), &[]);
    publish(broker.plain, &format!("replay/{TOPIC}"), state(1).to_string().as_bytes(), &[]);
    let report = consumer.take();
    assert_eq!(report["is_good"], true, "{report:#}");
    let counts = (&report["events"], &report["doubled"], &report["backfill"], &report["replay"]);
    assert_eq!(counts, (&json!(3), &json!(1), &json!(2), &json!(1)), "{report:#}");
}

/// What it acknowledged it has: killed at any moment, it misses nothing.
#[test]
fn the_consumer_loses_nothing_when_it_is_killed() {
    let folder = scratch_folder("consumer-kill");
    let pki = Pki::write(folder.path());
    let central = Mosquitto::start(folder.path(), &pki);
    let consumer = Consumer { state: folder.path().join("state.db"), broker: central.plain, protocol: "5" };
    consumer.take();
    let gateway = Gateway::start("consumer", &central.destination(&pki, central.tls.port()));
    let devices = Devices::start(gateway.address, 4, 10, Duration::ZERO);
    let start = Instant::now();
    let mut rounds = 0;
    while devices.count() < 6_000 || rounds < 4 {
        assert!(start.elapsed() < Duration::from_secs(60), "{} acknowledged", devices.count());
        let mut child = consumer.start();
        std::thread::sleep(Duration::from_millis(150 + 90 * rounds));
        crate::common::kill(&mut child);
        rounds += 1;
        if devices.count() > 30_000 {
            break;
        }
    }
    let acknowledged = devices.stop().len();
    gateway.await_status("central has all", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    let report = consumer.take();
    let found = stream(&report, "com.example.machine.state.v1");
    assert_eq!((&found["missing"], &found["first"]), (&json!(0), &json!(1)), "{report:#}");
    assert_eq!(found["events"], acknowledged, "{report:#}");
    println!("{acknowledged} events, {rounds} kills, {} twins", report["doubled"]);
}

/// The compact envelope loses nothing: a consumer has the same events, attribute by attribute, from both forms.
#[test]
fn the_consumer_reads_from_compact_messages_what_it_reads_from_structured_ones() {
    let folder = scratch_folder("consumer-compact");
    let brokers = ["one", "two"].map(|name| {
        let folder = folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        PlantBroker::start(&folder, "")
    });
    let consumers = [0, 1].map(|index| {
        let state = folder.path().join(format!("{index}.db"));
        let consumer = Consumer { state, broker: brokers[index].plain, protocol: "5" };
        consumer.take();
        consumer
    });
    let destination = |name: &str, broker: &PlantBroker, more: &str| {
        format!("\n[[destination]]\nname = \"{name}\"\nurl = \"mqtt://{}\"\n{more}", broker.plain)
    };
    let gateway = Gateway::start(
        "consumer-compact",
        &(destination("one", &brokers[0], "") + &destination("two", &brokers[1], "envelope = \"compact\"\n")),
    );
    let devices = Devices::start(gateway.address, 5, 2, Duration::from_millis(1));
    let start = Instant::now();
    while devices.count() < 300 {
        assert!(start.elapsed() < Duration::from_secs(60), "{} acknowledged", devices.count());
        std::thread::sleep(Duration::from_millis(5));
    }
    let acknowledged = devices.stop().len();
    gateway.await_status("both have all", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    let bodies = consumers.each_ref().map(|consumer| {
        let report = consumer.take();
        assert_eq!(stream(&report, STATE)["events"], acknowledged, "{report:#}");
        let dump = "import json, sqlite3, sys\nfor row in sqlite3.connect(sys.argv[1]).execute(\"SELECT body FROM event WHERE type = ? ORDER BY sequence\", sys.argv[2:]):\n    print(json.dumps(json.loads(row[0]), sort_keys=True))";
        let output = Command::new(python_of_tests()).args(["-c", dump]).arg(&consumer.state).arg(STATE).output();
        String::from_utf8(output.expect("python").stdout).expect("text")
    });
    assert_eq!(bodies[0].lines().count(), acknowledged);
    assert_eq!(bodies[0], bodies[1]);
}
