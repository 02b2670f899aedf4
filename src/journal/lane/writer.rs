//! The writer of a lane: a thread that commits batches to disk, one after another (group commit).
//!
//! Promise: a batch is done only when it is durable. After a failed commit the writer keeps the batch and commits it
//! again, under the same offsets and sequences, to a new segment.
//! Invariants:
//! - each lane has one writer; offsets and sequences rise without gaps and are never used twice;
//! - a segment is never written again after a failed commit.

use super::condition::Condition;
use super::config::Full;
use super::dedupe_window::{BatchDedupeResult, BatchFingerprints, DedupeResult, DurableCopy};
use super::group_commit::{Batch, BatchDurable, BatchEntry, WriterWork};
use super::handle::{Durable, Lane};
use super::planted_bugs::{self, Bug};
use super::retention;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::event::{Attribute, Id, Record, Timestamp};
use crate::journal::store::block::{Block, Compressor, Header, Run, append_record};
use crate::journal::store::error::JournalError;
use crate::journal::store::fingerprint::Fingerprint;
use crate::journal::store::segment::{Closed, FORMAT, Segment, StreamPart, Summary, Synced, file_name};
use crate::telemetry::{FOLLOW, follow, may_follow};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Size of a stored block: just below 60 KiB, since redb rounds a value up to a power of two of pages.
const BLOCK_BYTES: usize = 60 << 10;
/// Largest uncompressed size of a block, however well it compresses: a reader holds all of it in memory.
const BLOCK_PLAIN_MAX: usize = 256 << 10;
/// The fingerprints of the active segment stay in memory until it closes: 2 MiB.
const SEGMENT_FINGERPRINTS_MAX: usize = 128 << 10;
/// After this long without a commit, changed cursors are written alone.
const CURSOR_IDLE: Duration = Duration::from_secs(10);
/// A segment is closed after a day, so that retention can remove it.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(86_400);
/// Sessions, Odoo positions and last values are saved at least this often; after a crash the log supplies the rest.
const FOLLOWED_AFTER: Duration = Duration::from_secs(120);
/// Delays before a retry on a disk that failed or is full.
const RETRIES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), Jitter::None);

/// Next number to assign, and the end of the reserved ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReservedNumbers {
    pub next: u64,
    pub reserved: u64,
}

/// State of the log when its writer starts.
#[derive(Debug)]
pub(super) struct Position {
    pub offsets: ReservedNumbers,
    /// By stream number.
    pub sequences: BTreeMap<u32, ReservedNumbers>,
    /// Segment that the writer continues.
    pub active: Option<Active>,
}

#[derive(Debug)]
pub(super) struct Active {
    pub segment: Arc<Segment>,
    pub summary: Summary,
    pub bytes: u64,
    pub fingerprints: Vec<Fingerprint>,
    pub parts: BTreeMap<u32, StreamPart>,
    pub begun: Instant,
}

pub(super) struct Writer {
    lane: Arc<Lane>,
    position: Position,
    compressor: Compressor,
    /// Compression ratio of recent blocks: compressed by plain size.
    ratio: f64,
    /// Fingerprints of the current batch, and the result of the dedupe window for each of its events.
    batch_fingerprints: BatchFingerprints,
    dedupe_results: Vec<DedupeResult>,
    /// Number of segments created since the start.
    segments: u64,
    /// Time when the last commit started.
    committed_at: Option<Instant>,
    /// Batch that a failed commit left to be retried.
    pending: Option<PendingBatch>,
    /// Empty batch whose memory is reused.
    spare: Batch,
    /// Time of the last check of retention and holds.
    limits_checked_at: Instant,
}

/// What the writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait for a batch, or for the idle timeout.
    WriterWork,
    /// Retry the failed commit after this time.
    Retry(Duration),
    /// End: the lane is closed.
    Ended,
}

