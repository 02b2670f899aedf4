//! One connection of a device, from the first byte to the last.
//!
//! A task owns it and runs one loop: read, take events in, acknowledge what is on the disk, and
//! tell the client what it has subscribed to.

use super::hello::{BAD_CLIENT_ID, BAD_LOGIN, BUSY, Hello, NOT_AUTHORIZED, QUOTA, TOO_LARGE, Welcome, connack};
use super::inbound::{Inbound, SHUTTING_DOWN, Step};
use super::outbound::{Limits, Ready, Wire};
use super::registry::{Entered, NoSession, Place, Wish};
use super::will::Will;
use super::wire::{self, Fault};
use super::{Claim, Setup, Shared};
use crate::clock;
use crate::event::Timestamp;
use crate::http::Duplex;
use crate::ingest::Route;
use crate::link::Protocol;
use crate::security::Cause;
use crate::shutdown::Shutdown;
use crate::sources::Refusal;
use crate::sources::identity::{Identity, Presented};
use crate::sources::socket::{self, is_loopback};
use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Bytes read at once; one buffer for each thread, none for each connection.
const READ_BYTES: usize = 32 << 10;
/// How long a client may refuse to read what it is sent.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long acknowledgements in flight are awaited at the end.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether a subscriber keeps up, and where it is.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// A subscriber that is so many times its backlog behind is too slow.
const BEHIND_TIMES_MAX: u64 = 2;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Serves one connection without TLS; returns when it has ended.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    newest: watch::Receiver<Setup>,
    shutdown: Shutdown,
) {
    let _open = shared.stats.open();
    socket::tune(&stream, WRITE_WAIT_MAX);
    Connection::new(Box::new(stream), peer, &shared, newest, None).run(shutdown).await;
}

/// Serves one connection with TLS. Apart from [`serve`], so that the many without do not pay for it.
pub(super) async fn serve_tls(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    newest: watch::Receiver<Setup>,
    shutdown: Shutdown,
) {
    let _open = shared.stats.open();
    socket::tune(&stream, WRITE_WAIT_MAX);
    let handshake = Box::pin(acceptor.accept(stream));
    match tokio::time::timeout(shared.config.connect_wait_max.0, handshake).await {
        Ok(Ok(stream)) => {
            let session = stream.get_ref().1;
            let presented = shared.clients.as_ref().map(|clients| Presented::of(clients, session)).transpose();
            match presented.map(Option::flatten) {
                Ok(certificate) => {
                    Connection::new(Box::new(stream), peer, &shared, newest, certificate).run(shutdown).await;
                }
                Err(untrusted) => shared.refuse(peer, "", Refusal::Tls, &untrusted.to_string()),
            }
        }
        Ok(Err(error)) => shared.refuse(peer, "", Refusal::Tls, &format!("TLS handshake: {error}")),
        Err(_) => shared.refuse(peer, "", Refusal::Tls, "TLS handshake took too long"),
    }
}

struct Connection<'s> {
    stream: Box<dyn Line>,
    peer: SocketAddr,
    shared: &'s Shared,
    /// What is in force for those who come now.
    newest: watch::Receiver<Setup>,
    /// The client's certificate, if it presented one.
    certificate: Option<Presented>,
    /// What has arrived and is not yet a whole packet.
    input: Vec<u8>,
    output: Vec<u8>,
}

/// A client that is let in.
struct Guest {
    place: Place,
    identity: Identity,
    inbound: Inbound,
    /// How long without a packet is too long; `None` without keep-alive.
    silence_max: Option<Duration>,
}

/// Why a connection ends.
enum End {
    /// The client said goodbye; `true` if its will is to be published all the same.
    Goodbye { with_will: bool },
    /// The client is gone.
    Gone,
    /// It is cut off, and told why.
    Fault(Fault),
}

/// What a connection is read from and written to: of one type, since the whole session is compiled for it.
trait Line: Duplex + Sync {}

impl Line for TcpStream {}

impl Line for TlsStream<TcpStream> {}

impl<'s> Connection<'s> {
    fn new(
        stream: Box<dyn Line>,
        peer: SocketAddr,
        shared: &'s Shared,
        newest: watch::Receiver<Setup>,
        certificate: Option<Presented>,
    ) -> Self {
        Self { stream, peer, shared, newest, certificate, input: Vec::new(), output: Vec::new() }
    }

