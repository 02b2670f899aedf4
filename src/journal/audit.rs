//! Audit: what people and limits did to events, with time and effect, in `state.redb`.
//!
//! Promise: an entry is on the disk together with what it tells of; the newest
//! [`ENTRIES_MAX`] stay.

use super::{Core, Journal, JournalError, Note};
use crate::clock;
use crate::event::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

const PREFIX: &str = "audit/";
/// Entries that stay: some megabytes at most.
pub const ENTRIES_MAX: usize = 10_000;
/// How many more there may be before the oldest leave.
const SLACK: usize = 100;

/// One entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When, RFC 3339.
    pub at: String,
    /// What was done.
    pub action: String,
    /// To what, and how it ended.
    pub detail: serde_json::Value,
}

/// A note that keeps an entry, to be written together with what it tells of.
pub(super) fn entry(core: &Core, action: &str, detail: &impl Serialize) -> Note {
    let at = Timestamp::from(clock::wall());
    let entry = Entry {
        at: at.to_string(),
        action: action.to_owned(),
        detail: serde_json::to_value(detail).unwrap_or_default(),
    };
    let number = core.audited.fetch_add(1, Ordering::Relaxed);
    // By time, and in the order they came within one moment; a clock that goes back mixes the order alone.
    (format!("{PREFIX}{:020}-{number:010}", at.0), serde_json::to_vec(&entry).ok())
}

impl Journal {
    /// Writes an entry down; returns when it is on the disk. Blocks the thread.
    pub fn audit(&self, action: &str, detail: &impl Serialize) -> Result<(), JournalError> {
        self.core.state.note(&[entry(&self.core, action, detail)])?;
        self.trim_audit()
    }

    /// The newest entries, oldest first. Blocks the thread.
    pub fn audited(&self, limit: usize) -> Result<Vec<Entry>, JournalError> {
        let noted = self.core.state.notes(PREFIX)?;
        let from = noted.len().saturating_sub(limit);
        Ok(noted[from..].iter().filter_map(|(_, text)| serde_json::from_slice(text).ok()).collect())
    }

    /// Lets the oldest entries go where there are too many. Blocks the thread.
    pub fn trim_audit(&self) -> Result<(), JournalError> {
        let noted = self.core.state.notes(PREFIX)?;
        if noted.len() <= ENTRIES_MAX + SLACK {
            return Ok(());
        }
        let old: Vec<Note> = noted[..noted.len() - ENTRIES_MAX].iter().map(|(name, _)| (name.clone(), None)).collect();
        self.core.state.note(&old)
    }
}
