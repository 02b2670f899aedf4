//! What the model has found, each case alone: a journal whose writers are stepped, on a disk that fails.

use super::fault_disk::{Fault, FaultDisk, Unsynced};
use super::world::{describe_accounts, surroundings};
use crate::clock::Clock;
use crate::contract::{Mode, Publication};
use crate::event::{Content, Id, Record, Timestamp};
use crate::journal::{Config, Disk, Journal, Lane, LaneConfig, Outcome, RealDisk, Seal, Start, Stepped, Waiter};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

const LANE: &str = "critical";

struct Case<D> {
    disk: D,
    config: Config,
    stepped: Stepped,
    publication: u32,
}

fn config(folder: &Path) -> Config {
    Config {
        folder: folder.to_owned(),
        lanes: vec![LaneConfig::new(LANE, 1 << 20, Duration::ZERO)],
        dead: LaneConfig::dead(64 << 20),
        dead_retention: Duration::from_secs(86_400),
        dedupe_bytes: 1 << 20,
        reserve_bytes: 1 << 20,
        cache_bytes: 1 << 20,
        tail_bytes: 32 << 10,
        destinations: vec![("central".into(), Start::Oldest)],
    }
}

impl Case<FaultDisk> {
    fn new() -> Self {
        Self::open(FaultDisk::default(), config(Path::new("/journal")))
    }

    /// Ends the process with the power, and starts another.
    fn cut(self, unsynced: Unsynced) -> Self {
        self.disk.cut(unsynced);
        let disk = self.disk.restart();
        self.stepped.close();
        Self::open(disk, self.config)
    }
}

impl<D: Disk + Clone + 'static> Case<D> {
    fn open(disk: D, config: Config) -> Self {
        crate::runtime::run_inline();
        let seal = Seal { format: 1, environment: "test".into(), name: None };
        let stepped = Stepped::open(&config, &seal, Arc::new(disk.clone())).expect("opens");
        let publication = stepped.journal.publish(&publication()).expect("published");
        Self { disk, config, stepped, publication }
    }

    fn journal(&self) -> &Journal {
        &self.stepped.journal
    }

    fn lane(&self) -> &Arc<Lane> {
        self.journal().lane(LANE).expect("the lane")
    }

    /// Hands in an event of 50,000 bytes (four fill a segment), and lets the writer work once; `false` if the disk did not take it.
    fn append(&mut self, number: u64) -> bool {
        let mut random = super::world::Random::new(number + 1);
        let payload: Vec<u8> = (0..50_000).map(|_| random.below(256) as u8).collect();
        let record = Record {
            publication: self.publication,
            id: Id::Text(&number.to_string()),
            time: Timestamp(0),
            origin: "s/d",
            key: "k",
            content: Content::Bytes,
            attributes: vec![],
            payload: &payload,
        };
        self.lane().submit(&record, Some(Duration::from_secs(3600)), &mut Waiter::default()).expect("room");
        self.stepped.step(0)
    }

    fn deliver(&self, destination: &str, offsets: std::ops::Range<u64>) {
        let stream = self.journal().published(self.publication).expect("known").stream;
        let delivered: Vec<_> = offsets.map(|offset| (offset, stream, Outcome::Delivered)).collect();
        self.lane().settle(destination, &delivered);
    }

    #[track_caller]
    fn balances(&self, destination: &str, queued: u64) {
        let (rows, found) = self.lane().accounts(destination);
        let owed: u64 = rows.iter().map(|(_, _, owed)| owed).sum();
        let settled: u64 = rows.iter().map(|(_, account, _)| account.settled()).sum();
        let text = describe_accounts(self.lane(), destination);
        assert_eq!((owed, found), (settled + found, queued), "{text}");
    }
}

