//! Clock status, and the request by which an operator confirms the time.

use super::{ApiResult, App, json, try_blocking};
use crate::clock;
use crate::event::Timestamp;
use serde::{Deserialize, Serialize};

/// Time of the gateway, and whether it is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Time of day, RFC 3339.
    pub time: String,
    /// Whether the gateway trusts this time.
    pub is_trusted: bool,
    /// Reason why it does not.
    pub doubt: Option<String>,
    /// The time that certificates are judged at, RFC 3339.
    pub certificates: String,
}

impl ClockStatus {
    /// Returns the present status.
    pub fn now() -> Self {
        Self {
            time: Timestamp::from(clock::wall()).to_string(),
            is_trusted: clock::is_trusted(),
            doubt: clock::doubt(),
            certificates: Timestamp::from(clock::for_certificates()).to_string(),
        }
    }

    /// Returns the problem and the remedy; `None` if the clock is trusted.
    pub fn problem(&self) -> Option<String> {
        let (why, time, certificates) = (self.doubt.as_deref()?, &self.time, &self.certificates);
        Some(format!(
            "clock: it shows {time}, which cannot be right: {why}. Events are marked untrusted, nothing expires by age, and certificates are checked as of {certificates}; set the clock, or confirm that it is right: `forebay clock --trust`"
        ))
    }
}

pub(super) async fn trust(app: App) -> ApiResult {
    let trusted = try_blocking(move || {
        app.handles.timekeeper.trust()?;
        app.handles.audit("clock trusted", &ClockStatus::now())
    });
    trusted.await.map(|()| json(ClockStatus::now()))
}
