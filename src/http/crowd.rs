//! A crowd of connections: how many there may be at once, and which one has to go when another wants in.
//!
//! Promise: connections that only wait keep nobody out. When every seat is taken, the one that has waited longest goes,
//! of whoever holds most seats; a request whose body is still coming goes only where its sender holds more than half of
//! the seats. One that is being answered never goes.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::Notify;

/// The connections of one listener. `K` tells apart those that share: an address, a user.
#[derive(Debug)]
pub struct Crowd<K> {
    seats_max: usize,
    state: Mutex<State<K>>,
    stirred: Notify,
}

#[derive(Debug)]
struct State<K> {
    next: u64,
    seats: HashMap<u64, Seated<K>>,
    /// What each holder has of them.
    holders: HashMap<K, Held>,
}

#[derive(Debug)]
struct Seated<K> {
    holder: K,
    phase: Phase,
    /// Rises with each change of the phase: who has been at it longest has the lowest.
    since: u64,
    cut: Arc<Notify>,
}

/// The seats of one holder: how many there are, and those that may be cleared, by their `since`.
#[derive(Debug, Default)]
struct Held {
    seats: usize,
    waiting: BTreeMap<u64, u64>,
    reading: BTreeMap<u64, u64>,
}

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// A handshake or the head of a request is awaited.
    Waiting,
    /// The body of a request is coming.
    Reading,
    /// A request is answered.
    Answering,
}

/// The seat of one connection; dropping it gives it back.
#[derive(Debug)]
pub struct Seat<K: Eq + Hash + Clone> {
    crowd: Arc<Crowd<K>>,
    number: u64,
    cut: Arc<Notify>,
}

impl<K: Eq + Hash + Clone> Crowd<K> {
    /// A crowd of at most so many. While one that is cut takes its leave there is one more.
    pub fn new(seats_max: usize) -> Arc<Self> {
        let state = Mutex::new(State { next: 0, seats: HashMap::new(), holders: HashMap::new() });
        Arc::new(Self { seats_max, state, stirred: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock()
    }

    /// Whether another connection finds a seat: a free one, or one that can be cleared.
    pub fn has_room(&self) -> bool {
        let state = self.lock();
        state.seats.len() < self.seats_max || state.last(self.seats_max).is_some()
    }

    /// Returns when there may be room where there was none. Safe to drop half-way.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// Seats a connection; where there is no seat left, another has to go.
    pub fn seat(self: &Arc<Self>, holder: K) -> Seat<K> {
        let mut state = self.lock();
        if state.seats.len() >= self.seats_max
            && let Some(number) = state.last(self.seats_max)
            && let Some(cleared) = state.remove(number)
        {
            cleared.cut.notify_one();
        }
        let (number, cut) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        let held = state.holders.entry(holder.clone()).or_default();
        held.seats += 1;
        held.waiting.insert(number, number);
        let seated = Seated { holder, phase: Phase::Waiting, since: number, cut: Arc::clone(&cut) };
        state.seats.insert(number, seated);
        Seat { crowd: Arc::clone(self), number, cut }
    }
}

impl Held {
    /// Those that are at this, if they may be cleared.
    fn at(&mut self, phase: Phase) -> Option<&mut BTreeMap<u64, u64>> {
        match phase {
            Phase::Waiting => Some(&mut self.waiting),
            Phase::Reading => Some(&mut self.reading),
            Phase::Answering => None,
        }
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    /// Who has to go first.
    fn last(&self, seats_max: usize) -> Option<u64> {
        let first = |seats: &BTreeMap<u64, u64>| seats.first_key_value().map(|(since, number)| (*since, *number));
        let waiting = self.holders.values().filter_map(|held| Some((held.seats, first(&held.waiting)?)));
        let most = |held: &(usize, (u64, u64))| (held.0, std::cmp::Reverse(held.1));
        let (_, (_, number)) = waiting.max_by_key(most).or_else(|| {
            let large = self.holders.values().filter(|held| held.seats > seats_max / 2);
            large.filter_map(|held| Some((held.seats, first(&held.reading)?))).max_by_key(most)
        })?;
        Some(number)
    }

    fn remove(&mut self, number: u64) -> Option<Seated<K>> {
        let seated = self.seats.remove(&number)?;
        if let Some(held) = self.holders.get_mut(&seated.holder) {
            held.seats -= 1;
            held.at(seated.phase).map(|seats| seats.remove(&seated.since));
            if held.seats == 0 {
                self.holders.remove(&seated.holder);
            }
        }
        Some(seated)
    }
}

impl<K: Eq + Hash + Clone> Seat<K> {
    /// Says what the connection is at from now on.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.crowd.lock();
        let since = state.next;
        state.next += 1;
        let State { seats, holders, .. } = &mut *state;
        if let Some(seated) = seats.get_mut(&self.number)
            && let Some(held) = holders.get_mut(&seated.holder)
        {
            held.at(seated.phase).map(|seats| seats.remove(&seated.since));
            held.at(phase).map(|seats| seats.insert(since, self.number));
            (seated.phase, seated.since) = (phase, since);
        }
        drop(state);
        if phase != Phase::Answering {
            self.crowd.stirred.notify_one();
        }
    }

    /// Returns when the connection has to go. Safe to drop half-way.
    pub async fn cut(&self) {
        self.cut.notified().await;
    }
}

impl<K: Eq + Hash + Clone> Drop for Seat<K> {
    fn drop(&mut self) {
        self.crowd.lock().remove(self.number);
        self.crowd.stirred.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn is_cut(seat: &Seat<&'static str>) -> bool {
        pin!(seat.cut()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_waits_longest_of_those_that_hold_most_goes_first() {
        let crowd = Crowd::new(4);
        let a1 = crowd.seat("a");
        let b = crowd.seat("b");
        let a2 = crowd.seat("a");
        let a3 = crowd.seat("a");
        a1.enter(Phase::Answering);
        let c = crowd.seat("c");
        assert!(is_cut(&a2) && !is_cut(&a1) && !is_cut(&a3) && !is_cut(&b));
        drop(a2);
        let d = crowd.seat("d");
        assert!(is_cut(&a3), "a still holds most");
        let e = crowd.seat("e");
        assert!(is_cut(&b), "among equals the oldest");
        drop((c, d, e, a3, b));
        let state = crowd.lock();
        assert_eq!((state.seats.len(), state.holders.len()), (1, 1));
    }

    #[test]
    fn bodies_of_one_that_holds_more_than_half_go_and_answers_never() {
        let crowd = Crowd::new(4);
        let seats: Vec<_> = ["a", "a", "b", "b"].map(|holder| crowd.seat(holder)).into();
        seats.iter().for_each(|seat| seat.enter(Phase::Reading));
        assert!(!crowd.has_room(), "nobody has more than half");
        drop(seats);
        let seats: Vec<_> = ["a", "a", "b", "a"].map(|holder| crowd.seat(holder)).into();
        seats.iter().for_each(|seat| seat.enter(Phase::Reading));
        assert!(crowd.has_room());
        let c = crowd.seat("c");
        assert!(is_cut(&seats[0]) && !is_cut(&seats[2]));
        seats.iter().chain([&c]).for_each(|seat| seat.enter(Phase::Answering));
        assert!(!crowd.has_room());
    }
}
