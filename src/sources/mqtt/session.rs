//! One connection of a device, from the first byte to the last.
//!
//! A task owns it and runs one loop: read, take events in, acknowledge what is on the disk. Events
//! that find no room wait in the connection's own bounded backlog, so that PINGREQ behind them is
//! still answered; when that is full too, the socket is not read.

use super::wire::{self, Fault, Frame};
use super::{Shared, is_loopback};
use crate::clock;
use crate::contract::SourceKind;
use crate::event::Timestamp;
use crate::ingest::{Beside, Route, Taken};
use crate::journal::{NotTaken, Waiter};
use crate::shutdown::Shutdown;
use mqtt_protocol_core::mqtt::packet::{Property, v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::{ConnectReasonCode, ConnectReturnCode};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// Bytes read at once; one buffer for each thread, none for each connection.
const READ_BYTES: usize = 32 << 10;
/// How long a client may refuse to read its acknowledgements.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long acknowledgements in flight are awaited at the end.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Topic aliases that a client of MQTT 5 may set.
const ALIASES_MAX: u16 = 64;
/// Topics whose contract a connection remembers.
const ROUTES_MAX: usize = 256;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Serves one connection; returns when it has ended.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    shutdown: Shutdown,
) {
    shared.stats.connections.add(1);
    shared.stats.connects.add(1);
    super::tune(&stream);
    match tls {
        None => Session::new(stream, peer, &shared, false).run(shutdown).await,
        Some(acceptor) => {
            let handshake = tokio::time::timeout(shared.config.connect_wait_max.0, acceptor.accept(stream));
            match handshake.await {
                Ok(Ok(stream)) => {
                    let has_certificate = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
                    Session::new(stream, peer, &shared, has_certificate).run(shutdown).await;
                }
                Ok(Err(error)) => shared.refuse(peer, "", &format!("TLS handshake: {error}")),
                Err(_) => shared.refuse(peer, "", "TLS handshake took too long"),
            }
        }
    }
    shared.stats.connections.sub(1);
}

struct Session<'s, S> {
    stream: S,
    peer: SocketAddr,
    shared: &'s Shared,
    has_certificate: bool,
    /// What has arrived and is not yet a whole packet.
    input: Vec<u8>,
    output: Vec<u8>,
    state: State,
}

/// All of a session but its socket, so that it can be fed from any buffer.
struct State {
    client: String,
    user: String,
    is_v5: bool,
    is_connected: bool,
    /// How long without a packet is too long; `None` without keep-alive.
    silence_max: Option<Duration>,
    aliases: HashMap<u16, String>,
    routes: HashMap<String, Arc<Route>>,
    waiter: Waiter,
    /// Taken in and not yet acknowledged, in order of arrival.
    unacknowledged: VecDeque<Unacknowledged>,
    /// Arrived and not yet taken in, in order of arrival.
    held: VecDeque<Held>,
    held_bytes: usize,
}

struct Unacknowledged {
    taken: Taken,
    packet_id: u16,
    arrived: Instant,
}

/// A publish that found no room.
struct Held {
    route: Arc<Route>,
    payload: Vec<u8>,
    trace_parent: Option<String>,
    content_type: Option<String>,
    packet_id: u16,
    arrived: Instant,
}

/// How a session goes on.
#[derive(Debug)]
enum Step {
    Continue,
    /// The client said goodbye.
    Goodbye,
    Fail(Fault),
}

/// What CONNECT asks, in either version.
struct Hello {
    client: String,
    is_clean: bool,
    user: Option<String>,
    password: Option<Vec<u8>>,
    keep_alive: u16,
    is_v5: bool,
}

