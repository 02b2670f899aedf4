//! One lane of the journal: its door, its log of segments, and what each destination has settled.

use super::block::Block;
use super::cursor::{Account, Outcome, Settled};
use super::disk::Identity;
use super::group_commit::{CommitQueue, NotTaken, Ticket, Waiter};
use super::heartbeat::Heartbeat;
use super::retention::Ages;
use super::segment::Segment;
use super::sequence_gaps::Gaps;
use super::{
    Condition, Core, DEAD, JournalError, LaneConfig, Published, Receipt, SEGMENT_BYTES_MAX, sequence_mark, writer,
};
use crate::event::{Record, Timestamp};
use crate::telemetry::{Counter, Histogram};
use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::watch;

/// What a lane counts.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Events that got a receipt and are no repeats.
    pub accepted: Counter,
    /// Repeats: acknowledged, and not stored again.
    pub duplicates: Counter,
    /// Events whose id another payload had taken.
    pub id_conflicts: Counter,
    /// Commits that failed.
    pub failed_commits: Counter,
    /// How long commits take.
    pub fsync: Histogram,
    /// Repeats by `{source}/{device}`.
    repeats: Mutex<HashMap<String, u64>>,
}

/// A writer that is at one thing for so long is a problem that a person should see.
const COMMIT_SHOWN_AFTER: Duration = Duration::from_secs(10);
/// Devices whose repeats are counted apart.
const REPEATING_DEVICES_MAX: usize = 4096;

impl LaneStats {
    pub(super) fn count_repeat(&self, origin: &str) {
        self.duplicates.add(1);
        let mut repeats = self.repeats.lock();
        if let Some(count) = repeats.get_mut(origin) {
            *count += 1;
        } else if repeats.len() < REPEATING_DEVICES_MAX {
            repeats.insert(origin.to_owned(), 1);
        }
    }

    /// How many repeats came of one device; `origin` is `{source}/{device}`.
    pub fn repeats_of(&self, origin: &str) -> u64 {
        self.repeats.lock().get(origin).copied().unwrap_or(0)
    }
}

/// One lane: its log, and the door to it.
#[derive(Debug)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// What it counts.
    pub stats: LaneStats,
    pub(super) index: usize,
    pub(super) settings: ArcSwap<LaneConfig>,
    pub(super) folder: PathBuf,
    /// The folder as it was when the journal was opened.
    pub(super) identity: Identity,
    pub(super) queue: CommitQueue,
    pub(super) core: Arc<Core>,
    pub(super) log: Mutex<Log>,
    pub(super) next: watch::Sender<Durable>,
    pub(super) condition: Mutex<Condition>,
    pub(super) stopping: (Mutex<bool>, Condvar),
    /// A reader found damage in the active segment: the writer leaves it.
    pub(super) active_damaged: AtomicBool,
    /// Numbers that were never given.
    pub(super) gaps: Gaps,
    pub(super) ages: Mutex<Ages>,
    /// Destinations that a person has dropped, and whose cursors the log still holds.
    pub(super) dropped: Mutex<Vec<String>>,
    /// Another lane needs room on the disk that this one may give up.
    pub(super) reclaim_requested: AtomicBool,
    /// Held while what may go is removed, be it by another lane's writer.
    pub(super) retention_lock: Mutex<()>,
    /// What the writer is at.
    pub(super) heartbeat: Heartbeat,
}

/// How far a lane's log is on the disk: both at the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Durable {
    /// Offset after the last event.
    pub end: u64,
    pub(super) batch: u64,
}

impl Durable {
    /// Whether the event of a ticket is below `end`; if not, it is not on the disk yet.
    pub fn holds(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.batch
    }
}

/// The segments of a lane and what has become of their events.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) segments: BTreeMap<u64, SegmentFile>,
    pub(super) active: Option<Arc<Segment>>,
    pub(super) tail: VecDeque<Arc<Block>>,
    pub(super) tail_bytes: usize,
    pub(super) settled: Vec<Settled>,
    pub(super) is_settled_written: bool,
    /// Low marks that are on the disk, by destination.
    pub(super) durable_low: BTreeMap<String, u64>,
    pub(super) sequences: Vec<(u32, u64)>,
    /// Offset after the last event on the disk, as of `sequences`.
    pub(super) end: u64,
}

/// One segment in the row.
#[derive(Clone, Debug)]
pub(super) struct SegmentFile {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

pub(super) struct OldestSegment {
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) closed_at: Timestamp,
}

