//! A machine that does not know the time: it takes events, delivers them over TLS and says so; when the clock is
//! set, central gets what it needs to put them right. The clock is that of libfaketime.

use crate::common::await_port;
use crate::common::broker::{Arrived, Collector, Mosquitto};
use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, payload, scratch_folder};
use crate::common::pki::Pki;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "plant/line1/m01/state";

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let found = folders.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.exists());
    found.expect("libfaketime is there; apt-get install libfaketime")
}

/// A gateway under a clock of its own, and a centre behind TLS under the true one.
struct Plant {
    gateway: Gateway,
    broker: Mosquitto,
    pki: Pki,
    folder: tempfile::TempDir,
    collector: Collector,
}

impl Plant {
    /// Not started yet; `rest` is added to its configuration.
    fn prepare(name: &str, pki: impl Fn(&Path) -> Pki, rest: impl Fn(&Pki) -> String) -> Self {
        let folder = scratch_folder(name);
        let pki = pki(folder.path());
        let broker = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(broker.plain, "test/plant/#");
        let destination = broker.destination(&pki, broker.tls.port());
        // Nobody has to be there when a correction comes.
        let destination = destination.replace("require_subscriber = true\n", "");
        let mut gateway = Gateway::prepare(name, &format!("{destination}{}", rest(&pki)));
        gateway.environment = vec![
            ("LD_PRELOAD".into(), library().display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE".into(), folder.path().join("time").display().to_string()),
            ("FAKETIME_NO_CACHE".into(), "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
            ("NO_FAKE_STAT".into(), "1".into()),
        ];
        Self { gateway, broker, pki, folder, collector }
    }

    fn new(name: &str) -> Self {
        Self::prepare(name, Pki::write, |_| String::new())
    }

    /// Sets the clock so many seconds off.
    fn set(&self, offset: i64) {
        let file = self.folder.path().join("time");
        std::fs::write(file.with_extension("new"), format!("{offset:+}\n")).expect("written");
        std::fs::rename(file.with_extension("new"), file).expect("renamed");
    }

    /// To 1970, as a box without a battery starts; how far off that is.
    fn forget_the_time(&self) -> i64 {
        let offset = 1000 - now();
        self.set(offset);
        offset
    }

    fn publish(&self, numbers: std::ops::RangeInclusive<u16>) {
        let (mut client, _) = Client::connect(self.gateway.address, &Hello::default());
        for number in numbers {
            client.publish(true, number, TOPIC, payload(1, number.into()).as_bytes());
        }
    }

    /// The program as after a start of the machine: with another boot id.
    fn run_after_a_boot(&self) -> Booted {
        let id = self.folder.path().join("boot_id");
        std::fs::write(&id, "00000000-0000-4000-8000-000000000001\n").expect("written");
        let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec env \"$@\"", id.display());
        let log =
            std::fs::File::options().create(true).append(true).open(self.gateway.folder.join("log")).expect("log");
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", &script, "sh"])
            .args(self.gateway.environment.iter().map(|(name, value)| format!("{name}={value}")))
            .arg(env!("CARGO_BIN_EXE_forebay"))
            .args(["run", "--config"])
            .arg(self.gateway.config())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare starts");
        let booted = Booted(child);
        await_port(self.gateway.address);
        booted
    }

    /// Events of machines, each once, in the order of their numbers.
    fn events(&self) -> Vec<Value> {
        let mut events: Vec<Value> =
            self.collector.arrived().iter().filter(|one| !is_own(one)).map(Arrived::event).collect();
        events.sort_by_key(sequence);
        events.dedup_by_key(|event| sequence(event));
        events
    }

    fn await_events(&self, count: usize) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let events = self.events();
            if events.len() >= count {
                return events;
            }
            assert!(start.elapsed() < PATIENCE, "{} of {count} arrived", events.len());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn corrections(&self) -> Vec<Value> {
        let arrived = self.collector.arrived();
        let corrections = arrived.iter().filter(|arrived| arrived.topic.contains("/gateway.clock/v1/"));
        let mut events: Vec<Value> = corrections.map(Arrived::event).collect();
        events.dedup_by_key(|event| event["id"].to_string());
        events
    }

    fn await_correction(&self) -> Value {
        let start = Instant::now();
        loop {
            if let Some(event) = self.corrections().first() {
                return event.clone();
            }
            assert!(start.elapsed() < PATIENCE, "no gateway.clock came: {}", self.gateway.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A process that ends with the test.
struct Booted(Child);

impl Drop for Booted {
    fn drop(&mut self) {
        crate::common::kill(&mut self.0);
    }
}

fn is_own(arrived: &Arrived) -> bool {
    arrived.topic.contains("/gateway.")
}

fn sequence(event: &Value) -> u64 {
    event["sequence"].as_str().and_then(|text| text.parse().ok()).expect("a sequence")
}

/// First and last sequence of a stream in a correction.
fn range(correction: &Value, stream: &str) -> (u64, u64) {
    let streams = correction["data"]["streams"].as_array().expect("streams");
    let found =
        streams.iter().find(|one| one["stream"] == stream).unwrap_or_else(|| panic!("{stream}: {correction:#}"));
    (found["first"].as_u64().expect("first"), found["last"].as_u64().expect("last"))
}

fn has_forgotten(event: &Value) -> bool {
    event["recordedtime"].as_str().is_some_and(|time| time.starts_with("1970-01-01"))
}

/// Every event of 1970 is marked and in the range, every other is neither.
fn check(events: &[Value], correction: &Value, offset: i64) {
    let (first, last) = range(correction, "machine.state.v1");
    for event in events {
        let is_in = (first..=last).contains(&sequence(event));
        assert_eq!(has_forgotten(event), is_in, "{first} to {last}: {event:#}");
        // In the moment of the setting an event may still be marked; what its time is the range says.
        assert!(!is_in || event["clockstatus"] == "untrusted", "{event:#}");
    }
    let data = &correction["data"];
    let told = data["offset_seconds"].as_f64().expect("an offset");
    assert!((told + offset as f64).abs() < 0.1, "{told} and {offset}");
    assert_eq!((data["status"].as_str(), data["cause"].as_str()), (Some("untrusted"), Some("set")));
    assert!(data["to"].as_str().is_some_and(|to| to.starts_with("1970-01-01")), "{data:#}");
    assert!(!has_forgotten(correction) && correction["clockstatus"].is_null(), "{correction:#}");
    let corrected = std::time::Duration::from_secs_f64(told);
    assert!(corrected.as_secs() > 1_700_000_000);
}

#[test]
fn what_is_recorded_in_1970_reaches_central_marked_and_is_corrected_when_the_clock_is_set() {
    let mut plant = Plant::new("clock-set");
    let offset = plant.forget_the_time();
    plant.gateway.run();
    plant.publish(1..=20);
    // Over TLS, with certificates that are not yet valid in 1970.
    let events = plant.await_events(20);
    assert!(events.iter().all(|event| has_forgotten(event) && event["clockstatus"] == "untrusted"), "{events:#?}");
    let status = plant.gateway.status();
    let problems = status["problems"].to_string();
    assert!(
        problems.contains("clock: it shows 1970-01-01") && problems.contains("forebay clock --trust"),
        "{problems}"
    );
    assert_eq!(status["clock"]["is_trusted"], false);
    assert!(status["clock"]["certificates"].as_str().is_some_and(|at| at >= "2026"), "{status:#}");
    // Events go on while the clock is set, so that the range has to be exact.
    let is_over = Arc::new(AtomicBool::new(false));
    let sender = {
        let (address, is_over) = (plant.gateway.address, Arc::clone(&is_over));
        std::thread::spawn(move || {
            let (mut client, _) = Client::connect(address, &Hello { client: "flood", ..Hello::default() });
            let mut number = 1000;
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                client.publish(true, number, TOPIC, payload(2, number.into()).as_bytes());
            }
            usize::from(number) - 1000
        })
    };
    std::thread::sleep(Duration::from_millis(300));
    plant.set(0);
    let correction = plant.await_correction();
    is_over.store(true, Ordering::Relaxed);
    let flooded = sender.join().expect("sender");
    plant.publish(21..=25);
    let events = plant.await_events(20 + flooded + 5);
    check(&events, &correction, offset);
    let late = events.iter().filter(|event| !has_forgotten(event)).count();
    assert!(late > 100 && late < events.len() - 20, "{late} of {}", events.len());
    assert!(events.last().is_some_and(|event| event["clockstatus"].is_null()), "{:#?}", events.last());
    let status = plant.gateway.status();
    assert!(status["clock"]["is_trusted"] == true && !status["problems"].to_string().contains("clock"), "{status:#}");
    assert_eq!(plant.corrections().len(), 1);
}

#[test]
fn a_correction_survives_a_kill_between_what_was_recorded_and_the_setting_of_the_clock() {
    let mut plant = Plant::new("clock-kill");
    let offset = plant.forget_the_time();
    plant.gateway.run();
    plant.publish(1..=10);
    plant.gateway.kill();
    // A restart in 1970 changes nothing.
    plant.gateway.run();
    plant.publish(11..=15);
    plant.gateway.kill();
    plant.set(0);
    plant.gateway.run();
    plant.publish(16..=20);
    let correction = plant.await_correction();
    check(&plant.await_events(20), &correction, offset);
    assert_eq!(range(&correction, "machine.state.v1"), (1, 15));
    // Told once, whatever comes later.
    plant.gateway.kill();
    plant.gateway.run();
    plant.publish(21..=21);
    plant.await_events(21);
    assert_eq!(plant.corrections().len(), 1);
}

#[test]
fn a_kill_just_after_the_clock_was_set_tells_the_same() {
    let mut plant = Plant::new("clock-kill-late");
    let offset = plant.forget_the_time();
    plant.gateway.run();
    plant.publish(1..=10);
    plant.set(0);
    plant.publish(11..=20);
    plant.gateway.kill();
    plant.gateway.run();
    plant.publish(21..=30);
    let correction = plant.await_correction();
    check(&plant.await_events(30), &correction, offset);
    assert_eq!(range(&correction, "machine.state.v1"), (1, 10));
}

#[test]
fn after_another_start_of_the_machine_it_is_said_that_nobody_knows_how_far_the_clock_was_off() {
    let mut plant = Plant::new("clock-boot");
    plant.forget_the_time();
    plant.gateway.run();
    plant.publish(1..=10);
    plant.gateway.kill();
    plant.set(0);
    let _booted = plant.run_after_a_boot();
    plant.publish(11..=12);
    let correction = plant.await_correction();
    assert_eq!(range(&correction, "machine.state.v1"), (1, 10));
    let data = &correction["data"];
    assert!(data["offset_seconds"].is_null() && data["cause"] == "restart" && data["to"].is_null(), "{data:#}");
    let events = plant.await_events(12);
    assert_eq!(events.iter().filter(|event| event["clockstatus"] == "untrusted").count(), 10);
}

#[test]
fn a_clock_behind_the_journal_is_doubted_until_a_person_says_that_it_is_right() {
    let mut plant = Plant::new("clock-ahead");
    // A clock that was a month ahead for a while.
    plant.set(30 * 86_400);
    plant.gateway.run();
    plant.publish(1..=5);
    plant.gateway.kill();
    plant.set(0);
    let _booted = plant.run_after_a_boot();
    plant.publish(6..=6);
    let said = plant.gateway.command(&["clock", "CONFIG"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("cannot be right") && said.contains("before the last restart"), "{said}");
    let said = plant.gateway.command(&["clock", "--trust", "CONFIG"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("trusted"), "{said:?}");
    plant.publish(7..=7);
    let events = plant.await_events(7);
    let marked: Vec<u64> = events.iter().filter(|event| event["clockstatus"] == "untrusted").map(sequence).collect();
    assert_eq!(marked, [6]);
    assert!(String::from_utf8_lossy(&plant.gateway.command(&["audit", "CONFIG"]).stdout).contains("clock trusted"));
}

#[test]
fn devices_with_certificates_are_let_in_in_1970() {
    let port = crate::common::free_address().port();
    let listener = |pki: &Pki| {
        format!(
            "\n[[source.mqtt]]\nname = \"secure\"\nlisten = \"127.0.0.1:{port}\"\ntls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\" }}\n",
            pki.server_cert.display(),
            pki.server_key.display(),
            pki.ca.display()
        )
    };
    let mut plant = Plant::prepare("clock-tls", Pki::write, listener);
    plant.forget_the_time();
    plant.gateway.run();
    let send = |cert: &Path, key: &Path| {
        Command::new("mosquitto_pub")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "-q",
                "1",
                "-i",
                "m01",
                "-t",
                // The name in the certificate is the machine's.
                "plant/line1/gw-01/state",
                "-m",
                &payload(1, 1),
            ])
            .arg("--cafile")
            .arg(&plant.pki.ca)
            .arg("--cert")
            .arg(cert)
            .arg("--key")
            .arg(key)
            .output()
            .expect("mosquitto_pub; apt-get install mosquitto-clients")
    };
    let sent = send(&plant.pki.client_cert, &plant.pki.client_key);
    assert!(sent.status.success(), "{sent:?}");
    assert_eq!(plant.await_events(1)[0]["clockstatus"], "untrusted");
}

#[test]
fn a_centre_whose_certificate_has_expired_is_refused_also_in_1970() {
    let expired = |folder: &Path| {
        Pki::write_with(folder, |server| {
            server.not_before = rcgen::date_time_ymd(1970, 1, 1);
            server.not_after = rcgen::date_time_ymd(2020, 1, 1);
        })
    };
    let mut plant = Plant::prepare("clock-expired", expired, |_| String::new());
    plant.forget_the_time();
    plant.gateway.run();
    plant.publish(1..=1);
    // By the clock it is valid.
    let status = plant.gateway.await_status("it is refused", PATIENCE, |status| {
        status["problems"].to_string().to_lowercase().contains("expired")
    });
    assert_eq!(status["lanes"][0]["destinations"][0]["queued"], 1, "{status:#}");
    plant.broker.kill();
}