impl<'s, S: AsyncRead + AsyncWrite + Unpin> Session<'s, S> {
    fn new(stream: S, peer: SocketAddr, shared: &'s Shared, has_certificate: bool) -> Self {
        Self {
            stream,
            peer,
            shared,
            has_certificate,
            input: Vec::new(),
            output: Vec::new(),
            state: State {
                client: String::new(),
                user: String::new(),
                is_v5: false,
                is_connected: false,
                silence_max: None,
                aliases: HashMap::new(),
                routes: HashMap::new(),
                waiter: Waiter::default(),
                unacknowledged: VecDeque::new(),
                held: VecDeque::new(),
                held_bytes: 0,
            },
        }
    }

    async fn run(mut self, mut shutdown: Shutdown) {
        let connect = tokio::time::timeout(self.shared.config.connect_wait_max.0, self.connect());
        match connect.await {
            Ok(true) => {}
            Ok(false) => return self.end(None).await,
            Err(_) => {
                self.shared.refuse(self.peer, "", "no CONNECT in time");
                return;
            }
        }
        let seat = self.shared.sit(&self.state.client);
        let fault = self.work(&seat, &mut shutdown).await;
        self.shared.leave(&self.state.client, &seat);
        if let Some(fault) = fault
            && !matches!(fault.code, 0x8B | 0x8E)
        {
            self.shared.refuse(self.peer, &self.state.client, fault.text);
        }
        self.end(fault).await;
    }

    /// Waits for CONNECT and answers it. `false` if the client is not let in.
    async fn connect(&mut self) -> bool {
        loop {
            match wire::frame(&self.input, self.shared.packet_bytes_max.min(64 << 10)) {
                Ok(Some(frame)) => {
                    let length = frame.length;
                    let hello = hello(&frame);
                    self.input.drain(..length);
                    return match hello {
                        Ok(hello) => self.let_in(hello).await,
                        Err((answer, why)) => {
                            self.output.extend_from_slice(&answer);
                            self.shared.refuse(self.peer, "", why);
                            false
                        }
                    };
                }
                Ok(None) => {}
                Err(fault) => {
                    self.shared.refuse(self.peer, "", fault.text);
                    return false;
                }
            }
            let input = &mut self.input;
            match read_with(&mut self.stream, |bytes| input.extend_from_slice(bytes)).await {
                Ok(Read::Bytes(())) => {}
                _ => return false,
            }
        }
    }

    async fn let_in(&mut self, hello: Hello) -> bool {
        let refusal = self.refusal(&hello).await;
        let state = &mut self.state;
        state.is_v5 = hello.is_v5;
        let assigned = hello.client.is_empty();
        state.client = if assigned { format!("auto-{}", uuid::Uuid::new_v4().simple()) } else { hello.client };
        state.user = hello.user.unwrap_or_default();
        let code = match refusal {
            None => ConnectReasonCode::Success,
            Some((code, why)) => {
                self.shared.refuse(self.peer, &state.client, why);
                code
            }
        };
        let is_let_in = code == ConnectReasonCode::Success;
        if hello.keep_alive > 0 {
            // One and a half times the keep-alive, as both versions say [MQTT-3.1.2-24].
            state.silence_max = Some(Duration::from_millis(u64::from(hello.keep_alive) * 1500));
        }
        let assigned = (assigned && is_let_in).then_some(state.client.as_str());
        let answer = if hello.is_v5 { connack_v5(self.shared, code, assigned) } else { connack_v3(code) };
        match answer {
            Some(answer) => self.output.extend_from_slice(&answer),
            None => return false,
        }
        state.is_connected = is_let_in;
        is_let_in && self.flush().await
    }

