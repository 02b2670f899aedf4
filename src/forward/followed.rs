//! The followed events that are on their way to central (see `telemetry::follow`).

use super::config::Config;
use crate::event::Id;
use crate::journal::{Lane, Outcome};
use crate::telemetry::{FOLLOW, follow};
use std::collections::VecDeque;
use tracing::Span;

/// Largest number of followed events; beyond it the oldest ones are no longer followed.
const FOLLOWED_MAX: usize = 4096;

/// The followed events in flight or in an open batch, with their offsets; empty while no event is followed.
#[derive(Debug, Default)]
pub(super) struct Followed(VecDeque<(u64, Span)>);

impl Followed {
    /// Logs that an event is sent, if it is followed; `place` is its offset and sequence.
    #[inline]
    pub(super) fn begin(&mut self, id: &Id<'_>, lane: &Lane, to: &Config, place: (u64, u64)) {
        let Some(span) = follow(id) else { return };
        let (offset, sequence) = place;
        span.in_scope(|| tracing::debug!(target: FOLLOW, lane = %lane.name, destination = %to.name, offset, sequence, "sent to central, alone or in a batch"));
        self.0.push_back((offset, span));
        if self.0.len() > FOLLOWED_MAX {
            self.0.pop_front();
        }
    }

    /// Logs the followed ones of the settled events.
    #[inline]
    pub(super) fn end(&mut self, settled: &[(u64, u32, Outcome)]) {
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

    /// Forgets all events: they are sent again.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
