//! The HTTP server: accepts connections and serves each until it ends.

use super::config::Config;
use super::context::{CannotServe, Refused, ServerContext};
use super::request::{self, Peer};
use crate::http::{self, ConnectionLimit, Stream};
use crate::ingest::Ingest;
use crate::memory::Budget;
use crate::origin::Origin;
use crate::shutdown::{self, Shutdown};
use crate::sources::handshake::Handshaking;
use crate::sources::identity::Presented;
use crate::sources::socket::{self, ListenSocket};
use crate::sources::{Refusal, Stats};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Time that requests in progress have to finish at shutdown.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a client may leave its answers unread.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(20);

/// An HTTP source whose port is bound.
#[derive(Debug)]
pub struct Server {
    pub(super) listener: ListenSocket<ServerContext>,
    pub(super) ingest: Arc<Ingest>,
    pub(super) stats: Arc<Stats>,
    pub(super) budget: Arc<Budget>,
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
    pub(super) fn listen(&self, mut shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
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
