//! Packets of a client that has logged in: publishes become events, and each packet gets its answer.
//!
//! This is a connection without its socket: it takes bytes from any buffer and appends answers to another.
//!
//! Promise: acknowledgements leave in the order in which the publishes arrived, each with a receipt.
//! Invariant: publishes that the lane has no room for wait in a queue of bounded bytes, so that a PINGREQ behind them is
//! still answered; when the queue is full, the socket is not read.

mod subscribe;

use super::acl::{Permission, Rights};
use super::connection_memory::ConnectionMemory;
use super::faults::{MAY_NOT_PUBLISH, SHUTTING_DOWN, TOO_LATE, TOPIC_TOO_LONG, refusal};
use super::outbound::ClientOptions;
use super::registry::{Exchange, Key, Session, Unanswered};
use super::{ListenerState, devices::Device};
use crate::clock;
use crate::contract::SourceKind;
use crate::event::Timestamp;
use crate::ingest::{EventMetadata, Ingest, Producer, Route, Submission, SubmitError, Submitted};
use crate::mqtt::packet::{self, Frame, PUBACK, PUBCOMP, PUBREC};
use crate::mqtt::{Fault, Protocol, ReasonCode};
use crate::security::Cause;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Number of routes (topic and its contract) that a connection caches.
const ROUTES_MAX: usize = 256;
/// Highest topic alias that a client of MQTT 5 may set.
pub(super) const ALIASES_MAX: u16 = 64;
/// Overhead of a topic alias, without the topic.
const ALIAS_BYTES: usize = 64;
/// Bytes of a publish that waits for its receipt.
pub(super) const UNACKNOWLEDGED_BYTES: usize = 2 * size_of::<Unacknowledged>();
/// Bytes of an open QoS 2 exchange, in the session and in its stored state: 470 bytes measured.
pub(super) const EXCHANGE_BYTES: usize = 512;
/// Overhead of a queued publish, without its payload and strings.
const QUEUED_PUBLISH_BYTES: usize = 2 * size_of::<QueuedPublish>();
/// Overhead of a deferred reply, without its bytes.
const REPLY_BYTES: usize = 2 * size_of::<DeferredReply>();
/// Deferred replies beyond which the socket is not read: the number of PUBRELs that a Receive Maximum of 256 allows.
const REPLIES_MAX: usize = 256;
/// The lowest rate at which a packet may arrive: half of that of the slowest lines in plants (1 kB/s).
const PACKET_BYTES_PER_SECOND_MIN: u64 = 500;

/// The state of a connection whose client has logged in.
pub(super) struct Inbound {
    pub key: Key,
    pub client: String,
    pub session: Box<Session>,
    pub options: ClientOptions,
    pub rights: Rights,
    pub device: Arc<Device>,
    aliases: HashMap<u16, String>,
    /// Caches the routes of topics that the client may publish to.
    pub producer: Producer,
    /// Publishes that the lane has accepted and that are not acknowledged yet, in order of arrival.
    unacknowledged: VecDeque<Unacknowledged>,
    /// Publishes that wait for room in their lane, in order of arrival.
    queued: VecDeque<QueuedPublish>,
    queued_bytes: usize,
    /// Number of QoS 2 publishes among the unacknowledged.
    recs_awaited: usize,
    /// Number of QoS 2 exchanges that began on this connection and are open.
    exchanges_open: usize,
    /// Replies that wait until a change of the session is on the disk, in order.
    replies: VecDeque<DeferredReply>,
    /// Covers the bytes of all of this.
    pub memory: ConnectionMemory,
    /// Bytes of the subscriptions and of the publishes in flight to the client.
    outbound_bytes: usize,
    /// The moment at which an incomplete packet began.
    partial_since: Option<Instant>,
    /// The topic of the publish that ended the connection.
    topic_at_fault: String,
}

/// A route, and why the client may not publish there; `None` if it may.
type RouteAndDenial = (Arc<Route>, Option<String>);

