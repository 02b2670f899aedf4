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
/// Entries between two looks at whether there are too many.
const LOOK_EVERY: u64 = 100;

/// One entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When, RFC 3339.
    pub at: String,
    /// The user who had it done, by number; nobody where a limit did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<u32>,
    /// What was done.
    pub action: String,
    /// To what, and how it ended.
    pub detail: serde_json::Value,
}

/// A note that keeps an entry, to be written together with what it tells of.
pub(super) fn entry(core: &Core, action: &str, by: Option<u32>, detail: &impl Serialize) -> Note {
    let at = Timestamp::from(clock::wall());
    let entry = Entry {
        at: at.to_string(),
        by,
        action: action.to_owned(),
        detail: serde_json::to_value(detail).unwrap_or_default(),
    };
    let number = core.audited.fetch_add(1, Ordering::Relaxed);
    // By time, and in the order they came within one moment; a clock that goes back mixes the order alone.
    (format!("{PREFIX}{:020}-{number:010}", at.0), serde_json::to_vec(&entry).ok())
}

impl Core {
    /// Lets the oldest entries go where there are too many. Blocks the thread.
    pub(super) fn trim_audit(&self) -> Result<(), JournalError> {
        // Looking takes a while, and some more than are to stay do no harm. The first entry of a run looks too.
        if self.audited.load(Ordering::Relaxed) % LOOK_EVERY != 1 {
            return Ok(());
        }
        let noted = self.state.notes(PREFIX)?;
        let surplus = noted.len().saturating_sub(ENTRIES_MAX);
        let old: Vec<Note> = noted.into_iter().take(surplus).map(|(name, _)| (name, None)).collect();
        if old.is_empty() { Ok(()) } else { self.state.note(&old) }
    }
}

impl Journal {
    /// Writes down what was done to what, and the user number of whoever had it done; returns when it is on the
    /// disk. Blocks the thread.
    pub fn audit(&self, action: &str, by: Option<u32>, detail: &impl Serialize) -> Result<(), JournalError> {
        self.core.state.note(&[entry(&self.core, action, by, detail)])?;
        self.core.trim_audit()
    }

    /// The newest entries, oldest first. Blocks the thread.
    pub fn audited(&self, limit: usize) -> Result<Vec<Entry>, JournalError> {
        let noted = self.core.state.notes(PREFIX)?;
        let from = noted.len().saturating_sub(limit);
        Ok(noted[from..].iter().filter_map(|(_, text)| serde_json::from_slice(text).ok()).collect())
    }
}
