//! High water: the next offset and sequences of a lane, now or before the clock was set.
//!
//! Promise: the numbers cover durable events only.

use super::handle::Lane;
use super::log::ReadResult;
use crate::event::Timestamp;
use crate::journal::store::error::JournalError;
use serde::{Deserialize, Serialize};

/// The next numbers of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub lane: String,
    pub end: u64,
    /// Each stream, with its major version, and its next sequence.
    pub streams: Vec<(String, u64)>,
}

impl Lane {
    /// The next numbers behind the durable events.
    pub fn given(&self) -> Given {
        let (end, sequences) = self.numbers();
        self.named(end, &sequences)
    }

    fn named(&self, end: u64, sequences: &[(u32, u64)]) -> Given {
        // Records without a stream have no sequence.
        let of_streams = sequences.iter().filter(|(stream, _)| *stream != 0);
        let streams = of_streams.map(|(stream, next)| (self.stream_name(*stream), *next)).collect();
        Given { lane: self.name.clone(), end, streams }
    }

    /// The next numbers before the first event at or after `from` for whose recorded time `is_later` holds. All events
    /// after that one must satisfy `is_later` too. Blocks the thread.
    pub fn given_before(&self, from: u64, is_later: impl Fn(Timestamp) -> bool) -> Result<Given, JournalError> {
        let (end, mut sequences) = self.numbers();
        let (mut low, mut high) = (from.min(end), end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.recorded_at(middle) {
                Some(recorded) if is_later(recorded) => high = middle,
                // Lost events were recorded before their loss was detected.
                _ => low = middle + 1,
            }
        }
        let first = low;
        let mut next = first;
        while next < end {
            match self.read_at(next)? {
                ReadResult::Lost { to } => next = to.max(next + 1),
                ReadResult::Block(block) if block.header.first >= end => break,
                ReadResult::Block(block) => {
                    for run in &block.header.runs {
                        if let Some((_, sequence)) = sequences.iter_mut().find(|(stream, _)| *stream == run.stream) {
                            *sequence = (*sequence).min(run.first);
                        }
                    }
                    next = block.end().max(next + 1);
                }
            }
        }
        Ok(self.named(first, &sequences))
    }
}
