//! The middle storey of the journal: lanes that accept, store, settle and retain events, and the journal that joins them.
//!
//! Promise: an event whose ticket became a receipt is on disk.

pub(super) mod age_scan;
pub(super) mod audit;
pub(super) mod batch_encoder;
pub(super) mod block_records;
pub(super) mod condition;
pub(super) mod config;
pub(super) mod core;
pub(super) mod damage;
pub(super) mod dedupe_window;
pub(super) mod dropped;
pub(super) mod expiry;
pub(super) mod gateway_events;
pub(super) mod group_commit;
pub(super) mod handle;
pub(super) mod heartbeat;
pub(super) mod high_water;
pub(super) mod journal;
pub(super) mod lane_stats;
pub(super) mod log;
pub(super) mod loss;
mod losses;
pub(super) mod marks;
pub(super) mod newest_segment;
pub(super) mod notes;
pub(super) mod open;
pub(super) mod planted_bugs;
pub(super) mod position;
pub(super) mod publications;
pub(super) mod reader;
pub(super) mod reconfigure;
pub(super) mod recovery;
pub(super) mod restored;
pub(super) mod retention;
pub(super) mod seal;
pub(super) mod segment_files;
pub(super) mod sequence_gaps;
pub(super) mod sequence_recovery;
#[cfg(test)]
pub(super) mod stepped;
pub(super) mod writer;
