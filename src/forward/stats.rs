//! What the forwarders of a lane count, and the state of their connections.

use super::key_order::OvertakenEvents;
use crate::clock;
use crate::event::Timestamp;
use crate::link::{LinkError, Peer};
use crate::telemetry::{Counter, Histogram};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Counters and state of the connections that send one lane to one destination, or of another connection.
#[derive(Debug)]
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
    /// One for each connection.
    states: Mutex<Vec<LinkState>>,
}

impl Default for Stats {
    fn default() -> Self {
        Self::of(1)
    }
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
    /// Creates the counters of so many connections.
    pub fn of(connections: u16) -> Self {
        Self {
            delivered: Counter::default(),
            unheard: Counter::default(),
            sent: Counter::default(),
            refused_for_now: Counter::default(),
            overtaken: Counter::default(),
            dead: Counter::default(),
            repeated: Counter::default(),
            connects: Counter::default(),
            failures: Counter::default(),
            answer: Histogram::default(),
            settle: Histogram::default(),
            unannounced: Unannounced::default(),
            states: Mutex::new(vec![LinkState::default(); usize::from(connections)]),
        }
    }

    /// Returns the state of the connections as one: it is up if all of them are.
    pub fn state(&self) -> LinkState {
        let states = self.states.lock();
        match &states[..] {
            [only] => only.clone(),
            several => state_of_several(several),
        }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut LinkState)) {
        self.set_of(0, change);
    }

    pub(super) fn set_of(&self, connection: u16, change: impl FnOnce(&mut LinkState)) {
        if let Some(state) = self.states.lock().get_mut(usize::from(connection)) {
            change(state);
        }
    }

    /// Records why there is no session; returns whether that is new.
    pub(super) fn set_down(&self, error: &LinkError, reason: String) -> bool {
        self.set_down_of(0, error, reason)
    }

    pub(super) fn set_down_of(&self, connection: u16, error: &LinkError, reason: String) -> bool {
        let is_changed = self.set_up_of(connection, false, Some(reason));
        self.set_of(connection, |state| state.is_refused = error.is_refusal());
        is_changed
    }

    /// Records whether there is a session; returns whether that is new.
    pub(super) fn set_up(&self, is_up: bool, reason: Option<String>) -> bool {
        self.set_up_of(0, is_up, reason)
    }

    pub(super) fn set_up_of(&self, connection: u16, is_up: bool, reason: Option<String>) -> bool {
        let mut is_changed = false;
        self.set_of(connection, |state| {
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

/// The state of several connections as one.
fn state_of_several(states: &[LinkState]) -> LinkState {
    let down: Vec<(usize, &LinkState)> = states.iter().enumerate().filter(|(_, state)| !state.is_up).collect();
    let reason = down.first().and_then(|(index, state)| {
        let reason = state.reason.as_ref()?;
        let place = format!("connection {} of {}", index + 1, states.len());
        Some(match down.len() {
            1 => format!("{place}: {reason}"),
            count if count < states.len() => format!("{place}, and {} more: {reason}", count - 1),
            _ => reason.clone(),
        })
    });
    LinkState {
        is_up: down.is_empty(),
        // Since all are up, or since the first one is down.
        since: match down.is_empty() {
            true => states.iter().filter_map(|state| state.since).max(),
            false => down.iter().filter_map(|(_, state)| state.since).min(),
        },
        reason,
        is_refused: down.iter().any(|(_, state)| state.is_refused),
        in_flight: states.iter().map(|state| state.in_flight).sum(),
        window: states.iter().map(|state| state.window).sum(),
        is_window_of_broker: states.iter().any(|state| state.is_window_of_broker),
        note: states.iter().find_map(|state| state.note.clone()),
        refused: states.iter().find_map(|state| state.refused.clone()),
        peer: states.iter().find_map(|state| state.peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_connections_are_up_together_and_name_the_one_that_is_down() {
        let stats = Stats::of(3);
        let window = |state: &mut LinkState| (state.in_flight, state.window) = (7, 20);
        for connection in 0..3 {
            assert!(!stats.state().is_up, "not yet");
            stats.set_up_of(connection, true, None);
            stats.set_of(connection, window);
        }
        let state = stats.state();
        assert!(state.is_up && state.reason.is_none() && state.since.is_some());
        assert_eq!((state.in_flight, state.window), (21, 60));
        assert!(stats.set_up_of(1, false, Some("the line is cut".into())), "that is new");
        let state = stats.state();
        assert_eq!((state.is_up, state.window), (false, 40));
        assert_eq!(state.reason.as_deref(), Some("connection 2 of 3: the line is cut"));
        stats.set_up_of(2, false, Some("the line is cut".into()));
        assert_eq!(stats.state().reason.as_deref(), Some("connection 2 of 3, and 1 more: the line is cut"));
        stats.set_up_of(0, false, Some("the line is cut".into()));
        assert_eq!(stats.state().reason.as_deref(), Some("the line is cut"));
    }
}