/// An encoded batch on its way to disk.
struct PendingBatch {
    batch: Batch,
    encoded: EncodedBatch,
    retries: Backoff,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cursors {
    /// Only if one changed since the last commit took them.
    Changed,
    All,
}

/// A batch encoded into blocks, with offsets and sequences assigned.
struct EncodedBatch {
    blocks: Vec<Arc<Block>>,
    values: Vec<(u64, Vec<u8>)>,
    fingerprints: Vec<Fingerprint>,
    /// One for each event that repeats an event on disk.
    copies: Vec<DurableCopy>,
    /// Number of segments that the writer had created when it encoded the batch.
    segments: u64,
    end: u64,
    batch: u64,
    entries: usize,
    events: u64,
    recorded: Timestamp,
}

impl EncodedBatch {
    /// Removes the cursors from the first block.
    fn forget_cursors(&mut self, compressor: &mut Compressor) {
        let (Some(block), Some((_, value))) = (self.blocks.first_mut(), self.values.first_mut()) else { return };
        if !block.header.settled.is_empty() {
            *block = Arc::new(block.without_cursors());
            *value = block.encode(compressor);
        }
    }
}

impl Writer {
    pub(super) fn new(lane: Arc<Lane>, position: Position) -> Self {
        Self {
            lane,
            position,
            compressor: Compressor::default(),
            ratio: 0.5,
            batch_fingerprints: BatchFingerprints::default(),
            dedupe_results: Vec::new(),
            segments: 0,
            committed_at: None,
            pending: None,
            spare: Batch::default(),
            limits_checked_at: clock::instant(),
        }
    }

    /// Name of the lane that it writes.
    pub(super) fn lane_name(&self) -> &str {
        &self.lane.name
    }

    /// Runs until the journal closes.
    pub(super) fn run(mut self) {
        let lane = Arc::clone(&self.lane);
        let _beating = lane.heartbeat.start();
        let mut next = Next::WriterWork;
        loop {
            lane.heartbeat.set_idle();
            let work = match next {
                Next::WriterWork => self.next_work(),
                // The journal closes: no event of the pending batch got a receipt.
                Next::Retry(pause) if lane.pause(pause) => break,
                Next::Retry(_) => WriterWork::Idle,
                Next::Ended => return,
            };
            lane.heartbeat.set_busy();
            next = self.step(work);
        }
        self.end();
    }

    /// The next work, without waiting; for a writer that a test steps.
    #[cfg(test)]
    pub(super) fn poll(&mut self) -> WriterWork {
        if self.pending.is_some() {
            return WriterWork::Idle;
        }
        self.lane.queue.poll(std::mem::take(&mut self.spare))
    }

    /// Drops the pending batch and ends, as the thread does if the disk does not recover before the journal closes.
    #[cfg(test)]
    pub(super) fn abandon(&mut self) {
        self.pending = None;
        self.end();
    }

    fn next_work(&mut self) -> WriterWork {
        let (committed_at, linger) = (self.committed_at, self.lane.settings.load().linger);
        // Commits start at least the linger apart: an event that finds the lane idle is committed at once.
        let hold =
            || committed_at.map_or(Duration::ZERO, |at| (at + linger).saturating_duration_since(clock::instant()));
        self.lane.queue.take(std::mem::take(&mut self.spare), CURSOR_IDLE, hold)
    }

