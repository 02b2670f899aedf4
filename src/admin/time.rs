//! Clock status, and the request by which an operator confirms the time.

use super::{ApiResult, App, json, try_blocking};
use crate::api::ClockStatus;
use crate::clock;
use crate::event::Timestamp;

/// Returns the present status of the clock.
pub(super) fn status() -> ClockStatus {
    ClockStatus {
        time: Timestamp::from(clock::wall()).to_string(),
        is_trusted: clock::is_trusted(),
        doubt: clock::doubt(),
        certificates: Timestamp::from(clock::for_certificates()).to_string(),
    }
}

pub(super) async fn trust(app: App) -> ApiResult {
    let trusted = try_blocking(move || {
        app.handles.timekeeper.trust()?;
        app.handles.audit("clock trusted", &status())
    });
    trusted.await.map(|()| json(status()))
}
