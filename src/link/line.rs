//! The line to a destination: what it carries, and how many bytes of each lane may be on it.
//!
//! Promise: at most one second of data, or two bandwidth-delay products, is in flight; a lower lane sends what
//! the higher ones leave free, but never less than a tenth of that.
//!
//! Not here: when a session counts as dead (`progress`).

mod estimate;
#[cfg(test)]
mod simulation;

use super::progress::Carried;
pub(crate) use estimate::{Answers, SEGMENT_BYTES};
use estimate::{FLOOR_BYTES, RateEstimate, RoundTripEstimate};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time of the estimated rate that is in flight. The estimate is a lower bound, some four fifths of the rate, so this is one
/// second of data. With less, clumps of acknowledgements leave the line idle: Mosquitto sends them with Nagle's algorithm.
const BOUND_SECONDS: f64 = 1.25;
/// Send buffer of a socket, slice of an event, and batch, while the rate is not known.
const FIRST_BYTES: u64 = 4 << 10;
/// A larger send buffer makes no difference: Linux grants half of this by default (`net.core.wmem_max`).
const BUFFER_BYTES_MAX: u64 = 1 << 20;
/// A line with a shorter round trip has no kilobytes on its way, unless something has been measured.
const LOCAL: Duration = Duration::from_millis(20);
/// An event that is larger than the bound is written this many times as fast as the estimate, so that the estimate can grow;
/// the second one on a long line, where the estimate is lower.
const PACE_TIMES: (f64, f64) = (1.5, 2.0);
/// Longest and shortest wait until the next look at a line that is full.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// The line of one destination; all its sessions share it.
#[derive(Debug, Default)]
pub struct Line {
    state: Mutex<State>,
}

/// Figures of a line, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LineFigures {
    /// Bytes per second that the line carries at least.
    pub rate: Option<f64>,
    pub round_trip: Option<Duration>,
    /// Bytes of all lanes that are written and not acknowledged.
    pub in_flight: u64,
}

impl LineFigures {
    /// Time that the line needs for what is in flight.
    pub fn in_flight_seconds(&self) -> Option<f64> {
        self.rate.map(|rate| self.in_flight as f64 / rate)
    }
}

#[derive(Debug, Default)]
struct State {
    rate: RateEstimate,
    round_trip: RoundTripEstimate,
    shares: Vec<Use>,
}

/// Bytes of one lane in flight.
#[derive(Debug)]
struct Use {
    id: usize,
    /// 0 for the highest lane.
    rank: usize,
    bytes: u64,
    /// When bytes of this lane were last in flight.
    used_at: Option<Instant>,
}

impl State {
    /// Largest number of bytes in flight.
    fn bound(&mut self, now: Instant) -> u64 {
        let Some(rate) = self.rate.best() else { return FLOOR_BYTES };
        if self.round_trip.is_draining(now) {
            return FLOOR_BYTES;
        }
        let seconds = self.round_trip.value().unwrap_or_default().as_secs_f64() * 2.0;
        FLOOR_BYTES.max((rate * seconds.max(BOUND_SECONDS)) as u64)
    }

    /// Returns whether the bound is less than three round trips.
    fn is_long(&self) -> bool {
        self.round_trip.shortest().as_secs_f64() * 3.0 > BOUND_SECONDS
    }
}

impl Line {
    /// Registers a lane; the lane of rank 0 goes first.
    pub(crate) fn share(self: &Arc<Self>, rank: usize) -> LineShare {
        let mut state = self.state.lock();
        let id = state.shares.iter().map(|known| known.id + 1).max().unwrap_or_default();
        state.shares.push(Use { id, rank, bytes: 0, used_at: None });
        LineShare { line: Arc::clone(self), id, paced: None }
    }

    pub fn figures(&self) -> LineFigures {
        let state = self.state.lock();
        LineFigures {
            rate: state.rate.best(),
            round_trip: state.round_trip.value(),
            in_flight: state.shares.iter().map(|share| share.bytes).sum(),
        }
    }

    /// Records the time from CONNECT to CONNACK.
    pub(super) fn record_connect(&self, round_trip: Duration) {
        self.state.lock().round_trip.connect = Some(round_trip);
    }

    /// Begins to collect the answers that arrive together.
    pub(crate) fn answers(&self, now: Instant) -> Answers {
        self.state.lock().rate.answers(now)
    }

    pub(crate) fn record(&self, answers: &Answers) {
        if answers.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        state.rate.record(answers);
        state.round_trip.record(answers);
    }

