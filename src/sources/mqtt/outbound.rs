//! Subscriptions of one client, and the publishes to it.
//!
//! Invariants:
//! - events that wait for the client stay in the journal; only publishes in flight are in memory;
//! - events are sent in the order of their lane; those in flight when a connection ended are sent first on the next
//!   one, with the same packet ids;
//! - last values are sent before the events that the feed has not sent yet;
//! - for a client that is not connected nothing is in memory: its state is its [`Progress`] and its subscriptions.

mod last_values;
mod progress;
mod resume;
mod subscription;

pub(super) use progress::Progress;
pub(super) use subscription::{ClientOptions, Limits, Subscription};

use super::shared_subscription::{self, Group};
use crate::clock;
use crate::contract::Rendering;
use crate::event::{Attribute, Record, Timestamp};
use crate::local::{Enough, Event, Feed, Gap, Local, Published};
use crate::mqtt::Protocol;
use crate::mqtt::client::{Head, push_publish};
use last_values::LastValues;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use subscription::{ActiveSubscription, Delivery, InFlight};

/// Bytes of unsent output beyond which no further event is read.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Most publishes in flight to a client, whatever its Receive Maximum.
const WINDOW_MAX: u16 = 256;

/// Subscriptions of one client, and the publishes to it.
#[derive(Debug, Default)]
pub struct Outbound {
    /// Sorted by filter.
    active: Vec<ActiveSubscription>,
    feed: Option<Feed>,
    /// The progress of a restored session until the client is connected.
    restored: Progress,
    last_values: LastValues,
    resend: VecDeque<InFlight>,
    in_flight: VecDeque<InFlight>,
    last_id: u16,
    window: u16,
    rendering: Rendering,
    shared_next: Option<NextShared>,
    serials: u32,
    /// Whether the progress has changed since it was saved.
    has_moved: bool,
}

/// The future of the next event of the client's groups.
struct NextShared(Pin<Box<dyn Future<Output = (Arc<Group>, Event)> + Send>>);

impl std::fmt::Debug for NextShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NextShared")
    }
}

impl Outbound {
    /// Releases blocks of the journal that are being read; they are read again.
    pub fn release_blocks(&mut self) {
        self.feed.iter_mut().for_each(Feed::release_blocks);
    }

    pub fn count(&self) -> usize {
        self.active.len()
    }

    /// Bytes that it takes, about: subscriptions, publishes in flight, and blocks of the journal that are being read.
    pub fn bytes(&self) -> usize {
        let subscriptions: usize = self.active.iter().map(|active| active.subscription.bytes()).sum();
        let in_flight = (self.in_flight.len() + self.resend.len()) * 2 * size_of::<InFlight>();
        subscriptions + in_flight + self.last_values.bytes() + self.feed.as_ref().map_or(0, Feed::bytes)
    }

