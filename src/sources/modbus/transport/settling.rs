//! Settling: how long a device may need after a connection is made, before it answers.
//!
//! Some devices ignore what they are asked in the first seconds of a connection, or the first request, or close a connection
//! over which they are asked too early. A client that connects again after each failure, and asks at once, never gets an
//! answer.
//!
//! Promise: recovery does not repeat what has failed. A connection that has not answered yet is kept for a while, and for
//! longer each time that one had to be replaced; a connection that the device closes is followed by one that waits longer
//! before the first request. A unit without an answer costs no connection over which others answer.

use std::collections::BTreeSet;
use std::time::Duration;

/// How long a connection without an answer is kept; devices are known that need two seconds.
const PATIENCE_MIN: Duration = Duration::from_secs(3);
const PATIENCE_MAX: Duration = Duration::from_secs(300);
/// Requests without an answer after which a connection may be replaced.
const REQUESTS_MIN: u32 = 3;
/// Pause before the first request after the device has closed a connection without an answer; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// How long a connection is kept over which nobody answers any more; it may be dead, though a single unit was silent at first.
const SILENT_MAX: Duration = Duration::from_secs(10);

/// What is known about the device's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settling {
    configured: Duration,
    learnt: Duration,
    patience: Duration,
    /// Units that have answered over the present connection.
    answered: BTreeSet<u8>,
    /// Units that have ever answered; the silence of others says nothing of a connection that has.
    known: BTreeSet<u8>,
    /// Units that have not answered the last request to them.
    silent: BTreeSet<u8>,
    /// Requests without an answer since the last answer over the present connection, and known units that became silent then.
    unanswered: u32,
    fell_silent: u32,
}

impl Settling {
    /// `configured` is the pause that the operator has set.
    pub(super) fn new(configured: Duration) -> Self {
        Self {
            configured,
            learnt: Duration::ZERO,
            patience: PATIENCE_MIN,
            answered: BTreeSet::new(),
            known: BTreeSet::new(),
            silent: BTreeSet::new(),
            unanswered: 0,
            fell_silent: 0,
        }
    }

    /// Begins a connection; returns how long to wait before its first request.
    pub(super) fn connected(&mut self) -> Duration {
        self.answered.clear();
        (self.unanswered, self.fell_silent) = (0, 0);
        self.configured.max(self.learnt)
    }

    pub(super) fn answered(&mut self, unit: u8) {
        if !self.has_answered() {
            // The next connection tries less, in case the pause was not the reason.
            self.learnt = if self.learnt > PAUSE_MIN { self.learnt / 2 } else { Duration::ZERO };
            self.patience = PATIENCE_MIN;
        }
        self.answered.insert(unit);
        self.known.insert(unit);
        self.silent.remove(&unit);
        (self.unanswered, self.fell_silent) = (0, 0);
    }

    /// Whether the present connection has answered.
    pub(super) fn has_answered(&self) -> bool {
        !self.answered.is_empty()
    }

    /// Records a request to a unit without an answer, so long after the last answer over the connection, or after its
    /// beginning; returns whether the connection has to be replaced. One that has answered before may be dead, unless only
    /// one of several units has become silent.
    pub(super) fn is_over(&mut self, unit: u8, since: Duration) -> bool {
        let is_known = self.known.contains(&unit);
        self.unanswered += u32::from(is_known || !self.has_answered());
        self.fell_silent += u32::from(self.silent.insert(unit) && is_known);
        if !self.has_answered() {
            let is_over = since >= self.patience && self.unanswered >= REQUESTS_MIN;
            if is_over {
                self.patience = (self.patience * 2).min(PATIENCE_MAX);
            }
            return is_over;
        }
        let has_others = self.answered.iter().any(|other| !self.silent.contains(other));
        !has_others || self.fell_silent > 1 || (since >= SILENT_MAX && self.unanswered >= REQUESTS_MIN)
    }

    /// Records that the device has ended the connection.
    pub(super) fn ended(&mut self) {
        if !self.has_answered() {
            self.learnt = (self.learnt * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_connection_that_has_not_answered_yet_is_kept_for_a_while() {
        let mut settling = Settling::new(Duration::ZERO);
        assert_eq!(settling.connected(), Duration::ZERO);
        let over: Vec<_> = [1, 1, 2, 2, 3].map(|age| settling.is_over(1, SECOND * age)).into();
        assert_eq!(over, [false, false, false, false, true]);
        settling.connected();
        assert!(!settling.is_over(1, SECOND) && !settling.is_over(1, SECOND * 2) && !settling.is_over(1, SECOND * 5));
        assert!(settling.is_over(1, SECOND * 6), "twice as long");
        settling.connected();
        settling.answered(1);
        assert!(settling.is_over(1, SECOND), "it may be dead");
    }

    #[test]
    fn a_silent_unit_costs_no_connection_over_which_others_answer() {
        let mut settling = Settling::new(Duration::ZERO);
        settling.connected();
        [1, 2].into_iter().for_each(|unit| settling.answered(unit));
        assert!(!settling.is_over(1, SECOND) && !settling.is_over(1, SECOND), "with its repeat");
        for _ in 0..20 {
            settling.answered(2);
            assert!(!settling.is_over(1, SECOND));
        }
        assert!(settling.is_over(2, SECOND), "the other one as well: the connection may be dead");
        settling.answered(2);
        assert!((10..99).all(|unit| !settling.is_over(unit, SECOND * 20)), "these have never answered");
        settling.connected();
        settling.answered(2);
        assert!(!settling.is_over(1, SECOND), "it was silent before");
        settling.answered(3);
        assert!(!settling.is_over(1, SECOND) && !settling.is_over(1, SECOND * 5));
        assert!(settling.is_over(1, SECOND * 10), "nobody else was asked for ten seconds");
    }

    #[test]
    fn a_device_that_closes_connections_over_which_it_is_asked_early_is_asked_later() {
        let mut settling = Settling::new(Duration::from_millis(100));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push(settling.connected().as_millis());
            settling.ended();
        }
        assert_eq!(pauses, [100, 500, 1000, 2000, 4000, 8000, 8000]);
        settling.connected();
        settling.answered(1);
        settling.ended();
        assert_eq!(settling.connected(), SECOND * 4, "a little less is tried the next time");
        (0..4).for_each(|_| {
            settling.answered(1);
            settling.connected();
        });
        assert_eq!(settling.connected(), Duration::from_millis(100), "and in the end none");
    }
}
