//! The loss account: events that are discarded before their delivery.
//!
//! Promise: discarded events are counted in the accounts. A note for the announcement is durable before the accounts are;
//! after a crash the same loss is noted again under the same name.
//! Invariant: a settled event is never discarded.
//!
//! Not here: when to discard (`retention`), how a loss is announced (`ledger`).

use super::audit::DONE;
use super::block_records::BlockReader;
use super::handle::Lane;
use super::log::ReadResult;
use crate::event::{Record, Timestamp};
use crate::journal::store::cursor::{Cursor, Outcome};
use crate::journal::store::error::JournalError;
use crate::journal::store::state::Note;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Prefix of the notes of unannounced losses in `state.redb`.
pub(in crate::journal) const PREFIX: &str = "loss/";
/// Largest number of unannounced losses; further ones are only counted and logged.
const WAITING_MAX: usize = 1000;

/// Events discarded for one destination and one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub cause: Outcome,
    pub lane: String,
    /// Name of the destination; empty if the lane has none.
    pub destination: String,
    pub streams: Vec<LostStream>,
    /// Time when the first of them was recorded, RFC 3339.
    pub from: String,
    /// Time when the last of them was recorded, RFC 3339.
    pub to: String,
    pub count: u64,
    /// Offset range: from, to (exclusive). Events in it that were settled before are not lost.
    pub offsets: (u64, u64),
}

/// Lost events of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostStream {
    /// Stream with its major version.
    pub stream: String,
    pub count: u64,
    pub first: u64,
    pub last: u64,
}

impl Loss {
    /// Name of its note; the same if the loss is noted again.
    pub fn name(&self) -> String {
        format!("{}/{}/{:020}", self.lane, self.destination, self.offsets.0)
    }
}

/// Unsettled events that a scan found.
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

/// Selects the events to discard.
pub(in crate::journal) struct EventFilter<'a> {
    /// Offset range: from, to (exclusive).
    pub offsets: (u64, u64),
    /// Whether to discard the event at this offset.
    pub takes: &'a dyn Fn(u64, &Record<'_>) -> bool,
}

impl Lane {
    /// Discards the selected events that a destination has not settled; returns their number. An empty `destination`
    /// stands for a lane without destinations: nothing is settled then. Blocks the thread.
    pub(in crate::journal) fn discard_unsettled(
        &self,
        destination: &str,
        filter: &EventFilter<'_>,
        cause: Outcome,
    ) -> Result<u64, JournalError> {
        let settled = match destination {
            "" => Cursor::new("", filter.offsets.0),
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
        tracing::error!(lane = %loss.lane, destination, cause = ?cause, count = loss.count, from = %loss.from, to = %loss.to, "discarding events before they were delivered");
        // [`Journal::losses`] must see both note and account, or neither.
        let discard_lock = self.core.discard_lock.lock();
        self.note_loss(&loss)?;
        let mut count = 0;
        self.change_settled(destination, |settled| {
            for (offset, stream) in &tally.events {
                // An event that was acknowledged meanwhile stays delivered.
                count += u64::from(settled.settle(*offset, *stream, cause));
            }
        });
        drop(discard_lock);
        self.core.losses.notify_one();
        Ok(if destination.is_empty() { loss.count } else { count })
    }

    fn tally(&self, settled: &Cursor, filter: &EventFilter<'_>) -> Result<LossTally, JournalError> {
        let (from, to) = filter.offsets;
        let mut tally = LossTally::default();
        let mut next = from.max(settled.low);
        while next < to {
            match self.read_at(next)? {
                ReadResult::Lost { to } => next = to.max(next + 1),
                ReadResult::Block(block) => {
                    let end = block.end();
                    let mut walk = BlockReader::new(block);
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
        let mut notes: Vec<Note> = vec![self.core.audit.entry("loss", None, loss, DONE)];
        if state.notes(PREFIX)?.len() < WAITING_MAX {
            let text = serde_json::to_vec(loss).unwrap_or_default();
            notes.push((format!("{PREFIX}{}", loss.name()), Some(text)));
        }
        state.write_notes(&notes)?;
        self.core.audit.trim()
    }
}
