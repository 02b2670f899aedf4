//! Changes of the configuration that apply to an open journal.
//!
//! Promise: the cursor of a known destination stays where it is.

use super::config::{Config, Start};
use super::handle::Lane;
use super::journal::Journal;
use crate::journal::store::cursor::Cursor;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Journal {
    /// Applies budgets, lingers, limits and new destinations. Folder, lanes, dedupe memory and caches stay as they
    /// were when the journal was opened. May read from disk.
    pub fn change(&self, config: &Config) {
        self.core().reserve_bytes.store(config.reserve_bytes, Ordering::Relaxed);
        *self.core().dead_retention.lock() = config.dead_retention;
        for settings in config.lanes.iter().chain([&config.dead]) {
            let lanes = self.lanes().iter().chain([self.dead()]);
            for lane in lanes.filter(|lane| lane.name == settings.name) {
                lane.settings.store(Arc::new(settings.clone()));
            }
        }
        for lane in self.lanes() {
            for (destination, start) in &config.destinations {
                lane.add_destination(destination, *start);
            }
            // A lane that was full may have room now.
            lane.write_cursors_soon();
        }
    }
}

impl Lane {
    /// Adds a cursor for a destination. An existing cursor stays where it is.
    fn add_destination(&self, destination: &str, start: Start) {
        loop {
            let (first, sequences) = match start {
                Start::Oldest => {
                    let first = self.first();
                    (first, self.sequences_before(first))
                }
                Start::Now => (0, None),
            };
            let mut log = self.log();
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
}
