//! Changes of the configuration that apply to an open journal.
//!
//! Promise: the cursor of a known destination stays where it is.

use super::config::Config;
use super::journal::Journal;
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
