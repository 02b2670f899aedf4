//! Ingest: turns a payload from a source into an event of its stream, or into a dead letter with the reason.
//!
//! Promise: when [`Ingest::accept`] returns [`Submitted`], the event is submitted to the writer of its lane. The source may
//! acknowledge it once it has the receipt.
//! Invariant: nothing here blocks, and ingest has no queue of its own.
//!
//! Not here: where events come from (`sources`), how they are stored (`journal`).

pub mod dead;
mod shares;
pub mod sparkplug;

use crate::api::LetterStage;
use crate::clock;
use crate::contract::{Contract, Contracts, Decode, Sender, SourceKind, TopicMatch};
use crate::event::{Attribute, AuthType, Id, Record, Timestamp, push_path_segment};
use crate::journal::{Condition, Durable, Journal, JournalError, Lane, Receipt, SubmitError, Ticket, Waiter};
use crate::memory::Budget;
use crate::secret::Secret;
use crate::telemetry::{self, Counter};
use arc_swap::ArcSwap;
use dead::DeadLetter;
use shares::{PartyId, Shares};

pub use shares::Pace;
use sparkplug::Sparkplug;
use std::borrow::Cow;
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
    /// Counters for metrics.
    pub stats: IngestStats,
}

/// Counters of ingest.
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

#[derive(Clone, Copy, Debug)]
struct StreamTarget {
    publication: u32,
    lane: usize,
}

/// Contract and origin for a topic of a client; valid until the contracts change.
#[derive(Debug)]
pub struct Route {
    target: Option<Target>,
    source: String,
    /// `{source}/{device}`.
    origin: String,
    topic: String,
    client: String,
    user: String,
    proven_by: Option<AuthType>,
    /// Whether an access rule of the source allows the sender this topic, or the sender may do everything.
    is_by_rule: bool,
    /// Whether the sender's authenticated name differs from the device's.
    is_for_another: bool,
    party: PartyId,
    pace: Option<Arc<Pace>>,
    generation: u64,
}

/// Publisher that a topic requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing<'r> {
    /// No contract matches the topic.
    Unmatched,
    /// The contract of this stream requires an authenticated name.
    By {
        /// Name of the stream.
        stream: &'r str,
        /// Required name.
        name: &'r str,
    },
    /// The contract of this stream requires no name.
    ByNobody {
        /// Name of the stream.
        stream: &'r str,
    },
}

#[derive(Debug)]
struct Target {
    contract: Arc<Contract>,
    captures: Vec<String>,
    placed: StreamTarget,
    mask_key: Arc<Secret>,
}

impl Route {
    /// Name of the sender, for people.
    fn sender(&self) -> &str {
        [&self.user, &self.client].into_iter().find(|name| !name.is_empty()).unwrap_or(&self.source)
    }

    /// Topic of the route.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Publisher that the topic requires.
    pub fn publishing(&self) -> Publishing<'_> {
        let Some(target) = &self.target else { return Publishing::Unmatched };
        let stream = target.contract.stream();
        match target.contract.publisher_in(&target.captures) {
            Some(name) => Publishing::By { stream, name },
            None => Publishing::ByNobody { stream },
        }
    }

    /// Whether the contract sets `publisher` and requires another name here.
    pub fn requires_other_publisher(&self, name: &str) -> bool {
        self.target.as_ref().is_some_and(|target| {
            let is_written = target.contract.publisher().is_some_and(|publisher| publisher.is_written);
            is_written && target.contract.publisher_in(&target.captures) != Some(name)
        })
    }

    /// Records that an access rule allows the sender this topic.
    pub fn allowed_by_rule(mut self) -> Self {
        self.is_by_rule = true;
        self
    }

    fn auth(&self) -> Option<Attribute<'_>> {
        let kind = self.proven_by.filter(|_| self.is_for_another)?;
        Some(Attribute::Auth { kind, name: &self.user })
    }

    /// Limits the rate of the sender.
    pub fn with_pace(mut self, pace: Option<&Arc<Pace>>) -> Self {
        self.pace = pace.cloned();
        self
    }

    /// Whether the sender has a rate limit. Its source then keeps events that must wait.
    pub fn is_paced(&self) -> bool {
        self.pace.is_some()
    }

    fn is_over_pace(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| !pace.wait(self.party).is_zero())
    }

    /// Approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let words = [&self.source, &self.origin, &self.topic, &self.client, &self.user];
        let captures = self.target.iter().flat_map(|target| &target.captures).map(|capture| capture.len() + 24);
        size_of::<Self>() + words.iter().map(|word| word.len()).sum::<usize>() + captures.sum::<usize>()
    }

    /// Appends `part` to the device of the origin, to distinguish the parts of a device.
    pub fn with_part(mut self, part: &str) -> Self {
        self.origin.push('/');
        push_path_segment(&mut self.origin, part);
        self
    }
}

