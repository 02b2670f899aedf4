//! Requests at the command socket: their user, arguments and answers.
//!
//! Promise: the user of a request travels with it, so each audit entry names who asked.

use super::caller::Caller;
use super::handles::Handles;
use crate::http::{self, Reply};
use crate::journal::{BEGUN, DONE, JournalError, Note};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use hyper::StatusCode;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a request body.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);
/// Largest request body: an edited payload, or a list of letter ids.
const BODY_BYTES_MAX: usize = 2 << 20;
/// Default number of dead letters and audit entries in a response.
const ITEMS_SHOWN: u64 = 100;
/// Largest number of dead letters and audit entries in a response.
const ITEMS_SHOWN_MAX: u64 = 10_000;

/// A request at the command socket: who sent it, and the gateway that answers it.
#[derive(Clone)]
pub(super) struct CommandRequest {
    pub handles: Arc<Handles>,
    pub shutdown: Shutdown,
    pub caller: Caller,
}

impl CommandRequest {
    /// Writes an audit entry for this request: action, detail and result. Blocks the thread.
    pub(super) fn audit(&self, action: &str, detail: &impl Serialize, result: &str) -> Result<(), JournalError> {
        self.handles.journal.audit(action, self.caller.0, detail, result)
    }

    /// Audits a long operation twice: before it begins, and with its result. Blocks the thread.
    pub(super) fn audited<T>(
        &self,
        action: &str,
        detail: &impl Serialize,
        work: impl FnOnce() -> Result<(T, serde_json::Value), JournalError>,
    ) -> Result<T, JournalError> {
        self.audit(action, detail, BEGUN)?;
        match work() {
            Ok((value, done)) => self.audit(action, &done, DONE).map(|()| value),
            Err(error) => {
                self.audit(action, detail, &format!("failed: {error}"))?;
                Err(error)
            }
        }
    }

    /// Returns an audit entry for this request, to be committed together with the change that it describes.
    pub(super) fn audit_note(&self, action: &str, detail: &impl Serialize) -> Note {
        self.handles.journal.audit_note(action, self.caller.0, detail, DONE)
    }
}

/// Result of a request handler.
pub(super) type ApiResult = Result<Reply, ApiError>;

/// Error response: status code and message.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    pub why: String,
}

impl From<ApiError> for Reply {
    fn from(refused: ApiError) -> Self {
        http::text(refused.status, refused.why)
    }
}

/// The query string of a request.
#[derive(Clone, Copy)]
pub(super) struct Query<'a>(pub &'a str);

impl Query<'_> {
    pub(super) fn text(self, name: &str) -> Option<String> {
        let (_, value) = self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    }

    pub(super) fn number(self, name: &str) -> Result<Option<u64>, ApiError> {
        let wrong = |text| refuse(StatusCode::BAD_REQUEST, format!("{name} is \"{text}\"; expected a number"));
        self.text(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }

    /// Returns the largest number of items that the response may have.
    pub(super) fn limit(self) -> Result<usize, ApiError> {
        Ok(self.number("limit")?.unwrap_or(ITEMS_SHOWN).min(ITEMS_SHOWN_MAX) as usize)
    }
}

/// Reads the JSON body of a request.
pub(super) async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, ApiError> {
    let read = tokio::time::timeout(BODY_WAIT_MAX, http::read(body, BODY_BYTES_MAX)).await;
    let read = read.map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?;
    let bytes = read.map_err(|unread| match http::is_too_large(&unread) {
        true => refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is too large; at most {BODY_BYTES_MAX} bytes are taken"),
        ),
        false => refuse(StatusCode::BAD_REQUEST, format!("the body: {unread}")),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

pub(super) fn json(value: impl Serialize) -> Reply {
    match serde_json::to_vec(&value) {
        Ok(text) => http::reply(StatusCode::OK, "application/json", text),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into(),
    }
}

pub(super) fn refuse(status: StatusCode, why: impl Into<String>) -> ApiError {
    ApiError { status, why: why.into() }
}

/// Runs `work` on the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    spawn_blocking(work).await.map_err(|error| match error.is_panic() {
        true => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the request failed in the gateway; see its log"),
        false => refuse(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping"),
    })
}

/// Like [`blocking`], for work that can fail.
pub(super) async fn try_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, ApiError> {
    blocking(work).await?.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
