//! What a forwarder counts, and the state of its connection.

use crate::clock;
use crate::event::Timestamp;
use crate::link::Peer;
use crate::telemetry::{Counter, Histogram};
use parking_lot::Mutex;

/// Counters and state of one forwarder.
#[derive(Debug, Default)]
pub struct Stats {
    pub delivered: Counter,
    /// Acknowledged publishes whose topic had no subscriber.
    pub unheard: Counter,
    /// Publishes sent, repeats included.
    pub sent: Counter,
    /// Publishes that central rejected temporarily.
    pub refused_for_now: Counter,
    /// Events that this forwarder turned into dead letters.
    pub dead: Counter,
    /// Publishes that were unacknowledged when the session ended, and that are sent again.
    pub repeated: Counter,
    pub connects: Counter,
    /// Lost sessions and failed connection attempts.
    pub failures: Counter,
    /// Time from sending to acknowledgement.
    pub answer: Histogram,
    /// Time from accepting an event to its acknowledgement; for a batch, of its oldest event.
    pub settle: Histogram,
    state: Mutex<LinkState>,
}

#[derive(Clone, Debug, Default)]
pub struct LinkState {
    /// Whether there is a session.
    pub is_up: bool,
    /// Time of the last change of `is_up`.
    pub since: Option<Timestamp>,
    /// Why there is no session.
    pub reason: Option<String>,
    pub in_flight: usize,
    /// A warning for the operator while the session continues.
    pub note: Option<String>,
    /// The server of the last session.
    pub peer: Option<Peer>,
}

impl Stats {
    /// Returns the state of the connection.
    pub fn state(&self) -> LinkState {
        self.state.lock().clone()
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut LinkState)) {
        change(&mut self.state.lock());
    }

    /// Records whether there is a session; returns whether that is new.
    pub(super) fn set_up(&self, is_up: bool, reason: Option<String>) -> bool {
        let mut is_changed = false;
        self.set(|state| {
            is_changed = state.is_up != is_up || state.since.is_none() || state.reason != reason;
            if state.is_up != is_up || state.since.is_none() {
                state.since = Some(Timestamp::from(clock::wall()));
            }
            *state = LinkState { is_up, since: state.since, reason, in_flight: 0, note: None, peer: state.peer };
        });
        is_changed
    }
}
