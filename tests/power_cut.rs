//! Acknowledged means on the disk: the power goes at every single operation of a workload, and
//! nothing that had a receipt is lost, and every start succeeds.

use crate::common::fault_disk::{Fault, FaultDisk, Unsynced};
use crate::common::random::Random;
use forebay::contract::{GatewayNames, Mode, Publication};
use forebay::event::{Content, Id, Record, Timestamp};
use forebay::journal::{Config, Disk, Journal, Lane, LaneConfig, Outcome, ReadResult, Seal, Start};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub fn config() -> Config {
    Config {
        folder: PathBuf::from("/journal"),
        lanes: vec![LaneConfig::new("critical", 900 << 10, Duration::ZERO)],
        dead: LaneConfig::dead(256 << 20),
        dead_retention: Duration::from_secs(86_400),
        dedupe_bytes: 1 << 20,
        reserve_bytes: 1 << 20,
        cache_bytes: 1 << 20,
        tail_bytes: 64 << 10,
        destinations: vec![("central".into(), Start::Oldest)],
    }
}

pub fn publication() -> Publication {
    Publication {
        format: 1,
        stream: "machine.state".into(),
        version: "1.0.0".into(),
        surroundings: GatewayNames {
            environment: "test".into(),
            site: "p".into(),
            gateway: "g".into(),
            namespace: "n".into(),
        },
        mode: Mode::Structured,
        topic: "{key}".into(),
        lane: "critical".into(),
        retention_settled: 0,
        retention_unsettled: None,
        schema: None,
        keep: vec![],
        mask: vec![],
        key: "{machine}".into(),
        owner: "tests".into(),
        classification: None,
    }
}

pub fn open(disk: &FaultDisk) -> Result<Journal, forebay::journal::JournalError> {
    open_with(disk, &config())
}

pub fn open_with(disk: &FaultDisk, config: &Config) -> Result<Journal, forebay::journal::JournalError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Journal::open(config, &Seal { format: 1, environment: "test".into(), name: None }, disk)
}

/// Incompressible, so that segments fill with few events.
fn payload(number: u64) -> Vec<u8> {
    let mut out = number.to_le_bytes().to_vec();
    out.extend(Random::with_seed(number).bytes(24_000 - out.len()));
    out
}

fn record<'a>(publication: u32, id: &'a str, payload: &'a [u8]) -> Record<'a> {
    Record {
        publication,
        id: Id::Text(id),
        time: Timestamp(0),
        origin: "s/d",
        key: "k",
        content: Content::Bytes,
        attributes: vec![],
        payload,
    }
}

