//! The MQTT listener: devices connect and publish, MQTT 3.1.1 and 5 on one port.
//!
//! Promise: a PUBACK leaves only with a receipt, in the order in which the publishes arrived.
//! Invariants:
//! - nothing a client sends stops another client, the process, or grows memory without bound;
//! - over a limit the socket is not read; nothing is dropped but QoS 0, and that is counted.
//!
//! Not here: what an event means (`ingest`, `contract`).

mod accept_queue;
mod acl;
pub(crate) mod connect;
mod connection;
mod connection_memory;
mod devices;
mod fields;
mod grants;
mod inbound;
mod login;
mod outbound;
mod reason;
mod registry;
mod shared_subscription;
mod will;
pub(crate) mod wire;

pub use acl::Rule;
pub use devices::{DeviceStatus, Devices};
pub use grants::{Grant, Grants};
pub use login::{Users, put_user};
pub use reason::ReasonCode;
pub use registry::Registry;
pub use wire::{Fault, Frame, Publish, frame, publish};

use crate::clock;
use crate::contract::Sender;
use crate::ingest::{Ingest, Pace};
use crate::local::Local;
use crate::memory::{Budget, Door as BudgetDoor, Permit};
use crate::security::{Cause, Report};
use crate::setting::{Bytes, Span};
use crate::shutdown::Shutdown;
use crate::sources::identity::{Chain, Identity};
use crate::sources::secrets::BadSecrets;
use crate::sources::socket::{self, CannotBind, Door, is_loopback};
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

/// A listener as the configuration says it.
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
    /// Whether clients without user name and certificate are let in. By default only on loopback.
    pub anonymous: Option<bool>,
    /// Clients at once. At the bound, whoever has most of them gives one up to whoever has less.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// New connections a second.
    #[serde(default = "connects_per_second_max")]
    pub connects_per_second_max: u32,
    /// How long a client may take from connecting to CONNECT.
    #[serde(default = "connect_wait_max")]
    pub connect_wait_max: Span,
    /// The largest payload.
    #[serde(default = "payload_max")]
    pub payload_max: Bytes,
    /// Bytes of a topic or a topic filter.
    #[serde(default = "topic_max")]
    pub topic_max: usize,
    /// How long a packet may take from its first byte to its last, beside a second for each 500 bytes of it.
    #[serde(default = "packet_wait_max")]
    pub packet_wait_max: Span,
    /// Publishes that a client may have unacknowledged (Receive Maximum of MQTT 5).
    #[serde(default = "receive_maximum")]
    pub receive_maximum: u16,
    /// Events a second that each client may hand in; one that is quicker is slowed down. Without it there is no limit.
    pub events_per_second_max: Option<NonZeroU32>,
    /// Bytes that a connection may have waiting for the disk.
    #[serde(default = "waiting_max")]
    pub waiting_max: Bytes,
    /// Who may publish and subscribe where, beside what each proven name may do by default.
    #[serde(default)]
    pub acl: Vec<Rule>,
    /// Whether a proven name may publish and subscribe to what is its own by the contracts. Without it, only `acl` counts.
    #[serde(default = "default_rights")]
    pub default_rights: bool,
    /// How long a session may outlive its connection.
    #[serde(default = "session_expiry_max")]
    pub session_expiry_max: Span,
    /// Sessions that outlive their connection, over all listeners.
    #[serde(default = "sessions_max")]
    pub sessions_max: usize,
    /// Of these, sessions of one proven name; of clients without one, those of one address.
    #[serde(default = "sessions_per_name_max")]
    pub sessions_per_name_max: usize,
    /// Bytes that all of them may take on the disk, about.
    #[serde(default = "sessions_bytes_max")]
    pub sessions_bytes_max: Bytes,
    /// Of these, bytes of the sessions of one proven name, or of one address.
    #[serde(default = "sessions_bytes_per_name_max")]
    pub sessions_bytes_per_name_max: Bytes,
    /// Subscriptions of one client.
    #[serde(default = "subscriptions_max")]
    pub subscriptions_max: usize,
    /// QoS 2 publishes that a client may have taken and not released; at least `receive_maximum`.
    #[serde(default = "exchanges_max")]
    pub exchanges_max: usize,
    /// Events of each lane that a subscriber may be behind, asleep or awake; older ones it is not told.
    #[serde(default = "backlog_events_max")]
    pub backlog_events_max: u64,
    /// Bytes of each lane's log that a subscriber may have to be told when it wakes, about.
    #[serde(default = "backlog_bytes_max")]
    pub backlog_bytes_max: Bytes,
    /// How old an event may be that a subscriber is told.
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
/// As long as a client may refuse to read what it is sent: longer than a radio link is away while it changes its cell.
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
/// A device has one session, a program on a server some; a name that wants more is not one client.
fn sessions_per_name_max() -> usize {
    64
}
/// 10,000 sessions with a subscription or two; a start looks at as much in a tenth of a second.
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
/// Clients of 3.1.1 have no Receive Maximum to keep to; the libraries send 20 to 1,000 at once.
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

