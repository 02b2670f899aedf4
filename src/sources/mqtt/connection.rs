//! One connection of a client, from TCP accept to close.
//!
//! One task owns the connection: TLS handshake, CONNECT and login, then one loop that reads packets, submits events,
//! acknowledges events that are on the disk, and sends the client the events of its subscriptions.
//!
//! Promise: the client gets a PUBACK only for an event with a receipt, and CONNACK, SUBACK and PUBCOMP only once the state
//! of its session is on the disk.
//!
//! Not here: what packets mean (`inbound`), which connection owns a session (`registry/takeover`).

use super::connection_memory::ConnectionMemory;
use super::faults::{
    CROWDED_OUT, KEEP_ALIVE_EXPIRED, MOST_MEMORY, NO_MEMORY, SHUTTING_DOWN, TAKEN_OVER, TOO_SLOW, refusal,
};
use super::inbound::{ALIASES_MAX, EXCHANGE_BYTES, Inbound, PacketOutcome, UNACKNOWLEDGED_BYTES};
use super::login::Users;
use super::outbound::{ClientOptions, Limits, Ready};
use super::registry::{Key, NoSession, OpenedSession, PendingWill, Session, SessionRequest, SlotGuard, will_bytes};
use super::will::{StoredWill, Will};
use super::{Attempt, ListenerState, Setup};
use crate::clock;
use crate::contract::Sender;
use crate::event::Timestamp;
use crate::http::Duplex;
use crate::ingest::Route;
use crate::memory::{Eviction, Permit};
use crate::mqtt::connect::{self, Connack, Connect, WillMessage};
use crate::mqtt::{Fault, Protocol, ReasonCode, packet};
use crate::origin::{Origin, Party};
use crate::security::Cause;
use crate::shutdown::Shutdown;
use crate::sources::Refusal;
use crate::sources::handshake::Handshaking;
use crate::sources::identity::{Identity, Presented, Proof};
use crate::sources::socket::{self, is_loopback};
use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Bytes of one read. Each thread has one buffer; connections have none.
const READ_BYTES: usize = 32 << 10;
/// The largest CONNECT: a will of 64 KiB, and 8 KiB for the rest, which includes tokens as passwords. It is read before the
/// client has logged in, so the limit is lower than that of other packets.
const CONNECT_BYTES_MAX: usize = 72 << 10;
/// The longest user name, the same as for client ids: each connection, session and device keeps it.
const USER_BYTES_MAX: usize = 256;
/// The longest wait for CONNACK while passwords of other clients are checked: 500 devices that reconnect at once, at a
/// tenth of a second each on a small processor.
const LOGIN_WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes that a client may send before its CONNACK while its password is checked: more than a SUBSCRIBE or two.
const AHEAD_BYTES_MAX: usize = 32 << 10;
/// Bytes of one read with many connections, since the bytes of one client delay the others: some 60 publishes without a
/// payload.
const READ_BYTES_MIN: usize = 1 << 10;
/// Number of connections that may read [`READ_BYTES`] each before one waits too long for the others: 1 MiB is an estimated
/// 10 ms of work.
const READERS: usize = 32;
/// Bytes that the kernel buffers for a client that does not read: the limit of a socket buffer.
const SEND_BUFFER_BYTES: usize = socket::BUFFER_BYTES;
/// The time that a client without memory for its connection has to send CONNECT; without it there is no CONNACK.
const REFUSE_WAIT_MAX: Duration = Duration::from_secs(1);
/// Bytes of client certificates that the fixed cost of a TLS connection includes (rustls and the identity keep a copy each).
const CHAIN_INCLUDED: usize = 4 << 10;
/// The time within which a client has to read the bytes that the gateway sends.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(20);
/// The time that an evicted client has to read the reason: another client needs its connection.
const EVICTED_WAIT_MAX: Duration = Duration::from_secs(1);
/// The time that a connection that ends waits for outstanding receipts.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Interval of the check of a subscriber: its backlog, and the progress to save.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// A subscriber is too slow when it is this many times `backlog_events_max` behind.
const BEHIND_TIMES_MAX: u64 = 2;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

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
        let _ = stream.write_all(&connect::refuse_early(&start, ReasonCode::QuotaExceeded)).await;
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
    stream: Box<dyn Transport>,
    peer: SocketAddr,
    shared: &'s ListenerState,
    /// The current configuration, which a reload changes.
    newest: watch::Receiver<Setup>,
    certificate: Option<Presented>,
    /// Bytes of a packet that is not complete yet.
    input: Vec<u8>,
    output: Vec<u8>,
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

