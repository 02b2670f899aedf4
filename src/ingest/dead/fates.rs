//! Fates: what has become of dead letters since they were written.
//!
//! Promise: a fate is on the disk when [`Fates::put`] returns, together with the count of what it
//! changes in the ledger; a letter without a fate is held.
//! Invariant: a letter that is delivered, taken in or discarded never changes again.

use super::{DeadLetter, Stage};
use crate::event::Timestamp;
use crate::journal::{Journal, JournalError, Note, Notes};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::Notify;

const LETTER: &str = "fate/";
const RESOLVED: &str = "resolved";

/// What has become of a letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It waits for somebody to decide.
    #[default]
    Held,
    /// It is to be sent again.
    Requeued,
    /// Central has acknowledged it after all.
    Delivered,
    /// It became an event of its stream after all.
    TakenIn,
    /// Somebody gave it up.
    Discarded,
}

impl State {
    /// Whether nothing more can become of it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Delivered | Self::TakenIn | Self::Discarded)
    }

    /// The state in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Requeued => "requeued",
            Self::Delivered => "delivered",
            Self::TakenIn => "taken in",
            Self::Discarded => "discarded",
        }
    }
}

/// The fate of a letter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// What has become of it.
    pub state: State,
    /// When that was.
    #[serde(with = "crate::event::as_text")]
    pub at: Timestamp,
    /// How often it was tried since it was written.
    pub attempts: u32,
    /// Why it was refused the last time, where it was tried again.
    pub reason: String,
    /// Who is to get it, where it is requeued for central.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,
}

/// What a destination's account of a stream has to add, since letters of it are resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Letters that central has acknowledged after all.
    pub delivered: u64,
    /// Letters that were given up.
    pub discarded: u64,
}

/// By destination and stream with its major version.
type Resolutions = BTreeMap<String, Resolved>;

/// The fates of all letters.
#[derive(Debug)]
pub struct Fates {
    notes: Notes,
    /// Held from reading what is known to knowing what was written.
    writing: Mutex<()>,
    known: Mutex<Known>,
    requeued: Notify,
}

#[derive(Debug, Default)]
struct Known {
    fates: BTreeMap<u64, Fate>,
    resolved: Resolutions,
}

fn name_of(letter: u64) -> String {
    format!("{LETTER}{letter:020}")
}

fn account_of(destination: &str, stream: &str) -> String {
    format!("{destination}/{stream}")
}

impl Fates {
    /// Reads what is noted, and forgets the fates of letters that are gone. Blocks the thread.
    pub fn open(journal: &Journal) -> Result<Self, JournalError> {
        let notes = journal.notes("dead");
        let oldest = journal.dead().first();
        let mut known = Known::default();
        let mut gone: Vec<Note> = Vec::new();
        for (name, text) in notes.all(LETTER)? {
            let letter: u64 = name[LETTER.len()..].parse().unwrap_or(0);
            match serde_json::from_slice(&text) {
                Ok(fate) if letter >= oldest => drop(known.fates.insert(letter, fate)),
                _ => gone.push((name, None)),
            }
        }
        if !gone.is_empty() {
            notes.write(gone)?;
        }
        if let Some(text) = notes.read(RESOLVED)? {
            known.resolved = serde_json::from_slice(&text).unwrap_or_default();
        }
        Ok(Self { notes, writing: Mutex::default(), known: Mutex::new(known), requeued: Notify::new() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    /// The fate of a letter.
    pub fn of(&self, letter: u64) -> Fate {
        self.known().fates.get(&letter).cloned().unwrap_or_default()
    }

    /// Letters that are to be sent again to a destination, the oldest first.
    pub fn requeued(&self, destination: &str) -> Vec<u64> {
        let known = self.known();
        let is_meant = |fate: &Fate| fate.state == State::Requeued && fate.destination == destination;
        known.fates.iter().filter(|(_, fate)| is_meant(fate)).map(|(letter, _)| *letter).collect()
    }

    /// Returns when a letter may have been requeued. Safe to drop half-way.
    pub async fn changed(&self) {
        self.requeued.notified().await;
    }

    /// What a destination's account of a stream has to add.
    pub fn resolved(&self, destination: &str, stream: &str) -> Resolved {
        self.known().resolved.get(&account_of(destination, stream)).copied().unwrap_or_default()
    }

    /// Decides on letters; on the disk when this returns. A final fate stays as it is. Returns those
    /// that were changed. Blocks the thread.
    pub fn put(&self, letters: &[(u64, &DeadLetter<'_>, Fate)]) -> Result<BTreeSet<u64>, JournalError> {
        self.put_audited(letters, |_| Vec::new())
    }

    /// The same together with what `audit` has to say of the letters that are changed.
    pub fn put_audited(
        &self,
        letters: &[(u64, &DeadLetter<'_>, Fate)],
        audit: impl FnOnce(&BTreeSet<u64>) -> Vec<Note>,
    ) -> Result<BTreeSet<u64>, JournalError> {
        // Whoever asks for a fate does not wait for the disk.
        let _writing = self.writing.lock();
        let (mut resolved, open): (Resolutions, Vec<_>) = {
            let known = self.known();
            let is_open = |id: &u64| known.fates.get(id).is_none_or(|before| !before.state.is_final());
            (known.resolved.clone(), letters.iter().filter(|(id, ..)| is_open(id)).collect())
        };
        let mut notes = Vec::with_capacity(open.len() + 1);
        for (id, letter, fate) in &open {
            if letter.stage == Stage::Central {
                let account = resolved.entry(account_of(&letter.destination, &letter.stream_id())).or_default();
                account.delivered += u64::from(fate.state == State::Delivered);
                account.discarded += u64::from(fate.state == State::Discarded);
            }
            notes.push((name_of(*id), serde_json::to_vec(fate).ok()));
        }
        if notes.is_empty() {
            return Ok(BTreeSet::new());
        }
        notes.push((RESOLVED.to_owned(), serde_json::to_vec(&resolved).ok()));
        let changed = open.iter().map(|(id, ..)| *id).collect();
        self.notes.write_audited(notes, audit(&changed))?;
        let mut known = self.known();
        known.resolved = resolved;
        known.fates.extend(open.into_iter().map(|(id, _, fate)| (*id, fate.clone())));
        drop(known);
        self.requeued.notify_waiters();
        self.requeued.notify_one();
        Ok(changed)
    }
}
