//! Counters of a lane.

use crate::telemetry::{Counter, Histogram};
use parking_lot::Mutex;
use std::collections::HashMap;

#[derive(Debug, Default)]
pub struct LaneStats {
    /// Events that got a receipt, without repeats.
    pub accepted: Counter,
    /// Repeats: acknowledged and not stored again.
    pub duplicates: Counter,
    /// Events with an id that the device had used for another event.
    pub id_conflicts: Counter,
    /// Failed attempts to commit a batch.
    pub failed_commits: Counter,
    pub fsync: Histogram,
    repeats: Mutex<HashMap<String, u64>>,
}

/// Largest number of devices whose repeats are counted separately.
const REPEATING_DEVICES_MAX: usize = 4096;

impl LaneStats {
    pub(super) fn count_repeat(&self, origin: &str) {
        self.duplicates.add(1);
        let mut repeats = self.repeats.lock();
        if let Some(count) = repeats.get_mut(origin) {
            *count += 1;
        } else if repeats.len() < REPEATING_DEVICES_MAX {
            repeats.insert(origin.to_owned(), 1);
        }
    }

    /// Number of repeats from one device; `origin` is `{source}/{device}`.
    pub fn repeats_of(&self, origin: &str) -> u64 {
        self.repeats.lock().get(origin).copied().unwrap_or(0)
    }
}
