//! Security events: who was refused what, who was cut off, and which rights were changed, on the stream
//! `gateway.security`.
//!
//! Promise: every refusal is counted by cause. Those alike (one cause, one origin) become one event a period, with how many
//! there were, the first and the last. However many come, and from however many, memory and the number of events have a
//! bound, so that an attacker fills no lane.
//! Invariants:
//! - reporting never waits, and takes no memory beyond [`table::ROWS_MAX`] rows;
//! - no payload, password, token or path with a token is in an event.
//!
//! Not here: what is refused and why (`sources`, `admin`), what people did to events (`journal`'s audit). What waits for its
//! event is in memory: a kill loses up to [`table::PERIOD`] of counts, the log has the first of each.

mod table;

pub use table::Report;

use crate::clock;
use crate::contract::{Publication, Surroundings};
use crate::event::Timestamp;
use crate::journal::{Journal, JournalError, OwnEvent};
use crate::shutdown::Shutdown;
use crate::telemetry::Counter;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;
use table::{Table, Told};
use tokio::sync::Notify;

/// Stream of the events.
const STREAM: &str = "gateway.security";
/// Its lane. Its events are few by construction, and wanted soon.
const LANE: &str = "standard";
/// The table is looked at this often while something waits in it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the last events may take when the gateway stops: a lane that is full has no room for them.
const LAST_WAIT_MAX: Duration = Duration::from_secs(2);

/// What happened. The names are values of `cause` in events and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A user name or password was wrong, or a client showed neither where one is wanted.
    Login,
    /// A TLS handshake failed: no certificate, one of another authority, expired or revoked.
    Tls,
    /// A bearer token was wrong or missing.
    Token,
    /// A client may not publish to a topic, or not post for a source.
    Publish,
    /// A client may not subscribe to a filter.
    Subscribe,
    /// A client may not publish to the topic of its will.
    Will,
    /// A client id belongs to somebody else.
    Session,
    /// A client would have more sessions than are allowed.
    SessionQuota,
    /// A connection ended, or a subscription, since rights were changed.
    Cut,
    /// The configuration, contracts, users or certificates were changed, or a change was refused.
    Change,
    /// A change was refused at the command socket.
    Command,
}

impl Cause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Login,
        Self::Tls,
        Self::Token,
        Self::Publish,
        Self::Subscribe,
        Self::Will,
        Self::Session,
        Self::SessionQuota,
        Self::Cut,
        Self::Change,
        Self::Command,
    ];

    /// The word in events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Tls => "tls",
            Self::Token => "token",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Will => "will",
            Self::Session => "session",
            Self::SessionQuota => "session-quota",
            Self::Cut => "cut",
            Self::Change => "change",
            Self::Command => "command",
        }
    }
}

/// Gathers reports. Whoever refuses something holds one.
#[derive(Debug, Default)]
pub struct Security {
    counts: [Counter; Cause::ALL.len()],
    table: Mutex<Table>,
    reported: Notify,
}

impl Security {
    /// Counts what happened, and sees to it that central learns of it.
    pub fn report(&self, report: &Report<'_>) {
        self.counts[report.cause as usize].add(1);
        self.table().add(report, Timestamp::from(clock::wall()), clock::instant());
        self.reported.notify_one();
    }

    /// How often there was this cause, since the start.
    pub fn count(&self, cause: Cause) -> u64 {
        self.counts[cause as usize].value()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

/// Makes events of what was gathered.
#[derive(Debug)]
pub struct Teller {
    security: Arc<Security>,
    journal: Arc<Journal>,
    publication: u32,
    gateway: String,
}

impl Teller {
    /// Declares the stream. Blocks the thread.
    pub fn open(
        security: Arc<Security>,
        journal: Arc<Journal>,
        surroundings: &Surroundings,
    ) -> Result<Self, JournalError> {
        let publication = journal.publish(&Publication::own(STREAM, surroundings, LANE))?;
        Ok(Self { security, journal, publication, gateway: surroundings.gateway.clone() })
    }

    /// Works until the shutdown, and tells then what is left.
    pub async fn run(self, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.work() => return,
        }
        let rest = self.security.table().take_all(clock::instant());
        // What finds no room in time is in the log and the counters.
        let _ = tokio::time::timeout(LAST_WAIT_MAX, self.tell(rest)).await;
    }

    /// Returns only when the journal is closed.
    async fn work(&self) {
        loop {
            if self.security.table().is_empty() {
                self.security.reported.notified().await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let due = self.security.table().take_due(clock::instant());
            if !self.tell(due).await {
                return;
            }
        }
    }

    /// Whether the journal took them.
    async fn tell(&self, told: Vec<Told>) -> bool {
        for one in told {
            let id = format!("security-{}", uuid::Uuid::now_v7());
            let event = OwnEvent {
                lane: LANE,
                publication: self.publication,
                id: &id,
                device: "security",
                gateway: &self.gateway,
            };
            let data = serde_json::to_value(&one).unwrap_or_default();
            if self.journal.append_own(event, &data).await.is_err() {
                return false;
            }
        }
        true
    }
}
