//! Hints: records that may have changed. A hint makes the capture read a record earlier; it is never data.
//!
//! Invariant: the number of hints is bounded. The next poll finds the records of hints that were dropped.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::Notify;

/// Records that may wait to be read.
const WAITING_MAX: usize = 1000;

/// The hints of one contract.
#[derive(Debug, Default)]
pub(super) struct Hints {
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Numbers of records.
    ids: BTreeSet<i64>,
    /// Whether the outbox has new rows, which name the records.
    has_outbox: bool,
}

/// What hints named.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hinted {
    /// Numbers of records.
    pub(super) ids: Vec<i64>,
    /// Whether the outbox has new rows.
    pub(super) has_outbox: bool,
}

impl Hints {
    /// Adds the id of a record; returns `false` if there was no room.
    pub(super) fn put(&self, id: i64) -> bool {
        let mut waiting = self.lock();
        let has_room = waiting.ids.len() < WAITING_MAX || waiting.ids.contains(&id);
        if has_room {
            waiting.ids.insert(id);
            self.added.notify_one();
        }
        has_room
    }

    /// Notes that the outbox has new rows.
    pub(super) fn put_outbox(&self) {
        self.lock().has_outbox = true;
        self.added.notify_one();
    }

    /// Waits until there is a hint. Cancel-safe.
    pub(super) async fn ready(&self) {
        while !self.has_any() {
            self.added.notified().await;
        }
    }

    fn has_any(&self) -> bool {
        let waiting = self.lock();
        waiting.has_outbox || !waiting.ids.is_empty()
    }

    /// If there is a hint, waits for further ones and removes up to `max` of them.
    pub(super) async fn gather(&self, wait: Duration, max: usize) -> Hinted {
        if !self.has_any() {
            return Hinted::default();
        }
        tokio::time::sleep(wait).await;
        self.take(max)
    }

    /// Removes up to `max` hints.
    pub(super) fn take(&self, max: usize) -> Hinted {
        let mut waiting = self.lock();
        let ids: Vec<i64> = waiting.ids.iter().take(max).copied().collect();
        waiting.ids.retain(|id| !ids.contains(id));
        Hinted { ids, has_outbox: std::mem::take(&mut waiting.has_outbox) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }
}
