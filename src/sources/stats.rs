//! Counters and status of a source of any kind.

use super::units::Units;
use crate::clock;
use crate::security::{Report, Security};
use crate::telemetry::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Counters and status of a source of any kind.
#[derive(Debug, Default)]
pub struct Stats {
    pub connections: Gauge,
    pub connects: Counter,
    /// Connections and requests that were refused or ended by a fault.
    pub refused: Counter,
    refused_for: [Counter; Refusal::ALL.len()],
    /// Publishes, requests or readings received.
    pub received: Counter,
    /// Events dropped for lack of room, whose senders wait for no acknowledgement.
    pub dropped: Counter,
    /// Redeliveries recognised without an id of the contract; they make no second event.
    pub redelivered: Counter,
    /// Events that a subscriber did not get because it was too slow.
    pub cut: Counter,
    /// Time from arrival to acknowledgement.
    pub ack: Histogram,
    /// Time of the last answer of the Odoo or of a Modbus device, in seconds since 1970; 0 if none since the start.
    pub answered: Gauge,
    /// The devices that the source polls.
    pub units: Units,
    security: Arc<Security>,
    problem: Mutex<Option<String>>,
    notes: Mutex<Vec<String>>,
}

/// Why a connection or request was refused or has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A connection could not be made or accepted.
    Connection,
    Tls,
    /// The sender did not prove its identity, or lacks the right.
    Access,
    /// The sender violated the protocol or was too slow.
    Protocol,
    /// The content is not acceptable.
    Content,
    /// The sender exceeded a limit, or there was no room.
    Limit,
    /// A polled device or system refused to answer or did not answer.
    Answer,
    /// The memory budget had no room for the data or for the connection.
    Memory,
}

impl Refusal {
    /// Every reason, in the order of the discriminants.
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

    /// The label of the metric.
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

/// Counts an open connection until it is dropped.
#[derive(Debug)]
pub struct OpenConnection<'s>(&'s Stats);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connections.sub(1);
    }
}

impl Stats {
    /// The counters of a source that reports refusals to `security`.
    pub fn reporting(security: Arc<Security>) -> Self {
        Self { security, ..Self::default() }
    }

    pub fn report(&self, report: &Report<'_>) {
        self.security.report(report);
    }

    /// Counts a connection as open until the returned value is dropped.
    pub fn open(&self) -> OpenConnection<'_> {
        self.connections.add(1);
        self.connects.add(1);
        OpenConnection(self)
    }

    /// Counts a refusal or a failure.
    pub fn refuse(&self, reason: Refusal) {
        self.refused.add(1);
        self.refused_for[reason as usize].add(1);
    }

    /// Number of refusals for this reason.
    pub fn refused_for(&self, reason: Refusal) -> u64 {
        self.refused_for[reason as usize].value()
    }

    /// Records that the Odoo or a Modbus device has answered now.
    pub fn note_answer(&self) {
        self.answered.set(clock::wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    }

    /// Sets the problem that keeps the source from working; `None` if there is none.
    pub fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock() = problem;
    }

    /// The problem that keeps the source from working.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Sets the notes for the status of a source that works.
    pub fn set_notes(&self, notes: Vec<String>) {
        *self.notes.lock() = notes;
    }

    /// Notes for the status, although the source works.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().clone()
    }
}
