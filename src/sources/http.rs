//! The HTTP source: programs post events, as CloudEvents or as plain payloads.
//!
//! Promise: 202 leaves only with a receipt for every event of the request. Any other answer says
//! why; after one that asks to come again, a repeat with the same ids makes no second event.
//! Invariants:
//! - nothing a client sends stops another client, the process, or grows memory without bound: heads,
//!   bodies, connections, rates and waits all have theirs;
//! - who a caller is, is known before its body is read;
//! - connections, memory for bodies and failed tokens have a share for each address or caller.
//!
//! `POST /events/{source}`: the source is the program or device that reports, `{client}` in
//! contracts. A plain payload has the topic `{source}`, a CloudEvent `{source}/{type}`.
//!
//! Not here: what an event means (`ingest`, `contract`).

mod answer;
mod cloudevents;
mod room;
mod tokens;

pub use tokens::{Tokens, put_token};

use crate::clock;
use crate::contract::Sender;
use crate::event::AuthType;
use crate::http::{self, Crowd, Stream};
use crate::ingest::Ingest;
use crate::memory::{Budget, Door as BudgetDoor, Permit};
use crate::origin::Origin;
use crate::rate::Rates;
use crate::security::{Cause, Report};
use crate::setting::{Bytes, Span};
use crate::shutdown::{self, Shutdown};
use crate::sources::handshake::Handshaking;
use crate::sources::identity::Presented;
use crate::sources::secrets::BadSecrets;
use crate::sources::socket::{self, CannotBind, Door, is_loopback};
use crate::sources::{PAYLOAD_BYTES_MAX, Refusal, Stats};
use crate::telemetry::{Limiter, shown};
use crate::tls::{self, Certificates, Clients, Served, ServerFiles, TlsError};
use answer::Peer;
use hyper::StatusCode;
use room::Room;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// An HTTP source as the configuration says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Certificates; without them the source speaks plain TCP.
    pub tls: Option<ServerFiles>,
    /// File of names and hashes of bearer tokens.
    pub tokens: Option<PathBuf>,
    /// Whether callers without token and certificate are let in. By default only on loopback.
    pub anonymous: Option<bool>,
    /// Connections at once.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Events a second that each caller may hand in.
    #[serde(default = "events_per_second_max")]
    pub events_per_second_max: u32,
    /// The largest payload of an event.
    #[serde(default = "payload_max")]
    pub payload_max: Bytes,
    /// The largest body that is an envelope: a structured CloudEvent, or a batch of them.
    #[serde(default = "body_max")]
    pub body_max: Bytes,
    /// Bytes of requests in hand, over all connections.
    #[serde(default = "waiting_max")]
    pub waiting_max: Bytes,
    /// How long a client may take for the TLS handshake, for a request's head and for its body.
    #[serde(default = "request_wait_max")]
    pub request_wait_max: Span,
    /// How long a request waits for its receipts.
    #[serde(default = "answer_wait_max")]
    pub answer_wait_max: Span,
}

fn connections_max() -> usize {
    1000
}
fn events_per_second_max() -> u32 {
    1000
}
fn payload_max() -> Bytes {
    Bytes(256 << 10)
}
fn body_max() -> Bytes {
    Bytes(1 << 20)
}
fn waiting_max() -> Bytes {
    Bytes(16 << 20)
}
fn request_wait_max() -> Span {
    Span(Duration::from_secs(10))
}
fn answer_wait_max() -> Span {
    Span(Duration::from_secs(10))
}

/// The largest body that may be allowed.
const BODY_BYTES_MAX: u64 = 32 << 20;
/// The most memory for requests that may be allowed.
const WAITING_BYTES_MAX: u64 = 1 << 30;
/// What a caller may be ahead of its rate.
const BURST: Duration = Duration::from_secs(1);
/// Wrong tokens that an address may show in a second, and how many seconds' worth at once: a handful of programs
/// with an old token. There is nothing to guess; it keeps noise from what looks for intruders.
const WRONG_TOKENS_PER_SECOND: f64 = 1.0;
const WRONG_TOKENS_BURST: Duration = Duration::from_secs(20);
/// What a connection takes without a body: head and answer have 16 KiB each at most.
const CONNECTION_BYTES: usize = 40 << 10;
/// What TLS takes beside that, as of an MQTT listener.
const TLS_BYTES: usize = 26 << 10;
/// How long requests in hand are awaited at the end.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a client may refuse to read its answers.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(20);

