//! The writer of a lane: a thread that takes batches and puts them on the disk, one after another.
//!
//! Promise: a batch is done only when it is on the disk. What cannot be written now stays in hand
//! and is written again, under the same offsets and sequences, to a segment that works.
//! Invariants:
//! - one writer a lane; offsets and sequences rise without gaps and are never used twice;
//! - after a failed commit the segment is never written again.

use super::block::{Block, Compressor, Header, Run, append_record};
use super::dedupe_window::{BatchDedupeResult, BatchFingerprints, DedupeResult, DurableCopy, Fingerprint};
use super::group_commit::{Batch, BatchDurable, BatchEntry, WriterWork};
use super::lane::Durable;
use super::planted_bugs::{self, Bug};
use super::retention;
use super::segment::{Closed, FORMAT, Segment, StreamPart, Summary, Synced, file_name};
use super::{Condition, Full, JournalError, Lane};
use crate::clock;
use crate::event::{Attribute, Id, Record, Timestamp};
use crate::telemetry::{FOLLOW, follow, may_follow};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A value is cut just below 60 KiB, since redb gives it a power of two of pages.
const BLOCK_BYTES: usize = 60 << 10;
/// The plain bytes of a block, however well they compress: what a reader has to hold.
const BLOCK_PLAIN_MAX: usize = 256 << 10;
/// A batch that fills some blocks is worth a commit at once.
pub(super) const CUT_BYTES: usize = 256 << 10;
/// A segment's fingerprints are kept in memory until it closes: 2 MiB.
const SEGMENT_FINGERPRINTS_MAX: usize = 128 << 10;
/// Cursors are written alone after this long without an append.
const CURSOR_IDLE: Duration = Duration::from_secs(10);
/// A segment is closed after a day, so that retention can remove it.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(86_400);
/// Sessions, Odoo positions and last values are noted at least this often; the log tells the rest after a crash.
const FOLLOWED_AFTER: Duration = Duration::from_secs(120);
/// How long to wait before trying a disk again that failed or is full.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// ReservedNumbers that are given out, and up to where they are reserved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReservedNumbers {
    pub next: u64,
    pub reserved: u64,
}

/// What a writer knows of its log when it starts.
#[derive(Debug)]
pub(super) struct Position {
    pub offsets: ReservedNumbers,
    /// By stream number.
    pub sequences: BTreeMap<u32, ReservedNumbers>,
    /// The segment to go on with.
    pub active: Option<Active>,
}

/// The segment being written.
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
    /// Compressed share of the blocks written last.
    ratio: f64,
    /// Fingerprints of the batch in hand, and what the window knows of each of its events.
    batch_fingerprints: BatchFingerprints,
    dedupe_results: Vec<DedupeResult>,
    /// Segments begun since the start.
    segments: u64,
    /// When the last commit started.
    committed_at: Option<Instant>,
    /// A batch that the disk has not taken yet.
    pending: Option<PendingBatch>,
    /// The memory of the batch before.
    spare: Batch,
    /// When it was last looked at what may leave the log.
    limits_checked_at: Instant,
}

/// What a writer waits for before its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A batch, or nothing for some time.
    WriterWork,
    /// The disk did not take the batch in hand: it is tried again after this time.
    Retry(Duration),
    /// Nothing: the lane is closed.
    Ended,
}

/// A batch under its numbers, on its way to disk.
struct PendingBatch {
    batch: Batch,
    encoded: EncodedBatch,
    /// How long to wait after another failure.
    pause: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cursors {
    /// Only if one moved since they were last handed to a commit.
    Changed,
    /// In any case.
    All,
}

/// A batch made ready for the disk.
struct EncodedBatch {
    blocks: Vec<Arc<Block>>,
    values: Vec<(u64, Vec<u8>)>,
    fingerprints: Vec<Fingerprint>,
    /// For each event that repeats one on disk.
    copies: Vec<DurableCopy>,
    /// Segments that the writer had begun by then.
    segments: u64,
    end: u64,
    batch: u64,
    entries: usize,
    events: u64,
    recorded: Timestamp,
}

impl EncodedBatch {
    /// Takes the cursors out of the first block.
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

    /// The lane that it writes.
    pub(super) fn lane_name(&self) -> &str {
        &self.lane.name
    }