    /// Does one step: a commit, or the upkeep of an idle lane. Waits only for the disk. While a batch is pending after a
    /// failed commit, `work` is ignored.
    pub(super) fn step(&mut self, work: WriterWork) -> Next {
        let pending = match (self.pending.take(), work) {
            (Some(pending), _) => Some(pending),
            (None, WriterWork::Batch(batch)) => {
                let encoded = self.encode_batch(&batch);
                Some(PendingBatch { batch, encoded, retries: RETRIES })
            }
            (None, WriterWork::Idle) => None,
            (None, WriterWork::Close) => {
                self.end();
                return Next::Ended;
            }
        };
        match pending {
            Some(pending) => {
                if let Err(pause) = self.commit(pending) {
                    return Next::Retry(pause);
                }
            }
            None => self.write_cursors(Cursors::Changed),
        }
        self.rotate_when_due();
        if self.forget_dropped().is_err() {
            tracing::warn!(lane = %self.lane.name, "could not remove the cursor of a dropped destination from the log; will retry with the next commit");
        }
        if self.lane.reclaim_requested.swap(false, Ordering::AcqRel) {
            self.reclaim_for_others();
        }
        let now = clock::instant();
        if now.duration_since(self.limits_checked_at) > Duration::from_secs(1) {
            self.limits_checked_at = now;
            self.lane.heartbeat.set_busy();
            self.enforce_limits();
        }
        Next::WriterWork
    }

    /// Writes cursors and high-water marks, and closes the active segment.
    fn end(&mut self) {
        self.write_cursors(Cursors::Changed);
        self.save_high_water_marks();
        self.lane.release_active();
        self.position.active = None;
        self.lane.queue.mark_closed();
        self.lane.wake_followers();
    }

    /// Removes expired segments, and sheds the part of backlogs that exceeds a `hold`.
    fn enforce_limits(&mut self) {
        match retention::enforce_holds(&self.lane) {
            Ok(false) => {}
            Ok(true) => self.write_cursors(Cursors::All),
            Err(error) => {
                tracing::warn!(lane = %self.lane.name, %error, "could not enforce the hold limit of a destination: counting its backlog failed; will retry");
            }
        }
        retention::remove_expired(&self.lane);
    }

    /// Saves how far offsets and sequences were assigned. If a file is found damaged later, recovery then knows
    /// how many events it held.
    fn save_high_water_marks(&self) {
        let lane = &self.lane;
        let mut marks = vec![(lane.last_offset_mark(), lane.end())];
        marks.extend(lane.sequences().into_iter().map(|(stream, next)| (lane.last_sequence_mark(stream), next)));
        marks.retain(|(name, next)| *next > 1 && lane.core.state.mark(name).is_ok_and(|noted| noted < *next));
        if !marks.is_empty()
            && let Err(error) = lane.core.state.raise(&marks)
        {
            tracing::warn!(lane = %lane.name, %error, "could not save the high-water marks; no data is lost");
        }
    }

    /// Commits a batch. After a failure keeps it as the pending batch and returns the delay before the next try.
    fn commit(&mut self, mut pending: PendingBatch) -> Result<(), Duration> {
        let started = clock::instant();
        self.committed_at = Some(started);
        match self.try_commit(&mut pending.encoded) {
            Ok(durable) => {
                let PendingBatch { mut batch, encoded, .. } = pending;
                self.lane.stats.fsync.record(clock::instant().duration_since(started), 1);
                self.lane.set_condition(Condition::Good);
                self.publish(encoded);
                self.lane.queue.done(&mut batch, durable);
                self.spare = batch;
                Ok(())
            }
            Err(condition) => {
                self.lane.set_condition(condition);
                let pause = pending.retries.next();
                self.pending = Some(pending);
                Err(pause)
            }
        }
    }

