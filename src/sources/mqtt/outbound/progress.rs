//! Delivery is kept of the deliveries to a client while it sleeps: where it was, and what it had not acknowledged.

use super::super::shared_subscription::{Group, GroupNote};
use super::{
    ActiveSubscription, ClientOptions, Delivery, Feed, InFlight, Limits, Local, Outbound, Place, Subscription,
    WINDOW_MAX,
};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// How far a client was told. The order of the fields is part of the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// For each lane its name and the next event to look at.
    pub lanes: Vec<(String, u64)>,
    /// Publishes that the client has not acknowledged: packet id, index in `lanes`, offset.
    pub in_flight: Vec<(u16, u8, u64)>,
    /// The packet id that was used last.
    pub last_id: u16,
    /// Subscriptions whose last values were not told and acknowledged to the end, by their place in the order of the filters.
    pub untold: Vec<u16>,
    /// For each of `lanes` up to where last values are told to these: from there on it was the feed's. Empty without them.
    pub told_below: Vec<u64>,
}

impl Outbound {
    /// Delivery a session was that is on the disk; its subscriptions may be in any order.
    pub fn restore(mut subscriptions: Vec<Subscription>, progress: &Progress) -> Self {
        subscriptions.sort_unstable_by(|a, b| a.filter.cmp(&b.filter));
        let mut outbound = Self { restored: progress.clone(), last_id: progress.last_id, ..Self::default() };
        for (subscription, serial) in subscriptions.into_iter().zip(1..) {
            outbound.active.extend(ActiveSubscription::new(subscription, None, serial));
            outbound.serials = serial;
        }
        for index in &progress.untold {
            if let Some(active) = outbound.active.get_mut(usize::from(*index)) {
                active.is_told = true;
                outbound.last_values.resume(active.serial);
            }
        }
        outbound.last_values.below = progress.told_below.clone();
        outbound
    }

    /// Delivery is to be kept of the deliveries.
    pub fn progress(&self) -> Progress {
        let flights = || self.resend.iter().chain(&self.in_flight);
        let in_flight = flights().filter_map(|flight| match &flight.delivery {
            Delivery::Event(place) => Some((flight.packet_id, u8::try_from(place.lane).ok()?, place.offset)),
            _ => None,
        });
        let unacknowledged = flights().filter_map(|flight| match &flight.delivery {
            Delivery::Last(serial) => Some(*serial),
            _ => None,
        });
        let serials: Vec<u32> = unacknowledged.chain(self.last_values.serials()).collect();
        let is_untold = |(index, active): (usize, &ActiveSubscription)| {
            serials.contains(&active.serial).then(|| u16::try_from(index).ok()).flatten()
        };
        let untold: Vec<u16> = self.active.iter().enumerate().filter_map(is_untold).collect();
        let told_below = if untold.is_empty() { Vec::new() } else { self.last_values.below.clone() };
        match &self.feed {
            // It was not woken yet, or has no subscription of its own.
            None => {
                let restored = self.restored.clone();
                let in_flight = restored.in_flight.into_iter().chain(in_flight).collect();
                Progress { lanes: restored.lanes, in_flight, last_id: self.last_id, untold, told_below }
            }
            Some(feed) => Progress {
                lanes: feed.positions().map(|(name, next)| (name.to_owned(), next)).collect(),
                in_flight: in_flight.collect(),
                last_id: self.last_id,
                untold,
                told_below,
            },
        }
    }

    /// Delivery is to be kept, if anything was sent or acknowledged since the last call.
    pub fn take_progress(&mut self) -> Option<Progress> {
        std::mem::take(&mut self.has_moved).then(|| self.progress())
    }

    /// The client's groups: filter as it was written, and how far each was handed out.
    pub fn group_notes(&self) -> Vec<(String, GroupNote)> {
        let of_groups = self.active.iter().filter_map(|active| Some((active, active.group.as_ref()?)));
        of_groups.map(|(active, group)| (active.subscription.filter.clone(), group.note())).collect()
    }

    /// Begins a connection: what was in flight goes first. `join` gives the group of a shared filter. How many events
    /// were left out because they are more than the client may be owed.
    pub fn resume(
        &mut self,
        local: &Arc<Local>,
        join: impl Fn(&str) -> Arc<Group>,
        options: ClientOptions,
        limits: Limits,
    ) -> u64 {
        self.window = options.receive_maximum.min(WINDOW_MAX);
        let restored = std::mem::take(&mut self.restored);
        for active in &mut self.active {
            if active.subscription.filter.starts_with("$share/") {
                active.group = Some(join(&active.subscription.filter));
            }
        }
        let from = |lane: &str| restored.lanes.iter().find(|(name, _)| name == lane).map(|(_, at)| *at);
        let mut feed = local.feed_from(from);
        self.resend = restored.flights(&feed);
        if self.active.iter().all(|active| active.group.is_some()) {
            self.restored.lanes = restored.lanes;
            return 0;
        }
        let below = restored.told_below(&feed);
        let from: Vec<u64> = feed.positions().map(|(_, next)| next).collect();
        let cut = feed.skip_to_newest(limits.events, limits.bytes);
        let lanes = feed.positions().zip(from).zip(below);
        // Events that were left to the feed and that the feed skips now are sent as last values.
        self.last_values.below =
            lanes.map(|(((_, next), from), below)| if next > from { next } else { below }).collect();
        self.feed = Some(feed);
        cut
    }

    /// Ends a connection: what its groups have handed to it goes to other members.
    pub fn suspend(&mut self) {
        self.release_group_turn();
        for flight in self.in_flight.iter().chain(&self.resend) {
            if let Delivery::Shared(group, place) = &flight.delivery {
                group.give_back(*place);
            }
        }
        let is_own = |flight: &InFlight| !matches!(flight.delivery, Delivery::Shared(..));
        self.in_flight.retain(is_own);
        self.resend.retain(is_own);
    }
}

impl Progress {
    /// Up to where last values are told, among the lanes of this feed.
    fn told_below(&self, feed: &Feed) -> Vec<u64> {
        let noted = |lane: &str| {
            let index = self.lanes.iter().position(|(name, _)| name == lane)?;
            self.told_below.get(index).copied()
        };
        feed.positions().map(|(lane, next)| noted(lane).unwrap_or(next)).collect()
    }

    /// Delivery was in flight, among the lanes of this feed.
    fn flights(&self, feed: &Feed) -> VecDeque<InFlight> {
        let lane = |index: u8| {
            let (name, _) = self.lanes.get(usize::from(index))?;
            feed.positions().position(|(known, _)| known == name)
        };
        let flight = |(packet_id, index, offset): &(u16, u8, u64)| {
            let delivery = Delivery::Event(Place { lane: lane(*index)?, offset: *offset });
            Some(InFlight { packet_id: *packet_id, delivery })
        };
        self.in_flight.iter().filter_map(flight).collect()
    }
}
