//! Security events: refused access, closed connections and changed rights, on the stream `gateway.security`.
//!
//! Promise: every refusal is counted by cause. Refusals of one cause and origin become one event per period, with their
//! number and the times of the first and last. Memory and the number of events are bounded, however many refusals of
//! however many origins occur, so an attacker cannot fill a lane.
//! Invariants:
//! - reporting never waits, and takes no memory beyond [`table::ROWS_MAX`] rows;
//! - an event never contains a payload, a password, a token or a path with a token.
//!
//! Not here: the decision what to refuse (`sources`, `admin`), the audit of changes to events (`journal`). Counts wait
//! in memory for their event: a kill loses up to [`table::PERIOD`] of them, but the log has the first of each.

mod cause;
mod table;

pub use cause::Cause;
pub use table::Report;

use crate::clock;
use crate::contract::{GatewayNames, Publication};
use crate::event::Timestamp;
use crate::journal::{GatewayEvent, Journal, JournalError};
use crate::shutdown::Shutdown;
use crate::telemetry::Counter;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;
use table::{SecurityEvent, Table};
use tokio::sync::Notify;

const STREAM: &str = "gateway.security";
/// Lane of the stream. Its events are few by construction, and urgent.
const LANE: &str = "standard";
/// Interval at which due rows become events.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time for the last events at shutdown: a full lane has no room for them.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(2);

/// Collects the reports of all parts that refuse access.
#[derive(Debug, Default)]
pub struct Security {
    counts: [Counter; Cause::ALL.len()],
    table: Mutex<Table>,
    reported: Notify,
}

impl Security {
    /// Counts a report and queues it for an event.
    pub fn report(&self, report: &Report<'_>) {
        self.counts[report.cause as usize].add(1);
        self.table().add(report, Timestamp::from(clock::wall()), clock::instant());
        self.reported.notify_one();
    }

    /// Number of reports of a cause since the start.
    pub fn count(&self, cause: Cause) -> u64 {
        self.counts[cause as usize].value()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

/// Publishes the collected reports as events.
#[derive(Debug)]
pub struct SecurityReporter {
    security: Arc<Security>,
    journal: Arc<Journal>,
    publication: u32,
    gateway: String,
}

impl SecurityReporter {
    /// Declares the stream. Blocks the thread.
    pub fn open(
        security: Arc<Security>,
        journal: Arc<Journal>,
        surroundings: &GatewayNames,
    ) -> Result<Self, JournalError> {
        let publication = journal.publish(&Publication::own(STREAM, surroundings, LANE))?;
        Ok(Self { security, journal, publication, gateway: surroundings.gateway.clone() })
    }

    /// Publishes events until the shutdown, and then the remaining reports.
    pub async fn run(self, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.publish() => return,
        }
        let rest = self.security.table().take_all(clock::instant());
        // Events without room in time are lost, but are in the log and the counters.
        let _ = tokio::time::timeout(LAST_EVENTS_TIMEOUT, self.append(rest)).await;
    }

    /// Returns only when the journal is closed.
    async fn publish(&self) {
        loop {
            if self.security.table().is_empty() {
                self.security.reported.notified().await;
            }
            tokio::time::sleep(FLUSH_INTERVAL).await;
            let due = self.security.table().take_due(clock::instant());
            if !self.append(due).await {
                return;
            }
        }
    }

    /// Appends events to the journal; `false` if it is closed.
    async fn append(&self, events: Vec<SecurityEvent>) -> bool {
        for security_event in events {
            let id = format!("security-{}", uuid::Uuid::now_v7());
            let event = GatewayEvent {
                lane: LANE,
                publication: self.publication,
                id: &id,
                device: "security",
                gateway: &self.gateway,
            };
            let data = serde_json::to_value(&security_event).unwrap_or_default();
            if self.journal.append_gateway_event(event, &data).await.is_err() {
                return false;
            }
        }
        true
    }
}
