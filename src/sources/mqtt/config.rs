//! The settings of a listener, with their defaults and checks.

use super::acl::Rule;
use super::registry::Quotas;
use crate::mqtt::connect::NEVER_EXPIRES;
use crate::setting::{Bytes, Span};
use crate::sources::PAYLOAD_BYTES_MAX;
use crate::sources::socket::is_loopback;
use crate::tls::ServerFiles;
use serde::Deserialize;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// The configuration of a listener.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Certificates; without them the listener speaks plain TCP.
    pub tls: Option<ServerFiles>,
    /// File of users and password hashes.
    pub passwords: Option<PathBuf>,
    /// Whether clients without user name and certificate are accepted. By default only on loopback.
    pub anonymous: Option<bool>,
    /// Most clients connected at once. At the limit, the party (user or address) with most connections loses one to
    /// a party that has fewer.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    #[serde(default = "connects_per_second_max")]
    pub connects_per_second_max: u32,
    /// Time from the TCP connection to CONNECT.
    #[serde(default = "connect_wait_max")]
    pub connect_wait_max: Span,
    #[serde(default = "payload_max")]
    pub payload_max: Bytes,
    /// What becomes of a publish that is larger than `payload_max` or whose topic is longer than `topic_max`.
    #[serde(default)]
    pub too_large: RefusedPublish,
    /// What becomes of a publish that its client has no right to.
    #[serde(default = "not_allowed")]
    pub not_allowed: RefusedPublish,
    /// Most bytes of a topic or a topic filter.
    #[serde(default = "topic_max")]
    pub topic_max: usize,
    /// Time from the first byte of a packet to its last, plus a second per 500 bytes.
    #[serde(default = "packet_wait_max")]
    pub packet_wait_max: Span,
    /// Unacknowledged publishes of a client (Receive Maximum of MQTT 5).
    #[serde(default = "receive_maximum")]
    pub receive_maximum: u16,
    /// Events per second of each client; the gateway slows down a client that exceeds it. Without it there is no limit.
    pub events_per_second_max: Option<NonZeroU32>,
    /// Bytes of a connection that may wait for the disk.
    #[serde(default = "waiting_max")]
    pub waiting_max: Bytes,
    /// Rules of who may publish and subscribe where, in addition to the default rights of proven names.
    #[serde(default)]
    pub acl: Vec<Rule>,
    /// Whether the contracts give a proven name rights to its own topics. Without it, only `acl` counts.
    #[serde(default = "default_rights")]
    pub default_rights: bool,
    /// Longest time that a session outlives its connection.
    #[serde(default = "session_expiry_max")]
    pub session_expiry_max: Span,
    /// Sessions that outlive their connection, of all listeners.
    #[serde(default = "sessions_max")]
    pub sessions_max: usize,
    /// Of these, sessions of one proven name, or of one address for clients without one.
    #[serde(default = "sessions_per_name_max")]
    pub sessions_per_name_max: usize,
    /// Bytes of all of them on the disk, about.
    #[serde(default = "sessions_bytes_max")]
    pub sessions_bytes_max: Bytes,
    /// Of these, bytes of one proven name, or of one address.
    #[serde(default = "sessions_bytes_per_name_max")]
    pub sessions_bytes_per_name_max: Bytes,
    #[serde(default = "subscriptions_max")]
    pub subscriptions_max: usize,
    /// QoS 2 publishes of a client that are accepted and not released; at least `receive_maximum`.
    #[serde(default = "exchanges_max")]
    pub exchanges_max: usize,
    /// Events of each lane that a subscriber may be behind, connected or not; older ones are not sent to it.
    #[serde(default = "backlog_events_max")]
    pub backlog_events_max: u64,
    /// Bytes of each lane's log that are sent to a subscriber that reconnects, about.
    #[serde(default = "backlog_bytes_max")]
    pub backlog_bytes_max: Bytes,
    /// The oldest event that is sent to a subscriber.
    #[serde(default = "backlog_age_max")]
    pub backlog_age_max: Span,
}

/// What becomes of a publish that the listener does not take as an event. The connection lives in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedPublish {
    /// It is kept as a dead letter and acknowledged.
    #[default]
    DeadLetter,
    /// Its acknowledgement has a reason code and nothing is kept. MQTT 3.1.1 knows no reason codes: a dead letter there.
    ReasonCode,
}

