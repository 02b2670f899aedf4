//! Last values (retained messages) that a SUBSCRIBE asks for, besides the events that the feed sends.
//!
//! Promise: for the newest event of each topic the client gets either the last value, if the feed was past that event
//! when the client subscribed, or the event itself; never both, and nothing older of the topic after either. If the
//! feed cannot send an event after all, since it is too old or no longer in the journal, the client gets the last
//! value.
//! Invariant: the feed pauses while last values wait, unless the journal cannot be read for them.

use super::subscription::ActiveSubscription;
use crate::event::Timestamp;
use crate::local::{Feed, JournalPosition, LastValue, Local};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The longest pause of the feed until the last values are looked up: after a crash up to 200,000 events are followed
/// first, in an estimated two seconds. A failing disk does not withhold later events for longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Last values that are still to be sent.
#[derive(Debug, Default)]
pub(super) struct LastValues {
    /// Subscriptions whose last values have not been looked up.
    untold: Vec<Lookup>,
    /// Position of the feed in each lane at the newest SUBSCRIBE that asked for last values; events before it are
    /// covered by last values. In a session that has not resumed, in the order of the stored lanes.
    pub(super) below: Vec<u64>,
    /// Last values to send, each with the serial of its subscription.
    pub(super) values: VecDeque<(Arc<LastValue>, u32)>,
    catching_up: Option<CatchingUp>,
    is_caught_up: bool,
    /// Whether the pause was too long: the feed runs until the last values have caught up with its position.
    is_feed_first: bool,
    cutoff: Option<Cutoff>,
}

#[derive(Debug)]
struct Lookup {
    serial: u32,
    /// If set, only the values whose events the feed could not read from this position on.
    lost: Option<JournalPosition>,
}

/// The age limit that was in force when values were left to the feed: older values were sent as last values.
#[derive(Debug)]
struct Cutoff {
    oldest: Timestamp,
    /// For each lane the offset after the last such event.
    reach: Vec<u64>,
}

/// Resolves with `true` when the last values include everything that the feed has sent; with `false`
/// if that takes too long.
struct CatchingUp(Pin<Box<dyn Future<Output = bool> + Send>>);

impl std::fmt::Debug for CatchingUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CatchingUp")
    }
}

impl CatchingUp {
    fn begin(local: &Arc<Local>, is_patient: bool) -> Self {
        let local = Arc::clone(local);
        Self(Box::pin(async move {
            if is_patient {
                local.caught_up().await;
                return true;
            }
            tokio::time::timeout(PAUSE_MAX, local.caught_up()).await.is_ok()
        }))
    }
}

impl LastValues {
    /// Bytes that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.values.len() * 2 * size_of::<(Arc<LastValue>, u32)>() + self.untold.len() * 2 * size_of::<Lookup>()
    }

    /// Returns whether the feed has to pause because last values wait.
    pub(super) fn pauses_feed(&self) -> bool {
        !self.values.is_empty() || (!self.untold.is_empty() && !self.is_feed_first)
    }

    /// Returns the serials of the subscriptions whose last values wait.
    pub(super) fn serials(&self) -> impl Iterator<Item = u32> {
        let untold = self.untold.iter().map(|untold| untold.serial);
        untold.chain(self.values.iter().map(|(_, serial)| *serial))
    }

    pub(super) fn add(&mut self, serial: u32, lost: Option<JournalPosition>) {
        self.untold.push(Lookup { serial, lost });
        (self.is_caught_up, self.is_feed_first) = (false, false);
        self.catching_up = None;
    }

    /// Returns whether a lookup that is already queued for a subscription covers a gap in this lane.
    pub(super) fn awaits(&self, serial: u32, from: JournalPosition) -> bool {
        let covers = |lost: JournalPosition| lost.lane == from.lane;
        self.untold.iter().any(|untold| untold.serial == serial && untold.lost.is_none_or(covers))
    }

    /// Queues the last values of a subscription again that an earlier connection did not finish.
    pub(super) fn resume(&mut self, serial: u32) {
        self.add(serial, None);
    }

    /// Removes a subscription from the queues.
    pub(super) fn forget(&mut self, serial: u32) {
        self.untold.retain(|untold| untold.serial != serial);
        self.values.retain(|(_, of)| *of != serial);
    }

    /// Returns whether there are last values to send or to look up now.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>, local: &Arc<Local>) -> bool {
        if self.untold.is_empty() {
            return !self.values.is_empty();
        }
        while !self.is_caught_up {
            let is_patient = self.is_feed_first;
            let catching_up = self.catching_up.get_or_insert_with(|| CatchingUp::begin(local, is_patient));
            let Poll::Ready(is_there) = catching_up.0.as_mut().poll(context) else { break };
            self.catching_up = None;
            // After the feed ran first it pauses once more: last values may not be older than the events that it has
            // sent.
            self.is_caught_up = is_there && !is_patient;
            self.is_feed_first = !is_there;
        }
        self.is_caught_up || !self.values.is_empty()
    }

    /// Returns the age limit of events: `oldest`, unless values were left to the feed under an earlier limit.
    pub(super) fn oldest(&mut self, oldest: Timestamp, feed: Option<&Feed>) -> Timestamp {
        self.cutoff.take_if(|cutoff| !feed.is_some_and(|feed| feed.has_unread_below(&cutoff.reach)));
        self.cutoff.as_ref().map_or(oldest, |cutoff| cutoff.oldest)
    }

    /// Leaves an event to the feed, which sends it if it is not older than `oldest`.
    fn defer_to_feed(&mut self, place: JournalPosition, oldest: Timestamp) {
        let lanes = self.below.len();
        let cutoff = self.cutoff.get_or_insert_with(|| Cutoff { oldest, reach: vec![0; lanes] });
        if let Some(reach) = cutoff.reach.get_mut(place.lane) {
            *reach = place.offset.saturating_add(1).max(*reach);
        }
    }

    /// Returns whether the feed will send the event of a value, or has sent it.
    fn is_left_to_feed(&mut self, value: &LastValue, oldest: Timestamp) -> bool {
        let place = value.place();
        let Some((place, below)) = place.and_then(|place| Some((place, self.below.get(place.lane)?))) else {
            return false;
        };
        if place.offset < *below {
            return false;
        }
        self.defer_to_feed(place, oldest);
        value.recorded >= oldest
    }

    /// Returns whether the feed could not read the event of a value, and the value was not sent for its age.
    fn is_lost(&self, value: &LastValue, from: JournalPosition) -> bool {
        let in_gap = |place: JournalPosition| {
            let to = self.below.get(from.lane).copied().unwrap_or_default();
            place.lane == from.lane && (from.offset..to).contains(&place.offset)
        };
        let is_told = self.cutoff.as_ref().is_some_and(|cutoff| value.recorded < cutoff.oldest);
        value.place().is_some_and(in_gap) && !is_told
    }

    /// Looks up the last values of one subscription. One subscription at a time bounds the memory: many
    /// filters can match all values.
    pub(super) fn look_up(&mut self, active: &[ActiveSubscription], local: &Local, oldest: Timestamp) {
        if !self.values.is_empty() || !self.is_caught_up {
            return;
        }
        let Some(Lookup { serial, lost }) = self.untold.pop() else { return };
        let Some(active) = active.iter().find(|active| active.serial == serial) else { return };
        for (_, value) in local.last_values(|topic| active.filter.matches(topic)) {
            let is_due = match lost {
                None => !self.is_left_to_feed(&value, oldest),
                Some(from) => self.is_lost(&value, from),
            };
            if is_due {
                self.values.push_back((value, serial));
            }
        }
    }
}