struct Unacknowledged {
    taken: Submitted,
    packet_id: u16,
    is_qos2: bool,
    hash: u64,
    arrived: Instant,
}

/// A publish that waits for room in its lane.
struct QueuedPublish {
    route: Arc<Route>,
    payload: Vec<u8>,
    trace_parent: Option<String>,
    content_type: Option<String>,
    packet_id: u16,
    is_qos2: bool,
    hash: u64,
    arrived: Instant,
    /// Bytes that `Inbound::memory` holds for it.
    bytes: usize,
}

/// A reply that is sent once write number `wait_for` of the sessions is on the disk.
struct DeferredReply {
    wait_for: u64,
    bytes: Vec<u8>,
}

/// What follows from a packet.
#[derive(Debug)]
pub(super) enum PacketOutcome {
    Continue,
    /// The client sent DISCONNECT; `true` if it asks for its will to be published.
    Disconnected {
        with_will: bool,
    },
    Fault(Fault),
}

/// The moment at which bytes arrived, on both clocks.
#[derive(Clone, Copy)]
pub(super) struct ArrivalTime {
    pub at: Instant,
    pub time: Timestamp,
}

impl Inbound {
    pub(super) fn new(
        key: Key,
        client: String,
        mut session: Box<Session>,
        options: ClientOptions,
        rights: Rights,
        (device, memory, ingest): (Arc<Device>, ConnectionMemory, Arc<Ingest>),
    ) -> Self {
        let waiter = session.waiter.take().unwrap_or_default();
        let producer = Producer::continued(ingest, waiter, ROUTES_MAX);
        let outbound_bytes = session.outbound.bytes();
        Self {
            key,
            client,
            session,
            options,
            rights,
            device,
            aliases: HashMap::new(),
            producer,
            unacknowledged: VecDeque::new(),
            queued: VecDeque::new(),
            queued_bytes: 0,
            recs_awaited: 0,
            exchanges_open: 0,
            replies: VecDeque::new(),
            memory,
            outbound_bytes,
            partial_since: None,
            topic_at_fault: String::new(),
        }
    }

    /// Replaces the rights of the client and ends subscriptions that the new rights do not cover.
    pub(super) fn set_rights(&mut self, rights: Rights, shared: &ListenerState) {
        self.rights = rights;
        self.clear_routes();
        let (ended, _) = shared.end_subscriptions(&self.key, &mut self.session, &self.rights);
        ended.iter().for_each(|filter| shared.report_ended(&self.device, filter));
    }

    pub(super) fn is_v5(&self) -> bool {
        self.options.protocol == Protocol::V5
    }

    /// Returns whether the socket may be read. Clients often send more than Receive Maximum allows; the gateway slows them
    /// down and keeps the connection.
    pub(super) fn has_room(&self, shared: &ListenerState) -> bool {
        let in_flight = self.unacknowledged.len() - self.recs_awaited + self.queued.len() + self.exchanges_open;
        let is_awaited = !self.unacknowledged.is_empty() || !self.queued.is_empty();
        // An exchange that waits for its PUBREL ends only if the socket is read.
        let is_full = is_awaited && in_flight >= usize::from(shared.config.receive_maximum).max(1);
        // While memory is short, the socket of a client that waits for its lane is not read.
        let is_short = !self.queued.is_empty() && self.memory.is_scarce();
        let has_replies = self.replies.len() >= REPLIES_MAX;
        let waiting_max = usize::try_from(shared.config.waiting_max.0).unwrap_or(usize::MAX);
        !is_full && !is_short && !has_replies && self.queued_bytes < waiting_max
    }

    /// Returns whether the connection needs a periodic check: of a subscriber, or of an incomplete packet.
    pub(super) fn needs_checks(&self) -> bool {
        !self.session.outbound.is_idle() || self.partial_since.is_some()
    }

