//! The cursors of the destinations in a log.
//!
//! Promise: an event is settled once. A cursor in memory may be ahead of the one on disk, never behind.

use super::super::config::{DEAD, Start};
use super::LaneLog;
use crate::api::Backlog;
use crate::journal::store::cursor::{Account, Cursor, Outcome};
use crate::journal::store::segment::Segment;

impl LaneLog {
    pub(in crate::journal) fn cursors(&self) -> Vec<Cursor> {
        self.log.lock().settled.clone()
    }

    pub fn settled(&self, destination: &str) -> Option<Cursor> {
        self.log.lock().settled.iter().find(|settled| settled.destination == destination).cloned()
    }

    /// Returns the lowest unsettled offset of a destination.
    pub fn settled_below(&self, destination: &str) -> Option<u64> {
        self.log.lock().settled.iter().find(|settled| settled.destination == destination).map(|settled| settled.low)
    }

    /// Settles events for a destination. The writer stores the cursor with the next commit, or alone if the lane is idle.
    pub fn settle(&self, destination: &str, events: &[(u64, u32, Outcome)]) {
        self.change_settled(destination, |settled| {
            for &(offset, stream, outcome) in events {
                settled.settle(offset, stream, outcome);
            }
        });
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
            let log = self.log.lock();
            (log.segments.get(&offset).map(|part| part.path.clone()), log.active.clone())
        };
        let path = path?;
        let segment = match active.filter(|active| active.path() == path) {
            Some(active) => Ok(active),
            None => self.cache.open(&path),
        };
        let read = |segment: &Segment| segment.view().and_then(|view| view.summary());
        let summary = segment.and_then(|segment| read(&segment)).or_else(|_| {
            // A segment with a failed commit needs a repair, which a full disk does not allow.
            read(&Segment::open_without_repair(self.cache.disk(), &path, self.cache.cache_bytes())?)
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
            let log = self.log.lock();
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
            (self.stream_name(stream), account.unwrap_or_else(|| Account::new(stream, 1)), owed)
        };
        let rows =
            streams.into_iter().map(row).filter(|(_, account, owed)| *owed > 0 || account.settled() > 0).collect();
        (rows, unsettled)
    }

    /// Names of the destinations that have a cursor in this lane.
    pub fn destinations(&self) -> Vec<String> {
        self.log.lock().settled.iter().map(|settled| settled.destination.clone()).collect()
    }

    /// The unsettled part of the oldest segment, if the backlog of the destination exceeds `hold` bytes.
    pub(in crate::journal) fn excess_over_hold(&self, destination: &str, hold: u64) -> Option<(u64, u64)> {
        let log = self.log.lock();
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

    pub(in crate::journal) fn change_settled(&self, destination: &str, change: impl FnOnce(&mut Cursor)) {
        let mut log = self.log.lock();
        if let Some(settled) = log.settled.iter_mut().find(|settled| settled.destination == destination) {
            change(settled);
            log.is_settled_written = false;
        }
    }

    /// The cursors to write. Empty if none changed since the last call, unless `all`.
    pub(in crate::journal) fn take_cursors(&self, all: bool) -> Vec<Cursor> {
        let mut log = self.log.lock();
        if log.is_settled_written && !all {
            return Vec::new();
        }
        log.is_settled_written = true;
        log.settled.clone()
    }

    pub(in crate::journal) fn has_unwritten_cursors(&self) -> bool {
        !self.log.lock().is_settled_written
    }

    /// Lowest durable low mark of all destinations; 0 without destinations.
    pub(in crate::journal) fn settled_low(&self) -> u64 {
        if self.name == DEAD {
            return u64::MAX;
        }
        let log = self.log.lock();
        let lows = log.settled.iter().map(|settled| log.durable_low.get(&settled.destination).copied().unwrap_or(0));
        lows.min().unwrap_or(0)
    }

    /// Whether every destination has settled every event; `false` without destinations.
    pub(in crate::journal) fn is_all_settled(&self) -> bool {
        let log = self.log.lock();
        !log.settled.is_empty() && log.settled.iter().all(|settled| settled.low >= log.end)
    }

    pub(in crate::journal) fn set_durable_low(&self, settled: &[Cursor]) {
        let mut log = self.log.lock();
        for settled in settled {
            log.durable_low.insert(settled.destination.clone(), settled.low);
        }
    }

    /// Removes the cursor of a destination from memory; blocks of the active segment still hold it.
    pub(in crate::journal) fn remove_cursor(&self, destination: &str) {
        let mut log = self.log.lock();
        log.settled.retain(|settled| settled.destination != destination);
        log.durable_low.remove(destination);
        log.is_settled_written = false;
    }

    /// Adds a cursor for a destination. An existing cursor stays where it is.
    pub(in crate::journal) fn add_destination(&self, destination: &str, start: Start) {
        loop {
            let (first, sequences) = match start {
                Start::Oldest => {
                    let first = self.first();
                    (first, self.sequences_before(first))
                }
                Start::Now => (0, None),
            };
            let mut log = self.log.lock();
            if log.settled.iter().any(|known| known.destination == destination) {
                return;
            }
            let mut cursor = match start {
                Start::Now => Cursor::owed_from(destination, log.end, log.sequences.iter().copied()),
                Start::Oldest if log.segments.keys().next().copied().unwrap_or(log.end) == first => match sequences {
                    Some(sequences) => Cursor::owed_from(destination, first, sequences),
                    None => Cursor::owed_from_unknown(destination, first, self.gaps.assigned_between(1, first)),
                },
                // The oldest segment was removed meanwhile.
                Start::Oldest => continue,
            };
            self.gaps.offsets.iter().for_each(|(from, to)| cursor.skip(*from, *to));
            log.settled.push(cursor);
            log.is_settled_written = false;
            return;
        }
    }

    /// Backlog and account of each destination, for a log that ends at `end`.
    pub(in crate::journal) fn backlogs(&self, end: u64) -> Vec<Backlog> {
        let log = self.log.lock();
        let backlog = |settled: &Cursor| {
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
        };
        log.settled.iter().map(backlog).collect()
    }
}
