//! Losses: events that leave before they are delivered.
//!
//! Promise: what is given up is counted in the accounts, and noted for its announcement before the
//! accounts can say so on the disk; a repeat after a crash says the same again.
//! Invariant: nobody gives up an event that is settled.
//!
//! Not here: when to give up (`retention`), how a loss is announced (`ledger`).

use super::cursor::{Outcome, Settled};
use super::{Found, Journal, JournalError, Lane, Note, Walk};
use crate::clock;
use crate::event::{Record, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Where losses wait for their announcement, in `state.redb`.
pub(super) const PREFIX: &str = "loss/";
/// How long the writer may take to go on in a new segment, without the cursor of a dropped destination.
const FORGET_WAIT_MAX: Duration = Duration::from_secs(5);
/// Losses that may wait; further ones are in the accounts and the log alone.
const WAITING_MAX: usize = 1000;

/// What was given up, for one destination and for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Why.
    pub cause: Outcome,
    /// The lane.
    pub lane: String,
    /// Who does not get it; empty where nobody was to.
    pub destination: String,
    /// What it was, by stream.
    pub streams: Vec<LostStream>,
    /// When the journal took the first of it, RFC 3339.
    pub from: String,
    /// When the journal took the last of it, RFC 3339.
    pub to: String,
    /// How many events.
    pub count: u64,
    /// Offsets: from, to (exclusive). What is between them and was settled is not lost.
    pub offsets: (u64, u64),
}

/// What was lost of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostStream {
    /// Stream with its major version.
    pub stream: String,
    /// How many events.
    pub count: u64,
    /// The lowest sequence.
    pub first: u64,
    /// The highest sequence.
    pub last: u64,
}

impl Loss {
    /// The name under which it waits; the same for a repeat.
    pub fn name(&self) -> String {
        format!("{}/{}/{:020}", self.lane, self.destination, self.offsets.0)
    }
}

/// What a walk found that is not settled.
#[derive(Debug, Default)]
struct LossTally {
    events: Vec<(u64, u32)>,
    streams: BTreeMap<u32, LostStream>,
    recorded: Option<(Timestamp, Timestamp)>,
}

impl LossTally {
    fn add(&mut self, offset: u64, recorded: Timestamp, stream: (u32, &str), sequence: u64) {
        self.events.push((offset, stream.0));
        let known = self.streams.entry(stream.0).or_insert_with(|| LostStream {
            stream: stream.1.to_owned(),
            count: 0,
            first: sequence,
            last: sequence,
        });
        known.count += 1;
        known.first = known.first.min(sequence);
        known.last = known.last.max(sequence);
        let (first, last) = self.recorded.unwrap_or((recorded, recorded));
        self.recorded = Some((first.min(recorded), last.max(recorded)));
    }
}

/// Which events of a block to give up.
pub(super) struct EventFilter<'a> {
    /// Offsets: from, to (exclusive).
    pub offsets: (u64, u64),
    /// Whether the event at this offset is meant.
    pub takes: &'a dyn Fn(u64, &Record<'_>) -> bool,
}

impl Lane {
    /// Gives up what a destination has not settled of some events; returns how many those were. An empty
    /// `destination` settles nothing, and stands for the case that there is none. Blocks the thread.
    pub(super) fn discard_unsettled(
        &self,
        destination: &str,
        filter: &EventFilter<'_>,
        cause: Outcome,
    ) -> Result<u64, JournalError> {
        let settled = match destination {
            "" => Settled::new("", filter.offsets.0),
            name => match self.settled(name) {
                Some(settled) => settled,
                None => return Ok(0),
            },
        };
        let tally = self.tally(&settled, filter)?;
        let (Some((first, _)), Some((last, _)), Some(recorded)) =
            (tally.events.first(), tally.events.last(), tally.recorded)
        else {
            return Ok(0);
        };
        let loss = Loss {
            cause,
            lane: self.name.clone(),
            destination: destination.to_owned(),
            streams: tally.streams.into_values().collect(),
            from: recorded.0.to_string(),
            to: recorded.1.to_string(),
            count: tally.events.len() as u64,
            offsets: (*first, last + 1),
        };
        tracing::error!(lane = %loss.lane, destination, cause = ?cause, count = loss.count, from = %loss.from, to = %loss.to, "events are given up before they were delivered");
        // Whoever announces losses sees note and account, or neither.
        let discard_lock = self.core.discard_lock.lock();
        self.note_loss(&loss)?;
        let mut count = 0;
        self.change_settled(destination, |settled| {
            for (offset, stream) in &tally.events {
                // What was acknowledged in the meantime stays delivered.
                count += u64::from(settled.settle(*offset, *stream, cause));
            }
        });
        drop(discard_lock);
        self.core.losses.notify_one();
        Ok(if destination.is_empty() { loss.count } else { count })
    }

