//! The writer of a lane: a thread that commits batches to disk, one after another (group commit).
//!
//! Promise: a batch is done only when it is durable. After a failed commit the writer keeps the batch and commits it
//! again, under the same offsets and sequences, to a new segment.
//! Invariants:
//! - each lane has one writer; offsets and sequences rise without gaps and are never used twice;
//! - a segment is never written again after a failed commit.
//!
//! `writer/segments` begins and closes segments, `writer/room` frees space.

mod room;
mod segments;

use super::batch_encoder::{BatchEncoder, EncodedBatch};
use super::condition::Condition;
use super::group_commit::{Batch, BatchDurable, Command, WriterWork};
use super::handle::Lane;
use super::log::Durable;
use super::marks;
use super::position::{Active, Position};
use super::retention;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::journal::store::block::Block;
use crate::journal::store::segment::StreamPart;
use crate::journal::store::state::RESERVE;
use crate::telemetry::{FOLLOW, follow, may_follow};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// After this long without a commit, changed cursors are written alone.
const CURSOR_IDLE: Duration = Duration::from_secs(10);
/// Delays before a retry on a disk that failed or is full.
const RETRIES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), Jitter::None);

pub(super) struct Writer {
    lane: Arc<Lane>,
    /// Lanes of events in the order of the configuration.
    lanes: Arc<[Arc<Lane>]>,
    position: Position,
    encoder: BatchEncoder,
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
    requests: Requests,
}