/// The byte stream of a connection. It is one type (boxed), since the whole connection is compiled for it.
trait Transport: Duplex + Sync {}

impl Transport for TcpStream {}

impl Transport for TlsStream<Handshaking> {}

impl<'s> Connection<'s> {
    fn new(
        stream: Box<dyn Transport>,
        peer: SocketAddr,
        shared: &'s ListenerState,
        newest: watch::Receiver<Setup>,
        memory: ConnectionMemory,
    ) -> Self {
        let (input, output) = (Vec::new(), Vec::new());
        Self { stream, peer, shared, newest, certificate: None, input, output, memory: Some(memory), connect_bytes: 0 }
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
        let end = Box::pin(self.run_session(&mut client, &mut shutdown)).await;
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
            (self.input, self.output) = (Vec::new(), Vec::new());
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

    /// Waits for CONNECT and answers it. Returns `None` if the client is refused.
    async fn connect_and_log_in(&mut self) -> Option<Box<ConnectedClient>> {
        let shared = self.shared;
        let Ok(packet) = tokio::time::timeout(shared.config.connect_wait_max.0, self.connect()).await else {
            shared.refuse(self.peer, Attempt::default(), Refusal::Protocol, "no CONNECT in time");
            return None;
        };
        let packet = packet?;
        let (client, user) = (packet.client.clone(), packet.user.clone().unwrap_or_default());
        // From here on the client waits for the gateway.
        let log_in = tokio::time::timeout(LOGIN_WAIT_MAX, Box::pin(self.log_in(packet))).await;
        let mut client = log_in.unwrap_or_else(|_| {
            let attempt = Attempt { sender: Sender { client: &client, user: &user, proven_by: None }, what: "" };
            shared.refuse(self.peer, attempt, Refusal::Limit, "too many logins wait before this one");
            None
        })?;
        client.inbound.memory.release(self.connect_bytes);
        Some(client)
    }

    /// Waits for CONNECT. Returns `None` if the client sends something else or nothing.
    async fn connect(&mut self) -> Option<Connect> {
        loop {
            if let Err((answer, why)) = connect::check_protocol(&self.input) {
                return self.reject(&answer, Refusal::Protocol, why);
            }
            match packet::frame(&self.input, CONNECT_BYTES_MAX) {
                Ok(Some(frame)) => return self.parse_connect(frame.length),
                Ok(None) => {}
                Err(fault) => {
                    let answer = connect::refuse_early(&self.input, fault.code);
                    return self.reject(&answer, refusal(fault), fault.text);
                }
            }
            let most = read_bytes(self.shared);
            let (input, stream) = (&mut self.input, &mut self.stream);
            let memory = self.memory.as_mut()?;
            let length = packet::length(input).filter(|length| *length <= CONNECT_BYTES_MAX);
            let read =
                poll_fn(|context| poll_read_with(stream, context, most, |bytes| memory.buffer(input, bytes, length)));
            match read.await {
                Ok(Read::Bytes(Ok(()))) => {}
                Ok(Read::Bytes(Err(fault))) => {
                    let answer = connect::refuse_early(&self.input, fault.code);
                    return self.reject(&answer, refusal(fault), fault.text);
                }
                _ => return None,
            }
        }
    }

    /// Queues the answer for a refused client and counts the refusal.
    fn reject<T>(&mut self, answer: &[u8], reason: Refusal, why: &str) -> Option<T> {
        self.output.extend_from_slice(answer);
        self.shared.refuse(self.peer, Attempt::default(), reason, why);
        None
    }

    /// Reads CONNECT, which is the first `length` bytes of the input.
    fn parse_connect(&mut self, length: usize) -> Option<Connect> {
        let rest = self.input.split_off(length);
        let connect = std::mem::replace(&mut self.input, rest);
        let memory = self.memory.as_mut()?;
        memory.buffer_shrunk(self.input.capacity());
        // The strings of CONNECT are copied.
        if let Err(fault) = memory.reserve(length) {
            return self.reject(&connect::refuse_early(&connect, fault.code), refusal(fault), fault.text);
        }
        self.connect_bytes = length;
        match Connect::read(&packet::frame(&connect, usize::MAX).ok()??) {
            Ok(packet) => Some(packet),
            Err((answer, why)) => self.reject(&answer, Refusal::Protocol, why),
        }
    }

    async fn log_in(&mut self, mut packet: Connect) -> Option<Box<ConnectedClient>> {
        let is_assigned = packet.client.is_empty();
        if is_assigned && (packet.is_clean || packet.protocol == Protocol::V5) {
            packet.client = format!("auto-{}", uuid::Uuid::new_v4().simple());
        }
        let identified = match check_lengths(&packet, self.shared.config.topic_max) {
            Ok(()) => self.identify(&packet).await,
            Err((code, why)) => Err((code, Cow::Borrowed(why))),
        };
        let mut user = packet.user.clone().unwrap_or_default();
        let (mut proven_by, mut denied) = (None, Cause::Login);
        let opened = match identified {
            Ok(identity) => {
                // From here on the proven name counts, not that in CONNECT. A client with a proven name can only be denied
                // the topic of its will.
                (user, denied) = (identity.name().to_owned(), Cause::Will);
                proven_by = identity.sender(&packet.client).proven_by;
                self.open_session(&packet, identity).await.map_err(|(code, why)| (code, Cow::Borrowed(why)))
            }
            Err(refused) => Err(refused),
        };
        let (client, is_present, expiry) = match opened {
            Ok(opened) => opened,
            Err((code, why)) => {
                let sender = Sender { client: &packet.client, user: &user, proven_by };
                self.shared.refuse_connect(self.peer, sender, packet.will.as_ref(), (code, &why), denied);
                connack(self.shared, code).push(&mut self.output, packet.protocol);
                return None;
            }
        };
        let assigned = is_assigned.then_some(packet.client.as_str());
        let expiry = (expiry != packet.expiry).then_some(expiry);
        let connack = Connack { is_present, assigned, expiry, ..connack(self.shared, ReasonCode::Success) };
        connack.push(&mut self.output, packet.protocol);
        // The first read notices a client that has gone.
        let _ = self.flush().await;
        Some(client)
    }

    /// Returns the identity of the client, or the code and the reason of the refusal.
    async fn identify(&mut self, packet: &Connect) -> Result<Identity, (ReasonCode, Cow<'static, str>)> {
        let shared = self.shared;
        if packet.client.is_empty() {
            return Err((ReasonCode::ClientIdentifierNotValid, "an empty client id needs a clean session".into()));
        }
        if packet.client.len() > 256 {
            return Err((ReasonCode::ClientIdentifierNotValid, "the client id is longer than 256 bytes".into()));
        }
        let is_local = is_loopback(self.peer.ip());
        if let (Some(presented), true) = (&self.certificate, packet.user.is_none() || shared.users.is_none()) {
            return presented.identity().map_err(|unnamed| (ReasonCode::NotAuthorized, unnamed.to_string().into()));
        }
        let identity = match (&packet.user, &shared.users) {
            (Some(user), Some(users)) => {
                let password = packet.password.as_deref().unwrap_or_default();
                let proof = self.check_password(users, user, password).await;
                let proof = proof.map_err(|(code, why)| (code, Cow::from(why)))?;
                let chain = self.certificate.as_ref().map(|presented| presented.chain.clone());
                Ok(Identity::Password { name: user.clone(), proof, chain })
            }
            (user, _) if shared.config.accepts_anonymous() => {
                Ok(Identity::Anonymous { claimed: user.clone().unwrap_or_default() })
            }
            (Some(_), None) => Err((ReasonCode::NotAuthorized, "this listener has no users; set passwords")),
            _ if is_local => Err((ReasonCode::NotAuthorized, "this listener requires a user name")),
            _ => Err((
                ReasonCode::NotAuthorized,
                "anonymous clients are accepted on loopback only, unless anonymous = true",
            )),
        };
        identity.map_err(|(code, why)| (code, why.into()))
    }

    /// Checks a password when the turn of its address has come. A client that closes its connection leaves the queue.
    async fn check_password(
        &mut self,
        users: &Users,
        user: &str,
        password: &[u8],
    ) -> Result<Proof, (ReasonCode, &'static str)> {
        if let Some(proof) = users.known(user, password) {
            return Ok(proof);
        }
        let turn = tokio::select! {
            turn = self.shared.kept.logins.turn(Origin::of(self.peer.ip()), user) => turn,
            () = client_left(&mut self.stream, &mut self.input, self.memory.as_mut()) => {
                return Err((ReasonCode::BadUserNameOrPassword, "the client disconnected before its password was checked"));
            }
        };
        let turn = turn.map_err(|_| {
            (
                ReasonCode::ConnectionRateExceeded,
                "logins of this address or name failed too often; they are slowed down",
            )
        })?;
        // Another connection may have checked the same login meanwhile.
        let known = users.known(user, password);
        let proof = known.or_else(|| tokio::task::block_in_place(|| users.verify(user, password)));
        turn.end(proof.is_some());
        proof.ok_or((ReasonCode::BadUserNameOrPassword, "user name or password is wrong"))
    }

    /// Takes over the client's slot and opens its session, with the rights that are in force now.
    async fn open_session(
        &mut self,
        packet: &Connect,
        identity: Identity,
    ) -> Result<(Box<ConnectedClient>, bool, u32), (ReasonCode, &'static str)> {
        let shared = self.shared;
        let newest = Arc::clone(&self.newest.borrow().shared);
        let rights = newest.rights(&identity, self.peer);
        let way = packet.will.as_ref().map(|will| newest.route(&will.topic, &packet.client, &rights));
        if matches!(way, Some((_, Some(_)))) {
            return Err((ReasonCode::NotAuthorized, "this client may not publish to the topic of its will"));
        }
        if packet.will.as_ref().is_some_and(|will| will.payload.len() as u64 > shared.config.payload_max.0) {
            return Err((ReasonCode::PacketTooLarge, "the will is larger than payload_max"));
        }
        let key = Key::new(&shared.config.name, identity.proven(), &packet.client);
        let party = Party::of(identity.proven(), self.peer.ip());
        // A connection that takes over replaces one that already counts.
        let connections_max = Some(newest.config.connections_max).filter(|_| !shared.registry.is_connected(&key));
        let memory = self.memory.as_mut().ok_or((ReasonCode::ServerBusy, "the connection has ended"))?;
        memory.join(party.clone(), connections_max).map_err(|fault| (fault.code, fault.text))?;
        let expiry = shared.config.expiry_within(packet.expiry);
        let (slot, mut session, is_present) = self.take_over(&key, packet, &identity, (&party, expiry)).await?;
        let (ended, wait_for) = newest.end_subscriptions(&key, &mut session, &rights);
        self.wait_written(wait_for).await?;
        session.will = match packet.will.clone().zip(way) {
            Some((message, (route, _))) => Some(self.will(&party, message, route)?),
            None => None,
        };
        let mut memory = self.memory.take().ok_or((ReasonCode::ServerBusy, "the connection has ended"))?;
        if let Err(fault) = memory.reserve(session_bytes(&session)) {
            return Err((fault.code, fault.text));
        }
        session.permit = None;
        let options = ClientOptions {
            protocol: packet.protocol,
            receive_maximum: packet.receive_maximum,
            packet_bytes_max: packet.packet_bytes_max,
        };
        let cut = session.outbound.resume(&shared.local, |filter| shared.group(filter), options, self.limits());
        shared.stats.cut.add(cut);
        let version = if packet.protocol == Protocol::V5 { "5" } else { "3.1.1" };
        let device = shared.devices.connected(&key, &identity, self.peer, version);
        ended.iter().for_each(|filter| newest.report_ended(&device, filter));
        let parts = (device, memory, Arc::clone(&shared.ingest));
        let inbound = Inbound::new(key, packet.client.clone(), session, options, rights, parts);
        // One and a half times the keep-alive [MQTT-3.1.2-24], in both versions.
        let silence = Duration::from_millis(u64::from(packet.keep_alive) * 1500);
        let silence_max = (packet.keep_alive > 0).then_some(silence);
        Ok((Box::new(ConnectedClient { slot, identity, inbound, silence_max }), is_present, expiry))
    }

    /// Returns the will of the client with a permit for its memory until it is published.
    fn will(&self, party: &Party, message: WillMessage, route: Route) -> Result<Will, (ReasonCode, &'static str)> {
        let permit = self.shared.budget.permit_of(party, Will::bytes_of(&message) + route.bytes());
        let permit = permit.map_err(|_| (NO_MEMORY.code, NO_MEMORY.text))?;
        Ok(Will { route: Arc::new(route), delay: message.delay, message, permit })
    }

    /// Returns the client's slot and session, once a session that was created or discarded is on the disk.
    async fn take_over(
        &self,
        key: &Key,
        packet: &Connect,
        identity: &Identity,
        (party, expiry): (&Party, u32),
    ) -> Result<(SlotGuard, Box<Session>, bool), (ReasonCode, &'static str)> {
        let shared = self.shared;
        let waits = |will: &&WillMessage| expiry > 0 && !will.delay.is_zero();
        let stored = |will: &WillMessage| {
            will_bytes(StoredWill::new(will.clone(), will.delay, &packet.client, self.peer, identity).bytes().len())
        };
        let request = SessionRequest {
            user: identity.name(),
            share: &party.to_string(),
            is_clean: packet.is_clean,
            expiry,
            will_bytes: packet.will.as_ref().filter(waits).map_or(0, stored),
            quotas: shared.config.session_quotas(),
        };
        let opened = shared.registry.open_session(key, request).await;
        let OpenedSession { slot, session, is_present, wait_for } = opened.map_err(|error| match error {
            NoSession::TooMany(why) => (ReasonCode::QuotaExceeded, why),
            NoSession::NoDisk => (ReasonCode::QuotaExceeded, "the disk is down to disk_reserve; no session is kept"),
            NoSession::Stuck => (ReasonCode::ServerBusy, "the earlier connection of this client id does not end"),
            NoSession::Unreadable => (ReasonCode::ServerBusy, "the stored session could not be read"),
        })?;
        self.wait_written(wait_for).await?;
        Ok((slot, session, is_present))
    }

    /// Waits until the writer of sessions has done write number `wait_for`.
    async fn wait_written(&self, wait_for: u64) -> Result<(), (ReasonCode, &'static str)> {
        let mut written = self.shared.registry.written();
        match written.wait_for(|written| *written >= wait_for).await {
            Ok(_) => Ok(()),
            Err(_) => Err((ReasonCode::ServerBusy, "the gateway is shutting down")),
        }
    }

    fn limits(&self) -> Limits {
        let config = &self.shared.config;
        Limits { events: config.backlog_events_max, bytes: config.backlog_bytes_max.0, age: config.backlog_age_max.0 }
    }

    /// Runs the session until the connection ends: the main loop.
    async fn run_session(&mut self, client: &mut ConnectedClient, shutdown: &mut Shutdown) -> ConnectionEnd {
        let shared = self.shared;
        let ConnectedClient { slot, identity, inbound, silence_max } = client;
        let mut heard_at = clock::instant();
        let check = tokio::time::sleep(until_check(*silence_max, inbound, Duration::ZERO));
        tokio::pin!(check);
        let (mut checks_often, mut follows_config) = (false, true);
        let eviction = inbound.memory.permit().eviction();
        let bell = inbound.producer.bell();
        let mut written = shared.registry.written();
        let limits = self.limits();
        let Inbound { session, rights, options, .. } = &mut *inbound;
        let may = |topic: &str| rights.may_subscribe(topic);
        Box::pin(session.outbound.resend_in_flight(*options, &shared.local, &may, &mut self.output)).await;
        let first = std::mem::take(&mut self.input);
        inbound.memory.buffer_shrunk(0);
        if let Some(end) = self.handle_bytes(inbound, &first) {
            return end;
        }
        drop(first);
        loop {
            inbound.acknowledge(shared, *written.borrow_and_update(), &mut self.output);
            if let Err(end) = self.write(inbound).await {
                return end;
            }
            let is_reading = inbound.has_room(shared);
            inbound.time_packet(is_reading);
            let blocked_on = inbound.blocked_on();
            let awaits_writes = inbound.awaits_writes();
            inbound.session.outbound.release_group_turn();
            if !checks_often && inbound.needs_checks() {
                checks_often = true;
                check.as_mut().reset((clock::instant() + CHECK_EVERY).into());
            }
            // Every arm is safe to drop half-way: a read handles its bytes before it returns.
            tokio::select! {
                biased;
                () = shutdown.begun() => return ConnectionEnd::Fault(SHUTTING_DOWN),
                () = slot.taken_over() => return ConnectionEnd::Fault(TAKEN_OVER),
                () = eviction.begun() => {
                    return ConnectionEnd::Fault(if eviction.is_for_memory() { MOST_MEMORY } else { CROWDED_OUT });
                }
                changed = self.newest.changed(), if follows_config => match changed {
                    Ok(()) => if let Err(text) = self.recheck_rights(identity, inbound) {
                        return ConnectionEnd::Fault(Fault { code: ReasonCode::NotAuthorized, text });
                    },
                    Err(_) => follows_config = false,
                },
                () = bell.rung() => {
                    if shared.ingest.is_closed() {
                        return ConnectionEnd::Fault(SHUTTING_DOWN);
                    }
                }
                changed = written.changed(), if awaits_writes => {
                    if changed.is_err() {
                        return ConnectionEnd::Fault(SHUTTING_DOWN);
                    }
                }
                () = lane_has_room(shared, blocked_on.as_deref()) => inbound.submit_queued(shared),
                event = next_event(
                    &mut self.stream, &mut self.input, &mut self.output, shared, inbound, is_reading,
                ) => match event {
                    ConnectionEvent::Read(outcome, is_more) => {
                        heard_at = clock::instant();
                        inbound.memory.permit().heard(heard_at);
                        if let Some(end) = ConnectionEnd::of(outcome) {
                            return end;
                        }
                        // Without it the runtime would let one connection read many times before another has its turn.
                        if is_more {
                            tokio::task::yield_now().await;
                        }
                    }
                    ConnectionEvent::Gone => return ConnectionEnd::Gone,
                    ConnectionEvent::Send(ready) => if let Err(fault) = self.send(inbound, ready, limits) {
                        return ConnectionEnd::Fault(fault);
                    },
                },
                () = &mut check => {
                    let silence = clock::instant().duration_since(heard_at);
                    // While the gateway does not read, it cannot notice packets of the client.
                    if silence_max.is_some_and(|limit| silence >= limit) && is_reading {
                        return ConnectionEnd::Fault(KEEP_ALIVE_EXPIRED);
                    }
                    let checked = self.check_subscriber(inbound, limits);
                    if let Err(fault) = checked.and_then(|()| inbound.check_progress(shared, self.input.len())) {
                        return ConnectionEnd::Fault(fault);
                    }
                    checks_often = inbound.needs_checks();
                    check.as_mut().reset((clock::instant() + until_check(*silence_max, inbound, silence)).into());
                }
            }
        }
    }

    /// Applies a changed configuration to the connected client. The error says why its connection has to end.
    fn recheck_rights(&mut self, identity: &Identity, inbound: &mut Inbound) -> Result<(), &'static str> {
        let newest = Arc::clone(&self.newest.borrow_and_update().shared);
        let checked = newest.check_access(identity, self.peer);
        let rights = checked.inspect_err(|why| {
            let attempt = Attempt { sender: identity.sender(&inbound.client), what: "" };
            newest.report(self.peer, Cause::Cut, attempt, why);
        })?;
        inbound.set_rights(rights, self.shared);
        Ok(())
    }

