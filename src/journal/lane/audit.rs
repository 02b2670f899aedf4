//! Audit: actions of operators and limits on events and on the gateway, with time, user and outcome, in `state.redb`.
//!
//! Promise: an entry is durable before the caller learns the outcome. The newest entries stay, up to [`ENTRIES_MAX`] and
//! [`BYTES_MAX`]; the gateway counts and logs the older ones that it removes.
//! Invariant: no more than one page of entries is in memory.
//!
//! Not here: access control (`admin`), a proof that no entry was changed.

use crate::api::AuditEntry;
use crate::clock;
use crate::event::Timestamp;
use crate::journal::store::error::JournalError;
use crate::journal::store::state::{Note, State};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PREFIX: &str = "audit/";
/// Largest number of entries: a year of thirty changes per day.
pub(crate) const ENTRIES_MAX: usize = 10_000;
/// Largest size of all entries: a sixteenth of the memory of the packaged unit, since a start reads the file.
pub(crate) const BYTES_MAX: usize = 16 << 20;
/// The number of entries is checked once per this many writes.
const TRIM_EVERY: u64 = 100;
/// Size of one page when reading, beyond one entry.
const PAGE_BYTES: usize = 64 << 10;
/// Largest detail of an entry; 200 dead letters with their ids take less.
const DETAIL_BYTES_MAX: usize = 64 << 10;

/// Result of a successful action.
pub const DONE: &str = "done";
/// Result of an action in progress; a later entry has its outcome.
pub const BEGUN: &str = "begun";

/// The audit of one journal.
#[derive(Debug)]
pub(super) struct Audit {
    state: Arc<State>,
    /// Entries written since the start; also distinguishes entries with the same time.
    written: AtomicU64,
    /// Number of stored entries at the last check, and `written` at that time.
    held: Mutex<Option<(u64, u64)>>,
    /// Entries removed since the start.
    removed: AtomicU64,
}

/// Fill level of the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditUsage {
    pub held: u64,
    /// Entries removed since the start to make room for newer ones.
    pub removed: u64,
}

impl Audit {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self { state, written: AtomicU64::new(0), held: Mutex::default(), removed: AtomicU64::new(0) }
    }

    fn set_held(&self, held: usize, written: u64) {
        *self.held.lock() = Some((held as u64, written));
    }

    /// A note with an entry, to be written together with the change that it describes.
    pub(super) fn entry(&self, action: &str, by: Option<u32>, detail: &impl Serialize, result: &str) -> Note {
        let at = Timestamp::from(clock::wall());
        let mut detail = serde_json::to_value(detail).unwrap_or_default();
        let bytes = detail.to_string().len();
        if bytes > DETAIL_BYTES_MAX {
            detail = serde_json::json!({"too large to be kept": bytes});
        }
        let clockstatus = (!clock::is_trusted()).then(|| "untrusted".to_owned());
        let (action, result) = (action.to_owned(), result.to_owned());
        let entry = AuditEntry { at: at.to_string(), clockstatus, by, action, detail, result };
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        // Sorted by time, then by number. A clock that is set back only mixes the order.
        (format!("{PREFIX}{:020}-{number:010}", at.0), serde_json::to_vec(&entry).ok())
    }

    /// Removes the oldest entries beyond the limits. Blocks the thread.
    pub(super) fn trim(&self) -> Result<(), JournalError> {
        let written = self.written.load(Ordering::Relaxed);
        // The check takes a while, and a few entries too many do no harm. The first entry after a start is checked too.
        if written % TRIM_EVERY != 1 {
            return Ok(());
        }
        let held = self.state.note_sizes(PREFIX)?;
        let mut bytes: usize = held.iter().map(|(_, bytes)| bytes).sum();
        let mut surplus = held.len().saturating_sub(ENTRIES_MAX);
        bytes -= held[..surplus].iter().map(|(_, bytes)| bytes).sum::<usize>();
        while bytes > BYTES_MAX {
            bytes -= held[surplus].1;
            surplus += 1;
        }
        self.set_held(held.len() - surplus, written);
        if surplus == 0 {
            return Ok(());
        }
        let old: Vec<Note> = held.into_iter().take(surplus).map(|(name, _)| (name, None)).collect();
        self.state.write_notes(&old)?;
        self.removed.fetch_add(surplus as u64, Ordering::Relaxed);
        tracing::warn!(
            removed = surplus,
            entries_max = ENTRIES_MAX,
            "the audit is full: its oldest entries were removed"
        );
        Ok(())
    }

    /// The newest entries as JSON, oldest first, read page by page. Blocks the thread.
    pub(super) fn newest(&self, limit: usize) -> Result<AuditReader, JournalError> {
        let names = self.state.note_sizes(PREFIX)?;
        let before = names.len().checked_sub(limit.saturating_add(1)).and_then(|last| names.into_iter().nth(last));
        let after = before.map_or_else(|| PREFIX.to_owned(), |(name, _)| name);
        Ok(AuditReader { state: Arc::clone(&self.state), after, page: Vec::new().into_iter() })
    }

    /// Fill level of the audit. Blocks the thread.
    pub(super) fn usage(&self) -> AuditUsage {
        let written = self.written.load(Ordering::Relaxed);
        let last = *self.held.lock();
        let (held, at) = match last {
            Some(last) => last,
            // Only before the first entry since the start.
            None => {
                let held = self.state.note_sizes(PREFIX).map_or(0, |held| held.len());
                self.set_held(held, written);
                (held as u64, written)
            }
        };
        AuditUsage { held: held + written.saturating_sub(at), removed: self.removed.load(Ordering::Relaxed) }
    }
}

