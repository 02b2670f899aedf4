//! Sparkplug B: decodes messages of edge nodes and devices to JSON that a contract can read.
//!
//! Promise: a value never gets the name or type of another metric. A message with an ambiguous or unknown metric
//! becomes a dead letter that names the alias, and the gateway requests a rebirth of the node where that is allowed.
//! The protocol leaves one gap: data does not say to which birth it belongs. If a node was reborn while the gateway was
//! down, its aliases are resolved with the earlier birth until the requested rebirth arrives.
//! Invariants:
//! - a birth certificate is acknowledged only after its declarations are on disk, so data can be decoded after any
//!   restart;
//! - the state of nodes and the message being read are bounded in bytes ([`nodes::Bounds`]), per node, per sender and
//!   in total;
//! - a rejected birth deletes the declarations of the birth before it;
//! - decoding changes no state; [`Sparkplug::apply`] does, once the event is submitted to the journal.
//!
//! Not here: the meaning of the JSON (`contract`), sending rebirth requests (`sources`).

mod change;
mod declared;
mod json;
mod message;
mod nodes;
mod notes;
mod output;
mod payload;
pub mod proto;
mod saver;
mod value;
mod weight;

use crate::clock;
use crate::journal::{Journal, JournalError, WaiterHandle};
use crate::memory::{Budget, Permit};
use crate::telemetry::{Counter, Limiter};
pub use change::StateChange;
use change::{ChangeKind, apply_to_node};
use declared::Declared;
use message::{DecodeError, MessageKind, MessageTopic, parse_topic};
use nodes::{Bounds, Evicted, NodeKey, Nodes};
use notes::{LastNode, Stale};
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use proto::{Metric, MetricValue, Payload};
use saver::Saver;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of waiting rebirth requests per source: a minute's work, and 1 MB.
const REBIRTH_REQUESTS_MAX: usize = 1000;
/// Part name of the notes.
const NOTES_PART: &str = "sparkplug";

/// Decoder with the state of every edge node.
#[derive(Debug)]
pub struct Sparkplug {
    nodes: Arc<Mutex<Nodes>>,
    saver: Saver,
    /// Memory for the message being read, one at a time.
    reading: Mutex<Permit>,
    /// Waiting rebirth requests by source. Only sources that may send them have an entry.
    requests: Mutex<HashMap<String, VecDeque<RebirthRequest>>>,
    warnings: Limiter,
    pub stats: Stats,
}

#[derive(Debug, Default)]
pub struct Stats {
    /// Sequence gaps: messages lost on the way to the gateway.
    pub gaps: Counter,
    /// Messages that could not be decoded.
    pub refused: Counter,
    pub asked: Counter,
    /// Evictions of a node's declarations for lack of memory.
    pub forgotten: Counter,
}

/// An NCMD message that requests a rebirth of an edge node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebirthRequest {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// Result of decoding a message.
#[derive(Debug)]
pub struct Decoded {
    /// JSON, or the reason for its absence, starting with the field.
    pub json: Result<Vec<u8>, String>,
    /// Change of the node's state, to apply once the event is accepted.
    pub change: Option<StateChange>,
}

impl Sparkplug {
    /// Restores the declarations of earlier births. Their memory is part of the budget.
    pub fn open(journal: &Journal, budget: &Arc<Budget>) -> Result<Self, JournalError> {
        let notes = journal.notes(NOTES_PART);
        let mut nodes = Nodes::new(Permit::empty(budget));
        let (mut last, mut unread) = (LastNode::default(), Vec::new());
        notes.each("", |name, note| {
            if !nodes.restore(&mut last, name, note) {
                unread.push((name.to_owned(), None));
            }
        })?;
        if !unread.is_empty() {
            let (count, allowed) = (unread.len(), nodes.bounds().all);
            tracing::warn!(
                count,
                allowed,
                "removing Sparkplug notes of another version, or above the memory limit; a rebirth of their nodes will be requested"
            );
            if let Err(error) = notes.write(unread) {
                tracing::warn!(%error, "could not remove Sparkplug notes; will retry at the next start");
            }
        }
        let mut reading = Permit::empty(budget);
        reserve(&mut reading, nodes.bounds());
        let nodes = Arc::new(Mutex::new(nodes));
        Ok(Self {
            saver: Saver::start(notes, Arc::clone(&nodes)),
            nodes,
            reading: Mutex::new(reading),
            requests: Mutex::default(),
            warnings: Limiter::new(Duration::from_secs(60)),
            stats: Stats::default(),
        })
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock()
    }

