//! Credential rotation: a session with new certificates or a new password replaces the open one.

use super::{Forwarder, SessionEnd};
use crate::link::ConnectAs;
use crate::shutdown::Shutdown;
use std::time::Duration;

/// Time limit for opening the new session; meanwhile nothing is sent on the old one.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);

impl Forwarder {
    /// Opens a session with the new credentials while the old one is open; nothing is in flight. Returns `None` if
    /// that fails: the old session continues.
    pub(super) async fn rotate_credentials(&mut self, shutdown: &mut Shutdown) -> Option<SessionEnd> {
        let connect_as = ConnectAs::client(self.client.clone());
        let attempt = tokio::time::timeout(CONNECT_WAIT_MAX, self.target.connect(&connect_as));
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