    /// Why a client is not let in.
    async fn refusal(&self, hello: &Hello) -> Option<(ConnectReasonCode, &'static str)> {
        if hello.client.is_empty() && !hello.is_clean && !hello.is_v5 {
            return Some((ConnectReasonCode::ClientIdentifierNotValid, "an empty client id needs a clean session"));
        }
        if hello.client.len() > 256 {
            return Some((ConnectReasonCode::ClientIdentifierNotValid, "the client id is longer than 256 bytes"));
        }
        let bad_login = Some((ConnectReasonCode::BadUserNameOrPassword, "user name or password is wrong"));
        match (&hello.user, &self.shared.users) {
            (Some(user), Some(users)) => {
                let password = hello.password.as_deref().unwrap_or_default();
                if users.is_known(user, password) {
                    return None;
                }
                let Ok(_one_at_a_time) = self.shared.hashing.acquire().await else { return bad_login };
                let is_right = tokio::task::block_in_place(|| users.verify(user, password));
                if is_right { None } else { bad_login }
            }
            _ if self.has_certificate || self.shared.config.lets_in_anonymous() => None,
            (Some(_), None) => Some((ConnectReasonCode::NotAuthorized, "this listener has no users; set passwords")),
            _ if is_loopback(self.peer.ip()) => {
                Some((ConnectReasonCode::NotAuthorized, "this listener wants a user name"))
            }
            _ => Some((
                ConnectReasonCode::NotAuthorized,
                "anonymous clients are let in on loopback only, unless anonymous = true",
            )),
        }
    }

    /// Works until the session ends; the fault tells the client why, if it is not the client's wish.
    async fn work(&mut self, seat: &super::Seat, shutdown: &mut Shutdown) -> Option<Fault> {
        let mut heard_at = clock::instant();
        let alarm = tokio::time::sleep(self.state.silence_max.unwrap_or(Duration::from_secs(3600)));
        tokio::pin!(alarm);
        let bell = self.state.waiter.bell();
        let first = std::mem::take(&mut self.input);
        if let Some(fault) = self.digest(&first).into_fault() {
            return fault;
        }
        loop {
            self.state.acknowledge(self.shared, &mut self.output);
            if !self.output.is_empty() && !self.flush().await {
                return None;
            }
            let is_reading = self.state.held_bytes < self.shared.config.waiting_max.0 as usize;
            let blocked_on = self.state.held.front().map(|held| Arc::clone(&held.route));
            let Self { stream, state, shared, input, output, .. } = self;
            // Every arm is safe to drop half-way: reading handles what it read before it returns.
            tokio::select! {
                biased;
                () = shutdown.begun() => {
                    return Some(Fault { code: 0x8B, text: "the gateway is shutting down" });
                }
                () = seat.taken_over.notified() => {
                    return Some(Fault { code: 0x8E, text: "another connection took over this client id" });
                }
                () = bell.rung() => {
                    if shared.ingest.is_closed() {
                        return Some(Fault { code: 0x8B, text: "the gateway is shutting down" });
                    }
                }
                () = room(shared, blocked_on.as_deref()) => {
                    state.take_held(shared);
                }
                read = read_with(stream, |bytes| digest(state, shared, input, output, bytes)), if is_reading => {
                    heard_at = clock::instant();
                    match read {
                        Ok(Read::Bytes(step)) => if let Some(fault) = step.into_fault() {
                            return fault;
                        },
                        Ok(Read::End) | Err(_) => return None,
                    }
                }
                () = &mut alarm => {
                    let now = clock::instant();
                    let silence = now.duration_since(heard_at);
                    match state.silence_max {
                        // While we do not read, silence is ours.
                        Some(limit) if silence >= limit && is_reading => {
                            return Some(Fault { code: 0x8D, text: "nothing came within one and a half times the keep-alive" });
                        }
                        Some(limit) => alarm.as_mut().reset((now + limit.saturating_sub(silence).max(Duration::from_secs(1))).into()),
                        None => alarm.as_mut().reset((now + Duration::from_secs(3600)).into()),
                    }
                }
            }
        }
    }

    fn digest(&mut self, bytes: &[u8]) -> Step {
        digest(&mut self.state, self.shared, &mut self.input, &mut self.output, bytes)
    }

