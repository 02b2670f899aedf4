//! Hints: records that may have changed. They make a look come sooner, and are never data.
//!
//! Invariant: bounded; what finds no room is found by the next poll.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::Notify;

/// Records that may wait to be looked at.
const WAITING_MAX: usize = 1000;

/// The hints of one contract.
#[derive(Debug, Default)]
pub(super) struct Hints {
    ids: Mutex<BTreeSet<i64>>,
    news: Notify,
}

impl Hints {
    /// Hints at a record; `false` if there was no room.
    pub(super) fn put(&self, id: i64) -> bool {
        let mut ids = self.lock();
        let has_room = ids.len() < WAITING_MAX || ids.contains(&id);
        if has_room {
            ids.insert(id);
            self.news.notify_one();
        }
        has_room
    }

    /// Returns when there is a hint. Safe to drop half-way.
    pub(super) async fn given(&self) {
        while self.lock().is_empty() {
            self.news.notified().await;
        }
    }

    /// Waits a moment for more, if there is one, and takes them out.
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
