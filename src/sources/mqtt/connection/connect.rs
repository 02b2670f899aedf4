//! The first phase of a connection: CONNECT, login, and the session of the client.
//!
//! Promise: CONNACK leaves once a session that was created or discarded is on the disk.

use super::super::faults::{NO_MEMORY, refusal};
use super::super::inbound::{ALIASES_MAX, EXCHANGE_BYTES, Inbound, UNACKNOWLEDGED_BYTES};
use super::super::login::Users;
use super::super::outbound::ClientOptions;
use super::super::registry::{Key, NoSession, OpenedSession, Session, SessionRequest, SlotGuard, will_bytes};
use super::super::state::{Attempt, ConnectRefusal, ListenerState};
use super::super::stored_will::{StoredWill, Will};
use super::io::{Read, poll_read_with, read_bytes};
use super::{ConnectedClient, Connection};
use crate::contract::Sender;
use crate::ingest::Route;
use crate::mqtt::connect::{self, Connack, Connect, WillMessage};
use crate::mqtt::{Fault, Protocol, ReasonCode, packet};
use crate::origin::{Origin, Party};
use crate::security::Cause;
use crate::sources::Refusal;
use crate::sources::identity::{Identity, Proof};
use crate::sources::socket::is_loopback;
use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

/// The largest CONNECT: a will of 64 KiB, and 8 KiB for the rest, which includes tokens as passwords. It is read before the
/// client has logged in, so the limit is lower than that of other packets.
const CONNECT_BYTES_MAX: usize = 72 << 10;
/// The longest user name, the same as for client ids: each connection, session and device keeps it.
const USER_BYTES_MAX: usize = 256;
/// The longest wait for CONNACK while passwords of other clients are checked: 500 devices that reconnect at once, at a
/// tenth of a second each on a small processor.
const LOGIN_WAIT_MAX: Duration = Duration::from_secs(60);

