//! The will of a session, and the stored form of a will that waits for its delay.

use crate::ingest::Route;
use crate::memory::Permit;
use crate::mqtt::connect::WillMessage;
use crate::sources::identity::{Chain, Identity, Proof, StoredChain};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const FORMAT: u8 = 1;

/// A will of a session, with its route.
#[derive(Debug)]
pub struct Will {
    pub route: Arc<Route>,
    pub message: WillMessage,
    /// The time between the end of the connection and the publication.
    pub delay: Duration,
    /// Covers its bytes until it is published.
    pub permit: Permit,
}

impl Will {
    /// Returns the bytes that a will with this message takes in memory, about.
    pub fn bytes_of(message: &WillMessage) -> usize {
        let texts =
            [&message.content_type, &message.trace_parent].into_iter().flatten().map(String::len).sum::<usize>();
        size_of::<Will>() + message.topic.len() + message.payload.len() + texts
    }
}

/// A delayed will with the identity of its client. The order of the fields is part of the stored format.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredWill {
    format: u8,
    /// Milliseconds between the end of the connection and the publication.
    delay: u64,
    pub(super) client: String,
    pub(super) peer: SocketAddr,
    name: String,
    how: StoredIdentity,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) content_type: Option<String>,
    pub(super) trace_parent: Option<String>,
}

/// How the client proved its name.
#[derive(Debug, Serialize, Deserialize)]
enum StoredIdentity {
    Password(Proof, Option<StoredChain>),
    Certificate(StoredChain),
    Anonymous,
}

impl StoredWill {
    /// Builds the stored form of a will.
    pub(super) fn new(
        message: WillMessage,
        delay: Duration,
        client: &str,
        peer: SocketAddr,
        identity: &Identity,
    ) -> Self {
        let how = match identity {
            Identity::Password { proof, chain, .. } => {
                StoredIdentity::Password(*proof, chain.as_ref().map(Chain::stored))
            }
            Identity::Certificate { chain, .. } => StoredIdentity::Certificate(chain.stored()),
            // MQTT clients have no tokens.
            Identity::Token { .. } | Identity::Anonymous { .. } => StoredIdentity::Anonymous,
        };
        let WillMessage { topic, payload, content_type, trace_parent, .. } = message;
        Self {
            format: FORMAT,
            delay: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            client: client.to_owned(),
            peer,
            name: identity.name().to_owned(),
            how,
            topic,
            payload,
            content_type,
            trace_parent,
        }
    }

    /// Reads a stored will; `None` if it is damaged or has another format.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok().filter(|stored: &Self| stored.format == FORMAT)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Returns the time between the end of the connection and the publication.
    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay)
    }

    pub(super) fn identity(&self) -> Identity {
        let name = self.name.clone();
        match &self.how {
            StoredIdentity::Password(proof, chain) => {
                Identity::Password { name, proof: *proof, chain: chain.clone().map(Chain::restore) }
            }
            StoredIdentity::Certificate(chain) => Identity::Certificate { name, chain: Chain::restore(chain.clone()) },
            StoredIdentity::Anonymous => Identity::Anonymous { claimed: name },
        }
    }
}
