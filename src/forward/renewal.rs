//! Renewal: new certificates or passwords of a destination, taken up while the old session lasts.

use super::{End, Forwarder};
use crate::clock;
use crate::shutdown::Shutdown;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long the new session may take; meanwhile nothing is sent on the old one.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Pauses after an attempt that failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Says when there is something new, and when it is to be tried.
#[derive(Clone, Debug)]
pub struct Renewal {
    changed: watch::Receiver<u64>,
    due: Option<Instant>,
    failures: u32,
}

impl Renewal {
    /// One that hears of each new number.
    pub fn new(changed: watch::Receiver<u64>) -> Self {
        Self { changed, due: None, failures: 0 }
    }

    /// A session that is opened from now on uses what is there now.
    pub(super) fn done(&mut self) {
        self.changed.borrow_and_update();
        (self.due, self.failures) = (None, 0);
    }

    /// Whether a new session is to be opened now.
    pub(super) fn is_due(&mut self) -> bool {
        if self.changed.has_changed().unwrap_or(false) {
            self.changed.borrow_and_update();
            self.begin();
        }
        self.due.is_some_and(|due| clock::instant() >= due)
    }

    /// Returns when [`Renewal::is_due`] may have changed. Safe to drop half-way.
    pub(super) async fn wait(&mut self) {
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
            // The gateway is ending.
            return std::future::pending().await;
        }
        self.begin();
    }

    /// There is something new: it is tried at once.
    fn begin(&mut self) {
        (self.due, self.failures) = (Some(clock::instant()), 0);
    }

    fn failed(&mut self) {
        let pause = PAUSE.0 * 2u32.pow(self.failures.min(6));
        self.failures += 1;
        self.due = Some(clock::instant() + pause.min(PAUSE.1));
    }
}

impl Forwarder {
    /// Opens a session with what is new, while the old one lasts; nothing is in flight. `None` if that
    /// fails: the old session goes on.
    pub(super) async fn renew(&mut self, shutdown: &mut Shutdown) -> Option<End> {
        let attempt = tokio::time::timeout(CONNECT_WAIT_MAX, self.target.connect(&self.client, None));
        let connected = tokio::select! {
            () = shutdown.begun() => return Some(End::Shutdown),
            connected = attempt => connected,
        };
        let why = match connected {
            Ok(Ok(session)) => {
                self.renewal.done();
                self.stats.set(|state| state.note = None);
                return Some(End::Better(Box::new(session), "new certificates and passwords are in force"));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no session within {} s", CONNECT_WAIT_MAX.as_secs()),
        };
        self.renewal.failed();
        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, error = %why, "the new certificates or passwords are not accepted; the session goes on with the old ones");
        self.stats.set(|state| {
            state.note = Some(format!(
                "the new certificates or passwords are not accepted ({why}); the session goes on with the old ones"
            ));
        });
        None
    }
}
