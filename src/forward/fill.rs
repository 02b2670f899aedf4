//! Fills the output with publishes, single events or batches, within window, output buffer and rate limits.

use super::batch::OpenBatch;
use super::in_flight::Publish;
use super::pace::{Hours, Rate};
use super::{Forwarder, HOURS_POLL, OUTPUT_BYTES, ReaderKind};
use crate::clock;
use crate::contract::Rendering;
use crate::event::Timestamp;
use crate::journal::{Outcome, Step};
use crate::link::{self, Head, Output, Protocol, Session};
use std::time::{Duration, Instant};

impl Forwarder {
    /// Returns the rate limits that apply now, and how long the sending hours still forbid sending.
    fn allowance(&self) -> (Rate, Duration) {
        let closed = |hours: &Hours| !hours.contains(Timestamp::from(clock::wall()));
        if self.sending.hours.as_ref().is_some_and(closed) {
            return (Rate::default(), HOURS_POLL);
        }
        match self.sending.yielding {
            Some(lower) if self.pressure.has_other_backlog(&self.lane.name) => (lower, Duration::ZERO),
            _ => (self.sending.rate, Duration::ZERO),
        }
    }

    /// Renders events into `output` as far as window, buffer and rate limits allow. Returns `false` if an event could
    /// not become a dead letter and must be read again, and how long nothing more may be sent.
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
            self.batcher.close_aged(batch, now);
        }
        while self.flight.has_room(window) && output.waiting() < OUTPUT_BYTES {
            if let Some(ready) = self.batcher.pop_ready() {
                self.push_batch(ready, session, output, now, &mut pass);
                continue;
            }
            // Live events go first; the backlog may use three quarters of the window.
            let is_live = self.primary.block.is_some();
            let has_backfill_room = self.flight.has_room(window - window / 4);
            let has_pushed = match (is_live, has_backfill_room) {
                _ if pass.allowed == 0 => false,
                (true, _) => self.push_next(ReaderKind::Primary, session, output, now, &mut pass),
                (false, true) if self.backfill.block.is_some() => {
                    self.push_next(ReaderKind::Backfill, session, output, now, &mut pass)
                }
                _ => false,
            };
            if !has_pushed {
                break;
            }
        }
        if let Some(batch) = &self.sending.batch
            && self.flight.has_room(window)
        {
            self.batch_due = self.batcher.due_in(batch, now);
        }
        self.stats.sent.add(pass.sent);
        self.pacer.spend(pass.events, output.bytes.len().saturating_sub(written));
        if !pass.not_owed.is_empty() {
            self.lane.settle(&self.config.name, &pass.not_owed);
        }
        let is_complete = self.write_dead_letters(&pass.poison).await;
        let wait = if pass.allowed == 0 { self.pacer.wait(rate) } else { Duration::ZERO };
        (is_complete, wait)
    }

    /// Handles the next event of a reader; returns `false` if the reader has no block loaded.
    fn push_next(
        &mut self,
        kind: ReaderKind,
        session: &Session,
        output: &mut Output,
        now: Instant,
        pass: &mut Pass,
    ) -> bool {
        let Self { lane, config, settled, sending, rendering, flight, batcher, primary, backfill, followed, .. } = self;
        let reader = match kind {
            ReaderKind::Primary => primary,
            ReaderKind::Backfill => backfill,
        };
        let Some(walk) = &mut reader.block else { return false };
        let recorded = walk.recorded();
        let end = walk.end();
        let Some(Step { offset, record, numbered }) = walk.step(lane).filter(|step| step.offset < reader.until) else {
            reader.next = end.min(reader.until);
            reader.block = None;
            return true;
        };
        if offset < reader.next || settled.contains(offset) {
            return true;
        }
        reader.next = offset + 1;
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
        let is_backfill = kind == ReaderKind::Backfill;
        if let Some(batch) = &sending.batch {
            let (renderer, stream) = (&published.renderer, published.stream);
            let event = (&record, sequence, recorded);
            let place = (offset, is_backfill, now);
            batcher.add(batch, limits.packet_bytes_max, (renderer, stream), event, place);
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
        flight.push(Publish::single(offset, published.stream, now, recorded));
        followed.begin(&record.id, lane, config, (offset, sequence));
        pass.sent += 1;
        true
    }

    fn push_batch(
        &mut self,
        mut ready: OpenBatch,
        session: &Session,
        output: &mut Output,
        now: Instant,
        pass: &mut Pass,
    ) {
        let Some(batch) = &self.sending.batch else { return };
        let (packed, content_type) = ready.close(batch.compression, session.protocol());
        let out = &mut self.rendering;
        out.properties.clear();
        out.topic = std::mem::take(&mut ready.topic);
        let is_v5 = session.protocol() == Protocol::V5;
        if ready.is_backfill {
            mark(out, "backfill", self.sending.backfill_topic.as_deref(), is_v5);
        }
        let start = output.bytes.len();
        let (content_type, properties) = (Some(content_type), out.properties.as_slice());
        let head = Head { content_type, properties, ..Head::qos1(self.flight.next_id()) };
        let payload = packed.as_ref().unwrap_or(&ready.payload);
        link::push_publish(&mut output.bytes, session.protocol(), &head, &out.topic, payload);
        self.batcher.recycle(std::mem::take(&mut ready.payload));
        let bytes = output.bytes.len() - start;
        let bytes_max = session.limits().packet_bytes_max;
        if bytes > bytes_max {
            // Batches are kept below the broker's limit: this one holds a single event that is too large.
            output.bytes.truncate(start);
            let reason = too_large(bytes, bytes_max);
            pass.poison.extend(ready.offsets.iter().map(|offset| (*offset, reason.clone())));
            return;
        }
        self.flight.push(Publish::batch(ready.offsets, ready.stream, now, ready.recorded));
        pass.sent += 1;
    }
}

/// Results of one call of `fill`.
#[derive(Debug, Default)]
struct Pass {
    /// Events that the rate limits still allow.
    allowed: usize,
    events: usize,
    /// Publishes written.
    sent: u64,
    poison: Vec<(u64, String)>,
    not_owed: Vec<(u64, u32, Outcome)>,
}

/// Appends a QoS 1 PUBLISH of a rendered event.
pub(super) fn push_rendered(output: &mut Output, session: &Session, packet_id: u16, out: &Rendering) {
    let content_type = out.content_type_own.as_deref().unwrap_or(out.content_type);
    let head = Head { content_type: Some(content_type), properties: &out.properties, ..Head::qos1(packet_id) };
    link::push_publish(&mut output.bytes, session.protocol(), &head, &out.topic, &out.payload);
}

fn too_large(bytes: usize, bytes_max: usize) -> String {
    format!("packet of {bytes} bytes: the broker takes {bytes_max} at most")
}

/// Marks a publish as `backfill` or `replay`: with a user property, and with a topic level if one is configured or
/// if the protocol has no properties. The payload does not change.
pub(super) fn mark(out: &mut Rendering, what: &'static str, level: Option<&str>, is_v5: bool) {
    if is_v5 {
        out.properties.push((what, "true".to_owned()));
    }
    let level = level.or((!is_v5).then_some(what));
    if let Some(level) = level {
        out.topic.splice(0..0, level.bytes().chain([b'/']));
    }
}
