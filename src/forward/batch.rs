//! Batches: many events of one stream in one publish.
//!
//! Promise: a batch is a JSON array of events of one stream, in order; each element has the same bytes as the event
//! published alone.

use super::outgoing::Outgoing;
use super::pace::{Batch, Compression};
use crate::contract::Order;
use crate::event::Timestamp;
use crate::link::Protocol;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Media type of an uncompressed batch: CloudEvents batched content mode.
pub const BATCH: &str = "application/cloudevents-batch+json";
/// Media type of a batch that is compressed with zstd.
pub const BATCH_ZSTD: &str = "application/cloudevents-batch+json+zstd";
/// Bytes of a publish that are reserved for topic, content type and properties.
const OVERHEAD_BYTES: usize = 2048;
/// Bytes that topic, content type and properties usually take.
const USUAL_OVERHEAD_BYTES: usize = 256;

/// A batch to which events are still added.
#[derive(Debug)]
pub(super) struct OpenBatch {
    pub stream: u32,
    pub order: Order,
    pub offsets: Vec<u64>,
    /// Sequences of the first and the last event.
    pub sequences: (u64, u64),
    pub topic: Vec<u8>,
    pub is_backfill: bool,
    /// When the gateway accepted the first event of the batch.
    pub recorded: Timestamp,
    pub payload: Vec<u8>,
    since: Instant,
}

/// Collects events into batches; at most one batch per stream is open.
#[derive(Debug, Default)]
pub(super) struct Batcher {
    list: Vec<OpenBatch>,
    /// Batches to send, in order.
    ready: VecDeque<OpenBatch>,
    /// Current limit of events per batch; lowered after central has rejected a batch.
    events_max: Option<usize>,
    /// The payload buffer of a sent batch, reused for the next one.
    spare: Vec<u8>,
}

impl Batcher {
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.ready.clear();
    }

    /// Removes and returns the first closed batch that may be sent.
    pub(super) fn pop_ready(&mut self, may_send: impl Fn(&OpenBatch) -> bool) -> Option<OpenBatch> {
        let index = self.ready.iter().position(may_send)?;
        self.ready.remove(index)
    }

    /// Number of closed batches.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Returns the largest number of events per batch.
    fn events_max(&self, batch: &Batch) -> usize {
        self.events_max.unwrap_or(batch.events).min(batch.events).max(1)
    }

    /// Halves the batch size after central rejected a batch of `events`, until the rejected event is alone in a batch.
    pub(super) fn halve_size(&mut self, events: usize) {
        self.events_max = Some((events / 2).max(1));
    }

    /// Doubles the batch size again after central acknowledged a batch.
    pub(super) fn double_size(&mut self) {
        self.events_max = self.events_max.map(|events_max| events_max.saturating_mul(2));
    }

    /// Returns whether a batch of the stream is not sent yet.
    pub(super) fn has(&self, stream: u32) -> bool {
        self.list.iter().chain(&self.ready).any(|batch| batch.stream == stream)
    }

    /// Closes the open batches that are due; returns whether there is one.
    pub(super) fn close(&mut self, is_due: impl Fn(&OpenBatch) -> bool) -> bool {
        let before = self.ready.len();
        while let Some(index) = self.list.iter().position(&is_due) {
            self.ready.push_back(self.list.swap_remove(index));
        }
        self.ready.len() > before
    }

    /// Adds an event. Moves a batch to `ready` if the event does not fit into it or makes it full. The broker takes
    /// `packet_bytes_max`; a publish of more than `line_bytes_max` would be a long wait for others on the line.
    pub(super) fn add(
        &mut self,
        batch: &Batch,
        (packet_bytes_max, line_bytes_max): (usize, usize),
        event: &Outgoing<'_>,
        begin: (Instant, Order),
    ) {
        let packet_max = packet_bytes_max.saturating_sub(OVERHEAD_BYTES);
        let bytes_max =
            (batch.bytes.0 as usize).min(packet_max).min(line_bytes_max.saturating_sub(USUAL_OVERHEAD_BYTES));
        let events_max = self.events_max(batch);
        let found = self.list.iter().position(|known| known.stream == event.published.stream);
        let mut index = match found {
            Some(index) if self.list[index].is_backfill == event.mark.is_some() => index,
            other => {
                self.ready.extend(other.map(|index| self.list.swap_remove(index)));
                self.open_batch(event, begin)
            }
        };
        let open = &mut self.list[index];
        let (end, last) = (open.payload.len(), open.sequences.1);
        open.push(event);
        if end > 0 && open.payload.len() + 1 > bytes_max {
            // The event exceeds the limit of this batch: it begins the next one.
            let rendered = open.payload.split_off(end + 1);
            open.pop(end, last);
            self.ready.push_back(self.list.swap_remove(index));
            index = self.open_batch(event, begin);
            let payload = &mut self.list[index].payload;
            payload.push(b'[');
            payload.extend_from_slice(&rendered);
            self.list[index].note(event);
        }
        let open = &mut self.list[index];
        if open.offsets.len() >= events_max || open.payload.len() + 1 >= bytes_max {
            self.ready.push_back(self.list.swap_remove(index));
        }
    }

    /// Opens an empty batch and returns its index.
    fn open_batch(&mut self, event: &Outgoing<'_>, begin: (Instant, Order)) -> usize {
        self.list.push(OpenBatch::new(event, begin, std::mem::take(&mut self.spare)));
        self.list.len() - 1
    }

    /// Returns the buffer of a sent batch for reuse.
    pub(super) fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.spare = buffer;
    }

    /// Moves the batches that have reached their age limit to `ready`.
    pub(super) fn close_aged(&mut self, batch: &Batch, now: Instant) {
        self.close(|known| now.saturating_duration_since(known.since) >= batch.age.0);
    }

    /// Time until the next open batch reaches its age limit.
    pub(super) fn due_in(&self, batch: &Batch, now: Instant) -> Option<Duration> {
        let due_in = |known: &OpenBatch| (known.since + batch.age.0).saturating_duration_since(now);
        self.list.iter().map(due_in).min()
    }
}

