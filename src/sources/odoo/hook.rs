//! The hook: the HTTP endpoint at which Odoo posts that a record may have changed.
//!
//! Promise: the hook answers a post at once, because a user of Odoo waits for the answer. A post only makes the capture
//! read a record earlier; it is never data, so a lost, forged or early post does no harm.
//! Invariants: connections, heads, bodies and waits are bounded; the token is never logged.

use super::hints::Hints;
use super::outbox_feed::OutboxFeed;
use crate::clock;
use crate::contract::Sender;
use crate::http::{self, ConnectionLimit, ConnectionSlot, Phase, Reply, Stream};
use crate::memory::{Budget, ListenerId, Permit};
use crate::origin::Origin;
use crate::secret::Secret;
use crate::security::{Cause, Report};
use crate::shutdown::Shutdown;
use crate::sources::handshake::Handshaking;
use crate::sources::socket::{self, CannotBind, is_loopback};
use crate::sources::{Refusal, Stats};
use crate::telemetry::Limiter;
use crate::tls::{self, ServerFiles, TlsError};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

/// The configuration of the hook.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Certificates; without them the hook speaks plain TCP.
    pub tls: Option<ServerFiles>,
    /// File with the secret of the path: one line of at least 16 letters, digits, `-` and `_`.
    pub token_file: PathBuf,
    /// URL at which Odoo reaches the hook, such as `https://gw-01.plant:8444`; needed to install automation rules.
    pub url: Option<String>,
}

/// Connections at once: Odoo makes one for each post.
const CONNECTIONS_MAX: usize = 64;
/// Memory of a connection without a body: head, answer and TLS, as for an HTTP source.
const CONNECTION_BYTES: usize = 66 << 10;
/// Time limit for the TLS handshake and for each request.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(5);
/// A record with every field of an order takes some 5 kB.
const BODY_BYTES_MAX: usize = 256 << 10;
/// A shorter secret could be guessed.
const TOKEN_CHARS_MIN: usize = 16;

impl Config {
    /// Checks the values. The error is the key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match &self.url {
            Some(url) => crate::odoo::check_url(url).map(|_| ()).map_err(|message| ("hook.url", message)),
            None => Ok(()),
        }
    }

    /// Whether posts, and the token in them, travel unencrypted over a network.
    pub fn is_exposed(&self) -> bool {
        self.tls.is_none() && !is_loopback(self.listen.ip())
    }

    /// The secret of the path.
    pub fn token(&self) -> Result<Zeroizing<String>, String> {
        read_token(&self.token_file)
    }
}

