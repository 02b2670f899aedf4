//! Readers follow the log of a lane: newest events from memory, older ones from segments.
//!
//! Promise: a reader sees only durable events, in order. It learns the range that a damaged segment has lost, and
//! continues behind it. It skips numbers that no event has.

use super::group_commit::Command;
use super::handle::{Durable, Lane};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::store::block::Block;
use crate::journal::store::error::JournalError;
use crate::runtime::spawn_blocking;
use crate::telemetry::Limiter;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Content of the log at an offset.
#[derive(Clone, Debug)]
pub enum ReadResult {
    /// The block that holds the offset, or the first one after it.
    Block(Arc<Block>),
    /// No event up to `to`: the segment is quarantined.
    Lost {
        /// The next offset that may have an event.
        to: u64,
    },
}

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
            updates: lane.next.subscribe(),
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
        let offset = self.lane.gaps.skip_gap(offset);
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
        let offset = self.lane.gaps.skip_gap(offset);
        if offset < self.updates.borrow().end && self.lane.in_tail(offset).is_none() {
            self.reading = Some((offset, read(&self.lane, offset)));
        }
    }
}

fn read(lane: &Arc<Lane>, offset: u64) -> PendingRead {
    let lane = Arc::clone(lane);
    spawn_blocking(move || lane.read_at(offset))
}

impl Lane {
    fn in_tail(&self, offset: u64) -> Option<Arc<Block>> {
        let log = self.log();
        let after = log.tail.partition_point(|block| block.end() <= offset);
        let block = log.tail.get(after)?;
        // The first block found is the right one only if the tail reaches back to `offset`.
        (block.header.first <= offset).then(|| Arc::clone(block))
    }

    /// Reads the log at an offset. Blocks the thread.
    pub fn read_at(&self, offset: u64) -> Result<ReadResult, JournalError> {
        let mut offset = self.gaps.skip_gap(offset);
        let lost = |offset, to| ReadResult::Lost { to: self.gaps.clip_at_gap(offset, to) };
        loop {
            let (segment, path, limit, is_active) = {
                let log = self.log();
                let holding = log.segments.range(..=offset).next_back().or_else(|| log.segments.iter().next());
                let Some((&first, part)) = holding else { return Ok(lost(offset, self.end())) };
                offset = offset.max(first);
                let limit = log.segments.range(first + 1..).next().map(|(next, _)| *next);
                let active = log.active.clone().filter(|active| active.path() == part.path);
                (active.clone(), part.path.clone(), limit, active.is_some())
            };
            let found =
                segment.map_or_else(|| self.core.segments.open(&path), Ok).and_then(|s| s.view()?.block_from(offset));
            match found {
                Ok(Some(block)) if limit.is_none_or(|limit| block.header.first < limit) => {
                    return Ok(ReadResult::Block(Arc::new(block)));
                }
                // The segment ends here: the next event is in the next segment.
                Ok(_) => match limit {
                    Some(limit) if limit == offset => continue,
                    Some(limit) => return Ok(lost(offset, limit)),
                    None => return Ok(lost(offset, self.end())),
                },
                Err(error @ JournalError::Damaged { .. }) if is_active => {
                    // The writer must start a new segment first.
                    self.queue.send(Command::Rotate);
                    return Err(error);
                }
                Err(error @ JournalError::Damaged { .. }) => {
                    tracing::error!(lane = %self.name, %error, "could not read a segment; setting it aside, `forebay salvage` may extract its events");
                    self.quarantine_segment(&path);
                    return Ok(lost(offset, limit.unwrap_or_else(|| self.end())));
                }
                Err(error) => {
                    // A handle that failed is not used again.
                    self.core.segments.forget(&path);
                    if error.is_not_found() && self.log().segments.values().any(|part| part.path == path) {
                        tracing::error!(lane = %self.name, %error, "a segment was removed by hand; its events are lost");
                        self.log().segments.retain(|_, part| part.path != path);
                        self.core.segments.add_quarantined(path);
                        return Ok(lost(offset, limit.unwrap_or_else(|| self.end())));
                    }
                    return Err(error);
                }
            }
        }
    }

    fn quarantine_segment(&self, path: &std::path::Path) {
        self.log().segments.retain(|_, part| part.path != path);
        self.core.segments.quarantine(path);
    }

    /// Time when the event at `offset` was recorded. Blocks the thread.
    pub fn recorded_at(&self, offset: u64) -> Option<Timestamp> {
        if offset >= self.end() {
            return None;
        }
        let found = match self.in_tail(offset) {
            Some(block) => ReadResult::Block(block),
            None => self.read_at(offset).ok()?,
        };
        match found {
            ReadResult::Block(block) => Some(block.header.recorded),
            ReadResult::Lost { .. } => None,
        }
    }
}
