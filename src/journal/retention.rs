//! Retention: whole segments leave when nobody needs them any more.
//!
//! Promise: a segment leaves only when every destination has settled all of it, and then when its
//! longest retention is over or its lane needs the room; the oldest first.

use super::Lane;
use crate::clock;
use crate::event::Timestamp;

/// Removes what may go. Called by the lane's writer, between commits.
pub(super) fn sweep(lane: &Lane) {
    let now = Timestamp::from(clock::wall());
    while let Some(oldest) = lane.oldest_closed() {
        if oldest.end > lane.settled_low() {
            return;
        }
        let is_over = now.since(oldest.closed_at) >= lane.core.retention_settled(lane);
        let needs_room = lane.bytes() > lane.config.budget;
        if !is_over && !needs_room {
            return;
        }
        if let Err(error) = lane.remove_segment(oldest.first) {
            tracing::warn!(lane = %lane.name, %error, "a segment that is done could not be removed");
            return;
        }
    }
}
