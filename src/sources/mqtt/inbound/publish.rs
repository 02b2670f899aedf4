//! PUBLISH: a publish finds its route and its client's right to it, and is handed in or waits for room.
//!
//! Invariant: nothing is allocated for a publish whose route is cached and whose lane has room.

use super::super::config::RefusedPublish;
use super::super::faults::{MAY_NOT_PUBLISH, PAYLOAD_TOO_LARGE, SHUTTING_DOWN, TOPIC_TOO_LONG, refusal};
use super::super::registry::{Exchange, Unanswered};
use super::super::state::ListenerState;
use super::oversized::{OversizedPublish, PAYLOAD_KEPT_BYTES};
use super::pending::{
    Answer, ArrivalTime, EXCHANGE_BYTES, QueuedPublish, ReceivedPublish, UNACKNOWLEDGED_BYTES, Unacknowledged, Verdict,
};
use super::{ALIASES_MAX, Inbound, start_of};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::dead;
use crate::ingest::{EventMetadata, Producer, Route, Submission, SubmitError, Submitted};
use crate::mqtt::packet::{self, PUBREC};
use crate::mqtt::{Fault, ReasonCode};
use crate::security::Cause;
use std::collections::HashMap;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Overhead of a topic alias, without the topic.
const ALIAS_BYTES: usize = 64;
/// Overhead of a queued publish, without its payload and strings.
const QUEUED_PUBLISH_BYTES: usize = 2 * size_of::<QueuedPublish>();

/// A route, and why the client may not publish there; `None` if it may.
type RouteAndDenial = (Arc<Route>, Option<String>);

