//! The log of a lane: whatever goes in comes out, in order, cut into blocks and segments.

use crate::common::fault_disk::FaultDisk;
use crate::common::fault_disk::Unsynced;
use crate::common::random::Random;
use crate::power_cut::{append, config, everything, open, open_with, publication};
use forebay::contract::Publication;
use forebay::event::{Content, Id, Record, Timestamp};
use forebay::journal::{Condition, Full, Journal, LaneConfig, Outcome, ReadResult, Waiter};
use proptest::prelude::*;
use std::time::{Duration, Instant};

/// Plain bytes of a block at most, unless one record alone is larger.
const BLOCK_PLAIN_MAX: usize = 256 << 10;

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![8 => 0usize..400, 2 => 400usize..20_000, 1 => 20_000usize..200_000];
    proptest::collection::vec(size, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sizes_come_out_as_they_went_in(sizes in sizes(), compressible: bool) {
        let disk = FaultDisk::default();
        let mut config = config();
        // Room for all of it, in segments of a megabyte.
        config.lanes[0].budget = (sizes.iter().sum::<usize>() as u64 * 4).max(16 << 20);
        let journal = open_with(&disk, &config).expect("opens");
        let publication = journal.publish(&publication()).expect("publishes");
        let lane = journal.lane("critical").expect("the lane");
        let mut waiter = Waiter::default();
        let mut last = None;
        let payloads: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(index, size)| {
            let mut random = (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            (0..*size).map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if compressible { b'x' } else { random as u8 }
            }).collect()
        }).collect();
        for (index, payload) in payloads.iter().enumerate() {
            let record = Record {
                publication,
                id: Id::Uuid([index as u8; 16]),
                time: Timestamp(index as i64),
                origin: "s/d",
                key: "k",
                content: Content::Bytes,
                attributes: vec![],
                payload,
            };
            let start = Instant::now();
            last = loop {
                match lane.submit(&record, None, &mut waiter) {
                    Ok(ticket) => break Some(ticket),
                    Err(_) => {
                        prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
                        std::thread::yield_now();
                    }
                }
            };
            // Some in one commit, some alone.
            while index % 7 == 0 && last.is_some_and(|ticket| lane.receipt(ticket).is_none()) {
                prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
                std::thread::yield_now();
            }
        }
        let start = Instant::now();
        while last.is_some_and(|ticket| lane.receipt(ticket).is_none()) {
            prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
            std::thread::sleep(Duration::from_millis(1));
        }
        prop_assert_eq!(lane.end(), payloads.len() as u64 + 1);
        let mut next = 1;
        while next < lane.end() {
            match lane.read_at(next).expect("reads") {
                ReadResult::Lost { to } => prop_assert!(false, "lost {next} to {to}"),
                ReadResult::Block(block) => {
                    prop_assert!(block.header.count == 1 || block.bytes() <= BLOCK_PLAIN_MAX + 1024, "{} bytes", block.bytes());
                    for (offset, record) in (block.header.first..).zip(block.records()) {
                        prop_assert_eq!(record.payload, &payloads[offset as usize - 1][..]);
                        prop_assert_eq!(record.time, Timestamp(offset as i64 - 1));
                    }
                    next = block.end();
                }
            }
        }
        journal.close(Duration::from_secs(5));
    }
}

/// A reader that came between the moment in which a segment was no longer the active one and that in which it was
/// closed opened the file a second time, repaired it while it was in use, and so spoilt it.
#[test]
fn readers_at_the_end_of_a_segment_never_open_it_twice() {
    let disk = FaultDisk::default();
    let mut config = config();
    config.lanes[0].budget = 8 << 20;
    let journal = open_with(&disk, &config).expect("opens");
    let publication = journal.publish(&publication()).expect("publishes");
    let lane = journal.lane("critical").expect("the lane");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..4u64 {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let end = lane.end();
                    if end > reader + 1 {
                        // Retention may have taken it; damage is what may not be.
                        let _ = lane.read_at(end - 1 - reader);
                    }
                }
            });
        }
        for number in 0..4000 {
            assert!(append(lane, &disk, publication, number));
            lane.settle("central", &[(number + 1, 1, Outcome::Delivered)]);
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(journal.quarantined(), Vec::<std::path::PathBuf>::new());
    assert_eq!(lane.end(), 4001);
    journal.close(Duration::from_secs(5));
}

const RESERVE: u64 = 1 << 20;

/// Lanes whose budgets a disk of 16 MB cannot hold, with a week of retention.
fn on_a_small_disk(bulk_full: Full) -> (FaultDisk, Journal, [u32; 2]) {
    let disk = FaultDisk::default();
    let mut config = config();
    config.lanes[0].budget = 64 << 20;
    config.lanes.push(LaneConfig { full: bulk_full, ..LaneConfig::new("bulk", 64 << 20, Duration::ZERO) });
    config.reserve_bytes = RESERVE;
    let journal = open_with(&disk, &config).expect("opens");
    let of = |lane: &str| Publication {
        stream: lane.into(),
        lane: lane.into(),
        retention_settled: 7 * 86_400,
        ..publication()
    };
    let publications = ["critical", "bulk"].map(|lane| journal.publish(&of(lane)).expect("publishes"));
    disk.hold(disk.taken() + (16 << 20) + RESERVE);
    (disk, journal, publications)
}

