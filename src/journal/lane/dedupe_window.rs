//! The dedupe window: fingerprints of the newest events, bounded in memory.
//!
//! Promise: an event counts as a repeat only if its first copy is on disk.
//! Invariants:
//! - a fingerprint enters the window only with proof of a commit, or because a segment on disk holds it;
//! - the window never exceeds its memory; the oldest generation is dropped first;
//! - a lookup finds every fingerprint in the window: a repeat is missed only after its first copy was dropped.

use crate::event::Timestamp;
use crate::journal::store::fingerprint::{FINGERPRINT_BYTES, Fingerprint};
use crate::journal::store::segment::Synced;
use std::time::Duration;

/// Proof that an event with a fingerprint is on disk. Only the window issues it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DurableCopy(());

/// Result of a lookup in the dedupe window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DedupeResult {
    /// The window does not know the id.
    New,
    /// An event with the same fingerprint is on disk.
    Repeat(DurableCopy),
    /// The device used the id for another event: another stream, key or payload.
    Conflict,
}

/// Number of generations; the oldest quarter of the memory is dropped at once.
const GENERATIONS: usize = 4;

/// The dedupe window, as generations of hash tables.
#[derive(Debug)]
pub(crate) struct Window {
    /// Generations, newest last.
    generations: Vec<Generation>,
    slots: usize,
}

#[derive(Debug)]
struct Generation {
    slots: Slots,
    first: Timestamp,
    last: Timestamp,
}

impl Window {
    /// Creates a window of at most `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let slots = (bytes / GENERATIONS / FINGERPRINT_BYTES).max(1024);
        // The largest power of two that fits.
        Self { generations: Vec::new(), slots: 1 << slots.ilog2() }
    }

    /// Looks up an event. Generations that ended more than `reach` before `now` are ignored.
    pub(crate) fn find(&self, fingerprint: Fingerprint, now: Timestamp, reach: Duration) -> DedupeResult {
        let mut seen = DedupeResult::New;
        for generation in self.generations.iter().rev() {
            if now.since(generation.last) > reach {
                break;
            }
            match generation.slots.find(fingerprint) {
                Match::Same => return DedupeResult::Repeat(DurableCopy(())),
                Match::SameId => seen = DedupeResult::Conflict,
                Match::None => {}
            }
        }
        seen
    }

    /// Adds the fingerprints of events that a commit has written.
    pub(crate) fn admit(&mut self, fingerprints: &[Fingerprint], at: Timestamp, _proof: &Synced) {
        fingerprints.iter().for_each(|fingerprint| self.insert(*fingerprint, at));
    }

    /// Adds the fingerprints that a segment on disk held when the journal was opened.
    pub(crate) fn restore(&mut self, fingerprints: &[Fingerprint], at: Timestamp) {
        fingerprints.iter().for_each(|fingerprint| self.insert(*fingerprint, at));
    }

    /// Shifts the times of all generations by a change of the clock, so that their age stays right.
    pub(crate) fn shift(&mut self, micros: i64) {
        for generation in &mut self.generations {
            generation.first = Timestamp(generation.first.0.saturating_add(micros));
            generation.last = Timestamp(generation.last.0.saturating_add(micros));
        }
    }

    fn insert(&mut self, fingerprint: Fingerprint, at: Timestamp) {
        let full = self.generations.last().is_none_or(|newest| newest.slots.used * 4 >= self.slots * 3);
        if full {
            let recycled = (self.generations.len() == GENERATIONS).then(|| self.generations.remove(0));
            let mut slots = recycled.map_or_else(|| Slots::new(self.slots), |oldest| oldest.slots);
            slots.clear();
            self.generations.push(Generation { slots, first: at, last: at });
        }
        if let Some(newest) = self.generations.last_mut() {
            newest.slots.insert(fingerprint);
            newest.last = newest.last.max(at);
        }
    }

    /// Number of fingerprints that fit.
    pub(crate) fn capacity(&self) -> usize {
        GENERATIONS * self.slots * 3 / 4
    }

    /// Number of fingerprints in the window.
    pub(crate) fn held(&self) -> usize {
        self.generations.iter().map(|generation| generation.slots.used).sum()
    }

    /// Time since which the window is complete; `None` as long as nothing was dropped.
    pub(crate) fn reaches_back_to(&self) -> Option<Timestamp> {
        (self.generations.len() == GENERATIONS).then(|| self.generations[0].first)
    }
}

