//! Why there is no session, in words for the person who has to mend it.

use crate::secret::Unreadable;
use crate::setting::Span;
use crate::tls::TlsError;
use std::io;
use std::time::Duration;

/// Why there is no session, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Certificates or keys of our own.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password.
    #[error(transparent)]
    Password(#[from] Unreadable),
    /// The name does not resolve.
    #[error("{host} does not resolve: {error}")]
    Name {
        /// The host name.
        host: String,
        /// What the resolver says.
        error: io::Error,
    },
    /// Nothing answers.
    #[error("{address} does not answer: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// Why.
        reason: String,
    },
    /// The TLS handshake failed.
    #[error("TLS with {host}: {error}")]
    Handshake {
        /// The host name.
        host: String,
        /// What does not fit.
        error: io::Error,
    },
    /// None of several brokers lets us in.
    #[error("none of the brokers can be used: {0}")]
    None(String),
    /// The broker does not let us in.
    #[error("the broker refuses the connection: {0}")]
    Refused(String),
    /// The broker said goodbye.
    #[error("the broker ended the connection: {0}")]
    Ended(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// The line is silent.
    #[error("nothing came for {} although it was asked for", Span(*.0))]
    Silent(Duration),
    /// The line is alive, but nothing is acknowledged.
    #[error("no acknowledgement came for {}", Span(*.0))]
    Stuck(Duration),
    /// What came is no MQTT.
    #[error("the broker broke the protocol: {0}")]
    Protocol(String),
}

impl LinkError {
    /// Whether the peer ended a session that was alive, as it does for an event it cannot stand.
    pub fn is_by_peer(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Broken(_)) && !self.is_takeover()
    }

    /// Whether the broker ended the session because another client came with the same client id.
    pub fn is_takeover(&self) -> bool {
        matches!(self, Self::Ended(reason) if reason.starts_with(super::packet::TAKEN_OVER))
    }
}
