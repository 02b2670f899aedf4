//! Recognition of redeliveries: messages that a lost connection left without a PUBACK.
//!
//! The broker sends such a message again, with DUP and the same packet id. It counts as a redelivery only if topic and
//! payload are equal and no byte of its PUBACK had left. Otherwise the broker may have freed the packet id and used it
//! for another message with the same content.

use crate::ingest::Submitted;
use crate::link::Message;
use std::collections::HashMap;
use std::time::Instant;

/// A message that was handed in and is not acknowledged yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingAck {
    pub(super) packet_id: u16,
    /// `None` for a message that makes no event.
    pub(super) taken: Option<Submitted>,
    pub(super) arrived: Instant,
    fingerprint: u128,
}

impl PendingAck {
    pub(super) fn new(message: &Message, taken: Option<Submitted>, arrived: Instant) -> Self {
        Self { packet_id: message.packet_id, taken, arrived, fingerprint: fingerprint(message) }
    }
}

fn fingerprint(message: &Message) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    hasher.update(message.topic.as_bytes());
    hasher.update(&[0]);
    hasher.update(&message.payload);
    hasher.digest128()
}

/// The messages that the broker will send again, by packet id; their number is bounded by the packet ids.
#[derive(Debug, Default)]
pub(super) struct AwaitedRedeliveries(HashMap<u16, PendingAck>);

impl AwaitedRedeliveries {
    /// Forgets all messages, because the broker has lost the session and will send none again.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// Adds a message without a PUBACK after the connection was lost.
    pub(super) fn add(&mut self, pending: PendingAck) {
        self.0.insert(pending.packet_id, pending);
    }

    /// Returns the ticket of the earlier delivery if the message is a redelivery. Removes its packet id in any case.
    pub(super) fn recognise(&mut self, message: &Message) -> Option<Submitted> {
        let known = self.0.remove(&message.packet_id)?;
        (message.is_dup && known.fingerprint == fingerprint(message)).then_some(known.taken)?
    }
}
