//! Hints: ids of records that may have changed. A hint makes the capture read a record earlier; it is never data.
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
    ids: Mutex<BTreeSet<i64>>,
    added: Notify,
}

impl Hints {
    /// Adds the id of a record; returns `false` if there was no room.
    pub(super) fn put(&self, id: i64) -> bool {
        let mut ids = self.lock();
        let has_room = ids.len() < WAITING_MAX || ids.contains(&id);
        if has_room {
            ids.insert(id);
            self.added.notify_one();
        }
        has_room
    }

    /// Waits until there is a hint. Cancel-safe.
    pub(super) async fn ready(&self) {
        while self.lock().is_empty() {
            self.added.notified().await;
        }
    }

    /// If there is a hint, waits for further ones and removes up to `max` of them.
    pub(super) async fn gather(&self, wait: Duration, max: usize) -> Vec<i64> {
        if self.lock().is_empty() {
            return Vec::new();
        }
        tokio::time::sleep(wait).await;
        let mut ids = self.lock();
        let taken: Vec<i64> = ids.iter().take(max).copied().collect();
        ids.retain(|id| !taken.contains(id));
        taken
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.ids.lock()
    }
}