    fn try_commit(&mut self, encoded: &mut EncodedBatch) -> Result<BatchDurable, Condition> {
        if encoded.events == 0 {
            let repeated = BatchDurable::repeated(encoded.entries, &encoded.copies);
            return repeated
                .ok_or_else(|| Condition::Failed("a batch without new events has no repeats either".into()));
        }
        self.check_location()?;
        let forgotten = self.forget_dropped();
        self.check_room()?;
        self.reserve(encoded.end)?;
        if forgotten.is_err() {
            self.forget_dropped()?;
        }
        if self.position.active.is_none() {
            self.begin_segment()?;
        }
        if encoded.segments != self.segments {
            // The summary of the new segment has the current cursors; those in the block are older.
            encoded.forget_cursors(&mut self.compressor);
        }
        let Some(active) = &mut self.position.active else {
            return Err(Condition::Failed("there is no segment".into()));
        };
        let values: Vec<_> = encoded.values.iter().map(|(first, value)| (*first, value.as_slice())).collect();
        let synced = match active.segment.write(&values, None, &[]) {
            Ok(synced) => synced,
            Err(error) => {
                let condition = Condition::of(&error);
                self.abandon_segment(&error);
                return Err(condition);
            }
        };
        self.check_location()?;
        let Some(active) = &self.position.active else {
            return Err(Condition::Failed("there is no segment".into()));
        };
        let synced = if active.segment.is_in_place(&*self.lane.core.disk) { synced } else { self.recreate_segment()? };
        let Some(active) = &mut self.position.active else {
            return Err(Condition::Failed("there is no segment".into()));
        };
        // The window must not know the events earlier: it alone decides that a repeat is acknowledged.
        self.lane.core.window().admit(&encoded.fingerprints, encoded.recorded, &synced);
        // redb rounds each value up to a power of two of pages.
        active.bytes +=
            values.iter().map(|(_, value)| (value.len() as u64 + 64).next_power_of_two().max(4096)).sum::<u64>();
        active.fingerprints.extend_from_slice(&encoded.fingerprints);
        for block in &encoded.blocks {
            for run in &block.header.runs {
                StreamPart::add(&mut active.parts, run, encoded.recorded);
            }
        }
        self.lane.set_active_bytes(active.bytes);
        if let Some(first) = encoded.blocks.first() {
            self.lane.set_durable_low(&first.header.settled);
        }
        Ok(BatchDurable::committed(synced))
    }

    /// Leaves a segment whose commit failed: its last commit cannot be trusted. The next segment starts at the first
    /// offset that is not known to be durable, and hides whatever the failed commit left.
    fn abandon_segment(&mut self, error: &JournalError) {
        tracing::error!(lane = %self.lane.name, %error, "a commit failed; the gateway acknowledges nothing in this lane until a commit to a new segment succeeds");
        self.lane.stats.failed_commits.add(1);
        self.position.active = None;
        self.lane.release_active();
    }

    /// Fails if folder or lane folder were replaced: the next start would not find an event that is written now.
    fn check_location(&self) -> Result<(), Condition> {
        self.lane.misplaced_folder().map_or(Ok(()), |reason| Err(Condition::Failed(reason)))
    }

    /// Copies the active segment into a new file of the same name after its file was removed or replaced.
    fn recreate_segment(&mut self) -> Result<Synced, Condition> {
        let (lane, core) = (&self.lane, &self.lane.core);
        let Some(active) = &mut self.position.active else {
            return Err(Condition::Failed("there is no segment".into()));
        };
        let path = active.segment.path().to_owned();
        tracing::error!(lane = %lane.name, file = %path.display(), "the active segment was removed or replaced by hand; copying its events to a new file");
        if core.disk.identity(&path).is_ok() {
            core.quarantine(&path);
        }
        let restored = active.segment.recreate_file(&*core.disk, core.cache_bytes);
        let (segment, synced) = restored.map_err(|error| Condition::of(&error))?;
        active.segment = Arc::new(segment);
        lane.set_active(active.summary.first, Arc::clone(&active.segment));
        lane.set_active_bytes(active.bytes);
        Ok(synced)
    }

