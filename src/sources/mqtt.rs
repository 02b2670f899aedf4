//! The MQTT listener: devices connect and publish, with MQTT 3.1.1 and 5 on one port.
//!
//! Promise: a PUBACK is sent only with a receipt, in the order in which the publishes arrived.
//! Invariants:
//! - no client can stop another client or the process, or make memory grow without bound;
//! - beyond a limit the socket is not read; only QoS 0 is dropped, and that is counted.
//!
//! Not here: what an event means (`ingest`, `contract`).

mod accept_queue;
mod acl;
mod connection;
mod connection_memory;
mod devices;
mod faults;
mod grants;
mod inbound;
mod login;
mod outbound;
mod registry;
mod shared_subscription;
mod will;

pub use acl::Rule;
pub use devices::Devices;
pub use grants::{Grant, Grants};
pub use login::{Users, put_user};
pub use registry::Registry;

use crate::clock;
use crate::contract::Sender;
use crate::ingest::{Ingest, Pace};
use crate::local::Local;
use crate::memory::{Budget, ListenerId, Permit};
use crate::mqtt::ReasonCode;
use crate::mqtt::connect::{NEVER_EXPIRES, WillMessage};
use crate::security::{Cause, Report};
use crate::setting::{Bytes, Span};
use crate::shutdown::Shutdown;
use crate::sources::identity::{Chain, Identity};
use crate::sources::secrets::BadSecrets;
use crate::sources::socket::{self, CannotBind, ListenSocket, is_loopback};
use crate::sources::{PAYLOAD_BYTES_MAX, Refusal, Stats};
use crate::telemetry::{Limiter, shown};
use crate::tls::{self, Certificates, ServerFiles, TlsError};
use serde::Deserialize;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

use accept_queue::AcceptQueue;
use acl::Rights;
use devices::Device;
use login::Queue;
use registry::Quotas;

/// The configuration of a listener.
#[derive(Clone, Debug, Deserialize)]
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
    /// Most clients connected at once. At the limit, the party (user or address) with most connections loses one to a
    /// party that has fewer.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// New connections per second.
    #[serde(default = "connects_per_second_max")]
    pub connects_per_second_max: u32,
    /// Time from the TCP connection to CONNECT.
    #[serde(default = "connect_wait_max")]
    pub connect_wait_max: Span,
    /// The largest payload.
    #[serde(default = "payload_max")]
    pub payload_max: Bytes,
    /// Most bytes of a topic or a topic filter.
    #[serde(default = "topic_max")]
    pub topic_max: usize,
    /// Time from the first byte of a packet to its last, plus a second per 500 bytes.
    #[serde(default = "packet_wait_max")]
    pub packet_wait_max: Span,
    /// Unacknowledged publishes of a client (Receive Maximum of MQTT 5).
    #[serde(default = "receive_maximum")]
    pub receive_maximum: u16,
    /// Events per second of each client; the gateway slows down a client that exceeds it. Without it there is no
    /// limit.
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
    /// Subscriptions of one client.
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

/// Interval between logged refusals after the first few; all are counted.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// Interval of the search for due wills and ended revocation lists.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// The reason for clients whose certificates are not trusted any more.
const UNTRUSTED: &str = "the certificate is revoked or not trusted any more, or the revocation list has ended";
/// Connections beyond `connections_max` that have not logged in: a client is only known after its login. The check of
/// a password takes a tenth of a second on a small processor, so a few at a time are enough.
const UNAUTHENTICATED_MAX: usize = 64;
/// Connections that are refused with CONNACK at the same time because there is no memory; more are closed without an
/// answer.
const REFUSALS_MAX: usize = 16;
/// Wills that are published at the same time: each may take 64 kB of memory until it is on the disk.
const WILLS_DUE_MAX: usize = 128;
/// Bytes of topic, properties and headers in addition to the largest payload.
const PACKET_OVERHEAD_BYTES: usize = 128 << 10;

