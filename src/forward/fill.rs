//! Filling the output: which events leave now, alone or in batches, within window, buffer and ceilings.

use super::batch::Gathering;
use super::flight::Sent;
use super::pace::{Hours, Rate};
use super::{Forwarder, HOURS_LOOK, OUTPUT_BYTES, Which};
use crate::clock;
use crate::contract::Rendering;
use crate::event::Timestamp;
use crate::journal::{Outcome, Step};
use crate::link::{self, Head, Output, Protocol, Session};
use std::time::{Duration, Instant};

impl Forwarder {
    /// What the ceilings are now, and how long the hours keep everything waiting.
    fn allowance(&self) -> (Rate, Duration) {
        let closed = |hours: &Hours| !hours.contains(Timestamp::from(clock::wall()));
        if self.sending.hours.as_ref().is_some_and(closed) {
            return (Rate::default(), HOURS_LOOK);
        }
        match self.sending.yielding {
            Some(lower) if self.pressure.is_on(&self.lane.name) => (lower, Duration::ZERO),
            _ => (self.sending.rate, Duration::ZERO),
        }
    }

    /// Renders events into `output` as far as window, buffer and ceilings allow. `false`: one of them has to
    /// be looked at again. The second value says how long nothing more may be sent, where that is so.
    pub(super) async fn fill(&mut self, session: &Session, output: &mut Output, window: usize) -> (bool, Duration) {
        let (rate, closed_for) = self.allowance();
        let wait = closed_for.max(self.pacer.wait(rate));
        self.batch_due = None;
        if !wait.is_zero() {
            return (true, wait);
        }
        let mut pass = Pass { allowed: self.pacer.events(), ..Pass::default() };
        let now = clock::instant();
        let written = output.bytes.len();
        if let Some(batch) = &self.sending.batch {
            self.gatherings.ready_aged(batch, now);
        }
        while self.flight.has_room(window) && output.waiting() < OUTPUT_BYTES {
            if let Some(gathering) = self.gatherings.pop_ready() {
                self.push_batch(gathering, session, output, now, &mut pass);
                continue;
            }
            // What comes now goes first; the backlog leaves it a part of the window.
            let is_live = self.front.block.is_some();
            let has_room_behind = self.flight.has_room(window - window / 4);
            let went_on = match (is_live, has_room_behind) {
                _ if pass.allowed == 0 => false,
                (true, _) => self.push_next(Which::Front, session, output, now, &mut pass),
                (false, true) if self.behind.block.is_some() => {
                    self.push_next(Which::Behind, session, output, now, &mut pass)
                }
                _ => false,
            };
            if !went_on {
                break;
            }
        }
        if let Some(batch) = &self.sending.batch
            && self.flight.has_room(window)
        {
            self.batch_due = self.gatherings.wait(batch, now);
        }
        self.stats.sent.add(pass.sent);
        self.pacer.spend(pass.events, output.bytes.len().saturating_sub(written));
        if !pass.not_owed.is_empty() {
            self.lane.settle(&self.config.name, &pass.not_owed);
        }
        let is_good = self.bury(&pass.poison).await;
        let wait = if pass.allowed == 0 { self.pacer.wait(rate) } else { Duration::ZERO };
        (is_good, wait)
    }

