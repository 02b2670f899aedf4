//! The broker source: the gateway subscribes to a broker of the plant with a persistent session.
//!
//! Promise: the gateway sends a PUBACK only with a receipt, in the order of the messages, so the broker's session keeps
//! every message that the gateway has not stored. The status shows a lost connection and each subscription that the
//! broker refuses.
//! Invariants:
//! - memory is bounded: at a limit the gateway reads nothing more, which slows the broker down;
//! - no message ends the session: a message that is too large becomes a dead letter;
//! - a message counts as a redelivery only if its PUBACK certainly never left; in doubt it is a new event.
//!
//! The session uses the link's own driver on rumqttc's codec, not rumqttc's client. That client flushes after every
//! packet, fails again and again on messages above its limit, drops queued PUBACKs without reporting which had left, and
//! cannot be slowed down without ending its keep-alive; its TLS links a second, outdated certificate verifier. The driver
//! already has connecting, TLS and watchdogs.
//!
//! Not here: the meaning of an event (`ingest`, `contract`), the transport of bytes (`link`).

mod config;
mod redelivery;
mod session;
mod source;
mod subscriptions;

pub use config::Config;

use crate::clock;
use crate::ingest::{Ingest, Notes, Producer, Route};
use crate::link::{Client, ConnectAs, CredentialRotation, Inbox, LinkError, Message, Target};
use crate::shutdown::Shutdown;
use crate::sources::{PAYLOAD_BYTES_MAX, Refusal, Stats};
use redelivery::{AwaitedRedeliveries, PendingAck};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use subscriptions::Subscriptions;

/// Number of topics whose route is cached.
const ROUTES_MAX: usize = 4096;

/// A source that subscribes to one broker.
pub struct Subscriber {
    config: Config,
    target: Arc<Target>,
    client: String,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    subscriptions: Subscriptions,
    producer: Producer,
    /// Messages that were handed in and not yet acknowledged, in order of arrival.
    unacknowledged: VecDeque<PendingAck>,
    /// Messages whose PUBACK is in the output buffer, with its offset there.
    pubacks_in_output: Vec<(usize, PendingAck)>,
    /// Messages of earlier connections without a PUBACK.
    redeliveries: AwaitedRedeliveries,
    /// A message for which the journal has no room.
    blocked: Option<Blocked>,
    next_rebirth_request: Instant,
}

/// A message for which the journal has no room. The gateway reads nothing more until there is room.
struct Blocked {
    message: Message,
    route: Arc<Route>,
    arrived: Instant,
}

impl Subscriber {
    /// Creates a source; it connects once it runs. `client` is the client id if the configuration names none. `notes`
    /// stores the granted subscriptions across restarts.
    pub fn new(
        config: Config,
        client: String,
        ingest: Arc<Ingest>,
        notes: Notes,
        stats: Arc<Stats>,
    ) -> Result<Self, String> {
        let target = config.target()?;
        let client = config.client_id.clone().unwrap_or(client);
        stats.set_problem(Some("not connected yet".into()));
        Ok(Self {
            subscriptions: Subscriptions::new(&config, &client, notes),
            target: Arc::new(target),
            client,
            producer: Producer::with_cache(Arc::clone(&ingest), ROUTES_MAX),
            ingest,
            stats,
            unacknowledged: VecDeque::new(),
            pubacks_in_output: Vec::new(),
            redeliveries: AwaitedRedeliveries::default(),
            blocked: None,
            next_rebirth_request: clock::instant(),
            config,
        })
    }

    /// Host and port of the broker.
    pub fn address(&self) -> String {
        self.target.name()
    }

    /// Receives until the shutdown; then acknowledges the messages that become durable within a short time.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let inbox = Inbox {
            expiry: self.config.session_expiry.0,
            receive_maximum: self.config.receive_maximum,
            payload_bytes_max: PAYLOAD_BYTES_MAX as usize,
        };
        let connect_as = ConnectAs { client: self.client.clone(), will: None, inbox: Some(inbox) };
        let link = Client::new(Arc::clone(&self.target), connect_as, CredentialRotation::never());
        link.run(&mut self, &mut shutdown).await;
        self.stats.set_problem(Some("the gateway is shutting down".into()));
    }

    /// Counts a connection that was lost or could not be made; logs it and sets the problem if the reason is new.
    fn note_loss(&self, error: &LinkError) {
        self.stats.refuse(Refusal::Connection);
        let problem = Some(error.to_string());
        if self.stats.problem() != problem {
            tracing::warn!(source = %self.config.name, broker = %self.target.name(), %error, "no connection to the broker, will reconnect");
            self.stats.set_problem(problem);
        }
    }
}
