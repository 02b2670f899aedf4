//! Where the writer of a lane stands: the next numbers, and the segment that it writes.

use crate::journal::store::fingerprint::Fingerprint;
use crate::journal::store::segment::{Segment, StreamPart, Summary};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Next number to assign, and the end of the reserved ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReservedNumbers {
    pub next: u64,
    pub reserved: u64,
}

/// State of the log when its writer starts.
#[derive(Debug)]
pub(super) struct Position {
    pub offsets: ReservedNumbers,
    /// By stream number.
    pub sequences: BTreeMap<u32, ReservedNumbers>,
    /// Segment that the writer continues.
    pub active: Option<Active>,
    /// Destinations that were dropped and whose cursors are still in the log.
    pub dropped: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Active {
    pub segment: Arc<Segment>,
    pub summary: Summary,
    pub bytes: u64,
    pub fingerprints: Vec<Fingerprint>,
    pub parts: BTreeMap<u32, StreamPart>,
    pub begun: Instant,
}