    /// Awaits acknowledgements in flight where that makes sense, says goodbye, and closes.
    async fn end(mut self, fault: Option<Fault>) {
        // Whoever shuts down or is cut off for a fault still gets what it was promised.
        let deadline = clock::instant() + DRAIN_WAIT_MAX;
        while fault.is_some() && !self.state.unacknowledged.is_empty() {
            self.state.acknowledge(self.shared, &mut self.output);
            if self.state.unacknowledged.is_empty() || self.shared.ingest.is_closed() {
                break;
            }
            let wait = deadline.saturating_duration_since(clock::instant());
            if tokio::time::timeout(wait, self.state.waiter.woken()).await.is_err() {
                break;
            }
        }
        if let Some(fault) = fault
            && self.state.is_v5
            && self.state.is_connected
        {
            wire::push_disconnect(&mut self.output, fault);
        }
        if self.flush().await {
            // The peer may be gone already.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.stream.shutdown()).await;
        }
    }

    /// Writes what is to be written; `false` if the client does not take it.
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

/// Waits for room in the lane that holds a session up; for ever, if none does.
async fn room(shared: &Shared, route: Option<&Route>) {
    match route {
        Some(route) => shared.ingest.room(route).await,
        None => std::future::pending().await,
    }
}

enum Read<T> {
    Bytes(T),
    End,
}

/// Reads into the thread's buffer and hands on what came. Safe to drop: nothing is read without
/// being handed on in the same breath.
async fn read_with<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    mut then: impl FnMut(&[u8]) -> T,
) -> std::io::Result<Read<T>> {
    poll_fn(|context| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Ok(Read::End)),
                Poll::Ready(Ok(())) => Poll::Ready(Ok(Read::Bytes(then(buffer.filled())))),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        })
    })
    .await
}

/// Handles every whole packet in what was left and what came; keeps the rest.
fn digest(state: &mut State, shared: &Shared, left: &mut Vec<u8>, output: &mut Vec<u8>, bytes: &[u8]) -> Step {
    let arrived = Arrived { at: clock::instant(), time: Timestamp::from(clock::wall()) };
    let owned;
    let mut rest = if left.is_empty() {
        bytes
    } else {
        left.extend_from_slice(bytes);
        owned = std::mem::take(left);
        &owned[..]
    };
    loop {
        match wire::frame(rest, shared.packet_bytes_max) {
            Ok(Some(frame)) => {
                rest = &rest[frame.length..];
                match state.packet(shared, frame, arrived, output) {
                    Step::Continue => {}
                    end => return end,
                }
            }
            Ok(None) => break,
            Err(fault) => return Step::Fail(fault),
        }
    }
    if !rest.is_empty() {
        *left = rest.to_vec();
    }
    Step::Continue
}

#[derive(Clone, Copy)]
struct Arrived {
    at: Instant,
    time: Timestamp,
}

impl Step {
    /// `Some` if the session ends, with the fault if there is one.
    fn into_fault(self) -> Option<Option<Fault>> {
        match self {
            Self::Continue => None,
            Self::Goodbye => Some(None),
            Self::Fail(fault) => Some(Some(fault)),
        }
    }
}

impl State {
    fn packet(&mut self, shared: &Shared, frame: Frame<'_>, arrived: Arrived, output: &mut Vec<u8>) -> Step {
        let flags = frame.first & 0x0F;
        match (frame.first >> 4, flags) {
            (3, _) => match wire::publish(frame.first, frame.body, self.is_v5) {
                Ok(publish) => self.publish(shared, publish, arrived),
                Err(fault) => Step::Fail(fault),
            },
            (12, 0) if frame.body.is_empty() => {
                output.extend_from_slice(&[0xD0, 0]);
                Step::Continue
            }
            (14, 0) if !self.is_v5 && !frame.body.is_empty() => Step::Fail(Fault::malformed("DISCONNECT has a body")),
            (14, 0) => Step::Goodbye,
            (8, 2) => self.subscribe(frame.body, output),
            (10, 2) => self.unsubscribe(frame.body, output),
            (1, _) => Step::Fail(Fault::protocol("a second CONNECT")),
            // We publish nothing to clients, so that they have nothing to acknowledge.
            (4..=7, _) => Step::Fail(Fault::protocol("an acknowledgement of nothing")),
            (15, _) => Step::Fail(Fault::protocol("AUTH without an authentication method")),
            _ => Step::Fail(Fault::malformed("a packet type or flags that do not exist")),
        }
    }