/// Interval between logged refusals, after the first few; all are counted.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked whether a will is due or a session has expired.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// Why a client goes whose certificates are not trusted any more.
const UNTRUSTED: &str = "the certificate is revoked or not trusted any more, or the revocation list has ended";
/// Connections beside `connections_max` that have not logged in: who a client is, is known behind its login. The check of
/// a password takes a tenth of a second on a small processor, so that some at a time are enough.
const UNAUTHENTICATED_MAX: usize = 64;
/// Connections that are told at once that there is no memory for them; more are closed without a word.
const REFUSALS_MAX: usize = 16;
/// Wills that become events at once: each may take 64 kB of memory until it is on the disk.
const WILLS_DUE_MAX: usize = 128;
/// Topic, properties and headers around the largest payload.
const PACKET_OVERHEAD_BYTES: usize = 128 << 10;

impl Config {
    /// Checks values against each other: key, and what is wrong with it.
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

    /// What sessions may take.
    fn session_quotas(&self) -> Quotas {
        Quotas {
            sessions: self.sessions_max,
            sessions_of_name: self.sessions_per_name_max,
            bytes: self.sessions_bytes_max.0,
            bytes_of_name: self.sessions_bytes_per_name_max.0,
        }
    }

    /// Seconds that a session outlives its connection, of those that a client asks for.
    fn expiry_within(&self, asked: u32) -> u32 {
        asked.min(u32::try_from(self.session_expiry_max.0.as_secs()).unwrap_or(registry::NEVER))
    }

