//! A model of the whole gateway under faults, driven by a seed.
//!
//! Real ingest, journal, forwarders and the steps of a reload run in one thread, on a disk in memory that loses power and
//! fails, with links in memory to a central broker that answers late, twice, with refusals or not at all. A seed chooses every action, the
//! next writer to step and how much time passes; the same seed does the same again.
//!
//! One invariant is checked all along: **what was acknowledged is in the journal, or in an account that was announced** — for
//! every destination that it was owed to: delivered, queued, a dead letter, or a loss that was noted. And the accounts balance.
//!
//! `FOREBAY_MODEL_SECONDS` searches for so long from a random seed on, `FOREBAY_MODEL_SEED` repeats one seed and prints what
//! happens. What a seed has found once is a case of its own in `cases`.

#[path = "model/actions.rs"]
mod actions;
#[path = "model/cases.rs"]
mod cases;
#[path = "model/centre.rs"]
mod centre;
#[path = "model/check.rs"]
mod check;
#[path = "common/fault_disk.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "other tests use other parts, and may fail")]
mod fault_disk;
#[path = "model/world.rs"]
mod world;

use crate::journal::{Bug, plant};
use std::time::{Duration, Instant};
use world::World;

/// Seeds with this bit have the power go in the middle of actions and starts, too.
const WITHIN: u64 = 1 << 52;
/// Seeds with this bit have several connections for each lane. The journal wakes its readers in no fixed order, so that
/// such a seed does the same again only as far as its connections come in the same order.
const SHARED: u64 = 1 << 53;
/// Actions of one run: enough for some restarts and reloads.
const ACTIONS: u64 = 1500;

/// What a run did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    actions: u64,
    acknowledged: u64,
    /// Hash over everything that happened.
    trace: u64,
}

/// Runs one seed; the error says what was violated, and what led to it.
fn run(seed: u64, bug: Option<Bug>) -> Result<Summary, String> {
    // Each run has a thread of its own: clock, randomness and network belong to it.
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(move || {
        plant(bug);
        let _log = is_replay().then(log);
        crate::runtime::run_inline();
        crate::backoff::seeded::begin(seed | 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async move {
            let mut world = World::new(seed);
            let outcome = world.run(ACTIONS).await;
            outcome.map(|()| world.summary()).map_err(|violation| world.report(&violation))
        })
    });
    thread.expect("a thread").join().unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("seed {seed}: panicked: {}", text.unwrap_or_default()))
    })
}

/// Whether one seed is repeated, with all that happens printed.
fn is_replay() -> bool {
    std::env::var_os("FOREBAY_MODEL_SEED").is_some()
}

/// Prints the log of this thread.
fn log() -> tracing::subscriber::DefaultGuard {
    let lines = tracing_subscriber::fmt().without_time().with_ansi(false).with_max_level(tracing::Level::DEBUG);
    tracing::subscriber::set_default(lines.with_writer(std::io::stdout).finish())
}

fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Seeds that have found something once.
const FOUND: [u64; 8] = [
    18,
    787_847_293_435_913,
    1_202_012_219_768_838,
    685_596_128_313_370,
    3_703_162_416_398_364,
    4_486_456_822_202_373,
    4_280_982_137_995_709,
    8_028_901_980_766_323,
];
/// Seeds from 1 on of a run without a switch.
const SEEDS: u64 = 12;

/// Runs one seed that must not violate anything.
fn pass(seed: u64) -> Summary {
    let violation = match run(seed, None) {
        Ok(summary) => return summary,
        Err(violation) => violation,
    };
    panic!(
        "{violation}\nrepeat it, with all that happens printed: FOREBAY_MODEL_SEED={seed} cargo test --lib \
         model::what_was_acknowledged -- --nocapture"
    )
}

#[test]
fn what_was_acknowledged_is_in_the_journal_or_in_an_announced_account() {
    if let Some(seed) = asked("FOREBAY_MODEL_SEED") {
        println!("{:?}", pass(seed));
        return;
    }
    let search = asked("FOREBAY_MODEL_SECONDS").map(Duration::from_secs);
    let first = search.map_or(1, |_| u64::from(uuid::Uuid::new_v4().as_u128() as u32) << 20);
    let begun = Instant::now();
    let (mut seeds, mut actions, mut acknowledged) = (0, 0, 0);
    while search.map_or(seeds < SEEDS, |time| begun.elapsed() < time) {
        let (within, shared) = (seeds % 2 == 1, seeds % 3 == 2);
        let bits = if within { WITHIN } else { 0 } | if shared { SHARED } else { 0 };
        let summary = pass((first + seeds) | bits);
        seeds += 1;
        actions += summary.actions;
        acknowledged += summary.acknowledged;
    }
    println!("{seeds} seeds from {first}, {actions} actions, {acknowledged} acknowledgements");
    assert!(acknowledged > seeds * 100, "the model does something: {acknowledged} acknowledgements of {seeds} seeds");
}

#[test]
fn seeds_that_have_found_something_find_it_no_more() {
    for seed in FOUND {
        pass(seed);
    }
}

/// A seed that does something else each time could not be looked into.
#[test]
fn the_same_seed_does_the_same_again() {
    for seed in 1..4 {
        assert_eq!(run(seed, None).expect("runs"), run(seed, None).expect("runs"), "seed {seed}");
    }
}

fn finds(bug: Bug) {
    let begun = Instant::now();
    for seed in 1.. {
        if let Err(violation) = run(seed, Some(bug)) {
            println!(
                "{bug:?}: found by seed {seed} after {:?}: {}",
                begun.elapsed(),
                violation.lines().next().unwrap_or("")
            );
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{bug:?} is not found by {seed} seeds");
    }
}

#[test]
fn it_finds_a_fingerprint_that_is_admitted_before_its_commit() {
    finds(Bug::AdmittedBeforeCommit);
}

#[test]
fn it_finds_dropped_destinations_that_are_matched_by_prefix() {
    finds(Bug::DroppedByPrefix);
}

#[test]
fn it_finds_a_fingerprint_without_its_stream() {
    finds(Bug::StreamLeftOut);
}
