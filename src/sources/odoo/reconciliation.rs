//! The state and the pace of reconciliations: comparisons of everything that is known with Odoo.
//!
//! Invariant: the reconciliations of all contracts of a source share one pace, so that their load on Odoo has a bound,
//! however many records there are.

use crate::clock;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Calls of all reconciliations of a source within the time of one: one every 2 s with the default of an hour, which is
/// enough for 300,000 records.
const CALLS_PER_ROUND: u32 = 1800;
/// Bounds of the time between two calls.
const PACE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A reconciliation that is in a hurry makes so many calls in the time of one.
const HURRY: u32 = 4;

/// The pace that the reconciliations of all contracts of a source share.
#[derive(Debug)]
pub(super) struct ReconcilePace {
    next: Mutex<Instant>,
    between: Duration,
    /// Counted up when a contract finds that all should compare their records at once.
    alarms: AtomicU64,
}

impl ReconcilePace {
    /// The pace of reconciliations that take `round` each.
    pub(super) fn new(round: Duration) -> Self {
        let between = (round / CALLS_PER_ROUND).clamp(PACE.0, PACE.1);
        Self { next: Mutex::new(clock::instant()), between, alarms: AtomicU64::new(0) }
    }

    /// Takes the next call; or returns when to ask again.
    pub(super) fn take(&self, now: Instant, is_hurried: bool) -> Result<(), Instant> {
        let mut next = self.next.lock();
        if now < *next {
            return Err(*next);
        }
        *next = now + if is_hurried { self.between / HURRY } else { self.between };
        Ok(())
    }

    /// Has all contracts compare their records at once.
    pub(super) fn alarm(&self) {
        self.alarms.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn alarms(&self) -> u64 {
        self.alarms.load(Ordering::Relaxed)
    }
}

/// The reconciliation of one contract.
#[derive(Debug)]
pub(super) struct Reconciliation {
    pub(super) stage: Stage,
    pub(super) began: Instant,
    /// The time of the next part.
    pub(super) next: Instant,
    pub(super) is_hurried: bool,
    /// Alarms that it has heard.
    pub(super) alarms: u64,
    /// Events that it has made.
    pub(super) found: usize,
}

/// What a reconciliation does next. Ids are those after which it continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Compares known records.
    Known(i64),
    /// Searches for records that are not known.
    Unknown(i64),
}

impl Reconciliation {
    /// The first one begins at once: the gateway may have been down while a backup was restored.
    pub(super) fn new(alarms: u64) -> Self {
        let now = clock::instant();
        Self { stage: Stage::Known(0), began: now, next: now, is_hurried: false, alarms, found: 0 }
    }

    /// Starts again, as fast as the pace allows.
    pub(super) fn hurry(&mut self) {
        *self = Self { is_hurried: true, ..Self::new(self.alarms) };
    }

    /// Ends it at `now`; the next one begins `round` after the start of this one, and not before `pause` is over.
    pub(super) fn end(&mut self, now: Instant, round: Duration, pause: Duration) {
        let next = (self.began + round).max(now + pause);
        *self = Self { began: next, next, ..Self::new(self.alarms) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_of_all_contracts_is_bounded_and_a_hurry_is_faster() {
        let hour = ReconcilePace::new(Duration::from_secs(3600));
        let start = clock::instant() + Duration::from_secs(1);
        let calls_within = |pace: &ReconcilePace, is_hurried: bool, span: Duration| {
            let (mut now, mut calls) = (start, 0);
            while now < start + span {
                match pace.take(now, is_hurried) {
                    Ok(()) => calls += 1,
                    Err(later) => now = later,
                }
            }
            calls
        };
        assert_eq!(calls_within(&hour, false, Duration::from_secs(100)), 50);
        assert_eq!(calls_within(&ReconcilePace::new(Duration::from_secs(3600)), true, Duration::from_secs(100)), 200);
        let minute = ReconcilePace::new(Duration::from_secs(60));
        assert_eq!(calls_within(&minute, false, Duration::from_secs(1)), 20);
    }

    #[test]
    fn a_round_begins_again_in_its_time() {
        let mut round = Reconciliation::new(0);
        let (began, hour) = (round.began, Duration::from_secs(3600));
        round.end(began + Duration::from_secs(10), hour, Duration::from_secs(100));
        assert_eq!((round.next, round.began), (began + hour, began + hour));
        round.hurry();
        assert!(round.is_hurried && round.next < began + hour);
        let late = round.began + hour * 2;
        round.end(late, hour, Duration::from_secs(100));
        assert_eq!((round.next, round.is_hurried), (late + Duration::from_secs(100), false));
    }
}