    /// Each phase has memory of its own: of the many connections that are idle, only the work is kept.
    async fn run(mut self, mut shutdown: Shutdown) {
        let shared = self.shared;
        let connect = tokio::time::timeout(shared.config.connect_wait_max.0, Box::pin(self.connect())).await;
        let mut guest = match connect {
            Ok(Some(guest)) => guest,
            Ok(None) => return Box::pin(self.close(None)).await,
            Err(_) => return shared.refuse(self.peer, "", Refusal::Protocol, "no CONNECT in time"),
        };
        let end = Box::pin(self.work(&mut guest, &mut shutdown)).await;
        Box::pin(self.leave(guest, end)).await;
    }

    /// Gives back the client's place and session, and speaks its will if it died.
    async fn leave(mut self, guest: Box<Guest>, end: End) {
        let shared = self.shared;
        let Guest { place, mut inbound, .. } = *guest;
        inbound.device.gone();
        let fault = match &end {
            End::Fault(fault) => Some(*fault),
            _ => None,
        };
        // Whoever shuts down or is cut off for a fault still gets what it was promised; the
        // connection that takes over gets it itself.
        if fault.is_some_and(|fault| fault != TAKEN_OVER) {
            self.drain(&mut inbound).await;
        }
        if let Some(fault) = fault.filter(|fault| *fault != TAKEN_OVER && *fault != SHUTTING_DOWN) {
            inbound.device.refused.add(1);
            shared.refuse(self.peer, &inbound.client, fault.reason(), fault.text);
        }
        let wire = inbound.wire;
        let mut session = inbound.park();
        // A gateway that ends says nothing of its devices: they live.
        let is_dead = !matches!(end, End::Goodbye { with_will: false }) && fault != Some(SHUTTING_DOWN);
        let will = session.will.take().filter(|_| is_dead);
        let expiry = Duration::from_secs(session.expiry.into());
        let (now, later) = match will {
            Some(will) if will.delay.min(expiry).is_zero() => (Some(will), None),
            will => (None, will.map(|will| Will { delay: will.delay.min(expiry), ..will })),
        };
        session.will = later;
        place.leave(session);
        if let Some(will) = now {
            will.become_event(&shared.ingest).await;
        }
        self.close(fault.map(|fault| (fault, wire))).await;
    }

    /// Waits for CONNECT and answers it; `None` if the client is not let in.
    async fn connect(&mut self) -> Option<Box<Guest>> {
        loop {
            match wire::frame(&self.input, self.shared.packet_bytes_max.min(1 << 20)) {
                Ok(Some(frame)) => {
                    let length = frame.length;
                    let hello = Hello::read(&frame);
                    self.input.drain(..length);
                    return match hello {
                        Ok(hello) => self.let_in(hello).await,
                        Err((answer, why)) => {
                            self.output.extend_from_slice(&answer);
                            self.shared.refuse(self.peer, "", Refusal::Protocol, why);
                            None
                        }
                    };
                }
                Ok(None) => {}
                Err(fault) => {
                    self.shared.refuse(self.peer, "", fault.reason(), fault.text);
                    return None;
                }
            }
            let input = &mut self.input;
            let stream = &mut self.stream;
            let read = poll_fn(|context| poll_read_with(stream, context, |bytes| input.extend_from_slice(bytes)));
            if !matches!(read.await, Ok(Read::Bytes(()))) {
                return None;
            }
        }
    }

    async fn let_in(&mut self, mut hello: Hello) -> Option<Box<Guest>> {
        let is_assigned = hello.client.is_empty();
        if is_assigned && (hello.is_clean || hello.protocol == Protocol::V5) {
            hello.client = format!("auto-{}", uuid::Uuid::new_v4().simple());
        }
        let (entered, denied) = match self.identify(&hello).await {
            // Whoever has proven a name can only be denied the topic of its will.
            Ok(identity) => {
                let entered = self.enter(&hello, identity).await;
                (entered.map_err(|(code, why)| (code, Cow::Borrowed(why))), Cause::Will)
            }
            Err(refused) => (Err(refused), Cause::Login),
        };
        let (guest, is_present, expiry) = match entered {
            Ok(entered) => entered,
            Err((code, why)) => {
                self.shared.turn_away(self.peer, &hello, (code, &why), denied);
                let welcome = Welcome { code, is_present: false, assigned: None, expiry: None };
                self.output.extend(connack(hello.protocol, self.shared, &welcome));
                return None;
            }
        };
        let welcome = Welcome {
            code: 0,
            is_present,
            assigned: is_assigned.then_some(hello.client.as_str()),
            expiry: (expiry != hello.expiry).then_some(expiry),
        };
        self.output.extend(connack(hello.protocol, self.shared, &welcome));
        // A client that is gone again is found by the first read.
        let _ = self.flush().await;
        Some(guest)
    }