    /// Works until the journal closes.
    pub(super) fn run(mut self) {
        let lane = Arc::clone(&self.lane);
        let _beating = lane.heartbeat.start();
        let mut next = Next::WriterWork;
        loop {
            lane.heartbeat.set_idle();
            let work = match next {
                Next::WriterWork => self.next_work(),
                // The journal closes: nobody got a receipt for the batch in hand.
                Next::Retry(pause) if lane.pause(pause) => break,
                Next::Retry(_) => WriterWork::Idle,
                Next::Ended => return,
            };
            lane.heartbeat.set_busy();
            next = self.step(work);
        }
        self.end();
    }

    /// What there is to do now, without waiting; for a writer that is stepped.
    #[cfg(test)]
    pub(super) fn poll(&mut self) -> WriterWork {
        if self.pending.is_some() {
            return WriterWork::Idle;
        }
        self.lane.queue.poll(std::mem::take(&mut self.spare))
    }

    /// Gives up what is in hand, as the thread does where the disk does not take it before the end.
    #[cfg(test)]
    pub(super) fn abandon(&mut self) {
        self.pending = None;
        self.end();
    }

    fn next_work(&mut self) -> WriterWork {
        let (committed_at, linger) = (self.committed_at, self.lane.settings.load().linger);
        // Commits start at least the linger apart: an event that finds the lane idle goes at once.
        let hold =
            || committed_at.map_or(Duration::ZERO, |at| (at + linger).saturating_duration_since(clock::instant()));
        self.lane.queue.take(std::mem::take(&mut self.spare), CURSOR_IDLE, hold, CUT_BYTES)
    }

    /// One step: a commit, or what there is to do without one. Waits for nothing but the disk. While a batch is in hand
    /// that the disk did not take, `work` is not looked at.
    pub(super) fn step(&mut self, work: WriterWork) -> Next {
        let pending = match (self.pending.take(), work) {
            (Some(pending), _) => Some(pending),
            (None, WriterWork::Batch(batch)) => {
                let encoded = self.encode_batch(&batch);
                Some(PendingBatch { batch, encoded, pause: RETRY_MIN })
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
            tracing::warn!(lane = %self.lane.name, "the log still holds the cursor of a dropped destination; will retry with the next commit");
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

    /// Leaves the log as it is to be found at the next start.
    fn end(&mut self) {
        self.write_cursors(Cursors::Changed);
        self.save_high_water_marks();
        self.lane.release_active();
        self.position.active = None;
        self.lane.queue.mark_closed();
        self.lane.wake_followers();
    }

    /// Lets go what is done, and what a destination holds back beyond its limit.
    fn enforce_limits(&mut self) {
        match retention::enforce_holds(&self.lane) {
            Ok(false) => {}
            Ok(true) => self.write_cursors(Cursors::All),
            Err(error) => {
                tracing::warn!(lane = %self.lane.name, %error, "what a destination holds back could not be counted, and stays");
            }
        }
        retention::remove_expired(&self.lane);
    }

    /// Notes up to where numbers were given, so that a file found damaged later is known to have held
    /// what it did.
    fn save_high_water_marks(&self) {
        let lane = &self.lane;
        let mut marks = vec![(lane.last_offset_mark(), lane.end())];
        marks.extend(lane.sequences().into_iter().map(|(stream, next)| (lane.last_sequence_mark(stream), next)));
        marks.retain(|(name, next)| *next > 1 && lane.core.state.mark(name).is_ok_and(|noted| noted < *next));
        if !marks.is_empty()
            && let Err(error) = lane.core.state.raise(&marks)
        {
            tracing::warn!(lane = %lane.name, %error, "what was given so far could not be noted; nothing is lost");
        }
    }

    /// Tries to bring a batch to disk; otherwise keeps it in hand, and says how long to wait before the next try.
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
                let pause = pending.pause;
                pending.pause = (pause * 2).min(RETRY_MAX);
                self.pending = Some(pending);
                Err(pause)
            }
        }
    }