    fn check_room(&mut self) -> Result<(), Condition> {
        if self.shortage()?.is_none() {
            return Ok(());
        }
        // The disk may be too full for a cursor: first reclaim what durable cursors already allow.
        self.ask_lanes(retention::reclaim);
        if self.shortage()?.is_none() {
            return Ok(());
        }
        // Segments are removed only below durable cursors.
        if self.position.active.is_none() {
            self.begin_segment()?;
        } else {
            self.write_cursors(Cursors::All);
        }
        self.enforce_limits();
        self.ask_lanes(retention::reclaim);
        let is_retry = matches!(self.lane.condition(), Condition::Full(_));
        if self.lane.settings.load().full == Full::ShedOldest {
            while self.is_over_budget() && self.shed_oldest()? {
                self.lane.heartbeat.set_busy();
            }
            // Other lanes may still reclaim delivered segments; after a failed retry, this lane sheds one segment per try.
            if is_retry && self.shortage()?.is_some() {
                self.shed_oldest()?;
            }
        }
        let Some(shortage) = self.shortage()? else { return Ok(()) };
        // The next try may find room: other lanes write their cursors, which may release delivered segments. If that was
        // not enough, their writers shed segments where their configuration allows it.
        self.ask_lanes(|lane| {
            if is_retry {
                lane.reclaim_requested.store(true, Ordering::Release);
            }
            lane.write_cursors_soon();
        });
        Err(Condition::Full(shortage))
    }

    /// Calls `ask` for every lane while the disk is used up; a lane that only exceeds its own budget gets no help.
    fn ask_lanes(&self, ask: impl Fn(&Lane)) {
        let core = &self.lane.core;
        for lane in core.lanes_least_urgent_first() {
            if !core.is_disk_used_up(&self.lane.folder) {
                return;
            }
            ask(&lane);
        }
    }

    /// Reason why there is no room for another batch; `None` if there is.
    fn shortage(&self) -> Result<Option<String>, Condition> {
        let disk = self.lane.core.disk_room(&self.lane.folder).map_err(|error| Condition::of(&error))?;
        if disk.is_used_up() {
            let free = crate::setting::Bytes(disk.free);
            return Ok(Some(format!("the file system has {free} left, less than disk_reserve")));
        }
        Ok(self.is_over_budget().then(|| {
            let budget = crate::setting::Bytes(self.lane.settings.load().budget);
            format!("the budget of {budget} is used up by events that central has not acknowledged")
        }))
    }

    fn is_over_budget(&self) -> bool {
        self.lane.bytes() > self.lane.settings.load().budget
    }

    /// Sheds the oldest segment. Returns `false` if that freed nothing.
    fn shed_oldest(&mut self) -> Result<bool, Condition> {
        let before = self.lane.bytes();
        let shed = |lane: &Lane| retention::shed_oldest(lane).map_err(|error| Condition::of(&error));
        if !shed(&self.lane)? {
            // The active segment is the only one: close it, so that it can be shed.
            if self.position.active.as_ref().is_none_or(|active| active.parts.is_empty()) {
                return Ok(false);
            }
            self.close_segment();
            self.begin_segment()?;
            shed(&self.lane)?;
        }
        // The segment is removed only below durable cursors.
        self.write_cursors(Cursors::All);
        retention::remove_expired(&self.lane);
        retention::reclaim(&self.lane);
        Ok(self.lane.bytes() < before)
    }

    /// Frees disk space for another lane: reclaims settled segments, or sheds the oldest one if the lane may do so.
    fn reclaim_for_others(&mut self) {
        if !self.lane.core.is_disk_used_up(&self.lane.folder) {
            return;
        }
        // The active segment may go too, once all of it is settled and every follower of the log has saved its position.
        let is_idle = self.committed_at.is_none_or(|at| clock::instant().duration_since(at) > FOLLOWED_AFTER);
        let holds_events = self.position.active.as_ref().is_some_and(|active| !active.parts.is_empty());
        if is_idle && holds_events && self.lane.is_all_settled() {
            self.close_segment();
        }
        let freed = match self.position.active {
            None => self.begin_segment().map(|()| retention::reclaim(&self.lane)),
            Some(_) if self.lane.settings.load().full == Full::ShedOldest => self.shed_oldest().map(drop),
            Some(_) => Ok(()),
        };
        if freed.is_err() {
            tracing::warn!(lane = %self.lane.name, "could not free disk space for other lanes");
        }
    }

