//! What a client has subscribed to, and what it is owed of it.
//!
//! Invariants:
//! - what waits for the client stays in the journal; only what is in flight is remembered here;
//! - events leave in the order of their lane; those in flight when a connection ends leave again
//!   first, under the same packet ids.

use super::group::{self, Group, Groups};
use super::registry::NEVER;
use crate::contract::Rendering;
use crate::event::{Record, Timestamp};
use crate::journal::{Journal, Published};
use crate::link::{Head, Protocol, push_publish};
use crate::local::{Enough, Event, Feed, Filter, LastValue, Local, Place, split_share};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Bytes that may wait for the socket before no further event is looked at.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Publishes in flight to a client at most, whatever it allows.
const WINDOW_MAX: u16 = 256;

/// A subscription. The order of the fields is part of the stored format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The filter as the client wrote it.
    pub filter: String,
    /// 0 or 1.
    pub qos: u8,
    /// Identifier that deliveries carry, in MQTT 5.
    pub id: Option<u32>,
}

#[derive(Debug)]
struct Active {
    subscription: Subscription,
    filter: Filter,
    /// Of a shared subscription.
    group: Option<Arc<Group>>,
}

/// What bounds a client's backlog.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events of each lane that may pass while it sleeps.
    pub events: u64,
    /// Bytes that these may take of each lane's log, about.
    pub bytes: u64,
    /// How old an event may be.
    pub age: Duration,
}

/// A publish that the client has not acknowledged.
#[derive(Clone, Debug)]
struct InFlight {
    packet_id: u16,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// An event of the client's own feed.
    Event(Place),
    /// One of a group's: another member gets it if this one goes.
    Shared(Arc<Group>, Place),
    /// A last value.
    Last(Arc<LastValue>),
}

/// Subscriptions of one client, and the publishes to it.
#[derive(Debug, Default)]
pub struct Outbound {
    active: Vec<Active>,
    feed: Option<Feed>,
    /// Where the feed of a restored session begins.
    restored: Vec<(String, u64)>,
    last_values: VecDeque<(Arc<LastValue>, u8, Vec<u32>)>,
    resend: VecDeque<InFlight>,
    in_flight: VecDeque<InFlight>,
    last_id: u16,
    window: u16,
    rendering: Rendering,
    shared_next: Option<NextShared>,
    /// Subscriptions whose last values are still to be told.
    untold: Vec<(Filter, u8, Option<u32>)>,
    catching_up: Option<CatchingUp>,
}

/// Resolves when the last values are as new as what the client may have been told already.
struct CatchingUp(Pin<Box<dyn Future<Output = Arc<Local>> + Send>>);

impl std::fmt::Debug for CatchingUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CatchingUp")
    }
}

/// The next event of the client's groups, awaited.
struct NextShared(Pin<Box<dyn Future<Output = (Arc<Group>, Event)> + Send>>);

impl std::fmt::Debug for NextShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NextShared")
    }
}

/// How a client wants its publishes.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Version of MQTT.
    pub protocol: Protocol,
    /// Publishes in flight at most.
    pub receive_maximum: u16,
    /// The largest packet it takes.
    pub packet_bytes_max: usize,
}

impl Outbound {
    /// What a note of a session says.
    pub fn restore(subscriptions: &[Subscription], positions: &[(String, u64)]) -> Self {
        let active = subscriptions.iter().filter_map(|subscription| Active::new(subscription.clone(), None));
        Self { active: active.collect(), restored: positions.to_vec(), ..Self::default() }
    }

    /// Lets go of blocks of the journal that are being read; they are read again.
    pub fn let_blocks_go(&mut self) {
        self.feed.iter_mut().for_each(Feed::rest);
    }

    /// How many subscriptions there are.
    pub fn count(&self) -> usize {
        self.active.len()
    }

    /// About how many bytes it takes: subscriptions, what is in flight, and blocks of the journal that are being read.
    pub fn bytes(&self) -> usize {
        let subscriptions: usize = self.active.iter().map(|active| Self::bytes_of(&active.subscription)).sum();
        let in_flight = (self.in_flight.len() + self.resend.len()) * 2 * size_of::<InFlight>();
        let last_values = self.last_values.len() * 2 * size_of::<(Arc<LastValue>, u8, Vec<u32>)>();
        subscriptions + in_flight + last_values + self.feed.as_ref().map_or(0, Feed::bytes)
    }

    /// About how many bytes a subscription takes: its filter as it was written, as it is matched and as it is noted, and
    /// for a shared one its group with a feed.
    pub fn bytes_of(subscription: &Subscription) -> usize {
        const EACH: usize = 512;
        const OF_GROUP: usize = 4096;
        let is_shared = subscription.filter.starts_with("$share/");
        EACH + 4 * subscription.filter.len() + if is_shared { OF_GROUP } else { 0 }
    }

