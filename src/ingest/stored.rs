//! The stored events, as sources read them to restore their state after a restart.
//!
//! Invariant: nothing here stores an event.
//!
//! Not here: the feed of subscribers (`local`).

use crate::event::Record;
use crate::journal::{Durable, Journal, JournalError, Lane, Notes, ReadResult};
use std::sync::Arc;

/// The logs of all lanes and of the dead letters, and the notes of the sources.
#[derive(Clone, Debug)]
pub struct StoredEvents {
    journal: Arc<Journal>,
}

impl StoredEvents {
    /// The events that a journal stores.
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal }
    }

    /// The notes of a part of the gateway.
    pub fn notes(&self, part: &str) -> Notes {
        self.journal.notes(part)
    }

    /// Whether the disk has more room than its reserve.
    pub fn has_disk_room(&self) -> bool {
        self.journal.disk_room().is_ok_and(|room| !room.is_used_up())
    }

    /// All logs, with the dead letters last.
    pub fn logs(&self) -> impl Iterator<Item = StoredLog> {
        self.journal.lanes().iter().chain([self.journal.dead()]).map(|lane| StoredLog { lane: Arc::clone(lane) })
    }

    /// The log of a lane; that of the dead letters if there is no such lane.
    pub fn log(&self, lane: &str) -> StoredLog {
        let lane = self.journal.lane(lane).unwrap_or(self.journal.dead());
        StoredLog { lane: Arc::clone(lane) }
    }
}

/// The stored events of a lane, or the dead letters.
#[derive(Clone, Debug)]
pub struct StoredLog {
    lane: Arc<Lane>,
}

impl StoredLog {
    pub fn name(&self) -> &str {
        &self.lane.name
    }

    /// Offset after the last durable event.
    pub fn end(&self) -> u64 {
        self.lane.end()
    }

    /// Durable end of the log.
    pub fn durable(&self) -> Durable {
        self.lane.durable()
    }

    /// Whether an event of this log belongs to a stream.
    pub fn is_of(&self, record: &Record<'_>, stream_id: &str) -> bool {
        let published = self.lane.published(record.publication);
        published.is_some_and(|published| published.publication.stream_id() == stream_id)
    }

    /// Calls `see` with each event from an offset to the present end. Skips lost events. Blocks the thread.
    pub fn each(&self, from: u64, mut see: impl FnMut(&Record<'_>)) -> Result<(), JournalError> {
        let end = self.end();
        let mut next = from;
        while next < end {
            match self.lane.read_at(next)? {
                ReadResult::Lost { to } => next = to.max(next + 1),
                ReadResult::Block(block) => {
                    let records = (block.header.first..).zip(block.records());
                    records.filter(|(offset, _)| *offset >= next).for_each(|(_, record)| see(&record));
                    next = next.max(block.end());
                }
            }
        }
        Ok(())
    }
}
