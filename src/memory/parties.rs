//! Connections by party, and the choice of the connection to evict when connections or memory are short.
//!
//! Promise: the party that has most loses a connection, so a party that opens many connections evicts its own.
//!
//! There are two tables. One holds connections that have not logged in, by address: the oldest of the address that
//! has most is evicted for any new one. The other holds clients that have logged in: one of them is evicted only for
//! a party that has less.

use crate::origin::Party;
use parking_lot::{Mutex, MutexGuard};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Identifies a listener in the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(u64);

impl ListenerId {
    /// Returns an identifier that differs from all before.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for ListenerId {
    fn default() -> Self {
        Self::new()
    }
}

/// Identifies a connection in its table.
#[derive(Debug)]
pub(super) struct Member {
    pub party: Party,
    number: u64,
    pub listener: ListenerId,
    pub signals: Arc<Signals>,
    /// Whether the client has logged in, which tells the table.
    pub is_authenticated: bool,
}

/// Signals between a connection and its table.
#[derive(Debug, Default)]
pub(super) struct Signals {
    leave: Notify,
    /// Moment of the client's newest packet, in milliseconds since the first bytes of any client.
    heard: AtomicU64,
    /// Bytes of the connection if it was evicted because memory is short; else 0.
    owed: AtomicUsize,
}

/// The signal of an eviction, for one connection.
#[derive(Debug)]
pub struct Eviction(Option<Arc<Signals>>);

impl Eviction {
    pub(super) fn of(member: Option<&Member>) -> Self {
        Self(member.map(|member| Arc::clone(&member.signals)))
    }

    /// Returns whether the reason is memory, and not the number of connections.
    pub fn is_for_memory(&self) -> bool {
        self.0.as_ref().is_some_and(|signals| signals.owed.load(Ordering::Relaxed) > 0)
    }

    /// Runs `work` to its end, or until the eviction; then returns `None`.
    pub async fn cuts<T>(self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.begun() => None,
        }
    }

    /// Returns when the connection is evicted; never for one without a table. Safe to drop half-way.
    pub async fn begun(&self) {
        match &self.0 {
            Some(signals) => signals.leave.notified().await,
            None => std::future::pending().await,
        }
    }
}

#[derive(Debug)]
struct Connection {
    bytes: usize,
    listener: ListenerId,
    signals: Arc<Signals>,
}

/// The connections of one party, from the oldest.
#[derive(Debug, Default)]
struct PartyConnections {
    bytes: usize,
    connections: BTreeMap<u64, Connection>,
}

impl PartyConnections {
    fn at(&self, listener: ListenerId) -> impl Iterator<Item = (u64, &Connection)> {
        self.connections.iter().filter(move |(_, one)| one.listener == listener).map(|(number, one)| (*number, one))
    }
}

#[derive(Debug, Default)]
struct PartyTable {
    next: u64,
    parties: HashMap<Party, PartyConnections>,
    /// Number of connections per listener.
    doors: HashMap<ListenerId, usize>,
    /// Bytes of evicted clients that have not ended yet.
    leaving: usize,
}

/// The connections of all listeners.
#[derive(Debug, Default)]
pub(super) struct Parties {
    table: Mutex<PartyTable>,
    evicted: AtomicU64,
}

/// `connections_max` of the listener is reached, and no party has more connections than the asking one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crowded;

/// A party loses a connection only if the asking party would hold at most this part of its bytes (one half):
/// otherwise devices with equal needs would take turns at losing their connections.
const PART_OF_MOST: usize = 2;

/// The result of an eviction for a party that needs memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evicted {
    /// The evicted clients hold enough.
    Enough,
    /// No party holds enough to be evicted.
    NobodyHoldsMuch,
    /// The asking party would hold more than half of what the largest party holds.
    AskerHoldsMuch,
}

