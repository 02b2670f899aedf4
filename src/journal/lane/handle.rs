//! One lane of the journal: its commit queue, its log of segments, and the cursor of each destination.
//!
//! Promise: an event whose ticket became a receipt is on disk.
//! Not here: the thread that writes the log (`writer`), recovery at a start (`open`).

use super::age_scan::Ages;
use super::condition::Condition;
use super::config::{DEAD, LaneConfig};
use super::core::Core;
use super::group_commit::{Command, CommitQueue, Receipt, SubmitError, Ticket, Waiter};
use super::heartbeat::Heartbeat;
use super::publications::Published;
use super::segment_files::SegmentFile;
use super::sequence_gaps::Gaps;
use crate::api::{Backlog, LaneStatus};
use crate::event::{Record, Timestamp};
use crate::journal::store::block::Block;
use crate::journal::store::cursor::{Account, Cursor, Outcome};
use crate::journal::store::disk::Identity;
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::Segment;
use crate::telemetry::{Counter, Histogram};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Debug, Default)]
pub struct LaneStats {
    /// Events that got a receipt, without repeats.
    pub accepted: Counter,
    /// Repeats: acknowledged and not stored again.
    pub duplicates: Counter,
    /// Events with an id that the device had used for another event.
    pub id_conflicts: Counter,
    /// Failed attempts to commit a batch.
    pub failed_commits: Counter,
    pub fsync: Histogram,
    repeats: Mutex<HashMap<String, u64>>,
}

/// A segment is closed at this size, or at a sixteenth of the budget of its lane if that is less.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// The status reports a writer that is busy with one piece of work for longer than this.
const COMMIT_SHOWN_AFTER: Duration = Duration::from_secs(10);
/// Largest number of devices whose repeats are counted separately.
const REPEATING_DEVICES_MAX: usize = 4096;

impl LaneStats {
    pub(in crate::journal) fn count_repeat(&self, origin: &str) {
        self.duplicates.add(1);
        let mut repeats = self.repeats.lock();
        if let Some(count) = repeats.get_mut(origin) {
            *count += 1;
        } else if repeats.len() < REPEATING_DEVICES_MAX {
            repeats.insert(origin.to_owned(), 1);
        }
    }

    /// Number of repeats from one device; `origin` is `{source}/{device}`.
    pub fn repeats_of(&self, origin: &str) -> u64 {
        self.repeats.lock().get(origin).copied().unwrap_or(0)
    }
}

/// One lane: its log and the queue of events to be committed.
#[derive(Debug)]
pub struct Lane {
    pub name: String,
    pub stats: LaneStats,
    pub(in crate::journal) index: usize,
    pub(in crate::journal) settings: ArcSwap<LaneConfig>,
    pub(in crate::journal) folder: PathBuf,
    /// Identity of the folder when the journal was opened.
    pub(in crate::journal) identity: Identity,
    pub(in crate::journal) queue: CommitQueue,
    pub(in crate::journal) core: Arc<Core>,
    pub(in crate::journal) log: Mutex<Log>,
    pub(in crate::journal) next: watch::Sender<Durable>,
    pub(in crate::journal) condition: Mutex<Condition>,
    /// Offsets and sequences that no event has.
    pub(in crate::journal) gaps: Gaps,
    pub(super) ages: Mutex<Ages>,
    /// Held while segments are removed, by the writer of this lane or of another.
    pub(in crate::journal) retention_lock: Mutex<()>,
    /// Liveness of the writer thread.
    pub(super) heartbeat: Heartbeat,
}

/// Durable end of a lane's log: last offset and last batch, read at the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Durable {
    /// Offset after the last durable event.
    pub end: u64,
    pub(in crate::journal) batch: u64,
}

impl Durable {
    /// Whether the event of a ticket is durable, and thus below `end`.
    pub fn holds(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.batch
    }
}

