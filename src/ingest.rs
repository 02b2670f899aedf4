//! Ingest: a raw fact becomes an event of its stream, or a dead letter that says why not.
//!
//! Promise: whatever a source hands in is on its way to the disk when [`Ingest::accept`] returns a
//! [`Taken`]; its receipt is what the source needs before it may acknowledge.
//! Invariant: nothing here blocks, and nothing waits in a queue of its own.
//!
//! Not here: where facts come from (`sources`), what the disk does (`journal`).

pub mod dead;

use crate::contract::{Contract, Contracts, Matched, SourceKind};
use crate::event::{Attribute, Id, Record, Timestamp, push_path_segment};
use crate::journal::{Fingerprint, Journal, JournalError, Lane, NotTaken, Receipt, Ticket, Waiter};
use crate::telemetry::Counter;
use arc_swap::ArcSwap;
use dead::DeadLetter;
use std::borrow::Cow;
use std::sync::Arc;

/// The door for every source.
#[derive(Debug)]
pub struct Ingest {
    journal: Arc<Journal>,
    in_force: ArcSwap<InForce>,
    mask_key: Vec<u8>,
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
    /// `{source}/{device}`.
    origin: String,
    topic: String,
    generation: u64,
}

#[derive(Debug)]
struct Target {
    contract: Arc<Contract>,
    captures: Vec<String>,
    placed: Placed,
}

/// What a source says of an event beside its payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// W3C trace context.
    pub trace_parent: Option<&'a str>,
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
}

/// An event on its way to the disk.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    lane: usize,
    ticket: Ticket,
}

impl Ingest {
    /// A door to the journal, under these contracts.
    pub fn new(journal: Arc<Journal>, contracts: Contracts, mask_key: Vec<u8>) -> Result<Self, JournalError> {
        let ingest = Self { journal, in_force: ArcSwap::default(), mask_key, stats: IngestStats::default() };
        ingest.put_in_force(contracts)?;
        Ok(ingest)
    }

    /// Puts other contracts in force. Events taken before keep the version they were taken under.
    pub fn put_in_force(&self, contracts: Contracts) -> Result<(), JournalError> {
        let mut placed = Vec::new();
        for contract in contracts.iter() {
            let publication = self.journal.publish(&contract.publication)?;
            let lanes = self.journal.lanes();
            // `Contracts::load` has refused lanes that are not there.
            let lane = lanes.iter().position(|lane| lane.name == contract.publication.lane).unwrap_or(0);
            placed.push((contract.publication.stream_id(), Placed { publication, lane }));
        }
        let generation = self.in_force.load().generation + 1;
        self.in_force.store(Arc::new(InForce { contracts, placed, generation }));
        Ok(())
    }

    /// Where a topic leads.
    pub fn route(&self, kind: SourceKind, source: &str, topic: &str, client: &str, user: &str) -> Route {
        let in_force = self.in_force.load();
        let matched = in_force.contracts.find(kind, source, topic, client, user);
        let device = match &matched {
            Some(Matched { contract, captures }) => contract.device(captures),
            None => client.to_owned(),
        };
        let mut origin = String::new();
        push_path_segment(&mut origin, source);
        origin.push('/');
        push_path_segment(&mut origin, &device);
        let target = matched.and_then(|Matched { contract, captures }| {
            let stream = contract.publication.stream_id();
            let placed = in_force.placed.iter().find(|(name, _)| *name == stream)?.1;
            Some(Target { contract, captures, placed })
        });
        Route { target, origin, topic: topic.to_owned(), generation: in_force.generation }
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
        let Some(target) = &route.target else {
            let taken = self.bury(route, None, "topic: no contract matches it", payload, now, waiter)?;
            self.stats.unmatched.add(1);
            return Ok(taken);
        };
        let reading = match target.contract.read(&target.captures, payload, &self.mask_key) {
            Ok(reading) => reading,
            Err(violation) => {
                let taken = self.bury(route, Some(target), &violation.reason, &violation.payload, now, waiter)?;
                self.stats.violations.add(1);
                return Ok(taken);
            }
        };
        let mut attributes = Vec::new();
        attributes.extend(beside.trace_parent.map(Attribute::TraceParent));
        attributes.extend(beside.content_type.map(Attribute::ContentType));
        attributes.extend(reading.violation.as_deref().map(Attribute::Violation));
        let repeats = match (&reading.id, target.contract.dedupe) {
            (Some(id), Some(window)) => Some((Fingerprint::new(&route.origin, id, &reading.payload), window)),
            _ => None,
        };
        let id = match &reading.id {
            Some(id) => Id::Text(id),
            None => Id::mint(),
        };
        let record = Record {
            publication: target.placed.publication,
            id,
            time: reading.time.unwrap_or(now),
            origin: &route.origin,
            key: &reading.key,
            content: reading.content,
            attributes,
            payload: &reading.payload,
        };
        let ticket = self.lanes(target.placed.lane).submit(&record, repeats, waiter)?;
        if reading.violation.is_some() {
            self.stats.flagged.add(1);
        }
        Ok(Taken { lane: target.placed.lane, ticket })
    }

    fn bury(
        &self,
        route: &Route,
        target: Option<&Target>,
        reason: &str,
        payload: &[u8],
        now: Timestamp,
        waiter: &mut Waiter,
    ) -> Result<Taken, NotTaken> {
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
            event_id: String::new(),
            key: Cow::Borrowed(""),
            sequence: 0,
            time: now,
            first_attempt: now,
            last_attempt: now,
            attempts: 0,
            destination: Cow::Borrowed(""),
            payload: Cow::Borrowed(payload),
        };
        let publication = target.map_or(0, |target| target.placed.publication);
        let ticket = letter.submit(self.journal.dead(), publication, waiter)?;
        Ok(Taken { lane: self.journal.lanes().len(), ticket })
    }

    fn lanes(&self, index: usize) -> &Arc<Lane> {
        self.journal.lanes().get(index).unwrap_or(self.journal.dead())
    }

    /// The receipt of an event, if it is on the disk.
    pub fn receipt(&self, taken: &Taken) -> Option<Receipt> {
        self.lanes(taken.lane).receipt(taken.ticket)
    }

    /// Whether the journal is closed: what has no receipt stays without.
    pub fn is_closed(&self) -> bool {
        self.journal.dead().is_closed()
    }

    /// Returns when the lane a route leads to may have room again. Safe to drop half-way.
    pub async fn room(&self, route: &Route) {
        match &route.target {
            Some(target) => self.lanes(target.placed.lane).room().await,
            None => self.journal.dead().room().await,
        }
    }
}
