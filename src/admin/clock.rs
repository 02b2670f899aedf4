//! Clock status, and the request by which an operator confirms the time.

use super::request::{ApiResult, CommandRequest, json, try_blocking};
use crate::api::ClockStatus;
use crate::clock;
use crate::event::Timestamp;
use crate::journal::DONE;

/// Returns the present status of the clock.
pub(super) fn status() -> ClockStatus {
    ClockStatus {
        time: Timestamp::from(clock::wall()).to_string(),
        is_trusted: clock::is_trusted(),
        doubt: clock::doubt(),
        certificates: Timestamp::from(clock::for_certificates()).to_string(),
    }
}

pub(super) async fn trust(request: CommandRequest) -> ApiResult {
    let trusted = try_blocking(move || {
        request.handles.timekeeper.trust()?;
        request.audit("clock trusted", &status(), DONE)
    });
    trusted.await.map(|()| json(status()))
}
