//! Retention: removes whole segments that no destination needs, and discards events only by a configured limit.
//!
//! Promise: a segment is removed after every destination has settled all of it, when its longest retention is over or its
//! lane needs the room; the oldest first. Events that a limit settles for a destination (`shed-oldest`, `hold`, an age)
//! are counted and announced.

use super::config::DEAD;
use super::handle::Lane;
use super::loss::EventFilter;
use crate::clock;
use crate::event::Record;
use crate::journal::store::cursor::Outcome;
use crate::journal::store::error::JournalError;

/// Removes settled segments past their retention, or sooner if the lane exceeds its budget.
pub(super) fn remove_expired(lane: &Lane) {
    remove_settled_segments(lane, || lane.bytes() > lane.settings.load().budget);
}

/// Removes settled segments before their retention is over until `disk_reserve` is free again, whichever lane needs the
/// room. Dead letters are not reclaimed: they wait for an operator.
pub(super) fn reclaim(lane: &Lane) {
    let needs_room = || {
        let is_used_up = lane.core.is_disk_used_up(lane.folder());
        if is_used_up {
            *lane.core.reclaimed_at.lock() = Some(clock::instant());
            tracing::info!(lane = %lane.name, "disk_reserve reached: removing delivered segments before their retention is over");
        }
        is_used_up
    };
    if lane.name != DEAD {
        remove_settled_segments(lane, needs_room);
    }
}

fn remove_settled_segments(lane: &Lane, needs_room: impl Fn() -> bool) {
    // Another thread already removes segments of this lane.
    let Some(_guard) = lane.retention_lock.try_lock() else { return };
    let is_open =
        |letter: u64, _: &Record<'_>| !lane.core.is_resolved.get().is_some_and(|resolved| (resolved.0)(letter));
    while let Some(oldest) = lane.oldest_closed() {
        if oldest.end > lane.settled_low() {
            return;
        }
        let is_over = clock::age(oldest.closed_at.into()) >= lane.core.retention_settled(&lane.name);
        if !is_over && !needs_room() {
            return;
        }
        // Dead letters have no destination: unresolved ones are lost with their file.
        if lane.name == DEAD
            && let Err(error) = lane.discard_unsettled(
                "",
                &EventFilter { offsets: (oldest.first, oldest.end), takes: &is_open },
                Outcome::Expired,
            )
        {
            tracing::warn!(lane = %lane.name, %error, "could not account for expired dead letters; they stay, will retry");
            return;
        }
        if let Err(error) = lane.remove_segment(oldest.first) {
            tracing::warn!(lane = %lane.name, %error, "could not remove a settled segment; will retry");
            return;
        }
    }
}

/// Settles the oldest closed segment as shed for every destination that still needs it. Returns `false` if there is none.
pub(super) fn shed_oldest(lane: &Lane) -> Result<bool, JournalError> {
    let Some(oldest) = lane.oldest_closed() else { return Ok(false) };
    let whole_segment = EventFilter { offsets: (oldest.first, oldest.end), takes: &|_, _| true };
    let destinations = lane.destinations();
    if destinations.is_empty() {
        lane.discard_unsettled("", &whole_segment, Outcome::Shed)?;
        // Without a destination there is no cursor to settle it with.
        lane.remove_segment(oldest.first)?;
    }
    for destination in destinations {
        lane.discard_unsettled(&destination, &whole_segment, Outcome::Shed)?;
        lane.mark_lost(&destination, oldest.first, oldest.end);
    }
    Ok(true)
}

/// Sheds the oldest events of each destination whose backlog exceeds its `hold`. Returns `true` if cursors have moved.
pub(super) fn enforce_holds(lane: &Lane) -> Result<bool, JournalError> {
    let mut has_moved = false;
    for (destination, hold) in &lane.settings.load_full().holds {
        while let Some((from, to)) = lane.excess_over_hold(destination, *hold) {
            lane.discard_unsettled(
                destination,
                &EventFilter { offsets: (from, to), takes: &|_, _| true },
                Outcome::Shed,
            )?;
            lane.mark_lost(destination, from, to);
            has_moved = true;
        }
    }
    Ok(has_moved)
}
