//! Settles the events of a lane: those that central acknowledged, and those that became dead letters.
//!
//! Invariant: an event is settled as dead only when its dead letter is durable.

use super::key_order::OvertakenEvents;
use super::lane_link::{LaneLink, Settled};
use crate::api::LetterStage;
use crate::clock;
use crate::event::{Attribute, Content, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::journal::{Lane, Outcome, Step, Waiter};
use crate::runtime::spawn_blocking;
use crate::telemetry::Limiter;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout_at;

/// Longest wait for dead letters to become durable: a full disk must hold up neither the link nor the shutdown.
const LETTERS_WAIT_MAX: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Settler {
    link: LaneLink,
    dead: Arc<Lane>,
    /// Limits the warnings about answers of central.
    pub warnings: Limiter,
}

impl Settler {
    pub(super) fn new(link: LaneLink, dead: &Arc<Lane>) -> Self {
        Self { link, dead: Arc::clone(dead), warnings: Limiter::new(Duration::from_secs(60)) }
    }

    pub(super) fn settle(&self, events: &[Settled]) {
        self.link.lane.settle(&self.link.to.name, events);
    }

    /// Counts events that others of their key have overtaken, and has them announced.
    pub(super) fn announce(&mut self, events: &[OvertakenEvents]) {
        if events.is_empty() {
            return;
        }
        let LaneLink { lane, to, stats, .. } = &self.link;
        stats.overtaken.add(events.iter().map(|one| one.count).sum());
        stats.unannounced.add(events);
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(lane = %lane.name, destination = %to.name, held_back, "central accepted events before earlier ones of their key that it had refused for now; order = \"strict\" in the contract prevents that");
        }
    }

    /// Writes dead letters for events, and settles the events once the letters are durable. Returns those; an event that
    /// could not be read, or whose letter was not stored, stays unsettled.
    pub(super) async fn write_dead_letters(&mut self, events: &[(u64, String)]) -> Vec<Settled> {
        if events.is_empty() {
            return Vec::new();
        }
        let LaneLink { lane, to, stats, .. } = &self.link;
        let now = Timestamp::from(clock::wall());
        let deadline = tokio::time::Instant::from(clock::instant() + LETTERS_WAIT_MAX);
        let mut waiter = Waiter::default();
        let mut settled = Vec::new();
        for (offset, reason) in events {
            let (ours, at) = (Arc::clone(lane), *offset);
            let Ok(Ok(Some(mut walk))) = spawn_blocking(move || ours.walk_at(at)).await else {
                continue;
            };
            let recorded = walk.recorded();
            let Some(step) = walk.step_to(lane, at) else { continue };
            let Step { record, numbered, .. } = &step;
            let (stream, publication) = (numbered.map_or(0, |(published, _)| published.stream), record.publication);
            let dead_letter = self.dead_letter(&step, reason, recorded, now);
            // A dead letter acknowledges no exchange with a client.
            let attributes = record.attributes.iter().filter(|one| !matches!(one, Attribute::Exchange { .. }));
            let stored = dead_letter.encode();
            let letter = dead_letter.record(&stored, publication, attributes.copied().collect());
            let submitted = timeout_at(deadline, self.dead.submit_when_room(&letter, &mut waiter)).await;
            if let Ok(Ok(ticket)) = submitted {
                settled.push((at, stream, ticket));
            }
        }
        let mut durable = Vec::new();
        for (offset, stream, ticket) in settled {
            // The cursor moves after the dead letter is durable: a crash in between only repeats the event.
            if let Ok(Ok(_)) = timeout_at(deadline, self.dead.await_receipt(ticket, &waiter)).await {
                durable.push((offset, stream, Outcome::Dead));
            }
        }
        stats.dead.add(durable.len() as u64);
        if durable.len() < events.len()
            && let Some(held_back) = self.warnings.allow(clock::instant())
        {
            tracing::warn!(lane = %lane.name, destination = %to.name, count = events.len() - durable.len(), held_back, "could not write dead letters; their events stay in the lane, will retry");
        }
        if durable.is_empty() {
            return durable;
        }
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(lane = %lane.name, destination = %to.name, count = durable.len(), held_back, "events became dead letters; see `forebay dead list`");
        }
        lane.settle(&to.name, &durable);
        // A crash that loses the cursor would write second dead letters for these events.
        lane.write_cursors_soon();
        durable
    }

    fn dead_letter<'a>(
        &'a self,
        step: &'a Step<'a>,
        reason: &'a str,
        recorded: Timestamp,
        now: Timestamp,
    ) -> DeadLetter<'a> {
        let Step { record, numbered, .. } = step;
        let (stream, version, sequence, topic) = match *numbered {
            Some((published, sequence)) => {
                let mut topic = Vec::new();
                published.renderer.push_topic(record, &mut topic);
                let topic = String::from_utf8_lossy(&topic).into_owned();
                (published.publication.stream.clone(), published.publication.version.clone(), sequence, topic)
            }
            None => (String::new(), String::new(), 0, String::new()),
        };
        let auth = record.attribute(|attribute| match attribute {
            Attribute::Auth { kind, name } => Some((*kind, *name)),
            _ => None,
        });
        DeadLetter {
            stage: LetterStage::Central,
            reason: Cow::Borrowed(reason),
            stream: Cow::Owned(stream),
            version: Cow::Owned(version),
            topic: Cow::Owned(topic),
            origin: Cow::Borrowed(record.origin),
            event_id: record.id.to_string(),
            key: Cow::Borrowed(record.key),
            sequence,
            time: record.time,
            first_attempt: now,
            last_attempt: now,
            attempts: 1,
            destination: Cow::Borrowed(&self.link.to.name),
            client: Cow::Borrowed(""),
            user: Cow::Borrowed(auth.map_or("", |(_, name)| name)),
            authtype: auth.map(|(kind, _)| kind),
            is_by_rule: false,
            taken: Some(recorded),
            is_opaque: record.content == Content::Bytes,
            payload: Cow::Borrowed(record.payload),
        }
    }
}
