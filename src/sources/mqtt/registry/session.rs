//! What the registry knows of one client: its key, its session while it is connected, and the session that it asks for.

use super::super::outbound::Outbound;
use super::super::stored_will::Will;
use crate::ingest::{Submitted, Waiter};
use crate::memory::Permit;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Start of the part behind the listener in the key of an ended session. Keys of clients have a digit or `-` there.
const ENDED: char = '*';

/// Identifies a client: listener, proven name if there is one, and client id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) Arc<str>);

impl Key {
    /// Builds the key of a client. Lengths precede the parts that clients choose, so no two clients have the same key.
    pub fn new(source: &str, proven: Option<&str>, client: &str) -> Self {
        Self(match proven {
            Some(name) => format!("{}:{source}/{}:{name}/{client}", source.len(), name.len()).into(),
            None => format!("{}:{source}/-/{client}", source.len()).into(),
        })
    }

    /// Builds the key of a session that has ended and whose will is not published yet. No client has such a key.
    pub(super) fn of_ended(source: &str, number: u64) -> Self {
        Self(format!("{}:{source}/{ENDED}{number:016x}", source.len()).into())
    }

    /// Returns whether the session has ended and only its will is left.
    pub(super) fn is_of_ended(&self) -> bool {
        self.parts().is_some_and(|(_, rest)| rest.starts_with(ENDED))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the listener and the rest of the key.
    fn parts(&self) -> Option<(&str, &str)> {
        let (length, rest) = self.0.split_once(':')?;
        let (source, rest) = rest.split_at_checked(length.parse().ok()?)?;
        Some((source, rest.strip_prefix('/')?))
    }

    pub(super) fn source(&self) -> &str {
        self.parts().map_or("", |(source, _)| source)
    }

    pub fn client(&self) -> &str {
        let behind_name = |rest: &'_ str| -> Option<usize> {
            let (length, _) = rest.split_once(':')?;
            Some(length.len() + 1 + length.parse::<usize>().ok()? + 1)
        };
        let Some((_, rest)) = self.parts() else { return "" };
        let start = if rest.starts_with("-/") { Some(2) } else { behind_name(rest) };
        start.and_then(|start| rest.get(start..)).unwrap_or_default()
    }
}

/// A will that is published after its delay.
#[derive(Debug)]
pub struct PendingWill {
    /// The time between the end of the connection and the publication.
    pub delay: Duration,
    pub bytes: Vec<u8>,
}

/// A session while its client is connected.
#[derive(Debug, Default)]
pub struct Session {
    /// The user name of the client, for the log.
    pub user: String,
    /// Number of the session in the records of its QoS 2 publishes; 0 if it ends with the connection.
    pub number: u64,
    /// Seconds that it outlives the connection; `NEVER_EXPIRES` for no end.
    pub expiry: u32,
    /// QoS 2 publishes that are accepted and not released, by packet id.
    pub exchanges: HashMap<u16, Exchange>,
    /// QoS 1 publishes whose PUBACK was not written.
    pub unanswered: Vec<Unanswered>,
    /// Subscriptions, and the publishes to the client.
    pub outbound: Outbound,
    /// The will of the client.
    pub will: Option<Will>,
    /// Woken when events of the last connection are on the disk, while no connection has it.
    pub waiter: Option<Waiter>,
    /// Covers `unanswered` while no connection does.
    pub permit: Option<Permit>,
}

/// A QoS 2 publish that is accepted and not released.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Its place in the journal; `None` if it was there before the client connected or the gateway started.
    pub taken: Option<Submitted>,
    /// Whether it arrived on the present connection.
    pub is_of_this_connection: bool,
}

/// A QoS 1 publish whose PUBACK was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    pub packet_id: u16,
    /// Hash of topic and payload.
    pub hash: u64,
    /// Its place in the journal.
    pub taken: Submitted,
}

/// Limits of all sessions of all listeners: number, and bytes on the disk.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    pub sessions: usize,
    /// Sessions of one proven name, or of one address.
    pub sessions_of_name: usize,
    pub bytes: u64,
    /// Bytes of one proven name, or of one address.
    pub bytes_of_name: u64,
}

/// The session that CONNECT asks for.
#[derive(Clone, Copy, Debug)]
pub struct SessionRequest<'a> {
    /// The proven or claimed user name, for the log.
    pub user: &'a str,
    /// The party that the session is counted for: a proven name, or an address.
    pub share: &'a str,
    /// Whether an earlier session is to be discarded (Clean Start).
    pub is_clean: bool,
    /// Seconds that the session outlives the connection (Session Expiry Interval).
    pub expiry: u32,
    /// Bytes on the disk of a will that may have to wait for its delay; 0 if there is none.
    pub will_bytes: u64,
    pub quotas: Quotas,
}

/// Why a client gets no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSession {
    /// A limit is reached; the text names the setting.
    TooMany(&'static str),
    /// The disk is down to its reserve.
    NoDisk,
    /// The earlier connection did not release the slot in time.
    Stuck,
    /// The stored session could not be read.
    Unreadable,
}
