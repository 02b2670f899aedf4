//! Sends the events of a lane, alone or in batches, within the window and the output buffer.

use super::again::read_again;
use super::batch::{Batcher, OpenBatch};
use super::followed::Followed;
use super::in_flight::{Publish, Refusals};
use super::key_order::{Held, KeyOrder, Waiting};
use super::keys::{Key, StreamOrders, key_of_batch, key_of_event, key_of_none};
use super::lane_link::LaneLink;
use super::line_room::LineRoom;
use super::outgoing::{Mark, Outgoing};
use super::pace::{Batch, BatchWhen, Sending};
use super::packet_sizes::PacketSizes;
use super::sender::Sender;
use super::throttle::Throttle;
use crate::clock;
use crate::contract::Order;
use crate::event::{Record, Timestamp};
use crate::link::{LineShare, Output, Session};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Output buffer size at which the forwarder stops filling it, in bytes.
const OUTPUT_BYTES: usize = 64 << 10;

/// Ready batches up to which the lane is read, while some wait for an earlier batch of their stream.
const READY_MAX: usize = 4;
/// Pause before an event is read again that could not be read.
const READ_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct LaneSender {
    pub link: LaneLink,
    sending: Arc<Sending>,
    pub publishes: Sender<Publish>,
    pub batcher: Batcher,
    pub followed: Followed,
    pub order: KeyOrder,
    pub throttle: Throttle,
    pub sizes: PacketSizes,
    orders: StreamOrders,
    pub room: LineRoom,
    /// Events wait that the window or the line does not take.
    is_behind: bool,
}

/// The session to send on, and the results of one call of `fill`.
pub(super) struct Pass<'a> {
    pub session: &'a Session,
    pub output: &'a mut Output,
    pub now: Instant,
    /// Events sent or put into a batch.
    pub events: usize,
    pub sent: u64,
    /// Offsets of events that the broker can never take, with the reason.
    pub poison: Vec<(u64, String)>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(session: &'a Session, output: &'a mut Output) -> Self {
        Self { session, output, now: clock::instant(), events: 0, sent: 0, poison: Vec::new() }
    }
}

impl LaneSender {
    pub(super) fn new(link: LaneLink, sending: Arc<Sending>, share: LineShare) -> Self {
        let (publishes, orders) = (Sender::new(&link.to), StreamOrders::new(&sending.orders));
        let throttle = Throttle::new(clock::instant());
        let (batcher, followed, order) = (Batcher::default(), Followed::default(), KeyOrder::default());
        let (room, sizes) = (LineRoom::new(share), PacketSizes::default());
        Self { link, sending, publishes, batcher, followed, order, throttle, sizes, orders, room, is_behind: false }
    }

    /// The mark of the lane's packets.
    pub(super) fn dscp(&self) -> Option<u8> {
        self.sending.dscp
    }

    pub(super) fn has_room(&self, window: usize, output: &Output) -> bool {
        self.publishes.in_flight.has_room(window) && output.waiting() < OUTPUT_BYTES && self.room.has_room(output)
    }

    /// Returns whether further events may be read.
    pub(super) fn may_read(&self) -> bool {
        self.batcher.ready() < READY_MAX
            && self.order.has_room(self.publishes.in_flight.count(), usize::from(self.link.to.window))
    }

    /// Number of publishes that are not answered, or wait to be sent.
    pub(super) fn unsettled(&self) -> usize {
        self.publishes.in_flight.count() + self.order.waiting()
    }

    /// Forgets what is in flight, in open batches and waiting.
    pub(super) fn clear(&mut self) {
        self.publishes.in_flight.clear();
        self.followed.clear();
        self.batcher.clear();
        self.order.clear();
    }

    /// Begins or prolongs the time with one publish per key in flight; returns whether it began.
    pub(super) fn begin_strict(&mut self, now: Instant) -> bool {
        self.order.begin_strict(now, self.publishes.in_flight.iter_mut())
    }

    /// Sends a rejected batch again in two halves, so that the event that is meant is alone in the end.
    pub(super) fn halve(&mut self, batch: Publish) {
        self.batcher.halve_size(batch.count());
        let (first, second) = batch.halves();
        self.order.put_refused(first, None);
        self.order.put_refused(second, None);
    }

    /// Tries an event again later that could not become a dead letter.
    pub(super) fn put_back(&mut self, offset: u64, now: Instant) {
        let publish = Publish { key: key_of_none(offset), ..Publish::new(offset, 0, now, Timestamp(0)) };
        self.order.put_refused(publish, Some(now + READ_PAUSE));
    }

    pub(super) fn close_aged_batches(&mut self, now: Instant) {
        if let Some(batch) = &self.sending.batch {
            self.batcher.close_aged(batch, now);
        }
    }

