//! The log of a lane: its segments, the newest events in memory, and the cursors of the destinations. The same type is the
//! log of a running journal, which a writer extends, and of a stopped one, which nobody changes.
//!
//! Promise: a reader sees only durable events, in order (`log/read`). Cursors only advance (`log/cursors`).
//! Invariant: only the methods of this type touch its content.

mod cursors;
mod inspection;
mod read;

use super::damage::Damage;
use super::group_commit::{CommitQueue, Ticket};
use super::publications::{Publications, Published};
use super::segment_files::SegmentFile;
use super::sequence_gaps::Gaps;
use crate::event::Timestamp;
use crate::journal::store::block::Block;
use crate::journal::store::cursor::Cursor;
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::Segment;
use crate::journal::store::segment_cache::SegmentCache;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

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

/// Durable end of a lane's log: last offset and last batch, read at the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Durable {
    /// Offset after the last durable event.
    pub end: u64,
    pub(super) batch: u64,
}

impl Durable {
    /// Whether the event of a ticket is durable, and thus below `end`.
    pub fn holds(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.batch
    }
}

/// The log of one lane.
#[derive(Debug)]
pub struct LaneLog {
    pub name: String,
    folder: PathBuf,
    /// Offsets and sequences that no event has.
    gaps: Gaps,
    cache: Arc<SegmentCache>,
    publications: Arc<RwLock<Publications>>,
    /// Of the writer that extends the log; `None` in a stopped journal, whose damaged files are reported and not moved.
    queue: Option<Arc<CommitQueue>>,
    /// Memory for the newest events, in bytes.
    tail_bytes: usize,
    /// Damage that was found when a stopped journal was opened: first offset, and what is damaged.
    unreadable: Vec<(u64, Damage)>,
    next: watch::Sender<Durable>,
    log: Mutex<Log>,
}

/// What a start has read of a lane.
#[derive(Debug, Default)]
pub(in crate::journal) struct LogContent {
    pub name: String,
    pub folder: PathBuf,
    pub gaps: Gaps,
    pub segments: BTreeMap<u64, SegmentFile>,
    /// The segment that the writer continues.
    pub active: Option<Arc<Segment>>,
    pub settled: Vec<Cursor>,
    /// The next sequence of every stream.
    pub sequences: Vec<(u32, u64)>,
    /// Offset after the last event.
    pub end: u64,
    pub unreadable: Vec<(u64, Damage)>,
}

/// The part of a log that changes.
#[derive(Debug, Default)]
struct Log {
    segments: BTreeMap<u64, SegmentFile>,
    active: Option<Arc<Segment>>,
    tail: VecDeque<Arc<Block>>,
    tail_bytes: usize,
    settled: Vec<Cursor>,
    is_settled_written: bool,
    /// Durable low mark of each destination.
    durable_low: BTreeMap<String, u64>,
    sequences: Vec<(u32, u64)>,
    /// Offset after the last durable event; it matches `sequences`.
    end: u64,
}

/// The oldest segment that is not being written.
pub(super) struct OldestSegment {
    pub first: u64,
    pub end: u64,
    pub closed_at: Timestamp,
}

impl Log {
    fn push_tail(&mut self, blocks: Vec<Arc<Block>>, bytes_max: usize) {
        for block in blocks {
            self.tail_bytes += block.bytes();
            self.tail.push_back(block);
        }
        while self.tail_bytes > bytes_max && self.tail.len() > 1 {
            if let Some(oldest) = self.tail.pop_front() {
                self.tail_bytes -= oldest.bytes();
            }
        }
    }
}

impl LaneLog {
    /// The log of a lane. With the `queue` of a writer, damaged segments are quarantined; without, the log is read-only.
    pub(in crate::journal) fn new(
        content: LogContent,
        cache: Arc<SegmentCache>,
        publications: Arc<RwLock<Publications>>,
        queue: Option<Arc<CommitQueue>>,
        tail_bytes: usize,
    ) -> Self {
        let LogContent { name, folder, gaps, segments, active, settled, sequences, end, unreadable } = content;
        let durable_low = settled.iter().map(|settled| (settled.destination.clone(), settled.low)).collect();
        let log = Log { durable_low, segments, active, settled, end, sequences, ..Log::default() };
        let next = watch::channel(Durable { end, batch: 0 }).0;
        Self { name, folder, gaps, cache, publications, queue, tail_bytes, unreadable, next, log: Mutex::new(log) }
    }

    pub(in crate::journal) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Offsets and sequences that no event has.
    pub(in crate::journal) fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// Name of a stream by its number; `unmatched` for records without a stream.
    pub(in crate::journal) fn stream_name(&self, stream: u32) -> String {
        self.publications.read().stream_name(stream)
    }

    /// The durable end, and every change of it.
    pub(super) fn subscribe(&self) -> watch::Receiver<Durable> {
        self.next.subscribe()
    }

    /// The next offset, and the next sequence of every stream at the same moment.
    pub(super) fn numbers(&self) -> (u64, Vec<(u32, u64)>) {
        let log = self.log.lock();
        (log.end, log.sequences.clone())
    }

    pub(super) fn segment_count(&self) -> usize {
        self.log.lock().segments.len()
    }

    /// Takes a segment out of the log whose place a new one takes.
    pub(super) fn replace_segment(&self, first: u64, path: &Path) {
        self.log.lock().segments.remove(&first);
        self.cache.forget(path);
    }

