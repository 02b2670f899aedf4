//! What is in flight on one connection: packet ids in a row, answered in any order.

use crate::event::Timestamp;
use std::collections::VecDeque;
use std::time::Instant;

/// Packet ids run from 1 to 65,535 and round again.
const IDS: u32 = 65_535;

/// The publishes that central has not answered.
#[derive(Debug)]
pub(super) struct Flight {
    /// In the order they were sent; the answered in the middle are `None`.
    sent: VecDeque<Option<Sent>>,
    /// Packet id of the first of `sent`.
    first_id: u32,
    unanswered: usize,
}

/// One publish in flight.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sent {
    /// Its event, or the first of its events.
    pub offset: u64,
    /// The others, where it is a batch.
    pub rest: Vec<u64>,
    pub stream: u32,
    pub at: Instant,
    /// When its event, or the oldest of its events, was taken.
    pub recorded: Timestamp,
}

impl Sent {
    pub fn one(offset: u64, stream: u32, at: Instant, recorded: Timestamp) -> Self {
        Self { offset, rest: Vec::new(), stream, at, recorded }
    }

    /// A batch of at least one event.
    pub fn many(mut offsets: Vec<u64>, stream: u32, at: Instant, recorded: Timestamp) -> Self {
        let offset = if offsets.is_empty() { 0 } else { offsets.remove(0) };
        Self { offset, rest: offsets, stream, at, recorded }
    }

    /// Offsets of its events.
    pub fn offsets(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.offset).chain(self.rest.iter().copied())
    }

    /// How many events.
    pub fn count(&self) -> usize {
        1 + self.rest.len()
    }
}

impl Default for Flight {
    fn default() -> Self {
        Self { sent: VecDeque::new(), first_id: 1, unanswered: 0 }
    }
}

impl Flight {
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn is_empty(&self) -> bool {
        self.unanswered == 0
    }

    pub fn count(&self) -> usize {
        self.unanswered
    }

    /// Whether another publish fits. Ids that are answered out of order keep their place until the
    /// ones before are answered too, so that no id is ever in use twice.
    pub fn has_room(&self, window: usize) -> bool {
        self.unanswered < window && self.sent.len() < IDS as usize - 1
    }

    /// The packet id of the next publish.
    pub fn next_id(&self) -> u16 {
        let id = (self.first_id - 1 + self.sent.len() as u32) % IDS + 1;
        id as u16
    }

    pub fn push(&mut self, sent: Sent) {
        self.sent.push_back(Some(sent));
        self.unanswered += 1;
    }

    /// The publish that an answer is for; `None` if it is not in flight.
    pub fn answered(&mut self, id: u16) -> Option<Sent> {
        let index = (u32::from(id) + IDS - self.first_id) % IDS;
        let sent = self.sent.get_mut(index as usize)?.take()?;
        self.unanswered -= 1;
        while matches!(self.sent.front(), Some(None)) {
            self.sent.pop_front();
            self.first_id = self.first_id % IDS + 1;
        }
        Some(sent)
    }

    /// The lowest offset in flight.
    pub fn lowest(&self) -> Option<u64> {
        self.sent.iter().flatten().map(|sent| sent.offset).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_answer_finds_its_event_whatever_the_order(picks in proptest::collection::vec(0usize..50, 1..3000), window in 1usize..60) {
            let mut flight = Flight { first_id: IDS - 20, ..Flight::default() };
            let mut open: Vec<(u16, u64)> = Vec::new();
            let mut offset = 0;
            for pick in picks {
                while flight.has_room(window) {
                    let id = flight.next_id();
                    prop_assert!(id != 0 && open.iter().all(|(used, _)| *used != id));
                    flight.push(Sent::one(offset, 0, Instant::now(), Timestamp(0)));
                    open.push((id, offset));
                    offset += 1;
                }
                let (id, expected) = open.remove(pick % open.len());
                prop_assert_eq!(flight.answered(id).map(|sent| sent.offset), Some(expected));
                prop_assert_eq!(flight.answered(id), None);
                prop_assert_eq!(flight.lowest(), open.iter().map(|(_, offset)| *offset).min());
            }
        }
    }
}
