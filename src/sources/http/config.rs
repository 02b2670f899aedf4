//! The settings of an HTTP source, with their checks.

use super::request_memory::REQUEST_BYTES;
use crate::setting::{Bytes, Span};
use crate::sources::PAYLOAD_BYTES_MAX;
use crate::sources::socket::is_loopback;
use crate::tls::{self, Certificates, Served, ServerFiles, TlsError};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The configuration of an HTTP source.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Certificates; without them the source speaks plain TCP.
    pub tls: Option<ServerFiles>,
    /// File of names and hashes of bearer tokens.
    pub tokens: Option<PathBuf>,
    /// Whether callers without token and certificate are accepted. By default only on loopback.
    pub anonymous: Option<bool>,
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Events per second of each caller.
    #[serde(default = "events_per_second_max")]
    pub events_per_second_max: u32,
    /// The largest payload of an event.
    #[serde(default = "payload_max")]
    pub payload_max: Bytes,
    /// The largest body that is an envelope: a structured CloudEvent, or a batch of them.
    #[serde(default = "body_max")]
    pub body_max: Bytes,
    /// Bytes of the requests in progress, over all connections.
    #[serde(default = "waiting_max")]
    pub waiting_max: Bytes,
    /// Time limit for the TLS handshake, for the head of a request and for its body.
    #[serde(default = "request_wait_max")]
    pub request_wait_max: Span,
    /// How long a request waits for its receipts.
    #[serde(default = "answer_wait_max")]
    pub answer_wait_max: Span,
}

fn connections_max() -> usize {
    1000
}
fn events_per_second_max() -> u32 {
    1000
}
fn payload_max() -> Bytes {
    Bytes(256 << 10)
}
fn body_max() -> Bytes {
    Bytes(1 << 20)
}
fn waiting_max() -> Bytes {
    Bytes(16 << 20)
}
fn request_wait_max() -> Span {
    Span(Duration::from_secs(10))
}
fn answer_wait_max() -> Span {
    Span(Duration::from_secs(10))
}

const BODY_BYTES_MAX: u64 = 32 << 20;
const WAITING_BYTES_MAX: u64 = 1 << 30;

impl Config {
    /// Checks the values, also against each other. The error is the key and the reason.
    pub(super) fn check_values(&self) -> Result<(), (&'static str, String)> {
        let bounded = |key, value: Bytes, max: u64| {
            let is_good = value.0 > 0 && value.0 <= max;
            let message = || format!("{value} is out of bounds; 1 byte to {} are allowed", Bytes(max));
            if is_good { Ok(()) } else { Err((key, message())) }
        };
        bounded("payload_max", self.payload_max, PAYLOAD_BYTES_MAX)?;
        bounded("body_max", self.body_max, BODY_BYTES_MAX)?;
        bounded("waiting_max", self.waiting_max, WAITING_BYTES_MAX)?;
        let largest = self.payload_max.0.max(self.body_max.0) + REQUEST_BYTES;
        if self.waiting_max.0 < largest {
            let least = Bytes(largest);
            return Err((
                "waiting_max",
                format!("{} has no room for one request; {least} are needed", self.waiting_max),
            ));
        }
        for (key, is_zero) in [
            ("connections_max", self.connections_max == 0),
            ("events_per_second_max", self.events_per_second_max == 0),
            ("request_wait_max", self.request_wait_max.0.is_zero()),
            ("answer_wait_max", self.answer_wait_max.0.is_zero()),
        ] {
            if is_zero {
                return Err((key, "0 is not allowed".into()));
            }
        }
        Ok(())
    }

    /// Whether callers without token and certificate are accepted.
    pub fn accepts_anonymous(&self) -> bool {
        self.anonymous
            .unwrap_or_else(|| is_loopback(self.listen.ip()) && self.tokens.is_none() && !self.knows_clients())
    }

    /// Whether no caller at all is accepted.
    pub fn lets_in_nobody(&self) -> bool {
        self.tokens.is_none() && !self.knows_clients() && !self.accepts_anonymous()
    }

    fn knows_clients(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// The TLS of the source. Client certificates are optional if callers can be accepted without one.
    pub fn server(&self) -> Result<Option<Served>, TlsError> {
        let others = self.tokens.is_some() || self.accepts_anonymous();
        let certificates = if others { Certificates::Optional } else { Certificates::Required };
        self.tls.as_ref().map(|files| tls::served(files, certificates)).transpose()
    }
}
