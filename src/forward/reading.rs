//! A place in a lane's log from which events are sent, and the block in hand there.

use crate::journal::{Follower, Found, Lane, Walk};
use std::sync::Arc;

/// A reading of the log from one offset on.
#[derive(Debug)]
pub(super) struct Reading {
    follower: Follower,
    /// The event to send next.
    pub next: u64,
    /// It ends here (exclusive).
    pub until: u64,
    pub block: Option<Walk>,
}

impl Reading {
    pub fn new(lane: &Arc<Lane>, next: u64, until: u64) -> Self {
        Self { follower: Follower::new(lane), next, until, block: None }
    }

    /// Begins again elsewhere.
    pub fn restart(&mut self, next: u64, until: u64) {
        (self.next, self.until, self.block) = (next, until, None);
    }

    pub fn is_over(&self) -> bool {
        self.block.is_none() && self.next >= self.until
    }

    /// Offset after the last event on the disk.
    pub fn end(&self) -> u64 {
        self.follower.end()
    }

    /// Waits for what stands at `next`; `None` once the journal is closed. Safe to drop half-way.
    pub async fn find(&mut self) -> Option<Found> {
        self.follower.find(self.next).await
    }
}