    /// Bytes of the segments that a destination still needs, and number of events that one still needs. Without
    /// destinations, every event is needed.
    pub(super) fn needed(&self) -> (u64, u64) {
        let log = self.log.lock();
        // Dead letters have no destination and wait for an operator.
        let low = log.settled.iter().map(|settled| settled.low).min().unwrap_or(0);
        let first = log.segments.keys().next().copied().unwrap_or(log.end).max(low);
        let ends = log.segments.keys().skip(1).copied().chain([log.end]);
        let needed = log.segments.values().zip(ends).filter(|(_, end)| *end > low).map(|(part, _)| part.bytes).sum();
        (needed, log.end.saturating_sub(first))
    }

    /// Offset after the last durable event.
    pub fn end(&self) -> u64 {
        self.next.borrow().end
    }

    /// Durable end of the log.
    pub fn durable(&self) -> Durable {
        *self.next.borrow()
    }

    /// Number of newest events that take about `bytes` of the log.
    pub fn newest_within(&self, bytes: u64) -> u64 {
        let end = self.end();
        let (mut from, mut left) = (end, bytes);
        for (&first, part) in self.log.lock().segments.iter().rev() {
            if part.bytes > left {
                // Assume that all events of a segment have the same size.
                let share = left as f64 / part.bytes as f64;
                return end - from + (from.saturating_sub(first) as f64 * share) as u64;
            }
            left -= part.bytes;
            from = first.min(from);
        }
        end - from
    }

    /// Number of events in the oldest segment.
    pub fn oldest_events(&self) -> u64 {
        self.extents().first().map_or(0, |(from, to)| to - from)
    }

    /// Number of events in all segments.
    pub fn held_events(&self) -> u64 {
        let log = self.log.lock();
        let first = log.segments.keys().next().copied().unwrap_or(log.end);
        log.end.saturating_sub(first).saturating_sub(self.gaps.offsets_between(first, log.end))
    }

    /// Offset range of each segment: from, to (exclusive).
    pub(super) fn extents(&self) -> Vec<(u64, u64)> {
        let log = self.log.lock();
        let ends = log.segments.keys().skip(1).copied().chain([log.end]);
        log.segments.keys().copied().zip(ends).collect()
    }

    /// Offset of the oldest stored event, or of the next one if the log is empty.
    pub fn first(&self) -> u64 {
        let log = self.log.lock();
        log.segments.keys().next().copied().unwrap_or(log.end)
    }

    /// Publication by the number that a record names.
    pub fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.publications.read().of(number)
    }

    /// Lowest offset with at most `count` events between it and `end`.
    pub fn before(&self, end: u64, count: u64) -> u64 {
        let mut from = end;
        let mut left = count;
        for (gap_from, gap_to) in self.gaps.offsets.iter().rev().filter(|(gap_from, _)| *gap_from < end) {
            let here = from.saturating_sub(*gap_to);
            if here >= left {
                break;
            }
            left -= here;
            from = from.min(*gap_from);
        }
        from.saturating_sub(left).max(1)
    }

    /// Size of the log in bytes.
    pub fn bytes(&self) -> u64 {
        self.log.lock().segments.values().map(|part| part.bytes).sum()
    }

    pub(super) fn sequences(&self) -> Vec<(u32, u64)> {
        self.log.lock().sequences.clone()
    }

    pub(super) fn set_active_bytes(&self, active_bytes: u64) {
        let mut log = self.log.lock();
        if let Some(mut last) = log.segments.last_entry() {
            last.get_mut().bytes = active_bytes;
        }
    }

    pub(super) fn set_active(&self, first: u64, segment: Arc<Segment>) {
        let mut log = self.log.lock();
        let part = SegmentFile { path: segment.path().to_owned(), bytes: 0 };
        log.segments.insert(first, part);
        log.active = Some(segment);
    }

    pub(super) fn release_active(&self) {
        self.cache.take_over(|| self.log.lock().active.take());
    }

    pub(super) fn publish_durable(&self, durable: Durable, blocks: Vec<Arc<Block>>, sequences: Vec<(u32, u64)>) {
        {
            let mut log = self.log.lock();
            log.push_tail(blocks, self.tail_bytes);
            log.sequences = sequences;
            log.end = durable.end;
        }
        self.next.send_replace(durable);
    }

    pub(super) fn wake_followers(&self) {
        self.next.send_modify(|_| ());
    }

    pub(super) fn oldest_closed(&self) -> Option<OldestSegment> {
        let (first, path, end) = {
            let log = self.log.lock();
            let mut parts = log.segments.iter();
            let (first, part) = parts.next()?;
            let (end, _) = parts.next()?;
            (*first, part.path.clone(), *end)
        };
        let segment = self.cache.open(&path).ok()?;
        let closed_at = segment
            .view()
            .and_then(|view| view.summary())
            .ok()
            .map(|summary| summary.closed.map_or(summary.begun, |closed| closed.at))?;
        Some(OldestSegment { first, end, closed_at })
    }

    pub(super) fn remove_segment(&self, first: u64) -> Result<(), JournalError> {
        let part = self.log.lock().segments.remove(&first);
        let Some(part) = part else { return Ok(()) };
        self.cache.forget(&part.path);
        self.cache.disk().remove(&part.path).map_err(|error| JournalError::io(&part.path, error))?;
        // A reader may have opened it again meanwhile: a removed file occupies the disk as long as it is open.
        self.cache.forget(&part.path);
        tracing::debug!(lane = %self.name, first, "removed a settled segment");
        Ok(())
    }
}