    /// Whether clients prove names here.
    pub fn proves_names(&self) -> bool {
        self.passwords.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Whether nobody at all is let in.
    pub fn lets_in_nobody(&self) -> bool {
        !self.proves_names() && self.anonymous != Some(true) && !is_loopback(self.listen.ip())
    }

    /// Whether somebody without user name and certificate is let in.
    pub fn lets_in_anonymous(&self) -> bool {
        self.anonymous.unwrap_or_else(|| is_loopback(self.listen.ip()) && self.passwords.is_none())
    }
}

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum CannotListen {
    /// The address is taken or not there.
    #[error(transparent)]
    Address(#[from] CannotBind),
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password file.
    #[error(transparent)]
    Users(#[from] BadSecrets),
}

/// The parts of the gateway that a listener works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Where events go.
    pub ingest: Arc<Ingest>,
    /// What subscribers are told.
    pub local: Arc<Local>,
    /// Who is connected, and their sessions.
    pub registry: Arc<Registry>,
    /// The picture of each device.
    pub devices: Arc<Devices>,
    /// What clients can make the process hold.
    pub budget: Arc<Budget>,
}

/// A listener that has its port.
#[derive(Debug)]
pub struct Listener {
    door: Door<ListenerState>,
    parts: Parts,
    stats: Arc<Stats>,
    kept: KeptOnReload,
}

/// State of a listener that a reload keeps.
#[derive(Clone, Debug)]
struct KeptOnReload {
    /// Failed logins still count after a reload.
    logins: Arc<Queue>,
    /// This listener, as the budget tells it from others: connections from before still count.
    budget_door: BudgetDoor,
}

/// Settings of a listener that are good, and not in force yet.
#[derive(Debug)]
pub struct Prepared(socket::Prepared<ListenerState>);

/// What is in force for the connections of a listener.
type Setup = Arc<socket::Setup<ListenerState>>;

/// What the connections of a listener share.
#[derive(Debug)]
struct ListenerState {
    config: Config,
    tls: Option<Arc<rustls::ServerConfig>>,
    /// Judges certificates of clients.
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
    /// How many events a second each client may hand in.
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

    /// Whether certificates are still trusted that were so once.
    fn trusts(&self, chain: &Chain) -> bool {
        self.clients.as_ref().is_some_and(|clients| chain.is_trusted(clients))
    }

    /// What a client may do that was let in before; or why it would not be let in any more.
    fn check_access(&self, identity: &Identity, peer: SocketAddr) -> Result<Rights, &'static str> {
        let (is_let_in, otherwise) = match identity {
            Identity::Password { chain: Some(chain), .. } if !self.trusts(chain) => (false, UNTRUSTED),
            Identity::Password { name, proof, .. } => (
                self.users.as_ref().is_some_and(|users| users.accepts(name, proof)),
                "the user has another password, or is not in the password file any more",
            ),
            Identity::Certificate { chain, .. } => (self.trusts(chain), UNTRUSTED),
            Identity::Token { .. } => (false, "tokens are not for MQTT"),
            Identity::Anonymous { .. } => {
                (self.config.lets_in_anonymous(), "anonymous clients are not let in any more")
            }
        };
        if is_let_in { Ok(self.rights(identity, peer)) } else { Err(otherwise) }
    }

    /// How many revocation lists have ended whose clients are refused for that.
    fn ended_lists(&self) -> usize {
        self.clients.as_ref().map_or(0, tls::Clients::ended_lists)
    }

    /// What a client may do that is let in.
    fn rights(&self, identity: &Identity, peer: SocketAddr) -> Rights {
        let rules = &self.config.acl;
        match identity.proven() {
            Some(name) => Rights::new(rules, identity, self.config.default_rights, &self.ingest.filters_of_key(name)),
            None if rules.is_empty() && is_loopback(peer.ip()) => Rights::everything(identity),
            None => Rights::new(rules, identity, false, &[]),
        }
    }

    /// A permit for a connection from `peer`; `None` where there is no memory for one more.
    fn admit(&self, peer: SocketAddr) -> Option<Permit> {
        let bytes = if self.tls.is_some() { connection_memory::TLS_BYTES } else { connection_memory::PLAIN_BYTES };
        match self.budget.admit(bytes, peer.ip(), self.kept.budget_door) {
            Ok(permit) => Some(permit),
            Err(error) => {
                self.refuse(peer, Attempt::default(), Refusal::Memory, &error.to_string());
                None
            }
        }
    }

    /// QoS 2 publishes that a client may have open.
    fn exchanges_max(&self) -> usize {
        self.config.exchanges_max.max(self.config.receive_maximum.into())
    }

    /// Counts and reports a will that is not message, and logs one in a while: changed rights may drop those of all who sleep.
    fn count_dropped(&self, peer: SocketAddr, attempt: Attempt<'_>, why: &str) {
        self.stats.refuse(Refusal::Access);
        self.report(peer, Cause::Will, attempt, why);
        if let Some(held_back) = self.dropped_wills.allow(clock::instant()) {
            let (client, user, topic) = attempt.shown();
            tracing::warn!(source = %self.config.name, %peer, %client, %user, %topic, held_back, "will dropped: {why}");
        }
    }

    /// Counts, logs and reports something that a client may not do.
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

    /// Counts and logs something of a client that is too much, or that the gateway cannot take.
    fn refuse_client(&self, device: &Device, topic: &str, reason: Refusal, why: &str) {
        device.refused.add(1);
        self.stats.refuse(reason);
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            let who = device.last_seen();
            let (user, client, topic, peer) = (shown(&who.identity), shown(&device.client), shown(topic), who.peer);
            tracing::warn!(source = %self.config.name, %client, %user, %peer, %topic, held_back, "client refused: {why}");
        }
    }

    /// Counts a refusal, and logs one in a while.
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

/// Who wanted something, as far as that is known by then, and what it was.
#[derive(Clone, Copy, Default)]
struct Attempt<'a> {
    sender: Sender<'a>,
    what: &'a str,
}

impl<'a> Attempt<'a> {
    /// Client, user and what it wanted, as a log may show them.
    fn shown(&self) -> (Cow<'a, str>, Cow<'a, str>, Cow<'a, str>) {
        (shown(self.sender.client), shown(self.sender.user), shown(self.what))
    }
}

