//! Wills: the message that a client leaves in CONNECT for the case that it ends without DISCONNECT.
//!
//! Promise: a will becomes an event only under the rights that are in force at that moment. A will that waits for its
//! delay is stored with its client's identity and checked when it is due, also after a restart.

use super::registry::DueWill;
use super::state::{Attempt, ListenerState};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Closed, EventMetadata, Ingest, Producer, Route, Submission, Submitted};
use crate::memory::Permit;
use crate::mqtt::connect::WillMessage;
use crate::shutdown::Shutdown;
use crate::sources::identity::{Chain, Identity, Proof, StoredChain};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const FORMAT: u8 = 1;
/// Largest stored will: a payload and a topic of 64 KiB each, and certificates of the same size.
const WILL_BYTES_MAX: usize = 192 << 10;

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

/// A delayed will with the identity of its client. The order of the fields is part of the stored format.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredWill {
    format: u8,
    /// Milliseconds between the end of the connection and the publication.
    delay: u64,
    client: String,
    peer: SocketAddr,
    name: String,
    how: StoredIdentity,
    topic: String,
    payload: Vec<u8>,
    content_type: Option<String>,
    trace_parent: Option<String>,
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
    pub fn new(message: WillMessage, delay: Duration, client: &str, peer: SocketAddr, identity: &Identity) -> Self {
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
    pub fn read(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok().filter(|stored: &Self| stored.format == FORMAT)
    }

    /// Returns the stored bytes.
    pub fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Returns the time between the end of the connection and the publication.
    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.delay)
    }

    fn identity(&self) -> Identity {
        let name = self.name.clone();
        match &self.how {
            StoredIdentity::Password(proof, chain) => {
                Identity::Password { name, proof: *proof, chain: chain.clone().map(Chain::restore) }
            }
            StoredIdentity::Certificate(chain) => Identity::Certificate { name, chain: Chain::restore(chain.clone()) },
            StoredIdentity::Anonymous => Identity::Anonymous { claimed: name },
        }
    }

    /// Returns the will if its client would be accepted now and may publish to the topic; counts it as dropped
    /// otherwise.
    fn checked(self, shared: &ListenerState, permit: Permit) -> Option<Will> {
        let identity = self.identity();
        let checked = shared.check_access(&identity, self.peer).map_err(str::to_owned);
        let checked = checked.and_then(|rights| match shared.route(&self.topic, &self.client, &rights) {
            (route, None) => Ok(route),
            (_, Some(why)) => Err(why),
        });
        match checked {
            Ok(route) => {
                let delay = self.delay();
                let Self { topic, payload, content_type, trace_parent, .. } = self;
                let message = WillMessage { topic, payload, content_type, trace_parent, delay };
                Some(Will { route: Arc::new(route), delay, message, permit })
            }
            Err(why) => {
                let attempt = Attempt { sender: identity.sender(&self.client), what: &self.topic };
                shared.count_dropped(self.peer, attempt, &why);
                None
            }
        }
    }
}

/// Publishes a due will under the current configuration, or drops it.
pub async fn publish_due(due: DueWill, shared: Arc<ListenerState>, mut shutdown: Shutdown) {
    let registry = &shared.registry;
    // Twice: the stored form and the message.
    let Ok(mut permit) = shared.budget.permit(2 * WILL_BYTES_MAX) else { return registry.retry_will(&due) };
    let stored = match registry.read_will(&due).await {
        Ok(stored) => {
            let bytes = 2 * stored.as_ref().map_or(0, Vec::len) + size_of::<Will>();
            permit.shrink(permit.bytes().saturating_sub(bytes));
            stored.and_then(|bytes| StoredWill::read(&bytes))
        }
        Err(error) => {
            tracing::error!(%error, "could not read a will that is due, will retry");
            return registry.retry_will(&due);
        }
    };
    if let Some(will) = stored.and_then(|stored| stored.checked(&shared, permit)) {
        let mut producer = Producer::new(Arc::clone(&shared.ingest));
        let submitted = tokio::select! {
            submitted = will.submit(&mut producer) => submitted,
            () = shutdown.begun() => Err(Closed),
        };
        // On a shutdown the will stays on the disk and is due again after the next start.
        let Ok(submitted) = submitted else { return };
        if producer.receipts(&[submitted]).await.is_err() {
            return;
        }
    }
    registry.finish_will(&due);
}

impl Will {
    /// Returns the bytes that a will with this message takes in memory, about.
    pub fn bytes_of(message: &WillMessage) -> usize {
        let texts =
            [&message.content_type, &message.trace_parent].into_iter().flatten().map(String::len).sum::<usize>();
        size_of::<Will>() + message.topic.len() + message.payload.len() + texts
    }

    /// Publishes the will. Returns when its lane has accepted the event, or when the journal is closed.
    pub async fn publish(&self, ingest: &Arc<Ingest>) {
        let _ = self.submit(&mut Producer::new(Arc::clone(ingest))).await;
    }

    async fn submit(&self, producer: &mut Producer) -> Result<Submitted, Closed> {
        let message = &self.message;
        let metadata = EventMetadata {
            trace_parent: message.trace_parent.as_deref(),
            content_type: message.content_type.as_deref(),
            ..EventMetadata::default()
        };
        let arrived = Timestamp::from(clock::wall());
        let submission = Submission { metadata, ..Submission::new(&self.route, &message.payload, arrived) };
        producer.submit_when_room(&submission).await
    }
}
