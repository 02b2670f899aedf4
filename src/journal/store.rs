//! The lowest storey of the journal: the files, and the formats of what they hold.
//!
//! Promise: what is read is exactly what was written; anything else is an error.
//! Invariant: nothing here knows a lane, a writer or a reader.

pub(super) mod block;
pub(super) mod cursor;
pub mod disk;
pub(super) mod error;
pub(super) mod fingerprint;
mod overlay;
pub(super) mod segment;
pub(super) mod segment_cache;
pub(super) mod state;