    /// Takes the next event of a reading; `false` if there is none at hand.
    fn push_next(
        &mut self,
        which: Which,
        session: &Session,
        output: &mut Output,
        now: Instant,
        pass: &mut Pass,
    ) -> bool {
        let Self { lane, config, skip, sending, rendering, flight, gatherings, front, behind, followed, .. } = self;
        let reading = match which {
            Which::Front => front,
            Which::Behind => behind,
        };
        let Some(walk) = &mut reading.block else { return false };
        let recorded = walk.recorded();
        let end = walk.end();
        let Some(Step { offset, record, numbered }) = walk.step(lane).filter(|step| step.offset < reading.until) else {
            reading.next = end.min(reading.until);
            reading.block = None;
            return true;
        };
        if offset < reading.next || skip.contains(offset) {
            return true;
        }
        reading.next = offset + 1;
        let Some((published, sequence)) = numbered else {
            pass.poison.push((offset, "the contract of this event is lost".to_owned()));
            return true;
        };
        if !config.takes(&published.publication.stream) {
            pass.not_owed.push((offset, published.stream, Outcome::NotOwed));
            return true;
        }
        if lane.is_expired(&config.name, published.publication.retention_unsettled, offset, &record) {
            return true;
        }
        pass.events += 1;
        pass.allowed -= 1;
        let limits = session.limits();
        let is_backfill = which == Which::Behind;
        if let Some(batch) = &sending.batch {
            let (renderer, stream) = (&published.renderer, published.stream);
            let event = (&record, sequence, recorded);
            let place = (offset, is_backfill, now);
            gatherings.add(batch, limits.packet_bytes_max, (renderer, stream), event, place);
            followed.begin(&record.id, lane, config, (offset, sequence));
            return true;
        }
        let is_v5 = session.protocol() == Protocol::V5;
        published.renderer.render(&record, sequence, recorded, is_v5, rendering);
        if is_backfill {
            mark(rendering, "backfill", sending.backfill_topic.as_deref(), is_v5);
        }
        let start = output.bytes.len();
        push_rendered(output, session, flight.next_id(), rendering);
        let bytes = output.bytes.len() - start;
        if bytes > limits.packet_bytes_max {
            output.bytes.truncate(start);
            pass.poison.push((offset, too_large(bytes, limits.packet_bytes_max)));
            return true;
        }
        flight.push(Sent::one(offset, published.stream, now, recorded));
        followed.begin(&record.id, lane, config, (offset, sequence));
        pass.sent += 1;
        true
    }

    /// Sends a batch.
    fn push_batch(
        &mut self,
        mut gathering: Gathering,
        session: &Session,
        output: &mut Output,
        now: Instant,
        pass: &mut Pass,
    ) {
        let Some(batch) = &self.sending.batch else { return };
        let (packed, content_type) = gathering.finish(batch.compression, session.protocol());
        let out = &mut self.rendering;
        out.properties.clear();
        out.topic = std::mem::take(&mut gathering.topic);
        let is_v5 = session.protocol() == Protocol::V5;
        if gathering.is_backfill {
            mark(out, "backfill", self.sending.backfill_topic.as_deref(), is_v5);
        }
        let start = output.bytes.len();
        link::push_publish(
            &mut output.bytes,
            session.protocol(),
            &Head::qos1(self.flight.next_id()),
            &out.topic,
            content_type,
            &out.properties,
            packed.as_ref().unwrap_or(&gathering.payload),
        );
        self.gatherings.give_back(std::mem::take(&mut gathering.payload));
        let bytes = output.bytes.len() - start;
        let bytes_max = session.limits().packet_bytes_max;
        if bytes > bytes_max {
            // Batches are kept below what the broker takes, so that it is one event alone.
            output.bytes.truncate(start);
            let reason = too_large(bytes, bytes_max);
            pass.poison.extend(gathering.offsets.iter().map(|offset| (*offset, reason.clone())));
            return;
        }
        self.flight.push(Sent::many(gathering.offsets, gathering.stream, now, gathering.recorded));
        pass.sent += 1;
    }
}

/// What one filling of the output has come to.
#[derive(Debug, Default)]
struct Pass {
    /// Events that may still be sent under the ceilings.
    allowed: usize,
    events: usize,
    /// Publishes.
    sent: u64,
    poison: Vec<(u64, String)>,
    not_owed: Vec<(u64, u32, Outcome)>,
}

/// Appends a publish of what is rendered.
pub(super) fn push_rendered(output: &mut Output, session: &Session, packet_id: u16, out: &Rendering) {
    let content_type = out.content_type_own.as_deref().unwrap_or(out.content_type);
    let head = Head::qos1(packet_id);
    let bytes = &mut output.bytes;
    link::push_publish(bytes, session.protocol(), &head, &out.topic, content_type, &out.properties, &out.payload);
}

fn too_large(bytes: usize, bytes_max: usize) -> String {
    format!("packet of {bytes} bytes: the broker takes {bytes_max} at most")
}

/// Marks a publish as `backfill` or `replay`: by a user property, and by the topic where that is wished, or
/// where the protocol has no properties. The event itself never changes.
pub(super) fn mark(out: &mut Rendering, what: &'static str, level: Option<&str>, is_v5: bool) {
    if is_v5 {
        out.properties.push((what, "true".to_owned()));
    }
    let level = level.or((!is_v5).then_some(what));
    if let Some(level) = level {
        out.topic.splice(0..0, level.bytes().chain([b'/']));
    }
}
