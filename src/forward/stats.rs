//! What a forwarder counts, and the state of its connection.

use super::key_order::OvertakenEvents;
use crate::clock;
use crate::event::Timestamp;
use crate::link::{LinkError, Peer};
use crate::telemetry::{Counter, Histogram};
use parking_lot::Mutex;
use std::collections::BTreeMap;

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
    /// Events that later ones of their key may have overtaken, because central refused them for now.
    pub overtaken: Counter,
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
    pub(super) unannounced: Unannounced,
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
    /// Central, or a check of its certificate, refuses the session: a person has to change something.
    pub is_refused: bool,
    pub in_flight: usize,
    /// Largest number of publishes in flight.
    pub window: usize,
    /// The broker allows no more.
    pub is_window_of_broker: bool,
    /// A warning for the operator while the session continues.
    pub note: Option<String>,
    /// Reason for which central refused events for now within the last minute.
    pub refused: Option<String>,
    /// The server of the last session.
    pub peer: Option<Peer>,
}

/// The overtaken events of one forwarder that are not yet announced, by stream.
#[derive(Debug, Default)]
pub(super) struct Unannounced(Mutex<BTreeMap<u32, OvertakenEvents>>);

impl Unannounced {
    pub(super) fn add(&self, events: &[OvertakenEvents]) {
        let mut by_stream = self.0.lock();
        for one in events {
            let known = by_stream.entry(one.stream).or_insert(OvertakenEvents { count: 0, ..*one });
            known.first = known.first.min(one.first);
            known.last = known.last.max(one.last);
            known.count += one.count;
        }
    }

    pub(super) fn take(&self) -> Vec<OvertakenEvents> {
        std::mem::take(&mut *self.0.lock()).into_values().collect()
    }
}

impl Stats {
    /// Returns the state of the connection.
    pub fn state(&self) -> LinkState {
        self.state.lock().clone()
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut LinkState)) {
        change(&mut self.state.lock());
    }

    /// Records why there is no session; returns whether that is new.
    pub(super) fn set_down(&self, error: &LinkError, reason: String) -> bool {
        let is_changed = self.set_up(false, Some(reason));
        self.set(|state| state.is_refused = error.is_refusal());
        is_changed
    }

    /// Records whether there is a session; returns whether that is new.
    pub(super) fn set_up(&self, is_up: bool, reason: Option<String>) -> bool {
        let mut is_changed = false;
        self.set(|state| {
            is_changed = state.is_up != is_up || state.since.is_none() || state.reason != reason;
            if state.is_up != is_up || state.since.is_none() {
                state.since = Some(Timestamp::from(clock::wall()));
            }
            let (since, refused, peer) = (state.since, state.refused.take(), state.peer);
            *state = LinkState { is_up, since, reason, refused, peer, ..LinkState::default() };
        });
        is_changed
    }
}