impl Config {
    /// Checks values against each other: key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let bounded = |key, value: Bytes, max: u64| {
            let is_good = value.0 > 0 && value.0 <= max;
            let message = || format!("{value} is out of bounds; 1 byte to {} are allowed", Bytes(max));
            if is_good { Ok(()) } else { Err((key, message())) }
        };
        bounded("payload_max", self.payload_max, PAYLOAD_BYTES_MAX)?;
        bounded("body_max", self.body_max, BODY_BYTES_MAX)?;
        bounded("waiting_max", self.waiting_max, WAITING_BYTES_MAX)?;
        let largest = self.payload_max.0.max(self.body_max.0) + answer::REQUEST_BYTES;
        if self.waiting_max.0 < largest {
            let least = Bytes(largest);
            return Err((
                "waiting_max",
                format!("{} has no room for one request; {least} are needed", self.waiting_max),
            ));
        }
        for (key, is_zero) in [
            ("connections_max", self.connections_max == 0),
            ("events_per_second_max", self.events_per_second_max == 0),
            ("request_wait_max", self.request_wait_max.0.is_zero()),
            ("answer_wait_max", self.answer_wait_max.0.is_zero()),
        ] {
            if is_zero {
                return Err((key, "0 is not allowed".into()));
            }
        }
        Ok(())
    }

    /// Whether somebody without token and certificate is let in.
    pub fn lets_in_anonymous(&self) -> bool {
        self.anonymous
            .unwrap_or_else(|| is_loopback(self.listen.ip()) && self.tokens.is_none() && !self.knows_clients())
    }

    /// Whether nobody at all is let in.
    pub fn lets_in_nobody(&self) -> bool {
        self.tokens.is_none() && !self.knows_clients() && !self.lets_in_anonymous()
    }

    fn knows_clients(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// The TLS of the source. A certificate is optional where there are other ways to be let in.
    pub fn server(&self) -> Result<Option<Served>, TlsError> {
        let others = self.tokens.is_some() || self.lets_in_anonymous();
        let certificates = if others { Certificates::Optional } else { Certificates::Required };
        self.tls.as_ref().map(|files| tls::served(files, certificates)).transpose()
    }
}

