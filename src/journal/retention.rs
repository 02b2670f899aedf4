//! Retention: whole segments leave when nobody needs them any more, and sooner only by a declared limit.
//!
//! Promise: a segment leaves when every destination has settled all of it, and then when its
//! longest retention is over or its lane needs the room; the oldest first. What a limit settles
//! for a destination (`shed-oldest`, `hold`, an age) is counted and announced.

use super::cursor::Outcome;
use super::loss::EventFilter;
use super::{DEAD, JournalError, Lane};
use crate::clock;
use crate::event::{Attribute, Record, Timestamp};
use parking_lot::MutexGuard;
use std::time::Duration;

/// Removes what may go, be it for its lane's budget.
pub(super) fn remove_expired(lane: &Lane) {
    remove_settled_segments(lane, || lane.bytes() > lane.settings.load().budget);
}

/// Removes what is settled, however long it was to stay, until the file system has its reserve again; whichever
/// lane needs the room. Dead letters that wait for a person stay.
pub(super) fn reclaim(lane: &Lane) {
    let needs_room = || {
        let is_used_up = lane.core.is_disk_used_up(&lane.folder);
        if is_used_up {
            *lane.core.reclaimed_at.lock() = Some(clock::instant());
            tracing::info!(lane = %lane.name, "delivered events leave ahead of their time: the disk is down to disk_reserve");
        }
        is_used_up
    };
    if lane.name != DEAD {
        remove_settled_segments(lane, needs_room);
    }
}

fn remove_settled_segments(lane: &Lane, needs_room: impl Fn() -> bool) {
    // Whoever is at it already does the same.
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
        // Dead letters have no destination: what nobody has dealt with is lost with its file.
        if lane.name == DEAD
            && let Err(error) = lane.discard_unsettled(
                "",
                &EventFilter { offsets: (oldest.first, oldest.end), takes: &is_open },
                Outcome::Expired,
            )
        {
            tracing::warn!(lane = %lane.name, %error, "old dead letters could not be counted, and stay");
            return;
        }
        if let Err(error) = lane.remove_segment(oldest.first) {
            tracing::warn!(lane = %lane.name, %error, "a segment that is done could not be removed");
            return;
        }
    }
}

/// Settles the oldest closed segment as shed for everybody who still needs it. `false` if there is none.
pub(super) fn shed_oldest(lane: &Lane) -> Result<bool, JournalError> {
    let Some(oldest) = lane.oldest_closed() else { return Ok(false) };
    let whole_segment = EventFilter { offsets: (oldest.first, oldest.end), takes: &|_, _| true };
    let destinations = lane.destinations();
    if destinations.is_empty() {
        lane.discard_unsettled("", &whole_segment, Outcome::Shed)?;
        // There is no cursor that could say so.
        lane.remove_segment(oldest.first)?;
    }
    for destination in destinations {
        lane.discard_unsettled(&destination, &whole_segment, Outcome::Shed)?;
        lane.mark_lost(&destination, oldest.first, oldest.end);
    }
    Ok(true)
}

/// Sheds, for destinations that hold back more of the lane than they may, the oldest of what they need.
/// `true` if cursors have moved.
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

/// Ages of one lane: how far events were looked at for each limit.
#[derive(Debug, Default)]
pub(super) struct Ages {
    scan: Vec<AgeScan>,
}

/// How far the events of a lane were looked at for one destination and one limit.
#[derive(Debug)]
struct AgeScan {
    destination: String,
    limit: u64,
    next: u64,
    at: Timestamp,
}

/// Blocks looked at in one pass, so that a pass ends in a moment.
const BLOCKS_PER_PASS: usize = 200;
/// A limit is looked at this often in its time, and not more often than every second, nor more rarely than
/// every hour: what expires bit by bit is told in few words.
const PASSES_PER_LIMIT: u32 = 50;
const PASS_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

impl Lane {
    /// Settles as expired what is older than its contract lets it wait. `now` is a time of day that
    /// can be believed. Blocks the thread.
    pub fn expire(&self, now: Timestamp) -> Result<(), JournalError> {
        for (limit, publications) in &self.core.age_limits(&self.name) {
            let every = (Duration::from_secs(*limit) / PASSES_PER_LIMIT).clamp(PASS_INTERVAL.0, PASS_INTERVAL.1);
            for destination in self.destinations() {
                // Whoever asks whether an event is expired does not wait for the disk.
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
                    // What was recorded while nobody knew the time is of no known age.
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

    /// Whether [`Lane::expire`] has settled the event at an offset for a destination, which may have looked at its
    /// cursor before that.
    pub fn is_expired(&self, destination: &str, limit: Option<u64>, offset: u64, record: &Record<'_>) -> bool {
        let Some(limit) = limit else { return false };
        let ages = self.ages();
        let mut scan = ages.scan.iter().filter(|known| known.limit == limit && known.destination == destination);
        scan.any(|known| offset < known.next) && !has_untrusted_time(record)
    }

    /// The end of the blocks from an offset on that were recorded before a moment; the second value
    /// says whether there may be more.
    fn older_than(&self, from: u64, before: Timestamp) -> Result<(u64, bool), JournalError> {
        let mut next = from;
        for _ in 0..BLOCKS_PER_PASS {
            if next >= self.end() {
                return Ok((next.min(self.end()), false));
            }
            match self.read(next)? {
                super::Found::Block(block) if block.header.recorded < before => next = block.end(),
                super::Found::Block(_) => return Ok((next, false)),
                super::Found::Lost { to } => next = to.max(next + 1),
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
        let index = self.scan.iter().position(|known| known.destination == destination && known.limit == limit);
        let index = index.unwrap_or_else(|| {
            self.scan.push(AgeScan { destination: destination.to_owned(), limit, next: 1, at: Timestamp(0) });
            self.scan.len() - 1
        });
        &mut self.scan[index]
    }
}