impl Parties {
    fn table(&self) -> MutexGuard<'_, PartyTable> {
        self.table.lock()
    }

    /// Adds a connection that has not logged in.
    pub(super) fn enter(&self, bytes: usize, party: Party, listener: ListenerId) -> Member {
        let signals = Arc::new(Signals::default());
        let number = self.table().add(&party, Connection { bytes, listener, signals: Arc::clone(&signals) });
        Member { party, number, listener, signals, is_authenticated: false }
    }

    /// Adds a connection that has logged in, if its listener has fewer than `connections_max`. Otherwise the
    /// connection that is idle longest of the party that has most is evicted, provided that this party has at least
    /// two more than the new one: an evicted client that returns then evicts nobody. `connections_max` is `None` for
    /// a client that replaces its earlier connection.
    pub(super) fn join(
        &self,
        bytes: usize,
        party: Party,
        from: &Member,
        connections_max: Option<usize>,
    ) -> Result<Member, Crowded> {
        let (listener, signals) = (from.listener, Arc::clone(&from.signals));
        let mut table = self.table();
        let taken = table.doors.get(&listener).copied().unwrap_or(0);
        if connections_max.is_some_and(|connections_max| taken >= connections_max) {
            let count = |held: &PartyConnections| held.at(listener).count();
            let own = table.parties.get(&party).map_or(0, count);
            let most = table.parties.iter().map(|(party, held)| (count(held), party, held)).max_by_key(|most| most.0);
            let (party, number) = most
                .filter(|(count, ..)| *count > own + 1)
                .and_then(|(_, party, held)| {
                    let idle = held.at(listener).min_by_key(|(number, one)| (one.signals.heard(), *number));
                    Some((party.clone(), idle?.0))
                })
                .ok_or(Crowded)?;
            self.evict_one(&mut table, &party, number);
        }
        let number = table.add(&party, Connection { bytes, listener, signals: Arc::clone(&signals) });
        Ok(Member { party, number, listener, signals, is_authenticated: true })
    }

    /// Notes the bytes of a connection. A connection that was taken out stays out.
    pub(super) fn resize(&self, member: &Member, bytes: usize) {
        let mut table = self.table();
        let Some(held) = table.parties.get_mut(&member.party) else { return };
        let Some(one) = held.connections.get_mut(&member.number) else { return };
        held.bytes = held.bytes - one.bytes + bytes;
        one.bytes = bytes;
    }

    pub(super) fn leave(&self, member: &Member) {
        self.table().remove(&member.party, member.number);
    }

    /// Evicts connections until the evicted ones hold `bytes`. Returns `false` if there are not enough.
    pub(super) fn evict(&self, bytes: usize) -> bool {
        let mut table = self.table();
        let mut freed = 0;
        while freed < bytes {
            let most = table.parties.iter().max_by_key(|(_, held)| held.bytes);
            let oldest = most.and_then(|(party, held)| Some((party.clone(), *held.connections.first_key_value()?.0)));
            let Some((party, number)) = oldest else { return false };
            freed += self.evict_one(&mut table, &party, number);
        }
        true
    }

    /// Evicts clients of the party that holds most, for a party that needs `bytes`, until the evicted ones hold
    /// `over`. The largest is evicted first, since that takes the fewest evictions; among equal ones the one that is
    /// idle longest. A party that holds less than `evictable` is spared: then something else uses the memory.
    pub(super) fn evict_for(&self, party: &Party, bytes: usize, over: usize, evictable: usize) -> Evicted {
        let mut table = self.table();
        let own = table.parties.get(party).map_or(0, |held| held.bytes).saturating_add(bytes);
        while table.leaving < over {
            let most = table.parties.iter().max_by_key(|(_, held)| held.bytes);
            let Some((most, held)) = most.filter(|(_, held)| held.bytes >= evictable) else {
                return Evicted::NobodyHoldsMuch;
            };
            if held.bytes / PART_OF_MOST < own {
                return Evicted::AskerHoldsMuch;
            }
            let rank = |(number, one): &(&u64, &Connection)| (one.bytes, Reverse((one.signals.heard(), **number)));
            let Some((number, one)) = held.connections.iter().max_by_key(rank) else {
                return Evicted::NobodyHoldsMuch;
            };
            one.signals.owed.store(one.bytes, Ordering::Relaxed);
            let (most, number) = (most.clone(), *number);
            table.leaving += self.evict_one(&mut table, &most, number);
        }
        Evicted::Enough
    }

    /// Notes that a connection has ended and has given its bytes back.
    pub(super) fn gone(&self, member: &Member) {
        let owed = member.signals.owed.load(Ordering::Relaxed);
        let mut table = self.table();
        table.leaving -= owed;
        table.remove(&member.party, member.number);
    }

    /// Evicts one connection of a listener. Returns `false` if it has none.
    pub(super) fn evict_at(&self, listener: ListenerId) -> bool {
        let mut table = self.table();
        let most = table.parties.iter().max_by_key(|(_, held)| held.at(listener).count());
        let oldest = most.and_then(|(party, held)| Some((party.clone(), held.at(listener).next()?.0)));
        let Some((party, number)) = oldest else { return false };
        self.evict_one(&mut table, &party, number);
        true
    }

    pub(super) fn are_at(&self, listener: ListenerId) -> bool {
        self.table().doors.contains_key(&listener)
    }

    /// Evicts one connection. Returns its bytes.
    fn evict_one(&self, table: &mut PartyTable, party: &Party, number: u64) -> usize {
        let Some(gone) = table.remove(party, number) else { return 0 };
        gone.signals.leave.notify_one();
        self.evicted.fetch_add(1, Ordering::Relaxed);
        gone.bytes
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

impl Signals {
    /// Notes the moment of the client's newest packet.
    pub(super) fn set_heard(&self, millis: u64) {
        self.heard.store(millis, Ordering::Relaxed);
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl PartyTable {
    fn add(&mut self, party: &Party, connection: Connection) -> u64 {
        self.next += 1;
        *self.doors.entry(connection.listener).or_default() += 1;
        let held = self.parties.entry(party.clone()).or_default();
        held.bytes += connection.bytes;
        held.connections.insert(self.next, connection);
        self.next
    }

    fn remove(&mut self, party: &Party, number: u64) -> Option<Connection> {
        let held = self.parties.get_mut(party)?;
        let gone = held.connections.remove(&number)?;
        held.bytes -= gone.bytes;
        if held.connections.is_empty() {
            self.parties.remove(party);
        }
        if let Some(count) = self.doors.get_mut(&gone.listener) {
            *count -= 1;
            if *count == 0 {
                self.doors.remove(&gone.listener);
            }
        }
        Some(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn is_evicted(member: &Member) -> bool {
        let eviction = Eviction::of(Some(member));
        pin!(eviction.begun()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_has_most_connections_gives_one_up_to_whoever_has_less_by_more_than_one() {
        let (authenticated, listener) = (Parties::default(), ListenerId::new());
        let address = IpAddr::from([10, 0, 0, 1]);
        let unauthenticated = Parties::default().enter(1, Party::of(None, address), listener);
        let join = |name: &str| {
            let from = Member { signals: Arc::default(), party: unauthenticated.party.clone(), ..unauthenticated };
            authenticated.join(1, Party::of(Some(name), address), &from, Some(4))
        };
        let crowd: Vec<_> = (0..4).map(|_| join("a").expect("a party alone may have all")).collect();
        assert_eq!(join("a").err(), Some(Crowded));
        crowd[0].signals.set_heard(1);
        let b = join("b").expect("a has more");
        assert!(is_evicted(&crowd[1]) && [0, 2, 3].iter().all(|index| !is_evicted(&crowd[*index])), "idle longest");
        assert_eq!(join("a").err(), Some(Crowded), "an evicted client evicts nobody");
        let c = join("c").expect("a has more");
        assert!(is_evicted(&crowd[2]));
        assert_eq!(join("b").err(), Some(Crowded), "2, 1 and 1 would become 1, 2 and 1");
        assert_eq!(join("d").err(), None, "a has two");
        assert!(is_evicted(&crowd[3]) && !is_evicted(&b) && !is_evicted(&c));
        assert_eq!(join("e").err(), Some(Crowded), "everybody has one");
        authenticated.leave(&b);
        assert!(join("e").is_ok());
        assert_eq!(authenticated.evicted(), 3);
    }
}