    /// Writes events for the client into the output.
    fn send(&mut self, inbound: &mut Inbound, ready: Ready, limits: Limits) -> Result<(), Fault> {
        let options = inbound.options;
        let outbound = &mut inbound.session.outbound;
        match ready {
            Ready::Own => {
                let now = Timestamp::from(clock::wall());
                self.shared.stats.cut.add(outbound.fill(options, now, limits, &self.shared.local, &mut self.output));
            }
            Ready::Shared(group, event) => outbound.fill_shared(options, &group, &event, &mut self.output),
        }
        inbound.hold_outbound(self.output.capacity()).inspect_err(|_| {
            // Events with QoS 1 are sent again when there is memory.
            self.output = Vec::new();
        })
    }

    /// Writes the output to the socket. While the client does not read, the send buffer of the kernel counts, too.
    async fn write(&mut self, inbound: &mut Inbound) -> Result<(), ConnectionEnd> {
        if self.output.is_empty() {
            return Ok(());
        }
        if let Err(fault) = inbound.hold_outbound(self.output.capacity()) {
            self.output = Vec::new();
            return Err(ConnectionEnd::Fault(fault));
        }
        let is_written = {
            let mut flush = pin!(self.flush());
            let at_once = poll_fn(|context| Poll::Ready(flush.as_mut().poll(context))).await;
            match at_once {
                Poll::Ready(is_written) => is_written,
                Poll::Pending => {
                    inbound.memory.reserve(SEND_BUFFER_BYTES).map_err(ConnectionEnd::Fault)?;
                    let is_written = flush.await;
                    inbound.memory.release(SEND_BUFFER_BYTES);
                    is_written
                }
            }
        };
        // It cannot fail: the output only gets smaller.
        let _ = inbound.hold_outbound(self.output.capacity());
        if is_written { Ok(()) } else { Err(ConnectionEnd::Gone) }
    }

