//! What all connections of an HTTP source share, and how it counts a refusal.

use super::config::Config;
use super::request_memory::RequestMemory;
use super::tokens::Tokens;
use crate::clock;
use crate::contract::Sender;
use crate::event::AuthType;
use crate::ingest::Ingest;
use crate::memory::{Budget, ListenerId, Permit};
use crate::origin::Origin;
use crate::rate::Rates;
use crate::security::{Cause, Report};
use crate::sources::identity::Presented;
use crate::sources::secrets::BadSecrets;
use crate::sources::socket::CannotBind;
use crate::sources::{Refusal, Stats};
use crate::telemetry::{Limiter, shown};
use crate::tls::{Clients, TlsError};
use hyper::StatusCode;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Burst of a caller: how far it may be ahead of its rate.
const BURST: Duration = Duration::from_secs(1);
/// Wrong tokens per second of an address, and the burst: enough for a handful of programs with an old token. Tokens
/// cannot be guessed; the limit keeps noise out of the intrusion reports.
const WRONG_TOKENS_PER_SECOND: f64 = 1.0;
const WRONG_TOKENS_BURST: Duration = Duration::from_secs(20);
/// Memory of a connection without a body: head and answer have at most 16 KiB each.
const CONNECTION_BYTES: usize = 40 << 10;
/// Additional memory of TLS, as for an MQTT listener.
const TLS_BYTES: usize = 26 << 10;

/// Why a source could not be started.
#[derive(Debug, thiserror::Error)]
pub enum CannotServe {
    /// The address is in use or does not exist.
    #[error(transparent)]
    Address(#[from] CannotBind),
    /// The certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token file cannot be used.
    #[error(transparent)]
    Tokens(#[from] BadSecrets),
}

/// The context that the connections of a source share.
#[derive(Debug)]
pub(super) struct ServerContext {
    pub(super) config: Config,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) clients: Option<Clients>,
    pub(super) ingest: Arc<Ingest>,
    pub(super) tokens: Option<Tokens>,
    /// Rate limit of events, by caller.
    pub(super) rates: Rates<String>,
    /// Memory of the requests in progress.
    pub(super) request_memory: RequestMemory,
    /// Rate limit of wrong tokens, by address.
    pub(super) wrong_tokens: Rates<Origin>,
    pub(super) stats: Arc<Stats>,
    pub(super) refusals: Limiter,
    pub(super) budget: Arc<Budget>,
    pub(super) listener_id: ListenerId,
}

impl ServerContext {
    pub(super) fn new(
        config: Config,
        ingest: &Arc<Ingest>,
        stats: &Arc<Stats>,
        budget: &Arc<Budget>,
    ) -> Result<Self, CannotServe> {
        let (tls, clients) = config.server()?.map(|served| (served.config, served.clients)).unzip();
        Ok(Self {
            tls,
            clients: clients.flatten(),
            tokens: config.tokens.as_deref().map(Tokens::load).transpose()?,
            rates: Rates::new(config.events_per_second_max.into(), BURST),
            request_memory: RequestMemory::new(config.waiting_max.0),
            wrong_tokens: Rates::new(WRONG_TOKENS_PER_SECOND, WRONG_TOKENS_BURST),
            config,
            ingest: Arc::clone(ingest),
            stats: Arc::clone(stats),
            refusals: Limiter::new(Duration::from_secs(10)),
            budget: Arc::clone(budget),
            listener_id: ListenerId::new(),
        })
    }

    /// Whether the certificate that a client presented in the handshake is still trusted. A revocation list
    /// may have expired since then.
    pub(super) fn is_trusted(&self, presented: &Presented) -> bool {
        let ended = self.clients.as_ref().filter(|clients| clients.ended_lists() > 0);
        ended.is_none_or(|clients| presented.chain.is_trusted(clients))
    }

    /// A permit for a connection from `peer`; `None` if there is no memory for another one.
    pub(super) fn admit(&self, peer: SocketAddr) -> Option<Permit> {
        let bytes = CONNECTION_BYTES + if self.tls.is_some() { TLS_BYTES } else { 0 };
        let permit = self.budget.admit(bytes, peer.ip(), self.listener_id);
        permit.inspect_err(|error| self.refuse(peer, &Refused::default(), Refusal::Memory, &error.to_string())).ok()
    }

    /// Counts a refusal, reports it to security, and logs it at a limited rate.
    pub(super) fn refuse(&self, peer: SocketAddr, refused: &Refused, reason: Refusal, why: &str) {
        let Refused { status, user, proven_by, client } = refused;
        let path = if client.is_empty() { String::new() } else { format!("/events/{client}") };
        self.stats.refuse(reason);
        let cause = match reason {
            Refusal::Tls => Some(Cause::Tls),
            Refusal::Access if *status == Some(StatusCode::FORBIDDEN) => Some(Cause::Publish),
            Refusal::Access => Some(Cause::Token),
            _ => None,
        };
        if let Some(cause) = cause {
            let (source, address) = (self.config.name.as_str(), Some(peer.ip()));
            let sender = Sender { client, user, proven_by: *proven_by };
            self.stats.report(&Report { cause, source, address, sender, what: &path, reason: why });
        }
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            let (user, path) = (shown(user), shown(&path));
            let status = status.as_ref().map_or("", StatusCode::as_str);
            tracing::warn!(source = %self.config.name, %peer, %user, %path, status, held_back, "request refused: {why}");
        }
    }
}

/// A refused request, as far as its properties are known.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Status of the answer; `None` without an answer.
    pub(super) status: Option<StatusCode>,
    /// The proven name of the caller.
    pub(super) user: String,
    /// How the name was proven; `None` for an anonymous caller.
    pub(super) proven_by: Option<AuthType>,
    /// The `{source}` of the path.
    pub(super) client: String,
}
