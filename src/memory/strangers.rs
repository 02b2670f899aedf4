//! Connections that have not logged in yet: who is evicted when memory is short.
//!
//! Promise: the oldest connection of the address that holds most goes first, so that whoever opens many connections
//! evicts its own. An IPv6 address counts by its /64 network, since that is what one subscriber gets.
//! Invariant: a connection that has logged in is not here, and is never evicted.

use super::Door;
use crate::origin::Origin;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What identifies a connection here.
#[derive(Debug)]
pub(super) struct Ticket {
    origin: Origin,
    number: u64,
    leave: Arc<Notify>,
}

/// The order to leave, for one connection.
#[derive(Debug)]
pub struct Eviction(Option<Arc<Notify>>);

impl Eviction {
    pub(super) fn of(ticket: Option<&Ticket>) -> Self {
        Self(ticket.map(|ticket| Arc::clone(&ticket.leave)))
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
            Some(leave) => leave.notified().await,
            None => std::future::pending().await,
        }
    }
}

#[derive(Debug)]
struct Stranger {
    bytes: usize,
    door: Door,
    leave: Arc<Notify>,
}

/// The connections of one address, by their age.
#[derive(Debug, Default)]
struct Address {
    bytes: usize,
    connections: BTreeMap<u64, Stranger>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    addresses: HashMap<Origin, Address>,
}

/// All connections that have not logged in.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    table: Mutex<Table>,
    evicted: AtomicU64,
}

impl Strangers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enter(&self, bytes: usize, address: IpAddr, door: Door) -> Ticket {
        let (origin, leave) = (Origin::of(address), Arc::new(Notify::new()));
        let mut table = self.table();
        table.next += 1;
        let number = table.next;
        let known = table.addresses.entry(origin).or_default();
        known.bytes += bytes;
        known.connections.insert(number, Stranger { bytes, door, leave: Arc::clone(&leave) });
        Ticket { origin, number, leave }
    }

    /// Notes what a connection holds now. One that has left stays out.
    pub fn resize(&self, ticket: &Ticket, bytes: usize) {
        let mut table = self.table();
        let Some(known) = table.addresses.get_mut(&ticket.origin) else { return };
        let Some(stranger) = known.connections.get_mut(&ticket.number) else { return };
        known.bytes = known.bytes - stranger.bytes + bytes;
        stranger.bytes = bytes;
    }

    pub fn leave(&self, ticket: &Ticket) {
        self.table().remove(ticket.origin, ticket.number);
    }

    /// Evicts connections until those hold `bytes`; `false` if there are not enough of them.
    pub fn evict(&self, bytes: usize) -> bool {
        let mut table = self.table();
        let mut freed = 0;
        while freed < bytes {
            let most = table.addresses.iter().max_by_key(|(_, known)| known.bytes);
            let oldest = most.and_then(|(origin, known)| Some((*origin, *known.connections.first_key_value()?.0)));
            let Some((origin, number)) = oldest else { return false };
            freed += self.send_away(&mut table, origin, number);
        }
        true
    }

    /// Evicts one connection of a listener; `false` if it has none.
    pub fn evict_at(&self, door: Door) -> bool {
        let mut table = self.table();
        let at_door = |known: &Address| known.connections.values().filter(|one| one.door == door).count();
        let most = table.addresses.iter().max_by_key(|(_, known)| at_door(known));
        let oldest = most.and_then(|(origin, known)| {
            let mut own = known.connections.iter().filter(|(_, stranger)| stranger.door == door);
            Some((*origin, *own.next()?.0))
        });
        let Some((origin, number)) = oldest else { return false };
        self.send_away(&mut table, origin, number);
        true
    }

    pub fn are_at(&self, door: Door) -> bool {
        self.table().addresses.values().any(|known| known.connections.values().any(|one| one.door == door))
    }

    /// Bytes that it held.
    fn send_away(&self, table: &mut Table, origin: Origin, number: u64) -> usize {
        let Some(gone) = table.remove(origin, number) else { return 0 };
        gone.leave.notify_one();
        self.evicted.fetch_add(1, Ordering::Relaxed);
        gone.bytes
    }

    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

impl Table {
    fn remove(&mut self, origin: Origin, number: u64) -> Option<Stranger> {
        let known = self.addresses.get_mut(&origin)?;
        let gone = known.connections.remove(&number)?;
        known.bytes -= gone.bytes;
        if known.connections.is_empty() {
            self.addresses.remove(&origin);
        }
        Some(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_64_bits_or_one_of_ipv4() {
        let same =
            |a: &str, b: &str| Origin::of(a.parse().expect("address")) == Origin::of(b.parse().expect("address"));
        assert!(same("2001:db8::1", "2001:db8::ffff:2") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1") && !same("10.0.0.1", "10.0.0.2"));
    }
}
