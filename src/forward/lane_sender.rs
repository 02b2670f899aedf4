//! Sends the events of a lane, alone or in batches, within the window and the output buffer.

use super::batch::{Batcher, OpenBatch};
use super::followed::Followed;
use super::in_flight::Publish;
use super::lane_link::LaneLink;
use super::outgoing::Outgoing;
use super::pace::Sending;
use super::sender::Sender;
use crate::clock;
use crate::link::{Output, Session};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Output buffer size at which the forwarder stops filling it, in bytes.
const OUTPUT_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct LaneSender {
    link: LaneLink,
    sending: Arc<Sending>,
    pub publishes: Sender<Publish>,
    pub batcher: Batcher,
    pub followed: Followed,
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
    pub(super) fn new(link: LaneLink, sending: Arc<Sending>) -> Self {
        let publishes = Sender::new(&link.to);
        Self { link, sending, publishes, batcher: Batcher::default(), followed: Followed::default() }
    }

    pub(super) fn has_room(&self, window: usize, output: &Output) -> bool {
        self.publishes.in_flight.has_room(window) && output.waiting() < OUTPUT_BYTES
    }

    /// Forgets what is in flight and in open batches.
    pub(super) fn clear(&mut self) {
        self.publishes.in_flight.clear();
        self.followed.clear();
        self.batcher.clear();
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

    /// Sends the next closed batch; returns `false` if there is none.
    pub(super) fn send_ready_batch(&mut self, pass: &mut Pass<'_>) -> bool {
        let Some(mut ready) = self.batcher.pop_ready() else { return false };
        let written = self.publishes.publish_batch(&mut ready, &self.sending, pass.session, pass.output);
        self.batcher.recycle(std::mem::take(&mut ready.payload));
        let OpenBatch { offsets, stream, recorded, .. } = ready;
        match written {
            Ok(bytes) => {
                self.publishes.in_flight.push(Publish::batch(offsets, stream, pass.now, recorded), bytes);
                pass.sent += 1;
            }
            // Batches are kept below the broker's limit: this one holds a single event that is too large.
            Err(reason) => pass.poison.extend(offsets.into_iter().map(|offset| (offset, reason.clone()))),
        }
        true
    }

    /// Sends an event, or adds it to a batch.
    pub(super) fn send(&mut self, event: &Outgoing<'_>, pass: &mut Pass<'_>) {
        pass.events += 1;
        match &self.sending.batch {
            Some(batch) => {
                let packet_bytes_max = pass.session.limits().packet_bytes_max;
                self.batcher.add(batch, packet_bytes_max, event, pass.now);
            }
            None => {
                if let Err(reason) = self.publish(event, pass) {
                    pass.poison.push((event.offset, reason));
                    return;
                }
            }
        }
        self.followed.begin(&event.record.id, &self.link.lane, &self.link.to, (event.offset, event.sequence));
    }

    /// Publishes an event alone. The error says why the broker cannot take it.
    pub(super) fn publish(&mut self, event: &Outgoing<'_>, pass: &mut Pass<'_>) -> Result<(), String> {
        let kept = Publish::single(event.offset, event.published.stream, pass.now, event.recorded);
        self.publishes.publish(event, kept, pass.session, pass.output)?;
        pass.sent += 1;
        Ok(())
    }
}