    /// Restarts the time of an incomplete packet while the gateway does not read.
    pub(super) fn time_packet(&mut self, is_reading: bool) {
        if !is_reading && self.partial_since.is_some() {
            self.partial_since = Some(clock::instant());
        }
    }

    /// Fails if the incomplete packet, of which `arrived` bytes are there, arrives too slowly.
    pub(super) fn check_progress(&self, shared: &ListenerState, arrived: usize) -> Result<(), Fault> {
        let allowed = shared.config.packet_wait_max.0
            + Duration::from_millis(arrived as u64 * 1000 / PACKET_BYTES_PER_SECOND_MIN);
        let took = self.partial_since.map(|since| clock::instant().duration_since(since));
        if took.is_some_and(|took| took > allowed) { Err(TOO_LATE) } else { Ok(()) }
    }

    /// Returns the topic of the publish that ended the connection, for the log; empty for any other packet.
    pub(super) fn topic_at_fault(&self) -> &str {
        &self.topic_at_fault
    }

    /// Covers the bytes of the subscriptions and of the output buffer.
    pub(super) fn hold_outbound(&mut self, output: usize) -> Result<(), Fault> {
        let outbound = &mut self.session.outbound;
        if self.memory.resize(&mut self.outbound_bytes, outbound.bytes()).is_err() {
            // The blocks can be read from the journal again.
            outbound.release_blocks();
            self.memory.resize(&mut self.outbound_bytes, outbound.bytes())?;
        }
        self.memory.hold_output(output)
    }

    /// Returns the route whose lane has no room for the first queued publish.
    pub(super) fn blocked_on(&self) -> Option<Arc<Route>> {
        self.queued.front().map(|queued| Arc::clone(&queued.route))
    }

    /// Returns whether accepted publishes wait for receipts.
    pub(super) fn awaits_receipts(&self) -> bool {
        !self.unacknowledged.is_empty()
    }

