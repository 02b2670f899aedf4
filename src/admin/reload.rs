//! Requests a reload of the configuration from the supervisor of the gateway.

use crate::setting::Problem;
use tokio::sync::{mpsc, oneshot};

/// Result of a reload: one line per change, or the problems of a refused configuration.
pub type Reloaded = Result<Vec<String>, Vec<Problem>>;

/// Sends reload requests to the supervisor of the gateway.
#[derive(Clone, Debug)]
pub struct Reloading(mpsc::Sender<ReloadOrder>);

/// A reload request: its trigger, and the channel for its result.
pub type ReloadOrder = (ReloadBy, oneshot::Sender<Reloaded>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadBy {
    /// A user (uid) at the command socket.
    User(u32),
    /// SIGHUP, as `systemctl reload` sends it; the sender is unknown.
    Signal,
    Files,
}

impl ReloadBy {
    /// Returns the name in the audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::User(_) => "command",
            Self::Signal => "signal",
            Self::Files => "files",
        }
    }

    /// Returns the uid, if it is known.
    pub fn user(self) -> Option<u32> {
        match self {
            Self::User(uid) => Some(uid),
            Self::Signal | Self::Files => None,
        }
    }
}

impl Reloading {
    /// Returns the handle and the receiver of its requests.
    pub fn new() -> (Self, mpsc::Receiver<ReloadOrder>) {
        let (sender, receiver) = mpsc::channel(4);
        (Self(sender), receiver)
    }

    /// Reloads the configuration. Returns when it is in force or refused; `None` if the gateway is stopping.
    pub async fn reload(&self, by: ReloadBy) -> Option<Reloaded> {
        let (answer, answered) = oneshot::channel();
        self.0.send((by, answer)).await.ok()?;
        answered.await.ok()
    }
}
