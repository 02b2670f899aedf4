//! Verification: counts the content of a journal block by block and compares it with cursors and accounts.
//!
//! Promise: every block's checksum is verified, every offset and sequence is accounted for, and the backlog of every
//! destination is counted event by event; each difference is reported.
//!
//! A lane is counted as it was at the beginning: events that come or go meanwhile do not matter.

use crate::api::{LaneRecount, OwedRecount, OwedStream, Recount, StateRecount, StreamRecount, VerifyProgress};
use crate::journal::lane::damage::Damage;
use crate::journal::lane::log::{LaneLog, ReadResult};
use crate::journal::store::block::Block;
use crate::journal::store::cursor::{Account, Cursor};
use crate::journal::store::error::JournalError;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Faults per lane that are described; further ones are only counted.
pub(crate) const FAULTS_SHOWN_MAX: usize = 100;
/// Blocks counted in one step.
const STEP_BLOCKS: usize = 64;
/// Tries to read the active segment after damage: the writer starts a new segment meanwhile.
const RETRIES_MAX: usize = 20;

pub struct Verification {
    lanes: Vec<LaneCount>,
    lane: usize,
    counted: VerifyProgress,
}

struct LaneCount {
    log: Arc<LaneLog>,
    cursors: Vec<Cursor>,
    /// Events above each cursor, by stream.
    above: Vec<BTreeMap<u32, u64>>,
    next: u64,
    end: u64,
    retries: usize,
    /// By stream: first and next sequence, number of events, and whether a hole precedes the next block.
    streams: BTreeMap<u32, StreamCount>,
    result: LaneRecount,
}

#[derive(Clone, Copy, Debug)]
struct StreamCount {
    first: u64,
    next: u64,
    events: u64,
    is_after_hole: bool,
}

impl std::fmt::Debug for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verification").field("counted", &self.counted).finish_non_exhaustive()
    }
}

impl Verification {
    /// Begins to count lanes in their current state.
    pub fn new(lanes: impl IntoIterator<Item = Arc<LaneLog>>) -> Self {
        let lanes: Vec<_> = lanes.into_iter().map(LaneCount::new).collect();
        let total = lanes.iter().map(|lane| lane.log.gaps().assigned_between(lane.next, lane.end)).sum();
        Self { lanes, lane: 0, counted: VerifyProgress { done: 0, total } }
    }

    pub fn counted(&self) -> VerifyProgress {
        self.counted
    }

    /// Counts some more blocks. Returns `false` at the end. Blocks the thread.
    pub fn step(&mut self) -> Result<bool, JournalError> {
        for _ in 0..STEP_BLOCKS {
            let Some(lane) = self.lanes.get_mut(self.lane) else { return Ok(false) };
            if lane.next >= lane.end {
                self.lane += 1;
                continue;
            }
            let before = lane.next;
            lane.count_next()?;
            self.counted.done += lane.log.gaps().assigned_between(before, lane.next);
        }
        Ok(true)
    }

    /// Ends the count; `state` is the result for the notes.
    pub fn finish(self, state: StateRecount) -> Recount {
        let lanes: Vec<_> = self.lanes.into_iter().map(LaneCount::finish).collect();
        let is_good = lanes.iter().all(|lane| lane.faults.is_empty()) && state.fault.is_none();
        Recount { lanes, state, is_good }
    }
}

impl LaneCount {
    fn new(log: Arc<LaneLog>) -> Self {
        // Read the cursors before the end: then everything settled is below the end.
        let cursors = log.cursors();
        let (next, end) = (log.first(), log.end());
        let result = LaneRecount { lane: log.name.clone(), first: next, end, ..LaneRecount::default() };
        let above = vec![BTreeMap::new(); cursors.len()];
        Self { log, cursors, above, next, end, retries: 0, streams: BTreeMap::new(), result }
    }