    /// Who the client is; or why it is not let in.
    async fn identify(&self, hello: &Hello) -> Result<Identity, (u8, Cow<'static, str>)> {
        let shared = self.shared;
        if hello.client.is_empty() {
            return Err((BAD_CLIENT_ID, "an empty client id needs a clean session".into()));
        }
        if hello.client.len() > 256 {
            return Err((BAD_CLIENT_ID, "the client id is longer than 256 bytes".into()));
        }
        let is_local = is_loopback(self.peer.ip());
        if let (Some(presented), true) = (&self.certificate, hello.user.is_none() || shared.users.is_none()) {
            return presented.identity().map_err(|unnamed| (NOT_AUTHORIZED, unnamed.to_string().into()));
        }
        let identity = match (&hello.user, &shared.users) {
            (Some(user), Some(users)) => {
                let password = hello.password.as_deref().unwrap_or_default();
                let proof = match users.known(user, password) {
                    Some(proof) => Some(proof),
                    None => match shared.hashing.acquire().await {
                        Ok(_one_at_a_time) => tokio::task::block_in_place(|| users.verify(user, password)),
                        Err(_) => None,
                    },
                };
                match proof {
                    Some(proof) => {
                        let chain = self.certificate.as_ref().map(|presented| presented.chain.clone());
                        Ok(Identity::Password { name: user.clone(), proof, chain })
                    }
                    None => Err((BAD_LOGIN, "user name or password is wrong")),
                }
            }
            (user, _) if shared.config.lets_in_anonymous() => {
                Ok(Identity::Anonymous { claimed: user.clone().unwrap_or_default() })
            }
            (Some(_), None) => Err((NOT_AUTHORIZED, "this listener has no users; set passwords")),
            _ if is_local => Err((NOT_AUTHORIZED, "this listener wants a user name")),
            _ => Err((NOT_AUTHORIZED, "anonymous clients are let in on loopback only, unless anonymous = true")),
        };
        identity.map_err(|(code, why)| (code, why.into()))
    }

    /// Takes the client's place and its session.
    async fn enter(
        &mut self,
        hello: &Hello,
        identity: Identity,
    ) -> Result<(Box<Guest>, bool, u32), (u8, &'static str)> {
        let shared = self.shared;
        let user = identity.name();
        let rights = shared.rights(&identity, self.peer);
        let way = hello.will.as_ref().map(|will| shared.route(&will.topic, &hello.client, &rights));
        if matches!(way, Some((_, Some(_)))) {
            return Err((NOT_AUTHORIZED, "this client may not publish to the topic of its will"));
        }
        if hello.will.as_ref().is_some_and(|will| will.payload.len() as u64 > shared.config.payload_max.0) {
            return Err((TOO_LARGE, "the will is larger than payload_max"));
        }
        let key = format!("{}/{}", shared.config.name, hello.client);
        let expiry = shared.config.expiry_within(hello.expiry);
        let wish = Wish { user, is_clean: hello.is_clean, expiry, sessions_max: shared.config.sessions_max };
        let entered = shared.registry.enter(&key, wish).await;
        let Entered { place, mut session, is_present, wait_for } = entered.map_err(|error| match error {
            NoSession::Foreign => (BAD_CLIENT_ID, "the client id belongs to another user"),
            NoSession::TooMany => (QUOTA, "there are too many sessions; see sessions_max"),
            NoSession::Stuck => (BUSY, "the connection that has the client id does not end"),
        })?;
        // A session is promised only once it is on the disk.
        if shared.registry.written().wait_for(|written| *written >= wait_for).await.is_err() {
            return Err((BUSY, "the gateway is shutting down"));
        }
        session.will = hello.will.clone().zip(way).map(|(spoken, (route, _))| {
            let route = Arc::new(route);
            Will { route, delay: spoken.delay, spoken }
        });
        let wire = Wire {
            protocol: hello.protocol,
            receive_maximum: hello.receive_maximum,
            packet_bytes_max: hello.packet_bytes_max,
        };
        let cut = session.outbound.wake(&shared.local, &shared.groups, wire, self.limits());
        shared.stats.cut.add(cut);
        let version = if hello.protocol == Protocol::V5 { "5" } else { "3.1.1" };
        let device = shared.devices.connected(&hello.client, &identity, self.peer, version);
        let inbound = Inbound::new(key, hello.client.clone(), session, wire, rights, device);
        // One and a half times the keep-alive, as both versions say [MQTT-3.1.2-24].
        let silence = Duration::from_millis(u64::from(hello.keep_alive) * 1500);
        let silence_max = (hello.keep_alive > 0).then_some(silence);
        Ok((Box::new(Guest { place, identity, inbound, silence_max }), is_present, expiry))
    }

