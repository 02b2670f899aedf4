//! The limit of connections of a listener, and the choice of the connection to close when a new one arrives at the limit.
//!
//! Promise: idle connections keep no new client out. When every slot is in use, the connection that has been idle longest
//! is closed, of the holder with the most slots. A connection that is receiving a body is closed only if its holder has
//! more than half of the slots. A connection whose request is being answered is never closed.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::Notify;

/// The connections of one listener. `K` identifies the holder of a slot: an address or a user.
#[derive(Debug)]
pub struct ConnectionLimit<K> {
    slots_max: usize,
    state: Mutex<Slots<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct Slots<K> {
    next: u64,
    slots: HashMap<u64, Occupant<K>>,
    /// The slots of each holder.
    holders: HashMap<K, HolderSlots>,
}

#[derive(Debug)]
struct Occupant<K> {
    holder: K,
    phase: Phase,
    /// Sequence number of the last change of the phase: the connection longest in its phase has the lowest.
    since: u64,
    cut: Arc<Notify>,
}

/// The slots of one holder: their number, and those that may be closed, by their `since`.
#[derive(Debug, Default)]
struct HolderSlots {
    slots: usize,
    waiting: BTreeMap<u64, u64>,
    reading: BTreeMap<u64, u64>,
}

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The server waits for a handshake or for the head of a request.
    Waiting,
    /// The server receives the body of a request.
    Reading,
    /// The server answers a request.
    Answering,
}

/// The slot of one connection; dropping it frees the slot.
#[derive(Debug)]
pub struct ConnectionSlot<K: Eq + Hash + Clone> {
    limit: Arc<ConnectionLimit<K>>,
    number: u64,
    cut: Arc<Notify>,
}

impl<K: Eq + Hash + Clone> ConnectionLimit<K> {
    /// A limit of `slots_max` connections. A connection that is being closed is not counted.
    pub fn new(slots_max: usize) -> Arc<Self> {
        let state = Mutex::new(Slots { next: 0, slots: HashMap::new(), holders: HashMap::new() });
        Arc::new(Self { slots_max, state, changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Slots<K>> {
        self.state.lock()
    }

    /// Whether there is a slot for another connection: a free one, or one whose connection may be closed.
    pub fn has_room(&self) -> bool {
        let state = self.lock();
        state.slots.len() < self.slots_max || state.to_close(self.slots_max).is_some()
    }

    /// Waits until there may be room again. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Gives a connection a slot. Without a free slot, another connection is closed.
    pub fn acquire(self: &Arc<Self>, holder: K) -> ConnectionSlot<K> {
        let mut state = self.lock();
        if state.slots.len() >= self.slots_max
            && let Some(number) = state.to_close(self.slots_max)
            && let Some(closed) = state.remove(number)
        {
            closed.cut.notify_one();
        }
        let (number, cut) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        let held = state.holders.entry(holder.clone()).or_default();
        held.slots += 1;
        held.waiting.insert(number, number);
        let occupant = Occupant { holder, phase: Phase::Waiting, since: number, cut: Arc::clone(&cut) };
        state.slots.insert(number, occupant);
        ConnectionSlot { limit: Arc::clone(self), number, cut }
    }
}

impl HolderSlots {
    /// The connections in this phase, if they may be closed.
    fn in_phase(&mut self, phase: Phase) -> Option<&mut BTreeMap<u64, u64>> {
        match phase {
            Phase::Waiting => Some(&mut self.waiting),
            Phase::Reading => Some(&mut self.reading),
            Phase::Answering => None,
        }
    }
}

impl<K: Eq + Hash + Clone> Slots<K> {
    /// The number of the connection to close for a new one; `None` if there is none.
    fn to_close(&self, slots_max: usize) -> Option<u64> {
        let first = |slots: &BTreeMap<u64, u64>| slots.first_key_value().map(|(since, number)| (*since, *number));
        let waiting = self.holders.values().filter_map(|held| Some((held.slots, first(&held.waiting)?)));
        let most = |held: &(usize, (u64, u64))| (held.0, std::cmp::Reverse(held.1));
        let (_, (_, number)) = waiting.max_by_key(most).or_else(|| {
            let large = self.holders.values().filter(|held| held.slots > slots_max / 2);
            large.filter_map(|held| Some((held.slots, first(&held.reading)?))).max_by_key(most)
        })?;
        Some(number)
    }

    fn remove(&mut self, number: u64) -> Option<Occupant<K>> {
        let occupant = self.slots.remove(&number)?;
        if let Some(held) = self.holders.get_mut(&occupant.holder) {
            held.slots -= 1;
            held.in_phase(occupant.phase).map(|slots| slots.remove(&occupant.since));
            if held.slots == 0 {
                self.holders.remove(&occupant.holder);
            }
        }
        Some(occupant)
    }
}

impl<K: Eq + Hash + Clone> ConnectionSlot<K> {
    /// Records that the connection enters a phase.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.limit.lock();
        let since = state.next;
        state.next += 1;
        let Slots { slots, holders, .. } = &mut *state;
        if let Some(occupant) = slots.get_mut(&self.number)
            && let Some(held) = holders.get_mut(&occupant.holder)
        {
            held.in_phase(occupant.phase).map(|slots| slots.remove(&occupant.since));
            held.in_phase(phase).map(|slots| slots.insert(since, self.number));
            (occupant.phase, occupant.since) = (phase, since);
        }
        drop(state);
        if phase != Phase::Answering {
            self.limit.changed.notify_one();
        }
    }

    /// Waits until the connection has to be closed. Cancel-safe.
    pub async fn cut(&self) {
        self.cut.notified().await;
    }
}

impl<K: Eq + Hash + Clone> Drop for ConnectionSlot<K> {
    fn drop(&mut self) {
        self.limit.lock().remove(self.number);
        self.limit.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn is_cut(slot: &ConnectionSlot<&'static str>) -> bool {
        pin!(slot.cut()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_waits_longest_of_those_that_hold_most_goes_first() {
        let limit = ConnectionLimit::new(4);
        let a1 = limit.acquire("a");
        let b = limit.acquire("b");
        let a2 = limit.acquire("a");
        let a3 = limit.acquire("a");
        a1.enter(Phase::Answering);
        let c = limit.acquire("c");
        assert!(is_cut(&a2) && !is_cut(&a1) && !is_cut(&a3) && !is_cut(&b));
        drop(a2);
        let d = limit.acquire("d");
        assert!(is_cut(&a3), "a still holds most");
        let e = limit.acquire("e");
        assert!(is_cut(&b), "among equals the oldest");
        drop((c, d, e, a3, b));
        let state = limit.lock();
        assert_eq!((state.slots.len(), state.holders.len()), (1, 1));
    }

    #[test]
    fn bodies_of_one_that_holds_more_than_half_go_and_answers_never() {
        let limit = ConnectionLimit::new(4);
        let slots: Vec<_> = ["a", "a", "b", "b"].map(|holder| limit.acquire(holder)).into();
        slots.iter().for_each(|slot| slot.enter(Phase::Reading));
        assert!(!limit.has_room(), "nobody has more than half");
        drop(slots);
        let slots: Vec<_> = ["a", "a", "b", "a"].map(|holder| limit.acquire(holder)).into();
        slots.iter().for_each(|slot| slot.enter(Phase::Reading));
        assert!(limit.has_room());
        let c = limit.acquire("c");
        assert!(is_cut(&slots[0]) && !is_cut(&slots[2]));
        slots.iter().chain([&c]).for_each(|slot| slot.enter(Phase::Answering));
        assert!(!limit.has_room());
    }
}