/// Commands that the writer has taken from its queue and not carried out yet.
#[derive(Default)]
struct Requests {
    /// Destinations whose cursors must leave the log.
    dropped: Vec<String>,
    /// Those who wait until the cursors have left.
    dropping: Vec<mpsc::Sender<()>>,
    rotate: bool,
    reclaim: bool,
    stop_retries: bool,
    /// A command arrived during a commit: the upkeep of an idle lane is due without waiting.
    upkeep: bool,
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
    /// Number of segments that the writer had created when it encoded the batch.
    segments: u64,
    retries: Backoff,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cursors {
    /// Only if one changed since the last commit took them.
    Changed,
    All,
}

impl Writer {
    /// A writer of `lane`; `lanes` are those that may free disk space for it.
    pub(super) fn new(lane: Arc<Lane>, lanes: Arc<[Arc<Lane>]>, mut position: Position) -> Self {
        let requests = Requests { dropped: std::mem::take(&mut position.dropped), ..Requests::default() };
        Self {
            lane,
            lanes,
            position,
            encoder: BatchEncoder::default(),
            segments: 0,
            committed_at: None,
            pending: None,
            spare: Batch::default(),
            limits_checked_at: clock::instant(),
            requests,
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
                Next::Retry(pause) if self.requests.stop_retries || lane.queue.pause(pause) => break,
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
        let work = self.lane.queue.poll(std::mem::take(&mut self.spare));
        self.note_taken(&work);
        work
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
        let idle_after = if self.requests.upkeep { Duration::ZERO } else { CURSOR_IDLE };
        let work = self.lane.queue.take(std::mem::take(&mut self.spare), idle_after, hold);
        self.note_taken(&work);
        work
    }

    /// The upkeep of an idle lane answers the commands that have arrived so far.
    fn note_taken(&mut self, work: &WriterWork) {
        if matches!(work, WriterWork::Idle) {
            self.take_commands();
            self.requests.upkeep = false;
        }
    }

    /// Takes the commands from the queue. Each is carried out at its place in a step; to take them early changes nothing.
    fn take_commands(&mut self) {
        for command in self.lane.queue.take_commands() {
            let requests = &mut self.requests;
            requests.upkeep = true;
            match command {
                Command::WriteCursors => {}
                Command::Rotate => requests.rotate = true,
                Command::Reclaim => requests.reclaim = true,
                Command::StopRetries => requests.stop_retries = true,
                Command::ForgetDestination { destination, done } => {
                    requests.dropped.push(destination);
                    requests.dropping.push(done);
                }
            }
        }
    }

    /// Whether the log still has the cursor of a dropped destination.
    fn has_dropped(&mut self) -> bool {
        self.take_commands();
        !self.requests.dropped.is_empty()
    }

    /// Does one step: a commit, or the upkeep of an idle lane. Waits only for the disk. While a batch is pending after a
    /// failed commit, `work` is ignored.
    pub(super) fn step(&mut self, work: WriterWork) -> Next {
        let pending = match (self.pending.take(), work) {
            (Some(pending), _) => Some(pending),
            (None, WriterWork::Batch(batch)) => {
                let encoded = self.encoder.encode(&batch, &self.lane, &mut self.position);
                Some(PendingBatch { batch, encoded, segments: self.segments, retries: RETRIES })
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
        self.take_commands();
        if std::mem::take(&mut self.requests.reclaim) {
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
        let mut noted = vec![(marks::given(&marks::offset(&lane.name)), lane.end())];
        let of_stream = |stream| marks::given(&marks::sequence(&lane.name, stream));
        noted.extend(lane.sequences().into_iter().map(|(stream, next)| (of_stream(stream), next)));
        noted.retain(|(name, next)| *next > 1 && lane.core.state.mark(name).is_ok_and(|mark| mark < *next));
        if !noted.is_empty()
            && let Err(error) = lane.core.state.raise(&noted)
        {
            tracing::warn!(lane = %lane.name, %error, "could not save the high-water marks; no data is lost");
        }
    }

    /// Commits a batch. After a failure keeps it as the pending batch and returns the delay before the next try.
    fn commit(&mut self, mut pending: PendingBatch) -> Result<(), Duration> {
        let started = clock::instant();
        self.committed_at = Some(started);
        match self.try_commit(&mut pending) {
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

    fn try_commit(&mut self, pending: &mut PendingBatch) -> Result<BatchDurable, Condition> {
        let encoded = &mut pending.encoded;
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
        if pending.segments != self.segments {
            // The summary of the new segment has the current cursors; those in the block are older.
            self.encoder.forget_cursors(encoded);
        }
        let values: Vec<_> = encoded.values.iter().map(|(first, value)| (*first, value.as_slice())).collect();
        let synced = match self.active()?.segment.write(&values, None, &[]) {
            Ok(synced) => synced,
            Err(error) => {
                let condition = Condition::of(&error);
                self.abandon_segment(&error);
                return Err(condition);
            }
        };
        self.check_location()?;
        let disk = Arc::clone(&self.lane.core.disk);
        let is_in_place = self.active()?.segment.is_in_place(&*disk);
        let synced = if is_in_place { synced } else { self.recreate_segment()? };
        // The window must not know the events earlier: it alone decides that a repeat is acknowledged.
        self.lane.core.window().admit(&encoded.fingerprints, encoded.recorded, &synced);
        self.count_committed(encoded)?;
        if let Some(first) = encoded.blocks.first() {
            self.lane.set_durable_low(&first.header.settled);
        }
        Ok(BatchDurable::committed(synced))
    }

    fn active(&mut self) -> Result<&mut Active, Condition> {
        self.position.active.as_mut().ok_or_else(|| Condition::Failed("there is no segment".into()))
    }

    /// Adds a committed batch to what the active segment holds.
    fn count_committed(&mut self, encoded: &EncodedBatch) -> Result<(), Condition> {
        let active = self.active()?;
        // redb rounds each value up to a power of two of pages.
        active.bytes += encoded
            .values
            .iter()
            .map(|(_, value)| (value.len() as u64 + 64).next_power_of_two().max(4096))
            .sum::<u64>();
        active.fingerprints.extend_from_slice(&encoded.fingerprints);
        for block in &encoded.blocks {
            for run in &block.header.runs {
                StreamPart::add(&mut active.parts, run, encoded.recorded);
            }
        }
        let bytes = active.bytes;
        self.lane.set_active_bytes(bytes);
        Ok(())
    }

    /// Fails if folder or lane folder were replaced: the next start would not find an event that is written now.
    fn check_location(&self) -> Result<(), Condition> {
        self.lane.misplaced_folder().map_or(Ok(()), |reason| Err(Condition::Failed(reason)))
    }

    /// Reserves numbers ahead: a number may be assigned only below a durable reservation.
    fn reserve(&mut self, offset_end: u64) -> Result<(), Condition> {
        let core = &self.lane.core;
        let mut raised = Vec::new();
        let ahead = |next: u64| next + RESERVE;
        if offset_end > self.position.offsets.reserved {
            raised.push((marks::offset(&self.lane.name), ahead(offset_end)));
        }
        for (stream, numbers) in &self.position.sequences {
            if numbers.next > numbers.reserved {
                raised.push((marks::sequence(&self.lane.name, *stream), ahead(numbers.next)));
            }
        }
        if raised.is_empty() {
            return Ok(());
        }
        core.state.raise(&raised).map_err(|error| Condition::of(&error))?;
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
