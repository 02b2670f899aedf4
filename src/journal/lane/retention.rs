//! Retention: removes whole segments that no destination needs, and discards events only by a configured limit.
//!
//! Promise: a segment is removed after every destination has settled all of it, when its longest retention is over or its
//! lane needs the room; the oldest first. Events that a limit settles for a destination (`shed-oldest`, `hold`, an age)
//! are counted and announced.

use super::config::DEAD;
use super::handle::Lane;
use super::loss::EventFilter;
use crate::clock;
use crate::event::{Attribute, Record, Timestamp};
use crate::journal::store::cursor::Outcome;
use crate::journal::store::error::JournalError;
use parking_lot::MutexGuard;
use std::time::Duration;

/// Removes settled segments past their retention, or sooner if the lane exceeds its budget.
pub(super) fn remove_expired(lane: &Lane) {
    remove_settled_segments(lane, || lane.bytes() > lane.settings.load().budget);
}

/// Removes settled segments before their retention is over until `disk_reserve` is free again, whichever lane needs the
/// room. Dead letters are not reclaimed: they wait for an operator.
pub(super) fn reclaim(lane: &Lane) {
    let needs_room = || {
        let is_used_up = lane.core.is_disk_used_up(&lane.folder);
        if is_used_up {
            *lane.core.reclaimed_at.lock() = Some(clock::instant());
            tracing::info!(lane = %lane.name, "disk_reserve reached: removing delivered segments before their retention is over");
        }
        is_used_up
    };
    if lane.name != DEAD {
        remove_settled_segments(lane, needs_room);
    }
}

fn remove_settled_segments(lane: &Lane, needs_room: impl Fn() -> bool) {
    // Another thread already removes segments of this lane.
    let Some(_guard) = lane.retention_lock.try_lock() else { return };
    let is_open =
        |letter: u64, _: &Record<'_>| !lane.core.is_resolved.get().is_some_and(|resolved| (resolved.0)(letter));
    while let Some(oldest) = lane.oldest_closed() {
        if oldest.end > lane.settled_low() {
            return;
        }
        let is_over = clock::age(oldest.closed_at.into()) >= lane.core.retention_settled(lane);
        if !is_over && !needs_room() {
            return;
        }
        // Dead letters have no destination: unresolved ones are lost with their file.
        if lane.name == DEAD
            && let Err(error) = lane.discard_unsettled(
                "",
                &EventFilter { offsets: (oldest.first, oldest.end), takes: &is_open },
                Outcome::Expired,
            )
        {
            tracing::warn!(lane = %lane.name, %error, "could not account for expired dead letters; they stay, will retry");
            return;
        }
        if let Err(error) = lane.remove_segment(oldest.first) {
            tracing::warn!(lane = %lane.name, %error, "could not remove a settled segment; will retry");
            return;
        }
    }
}

/// Settles the oldest closed segment as shed for every destination that still needs it. Returns `false` if there is none.
pub(super) fn shed_oldest(lane: &Lane) -> Result<bool, JournalError> {
    let Some(oldest) = lane.oldest_closed() else { return Ok(false) };
    let whole_segment = EventFilter { offsets: (oldest.first, oldest.end), takes: &|_, _| true };
    let destinations = lane.destinations();
    if destinations.is_empty() {
        lane.discard_unsettled("", &whole_segment, Outcome::Shed)?;
        // Without a destination there is no cursor to settle it with.
        lane.remove_segment(oldest.first)?;
    }
    for destination in destinations {
        lane.discard_unsettled(&destination, &whole_segment, Outcome::Shed)?;
        lane.mark_lost(&destination, oldest.first, oldest.end);
    }
    Ok(true)
}

/// Sheds the oldest events of each destination whose backlog exceeds its `hold`. Returns `true` if cursors have moved.
pub(super) fn enforce_holds(lane: &Lane) -> Result<bool, JournalError> {
    let mut has_moved = false;
    for (destination, hold) in &lane.settings.load_full().holds {
        while let Some((from, to)) = lane.excess_over_hold(destination, *hold) {
            lane.discard_unsettled(
                destination,
                &EventFilter { offsets: (from, to), takes: &|_, _| true },
                Outcome::Shed,
            )?;
            lane.mark_lost(destination, from, to);
            has_moved = true;
        }
    }
    Ok(has_moved)
}