/// What a lane looks like from outside.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct LaneStatus {
    /// Its name.
    pub name: String,
    /// Events it has taken since the journal was begun.
    pub accepted: u64,
    /// Bytes its log takes.
    pub bytes: u64,
    /// Bytes its log may take.
    pub budget: u64,
    /// Segments of its log.
    pub segments: usize,
    /// Why it takes nothing, if so.
    pub problem: Option<String>,
    /// Whether the configuration has it no more: its events still go out, and it takes no new ones.
    #[serde(default)]
    pub retired: bool,
    /// What each destination still needs.
    pub destinations: Vec<Backlog>,
    /// For each stream: name, accepted.
    pub streams: Vec<(String, u64)>,
}

/// What a destination still needs of a lane.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Backlog {
    /// Name of the destination.
    pub destination: String,
    /// Events it still needs.
    pub queued: u64,
    /// Events that central acknowledged.
    pub delivered: u64,
    /// Events that became dead letters on the way.
    pub dead: u64,
    /// Events that were too old for central.
    #[serde(default)]
    pub expired: u64,
    /// Events that gave way to newer ones.
    #[serde(default)]
    pub shed: u64,
    /// Events that a person gave up.
    #[serde(default)]
    pub discarded: u64,
    /// Events in files that are set aside.
    pub set_aside: u64,
    /// When the oldest of the queued was recorded, RFC 3339.
    pub oldest: Option<String>,
}

