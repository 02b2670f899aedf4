//! Encodes a batch: drops repeats, assigns offsets and sequences, and packs the records into blocks.
//!
//! Promise: offsets and sequences rise without gaps. An event is dropped as a repeat only if its first copy is on disk or
//! in the same batch.

use super::dedupe_window::{BatchDedupeResult, BatchFingerprints, DedupeResult, DurableCopy};
use super::group_commit::{Batch, BatchEntry};
use super::handle::Lane;
use super::planted_bugs::{self, Bug};
use super::position::{Position, ReservedNumbers};
use crate::clock;
use crate::event::{Attribute, Id, Record, Timestamp};
use crate::journal::store::block::{Block, Compressor, Header, Run, append_record};
use crate::journal::store::fingerprint::Fingerprint;
use std::sync::Arc;

/// Size of a stored block: just below 60 KiB, since redb rounds a value up to a power of two of pages.
const BLOCK_BYTES: usize = 60 << 10;
/// Largest uncompressed size of a block, however well it compresses: a reader holds all of it in memory.
const BLOCK_PLAIN_MAX: usize = 256 << 10;

/// A batch encoded into blocks, with offsets and sequences assigned.
pub(super) struct EncodedBatch {
    pub blocks: Vec<Arc<Block>>,
    /// First offset and stored value of each block.
    pub values: Vec<(u64, Vec<u8>)>,
    pub fingerprints: Vec<Fingerprint>,
    /// One for each event that repeats an event on disk.
    pub copies: Vec<DurableCopy>,
    /// Offset after the last event.
    pub end: u64,
    pub batch: u64,
    /// Number of events, with repeats.
    pub entries: usize,
    /// Number of events to store.
    pub events: u64,
    pub recorded: Timestamp,
}

/// Encodes the batches of one writer, one after another.
pub(super) struct BatchEncoder {
    compressor: Compressor,
    /// Compression ratio of recent blocks: compressed by plain size.
    ratio: f64,
    /// Fingerprints of the current batch, and the result of the dedupe window for each of its events.
    batch_fingerprints: BatchFingerprints,
    dedupe_results: Vec<DedupeResult>,
}

impl Default for BatchEncoder {
    fn default() -> Self {
        Self {
            compressor: Compressor::default(),
            ratio: 0.5,
            batch_fingerprints: BatchFingerprints::default(),
            dedupe_results: Vec::new(),
        }
    }
}

impl BatchEncoder {
    pub(super) fn encode(&mut self, batch: &Batch, lane: &Lane, position: &mut Position) -> EncodedBatch {
        let now = Timestamp::from(clock::wall());
        self.find_repeats(batch, lane, now);
        let plain_max = ((BLOCK_BYTES as f64 / self.ratio * 0.96) as usize).clamp(BLOCK_BYTES, BLOCK_PLAIN_MAX);
        let first = position.offsets.next;
        let mut builder =
            BlockBuilder::new(lane, position, &mut self.batch_fingerprints, BlockSettings { now, plain_max });
        let mut start = 0;
        for (entry, result) in batch.entries.iter().zip(&self.dedupe_results) {
            let bytes = &batch.bytes[start..entry.end];
            start = entry.end;
            builder.take(entry, *result, bytes);
        }
        if builder.header.count > 0 {
            builder.cut();
        }
        let BlockBuilder { blocks, fingerprints, copies, next: end, .. } = builder;
        let values = self.compress(&blocks);
        if planted_bugs::has(Bug::AdmittedBeforeCommit) {
            lane.core.window().restore(&fingerprints, now);
        }
        let (batch, entries) = (batch.number, batch.entries.len());
        EncodedBatch { blocks, values, fingerprints, copies, end, batch, entries, events: end - first, recorded: now }
    }

    /// Looks up every event of a batch in the dedupe window, under one lock.
    fn find_repeats(&mut self, batch: &Batch, lane: &Lane, now: Timestamp) {
        self.batch_fingerprints.reset(batch.entries.len());
        self.dedupe_results.clear();
        let window = lane.core.window();
        self.dedupe_results.extend(batch.entries.iter().map(|entry| {
            entry.repeats.map_or(DedupeResult::New, |(fingerprint, reach)| window.find(fingerprint, now, reach))
        }));
    }