fn connections_max() -> usize {
    10_000
}
fn connects_per_second_max() -> u32 {
    500
}
fn connect_wait_max() -> Span {
    Span(Duration::from_secs(10))
}
fn payload_max() -> Bytes {
    Bytes(256 << 10)
}
/// A client without the right is mostly a mistake that its owner has to notice.
fn not_allowed() -> RefusedPublish {
    RefusedPublish::ReasonCode
}
/// Topics of plants stay below 200 bytes; Unified Namespace and Sparkplug names below 500.
fn topic_max() -> usize {
    1024
}
/// The same as the time that a client may refuse to read: longer than a radio link is down while it changes its cell.
fn packet_wait_max() -> Span {
    Span(Duration::from_secs(20))
}
fn receive_maximum() -> u16 {
    256
}
fn waiting_max() -> Bytes {
    Bytes(1 << 20)
}

fn default_rights() -> bool {
    true
}
fn session_expiry_max() -> Span {
    Span(Duration::from_secs(7 * 86_400))
}
fn sessions_max() -> usize {
    10_000
}
/// A device has one session, a program on a server some; a name with more is not one client.
fn sessions_per_name_max() -> usize {
    64
}
/// 10,000 sessions with a subscription or two; recovery reads that in a tenth of a second.
fn sessions_bytes_max() -> Bytes {
    Bytes(32 << 20)
}
/// 64 sessions with a dozen subscriptions of 60 bytes each.
fn sessions_bytes_per_name_max() -> Bytes {
    Bytes(1 << 20)
}
fn subscriptions_max() -> usize {
    64
}
/// Clients of MQTT 3.1.1 know no Receive Maximum; their libraries send 20 to 1,000 publishes at once.
fn exchanges_max() -> usize {
    1024
}
fn backlog_events_max() -> u64 {
    100_000
}
fn backlog_bytes_max() -> Bytes {
    Bytes(64 << 20)
}
fn backlog_age_max() -> Span {
    Span(Duration::from_secs(86_400))
}

impl Config {
    /// Checks values against each other. The error is the key and what is wrong with it.
    pub(super) fn check_values(&self) -> Result<(), (&'static str, String)> {
        if self.payload_max.0 == 0 || self.payload_max.0 > PAYLOAD_BYTES_MAX {
            return Err((
                "payload_max",
                format!("{} is out of bounds; 1 byte to {} are allowed", self.payload_max, Bytes(PAYLOAD_BYTES_MAX)),
            ));
        }
        if self.receive_maximum == 0 {
            return Err(("receive_maximum", "0 is not allowed; 1 to 65535 are".into()));
        }
        if self.topic_max == 0 || self.topic_max > usize::from(u16::MAX) {
            return Err(("topic_max", format!("{} is out of bounds; 1 to 65535 bytes are allowed", self.topic_max)));
        }
        if self.packet_wait_max.0.is_zero() {
            return Err(("packet_wait_max", "0s is not allowed; a packet needs a moment to arrive".into()));
        }
        if self.sessions_bytes_per_name_max.0 > self.sessions_bytes_max.0 {
            return Err((
                "sessions_bytes_per_name_max",
                format!(
                    "{} is more than sessions_bytes_max, which is {}",
                    self.sessions_bytes_per_name_max, self.sessions_bytes_max
                ),
            ));
        }
        if self.exchanges_max == 0 || self.exchanges_max > usize::from(u16::MAX) {
            return Err(("exchanges_max", format!("{} is not allowed; 1 to 65535 are", self.exchanges_max)));
        }
        for (key, is_zero) in [
            ("connections_max", self.connections_max == 0),
            ("connects_per_second_max", self.connects_per_second_max == 0),
        ] {
            if is_zero {
                return Err((key, "connections_max and connects_per_second_max are at least 1".into()));
            }
        }
        Ok(())
    }

    /// Returns the limits of sessions.
    pub(super) fn session_quotas(&self) -> Quotas {
        Quotas {
            sessions: self.sessions_max,
            sessions_of_name: self.sessions_per_name_max,
            bytes: self.sessions_bytes_max.0,
            bytes_of_name: self.sessions_bytes_per_name_max.0,
        }
    }

    /// Returns the session expiry interval within the limit, in seconds.
    pub(super) fn expiry_within(&self, asked: u32) -> u32 {
        asked.min(u32::try_from(self.session_expiry_max.0.as_secs()).unwrap_or(NEVER_EXPIRES))
    }

    /// Returns whether clients can prove names here.
    pub fn proves_names(&self) -> bool {
        self.passwords.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Returns whether no client at all is accepted.
    pub fn lets_in_nobody(&self) -> bool {
        !self.proves_names() && self.anonymous != Some(true) && !is_loopback(self.listen.ip())
    }

    /// Returns whether clients without user name and certificate are accepted.
    pub fn accepts_anonymous(&self) -> bool {
        self.anonymous.unwrap_or_else(|| is_loopback(self.listen.ip()) && self.passwords.is_none())
    }
}