impl Lane {
    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock()
    }

    /// Whether the configuration has the lane no more: its events still go out, and it takes no new ones.
    pub fn is_retired(&self) -> bool {
        self.settings.load().is_retired
    }

    /// Why what is written now would not be found at the next start, if so: a folder of the journal is not the one
    /// that was opened.
    pub(super) fn misplaced_folder(&self) -> Option<String> {
        let core = &self.core;
        let is_same = |folder: &Path, opened| core.disk.identity(folder).is_ok_and(|found| found == opened);
        let expected = [(core.folder.as_path(), core.identity), (self.folder.as_path(), self.identity)];
        let (folder, _) = expected.into_iter().find(|(folder, opened)| !is_same(folder, *opened))?;
        Some(format!(
            "{} is not the folder that was opened: it was moved or replaced; put it back, or restart the gateway",
            folder.display()
        ))
    }

    /// Hands in an event. The ticket becomes a receipt once the event is on disk; `waiter` is woken then.
    ///
    /// With `dedupe`, an event whose first copy was stored within that time and is on disk gets the receipt of that copy,
    /// and is not stored again. The copy has the same source, device, id, stream, key and payload; an event that shares
    /// only source, device and id is stored under a minted id. An event whose id the gateway minted is never a repeat.
    pub fn submit(
        &self,
        record: &Record<'_>,
        dedupe: Option<Duration>,
        waiter: &mut Waiter,
    ) -> Result<Ticket, NotTaken> {
        let repeats = dedupe.and_then(|reach| Some((self.core.fingerprint(record)?, reach)));
        self.queue.put(record, repeats, waiter, self.index, writer::CUT_BYTES)
    }

    /// The receipt of a ticket, if there is one yet.
    pub fn receipt(&self, ticket: Ticket) -> Option<Receipt> {
        self.queue.receipt(ticket)
    }

    /// Returns when there may be room for another event. Safe to drop half-way.
    pub async fn room(&self) {
        self.queue.room().await;
    }

    /// Whether the journal is closed: tickets without a receipt stay without.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Hands in an event and waits until it is on the disk.
    pub async fn append(&self, record: &Record<'_>) -> Result<Receipt, NotTaken> {
        let mut waiter = Waiter::default();
        let ticket = loop {
            match self.submit(record, None, &mut waiter) {
                Ok(ticket) => break ticket,
                Err(NotTaken::NoRoom) => self.room().await,
                Err(NotTaken::Closed) => return Err(NotTaken::Closed),
            }
        };
        self.await_receipt(ticket, &waiter).await
    }

    /// Waits for the receipt of a ticket that `waiter` got. Safe to drop half-way.
    pub async fn await_receipt(&self, ticket: Ticket, waiter: &Waiter) -> Result<Receipt, NotTaken> {
        loop {
            if let Some(receipt) = self.receipt(ticket) {
                return Ok(receipt);
            }
            if self.is_closed() {
                return Err(NotTaken::Closed);
            }
            waiter.woken().await;
        }
    }

    /// Offset after the last event on the disk.
    pub fn end(&self) -> u64 {
        self.next.borrow().end
    }

    /// How far the log is on the disk.
    pub fn durable(&self) -> Durable {
        *self.next.borrow()
    }

    /// How many of the newest events take about so many bytes of the log.
    pub fn newest_within(&self, bytes: u64) -> u64 {
        let end = self.end();
        let (mut from, mut left) = (end, bytes);
        for (&first, part) in self.log().segments.iter().rev() {
            if part.bytes > left {
                // Events of one segment are taken to be of one size.
                let share = left as f64 / part.bytes as f64;
                return end - from + (from.saturating_sub(first) as f64 * share) as u64;
            }
            left -= part.bytes;
            from = first.min(from);
        }
        end - from
    }

    /// What it does when its budget is used up.
    pub fn full(&self) -> super::Full {
        self.settings.load().full
    }

    /// How it stands: bytes of the segments that a destination still needs, bytes that its log may take, and events that
    /// a destination still needs. Without destinations all is needed.
    pub fn load(&self) -> (u64, u64, u64) {
        let budget = self.budget();
        let log = self.log();
        // Dead letters have no destination either, and wait for a person.
        let low = log.settled.iter().map(|settled| settled.low).min().unwrap_or(0);
        let first = log.segments.keys().next().copied().unwrap_or(log.end).max(low);
        let ends = log.segments.keys().skip(1).copied().chain([log.end]);
        let needed = log.segments.values().zip(ends).filter(|(_, end)| *end > low).map(|(part, _)| part.bytes).sum();
        (needed, budget, log.end.saturating_sub(first))
    }

    /// How many events its oldest segment holds.
    pub fn oldest_events(&self) -> u64 {
        self.extents().first().map_or(0, |(from, to)| to - from)
    }

    /// Bytes that its log may take.
    pub fn budget(&self) -> u64 {
        self.settings.load().budget
    }

    /// How many events its segments hold.
    pub fn held_events(&self) -> u64 {
        let log = self.log();
        let first = log.segments.keys().next().copied().unwrap_or(log.end);
        log.end.saturating_sub(first).saturating_sub(self.gaps.offsets_between(first, log.end))
    }

    /// The offsets of each of its segments: from, to (exclusive).
    pub(super) fn extents(&self) -> Vec<(u64, u64)> {
        let log = self.log();
        let ends = log.segments.keys().skip(1).copied().chain([log.end]);
        log.segments.keys().copied().zip(ends).collect()
    }

    /// Offset of the first event that is still there, or of the next one.
    pub fn first(&self) -> u64 {
        let log = self.log();
        log.segments.keys().next().copied().unwrap_or(log.end)
    }

    /// The first offset of the segment that holds what was recorded at a moment, or of the oldest one
    /// after it; blocks the thread.
    pub fn offset_at(&self, moment: Timestamp) -> u64 {
        let firsts: Vec<u64> = self.log().segments.keys().copied().collect();
        // The segments are in the order of their times, as far as the clock ran forwards.
        let after = firsts.partition_point(|first| self.recorded_at(*first).is_some_and(|at| at <= moment));
        firsts.get(after.saturating_sub(1)).copied().unwrap_or_else(|| self.first())
    }

    /// Whether it takes events, and why not.
    pub fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    /// A publication that one of its records names.
    pub fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.core.published(number)
    }

    /// Where a destination is.
    pub fn settled(&self, destination: &str) -> Option<Settled> {
        self.log().settled.iter().find(|settled| settled.destination == destination).cloned()
    }

    /// Settles events for a destination. Written with the next append, or alone when the lane is idle.
    pub fn settle(&self, destination: &str, events: &[(u64, u32, Outcome)]) {
        self.change_settled(destination, |settled| {
            for &(offset, stream, outcome) in events {
                settled.settle(offset, stream, outcome);
            }
        });
    }

    /// Has the cursors written soon, and not only with the next append.
    pub fn write_cursors_soon(&self) {
        self.queue.nudge();
    }

    /// Passes over offsets whose segment is lost, and over nothing below them that is in flight.
    /// May read from the disk.
    pub fn mark_lost(&self, destination: &str, from: u64, to: u64) {
        let sequences = self.sequences_before(to).unwrap_or_default();
        self.change_settled(destination, |settled| {
            let given = self.owed_below(&sequences, settled);
            settled.mark_lost(from, to, &given);
        });
    }

    /// The next sequence of every stream at an offset that is the end of the lane or the start of a
    /// segment; `None` elsewhere, and where the segment cannot be read.
    pub(super) fn sequences_before(&self, offset: u64) -> Option<Vec<(u32, u64)>> {
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
            None => self.core.open_segment(&path),
        };
        let read = |segment: &Segment| segment.view().and_then(|view| view.summary());
        let summary = segment.and_then(|segment| read(&segment)).or_else(|_| {
            // One that a failed commit left has to be repaired, and a full disk takes no repair.
            read(&Segment::open_without_repair(&*self.core.disk, &path, self.core.cache_bytes)?)
        });
        match summary {
            Ok(summary) => Some(summary.sequences),
            Err(error) => {
                tracing::warn!(lane = %self.name, %error, "the sequences that a segment begins with cannot be read; its accounts hold what came before under no stream");
                None
            }
        }
    }

    /// How many events of each stream a destination is owed below these sequences.
    fn owed_below(&self, sequences: &[(u32, u64)], settled: &Settled) -> Vec<(u32, u64)> {
        let owed = |(stream, next): &(u32, u64)| {
            let account = settled.accounts.iter().find(|account| account.stream == *stream);
            let from = account.map_or(1, |account| account.from);
            (*stream, next.saturating_sub(from).saturating_sub(self.gaps.sequences_between(*stream, from, *next)))
        };
        sequences.iter().map(owed).collect()
    }

    /// The account of each stream with a destination: name, account, and how many events are owed in all.
    /// The second value is how many events the cursor has before it, at the same moment.
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

    /// Names of the destinations that the lane keeps a cursor for.
    pub fn destinations(&self) -> Vec<String> {
        self.log().settled.iter().map(|settled| settled.destination.clone()).collect()
    }

    pub(super) fn forget_destination(&self, destination: &str) {
        let mut log = self.log();
        log.settled.retain(|settled| settled.destination != destination);
        log.durable_low.remove(destination);
        log.is_settled_written = false;
        drop(log);
        // Blocks of the active segment still hold its cursor.
        self.dropped().push(destination.to_owned());
        self.queue.nudge();
    }

    pub(super) fn dropped(&self) -> MutexGuard<'_, Vec<String>> {
        self.dropped.lock()
    }

    /// The part of the oldest segment that a destination needs, where it holds back more than `hold` bytes.
    pub(super) fn excess_over_hold(&self, destination: &str, hold: u64) -> Option<(u64, u64)> {
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
        // The segment in hand is never given up.
        (bytes > hold && *end < u64::MAX).then(|| (low.max(*first), *end))
    }

    /// An offset with at most `count` events between it and `end`.
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

    pub(super) fn change_settled(&self, destination: &str, change: impl FnOnce(&mut Settled)) {
        let mut log = self.log();
        if let Some(settled) = log.settled.iter_mut().find(|settled| settled.destination == destination) {
            change(settled);
            log.is_settled_written = false;
        }
    }

    /// What the lane looks like.
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

    pub(super) fn set_condition(&self, condition: Condition) {
        let mut current = self.condition.lock();
        if *current == condition {
            return;
        }
        match &condition {
            Condition::Good => tracing::info!(lane = %self.name, "the lane takes events again"),
            Condition::Full(reason) => {
                tracing::error!(lane = %self.name, %reason, "the lane is full: nothing is acknowledged")
            }
            Condition::Failed(reason) => {
                tracing::error!(lane = %self.name, %reason, "the disk fails: nothing is acknowledged")
            }
        }
        *current = condition;
    }

    /// Waits, or returns `true` at once when the journal closes.
    pub(super) fn pause(&self, wait: Duration) -> bool {
        let mut is_stopping = self.stopping.0.lock();
        self.stopping.1.wait_while_for(&mut is_stopping, |is_stopping| !*is_stopping, wait);
        *is_stopping
    }

    pub(super) fn stop(&self) {
        self.queue.close();
    }

    /// Gives up on a disk that does not take the last batch.
    pub(super) fn stop_waiting(&self) {
        *self.stopping.0.lock() = true;
        self.stopping.1.notify_all();
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES_MAX.min(self.settings.load().budget / 16).max(256 << 10)
    }

    pub(super) fn offset_mark(&self) -> String {
        format!("offset/{}", self.name)
    }

    pub(super) fn segment_mark(&self) -> String {
        format!("segment/{}", self.name)
    }

    pub(super) fn sequence_mark(&self, stream: u32) -> String {
        sequence_mark(&self.name, stream)
    }

    pub(super) fn last_offset_mark(&self) -> String {
        format!("given/{}", self.offset_mark())
    }

    pub(super) fn last_sequence_mark(&self, stream: u32) -> String {
        format!("given/{}", self.sequence_mark(stream))
    }

    /// Bytes that its log takes.
    pub fn bytes(&self) -> u64 {
        self.log().segments.values().map(|part| part.bytes).sum()
    }

    pub(super) fn sequences(&self) -> Vec<(u32, u64)> {
        self.log().sequences.clone()
    }

    /// The cursors to write; empty if nothing changed since the last time, unless `all`.
    pub(super) fn take_cursors(&self, all: bool) -> Vec<Settled> {
        let mut log = self.log();
        if log.is_settled_written && !all {
            return Vec::new();
        }
        log.is_settled_written = true;
        log.settled.clone()
    }

    pub(super) fn has_unwritten_cursors(&self) -> bool {
        !self.log().is_settled_written
    }

    pub(super) fn set_active_bytes(&self, active_bytes: u64) {
        let mut log = self.log();
        if let Some(mut last) = log.segments.last_entry() {
            last.get_mut().bytes = active_bytes;
        }
    }

    pub(super) fn set_active(&self, first: u64, segment: Arc<Segment>) {
        let mut log = self.log();
        let part = SegmentFile { path: segment.path().to_owned(), bytes: 0 };
        log.segments.insert(first, part);
        log.active = Some(segment);
    }

    pub(super) fn release_active(&self) {
        // Readers that find no active segment open the file themselves, under this lock: they must not do so
        // before it is closed, or among those that are open. Two handles on one file would spoil it.
        let mut opened = self.core.opened.lock();
        let Some(active) = self.log().active.take() else { return };
        if Arc::strong_count(&active) > 1 {
            // A reader still looks at it: it stays open until that one is done.
            opened.push(active);
        } else {
            drop(active);
        }
    }

    pub(super) fn push_tail(log: &mut Log, blocks: Vec<Arc<Block>>, bytes_max: usize) {
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

    pub(super) fn publish_durable(&self, durable: Durable, blocks: Vec<Arc<Block>>, sequences: Vec<(u32, u64)>) {
        {
            let mut log = self.log();
            Self::push_tail(&mut log, blocks, self.core.tail_bytes);
            log.sequences = sequences;
            log.end = durable.end;
        }
        self.next.send_replace(durable);
    }

    pub(super) fn wake_followers(&self) {
        self.next.send_modify(|_| ());
    }

    /// Everything below is settled by every destination, and the disk knows it; without
    /// destinations, nothing is.
    pub(super) fn settled_low(&self) -> u64 {
        if self.name == DEAD {
            return u64::MAX;
        }
        let log = self.log();
        let lows = log.settled.iter().map(|settled| log.durable_low.get(&settled.destination).copied().unwrap_or(0));
        lows.min().unwrap_or(0)
    }

    /// Whether every destination has settled all there is; without destinations, nobody has.
    pub(super) fn is_all_settled(&self) -> bool {
        let log = self.log();
        !log.settled.is_empty() && log.settled.iter().all(|settled| settled.low >= log.end)
    }

    pub(super) fn set_durable_low(&self, settled: &[Settled]) {
        let mut log = self.log();
        for settled in settled {
            log.durable_low.insert(settled.destination.clone(), settled.low);
        }
    }

    pub(super) fn oldest_closed(&self) -> Option<OldestSegment> {
        let (first, path, end) = {
            let log = self.log();
            let mut parts = log.segments.iter();
            let (first, part) = parts.next()?;
            let (end, _) = parts.next()?;
            (*first, part.path.clone(), *end)
        };
        let segment = self.core.open_segment(&path).ok()?;
        let closed_at = segment
            .view()
            .and_then(|view| view.summary())
            .ok()
            .map(|summary| summary.closed.map_or(summary.begun, |closed| closed.at))?;
        Some(OldestSegment { first, end, closed_at })
    }

    pub(super) fn remove_segment(&self, first: u64) -> Result<(), JournalError> {
        let part = self.log().segments.remove(&first);
        let Some(part) = part else { return Ok(()) };
        self.core.forget_segment(&part.path);
        self.core.disk.remove(&part.path).map_err(|error| JournalError::io(&part.path, error))?;
        // One who had found it before may have opened it again: it would take its room as long as it is open.
        self.core.forget_segment(&part.path);
        tracing::debug!(lane = %self.name, first, "a segment is done and removed");
        Ok(())
    }
}