    /// Returns whether replies wait for a write of the session.
    pub(super) fn awaits_writes(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Handles every complete packet in `left` and `bytes` and keeps the incomplete rest in `left`.
    pub(super) fn handle_bytes(
        &mut self,
        shared: &ListenerState,
        left: &mut Vec<u8>,
        output: &mut Vec<u8>,
        bytes: &[u8],
    ) -> PacketOutcome {
        let arrived = ArrivalTime { at: clock::instant(), time: Timestamp::from(clock::wall()) };
        let kept = if left.is_empty() {
            self.handle_packets(shared, bytes, arrived, output).map(|handled| &bytes[handled..])
        } else {
            let length = packet::length(left).filter(|length| *length <= shared.packet_bytes_max);
            if let Err(fault) = self.memory.buffer(left, bytes, length) {
                return PacketOutcome::Fault(fault);
            }
            if length.is_some_and(|length| left.len() < length) {
                return PacketOutcome::Continue;
            }
            let whole = std::mem::take(left);
            match self.handle_packets(shared, &whole, arrived, output) {
                Ok(0) => {
                    *left = whole;
                    return PacketOutcome::Continue;
                }
                Ok(handled) => {
                    // The incomplete rest is the end of `bytes`.
                    let rest = bytes.len().min(whole.len() - handled);
                    self.memory.buffer_shrunk(0);
                    Ok(&bytes[bytes.len() - rest..])
                }
                Err(end) => Err(end),
            }
        };
        let rest = match kept {
            Ok(rest) => rest,
            Err(end) => return end,
        };
        self.partial_since = (!rest.is_empty()).then_some(arrived.at);
        if rest.is_empty() {
            return PacketOutcome::Continue;
        }
        match self.memory.buffer(left, rest, packet::length(rest)) {
            Ok(()) => PacketOutcome::Continue,
            Err(fault) => PacketOutcome::Fault(fault),
        }
    }

    /// Handles the complete packets at the start of `bytes`. Returns their bytes, or the outcome that ends the connection.
    fn handle_packets(
        &mut self,
        shared: &ListenerState,
        bytes: &[u8],
        arrived: ArrivalTime,
        output: &mut Vec<u8>,
    ) -> Result<usize, PacketOutcome> {
        let mut handled = 0;
        loop {
            match packet::frame(&bytes[handled..], shared.packet_bytes_max) {
                Ok(Some(frame)) => {
                    handled += frame.length;
                    match self.handle_packet(shared, frame, arrived, output) {
                        PacketOutcome::Continue => {}
                        end => return Err(end),
                    }
                }
                Ok(None) => return Ok(handled),
                Err(fault) => return Err(PacketOutcome::Fault(fault)),
            }
        }
    }

    fn handle_packet(
        &mut self,
        shared: &ListenerState,
        frame: Frame<'_>,
        arrived: ArrivalTime,
        output: &mut Vec<u8>,
    ) -> PacketOutcome {
        let flags = frame.first & 0x0F;
        let step = match (frame.first >> 4, flags) {
            (3, _) => packet::publish(frame.first, frame.body, self.is_v5()).and_then(|publish| {
                let published = self.publish(shared, publish, arrived, output);
                published.inspect_err(|_| self.topic_at_fault = start_of(publish.topic))
            }),
            (4, 0) => packet::ack(frame.body, self.is_v5()).and_then(|(id, _)| self.acknowledged(id)),
            (6, 2) => packet::ack(frame.body, self.is_v5()).and_then(|(id, _)| self.release(shared, id)),
            (5, 0) | (7, 0) => Err(Fault::protocol("an acknowledgement of a QoS 2 publish that was not sent")),
            (12, 0) if frame.body.is_empty() => {
                output.extend_from_slice(&[0xD0, 0]);
                Ok(())
            }
            (14, 0) => return self.disconnect(shared, frame.body),
            (8, 2) => self.subscribe(shared, frame.body),
            (10, 2) => self.unsubscribe(shared, frame.body),
            (1, _) => Err(Fault::protocol("a second CONNECT")),
            (15, 0) => Err(Fault::protocol("AUTH without an authentication method")),
            _ => Err(Fault::malformed("an unknown packet type or invalid flags")),
        };
        match step {
            Ok(()) => PacketOutcome::Continue,
            Err(fault) => PacketOutcome::Fault(fault),
        }
    }

    fn disconnect(&mut self, shared: &ListenerState, body: &[u8]) -> PacketOutcome {
        let (code, asked) = match packet::disconnect(body, self.is_v5()) {
            Ok(read) => read,
            Err(fault) => return PacketOutcome::Fault(fault),
        };
        if let Some(expiry) = asked {
            if expiry > 0 && self.session.expiry == 0 {
                return PacketOutcome::Fault(Fault::protocol(
                    "DISCONNECT cannot set a session expiry if CONNECT set none",
                ));
            }
            self.session.expiry = shared.config.expiry_within(expiry);
        }
        // With any other reason code the will is published.
        PacketOutcome::Disconnected { with_will: code != ReasonCode::Success.value() }
    }

    fn publish(
        &mut self,
        shared: &ListenerState,
        publish: packet::Publish<'_>,
        arrived: ArrivalTime,
        output: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        shared.stats.received.add(1);
        if publish.payload.len() as u64 > shared.config.payload_max.0 {
            return Err(Fault { code: ReasonCode::PacketTooLarge, text: "the payload is larger than payload_max" });
        }
        let is_qos2 = publish.qos == 2;
        if publish.topic.len() > shared.config.topic_max {
            let start = start_of(publish.topic);
            shared.refuse_client(&self.device, &start, refusal(TOPIC_TOO_LONG), TOPIC_TOO_LONG.text);
            return self.refuse_publish(&publish, TOPIC_TOO_LONG, output);
        }
        if is_qos2 && self.is_open_exchange(&publish)? {
            return Ok(());
        }
        if is_qos2 && self.session.exchanges.len() >= shared.exchanges_max() {
            return Err(Fault {
                code: ReasonCode::ReceiveMaximumExceeded,
                text: "too many QoS 2 publishes without PUBREL; see exchanges_max",
            });
        }
        let (route, denied) = self.route(shared, &publish)?;
        if let Some(why) = denied {
            shared.count_refused(&self.device, Cause::Publish, route.topic(), &why);
            return self.refuse_publish(&publish, MAY_NOT_PUBLISH, output);
        }
        let hash = if publish.qos > 0 { hash(route.topic(), publish.payload) } else { 0 };
        if publish.dup && publish.qos == 1 && self.is_redelivery(shared, &publish, hash, arrived) {
            return Ok(());
        }
        self.device.note_publish(arrived.time);
        // Before it is submitted: an accepted publish has to be remembered until it is acknowledged.
        let state = state_bytes(publish.qos);
        self.memory.reserve(state)?;
        if self.queued.is_empty() {
            let metadata = EventMetadata {
                trace_parent: publish.trace_parent,
                content_type: publish.content_type,
                exchange: is_qos2.then_some((self.session.number, publish.packet_id)),
                ..EventMetadata::default()
            };
            let _gate = is_qos2.then(|| shared.registry.gate());
            let submission = Submission { metadata, ..Submission::new(&route, publish.payload, arrived.time) };
            match self.producer.submit(&submission) {
                Ok(taken) => {
                    self.note_accepted(shared, taken, publish.packet_id, publish.qos, hash, arrived.at);
                    return Ok(());
                }
                Err(SubmitError::NoRoom) => {}
                Err(SubmitError::Closed) => return Err(SHUTTING_DOWN),
            }
        }
        if publish.qos == 0 && !route.is_paced() {
            // A client does not wait for an answer to QoS 0, so it cannot be slowed down.
            shared.stats.dropped.add(1);
            return Ok(());
        }
        self.queue(route, &publish, hash, arrived.at)
    }

    /// Queues a publish until its lane has room.
    fn queue(
        &mut self,
        route: Arc<Route>,
        publish: &packet::Publish<'_>,
        hash: u64,
        arrived: Instant,
    ) -> Result<(), Fault> {
        let texts = [publish.trace_parent, publish.content_type].into_iter().flatten().map(str::len).sum::<usize>();
        // The route may not be in the cache.
        let bytes = QUEUED_PUBLISH_BYTES + publish.payload.len() + texts + route.bytes();
        self.memory.reserve(bytes)?;
        self.queued_bytes += bytes;
        self.queued.push_back(QueuedPublish {
            route,
            payload: publish.payload.to_vec(),
            trace_parent: publish.trace_parent.map(str::to_owned),
            content_type: publish.content_type.map(str::to_owned),
            packet_id: publish.packet_id,
            is_qos2: publish.qos == 2,
            hash,
            arrived,
            bytes,
        });
        Ok(())
    }

    /// Remembers a publish that its lane has accepted until it is acknowledged.
    fn note_accepted(
        &mut self,
        shared: &ListenerState,
        taken: Submitted,
        packet_id: u16,
        qos: u8,
        hash: u64,
        arrived: Instant,
    ) {
        self.device.note_accepted(&taken);
        if qos == 0 {
            return;
        }
        let is_qos2 = qos == 2;
        if is_qos2 {
            let exchange = Exchange { taken: Some(taken), is_of_this_connection: true };
            if self.session.exchanges.insert(packet_id, exchange).is_some() {
                self.memory.release(EXCHANGE_BYTES);
            }
            self.exchanges_open += 1;
            self.recs_awaited += 1;
            if self.session.number > 0 {
                shared.registry.hold(&self.key, packet_id, taken);
            }
        }
        self.unacknowledged.push_back(Unacknowledged { taken, packet_id, is_qos2, hash, arrived });
    }

    /// Returns whether a QoS 2 publish belongs to an open exchange; then its PUBREC is sent again.
    ///
    /// On a later connection every redelivery has the DUP flag [MQTT-3.3.1-1]. A publish without it begins a new exchange,
    /// since its client has forgotten the old one.
    fn is_open_exchange(&mut self, publish: &packet::Publish<'_>) -> Result<bool, Fault> {
        let Some(exchange) = self.session.exchanges.get(&publish.packet_id) else {
            return Ok(self.queued.iter().any(|queued| queued.is_qos2 && queued.packet_id == publish.packet_id));
        };
        if !publish.dup && !exchange.is_of_this_connection {
            return Ok(false);
        }
        self.device.redelivered.add(1);
        if let Some(taken) = exchange.taken {
            let is_awaited = |waiting: &Unacknowledged| waiting.is_qos2 && waiting.packet_id == publish.packet_id;
            if !self.unacknowledged.iter().any(is_awaited) {
                let arrived = clock::instant();
                let packet_id = publish.packet_id;
                self.memory.reserve(UNACKNOWLEDGED_BYTES)?;
                self.recs_awaited += 1;
                self.unacknowledged.push_back(Unacknowledged { taken, packet_id, is_qos2: true, hash: 0, arrived });
            }
        } else {
            let mut bytes = Vec::new();
            packet::push_ack(&mut bytes, PUBREC, publish.packet_id);
            self.reply(0, &bytes)?;
        }
        Ok(true)
    }

    /// Returns whether a QoS 1 publish repeats one that the client's last connection accepted and did not acknowledge: it
    /// gets its PUBACK and is not stored again.
    fn is_redelivery(
        &mut self,
        shared: &ListenerState,
        publish: &packet::Publish<'_>,
        hash: u64,
        arrived: ArrivalTime,
    ) -> bool {
        let fits = |known: &Unanswered| known.packet_id == publish.packet_id && known.hash == hash;
        let Some(index) = self.session.unanswered.iter().position(fits) else { return false };
        let Unanswered { taken, packet_id, .. } = self.session.unanswered.swap_remove(index);
        shared.stats.redelivered.add(1);
        self.device.redelivered.add(1);
        self.unacknowledged.push_back(Unacknowledged { taken, packet_id, is_qos2: false, hash, arrived: arrived.at });
        true
    }

    /// Answers a refused publish.
    fn refuse_publish(
        &mut self,
        publish: &packet::Publish<'_>,
        refused: Fault,
        output: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match publish.qos {
            0 => Ok(()),
            // MQTT 3.1.1 can only refuse a publish by closing the connection.
            _ if !self.is_v5() => Err(refused),
            1 if self.unacknowledged.is_empty() && self.queued.is_empty() => {
                packet::push_ack_with(output, PUBACK, publish.packet_id, refused.code);
                Ok(())
            }
            2 if self.unacknowledged.is_empty() && self.queued.is_empty() => {
                packet::push_ack_with(output, PUBREC, publish.packet_id, refused.code);
                Ok(())
            }
            // Acknowledgements have to leave in order of arrival, and earlier ones are outstanding.
            _ => Err(refused),
        }
    }

    /// Resolves the alias of a publish and returns its route, and whether the client may publish there.
    fn route(&mut self, shared: &ListenerState, publish: &packet::Publish<'_>) -> Result<RouteAndDenial, Fault> {
        if let Some(alias) = publish.alias {
            if alias > ALIASES_MAX {
                return Err(Fault {
                    code: ReasonCode::TopicAliasInvalid,
                    text: "the topic alias is above the maximum",
                });
            }
            if !publish.topic.is_empty() {
                self.memory.reserve(publish.topic.len() + ALIAS_BYTES)?;
                if let Some(before) = self.aliases.insert(alias, publish.topic.to_owned()) {
                    self.memory.release(before.len() + ALIAS_BYTES);
                }
            }
        }
        let topic = topic_of(&self.aliases, publish).ok_or(Fault::protocol("the topic alias is not set"))?;
        if let Some(route) = self.producer.cached_route(topic) {
            return Ok((route, None));
        }
        let (route, denied) = shared.route(topic, &self.client, &self.rights);
        let route = Arc::new(route);
        if denied.is_some() {
            // Not cached: a client can name any number of topics that it may not publish to.
            return Ok((route, denied));
        }
        self.cache(Arc::clone(&route));
        Ok((route, None))
    }

    /// Caches a route while more than half of the memory budget is free.
    fn cache(&mut self, route: Arc<Route>) {
        if !self.memory.is_plentiful() {
            return self.clear_routes();
        }
        if !self.producer.has_room_in_cache(route.topic()) {
            self.clear_routes();
        }
        if self.memory.reserve(Producer::cached_bytes(&route)).is_ok() {
            self.producer.cache(route);
        }
    }

    fn clear_routes(&mut self) {
        self.memory.release(self.producer.clear_routes());
    }

    /// Submits queued publishes as far as their lanes have room.
    pub(super) fn submit_queued(&mut self, shared: &ListenerState) {
        let now = Timestamp::from(clock::wall());
        while let Some(queued) = self.queued.front() {
            let metadata = EventMetadata {
                trace_parent: queued.trace_parent.as_deref(),
                content_type: queued.content_type.as_deref(),
                exchange: queued.is_qos2.then_some((self.session.number, queued.packet_id)),
                ..EventMetadata::default()
            };
            let _gate = queued.is_qos2.then(|| shared.registry.gate());
            let submission = Submission { metadata, ..Submission::new(&queued.route, &queued.payload, now) };
            match self.producer.submit(&submission) {
                Ok(taken) => {
                    let qos = if queued.packet_id == 0 { 0 } else { 1 + u8::from(queued.is_qos2) };
                    let (id, hash, arrived) = (queued.packet_id, queued.hash, queued.arrived);
                    let bytes = queued.bytes;
                    self.queued_bytes -= bytes;
                    self.memory.release(bytes);
                    self.queued.pop_front();
                    self.note_accepted(shared, taken, id, qos, hash, arrived);
                }
                Err(_) => return,
            }
        }
    }

    /// Acknowledges publishes that have a receipt, in order of arrival, and sends replies whose write (up to `written`) is
    /// done.
    pub(super) fn acknowledge(&mut self, shared: &ListenerState, written: u64, output: &mut Vec<u8>) {
        let mut now = None;
        while let Some(first) = self.unacknowledged.front() {
            let Some(_receipt) = shared.ingest.receipt(&first.taken) else { break };
            packet::push_ack(output, if first.is_qos2 { PUBREC } else { PUBACK }, first.packet_id);
            self.recs_awaited -= usize::from(first.is_qos2);
            self.memory.release(UNACKNOWLEDGED_BYTES);
            let now = *now.get_or_insert_with(clock::instant);
            shared.stats.ack.record(now.duration_since(first.arrived), 1);
            self.unacknowledged.pop_front();
        }
        while let Some(reply) = self.replies.front() {
            if reply.wait_for > written {
                break;
            }
            output.extend_from_slice(&reply.bytes);
            self.memory.release(REPLY_BYTES + reply.bytes.len());
            self.replies.pop_front();
        }
    }

    /// Sends `bytes` once write number `wait_for` is done. Replies that wait for the same write are joined.
    fn reply(&mut self, wait_for: u64, bytes: &[u8]) -> Result<(), Fault> {
        match self.replies.back_mut().filter(|last| last.wait_for >= wait_for) {
            Some(last) => {
                self.memory.reserve(bytes.len())?;
                last.bytes.extend_from_slice(bytes);
            }
            None => {
                self.memory.reserve(REPLY_BYTES + bytes.len())?;
                self.replies.push_back(DeferredReply { wait_for, bytes: bytes.to_vec() });
            }
        }
        Ok(())
    }

    /// Ends a QoS 2 exchange on PUBREL. PUBCOMP is sent once the end is on the disk.
    fn release(&mut self, shared: &ListenerState, packet_id: u16) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        let wait_for = if let Some(exchange) = self.session.exchanges.remove(&packet_id) {
            self.exchanges_open -= usize::from(exchange.is_of_this_connection);
            self.memory.release(EXCHANGE_BYTES);
            packet::push_ack(&mut bytes, PUBCOMP, packet_id);
            if self.session.number > 0 { shared.registry.release(&self.key, packet_id) } else { 0 }
        } else if self.is_v5() {
            packet::push_ack_with(&mut bytes, PUBCOMP, packet_id, ReasonCode::PacketIdentifierNotFound);
            0
        } else {
            packet::push_ack(&mut bytes, PUBCOMP, packet_id);
            0
        };
        self.reply(wait_for, &bytes)
    }