    /// Time until the next open batch reaches its age limit, if it could be sent then.
    pub(super) fn batch_due(&self, window: usize, now: Instant) -> Option<Duration> {
        let batch = self.sending.batch.as_ref().filter(|_| self.publishes.in_flight.has_room(window))?;
        self.batcher.due_in(batch, now)
    }

    /// Sends the next closed batch that has to wait for no other; returns `false` if there is none.
    pub(super) fn send_ready_batch(&mut self, pass: &mut Pass<'_>) -> bool {
        let Self { batcher, order, .. } = self;
        let Some(ready) = batcher.pop_ready(|batch| !order.must_wait(key_of_open(batch), batch.order)) else {
            return false;
        };
        let mut publish = of_batch(&ready, pass.now);
        order.sent(&mut publish, ready.order);
        self.publish_batch(ready, publish, pass);
        true
    }

    fn publish_batch(&mut self, mut ready: OpenBatch, publish: Publish, pass: &mut Pass<'_>) {
        let written = self.publishes.publish_batch(&mut ready, &self.sending, pass.session, pass.output);
        self.batcher.recycle(std::mem::take(&mut ready.payload));
        match written {
            Ok(bytes) => {
                self.publishes.in_flight.push(publish, bytes);
                pass.sent += 1;
            }
            // Batches are kept below the broker's limit: this one holds a single event that is too large.
            Err(reason) => {
                if publish.is_counted {
                    self.order.release(publish.key);
                }
                pass.poison.extend(publish.offsets().map(|offset| (offset, reason.clone())));
            }
        }
    }

    /// Sends an event, adds it to a batch, or holds it until its key is free.
    pub(super) fn send(&mut self, event: &Outgoing<'_>, pass: &mut Pass<'_>) {
        pass.events += 1;
        let order = self.orders.of(event.published);
        let stream = event.published.stream;
        match &self.sending.batch {
            Some(batch) if self.adds_to_batch(batch, stream, order) => {
                // A batch that the line does not carry within its age would only delay what comes behind it.
                let line_bytes_max = self.room.share().line().batch_bytes(batch.age.0, pass.now);
                let taken_max = self.sizes.batch_bytes_max(pass.now);
                let bytes_max = (pass.session.limits().packet_bytes_max, line_bytes_max.min(taken_max));
                self.batcher.add(batch, bytes_max, event, (pass.now, order));
                self.follow(event);
            }
            batch => {
                let key = key_of_event((event.offset, event.published, &event.record), order, batch.is_some());
                let mut publish = Publish { key, ..of_event(event, pass.now) };
                if self.order.must_wait(publish.key, order) {
                    self.order.hold(publish.key, event);
                } else {
                    self.order.sent(&mut publish, order);
                    self.publish_or_give_up(event, publish, pass);
                }
            }
        }
    }

    /// Returns whether the next event of a stream is added to a batch: one that is sent alone would overtake a batch that
    /// is not sent yet, and one that has to wait does so in a batch.
    fn adds_to_batch(&self, batch: &Batch, stream: u32, order: Order) -> bool {
        batch.when == BatchWhen::Always
            || self.is_behind
            || self.batcher.has(stream)
            || self.order.must_wait(key_of_batch(stream), order)
    }

    /// Records that events wait which the window or the line does not take.
    pub(super) fn begin_backlog(&mut self) {
        self.is_behind = true;
    }

    /// Records that no further events wait: open batches of a backlog are closed once they may be sent. Returns whether
    /// there is one.
    pub(super) fn end_backlog(&mut self) -> bool {
        self.is_behind = false;
        let is_for_backlog = self.sending.batch.as_ref().is_some_and(|batch| batch.when == BatchWhen::Backlog);
        let Self { batcher, order, .. } = self;
        is_for_backlog && batcher.close(|batch| !order.must_wait(key_of_open(batch), batch.order))
    }

    fn follow(&mut self, event: &Outgoing<'_>) {
        self.followed.begin(&event.record.id, &self.link.lane, &self.link.to, (event.offset, event.sequence));
    }

    /// Publishes an event; one that the broker cannot take becomes a dead letter.
    fn publish_or_give_up(&mut self, event: &Outgoing<'_>, publish: Publish, pass: &mut Pass<'_>) {
        let counted = publish.is_counted.then_some(publish.key);
        match self.publish(event, publish, pass) {
            Ok(()) => self.follow(event),
            Err(reason) => {
                counted.into_iter().for_each(|key| self.order.release(key));
                pass.poison.push((event.offset, reason));
            }
        }
    }

