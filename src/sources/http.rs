//! The HTTP source: programs post events, as CloudEvents or as plain payloads.
//!
//! Promise: the server answers 202 only with a receipt for every event of the request. Any other answer gives the
//! reason. If it asks the client to retry, a repeat with the same ids makes no second event.
//! Invariants:
//! - no client can stop another client or the process, or make memory grow without bound: heads, bodies, connections,
//!   rates and waits are limited;
//! - the server authenticates a caller before it reads the body;
//! - connections, memory for bodies and wrong tokens have a limit for each address or caller.
//!
//! `POST /events/{source}`: the source is the program or device that reports, `{client}` in
//! contracts. A plain payload has the topic `{source}`, a CloudEvent `{source}/{type}`.
//!
//! Not here: the meaning of an event (`ingest`, `contract`).

mod cloudevents;
mod config;
mod request;
mod request_memory;
mod source;
mod tokens;

pub use config::Config;
pub use tokens::{Tokens, put_token};

use crate::clock;
use crate::contract::Sender;
use crate::event::AuthType;
use crate::http::{self, ConnectionLimit, Stream};
use crate::ingest::Ingest;
use crate::memory::{Budget, ListenerId, Permit};
use crate::origin::Origin;
use crate::rate::Rates;
use crate::security::{Cause, Report};
use crate::shutdown::{self, Shutdown};
use crate::sources::handshake::Handshaking;
use crate::sources::identity::Presented;
use crate::sources::secrets::BadSecrets;
use crate::sources::socket::{self, CannotBind, ListenSocket};
use crate::sources::{Refusal, Stats};
use crate::telemetry::{Limiter, shown};
use crate::tls::{Clients, TlsError};
use hyper::StatusCode;
use request::Peer;
use request_memory::RequestMemory;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

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
/// Time that requests in progress have to finish at shutdown.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a client may leave its answers unread.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(20);

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

/// An HTTP source whose port is bound.
#[derive(Debug)]
pub struct Server {
    listener: ListenSocket<ServerContext>,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    budget: Arc<Budget>,
}

/// The context that the connections of a source share.
#[derive(Debug)]
struct ServerContext {
    config: Config,
    tls: Option<Arc<rustls::ServerConfig>>,
    clients: Option<Clients>,
    ingest: Arc<Ingest>,
    tokens: Option<Tokens>,
    /// Rate limit of events, by caller.
    rates: Rates<String>,
    /// Memory of the requests in progress.
    request_memory: RequestMemory,
    /// Rate limit of wrong tokens, by address.
    wrong_tokens: Rates<Origin>,
    stats: Arc<Stats>,
    refusals: Limiter,
    budget: Arc<Budget>,
    listener_id: ListenerId,
}