/// Data of an event that its source provides in addition to the payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventMetadata<'a> {
    /// W3C trace context.
    pub trace_parent: Option<&'a str>,
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
    /// Id, used if the contract finds none in the payload. It has 1 to `ID_BYTES_MAX` bytes.
    pub id: Option<&'a str>,
    /// Time, used if the contract finds none in the payload.
    pub time: Option<Timestamp>,
    /// Key, used if the contract sets none. It has at most `KEY_BYTES_MAX` bytes.
    pub key: Option<&'a str>,
    /// Session and packet id of a QoS 2 exchange; session 0 needs no record of it.
    pub exchange: Option<(u64, u16)>,
}

impl<'a> EventMetadata<'a> {
    fn attributes(&self) -> Vec<Attribute<'a>> {
        let trace_parent = self.trace_parent.map(Attribute::TraceParent);
        trace_parent.into_iter().chain(self.content_type.map(Attribute::ContentType)).collect()
    }

    fn exchange(&self) -> Option<Attribute<'a>> {
        let (session, packet_id) = self.exchange.filter(|(session, _)| *session > 0)?;
        Some(Attribute::Exchange { session, packet_id })
    }
}

/// An accepted event whose write is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    lane: usize,
    ticket: Ticket,
    is_dead: bool,
    clock_offset: Option<i64>,
    /// Number of the Sparkplug save that must complete before the receipt; 0 for none.
    sparkplug_save: u64,
}

impl Submitted {
    /// Whether the event is durable, given the durable positions of all lanes, with the dead letters last.
    pub fn is_durable(&self, durable: &[Durable]) -> bool {
        durable.get(self.lane).is_some_and(|durable| durable.holds(self.ticket))
    }