impl Connection<'_> {
    /// Waits for CONNECT and answers it. Returns `None` if the client is refused.
    pub(super) async fn connect_and_log_in(&mut self) -> Option<Box<ConnectedClient>> {
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
            if let Err((answer, why)) = connect::check_protocol(&self.io.input) {
                return self.reject(&answer, Refusal::Protocol, why);
            }
            match packet::frame(&self.io.input, CONNECT_BYTES_MAX) {
                Ok(Some(frame)) => return self.parse_connect(frame.length),
                Ok(None) => {}
                Err(fault) => {
                    let answer = connect::refuse_early(&self.io.input, fault.code);
                    return self.reject(&answer, refusal(fault), fault.text);
                }
            }
            let most = read_bytes(self.shared);
            let (input, stream) = (&mut self.io.input, &mut self.io.stream);
            let memory = self.memory.as_mut()?;
            let length = packet::length(input).filter(|length| *length <= CONNECT_BYTES_MAX);
            let read =
                poll_fn(|context| poll_read_with(stream, context, most, |bytes| memory.buffer(input, bytes, length)));
            match read.await {
                Ok(Read::Bytes(Ok(()))) => {}
                Ok(Read::Bytes(Err(fault))) => {
                    let answer = connect::refuse_early(&self.io.input, fault.code);
                    return self.reject(&answer, refusal(fault), fault.text);
                }
                _ => return None,
            }
        }
    }

    /// Queues the answer for a refused client and counts the refusal.
    fn reject<T>(&mut self, answer: &[u8], reason: Refusal, why: &str) -> Option<T> {
        self.io.output.extend_from_slice(answer);
        self.shared.refuse(self.peer, Attempt::default(), reason, why);
        None
    }

    /// Reads CONNECT, which is the first `length` bytes of the input.
    fn parse_connect(&mut self, length: usize) -> Option<Connect> {
        let rest = self.io.input.split_off(length);
        let connect = std::mem::replace(&mut self.io.input, rest);
        let memory = self.memory.as_mut()?;
        memory.buffer_shrunk(self.io.input.capacity());
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
            Err(fault) => Err((fault.code, Cow::Borrowed(fault.text))),
        };
        let mut user = packet.user.clone().unwrap_or_default();
        let (mut proven_by, mut denied) = (None, Cause::Login);
        let opened = match identified {
            Ok(identity) => {
                // From here on the proven name counts, not that in CONNECT. A client with a proven name can only be denied
                // the topic of its will.
                (user, denied) = (identity.name().to_owned(), Cause::Will);
                proven_by = identity.sender(&packet.client).proven_by;
                self.open_session(&packet, identity).await.map_err(|fault| (fault.code, Cow::Borrowed(fault.text)))
            }
            Err(refused) => Err(refused),
        };
        let (client, is_present, expiry) = match opened {
            Ok(opened) => opened,
            Err((code, why)) => {
                let sender = Sender { client: &packet.client, user: &user, proven_by };
                let refusal = ConnectRefusal { code, why: &why, denied };
                self.shared.refuse_connect(self.peer, sender, packet.will.as_ref(), refusal);
                connack(self.shared, code).push(&mut self.io.output, packet.protocol);
                return None;
            }
        };
        let assigned = is_assigned.then_some(packet.client.as_str());
        let expiry = (expiry != packet.expiry).then_some(expiry);
        let connack = Connack { is_present, assigned, expiry, ..connack(self.shared, ReasonCode::Success) };
        connack.push(&mut self.io.output, packet.protocol);
        // The first read notices a client that has gone.
        let _ = self.io.flush().await;
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
                let proof = proof.map_err(|fault| (fault.code, Cow::from(fault.text)))?;
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
    async fn check_password(&mut self, users: &Users, user: &str, password: &[u8]) -> Result<Proof, Fault> {
        if let Some(proof) = users.known(user, password) {
            return Ok(proof);
        }
        let turn = tokio::select! {
            turn = self.shared.kept.logins.turn(Origin::of(self.peer.ip()), user) => turn,
            () = self.io.client_left(self.memory.as_mut()) => {
                return Err(Fault { code: ReasonCode::BadUserNameOrPassword, text: "the client disconnected before its password was checked" });
            }
        };
        let turn = turn.map_err(|_| Fault {
            code: ReasonCode::ConnectionRateExceeded,
            text: "logins of this address or name failed too often; they are slowed down",
        })?;
        // Another connection may have checked the same login meanwhile.
        let known = users.known(user, password);
        let proof = known.or_else(|| tokio::task::block_in_place(|| users.verify(user, password)));
        turn.end(proof.is_some());
        proof.ok_or(Fault { code: ReasonCode::BadUserNameOrPassword, text: "user name or password is wrong" })
    }

    /// Takes over the client's slot and opens its session, with the rights that are in force now.
    async fn open_session(
        &mut self,
        packet: &Connect,
        identity: Identity,
    ) -> Result<(Box<ConnectedClient>, bool, u32), Fault> {
        let shared = self.shared;
        let newest = Arc::clone(&self.newest.borrow().shared);
        let rights = newest.rights(&identity, self.peer);
        let way = packet.will.as_ref().map(|will| newest.route(&will.topic, &packet.client, &rights));
        if matches!(way, Some((_, Some(_)))) {
            return Err(Fault {
                code: ReasonCode::NotAuthorized,
                text: "this client may not publish to the topic of its will",
            });
        }
        if packet.will.as_ref().is_some_and(|will| will.payload.len() as u64 > shared.config.payload_max.0) {
            return Err(Fault { code: ReasonCode::PacketTooLarge, text: "the will is larger than payload_max" });
        }
        let key = Key::new(&shared.config.name, identity.proven(), &packet.client);
        let party = Party::of(identity.proven(), self.peer.ip());
        // A connection that takes over replaces one that already counts.
        let connections_max = Some(newest.config.connections_max).filter(|_| !shared.registry.is_connected(&key));
        let memory =
            self.memory.as_mut().ok_or(Fault { code: ReasonCode::ServerBusy, text: "the connection has ended" })?;
        memory.join(party.clone(), connections_max)?;
        let expiry = shared.config.expiry_within(packet.expiry);
        let (slot, mut session, is_present) = self.take_over(&key, packet, &identity, (&party, expiry)).await?;
        let (ended, wait_for) = newest.end_subscriptions(&key, &mut session, &rights);
        self.wait_written(wait_for).await?;
        session.will = match packet.will.clone().zip(way) {
            Some((message, (route, _))) => Some(self.will(&party, message, route)?),
            None => None,
        };
        let mut memory =
            self.memory.take().ok_or(Fault { code: ReasonCode::ServerBusy, text: "the connection has ended" })?;
        memory.reserve(session_bytes(&session))?;
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
        let inbound = Inbound::new(key, session, options, rights, parts);
        // One and a half times the keep-alive [MQTT-3.1.2-24], in both versions.
        let silence = Duration::from_millis(u64::from(packet.keep_alive) * 1500);
        let silence_max = (packet.keep_alive > 0).then_some(silence);
        Ok((Box::new(ConnectedClient { slot, identity, inbound, silence_max }), is_present, expiry))
    }

    /// Returns the will of the client with a permit for its memory until it is published.
    fn will(&self, party: &Party, message: WillMessage, route: Route) -> Result<Will, Fault> {
        let permit = self.shared.budget.permit_of(party, Will::bytes_of(&message) + route.bytes());
        let permit = permit.map_err(|_| NO_MEMORY)?;
        Ok(Will { route: Arc::new(route), delay: message.delay, message, permit })
    }

    /// Returns the client's slot and session, once a session that was created or discarded is on the disk.
    async fn take_over(
        &self,
        key: &Key,
        packet: &Connect,
        identity: &Identity,
        (party, expiry): (&Party, u32),
    ) -> Result<(SlotGuard, Box<Session>, bool), Fault> {
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
        let OpenedSession { slot, session, is_present, wait_for } = opened.map_err(no_session)?;
        self.wait_written(wait_for).await?;
        Ok((slot, session, is_present))
    }

    /// Waits until the writer of sessions has done write number `wait_for`.
    async fn wait_written(&self, wait_for: u64) -> Result<(), Fault> {
        let mut written = self.shared.registry.written();
        match written.wait_for(|written| *written >= wait_for).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Fault { code: ReasonCode::ServerBusy, text: "the gateway is shutting down" }),
        }
    }
}