    /// Saves the progress of a subscriber. The error is for one that is too slow.
    fn check_subscriber(&self, inbound: &mut Inbound, limits: Limits) -> Result<(), Fault> {
        let outbound = &mut inbound.session.outbound;
        if outbound.is_idle() {
            return Ok(());
        }
        if inbound.session.number > 0
            && let Some(progress) = outbound.take_progress()
        {
            self.shared.registry.save_progress_later(&inbound.key, progress);
        }
        if outbound.behind() > limits.events.saturating_mul(BEHIND_TIMES_MAX) { Err(TOO_SLOW) } else { Ok(()) }
    }

    fn handle_bytes(&mut self, inbound: &mut Inbound, bytes: &[u8]) -> Option<ConnectionEnd> {
        ConnectionEnd::of(inbound.handle_bytes(self.shared, &mut self.input, &mut self.output, bytes))
    }

    /// Waits for outstanding receipts and writes their acknowledgements, for at most [`DRAIN_WAIT_MAX`].
    async fn drain(&mut self, inbound: &mut Inbound) {
        let deadline = clock::instant() + DRAIN_WAIT_MAX;
        let mut written = self.shared.registry.written();
        loop {
            inbound.acknowledge(self.shared, *written.borrow_and_update(), &mut self.output);
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
            packet::push_disconnect(&mut self.output, fault, options.packet_bytes_max);
        }
        if self.flush().await {
            // The client may have closed the connection.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.stream.shutdown()).await;
        }
    }