impl ServerContext {
    fn new(
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
    fn is_trusted(&self, presented: &Presented) -> bool {
        let ended = self.clients.as_ref().filter(|clients| clients.ended_lists() > 0);
        ended.is_none_or(|clients| presented.chain.is_trusted(clients))
    }

    /// A permit for a connection from `peer`; `None` if there is no memory for another one.
    fn admit(&self, peer: SocketAddr) -> Option<Permit> {
        let bytes = CONNECTION_BYTES + if self.tls.is_some() { TLS_BYTES } else { 0 };
        let permit = self.budget.admit(bytes, peer.ip(), self.listener_id);
        permit.inspect_err(|error| self.refuse(peer, &Refused::default(), Refusal::Memory, &error.to_string())).ok()
    }

    /// Counts a refusal, reports it to security, and logs it at a limited rate.
    fn refuse(&self, peer: SocketAddr, refused: &Refused, reason: Refusal, why: &str) {
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
struct Refused {
    /// Status of the answer; `None` without an answer.
    status: Option<StatusCode>,
    /// The proven name of the caller.
    user: String,
    /// How the name was proven; `None` for an anonymous caller.
    proven_by: Option<AuthType>,
    /// The `{source}` of the path.
    client: String,
}

impl Server {
    /// Binds the port. [`Server::listen`] accepts connections.
    pub fn open(
        config: Config,
        ingest: Arc<Ingest>,
        stats: Arc<Stats>,
        budget: Arc<Budget>,
    ) -> Result<Self, CannotServe> {
        let shared = ServerContext::new(config, &ingest, &stats, &budget)?;
        let listen = shared.config.listen;
        Ok(Self { listener: ListenSocket::open(shared, listen)?, ingest, stats, budget })
    }

    /// Accepts connections until the shutdown, then waits for the requests in progress.
    fn listen(&self, mut shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        let mut newest = self.listener.follow();
        async move {
            let mut setup = newest.borrow_and_update().clone();
            // `outdated` ends the connections of settings that were replaced.
            let (mut outdated, mut current) = shutdown::pair();
            let mut connections = JoinSet::new();
            let mut limit = ConnectionLimit::new(setup.shared.config.connections_max);
            loop {
                let shared = &setup.shared;
                let has_room = limit.has_room();
                tokio::select! {
                    () = shutdown.begun() => break,
                    changed = newest.changed() => {
                        if changed.is_err() {
                            break;
                        }
                        setup = newest.borrow_and_update().clone();
                        // Dropping the old trigger ends the old connections.
                        (outdated, current) = shutdown::pair();
                        limit = ConnectionLimit::new(setup.shared.config.connections_max);
                    }
                    // Remove finished tasks, or the set would grow.
                    Some(_) = connections.join_next() => {}
                    () = limit.changed(), if !has_room => {}
                    // While every connection is being answered, new ones wait in the kernel's accept queue.
                    accepted = setup.accept(), if has_room => match accepted {
                        Ok((stream, peer)) => {
                            let slot = limit.acquire(Origin::of(peer.ip()));
                            let Some(permit) = shared.admit(peer) else { continue };
                            let eviction = permit.eviction();
                            let guest = Peer { address: peer, certificate: None, slot, permit };
                            let served = connection(stream, guest, Arc::clone(shared), current.clone());
                            let shared = Arc::clone(shared);
                            connections.spawn(async move {
                                if eviction.cuts(served).await.is_none() {
                                    shared.refuse(peer, &Refused::default(), Refusal::Memory, EVICTED);
                                }
                            });
                        }
                        Err(error) => {
                            // Usually no file descriptors are left: pause until some connections end.
                            shared.refuse(shared.config.listen, &Refused::default(), Refusal::Connection, &format!("cannot accept: {error}"));
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                }
            }
            outdated.begin();
            setup.close();
            drop(setup);
            while connections.join_next().await.is_some() {}
        }
    }
}

/// Serves one connection; returns when it has ended.
async fn connection(stream: TcpStream, mut peer: Peer, shared: Arc<ServerContext>, mut shutdown: Shutdown) {
    let _open = shared.stats.open();
    let address = peer.address;
    socket::tune(&stream, UNREAD_WAIT_MAX);
    let Some(config) = shared.tls.clone() else { return serve(Box::new(stream), &peer, &shared, shutdown).await };
    let wait = shared.config.request_wait_max.0;
    let metered = Handshaking::new(stream, peer.permit.split(0));
    let handshake = tokio::select! {
        // No promise was made before the end of the handshake: drop it at shutdown, or for another connection.
        () = shutdown.begun() => return,
        () = peer.slot.cut() => return shared.refuse(address, &Refused::default(), Refusal::Limit, CROWDED),
        handshake = tokio::time::timeout(wait, TlsAcceptor::from(config).accept(metered)) => handshake,
    };
    match handshake {
        Ok(Ok(mut stream)) => {
            stream.get_mut().0.done();
            let session = stream.get_ref().1;
            let presented = shared.clients.as_ref().map(|clients| Presented::of(clients, session)).transpose();
            match presented.map(Option::flatten) {
                Ok(certificate) => {
                    peer.certificate = certificate;
                    serve(Box::new(stream), &peer, &shared, shutdown).await;
                }
                Err(untrusted) => shared.refuse(address, &Refused::default(), Refusal::Tls, &untrusted.to_string()),
            }
        }
        Ok(Err(error)) => shared.refuse(address, &Refused::default(), Refusal::Tls, &format!("TLS handshake: {error}")),
        Err(_) => shared.refuse(address, &Refused::default(), Refusal::Tls, "TLS handshake took too long"),
    }
}

/// Reason for closing a connection when memory is short.
const EVICTED: &str = "memory is short, and this client was not authenticated yet";
/// Reason for closing an idle connection when a new one needs its slot.
const CROWDED: &str = "connections_max is reached, and this connection was idle longest of the address that has most";

async fn serve(mut stream: Stream, peer: &Peer, shared: &ServerContext, mut shutdown: Shutdown) {
    let (has_served, was_cut) = (AtomicBool::new(false), AtomicBool::new(false));
    let ended = {
        let has_served = &has_served;
        let connection = http::connection(&mut stream, shared.config.request_wait_max.0, |request| {
            has_served.store(true, Ordering::Relaxed);
            request::answer(shared, peer, request)
        });
        let end = async {
            tokio::select! {
                () = shutdown.begun() => DRAIN_WAIT_MAX,
                () = peer.slot.cut() => {
                    was_cut.store(true, Ordering::Relaxed);
                    http::CUT_WAIT_MAX
                }
            }
        };
        http::served(connection, end).await
    };
    if was_cut.into_inner() {
        return shared.refuse(peer.address, &Refused::default(), Refusal::Limit, CROWDED);
    }
    if let Some(Err(error)) = ended {
        // A client may be silent between two requests; closing that connection is no refusal.
        if error.is_parse() || !has_served.into_inner() {
            shared.refuse(
                peer.address,
                &Refused::default(),
                Refusal::Protocol,
                &format!("not HTTP, or too slow: {error}"),
            );
        }
    }
    linger(&mut stream).await;
}

/// Reads and discards bytes for a moment (lingering close). Closing with unread bytes would reset the connection, and
/// the client would lose the answer.
async fn linger(stream: &mut Stream) {
    const WAIT_MAX: Duration = Duration::from_secs(1);
    let mut scrap = [0; 1024];
    let reading = async { while stream.read(&mut scrap).await.is_ok_and(|read| read > 0) {} };
    // The connection ends after the wait even if the client still sends.
    let _ = tokio::time::timeout(WAIT_MAX, reading).await;
}
