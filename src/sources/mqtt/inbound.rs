//! What a client sends: packets become events, acknowledgements, subscriptions.
//!
//! All of a connection but its socket, so that it can be fed from any buffer. Events that find no
//! room wait here, bounded, so that PINGREQ behind them is still answered; when that is full too,
//! the socket is not read.

mod subscribe;

use super::acl::{Permission, Rights};
use super::connect::ALIASES_MAX;
use super::connection_memory::ConnectionMemory;
use super::outbound::ClientOptions;
use super::reason::ReasonCode;
use super::registry::{Exchange, Key, Session, Unanswered};
use super::wire::{self, Fault, Frame, PUBACK, PUBCOMP, PUBREC};
use super::{ListenerState, devices::Device};
use crate::clock;
use crate::contract::SourceKind;
use crate::event::Timestamp;
use crate::ingest::{Beside, Route, Taken};
use crate::journal::NotTaken;
use crate::link::Protocol;
use crate::security::Cause;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Topics whose contract a connection remembers.
const ROUTES_MAX: usize = 256;
/// Beside its topic and its parts, what a remembered route takes: the places in its map and its counts.
const ROUTE_BYTES: usize = 128;
/// What a topic alias takes beside the topic.
const ALIAS_BYTES: usize = 64;
/// What a publish takes while its acknowledgement is awaited.
pub(super) const UNACKNOWLEDGED_BYTES: usize = 2 * size_of::<Unacknowledged>();
/// What an open exchange of QoS 2 takes: 470 bytes measured, in the session and in what is noted of it.
pub(super) const EXCHANGE_BYTES: usize = 512;
/// What a publish that found no room takes beside what it holds.
const QUEUED_PUBLISH_BYTES: usize = 2 * size_of::<QueuedPublish>();
/// What an reply takes that waits for a note.
const REPLY_BYTES: usize = 2 * size_of::<DeferredReply>();
/// Answers that may wait for notes before the socket is not read: as many as a Receive Maximum allows releases.
const REPLIES_MAX: usize = 256;
/// A packet that arrives has to be at least this quick: half of what the slowest lines do that plants have (1 kB/s).
const PACKET_BYTES_PER_SECOND_MIN: u64 = 500;

/// What a connection knows of its client.
pub(super) struct Inbound {
    pub key: Key,
    pub client: String,
    pub session: Box<Session>,
    pub options: ClientOptions,
    pub rights: Rights,
    pub device: Arc<Device>,
    aliases: HashMap<u16, String>,
    /// Where topics lead that the client may publish to.
    routes: HashMap<String, Arc<Route>>,
    /// Taken in and not yet acknowledged, in order of arrival.
    unacknowledged: VecDeque<Unacknowledged>,
    /// ArrivalTime and not yet taken in, in order of arrival.
    queued: VecDeque<QueuedPublish>,
    queued_bytes: usize,
    /// PUBRECs among the unacknowledged.
    recs_awaited: usize,
    /// QoS 2 exchanges that this connection began and has not ended.
    exchanges_open: usize,
    /// Answers that wait for a note of the session, in order.
    replies: VecDeque<DeferredReply>,
    /// What all of this takes.
    pub memory: ConnectionMemory,
    routes_bytes: usize,
    /// What the subscriptions and what is on its way to the client take.
    outbound_bytes: usize,
    /// Since when a packet arrives that is not whole yet.
    partial_since: Option<Instant>,
    /// The topic of the publish that ended the connection.
    topic_at_fault: String,
}

/// A route, and why the client may not use it; `None` if it may.
type RouteAndDenial = (Arc<Route>, Option<String>);

struct Unacknowledged {
    taken: Taken,
    packet_id: u16,
    is_qos2: bool,
    hash: u64,
    arrived: Instant,
}

/// A publish that found no room.
struct QueuedPublish {
    route: Arc<Route>,
    payload: Vec<u8>,
    trace_parent: Option<String>,
    content_type: Option<String>,
    packet_id: u16,
    is_qos2: bool,
    hash: u64,
    arrived: Instant,
    /// What it takes.
    bytes: usize,
}

/// An reply that leaves once the session's note is on the disk.
struct DeferredReply {
    wait_for: u64,
    bytes: Vec<u8>,
}

/// How a connection goes on.
#[derive(Debug)]
pub(super) enum PacketOutcome {
    Continue,
    /// The client said goodbye; `true` if its will is to be published all the same.
    Disconnected {
        with_will: bool,
    },
    Fault(Fault),
}

