//! Ingest: a raw fact becomes an event of its stream, or a dead letter that says why not.
//!
//! Promise: whatever a source hands in is on its way to the disk when [`Ingest::accept`] returns a
//! [`Taken`]; its receipt is what the source needs before it may acknowledge.
//! Invariant: nothing here blocks, and nothing waits in a queue of its own.
//!
//! Not here: where facts come from (`sources`), what the disk does (`journal`).

pub mod dead;
mod shares;
pub mod sparkplug;

use crate::clock;
use crate::contract::{Contract, Contracts, Decode, TopicMatch, Sender, SourceKind};
use crate::event::{Attribute, AuthType, Id, Record, Timestamp, push_path_segment};
use crate::journal::{Condition, Durable, Journal, JournalError, Lane, NotTaken, Receipt, Ticket, Waiter};
use crate::memory::Budget;
use crate::secret::Secret;
use crate::telemetry::{self, Counter};
use arc_swap::ArcSwap;
use dead::DeadLetter;
use shares::{Party, Shares};

pub use shares::Pace;
use sparkplug::Sparkplug;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// The door for every source.
#[derive(Debug)]
pub struct Ingest {
    /// Once a contract wants it. Dropped before the journal, so that its notes are written.
    sparkplug: OnceLock<Sparkplug>,
    journal: Arc<Journal>,
    in_force: ArcSwap<InForce>,
    /// What Sparkplug nodes make the gateway remember is a part of it.
    budget: Arc<Budget>,
    shares: Shares,
    /// What it counts.
    pub stats: IngestStats,
}

/// What ingest counts.
#[derive(Debug, Default)]
pub struct IngestStats {
    /// Events that broke their contract and became dead letters.
    pub violations: Counter,
    /// Events that no contract matches, and so became dead letters.
    pub unmatched: Counter,
    /// Events that broke their contract and are delivered all the same.
    pub flagged: Counter,
}

#[derive(Debug, Default)]
struct InForce {
    contracts: Contracts,
    /// By the stream's name and major version: publication and lane.
    placed: Vec<(String, Placed)>,
    /// What masked fields are hashed with.
    mask_key: Arc<Secret>,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    publication: u32,
    lane: usize,
}

/// Where a topic of a client leads; the same until the contracts change.
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
    /// Whether a rule of the source allows the sender this topic, or the sender may do everything.
    is_by_rule: bool,
    /// Whether the sender's proven name is another one than the device's.
    is_for_another: bool,
    party: Party,
    pace: Option<Arc<Pace>>,
    generation: u64,
}

/// Whom a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing<'r> {
    /// No contract matches it.
    Unmatched,
    /// The contract of this stream says that who publishes here is called so.
    By {
        /// Name of the stream.
        stream: &'r str,
        /// The name.
        name: &'r str,
    },
    /// The contract of this stream names nobody.
    ByNobody {
        /// Name of the stream.
        stream: &'r str,
    },
}

#[derive(Debug)]
struct Target {
    contract: Arc<Contract>,
    captures: Vec<String>,
    placed: Placed,
    mask_key: Arc<Secret>,
}

impl Route {
    /// Who hands in, as people know it.
    fn sender(&self) -> &str {
        [&self.user, &self.client].into_iter().find(|name| !name.is_empty()).unwrap_or(&self.source)
    }

    /// The topic that leads here.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Whom the topic is for.
    pub fn publishing(&self) -> Publishing<'_> {
        let Some(target) = &self.target else { return Publishing::Unmatched };
        let stream = target.contract.stream();
        match target.contract.publisher_in(&target.captures) {
            Some(name) => Publishing::By { stream, name },
            None => Publishing::ByNobody { stream },
        }
    }

    /// Whether the contract says itself who publishes here, and says that it is somebody else.
    pub fn is_written_for_another(&self, name: &str) -> bool {
        self.target.as_ref().is_some_and(|target| {
            let is_written = target.contract.publisher().is_some_and(|publisher| publisher.is_written);
            is_written && target.contract.publisher_in(&target.captures) != Some(name)
        })
    }

    /// Notes that a rule allows the sender this topic.
    pub fn by_rule(mut self) -> Self {
        self.is_by_rule = true;
        self
    }

    fn auth(&self) -> Option<Attribute<'_>> {
        let kind = self.proven_by.filter(|_| self.is_for_another)?;
        Some(Attribute::Auth { kind, name: &self.user })
    }

    /// Has its sender keep to a pace.
    pub fn paced(mut self, pace: Option<&Arc<Pace>>) -> Self {
        self.pace = pace.cloned();
        self
    }

    /// Whether its sender has a pace to keep to, and so loses nothing that has to wait.
    pub fn is_paced(&self) -> bool {
        self.pace.is_some()
    }

    fn is_over_pace(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| !pace.wait(self.party).is_zero())
    }

    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        let words = [&self.source, &self.origin, &self.topic, &self.client, &self.user];
        let captures = self.target.iter().flat_map(|target| &target.captures).map(|capture| capture.len() + 24);
        size_of::<Self>() + words.iter().map(|word| word.len()).sum::<usize>() + captures.sum::<usize>()
    }

    /// Tells the events of one device apart by where in it they come from: `part` goes behind the device.
    pub fn beneath(mut self, part: &str) -> Self {
        self.origin.push('/');
        push_path_segment(&mut self.origin, part);
        self
    }
}