impl ListenerState {
    /// Counts, logs and reports a client that is not let in, by the reason code that it gets. `denied` is the cause where
    /// that says "not authorized".
    fn refuse_connect(
        &self,
        peer: SocketAddr,
        sender: Sender<'_>,
        will: Option<&will::WillMessage>,
        (code, why): (ReasonCode, &str),
        denied: Cause,
    ) {
        let reason = match code {
            _ if why == connection_memory::NO_MEMORY.text => Refusal::Memory,
            ReasonCode::QuotaExceeded | ReasonCode::ServerBusy => Refusal::Limit,
            _ => Refusal::Access,
        };
        let cause = match code {
            _ if reason == Refusal::Memory || why == connection_memory::ALL_TAKEN.text => None,
            ReasonCode::QuotaExceeded => Some(Cause::SessionQuota),
            ReasonCode::ClientIdentifierNotValid => Some(Cause::Session),
            ReasonCode::NotAuthorized | ReasonCode::BadUserNameOrPassword => Some(denied),
            // Too busy, or too large: nothing that security is about.
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

    /// Reports a subscription that ended since the client's rights were changed.
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
    /// Takes the port; connections are accepted by [`Listener::run`].
    pub fn open(config: Config, parts: Parts, stats: Arc<Stats>) -> Result<Self, CannotListen> {
        let kept = KeptOnReload { logins: Arc::new(Queue::new()), budget_door: BudgetDoor::new() };
        let shared = ListenerState::new(config, &parts, &stats, &kept)?;
        let listen = shared.config.listen;
        Ok(Self { door: Door::open(shared, listen)?, parts, stats, kept })
    }

    /// The address it really has; of use where the configuration says port 0.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.door.address()
    }

    /// Reads files and takes another port, where the settings say so; nothing changes yet.
    pub fn prepare(&self, config: Config) -> Result<Prepared, CannotListen> {
        let listen = config.listen;
        Ok(Prepared(self.door.prepare(ListenerState::new(config, &self.parts, &self.stats, &self.kept)?, listen)?))
    }

    /// Puts settings in force. Connections last; those whose client would not be let in any more end.
    pub fn put_in_force(&self, Prepared(prepared): Prepared) {
        self.door.put_in_force(prepared);
    }

    /// Judges everybody again who is connected: what rights follow from may have changed.
    pub fn judge_again(&self) {
        self.door.announce();
    }

    /// Accepts connections until the shutdown, then waits for acknowledgements in flight.
    pub fn run(&self, mut shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        let mut newest = self.door.follow();
        let door = self.door.clone();
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
                let budget_door = shared.kept.budget_door;
                let is_full = sessions.len() >= shared.config.connections_max.saturating_add(UNAUTHENTICATED_MAX);
                // At the limit connections wait, in the waiting room and then with the kernel.
                let has_room = !is_full || shared.budget.has_strangers_at(budget_door);
                if has_room
                    && begin_wait == Some(Duration::ZERO)
                    && let Some((stream, peer)) = accept_queue.next(now)
                {
                    if is_full {
                        shared.budget.evict_at(budget_door);
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
                    // The ended are taken out, so that the set does not grow.
                    Some(_) = sessions.join_next() => {}
                    Some(_) = refusals_out.join_next() => {}
                    Some(_) = wills.join_next() => {}
                    () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                    _ = sweep.tick() => {
                        // A revocation list ends without anybody doing anything.
                        let ended = shared.ended_lists();
                        if std::mem::replace(&mut ended_lists, ended) < ended {
                            tracing::error!(source = %shared.config.name, ended, "a revocation list (tls.crl) has ended: clients of its authority are refused; put a newer one in its place");
                            door.announce();
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
                                shared.refuse(peer, Attempt::default(), Refusal::Limit, "more connections of its address wait than of any other");
                            }
                        }
                        Err(error) => {
                            // Out of descriptors, mostly: a pause lets some connections end.
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

/// What the task of a connection runs. It is boxed: tokio keeps a future of up to 16 kB in the task itself, which it
/// aligns to 128 bytes, and glibc seldom reuses so aligned a piece for the next task. Unboxed, 90,000 short connections
/// grew the heap to 30 MB, boxed to 15 MB, with the same bytes in use.
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
