//! Reads the events of a replay from the journal, and counts their answers.
//!
//! Invariant: the progress to save is below every event in flight and every event that central rejected temporarily.

use super::letters::REFUSED_PAUSE;
use crate::api::{Replay, ReplayState};
use crate::clock;
use crate::forward::outgoing::Outgoing;
use crate::journal::{BlockReader, Cursor, Journal, Lane, ReadResult, Step};
use crate::link::Rejection;
use crate::runtime::spawn_blocking;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval at which the progress of a replay is saved.
const SAVE_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct ReplayReader {
    replay: Replay,
    /// Index of the current lane in the list of the replay.
    lane: usize,
    next: u64,
    block: Option<BlockReader>,
    settled: Cursor,
    saved_at: Instant,
    /// Temporarily rejected events, by index of the lane and offset; they are sent before any further event.
    refused: BTreeSet<(usize, u64)>,
    /// Time before which none of them is sent again.
    refused_until: Instant,
}

impl ReplayReader {
    pub(super) fn new(replay: Replay, journal: &Journal) -> Self {
        let now = clock::instant();
        let mut reader = Self {
            replay,
            lane: 0,
            next: 0,
            block: None,
            settled: Cursor::default(),
            saved_at: now,
            refused: BTreeSet::new(),
            refused_until: now,
        };
        reader.start_lane(journal, 0);
        reader
    }

    pub(super) fn id(&self) -> u64 {
        self.replay.id
    }

    /// Largest rate in events per second.
    pub(super) fn rate(&self) -> Option<u64> {
        self.replay.rate
    }

    /// Remaining pause after a temporary rejection.
    pub(super) fn pause(&self) -> Duration {
        match self.refused.is_empty() {
            true => Duration::ZERO,
            false => self.refused_until.saturating_duration_since(clock::instant()),
        }
    }

