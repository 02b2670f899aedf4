//! Wills: what a client wants said if it dies.
//!
//! Promise: a will becomes an event only under the rights that are in force when it does. One that waits for its delay
//! is kept with what let its client in, and is checked when it is due, also after a restart.

use super::fields::{Reader, Value, properties};
use super::registry::DueWill;
use super::wire::{self, Fault};
use super::{Attempt, ListenerState};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Beside, Ingest, Route, Taken};
use crate::journal::{NotTaken, Waiter};
use crate::link::Protocol;
use crate::memory::Permit;
use crate::shutdown::Shutdown;
use crate::sources::identity::{Chain, Identity, Proof, StoredChain};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Version of the stored form.
const FORMAT: u8 = 1;
/// The largest will as it is stored: a payload and a topic of 64 KiB each, and certificates of as much.
const WILL_BYTES_MAX: usize = 192 << 10;
/// StoredIdentity often a will that waits for the disk looks whether the gateway has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A will as CONNECT says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WillMessage {
    /// Where it is published.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// W3C trace context.
    pub trace_parent: Option<String>,
    /// StoredIdentity long it waits for the client to come back.
    pub delay: Duration,
}

/// A will that has become part of a session.
#[derive(Debug)]
pub struct Will {
    /// Where it leads.
    pub route: Arc<Route>,
    /// What it says.
    pub message: WillMessage,
    /// StoredIdentity long after the end of the connection it becomes an event.
    pub delay: Duration,
    /// Covers its bytes, however long it waits.
    pub permit: Permit,
}

impl WillMessage {
    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        let texts = [&self.content_type, &self.trace_parent].into_iter().flatten().map(String::len).sum::<usize>();
        size_of::<Will>() + self.topic.len() + self.payload.len() + texts
    }

    /// Reads a will of CONNECT.
    pub fn read(rest: &mut Reader<'_>, protocol: Protocol) -> Result<Self, Fault> {
        let (mut delay, mut content_type, mut trace_parent) = (Duration::ZERO, None, None);
        if protocol == Protocol::V5 {
            properties(rest, &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18], |id, value| {
                match (id, value) {
                    (0x18, value) => delay = Duration::from_secs(value.number().into()),
                    (0x03, value) => content_type = Some(value.text().to_owned()),
                    (0x08, value) => wire::check_response_topic(value.text())?,
                    (_, Value::Pair(name, value)) if wire::is_trace_parent(name, value) => {
                        trace_parent = Some(value.to_owned());
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        let topic = rest.text()?;
        wire::check_topic(topic)?;
        Ok(Self { topic: topic.to_owned(), payload: rest.bytes()?.to_vec(), content_type, trace_parent, delay })
    }
}

/// A will that waits for its delay, with what is needed to judge it. The order of the fields is part of the stored format.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredWill {
    format: u8,
    /// Milliseconds that it waits after the end of the connection.
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

/// StoredIdentity a client proved its name.
#[derive(Debug, Serialize, Deserialize)]
enum StoredIdentity {
    Password(Proof, Option<StoredChain>),
    Certificate(StoredChain),
    Anonymous,
}

impl StoredWill {
    /// A will of a client that has left.
    pub fn new(message: WillMessage, delay: Duration, client: &str, peer: SocketAddr, identity: &Identity) -> Self {
        let how = match identity {
            Identity::Password { proof, chain, .. } => {
                StoredIdentity::Password(*proof, chain.as_ref().map(Chain::stored))
            }
            Identity::Certificate { chain, .. } => StoredIdentity::Certificate(chain.stored()),
            // Nobody connects here with a token.
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

    /// Reads what [`StoredWill::bytes`] made.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok().filter(|stored: &Self| stored.format == FORMAT)
    }

    /// As it is stored.
    pub fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// StoredIdentity long it waits after the end of the connection.
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

    /// The will, if its client would be let in now and may publish it; `permit` covers it.
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

/// Makes a will an event whose delay is over, or drops it; under the settings that are in force.
pub async fn publish_due(due: DueWill, shared: Arc<ListenerState>, mut shutdown: Shutdown) {
    let registry = &shared.registry;
    // Twice: as it is stored, and as it is message.
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
        let mut waiter = Waiter::default();
        let taken = tokio::select! {
            taken = will.submit(&shared.ingest, &mut waiter) => taken,
            () = shutdown.begun() => None,
        };
        // Otherwise it stays on the disk, and is due after the next start.
        let Some(taken) = taken else { return };
        if !wait_durable(&taken, &shared.ingest, &waiter).await {
            return;
        }
    }
    registry.finish_will(&due);
}

impl Will {
    /// Makes it an event; returns when it is on its way to the disk, or the journal is closed.
    pub async fn publish(&self, ingest: &Ingest) {
        self.submit(ingest, &mut Waiter::default()).await;
    }

    /// `None` if the journal is closed.
    async fn submit(&self, ingest: &Ingest, waiter: &mut Waiter) -> Option<Taken> {
        let message = &self.message;
        let beside = Beside {
            trace_parent: message.trace_parent.as_deref(),
            content_type: message.content_type.as_deref(),
            ..Beside::default()
        };
        loop {
            let now = Timestamp::from(clock::wall());
            match ingest.accept(&self.route, &message.payload, beside, now, waiter) {
                Ok(taken) => return Some(taken),
                Err(NotTaken::Closed) => return None,
                Err(NotTaken::NoRoom) => ingest.room(&self.route).await,
            }
        }
    }
}

/// Waits for the receipt of an event; `false` if the journal is closed before.
async fn wait_durable(taken: &Taken, ingest: &Ingest, waiter: &Waiter) -> bool {
    while ingest.receipt(taken).is_none() {
        if ingest.is_closed() {
            return false;
        }
        // A closed journal wakes nobody.
        let _ = tokio::time::timeout(LOOK_EVERY, waiter.woken()).await;
    }
    true
}
