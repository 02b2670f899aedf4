//! The last values that a client asks for with a SUBSCRIBE, beside the events that its feed sends.
//!
//! Promise: of the newest event of a topic a client is sent the last value, if its feed was behind that event already when
//! it subscribed, and the event itself otherwise; never both, and nothing older of the topic behind either. Delivery the feed
//! does not send after all, since it is too old or no longer in the journal, is told as a last value.
//! Invariant: the feed rests while last values wait, unless the journal cannot be read for them.

use super::{ActiveSubscription, Outbound};
use crate::event::Timestamp;
use crate::local::{Feed, Gap, LastValue, Local, Place};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The time that the feed rests until the last values are looked up: a start after a crash follows 200,000 events first, in an
/// estimated two seconds. A disk that fails does not keep clients from what comes after.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Last values that are to be told.
#[derive(Debug, Default)]
pub(super) struct LastValues {
    /// Subscriptions whose last values are still to be looked up.
    untold: Vec<Lookup>,
    /// For each lane how far the feed was at the newest SUBSCRIBE that asked for last values: what is before is told. Of a
    /// session that was not woken yet in the order of the lanes that were noted.
    pub(super) below: Vec<u64>,
    /// Last values that wait, each with the serial of its subscription.
    pub(super) values: VecDeque<(Arc<LastValue>, u32)>,
    catching_up: Option<CatchingUp>,
    is_caught_up: bool,
    /// Whether the feed has rested for too long, and goes on until the last values have caught up with where it was.
    is_feed_first: bool,
    cutoff: Option<Cutoff>,
}

#[derive(Debug)]
struct Lookup {
    serial: u32,
    /// Only those whose event the feed could not look at.
    lost: Option<Place>,
}

/// From when on events are sent, as it was when values were left to the feed: what is older was told as a last value.
#[derive(Debug)]
struct Cutoff {
    oldest: Timestamp,
    /// For each lane the offset behind the last such event.
    reach: Vec<u64>,
}

/// Resolves when the last values are as new as what the feed has sent; with `false` if that takes too long.
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
    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.values.len() * 2 * size_of::<(Arc<LastValue>, u32)>() + self.untold.len() * 2 * size_of::<Lookup>()
    }

    /// Whether the feed is to rest, since last values wait.
    pub(super) fn pauses_feed(&self) -> bool {
        !self.values.is_empty() || (!self.untold.is_empty() && !self.is_feed_first)
    }

    /// Serials of the subscriptions that wait.
    pub(super) fn serials(&self) -> impl Iterator<Item = u32> {
        let untold = self.untold.iter().map(|untold| untold.serial);
        untold.chain(self.values.iter().map(|(_, serial)| *serial))
    }

    fn add(&mut self, serial: u32, lost: Option<Place>) {
        self.untold.push(Lookup { serial, lost });
        (self.is_caught_up, self.is_feed_first) = (false, false);
        self.catching_up = None;
    }

    /// Whether what was lost of a lane is looked up for a subscription anyway.
    fn awaits(&self, serial: u32, from: Place) -> bool {
        let covers = |lost: Place| lost.lane == from.lane;
        self.untold.iter().any(|untold| untold.serial == serial && untold.lost.is_none_or(covers))
    }

    /// Has the last values of a subscription told that an earlier connection had not told to the end.
    pub(super) fn resume(&mut self, serial: u32) {
        self.add(serial, None);
    }

    /// Forgets a subscription.
    pub(super) fn forget(&mut self, serial: u32) {
        self.untold.retain(|untold| untold.serial != serial);
        self.values.retain(|(_, of)| *of != serial);
    }

    /// Whether there is something to tell, or to look up, now.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>, local: &Arc<Local>) -> bool {
        if self.untold.is_empty() {
            return !self.values.is_empty();
        }
        while !self.is_caught_up {
            let is_patient = self.is_feed_first;
            let catching_up = self.catching_up.get_or_insert_with(|| CatchingUp::begin(local, is_patient));
            let Poll::Ready(is_there) = catching_up.0.as_mut().poll(context) else { break };
            self.catching_up = None;
            // The feed that went first rests once more: last values may not be older than what it has sent.
            self.is_caught_up = is_there && !is_patient;
            self.is_feed_first = !is_there;
        }
        self.is_caught_up || !self.values.is_empty()
    }

    /// From when on events are sent; `oldest` if nothing else has been promised.
    pub(super) fn oldest(&mut self, oldest: Timestamp, feed: Option<&Feed>) -> Timestamp {
        self.cutoff.take_if(|cutoff| !feed.is_some_and(|feed| feed.has_unread_below(&cutoff.reach)));
        self.cutoff.as_ref().map_or(oldest, |cutoff| cutoff.oldest)
    }

    /// The feed is to send this event, if it is not older than `oldest`.
    fn defer_to_feed(&mut self, place: Place, oldest: Timestamp) {
        let lanes = self.below.len();
        let cutoff = self.cutoff.get_or_insert_with(|| Cutoff { oldest, reach: vec![0; lanes] });
        if let Some(reach) = cutoff.reach.get_mut(place.lane) {
            *reach = place.offset.saturating_add(1).max(*reach);
        }
    }

    /// Whether the feed sends the event of a value, or has sent it.
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

    /// Whether a value is one whose event the feed could not look at, and that was not told for its age.
    fn is_lost(&self, value: &LastValue, from: Place) -> bool {
        let in_gap = |place: Place| {
            let to = self.below.get(from.lane).copied().unwrap_or_default();
            place.lane == from.lane && (from.offset..to).contains(&place.offset)
        };
        let is_told = self.cutoff.as_ref().is_some_and(|cutoff| value.recorded < cutoff.oldest);
        value.place().is_some_and(in_gap) && !is_told
    }

    /// Looks up the last values of one subscription, if they are due. One at a time: all values of many filters would be
    /// many times as many.
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

impl Outbound {
    /// Tells the last values that a subscription matches, as far as the feed does not send their events.
    pub fn queue_last_values(&mut self, filter: &str) {
        let Ok(index) = self.index_of(filter) else { return };
        let active = &mut self.active[index];
        if active.group.is_some() {
            return;
        }
        // Once for each subscription, however often the client repeats it.
        self.last_values.forget(active.serial);
        active.is_told = true;
        self.last_values.below = self.feed.iter().flat_map(Feed::positions).map(|(_, next)| next).collect();
        self.last_values.add(active.serial, None);
    }

    /// Tells what the feed could not look at, as far as it was left to it.
    pub(super) fn handle_gap(&mut self, gap: Gap) {
        for active in self.active.iter().filter(|active| active.is_told) {
            if !self.last_values.awaits(active.serial, gap.from) {
                self.last_values.add(active.serial, Some(gap.from));
            }
        }
        if let Some(below) = self.last_values.below.get_mut(gap.from.lane) {
            *below = gap.to;
        }
    }
}
