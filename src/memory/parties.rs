//! Connections by party: which one is evicted when connections are short, or memory.
//!
//! Promise: whoever has most makes room, so that whoever opens many connections evicts its own.
//!
//! There are two tables of this kind. In one are connections that have not logged in, by their origin: of the origin that
//! has most the oldest goes, whoever comes. In the other are clients that have logged in: one of them goes only for
//! somebody who has less.

use super::Door;
use crate::origin::Party;
use parking_lot::{Mutex, MutexGuard};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Identifies a connection here.
#[derive(Debug)]
pub(super) struct Ticket {
    pub party: Party,
    number: u64,
    pub door: Door,
    pub signals: Arc<Signals>,
    /// Whether the client has logged in: in which table it is.
    pub is_guest: bool,
}

/// Signals between a connection and its table.
#[derive(Debug, Default)]
pub(super) struct Signals {
    leave: Notify,
    /// The moment at which the client last sent something, in milliseconds since the first bytes of any client.
    heard: AtomicU64,
    /// Bytes that it held when it was evicted because memory is short; 0 for any other reason.
    owed: AtomicUsize,
}

/// The order to leave, for one connection.
#[derive(Debug)]
pub struct Eviction(Option<Arc<Signals>>);

impl Eviction {
    pub(super) fn of(ticket: Option<&Ticket>) -> Self {
        Self(ticket.map(|ticket| Arc::clone(&ticket.signals)))
    }

    /// Whether it has begun since memory is short, and not connections.
    pub fn is_for_memory(&self) -> bool {
        self.0.as_ref().is_some_and(|signals| signals.owed.load(Ordering::Relaxed) > 0)
    }

    /// Does `work` until its end, or until the connection has to leave; `None` then.
    pub async fn cuts<T>(self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.begun() => None,
        }
    }

    /// Returns when the connection has to leave; never for one that was not admitted. Safe to drop half-way.
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
    door: Door,
    signals: Arc<Signals>,
}

/// The connections of one party, by their age.
#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    connections: BTreeMap<u64, Connection>,
}

impl Held {
    fn at(&self, door: Door) -> impl Iterator<Item = (u64, &Connection)> {
        self.connections.iter().filter(move |(_, one)| one.door == door).map(|(number, one)| (*number, one))
    }
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    parties: HashMap<Party, Held>,
    /// The number of connections of each listener.
    doors: HashMap<Door, usize>,
    /// Bytes of clients that were evicted for them, and have not gone yet.
    leaving: usize,
}

/// Connections of every listener.
#[derive(Debug, Default)]
pub(super) struct Parties {
    table: Mutex<Table>,
    evicted: AtomicU64,
}

/// All connections of a listener are taken, and nobody has more of them than the one who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crowded;

/// A party loses a connection only to one that holds, with what it asks for, at most this part of what it holds: otherwise
/// devices that need as much as each other would take turns at losing their connections.
const PART_OF_MOST: usize = 2;

/// Whether clients could be evicted for a party that asks for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evicted {
    /// Those that leave hold enough.
    Enough,
    /// No party holds so much that it has to give way.
    NobodyHoldsMuch,
    /// The one who asks would hold more than half of what the largest party holds.
    AskerHoldsMuch,
}

impl Parties {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Adds a connection that has not logged in.
    pub fn enter(&self, bytes: usize, party: Party, door: Door) -> Ticket {
        let signals = Arc::new(Signals::default());
        let number = self.table().add(&party, Connection { bytes, door, signals: Arc::clone(&signals) });
        Ticket { party, number, door, signals, is_guest: false }
    }

    /// Adds a connection that has logged in, if its listener has fewer than `seats` of them. Otherwise the one that is
    /// idle longest of the party that has most is evicted for it, where both have fewer or as many then than that party
    /// had: whoever is evicted and comes again evicts nobody for it. `seats` is `None` for a client that takes the place
    /// of a connection before it.
    pub fn join(&self, bytes: usize, party: Party, from: &Ticket, seats: Option<usize>) -> Result<Ticket, Crowded> {
        let (door, signals) = (from.door, Arc::clone(&from.signals));
        let mut table = self.table();
        let taken = table.doors.get(&door).copied().unwrap_or(0);
        if seats.is_some_and(|seats| taken >= seats) {
            let count = |held: &Held| held.at(door).count();
            let own = table.parties.get(&party).map_or(0, count);
            let most = table.parties.iter().map(|(party, held)| (count(held), party, held)).max_by_key(|most| most.0);
            let (party, number) = most
                .filter(|(count, ..)| *count > own + 1)
                .and_then(|(_, party, held)| {
                    let idle = held.at(door).min_by_key(|(number, one)| (one.signals.heard(), *number));
                    Some((party.clone(), idle?.0))
                })
                .ok_or(Crowded)?;
            self.send_away(&mut table, &party, number);
        }
        let number = table.add(&party, Connection { bytes, door, signals: Arc::clone(&signals) });
        Ok(Ticket { party, number, door, signals, is_guest: true })
    }