    /// Writes the output to the socket. Returns `false` if the client does not read it in time.
    async fn flush(&mut self) -> bool {
        let written = tokio::time::timeout(WRITE_WAIT_MAX, async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        });
        let is_written = matches!(written.await, Ok(Ok(())));
        self.output.clear();
        self.output.shrink_to(4096);
        is_written
    }
}

/// Returns a CONNACK with the limits of the listener.
fn connack(shared: &ListenerState, code: ReasonCode) -> Connack<'static> {
    let (receive_maximum, packet_bytes_max) = (shared.config.receive_maximum, shared.packet_bytes_max);
    let (is_present, assigned, expiry) = (false, None, None);
    Connack { code, is_present, receive_maximum, packet_bytes_max, aliases_max: ALIASES_MAX, assigned, expiry }
}

/// Checks the length of the names in CONNECT. The error is a code for CONNACK, and the reason for the log.
fn check_lengths(connect: &Connect, topic_max: usize) -> Result<(), (ReasonCode, &'static str)> {
    if connect.user.as_ref().is_some_and(|user| user.len() > USER_BYTES_MAX) {
        return Err((ReasonCode::BadUserNameOrPassword, "the user name is longer than 256 bytes"));
    }
    if connect.will.as_ref().is_some_and(|will| will.topic.len() > topic_max) {
        return Err((ReasonCode::TopicNameInvalid, "the topic of the will is longer than topic_max"));
    }
    Ok(())
}