/// What was delivered and stays for a replay makes way for any lane once the disk has no more room.
#[test]
fn delivered_events_of_any_lane_make_way_where_the_disk_is_used_up() {
    let (disk, journal, [critical, bulk]) = on_a_small_disk(Full::StopAcknowledging);
    let lane = |name| journal.lane(name).expect("the lane");
    for number in 0..1000 {
        assert!(append(lane("bulk"), &disk, bulk, number));
        let stream = journal.published(bulk).expect("known").stream;
        lane("bulk").settle("central", &[(number + 1, stream, Outcome::Delivered)]);
        if number % 100 == 99 {
            // Its receipt comes although all of the disk is in use by the other lane.
            assert!(append(lane("critical"), &disk, critical, number));
            assert_eq!(lane("critical").condition(), Condition::Good);
        }
    }
    assert!(lane("bulk").first() > 1, "24 MB do not stay on 16");
    assert_eq!(lane("critical").first(), 1, "what central has not got stays");
    assert!(journal.disk_room().expect("known").free + (4 << 20) > RESERVE);
    // Now nobody writes to the other lane, and this one alone needs what that one has.
    for number in 1000..1200 {
        assert!(append(lane("critical"), &disk, critical, number));
    }
    assert_eq!((lane("critical").first(), lane("critical").end()), (1, 211));
    assert!(journal.losses().expect("read").is_empty());
    journal.close(Duration::from_secs(5));
}