    /// Notes what a connection holds now. One that has left stays out.
    pub fn resize(&self, ticket: &Ticket, bytes: usize) {
        let mut table = self.table();
        let Some(held) = table.parties.get_mut(&ticket.party) else { return };
        let Some(one) = held.connections.get_mut(&ticket.number) else { return };
        held.bytes = held.bytes - one.bytes + bytes;
        one.bytes = bytes;
    }

    pub fn leave(&self, ticket: &Ticket) {
        self.table().remove(&ticket.party, ticket.number);
    }

    /// Evicts connections until those hold `bytes`; `false` if there are not enough of them.
    pub fn evict(&self, bytes: usize) -> bool {
        let mut table = self.table();
        let mut freed = 0;
        while freed < bytes {
            let most = table.parties.iter().max_by_key(|(_, held)| held.bytes);
            let oldest = most.and_then(|(party, held)| Some((party.clone(), *held.connections.first_key_value()?.0)));
            let Some((party, number)) = oldest else { return false };
            freed += self.send_away(&mut table, &party, number);
        }
        true
    }

    /// Evicts clients that have logged in, of whoever holds most, for a party that wants `bytes`, until those that leave
    /// hold `over`. The largest goes first, since fewest have to go then; of those alike the one that is idle longest.
    /// A party that holds less than `much` is never evicted: something else uses the memory.
    pub fn evict_for(&self, party: &Party, bytes: usize, over: usize, much: usize) -> Evicted {
        let mut table = self.table();
        let own = table.parties.get(party).map_or(0, |held| held.bytes).saturating_add(bytes);
        while table.leaving < over {
            let most = table.parties.iter().max_by_key(|(_, held)| held.bytes);
            let Some((most, held)) = most.filter(|(_, held)| held.bytes >= much) else {
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
            table.leaving += self.send_away(&mut table, &most, number);
        }
        Evicted::Enough
    }

    /// A connection has gone, and what it held is given back.
    pub fn gone(&self, ticket: &Ticket) {
        let owed = ticket.signals.owed.load(Ordering::Relaxed);
        let mut table = self.table();
        table.leaving -= owed;
        table.remove(&ticket.party, ticket.number);
    }

    /// Evicts one connection of a listener; `false` if it has none.
    pub fn evict_at(&self, door: Door) -> bool {
        let mut table = self.table();
        let most = table.parties.iter().max_by_key(|(_, held)| held.at(door).count());
        let oldest = most.and_then(|(party, held)| Some((party.clone(), held.at(door).next()?.0)));
        let Some((party, number)) = oldest else { return false };
        self.send_away(&mut table, &party, number);
        true
    }

    pub fn are_at(&self, door: Door) -> bool {
        self.table().doors.contains_key(&door)
    }

    /// Bytes that it held.
    fn send_away(&self, table: &mut Table, party: &Party, number: u64) -> usize {
        let Some(gone) = table.remove(party, number) else { return 0 };
        gone.signals.leave.notify_one();
        self.evicted.fetch_add(1, Ordering::Relaxed);
        gone.bytes
    }

    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

impl Signals {
    /// Notes that its client has sent something.
    pub fn set_heard(&self, millis: u64) {
        self.heard.store(millis, Ordering::Relaxed);
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl Table {
    fn add(&mut self, party: &Party, connection: Connection) -> u64 {
        self.next += 1;
        *self.doors.entry(connection.door).or_default() += 1;
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
        if let Some(count) = self.doors.get_mut(&gone.door) {
            *count -= 1;
            if *count == 0 {
                self.doors.remove(&gone.door);
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

    fn is_evicted(ticket: &Ticket) -> bool {
        let eviction = Eviction::of(Some(ticket));
        pin!(eviction.begun()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_has_most_connections_gives_one_up_to_whoever_has_less_by_more_than_one() {
        let (guests, door) = (Parties::default(), Door::new());
        let address = IpAddr::from([10, 0, 0, 1]);
        let stranger = Parties::default().enter(1, Party::of(None, address), door);
        let join = |name: &str| {
            let from = Ticket { signals: Arc::default(), party: stranger.party.clone(), ..stranger };
            guests.join(1, Party::of(Some(name), address), &from, Some(4))
        };
        let crowd: Vec<_> = (0..4).map(|_| join("a").expect("a party alone may have all")).collect();
        assert_eq!(join("a").err(), Some(Crowded));
        crowd[0].signals.set_heard(1);
        let b = join("b").expect("a has more");
        assert!(is_evicted(&crowd[1]) && [0, 2, 3].iter().all(|index| !is_evicted(&crowd[*index])), "idle longest");
        assert_eq!(join("a").err(), Some(Crowded), "whoever was evicted evicts nobody");
        let c = join("c").expect("a has more");
        assert!(is_evicted(&crowd[2]));
        assert_eq!(join("b").err(), Some(Crowded), "2, 1 and 1 would become 1, 2 and 1");
        assert_eq!(join("d").err(), None, "a has two");
        assert!(is_evicted(&crowd[3]) && !is_evicted(&b) && !is_evicted(&c));
        assert_eq!(join("e").err(), Some(Crowded), "everybody has one");
        guests.leave(&b);
        assert!(join("e").is_ok());
        assert_eq!(guests.evicted(), 3);
    }
}
