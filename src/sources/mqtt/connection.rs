//! One connection of a client, from TCP accept to close.
//!
//! One task owns the connection: TLS handshake, CONNECT and login, then one loop that reads packets, submits events,
//! acknowledges events that are on the disk, and sends the client the events of its subscriptions.
//!
//! Promise: the client gets a PUBACK only for an event with a receipt, and CONNACK, SUBACK and PUBCOMP only once the state
//! of its session is on the disk.
//!
//! Not here: what packets mean (`inbound`), which connection owns a session (`registry/takeover`).

mod connect;
mod io;
mod session;

use super::connection_memory::ConnectionMemory;
use super::faults::{CROWDED_OUT, MOST_MEMORY, SHUTTING_DOWN, TAKEN_OVER, refusal};
use super::inbound::{Inbound, PacketOutcome};
use super::outbound::ClientOptions;
use super::registry::{PendingWill, SlotGuard};
use super::state::{Attempt, ListenerState, Setup};
use super::stored_will::{StoredWill, Will};
use crate::clock;
use crate::memory::{Eviction, Permit};
use crate::mqtt::connect::refuse_early;
use crate::mqtt::{Fault, Protocol, ReasonCode, packet};
use crate::shutdown::Shutdown;
use crate::sources::Refusal;
use crate::sources::handshake::Handshaking;
use crate::sources::identity::{Identity, Presented};
use crate::sources::socket;
use io::{ConnectionIo, Transport, WRITE_WAIT_MAX};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// The time that a client without memory for its connection has to send CONNECT; without it there is no CONNACK.
const REFUSE_WAIT_MAX: Duration = Duration::from_secs(1);
/// Bytes of client certificates that the fixed cost of a TLS connection includes (rustls and the identity keep a copy each).
const CHAIN_INCLUDED: usize = 4 << 10;
/// The time that an evicted client has to read the reason: another client needs its connection.
const EVICTED_WAIT_MAX: Duration = Duration::from_secs(1);
/// The time that a connection that ends waits for outstanding receipts.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);

/// An accepted connection, with the permit for its memory.
pub(super) struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub permit: Permit,
}

/// Refuses a client for which there is no memory: reads the start of CONNECT and answers it.
pub(super) async fn refuse_no_memory(mut stream: TcpStream) {
    let refusal = async {
        // The protocol level is in byte 11 at the latest.
        let mut start = [0; 12];
        let mut read = 0;
        while read < start.len() {
            match stream.read(&mut start[read..]).await {
                Ok(more @ 1..) => read += more,
                _ => return,
            }
        }
        // The client may have closed the connection.
        let _ = stream.write_all(&refuse_early(&start, ReasonCode::QuotaExceeded)).await;
    };
    // A slower client is closed without an answer.
    let _ = tokio::time::timeout(REFUSE_WAIT_MAX, refusal).await;
}

/// Serves one connection without TLS. Returns when the connection has ended.
pub(super) async fn serve(
    accepted: Accepted,
    shared: Arc<ListenerState>,
    newest: watch::Receiver<Setup>,
    shutdown: Shutdown,
) {
    let Accepted { stream, peer, permit } = accepted;
    let _open = shared.stats.open();
    socket::tune(&stream, WRITE_WAIT_MAX);
    let memory = ConnectionMemory::new(permit);
    Connection::new(Box::new(stream), peer, &shared, newest, memory).run(shutdown).await;
}