    fn tally(&self, settled: &Settled, filter: &EventFilter<'_>) -> Result<LossTally, JournalError> {
        let (from, to) = filter.offsets;
        let mut tally = LossTally::default();
        let mut next = from.max(settled.low);
        while next < to {
            match self.read(next)? {
                Found::Lost { to } => next = to.max(next + 1),
                Found::Block(block) => {
                    let end = block.end();
                    let mut walk = Walk::new(block);
                    let recorded = walk.recorded();
                    while let Some(step) = walk.step(self) {
                        let is_meant = (next..to).contains(&step.offset) && !settled.contains(step.offset);
                        if !is_meant || !(filter.takes)(step.offset, &step.record) {
                            continue;
                        }
                        let stream = step.numbered.map_or((0, "unmatched", 0), |(known, sequence)| {
                            (known.stream, known.renderer.stream_id(), sequence)
                        });
                        tally.add(step.offset, recorded, (stream.0, stream.1), stream.2);
                    }
                    next = next.max(end);
                }
            }
        }
        Ok(tally)
    }

    fn note_loss(&self, loss: &Loss) -> Result<(), JournalError> {
        let state = &self.core.state;
        let mut notes: Vec<Note> = vec![super::audit::entry(&self.core, "loss", None, loss, super::DONE)];
        if state.notes(PREFIX)?.len() < WAITING_MAX {
            let text = serde_json::to_vec(loss).unwrap_or_default();
            notes.push((format!("{PREFIX}{}", loss.name()), Some(text)));
        }
        state.write_notes(&notes)?;
        self.core.trim_audit()
    }
}

impl Journal {
    /// Losses that wait for their announcement. Those that a crash kept from coming about are forgotten.
    /// Blocks the thread.
    pub fn losses(&self) -> Result<Vec<Loss>, JournalError> {
        let _guard = self.core.discard_lock.lock();
        let noted = self.core.state.notes(PREFIX)?;
        let read = |(name, text): (String, Vec<u8>)| {
            let loss: Option<Loss> = serde_json::from_slice(&text).ok();
            if loss.is_none() {
                tracing::warn!(name, "a noted loss cannot be read; its events are in the accounts");
            }
            loss
        };
        let (lost, kept): (Vec<Loss>, Vec<Loss>) =
            noted.into_iter().filter_map(read).partition(|loss| self.is_lost(loss));
        kept.iter().try_for_each(|loss| self.forget_loss(loss))?;
        Ok(lost)
    }

    /// Whether a loss came about: a crash between note and account leaves its events where they were.
    fn is_lost(&self, loss: &Loss) -> bool {
        if loss.destination.is_empty() {
            return true;
        }
        let Some(lane) = self.lane(&loss.lane) else { return false };
        match lane.settled(&loss.destination) {
            Some(settled) => settled.contains(loss.offsets.0) && settled.contains(loss.offsets.1.saturating_sub(1)),
            None => true,
        }
    }

    /// Forgets a loss that is announced. Blocks the thread.
    pub fn forget_loss(&self, loss: &Loss) -> Result<(), JournalError> {
        self.core.state.write_notes(&[(format!("{PREFIX}{}", loss.name()), None)])
    }

    /// Returns when there may be a new loss. Safe to drop half-way.
    pub async fn lost(&self) {
        self.core.losses.notified().await;
    }

    /// Gives up everything that a destination is still owed, and forgets it; returns how many events those were. Waits
    /// a moment for the log to say so; where a lane's disk fails or is full, that comes later. Blocks the thread.
    pub fn drop_destination(&self, destination: &str) -> Result<u64, JournalError> {
        let count = self.begin_drop(destination)?;
        let deadline = clock::instant() + FORGET_WAIT_MAX;
        let is_awaited = || self.lanes().iter().any(|lane| lane.dropped().iter().any(|name| name == destination));
        while is_awaited() && clock::instant() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(count)
    }

    /// The part of [`Journal::drop_destination`] that does not wait for the writers.
    pub(crate) fn begin_drop(&self, destination: &str) -> Result<u64, JournalError> {
        let mut count = 0;
        for lane in self.lanes() {
            // Segment by segment: what is counted of one is held in memory until it is settled.
            for offsets in lane.extents() {
                let whole_segment = EventFilter { offsets, takes: &|_, _| true };
                count += lane.discard_unsettled(destination, &whole_segment, Outcome::Discarded)?;
            }
            // From now on a start forgets the cursor, whatever the log still says. The writer deletes the note.
            let noted =
                self.core.state.write_notes(&[(super::open::dropped(&lane.name, destination), Some(Vec::new()))]);
            // Also after an error: the note may be on disk all the same, and must not outlive the cursor that it is for.
            lane.forget_destination(destination);
            noted?;
        }
        Ok(count)
    }

    /// Names of the destinations that lanes know, configured or not.
    pub fn destinations(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lanes().iter().flat_map(|lane| lane.destinations()).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Tells everyone with losses to announce.
pub(super) type LossNotify = Arc<tokio::sync::Notify>;