/// When something arrived.
#[derive(Clone, Copy)]
pub(super) struct ArrivalTime {
    pub at: Instant,
    pub time: Timestamp,
}

impl Inbound {
    pub(super) fn new(
        key: Key,
        client: String,
        session: Box<Session>,
        options: ClientOptions,
        rights: Rights,
        (device, memory): (Arc<Device>, ConnectionMemory),
    ) -> Self {
        let outbound_bytes = session.outbound.bytes();
        Self {
            key,
            client,
            session,
            options,
            rights,
            device,
            aliases: HashMap::new(),
            routes: HashMap::new(),
            unacknowledged: VecDeque::new(),
            queued: VecDeque::new(),
            queued_bytes: 0,
            recs_awaited: 0,
            exchanges_open: 0,
            replies: VecDeque::new(),
            memory,
            routes_bytes: 0,
            outbound_bytes,
            partial_since: None,
            topic_at_fault: String::new(),
        }
    }

    /// Gives the client other rights; subscriptions that they do not cover end.
    pub(super) fn set_rights(&mut self, rights: Rights, shared: &ListenerState) {
        self.rights = rights;
        self.forget_routes();
        let (ended, _) = shared.end_subscriptions(&self.key, &mut self.session, &self.rights);
        ended.iter().for_each(|filter| shared.report_ended(&self.device, filter));
    }

    pub(super) fn is_v5(&self) -> bool {
        self.options.protocol == Protocol::V5
    }

    /// Whether more may be read. Clients that send more than Receive Maximum allows are common:
    /// they are slowed down, not cut off.
    pub(super) fn has_room(&self, shared: &ListenerState) -> bool {
        let in_flight = self.unacknowledged.len() - self.recs_awaited + self.queued.len() + self.exchanges_open;
        let is_awaited = !self.unacknowledged.is_empty() || !self.queued.is_empty();
        // An exchange that waits for its PUBREL needs reading to end.
        let is_full = is_awaited && in_flight >= usize::from(shared.config.receive_maximum).max(1);
        // While memory is short, a client that waits for its lane waits for memory too.
        let is_short = !self.queued.is_empty() && self.memory.is_scarce();
        let has_replies = self.replies.len() >= REPLIES_MAX;
        let waiting_max = usize::try_from(shared.config.waiting_max.0).unwrap_or(usize::MAX);
        !is_full && !is_short && !has_replies && self.queued_bytes < waiting_max
    }

    /// Whether somebody has to look at this connection now and then.
    pub(super) fn is_to_be_watched(&self) -> bool {
        !self.session.outbound.is_idle() || self.partial_since.is_some()
    }

    /// Measures how long a packet takes to arrive; not while the gateway itself does not read.
    pub(super) fn time_packet(&mut self, is_reading: bool) {
        if !is_reading && self.partial_since.is_some() {
            self.partial_since = Some(clock::instant());
        }
    }

    /// Whether a packet arrives too slowly, of which there are so many bytes.
    pub(super) fn check_progress(&self, shared: &ListenerState, arrived: usize) -> Result<(), Fault> {
        let allowed = shared.config.packet_wait_max.0
            + Duration::from_millis(arrived as u64 * 1000 / PACKET_BYTES_PER_SECOND_MIN);
        let took = self.partial_since.map(|since| clock::instant().duration_since(since));
        if took.is_some_and(|took| took > allowed) { Err(TOO_LATE) } else { Ok(()) }
    }

    /// The topic of the publish that ended the connection; empty for anything else.
    pub(super) fn topic_at_fault(&self) -> &str {
        &self.topic_at_fault
    }

    /// Covers the subscriptions, and what waits to be written to the client.
    pub(super) fn hold_outbound(&mut self, output: usize) -> Result<(), Fault> {
        let outbound = &mut self.session.outbound;
        if self.memory.resize(&mut self.outbound_bytes, outbound.bytes()).is_err() {
            // The journal has them: they are read again.
            outbound.release_blocks();
            self.memory.resize(&mut self.outbound_bytes, outbound.bytes())?;
        }
        self.memory.hold_output(output)
    }

    /// The route that holds everything up, if one does.
    pub(super) fn blocked_on(&self) -> Option<Arc<Route>> {
        self.queued.front().map(|queued| Arc::clone(&queued.route))
    }

    /// Whether acknowledgements are still to come.
    pub(super) fn awaits_receipts(&self) -> bool {
        !self.unacknowledged.is_empty()
    }