/// Bytes that a connection holds for a session that it resumes.
fn session_bytes(session: &Session) -> usize {
    let unanswered = session.unanswered.len() * UNACKNOWLEDGED_BYTES;
    unanswered + session.exchanges.len() * EXCHANGE_BYTES + session.outbound.bytes()
}

/// Returns when the connection is evicted because memory is short.
async fn evicted(eviction: Option<Eviction>) {
    match eviction {
        Some(eviction) => eviction.begun().await,
        None => std::future::pending().await,
    }
}

const EVICTED: &str = "memory is short, and this client had not logged in yet";
impl ConnectionEnd {
    fn of(outcome: PacketOutcome) -> Option<Self> {
        match outcome {
            PacketOutcome::Continue => None,
            PacketOutcome::Disconnected { with_will } => Some(Self::Disconnected { with_will }),
            PacketOutcome::Fault(fault) => Some(Self::Fault(fault)),
        }
    }
}

/// Time until the next check of the keep-alive or of the subscriber.
fn until_check(silence_max: Option<Duration>, inbound: &Inbound, silence: Duration) -> Duration {
    let until_silent = silence_max.map(|limit| limit.saturating_sub(silence).max(Duration::from_secs(1)));
    let until_progress = inbound.needs_checks().then_some(CHECK_EVERY);
    until_silent.into_iter().chain(until_progress).min().unwrap_or(Duration::from_secs(3600))
}

