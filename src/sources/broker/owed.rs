//! Messages that a lost connection left without a PUBACK, and how their redelivery is known.
//!
//! The broker sends them again with DUP, under the same packet id. One of them is taken for a
//! redelivery only if topic and payload are the same and no byte of its PUBACK had left: if one
//! had, the broker may have freed the id and given it to another message that looks the same.

use crate::ingest::Taken;
use crate::link::Message;
use std::collections::HashMap;
use std::time::Instant;

/// A message that is taken in and not acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) packet_id: u16,
    /// `None` for a message that is acknowledged without being an event.
    pub(super) taken: Option<Taken>,
    pub(super) arrived: Instant,
    print: u128,
}

impl Pending {
    pub(super) fn new(message: &Message, taken: Option<Taken>, arrived: Instant) -> Self {
        Self { packet_id: message.packet_id, taken, arrived, print: print(message) }
    }
}

fn print(message: &Message) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    hasher.update(message.topic.as_bytes());
    hasher.update(&[0]);
    hasher.update(&message.payload);
    hasher.digest128()
}

/// What is owed a PUBACK, by packet id: never more than there are packet ids.
#[derive(Debug, Default)]
pub(super) struct Owed(HashMap<u16, Pending>);

impl Owed {
    /// The broker has forgotten the session: it will send nothing again.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// A connection is lost; the broker will send this again.
    pub(super) fn add(&mut self, pending: Pending) {
        self.0.insert(pending.packet_id, pending);
    }

    /// What was taken in when this message came before. Its packet id is no longer owed, whatever it is.
    pub(super) fn recognise(&mut self, message: &Message) -> Option<Taken> {
        let known = self.0.remove(&message.packet_id)?;
        (message.is_dup && known.print == print(message)).then_some(known.taken)?
    }
}
