//! Sources: where raw facts come in. Each acknowledges only with a receipt.

pub mod broker;
mod handshake;
pub mod http;
mod identity;
pub mod modbus;
pub mod mqtt;
pub mod odoo;
mod secrets;
mod socket;

use crate::clock;
use crate::security::{Report, Security};
use crate::telemetry::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

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
    /// Of those, how many for which reason.
    refused_for: [Counter; Refusal::ALL.len()],
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
    /// When the Odoo or a Modbus device answered last, in seconds since 1970; 0 if never since the start.
    pub answered: Gauge,
    /// Who learns of what is refused.
    security: Arc<Security>,
    problem: Mutex<Option<String>>,
    notes: Mutex<Vec<String>>,
}

/// Why something was refused or has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There was no connection, or none could be accepted.
    Connection,
    /// The TLS handshake failed.
    Tls,
    /// The sender did not prove who it is, or may not do what it asked.
    Access,
    /// It did not keep to the protocol, or was too slow.
    Protocol,
    /// What it sent cannot be taken.
    Content,
    /// It sent more than is allowed, or there was no room.
    Limit,
    /// A device or system that is asked refused to answer, or did not.
    Answer,
    /// There was no room in the memory budget for what it sent, or for its connection.
    Memory,
}

impl Refusal {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Connection,
        Self::Tls,
        Self::Access,
        Self::Protocol,
        Self::Content,
        Self::Limit,
        Self::Answer,
        Self::Memory,
    ];

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Access => "access",
            Self::Protocol => "protocol",
            Self::Content => "content",
            Self::Limit => "limit",
            Self::Answer => "answer",
            Self::Memory => "memory",
        }
    }
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
    /// Of a source that reports what it refuses.
    pub fn reporting(security: Arc<Security>) -> Self {
        Self { security, ..Self::default() }
    }

    /// Reports what matters to security.
    pub fn report(&self, report: &Report<'_>) {
        self.security.report(report);
    }

    /// Counts a connection that is open as long as the value lives.
    pub fn open(&self) -> Open<'_> {
        self.connections.add(1);
        self.connects.add(1);
        Open(self)
    }

    /// Counts a refusal or a failure.
    pub fn refuse(&self, reason: Refusal) {
        self.refused.add(1);
        self.refused_for[reason as usize].add(1);
    }

    /// How often there was this reason.
    pub fn refused_for(&self, reason: Refusal) -> u64 {
        self.refused_for[reason as usize].value()
    }

    /// The Odoo or a Modbus device has answered.
    pub fn note_answer(&self) {
        self.answered.set(clock::wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    }

    /// Says what keeps the source from working; `None` if nothing does.
    pub fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock() = problem;
    }

    /// What keeps the source from working.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Says what a person should know, though the source works.
    pub fn set_notes(&self, notes: Vec<String>) {
        *self.notes.lock() = notes;
    }

    /// What a person should know, though the source works.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().clone()
    }
}