/// Result of a lookup in one hash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    None,
    /// The same id with other content.
    SameId,
    Same,
}

/// A hash table of fingerprints with open addressing; its size is a power of two, and it is never full.
#[derive(Debug, Default)]
struct Slots {
    slots: Box<[(u64, u64)]>,
    used: usize,
}

impl Slots {
    fn new(slots: usize) -> Self {
        Self { slots: vec![(0, 0); slots].into(), used: 0 }
    }

    fn clear(&mut self) {
        self.slots.fill((0, 0));
        self.used = 0;
    }

    fn find(&self, fingerprint: Fingerprint) -> Match {
        let mask = self.slots.len() - 1;
        let mut found = Match::None;
        let mut at = fingerprint.id as usize & mask;
        loop {
            match self.slots[at] {
                (0, _) => return found,
                (id, content) if id == fingerprint.id => {
                    if content == fingerprint.content {
                        return Match::Same;
                    }
                    found = Match::SameId;
                }
                _ => {}
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, fingerprint: Fingerprint) {
        let mask = self.slots.len() - 1;
        let mut at = fingerprint.id as usize & mask;
        while self.slots[at].0 != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = (fingerprint.id, fingerprint.content);
        self.used += 1;
    }
}

/// Result of a lookup in the current batch, for an event that is not in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchDedupeResult {
    /// The batch does not have the id.
    New,
    /// The same event is in the batch: one commit decides over both.
    Repeat,
    /// The batch has the id with another event.
    Conflict,
}

/// Fingerprints of the batch that is being encoded. They are not in the window yet: the batch is not on disk.
#[derive(Debug, Default)]
pub(crate) struct BatchFingerprints {
    slots: Slots,
}

impl BatchFingerprints {
    /// Empties the table and makes room for `events`.
    pub(crate) fn reset(&mut self, events: usize) {
        let wanted = (events * 2).max(16).next_power_of_two();
        // Memory of a burst is released: a table four times too large is replaced.
        if self.slots.slots.len() < wanted || self.slots.slots.len() > wanted * 4 {
            self.slots = Slots::new(wanted);
        } else if self.slots.used > 0 {
            self.slots.clear();
        }
    }

    /// Looks up an event and adds it unless it is a repeat. [`BatchFingerprints::reset`] sets how many can be added.
    pub(crate) fn admit(&mut self, fingerprint: Fingerprint) -> BatchDedupeResult {
        let seen = match self.slots.find(fingerprint) {
            Match::Same => return BatchDedupeResult::Repeat,
            Match::SameId => BatchDedupeResult::Conflict,
            Match::None => BatchDedupeResult::New,
        };
        self.slots.insert(fingerprint);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Content, Id, Record};
    use crate::journal::store::fingerprint::FingerprintKey;

    const DAY: Duration = Duration::from_secs(86_400);

    fn fingerprint(id: &str, payload: &str) -> Fingerprint {
        of(key(), "s/d", id, 1, "k", payload.as_bytes())
    }

    /// The fingerprint of an event with an id from its device.
    fn of(key: FingerprintKey, origin: &str, id: &str, stream: u32, event_key: &str, payload: &[u8]) -> Fingerprint {
        let record = Record {
            publication: 1,
            id: Id::Text(id),
            time: Timestamp(0),
            origin,
            key: event_key,
            content: Content::Bytes,
            attributes: vec![],
            payload,
        };
        key.fingerprint(&record, stream).expect("the id is from the device")
    }

    fn key() -> FingerprintKey {
        FingerprintKey::from_bytes([1; FingerprintKey::BYTES])
    }

    /// Looks up and restores, as opening a journal does with its segments.
    fn admit(window: &mut Window, fingerprint: Fingerprint, now: Timestamp) -> DedupeResult {
        let seen = window.find(fingerprint, now, DAY);
        if !matches!(seen, DedupeResult::Repeat(_)) {
            window.restore(&[fingerprint], now);
        }
        seen
    }

