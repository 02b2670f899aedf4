//! The window in which repeats are recognised: hashes of the ids seen last, bounded in memory.
//!
//! Invariants:
//! - never more than the bytes it was given; the oldest generation goes first;
//! - what is in the window is found: a repeat is missed only when its first copy has left.

use std::time::Duration;

use crate::event::{Record, Timestamp};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Hashes of one event: of source, device and id, and of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of source, device and id; never 0.
    pub id: u64,
    /// Of what is stored of the payload.
    pub payload: u64,
}

/// Bytes a fingerprint takes, in memory and in a segment.
pub const FINGERPRINT_BYTES: usize = 16;

impl Fingerprint {
    /// The fingerprint of an event whose device gave it an id.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        match record.id {
            crate::event::Id::Text(id) => Some(Self::new(record.origin, id, record.payload)),
            crate::event::Id::Uuid(_) => None,
        }
    }

    /// The fingerprint of an id of a source.
    pub fn new(origin: &str, id: &str, payload: &[u8]) -> Self {
        Self { id: xxh3_64_with_seed(id.as_bytes(), xxh3_64(origin.as_bytes())).max(1), payload: xxh3_64(payload) }
    }
}

/// What the window knows of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: it is new, and in the window from now on.
    New,
    /// The same id with the same payload.
    Repeat,
    /// The same id with another payload; this one is in the window as well from now on.
    Conflict,
}

/// Generations share the memory, so that the oldest quarter can go at once.
const GENERATIONS: usize = 4;

/// The window.
#[derive(Debug)]
pub struct Window {
    /// Newest last.
    generations: Vec<Generation>,
    slots: usize,
}

#[derive(Debug)]
struct Generation {
    slots: Box<[(u64, u64)]>,
    used: usize,
    first: Timestamp,
    last: Timestamp,
}

impl Window {
    /// A window of at most `bytes`.
    pub fn new(bytes: usize) -> Self {
        let slots = (bytes / GENERATIONS / FINGERPRINT_BYTES).max(1024);
        // The largest power of two that fits.
        Self { generations: Vec::new(), slots: 1 << slots.ilog2() }
    }

    /// Looks an event up and puts it in. Generations that ended longer than `reach` before `now` do not count.
    pub fn admit(&mut self, print: Fingerprint, now: Timestamp, reach: Duration) -> Seen {
        let mut conflict = false;
        for generation in self.generations.iter().rev() {
            if now.since(generation.last) > reach {
                break;
            }
            match generation.find(print) {
                Seen::Repeat => return Seen::Repeat,
                Seen::Conflict => conflict = true,
                Seen::New => {}
            }
        }
        self.insert(print, now);
        if conflict { Seen::Conflict } else { Seen::New }
    }

    /// Moves what was recorded under an earlier setting of the clock, so that it stays as old as it is.
    pub fn shift(&mut self, micros: i64) {
        for generation in &mut self.generations {
            generation.first = Timestamp(generation.first.0.saturating_add(micros));
            generation.last = Timestamp(generation.last.0.saturating_add(micros));
        }
    }

    /// Puts an event in that is known to be accepted.
    pub fn insert(&mut self, print: Fingerprint, at: Timestamp) {
        let full = self.generations.last().is_none_or(|newest| newest.used * 4 >= self.slots * 3);
        if full {
            let recycled = (self.generations.len() == GENERATIONS).then(|| self.generations.remove(0));
            let mut slots = recycled.map_or_else(|| vec![(0, 0); self.slots].into(), |old| old.slots);
            slots.fill((0, 0));
            self.generations.push(Generation { slots, used: 0, first: at, last: at });
        }
        if let Some(newest) = self.generations.last_mut() {
            newest.insert(print);
            newest.last = newest.last.max(at);
        }
    }

    /// How many fingerprints it can hold.
    pub fn capacity(&self) -> usize {
        GENERATIONS * self.slots * 3 / 4
    }

    /// How many it holds.
    pub fn held(&self) -> usize {
        self.generations.iter().map(|generation| generation.used).sum()
    }

    /// The moment since when it is complete; `None` while nothing has had to leave.
    pub fn reaches_back_to(&self) -> Option<Timestamp> {
        (self.generations.len() == GENERATIONS).then(|| self.generations[0].first)
    }
}

impl Generation {
    fn find(&self, print: Fingerprint) -> Seen {
        let mask = self.slots.len() - 1;
        let mut seen = Seen::New;
        let mut at = print.id as usize & mask;
        loop {
            match self.slots[at] {
                (0, _) => return seen,
                (id, payload) if id == print.id => {
                    if payload == print.payload {
                        return Seen::Repeat;
                    }
                    seen = Seen::Conflict;
                }
                _ => {}
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, print: Fingerprint) {
        let mask = self.slots.len() - 1;
        let mut at = print.id as usize & mask;
        while self.slots[at].0 != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = (print.id, print.payload);
        self.used += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn print(id: &str, payload: &str) -> Fingerprint {
        Fingerprint::new("s/d", id, payload.as_bytes())
    }

    #[test]
    fn the_same_id_is_a_repeat_only_with_the_same_payload() {
        let mut window = Window::new(1 << 20);
        let now = Timestamp(0);
        assert_eq!(window.admit(print("1", "a"), now, DAY), Seen::New);
        assert_eq!(window.admit(print("1", "a"), now, DAY), Seen::Repeat);
        assert_eq!(window.admit(print("1", "b"), now, DAY), Seen::Conflict);
        assert_eq!(window.admit(print("1", "b"), now, DAY), Seen::Repeat);
        assert_eq!(window.admit(Fingerprint::new("s/e", "1", b"a"), now, DAY), Seen::New);
    }

    #[test]
    fn the_oldest_leave_first_and_the_memory_is_bounded() {
        let mut window = Window::new(1 << 17);
        let capacity = window.capacity();
        for n in 0..capacity * 3 {
            assert_eq!(window.admit(print(&n.to_string(), ""), Timestamp(n as i64), DAY), Seen::New);
            assert!(window.held() <= capacity);
        }
        let newest = (capacity * 3 - 1).to_string();
        assert_eq!(window.admit(print(&newest, ""), Timestamp(0), DAY), Seen::Repeat);
        let reach = window.reaches_back_to().map(|at| at.0);
        assert!(reach.is_some_and(|at| at >= (capacity * 2) as i64 - 1), "{reach:?}");
    }

    #[test]
    fn a_repeat_is_one_also_where_the_clock_was_set_in_between() {
        let mut window = Window::new(1 << 20);
        window.admit(print("1", "a"), Timestamp(0), DAY);
        let later = Timestamp(0).plus(DAY * 2);
        window.shift((DAY * 2).as_micros() as i64);
        assert_eq!(window.admit(print("1", "a"), later, DAY), Seen::Repeat);
    }

    #[test]
    fn beyond_its_reach_a_repeat_is_new() {
        let mut window = Window::new(1 << 20);
        window.admit(print("1", "a"), Timestamp(0), DAY);
        let later = Timestamp(0).plus(DAY * 2);
        assert_eq!(window.admit(print("1", "a"), later, DAY), Seen::New);
    }
}