/// Serves one connection with TLS. It is not part of [`serve`], whose future stays smaller without it.
pub(super) async fn serve_tls(
    accepted: Accepted,
    acceptor: TlsAcceptor,
    shared: Arc<ListenerState>,
    newest: watch::Receiver<Setup>,
    shutdown: Shutdown,
) {
    let Accepted { stream, peer, permit } = accepted;
    let _open = shared.stats.open();
    socket::tune(&stream, WRITE_WAIT_MAX);
    let mut shutdown = shutdown;
    let eviction = permit.eviction();
    let handshake = Box::pin(acceptor.accept(Handshaking::new(stream, permit)));
    // A shutdown may cut off a handshake: the gateway has acknowledged nothing yet.
    let handshake = tokio::select! {
        () = shutdown.begun() => return,
        () = eviction.begun() => return shared.refuse(peer, Attempt::default(), Refusal::Memory, EVICTED),
        handshake = tokio::time::timeout(shared.config.connect_wait_max.0, handshake) => handshake,
    };
    match handshake {
        Ok(Ok(mut stream)) => {
            let session = stream.get_ref().1;
            let presented = shared.clients.as_ref().map(|clients| Presented::of(clients, session)).transpose();
            let certificate = match presented.map(Option::flatten) {
                Ok(certificate) => certificate,
                Err(untrusted) => return shared.refuse(peer, Attempt::default(), Refusal::Tls, &untrusted.to_string()),
            };
            let Some(permit) = stream.get_mut().0.done() else { return };
            let mut memory = ConnectionMemory::new(permit);
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let chain_bytes: usize = chain.iter().map(|certificate| 2 * certificate.len()).sum();
            if let Err(fault) = memory.reserve(chain_bytes.saturating_sub(CHAIN_INCLUDED)) {
                return shared.refuse(peer, Attempt::default(), refusal(fault), fault.text);
            }
            let mut connection = Connection::new(Box::new(stream), peer, &shared, newest, memory);
            connection.certificate = certificate;
            connection.run(shutdown).await;
        }
        Ok(Err(error)) => shared.refuse(peer, Attempt::default(), Refusal::Tls, &format!("TLS handshake: {error}")),
        Err(_) => shared.refuse(peer, Attempt::default(), Refusal::Tls, "TLS handshake took too long"),
    }
}

struct Connection<'s> {
    io: ConnectionIo,
    peer: SocketAddr,
    shared: &'s ListenerState,
    /// The current configuration, which a reload changes.
    newest: watch::Receiver<Setup>,
    certificate: Option<Presented>,
    /// The memory of the connection, until the client has logged in.
    memory: Option<ConnectionMemory>,
    /// Bytes of CONNECT that `memory` covers.
    connect_bytes: usize,
}

/// A client that has logged in.
struct ConnectedClient {
    slot: SlotGuard,
    identity: Identity,
    inbound: Inbound,
    /// The longest time without a packet; `None` without keep-alive.
    silence_max: Option<Duration>,
}

/// The reason why a connection ends.
enum ConnectionEnd {
    /// The client sent DISCONNECT; `true` if it asks for its will to be published.
    Disconnected { with_will: bool },
    /// The client closed the connection, or the connection broke.
    Gone,
    /// The gateway closes the connection; a client of MQTT 5 gets the reason in DISCONNECT.
    Fault(Fault),
}

impl<'s> Connection<'s> {
    fn new(
        stream: Box<dyn Transport>,
        peer: SocketAddr,
        shared: &'s ListenerState,
        newest: watch::Receiver<Setup>,
        memory: ConnectionMemory,
    ) -> Self {
        let io = ConnectionIo::new(stream);
        Self { io, peer, shared, newest, certificate: None, memory: Some(memory), connect_bytes: 0 }
    }

    /// Runs the phases of the connection. Each phase is boxed: an idle connection keeps the future of the session alone.
    async fn run(mut self, mut shutdown: Shutdown) {
        let eviction = self.memory.as_ref().map(|memory| memory.permit().eviction());
        // A shutdown does not wait for logins that are not checked yet.
        let connect = tokio::select! {
            () = shutdown.begun() => return Box::pin(self.close(None)).await,
            () = evicted(eviction) => return self.shared.refuse(self.peer, Attempt::default(), Refusal::Memory, EVICTED),
            connect = Box::pin(self.connect_and_log_in()) => connect,
        };
        let Some(mut client) = connect else { return Box::pin(self.close(None)).await };
        let Err(end) = Box::pin(self.run_session(&mut client, &mut shutdown)).await;
        Box::pin(self.end_session(client, end)).await;
    }

