//! The newest segment of a lane, as recovery and inspection read it: where it ends, and the cursors at its end.

use super::position::Active;
use crate::clock;
use crate::event::{Record, Timestamp};
use crate::journal::store::cursor::Cursor;
use crate::journal::store::error::JournalError;
use crate::journal::store::fingerprint::Fingerprint;
use crate::journal::store::segment::{FORMAT, Segment, StreamPart};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Time when a segment ended, and its fingerprints.
pub(super) type SegmentFingerprints = (Timestamp, Vec<Fingerprint>);

/// Computes the fingerprint of an event.
pub(in crate::journal) type FingerprintOf<'a> = dyn Fn(&Record<'_>) -> Option<Fingerprint> + 'a;

/// Content of the newest segment of a lane.
pub(in crate::journal) struct NewestSegment {
    /// Offset after its last event.
    pub next: u64,
    /// The next sequence of every stream.
    pub sequences: BTreeMap<u32, u64>,
    pub settled: Vec<Cursor>,
    /// The segment as its writer continues it, unless it is closed.
    pub(super) active: Option<Active>,
    /// Time of its end, and its fingerprints if they were asked for.
    pub(super) fingerprints: SegmentFingerprints,
}

impl Default for NewestSegment {
    /// What a lane without segments has.
    fn default() -> Self {
        let fingerprints = (Timestamp(0), Vec::new());
        Self { next: 1, sequences: BTreeMap::new(), settled: Vec::new(), active: None, fingerprints }
    }
}

impl NewestSegment {
    /// Reads a segment that begins at `first`. Without `fingerprint_of` no fingerprints are read.
    pub(in crate::journal) fn read(
        segment: Segment,
        first: u64,
        fingerprint_of: Option<&FingerprintOf<'_>>,
    ) -> Result<Self, JournalError> {
        let view = segment.view()?;
        let mut summary = view.summary()?;
        let mut sequences: BTreeMap<u32, u64> = summary.sequences.iter().copied().collect();
        let mut settled = summary.settled.clone();
        if let Some(closed) = &summary.closed {
            for part in &closed.streams {
                sequences.insert(part.stream, part.first + part.count);
            }
            let fingerprints = if fingerprint_of.is_some() { view.fingerprints()? } else { Vec::new() };
            let fingerprints = (closed.at, fingerprints);
            return Ok(Self { next: closed.end, sequences, settled, active: None, fingerprints });
        }
        let (mut next, mut bytes, mut recorded) = (first, 0, summary.begun);
        let mut fingerprints = Vec::new();
        let mut parts = BTreeMap::new();
        while let Some(block) = view.block_from(next)? {
            next = block.end();
            bytes += (block.bytes() as u64 / 2).next_power_of_two().max(4096);
            recorded = block.header.recorded;
            for run in &block.header.runs {
                sequences.insert(run.stream, run.first + u64::from(run.count));
                StreamPart::add(&mut parts, run, recorded);
            }
            block.header.settled.iter().for_each(|newer| Cursor::advance(&mut settled, newer));
            if let Some(fingerprint_of) = fingerprint_of {
                fingerprints.extend(block.records().filter_map(|record| fingerprint_of(&record)));
            }
        }
        drop(view);
        // From now on everything is written to it in this format, including the fingerprints at its end.
        summary.format = FORMAT;
        let begun = instant_of(summary.begun);
        let of_segment = (recorded, fingerprints.clone());
        let active = Some(Active { segment: Arc::new(segment), summary, bytes, fingerprints, parts, begun });
        Ok(Self { next, sequences, settled, active, fingerprints: of_segment })
    }
}

/// The instant at which the wall clock showed `begun`, as far as the clocks allow.
fn instant_of(begun: Timestamp) -> Instant {
    let elapsed = Timestamp::from(clock::wall()).since(begun);
    let now = clock::instant();
    now.checked_sub(elapsed).unwrap_or(now)
}