impl Config {
    /// Checks values against each other. The error is the key and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
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
        if self.connections_max == 0 || self.connects_per_second_max == 0 {
            return Err(("connections_max", "connections_max and connects_per_second_max are at least 1".into()));
        }
        Ok(())
    }

    /// Returns the limits of sessions.
    fn session_quotas(&self) -> Quotas {
        Quotas {
            sessions: self.sessions_max,
            sessions_of_name: self.sessions_per_name_max,
            bytes: self.sessions_bytes_max.0,
            bytes_of_name: self.sessions_bytes_per_name_max.0,
        }
    }

    /// Returns the session expiry interval within the limit, in seconds.
    fn expiry_within(&self, asked: u32) -> u32 {
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

/// The reason why a listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum CannotListen {
    /// The address is in use or not of this machine.
    #[error(transparent)]
    Address(#[from] CannotBind),
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password file cannot be used.
    #[error(transparent)]
    Users(#[from] BadSecrets),
}

/// Services of the gateway that a listener uses.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Takes the events.
    pub ingest: Arc<Ingest>,
    /// Events and last values for subscribers.
    pub local: Arc<Local>,
    /// Connections and sessions.
    pub registry: Arc<Registry>,
    /// Status of each device.
    pub devices: Arc<Devices>,
    /// Bounds the memory of clients.
    pub budget: Arc<Budget>,
}

/// A listener with an open port.
#[derive(Debug)]
pub struct Listener {
    listener: ListenSocket<ListenerState>,
    parts: Parts,
    stats: Arc<Stats>,
    kept: KeptOnReload,
}

/// State of a listener that a reload keeps.
#[derive(Clone, Debug)]
struct KeptOnReload {
    /// Failed logins still count after a reload.
    logins: Arc<Queue>,
    /// Identifies the listener in the memory budget, which still counts earlier connections.
    listener_id: ListenerId,
}

/// A checked configuration that is not in force yet.
#[derive(Debug)]
pub struct Prepared(socket::Prepared<ListenerState>);

/// The configuration in force for the connections of a listener.
type Setup = Arc<socket::Setup<ListenerState>>;

/// The configuration and services that all connections of a listener share.
#[derive(Debug)]
struct ListenerState {
    config: Config,
    tls: Option<Arc<rustls::ServerConfig>>,
    /// Verifies client certificates.
    clients: Option<tls::Clients>,
    packet_bytes_max: usize,
    ingest: Arc<Ingest>,
    users: Option<Users>,
    kept: KeptOnReload,
    stats: Arc<Stats>,
    refusals: Limiter,
    dropped_wills: Limiter,
    registry: Arc<Registry>,
    local: Arc<Local>,
    /// Limits the events per second of each client.
    pace: Option<Arc<Pace>>,
    devices: Arc<Devices>,
    budget: Arc<Budget>,
}

impl ListenerState {
    fn new(config: Config, parts: &Parts, stats: &Arc<Stats>, kept: &KeptOnReload) -> Result<Self, CannotListen> {
        let served = config.tls.as_ref().map(|files| tls::served(files, Certificates::Required)).transpose()?;
        let (tls, clients) = served.map(|served| (served.config, served.clients)).unzip();
        Ok(Self {
            tls,
            clients: clients.flatten(),
            users: config.passwords.as_deref().map(Users::load).transpose()?,
            packet_bytes_max: usize::try_from(config.payload_max.0).unwrap_or(usize::MAX) + PACKET_OVERHEAD_BYTES,
            pace: config.events_per_second_max.map(|limit| Arc::new(Pace::new(limit.get()))),
            config,
            ingest: Arc::clone(&parts.ingest),
            local: Arc::clone(&parts.local),
            registry: Arc::clone(&parts.registry),
            devices: Arc::clone(&parts.devices),
            budget: Arc::clone(&parts.budget),
            kept: kept.clone(),
            stats: Arc::clone(stats),
            refusals: Limiter::new(REFUSALS_EVERY),
            dropped_wills: Limiter::new(REFUSALS_EVERY),
        })
    }

    /// Returns whether certificates that were trusted at login still are.
    fn trusts(&self, chain: &Chain) -> bool {
        self.clients.as_ref().is_some_and(|clients| chain.is_trusted(clients))
    }

    /// Returns the present rights of a client that has logged in before, or why it would be refused now.
    fn check_access(&self, identity: &Identity, peer: SocketAddr) -> Result<Rights, &'static str> {
        let (is_let_in, otherwise) = match identity {
            Identity::Password { chain: Some(chain), .. } if !self.trusts(chain) => (false, UNTRUSTED),
            Identity::Password { name, proof, .. } => (
                self.users.as_ref().is_some_and(|users| users.accepts(name, proof)),
                "the password of the user was changed, or the user is not in the password file any more",
            ),
            Identity::Certificate { chain, .. } => (self.trusts(chain), UNTRUSTED),
            Identity::Token { .. } => (false, "tokens are not for MQTT"),
            Identity::Anonymous { .. } => {
                (self.config.accepts_anonymous(), "anonymous clients are not accepted any more")
            }
        };
        if is_let_in { Ok(self.rights(identity, peer)) } else { Err(otherwise) }
    }

    /// Returns the number of revocation lists that have ended; clients of their authorities are refused.
    fn ended_lists(&self) -> usize {
        self.clients.as_ref().map_or(0, tls::Clients::ended_lists)
    }

    /// Returns the rights of a client that logs in.
    fn rights(&self, identity: &Identity, peer: SocketAddr) -> Rights {
        let rules = &self.config.acl;
        match identity.proven() {
            Some(name) => Rights::new(rules, identity, self.config.default_rights, &self.ingest.filters_of_key(name)),
            None if rules.is_empty() && is_loopback(peer.ip()) => Rights::everything(identity),
            None => Rights::new(rules, identity, false, &[]),
        }
    }

    /// Returns the permit for a connection from `peer`; `None` if there is no memory for it.
    fn admit(&self, peer: SocketAddr) -> Option<Permit> {
        let bytes = if self.tls.is_some() { connection_memory::TLS_BYTES } else { connection_memory::PLAIN_BYTES };
        match self.budget.admit(bytes, peer.ip(), self.kept.listener_id) {
            Ok(permit) => Some(permit),
            Err(error) => {
                self.refuse(peer, Attempt::default(), Refusal::Memory, &error.to_string());
                None
            }
        }
    }

    /// Returns the number of QoS 2 exchanges that a client may have open.
    fn exchanges_max(&self) -> usize {
        self.config.exchanges_max.max(self.config.receive_maximum.into())
    }

    /// Counts, reports and logs a will that is dropped. The log is limited: changed rights may drop the wills of
    /// thousands of clients.
    fn count_dropped(&self, peer: SocketAddr, attempt: Attempt<'_>, why: &str) {
        self.stats.refuse(Refusal::Access);
        self.report(peer, Cause::Will, attempt, why);
        if let Some(held_back) = self.dropped_wills.allow(clock::instant()) {
            let (client, user, topic) = attempt.shown();
            tracing::warn!(source = %self.config.name, %peer, %client, %user, %topic, held_back, "will dropped: {why}");
        }
    }

    /// Counts, logs and reports an action that a client has no right to.
    fn count_refused(&self, device: &Device, cause: Cause, what: &str, why: &str) {
        device.refused.add(1);
        let who = device.last_seen();
        let (peer, attempt) = (who.peer, Attempt { sender: who.sender(&device.client), what });
        self.report(peer, cause, attempt, why);
        self.stats.refuse(Refusal::Access);
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            let (client, user, what) = attempt.shown();
            tracing::warn!(source = %self.config.name, %peer, %client, %user, %what, held_back, "refused: {why}");
        }
    }

    /// Counts and logs a request of a client that exceeds a limit.
    fn refuse_client(&self, device: &Device, topic: &str, reason: Refusal, why: &str) {
        device.refused.add(1);
        self.stats.refuse(reason);
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            let who = device.last_seen();
            let (user, client, topic, peer) = (shown(&who.identity), shown(&device.client), shown(topic), who.peer);
            tracing::warn!(source = %self.config.name, %client, %user, %peer, %topic, held_back, "client refused: {why}");
        }
    }

    /// Counts a refusal and logs it, with a limited rate.
    fn refuse(&self, peer: SocketAddr, attempt: Attempt<'_>, reason: Refusal, why: &str) {
        self.stats.refuse(reason);
        if reason == Refusal::Tls {
            self.report(peer, Cause::Tls, attempt, why);
        }
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            let (client, user, topic) = attempt.shown();
            tracing::warn!(source = %self.config.name, %client, %user, %peer, %topic, held_back, "client refused: {why}");
        }
    }
}

