//! What the answers of central mean: for their events, for those behind them, and for the speed of the lane.
//!
//! - An acceptance settles the event.
//! - A rejection for good makes a dead letter; a batch is halved until the event is alone.
//! - A refusal for now: only what was refused is sent again, after a pause, and the lane keeps one publish per key in
//!   flight until a minute has passed without a refusal.
//! - A code without meaning: the event is tried [`UNCLEAR_TRIES`] times more, for [`UNCLEAR_MAX`] in all.

use super::in_flight::Publish;
use super::key_order::OvertakenEvents;
use super::lane_link::{LaneLink, Settled};
use super::lane_sender::LaneSender;
use super::sender::Answered;
use crate::backoff::{Backoff, Jitter};
use crate::event::Timestamp;
use crate::journal::Outcome;
use crate::link::Rejection;
use crate::telemetry::Limiter;
use std::time::{Duration, Instant};

/// Pauses before an event is sent again that central refused for now.
const REFUSED_PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30), Jitter::UpToDouble);
/// Further attempts after a reason code without meaning.
const UNCLEAR_TRIES: u32 = 3;
/// Longest time from the first refusal with such a code to the last attempt.
const UNCLEAR_MAX: Duration = Duration::from_secs(5);

/// The decisions of the answers that arrived together.
#[derive(Debug)]
pub(super) struct Answers {
    now: Instant,
    wall: Timestamp,
    pub settled: Vec<Settled>,
    /// Offsets of events that become dead letters, with the reason.
    pub poison: Vec<(u64, String)>,
    pub overtaken: Vec<OvertakenEvents>,
}

impl Answers {
    pub(super) fn new(now: Instant, wall: Timestamp) -> Self {
        Self { now, wall, settled: Vec::new(), poison: Vec::new(), overtaken: Vec::new() }
    }

    pub(super) fn take(&mut self, answered: Answered<Publish>, sender: &mut LaneSender, warnings: &mut Limiter) {
        let Answered { mut sent, rejection, is_unheard, .. } = answered;
        if is_unheard {
            let LaneLink { lane, to, stats, .. } = &sender.link;
            stats.unheard.add(1);
            if let Some(held_back) = warnings.allow(self.now) {
                tracing::warn!(lane = %lane.name, destination = %to.name, held_back, "central acknowledged an event whose topic has no subscriber there");
            }
        }
        sender.order.answered(&mut sent);
        let is_refused_for_now = matches!(rejection, Some(Rejection::Temporary(..)));
        if sender.throttle.answered(is_refused_for_now, sent.sent_at, self.now) {
            sender.order.end_pauses();
        }
        match rejection {
            None => self.accept(&sent, sender),
            Some(Rejection::Permanent(code, why) | Rejection::Unclear(code, why)) if sent.count() > 1 => {
                let LaneLink { lane, to, .. } = &sender.link;
                tracing::debug!(lane = %lane.name, destination = %to.name, events = sent.count(), "central rejected a batch: 0x{code:02x} {why}; will retry with batches of half the size");
                sender.halve(sent);
            }
            Some(Rejection::Permanent(code, why)) => self.reject(&sent, code, why),
            Some(Rejection::Unclear(code, why)) => {
                let since = *sent.refusals.since.get_or_insert(self.now);
                let is_over = self.now.saturating_duration_since(since) >= UNCLEAR_MAX;
                match sent.refusals.count >= UNCLEAR_TRIES || is_over {
                    true => self.reject(&sent, code, why),
                    false => self.refuse_for_now(sent, sender, (code, why), warnings),
                }
            }
            Some(Rejection::Temporary(code, why)) => self.refuse_for_now(sent, sender, (code, why), warnings),
        }
    }

    fn accept(&mut self, sent: &Publish, sender: &mut LaneSender) {
        let stats = &sender.link.stats;
        stats.answer.record(self.now.duration_since(sent.sent_at), 1);
        stats.settle.record(self.wall.since(sent.recorded), 1);
        self.settled.extend(sent.offsets().map(|offset| (offset, sent.stream, Outcome::Delivered)));
        self.overtaken.extend(sender.order.overtaken_by(sent));
        sender.batcher.double_size();
    }

    fn reject(&mut self, sent: &Publish, code: u8, why: &str) {
        let tries = sent.refusals.count + 1;
        let times = if tries > 1 { format!(", tried {tries} times") } else { String::new() };
        self.poison.push((sent.offset, format!("central refuses it: 0x{code:02x} {why}{times}")));
    }

    fn refuse_for_now(
        &mut self,
        mut sent: Publish,
        sender: &mut LaneSender,
        (code, why): (u8, &str),
        warnings: &mut Limiter,
    ) {
        let LaneLink { lane, to, stats, .. } = sender.link.clone();
        stats.refused_for_now.add(1);
        if sender.begin_strict(self.now) {
            tracing::warn!(lane = %lane.name, destination = %to.name, "central refuses events for now: 0x{code:02x} {why}; until a minute passes without a refusal, one publish per key is in flight");
        } else if let Some(held_back) = warnings.allow(self.now) {
            tracing::warn!(lane = %lane.name, destination = %to.name, held_back, "central rejected an event temporarily: 0x{code:02x} {why}; will retry");
        }
        sender.link.set(|state| state.refused = Some(format!("0x{code:02x} {why}")));
        let pause = REFUSED_PAUSES.pause(sent.refusals.count);
        sent.refusals.count += 1;
        sent.refusals.since.get_or_insert(self.now);
        sender.order.put_refused(sent, Some(self.now + pause));
    }
}
