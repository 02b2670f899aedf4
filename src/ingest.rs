//! Ingest: turns a payload from a source into an event of its stream, or into a dead letter with the reason.
//!
//! Promise: when [`Producer::submit`] returns [`Submitted`], the event is submitted to the writer of its lane. The source may
//! acknowledge it once it has the receipt.
//! Invariant: nothing here blocks, and ingest has no queue of its own.
//!
//! Not here: where events come from (`sources`), how they are stored (`journal`).

mod accept;
mod cloudevents;
pub mod dead;
mod producer;
mod room;
mod route;
mod shares;
pub mod sparkplug;
mod stored;
mod submission;

pub use crate::journal::{Change, Condition, Durable, JournalError, Note, Notes, SubmitError, Waiter};
pub use cloudevents::{Attributes, CloudEvent, NO_DATA};
pub use producer::Producer;
pub use route::{Publishing, Route};
pub use shares::Pace;
pub use stored::{StoredEvents, StoredLog};
pub use submission::{Accepted, Closed, EventMetadata, MEDIA_TYPE_BYTES_MAX, Submission, Submitted};

use crate::contract::{Contracts, Sender, SourceKind, TopicMatch};
use crate::event::push_path_segment;
use crate::journal::{Journal, Lane, Receipt};
use crate::memory::Budget;
use crate::mqtt::properties::PublishProperties;
use crate::secret::Secret;
use crate::telemetry::Counter;
use arc_swap::ArcSwap;
use route::{StreamTarget, Target};
use shares::Shares;
use sparkplug::Sparkplug;
use std::sync::{Arc, OnceLock};

/// Entry point for the events of every source.
#[derive(Debug)]
pub struct Ingest {
    /// Set once a contract decodes Sparkplug. Dropped before the journal, so its notes are written.
    sparkplug: OnceLock<Sparkplug>,
    journal: Arc<Journal>,
    in_force: ArcSwap<InForce>,
    /// Memory budget, which includes the state of Sparkplug nodes.
    budget: Arc<Budget>,
    shares: Shares,
    pub stats: IngestStats,
}

#[derive(Debug, Default)]
pub struct IngestStats {
    /// Events that broke their contract and became dead letters.
    pub violations: Counter,
    /// Events that became dead letters because no contract matches.
    pub unmatched: Counter,
    /// Events that broke their contract and are delivered with a mark.
    pub flagged: Counter,
}

#[derive(Debug, Default)]
struct InForce {
    contracts: Contracts,
    /// Publication and lane by stream id.
    placed: Vec<(String, StreamTarget)>,
    /// Key for the hashes of masked fields.
    mask_key: Arc<Secret>,
    generation: u64,
}

impl Ingest {
    /// Creates the ingest of a journal with these contracts.
    pub fn new(
        journal: Arc<Journal>,
        contracts: Contracts,
        mask_key: Secret,
        budget: Arc<Budget>,
    ) -> Result<Self, JournalError> {
        let ingest = Self {
            sparkplug: OnceLock::new(),
            shares: Shares::new(journal.lanes().len()),
            journal,
            in_force: ArcSwap::default(),
            budget,
            stats: IngestStats::default(),
        };
        ingest.apply(contracts, mask_key)?;
        Ok(ingest)
    }

    /// Replaces the contracts. Events accepted earlier keep the contract version of that time.
    pub fn apply(&self, contracts: Contracts, mask_key: Secret) -> Result<(), JournalError> {
        let mut placed = Vec::new();
        if self.sparkplug.get().is_none() && contracts.iter().any(|contract| contract.decode.is_some()) {
            // If another thread was faster, its state is the same.
            let _ = self.sparkplug.set(Sparkplug::open(&self.journal, &self.budget)?);
        }
        for contract in contracts.iter() {
            let publication = self.journal.publish(&contract.publication)?;
            let lanes = self.journal.lanes();
            // `Contracts::load` has rejected lanes that do not exist.
            let lane = lanes.iter().position(|lane| lane.name == contract.publication.lane).unwrap_or(0);
            placed.push((contract.publication.stream_id(), StreamTarget { publication, lane }));
        }
        let generation = self.in_force.load().generation + 1;
        self.in_force.store(Arc::new(InForce { contracts, placed, mask_key: Arc::new(mask_key), generation }));
        Ok(())
    }