    fn limits(&self) -> Limits {
        let config = &self.shared.config;
        Limits { events: config.backlog_events_max, bytes: config.backlog_bytes_max.0, age: config.backlog_age_max.0 }
    }

    /// Works until the connection ends.
    async fn work(&mut self, guest: &mut Guest, shutdown: &mut Shutdown) -> End {
        let shared = self.shared;
        let Guest { place, identity, inbound, silence_max } = guest;
        let mut heard_at = clock::instant();
        let alarm = tokio::time::sleep(next_look(*silence_max, inbound, Duration::ZERO));
        tokio::pin!(alarm);
        let (mut is_watched, mut is_followed) = (false, true);
        let bell = inbound.session.waiter.bell();
        let mut written = shared.registry.written();
        let limits = self.limits();
        let journal = shared.ingest.journal();
        Box::pin(inbound.session.outbound.send_again(inbound.wire, journal, &mut self.output)).await;
        let first = std::mem::take(&mut self.input);
        if let Some(end) = self.digest(inbound, &first) {
            return end;
        }
        loop {
            inbound.acknowledge(shared, *written.borrow_and_update(), &mut self.output);
            let is_written = if self.output.is_empty() { true } else { self.flush().await };
            if !is_written {
                return End::Gone;
            }
            let is_reading = inbound.has_room(shared);
            let blocked_on = inbound.blocked_on();
            let awaits_notes = inbound.awaits_notes();
            inbound.session.outbound.let_go();
            if !is_watched && !inbound.session.outbound.is_idle() {
                is_watched = true;
                alarm.as_mut().reset((clock::instant() + LOOK_AFTER).into());
            }
            // Every arm is safe to drop half-way: reading handles what it read before it returns.
            tokio::select! {
                biased;
                () = shutdown.begun() => return End::Fault(SHUTTING_DOWN),
                () = place.taken_over() => return End::Fault(TAKEN_OVER),
                changed = self.newest.changed(), if is_followed => match changed {
                    Ok(()) => if let Err(text) = self.judge_anew(identity, inbound) {
                        return End::Fault(Fault { code: NOT_AUTHORIZED, text });
                    },
                    Err(_) => is_followed = false,
                },
                () = bell.rung() => {
                    if shared.ingest.is_closed() {
                        return End::Fault(SHUTTING_DOWN);
                    }
                }
                changed = written.changed(), if awaits_notes => {
                    if changed.is_err() {
                        return End::Fault(SHUTTING_DOWN);
                    }
                }
                () = room(shared, blocked_on.as_deref()) => inbound.take_held(shared),
                next = next(&mut self.stream, &mut self.input, &mut self.output, shared, inbound, is_reading) => match next {
                    Next::Read(step) => {
                        heard_at = clock::instant();
                        if let Some(end) = End::of(step) {
                            return end;
                        }
                    }
                    Next::Gone => return End::Gone,
                    Next::Tell(ready) => self.tell(inbound, ready, limits),
                },
                () = &mut alarm => {
                    let silence = clock::instant().duration_since(heard_at);
                    // While we do not read, silence is ours.
                    if silence_max.is_some_and(|limit| silence >= limit) && is_reading {
                        return End::Fault(SILENT);
                    }
                    if let Err(fault) = self.look_after(inbound, limits) {
                        return End::Fault(fault);
                    }
                    alarm.as_mut().reset((clock::instant() + next_look(*silence_max, inbound, silence)).into());
                }
            }
        }
    }