/// Why a source did not start.
#[derive(Debug, thiserror::Error)]
pub enum CannotServe {
    /// The address is taken or not there.
    #[error(transparent)]
    Address(#[from] CannotBind),
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token file.
    #[error(transparent)]
    Tokens(#[from] BadSecrets),
}

/// An HTTP source that has its port.
#[derive(Debug)]
pub struct Server {
    door: Door<Shared>,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    budget: Arc<Budget>,
}

/// Settings of a source that are good, and not in force yet.
#[derive(Debug)]
pub struct Prepared(socket::Prepared<Shared>);

/// What the connections of a source share.
#[derive(Debug)]
struct Shared {
    config: Config,
    tls: Option<Arc<rustls::ServerConfig>>,
    /// Judges certificates of clients.
    clients: Option<Clients>,
    ingest: Arc<Ingest>,
    tokens: Option<Tokens>,
    /// Events of each caller.
    rates: Rates<String>,
    /// Bytes of requests in hand.
    room: Room,
    /// Wrong tokens of each address.
    wrong_tokens: Rates<Origin>,
    stats: Arc<Stats>,
    refusals: Limiter,
    budget: Arc<Budget>,
    budget_door: BudgetDoor,
}

impl Shared {
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
            room: Room::new(config.waiting_max.0),
            wrong_tokens: Rates::new(WRONG_TOKENS_PER_SECOND, WRONG_TOKENS_BURST),
            config,
            ingest: Arc::clone(ingest),
            stats: Arc::clone(stats),
            refusals: Limiter::new(Duration::from_secs(10)),
            budget: Arc::clone(budget),
            budget_door: BudgetDoor::new(),
        })
    }

    /// Whether a client that showed a certificate in the handshake would still be let in: a list may have ended since.
    fn is_trusted(&self, presented: &Presented) -> bool {
        let ended = self.clients.as_ref().filter(|clients| clients.ended_lists() > 0);
        ended.is_none_or(|clients| presented.chain.is_trusted(clients))
    }

    /// A permit for a connection from `peer`; `None` where there is no memory for one more.
    fn admit(&self, peer: SocketAddr) -> Option<Permit> {
        let bytes = CONNECTION_BYTES + if self.tls.is_some() { TLS_BYTES } else { 0 };
        let permit = self.budget.admit(bytes, peer.ip(), self.budget_door);
        permit.inspect_err(|error| self.refuse(peer, &Asked::default(), Refusal::Memory, &error.to_string())).ok()
    }

    /// Counts a refusal, and logs one in a while.
    fn refuse(&self, peer: SocketAddr, asked: &Asked, reason: Refusal, why: &str) {
        let Asked { status, user, proven_by, client } = asked;
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

/// A request that is refused, as far as it is known by then.
#[derive(Debug, Default)]
struct Asked {
    /// The status of the answer; `None` where there is none.
    status: Option<StatusCode>,
    /// The name that the caller proved.
    user: String,
    /// How it was proven; `None` for a caller without a name.
    proven_by: Option<AuthType>,
    /// The `{source}` of the path.
    client: String,
}

impl Server {
    /// Takes the port; connections are accepted by [`Server::run`].
    pub fn open(
        config: Config,
        ingest: Arc<Ingest>,
        stats: Arc<Stats>,
        budget: Arc<Budget>,
    ) -> Result<Self, CannotServe> {
        let shared = Shared::new(config, &ingest, &stats, &budget)?;
        let listen = shared.config.listen;
        Ok(Self { door: Door::open(shared, listen)?, ingest, stats, budget })
    }

    /// The address it really has; of use where the configuration says port 0.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.door.address()
    }

    /// Reads files and takes another port, where the settings say so; nothing changes yet.
    pub fn prepare(&self, config: Config) -> Result<Prepared, CannotServe> {
        let listen = config.listen;
        Ok(Prepared(self.door.prepare(Shared::new(config, &self.ingest, &self.stats, &self.budget)?, listen)?))
    }

    /// Puts settings in force. Requests in hand get their answers; connections end behind them.
    pub fn put_in_force(&self, Prepared(prepared): Prepared) {
        self.door.put_in_force(prepared);
    }

    /// Accepts connections until the shutdown, then waits for the requests in hand.
    pub fn run(&self, mut shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        let mut newest = self.door.follow();
        async move {
            let mut setup = newest.borrow_and_update().clone();
            // Begins when other settings come into force.
            let (mut outdated, mut current) = shutdown::pair();
            let mut connections = JoinSet::new();
            let mut crowd = Crowd::new(setup.shared.config.connections_max);
            loop {
                let shared = &setup.shared;
                let has_room = crowd.has_room();
                tokio::select! {
                    () = shutdown.begun() => break,
                    changed = newest.changed() => {
                        if changed.is_err() {
                            break;
                        }
                        setup = newest.borrow_and_update().clone();
                        // The one before is dropped, which begins its end.
                        (outdated, current) = shutdown::pair();
                        crowd = Crowd::new(setup.shared.config.connections_max);
                    }
                    // The ended are taken out, so that the set does not grow.
                    Some(_) = connections.join_next() => {}
                    () = crowd.stirred(), if !has_room => {}
                    // While every connection is being answered, the kernel holds new ones back.
                    accepted = setup.accept(), if has_room => match accepted {
                        Ok((stream, peer)) => {
                            let seat = crowd.seat(Origin::of(peer.ip()));
                            let Some(permit) = shared.admit(peer) else { continue };
                            let eviction = permit.eviction();
                            let guest = Peer { address: peer, certificate: None, seat, permit };
                            let served = connection(stream, guest, Arc::clone(shared), current.clone());
                            let shared = Arc::clone(shared);
                            connections.spawn(async move {
                                if eviction.cuts(served).await.is_none() {
                                    shared.refuse(peer, &Asked::default(), Refusal::Memory, EVICTED);
                                }
                            });
                        }
                        Err(error) => {
                            // Out of descriptors, mostly: a pause lets some connections end.
                            shared.refuse(shared.config.listen, &Asked::default(), Refusal::Connection, &format!("cannot accept: {error}"));
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
async fn connection(stream: TcpStream, mut peer: Peer, shared: Arc<Shared>, mut shutdown: Shutdown) {
    let _open = shared.stats.open();
    let address = peer.address;
    socket::tune(&stream, UNREAD_WAIT_MAX);
    let Some(config) = shared.tls.clone() else { return serve(Box::new(stream), &peer, &shared, shutdown).await };
    let wait = shared.config.request_wait_max.0;
    let metered = Handshaking::new(stream, peer.permit.split(0));
    let handshake = tokio::select! {
        // A handshake that the shutdown meets, or that another connection wants the seat of, has promised nothing.
        () = shutdown.begun() => return,
        () = peer.seat.cut() => return shared.refuse(address, &Asked::default(), Refusal::Limit, CROWDED),
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
                Err(untrusted) => shared.refuse(address, &Asked::default(), Refusal::Tls, &untrusted.to_string()),
            }
        }
        Ok(Err(error)) => shared.refuse(address, &Asked::default(), Refusal::Tls, &format!("TLS handshake: {error}")),
        Err(_) => shared.refuse(address, &Asked::default(), Refusal::Tls, "TLS handshake took too long"),
    }
}

/// Why a connection is cut when memory is short.
const EVICTED: &str = "memory is short, and this client had not shown who it is yet";
/// Why a connection is cut that did nothing wrong but wait.
const CROWDED: &str = "connections_max is reached, and this connection waited longest of the address that has most";

async fn serve(mut stream: Stream, peer: &Peer, shared: &Shared, mut shutdown: Shutdown) {
    let (has_served, is_cut) = (AtomicBool::new(false), AtomicBool::new(false));
    let ended = {
        let has_served = &has_served;
        let connection = http::connection(&mut stream, shared.config.request_wait_max.0, |request| {
            has_served.store(true, Ordering::Relaxed);
            answer::answer(shared, peer, request)
        });
        let end = async {
            tokio::select! {
                () = shutdown.begun() => DRAIN_WAIT_MAX,
                () = peer.seat.cut() => {
                    is_cut.store(true, Ordering::Relaxed);
                    http::CUT_WAIT_MAX
                }
            }
        };
        http::served(connection, end).await
    };
    if is_cut.into_inner() {
        return shared.refuse(peer.address, &Asked::default(), Refusal::Limit, CROWDED);
    }
    if let Some(Err(error)) = ended {
        // Between two requests a client may be silent, and is let go without a word.
        if error.is_parse() || !has_served.into_inner() {
            shared.refuse(
                peer.address,
                &Asked::default(),
                Refusal::Protocol,
                &format!("not HTTP, or too slow: {error}"),
            );
        }
    }
    linger(&mut stream).await;
}

/// Reads on for a moment what nobody wants any more: closing with bytes unread would reset the
/// connection and take the answer with it.
async fn linger(stream: &mut Stream) {
    const WAIT_MAX: Duration = Duration::from_secs(1);
    let mut scrap = [0; 1024];
    let reading = async { while stream.read(&mut scrap).await.is_ok_and(|read| read > 0) {} };
    // Whoever sends on has had its chance.
    let _ = tokio::time::timeout(WAIT_MAX, reading).await;
}