/// Returns a CONNACK with the limits of the listener.
fn connack(shared: &ListenerState, code: ReasonCode) -> Connack<'static> {
    let (receive_maximum, packet_bytes_max) = (shared.config.receive_maximum, shared.packet_bytes_max);
    let (is_present, assigned, expiry) = (false, None, None);
    Connack { code, is_present, receive_maximum, packet_bytes_max, aliases_max: ALIASES_MAX, assigned, expiry }
}

/// Returns why a client without a session is refused.
fn no_session(error: NoSession) -> Fault {
    let (code, text) = match error {
        NoSession::TooMany(why) => (ReasonCode::QuotaExceeded, why),
        NoSession::NoDisk => (ReasonCode::QuotaExceeded, "the disk is down to disk_reserve; no session is kept"),
        NoSession::Stuck => (ReasonCode::ServerBusy, "the earlier connection of this client id does not end"),
        NoSession::Unreadable => (ReasonCode::ServerBusy, "the stored session could not be read"),
    };
    Fault { code, text }
}

/// Checks the length of the names in CONNECT. The error has the code of CONNACK.
fn check_lengths(connect: &Connect, topic_max: usize) -> Result<(), Fault> {
    if connect.user.as_ref().is_some_and(|user| user.len() > USER_BYTES_MAX) {
        return Err(Fault { code: ReasonCode::BadUserNameOrPassword, text: "the user name is longer than 256 bytes" });
    }
    if connect.will.as_ref().is_some_and(|will| will.topic.len() > topic_max) {
        return Err(Fault {
            code: ReasonCode::TopicNameInvalid,
            text: "the topic of the will is longer than topic_max",
        });
    }
    Ok(())
}

/// Bytes that a connection holds for a session that it resumes.
fn session_bytes(session: &Session) -> usize {
    let unanswered = session.unanswered.len() * UNACKNOWLEDGED_BYTES;
    unanswered + session.exchanges.len() * EXCHANGE_BYTES + session.outbound.bytes()
}