    fn try_commit(&mut self, encoded: &mut EncodedBatch) -> Result<BatchDurable, Condition> {
        if encoded.events == 0 {
            let repeated = BatchDurable::repeated(encoded.entries, &encoded.copies);
            return repeated.ok_or_else(|| Condition::Failed("a batch without events holds no repeats".into()));
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
            // The summary of the new segment holds the cursors as they are now; those in the block are older.
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
        // Not before this: a repeat is answered by the window's word alone.
        self.lane.core.window().admit(&encoded.fingerprints, encoded.recorded, &synced);
        // redb gives each value a power of two of pages.
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

    /// The segment failed: what it says of its last commit is not to be trusted, so that the next
    /// one starts at the first offset not known to be durable, and hides whatever is there.
    fn abandon_segment(&mut self, error: &JournalError) {
        tracing::error!(lane = %self.lane.name, %error, "a commit failed; nothing is acknowledged until it succeeds in a new segment");
        self.lane.stats.failed_commits.add(1);
        self.position.active = None;
        self.lane.release_active();
    }

    /// What is written somewhere else than where a start looks for it is not acknowledged.
    fn check_location(&self) -> Result<(), Condition> {
        self.lane.misplaced_folder().map_or(Ok(()), |reason| Err(Condition::Failed(reason)))
    }

    /// The file of the active segment was removed or replaced: all that it holds goes into a new one under its name.
    fn recreate_segment(&mut self) -> Result<Synced, Condition> {
        let (lane, core) = (&self.lane, &self.lane.core);
        let Some(active) = &mut self.position.active else {
            return Err(Condition::Failed("there is no segment".into()));
        };
        let path = active.segment.path().to_owned();
        tracing::error!(lane = %lane.name, file = %path.display(), "the active segment was removed or replaced by hand; its events are written anew");
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
        // The disk may not even take a cursor: first what the cursors on it let go already.
        self.ask_lanes(retention::reclaim);
        if self.shortage()?.is_none() {
            return Ok(());
        }
        // Segments leave only behind cursors that are on the disk.
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
            // Others may have something delivered to let go, and who fills the disk may go too: a segment a try.
            if is_retry && self.shortage()?.is_some() {
                self.shed_oldest()?;
            }
        }
        let Some(shortage) = self.shortage()? else { return Ok(()) };
        // There is room when this is tried again: cursors of others may let something go, and what others may give
        // up is theirs to give up, once that was not enough.
        self.ask_lanes(|lane| {
            if is_retry {
                lane.reclaim_requested.store(true, Ordering::Release);
            }
            lane.write_cursors_soon();
        });
        Err(Condition::Full(shortage))
    }

    /// Turns to every lane where the disk is used up; where it is not, a lane is alone with its budget.
    fn ask_lanes(&self, ask: impl Fn(&Lane)) {
        let core = &self.lane.core;
        for lane in core.lanes_least_urgent_first() {
            if !core.is_disk_used_up(&self.lane.folder) {
                return;
            }
            ask(&lane);
        }
    }

    /// What there is too little of for another batch.
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

    /// Gives up the oldest segment. `false` if that made no room.
    fn shed_oldest(&mut self) -> Result<bool, Condition> {
        let before = self.lane.bytes();
        let shed = |lane: &Lane| retention::shed_oldest(lane).map_err(|error| Condition::of(&error));
        if !shed(&self.lane)? {
            // There is the segment in hand alone; the next batch goes into another.
            if self.position.active.as_ref().is_none_or(|active| active.parts.is_empty()) {
                return Ok(false);
            }
            self.close_segment();
            self.begin_segment()?;
            shed(&self.lane)?;
        }
        // The segment leaves only behind cursors that are on the disk.
        self.write_cursors(Cursors::All);
        retention::remove_expired(&self.lane);
        retention::reclaim(&self.lane);
        Ok(self.lane.bytes() < before)
    }

    /// Makes room on the disk for another lane: by what is settled, or by the oldest where it may be given up.
    fn reclaim_for_others(&mut self) {
        if !self.lane.core.is_disk_used_up(&self.lane.folder) {
            return;
        }
        // Even the segment in hand makes way once all of it is settled, and all that follow the log have noted it.
        let is_idle = self.committed_at.is_none_or(|at| clock::instant().duration_since(at) > FOLLOWED_AFTER);
        let holds_events = self.position.active.as_ref().is_some_and(|active| !active.parts.is_empty());
        if is_idle && holds_events && self.lane.is_all_settled() {
            self.close_segment();
        }
        let is_given = match self.position.active {
            None => self.begin_segment().map(|()| retention::reclaim(&self.lane)),
            Some(_) if self.lane.settings.load().full == Full::ShedOldest => self.shed_oldest().map(drop),
            Some(_) => Ok(()),
        };
        if is_given.is_err() {
            tracing::warn!(lane = %self.lane.name, "nothing could be given up for the other lanes");
        }
    }

    /// ReservedNumbers beyond the reserved ones may be used only once more are reserved.
    fn reserve(&mut self, offset_end: u64) -> Result<(), Condition> {
        let core = &self.lane.core;
        let mut marks = Vec::new();
        let ahead = |next: u64| next + super::state::RESERVE;
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
        // Sequences as they were before the batch in hand: that one is in the segment.
        let sequences = lane.sequences();
        let summary = Summary {
            format: FORMAT,
            first,
            begun: Timestamp::from(clock::wall()),
            sequences,
            settled: lane.take_cursors(true),
            closed: None,
        };
        // A failed predecessor may have had the same first offset; it is replaced, and nobody may open it meanwhile.
        lane.log().segments.remove(&first);
        lane.core.forget_segment(&lane.folder.join(file_name(first)));
        let segment = Segment::create(&*lane.core.disk, &lane.folder, &summary, lane.core.cache_bytes)
            .map_err(|error| Condition::of(&error))?;
        // From now on the segment is missed if it is lost.
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
        // Without its summary a segment is read like one that a crash left, which is slower and no loss.
        match active.segment.write(&[], Some(&active.summary), &active.fingerprints) {
            Ok(Synced { .. }) => self.lane.set_durable_low(&active.summary.settled),
            Err(error) => tracing::warn!(lane = %self.lane.name, %error, "a segment could not be closed cleanly"),
        }
        drop(active);
        self.lane.release_active();
    }

    /// Goes on in a new segment, whose summary holds no cursor of a dropped destination, and deletes the notes that
    /// said so. Nothing else is written before that: neither an event nor a cursor of a destination with the same name.
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
            // They are in the summary of the segment that begins.
            return;
        }
        let Some(active) = &mut self.position.active else { return };
        if which == Cursors::Changed && !self.lane.has_unwritten_cursors() {
            return;
        }
        active.summary.settled = self.lane.take_cursors(true);
        match active.segment.write(&[], Some(&active.summary), &[]) {
            Ok(Synced { .. }) => self.lane.set_durable_low(&active.summary.settled),
            // Losing a cursor only repeats events.
            Err(error) => self.abandon_segment(&error),
        }
    }

