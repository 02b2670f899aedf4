//! The publishes in flight on one connection: consecutive packet ids, acknowledged in any order.

use crate::event::Timestamp;
use std::collections::VecDeque;
use std::time::Instant;

/// Number of packet ids: they run from 1 to 65,535, then start at 1 again.
const IDS: u32 = 65_535;

/// The publishes that central has not acknowledged or rejected.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    /// In sending order, with the size in bytes; `None` for an answered publish behind an unanswered one.
    sent: VecDeque<Option<(T, u32)>>,
    /// Packet id of the first element of `sent`.
    first_id: u32,
    unanswered: usize,
    /// Size of the unanswered publishes.
    bytes: u64,
}

/// One publish of a lane in flight.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Publish {
    /// Offset of its event, or of the first event of a batch.
    pub offset: u64,
    /// Offsets of the other events of a batch.
    pub other_offsets: Vec<u64>,
    pub is_batch: bool,
    pub is_backfill: bool,
    pub stream: u32,
    /// Sequences of its first and last event.
    pub sequences: (u64, u64),
    /// Key of its order (see `key_order`).
    pub key: u64,
    /// Its key counts as in flight.
    pub is_counted: bool,
    pub sent_at: Instant,
    /// When the gateway accepted its event, or the oldest event of a batch.
    pub recorded: Timestamp,
    pub refusals: Refusals,
    /// A later event of its key was accepted before it.
    pub is_overtaken: bool,
}

/// Refusals for now of a publish: their number, and the time of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Refusals {
    pub count: u32,
    pub since: Option<Instant>,
}

impl Publish {
    /// A publish of one event.
    pub(super) fn new(offset: u64, stream: u32, sent_at: Instant, recorded: Timestamp) -> Self {
        Self {
            offset,
            other_offsets: Vec::new(),
            is_batch: false,
            is_backfill: false,
            stream,
            sequences: (0, 0),
            key: 0,
            is_counted: false,
            sent_at,
            recorded,
            refusals: Refusals::default(),
            is_overtaken: false,
        }
    }

    /// A batch of at least one event.
    pub(super) fn batch(mut offsets: Vec<u64>, stream: u32, sent_at: Instant, recorded: Timestamp) -> Self {
        let offset = if offsets.is_empty() { 0 } else { offsets.remove(0) };
        Self { other_offsets: offsets, is_batch: true, ..Self::new(offset, stream, sent_at, recorded) }
    }

    /// Returns the offsets of all its events.
    pub(super) fn offsets(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.offset).chain(self.other_offsets.iter().copied())
    }

    pub(super) fn count(&self) -> usize {
        1 + self.other_offsets.len()
    }

    /// Divides a batch of several events in two; the first half has the lower offsets.
    pub(super) fn halves(mut self) -> (Self, Self) {
        let others = self.other_offsets.split_off(self.count() / 2 - 1);
        let second = Self { offset: others[0], other_offsets: others[1..].to_vec(), ..self.clone() };
        (self, second)
    }
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { sent: VecDeque::new(), first_id: 1, unanswered: 0, bytes: 0 }
    }
}

impl<T> InFlight<T> {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unanswered == 0
    }

    pub(super) fn count(&self) -> usize {
        self.unanswered
    }

    /// Whether another publish fits. An id that was answered out of order stays reserved until all ids before it are
    /// answered: no id is in use twice.
    pub(super) fn has_room(&self, window: usize) -> bool {
        self.unanswered < window && self.sent.len() < IDS as usize - 1
    }

    /// The packet id of the next publish.
    pub(super) fn next_id(&self) -> u16 {
        let id = (self.first_id - 1 + self.sent.len() as u32) % IDS + 1;
        id as u16
    }

    pub(super) fn push(&mut self, sent: T, bytes: usize) {
        // MQTT packets have less than 256 MiB.
        self.sent.push_back(Some((sent, bytes as u32)));
        self.unanswered += 1;
        self.bytes += bytes as u64;
    }

    /// Size of all publishes in flight.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Size of the first unanswered publish.
    pub(super) fn first_bytes(&self) -> u64 {
        self.sent.front().and_then(Option::as_ref).map_or(0, |(_, bytes)| u64::from(*bytes))
    }

    /// Removes and returns the publish with this packet id, and its size; `None` if it is not in flight.
    pub(super) fn take(&mut self, id: u16) -> Option<(T, usize)> {
        let index = (u32::from(id) + IDS - self.first_id) % IDS;
        let (sent, bytes) = self.sent.get_mut(index as usize)?.take()?;
        self.unanswered -= 1;
        self.bytes -= u64::from(bytes);
        while matches!(self.sent.front(), Some(None)) {
            self.sent.pop_front();
            self.first_id = self.first_id % IDS + 1;
        }
        Some((sent, bytes as usize))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.sent.iter_mut().flatten().map(|(sent, _)| sent)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.sent.iter().flatten().map(|(sent, _)| sent)
    }
}

impl InFlight<Publish> {
    /// Iterates over the publishes with their sizes in bytes.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (&Publish, usize)> {
        self.sent.iter().flatten().map(|(sent, bytes)| (sent, *bytes as usize))
    }

    /// Returns the lowest offset in flight.
    pub(super) fn lowest(&self) -> Option<u64> {
        self.iter().map(|sent| sent.offset).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_answer_finds_its_event_whatever_the_order(picks in proptest::collection::vec(0usize..50, 1..3000), window in 1usize..60) {
            let mut flight = InFlight { first_id: IDS - 20, ..InFlight::default() };
            let mut open: Vec<(u16, u64)> = Vec::new();
            let mut offset = 0;
            for pick in picks {
                while flight.has_room(window) {
                    let id = flight.next_id();
                    prop_assert!(id != 0 && open.iter().all(|(used, _)| *used != id));
                    flight.push(Publish::new(offset, 0, Instant::now(), Timestamp(0)), offset as usize + 1);
                    open.push((id, offset));
                    offset += 1;
                }
                let (id, expected) = open.remove(pick % open.len());
                let taken = flight.take(id).map(|(sent, bytes)| (sent.offset, bytes));
                prop_assert_eq!(taken, Some((expected, expected as usize + 1)));
                prop_assert_eq!(flight.take(id), None);
                prop_assert_eq!(flight.bytes(), open.iter().map(|(_, offset)| offset + 1).sum::<u64>());
                prop_assert_eq!(flight.lowest(), open.iter().map(|(_, offset)| *offset).min());
            }
        }
    }

    #[test]
    fn a_batch_is_halved_until_each_event_is_alone() {
        let batch = Publish::batch((1..=7).collect(), 0, Instant::now(), Timestamp(0));
        let mut whole = vec![batch];
        let mut alone = Vec::new();
        while let Some(batch) = whole.pop() {
            if batch.count() == 1 {
                alone.push(batch.offset);
                continue;
            }
            let count = batch.count();
            let (first, second) = batch.halves();
            assert_eq!((first.count(), second.count()), (count / 2, count - count / 2));
            whole.extend([second, first]);
        }
        assert_eq!(alone, (1..=7).collect::<Vec<_>>());
    }
}
