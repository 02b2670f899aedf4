//! The events of a lane that the log follows to central.

use super::Config;
use crate::event::Id;
use crate::journal::{Lane, Outcome};
use crate::telemetry::{FOLLOW, follow};
use std::collections::VecDeque;
use tracing::Span;

/// More than this on their way are not followed to their end.
const FOLLOWED_MAX: usize = 4096;

/// The followed events that are on their way, by offset; empty while nobody looks.
#[derive(Debug, Default)]
pub(super) struct Followed(VecDeque<(u64, Span)>);

impl Followed {
    /// An event leaves: `place` is its offset and sequence.
    #[inline]
    pub fn begin(&mut self, id: &Id<'_>, lane: &Lane, to: &Config, place: (u64, u64)) {
        let Some(span) = follow(id) else { return };
        let (offset, sequence) = place;
        span.in_scope(|| tracing::debug!(target: FOLLOW, lane = %lane.name, destination = %to.name, offset, sequence, "sent to central, alone or in a batch"));
        self.0.push_back((offset, span));
        if self.0.len() > FOLLOWED_MAX {
            self.0.pop_front();
        }
    }

    /// Events are settled.
    #[inline]
    pub fn end(&mut self, settled: &[(u64, u32, Outcome)]) {
        if self.0.is_empty() {
            return;
        }
        self.0.retain(|(offset, span)| {
            let found = settled.iter().find(|(settled, ..)| settled == offset);
            if let Some((.., outcome)) = found {
                span.in_scope(|| tracing::debug!(target: FOLLOW, offset, ?outcome, "settled"));
            }
            found.is_none()
        });
    }

    /// What is on its way is sent again.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