    fn requests(&self) -> MutexGuard<'_, HashMap<String, VecDeque<RebirthRequest>>> {
        self.requests.lock()
    }

    /// Number of known edge nodes.
    pub fn node_count(&self) -> usize {
        self.nodes().len()
    }

    /// Memory used by their state, in bytes.
    pub fn bytes(&self) -> usize {
        self.nodes().bytes()
    }

    /// Decodes a message. Changes no state, so a message may be decoded again if there was no room for its event.
    pub fn decode(&self, source: &str, topic: &str, payload: &[u8]) -> Decoded {
        if let Some(host) = topic.strip_prefix("spBv1.0/STATE/").or_else(|| topic.strip_prefix("STATE/")) {
            let bytes_max = self.nodes().bounds().json;
            return Decoded { json: payload::host_state(host, payload, bytes_max), change: None };
        }
        let mut reading = self.reading.lock();
        let topic = match parse_topic(topic) {
            Ok(topic) => topic,
            Err(error) => return Decoded { json: Err(error.reason), change: None },
        };
        let key = NodeKey { source: source.to_owned(), group: topic.group.to_owned(), node: topic.node.to_owned() };
        let mut seq = None;
        // The lock is released before the message is decoded.
        let bounds = self.nodes().bounds();
        reserve(&mut reading, bounds);
        let read = payload::decode(payload, bounds.message).and_then(|message| {
            let has_number = (topic.kind, topic.device) != (MessageKind::Death, None);
            seq = message.seq.filter(|_| has_number).map(|seq| (seq & 0xFF) as u8);
            self.read(&key, &topic, &message)
        });
        let (json, kind, needs_rebirth) = match read {
            Ok((json, kind)) => (Ok(json), kind, false),
            Err(error) if topic.kind == MessageKind::Birth => {
                (Err(error.reason.clone()), ChangeKind::RefusedBirth(error.reason), false)
            }
            Err(error) => (Err(error.reason), ChangeKind::Data, error.needs_rebirth),
        };
        let change = (topic.kind != MessageKind::Command).then(|| StateChange {
            key,
            device: topic.device.map(str::to_owned),
            kind,
            seq,
            needs_rebirth,
        });
        Decoded { json, change }
    }

    fn read(
        &self,
        key: &NodeKey,
        topic: &MessageTopic<'_>,
        message: &Payload,
    ) -> Result<(Vec<u8>, ChangeKind), DecodeError> {
        let nodes = self.nodes();
        // A birth certificate does not depend on earlier declarations.
        let node = if topic.kind == MessageKind::Birth { None } else { nodes.find(key) };
        let declared = node.and_then(|node| node.declared(topic.device));
        let metrics = json::resolve(&message.metrics, declared, topic)?;
        let json = json::message(topic, message, &metrics, nodes.bounds().json)?;
        let bd_seq = || {
            let metric = message.metrics.iter().find(|metric| metric.name.as_deref() == Some("bdSeq"))?;
            match metric.value {
                Some(MetricValue::Long(number)) => Some(number),
                Some(MetricValue::Int(number)) => Some(number.into()),
                _ => None,
            }
        };
        let born = || {
            let declared = Declared::born(&metrics).map_err(DecodeError::wrong)?;
            match nodes.excess(key, topic.device, &declared) {
                None => Ok(declared),
                Some(bytes) => Err(DecodeError::wrong(format!(
                    "metrics: with this birth of {topic} its node takes {bytes} bytes of memory; {} are allowed for a node, a hundred and twenty-eighth of the setting memory",
                    nodes.bounds().node
                ))),
            }
        };
        let kind = match (topic.kind, topic.device) {
            (MessageKind::Birth, None) => ChangeKind::NodeBirth { declared: born()?, bd_seq: bd_seq() },
            (MessageKind::Birth, Some(_)) => ChangeKind::DeviceBirth(born()?),
            (MessageKind::Death, None) => ChangeKind::NodeDeath { bd_seq: bd_seq() },
            (MessageKind::Death, Some(_)) => ChangeKind::DeviceDeath,
            (MessageKind::Data | MessageKind::Command, _) => ChangeKind::Data,
        };
        Ok((json, kind))
    }

    /// Applies the change of a message of `sender`. Returns a number for [`Sparkplug::is_saved`]; the bell rings when
    /// that save is on disk. Returns 0 if there is nothing to save.
    pub fn apply(&self, change: StateChange, sender: &str, bell: impl FnOnce() -> WaiterHandle) -> u64 {
        let now = clock::instant();
        let StateChange { key, device, kind, seq, needs_rebirth } = change;
        let is_node_birth = matches!(kind, ChangeKind::NodeBirth { .. });
        // Sequence numbers restart with the birth of a node, even if the birth is rejected.
        let restarts_seq = is_node_birth || matches!(kind, ChangeKind::RefusedBirth(_)) && device.is_none();
        if let ChangeKind::RefusedBirth(reason) = &kind {
            self.warn_of_refusal(&key, sender, reason);
        }
        let sender = format!("{}\0{sender}", key.source);
        let mut nodes = self.nodes();
        let (gap, saves, may_request) = nodes.update(&key, &sender, is_node_birth, |node| {
            // A repeated number is a repeated message.
            let follows = |last: u8| seq.is_none_or(|seq| seq == last || seq == last.wrapping_add(1));
            let gap = node.seq.filter(|last| !restarts_seq && !follows(*last)).map(|last| last.wrapping_add(1));
            node.seq = if restarts_seq { seq } else { seq.or(node.seq) };
            let was_empty = node.is_empty();
            let (saves, misses_birth) = apply_to_node(node, kind, device);
            // Notes of devices are valid only with a note of their node.
            let saves = saves.map(|stale| stale.map(|stale| if was_empty { Stale::All } else { stale }));
            let needs_rebirth = needs_rebirth || misses_birth || gap.is_some();
            (gap, saves, needs_rebirth && self.has_room_for_request(&key.source) && node.may_request(now))
        });
        let evicted = nodes.enforce_bounds(&key);
        // Under the lock, before another message finds nothing to wait for.
        evicted.iter().for_each(|one| self.saver.forget(Arc::clone(&one.key)));
        let saved = saves.map_or(0, |stale| self.saver.save(Arc::new(key.clone()), stale, bell));
        drop(nodes);
        if let Some(expected) = gap {
            self.stats.gaps.add(1);
            if let Some(held_back) = self.warnings.allow(now) {
                tracing::warn!(
                    source = key.source,
                    group = key.group,
                    node = key.node,
                    expected,
                    seq,
                    held_back,
                    "Sparkplug messages were lost on the way to the gateway"
                );
            }
        }
        if may_request {
            self.request_rebirth(&key);
        }
        for one in evicted {
            self.report_eviction(one);
        }
        saved
    }

    fn report_eviction(&self, Evicted { key, allowed, bound }: Evicted) {
        self.stats.forgotten.add(1);
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(
                source = key.source,
                group = key.group,
                node = key.node,
                bound,
                allowed,
                held_back,
                "evicted the declarations of a Sparkplug node, since others need the memory; its aliases are unknown until its next birth; see the setting memory"
            );
        }
    }

    fn warn_of_refusal(&self, key: &NodeKey, sender: &str, reason: &str) {
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(
                source = key.source,
                group = key.group,
                node = key.node,
                sender,
                reason,
                held_back,
                "rejected a Sparkplug birth; it became a dead letter"
            );
        }
    }

    /// Whether the save with a number from [`Sparkplug::apply`] is on disk.
    pub fn is_saved(&self, number: u64) -> bool {
        self.saver.saved() >= number
    }

    /// Allows a source to request rebirths.
    pub fn allow_asking(&self, source: &str) {
        self.requests().entry(source.to_owned()).or_default();
    }

    /// Returns the next rebirth request of a source.
    pub fn next_ask(&self, source: &str) -> Option<RebirthRequest> {
        let request = self.requests().get_mut(source)?.pop_front()?;
        self.stats.asked.add(1);
        Some(request)
    }

    /// Whether a source may request rebirths and has room for another request.
    fn has_room_for_request(&self, source: &str) -> bool {
        self.requests().get(source).is_some_and(|requests| requests.len() < REBIRTH_REQUESTS_MAX)
    }

    fn request_rebirth(&self, key: &NodeKey) {
        let rebirth = Metric {
            name: Some("Node Control/Rebirth".into()),
            datatype: Some(value::BOOLEAN),
            value: Some(MetricValue::Boolean(true)),
            ..Metric::default()
        };
        let millis = clock::wall().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let payload = Payload {
            timestamp: Some(u64::try_from(millis).unwrap_or(u64::MAX)),
            metrics: vec![rebirth],
            ..Payload::default()
        };
        let topic = format!("spBv1.0/{}/NCMD/{}", key.group, key.node);
        if let Some(requests) = self.requests().get_mut(&key.source)
            && requests.iter().all(|request| request.topic != topic)
        {
            requests.push_back(RebirthRequest { topic, payload: payload.encode_to_vec() });
        }
    }
}

/// Reserves memory for one message and its JSON. If there is none, the message is decoded all the same, since there is
/// only one at a time; the next message tries again.
fn reserve(reading: &mut Permit, bounds: Bounds) {
    let bytes = bounds.message + bounds.json;
    if reading.bytes() != bytes {
        let _ = reading.resize(bytes);
    }
}
