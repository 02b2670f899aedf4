//! Reads a range of a lane's log for sending.

use crate::journal::{BlockReader, Follower, Lane, ReadResult};
use std::sync::Arc;

/// A position in a lane's log, and the loaded block at that position.
#[derive(Debug)]
pub(super) struct LaneReader {
    follower: Follower,
    /// Offset of the event to send next.
    pub next: u64,
    /// End of the range (exclusive).
    pub until: u64,
    pub block: Option<BlockReader>,
}

impl LaneReader {
    pub fn new(lane: &Arc<Lane>, next: u64, until: u64) -> Self {
        Self { follower: Follower::new(lane), next, until, block: None }
    }

    /// Moves to another range and drops the loaded block.
    pub fn restart(&mut self, next: u64, until: u64) {
        (self.next, self.until, self.block) = (next, until, None);
    }

    pub fn is_over(&self) -> bool {
        self.block.is_none() && self.next >= self.until
    }

    /// Offset after the last durable event of the lane.
    pub fn end(&self) -> u64 {
        self.follower.end()
    }

    /// Waits for the block or loss at `next`; returns `None` once the journal is closed. Safe to drop half-way.
    pub async fn find(&mut self) -> Option<ReadResult> {
        self.follower.find(self.next).await
    }
}