/// The segments of a lane, the newest events in memory, and the cursors.
#[derive(Debug, Default)]
pub(in crate::journal) struct Log {
    pub(in crate::journal) segments: BTreeMap<u64, SegmentFile>,
    pub(in crate::journal) active: Option<Arc<Segment>>,
    pub(in crate::journal) tail: VecDeque<Arc<Block>>,
    pub(in crate::journal) tail_bytes: usize,
    pub(in crate::journal) settled: Vec<Cursor>,
    pub(in crate::journal) is_settled_written: bool,
    /// Durable low mark of each destination.
    pub(in crate::journal) durable_low: BTreeMap<String, u64>,
    pub(in crate::journal) sequences: Vec<(u32, u64)>,
    /// Offset after the last durable event; it matches `sequences`.
    pub(in crate::journal) end: u64,
}

pub(in crate::journal) struct OldestSegment {
    pub(in crate::journal) first: u64,
    pub(in crate::journal) end: u64,
    pub(in crate::journal) closed_at: Timestamp,
}

impl Lane {
    pub(in crate::journal) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock()
    }

    /// Whether the lane is no longer configured: its events are still delivered, and it accepts no new ones.
    pub fn is_retired(&self) -> bool {
        self.settings.load().is_retired
    }

    /// Returns an error text if the folder of the journal or lane is not the one that was opened: the next start would
    /// not find events that are written now.
    pub(in crate::journal) fn misplaced_folder(&self) -> Option<String> {
        let core = &self.core;
        let is_same = |folder: &Path, opened| core.disk.identity(folder).is_ok_and(|found| found == opened);
        let expected = [(core.folder.as_path(), core.identity), (self.folder.as_path(), self.identity)];
        let (folder, _) = expected.into_iter().find(|(folder, opened)| !is_same(folder, *opened))?;
        Some(format!(
            "{} is not the folder that was opened: it was moved or replaced; put it back, or restart the gateway",
            folder.display()
        ))
    }

    /// Queues an event for the next commit. When the event is durable, the ticket becomes a receipt and `waiter` is woken.
    ///
    /// With `dedupe`, a repeat of an event that is on disk and was stored within that time is not stored again; it gets
    /// the receipt of the first copy. A repeat has the same source, device, id, stream, key and payload. An event that
    /// shares only source, device and id is stored under a minted id. An event with an id minted by the
    /// gateway is never a repeat.
    pub fn submit(
        &self,
        record: &Record<'_>,
        dedupe: Option<Duration>,
        waiter: &mut Waiter,
    ) -> Result<Ticket, SubmitError> {
        let repeats = dedupe.and_then(|reach| Some((self.core.fingerprint(record)?, reach)));
        self.queue.put(record, repeats, waiter, self.index)
    }

    /// The receipt of a ticket, if its event is durable.
    pub fn receipt(&self, ticket: Ticket) -> Option<Receipt> {
        self.queue.receipt(ticket)
    }

    /// Waits until there may be room for another event. Cancel-safe.
    pub async fn room(&self) {
        self.queue.room().await;
    }

    /// Whether the journal is closed: a ticket without a receipt never gets one.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Stores an event and waits until it is durable.
    pub async fn append(&self, record: &Record<'_>) -> Result<Receipt, SubmitError> {
        let mut waiter = Waiter::default();
        let ticket = self.submit_when_room(record, &mut waiter).await?;
        self.await_receipt(ticket, &waiter).await
    }

    /// Queues an event as soon as there is room. Fails only with [`SubmitError::Closed`].
    pub async fn submit_when_room(&self, record: &Record<'_>, waiter: &mut Waiter) -> Result<Ticket, SubmitError> {
        loop {
            match self.submit(record, None, waiter) {
                Err(SubmitError::NoRoom) => self.room().await,
                submitted => return submitted,
            }
        }
    }

    /// Waits for the receipt of a ticket that was issued to `waiter`. Cancel-safe.
    pub async fn await_receipt(&self, ticket: Ticket, waiter: &Waiter) -> Result<Receipt, SubmitError> {
        loop {
            if let Some(receipt) = self.receipt(ticket) {
                return Ok(receipt);
            }
            if self.is_closed() {
                return Err(SubmitError::Closed);
            }
            waiter.woken().await;
        }
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
        for (&first, part) in self.log().segments.iter().rev() {
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

    /// Behaviour when the budget is used up.
    pub fn full(&self) -> super::config::Full {
        self.settings.load().full
    }

    /// Bytes of the segments that a destination still needs, budget in bytes, and number of events that a destination
    /// still needs. Without destinations, every event is needed.
    pub fn load(&self) -> (u64, u64, u64) {
        let budget = self.budget();
        let log = self.log();
        // Dead letters have no destination and wait for an operator.
        let low = log.settled.iter().map(|settled| settled.low).min().unwrap_or(0);
        let first = log.segments.keys().next().copied().unwrap_or(log.end).max(low);
        let ends = log.segments.keys().skip(1).copied().chain([log.end]);
        let needed = log.segments.values().zip(ends).filter(|(_, end)| *end > low).map(|(part, _)| part.bytes).sum();
        (needed, budget, log.end.saturating_sub(first))
    }

    /// Number of events in the oldest segment.
    pub fn oldest_events(&self) -> u64 {
        self.extents().first().map_or(0, |(from, to)| to - from)
    }

    /// Largest size of the log in bytes.
    pub fn budget(&self) -> u64 {
        self.settings.load().budget
    }

    /// Number of events in all segments.
    pub fn held_events(&self) -> u64 {
        let log = self.log();
        let first = log.segments.keys().next().copied().unwrap_or(log.end);
        log.end.saturating_sub(first).saturating_sub(self.gaps.offsets_between(first, log.end))
    }

    /// Offset range of each segment: from, to (exclusive).
    pub(in crate::journal) fn extents(&self) -> Vec<(u64, u64)> {
        let log = self.log();
        let ends = log.segments.keys().skip(1).copied().chain([log.end]);
        log.segments.keys().copied().zip(ends).collect()
    }

    /// Offset of the oldest stored event, or of the next one if the log is empty.
    pub fn first(&self) -> u64 {
        let log = self.log();
        log.segments.keys().next().copied().unwrap_or(log.end)
    }

    /// First offset of the segment that holds events recorded at `moment`, or of the oldest segment
    /// after that. Blocks the thread.
    pub fn offset_at(&self, moment: Timestamp) -> u64 {
        let firsts: Vec<u64> = self.log().segments.keys().copied().collect();
        // Segments are ordered by time unless the clock was set back.
        let after = firsts.partition_point(|first| self.recorded_at(*first).is_some_and(|at| at <= moment));
        firsts.get(after.saturating_sub(1)).copied().unwrap_or_else(|| self.first())
    }

    /// Whether the lane accepts events, and if not, why.
    pub fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    /// Publication by the number that a record names.
    pub fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.core.published(number)
    }

    pub fn settled(&self, destination: &str) -> Option<Cursor> {
        self.log().settled.iter().find(|settled| settled.destination == destination).cloned()
    }

    /// Settles events for a destination. The writer stores the cursor with the next commit, or alone if the lane is idle.
    pub fn settle(&self, destination: &str, events: &[(u64, u32, Outcome)]) {
        self.change_settled(destination, |settled| {
            for &(offset, stream, outcome) in events {
                settled.settle(offset, stream, outcome);
            }
        });
    }

    /// Makes the writer store changed cursors soon, without waiting for the next commit.
    pub fn write_cursors_soon(&self) {
        self.queue.send(Command::WriteCursors);
    }

    /// Settles offsets of a lost segment for a destination. Events below them that are in flight stay
    /// unsettled. May read from disk.
    pub fn mark_lost(&self, destination: &str, from: u64, to: u64) {
        let sequences = self.sequences_before(to).unwrap_or_default();
        self.change_settled(destination, |settled| {
            let owed = self.owed_below(&sequences, settled);
            settled.mark_lost(from, to, &owed);
        });
    }

    /// The next sequence of every stream at `offset`, which is the end of the lane or the start of a segment; `None` for
    /// other offsets and for an unreadable segment.
    pub(in crate::journal) fn sequences_before(&self, offset: u64) -> Option<Vec<(u32, u64)>> {
        if offset >= self.end() {
            return Some(self.sequences());
        }
        let (path, active) = {
            let log = self.log();
            (log.segments.get(&offset).map(|part| part.path.clone()), log.active.clone())
        };
        let path = path?;
        let segment = match active.filter(|active| active.path() == path) {
            Some(active) => Ok(active),
            None => self.core.segments.open(&path),
        };
        let read = |segment: &Segment| segment.view().and_then(|view| view.summary());
        let summary = segment.and_then(|segment| read(&segment)).or_else(|_| {
            // A segment with a failed commit needs a repair, which a full disk does not allow.
            read(&Segment::open_without_repair(&*self.core.disk, &path, self.core.segments.cache_bytes())?)
        });
        match summary {
            Ok(summary) => Some(summary.sequences),
            Err(error) => {
                tracing::warn!(lane = %self.name, %error, "could not read the first sequences of a segment; earlier events are counted without their stream");
                None
            }
        }
    }

    /// Number of events of each stream that a destination is owed below the given sequences.
    fn owed_below(&self, sequences: &[(u32, u64)], settled: &Cursor) -> Vec<(u32, u64)> {
        let owed = |(stream, next): &(u32, u64)| {
            let account = settled.accounts.iter().find(|account| account.stream == *stream);
            let from = account.map_or(1, |account| account.from);
            (*stream, next.saturating_sub(from).saturating_sub(self.gaps.sequences_between(*stream, from, *next)))
        };
        sequences.iter().map(owed).collect()
    }

    /// The account of each stream with a destination: stream name, account, and number of events owed in all.
    /// The second value is the number of unsettled events at the same moment.
    pub fn accounts(&self, destination: &str) -> (Vec<(String, Account, u64)>, u64) {
        let (settled, sequences, end) = {
            let log = self.log();
            let found = log.settled.iter().find(|settled| settled.destination == destination).cloned();
            (found.unwrap_or_default(), log.sequences.clone(), log.end)
        };
        let unsettled = settled.unsettled_in(settled.low, end);
        let owed = self.owed_below(&sequences, &settled);
        let mut streams: Vec<u32> = owed.iter().map(|(stream, _)| *stream).collect();
        streams.extend(settled.accounts.iter().map(|account| account.stream));
        streams.sort();
        streams.dedup();
        let row = |stream: u32| {
            let account = settled.accounts.iter().find(|account| account.stream == stream).cloned();
            let owed = owed.iter().find(|(known, _)| *known == stream).map_or(0, |(_, owed)| *owed);
            (self.core.stream_name(stream), account.unwrap_or_else(|| Account::new(stream, 1)), owed)
        };
        let rows =
            streams.into_iter().map(row).filter(|(_, account, owed)| *owed > 0 || account.settled() > 0).collect();
        (rows, unsettled)
    }

    /// Names of the destinations that have a cursor in this lane.
    pub fn destinations(&self) -> Vec<String> {
        self.log().settled.iter().map(|settled| settled.destination.clone()).collect()
    }

    pub(in crate::journal) fn forget_destination(&self, destination: &str, done: mpsc::Sender<()>) {
        let mut log = self.log();
        log.settled.retain(|settled| settled.destination != destination);
        log.durable_low.remove(destination);
        log.is_settled_written = false;
        drop(log);
        // Blocks of the active segment still hold its cursor.
        self.queue.send(Command::ForgetDestination { destination: destination.to_owned(), done });
    }

    /// The unsettled part of the oldest segment, if the backlog of the destination exceeds `hold` bytes.
    pub(in crate::journal) fn excess_over_hold(&self, destination: &str, hold: u64) -> Option<(u64, u64)> {
        let log = self.log();
        let low = log.settled.iter().find(|settled| settled.destination == destination)?.low;
        let ends = log.segments.keys().skip(1).copied().chain([u64::MAX]);
        let needed: Vec<(u64, u64, u64)> = log
            .segments
            .iter()
            .zip(ends)
            .filter(|(_, end)| *end > low)
            .map(|((first, part), end)| (*first, end, part.bytes))
            .collect();
        let bytes: u64 = needed.iter().map(|(_, _, bytes)| bytes).sum();
        let (first, end, _) = needed.first()?;
        // The active segment is never discarded.
        (bytes > hold && *end < u64::MAX).then(|| (low.max(*first), *end))
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

    pub(in crate::journal) fn change_settled(&self, destination: &str, change: impl FnOnce(&mut Cursor)) {
        let mut log = self.log();
        if let Some(settled) = log.settled.iter_mut().find(|settled| settled.destination == destination) {
            change(settled);
            log.is_settled_written = false;
        }
    }

    /// Status of the lane at this moment.
    pub fn status(&self) -> LaneStatus {
        let end = self.end();
        let log = self.log();
        let destinations = log
            .settled
            .iter()
            .map(|settled| {
                let above: u64 = settled.ranges.iter().map(|(from, to)| to - from).sum();
                Backlog {
                    destination: settled.destination.clone(),
                    queued: end.saturating_sub(settled.low).saturating_sub(above),
                    delivered: settled.total(Outcome::Delivered),
                    dead: settled.total(Outcome::Dead),
                    expired: settled.total(Outcome::Expired),
                    shed: settled.total(Outcome::Shed),
                    discarded: settled.total(Outcome::Discarded),
                    set_aside: settled.total(Outcome::SetAside),
                    oldest: None,
                }
            })
            .collect();
        LaneStatus {
            name: self.name.clone(),
            accepted: end - 1 - self.gaps.offsets_below(end),
            bytes: log.segments.values().map(|part| part.bytes).sum(),
            budget: self.settings.load().budget,
            segments: log.segments.len(),
            problem: match self.condition() {
                Condition::Good => {
                    self.heartbeat.check(&self.name, COMMIT_SHOWN_AFTER).err().map(|why| why.to_string())
                }
                Condition::Full(why) | Condition::Failed(why) => Some(why),
            },
            retired: self.settings.load().is_retired,
            destinations,
            streams: log
                .sequences
                .iter()
                .map(|(stream, next)| {
                    (self.core.stream_name(*stream), (next - 1).saturating_sub(self.gaps.sequences_of(*stream)))
                })
                .collect(),
        }
    }

    pub(in crate::journal) fn set_condition(&self, condition: Condition) {
        let mut current = self.condition.lock();
        if *current == condition {
            return;
        }
        match &condition {
            Condition::Good => tracing::info!(lane = %self.name, "the lane accepts events again"),
            Condition::Full(reason) => {
                tracing::error!(lane = %self.name, %reason, "the lane is full: the gateway acknowledges none of its events until there is room")
            }
            Condition::Failed(reason) => {
                tracing::error!(lane = %self.name, %reason, "the disk fails: the gateway acknowledges no event of the lane until a commit succeeds")
            }
        }
        *current = condition;
    }

    pub(in crate::journal) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES_MAX.min(self.settings.load().budget / 16).max(256 << 10)
    }

    /// Size of the log in bytes.
    pub fn bytes(&self) -> u64 {
        self.log().segments.values().map(|part| part.bytes).sum()
    }

    pub(in crate::journal) fn sequences(&self) -> Vec<(u32, u64)> {
        self.log().sequences.clone()
    }

    /// The cursors to write. Empty if none changed since the last call, unless `all`.
    pub(in crate::journal) fn take_cursors(&self, all: bool) -> Vec<Cursor> {
        let mut log = self.log();
        if log.is_settled_written && !all {
            return Vec::new();
        }
        log.is_settled_written = true;
        log.settled.clone()
    }

    pub(in crate::journal) fn has_unwritten_cursors(&self) -> bool {
        !self.log().is_settled_written
    }

    pub(in crate::journal) fn set_active_bytes(&self, active_bytes: u64) {
        let mut log = self.log();
        if let Some(mut last) = log.segments.last_entry() {
            last.get_mut().bytes = active_bytes;
        }
    }

    pub(in crate::journal) fn set_active(&self, first: u64, segment: Arc<Segment>) {
        let mut log = self.log();
        let part = SegmentFile { path: segment.path().to_owned(), bytes: 0 };
        log.segments.insert(first, part);
        log.active = Some(segment);
    }

    pub(in crate::journal) fn release_active(&self) {
        self.core.segments.take_over(|| self.log().active.take());
    }

    pub(in crate::journal) fn push_tail(log: &mut Log, blocks: Vec<Arc<Block>>, bytes_max: usize) {
        for block in blocks {
            log.tail_bytes += block.bytes();
            log.tail.push_back(block);
        }
        while log.tail_bytes > bytes_max && log.tail.len() > 1 {
            if let Some(oldest) = log.tail.pop_front() {
                log.tail_bytes -= oldest.bytes();
            }
        }
    }

    pub(in crate::journal) fn publish_durable(
        &self,
        durable: Durable,
        blocks: Vec<Arc<Block>>,
        sequences: Vec<(u32, u64)>,
    ) {
        {
            let mut log = self.log();
            Self::push_tail(&mut log, blocks, self.core.tail_bytes);
            log.sequences = sequences;
            log.end = durable.end;
        }
        self.next.send_replace(durable);
    }

    pub(in crate::journal) fn wake_followers(&self) {
        self.next.send_modify(|_| ());
    }

    /// Lowest durable low mark of all destinations; 0 without destinations.
    pub(in crate::journal) fn settled_low(&self) -> u64 {
        if self.name == DEAD {
            return u64::MAX;
        }
        let log = self.log();
        let lows = log.settled.iter().map(|settled| log.durable_low.get(&settled.destination).copied().unwrap_or(0));
        lows.min().unwrap_or(0)
    }

    /// Whether every destination has settled every event; `false` without destinations.
    pub(in crate::journal) fn is_all_settled(&self) -> bool {
        let log = self.log();
        !log.settled.is_empty() && log.settled.iter().all(|settled| settled.low >= log.end)
    }

    pub(in crate::journal) fn set_durable_low(&self, settled: &[Cursor]) {
        let mut log = self.log();
        for settled in settled {
            log.durable_low.insert(settled.destination.clone(), settled.low);
        }
    }

    pub(in crate::journal) fn oldest_closed(&self) -> Option<OldestSegment> {
        let (first, path, end) = {
            let log = self.log();
            let mut parts = log.segments.iter();
            let (first, part) = parts.next()?;
            let (end, _) = parts.next()?;
            (*first, part.path.clone(), *end)
        };
        let segment = self.core.segments.open(&path).ok()?;
        let closed_at = segment
            .view()
            .and_then(|view| view.summary())
            .ok()
            .map(|summary| summary.closed.map_or(summary.begun, |closed| closed.at))?;
        Some(OldestSegment { first, end, closed_at })
    }

    pub(in crate::journal) fn remove_segment(&self, first: u64) -> Result<(), JournalError> {
        let part = self.log().segments.remove(&first);
        let Some(part) = part else { return Ok(()) };
        self.core.segments.forget(&part.path);
        self.core.disk.remove(&part.path).map_err(|error| JournalError::io(&part.path, error))?;
        // A reader may have opened it again meanwhile: a removed file occupies the disk as long as it is open.
        self.core.segments.forget(&part.path);
        tracing::debug!(lane = %self.name, first, "removed a settled segment");
        Ok(())
    }
}
