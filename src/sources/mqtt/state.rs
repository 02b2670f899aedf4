//! What all connections of a listener share: the configuration in force, the services of the gateway, and the accounts of
//! refused clients.

use super::acl::{Permission, Rights};
use super::config::Config;
use super::connection_memory;
use super::devices::{Device, Devices};
use super::faults;
use super::login::{Queue, Users};
use super::registry::Registry;
use crate::clock;
use crate::contract::{Sender, SourceKind};
use crate::ingest::{Ingest, Pace, Route};
use crate::local::Local;
use crate::memory::{Budget, ListenerId, Permit};
use crate::mqtt::ReasonCode;
use crate::mqtt::connect::WillMessage;
use crate::security::{Cause, Report};
use crate::sources::identity::{Chain, Identity};
use crate::sources::secrets::BadSecrets;
use crate::sources::socket::{self, CannotBind, is_loopback};
use crate::sources::{Refusal, Stats};
use crate::telemetry::{Limiter, shown};
use crate::tls::{self, Certificates, TlsError};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Interval between logged refusals after the first few; all are counted.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// The reason for clients whose certificates are not trusted any more.
const UNTRUSTED: &str = "the certificate is revoked or not trusted any more, or the revocation list has ended";
/// Bytes of properties and headers in addition to the largest payload and the longest topic: a few user properties and a
/// response topic take some hundred.
const PACKET_OVERHEAD_BYTES: usize = 8 << 10;

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
    pub ingest: Arc<Ingest>,
    /// Events and last values for subscribers.
    pub local: Arc<Local>,
    pub registry: Arc<Registry>,
    pub devices: Arc<Devices>,
    /// Bounds the memory of clients.
    pub budget: Arc<Budget>,
}

/// State of a listener that a reload keeps.
#[derive(Clone, Debug)]
pub(super) struct KeptOnReload {
    /// Failed logins still count after a reload.
    pub logins: Arc<Queue>,
    /// Identifies the listener in the memory budget, which still counts earlier connections.
    pub listener_id: ListenerId,
}

/// The configuration in force for the connections of a listener.
pub(super) type Setup = Arc<socket::Setup<ListenerState>>;

/// The configuration and services that all connections of a listener share.
#[derive(Debug)]
pub(super) struct ListenerState {
    pub config: Config,
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub clients: Option<tls::Clients>,
    /// The largest packet. CONNACK announces it, and every publish within it is taken.
    pub packet_bytes_max: usize,
    pub ingest: Arc<Ingest>,
    pub users: Option<Users>,
    pub kept: KeptOnReload,
    pub stats: Arc<Stats>,
    pub refusals: Limiter,
    pub dropped_wills: Limiter,
    pub registry: Arc<Registry>,
    pub local: Arc<Local>,
    /// Limits the events per second of each client.
    pub pace: Option<Arc<Pace>>,
    pub devices: Arc<Devices>,
    pub budget: Arc<Budget>,
}

