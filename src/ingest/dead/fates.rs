//! Status of dead letters since they were written.
//!
//! Promise: when [`DeadLetterStatuses::put`] returns, the status is durable, together with its effect on the ledger. A letter
//! without a stored status is held.
//! Invariant: a letter that is delivered, taken in or discarded never changes again.

use super::DeadLetter;
use crate::api::{DeadLetterState, DeadLetterStatus, LetterStage};
use crate::journal::{Journal, JournalError, Note, Notes};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::Notify;

const LETTER_PREFIX: &str = "fate/";
const RESOLVED_NOTE: &str = "resolved";

impl DeadLetterState {
    /// Whether the state is final.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Delivered | Self::TakenIn | Self::Discarded)
    }
}

/// Correction of a destination's account of a stream, for resolved letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Number of letters that central acknowledged after a requeue.
    pub delivered: u64,
    pub discarded: u64,
}

/// Corrections by destination and stream id.
type Resolutions = BTreeMap<String, Resolved>;

/// Status of all dead letters.
#[derive(Debug)]
pub struct DeadLetterStatuses {
    notes: Notes,
    /// Serializes changes: locked from reading the current status until the new one is in memory.
    writing: Mutex<()>,
    known: Mutex<StatusTable>,
    requeued: Notify,
}

#[derive(Debug, Default)]
struct StatusTable {
    fates: BTreeMap<u64, DeadLetterStatus>,
    resolved: Resolutions,
}

fn name_of(letter: u64) -> String {
    format!("{LETTER_PREFIX}{letter:020}")
}

fn account_of(destination: &str, stream: &str) -> String {
    format!("{destination}/{stream}")
}

impl DeadLetterStatuses {
    /// Reads the stored status and removes that of letters that no longer exist. Blocks the thread.
    pub fn open(journal: &Journal) -> Result<Self, JournalError> {
        let notes = journal.notes("dead");
        let oldest = journal.dead().first();
        let mut known = StatusTable::default();
        let mut gone: Vec<Note> = Vec::new();
        for (name, text) in notes.all(LETTER_PREFIX)? {
            let letter: u64 = name[LETTER_PREFIX.len()..].parse().unwrap_or(0);
            match serde_json::from_slice(&text) {
                Ok(fate) if letter >= oldest => drop(known.fates.insert(letter, fate)),
                _ => gone.push((name, None)),
            }
        }
        if !gone.is_empty() {
            notes.write(gone)?;
        }
        if let Some(text) = notes.read(RESOLVED_NOTE)? {
            known.resolved = serde_json::from_slice(&text).unwrap_or_default();
        }
        Ok(Self { notes, writing: Mutex::default(), known: Mutex::new(known), requeued: Notify::new() })
    }

    fn known(&self) -> MutexGuard<'_, StatusTable> {
        self.known.lock()
    }

    /// Returns the status of a letter.
    pub fn of(&self, letter: u64) -> DeadLetterStatus {
        self.known().fates.get(&letter).cloned().unwrap_or_default()
    }

    /// Number of letters from `first` on whose status is final.
    pub fn decided_from(&self, first: u64) -> u64 {
        self.known().fates.range(first..).filter(|(_, fate)| fate.state.is_final()).count() as u64
    }

    /// Letters to send again to a destination, the oldest first.
    pub fn requeued(&self, destination: &str) -> Vec<u64> {
        let known = self.known();
        let is_meant =
            |fate: &DeadLetterStatus| fate.state == DeadLetterState::Requeued && fate.destination == destination;
        known.fates.iter().filter(|(_, fate)| is_meant(fate)).map(|(letter, _)| *letter).collect()
    }

    /// Waits until a letter may have been requeued. Cancel safe.
    pub async fn changed(&self) {
        self.requeued.notified().await;
    }

    /// Returns the correction of a destination's account of a stream.
    pub fn resolved(&self, destination: &str, stream: &str) -> Resolved {
        self.known().resolved.get(&account_of(destination, stream)).copied().unwrap_or_default()
    }

    /// Changes the status of letters, durably. A final status does not change. Returns the
    /// changed letters. Blocks the thread.
    pub fn put(&self, letters: &[(u64, &DeadLetter<'_>, DeadLetterStatus)]) -> Result<BTreeSet<u64>, JournalError> {
        self.put_audited(letters, |_| Vec::new())
    }

    /// Like [`DeadLetterStatuses::put`], and stores the audit notes that `audit` returns for the changed letters in the same commit.
    pub fn put_audited(
        &self,
        letters: &[(u64, &DeadLetter<'_>, DeadLetterStatus)],
        audit: impl FnOnce(&BTreeSet<u64>) -> Vec<Note>,
    ) -> Result<BTreeSet<u64>, JournalError> {
        // Readers do not wait for the disk.
        let _writing = self.writing.lock();
        let (mut resolved, open): (Resolutions, Vec<_>) = {
            let known = self.known();
            let is_open = |id: &u64| known.fates.get(id).is_none_or(|before| !before.state.is_final());
            (known.resolved.clone(), letters.iter().filter(|(id, ..)| is_open(id)).collect())
        };
        let mut notes = Vec::with_capacity(open.len() + 1);
        for (id, letter, fate) in &open {
            if letter.stage == LetterStage::Central {
                let account = resolved.entry(account_of(&letter.destination, &letter.stream_id())).or_default();
                account.delivered += u64::from(fate.state == DeadLetterState::Delivered);
                account.discarded += u64::from(fate.state == DeadLetterState::Discarded);
            }
            notes.push((name_of(*id), serde_json::to_vec(fate).ok()));
        }
        if notes.is_empty() {
            return Ok(BTreeSet::new());
        }
        notes.push((RESOLVED_NOTE.to_owned(), serde_json::to_vec(&resolved).ok()));
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