    fn publish(&mut self, shared: &Shared, publish: wire::Publish<'_>, arrived: Arrived) -> Step {
        shared.stats.received.add(1);
        if publish.qos == 2 {
            return Step::Fail(Fault { code: 0x9B, text: "QoS 2 is not supported; the maximum is 1" });
        }
        if publish.payload.len() as u64 > shared.config.payload_max.0 {
            return Step::Fail(Fault { code: 0x95, text: "the payload is larger than payload_max" });
        }
        let in_flight = self.unacknowledged.len() + self.held.len();
        if publish.qos == 1 && self.is_v5 && in_flight >= usize::from(shared.config.receive_maximum) {
            return Step::Fail(Fault { code: 0x93, text: "more publishes in flight than Receive Maximum allows" });
        }
        let route = match self.route(shared, &publish) {
            Ok(route) => route,
            Err(fault) => return Step::Fail(fault),
        };
        let beside = Beside { trace_parent: publish.trace_parent, content_type: publish.content_type };
        if self.held.is_empty() {
            match shared.ingest.accept(&route, publish.payload, beside, arrived.time, &mut self.waiter) {
                Ok(taken) => {
                    if publish.qos > 0 {
                        self.unacknowledged.push_back(Unacknowledged {
                            taken,
                            packet_id: publish.packet_id,
                            arrived: arrived.at,
                        });
                    }
                    return Step::Continue;
                }
                Err(NotTaken::NoRoom) => {}
                Err(NotTaken::Closed) => return Step::Fail(Fault { code: 0x8B, text: "the gateway is shutting down" }),
            }
        }
        if publish.qos == 0 {
            // Nobody waits for an answer, so that there is nobody to slow down.
            shared.stats.dropped.add(1);
            return Step::Continue;
        }
        self.held_bytes += publish.payload.len() + 128;
        self.held.push_back(Held {
            route,
            payload: publish.payload.to_vec(),
            trace_parent: publish.trace_parent.map(str::to_owned),
            content_type: publish.content_type.map(str::to_owned),
            packet_id: publish.packet_id,
            arrived: arrived.at,
        });
        Step::Continue
    }

    /// Where a publish leads, its alias resolved.
    fn route(&mut self, shared: &Shared, publish: &wire::Publish<'_>) -> Result<Arc<Route>, Fault> {
        if let Some(alias) = publish.alias {
            if alias > ALIASES_MAX {
                return Err(Fault { code: 0x94, text: "the topic alias is above the maximum" });
            }
            if !publish.topic.is_empty() {
                self.aliases.insert(alias, publish.topic.to_owned());
            }
        }
        let topic = match (publish.topic, publish.alias) {
            ("", Some(alias)) => {
                self.aliases.get(&alias).ok_or(Fault::protocol("the topic alias stands for nothing"))?.as_str()
            }
            (topic, _) => topic,
        };
        if let Some(route) = self.routes.get(topic)
            && shared.ingest.is_current(route)
        {
            return Ok(Arc::clone(route));
        }
        let route =
            Arc::new(shared.ingest.route(SourceKind::Mqtt, &shared.config.name, topic, &self.client, &self.user));
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert(topic.to_owned(), Arc::clone(&route));
        Ok(route)
    }

    /// Takes in what had found no room, as far as there is some now.
    fn take_held(&mut self, shared: &Shared) {
        let now = Timestamp::from(clock::wall());
        while let Some(held) = self.held.front() {
            let beside =
                Beside { trace_parent: held.trace_parent.as_deref(), content_type: held.content_type.as_deref() };
            match shared.ingest.accept(&held.route, &held.payload, beside, now, &mut self.waiter) {
                Ok(taken) => {
                    let unacknowledged = Unacknowledged { taken, packet_id: held.packet_id, arrived: held.arrived };
                    self.unacknowledged.push_back(unacknowledged);
                    self.held_bytes -= held.payload.len() + 128;
                    self.held.pop_front();
                }
                Err(_) => return,
            }
        }
    }

