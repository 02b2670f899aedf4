//! The order per key on one connection: which events wait for others of their key, and for how long.
//!
//! An event waits if its key has a publish in flight and the lane or its contract keeps one in flight per key, or if an
//! earlier event of its key waits. A refused event waits for its next attempt, in front of the later ones of its key.
//!
//! Promise: of one key, an event that was not sent yet is never sent before an earlier one.
//! Invariants:
//! - at most one publish of a key that has waiting events is begun at a time, in the order of the lane;
//! - what waits is bounded by [`KeyOrder::has_room`]: in events by the window, in bytes by [`HELD_BYTES_MAX`].
//!
//! Not here: what an answer means (`answers`), how fast a refused lane is sent (`throttle`).

use super::in_flight::Publish;
use super::keys::Key;
use super::outgoing::Outgoing;
use crate::contract::Order;
use crate::event::Timestamp;
use crate::journal::Published;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After a refusal for now, a lane keeps one publish per key in flight until this time has passed without another.
const STRICT_FOR: Duration = Duration::from_secs(60);
/// Bytes of events that were read and wait for an earlier one of their key. With more, the lane reads no further.
const HELD_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct KeyOrder {
    /// Until when the lane keeps one publish per key in flight, whatever its contracts say.
    strict_until: Option<Instant>,
    keys: HashMap<Key, KeyState>,
    /// The first waiting events of those keys that have nothing in flight, by offset.
    ready: BTreeSet<(u64, Key)>,
    /// The same of those whose pause is not over, by its end.
    paused: BTreeSet<(Instant, u64, Key)>,
    waiting: usize,
    held_bytes: usize,
}

#[derive(Debug, Default)]
struct KeyState {
    /// Publishes in flight that are counted here.
    in_flight: u32,
    /// By offset.
    waiting: BTreeMap<u64, Waiting>,
}

/// An event that waits, or a batch.
#[derive(Debug)]
pub(super) enum Waiting {
    /// Read, and not sent yet.
    Held(Key, Held),
    /// Refused by central, and sent again once the pause is over.
    Refused { publish: Publish, pause_until: Option<Instant> },
}

/// A copy of an event that was read; the journal has the original.
#[derive(Debug)]
pub(super) struct Held {
    pub offset: u64,
    pub record: Vec<u8>,
    pub published: Arc<Published>,
    pub sequence: u64,
    pub recorded: Timestamp,
    pub is_backfill: bool,
}

/// Events that may reach the consumers after later ones of their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OvertakenEvents {
    pub stream: u32,
    pub first: u64,
    pub last: u64,
    pub count: u64,
}

impl Waiting {
    fn place(&self) -> (u64, Key) {
        match self {
            Self::Held(key, held) => (held.offset, *key),
            Self::Refused { publish, .. } => (publish.offset, publish.key),
        }
    }

    fn held_bytes(&self) -> usize {
        if let Self::Held(_, held) = self { held.record.len() } else { 0 }
    }

    fn pause_until(&self) -> Option<Instant> {
        if let Self::Refused { pause_until, .. } = self { *pause_until } else { None }
    }
}

impl KeyOrder {
    /// Forgets what waits: it is read again. The lane stays in its mode.
    pub(super) fn clear(&mut self) {
        *self = Self { strict_until: self.strict_until, ..Self::default() };
    }

    /// Number of waiting events and batches.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns whether further events may be read with `in_flight` publishes in flight. The bound also bounds the ranges that
    /// the cursor has above its low mark.
    pub(super) fn has_room(&self, in_flight: usize, window: usize) -> bool {
        self.waiting == 0 || (self.waiting + in_flight < window && self.held_bytes < HELD_BYTES_MAX)
    }