/// Waits for room in the lane of `route`; for ever without one.
async fn lane_has_room(shared: &ListenerState, route: Option<&Route>) {
    match route {
        Some(route) => shared.ingest.room(route).await,
        None => std::future::pending().await,
    }
}

enum Read<T> {
    Bytes(T),
    Eof,
}

/// Bytes of one read: fewer, the more clients are connected.
fn read_bytes(shared: &ListenerState) -> usize {
    let connections = usize::try_from(shared.stats.connections.value()).unwrap_or(usize::MAX).max(1);
    (READ_BYTES * READERS / connections).clamp(READ_BYTES_MIN, READ_BYTES)
}

/// Reads into the buffer of the thread and passes the bytes to `then` before it returns, so that a drop loses none.
fn poll_read_with<T>(
    stream: &mut Box<dyn Transport>,
    context: &mut Context<'_>,
    most: usize,
    then: impl FnOnce(&[u8]) -> T,
) -> Poll<std::io::Result<Read<T>>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(&mut scratch[..most]);
        match Pin::new(stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Ok(Read::Eof)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(Read::Bytes(then(buffer.filled())))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    })
}

/// Returns when a client has closed its connection before CONNACK. Buffers the bytes that it sends meanwhile, up to
/// [`AHEAD_BYTES_MAX`].
async fn client_left(stream: &mut Box<dyn Transport>, input: &mut Vec<u8>, memory: Option<&mut ConnectionMemory>) {
    let Some(memory) = memory else { return std::future::pending().await };
    while input.len() < AHEAD_BYTES_MAX {
        let read = poll_fn(|context| {
            poll_read_with(stream, context, READ_BYTES_MIN, |bytes| memory.buffer(input, bytes, None).is_ok())
        });
        match read.await {
            Ok(Read::Bytes(true)) => {}
            // Without memory for the bytes the connection ends.
            _ => return,
        }
    }
    std::future::pending().await
}