    const REPEAT: DedupeResult = DedupeResult::Repeat(DurableCopy(()));

    #[test]
    fn the_same_id_is_a_repeat_only_with_the_same_content() {
        let mut window = Window::new(1 << 20);
        let now = Timestamp(0);
        assert_eq!(admit(&mut window, fingerprint("1", "a"), now), DedupeResult::New);
        assert_eq!(admit(&mut window, fingerprint("1", "a"), now), REPEAT);
        assert_eq!(admit(&mut window, fingerprint("1", "b"), now), DedupeResult::Conflict);
        assert_eq!(admit(&mut window, fingerprint("1", "b"), now), REPEAT);
        assert_eq!(admit(&mut window, of(key(), "s/e", "1", 1, "k", b"a"), now), DedupeResult::New, "another device");
        assert_eq!(
            admit(&mut window, of(key(), "s/d", "1", 2, "k", b"a"), now),
            DedupeResult::Conflict,
            "another stream"
        );
        assert_eq!(admit(&mut window, of(key(), "s/d", "1", 1, "l", b"a"), now), DedupeResult::Conflict, "another key");
    }

    #[test]
    fn parts_of_an_event_that_join_to_the_same_bytes_are_told_apart() {
        assert_ne!(of(key(), "s/d", "1x", 1, "k", b"").id, of(key(), "s/d1", "x", 1, "k", b"").id);
        assert_ne!(of(key(), "s", "1", 1, "kp", b"").content, of(key(), "s", "1", 1, "k", b"p").content);
    }

    #[test]
    fn another_journal_has_other_fingerprints() {
        let other = FingerprintKey::from_bytes([7; FingerprintKey::BYTES]);
        let (one, two) = (fingerprint("1", "a"), of(other, "s/d", "1", 1, "k", b"a"));
        assert!(one.id != two.id && one.content != two.content);
    }

    #[test]
    fn within_a_batch_one_commit_decides_over_an_event_and_its_repeat() {
        let mut batch = BatchFingerprints::default();
        for round in 0..3 {
            batch.reset(3);
            assert_eq!(batch.admit(fingerprint("1", "a")), BatchDedupeResult::New, "round {round}");
            assert_eq!(batch.admit(fingerprint("1", "a")), BatchDedupeResult::Repeat);
            assert_eq!(batch.admit(fingerprint("1", "b")), BatchDedupeResult::Conflict);
        }
        batch.reset(100_000);
        batch.reset(1);
        assert_eq!(batch.admit(fingerprint("1", "a")), BatchDedupeResult::New);
    }

    #[test]
    fn the_oldest_leave_first_and_the_memory_is_bounded() {
        let mut window = Window::new(1 << 17);
        let capacity = window.capacity();
        for n in 0..capacity * 3 {
            assert_eq!(admit(&mut window, fingerprint(&n.to_string(), ""), Timestamp(n as i64)), DedupeResult::New);
            assert!(window.held() <= capacity);
        }
        let newest = (capacity * 3 - 1).to_string();
        assert_eq!(admit(&mut window, fingerprint(&newest, ""), Timestamp(0)), REPEAT);
        let reach = window.reaches_back_to().map(|at| at.0);
        assert!(reach.is_some_and(|at| at >= (capacity * 2) as i64 - 1), "{reach:?}");
    }

    #[test]
    fn a_repeat_is_one_also_where_the_clock_was_set_in_between() {
        let mut window = Window::new(1 << 20);
        admit(&mut window, fingerprint("1", "a"), Timestamp(0));
        let later = Timestamp(0).plus(DAY * 2);
        window.shift((DAY * 2).as_micros() as i64);
        assert_eq!(admit(&mut window, fingerprint("1", "a"), later), REPEAT);
    }

    #[test]
    fn beyond_its_reach_a_repeat_is_new() {
        let mut window = Window::new(1 << 20);
        admit(&mut window, fingerprint("1", "a"), Timestamp(0));
        let later = Timestamp(0).plus(DAY * 2);
        assert_eq!(admit(&mut window, fingerprint("1", "a"), later), DedupeResult::New);
    }
}