    /// Whether the event became a dead letter.
    pub fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Offset of the time in the payload from the arrival, in microseconds, if the payload has a time.
    pub fn clock_offset(&self) -> Option<i64> {
        self.clock_offset
    }
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
        Route {
            target,
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

    /// Accepts an event. `now` is the time of arrival.
    pub fn accept(
        &self,
        route: &Route,
        payload: &[u8],
        metadata: EventMetadata<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        if route.is_over_pace() {
            return Err(SubmitError::NoRoom);
        }
        let taken = match &route.target {
            None => {
                let taken = self.dead_letter(route, "topic: no contract matches it", payload, metadata, now, waiter)?;
                self.stats.unmatched.add(1);
                taken
            }
            Some(target) if target.contract.decode == Some(Decode::SparkplugB) => {
                self.accept_sparkplug(route, target, payload, metadata, now, waiter)?
            }
            Some(target) => self.accept_json(route, target, payload, metadata, now, waiter)?,
        };
        route.pace.iter().for_each(|pace| pace.charge(route.party));
        Ok(taken)
    }

    /// Decodes the message, submits the event or dead letter, and only then updates the state of the node.
    fn accept_sparkplug(
        &self,
        route: &Route,
        target: &Target,
        payload: &[u8],
        metadata: EventMetadata<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let Some(sparkplug) = self.sparkplug() else {
            // `apply` has created it for this contract.
            return self.accept_json(route, target, payload, metadata, now, waiter);
        };
        let decoded = sparkplug.decode(&route.source, &route.topic, payload);
        let metadata = EventMetadata { content_type: None, ..metadata };
        let mut taken = match &decoded.json {
            Ok(json) => self.accept_json(route, target, json, metadata, now, waiter)?,
            Err(reason) => {
                let taken = self.dead_letter(route, reason, payload, metadata, now, waiter)?;
                self.stats.violations.add(1);
                sparkplug.stats.refused.add(1);
                taken
            }
        };
        if let Some(change) = decoded.change {
            taken.sparkplug_save = sparkplug.apply(change, route.sender(), || waiter.bell());
        }
        Ok(taken)
    }

    /// State of the Sparkplug nodes, if a contract decodes Sparkplug.
    pub fn sparkplug(&self) -> Option<&Sparkplug> {
        self.sparkplug.get()
    }

    /// Makes a dead letter of an event that its source cannot accept; `reason` starts with the field.
    pub fn refuse(
        &self,
        route: &Route,
        reason: &str,
        payload: &[u8],
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let taken = self.dead_letter(route, reason, payload, EventMetadata::default(), now, waiter)?;
        self.stats.violations.add(1);
        Ok(taken)
    }

    /// Checks a payload against the schema of the current contract of a stream.
    pub fn check_payload(&self, stream_id: &str, payload: &[u8]) -> Result<(), String> {
        let in_force = self.in_force.load();
        let found = in_force.contracts.iter().find(|contract| contract.publication.stream_id() == stream_id);
        let contract = found.ok_or_else(|| format!("no contract of stream \"{stream_id}\" is in force"))?;
        contract.check_payload(payload)
    }

    /// Reason why a payload cannot be submitted again on a route, if there is one.
    pub fn requeue_obstacle(&self, route: &Route, payload: &[u8]) -> Option<String> {
        let Some(target) = &route.target else {
            return Some(format!("topic: no contract matches \"{}\"", route.topic));
        };
        if target.contract.decode.is_some() {
            return Some(
                "its contract decodes Sparkplug B, and the state of the node has changed since; request a rebirth of the node".into(),
            );
        }
        target.contract.read(&target.captures, payload, target.mask_key.bytes()).err().map(|violation| violation.reason)
    }

    fn accept_json(
        &self,
        route: &Route,
        target: &Target,
        payload: &[u8],
        metadata: EventMetadata<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let reading = match target.contract.read(&target.captures, payload, target.mask_key.bytes()) {
            Ok(reading) => reading,
            Err(violation) => {
                let taken = self.dead_letter(route, &violation.reason, &violation.payload, metadata, now, waiter)?;
                self.stats.violations.add(1);
                return Ok(taken);
            }
        };
        let mut attributes = metadata.attributes();
        attributes.extend(route.auth());
        attributes.extend(reading.violation.as_deref().map(Attribute::Violation));
        attributes.extend((!clock::is_trusted()).then_some(Attribute::ClockStatus("untrusted")));
        attributes.extend(metadata.exchange());
        let given = reading.id.as_deref().or(metadata.id);
        let id = match given {
            Some(id) => Id::Text(id),
            None => Id::mint(),
        };
        let key = metadata.key.filter(|_| !target.contract.has_own_key).unwrap_or(&reading.key);
        let record = Record {
            publication: target.placed.publication,
            id,
            time: reading.time.or(metadata.time).unwrap_or(now),
            origin: &route.origin,
            key,
            content: reading.content,
            attributes,
            payload: &reading.payload,
        };
        let (index, lane) = (target.placed.lane, self.lanes(target.placed.lane));
        if !self.shares.has_share(index, lane, route.party) {
            self.note_slowed(index, lane, route);
            return Err(SubmitError::NoRoom);
        }
        let ticket = lane.submit(&record, target.contract.dedupe, waiter)?;
        self.shares.add(index, route.party, record.payload.len() + record.key.len() + record.origin.len());
        if let Some(span) = telemetry::follow(&record.id) {
            let stream = target.contract.stream();
            span.in_scope(|| tracing::debug!(target: telemetry::FOLLOW, source = %route.origin, stream, "taken in"));
        }
        if reading.violation.is_some() {
            self.stats.flagged.add(1);
        }
        let clock_offset = reading.time.map(|time| time.0.saturating_sub(now.0));
        Ok(Submitted { lane: target.placed.lane, ticket, is_dead: false, clock_offset, sparkplug_save: 0 })
    }

    fn dead_letter(
        &self,
        route: &Route,
        reason: &str,
        payload: &[u8],
        metadata: EventMetadata<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let target = route.target.as_ref();
        let (stream, version) = target.map_or(("unmatched", ""), |target| {
            (target.contract.stream(), target.contract.publication.version.as_str())
        });
        let letter = DeadLetter {
            stage: LetterStage::Intake,
            reason: Cow::Borrowed(reason),
            stream: Cow::Borrowed(stream),
            version: Cow::Borrowed(version),
            topic: Cow::Borrowed(&route.topic),
            origin: Cow::Borrowed(&route.origin),
            event_id: metadata.id.unwrap_or_default().to_owned(),
            key: Cow::Borrowed(metadata.key.unwrap_or_default()),
            sequence: 0,
            time: metadata.time.unwrap_or(now),
            first_attempt: now,
            last_attempt: now,
            attempts: 0,
            destination: Cow::Borrowed(""),
            client: Cow::Borrowed(&route.client),
            user: Cow::Borrowed(&route.user),
            authtype: route.proven_by,
            is_by_rule: route.is_by_rule,
            taken: None,
            is_opaque: false,
            payload: Cow::Borrowed(payload),
        };
        let publication = target.map_or(0, |target| target.placed.publication);
        // A requeue needs all data that the source provided.
        let mut attributes = metadata.attributes();
        attributes.extend(metadata.exchange());
        let log = self.journal.dead();
        if !self.shares.has_dead_share(log, route.party) {
            self.note_slowed(self.journal.lanes().len(), log, route);
            return Err(SubmitError::NoRoom);
        }
        let ticket = letter.submit(log, publication, attributes, waiter)?;
        self.shares.add_dead(log, route.party, payload.len());
        Ok(Submitted { lane: self.journal.lanes().len(), ticket, is_dead: true, clock_offset: None, sparkplug_save: 0 })
    }

    fn lanes(&self, index: usize) -> &Arc<Lane> {
        self.journal.lanes().get(index).unwrap_or(self.journal.dead())
    }

    /// Whether the lane of a route accepts events of its sender, with the reason if not.
    pub fn condition(&self, route: &Route) -> Condition {
        let Some(Target { placed, .. }) = &route.target else {
            let log = self.journal.dead();
            let has_share = self.shares.has_dead_share(log, route.party);
            let why = || self.shares.why(self.journal.lanes().len(), log, route.party, route.sender());
            return if has_share { log.condition() } else { Condition::Full(why()) };
        };
        let lane = self.lanes(placed.lane);
        match lane.condition() {
            Condition::Good if !self.shares.has_share(placed.lane, lane, route.party) => {
                Condition::Full(self.shares.why(placed.lane, lane, route.party, route.sender()))
            }
            condition => condition,
        }
    }

    /// Whether a lane accepts events, with the reason if not. It also counts as full if some parties have used up their
    /// share.
    pub fn condition_of(&self, lane: &Lane) -> Condition {
        let index = self.journal.lanes().iter().position(|known| known.name == lane.name);
        match lane.condition() {
            Condition::Good => {
                let why = self.shares.slowed(index.unwrap_or(self.journal.lanes().len()), lane);
                why.map_or(Condition::Good, Condition::Full)
            }
            condition => condition,
        }
    }

    fn note_slowed(&self, index: usize, lane: &Lane, route: &Route) {
        if self.shares.note_slowed(index, route.party, route.sender()) {
            let why = self.shares.why(index, lane, route.party, route.sender());
            tracing::warn!(lane = %lane.name, "slowing down a sender: {why}");
        }
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

    /// The journal that stores the events.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Whether the journal is closed: events without a receipt will never get one.
    pub fn is_closed(&self) -> bool {
        self.journal.dead().is_closed()
    }

    /// Waits until the lane of a route may have room for its sender. Cancel safe.
    pub async fn room(&self, route: &Route) {
        // There is no wake-up when central settles events or a share grows.
        const RECHECK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);
        if let Some(pace) = &route.pace {
            tokio::time::sleep(pace.wait(route.party)).await;
        }
        let dead = self.journal.dead();
        if !self.shares.has_dead_share(dead, route.party) {
            // The share grows slowly, and the waiting event may become no dead letter.
            tokio::time::sleep(RECHECK_INTERVAL).await;
        }
        let Some(target) = &route.target else { return dead.room().await };
        let lane = self.lanes(target.placed.lane);
        while !self.shares.has_share(target.placed.lane, lane, route.party) {
            // The last event may have met a lane without room, so the used-up share may not be noted yet.
            self.note_slowed(target.placed.lane, lane, route);
            tokio::time::sleep(RECHECK_INTERVAL).await;
        }
        lane.room().await;
    }
}
