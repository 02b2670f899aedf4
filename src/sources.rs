//! Sources: where raw facts come in. Each acknowledges only with a receipt.

pub mod broker;
pub mod http;
pub mod modbus;
pub mod mqtt;
pub mod odoo;
mod secrets;
mod socket;

use crate::telemetry::{Counter, Gauge, Histogram};
use std::sync::{Mutex, PoisonError};

/// The largest payload that may be allowed.
pub const PAYLOAD_BYTES_MAX: u64 = 8 << 20;

/// What a source counts, whatever its kind.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections that were accepted or made.
    pub connects: Counter,
    /// Connections or requests that were refused or ended for a fault.
    pub refused: Counter,
    /// Publishes, requests or readings that arrived.
    pub received: Counter,
    /// Events of senders that await no answer, for which there was no room.
    pub dropped: Counter,
    /// Redeliveries that were recognised without an id of the contract, and are no second event.
    pub redelivered: Counter,
    /// Events that a subscriber was not told, since it was too far behind.
    pub cut: Counter,
    /// From arrival to acknowledgement.
    pub ack: Histogram,
    problem: Mutex<Option<String>>,
    notes: Mutex<Vec<String>>,
}

/// A connection as it is counted, however it ends.
#[derive(Debug)]
pub struct Open<'s>(&'s Stats);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.sub(1);
    }
}

impl Stats {
    /// Counts a connection that is open as long as the value lives.
    pub fn open(&self) -> Open<'_> {
        self.connections.add(1);
        self.connects.add(1);
        Open(self)
    }

    /// Says what keeps the source from working; `None` if nothing does.
    pub fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// What keeps the source from working.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what a person should know, though the source works.
    pub fn set_notes(&self, notes: Vec<String>) {
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    }

    /// What a person should know, though the source works.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