    /// Encodes the blocks, and learns from them how well the next ones will compress.
    fn compress(&mut self, blocks: &[Arc<Block>]) -> Vec<(u64, Vec<u8>)> {
        let mut values = Vec::with_capacity(blocks.len());
        let (mut plain, mut packed) = (0, 0);
        for block in blocks {
            let value = block.encode(&mut self.compressor);
            if block.bytes() > BLOCK_BYTES / 4 {
                plain += block.bytes();
                packed += value.len();
            }
            values.push((block.header.first, value));
        }
        if plain > 0 {
            let ratio = packed as f64 / plain as f64;
            self.ratio = (self.ratio * 0.8 + ratio * 0.2).clamp(0.05, 1.0);
        }
        values
    }

    /// Removes the cursors from the first block.
    pub(super) fn forget_cursors(&mut self, encoded: &mut EncodedBatch) {
        let (Some(block), Some((_, value))) = (encoded.blocks.first_mut(), encoded.values.first_mut()) else { return };
        if !block.header.settled.is_empty() {
            *block = Arc::new(block.without_cursors());
            *value = block.encode(&mut self.compressor);
        }
    }
}

/// Encodes the record again under a minted id; the id from the device becomes an attribute.
fn under_minted_id(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(mut record) = Record::decode(bytes) else { return false };
    if let Id::Text(original) = record.id {
        record.attributes.push(Attribute::OriginalId(original));
        record.id = Id::mint();
    }
    append_record(out, &record);
    true
}

/// What the blocks of a batch have in common.
#[derive(Clone, Copy)]
struct BlockSettings {
    now: Timestamp,
    /// Uncompressed size at which a block is full.
    plain_max: usize,
}

struct BlockBuilder<'e> {
    lane: &'e Lane,
    position: &'e mut Position,
    batch_fingerprints: &'e mut BatchFingerprints,
    settings: BlockSettings,
    next: u64,
    records: Vec<u8>,
    header: Header,
    blocks: Vec<Arc<Block>>,
    fingerprints: Vec<Fingerprint>,
    copies: Vec<DurableCopy>,
}

impl<'e> BlockBuilder<'e> {
    fn new(
        lane: &'e Lane,
        position: &'e mut Position,
        batch_fingerprints: &'e mut BatchFingerprints,
        settings: BlockSettings,
    ) -> Self {
        let next = position.offsets.next;
        Self {
            lane,
            position,
            batch_fingerprints,
            settings,
            next,
            records: Vec::new(),
            header: Header { first: next, recorded: settings.now, ..Header::default() },
            blocks: Vec::new(),
            fingerprints: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Adds an event with the result of the dedupe window; `bytes` are its record with the length prefix.
    fn take(&mut self, entry: &BatchEntry, result: DedupeResult, bytes: &[u8]) {
        let Some((fingerprint, _)) = entry.repeats else { return self.push(entry.publication, bytes) };
        if let DedupeResult::Repeat(copy) = result {
            self.copies.push(copy);
            return self.count_repeat(bytes);
        }
        match (self.batch_fingerprints.admit(fingerprint), result) {
            (BatchDedupeResult::Repeat, _) => return self.count_repeat(bytes),
            (BatchDedupeResult::New, DedupeResult::New) => self.push(entry.publication, bytes),
            _ => {
                self.lane.stats.id_conflicts.add(1);
                let mut changed = Vec::new();
                let is_changed = under_minted_id(&bytes[4..], &mut changed);
                self.push(entry.publication, if is_changed { &changed } else { bytes });
            }
        }
        self.fingerprints.push(fingerprint);
    }

    fn count_repeat(&self, bytes: &[u8]) {
        let origin = Record::decode(&bytes[4..]).map_or("", |record| record.origin);
        self.lane.stats.count_repeat(origin);
    }

    fn push(&mut self, publication: u32, record: &[u8]) {
        if !self.records.is_empty() && self.records.len() + record.len() > self.settings.plain_max {
            self.cut();
        }
        let stream = self.lane.core.stream_of(publication);
        let numbers = self.position.sequences.entry(stream).or_insert(ReservedNumbers { next: 1, reserved: 0 });
        match self.header.runs.iter_mut().find(|run| run.stream == stream) {
            Some(run) => run.count += 1,
            None => self.header.runs.push(Run { stream, first: numbers.next, count: 1 }),
        }
        numbers.next += 1;
        self.header.count += 1;
        self.next += 1;
        self.records.extend_from_slice(record);
    }

    fn cut(&mut self) {
        let next = Header { first: self.next, recorded: self.settings.now, ..Header::default() };
        let mut header = std::mem::replace(&mut self.header, next);
        if self.blocks.is_empty() {
            // Only with a block: a batch of repeats has none, and the cursors would count as written.
            header.settled = self.lane.take_cursors(false);
        }
        self.blocks.push(Arc::new(Block::new(header, &self.records)));
        self.records.clear();
    }
}