    /// Passes the next event, with the index of its lane, to `send`. Returns `false` if there is none left
    /// or it cannot be read now.
    pub(super) async fn next(&mut self, journal: &Journal, send: impl FnOnce(usize, Outgoing<'_>)) -> bool {
        if let Some((lane_index, offset)) = self.refused.pop_first() {
            self.next_refused(journal, (lane_index, offset), send).await;
            return true;
        }
        loop {
            let Some((name, _, end)) = self.replay.lanes.get(self.lane) else { return false };
            let (end, lane) = (*end, journal.lane(name).cloned());
            let Some(lane) = lane.filter(|_| self.next < end) else {
                self.start_lane(journal, self.lane + 1);
                continue;
            };
            if self.block.is_none() && !self.read(&lane).await {
                return false;
            }
            let Some(block) = &mut self.block else { continue };
            let (recorded, block_end) = (block.recorded(), block.end());
            let Some(Step { offset, record, numbered }) = block.step(&lane) else {
                self.next = block_end.max(self.next);
                self.block = None;
                continue;
            };
            if offset < self.next || offset >= end || !self.settled.contains(offset) {
                continue;
            }
            let Some((published, sequence)) = numbered else { continue };
            if !self.replay.filter.takes(published, record.key, recorded) {
                continue;
            }
            self.next = offset + 1;
            send(self.lane, Outgoing { offset, record, published, sequence, recorded, mark: None });
            return true;
        }
    }

    /// Reads an event that central rejected temporarily. One that has been removed from the
    /// journal meanwhile counts as failed.
    async fn next_refused(
        &mut self,
        journal: &Journal,
        (lane_index, offset): (usize, u64),
        send: impl FnOnce(usize, Outgoing<'_>),
    ) {
        let named = self.replay.lanes.get(lane_index);
        let Some(lane) = named.and_then(|(name, ..)| journal.lane(name)).cloned() else { return self.fail() };
        let ours = Arc::clone(&lane);
        let mut walk = match spawn_blocking(move || ours.walk_at(offset)).await {
            Ok(Ok(walk)) => walk,
            Ok(Err(_)) | Err(_) => return self.refuse(lane_index, offset),
        };
        let step = walk.as_mut().and_then(|walk| Some((walk.recorded(), walk.step_to(&lane, offset)?)));
        match step {
            Some((recorded, Step { record, numbered: Some((published, sequence)), .. })) => {
                send(lane_index, Outgoing { offset, record, published, sequence, recorded, mark: None });
            }
            _ => self.fail(),
        }
    }

    pub(super) fn take_answer(&mut self, lane_index: usize, offset: u64, rejection: Option<Rejection>) {
        match rejection {
            None => self.replay.sent += 1,
            // Central has settled this event before: no dead letter is written.
            Some(Rejection::Permanent(..) | Rejection::Unclear(..)) => self.fail(),
            Some(Rejection::Temporary(code, why)) => {
                tracing::debug!(
                    replay = self.replay.id,
                    code,
                    why,
                    "central rejected an event of a replay temporarily, will retry"
                );
                self.refuse(lane_index, offset);
            }
        }
    }

    /// Counts an event that is not sent again.
    pub(super) fn fail(&mut self) {
        self.replay.failed += 1;
    }

    fn refuse(&mut self, lane_index: usize, offset: u64) {
        self.refused.insert((lane_index, offset));
        self.refused_until = clock::instant() + REFUSED_PAUSE;
    }

    /// Whether every event was sent and none has to be sent again.
    fn is_complete(&self) -> bool {
        self.lane >= self.replay.lanes.len() && self.refused.is_empty()
    }

    /// Whether the progress is to be saved now; `is_idle`: nothing is in flight.
    pub(super) fn is_save_due(&self, is_idle: bool) -> bool {
        (self.is_complete() && is_idle) || clock::instant().duration_since(self.saved_at) >= SAVE_EVERY
    }

    /// Returns the replay with the progress to save, and whether it is done. `in_flight` has index of the lane and offset
    /// of its events in flight; `is_idle`: nothing at all is.
    pub(super) fn progress(&mut self, in_flight: impl Iterator<Item = (usize, u64)>, is_idle: bool) -> (Replay, bool) {
        self.saved_at = clock::instant();
        let mut replay = self.replay.clone();
        let mut lowest: BTreeMap<usize, u64> = BTreeMap::new();
        for (lane_index, offset) in in_flight.chain(self.refused.iter().copied()) {
            let known = lowest.entry(lane_index).or_insert(offset);
            *known = (*known).min(offset);
        }
        for (lane_index, (_, next, end)) in replay.lanes.iter_mut().enumerate() {
            let reached = match lane_index.cmp(&self.lane) {
                std::cmp::Ordering::Less => *end,
                std::cmp::Ordering::Equal => self.next,
                std::cmp::Ordering::Greater => *next,
            };
            *next = lowest.get(&lane_index).copied().unwrap_or(reached);
        }
        let is_done = self.is_complete() && is_idle;
        if is_done {
            replay.state = ReplayState::Done;
            tracing::info!(replay = replay.id, destination = %replay.destination, sent = replay.sent, failed = replay.failed, "replay completed");
        }
        (replay, is_done)
    }

    fn start_lane(&mut self, journal: &Journal, lane: usize) {
        self.lane = lane;
        self.block = None;
        let Some((name, next, _)) = self.replay.lanes.get(lane) else { return };
        self.next = *next;
        let known = journal.lane(name).and_then(|lane| lane.settled(&self.replay.destination));
        self.settled = known.unwrap_or_default();
    }

    /// Reads the block at `next`; returns `false` if the disk fails.
    async fn read(&mut self, lane: &Arc<Lane>) -> bool {
        let (ours, next) = (Arc::clone(lane), self.next);
        match spawn_blocking(move || ours.read_at(next)).await {
            Ok(Ok(ReadResult::Block(block))) => self.block = Some(BlockReader::new(block)),
            Ok(Ok(ReadResult::Lost { to })) => self.next = to.max(next + 1),
            Ok(Err(error)) => {
                tracing::warn!(lane = %lane.name, %error, "cannot read events of a replay from the journal, will retry");
                return false;
            }
            Err(_) => return false,
        }
        true
    }
}