    /// Drops repeats, gives numbers, and cuts the batch into blocks.
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

    /// Asks the window about every event of a batch, under one lock.
    fn find_repeats(&mut self, batch: &Batch, now: Timestamp) {
        self.batch_fingerprints.reset(batch.entries.len());
        self.dedupe_results.clear();
        let window = self.lane.core.window();
        self.dedupe_results.extend(batch.entries.iter().map(|entry| {
            entry.repeats.map_or(DedupeResult::New, |(fingerprint, reach)| window.find(fingerprint, now, reach))
        }));
    }

    /// Says of the events that are followed that they are on the disk.
    fn follow(&self, blocks: &[Arc<Block>]) {
        for block in blocks {
            for (offset, record) in (block.header.first..).zip(block.records()) {
                if let Some(span) = follow(&record.id) {
                    span.in_scope(|| tracing::debug!(target: FOLLOW, lane = %self.lane.name, offset, "on the disk"));
                }
            }
        }
    }

    /// Lets readers see what is on the disk now.
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

/// Encodes the record again under a minted id, keeping the one its device gave.
fn under_minted_id(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(mut record) = Record::decode(bytes) else { return false };
    if let Id::Text(original) = record.id {
        record.attributes.push(Attribute::OriginalId(original));
        record.id = Id::mint();
    }
    append_record(out, &record);
    true
}

/// Blocks in the making.
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

    /// Adds an event that the window has `dedupe_results` so; `bytes` are its record behind its length.
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
            // Not before there is a block: a batch of repeats has none, and the cursors would count as written.
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
