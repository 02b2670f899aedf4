//! Credential rotation: a session with new certificates or a new password replaces the open one.

use super::{Forwarder, SessionEnd};
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::shutdown::Shutdown;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Time limit for opening the new session; meanwhile nothing is sent on the old one.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Pauses after failed attempts.
const RETRIES: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(600), Jitter::None);

/// Signals new credentials, and schedules the attempts to connect with them.
#[derive(Clone, Debug)]
pub struct CredentialRotation {
    changed: watch::Receiver<u64>,
    due: Option<Instant>,
    retries: Backoff,
}

impl CredentialRotation {
    /// Creates one that is triggered by each new value of `changed`.
    pub fn new(changed: watch::Receiver<u64>) -> Self {
        Self { changed, due: None, retries: RETRIES }
    }

    /// Marks the current credentials as in use: the next session is opened with them.
    pub(super) fn mark_used(&mut self) {
        self.changed.borrow_and_update();
        self.due = None;
        self.retries.reset();
    }

    /// Whether it is time to open a session with new credentials.
    pub(super) fn is_due(&mut self) -> bool {
        if self.changed.has_changed().unwrap_or(false) {
            self.changed.borrow_and_update();
            self.schedule_now();
        }
        self.due.is_some_and(|due| clock::instant() >= due)
    }

    /// Waits until [`CredentialRotation::is_due`] may have changed. Safe to drop half-way.
    pub(super) async fn changed(&mut self) {
        let Self { changed, due, .. } = self;
        let due = async {
            match *due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let is_changed = tokio::select! {
            () = due => return,
            changed = changed.changed() => changed.is_ok(),
        };
        if !is_changed {
            // The sender is gone: the gateway is shutting down.
            return std::future::pending().await;
        }
        self.schedule_now();
    }

    /// Schedules an attempt at once.
    fn schedule_now(&mut self) {
        self.due = Some(clock::instant());
        self.retries.reset();
    }

    fn schedule_retry(&mut self) {
        self.due = Some(clock::instant() + self.retries.next());
    }
}

impl Forwarder {
    /// Opens a session with the new credentials while the old one is open; nothing is in flight. Returns `None` if
    /// that fails: the old session continues.
    pub(super) async fn rotate_credentials(&mut self, shutdown: &mut Shutdown) -> Option<SessionEnd> {
        let attempt = tokio::time::timeout(CONNECT_WAIT_MAX, self.target.connect(&self.client, None));
        let connected = tokio::select! {
            () = shutdown.begun() => return Some(SessionEnd::Shutdown),
            connected = attempt => connected,
        };
        let why = match connected {
            Ok(Ok(session)) => {
                self.rotation.mark_used();
                self.stats.set(|state| state.note = None);
                return Some(SessionEnd::Replaced(Box::new(session), "new certificates and passwords are in force"));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no session within {} s", CONNECT_WAIT_MAX.as_secs()),
        };
        self.rotation.schedule_retry();
        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, error = %why, "cannot connect with the new certificates or password; continuing on the old session, will retry");
        self.stats.set(|state| {
            state.note = Some(format!(
                "cannot connect with the new certificates or password ({why}); continuing on the old session"
            ));
        });
        None
    }
}
