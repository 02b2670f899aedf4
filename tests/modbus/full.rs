//! A journal that takes nothing for a while: nothing that was seen is lost, and the bus goes on.

use super::plant::{Devices, GROUPS, events_of, prepare};
use crate::common::fault_disk::{Fault, FaultDisk};
use crate::common::gateway::scratch_folder;
use crate::power_cut::{config, open_with};
use forebay::config::Config;
use forebay::contract::{Sender, SourceKind};
use forebay::event::Timestamp;
use forebay::ingest::{Ingest, Producer, Submission, SubmitError};
use forebay::journal::Journal;
use forebay::memory::{Budget, LIMIT_DEFAULT};
use forebay::shutdown;
use forebay::sources::SourceConfig;
use forebay::sources::modbus::Bus;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TABLE: &str = r#"
[group.g]
interval = "20ms"
[[point]]
name = "power"
address = 0
[[point]]
name = "good"
address = 1
counter = true
[[point]]
name = "door"
address = 2
bit = 0
edge = "both"
"#;

/// Fills the lane until not even a small event has room; whether it was full before.
fn fill(ingest: &Arc<Ingest>) -> bool {
    let mut taken = 0;
    let route = ingest.route(SourceKind::Modbus, "bus", "filler/x", Sender { client: "filler", ..Sender::default() });
    let mut producer = Producer::new(Arc::clone(ingest));
    for pad in [60_000, 1_000, 10] {
        let payload = format!(r#"{{"ts":"2026-11-25T08:00:00Z","pad":"{}"}}"#, "x".repeat(pad));
        for _ in 0..1000 {
            let submission = Submission::new(&route, payload.as_bytes(), Timestamp(0));
            if producer.submit(&submission) == Err(SubmitError::NoRoom) {
                break;
            }
            taken += 1;
        }
    }
    taken == 0
}

fn told(journal: &Journal) -> Vec<Value> {
    // A disk that fails reads nothing either.
    let events = events_of(journal).unwrap_or_default().into_iter().filter(|event| event.topic == "u/g");
    events.map(|event| event.data).collect()
}

fn await_told(journal: &Journal, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let events = told(journal);
        if wanted(&events) {
            return events;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: {events:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_the_journal_does_not_take_is_told_later_and_whole() {
    let mut devices = Devices::start("tcp", json!({"units": [1], "holding": [5, 100, 0, 0]}));
    let folder = scratch_folder("modbus-full");
    let source = format!(
        "[[source.modbus]]\nname = \"bus\"\nurl = \"tcp://127.0.0.1:{}\"\nunit = [{{ name = \"u\", unit = 1, device = \"t\" }}]\n",
        devices.port()
    );
    prepare(folder.path(), &source, &[("t", TABLE)], &[("groups", GROUPS)]);
    let loaded = Config::load(&folder.path().join("forebay.toml")).expect("good");
    let disk = FaultDisk::default();
    let mut larger = config();
    larger.lanes[0].budget = 256 << 20;
    let journal = Arc::new(open_with(&disk, &larger).expect("opens"));
    let ingest = Arc::new(
        Ingest::new(Arc::clone(&journal), loaded.contracts, Default::default(), Budget::new(LIMIT_DEFAULT))
            .expect("serves"),
    );
    let Some(SourceConfig::Modbus(bus)) = loaded.sources.into_iter().find(|one| one.kind() == SourceKind::Modbus)
    else {
        panic!("there is no bus")
    };
    let ready = bus.ready.clone().expect("loaded");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (trigger, stop) = shutdown::pair();
    let task = runtime.spawn(Bus::new(bus, ready, Arc::clone(&ingest), Arc::default()).run(stop));
    await_told(&journal, "a snapshot", |events| events.len() == 1);
    disk.fail(Some(Fault::Sync));
    // The writer takes one batch in hand, which makes room once more.
    while !fill(&ingest) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let full_since = Instant::now();
    for (good, door, power) in [(103, 1, 6), (110, 0, 7), (111, 1, 8)] {
        devices.tell(&format!("set 1 holding 0 {power} {good} {door}"));
        let (enough, start) = (devices.asked()["1"] + 5, Instant::now());
        while devices.asked()["1"] < enough {
            assert!(start.elapsed() < Duration::from_secs(10), "the bus waits for nobody");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(fill(&ingest), "there was no room all the time ({:?})", full_since.elapsed());
    disk.fail(None);
    let events = await_told(&journal, "all of it", |events| {
        events.last().is_some_and(|event| event["values"] == json!({"power": 8, "good": 111, "door": true}))
    });
    let steps: i64 = events.iter().filter_map(|event| event["counts"]["good"]["step"].as_i64()).sum();
    let edges: Vec<_> = events.iter().flat_map(|event| event["edges"].as_array().into_iter().flatten()).collect();
    assert_eq!(steps, 11, "{events:#?}");
    let turned: Vec<_> = edges.iter().map(|edge| edge["to"] == true).collect();
    assert_eq!(turned, [true, false, true], "{events:#?}");
    trigger.begin();
    runtime.block_on(task).expect("it ends");
    journal.close(Duration::from_secs(5));
}