    /// Forgets what was measured: a session ended because nothing moved, so the line may have changed.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        (state.rate, state.round_trip) = (RateEstimate::default(), RoundTripEstimate::default());
    }

    /// Time that the line needs for so many bytes, and its round trip.
    pub(super) fn carried(&self, bytes: u64) -> Carried {
        let state = self.state.lock();
        let time = Duration::try_from_secs_f64(state.rate.seconds(bytes)).unwrap_or(Duration::MAX / 8);
        Carried { time, round_trip: state.round_trip.value().unwrap_or_default() }
    }

    /// Largest batch that the line carries in `age`. Until the line was full once it may carry more than was measured, and
    /// a short line certainly does. On a full one a batch leaves room for a segment of another lane, unless the line is long:
    /// the answers of small batches come so late that the estimate could not grow.
    pub(crate) fn batch_bytes(&self, age: Duration, now: Instant) -> usize {
        let mut state = self.state.lock();
        let is_far = state.round_trip.value().is_some_and(|round_trip| round_trip >= LOCAL);
        let Some(rate) = state.rate.best() else { return if is_far { FIRST_BYTES as usize } else { usize::MAX } };
        let carried = (rate * age.as_secs_f64()) as u64;
        match state.rate.is_full() && !state.is_long() {
            true => carried.min(state.bound(now) - SEGMENT_BYTES).max(SEGMENT_BYTES) as usize,
            false => carried.max(FIRST_BYTES) as usize,
        }
    }

    /// Send buffer for an event that is larger than the bound: what the socket takes is then what the line carries.
    /// `None` on a fast line, where the kernel chooses.
    pub(crate) fn send_buffer(&self, now: Instant, connect: Duration) -> Option<u64> {
        let mut state = self.state.lock();
        let bound = state.bound(now);
        match state.rate.is_full() {
            true => Some(bound.min(BUFFER_BYTES_MAX)),
            false => (connect >= LOCAL).then_some(bound.clamp(FIRST_BYTES, BUFFER_BYTES_MAX)),
        }
    }

    /// Records that there is more to send than the bound allows.
    pub(crate) fn mark_full(&self) {
        self.state.lock().rate.mark_full();
    }

    /// Time until the line has carried a segment.
    pub(crate) fn look_again(&self) -> Duration {
        let rate = self.state.lock().rate.best().unwrap_or(1.0);
        let wait = Duration::try_from_secs_f64(SEGMENT_BYTES as f64 / rate).unwrap_or(LOOK.1);
        wait.clamp(LOOK.0, LOOK.1)
    }
}

/// The share of one lane in a line.
#[derive(Debug)]
pub(crate) struct LineShare {
    line: Arc<Line>,
    id: usize,
    /// Time of the last look at the pace of a large event.
    paced: Option<Instant>,
}

impl LineShare {
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Records how many bytes of this lane are written and not acknowledged; returns how many more it may write.
    pub(crate) fn room(&self, in_flight: u64, now: Instant) -> u64 {
        let mut state = self.line.state.lock();
        let bound = state.bound(now);
        let rate = state.rate.best().unwrap_or(1.0);
        let Some(own) = state.shares.iter_mut().find(|share| share.id == self.id) else { return bound };
        own.bytes = in_flight;
        if in_flight > 0 {
            own.used_at = Some(now);
        }
        let (rank, used_at) = (own.rank, own.used_at);
        let used: u64 = state.shares.iter().filter(|share| share.rank <= rank).map(|share| share.bytes).sum();
        let least = SEGMENT_BYTES.max(bound / 10);
        // An event above the bound takes the whole line: a lower lane has its tenth in the long run.
        let is_taken = state.shares.iter().any(|share| share.rank < rank && share.bytes > bound);
        let since = used_at.map_or(f64::INFINITY, |used_at| now.saturating_duration_since(used_at).as_secs_f64());
        if is_taken && since * rate < 10.0 * least as f64 {
            return bound.saturating_sub(used);
        }
        bound.saturating_sub(used).max(least.saturating_sub(in_flight))
    }

    /// Bytes of an event that is larger than the bound that may be written now: at a pace that leaves room for the higher
    /// lanes.
    pub(crate) fn paced_room(&mut self, now: Instant) -> u64 {
        let mut state = self.line.state.lock();
        // Until the event is acknowledged, nothing is learned of a decline.
        state.rate.hold(now);
        let Some(rate) = state.rate.best().filter(|_| state.rate.is_full()) else { return FIRST_BYTES };
        let bound = state.bound(now);
        let rank = state.shares.iter().find(|share| share.id == self.id).map_or(0, |share| share.rank);
        let higher: u64 = state.shares.iter().filter(|share| share.rank < rank).map(|share| share.bytes).sum();
        let free = (1.0 - higher as f64 / bound as f64).max(0.1);
        let since = *self.paced.get_or_insert(now);
        let times = if state.is_long() { PACE_TIMES.1 } else { PACE_TIMES.0 };
        let bytes = (rate * times * free * now.saturating_duration_since(since).as_secs_f64()) as u64;
        if bytes < SEGMENT_BYTES {
            return 0;
        }
        self.paced = Some(now);
        bytes.min(SEGMENT_BYTES.max((rate * LOOK.1.as_secs_f64() * times) as u64))
    }
}

impl Drop for LineShare {
    fn drop(&mut self) {
        self.line.state.lock().shares.retain(|share| share.id != self.id);
    }
}
