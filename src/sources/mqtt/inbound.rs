//! Packets of a client that has logged in: publishes become events, and each packet gets its answer.
//!
//! This is a connection without its socket: it takes bytes from any buffer and appends answers to another.
//!
//! Promise: acknowledgements leave in the order in which the publishes arrived, each with a receipt.
//! Invariant: publishes that the lane has no room for wait in a queue of bounded bytes, so that a PINGREQ behind them is
//! still answered; when the queue is full, the socket is not read.

mod oversized;
mod pending;
mod publish;
mod subscribe;

use super::acl::Rights;
use super::connection_memory::ConnectionMemory;
use super::devices::Device;
use super::faults::TOO_LATE;
use super::outbound::ClientOptions;
use super::registry::{Key, Session, Unanswered};
use super::state::ListenerState;
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Ingest, Producer, Route};
use crate::mqtt::packet::{self, Frame, PUBACK, PUBCOMP, PUBREC};
use crate::mqtt::{Fault, Protocol, ReasonCode};
use oversized::OversizedPublish;
use pending::{Answer, ArrivalTime, DeferredReply, QueuedPublish, REPLY_BYTES, ReceivedPublish, Unacknowledged};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use pending::{EXCHANGE_BYTES, UNACKNOWLEDGED_BYTES};

/// Number of routes (topic and its contract) that a connection caches.
const ROUTES_MAX: usize = 256;
/// Highest topic alias that a client of MQTT 5 may set.
pub(super) const ALIASES_MAX: u16 = 64;
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
    /// A publish that is too large and has not arrived completely.
    oversized: Option<OversizedPublish>,
    /// The topic of the publish that ended the connection.
    topic_at_fault: String,
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

impl Inbound {
    pub(super) fn new(
        key: Key,
        mut session: Box<Session>,
        options: ClientOptions,
        rights: Rights,
        (device, memory, ingest): (Arc<Device>, ConnectionMemory, Arc<Ingest>),
    ) -> Self {
        let waiter = session.waiter.take().unwrap_or_default();
        let producer = Producer::continued(ingest, waiter, ROUTES_MAX);
        let outbound_bytes = session.outbound.bytes();
        Self {
            client: key.client().to_owned(),
            key,
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
            oversized: None,
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
        let arrived = self.oversized.as_ref().map_or(arrived, OversizedPublish::arrived);
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
        let bytes = match self.skip_oversized(shared, bytes, arrived) {
            Ok(bytes) => bytes,
            Err(fault) => return PacketOutcome::Fault(fault),
        };
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
        if self.oversized.is_none() {
            self.partial_since = (!rest.is_empty()).then_some(arrived.at);
        }
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
                Err(fault) => match self.begin_oversized(shared, &bytes[handled..], fault, arrived) {
                    Ok(Some(taken)) => handled += taken,
                    Ok(None) => return Ok(handled),
                    Err(fault) => return Err(PacketOutcome::Fault(fault)),
                },
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
                let published = self.publish(shared, publish, arrived, None);
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

    /// Acknowledges publishes that have a receipt, in order of arrival, and sends replies whose write
    /// (up to `written`) is done.
    pub(super) fn acknowledge(&mut self, shared: &ListenerState, written: u64, output: &mut Vec<u8>) {
        let mut now = None;
        while let Some(first) = self.unacknowledged.front() {
            let ReceivedPublish { packet_id, is_qos2, arrived, .. } = first.publish;
            let kind = if is_qos2 { PUBREC } else { PUBACK };
            match &first.answer {
                Answer::Refused(code) => packet::push_ack_with(output, kind, packet_id, *code),
                Answer::Taken(taken) => {
                    let Some(_receipt) = shared.ingest.receipt(taken) else { break };
                    packet::push_ack(output, kind, packet_id);
                    self.recs_awaited -= usize::from(is_qos2);
                    let now = *now.get_or_insert_with(clock::instant);
                    shared.stats.ack.record(now.duration_since(arrived), 1);
                }
            }
            self.memory.release(UNACKNOWLEDGED_BYTES);
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
        let unanswered = self.unacknowledged.drain(..).filter_map(|waiting| match waiting {
            Unacknowledged { answer: Answer::Taken(taken), publish } if !publish.is_qos2 => {
                Some(Unanswered { packet_id: publish.packet_id, hash: publish.hash, taken })
            }
            // A client repeats a refused publish, and is refused again.
            _ => None,
        });
        self.session.unanswered = unanswered.collect();
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

/// The start of a topic, as long as a log line allows.
fn start_of(topic: &str) -> String {
    const CHARS_MAX: usize = 256;
    topic.chars().take(CHARS_MAX).collect()
}