/// Appends one event; `true` if there was a receipt for it.
pub fn append(lane: &Lane, disk: &FaultDisk, publication: u32, number: u64) -> bool {
    let body = payload(number);
    let id = number.to_string();
    let record = record(publication, &id, &body);
    let mut waiter = forebay::journal::Waiter::default();
    let Ok(ticket) = lane.submit(&record, None, &mut waiter) else { return false };
    let start = Instant::now();
    loop {
        if lane.receipt(ticket).is_some() {
            return true;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no receipt: {:?}", lane.condition());
        if disk.is_off() || lane.is_closed() {
            // The power may have gone after the sync and before the news of it.
            return lane.receipt(ticket).is_some();
        }
        std::thread::yield_now();
    }
}

/// Every event of the log: offset, sequence, number.
pub fn everything(lane: &Lane, stream: u32) -> Vec<(u64, u64, u64)> {
    let mut found = Vec::new();
    let mut next = 1;
    while next < lane.end() {
        match lane.read_at(next).expect("the log reads") {
            ReadResult::Lost { to } => next = to.max(next + 1),
            ReadResult::Block(block) => {
                let run = block.header.runs.iter().find(|run| run.stream == stream).expect("a run");
                for (index, record) in block.records().enumerate() {
                    let number = u64::from_le_bytes(record.payload[..8].try_into().expect("eight bytes"));
                    found.push((block.header.first + index as u64, run.first + index as u64, number));
                }
                next = block.end();
            }
        }
    }
    found
}

struct Before {
    acknowledged: Vec<u64>,
    settled_below: u64,
}

/// Appends, settles behind it, fills and removes segments, until the end or the power cut.
fn work(disk: &FaultDisk, from: u64, count: u64) -> Before {
    let mut outcome = Before { acknowledged: Vec::new(), settled_below: 0 };
    let Ok(journal) = open(disk) else { return outcome };
    if let Ok(publication) = journal.publish(&publication()) {
        let lane = journal.lane("critical").expect("the lane");
        for number in from..from + count {
            if !append(lane, disk, publication, number) {
                break;
            }
            outcome.acknowledged.push(number);
            // Central acknowledges with some delay.
            if number % 5 == 4 {
                let low = lane.settled("central").expect("a destination").low;
                let end = lane.end().saturating_sub(8);
                let events: Vec<_> = (low..end).map(|offset| (offset, 1, Outcome::Delivered)).collect();
                lane.settle("central", &events);
                outcome.settled_below = lane.settled("central").expect("a destination").low;
            }
        }
    }
    journal.close(Duration::ZERO);
    outcome
}

/// What must hold after the power came back.
fn check(disk: &FaultDisk, before: &Before, what: &str) {
    let journal = open(disk).unwrap_or_else(|error| panic!("{what}: the next start fails: {error}"));
    assert!(journal.quarantined().is_empty(), "{what}: something was taken for damaged: {:?}", journal.quarantined());
    let lane = journal.lane("critical").expect("the lane");
    let found = everything(lane, 1);
    let by_number: BTreeMap<u64, (u64, u64)> =
        found.iter().map(|(offset, sequence, number)| (*number, (*offset, *sequence))).collect();
    assert_eq!(by_number.len(), found.len(), "{what}: an event is there twice");
    for pair in found.windows(2) {
        assert_eq!((pair[1].0, pair[1].1), (pair[0].0 + 1, pair[0].1 + 1), "{what}: offsets and sequences have a gap");
        assert!(pair[1].2 > pair[0].2, "{what}: events changed their order");
    }
    let settled = lane.settled("central").expect("a destination");
    assert!(settled.low <= before.settled_below.max(1), "{what}: something counts as settled that was not");
    for number in &before.acknowledged {
        // Offsets start at 1, numbers at 0: what was settled may be gone.
        if number + 1 >= before.settled_below {
            assert!(by_number.contains_key(number), "{what}: event {number} had a receipt and is lost");
        }
    }
    let first = found.first().map_or(settled.low, |first| first.0);
    assert!(
        settled.low >= first || found.is_empty(),
        "{what}: the cursor stands at {} before the first event {first}",
        settled.low
    );
    // And it goes on, once central has what it is still owed.
    let rest: Vec<_> = found.iter().map(|(offset, ..)| (*offset, 1, Outcome::Delivered)).collect();
    lane.settle("central", &rest);
    let publication = journal.publish(&publication()).expect("publishes");
    let last = found.last().copied();
    assert!(append(lane, disk, publication, 1_000_000), "{what}: nothing can be appended");
    let now = everything(lane, 1);
    let newest = now.last().expect("the new one");
    assert_eq!(newest.2, 1_000_000);
    if let Some((offset, sequence, _)) = last {
        assert_eq!((newest.0, newest.1), (offset + 1, sequence + 1), "{what}: numbers are not continued");
    }
    journal.close(Duration::from_secs(5));
}

/// Enough for three segments, the first of them removed.
const EVENTS: u64 = 40;

#[test]
fn the_power_may_go_at_every_operation() {
    let whole = FaultDisk::default();
    let undisturbed = work(&whole, 0, EVENTS);
    assert_eq!(undisturbed.acknowledged.len() as u64, EVENTS);
    let segments = whole.names().iter().filter(|path| path.to_string_lossy().contains("critical/")).count();
    let operations = whole.operations();
    assert!(
        segments >= 2 && !whole.names().contains(&PathBuf::from("/journal/critical/00000000000000000001.redb")),
        "segments are begun and removed: {:?}",
        whole.names()
    );
    println!("{operations} operations, {segments} segments at the end");
    let started = Instant::now();
    for operation in 1..=operations + 10 {
        for unsynced in [Unsynced::Dropped, Unsynced::Kept, Unsynced::Random(operation)] {
            let disk = FaultDisk::default();
            disk.cut_at(operation, unsynced);
            let before = work(&disk, 0, EVENTS);
            if !disk.is_off() {
                disk.cut(unsynced);
            }
            check(&disk.restart(), &before, &format!("cut at operation {operation}, unsynced {unsynced:?}"));
        }
    }
    println!("{} cuts in {:?}", 3 * (operations + 10), started.elapsed());
}

/// A second cut while the first one is being repaired.
#[test]
fn the_power_may_go_again_during_the_repair() {
    for first in (20..400).step_by(37) {
        for second in 1..40 {
            let disk = FaultDisk::default();
            disk.cut_at(first, Unsynced::Random(first));
            let before = work(&disk, 0, EVENTS);
            let disk = disk.restart();
            disk.cut_at(second, Unsynced::Random(second));
            if let Ok(journal) = open(&disk) {
                journal.close(Duration::ZERO);
            }
            if !disk.is_off() {
                disk.cut(Unsynced::Random(second));
            }
            check(&disk.restart(), &before, &format!("cut at {first}, again at {second}"));
        }
    }
}

#[test]
fn a_failed_fsync_stops_acknowledging_until_a_commit_succeeds() {
    let disk = FaultDisk::default();
    let journal = open(&disk).expect("opens");
    let publication = journal.publish(&publication()).expect("publishes");
    let lane = journal.lane("critical").expect("the lane");
    assert!(append(lane, &disk, publication, 0));
    for fault in [Fault::Sync, Fault::Full, Fault::NoFreeBytes] {
        let number = lane.end();
        disk.fail(Some(fault));
        let body = payload(number);
        let record = record(publication, "x", &body);
        let mut waiter = forebay::journal::Waiter::default();
        let ticket = lane.submit(&record, None, &mut waiter).expect("there is room");
        let start = Instant::now();
        while lane.condition() == forebay::journal::Condition::Good {
            assert!(start.elapsed() < Duration::from_secs(10), "{fault:?} goes unnoticed");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(150));
        assert!(lane.receipt(ticket).is_none(), "{fault:?}: acknowledged without a commit");
        disk.fail(None);
        let start = Instant::now();
        while lane.receipt(ticket).is_none() {
            assert!(start.elapsed() < Duration::from_secs(20), "{fault:?}: does not recover by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(lane.condition(), forebay::journal::Condition::Good);
    }
    let numbers: Vec<_> = everything(lane, 1).iter().map(|(_, sequence, _)| *sequence).collect();
    assert_eq!(numbers, vec![1, 2, 3, 4], "every event once, without a gap");
    journal.close(Duration::from_secs(5));
    // What the failed commit left behind is hidden from the next start too.
    let disk = disk.restart();
    let journal = open(&disk).expect("opens");
    let numbers: Vec<_> =
        everything(journal.lane("critical").expect("the lane"), 1).iter().map(|(_, sequence, _)| *sequence).collect();
    assert_eq!(numbers, vec![1, 2, 3, 4]);
    journal.close(Duration::from_secs(5));
}

/// The check can fail: without syncs it does.
#[test]
fn a_disk_that_never_syncs_is_found_out() {
    let disk = FaultDisk::default();
    let journal = open(&disk).expect("opens");
    let publication = journal.publish(&publication()).expect("publishes");
    let lane = journal.lane("critical").expect("the lane");
    assert!(append(lane, &disk, publication, 0));
    disk.forget_syncs();
    assert!(append(lane, &disk, publication, 1));
    disk.cut(Unsynced::Dropped);
    journal.close(Duration::ZERO);
    let journal = open(&disk.restart()).expect("opens");
    let found = everything(journal.lane("critical").expect("the lane"), 1);
    assert_eq!(found.len(), 1, "the second event was never on the disk");
    journal.close(Duration::from_secs(5));
}