    fn acknowledged(&mut self, packet_id: u16) -> Result<(), Fault> {
        if self.session.outbound.acknowledged(packet_id) {
            Ok(())
        } else {
            Err(Fault::protocol("an acknowledgement of a publish that was not sent"))
        }
    }

    /// Takes the session out of the connection, with the publishes that were not acknowledged.
    pub(super) fn detach_session(&mut self) -> Box<Session> {
        self.recs_awaited = 0;
        let unanswered = self.unacknowledged.drain(..).filter(|waiting| !waiting.is_qos2);
        self.session.unanswered = unanswered
            .map(|waiting| Unanswered { packet_id: waiting.packet_id, hash: waiting.hash, taken: waiting.taken })
            .collect();
        // The permit of the connection ends with it. Without a new one, a redelivery becomes a second event.
        let bytes = self.session.unanswered.len() * UNACKNOWLEDGED_BYTES;
        self.session.permit = self.memory.permit().budget().permit(bytes).ok();
        if self.session.permit.is_none() {
            self.session.unanswered = Vec::new();
        }
        self.session.waiter = Some(self.producer.take_waiter());
        std::mem::take(&mut self.session)
    }
}

/// Returns the topic of a publish with its alias resolved; `None` for an unknown alias.
fn topic_of<'t>(aliases: &'t HashMap<u16, String>, publish: &packet::Publish<'t>) -> Option<&'t str> {
    match (publish.topic, publish.alias) {
        ("", Some(alias)) => aliases.get(&alias).map(String::as_str),
        (topic, _) => Some(topic),
    }
}

/// Bytes of a publish of this QoS from its acceptance to its acknowledgement or release.
fn state_bytes(qos: u8) -> usize {
    match qos {
        0 => 0,
        1 => UNACKNOWLEDGED_BYTES,
        _ => UNACKNOWLEDGED_BYTES + EXCHANGE_BYTES,
    }
}

/// The start of a topic, as long as a log line allows.
fn start_of(topic: &str) -> String {
    const CHARS_MAX: usize = 256;
    topic.chars().take(CHARS_MAX).collect()
}

fn hash(topic: &str, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, xxh3_64(topic.as_bytes()))
}

impl ListenerState {
    /// Returns the route of a topic for a client, and why the client may not publish there; `None` if it may.
    pub(super) fn route(&self, topic: &str, client: &str, rights: &Rights) -> (Route, Option<String>) {
        let route = self
            .ingest
            .route(SourceKind::Mqtt, &self.config.name, topic, rights.sender(client))
            .with_pace(self.pace.as_ref());
        let permission = rights.may_publish(&route).map_err(|denied| denied.to_string());
        match permission {
            Ok(Permission::Name) => (route, None),
            Ok(Permission::Rule) => (route.allowed_by_rule(), None),
            Err(why) => (route, Some(why)),
        }
    }
}
