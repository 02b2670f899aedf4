//! Errors of a link, worded for the operator who has to fix the cause.

use crate::mqtt::client::{BrokerFault, NO_RETAIN, TAKEN_OVER};
use crate::secret::Unreadable;
use crate::setting::Span;
use crate::tls::TlsError;
use std::io;
use std::time::Duration;

/// Why the session could not be opened, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The TLS files of the gateway cannot be used, or the server's certificate is not acceptable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password file cannot be read.
    #[error(transparent)]
    Password(#[from] Unreadable),
    /// The host name does not resolve.
    #[error("{host} does not resolve: {error}")]
    Name {
        /// Host name of the broker.
        host: String,
        error: io::Error,
    },
    /// No TCP connection could be opened.
    #[error("{address} does not answer: {reason}")]
    Unreachable {
        address: String,
        /// Error of the last attempt.
        reason: String,
    },
    #[error("TLS with {host}: {reason}")]
    Handshake {
        /// Host name of the broker.
        host: String,
        /// What failed, and what to do.
        reason: String,
    },
    /// The proxy opened no connection to the broker.
    #[error("proxy {proxy}, on the way to {address}: {reason}")]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// Host and port of the broker.
        address: String,
        reason: String,
    },
    /// The server opened no WebSocket.
    #[error("WebSocket at {address}, path \"{path}\": {reason}")]
    WebSocket { address: String, path: String, reason: String },
    /// None of several brokers accepted a connection; the text lists their errors.
    #[error("cannot connect to any of the brokers: {0}")]
    None(String),
    #[error("the broker refuses the connection: {0}")]
    Refused(String),
    #[error("the broker ended the connection: {0}")]
    Ended(String),
    /// Reading or writing failed, or the broker closed the connection.
    #[error("connection lost: {0}")]
    Broken(io::Error),
    /// The broker sent nothing, not even a PINGRESP or CONNACK, for this long.
    #[error("the broker did not answer for {}", Span(*.0))]
    Silent(Duration),
    /// The connection is alive, but the broker acknowledged nothing for this long.
    #[error("no acknowledgement came for {}", Span(*.0))]
    Stuck(Duration),
    /// The broker violated the MQTT protocol.
    #[error("protocol error of the broker: {0}")]
    Protocol(String),
}

impl From<BrokerFault> for LinkError {
    fn from(BrokerFault(text): BrokerFault) -> Self {
        Self::Protocol(text)
    }
}

impl LinkError {
    /// Whether the peer ended a working session, as some brokers do on an event that they cannot process.
    pub fn is_by_peer(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Broken(_)) && !self.is_takeover()
    }

    /// Returns whether the peer or its certificate is the reason that no session opens: waiting does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Tls(_) | Self::Password(_) | Self::Handshake { .. })
    }

    /// Returns whether something that was sent may have ended a working session: the peer ended it, or its answer was wrong.
    pub fn may_be_about_a_publish(&self) -> bool {
        self.is_by_peer() || matches!(self, Self::Protocol(_))
    }

    /// Whether the broker refuses a will that it would have to retain.
    pub fn is_about_retain(&self) -> bool {
        matches!(self, Self::Refused(reason) if reason.starts_with(NO_RETAIN))
    }

    /// Whether the broker ended the session because another client connected with the same client id.
    pub fn is_takeover(&self) -> bool {
        matches!(self, Self::Ended(reason) if reason.starts_with(TAKEN_OVER))
    }
}