    /// Releases the client's slot, keeps its session, and publishes its will unless it disconnected normally.
    async fn end_session(mut self, client: Box<ConnectedClient>, end: ConnectionEnd) {
        let shared = self.shared;
        let ConnectedClient { slot, identity, mut inbound, .. } = *client;
        inbound.device.gone();
        // Before the client can connect again, since a client counts once.
        inbound.memory.permit().leave();
        let fault = match &end {
            ConnectionEnd::Fault(fault) => Some(*fault),
            _ => None,
        };
        // On a shutdown or a fault the client still gets the acknowledgements of its events. After a takeover the newer
        // connection gets them, and an eviction for memory must not wait.
        if fault.is_some_and(|fault| ![TAKEN_OVER, MOST_MEMORY].contains(&fault)) {
            self.drain(&mut inbound).await;
        }
        if let Some(fault) = fault.filter(|fault| *fault != TAKEN_OVER && *fault != SHUTTING_DOWN) {
            shared.refuse_client(&inbound.device, inbound.topic_at_fault(), refusal(fault), fault.text);
        }
        let options = inbound.options;
        let mut session = inbound.detach_session();
        // A shutdown of the gateway says nothing about its clients: no will is published.
        let is_dead = !matches!(end, ConnectionEnd::Disconnected { with_will: false }) && fault != Some(SHUTTING_DOWN);
        let will = session.will.take().filter(|_| is_dead);
        let expiry = Duration::from_secs(session.expiry.into());
        let (now, later) = match will {
            Some(will) if will.delay.min(expiry).is_zero() => (Some(will), None),
            will => (None, will),
        };
        let later = later.map(|Will { message, delay, .. }| {
            let delay = delay.min(expiry);
            PendingWill { delay, bytes: StoredWill::new(message, delay, &inbound.client, self.peer, &identity).bytes() }
        });
        slot.release(session, later);
        let client = inbound.client.clone();
        // After an eviction for memory the permit is given back now; otherwise it also covers the rest of this function.
        let covered = (fault != Some(MOST_MEMORY)).then_some(inbound);
        if covered.is_none() {
            (self.io.input, self.io.output) = (Vec::new(), Vec::new());
        }
        if let Some(will) = now
            && self.may_publish_will(&identity, &client, &will)
        {
            will.publish(&shared.ingest).await;
        }
        let is_evicted = fault.is_some_and(|fault| [MOST_MEMORY, CROWDED_OUT].contains(&fault));
        let wait_max = if is_evicted { EVICTED_WAIT_MAX } else { 2 * WRITE_WAIT_MAX };
        // An evicted client that does not read the reason is closed without it.
        let _ = tokio::time::timeout(wait_max, self.close(fault.map(|fault| (fault, options)))).await;
        drop(covered);
    }

    /// Returns whether the client may still publish its will under the current configuration; counts the will if not.
    fn may_publish_will(&self, identity: &Identity, client: &str, will: &Will) -> bool {
        let newest = Arc::clone(&self.newest.borrow().shared);
        let topic = &will.message.topic;
        let why = match newest.check_access(identity, self.peer) {
            Ok(rights) => match newest.route(topic, client, &rights) {
                (_, None) => return true,
                (_, Some(why)) => why,
            },
            Err(why) => why.to_owned(),
        };
        newest.count_dropped(self.peer, Attempt { sender: identity.sender(client), what: topic }, &why);
        false
    }

    /// Waits for outstanding receipts and writes their acknowledgements, for at most [`DRAIN_WAIT_MAX`].
    async fn drain(&mut self, inbound: &mut Inbound) {
        let deadline = clock::instant() + DRAIN_WAIT_MAX;
        let mut written = self.shared.registry.written();
        loop {
            inbound.acknowledge(self.shared, *written.borrow_and_update(), &mut self.io.output);
            let is_done = !inbound.awaits_receipts() && !inbound.awaits_writes();
            if is_done || self.shared.ingest.is_closed() {
                return;
            }
            let wait = deadline.saturating_duration_since(clock::instant());
            let something = async {
                tokio::select! {
                    () = inbound.producer.woken() => {}
                    _ = written.changed() => {}
                }
            };
            if tokio::time::timeout(wait, something).await.is_err() {
                return;
            }
        }
    }

    /// Sends DISCONNECT with the reason (MQTT 5) and closes the connection.
    async fn close(mut self, fault: Option<(Fault, ClientOptions)>) {
        if let Some((fault, options)) = fault
            && options.protocol == Protocol::V5
        {
            packet::push_disconnect(&mut self.io.output, fault, options.packet_bytes_max);
        }
        if self.io.flush().await {
            // The client may have closed the connection.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.io.stream.shutdown()).await;
        }
    }
}

impl ConnectionEnd {
    /// Returns the end of the connection as an error, if the packet ends it.
    fn check(outcome: PacketOutcome) -> Result<(), Self> {
        match outcome {
            PacketOutcome::Continue => Ok(()),
            PacketOutcome::Disconnected { with_will } => Err(Self::Disconnected { with_will }),
            PacketOutcome::Fault(fault) => Err(Self::Fault(fault)),
        }
    }
}

impl From<Fault> for ConnectionEnd {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Returns when the connection is evicted because memory is short.
async fn evicted(eviction: Option<Eviction>) {
    match eviction {
        Some(eviction) => eviction.begun().await,
        None => std::future::pending().await,
    }
}

const EVICTED: &str = "memory is short, and this client had not logged in yet";