fn publication() -> Publication {
    Publication {
        format: 1,
        stream: "m.state".into(),
        version: "1.0.0".into(),
        surroundings: surroundings(),
        mode: Mode::Structured,
        topic: "{key}".into(),
        lane: LANE.into(),
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

/// Runs a case in a time that passes only where the case says so.
fn in_its_own_time(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let _entered = Clock::of_runtime(UNIX_EPOCH + Duration::from_secs(1_796_083_200)).enter();
        case.await;
    });
}

/// The oldest segment of a lane was left by a failed commit, and the disk was full: its repair failed, and a destination that
/// was added then was said to be owed all events from the first on, also those that had left the lane long before.
#[test]
fn a_destination_that_is_added_on_a_full_disk_is_owed_what_is_there() {
    in_its_own_time(async {
        let mut case = Case::new();
        for number in 0..4 {
            assert!(case.append(number));
        }
        case.deliver("central", 1..5);
        // The first segment is delivered, and leaves; the next one is left by a failed commit.
        for number in 4..6 {
            tokio::time::advance(Duration::from_secs(2)).await;
            assert!(case.append(number));
        }
        assert_eq!(case.lane().first(), 5);
        case.disk.fail_at(LANE, Some(Fault::Sync));
        assert!(!case.append(6));
        case.disk.fail(None);
        assert!(case.stepped.step(0));
        let (first, end) = (case.lane().first(), case.lane().end());
        assert_eq!((first, end), (5, 8));
        case.disk.fail_at(LANE, Some(Fault::Full));
        case.config.destinations.push(("mes".into(), Start::Oldest));
        case.journal().change(&case.config);
        case.balances("mes", end - first);
        let (rows, _) = case.lane().accounts("mes");
        assert_eq!(rows.len(), 1, "of one stream, and nothing of none: {rows:?}");
    });
}

/// A batch of nothing but repeats took the cursors along, and wrote none. So a destination that takes what comes from now on
/// had no cursor on disk when the next events were acknowledged, and after a power cut its "now" was behind them.
#[test]
fn a_repeat_does_not_keep_the_cursor_of_a_new_destination_from_the_disk() {
    in_its_own_time(async {
        let mut case = Case::new();
        assert!(case.append(0));
        case.config.destinations.push(("mes".into(), Start::Now));
        case.journal().change(&case.config);
        assert!(case.append(0));
        assert_eq!(case.lane().end(), 2, "a repeat is not stored again");
        assert!(case.append(1));
        let case = case.cut(Unsynced::Dropped);
        case.balances("mes", 1);
    });
}

/// A backup of a running journal held the note that a destination was dropped, and the cursor of another one that came under
/// its name while the backup was made. The restored journal took the one for the other's, and skipped what was queued.
#[test]
fn a_backup_keeps_a_destination_that_comes_under_a_dropped_name() {
    in_its_own_time(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut case = Case::open(RealDisk, config(&from));
        case.config.destinations.push(("mes".into(), Start::Now));
        case.journal().change(&case.config);
        (0..5).for_each(|number| assert!(case.append(number)));
        case.journal().begin_drop("mes").expect("dropped");
        let journal = Arc::clone(&case.stepped.journal);
        let mut has_come = false;
        let mut come = |_| {
            if !std::mem::replace(&mut has_come, true) {
                case.journal().change(&case.config);
                assert!(case.append(5));
            }
            ControlFlow::Continue(())
        };
        journal.back_up(&to, &mut come).expect("a backup");
        case.balances("mes", 1);
        let restored = Case::open(RealDisk, Config { folder: to, ..case.config });
        restored.balances("mes", 1);
    });
}

/// What is settled goes to disk with the next events, and not only when the lane is idle.
#[test]
fn a_power_cut_keeps_what_was_settled_before_the_last_commit() {
    in_its_own_time(async {
        let mut case = Case::new();
        assert!(case.append(0));
        assert!(case.append(1));
        case.deliver("central", 1..2);
        assert!(case.append(2));
        let case = case.cut(Unsynced::Dropped);
        case.balances("central", 2);
    });
}
