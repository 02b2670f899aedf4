//! The answer to a request that is refused: problem details (RFC 9457).

use crate::http::{self, Reply};
use crate::sources;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Text for the log; it contains nothing that the client sent.
    pub(super) title: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, title: &'static str, detail: String) -> Self {
        Self { status, title, detail, headers: Vec::new() }
    }

    pub(super) fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    pub(super) fn retry_after(mut self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds.max(1))));
        self
    }

    /// Problem details (RFC 9457).
    pub(super) fn into_response(self) -> Reply {
        let text = serde_json::json!({"status": self.status.as_u16(), "title": self.title, "detail": self.detail});
        let mut response = with_body(self.status, "application/problem+json", text.to_string());
        response.headers_mut().extend(self.headers);
        response
    }
}

pub(super) fn with_body(status: StatusCode, media_type: &'static str, mut text: String) -> Reply {
    text.push('\n');
    http::reply(status, media_type, text)
}

pub(super) const NO_MEMORY: &str = "there is no memory for a request";

/// The reason under which a refusal is counted.
pub(super) fn reason_of(refusal: &Refusal) -> sources::Refusal {
    match refusal.status {
        _ if refusal.title == NO_MEMORY => sources::Refusal::Memory,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => sources::Refusal::Access,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            sources::Refusal::Limit
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::REQUEST_TIMEOUT => {
            sources::Refusal::Protocol
        }
        _ => sources::Refusal::Content,
    }
}
