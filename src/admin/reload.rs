//! Requests a reload of the configuration, and holds its result.

use super::{ApiResult, App, LinkHandle, SourceHandle, caller, json, refuse};
use crate::api::ReloadAnswer;
use crate::event::Timestamp;
use crate::setting::Problem;
use crate::tls::{CertificateFile, RevocationFile};
use crate::watch::Board;
use hyper::StatusCode;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Result of a reload: one line per change, or the problems of a refused configuration.
pub type Reloaded = Result<Vec<String>, Vec<Problem>>;

/// Sends reload requests to the supervisor of the gateway.
#[derive(Clone, Debug)]
pub struct Reloading(mpsc::Sender<ReloadOrder>);

/// A reload request: its trigger, and the channel for its result.
pub type ReloadOrder = (ReloadBy, oneshot::Sender<Reloaded>);

/// Trigger of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadBy {
    /// A user (uid) at the command socket.
    User(u32),
    /// SIGHUP, as `systemctl reload` sends it; the sender is unknown.
    Signal,
    /// A changed configuration file.
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

/// The running parts. A reload replaces the whole value.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// All running sources.
    pub sources: Vec<SourceHandle>,
    /// All links: one per lane and destination.
    pub links: Vec<LinkHandle>,
    /// Open business exceptions, if the watch is on.
    pub board: Option<Arc<Board>>,
    /// Address for metrics and health, if monitoring is on.
    pub monitoring: Option<SocketAddr>,
    /// Accepted host names of monitoring requests, besides addresses and names without dots.
    pub monitoring_hosts: Vec<String>,
    /// The certificate files in use.
    pub certificates: Vec<CertificateFile>,
    /// The revocation lists in use.
    pub revocations: Vec<RevocationFile>,
    /// Age and refusals of the configuration; `None` while the gateway starts.
    pub configured: Option<Configured>,
}

/// Time of the configuration in force, and of a newer one that was refused.
#[derive(Clone, Debug)]
pub struct Configured {
    /// When it came into force.
    pub at: Timestamp,
    /// Time and reason of the last refusal, if a newer one was refused.
    pub refused: Option<(Timestamp, String)>,
}

impl Configured {
    /// Returns the problem if a newer configuration was refused.
    pub fn problem(&self) -> Option<String> {
        let (when, why) = self.refused.as_ref()?;
        Some(format!("configuration of {when} is refused, that of {} stays in force: {why}", self.at))
    }
}

pub(super) async fn reload(app: App) -> ApiResult {
    let stopping = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping");
    // Callers without a known uid were refused before.
    let by = caller().0.map_or(ReloadBy::Signal, ReloadBy::User);
    let answer = match app.handles.reloading.reload(by).await.ok_or_else(stopping)? {
        Ok(changes) => ReloadAnswer { changes, ..ReloadAnswer::default() },
        Err(problems) => {
            ReloadAnswer { problems: problems.iter().map(ToString::to_string).collect(), ..ReloadAnswer::default() }
        }
    };
    Ok(json(answer))
}
