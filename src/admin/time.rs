//! What is asked of the clock: what it says, whether that is believed, and a person's word that it is right.

use super::{Answered, App, json, tried};
use crate::clock;
use crate::event::Timestamp;
use serde::{Deserialize, Serialize};

/// How the clock stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Time of day, RFC 3339.
    pub time: String,
    /// Whether it is believed.
    pub is_trusted: bool,
    /// Why it is not.
    pub doubt: Option<String>,
    /// The time that certificates are judged at, RFC 3339.
    pub certificates: String,
}

impl ClockStatus {
    /// As it is now.
    pub fn now() -> Self {
        Self {
            time: Timestamp::from(clock::wall()).to_string(),
            is_trusted: clock::is_trusted(),
            doubt: clock::doubt(),
            certificates: Timestamp::from(clock::for_certificates()).to_string(),
        }
    }

    /// What is wrong, and what to do.
    pub fn problem(&self) -> Option<String> {
        let (why, time, certificates) = (self.doubt.as_deref()?, &self.time, &self.certificates);
        Some(format!(
            "clock: it says {time}, which cannot be right: {why}. Events are marked untrusted, nothing expires by age, and certificates are judged as of {certificates}; set the clock, or say that it is right: `forebay clock --trust`"
        ))
    }
}

pub(super) async fn trust(app: App) -> Answered {
    let trusted = tried(move || {
        app.handles.timekeeper.trust()?;
        app.handles.audit("clock trusted", &ClockStatus::now())
    });
    trusted.await.map(|()| json(ClockStatus::now()))
}
