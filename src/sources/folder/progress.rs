//! How far a source has read: the current file, and the files that it has read before.
//!
//! Promise: after a crash a file continues behind the last rows that were noted. Rows behind them that are durable too
//! are recognised as repeats, because they have the same ids.

use crate::clock;
use crate::ingest::{JournalError, Notes};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

/// Files whose content is remembered, and for how long.
const REMEMBERED_MAX: usize = 4096;
const REMEMBERED_FOR: Duration = Duration::from_secs(90 * 86_400);

/// The current file. The order of the fields is the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Current {
    pub(super) file: String,
    /// Digest of the content when the file was claimed.
    pub(super) content: String,
    /// What the ids of its events end in.
    pub(super) id: String,
    /// Rows from the start that are durable.
    pub(super) rows: u64,
    pub(super) dead_letters: u64,
    /// Whether every row is durable.
    pub(super) is_read: bool,
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    content: String,
    /// Seconds since 1970.
    read: i64,
}

/// The saved progress of a source. Every call blocks the thread.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    notes: Notes,
    source: String,
}

impl Progress {
    pub(super) fn new(notes: Notes, source: &str) -> Self {
        Self { notes, source: source.to_owned() }
    }

    fn current_note(&self) -> String {
        format!("{}/current", self.source)
    }

    fn known_note(&self) -> String {
        format!("{}/known", self.source)
    }

    /// The file that was being read when the gateway stopped.
    pub(super) fn current(&self) -> Result<Option<Current>, JournalError> {
        let note = self.notes.read(&self.current_note())?;
        Ok(note.and_then(|note| postcard::from_bytes(&note).ok()))
    }

    pub(super) fn note(&self, current: &Current) -> Result<(), JournalError> {
        self.notes.write(vec![(self.current_note(), postcard::to_stdvec(current).ok())])
    }

    /// Notes that every row of the file is durable, and remembers its content.
    pub(super) fn finish(&self, current: &Current) -> Result<(), JournalError> {
        let now = seconds();
        let oldest = now.saturating_sub(REMEMBERED_FOR.as_secs().cast_signed());
        let mut known = self.known()?;
        known.retain(|one| one.read >= oldest && one.content != current.content);
        known.push_back(Known { content: current.content.clone(), read: now });
        while known.len() > REMEMBERED_MAX {
            known.pop_front();
        }
        self.notes.write(vec![
            (self.current_note(), postcard::to_stdvec(&Current { is_read: true, ..current.clone() }).ok()),
            (self.known_note(), postcard::to_stdvec(&known).ok()),
        ])
    }

    /// Forgets the current file.
    pub(super) fn clear(&self) -> Result<(), JournalError> {
        self.notes.write(vec![(self.current_note(), None)])
    }

    /// When a file with this content was read, in seconds since 1970.
    pub(super) fn read_before(&self, content: &str) -> Result<Option<i64>, JournalError> {
        Ok(self.known()?.iter().find(|known| known.content == content).map(|known| known.read))
    }

    fn known(&self) -> Result<VecDeque<Known>, JournalError> {
        let note = self.notes.read(&self.known_note())?;
        Ok(note.and_then(|note| postcard::from_bytes(&note).ok()).unwrap_or_default())
    }
}

fn seconds() -> i64 {
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().cast_signed()
}
