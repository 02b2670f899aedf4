//! How the captures of one Odoo are doing, in words for the status.

use super::capture::progress;
use super::shape::Shape;
use crate::clock;
use crate::event::Timestamp;
use crate::odoo::OdooError;
use crate::setting::Span;
use crate::sources::Stats;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The state of all contracts of one source.
#[derive(Debug)]
pub(super) struct Health {
    source: String,
    contracts: usize,
    stats: Arc<Stats>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By stream: why it is not read, and since when.
    troubles: BTreeMap<String, (String, Timestamp)>,
    /// Contracts that were read at least once, or said why not.
    heard: BTreeSet<String>,
    lacks: BTreeMap<String, String>,
    loads: BTreeMap<String, (usize, u64)>,
    slowed: BTreeMap<String, (Span, Span)>,
    full: BTreeSet<String>,
}

impl Health {
    pub(super) fn new(source: &str, contracts: usize, stats: Arc<Stats>) -> Self {
        let health = Self { source: source.to_owned(), contracts, stats, state: Mutex::default() };
        if contracts == 0 {
            health.stats.set_problem(Some("no contract names it: nothing is read".into()));
        } else {
            health.stats.set_problem(Some("not read yet".into()));
        }
        health
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A contract was read.
    pub(super) fn works(&self, stream: &str) {
        let mut state = self.state();
        let is_news = state.troubles.remove(stream).is_some() | state.heard.insert(stream.to_owned());
        if is_news {
            if state.troubles.is_empty() && state.heard.len() == self.contracts {
                self.stats.connections.set(1);
                tracing::info!(source = %self.source, "Odoo is read");
            }
            self.show(&state);
        }
    }

    /// A contract could not be read.
    pub(super) fn fails(&self, stream: &str, error: &OdooError) {
        let reason = error.to_string();
        let mut state = self.state();
        state.heard.insert(stream.to_owned());
        let (since, is_news) = match state.troubles.get(stream) {
            Some((known, since)) => (*since, *known != reason),
            None => (Timestamp::from(clock::wall()), true),
        };
        if is_news {
            // Ten contracts say the same when Odoo is down: one line is enough.
            if !state.troubles.values().any(|(known, _)| *known == reason) {
                tracing::warn!(source = %self.source, stream, "Odoo cannot be read, will retry: {reason}");
            }
            state.troubles.insert(stream.to_owned(), (reason, since));
            self.stats.connections.set(0);
            self.show(&state);
        }
    }

    /// Fields that are not read.
    pub(super) fn lacks(&self, stream: &str, shape: &Shape) {
        let mut words = Vec::new();
        if !shape.missing.is_empty() {
            words.push(format!("{} not there for this account", shape.missing.join(", ")));
        }
        if !shape.not_stored.is_empty() {
            words.push(format!("{} not stored", shape.not_stored.join(", ")));
        }
        let mut state = self.state();
        if words.is_empty() {
            state.lacks.remove(stream);
        } else {
            state.lacks.insert(stream.to_owned(), words.join("; "));
        }
        self.show(&state);
    }

    /// How far a first load is; `None` once it is complete.
    pub(super) fn loads(&self, stream: &str, progress: Option<(usize, u64)>) {
        let mut state = self.state();
        match progress {
            Some(progress) => drop(state.loads.insert(stream.to_owned(), progress)),
            None => drop(state.loads.remove(stream)),
        }
        self.show(&state);
    }

    /// How far polls are apart, and how long one takes, where that is more than the contract says.
    pub(super) fn slowed(&self, stream: &str, pace: Option<(Span, Span)>) {
        let mut state = self.state();
        let before = state.slowed.get(stream).copied();
        if before == pace {
            return;
        }
        match pace {
            Some(pace) => drop(state.slowed.insert(stream.to_owned(), pace)),
            None => drop(state.slowed.remove(stream)),
        }
        self.show(&state);
    }

    /// Whether no more records are remembered.
    pub(super) fn full(&self, stream: &str, is_full: bool) {
        let mut state = self.state();
        let is_news = match is_full {
            true => state.full.insert(stream.to_owned()),
            false => state.full.remove(stream),
        };
        if !is_news {
            return;
        }
        if is_full {
            tracing::warn!(source = %self.source, stream, "records_memory is used up: further records are told without what they were before; narrow odoo.domain, set odoo.recent, or allow more");
        }
        self.show(&state);
    }

    fn show(&self, state: &State) {
        self.stats.set_problem(self.problem(state));
        let mut notes = Vec::new();
        for (stream, (loaded, total)) in &state.loads {
            notes.push(format!("first load of {stream}: {}", progress(*loaded, *total)));
        }
        for (stream, (every, took)) in &state.slowed {
            notes.push(format!("Odoo is slow: {stream} is read every {every}, since a read takes {took}"));
        }
        notes.extend(state.lacks.iter().map(|(stream, words)| format!("{stream}: fields not read: {words}")));
        notes.extend(state.full.iter().map(|stream| {
            format!("{stream}: records_memory is used up; narrow odoo.domain, set odoo.recent, or allow more")
        }));
        self.stats.set_notes(notes);
    }

    fn problem(&self, state: &State) -> Option<String> {
        let mut reasons: BTreeMap<&str, (Timestamp, Vec<&str>)> = BTreeMap::new();
        for (stream, (reason, since)) in &state.troubles {
            let entry = reasons.entry(reason).or_insert((*since, Vec::new()));
            entry.0 = entry.0.min(*since);
            entry.1.push(stream);
        }
        if reasons.is_empty() {
            return (state.heard.len() < self.contracts).then(|| "not read yet".to_owned());
        }
        let words = reasons.iter().map(|(reason, (since, streams))| {
            let since = since.to_string();
            let since = since.get(..19).unwrap_or_default();
            if streams.len() == self.contracts {
                format!("{reason}, since {since}Z")
            } else {
                format!("{} cannot be read: {reason}, since {since}Z", streams.join(", "))
            }
        });
        Some(format!("degraded: {}", words.collect::<Vec<_>>().join("; ")))
    }
}