/// An event of a connection.
enum ConnectionEvent {
    /// Bytes were read and handled; `true` if there may be more.
    Read(PacketOutcome, bool),
    /// The client closed the connection.
    Gone,
    /// There may be events to send.
    Send(Ready),
}

/// Waits for packets of the client and for events to send to it. Safe to drop half-way.
async fn next_event(
    stream: &mut Box<dyn Transport>,
    input: &mut Vec<u8>,
    output: &mut Vec<u8>,
    shared: &ListenerState,
    inbound: &mut Inbound,
    is_reading: bool,
) -> ConnectionEvent {
    let most = read_bytes(shared);
    poll_fn(|context| {
        if is_reading {
            let handle_bytes = |bytes: &[u8]| (inbound.handle_bytes(shared, input, output, bytes), bytes.len() == most);
            match poll_read_with(stream, context, most, handle_bytes) {
                Poll::Ready(Ok(Read::Bytes((outcome, is_more)))) => {
                    return Poll::Ready(ConnectionEvent::Read(outcome, is_more));
                }
                Poll::Ready(Ok(Read::Eof) | Err(_)) => return Poll::Ready(ConnectionEvent::Gone),
                Poll::Pending => {}
            }
        }
        // SUBACK precedes the events of the subscription.
        if inbound.awaits_writes() {
            return Poll::Pending;
        }
        inbound.session.outbound.poll_ready(context, output, &shared.local).map(ConnectionEvent::Send)
    })
    .await
}