    /// Returns whether there is neither a subscription nor a publish in flight.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.in_flight.is_empty()
    }

    /// Returns the subscriptions, sorted by filter.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        self.active.iter().map(|active| active.subscription.clone()).collect()
    }

    /// Returns whether there is a subscription of this filter.
    pub fn has(&self, filter: &str) -> bool {
        self.index_of(filter).is_ok()
    }

    fn index_of(&self, filter: &str) -> Result<usize, usize> {
        self.active.binary_search_by(|active| active.subscription.filter.as_str().cmp(filter))
    }

    /// Adds a subscription, or replaces the one with the same filter. Returns `None` if the filter is not valid.
    pub fn subscribe(&mut self, subscription: Subscription, group: Option<Arc<Group>>, local: &Local) -> Option<()> {
        self.release_group_turn();
        let is_shared = group.is_some();
        let mut active = ActiveSubscription::new(subscription, group, self.serials + 1)?;
        match self.index_of(&active.subscription.filter) {
            Ok(index) => {
                // It takes over the pending last values of the subscription that it replaces.
                let before = &self.active[index];
                (active.serial, active.is_told) = (before.serial, before.is_told);
                self.active[index] = active;
            }
            Err(index) => {
                self.serials += 1;
                self.active.insert(index, active);
            }
        }
        if !is_shared && self.feed.is_none() {
            // The feed begins at the end: older events are covered by the last values.
            self.feed = Some(local.feed_from(|_| None));
        }
        Some(())
    }

    /// Removes a subscription. Returns `false` if there is none of this filter.
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        self.release_group_turn();
        let Ok(index) = self.index_of(filter) else { return false };
        let serial = self.active.remove(index).serial;
        self.last_values.forget(serial);
        if !self.active.iter().any(|active| active.group.is_none())
            && let Some(feed) = self.feed.take()
        {
            // Publishes in flight are still delivered [MQTT-3.10.4-3].
            self.restored.lanes = feed.positions().map(|(name, next)| (name.to_owned(), next)).collect();
        }
        true
    }

    /// Queues the last values that match a subscription and whose events the feed will not send.
    pub fn queue_last_values(&mut self, filter: &str) {
        let Ok(index) = self.index_of(filter) else { return };
        let active = &mut self.active[index];
        if active.group.is_some() {
            return;
        }
        // Once per subscription, even if the client repeats SUBSCRIBE.
        self.last_values.forget(active.serial);
        active.is_told = true;
        self.last_values.below = self.feed.iter().flat_map(Feed::positions).map(|(_, next)| next).collect();
        self.last_values.add(active.serial, None);
    }

    /// Queues last values for events in a gap that the feed could not read.
    fn handle_gap(&mut self, gap: Gap) {
        for active in self.active.iter().filter(|active| active.is_told) {
            if !self.last_values.awaits(active.serial, gap.from) {
                self.last_values.add(active.serial, Some(gap.from));
            }
        }
        if let Some(below) = self.last_values.below.get_mut(gap.from.lane) {
            *below = gap.to;
        }
    }

    fn has_room(&self, output: &[u8]) -> bool {
        output.len() < OUTPUT_BYTES_MAX && self.in_flight.len() < usize::from(self.window)
    }

    /// Number of events that the feed has not sent yet.
    pub fn behind(&self) -> u64 {
        self.feed.as_ref().map_or(0, Feed::backlog)
    }

    /// Ends a publish that the client has acknowledged. Returns `false` if it was not in flight.
    pub fn acknowledged(&mut self, packet_id: u16) -> bool {
        let found = self.in_flight.iter().position(|flight| flight.packet_id == packet_id);
        let Some(flight) = found.and_then(|index| self.in_flight.remove(index)) else { return false };
        self.has_moved = true;
        if let Delivery::Shared(group, place) = flight.delivery {
            group.done(place);
        }
        true
    }

    /// Polls for something to send, if the window and the output have room for it.
    pub fn poll_ready(&mut self, context: &mut Context<'_>, output: &[u8], local: &Arc<Local>) -> Poll<Ready> {
        if !self.has_room(output) {
            return Poll::Pending;
        }
        let is_telling = self.last_values.poll_ready(context, local);
        if is_telling || (!self.last_values.pauses_feed() && self.poll_feed(context)) {
            return Poll::Ready(Ready::Own);
        }
        if self.active.iter().all(|active| active.group.is_none()) {
            return Poll::Pending;
        }
        let next = self.shared_next.get_or_insert_with(|| {
            let groups: Vec<Arc<Group>> = self.active.iter().filter_map(|active| active.group.clone()).collect();
            NextShared(Box::pin(async move { shared_subscription::next(&groups).await }))
        });
        let (group, event) = ready!(next.0.as_mut().poll(context));
        self.shared_next = None;
        Poll::Ready(Ready::Shared(group, event))
    }

    /// Returns whether the feed has an event. After the journal is closed it has none.
    fn poll_feed(&mut self, context: &mut Context<'_>) -> bool {
        let Some(feed) = &mut self.feed else { return false };
        let is_ready = feed.poll_ready(context) == Poll::Ready(true);
        if let Some(gap) = feed.take_gap() {
            self.handle_gap(gap);
        }
        is_ready
    }

    /// Gives up the client's turn in its groups, so that other members get the next event. Has to be called
    /// before anything else is awaited.
    pub fn release_group_turn(&mut self) {
        self.shared_next = None;
    }

    /// Writes last values and events as far as there is room, except events before `oldest`. Returns the number of events
    /// that were dropped for their age.
    pub fn fill(&mut self, options: ClientOptions, oldest: Timestamp, local: &Local, output: &mut Vec<u8>) -> u64 {
        let oldest = self.last_values.oldest(oldest, self.feed.as_ref());
        self.last_values.look_up(&self.active, local, oldest);
        self.fill_last_values(options, local, output);
        if self.last_values.pauses_feed() {
            return 0;
        }
        let Some(mut feed) = self.feed.take() else { return 0 };
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
                if is_too_late(passing.published, passing.record) {
                    return Enough::No;
                }
                let head = self.head(qos, false);
                let event = EventToSend {
                    published: passing.published,
                    record: passing.record,
                    sequence: passing.sequence,
                    recorded: passing.recorded,
                };
                let is_sent = self.push(options, &Head { subscriptions: &ids, ..head }, &event, output);
                if is_sent && head.packet_id > 0 {
                    let delivery = Delivery::Event(passing.place);
                    self.in_flight.push_back(InFlight { packet_id: head.packet_id, delivery });
                }
                if self.has_room(output) { Enough::No } else { Enough::Yes }
            });
        }
        self.rendering.topic = topic;
        self.feed = Some(feed);
        too_old
    }

    fn fill_last_values(&mut self, options: ClientOptions, local: &Local, output: &mut Vec<u8>) {
        while self.has_room(output) {
            let Some((value, serial)) = self.last_values.values.pop_front() else { break };
            let Some(active) = self.active.iter().find(|active| active.serial == serial) else { continue };
            let (qos, ids) = (active.subscription.qos, Vec::from_iter(active.subscription.id));
            let Some((record, published)) = value.record().zip(local.published(&value)) else { continue };
            let head = self.head(qos, true);
            let (sequence, recorded) = (value.sequence, value.recorded);
            let event = EventToSend { published: &published, record: &record, sequence, recorded };
            let is_sent = self.push(options, &Head { subscriptions: &ids, ..head }, &event, output);
            if is_sent && head.packet_id > 0 {
                let delivery = Delivery::Last(serial);
                self.in_flight.push_back(InFlight { packet_id: head.packet_id, delivery });
            }
        }
    }

    /// Writes an event that a group has assigned to this client.
    pub fn fill_shared(&mut self, options: ClientOptions, group: &Arc<Group>, event: &Event, output: &mut Vec<u8>) {
        let own =
            self.active.iter().find(|active| active.group.as_ref().is_some_and(|known| Arc::ptr_eq(known, group)));
        let Some(ActiveSubscription { subscription, .. }) = own else {
            group.give_back(event.place);
            return;
        };
        let (qos, ids) = (subscription.qos, subscription.id.into_iter().collect::<Vec<_>>());
        let record = event.record().filter(|record| !is_too_late(&event.published, record));
        let Some(record) = record else { return group.done(event.place) };
        let head = self.head(qos, false);
        let is_sent =
            self.push(options, &Head { subscriptions: &ids, ..head }, &EventToSend::of(event, &record), output);
        if !is_sent || head.packet_id == 0 {
            group.done(event.place);
        } else {
            let delivery = Delivery::Shared(Arc::clone(group), event.place);
            self.in_flight.push_back(InFlight { packet_id: head.packet_id, delivery });
        }
    }

    /// Resends the publishes in flight of the last connection whose topics `may` allows. Reads from the disk.
    pub async fn resend_in_flight(
        &mut self,
        options: ClientOptions,
        local: &Local,
        may: &(dyn Fn(&str) -> bool + Sync),
        output: &mut Vec<u8>,
    ) {
        let mut topic = Vec::new();
        while let Some(flight) = self.resend.pop_front() {
            let Delivery::Event(place) = &flight.delivery else { continue };
            // An event that the journal does not have any more cannot be sent.
            let Some(event) = local.event_at(*place).await else { continue };
            let record = event.record().filter(|record| !is_too_late(&event.published, record));
            let Some(record) = record else { continue };
            topic.clear();
            event.published.renderer.push_topic(&record, &mut topic);
            if !std::str::from_utf8(&topic).is_ok_and(may) {
                continue;
            }
            let head = Head { packet_id: flight.packet_id, dup: true, ..Head::default() };
            if self.push(options, &head, &EventToSend::of(&event, &record), output) {
                self.in_flight.push_back(flight);
            }
        }
    }

    /// Returns the highest QoS and all identifiers of the subscriptions that match a topic.
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

    /// Renders and appends a publish. Returns `false` if it exceeds the client's Maximum Packet Size.
    fn push(
        &mut self,
        options: ClientOptions,
        head: &Head<'_>,
        event: &EventToSend<'_, '_>,
        output: &mut Vec<u8>,
    ) -> bool {
        self.has_moved = true;
        let out = &mut self.rendering;
        let EventToSend { published, record, sequence, recorded } = *event;
        out.takes_properties = options.protocol == Protocol::V5;
        published.renderer.render(record, sequence, recorded, out);
        let content_type = out.content_type_own.as_deref().unwrap_or(out.content_type);
        let start = output.len();
        let head = Head { content_type: Some(content_type), properties: &out.properties, ..*head };
        push_publish(output, options.protocol, &head, &out.topic, &out.payload);
        if output.len() - start > options.packet_bytes_max {
            // [MQTT-3.1.2-25]: the gateway acts as if the packet had been sent.
            output.truncate(start);
            return false;
        }
        true
    }
}

/// Whether an event is a command whose time to begin has passed, as far as the clock can be trusted.
fn is_too_late(published: &Published, record: &Record<'_>) -> bool {
    let is_over = |attribute: &Attribute<'_>| {
        let now = Timestamp::from(clock::wall());
        matches!(attribute, Attribute::Expires(at) if *at <= now || !clock::is_trusted())
    };
    published.publication.is_to_devices() && record.attributes.iter().any(is_over)
}

/// An event as it is rendered for the client.
struct EventToSend<'e, 'r> {
    published: &'e Published,
    record: &'e Record<'r>,
    sequence: u64,
    recorded: Timestamp,
}

impl<'e, 'r> EventToSend<'e, 'r> {
    fn of(event: &'e Event, record: &'e Record<'r>) -> Self {
        Self { published: &event.published, record, sequence: event.sequence, recorded: event.recorded }
    }
}

/// A source of publishes that is ready.
#[derive(Debug)]
pub enum Ready {
    /// Of the client's own feed.
    Own,
    /// An event of a group.
    Shared(Arc<Group>, Event),
}