    /// Acknowledges what is on the disk, in order of arrival.
    fn acknowledge(&mut self, shared: &Shared, output: &mut Vec<u8>) {
        let mut now = None;
        while let Some(first) = self.unacknowledged.front() {
            let Some(_receipt) = shared.ingest.receipt(&first.taken) else { return };
            wire::push_puback(output, first.packet_id);
            let now = *now.get_or_insert_with(clock::instant);
            shared.stats.ack.record(now.duration_since(first.arrived), 1);
            self.unacknowledged.pop_front();
        }
    }

    /// Declines subscriptions: this listener takes, and gives nothing out.
    fn subscribe(&mut self, body: &[u8], output: &mut Vec<u8>) -> Step {
        let (id, count) = if self.is_v5 {
            match v5_0::Subscribe::parse(body) {
                Ok((packet, _)) => (packet.packet_id(), packet.entries().len()),
                Err(_) => return Step::Fail(Fault::malformed("SUBSCRIBE does not parse")),
            }
        } else {
            match v3_1_1::Subscribe::parse(body) {
                Ok((packet, _)) => (packet.packet_id(), packet.entries().len()),
                Err(_) => return Step::Fail(Fault::malformed("SUBSCRIBE does not parse")),
            }
        };
        // Implementation specific error in MQTT 5, failure in 3.1.1.
        self.answer_each(0x90, id, count, if self.is_v5 { 0x83 } else { 0x80 }, output)
    }

    fn unsubscribe(&mut self, body: &[u8], output: &mut Vec<u8>) -> Step {
        if self.is_v5 {
            match v5_0::Unsubscribe::parse(body) {
                // No subscription existed.
                Ok((packet, _)) => self.answer_each(0xB0, packet.packet_id(), packet.entries().len(), 0x11, output),
                Err(_) => Step::Fail(Fault::malformed("UNSUBSCRIBE does not parse")),
            }
        } else {
            match v3_1_1::Unsubscribe::parse(body) {
                Ok((packet, _)) => {
                    let [high, low] = packet.packet_id().to_be_bytes();
                    output.extend_from_slice(&[0xB0, 2, high, low]);
                    Step::Continue
                }
                Err(_) => Step::Fail(Fault::malformed("UNSUBSCRIBE does not parse")),
            }
        }
    }

    fn answer_each(&self, first: u8, id: u16, count: usize, code: u8, output: &mut Vec<u8>) -> Step {
        let length = 2 + usize::from(self.is_v5) + count;
        output.push(first);
        let mut rest = length;
        loop {
            let byte = (rest & 0x7F) as u8;
            rest >>= 7;
            output.push(if rest > 0 { byte | 0x80 } else { byte });
            if rest == 0 {
                break;
            }
        }
        output.extend_from_slice(&id.to_be_bytes());
        if self.is_v5 {
            output.push(0);
        }
        output.extend(std::iter::repeat_n(code, count));
        Step::Continue
    }
}