/// A lane that may give up its oldest does so for one that may not; what may not be given up is not.
#[test]
fn on_a_disk_that_is_used_up_a_lane_that_may_give_up_does_so_for_the_others() {
    let (disk, journal, [critical, bulk]) = on_a_small_disk(Full::ShedOldest);
    let lane = |name| journal.lane(name).expect("the lane");
    for number in 0..550 {
        assert!(append(lane("bulk"), &disk, bulk, number));
    }
    for number in 0..450 {
        assert!(append(lane("critical"), &disk, critical, number), "event {number}");
    }
    assert_eq!((lane("critical").first(), lane("critical").end()), (1, 451));
    let losses = journal.losses().expect("read");
    assert!(!losses.is_empty() && losses.iter().all(|loss| loss.lane == "bulk" && loss.cause == Outcome::Shed));
    let status = lane("bulk").status();
    let to = &status.destinations[0];
    assert_eq!(losses.iter().map(|loss| loss.count).sum::<u64>(), to.shed, "what is announced is what is on the books");
    assert_eq!(status.accepted, to.shed + to.queued, "{status:?}");
    // There is nothing left to give: nothing more is acknowledged, until there is room.
    let lane = lane("critical");
    let (mut waiter, mut ticket) = (Waiter::default(), None);
    let mut random = Random::with_seed(1);
    let start = Instant::now();
    while matches!(lane.condition(), Condition::Good) || start.elapsed() < Duration::from_secs(1) {
        assert!(start.elapsed() < Duration::from_secs(60), "the disk holds no more");
        let payload = random.bytes(200_000);
        let record = Record {
            publication: critical,
            id: Id::mint(),
            time: Timestamp(0),
            origin: "s/d",
            key: "k",
            content: Content::Bytes,
            attributes: vec![],
            payload: &payload,
        };
        ticket = lane.submit(&record, None, &mut waiter).ok().or(ticket);
    }
    let ticket = ticket.expect("one that waits");
    assert!(lane.receipt(ticket).is_none());
    assert_eq!(lane.first(), 1);
    disk.hold(0);
    while lane.receipt(ticket).is_none() {
        assert!(start.elapsed() < Duration::from_secs(90), "{:?}", lane.condition());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(lane.condition(), Condition::Good);
    journal.close(Duration::from_secs(5));
}

/// Losses are audited too, and nobody has to ask for anything for the oldest entries to leave.
#[test]
fn the_audit_keeps_its_newest_entries_whoever_writes_them() {
    let disk = FaultDisk::default();
    let mut config = config();
    config.lanes[0].full = Full::ShedOldest;
    let journal = open_with(&disk, &config).expect("opens");
    for number in 0..10_090 {
        journal.audit("test", Some(7), &number, "done").expect("written");
    }
    let publication = journal.publish(&publication()).expect("publishes");
    let lane = journal.lane("critical").expect("the lane");
    for number in 0..300 {
        assert!(append(lane, &disk, publication, number));
    }
    let entries: Vec<forebay::api::AuditEntry> = journal
        .audited(20_000)
        .expect("read")
        .map(|entry| serde_json::from_slice(&entry.expect("read")).expect("JSON"))
        .collect();
    let losses = entries.iter().filter(|entry| entry.action == "loss").count();
    assert!(losses > 20, "{losses}");
    assert!(entries.len() <= 10_100, "{}", entries.len());
    assert_eq!((entries[0].action.as_str(), entries[0].by), ("test", Some(7)));
    assert_eq!(entries.last().and_then(|entry| entry.by), None, "a limit is nobody");
    journal.close(Duration::from_secs(5));
}

/// What is on the books of the lane: accepted, delivered, queued, set aside. They balance.
fn accounts(journal: &Journal, what: &str) -> (u64, u64, u64, u64) {
    let status = journal.lane("critical").expect("the lane").status();
    let to = &status.destinations[0];
    assert_eq!(status.accepted, to.delivered + to.dead + to.queued + to.set_aside, "{what}: {status:?}");
    (status.accepted, to.delivered, to.queued, to.set_aside)
}

const GIVEN: u64 = 14;

/// A log of two segments, half of it delivered, on a disk whose power is then cut.
fn log_on(is_clean: bool) -> FaultDisk {
    let disk = FaultDisk::default();
    let journal = open(&disk).expect("opens");
    let publication = journal.publish(&publication()).expect("publishes");
    let lane = journal.lane("critical").expect("the lane");
    for number in 0..GIVEN {
        assert!(append(lane, &disk, publication, number));
        if number == 6 {
            let delivered: Vec<_> = (1..=5).map(|offset| (offset, 1, Outcome::Delivered)).collect();
            lane.settle("central", &delivered);
        }
    }
    if is_clean {
        journal.close(Duration::from_secs(5));
    } else {
        disk.cut(Unsynced::Dropped);
        journal.close(Duration::ZERO);
    }
    disk.restart()
}

/// The numbers that are passed over after a loss once counted as events, accepted and queued.
#[test]
fn after_damage_the_accounts_balance_and_no_number_is_given_twice_wherever_the_power_goes() {
    for is_clean in [true, false] {
        for (marks, newest, all) in
            [(true, false, false), (false, true, false), (true, true, false), (false, true, true), (true, true, true)]
        {
            // 0 is none; and one in three of the operations of a start.
            for cut in (0..90).step_by(3) {
                let what = format!("clean {is_clean}, marks {marks}, newest {newest}, all {all}, cut {cut}");
                let mut disk = log_on(is_clean);
                let spoil = |bytes: &mut Vec<u8>| bytes.iter_mut().skip(64).for_each(|byte| *byte ^= 0x5A);
                if marks {
                    disk.damage("state.redb", spoil);
                }
                let segments: Vec<_> =
                    disk.names().into_iter().filter(|path| path.starts_with("/journal/critical")).collect();
                assert!(segments.len() > 1, "{segments:?}");
                for segment in segments.iter().rev().take(if all { usize::MAX } else { usize::from(newest) }) {
                    disk.damage(&segment.to_string_lossy(), spoil);
                }
                if cut > 0 {
                    let unsynced = [Unsynced::Dropped, Unsynced::Kept, Unsynced::Random(cut)][cut as usize / 3 % 3];
                    disk.cut_at(cut, unsynced);
                    if let Ok(journal) = open(&disk) {
                        journal.close(Duration::ZERO);
                    }
                    if !disk.is_off() {
                        disk.cut(unsynced);
                    }
                    disk = disk.restart();
                }
                let journal = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
                let (accepted, _, _, set_aside) = accounts(&journal, &what);
                assert!(accepted <= GIVEN && set_aside <= GIVEN, "{what}: {accepted} accepted, {set_aside} set aside");
                if !newest || is_clean && !marks {
                    assert_eq!(accepted, GIVEN, "{what}");
                }
                assert!(newest || set_aside == 0, "{what}: {set_aside} set aside");
                let publication = journal.publish(&publication()).expect("publishes");
                assert!(append(journal.lane("critical").expect("the lane"), &disk, publication, 99), "{what}");
                let (after, ..) = accounts(&journal, &what);
                assert_eq!(after, accepted + 1, "{what}");
                journal.close(Duration::from_secs(5));
                let journal = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(accounts(&journal, &what).0, after, "{what}: the same after another start");
                let found = everything(journal.lane("critical").expect("the lane"), 1);
                let newest = found.last().expect("the new one");
                assert!(newest.2 == 99 && newest.0 > GIVEN && newest.1 > GIVEN, "{what}: {newest:?}");
                journal.close(Duration::from_secs(5));
            }
        }
    }
}

/// Ids are chosen by devices: with a key that anybody could know, they could be chosen to share a slot of the window.
#[test]
fn each_journal_draws_a_key_of_its_own_for_its_fingerprints_and_keeps_it() {
    let key = |disk: &FaultDisk| {
        let journal = open(disk).expect("opens");
        let key = journal.notes("dedupe").read("key").expect("readable").expect("a key");
        journal.close(Duration::from_secs(5));
        key
    };
    let (one, other) = (FaultDisk::default(), FaultDisk::default());
    let (first, second) = (key(&one), key(&other));
    assert_eq!(first.len(), 24);
    // Each of its parts: the two halves of the key for ids, and the seed for content.
    for (mine, foreign) in first.chunks(8).zip(second.chunks(8)) {
        assert_ne!(mine, foreign, "two journals have the same key");
    }
    one.cut(Unsynced::Dropped);
    assert_eq!(key(&one.restart()), first, "fingerprints on the disk are compared with the key that made them");
}