    /// Publishes an event alone. The error says why the broker cannot take it.
    fn publish(&mut self, event: &Outgoing<'_>, publish: Publish, pass: &mut Pass<'_>) -> Result<(), String> {
        self.publishes.publish(event, publish, pass.session, pass.output)?;
        pass.sent += 1;
        Ok(())
    }

    /// Publishes an event alone, whatever else waits. The error says why the broker cannot take it.
    pub(super) fn publish_suspect(&mut self, event: &Outgoing<'_>, pass: &mut Pass<'_>) -> Result<(), String> {
        let key = key_of_none(event.offset);
        self.publish(event, Publish { key, ..of_event(event, pass.now) }, pass)
    }

    /// Sends what waits and may be sent now: refused events, and those that were held for them. Returns `false` if there
    /// is nothing.
    pub(super) async fn send_waiting(&mut self, pass: &mut Pass<'_>) -> bool {
        match self.order.next(pass.now) {
            None => return false,
            Some(Waiting::Held(key, held)) => {
                let refusals = Refusals::default();
                self.send_held(&held, (key, refusals, false), pass);
            }
            Some(Waiting::Refused { publish, .. }) => self.send_refused(publish, pass).await,
        }
        true
    }

    async fn send_refused(&mut self, publish: Publish, pass: &mut Pass<'_>) {
        let Some(read) = read_again(&self.link, publish.offsets().collect()).await else {
            return self.order.put_refused(publish, Some(pass.now + READ_PAUSE));
        };
        let lost = |offset| (offset, "the contract of this event is lost".to_owned());
        pass.poison.extend(read.unreadable.into_iter().map(lost));
        let events: Vec<Held> =
            read.events.into_iter().map(|held| Held { is_backfill: publish.is_backfill, ..held }).collect();
        match &events[..] {
            [] => self.order.skip(publish.key),
            [event] if !publish.is_batch => {
                self.send_held(event, (publish.key, publish.refusals, publish.is_overtaken), pass);
            }
            _ => self.send_batch_again(&events, publish, pass),
        }
    }

    /// Sends an event that waited. `state` has its key, its refusals, and whether it was overtaken.
    fn send_held(&mut self, held: &Held, state: (Key, Refusals, bool), pass: &mut Pass<'_>) {
        let (key, refusals, is_overtaken) = state;
        let sending = Arc::clone(&self.sending);
        let Some(event) = held.outgoing(&sending) else { return self.order.skip(key) };
        let mut publish = Publish { key, refusals, is_overtaken, ..of_event(&event, pass.now) };
        self.order.count(&mut publish);
        self.publish_or_give_up(&event, publish, pass);
    }

    fn send_batch_again(&mut self, events: &[Held], before: Publish, pass: &mut Pass<'_>) {
        let mut batch = None;
        for event in events.iter().filter_map(|held| held.outgoing(&self.sending)) {
            let order = self.orders.of(event.published);
            batch.get_or_insert_with(|| OpenBatch::new(&event, (pass.now, order), Vec::new())).push(&event);
        }
        let Some(batch) = batch else { return self.order.skip(before.key) };
        let mut publish = Publish {
            key: before.key,
            refusals: before.refusals,
            is_overtaken: before.is_overtaken,
            ..of_batch(&batch, pass.now)
        };
        self.order.count(&mut publish);
        self.publish_batch(batch, publish, pass);
    }
}

/// The publish of one event.
fn of_event(event: &Outgoing<'_>, now: Instant) -> Publish {
    let (sequences, is_backfill) = ((event.sequence, event.sequence), event.mark.is_some());
    Publish { sequences, is_backfill, ..Publish::new(event.offset, event.published.stream, now, event.recorded) }
}

fn of_batch(batch: &OpenBatch, now: Instant) -> Publish {
    let (key, sequences, is_backfill) = (key_of_open(batch), batch.sequences, batch.is_backfill);
    Publish { key, sequences, is_backfill, ..Publish::batch(batch.offsets.clone(), batch.stream, now, batch.recorded) }
}

fn key_of_open(batch: &OpenBatch) -> Key {
    match batch.order {
        Order::None => key_of_none(batch.offsets.first().copied().unwrap_or(0)),
        Order::Key | Order::Strict => key_of_batch(batch.stream),
    }
}

impl Held {
    fn outgoing<'a>(&'a self, sending: &'a Sending) -> Option<Outgoing<'a>> {
        let record = Record::decode(&self.record).ok()?;
        let mark = self.is_backfill.then(|| Mark::backfill(sending));
        let Self { offset, published, sequence, recorded, .. } = self;
        Some(Outgoing { offset: *offset, record, published, sequence: *sequence, recorded: *recorded, mark })
    }
}