impl ListenerState {
    pub(super) fn new(
        config: Config,
        parts: &Parts,
        stats: &Arc<Stats>,
        kept: &KeptOnReload,
    ) -> Result<Self, CannotListen> {
        let served = config.tls.as_ref().map(|files| tls::served(files, Certificates::Required)).transpose()?;
        let (tls, clients) = served.map(|served| (served.config, served.clients)).unzip();
        Ok(Self {
            tls,
            clients: clients.flatten(),
            users: config.passwords.as_deref().map(Users::load).transpose()?,
            packet_bytes_max: usize::try_from(config.payload_max.0).unwrap_or(usize::MAX)
                + config.topic_max
                + PACKET_OVERHEAD_BYTES,
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
    pub(super) fn trusts(&self, chain: &Chain) -> bool {
        self.clients.as_ref().is_some_and(|clients| chain.is_trusted(clients))
    }

    /// Returns the present rights of a client that has logged in before, or why it would be refused now.
    pub(super) fn check_access(&self, identity: &Identity, peer: SocketAddr) -> Result<Rights, &'static str> {
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
    pub(super) fn ended_lists(&self) -> usize {
        self.clients.as_ref().map_or(0, tls::Clients::ended_lists)
    }

    /// Returns the rights of a client that logs in.
    pub(super) fn rights(&self, identity: &Identity, peer: SocketAddr) -> Rights {
        let rules = &self.config.acl;
        match identity.proven() {
            Some(name) => Rights::new(rules, identity, self.config.default_rights, &self.ingest.filters_of_key(name)),
            None if rules.is_empty() && is_loopback(peer.ip()) => Rights::everything(identity),
            None => Rights::new(rules, identity, false, &[]),
        }
    }

    /// Returns the route of a topic for a client, and why the client may not publish there; `None` if it may.
    pub(super) fn route(&self, topic: &str, client: &str, rights: &Rights) -> (Route, Option<String>) {
        let route = self
            .ingest
            .route(SourceKind::Mqtt, &self.config.name, topic, rights.sender(client))
            .with_pace(self.pace.as_ref());
        let permission = rights.may_publish(&route).map_err(|denied| denied.to_string());
        match permission {
            Ok(Permission::Name) => (route, None),
            Ok(Permission::Rule) => (route.allowed_by_rule(), None),
            Err(why) => (route, Some(why)),
        }
    }

    /// Returns the permit for a connection from `peer`; `None` if there is no memory for it.
    pub(super) fn admit(&self, peer: SocketAddr) -> Option<Permit> {
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
    pub(super) fn exchanges_max(&self) -> usize {
        self.config.exchanges_max.max(self.config.receive_maximum.into())
    }

    /// Counts, reports and logs a will that is dropped. The log is limited: changed rights may drop the
    /// wills of thousands of clients.
    pub(super) fn count_dropped(&self, peer: SocketAddr, attempt: Attempt<'_>, why: &str) {
        self.stats.refuse(Refusal::Access);
        self.report(peer, Cause::Will, attempt, why);
        if let Some(held_back) = self.dropped_wills.allow(clock::instant()) {
            let (client, user, topic) = attempt.shown();
            tracing::warn!(source = %self.config.name, %peer, %client, %user, %topic, held_back, "will dropped: {why}");
        }
    }

    /// Counts, logs and reports an action that a client has no right to.
    pub(super) fn count_refused(&self, device: &Device, cause: Cause, what: &str, why: &str) {
        device.note_refusal(what, why);
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
    pub(super) fn refuse_client(&self, device: &Device, topic: &str, reason: Refusal, why: &str) {
        device.note_refusal(topic, why);
        self.stats.refuse(reason);
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            let who = device.last_seen();
            let (user, client, topic, peer) = (shown(&who.identity), shown(&device.client), shown(topic), who.peer);
            tracing::warn!(source = %self.config.name, %client, %user, %peer, %topic, held_back, "client refused: {why}");
        }
    }

    /// Counts the refusal of a connection and logs it, with a limited rate.
    pub(super) fn refuse(&self, peer: SocketAddr, attempt: Attempt<'_>, reason: Refusal, why: &str) {
        self.stats.refuse(reason);
        self.devices.note_refused(peer, attempt.sender, why);
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
pub(super) struct Attempt<'a> {
    pub sender: Sender<'a>,
    pub what: &'a str,
}

/// Why a client is refused at CONNECT.
pub(super) struct ConnectRefusal<'a> {
    pub code: ReasonCode,
    pub why: &'a str,
    /// The cause to report if the code means *not authorized*.
    pub denied: Cause,
}

impl<'a> Attempt<'a> {
    /// Returns client, user and topic in a form that is safe to log.
    pub(super) fn shown(&self) -> (Cow<'a, str>, Cow<'a, str>, Cow<'a, str>) {
        (shown(self.sender.client), shown(self.sender.user), shown(self.what))
    }
}

impl ListenerState {
    /// Counts, logs and reports a client that is refused at CONNECT.
    pub(super) fn refuse_connect(
        &self,
        peer: SocketAddr,
        sender: Sender<'_>,
        will: Option<&WillMessage>,
        ConnectRefusal { code, why, denied }: ConnectRefusal<'_>,
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
    pub(super) fn report_ended(&self, device: &Device, filter: &str) {
        let who = device.last_seen();
        let attempt = Attempt { sender: who.sender(&device.client), what: filter };
        self.report(who.peer, Cause::Cut, attempt, "this client may not subscribe to this filter any more");
    }

    pub(super) fn report(&self, peer: SocketAddr, cause: Cause, attempt: Attempt<'_>, reason: &str) {
        let Attempt { sender, what } = attempt;
        let address = Some(peer.ip());
        self.stats.report(&Report { cause, source: &self.config.name, address, sender, what, reason });
    }
}