/// What a source says of an event beside its payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// W3C trace context.
    pub trace_parent: Option<&'a str>,
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
    /// The event's id, where the contract finds none in the payload. It has 1 to `ID_BYTES_MAX` bytes.
    pub id: Option<&'a str>,
    /// When it happened, where the contract finds no time in the payload.
    pub time: Option<Timestamp>,
    /// What order is kept for, where the contract names no key. It has at most `KEY_BYTES_MAX` bytes.
    pub key: Option<&'a str>,
    /// Session and packet id of a QoS 2 exchange; session 0 has nothing to remember.
    pub exchange: Option<(u64, u16)>,
}

impl<'a> Beside<'a> {
    fn attributes(&self) -> Vec<Attribute<'a>> {
        let trace_parent = self.trace_parent.map(Attribute::TraceParent);
        trace_parent.into_iter().chain(self.content_type.map(Attribute::ContentType)).collect()
    }

    fn exchange(&self) -> Option<Attribute<'a>> {
        let (session, packet_id) = self.exchange.filter(|(session, _)| *session > 0)?;
        Some(Attribute::Exchange { session, packet_id })
    }
}

/// An event on its way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    lane: usize,
    ticket: Ticket,
    is_dead: bool,
    clock_offset: Option<i64>,
    /// What has to be saved beside the event; 0 for nothing.
    beside: u64,
}

impl Taken {
    /// Whether it is on the disk, when the logs are there as far as `durable` says: one for each
    /// lane, that of the dead letters last.
    pub fn is_in(&self, durable: &[Durable]) -> bool {
        durable.get(self.lane).is_some_and(|durable| durable.holds(self.ticket))
    }

    /// Whether it became a dead letter.
    pub fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Microseconds that the event's own time is ahead of its arrival, if it has a time of its own.
    pub fn clock_offset(&self) -> Option<i64> {
        self.clock_offset
    }
}

