//! The keys of events: those with one key keep their order. The connections of a lane share its events by key.
//!
//! Promise: all events of one key go through one connection of their lane.
//!
//! Not here: which events of a key wait (`key_order`).

use crate::contract::Order;
use crate::event::Record;
use crate::journal::Published;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The key of an order: a hash of stream and key. Two keys with one hash only wait for each other.
pub(super) type Key = u64;

/// Returns the key of an event.
fn key_of(stream: u32, key: &str) -> Key {
    hash(&(stream, key))
}

/// Returns the key of the batches of a stream: they hold events of any key.
pub(super) fn key_of_batch(stream: u32) -> Key {
    hash(&stream)
}

/// Returns a key that no other event has, for a stream without order.
pub(super) fn key_of_none(offset: u64) -> Key {
    hash(&offset)
}

/// The same in each run and on each connection.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Returns the key of an event. In a lane with batches events that are sent alone have the key of the batches of their
/// stream, so that none overtakes another one.
pub(super) fn key_of_event(
    (offset, published, record): (u64, &Published, &Record<'_>),
    order: Order,
    has_batches: bool,
) -> Key {
    match order {
        Order::None => key_of_none(offset),
        Order::Key | Order::Strict if has_batches => key_of_batch(published.stream),
        Order::Key | Order::Strict => key_of(published.stream, record.key),
    }
}

/// One of the connections that share the events of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// From 0 on.
    pub number: u16,
    /// Number of connections of the lane, at least 1.
    pub of: u16,
}

impl Connection {
    /// The only connection of its lane.
    pub const ONLY: Self = Self { number: 0, of: 1 };

    /// Lists the connections of a lane that has so many.
    pub fn all(of: u16) -> impl Iterator<Item = Self> {
        (0..of).map(move |number| Self { number, of })
    }

    /// Returns whether other connections send events of the lane, too.
    pub(super) fn is_shared(self) -> bool {
        self.of > 1
    }

    /// Returns whether this connection sends the events of a key.
    pub(super) fn sends(self, key: Key) -> bool {
        key % u64::from(self.of) == u64::from(self.number)
    }

    /// Returns the name of the connection in client ids and messages: the first one has that of its lane.
    pub fn name(self, lane: &str) -> String {
        match self.number {
            0 => lane.to_owned(),
            number => format!("{lane}:{}", number + 1),
        }
    }
}

/// The order that the contracts of the streams promise.
#[derive(Debug, Default)]
pub(super) struct StreamOrders {
    by_name: Arc<BTreeMap<String, Order>>,
    /// By number of the stream in the journal.
    known: Vec<Option<Order>>,
}

impl StreamOrders {
    pub(super) fn new(by_name: &Arc<BTreeMap<String, Order>>) -> Self {
        Self { by_name: Arc::clone(by_name), known: Vec::new() }
    }

    /// The order of a stream; that of a key if no contract names another.
    #[inline]
    pub(super) fn of(&mut self, published: &Published) -> Order {
        let index = published.stream as usize;
        match self.known.get(index) {
            Some(Some(order)) => *order,
            _ => self.look_up(published, index),
        }
    }

    fn look_up(&mut self, published: &Published, index: usize) -> Order {
        let order = self.by_name.get(&published.publication.stream).copied().unwrap_or_default();
        if self.known.len() <= index {
            self.known.resize(index + 1, None);
        }
        self.known[index] = Some(order);
        order
    }
}
