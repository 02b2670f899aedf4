//! Expiry: settles events that are older than their contract allows.
//!
//! Promise: an expired event is counted and announced, and never sent afterwards.

use super::age_scan::Ages;
use super::handle::Lane;
use super::log::ReadResult;
use super::loss::EventFilter;
use crate::event::{Attribute, Record, Timestamp};
use crate::journal::store::cursor::Outcome;
use crate::journal::store::error::JournalError;
use parking_lot::MutexGuard;
use std::time::Duration;

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
        for (limit, publications) in &self.core.publications.read().age_limits(&self.name) {
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
                ReadResult::Block(block) if block.header.recorded < before => next = block.end(),
                ReadResult::Block(_) => return Ok((next, false)),
                ReadResult::Lost { to } => next = to.max(next + 1),
            }
        }
        Ok((next, true))
    }
}

fn has_untrusted_time(record: &Record<'_>) -> bool {
    record.attributes.iter().any(|attribute| matches!(attribute, Attribute::ClockStatus(_)))
}
