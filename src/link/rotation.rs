//! Credential rotation: a session with new certificates or a new password replaces the open one.

use crate::backoff::{Backoff, Jitter};
use crate::clock;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Time limit for opening the new session; meanwhile nothing is sent on the old one.
pub(super) const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
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

    /// Creates one that is never triggered.
    pub(crate) fn never() -> Self {
        Self::new(watch::channel(0).1)
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

    /// Schedules another attempt after a failed one.
    pub(super) fn schedule_retry(&mut self) {
        self.due = Some(clock::instant() + self.retries.next());
    }
}