/// Reads entries of the audit page by page. Ends at a read error.
#[derive(Debug)]
pub struct AuditReader {
    state: Arc<State>,
    after: String,
    page: std::vec::IntoIter<(String, Vec<u8>)>,
}

impl Iterator for AuditReader {
    type Item = Result<Vec<u8>, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.len() == 0 {
            match self.state.notes_after(PREFIX, &self.after, PAGE_BYTES) {
                Ok(page) => self.page = page.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
        let (name, text) = self.page.next()?;
        self.after = name;
        Some(Ok(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Config, Journal, RealDisk, Seal};
    use std::time::Duration;

    #[test]
    fn the_audit_is_bounded_and_counts_what_it_removes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let config = Config::of_notes(folder.path().join("journal"));
        let seal = Seal { format: 1, environment: "test".into(), name: None };
        let journal = Journal::open(&config, &seal, Arc::new(RealDisk)).expect("opens");
        assert_eq!(journal.audit_usage(), AuditUsage { held: 0, removed: 0 });
        journal.audit("first", Some(7), &"x", DONE).expect("written");
        let large = "x".repeat(60_000);
        let mut notes: Vec<Note> = (0..399).map(|_| journal.audit_note("large", None, &large, DONE)).collect();
        // In few commits: each entry alone would take a sync.
        for part in notes.chunks_mut(133) {
            journal.core().state.write_notes(part).expect("written");
        }
        journal.audit("last", Some(8), &"y".repeat(100_000), BEGUN).expect("written");
        let room = journal.audit_usage();
        assert!(room.removed > 100 && room.held + room.removed == 401, "{room:?}");
        assert!((room.held as usize - 1) * large.len() <= BYTES_MAX, "{room:?}");
        let entries: Vec<AuditEntry> = journal
            .audited(1000)
            .expect("read")
            .map(|entry| serde_json::from_slice(&entry.expect("read")).expect("JSON"))
            .collect();
        assert_eq!(entries.len() as u64, room.held);
        let last = entries.last().expect("one");
        assert_eq!((last.action.as_str(), last.by, last.result.as_str()), ("last", Some(8), BEGUN));
        assert!(last.detail["too large to be kept"].is_number(), "{}", last.detail);
        assert!(entries.iter().all(|entry| entry.action != "first"), "the oldest go first");
        let newest = |limit| journal.audited(limit).expect("read").count();
        assert_eq!((newest(0), newest(1), newest(3)), (0, 1, 3));
        journal.close(Duration::from_secs(5));
    }
}