    /// Whether replies wait for a note of the session.
    pub(super) fn awaits_notes(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Handles every whole packet in what was left and what came; keeps the rest.
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
            let length = wire::length(left).filter(|length| *length <= shared.packet_bytes_max);
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
                    // What is left came with the bytes of just now.
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
        match self.memory.buffer(left, rest, wire::length(rest)) {
            Ok(()) => PacketOutcome::Continue,
            Err(fault) => PacketOutcome::Fault(fault),
        }
    }

    /// Handles the whole packets at the start of `bytes`: how many bytes these have, or how the connection ends.
    fn handle_packets(
        &mut self,
        shared: &ListenerState,
        bytes: &[u8],
        arrived: ArrivalTime,
        output: &mut Vec<u8>,
    ) -> Result<usize, PacketOutcome> {
        let mut handled = 0;
        loop {
            match wire::frame(&bytes[handled..], shared.packet_bytes_max) {
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
            (3, _) => wire::publish(frame.first, frame.body, self.is_v5()).and_then(|publish| {
                let published = self.publish(shared, publish, arrived, output);
                published.inspect_err(|_| self.topic_at_fault = start_of(publish.topic))
            }),
            (4, 0) => wire::ack(frame.body, self.is_v5()).and_then(|(id, _)| self.acknowledged(id)),
            (6, 2) => wire::ack(frame.body, self.is_v5()).and_then(|(id, _)| self.release(shared, id)),
            (5, 0) | (7, 0) => Err(Fault::protocol("an acknowledgement of a QoS 2 publish that there was not")),
            (12, 0) if frame.body.is_empty() => {
                output.extend_from_slice(&[0xD0, 0]);
                Ok(())
            }
            (14, 0) => return self.disconnect(shared, frame.body),
            (8, 2) => self.subscribe(shared, frame.body),
            (10, 2) => self.unsubscribe(shared, frame.body),
            (1, _) => Err(Fault::protocol("a second CONNECT")),
            (15, 0) => Err(Fault::protocol("AUTH without an authentication method")),
            _ => Err(Fault::malformed("a packet type or flags that do not exist")),
        };
        match step {
            Ok(()) => PacketOutcome::Continue,
            Err(fault) => PacketOutcome::Fault(fault),
        }
    }

    fn disconnect(&mut self, shared: &ListenerState, body: &[u8]) -> PacketOutcome {
        let (code, asked) = match wire::disconnect(body, self.is_v5()) {
            Ok(read) => read,
            Err(fault) => return PacketOutcome::Fault(fault),
        };
        if let Some(expiry) = asked {
            if expiry > 0 && self.session.expiry == 0 {
                return PacketOutcome::Fault(Fault::protocol(
                    "a session that was to end with its connection cannot be kept",
                ));
            }
            self.session.expiry = shared.config.expiry_within(expiry);
        }
        // Any reason but a normal one is an end that the will is for.
        PacketOutcome::Disconnected { with_will: code != ReasonCode::Success.value() }
    }

    fn publish(
        &mut self,
        shared: &ListenerState,
        publish: wire::Publish<'_>,
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
            shared.refuse_client(&self.device, &start, TOPIC_TOO_LONG.reason(), TOPIC_TOO_LONG.text);
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
        // Before it is handed in: what is taken has to be remembered until it is acknowledged.
        let state = state_bytes(publish.qos);
        self.memory.reserve(state)?;
        if self.queued.is_empty() {
            let beside = Beside {
                trace_parent: publish.trace_parent,
                content_type: publish.content_type,
                exchange: is_qos2.then_some((self.session.number, publish.packet_id)),
                ..Beside::default()
            };
            let _gate = is_qos2.then(|| shared.registry.gate());
            match shared.ingest.accept(&route, publish.payload, beside, arrived.time, &mut self.session.waiter) {
                Ok(taken) => {
                    self.note_accepted(shared, taken, publish.packet_id, publish.qos, hash, arrived.at);
                    return Ok(());
                }
                Err(NotTaken::NoRoom) => {}
                Err(NotTaken::Closed) => return Err(SHUTTING_DOWN),
            }
        }
        if publish.qos == 0 && !route.is_paced() {
            // Nobody waits for an reply, so that there is nobody to slow down.
            shared.stats.dropped.add(1);
            return Ok(());
        }
        self.queue(route, &publish, hash, arrived.at)
    }

    /// Keeps a publish until there is room for it.
    fn queue(
        &mut self,
        route: Arc<Route>,
        publish: &wire::Publish<'_>,
        hash: u64,
        arrived: Instant,
    ) -> Result<(), Fault> {
        let texts = [publish.trace_parent, publish.content_type].into_iter().flatten().map(str::len).sum::<usize>();
        // The route may be remembered nowhere else.
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

    /// Notes that an event is on its way to the disk.
    fn note_accepted(
        &mut self,
        shared: &ListenerState,
        taken: Taken,
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

    /// Whether a QoS 2 publish is one that is queued; its PUBREC leaves once more then.
    ///
    /// On a later connection every redelivery is marked as one [MQTT-3.3.1-1]: a publish that is
    /// not begins a new exchange, since its client has forgotten the old one.
    fn is_open_exchange(&mut self, publish: &wire::Publish<'_>) -> Result<bool, Fault> {
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
            wire::push_ack(&mut bytes, PUBREC, publish.packet_id);
            self.reply(0, &bytes)?;
        }
        Ok(true)
    }

    /// Whether a QoS 1 publish is one that the client's last connection took in and did not reply:
    /// it gets its PUBACK, and is no second event.
    fn is_redelivery(
        &mut self,
        shared: &ListenerState,
        publish: &wire::Publish<'_>,
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

    /// Answers a publish that is not taken.
    fn refuse_publish(
        &mut self,
        publish: &wire::Publish<'_>,
        refused: Fault,
        output: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match publish.qos {
            0 => Ok(()),
            // 3.1.1 has no way to say no but to end the connection.
            _ if !self.is_v5() => Err(refused),
            1 if self.unacknowledged.is_empty() && self.queued.is_empty() => {
                wire::push_ack_with(output, PUBACK, publish.packet_id, refused.code);
                Ok(())
            }
            2 if self.unacknowledged.is_empty() && self.queued.is_empty() => {
                wire::push_ack_with(output, PUBREC, publish.packet_id, refused.code);
                Ok(())
            }
            // Acknowledgements leave in order of arrival, and this one is not the first.
            _ => Err(refused),
        }
    }

    /// Where a publish leads, its alias resolved, and whether the client may publish there.
    fn route(&mut self, shared: &ListenerState, publish: &wire::Publish<'_>) -> Result<RouteAndDenial, Fault> {
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
        let topic = topic_of(&self.aliases, publish).ok_or(Fault::protocol("the topic alias stands for nothing"))?;
        if let Some(route) = self.routes.get(topic)
            && shared.ingest.is_current(route)
        {
            return Ok((Arc::clone(route), None));
        }
        let (route, denied) = shared.route(topic, &self.client, &self.rights);
        let route = Arc::new(route);
        if denied.is_some() {
            // A client could name any number of such topics.
            return Ok((route, denied));
        }
        self.remember(Arc::clone(&route));
        Ok((route, None))
    }

    /// Caches the route of a topic while more than half of the memory budget is free.
    fn remember(&mut self, route: Arc<Route>) {
        if !self.room.is_plentiful() {
            return self.forget_routes();
        }
        let topic = route.topic().to_owned();
        let is_plentiful = self.memory.is_plentiful();
        if self.routes.len() >= ROUTES_MAX || self.routes.contains_key(&topic) || !is_plentiful {
            self.forget_routes();
        }
        let bytes = ROUTE_BYTES + topic.len() + route.bytes();
        if is_plentiful && self.memory.reserve(bytes).is_ok() {
            self.routes_bytes += bytes;
            self.routes.insert(topic, route);
        }
    }

    fn forget_routes(&mut self) {
        self.routes.clear();
        self.memory.release(std::mem::take(&mut self.routes_bytes));
    }

    /// Takes in what had found no room, as far as there is some now.
    pub(super) fn submit_queued(&mut self, shared: &ListenerState) {
        let now = Timestamp::from(clock::wall());
        while let Some(queued) = self.queued.front() {
            let beside = Beside {
                trace_parent: queued.trace_parent.as_deref(),
                content_type: queued.content_type.as_deref(),
                exchange: queued.is_qos2.then_some((self.session.number, queued.packet_id)),
                ..Beside::default()
            };
            let _gate = queued.is_qos2.then(|| shared.registry.gate());
            match shared.ingest.accept(&queued.route, &queued.payload, beside, now, &mut self.session.waiter) {
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

    /// Acknowledges what is on the disk, in order of arrival, and replies what has been noted.
    pub(super) fn acknowledge(&mut self, shared: &ListenerState, written: u64, output: &mut Vec<u8>) {
        let mut now = None;
        while let Some(first) = self.unacknowledged.front() {
            let Some(_receipt) = shared.ingest.receipt(&first.taken) else { break };
            wire::push_ack(output, if first.is_qos2 { PUBREC } else { PUBACK }, first.packet_id);
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

    /// Answers once what it waits for is noted. Answers that leave together are one.
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

    /// Ends a QoS 2 exchange: PUBCOMP leaves when that is on the disk.
    fn release(&mut self, shared: &ListenerState, packet_id: u16) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        let wait_for = if let Some(exchange) = self.session.exchanges.remove(&packet_id) {
            self.exchanges_open -= usize::from(exchange.is_of_this_connection);
            self.memory.release(EXCHANGE_BYTES);
            wire::push_ack(&mut bytes, PUBCOMP, packet_id);
            if self.session.number > 0 { shared.registry.release(&self.key, packet_id) } else { 0 }
        } else if self.is_v5() {
            wire::push_ack_with(&mut bytes, PUBCOMP, packet_id, ReasonCode::PacketIdentifierNotFound);
            0
        } else {
            wire::push_ack(&mut bytes, PUBCOMP, packet_id);
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

    /// Leaves in the session what the next connection needs to know of this one.
    pub(super) fn detach_session(&mut self) -> Box<Session> {
        self.recs_awaited = 0;
        let unanswered = self.unacknowledged.drain(..).filter(|waiting| !waiting.is_qos2);
        self.session.unanswered = unanswered
            .map(|waiting| Unanswered { packet_id: waiting.packet_id, hash: waiting.hash, taken: waiting.taken })
            .collect();
        // The connection's own permit ends with it. Where there is none for this, a redelivery is a second event.
        let bytes = self.session.unanswered.len() * UNACKNOWLEDGED_BYTES;
        self.session.permit = self.memory.permit().budget().permit(bytes).ok();
        if self.session.permit.is_none() {
            self.session.unanswered = Vec::new();
        }
        std::mem::take(&mut self.session)
    }
}

/// The topic of a publish, its alias resolved.
fn topic_of<'t>(aliases: &'t HashMap<u16, String>, publish: &wire::Publish<'t>) -> Option<&'t str> {
    match (publish.topic, publish.alias) {
        ("", Some(alias)) => aliases.get(&alias).map(String::as_str),
        (topic, _) => Some(topic),
    }
}

const MAY_NOT_PUBLISH: Fault =
    Fault { code: ReasonCode::NotAuthorized, text: "this client may not publish to this topic" };
pub(super) const TOPIC_TOO_LONG: Fault =
    Fault { code: ReasonCode::TopicNameInvalid, text: "the topic is longer than topic_max" };
const TOO_LATE: Fault = Fault {
    code: ReasonCode::ImplementationSpecificError,
    text: "the packet did not arrive in time; see packet_wait_max",
};
pub(super) const SHUTTING_DOWN: Fault =
    Fault { code: ReasonCode::ServerShuttingDown, text: "the gateway is shutting down" };

/// What a publish of this quality takes from when it is taken until it is acknowledged or released.
fn state_bytes(qos: u8) -> usize {
    match qos {
        0 => 0,
        1 => UNACKNOWLEDGED_BYTES,
        _ => UNACKNOWLEDGED_BYTES + EXCHANGE_BYTES,
    }
}

/// As much of a topic as a log line has room for.
fn start_of(topic: &str) -> String {
    const CHARS_MAX: usize = 256;
    topic.chars().take(CHARS_MAX).collect()
}

fn hash(topic: &str, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, xxh3_64(topic.as_bytes()))
}

impl ListenerState {
    /// Where a topic of a client leads, and why the client may not publish there; `None` if it may.
    pub(super) fn route(&self, topic: &str, client: &str, rights: &Rights) -> (Route, Option<String>) {
        let route = self
            .ingest
            .route(SourceKind::Mqtt, &self.config.name, topic, rights.sender(client))
            .paced(self.pace.as_ref());
        let permission = rights.may_publish(&route).map_err(|denied| denied.to_string());
        match permission {
            Ok(Permission::Name) => (route, None),
            Ok(Permission::Rule) => (route.by_rule(), None),
            Err(why) => (route, Some(why)),
        }
    }
}
