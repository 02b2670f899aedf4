//! Reload: what asks for it, and what it answers.

use super::{Answered, App, LinkHandle, SourceHandle, caller, json, refuse};
use crate::event::Timestamp;
use crate::setting::Problem;
use crate::tls::{CertificateFile, RevocationFile};
use crate::watch::Board;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// What has changed, in words; or what is wrong with the new configuration, which leaves the old one in force.
pub type Reloaded = Result<Vec<String>, Vec<Problem>>;

/// Asks for a reload.
#[derive(Clone, Debug)]
pub struct Reloading(mpsc::Sender<ReloadOrder>);

/// A reload that is asked for: by whom, and who hears what comes of it.
pub type ReloadOrder = (ReloadBy, oneshot::Sender<Reloaded>);

/// Who has the configuration read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadBy {
    /// A user, by number, at the command socket.
    User(u32),
    /// SIGHUP, as `systemctl reload` sends it: the kernel does not say from whom.
    Signal,
    /// A file that was changed.
    Files,
}

impl ReloadBy {
    /// The word in the audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::User(_) => "command",
            Self::Signal => "signal",
            Self::Files => "files",
        }
    }

    /// The user, where there is one.
    pub fn user(self) -> Option<u32> {
        match self {
            Self::User(uid) => Some(uid),
            Self::Signal | Self::Files => None,
        }
    }
}

impl Reloading {
    /// The handle, and what hears it.
    pub fn new() -> (Self, mpsc::Receiver<ReloadOrder>) {
        let (sender, receiver) = mpsc::channel(4);
        (Self(sender), receiver)
    }

    /// Reads the configuration anew, and returns when it is in force or refused; `None` while the gateway ends.
    pub async fn reload(&self, by: ReloadBy) -> Option<Reloaded> {
        let (answer, answered) = oneshot::channel();
        self.0.send((by, answer)).await.ok()?;
        answered.await.ok()
    }
}

/// What runs at a moment; replaced as a whole by a reload.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The sources.
    pub sources: Vec<SourceHandle>,
    /// The links: one for each lane and destination.
    pub links: Vec<LinkHandle>,
    /// What the watch has open, if there is a watch.
    pub board: Option<Arc<Board>>,
    /// Where metrics and health are to be served, if they are.
    pub monitoring: Option<SocketAddr>,
    /// Names, other than addresses and names without dots, that requests for them may be for.
    pub monitoring_hosts: Vec<String>,
    /// The files of certificates that are in use.
    pub certificates: Vec<CertificateFile>,
    /// The files of revocation lists that are in use.
    pub revocations: Vec<RevocationFile>,
    /// Which configuration this is.
    pub configured: Option<Configured>,
}

/// Since when a configuration is in force, and what became of a newer one.
#[derive(Clone, Debug)]
pub struct Configured {
    /// When it came into force.
    pub at: Timestamp,
    /// When a newer one was refused, and why.
    pub refused: Option<(Timestamp, String)>,
}

impl Configured {
    /// The problem that there is with a newer configuration.
    pub fn problem(&self) -> Option<String> {
        let (when, why) = self.refused.as_ref()?;
        Some(format!("configuration of {when} is refused, that of {} stays in force: {why}", self.at))
    }
}

/// What a reload answers on the socket.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// What has changed, in words.
    pub changes: Vec<String>,
    /// Why it is refused.
    pub problems: Vec<String>,
}

pub(super) async fn reload(app: App) -> Answered {
    let stopping = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping");
    // A caller without a name is refused before.
    let by = caller().0.map_or(ReloadBy::Signal, ReloadBy::User);
    let answer = match app.handles.reloading.reload(by).await.ok_or_else(stopping)? {
        Ok(changes) => ReloadAnswer { changes, ..ReloadAnswer::default() },
        Err(problems) => {
            ReloadAnswer { problems: problems.iter().map(ToString::to_string).collect(), ..ReloadAnswer::default() }
        }
    };
    Ok(json(answer))
}