impl OpenBatch {
    /// An empty batch of the stream of an event, with an empty buffer.
    pub(super) fn new(event: &Outgoing<'_>, (since, order): (Instant, Order), payload: Vec<u8>) -> Self {
        let mut topic = Vec::new();
        event.published.renderer.push_batch_topic(&event.record, &mut topic);
        Self {
            stream: event.published.stream,
            order,
            offsets: Vec::new(),
            sequences: (event.sequence, event.sequence),
            topic,
            is_backfill: event.mark.is_some(),
            recorded: event.recorded,
            payload,
            since,
        }
    }

    /// Appends an event.
    pub(super) fn push(&mut self, event: &Outgoing<'_>) {
        self.payload.push(if self.payload.is_empty() { b'[' } else { b',' });
        event.published.renderer.render_structured(&event.record, event.sequence, event.recorded, &mut self.payload);
        self.note(event);
    }

    /// Notes an event whose bytes are in the payload.
    fn note(&mut self, event: &Outgoing<'_>) {
        self.offsets.push(event.offset);
        self.sequences.1 = event.sequence;
    }

    /// Removes the last of several events, which began behind `end` bytes of payload; `last` is the sequence before it.
    fn pop(&mut self, end: usize, last: u64) {
        self.payload.truncate(end);
        self.offsets.pop();
        self.sequences.1 = last;
    }

    /// Closes the batch. Returns the compressed payload, or `None` if `payload` is sent as it is, and the media type.
    pub(super) fn close(&mut self, compression: Compression, protocol: Protocol) -> (Option<Vec<u8>>, &'static str) {
        self.payload.push(b']');
        // MQTT 3.1.1 has no content type property that could announce the compression.
        if compression == Compression::Zstd
            && protocol == Protocol::V5
            && let Ok(packed) = zstd::bulk::compress(&self.payload, ZSTD_LEVEL)
        {
            return (Some(packed), BATCH_ZSTD);
        }
        (None, BATCH)
    }
}

/// zstd level, as in the journal: level 3 takes twice the time and saves a few per cent more.
const ZSTD_LEVEL: i32 = 1;