/// A refused action: the client, as far as it is known, and the topic or filter.
#[derive(Clone, Copy, Default)]
struct Attempt<'a> {
    sender: Sender<'a>,
    what: &'a str,
}

impl<'a> Attempt<'a> {
    /// Returns client, user and topic in a form that is safe to log.
    fn shown(&self) -> (Cow<'a, str>, Cow<'a, str>, Cow<'a, str>) {
        (shown(self.sender.client), shown(self.sender.user), shown(self.what))
    }
}

impl ListenerState {
    /// Counts, logs and reports a client that is refused at CONNECT. `denied` is the cause to report if its reason
    /// code means *not authorized*.
    fn refuse_connect(
        &self,
        peer: SocketAddr,
        sender: Sender<'_>,
        will: Option<&WillMessage>,
        (code, why): (ReasonCode, &str),
        denied: Cause,
    ) {
        let reason = match code {
            _ if why == faults::NO_MEMORY.text => Refusal::Memory,
            ReasonCode::QuotaExceeded | ReasonCode::ServerBusy => Refusal::Limit,
            _ => Refusal::Access,
        };
        let cause = match code {
            _ if reason == Refusal::Memory || why == faults::ALL_TAKEN.text => None,
            ReasonCode::QuotaExceeded => Some(Cause::SessionQuota),
            ReasonCode::ClientIdentifierNotValid => Some(Cause::Session),
            ReasonCode::NotAuthorized | ReasonCode::BadUserNameOrPassword => Some(denied),
            // Limits are no matter of security.
            _ => None,
        };
        let is_of_will =
            cause == Some(Cause::Will) || matches!(code, ReasonCode::PacketTooLarge | ReasonCode::TopicNameInvalid);
        let will = will.filter(|_| is_of_will);
        let attempt = Attempt { sender, what: will.map_or("", |will| will.topic.as_str()) };
        self.refuse(peer, attempt, reason, why);
        if let Some(cause) = cause {
            self.report(peer, cause, attempt, why);
        }
    }