    /// Reserves numbers ahead: a number may be assigned only below a durable reservation.
    fn reserve(&mut self, offset_end: u64) -> Result<(), Condition> {
        let core = &self.lane.core;
        let mut marks = Vec::new();
        let ahead = |next: u64| next + crate::journal::store::state::RESERVE;
        if offset_end > self.position.offsets.reserved {
            marks.push((self.lane.offset_mark(), ahead(offset_end)));
        }
        for (stream, numbers) in &self.position.sequences {
            if numbers.next > numbers.reserved {
                marks.push((self.lane.sequence_mark(*stream), ahead(numbers.next)));
            }
        }
        if marks.is_empty() {
            return Ok(());
        }
        core.state.raise(&marks).map_err(|error| Condition::of(&error))?;
        if offset_end > self.position.offsets.reserved {
            self.position.offsets.reserved = ahead(offset_end);
        }
        for numbers in self.position.sequences.values_mut() {
            if numbers.next > numbers.reserved {
                numbers.reserved = ahead(numbers.next);
            }
        }
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(), Condition> {
        let lane = &self.lane;
        let first = self.position.offsets.next;
        // Sequences before the current batch, which goes into this segment.
        let sequences = lane.sequences();
        let summary = Summary {
            format: FORMAT,
            first,
            begun: Timestamp::from(clock::wall()),
            sequences,
            settled: lane.take_cursors(true),
            closed: None,
        };
        // A segment with a failed commit may have the same first offset: the new file replaces it, and nobody may open it.
        lane.log().segments.remove(&first);
        lane.core.forget_segment(&lane.folder.join(file_name(first)));
        let segment = Segment::create(&*lane.core.disk, &lane.folder, &summary, lane.core.cache_bytes)
            .map_err(|error| Condition::of(&error))?;
        // From now on recovery notices the loss of this segment.
        lane.core.state.raise(&[(lane.segment_mark(), first)]).map_err(|error| Condition::of(&error))?;
        self.segments += 1;
        let segment = Arc::new(segment);
        lane.set_active(first, Arc::clone(&segment));
        lane.set_durable_low(&summary.settled);
        self.position.active = Some(Active {
            segment,
            summary,
            bytes: 0,
            fingerprints: Vec::new(),
            parts: BTreeMap::new(),
            begun: clock::instant(),
        });
        Ok(())
    }

    fn rotate_when_due(&mut self) {
        let Some(active) = &self.position.active else { return };
        let due = self.lane.active_damaged.swap(false, Ordering::AcqRel)
            || active.bytes >= self.lane.segment_bytes()
            || active.fingerprints.len() >= SEGMENT_FINGERPRINTS_MAX
            || clock::instant().duration_since(active.begun) >= SEGMENT_AGE_MAX;
        if due {
            self.close_segment();
        }
    }

    fn close_segment(&mut self) {
        let Some(mut active) = self.position.active.take() else { return };
        active.summary.settled = self.lane.take_cursors(true);
        active.summary.closed = Some(Closed {
            end: self.position.offsets.next,
            at: Timestamp::from(clock::wall()),
            streams: active.parts.values().copied().collect(),
        });
        // A segment without its closing summary is read like one after a crash: slower, but nothing is lost.
        match active.segment.write(&[], Some(&active.summary), &active.fingerprints) {
            Ok(Synced { .. }) => self.lane.set_durable_low(&active.summary.settled),
            Err(error) => {
                tracing::warn!(lane = %self.lane.name, %error, "could not close a segment cleanly; no data is lost, the next start reads it like one after a crash")
            }
        }
        drop(active);
        self.lane.release_active();
    }

    /// Starts a new segment, whose summary has no cursor of a dropped destination, and deletes the notes of the drop. No
    /// event and no cursor of a new destination with the same name is written before that.
    fn forget_dropped(&mut self) -> Result<(), Condition> {
        let dropped = self.lane.dropped().clone();
        if dropped.is_empty() {
            return Ok(());
        }
        self.close_segment();
        self.begin_segment()?;
        let notes: Vec<_> = dropped.iter().map(|name| (super::open::dropped(&self.lane.name, name), None)).collect();
        self.lane.core.state.write_notes(&notes).map_err(|error| Condition::of(&error))?;
        self.lane.dropped().retain(|name| !dropped.contains(name));
        Ok(())
    }

    fn write_cursors(&mut self, which: Cursors) {
        if !self.lane.dropped().is_empty() {
            // The summary of the next segment holds them.
            return;
        }
        let Some(active) = &mut self.position.active else { return };
        if which == Cursors::Changed && !self.lane.has_unwritten_cursors() {
            return;
        }
        active.summary.settled = self.lane.take_cursors(true);
        match active.segment.write(&[], Some(&active.summary), &[]) {
            Ok(Synced { .. }) => self.lane.set_durable_low(&active.summary.settled),
            // A lost cursor only causes repeats.
            Err(error) => self.abandon_segment(&error),
        }
    }

    /// Drops repeats, assigns numbers, and encodes the batch into blocks.
    fn encode_batch(&mut self, batch: &Batch) -> EncodedBatch {
        let now = Timestamp::from(clock::wall());
        self.find_repeats(batch, now);
        let dedupe_results = std::mem::take(&mut self.dedupe_results);
        let mut encoder = BatchEncoder::new(self, now);
        let mut start = 0;
        for (entry, result) in batch.entries.iter().zip(&dedupe_results) {
            let bytes = &batch.bytes[start..entry.end];
            start = entry.end;
            encoder.take(entry, *result, bytes);
        }
        let encoded = encoder.finish(batch);
        if planted_bugs::has(Bug::AdmittedBeforeCommit) {
            self.lane.core.window().restore(&encoded.fingerprints, now);
        }
        self.dedupe_results = dedupe_results;
        encoded
    }

    /// Looks up every event of a batch in the dedupe window, under one lock.
    fn find_repeats(&mut self, batch: &Batch, now: Timestamp) {
        self.batch_fingerprints.reset(batch.entries.len());
        self.dedupe_results.clear();
        let window = self.lane.core.window();
        self.dedupe_results.extend(batch.entries.iter().map(|entry| {
            entry.repeats.map_or(DedupeResult::New, |(fingerprint, reach)| window.find(fingerprint, now, reach))
        }));
    }

    /// Logs that traced events are durable.
    fn follow(&self, blocks: &[Arc<Block>]) {
        for block in blocks {
            for (offset, record) in (block.header.first..).zip(block.records()) {
                if let Some(span) = follow(&record.id) {
                    span.in_scope(|| tracing::debug!(target: FOLLOW, lane = %self.lane.name, offset, "on the disk"));
                }
            }
        }
    }

    /// Makes the committed blocks visible to readers.
    fn publish(&mut self, encoded: EncodedBatch) {
        self.position.offsets.next = encoded.end;
        let sequences = self.position.sequences.iter().map(|(stream, numbers)| (*stream, numbers.next)).collect();
        self.lane.stats.accepted.add(encoded.events);
        if may_follow() {
            self.follow(&encoded.blocks);
        }
        let durable = Durable { end: encoded.end, batch: encoded.batch };
        self.lane.publish_durable(durable, encoded.blocks, sequences);
    }
}

/// Encodes the record again under a minted id; the id from the device becomes an attribute.
fn under_minted_id(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(mut record) = Record::decode(bytes) else { return false };
    if let Id::Text(original) = record.id {
        record.attributes.push(Attribute::OriginalId(original));
        record.id = Id::mint();
    }
    append_record(out, &record);
    true
}

struct BatchEncoder<'w> {
    writer: &'w mut Writer,
    now: Timestamp,
    next: u64,
    plain_max: usize,
    records: Vec<u8>,
    header: Header,
    blocks: Vec<Arc<Block>>,
    fingerprints: Vec<Fingerprint>,
    copies: Vec<DurableCopy>,
}

impl<'w> BatchEncoder<'w> {
    fn new(writer: &'w mut Writer, now: Timestamp) -> Self {
        let next = writer.position.offsets.next;
        let plain_max = ((BLOCK_BYTES as f64 / writer.ratio * 0.96) as usize).clamp(BLOCK_BYTES, BLOCK_PLAIN_MAX);
        let header = Header { first: next, recorded: now, ..Header::default() };
        Self {
            writer,
            now,
            next,
            plain_max,
            records: Vec::new(),
            header,
            blocks: Vec::new(),
            fingerprints: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Adds an event with the result of the dedupe window; `bytes` are its record with the length prefix.
    fn take(&mut self, entry: &BatchEntry, result: DedupeResult, bytes: &[u8]) {
        let Some((fingerprint, _)) = entry.repeats else { return self.push(entry.publication, bytes) };
        if let DedupeResult::Repeat(copy) = result {
            self.copies.push(copy);
            return self.count_repeat(bytes);
        }
        match (self.writer.batch_fingerprints.admit(fingerprint), result) {
            (BatchDedupeResult::Repeat, _) => return self.count_repeat(bytes),
            (BatchDedupeResult::New, DedupeResult::New) => self.push(entry.publication, bytes),
            _ => {
                self.writer.lane.stats.id_conflicts.add(1);
                let mut changed = Vec::new();
                let is_changed = under_minted_id(&bytes[4..], &mut changed);
                self.push(entry.publication, if is_changed { &changed } else { bytes });
            }
        }
        self.fingerprints.push(fingerprint);
    }

    fn count_repeat(&self, bytes: &[u8]) {
        let origin = Record::decode(&bytes[4..]).map_or("", |record| record.origin);
        self.writer.lane.stats.count_repeat(origin);
    }

    fn push(&mut self, publication: u32, record: &[u8]) {
        if !self.records.is_empty() && self.records.len() + record.len() > self.plain_max {
            self.cut();
        }
        let stream = self.writer.lane.core.stream_of(publication);
        let numbers = self.writer.position.sequences.entry(stream).or_insert(ReservedNumbers { next: 1, reserved: 0 });
        match self.header.runs.iter_mut().find(|run| run.stream == stream) {
            Some(run) => run.count += 1,
            None => self.header.runs.push(Run { stream, first: numbers.next, count: 1 }),
        }
        numbers.next += 1;
        self.header.count += 1;
        self.next += 1;
        self.records.extend_from_slice(record);
    }

    fn cut(&mut self) {
        let next = Header { first: self.next, recorded: self.now, ..Header::default() };
        let mut header = std::mem::replace(&mut self.header, next);
        if self.blocks.is_empty() {
            // Only with a block: a batch of repeats has none, and the cursors would count as written.
            header.settled = self.writer.lane.take_cursors(false);
        }
        self.blocks.push(Arc::new(Block::new(header, &self.records)));
        self.records.clear();
    }

    fn finish(mut self, batch: &Batch) -> EncodedBatch {
        if self.header.count > 0 {
            self.cut();
        }
        let mut values = Vec::with_capacity(self.blocks.len());
        let (mut plain, mut packed) = (0, 0);
        for block in &self.blocks {
            let value = block.encode(&mut self.writer.compressor);
            if block.bytes() > BLOCK_BYTES / 4 {
                plain += block.bytes();
                packed += value.len();
            }
            values.push((block.header.first, value));
        }
        if plain > 0 {
            let ratio = packed as f64 / plain as f64;
            self.writer.ratio = (self.writer.ratio * 0.8 + ratio * 0.2).clamp(0.05, 1.0);
        }
        let events = self.next - self.writer.position.offsets.next;
        EncodedBatch {
            blocks: self.blocks,
            values,
            fingerprints: self.fingerprints,
            copies: self.copies,
            segments: self.writer.segments,
            end: self.next,
            batch: batch.number,
            entries: batch.entries.len(),
            events,
            recorded: self.now,
        }
    }
}
