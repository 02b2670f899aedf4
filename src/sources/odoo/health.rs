//! The status text of one Odoo source, collected from its captures.

use crate::clock;
use crate::event::Timestamp;
use crate::odoo::OdooError;
use crate::setting::{Span, grouped};
use crate::sources::Stats;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The state of all captures of one source.
#[derive(Debug)]
pub(super) struct Health {
    source: String,
    contracts: usize,
    stats: Arc<Stats>,
    state: Mutex<CaptureStates>,
}

#[derive(Debug, Default)]
struct CaptureStates {
    /// By stream: the error and the time of its first occurrence.
    errors: BTreeMap<String, (String, Timestamp)>,
    /// Streams that were read at least once or have reported an error.
    attempted: BTreeSet<String>,
    /// By stream: what is not read, or read otherwise than the contract says.
    remarks: BTreeMap<String, Vec<String>>,
    /// By stream: records loaded and their total number, while the first load runs.
    loads: BTreeMap<String, (usize, u64)>,
    /// By stream: the time between polls and the duration of one, where polls are slower than configured.
    slowed: BTreeMap<String, (Span, Span)>,
    /// By stream: the duration of the last reconciliation, where it is longer than configured.
    reconciliations: BTreeMap<String, Span>,
    /// The end of the validity of the key, if it is near.
    key_expires: Option<Timestamp>,
    /// Streams that remember no further records.
    full: BTreeSet<String>,
}

impl Health {
    pub(super) fn new(source: &str, contracts: usize, stats: Arc<Stats>) -> Self {
        let health = Self { source: source.to_owned(), contracts, stats, state: Mutex::default() };
        if contracts == 0 {
            health.stats.set_problem(Some("no contract names this source: nothing is read".into()));
        } else {
            health.stats.set_problem(Some("not read yet".into()));
        }
        health
    }

    fn state(&self) -> MutexGuard<'_, CaptureStates> {
        self.state.lock()
    }

    /// Records that a contract was read.
    pub(super) fn works(&self, stream: &str) {
        let mut state = self.state();
        let has_changed = state.errors.remove(stream).is_some() | state.attempted.insert(stream.to_owned());
        if has_changed {
            if state.errors.is_empty() && state.attempted.len() == self.contracts {
                self.stats.connections.set(1);
                tracing::info!(source = %self.source, "Odoo is read");
            }
            self.show(&state);
        }
    }

    /// Records that a contract could not be read.
    pub(super) fn fails(&self, stream: &str, error: &OdooError) {
        let reason = error.to_string();
        let mut state = self.state();
        state.attempted.insert(stream.to_owned());
        let (since, has_changed) = match state.errors.get(stream) {
            Some((known, since)) => (*since, *known != reason),
            None => (Timestamp::from(clock::wall()), true),
        };
        if has_changed {
            // All contracts report the same error when Odoo is down: log it once.
            if !state.errors.values().any(|(known, _)| *known == reason) {
                tracing::warn!(source = %self.source, stream, "Odoo cannot be read, will retry: {reason}");
            }
            state.errors.insert(stream.to_owned(), (reason, since));
            self.stats.connections.set(0);
            self.show(&state);
        }
    }

    /// Records what a contract does not read, or reads otherwise than it says: one line each.
    pub(super) fn remarks(&self, stream: &str, remarks: Vec<String>) {
        let mut state = self.state();
        let has_changed = match remarks.is_empty() {
            true => state.remarks.remove(stream).is_some(),
            false => state.remarks.get(stream) != Some(&remarks),
        };
        if has_changed {
            if !remarks.is_empty() {
                state.remarks.insert(stream.to_owned(), remarks);
            }
            self.show(&state);
        }
    }

    /// Records how long the last reconciliation took, if that was longer than configured.
    pub(super) fn reconciled(&self, stream: &str, took: Option<Span>) {
        let mut state = self.state();
        let before = state.reconciliations.get(stream).copied();
        match took {
            Some(took) => drop(state.reconciliations.insert(stream.to_owned(), took)),
            None => drop(state.reconciliations.remove(stream)),
        }
        if before != took {
            self.show(&state);
        }
    }

    /// Records the end of the validity of the key, if it is near.
    pub(super) fn key_expires(&self, at: Option<Timestamp>) {
        let mut state = self.state();
        if state.key_expires == at {
            return;
        }
        if let Some(at) = at {
            tracing::warn!(source = %self.source, %at, "the API key expires soon; make a new key for the account in Odoo and put it into key_file");
        }
        state.key_expires = at;
        self.show(&state);
    }

    /// Records the progress of a first load; `None` once it is complete.
    pub(super) fn loads(&self, stream: &str, progress: Option<(usize, u64)>) {
        let mut state = self.state();
        match progress {
            Some(progress) => drop(state.loads.insert(stream.to_owned(), progress)),
            None => drop(state.loads.remove(stream)),
        }
        self.show(&state);
    }

    /// Records the time between polls and the duration of one, where that is longer than the contract's interval.
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

    /// Records whether memory for further records is used up.
    pub(super) fn full(&self, stream: &str, is_full: bool) {
        let mut state = self.state();
        let has_changed = match is_full {
            true => state.full.insert(stream.to_owned()),
            false => state.full.remove(stream),
        };
        if !has_changed {
            return;
        }
        if is_full {
            tracing::warn!(source = %self.source, stream, "records_memory is used up: events of further records carry no earlier values; narrow odoo.domain, set odoo.recent, or allow more");
        }
        self.show(&state);
    }

    fn show(&self, state: &CaptureStates) {
        self.stats.set_problem(self.problem(state));
        let mut notes = Vec::new();
        for (stream, (loaded, total)) in &state.loads {
            notes.push(format!("first load of {stream}: {}", progress(*loaded, *total)));
        }
        for (stream, (every, took)) in &state.slowed {
            notes.push(format!("Odoo is slow: {stream} is read every {every}, because a read takes {took}"));
        }
        for (stream, remarks) in &state.remarks {
            notes.extend(remarks.iter().map(|remark| format!("{stream}: {remark}")));
        }
        for (stream, took) in &state.reconciliations {
            notes.push(format!("{stream}: the comparison of all records takes {took}, longer than reconcile; set reconcile higher, or narrow odoo.domain"));
        }
        if let Some(at) = state.key_expires {
            let day = at.to_string();
            notes.push(format!(
                "the API key expires on {}: make a new key for the account in Odoo and put it into key_file",
                day.get(..10).unwrap_or(&day)
            ));
        }
        notes.extend(state.full.iter().map(|stream| {
            format!("{stream}: records_memory is used up; narrow odoo.domain, set odoo.recent, or allow more")
        }));
        self.stats.set_notes(notes);
    }

    fn problem(&self, state: &CaptureStates) -> Option<String> {
        let mut reasons: BTreeMap<&str, (Timestamp, Vec<&str>)> = BTreeMap::new();
        for (stream, (reason, since)) in &state.errors {
            let entry = reasons.entry(reason).or_insert((*since, Vec::new()));
            entry.0 = entry.0.min(*since);
            entry.1.push(stream);
        }
        if reasons.is_empty() {
            return (state.attempted.len() < self.contracts).then(|| "not read yet".to_owned());
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

/// `4,000 of 10,000`.
fn progress(loaded: usize, total: u64) -> String {
    format!("{} of {}", grouped(loaded as u64), grouped(total.max(loaded as u64)))
}