/// Reads CONNECT. The error is the answer for the client, and why for the log.
fn hello(frame: &Frame<'_>) -> Result<Hello, (Vec<u8>, &'static str)> {
    const UNSUPPORTED: [u8; 4] = [0x20, 2, 0, 1];
    if frame.first != 0x10 {
        return Err((Vec::new(), "the first packet is not CONNECT"));
    }
    let level = match frame.body {
        [0, 4, b'M', b'Q', b'T', b'T', level, ..] => *level,
        [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
            return Err((UNSUPPORTED.to_vec(), "MQTT 3.1 is not supported; 3.1.1 and 5 are"));
        }
        _ => return Err((Vec::new(), "CONNECT of another protocol than MQTT")),
    };
    match level {
        4 => {
            let (packet, _) = v3_1_1::Connect::parse(frame.body).map_err(|_| (Vec::new(), "CONNECT does not parse"))?;
            Ok(Hello {
                client: packet.client_id().to_owned(),
                is_clean: packet.clean_session(),
                user: packet.user_name().map(str::to_owned),
                password: packet.password().map(<[u8]>::to_vec),
                keep_alive: packet.keep_alive(),
                is_v5: false,
            })
        }
        5 => {
            let malformed = || (connack_refusing(ConnectReasonCode::MalformedPacket), "CONNECT does not parse");
            let (packet, _) = v5_0::Connect::parse(frame.body).map_err(|_| malformed())?;
            if packet.props().iter().any(|property| matches!(property, Property::AuthenticationMethod(_))) {
                return Err((
                    connack_refusing(ConnectReasonCode::BadAuthenticationMethod),
                    "enhanced authentication is not supported",
                ));
            }
            Ok(Hello {
                client: packet.client_id().to_owned(),
                is_clean: packet.clean_start(),
                user: packet.user_name().map(str::to_owned),
                password: packet.password().map(<[u8]>::to_vec),
                keep_alive: packet.keep_alive(),
                is_v5: true,
            })
        }
        // A client of a future version understands the answer of 5; older ones that of 3.1.1.
        6.. => Err((connack_refusing(ConnectReasonCode::UnsupportedProtocolVersion), "an unknown version of MQTT")),
        _ => Err((UNSUPPORTED.to_vec(), "an unknown version of MQTT")),
    }
}

fn connack_refusing(code: ConnectReasonCode) -> Vec<u8> {
    let built = v5_0::Connack::builder().session_present(false).reason_code(code).build();
    built.map_or_else(|_| Vec::new(), |packet| packet.to_continuous_buffer())
}

fn connack_v3(code: ConnectReasonCode) -> Option<Vec<u8>> {
    let code = match code {
        ConnectReasonCode::Success => ConnectReturnCode::Accepted,
        ConnectReasonCode::ClientIdentifierNotValid => ConnectReturnCode::IdentifierRejected,
        ConnectReasonCode::BadUserNameOrPassword => ConnectReturnCode::BadUserNameOrPassword,
        _ => ConnectReturnCode::NotAuthorized,
    };
    let built = v3_1_1::Connack::builder().session_present(false).return_code(code).build();
    built.ok().map(|packet| packet.to_continuous_buffer())
}

fn connack_v5(shared: &Shared, code: ConnectReasonCode, assigned: Option<&str>) -> Option<Vec<u8>> {
    use mqtt_protocol_core::mqtt::packet::{
        AssignedClientIdentifier, MaximumPacketSize, MaximumQos, ReceiveMaximum, SessionExpiryInterval,
        SharedSubscriptionAvailable, SubscriptionIdentifierAvailable, TopicAliasMaximum, WildcardSubscriptionAvailable,
    };
    if code != ConnectReasonCode::Success {
        return Some(connack_refusing(code));
    }
    let packet_max = u32::try_from(shared.packet_bytes_max).unwrap_or(u32::MAX);
    let mut properties: Vec<Property> = vec![
        SessionExpiryInterval::new(0).ok()?.into(),
        ReceiveMaximum::new(shared.config.receive_maximum).ok()?.into(),
        MaximumQos::new(1).ok()?.into(),
        MaximumPacketSize::new(packet_max).ok()?.into(),
        TopicAliasMaximum::new(ALIASES_MAX).ok()?.into(),
        WildcardSubscriptionAvailable::new(0).ok()?.into(),
        SubscriptionIdentifierAvailable::new(0).ok()?.into(),
        SharedSubscriptionAvailable::new(0).ok()?.into(),
    ];
    if let Some(client) = assigned {
        properties.push(AssignedClientIdentifier::new(client).ok()?.into());
    }
    let built = v5_0::Connack::builder().session_present(false).reason_code(code).props(properties).build();
    built.ok().map(|packet| packet.to_continuous_buffer())
}