fn read_token(file: &Path) -> Result<Zeroizing<String>, String> {
    let read = Secret::read(file).map_err(|error| error.to_string())?;
    let token = read.text().map_err(|why| format!("{} cannot be used: {why}", file.display()))?.trim();
    let is_good = token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if token.len() < TOKEN_CHARS_MIN || !is_good {
        return Err(format!(
            "{} holds no token: one line of at least {TOKEN_CHARS_MIN} letters, digits, \"-\" and \"_\", such as `openssl rand -hex 24` prints",
            file.display()
        ));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// Why the hook could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The address is in use or does not exist.
    #[error(transparent)]
    Address(#[from] CannotBind),
    /// The certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token file cannot be used.
    #[error("{0}")]
    Token(String),
}

/// A hook whose port is bound.
pub struct Hook {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<HookContext>,
}

/// The hints of a contract, and the posts that concern it.
pub(super) struct HintedContract {
    /// Names of its model.
    pub(super) models: Vec<String>,
    pub(super) hints: Arc<Hints>,
}

/// What posts may name.
pub(super) struct HintedModels {
    pub(super) contracts: Vec<HintedContract>,
    /// Model of the outbox, if contracts have one.
    pub(super) outbox: Option<String>,
    pub(super) feed: Arc<OutboxFeed>,
}

struct HookContext {
    source: String,
    token: [u8; 32],
    hints: HintedModels,
    stats: Arc<Stats>,
    refusals: Limiter,
    budget: Arc<Budget>,
    listener: ListenerId,
}

impl HookContext {
    fn refuse(&self, peer: SocketAddr, reason: Refusal, why: &str) {
        self.stats.refuse(reason);
        let cause = match reason {
            Refusal::Tls => Some(Cause::Tls),
            Refusal::Access => Some(Cause::Token),
            _ => None,
        };
        if let Some(cause) = cause {
            let (source, address) = (self.source.as_str(), Some(peer.ip()));
            self.stats.report(&Report { cause, source, address, sender: Sender::default(), what: "", reason: why });
        }
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            tracing::warn!(source = %self.source, %peer, held_back, "hint refused: {why}");
        }
    }
}

impl Hook {
    /// Binds the port.
    pub(super) fn open(
        config: Config,
        hints: HintedModels,
        (stats, budget): (Arc<Stats>, Arc<Budget>),
        source: &str,
    ) -> Result<Self, HookError> {
        let token = config.token().map_err(HookError::Token)?;
        let tls = config.tls.as_ref().map(tls::server).transpose()?.map(TlsAcceptor::from);
        let socket = socket::listen(config.listen)?;
        let shared = HookContext {
            source: source.to_owned(),
            token: Sha256::digest(token.as_bytes()).into(),
            hints,
            stats,
            budget,
            listener: ListenerId::new(),
            refusals: Limiter::new(Duration::from_secs(10)),
        };
        Ok(Self { socket, tls, shared: Arc::new(shared) })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Answers posts until the shutdown.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut connections = JoinSet::new();
        let limit = ConnectionLimit::new(CONNECTIONS_MAX);
        loop {
            tokio::select! {
                () = shutdown.begun() => break,
                // Remove finished tasks, or the set would grow.
                Some(_) = connections.join_next() => {}
                () = limit.changed(), if !limit.has_room() => {}
                accepted = self.socket.accept(), if limit.has_room() => match accepted {
                    Ok((stream, peer)) => {
                        let slot = limit.acquire(Origin::of(peer.ip()));
                        let shared = Arc::clone(&self.shared);
                        match shared.budget.admit(CONNECTION_BYTES, peer.ip(), shared.listener) {
                            Ok(permit) => {
                                let eviction = permit.eviction();
                                let served =
                                    connection(stream, HookPeer { peer, slot, permit }, self.tls.clone(), shared);
                                // The next poll finds the record of a hint that is lost here.
                                connections.spawn(async move { eviction.cuts(served).await; });
                            }
                            Err(error) => shared.refuse(peer, Refusal::Memory, &error.to_string()),
                        }
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
        // The next poll finds the record of a hint that is lost here.
        connections.abort_all();
    }
}

/// The peer of a connection, with the connection's slot and memory.
struct HookPeer {
    peer: SocketAddr,
    slot: ConnectionSlot<Origin>,
    permit: Permit,
}

async fn connection(stream: TcpStream, mut guest: HookPeer, tls: Option<TlsAcceptor>, shared: Arc<HookContext>) {
    socket::tune(&stream, REQUEST_WAIT_MAX);
    let peer = guest.peer;
    let Some(acceptor) = tls else { return serve(Box::new(stream), guest, shared).await };
    let metered = Handshaking::new(stream, guest.permit.split(0));
    let handshake = tokio::select! {
        // Another connection needs the slot.
        () = guest.slot.cut() => return,
        handshake = tokio::time::timeout(REQUEST_WAIT_MAX, acceptor.accept(metered)) => handshake,
    };
    match handshake {
        Ok(Ok(mut stream)) => {
            stream.get_mut().0.done();
            serve(Box::new(stream), guest, shared).await;
        }
        Ok(Err(error)) => shared.refuse(peer, Refusal::Tls, &format!("TLS handshake: {error}")),
        Err(_) => shared.refuse(peer, Refusal::Tls, "TLS handshake took too long"),
    }
}

async fn serve(mut stream: Stream, guest: HookPeer, shared: Arc<HookContext>) {
    let answer = |request| {
        guest.slot.enter(Phase::Reading);
        async {
            let reply = answer(request, &guest, &shared).await;
            guest.slot.enter(Phase::Waiting);
            reply
        }
    };
    let end = async {
        guest.slot.cut().await;
        http::CUT_WAIT_MAX
    };
    if let Some(Err(error)) = http::served(http::connection(&mut stream, REQUEST_WAIT_MAX, answer), end).await
        && error.is_parse()
    {
        shared.refuse(guest.peer, Refusal::Protocol, &format!("not HTTP: {error}"));
    }
}

async fn answer(request: Request<Incoming>, guest: &HookPeer, shared: &HookContext) -> Reply {
    let peer = guest.peer;
    let with = |status| http::reply(status, "text/plain", "");
    let (head, body) = request.into_parts();
    let token = head.uri.path().strip_prefix("/odoo/hook/").unwrap_or_default();
    // Compare hashes: the time of the comparison then reveals nothing about the token.
    let given: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    if given != shared.token {
        shared.refuse(peer, Refusal::Access, "the path does not contain the token of the hook");
        return with(StatusCode::NOT_FOUND);
    }
    if head.method != Method::POST {
        return with(StatusCode::METHOD_NOT_ALLOWED);
    }
    // For the body and for the parsed JSON.
    let Ok(_memory) = shared.budget.permit(2 * BODY_BYTES_MAX) else {
        shared.refuse(peer, Refusal::Memory, "no memory for the body");
        return with(StatusCode::SERVICE_UNAVAILABLE);
    };
    let reading = tokio::time::timeout(REQUEST_WAIT_MAX, http::read(body, BODY_BYTES_MAX));
    let Ok(Ok(body)) = reading.await else {
        shared.refuse(peer, Refusal::Limit, "the body is too large, too slow or cut off");
        return with(StatusCode::BAD_REQUEST);
    };
    guest.slot.enter(Phase::Answering);
    let Some((model, id)) = record(&body) else {
        shared.refuse(peer, Refusal::Content, "the body names no record");
        return with(StatusCode::BAD_REQUEST);
    };
    if shared.hints.outbox.as_ref() == Some(&model) {
        shared.hints.feed.post();
        return with(StatusCode::NO_CONTENT);
    }
    for contract in &shared.hints.contracts {
        if contract.models.contains(&model) && !contract.hints.put(id) {
            shared.stats.dropped.add(1);
        }
    }
    with(StatusCode::NO_CONTENT)
}

/// Model and id of the record that a post names.
fn record(body: &[u8]) -> Option<(String, i64)> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let id = body.get("_id").or(body.get("id"))?.as_i64()?;
    Some((body.get("_model")?.as_str()?.to_owned(), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_of_odoo_names_its_record() {
        let body =
            br#"{"_action": "mo changed(#542)", "_id": 3, "_model": "mrp.production", "id": 3, "state": "draft"}"#;
        assert_eq!(record(body), Some(("mrp.production".into(), 3)));
        assert_eq!(record(br#"{"_model": "mrp.production", "_id": "3"}"#), None);
        assert_eq!(record(b"<html>"), None);
    }
}