    /// Reports a subscription that ended because the client's rights were changed.
    fn report_ended(&self, device: &Device, filter: &str) {
        let who = device.last_seen();
        let attempt = Attempt { sender: who.sender(&device.client), what: filter };
        self.report(who.peer, Cause::Cut, attempt, "this client may not subscribe to this filter any more");
    }

    fn report(&self, peer: SocketAddr, cause: Cause, attempt: Attempt<'_>, reason: &str) {
        let Attempt { sender, what } = attempt;
        let address = Some(peer.ip());
        self.stats.report(&Report { cause, source: &self.config.name, address, sender, what, reason });
    }
}

impl Listener {
    /// Opens the port; [`Listener::run`] accepts connections.
    pub fn open(config: Config, parts: Parts, stats: Arc<Stats>) -> Result<Self, CannotListen> {
        let kept = KeptOnReload { logins: Arc::new(Queue::new()), listener_id: ListenerId::new() };
        let shared = ListenerState::new(config, &parts, &stats, &kept)?;
        let listen = shared.config.listen;
        Ok(Self { listener: ListenSocket::open(shared, listen)?, parts, stats, kept })
    }

    /// Returns the address, which tells the port where the configuration says 0.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.address()
    }

    /// Reads the files and opens another port if the configuration requires it; nothing changes yet.
    pub fn prepare(&self, config: Config) -> Result<Prepared, CannotListen> {
        let listen = config.listen;
        Ok(Prepared(self.listener.prepare(ListenerState::new(config, &self.parts, &self.stats, &self.kept)?, listen)?))
    }

    /// Puts a configuration in force. Connections stay, except those of clients that it would refuse.
    pub fn apply(&self, Prepared(prepared): Prepared) {
        self.listener.apply(prepared);
    }

    /// Checks the rights of all connected clients again, after something that rights depend on has changed.
    pub fn judge_again(&self) {
        self.listener.announce();
    }

    /// Accepts connections until the shutdown, then waits for outstanding acknowledgements.
    pub fn run(&self, mut shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        let mut newest = self.listener.follow();
        let listener = self.listener.clone();
        async move {
            let mut setup = newest.borrow_and_update().clone();
            let (mut sessions, mut wills) = (JoinSet::new(), JoinSet::new());
            let mut refusals_out = JoinSet::new();
            let mut accept_queue = AcceptQueue::new(setup.shared.config.connects_per_second_max);
            let mut sweep = tokio::time::interval(SWEEP_EVERY);
            sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut ended_lists = setup.shared.ended_lists();
            loop {
                let shared = &setup.shared;
                let now = clock::instant();
                let (accept_wait, begin_wait) = (accept_queue.accept_wait(now), accept_queue.begin_wait(now));
                let listener_id = shared.kept.listener_id;
                let is_full = sessions.len() >= shared.config.connections_max.saturating_add(UNAUTHENTICATED_MAX);
                // At the limit connections wait in the accept queue, and then in that of the kernel.
                let has_room = !is_full || shared.budget.has_unauthenticated_at(listener_id);
                if has_room
                    && begin_wait == Some(Duration::ZERO)
                    && let Some((stream, peer)) = accept_queue.next(now)
                {
                    if is_full {
                        shared.budget.evict_at(listener_id);
                    }
                    let Some(permit) = shared.admit(peer) else {
                        if refusals_out.len() < REFUSALS_MAX && shared.tls.is_none() {
                            refusals_out.spawn(connection::refuse_no_memory(stream));
                        }
                        continue;
                    };
                    let accepted = connection::Accepted { stream, peer, permit };
                    let (shared, newest, shutdown) = (Arc::clone(shared), newest.clone(), shutdown.clone());
                    sessions.spawn(session_task(accepted, shared, newest, shutdown));
                    continue;
                }
                let wait = begin_wait
                    .filter(|_| has_room)
                    .into_iter()
                    .chain((!accept_wait.is_zero()).then_some(accept_wait))
                    .min();
                tokio::select! {
                    () = shutdown.begun() => break,
                    changed = newest.changed() => {
                        if changed.is_err() {
                            break;
                        }
                        setup = newest.borrow_and_update().clone();
                        accept_queue.set_rate(setup.shared.config.connects_per_second_max);
                    }
                    // Ended tasks are taken out, so that the set does not grow.
                    Some(_) = sessions.join_next() => {}
                    Some(_) = refusals_out.join_next() => {}
                    Some(_) = wills.join_next() => {}
                    () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                    _ = sweep.tick() => {
                        // A revocation list ends at its time, without any change of files.
                        let ended = shared.ended_lists();
                        if std::mem::replace(&mut ended_lists, ended) < ended {
                            tracing::error!(source = %shared.config.name, ended, "a revocation list (tls.crl) has ended; clients of its authority are refused until it is replaced by a newer one");
                            listener.announce();
                        }
                        let room = WILLS_DUE_MAX.saturating_sub(wills.len());
                        for due in shared.registry.due_wills(clock::instant(), &shared.config.name, room) {
                            wills.spawn(will::publish_due(due, Arc::clone(shared), shutdown.clone()));
                        }
                    }
                    accepted = setup.accept(), if accept_wait.is_zero() => match accepted {
                        Ok((stream, peer)) => {
                            if let Some((closed, peer)) = accept_queue.add(stream, peer, now) {
                                drop(closed);
                                shared.refuse(peer, Attempt::default(), Refusal::Limit, "too many connections wait, most of them from this address");
                            }
                        }
                        Err(error) => {
                            // Out of file descriptors, mostly: a pause lets some connections end.
                            shared.refuse(shared.config.listen, Attempt::default(), Refusal::Connection, &format!("cannot accept: {error}"));
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                }
            }
            setup.close();
            drop(setup);
            while sessions.join_next().await.is_some() {}
            while wills.join_next().await.is_some() {}
        }
    }
}

/// The future of a connection task. It is boxed: tokio keeps a future of up to 16 kB in the task itself, which it
/// aligns to 128 bytes, and glibc seldom reuses a piece with that alignment for the next task. Unboxed, 90,000 short
/// connections grew the heap to 30 MB, boxed to 15 MB, with the same bytes in use.
fn session_task(
    accepted: connection::Accepted,
    shared: Arc<ListenerState>,
    newest: watch::Receiver<Setup>,
    shutdown: Shutdown,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    match shared.tls.clone() {
        None => Box::pin(connection::serve(accepted, shared, newest, shutdown)),
        Some(tls) => Box::pin(connection::serve_tls(accepted, tls.into(), shared, newest, shutdown)),
    }
}