impl Inbound {
    /// Takes a publish: as an event, as a dead letter, or with an answer that refuses it. `too_large` is the length of the
    /// payload of a publish that is too large, of which only the start is here. An error ends the connection.
    #[inline]
    pub(super) fn publish(
        &mut self,
        shared: &ListenerState,
        publish: packet::Publish<'_>,
        arrived: ArrivalTime,
        too_large: Option<usize>,
    ) -> Result<(), Fault> {
        shared.stats.received.add(1);
        let is_qos2 = publish.qos == 2;
        if is_qos2 && self.is_open_exchange(&publish)? {
            return Ok(());
        }
        if is_qos2 && self.session.exchanges.len() >= shared.exchanges_max() {
            return Err(Fault {
                code: ReasonCode::ReceiveMaximumExceeded,
                text: "too many QoS 2 publishes without PUBREL; see exchanges_max",
            });
        }
        let (route, verdict) = self.judge(shared, &publish, too_large)?;
        let hash = if publish.qos > 0 { hash(route.topic(), publish.payload) } else { 0 };
        if publish.dup && publish.qos == 1 && self.is_redelivery(shared, &publish, hash, arrived) {
            return Ok(());
        }
        let received = ReceivedPublish { packet_id: publish.packet_id, is_qos2, hash, arrived: arrived.at };
        self.device.note_publish(arrived.time);
        if let Verdict::Refused(code) = verdict {
            return if publish.qos == 0 { Ok(()) } else { self.refuse(route, received, code) };
        }
        // Before it is submitted: an accepted publish has to be remembered until it is acknowledged.
        let state = state_bytes(publish.qos);
        self.memory.reserve(state)?;
        if self.queued.is_empty() {
            let metadata = EventMetadata {
                trace_parent: publish.trace_parent,
                content_type: publish.content_type,
                properties: Some(publish.properties),
                exchange: is_qos2.then_some((self.session.number, publish.packet_id)),
                ..EventMetadata::default()
            };
            let _gate = is_qos2.then(|| shared.registry.gate());
            let refusal = verdict.reason();
            let submission = Submission { metadata, refusal, ..Submission::new(&route, publish.payload, arrived.time) };
            match self.producer.submit(&submission) {
                Ok(taken) => {
                    self.note_accepted(shared, taken, received);
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
        self.queue(route, &publish, received, verdict)
    }

    /// Finds the route of a publish, and what becomes of it. Counts a refusal.
    fn judge(
        &mut self,
        shared: &ListenerState,
        publish: &packet::Publish<'_>,
        too_large: Option<usize>,
    ) -> Result<(Arc<Route>, Verdict), Fault> {
        let (route, denied) = self.route(shared, publish)?;
        let config = &shared.config;
        let (refused, by, reason) = if let Some(why) = denied {
            shared.count_refused(&self.device, Cause::Publish, route.topic(), &why);
            (MAY_NOT_PUBLISH, config.not_allowed, dead::denied(&why))
        } else if route.topic().len() > config.topic_max {
            let (bytes, bytes_max) = (route.topic().len(), config.topic_max);
            (TOPIC_TOO_LONG, config.too_large, format!("topic: is {bytes} bytes long; topic_max allows {bytes_max}"))
        } else if let Some(bytes) = too_large {
            (PAYLOAD_TOO_LARGE, config.too_large, dead::too_large(bytes as u64, config.payload_max.0))
        } else {
            return Ok((route, Verdict::Event));
        };
        if refused != MAY_NOT_PUBLISH {
            shared.refuse_client(&self.device, &start_of(route.topic()), refusal(refused), refused.text);
        }
        // Only MQTT 5 can refuse a publish, and only one that is acknowledged.
        let has_code = by == RefusedPublish::ReasonCode && (self.is_v5() || publish.qos == 0);
        let verdict = if has_code { Verdict::Refused(refused.code) } else { Verdict::DeadLetter(reason) };
        Ok((route, verdict))
    }

    /// Refuses a publish with a reason code, after the answers to all earlier ones.
    fn refuse(&mut self, route: Arc<Route>, publish: ReceivedPublish, code: ReasonCode) -> Result<(), Fault> {
        self.memory.reserve(UNACKNOWLEDGED_BYTES)?;
        if self.queued.is_empty() {
            self.unacknowledged.push_back(Unacknowledged { answer: Answer::Refused(code), publish });
        } else {
            let (payload, properties, trace_parent, content_type) = (Vec::new(), Vec::new(), None, None);
            let bytes = QUEUED_PUBLISH_BYTES + route.bytes();
            self.memory.reserve(bytes)?;
            self.queued_bytes += bytes;
            let verdict = Verdict::Refused(code);
            self.queued.push_back(QueuedPublish {
                route,
                payload,
                properties,
                trace_parent,
                content_type,
                publish,
                verdict,
                bytes,
            });
        }
        Ok(())
    }

    /// Begins to skip a publish that is too large. Returns how many of `bytes` belong to it; `None` if its start is
    /// incomplete. Any other packet ends the connection with `fault`.
    pub(super) fn begin_oversized(
        &mut self,
        shared: &ListenerState,
        bytes: &[u8],
        fault: Fault,
        arrived: ArrivalTime,
    ) -> Result<Option<usize>, Fault> {
        let lengths = OversizedPublish::lengths(bytes).filter(|_| fault.code == ReasonCode::PacketTooLarge);
        let (length, kept) = lengths.ok_or(fault)?;
        if bytes.len() < kept {
            return Ok(None);
        }
        self.memory.reserve(kept)?;
        let (publish, taken) = OversizedPublish::begin(bytes, length, kept);
        self.oversized = Some(publish);
        self.partial_since = Some(arrived.at);
        self.skip_oversized(shared, &[], arrived)?;
        Ok(Some(taken))
    }

    /// Discards bytes of a publish that is too large, and refuses it at its end. Returns the bytes behind it.
    pub(super) fn skip_oversized<'b>(
        &mut self,
        shared: &ListenerState,
        bytes: &'b [u8],
        arrived: ArrivalTime,
    ) -> Result<&'b [u8], Fault> {
        let Some(publish) = &mut self.oversized else { return Ok(bytes) };
        let rest = publish.skip(bytes);
        if publish.is_complete()
            && let Some(publish) = self.oversized.take()
        {
            let (start, discarded) = publish.into_parts();
            let refused = self.refuse_oversized(shared, &start, discarded, arrived);
            self.memory.release(start.len());
            refused?;
        }
        Ok(rest)
    }

    fn refuse_oversized(
        &mut self,
        shared: &ListenerState,
        start: &[u8],
        discarded: usize,
        arrived: ArrivalTime,
    ) -> Result<(), Fault> {
        let (header, _) = packet::remaining_length(start)?.ok_or(PAYLOAD_TOO_LARGE)?;
        let publish = packet::publish(start[0], &start[header..], self.is_v5())?;
        let bytes = publish.payload.len() + discarded;
        let kept = PAYLOAD_KEPT_BYTES.min(usize::try_from(shared.config.payload_max.0).unwrap_or(usize::MAX));
        let payload = &publish.payload[..publish.payload.len().min(kept)];
        self.publish(shared, packet::Publish { payload, ..publish }, arrived, Some(bytes))
    }

    /// Queues a publish until its lane has room.
    fn queue(
        &mut self,
        route: Arc<Route>,
        publish: &packet::Publish<'_>,
        received: ReceivedPublish,
        verdict: Verdict,
    ) -> Result<(), Fault> {
        let texts = [publish.trace_parent, publish.content_type].into_iter().flatten().map(str::len).sum::<usize>();
        // The route may not be in the cache.
        let texts = texts + publish.properties.len() + verdict.reason().map_or(0, str::len);
        let bytes = QUEUED_PUBLISH_BYTES + publish.payload.len() + texts + route.bytes();
        self.memory.reserve(bytes)?;
        self.queued_bytes += bytes;
        self.queued.push_back(QueuedPublish {
            route,
            payload: publish.payload.to_vec(),
            properties: publish.properties.to_vec(),
            trace_parent: publish.trace_parent.map(str::to_owned),
            content_type: publish.content_type.map(str::to_owned),
            publish: received,
            verdict,
            bytes,
        });
        Ok(())
    }

    /// Remembers a publish that its lane has accepted until it is acknowledged.
    fn note_accepted(&mut self, shared: &ListenerState, taken: Submitted, publish: ReceivedPublish) {
        self.device.note_accepted(&taken);
        let ReceivedPublish { packet_id, is_qos2, .. } = publish;
        if packet_id == 0 {
            return;
        }
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
        self.unacknowledged.push_back(Unacknowledged { answer: Answer::Taken(taken), publish });
    }

    /// Returns whether a QoS 2 publish belongs to an open exchange; then its PUBREC is sent again.
    ///
    /// On a later connection every redelivery has the DUP flag [MQTT-3.3.1-1]. A publish without it begins a new exchange,
    /// since its client has forgotten the old one.
    fn is_open_exchange(&mut self, publish: &packet::Publish<'_>) -> Result<bool, Fault> {
        let Some(exchange) = self.session.exchanges.get(&publish.packet_id) else {
            return Ok(self
                .queued
                .iter()
                .any(|queued| queued.publish.is_qos2 && queued.publish.packet_id == publish.packet_id));
        };
        if !publish.dup && !exchange.is_of_this_connection {
            return Ok(false);
        }
        self.device.redelivered.add(1);
        if let Some(taken) = exchange.taken {
            let packet_id = publish.packet_id;
            let is_awaited = |known: &ReceivedPublish| known.is_qos2 && known.packet_id == packet_id;
            if !self.unacknowledged.iter().any(|waiting| is_awaited(&waiting.publish)) {
                let arrived = clock::instant();
                self.memory.reserve(UNACKNOWLEDGED_BYTES)?;
                self.recs_awaited += 1;
                let publish = ReceivedPublish { packet_id, is_qos2: true, hash: 0, arrived };
                self.unacknowledged.push_back(Unacknowledged { answer: Answer::Taken(taken), publish });
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
        let publish = ReceivedPublish { packet_id, is_qos2: false, hash, arrived: arrived.at };
        self.unacknowledged.push_back(Unacknowledged { answer: Answer::Taken(taken), publish });
        true
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
        if denied.is_some() || route.topic().len() > shared.config.topic_max {
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

    pub(super) fn clear_routes(&mut self) {
        self.memory.release(self.producer.clear_routes());
    }

    /// Submits queued publishes as far as their lanes have room.
    pub(in super::super) fn submit_queued(&mut self, shared: &ListenerState) {
        let now = Timestamp::from(clock::wall());
        while let Some(queued) = self.queued.front() {
            let metadata = EventMetadata {
                trace_parent: queued.trace_parent.as_deref(),
                content_type: queued.content_type.as_deref(),
                properties: Some(&queued.properties),
                exchange: queued.publish.is_qos2.then_some((self.session.number, queued.publish.packet_id)),
                ..EventMetadata::default()
            };
            let _gate = queued.publish.is_qos2.then(|| shared.registry.gate());
            let refusal = queued.verdict.reason();
            let submission = Submission { metadata, refusal, ..Submission::new(&queued.route, &queued.payload, now) };
            let answer = match queued.verdict {
                Verdict::Refused(code) => Answer::Refused(code),
                _ => match self.producer.submit(&submission) {
                    Ok(taken) => Answer::Taken(taken),
                    Err(_) => return,
                },
            };
            let (publish, bytes) = (queued.publish, queued.bytes);
            self.queued_bytes -= bytes;
            self.memory.release(bytes);
            self.queued.pop_front();
            match answer {
                Answer::Taken(taken) => self.note_accepted(shared, taken, publish),
                Answer::Refused(_) => self.unacknowledged.push_back(Unacknowledged { answer, publish }),
            }
        }
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

fn hash(topic: &str, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, xxh3_64(topic.as_bytes()))
}
