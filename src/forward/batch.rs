//! Batches: many events of one stream in one publish.
//!
//! Promise: a batch holds one stream, in order, as the JSON array of what each event is alone; whoever
//! takes it apart has the same bytes.

use super::pace::{Batch, Compression};
use crate::contract::{Renderer, Rendering};
use crate::event::{Record, Timestamp};
use crate::link::Protocol;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Media type of a batch.
pub const BATCH: &str = "application/cloudevents-batch+json";
/// Media type of a compressed batch.
pub const BATCH_ZSTD: &str = "application/cloudevents-batch+json+zstd";
/// What surrounds the payload in a publish: topic, content type, properties.
const SURROUNDINGS_BYTES: usize = 2048;

/// A batch that gathers.
#[derive(Debug)]
pub(super) struct Gathering {
    pub stream: u32,
    pub offsets: Vec<u64>,
    pub topic: Vec<u8>,
    pub is_backfill: bool,
    /// When the first of its events was taken.
    pub recorded: Timestamp,
    payload: Vec<u8>,
    since: Instant,
}

/// The batches that gather, one for each stream.
#[derive(Debug, Default)]
pub(super) struct Gatherings {
    list: Vec<Gathering>,
    /// Those that are to leave, the first in front.
    ready: VecDeque<Gathering>,
    /// Events in a batch for now: fewer after central has refused one.
    cap: Option<usize>,
}

impl Gatherings {
    pub fn clear(&mut self) {
        self.list.clear();
        self.ready.clear();
    }

    /// The next batch that is to leave.
    pub fn pop_ready(&mut self) -> Option<Gathering> {
        self.ready.pop_front()
    }

    /// Events in a batch at most.
    fn cap(&self, batch: &Batch) -> usize {
        self.cap.unwrap_or(batch.events).min(batch.events).max(1)
    }

    /// After a refusal of a batch of so many: the next ones are half as large, until the poison is alone.
    pub fn halve(&mut self, events: usize) {
        self.cap = Some((events / 2).max(1));
    }

    /// After a batch was taken: larger ones again.
    pub fn relax(&mut self) {
        self.cap = self.cap.map(|cap| cap.saturating_mul(2));
    }

    /// Adds an event, and makes ready what has to leave before and because of it.
    pub fn add(
        &mut self,
        batch: &Batch,
        packet_bytes_max: usize,
        (renderer, stream): (&Renderer, u32),
        (record, sequence, recorded): (&Record<'_>, u64, Timestamp),
        (offset, is_backfill, now): (u64, bool, Instant),
        scratch: &mut Rendering,
    ) {
        scratch.payload.clear();
        renderer.render_structured(record, sequence, recorded, &mut scratch.payload);
        let event = &scratch.payload;
        let bytes_max = (batch.bytes.0 as usize).min(packet_bytes_max.saturating_sub(SURROUNDINGS_BYTES));
        let found = self.list.iter().position(|known| known.stream == stream);
        let fits =
            |known: &Gathering| known.payload.len() + event.len() + 2 <= bytes_max && known.is_backfill == is_backfill;
        let index = match found {
            Some(index) if fits(&self.list[index]) => index,
            other => {
                self.ready.extend(other.map(|index| self.list.swap_remove(index)));
                let mut topic = Vec::new();
                renderer.push_batch_topic(record, &mut topic);
                self.list.push(Gathering {
                    stream,
                    offsets: Vec::new(),
                    topic,
                    is_backfill,
                    recorded,
                    payload: Vec::with_capacity(event.len() * 8),
                    since: now,
                });
                self.list.len() - 1
            }
        };
        let cap = self.cap(batch);
        let gathering = &mut self.list[index];
        gathering.payload.push(if gathering.offsets.is_empty() { b'[' } else { b',' });
        gathering.payload.extend_from_slice(event);
        gathering.offsets.push(offset);
        if gathering.offsets.len() >= cap || gathering.payload.len() + 1 >= bytes_max {
            self.ready.push_back(self.list.swap_remove(index));
        }
    }

    /// Makes the batches ready whose first event has waited long enough.
    pub fn ready_aged(&mut self, batch: &Batch, now: Instant) {
        let is_due = |known: &Gathering| now.saturating_duration_since(known.since) >= batch.age.0;
        while let Some(index) = self.list.iter().position(is_due) {
            self.ready.push_back(self.list.swap_remove(index));
        }
    }

    /// How long until the next batch has waited long enough.
    pub fn wait(&self, batch: &Batch, now: Instant) -> Option<Duration> {
        let wait = |known: &Gathering| (known.since + batch.age.0).saturating_duration_since(now);
        self.list.iter().map(wait).min()
    }
}

impl Gathering {
    /// The payload, and its media type.
    pub fn finish(&mut self, compression: Compression, protocol: Protocol) -> (Vec<u8>, &'static str) {
        let mut payload = std::mem::take(&mut self.payload);
        payload.push(b']');
        // MQTT 3.1.1 has no content type that could say so.
        if compression == Compression::Zstd
            && protocol == Protocol::V5
            && let Ok(packed) = zstd::bulk::compress(&payload, ZSTD_LEVEL)
        {
            return (packed, BATCH_ZSTD);
        }
        (payload, BATCH)
    }
}

/// zstd level 1, as in the journal: level 3 takes twice the time for a few per cent.
const ZSTD_LEVEL: i32 = 1;
