//! Readers follow the log of a lane: newest events from memory, older ones from segments.
//!
//! Promise: a reader sees only durable events, in order. It learns the range that a damaged segment has lost, and
//! continues behind it. It skips numbers that no event has.

use super::handle::Lane;
use super::log::{Durable, ReadResult};
use crate::clock;
use crate::journal::store::error::JournalError;
use crate::runtime::spawn_blocking;
use crate::telemetry::Limiter;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A reader that follows one lane.
#[derive(Debug)]
pub struct Follower {
    lane: Arc<Lane>,
    updates: watch::Receiver<Durable>,
    /// A read from disk in progress; a later `find` of the same offset continues it if an earlier one was cancelled.
    reading: Option<(u64, PendingRead)>,
    /// Time of the next try after a failed read.
    retry_at: Option<Instant>,
    failures: Limiter,
}

type PendingRead = JoinHandle<Result<ReadResult, JournalError>>;

/// Delay before the next try after a failed read.
const READ_RETRY: Duration = Duration::from_millis(500);

impl Follower {
    /// Creates a reader that sees every commit of the lane.
    pub fn new(lane: &Arc<Lane>) -> Self {
        Self {
            lane: Arc::clone(lane),
            updates: lane.subscribe(),
            reading: None,
            retry_at: None,
            failures: Limiter::new(Duration::from_secs(10)),
        }
    }

    /// Offset after the last durable event.
    pub fn end(&self) -> u64 {
        self.updates.borrow().end
    }

    /// Waits for the event at `offset`; `None` once the journal is closed without one. Cancel-safe.
    pub async fn find(&mut self, offset: u64) -> Option<ReadResult> {
        let offset = self.lane.gaps().skip_gap(offset);
        loop {
            if offset < self.updates.borrow_and_update().end {
                if let Some(block) = self.lane.in_tail(offset) {
                    return Some(ReadResult::Block(block));
                }
                if let Some(at) = self.retry_at {
                    tokio::time::sleep_until(at.into()).await;
                }
                let reading = match &mut self.reading {
                    Some((at, reading)) if *at == offset => reading,
                    _ => &mut self.reading.insert((offset, read(&self.lane, offset))).1,
                };
                let read = reading.await;
                self.reading = None;
                match read {
                    Ok(Ok(found)) => {
                        self.retry_at = None;
                        if let ReadResult::Block(block) = &found {
                            self.read_ahead(block.end());
                        }
                        return Some(found);
                    }
                    Ok(Err(error)) => {
                        let now = clock::instant();
                        self.retry_at = Some(now + READ_RETRY);
                        if let Some(held_back) = self.failures.allow(now) {
                            tracing::warn!(lane = %self.lane.name, %error, held_back, "reading from the journal failed, will retry");
                        }
                    }
                    // The runtime shuts down.
                    Err(_) => return None,
                }
                continue;
            }
            if self.lane.is_closed() {
                return None;
            }
            // An error means that the lane was dropped.
            self.updates.changed().await.ok()?;
        }
    }

    /// Starts to read the next block while the caller processes the current one.
    fn read_ahead(&mut self, offset: u64) {
        let offset = self.lane.gaps().skip_gap(offset);
        if offset < self.updates.borrow().end && self.lane.in_tail(offset).is_none() {
            self.reading = Some((offset, read(&self.lane, offset)));
        }
    }
}

fn read(lane: &Arc<Lane>, offset: u64) -> PendingRead {
    let lane = Arc::clone(lane);
    spawn_blocking(move || lane.read_at(offset))
}
