//! Progress of the publishes to a client, which a persistent session stores: positions in the lanes and
//! unacknowledged publishes.

use super::subscription::{Delivery, InFlight};
use crate::local::{Feed, JournalPosition};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The stored progress. The order of the fields is part of the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// For each lane its name and the next event to read.
    pub lanes: Vec<(String, u64)>,
    /// Publishes that the client has not acknowledged: packet id, index in `lanes`, offset.
    pub in_flight: Vec<(u16, u8, u64)>,
    /// The packet id used last.
    pub last_id: u16,
    /// Subscriptions whose last values are not all sent and acknowledged, by their index in the order of the filters.
    pub untold: Vec<u16>,
    /// For each of `lanes` the offset below which last values cover the events for these; the feed sends those after
    /// it. Empty if `untold` is.
    pub told_below: Vec<u64>,
}

impl Progress {
    /// Returns the offsets below which last values cover the events, in the order of the feed's lanes.
    pub(super) fn told_below(&self, feed: &Feed) -> Vec<u64> {
        let stored = |lane: &str| {
            let index = self.lanes.iter().position(|(name, _)| name == lane)?;
            self.told_below.get(index).copied()
        };
        feed.positions().map(|(lane, next)| stored(lane).unwrap_or(next)).collect()
    }

    /// Returns the publishes in flight, with the lanes of this feed.
    pub(super) fn flights(&self, feed: &Feed) -> VecDeque<InFlight> {
        let lane = |index: u8| {
            let (name, _) = self.lanes.get(usize::from(index))?;
            feed.positions().position(|(known, _)| known == name)
        };
        let flight = |(packet_id, index, offset): &(u16, u8, u64)| {
            let delivery = Delivery::Event(JournalPosition { lane: lane(*index)?, offset: *offset });
            Some(InFlight { packet_id: *packet_id, delivery })
        };
        self.in_flight.iter().filter_map(flight).collect()
    }
}
