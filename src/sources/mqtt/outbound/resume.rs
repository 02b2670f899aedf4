//! How the subscriptions of a client outlive its connection: restored from the disk, resumed on the next connection, and
//! suspended at the end of one.

use super::super::shared_subscription::{Group, GroupNote};
use super::progress::Progress;
use super::subscription::{ActiveSubscription, ClientOptions, Delivery, InFlight, Limits, Subscription};
use super::{Outbound, WINDOW_MAX};
use crate::local::Local;
use std::sync::Arc;

impl Outbound {
    /// Restores the subscriptions of a stored session; they may be in any order.
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

    /// Returns the progress to store.
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
            // The session has not resumed, or has only shared subscriptions.
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

    /// Returns the progress if it has changed since the last call.
    pub fn take_progress(&mut self) -> Option<Progress> {
        std::mem::take(&mut self.has_moved).then(|| self.progress())
    }

    /// Returns the filters of the client's shared subscriptions, with the positions of their groups.
    pub fn group_notes(&self) -> Vec<(String, GroupNote)> {
        let of_groups = self.active.iter().filter_map(|active| Some((active, active.group.as_ref()?)));
        of_groups.map(|(active, group)| (active.subscription.filter.clone(), group.note())).collect()
    }

    /// Resumes the session on a connection: publishes in flight are sent first. `join` returns the group of a shared
    /// filter. Returns the number of events that were skipped because they exceed the limits.
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
        // Events that were left to the feed and that it skips now are sent as last values.
        self.last_values.below =
            lanes.map(|(((_, next), from), below)| if next > from { next } else { below }).collect();
        self.feed = Some(feed);
        cut
    }

    /// Ends a connection: events that its groups have assigned to it go to other members.
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