/// Progress of the age limits of one lane.
#[derive(Debug, Default)]
pub(super) struct Ages {
    scans: Vec<AgeScan>,
}

/// Progress of one age limit for one destination.
#[derive(Debug)]
struct AgeScan {
    destination: String,
    limit: u64,
    next: u64,
    at: Timestamp,
}

/// Largest number of blocks that one pass reads, to keep it short.
const BLOCKS_PER_PASS: usize = 200;
/// Passes per age limit, at intervals of a second to an hour: events that expire one after another are
/// announced together in few losses.
const PASSES_PER_LIMIT: u32 = 50;
const PASS_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

impl Lane {
    /// Settles events as expired that are older than their contract allows. `now` is a trusted
    /// wall-clock time. Blocks the thread.
    pub fn expire(&self, now: Timestamp) -> Result<(), JournalError> {
        for (limit, publications) in &self.core.age_limits(&self.name) {
            let every = (Duration::from_secs(*limit) / PASSES_PER_LIMIT).clamp(PASS_INTERVAL.0, PASS_INTERVAL.1);
            for destination in self.destinations() {
                // The lock is not held during reads: [`Lane::is_expired`] must not wait for the disk.
                let (next, at) = {
                    let mut ages = self.ages();
                    let scan = ages.of(&destination, *limit);
                    (scan.next, scan.at)
                };
                if now.since(at) < every && now >= at {
                    continue;
                }
                let low = self.settled(&destination).map_or(u64::MAX, |settled| settled.low);
                let from = next.max(low);
                let (to, is_cut) = self.older_than(from, now.before(Duration::from_secs(*limit)))?;
                if from < to {
                    // The age of an event is unknown if it was recorded with an untrusted clock.
                    let takes = |_: u64, record: &Record<'_>| {
                        publications.contains(&record.publication) && !has_untrusted_time(record)
                    };
                    self.discard_unsettled(
                        &destination,
                        &EventFilter { offsets: (from, to), takes: &takes },
                        Outcome::Expired,
                    )?;
                }
                let mut ages = self.ages();
                let scan = ages.of(&destination, *limit);
                scan.next = scan.next.max(to);
                if !is_cut {
                    scan.at = now;
                }
            }
        }
        Ok(())
    }

    fn ages(&self) -> MutexGuard<'_, Ages> {
        self.ages.lock()
    }

    /// Whether [`Lane::expire`] has settled the event at an offset for a destination, even if the caller
    /// read the cursor before that.
    pub fn is_expired(&self, destination: &str, limit: Option<u64>, offset: u64, record: &Record<'_>) -> bool {
        let Some(limit) = limit else { return false };
        let ages = self.ages();
        let mut scans = ages.scans.iter().filter(|known| known.limit == limit && known.destination == destination);
        scans.any(|known| offset < known.next) && !has_untrusted_time(record)
    }

    /// End of the blocks from an offset on that were recorded before a moment; the second value
    /// tells whether more may follow.
    fn older_than(&self, from: u64, before: Timestamp) -> Result<(u64, bool), JournalError> {
        let mut next = from;
        for _ in 0..BLOCKS_PER_PASS {
            if next >= self.end() {
                return Ok((next.min(self.end()), false));
            }
            match self.read_at(next)? {
                super::reader::ReadResult::Block(block) if block.header.recorded < before => next = block.end(),
                super::reader::ReadResult::Block(_) => return Ok((next, false)),
                super::reader::ReadResult::Lost { to } => next = to.max(next + 1),
            }
        }
        Ok((next, true))
    }
}

fn has_untrusted_time(record: &Record<'_>) -> bool {
    record.attributes.iter().any(|attribute| matches!(attribute, Attribute::ClockStatus(_)))
}

impl Ages {
    fn of(&mut self, destination: &str, limit: u64) -> &mut AgeScan {
        let index = self.scans.iter().position(|known| known.destination == destination && known.limit == limit);
        let index = index.unwrap_or_else(|| {
            self.scans.push(AgeScan { destination: destination.to_owned(), limit, next: 1, at: Timestamp(0) });
            self.scans.len() - 1
        });
        &mut self.scans[index]
    }
}