    /// The subscriptions.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        self.active.iter().map(|active| active.subscription.clone()).collect()
    }

    /// For each lane the first event that the client may still need.
    pub fn positions(&self) -> Vec<(String, u64)> {
        let mut positions = self.own_positions();
        for active in &self.active {
            let Some(group) = &active.group else { continue };
            let filter = &active.subscription.filter;
            positions.extend(group.positions().into_iter().map(|(lane, at)| (format!("{filter}\0{lane}"), at)));
        }
        positions
    }

    fn own_positions(&self) -> Vec<(String, u64)> {
        let Some(feed) = &self.feed else { return self.restored.clone() };
        let unacknowledged = || self.resend.iter().chain(&self.in_flight);
        let positions = feed.positions().enumerate().map(|(lane, (name, next))| {
            let lowest = unacknowledged().filter_map(|flight| match &flight.what {
                What::Event(place) if place.lane == lane => Some(place.offset),
                _ => None,
            });
            (name.to_owned(), lowest.min().unwrap_or(next).min(next))
        });
        positions.collect()
    }

    /// Whether there is anything to tell the client, now or later.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.in_flight.is_empty()
    }

    /// Begins a connection: what was in flight goes first. How many events were left out because
    /// they are more than the client may be owed.
    pub fn wake(&mut self, local: &Local, groups: &Groups, wire: Wire, limits: Limits) -> u64 {
        self.window = wire.receive_maximum.min(WINDOW_MAX);
        let mut again = std::mem::take(&mut self.in_flight);
        again.append(&mut self.resend);
        self.resend = again;
        for active in &mut self.active {
            let written = &active.subscription.filter;
            if let Some((Some(share), filter)) = split_share(written)
                && active.group.is_none()
            {
                let prefix = format!("{written}\0");
                let of_group = |(name, at): &(String, u64)| Some((name.strip_prefix(&prefix)?.to_owned(), *at));
                let from: Vec<_> = self.restored.iter().filter_map(of_group).collect();
                active.group = Some(groups.join(share, filter, local, &from));
            }
        }
        if self.feed.is_none() && self.active.iter().any(|active| active.group.is_none()) {
            let restored = std::mem::take(&mut self.restored);
            self.feed = Some(local.feed_from(|lane| restored.iter().find(|(name, _)| name == lane).map(|(_, at)| *at)));
        }
        self.feed.as_mut().map_or(0, |feed| feed.skip_to_newest(limits.events, limits.bytes))
    }

    /// Ends a connection: nothing is kept in memory that the journal has.
    pub fn rest(&mut self) {
        self.let_go();
        self.last_values.clear();
        self.untold.clear();
        self.catching_up = None;
        if let Some(feed) = &mut self.feed {
            feed.rest();
        }
        let (shared, own): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .chain(std::mem::take(&mut self.resend))
            .partition(|flight| matches!(flight.what, What::Shared(..)));
        for flight in shared {
            if let What::Shared(group, place) = flight.what {
                group.give_back(place);
            }
        }
        self.in_flight = own;
    }

    /// Adds a subscription, or replaces the one with the same filter. `true` if it is new.
    pub fn subscribe(&mut self, subscription: Subscription, local: &Local, groups: &Groups) -> Option<bool> {
        let group = match split_share(&subscription.filter)? {
            (Some(share), filter) => Some(groups.join(share, filter, local, &[])),
            (None, _) => None,
        };
        self.let_go();
        let is_shared = group.is_some();
        let active = Active::new(subscription, group)?;
        let before = self.active.len();
        self.active.retain(|known| known.subscription.filter != active.subscription.filter);
        let is_new = self.active.len() == before;
        self.active.push(active);
        if !is_shared && self.feed.is_none() {
            // What is on the disk by now is older than the subscription: the last values tell it.
            self.feed = Some(local.feed_from(|_| None));
        }
        Some(is_new)
    }

    /// Tells the last values that the newest subscription matches, once they are as new as the feed.
    pub fn tell_last_values(&mut self, local: &Arc<Local>) {
        let Some(Active { subscription, filter, group: None }) = self.active.last() else { return };
        // Once for each subscription, however often the client repeats it.
        self.untold.retain(|(known, ..)| known != filter);
        self.untold.push((filter.clone(), subscription.qos, subscription.id));
        let local = Arc::clone(local);
        self.catching_up = Some(CatchingUp(Box::pin(async move {
            local.caught_up().await;
            local
        })));
    }

    fn poll_last_values(&mut self, context: &mut Context<'_>) {
        if !self.last_values.is_empty() {
            return;
        }
        let Some(catching_up) = &mut self.catching_up else { return };
        let Poll::Ready(local) = catching_up.0.as_mut().poll(context) else { return };
        self.catching_up = None;
        // One subscription at a time: all values of many filters would be many times as many.
        let Some((filter, qos, id)) = self.untold.pop() else { return };
        for (_, value) in local.last_values(|topic| filter.matches(topic)) {
            self.last_values.push_back((value, qos, id.into_iter().collect()));
        }
        if !self.untold.is_empty() {
            self.catching_up = Some(CatchingUp(Box::pin(async move { local })));
        }
    }

    /// Removes a subscription; `false` if there is none.
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        self.let_go();
        let before = self.active.len();
        self.active.retain(|active| active.subscription.filter != filter);
        if !self.active.iter().any(|active| active.group.is_none()) {
            self.feed = None;
            self.last_values.clear();
            self.untold.clear();
        }
        self.active.len() < before
    }

    fn has_room(&self, output: &[u8]) -> bool {
        output.len() < OUTPUT_BYTES_MAX && self.in_flight.len() < usize::from(self.window)
    }

    /// How many events it is behind.
    pub fn behind(&self) -> u64 {
        self.feed.as_ref().map_or(0, Feed::behind)
    }

    /// The client has acknowledged a publish; `false` if it was not in flight.
    pub fn acknowledged(&mut self, packet_id: u16) -> bool {
        let found = self.in_flight.iter().position(|flight| flight.packet_id == packet_id);
        let Some(flight) = found.and_then(|index| self.in_flight.remove(index)) else { return false };
        if let What::Shared(group, place) = flight.what {
            group.done(place);
        }
        true
    }

    /// Waits until there may be something to send, if there is room for it.
    pub fn poll_ready(&mut self, context: &mut Context<'_>, output: &[u8]) -> Poll<Ready> {
        if !self.has_room(output) {
            return Poll::Pending;
        }
        self.poll_last_values(context);
        if !self.last_values.is_empty() {
            return Poll::Ready(Ready::Own);
        }
        // A closed journal has nothing more to tell.
        if let Some(feed) = &mut self.feed
            && feed.poll_ready(context) == Poll::Ready(true)
        {
            return Poll::Ready(Ready::Own);
        }
        if self.active.iter().all(|active| active.group.is_none()) {
            return Poll::Pending;
        }
        let next = self.shared_next.get_or_insert_with(|| {
            let groups: Vec<Arc<Group>> = self.active.iter().filter_map(|active| active.group.clone()).collect();
            NextShared(Box::pin(async move { group::next(&groups).await }))
        });
        let (group, event) = ready!(next.0.as_mut().poll(context));
        self.shared_next = None;
        Poll::Ready(Ready::Shared(group, event))
    }

    /// Lets other members of its groups have the next event: to be called before anything else is awaited.
    pub fn let_go(&mut self) {
        self.shared_next = None;
    }

    /// Writes what there is room for. How many events were left out because of their age.
    pub fn fill(&mut self, wire: Wire, now: Timestamp, limits: Limits, journal: &Journal, output: &mut Vec<u8>) -> u64 {
        while self.has_room(output) {
            let Some((value, qos, ids)) = self.last_values.pop_front() else { break };
            let Some((record, published)) = value.record().zip(value.published(journal)) else { continue };
            let head = self.head(qos, true);
            let is_sent = self.push(wire, head, &ids, &published, &record, value.sequence, value.recorded, output);
            if is_sent && head.packet_id > 0 {
                self.in_flight.push_back(InFlight { packet_id: head.packet_id, what: What::Last(Arc::clone(&value)) });
            }
        }
        let Some(mut feed) = self.feed.take() else { return 0 };
        let oldest = if limits.age.as_secs() < u64::from(NEVER) { now.before(limits.age) } else { Timestamp(i64::MIN) };
        let mut too_old = 0;
        let mut topic = std::mem::take(&mut self.rendering.topic);
        if self.has_room(output) {
            feed.look(|passing| {
                topic.clear();
                passing.published.renderer.push_topic(passing.record, &mut topic);
                let Some((qos, ids)) = std::str::from_utf8(&topic).ok().and_then(|topic| self.wanted(topic)) else {
                    return Enough::No;
                };
                if passing.recorded < oldest {
                    too_old += 1;
                    return Enough::No;
                }
                let head = self.head(qos, false);
                let (published, sequence) = (passing.published, passing.sequence);
                let is_sent =
                    self.push(wire, head, &ids, published, passing.record, sequence, passing.recorded, output);
                if is_sent && head.packet_id > 0 {
                    let what = What::Event(passing.place);
                    self.in_flight.push_back(InFlight { packet_id: head.packet_id, what });
                }
                if self.has_room(output) { Enough::No } else { Enough::Yes }
            });
        }
        self.rendering.topic = topic;
        self.feed = Some(feed);
        too_old
    }

    /// Writes an event that a group has handed to this client.
    pub fn fill_shared(&mut self, wire: Wire, group: &Arc<Group>, event: &Event, output: &mut Vec<u8>) {
        let own =
            self.active.iter().find(|active| active.group.as_ref().is_some_and(|known| Arc::ptr_eq(known, group)));
        let Some(Active { subscription, .. }) = own else {
            group.give_back(event.place);
            return;
        };
        let (qos, ids) = (subscription.qos, subscription.id.into_iter().collect::<Vec<_>>());
        let Some(record) = event.record() else { return group.done(event.place) };
        let head = self.head(qos, false);
        let is_sent = self.push(wire, head, &ids, &event.published, &record, event.sequence, event.recorded, output);
        if !is_sent || head.packet_id == 0 {
            group.done(event.place);
        } else {
            let what = What::Shared(Arc::clone(group), event.place);
            self.in_flight.push_back(InFlight { packet_id: head.packet_id, what });
        }
    }

    /// Sends again what was in flight when the last connection ended. Reads from the disk.
    pub async fn send_again(&mut self, wire: Wire, journal: &Journal, output: &mut Vec<u8>) {
        while let Some(flight) = self.resend.pop_front() {
            let packet_id = flight.packet_id;
            let head = Head { packet_id, dup: true, ..Head::default() };
            let is_sent = match &flight.what {
                What::Last(value) => {
                    let Some((record, published)) = value.record().zip(value.published(journal)) else { continue };
                    let head = Head { retain: true, ..head };
                    self.push(wire, head, &[], &published, &record, value.sequence, value.recorded, output)
                }
                What::Event(place) | What::Shared(_, place) => {
                    // What is no longer there is not owed any more.
                    let Some(event) = Event::at(journal, *place).await else { continue };
                    let Some(record) = event.record() else { continue };
                    self.push(wire, head, &[], &event.published, &record, event.sequence, event.recorded, output)
                }
            };
            if is_sent {
                self.in_flight.push_back(flight);
            }
        }
    }

    /// The best quality and all identifiers of the subscriptions that match a topic.
    fn wanted(&self, topic: &str) -> Option<(u8, Vec<u32>)> {
        let mut matching = self.active.iter().filter(|active| active.group.is_none() && active.filter.matches(topic));
        let first = matching.next()?;
        let mut found = (first.subscription.qos, Vec::from_iter(first.subscription.id));
        for active in matching {
            found.0 = found.0.max(active.subscription.qos);
            found.1.extend(active.subscription.id);
        }
        Some(found)
    }

    fn head(&mut self, qos: u8, retain: bool) -> Head<'static> {
        if qos == 0 {
            return Head { retain, ..Head::default() };
        }
        loop {
            self.last_id = self.last_id % u16::MAX + 1;
            let taken = |flight: &InFlight| flight.packet_id == self.last_id;
            if !self.in_flight.iter().chain(&self.resend).any(taken) {
                return Head { packet_id: self.last_id, retain, ..Head::default() };
            }
        }
    }

    /// Renders and appends a publish; `false` if the client takes no packet of that size.
    #[allow(clippy::too_many_arguments)]
    fn push(
        &mut self,
        wire: Wire,
        head: Head<'_>,
        subscriptions: &[u32],
        published: &Arc<Published>,
        record: &Record<'_>,
        sequence: u64,
        recorded: Timestamp,
        output: &mut Vec<u8>,
    ) -> bool {
        let out = &mut self.rendering;
        published.renderer.render(record, sequence, recorded, wire.protocol == Protocol::V5, out);
        let content_type = out.content_type_own.as_deref().unwrap_or(out.content_type);
        let start = output.len();
        let head = Head { subscriptions, ..head };
        push_publish(output, wire.protocol, &head, &out.topic, content_type, &out.properties, &out.payload);
        if output.len() - start > wire.packet_bytes_max {
            // [MQTT-3.1.2-25]: it is as if it had been sent.
            output.truncate(start);
            return false;
        }
        true
    }
}

/// What there may be to send.
#[derive(Debug)]
pub enum Ready {
    /// Of the client's own feed.
    Own,
    /// Of a group.
    Shared(Arc<Group>, Event),
}

impl Active {
    fn new(subscription: Subscription, group: Option<Arc<Group>>) -> Option<Self> {
        let filter = Filter::parse(split_share(&subscription.filter)?.1)?;
        Some(Self { subscription, filter, group })
    }
}