    /// Applies what has come into force to a client that is connected; the error says why it has to go.
    fn judge_anew(&mut self, identity: &Identity, inbound: &mut Inbound) -> Result<(), &'static str> {
        let newest = Arc::clone(&self.newest.borrow_and_update().shared);
        let judged = newest.judge(identity, self.peer);
        let rights = judged.inspect_err(|why| {
            let claim = Claim { client: &inbound.client, user: identity.name(), what: "" };
            newest.report(self.peer, Cause::Cut, claim, why);
        })?;
        inbound.entitle(rights, self.shared);
        Ok(())
    }

    /// Writes what there is to tell the client.
    fn tell(&mut self, inbound: &mut Inbound, ready: Ready, limits: Limits) {
        let wire = inbound.wire;
        let outbound = &mut inbound.session.outbound;
        match ready {
            Ready::Own => {
                let now = Timestamp::from(clock::wall());
                let journal = self.shared.ingest.journal();
                self.shared.stats.cut.add(outbound.fill(wire, now, limits, journal, &mut self.output));
            }
            Ready::Shared(group, event) => outbound.fill_shared(wire, &group, &event, &mut self.output),
        }
    }

    /// Notes where a subscriber is; the error is for one that does not keep up.
    fn look_after(&self, inbound: &Inbound, limits: Limits) -> Result<(), Fault> {
        let outbound = &inbound.session.outbound;
        if outbound.is_idle() {
            return Ok(());
        }
        if inbound.session.number > 0 {
            self.shared.registry.note_positions(&inbound.key, outbound.positions());
        }
        if outbound.behind() > limits.events.saturating_mul(BEHIND_TIMES_MAX) { Err(TOO_SLOW) } else { Ok(()) }
    }

    fn digest(&mut self, inbound: &mut Inbound, bytes: &[u8]) -> Option<End> {
        End::of(inbound.digest(self.shared, &mut self.input, &mut self.output, bytes))
    }

    /// Awaits acknowledgements in flight.
    async fn drain(&mut self, inbound: &mut Inbound) {
        let deadline = clock::instant() + DRAIN_WAIT_MAX;
        let mut written = self.shared.registry.written();
        loop {
            inbound.acknowledge(self.shared, *written.borrow_and_update(), &mut self.output);
            let is_done = !inbound.awaits_receipts() && !inbound.awaits_notes();
            if is_done || self.shared.ingest.is_closed() {
                return;
            }
            let wait = deadline.saturating_duration_since(clock::instant());
            let something = async {
                tokio::select! {
                    () = inbound.session.waiter.woken() => {}
                    _ = written.changed() => {}
                }
            };
            if tokio::time::timeout(wait, something).await.is_err() {
                return;
            }
        }
    }

    /// Says goodbye, and closes.
    async fn close(mut self, fault: Option<(Fault, Wire)>) {
        if let Some((fault, wire)) = fault
            && wire.protocol == Protocol::V5
        {
            wire::push_disconnect(&mut self.output, fault, wire.packet_bytes_max);
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

const TAKEN_OVER: Fault = Fault { code: 0x8E, text: "another connection took over this client id" };
const SILENT: Fault = Fault { code: 0x8D, text: "nothing came within one and a half times the keep-alive" };
const TOO_SLOW: Fault = Fault { code: 0x97, text: "the subscriber does not keep up; see backlog_events_max" };

impl End {
    fn of(step: Step) -> Option<Self> {
        match step {
            Step::Continue => None,
            Step::Goodbye { with_will } => Some(Self::Goodbye { with_will }),
            Step::Fail(fault) => Some(Self::Fault(fault)),
        }
    }
}

/// When to look at a connection that is silent, or at a subscriber.
fn next_look(silence_max: Option<Duration>, inbound: &Inbound, silence: Duration) -> Duration {
    let until_silent = silence_max.map(|limit| limit.saturating_sub(silence).max(Duration::from_secs(1)));
    let until_look = (!inbound.session.outbound.is_idle()).then_some(LOOK_AFTER);
    until_silent.into_iter().chain(until_look).min().unwrap_or(Duration::from_secs(3600))
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

/// Reads into the thread's buffer and hands on what came. Nothing is read without being handed on
/// in the same breath.
fn poll_read_with<T>(
    stream: &mut Box<dyn Line>,
    context: &mut Context<'_>,
    then: impl FnOnce(&[u8]) -> T,
) -> Poll<std::io::Result<Read<T>>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Ok(Read::End)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(Read::Bytes(then(buffer.filled())))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    })
}

/// What happens next on a connection.
enum Next {
    /// Something was read and handled.
    Read(Step),
    /// The client is gone.
    Gone,
    /// There may be something to tell it.
    Tell(Ready),
}

/// Waits for what the client sends, and for what it is to be told. Safe to drop half-way.
async fn next(
    stream: &mut Box<dyn Line>,
    input: &mut Vec<u8>,
    output: &mut Vec<u8>,
    shared: &Shared,
    inbound: &mut Inbound,
    is_reading: bool,
) -> Next {
    poll_fn(|context| {
        if is_reading {
            match poll_read_with(stream, context, |bytes| inbound.digest(shared, input, output, bytes)) {
                Poll::Ready(Ok(Read::Bytes(step))) => return Poll::Ready(Next::Read(step)),
                Poll::Ready(Ok(Read::End) | Err(_)) => return Poll::Ready(Next::Gone),
                Poll::Pending => {}
            }
        }
        // SUBACK goes before what it lets through.
        if inbound.awaits_notes() {
            return Poll::Pending;
        }
        inbound.session.outbound.poll_ready(context, output).map(Next::Tell)
    })
    .await
}