impl Ingest {
    /// A door to the journal, under these contracts.
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
        ingest.put_in_force(contracts, mask_key)?;
        Ok(ingest)
    }

    /// Puts other contracts in force. Events taken before keep the version they were taken under.
    pub fn put_in_force(&self, contracts: Contracts, mask_key: Secret) -> Result<(), JournalError> {
        let mut placed = Vec::new();
        if self.sparkplug.get().is_none() && contracts.iter().any(|contract| contract.decode.is_some()) {
            // If another was quicker, its state is the same.
            let _ = self.sparkplug.set(Sparkplug::open(&self.journal, &self.budget)?);
        }
        for contract in contracts.iter() {
            let publication = self.journal.publish(&contract.publication)?;
            let lanes = self.journal.lanes();
            // `Contracts::load` has refused lanes that are not there.
            let lane = lanes.iter().position(|lane| lane.name == contract.publication.lane).unwrap_or(0);
            placed.push((contract.publication.stream_id(), Placed { publication, lane }));
        }
        let generation = self.in_force.load().generation + 1;
        self.in_force.store(Arc::new(InForce { contracts, placed, mask_key: Arc::new(mask_key), generation }));
        Ok(())
    }

    /// Where a topic leads.
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

    /// Topic filters for the keys and commands of one name, as central and subscribers on the gateway see them.
    pub fn filters_of_key(&self, name: &str) -> Vec<String> {
        self.in_force.load().contracts.filters_of_key(name)
    }

    /// Whether a contract takes `part` that would not take the `whole` it belongs to.
    pub fn has_contract_of_its_own(&self, kind: SourceKind, source: &str, part: &str, whole: &str) -> bool {
        let matched = self.in_force.load().contracts.find(kind, source, part, Sender::default());
        matched.is_some_and(|matched| !matched.contract.takes(whole))
    }

    /// Whether a route still leads where it did.
    pub fn is_current(&self, route: &Route) -> bool {
        self.in_force.load().generation == route.generation
    }

    /// Takes an event in. `now` is when it arrived.
    pub fn accept(
        &self,
        route: &Route,
        payload: &[u8],
        beside: Beside<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Taken, NotTaken> {
        if route.is_over_pace() {
            return Err(NotTaken::NoRoom);
        }
        let taken = match &route.target {
            None => {
                let taken = self.bury(route, "topic: no contract matches it", payload, beside, now, waiter)?;
                self.stats.unmatched.add(1);
                taken
            }
            Some(target) if target.contract.decode == Some(Decode::SparkplugB) => {
                self.accept_sparkplug(route, target, payload, beside, now, waiter)?
            }
            Some(target) => self.accept_json(route, target, payload, beside, now, waiter)?,
        };
        route.pace.iter().for_each(|pace| pace.charge(route.party));
        Ok(taken)
    }

    /// Decodes, takes the event or the dead letter in, and only then lets the node's state follow.
    fn accept_sparkplug(
        &self,
        route: &Route,
        target: &Target,
        payload: &[u8],
        beside: Beside<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Taken, NotTaken> {
        let Some(sparkplug) = self.sparkplug() else {
            // `put_in_force` has opened it for this contract.
            return self.accept_json(route, target, payload, beside, now, waiter);
        };
        let decoded = sparkplug.decode(&route.source, &route.topic, payload);
        let beside = Beside { content_type: None, ..beside };
        let mut taken = match &decoded.json {
            Ok(json) => self.accept_json(route, target, json, beside, now, waiter)?,
            Err(reason) => {
                let taken = self.bury(route, reason, payload, beside, now, waiter)?;
                self.stats.violations.add(1);
                sparkplug.stats.refused.add(1);
                taken
            }
        };
        if let Some(change) = decoded.change {
            taken.beside = sparkplug.apply(change, route.sender(), || waiter.bell());
        }
        Ok(taken)
    }

    /// What is known of Sparkplug nodes, if a contract decodes them.
    pub fn sparkplug(&self) -> Option<&Sparkplug> {
        self.sparkplug.get()
    }

    /// Makes a dead letter of what cannot be taken as it came; `reason` starts with the field.
    pub fn refuse(
        &self,
        route: &Route,
        reason: &str,
        payload: &[u8],
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Taken, NotTaken> {
        let taken = self.bury(route, reason, payload, Beside::default(), now, waiter)?;
        self.stats.violations.add(1);
        Ok(taken)
    }

    /// Checks a payload against the schema of the contract of a stream that is in force.
    pub fn check_payload(&self, stream_id: &str, payload: &[u8]) -> Result<(), String> {
        let in_force = self.in_force.load();
        let found = in_force.contracts.iter().find(|contract| contract.publication.stream_id() == stream_id);
        let contract = found.ok_or_else(|| format!("no contract of stream \"{stream_id}\" is in force"))?;
        contract.check_payload(payload)
    }

    /// What stands against taking a payload in again on a route; `None` if nothing does.
    pub fn objection(&self, route: &Route, payload: &[u8]) -> Option<String> {
        let Some(target) = &route.target else {
            return Some(format!("topic: no contract matches \"{}\"", route.topic));
        };
        if target.contract.decode.is_some() {
            return Some(
                "its contract decodes Sparkplug B, whose nodes have moved on since; ask the node for a rebirth".into(),
            );
        }
        target.contract.read(&target.captures, payload, target.mask_key.bytes()).err().map(|violation| violation.reason)
    }

    fn accept_json(
        &self,
        route: &Route,
        target: &Target,
        payload: &[u8],
        beside: Beside<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Taken, NotTaken> {
        let reading = match target.contract.read(&target.captures, payload, target.mask_key.bytes()) {
            Ok(reading) => reading,
            Err(violation) => {
                let taken = self.bury(route, &violation.reason, &violation.payload, beside, now, waiter)?;
                self.stats.violations.add(1);
                return Ok(taken);
            }
        };
        let mut attributes = beside.attributes();
        attributes.extend(route.auth());
        attributes.extend(reading.violation.as_deref().map(Attribute::Violation));
        attributes.extend((!clock::is_trusted()).then_some(Attribute::ClockStatus("untrusted")));
        attributes.extend(beside.exchange());
        let given = reading.id.as_deref().or(beside.id);
        let id = match given {
            Some(id) => Id::Text(id),
            None => Id::mint(),
        };
        let key = beside.key.filter(|_| !target.contract.has_own_key).unwrap_or(&reading.key);
        let record = Record {
            publication: target.placed.publication,
            id,
            time: reading.time.or(beside.time).unwrap_or(now),
            origin: &route.origin,
            key,
            content: reading.content,
            attributes,
            payload: &reading.payload,
        };
        let (index, lane) = (target.placed.lane, self.lanes(target.placed.lane));
        if !self.shares.has_share(index, lane, route.party) {
            self.note_slowed(index, lane, route);
            return Err(NotTaken::NoRoom);
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
        Ok(Taken { lane: target.placed.lane, ticket, is_dead: false, clock_offset, beside: 0 })
    }

    fn bury(
        &self,
        route: &Route,
        reason: &str,
        payload: &[u8],
        beside: Beside<'_>,
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Taken, NotTaken> {
        let target = route.target.as_ref();
        let (stream, version) = target.map_or(("unmatched", ""), |target| {
            (target.contract.stream(), target.contract.publication.version.as_str())
        });
        let letter = DeadLetter {
            stage: dead::Stage::Intake,
            reason: Cow::Borrowed(reason),
            stream: Cow::Borrowed(stream),
            version: Cow::Borrowed(version),
            topic: Cow::Borrowed(&route.topic),
            origin: Cow::Borrowed(&route.origin),
            event_id: beside.id.unwrap_or_default().to_owned(),
            key: Cow::Borrowed(beside.key.unwrap_or_default()),
            sequence: 0,
            time: beside.time.unwrap_or(now),
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
        // Whoever takes it in again wants all that its source said.
        let mut attributes = beside.attributes();
        attributes.extend(beside.exchange());
        let log = self.journal.dead();
        if !self.shares.has_dead_share(log, route.party) {
            self.note_slowed(self.journal.lanes().len(), log, route);
            return Err(NotTaken::NoRoom);
        }
        let ticket = letter.submit(log, publication, attributes, waiter)?;
        self.shares.add_dead(log, route.party, payload.len());
        Ok(Taken { lane: self.journal.lanes().len(), ticket, is_dead: true, clock_offset: None, beside: 0 })
    }

    fn lanes(&self, index: usize) -> &Arc<Lane> {
        self.journal.lanes().get(index).unwrap_or(self.journal.dead())
    }

    /// Whether the lane that a route leads to takes events of its sender, and why not.
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

    /// Whether a lane takes events, and why not: it is full for those that hold their share of it too.
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
            tracing::warn!(lane = %lane.name, "a sender is slowed down: {why}");
        }
    }

    /// The receipt of an event, if it is on the disk.
    pub fn receipt(&self, taken: &Taken) -> Option<Receipt> {
        if taken.beside > 0 && self.sparkplug().is_some_and(|sparkplug| !sparkplug.is_saved(taken.beside)) {
            return None;
        }
        self.lanes(taken.lane).receipt(taken.ticket)
    }

    /// The journal behind the door.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Whether the journal is closed: what has no receipt stays without.
    pub fn is_closed(&self) -> bool {
        self.journal.dead().is_closed()
    }

    /// Returns when the lane a route leads to may have room again for its sender. Safe to drop half-way.
    pub async fn room(&self, route: &Route) {
        // Nobody rings when central has taken something, or a share has grown.
        const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(200);
        if let Some(pace) = &route.pace {
            tokio::time::sleep(pace.wait(route.party)).await;
        }
        let dead = self.journal.dead();
        if !self.shares.has_dead_share(dead, route.party) {
            // It grows by the day; and what waits may be no dead letter.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let Some(target) = &route.target else { return dead.room().await };
        let lane = self.lanes(target.placed.lane);
        while !self.shares.has_share(target.placed.lane, lane, route.party) {
            // The last event may have found the lane busy, so that nobody has noted the used-up share yet.
            self.note_slowed(target.placed.lane, lane, route);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        lane.room().await;
    }
}