    /// Finds the contract for a topic of a sender, and the origin of its events.
    pub fn route(&self, kind: SourceKind, source: &str, topic: &str, sender: Sender<'_>) -> Route {
        let in_force = self.in_force.load();
        let matched = in_force.contracts.find(kind, source, topic, sender);
        let device = match &matched {
            Some(TopicMatch { contract, captures }) => contract.device(captures),
            None => sender.client.to_owned(),
        };
        let mut origin = String::new();
        push_path_segment(&mut origin, source);
        origin.push('/');
        push_path_segment(&mut origin, &device);
        origin.shrink_to_fit();
        let target = matched.and_then(|TopicMatch { contract, captures }| {
            let stream = contract.publication.stream_id();
            let placed = in_force.placed.iter().find(|(name, _)| *name == stream)?.1;
            Some(Target { contract, captures, placed, mask_key: Arc::clone(&in_force.mask_key) })
        });
        let nearest = if target.is_none() { in_force.contracts.nearest(kind, source, topic) } else { None };
        Route {
            target,
            nearest,
            source: source.to_owned(),
            origin,
            topic: topic.to_owned(),
            client: sender.client.to_owned(),
            user: sender.user.to_owned(),
            proven_by: sender.proven_by,
            is_by_rule: false,
            is_for_another: device != sender.user,
            party: self.shares.party(source, if sender.user.is_empty() { sender.client } else { sender.user }),
            pace: None,
            generation: in_force.generation,
        }
    }

    /// Topic filters for the events and commands of a name, at central and on the gateway.
    pub fn filters_of_key(&self, name: &str) -> Vec<String> {
        self.in_force.load().contracts.filters_of_key(name)
    }

    /// Whether the contract for the topic `part` does not match the topic `whole`.
    pub fn has_separate_contract(&self, kind: SourceKind, source: &str, part: &str, whole: &str) -> bool {
        let matched = self.in_force.load().contracts.find(kind, source, part, Sender::default());
        matched.is_some_and(|matched| !matched.contract.takes(whole))
    }

    /// Whether the contracts have not changed since the route was made.
    pub fn is_current(&self, route: &Route) -> bool {
        self.in_force.load().generation == route.generation
    }

    /// State of the Sparkplug nodes, if a contract decodes Sparkplug.
    pub fn sparkplug(&self) -> Option<&Sparkplug> {
        self.sparkplug.get()
    }

    /// Checks a payload against the schema of the current contract of a stream.
    pub fn check_payload(&self, stream_id: &str, payload: &[u8]) -> Result<(), String> {
        let in_force = self.in_force.load();
        let found = in_force.contracts.iter().find(|contract| contract.publication.stream_id() == stream_id);
        let contract = found.ok_or_else(|| format!("no contract of stream \"{stream_id}\" is in force"))?;
        contract.check_payload(payload)
    }

    /// Reason why an event cannot be submitted again, if there is one.
    pub fn requeue_obstacle(&self, submission: &Submission<'_>) -> Option<String> {
        let &Submission { route, payload, ref metadata, arrived, .. } = submission;
        let Some(target) = &route.target else {
            return Some(format!("topic: no contract matches \"{}\"{}", route.topic, route.hint()));
        };
        if target.contract.decode.is_some() {
            return Some(
                "its contract decodes Sparkplug B, and the state of the node has changed since; request a rebirth of the node".into(),
            );
        }
        let cloud_event = match CloudEvent::of_publish(metadata, payload).transpose() {
            Ok(event) => event,
            Err(reason) => return Some(reason),
        };
        let payload = cloud_event.as_ref().map_or(payload, |event| &event.payload);
        let read = target.contract.read(&target.captures, payload, target.mask_key.bytes());
        let properties = PublishProperties::read(metadata.properties.unwrap_or_default());
        let kept = target.contract.kept_properties(&properties, arrived);
        read.err().map(|violation| violation.reason).or(kept.err())
    }

    fn lanes(&self, index: usize) -> &Arc<Lane> {
        self.journal.lanes().get(index).unwrap_or(self.journal.dead())
    }

    /// Receipt of an event, if it is durable.
    pub fn receipt(&self, taken: &Submitted) -> Option<Receipt> {
        if taken.sparkplug_save > 0
            && self.sparkplug().is_some_and(|sparkplug| !sparkplug.is_saved(taken.sparkplug_save))
        {
            return None;
        }
        self.lanes(taken.lane).receipt(taken.ticket)
    }

    pub fn stored(&self) -> StoredEvents {
        StoredEvents::new(Arc::clone(&self.journal))
    }

    /// Whether the journal is closed: events without a receipt will never get one.
    pub fn is_closed(&self) -> bool {
        self.journal.dead().is_closed()
    }
}