    fn fault(&mut self, fault: String) {
        if self.result.faults.len() < FAULTS_SHOWN_MAX {
            self.result.faults.push(fault);
        } else {
            self.result.faults_unnamed += 1;
        }
    }

    fn count_next(&mut self) -> Result<(), JournalError> {
        let at = self.log.gaps().skip_gap(self.next);
        if at > self.next {
            self.next = at.min(self.end);
            return Ok(());
        }
        match self.log.read_at(at) {
            Ok(ReadResult::Block(block)) => {
                if block.header.first > at {
                    self.hole(at, block.header.first.min(self.end));
                }
                if block.header.first < self.end {
                    self.count(&block);
                }
                self.next = block.end().max(at + 1).min(self.end);
            }
            Ok(ReadResult::Lost { to }) => {
                let to = to.clamp(at + 1, self.end);
                self.hole(at, to);
                self.next = to;
            }
            Err(error @ JournalError::Damaged { .. }) => {
                let to = self.log.next_file(at).clamp(at + 1, self.end);
                self.retries += 1;
                if self.log.end() > self.end && to == self.end && self.retries < RETRIES_MAX {
                    return Ok(());
                }
                self.fault(format!("{error}: offsets {at} to {} cannot be read", to - 1));
                self.after_hole();
                self.next = to;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Handles offsets that no block has.
    fn hole(&mut self, from: u64, to: u64) {
        let gaps = self.log.gaps();
        let (mut from, to) = (gaps.skip_gap(from), to);
        if from >= to {
            return;
        }
        self.after_hole();
        if self.log.first() >= to {
            // Retention removed the events meanwhile.
            self.result.first = self.result.first.max(to);
            return;
        }
        while from < to {
            let end = self.log.gaps().clip_at_gap(from, to);
            let aside = self.log.damaged().into_iter().find(|(first, _)| *first < end && *first + 1 > from);
            let what = format!("offsets {from} to {} are not there", end - 1);
            match aside {
                Some((_, why)) => self.result.notes.push(format!("{what}: {why}")),
                None => self.fault(what),
            }
            from = self.log.gaps().skip_gap(end).max(end);
        }
    }

    fn after_hole(&mut self) {
        self.streams.values_mut().for_each(|stream| stream.is_after_hole = true);
    }

    fn count(&mut self, block: &Block) {
        self.result.blocks += 1;
        self.result.events += u64::from(block.header.count);
        let records = block.records().count();
        if records != block.header.count as usize {
            self.fault(format!(
                "block at offset {}: {records} of {} records can be read",
                block.header.first, block.header.count
            ));
        }
        let in_runs: u64 = block.header.runs.iter().map(|run| u64::from(run.count)).sum();
        if in_runs != u64::from(block.header.count) {
            let (first, count) = (block.header.first, block.header.count);
            self.fault(format!("block at offset {first}: {in_runs} sequences for {count} events"));
        }
        for run in &block.header.runs {
            let first = run.first;
            let count = u64::from(run.count);
            let known = self.streams.entry(run.stream).or_insert(StreamCount {
                first,
                next: first,
                events: 0,
                is_after_hole: false,
            });
            let due = self.log.gaps().skip_sequence_gap(run.stream, known.next);
            let is_due = first == due || known.is_after_hole && first > known.next;
            let next = known.next;
            *known = StreamCount {
                first: known.first,
                next: first + count,
                events: known.events + count,
                is_after_hole: false,
            };
            if !is_due {
                let stream = self.log.stream_name(run.stream);
                self.fault(format!(
                    "stream {stream}: sequence {first} follows {} at offset {}",
                    next.saturating_sub(1),
                    block.header.first
                ));
            }
        }
        self.count_owed(block);
    }

    /// Counts the events of a block that lie above the cursors.
    fn count_owed(&mut self, block: &Block) {
        for (cursor, above) in self.cursors.iter().zip(&mut self.above) {
            if block.end() <= cursor.low {
                continue;
            }
            if let ([run], true) = (&*block.header.runs, cursor.ranges.is_empty() && block.header.first >= cursor.low) {
                *above.entry(run.stream).or_default() += u64::from(run.count);
                continue;
            }
            for (offset, record) in (block.header.first..).zip(block.records()) {
                if !cursor.contains(offset) {
                    let stream = self.log.published(record.publication).map_or(0, |published| published.stream);
                    *above.entry(stream).or_default() += 1;
                }
            }
        }
    }

    fn finish(mut self) -> LaneRecount {
        let gaps = self.log.gaps().clone();
        for (number, count) in &self.streams {
            let last = count.next - 1;
            let gap_below = |gap: &&(u32, u64, u64)| gap.0 == *number && gap.1 <= last;
            let in_gaps: u64 = gaps.sequences.iter().filter(gap_below).map(|gap| gap.2.min(count.next) - gap.1).sum();
            self.result.streams.push(StreamRecount {
                stream: self.log.stream_name(*number),
                number: *number,
                first: count.first,
                last,
                events: count.events,
                accepted: last - in_gaps,
            });
        }
        for (cursor, above) in std::mem::take(&mut self.cursors).iter().zip(std::mem::take(&mut self.above)) {
            let owed = self.owed(cursor, &above);
            self.result.destinations.push(owed);
        }
        for (_, damage) in self.log.damaged() {
            let why = damage.to_string();
            if self.result.notes.iter().chain(&self.result.faults).any(|known| known.contains(&why)) {
                continue;
            }
            match damage {
                Damage::Quarantined(_) => self.result.notes.push(why),
                Damage::Unreadable(_) => self.fault(why),
            }
        }
        self.result
    }

    fn owed(&mut self, cursor: &Cursor, above: &BTreeMap<u32, u64>) -> OwedRecount {
        let mut settled = cursor.clone();
        // As at a start: no destination is owed a number that no event has.
        self.log.gaps().offsets.iter().for_each(|(from, to)| settled.skip(*from, *to));
        let in_ranges: u64 = settled.ranges.iter().map(|(from, to)| self.end.min(*to).saturating_sub(*from)).sum();
        let queued = self.end.saturating_sub(settled.low).saturating_sub(in_ranges);
        let counted = above.values().sum();
        let to = &cursor.destination;
        if queued != counted {
            let word = if queued > counted { "more than" } else { "less than" };
            self.fault(format!(
                "destination {to}: its cursor says that {queued} events are queued, {word} the {counted} that are there"
            ));
        }
        let gaps = self.log.gaps().clone();
        // Events of a damaged file are counted without a stream: then the accounts of streams are incomplete.
        let hides_some = cursor.accounts.iter().any(|account| account.stream == 0 && account.settled() > 0);
        let mut streams = Vec::new();
        for stream in self.result.streams.clone() {
            let queued = above.get(&stream.number).copied().unwrap_or(0);
            let of_stream = cursor.accounts.iter().filter(|account| account.stream == stream.number);
            let in_accounts = of_stream.clone().map(Account::settled).sum();
            // Events older than the destination are in no account.
            let from = of_stream.map(|account| account.from).max().unwrap_or(1);
            let before = (from - 1).saturating_sub(gaps.sequences_between(stream.number, 1, from));
            let settled = stream.accepted.saturating_sub(queued);
            if in_accounts > settled {
                self.fault(format!(
                    "destination {to}, stream {}: {in_accounts} events are in its accounts, and {settled} are settled",
                    stream.stream
                ));
            }
            let in_none = settled.saturating_sub(in_accounts);
            if in_none > before && !hides_some {
                self.fault(format!(
                    "destination {to}, stream {}: {} events are settled and in no account",
                    stream.stream,
                    in_none - before
                ));
            }
            streams.push(OwedStream {
                stream: stream.stream,
                number: stream.number,
                queued,
                settled,
                in_accounts,
                in_none,
            });
        }
        OwedRecount { destination: to.clone(), queued, counted, streams }
    }
}