    /// Begins or prolongs the time in which the lane keeps one publish per key in flight. Returns whether it began.
    pub(super) fn begin_strict<'p>(&mut self, now: Instant, in_flight: impl Iterator<Item = &'p mut Publish>) -> bool {
        let is_new = self.strict_until.replace(now + STRICT_FOR).is_none();
        if is_new {
            in_flight.for_each(|publish| self.count(publish));
        }
        is_new
    }

    /// Ends that time once it is over; returns whether it ended.
    pub(super) fn end_strict(&mut self, now: Instant) -> bool {
        self.strict_until.take_if(|until| now >= *until).is_some()
    }

    fn is_strict(&self, order: Order) -> bool {
        order == Order::Strict || self.strict_until.is_some()
    }

    /// Returns whether an event or batch that was not sent yet has to wait for another one of its key.
    #[inline]
    pub(super) fn must_wait(&self, key: Key, order: Order) -> bool {
        !self.keys.is_empty()
            && self
                .keys
                .get(&key)
                .is_some_and(|state| !state.waiting.is_empty() || (state.in_flight > 0 && self.is_strict(order)))
    }

    /// Counts a publish that is sent for the first time.
    #[inline]
    pub(super) fn sent(&mut self, publish: &mut Publish, order: Order) {
        if order != Order::None && self.is_strict(order) {
            self.count(publish);
        }
    }

    /// Counts a publish: its key is free again when it is answered.
    pub(super) fn count(&mut self, publish: &mut Publish) {
        if !publish.is_counted {
            publish.is_counted = true;
            self.keys.entry(publish.key).or_default().in_flight += 1;
        }
    }

    /// Frees the key of a publish that central has answered.
    #[inline]
    pub(super) fn answered(&mut self, publish: &mut Publish) {
        if std::mem::take(&mut publish.is_counted) {
            self.release(publish.key);
        }
    }

    /// Frees a key for which a publish was counted.
    pub(super) fn release(&mut self, key: Key) {
        if let Some(state) = self.keys.get_mut(&key) {
            state.in_flight = state.in_flight.saturating_sub(1);
            self.arm(key);
        }
    }

    /// Holds an event until it is first of its key and nothing of its key is in flight.
    pub(super) fn hold(&mut self, key: Key, event: &Outgoing<'_>) {
        let mut record = Vec::new();
        event.record.encode(&mut record);
        let (published, sequence, recorded) = (Arc::clone(event.published), event.sequence, event.recorded);
        let is_backfill = event.mark.is_some();
        self.put(Waiting::Held(key, Held { offset: event.offset, record, published, sequence, recorded, is_backfill }));
    }

    /// Keeps a refused event or batch for another attempt.
    pub(super) fn put_refused(&mut self, publish: Publish, pause_until: Option<Instant>) {
        self.put(Waiting::Refused { publish, pause_until });
    }

    fn put(&mut self, waiting: Waiting) {
        let (offset, key) = waiting.place();
        self.disarm(key);
        self.waiting += 1;
        self.held_bytes += waiting.held_bytes();
        self.keys.entry(key).or_default().waiting.insert(offset, waiting);
        self.arm(key);
    }

    /// Removes and returns what is sent next: of all that may be sent, the one with the lowest offset.
    pub(super) fn next(&mut self, now: Instant) -> Option<Waiting> {
        while let Some(&(until, offset, key)) = self.paused.first().filter(|(until, ..)| *until <= now) {
            self.paused.remove(&(until, offset, key));
            self.ready.insert((offset, key));
        }
        let (offset, key) = self.ready.pop_first()?;
        let waiting = self.keys.get_mut(&key)?.waiting.remove(&offset)?;
        self.waiting -= 1;
        self.held_bytes -= waiting.held_bytes();
        Some(waiting)
    }

    /// Continues with the next event of a key: the one that [`KeyOrder::next`] returned is not sent.
    pub(super) fn skip(&mut self, key: Key) {
        self.arm(key);
    }

    /// Time until the next pause ends.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        self.paused.first().map(|(until, ..)| until.saturating_duration_since(now))
    }

    /// Ends all pauses: central accepts events again.
    pub(super) fn end_pauses(&mut self) {
        let paused = std::mem::take(&mut self.paused);
        self.ready.extend(paused.into_iter().map(|(_, offset, key)| (offset, key)));
    }

    /// Returns the refused events that an accepted one has overtaken, each once.
    pub(super) fn overtaken_by(&mut self, accepted: &Publish) -> Vec<OvertakenEvents> {
        let Some(state) = self.keys.get_mut(&accepted.key) else { return Vec::new() };
        let mut found = Vec::new();
        for waiting in state.waiting.range_mut(..accepted.offset).map(|(_, waiting)| waiting) {
            if let Waiting::Refused { publish, .. } = waiting
                && !std::mem::replace(&mut publish.is_overtaken, true)
            {
                let (first, last) = publish.sequences;
                found.push(OvertakenEvents { stream: publish.stream, first, last, count: publish.count() as u64 });
            }
        }
        found
    }

    /// Makes the first waiting event of a key ready if nothing of the key is in flight; forgets a key without any.
    fn arm(&mut self, key: Key) {
        let Entry::Occupied(state) = self.keys.entry(key) else { return };
        if state.get().in_flight > 0 {
            return;
        }
        match state.get().waiting.first_key_value() {
            None => drop(state.remove()),
            Some((offset, first)) => match first.pause_until() {
                Some(until) => drop(self.paused.insert((until, *offset, key))),
                None => drop(self.ready.insert((*offset, key))),
            },
        }
    }

    /// Undoes [`KeyOrder::arm`].
    fn disarm(&mut self, key: Key) {
        let Some((offset, first)) = self.keys.get(&key).and_then(|state| state.waiting.first_key_value()) else {
            return;
        };
        self.ready.remove(&(*offset, key));
        if let Some(until) = first.pause_until() {
            self.paused.remove(&(until, *offset, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn publish(offset: u64, key: Key, now: Instant) -> Publish {
        Publish { key, sequences: (offset, offset), ..Publish::new(offset, 1, now, Timestamp(0)) }
    }

    proptest! {
        /// Events of five keys; answers come in any order, and some refuse.
        #[test]
        fn one_publish_per_key_is_in_flight_and_each_key_is_sent_in_order(
            keys in proptest::collection::vec(0u64..5, 1..200),
            picks in proptest::collection::vec((0usize..100, 0u8..4), 400..600),
        ) {
            let start = Instant::now();
            let mut order = KeyOrder::default();
            let (mut in_flight, mut read): (Vec<Publish>, usize) = (Vec::new(), 0);
            let mut accepted: BTreeMap<Key, Vec<u64>> = BTreeMap::new();
            let begin = |order: &mut KeyOrder, in_flight: &mut Vec<Publish>, read: &mut usize, now: Instant| {
                while let Some(waiting) = order.next(now) {
                    let Waiting::Refused { mut publish, .. } = waiting else { unreachable!("only these wait here") };
                    order.count(&mut publish);
                    in_flight.push(publish);
                }
                while *read < keys.len() && in_flight.len() < 8 && order.has_room(in_flight.len(), 20) {
                    let mut next = publish(*read as u64, keys[*read], start);
                    *read += 1;
                    if order.must_wait(next.key, Order::Strict) {
                        order.put_refused(next, None);
                    } else {
                        order.sent(&mut next, Order::Strict);
                        in_flight.push(next);
                    }
                }
            };
            let end = start + Duration::from_secs(1000);
            for (step, (pick, refusal)) in picks.iter().copied().chain((0..4000).map(|pick| (pick, 1))).enumerate() {
                let now = start + Duration::from_millis(step as u64);
                begin(&mut order, &mut in_flight, &mut read, now);
                for key in 0..5 {
                    prop_assert!(in_flight.iter().filter(|publish| publish.key == key).count() < 2, "one per key");
                }
                if in_flight.is_empty() {
                    order.end_pauses();
                    continue;
                }
                let index = pick % in_flight.len();
                let mut answered = in_flight.remove(index);
                order.answered(&mut answered);
                if refusal == 0 {
                    order.put_refused(answered, Some(now + Duration::from_millis(5)));
                } else {
                    prop_assert_eq!(order.overtaken_by(&answered), vec![], "nothing is overtaken");
                    accepted.entry(answered.key).or_default().push(answered.offset);
                }
            }
            prop_assert_eq!((read, order.waiting(), in_flight.len()), (keys.len(), 0, 0));
            prop_assert!(order.next(end).is_none() && order.keys.is_empty(), "nothing is kept of what is over");
            prop_assert_eq!(accepted.values().map(Vec::len).sum::<usize>(), keys.len());
            prop_assert!(accepted.values().all(|offsets| offsets.is_sorted()));
        }
    }

    #[test]
    fn what_is_overtaken_in_flight_is_named_once_and_then_nothing_more_is() {
        let now = Instant::now();
        let mut order = KeyOrder::default();
        let mut sent: Vec<Publish> = (1..=4).map(|offset| publish(offset, 7, now)).collect();
        sent.iter_mut().for_each(|publish| order.sent(publish, Order::Key));
        assert!(
            !order.must_wait(7, Order::Key) && order.keys.is_empty(),
            "nothing is tracked before the first refusal"
        );
        let mut refused = sent.remove(0);
        assert!(order.begin_strict(now, std::iter::once(&mut refused).chain(sent.iter_mut())));
        order.answered(&mut refused);
        order.put_refused(refused, None);
        assert!(order.next(now).is_none(), "three of its key are in flight");
        let mut found = Vec::new();
        for mut publish in sent {
            order.answered(&mut publish);
            found.extend(order.overtaken_by(&publish));
        }
        assert_eq!(found, [OvertakenEvents { stream: 1, first: 1, last: 1, count: 1 }]);
        assert!(order.must_wait(7, Order::Key), "the fifth waits for the first");
        let Some(Waiting::Refused { mut publish, .. }) = order.next(now) else { panic!("the first is due") };
        order.count(&mut publish);
        assert!(order.must_wait(7, Order::Key) && !order.must_wait(8, Order::Key));
        order.answered(&mut publish);
        assert!(!order.must_wait(7, Order::Key));
        assert!(!order.end_strict(now) && order.end_strict(now + STRICT_FOR), "after a minute without a refusal");
    }
}
