//! Reads a log at an offset: newest events from memory, older ones from segments.
//!
//! Promise: a reader learns the range that a damaged segment has lost, and continues behind it. It skips numbers that no
//! event has. In a running journal a damaged segment is quarantined.

use super::super::group_commit::Command;
use super::{LaneLog, ReadResult};
use crate::event::Timestamp;
use crate::journal::store::block::Block;
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::Segment;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The segment for an offset.
struct Place {
    first: u64,
    path: PathBuf,
    /// First offset of the segment behind it, if there is one.
    limit: Option<u64>,
    /// Its handle, if it is being written.
    active: Option<Arc<Segment>>,
}

impl LaneLog {
    pub(in crate::journal) fn in_tail(&self, offset: u64) -> Option<Arc<Block>> {
        let log = self.log.lock();
        let after = log.tail.partition_point(|block| block.end() <= offset);
        let block = log.tail.get(after)?;
        // The first block found is the right one only if the tail reaches back to `offset`.
        (block.header.first <= offset).then(|| Arc::clone(block))
    }

    /// The segment that holds an offset, or else the oldest one.
    fn place_of(&self, offset: u64) -> Option<Place> {
        let log = self.log.lock();
        let (&first, part) = log.segments.range(..=offset).next_back().or_else(|| log.segments.iter().next())?;
        let limit = log.segments.range(first + 1..).next().map(|(next, _)| *next);
        let active = log.active.clone().filter(|active| active.path() == part.path);
        Some(Place { first, path: part.path.clone(), limit, active })
    }

    /// Reads the log at an offset. Blocks the thread.
    pub fn read_at(&self, offset: u64) -> Result<ReadResult, JournalError> {
        let mut offset = self.gaps.skip_gap(offset);
        let lost = |offset, to| ReadResult::Lost { to: self.gaps.clip_at_gap(offset, to) };
        loop {
            let Some(place) = self.place_of(offset) else { return Ok(lost(offset, self.end())) };
            offset = offset.max(place.first);
            let segment = place.active.clone().map_or_else(|| self.cache.open(&place.path), Ok);
            match segment.and_then(|segment| segment.view()?.block_from(offset)) {
                Ok(Some(block)) if place.limit.is_none_or(|limit| block.header.first < limit) => {
                    return Ok(ReadResult::Block(Arc::new(block)));
                }
                // The segment ends here: the next event is in the next segment.
                Ok(_) if place.limit == Some(offset) => {}
                Ok(_) => return Ok(lost(offset, place.limit.unwrap_or_else(|| self.end()))),
                Err(error) => {
                    self.drop_unreadable(&place, error)?;
                    return Ok(lost(offset, place.limit.unwrap_or_else(|| self.end())));
                }
            }
        }
    }

    /// Takes a segment out of the log that cannot be read and never will be; fails with `error` if it stays.
    fn drop_unreadable(&self, place: &Place, error: JournalError) -> Result<(), JournalError> {
        let Some(queue) = &self.queue else { return Err(error) };
        let path = &place.path;
        match error {
            JournalError::Damaged { .. } if place.active.is_some() => {
                // The writer must start a new segment first.
                queue.send(Command::Rotate);
                Err(error)
            }
            JournalError::Damaged { .. } => {
                tracing::error!(lane = %self.name, %error, "could not read a segment; setting it aside, `forebay salvage` may extract its events");
                self.take_out(path);
                self.cache.quarantine(path);
                Ok(())
            }
            error => {
                // A handle that failed is not used again.
                self.cache.forget(path);
                if !error.is_not_found() || self.log.lock().segments.values().all(|part| part.path != *path) {
                    return Err(error);
                }
                tracing::error!(lane = %self.name, %error, "a segment was removed by hand; its events are lost");
                self.take_out(path);
                self.cache.add_quarantined(path.clone());
                Ok(())
            }
        }
    }

    fn take_out(&self, path: &Path) {
        self.log.lock().segments.retain(|_, part| part.path != path);
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

    /// First offset of the segment that holds events recorded at `moment`, or of the oldest segment
    /// after that. Blocks the thread.
    pub fn offset_at(&self, moment: Timestamp) -> u64 {
        let firsts: Vec<u64> = self.log.lock().segments.keys().copied().collect();
        // Segments are ordered by time unless the clock was set back.
        let after = firsts.partition_point(|first| self.recorded_at(*first).is_some_and(|at| at <= moment));
        firsts.get(after.saturating_sub(1)).copied().unwrap_or_else(|| self.first())
    }
}
