//! Batches: many events of one stream in one publish.
//!
//! Promise: a batch holds one stream, in order, as the JSON array of what each event is alone; whoever
//! takes it apart has the same bytes.

use super::pace::{Batch, Compression};
use crate::contract::Renderer;
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
    pub payload: Vec<u8>,
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
    /// The buffer of a batch that has left, for the next one.
    spare: Vec<u8>,
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
    ) {
        let bytes_max = (batch.bytes.0 as usize).min(packet_bytes_max.saturating_sub(SURROUNDINGS_BYTES));
        let cap = self.cap(batch);
        let found = self.list.iter().position(|known| known.stream == stream);
        let mut index = match found {
            Some(index) if self.list[index].is_backfill == is_backfill => index,
            other => {
                self.ready.extend(other.map(|index| self.list.swap_remove(index)));
                self.begin((renderer, stream), (record, recorded), is_backfill, now)
            }
        };
        let gathering = &mut self.list[index];
        let end = gathering.payload.len();
        gathering.payload.push(if end == 0 { b'[' } else { b',' });
        renderer.render_structured(record, sequence, recorded, &mut gathering.payload);
        if end > 0 && gathering.payload.len() + 1 > bytes_max {
            // It begins the next one.
            let event = gathering.payload.split_off(end + 1);
            gathering.payload.truncate(end);
            self.ready.push_back(self.list.swap_remove(index));
            index = self.begin((renderer, stream), (record, recorded), is_backfill, now);
            let payload = &mut self.list[index].payload;
            payload.push(b'[');
            payload.extend_from_slice(&event);
        }
        let gathering = &mut self.list[index];
        gathering.offsets.push(offset);
        if gathering.offsets.len() >= cap || gathering.payload.len() + 1 >= bytes_max {
            self.ready.push_back(self.list.swap_remove(index));
        }
    }

    /// An empty batch for what follows.
    fn begin(
        &mut self,
        (renderer, stream): (&Renderer, u32),
        (record, recorded): (&Record<'_>, Timestamp),
        is_backfill: bool,
        since: Instant,
    ) -> usize {
        let mut topic = Vec::new();
        renderer.push_batch_topic(record, &mut topic);
        let payload = std::mem::take(&mut self.spare);
        self.list.push(Gathering { stream, offsets: Vec::new(), topic, is_backfill, recorded, payload, since });
        self.list.len() - 1
    }

    /// Takes back the buffer of a batch that has left.
    pub fn give_back(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.spare = buffer;
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
    /// Ends it: its media type, and what it is compressed to; without that, `payload` is what is sent.
    pub fn finish(&mut self, compression: Compression, protocol: Protocol) -> (Option<Vec<u8>>, &'static str) {
        self.payload.push(b']');
        // MQTT 3.1.1 has no content type that could say so.
        if compression == Compression::Zstd
            && protocol == Protocol::V5
            && let Ok(packed) = zstd::bulk::compress(&self.payload, ZSTD_LEVEL)
        {
            return (Some(packed), BATCH_ZSTD);
        }
        (None, BATCH)
    }
}

/// zstd level 1, as in the journal: level 3 takes twice the time for a few per cent.
const ZSTD_LEVEL: i32 = 1;
