//! The line to a destination: what it carries.
//!
//! Promise: the estimated rate is a lower bound. It counts only what central has acknowledged, and only over times in which
//! these bytes were certainly carried, whatever a proxy on the way buffers.
//!
//! Not here: when a session counts as dead (`progress`).

use super::progress::Carried;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rate in bytes per second that a line is taken to have before one is measured.
const UNMEASURED: f64 = 1000.0;
/// The rate of a sample counts for this many times its bytes.
const PROVEN_TIMES: u64 = 4;
/// Shortest interval of a sample, in seconds: less is below the resolution of timers and schedulers.
const SAMPLE_SECONDS_MIN: f64 = 0.001;

/// The line of one destination; all its sessions share it.
#[derive(Debug, Default)]
pub struct Line {
    state: Mutex<State>,
}

/// What a line carries, for status and metrics.
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
    /// Least time from sending to acknowledgement.
    round_trip: Option<Duration>,
    /// CONNECT to CONNACK of the last session.
    connect: Option<Duration>,
    shares: Vec<Use>,
}

/// What one lane has in flight.
#[derive(Debug)]
struct Use {
    id: usize,
    bytes: u64,
}

/// The largest lower bound since the line was last lost.
#[derive(Debug, Default)]
struct RateEstimate {
    /// The interval in which acknowledged bytes are counted.
    interval: Option<Interval>,
    best: Option<f64>,
    /// Most bytes that were acknowledged in one interval: for more, the rate is not proven.
    proven_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    since: Instant,
    /// Bytes that were sent after `since` and are acknowledged.
    bytes: u64,
}

/// Answers that arrived together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    since: Option<Instant>,
    now: Instant,
    bytes: u64,
    /// Bytes per second of the fastest publish.
    rate: f64,
    /// Bytes of the largest publish.
    largest: u64,
    latency: Duration,
    /// The shortest.
    least: Duration,
}

impl Answered {
    /// Adds an acknowledged publish that was sent at `sent_at` at the earliest.
    pub(crate) fn add(&mut self, bytes: usize, sent_at: Instant) {
        let latency = self.now.saturating_duration_since(sent_at);
        let bytes = bytes as u64;
        if self.since.is_some_and(|since| sent_at >= since) {
            self.bytes += bytes;
        }
        self.rate = self.rate.max(bytes as f64 / latency.as_secs_f64().max(SAMPLE_SECONDS_MIN));
        self.largest = self.largest.max(bytes);
        self.latency = latency;
        self.least = self.least.min(latency);
    }
}

impl RateEstimate {
    fn record(&mut self, answered: &Answered) {
        let now = answered.now;
        let interval = self.interval.get_or_insert(Interval { since: now, bytes: 0 });
        if answered.since == Some(interval.since) {
            interval.bytes += answered.bytes;
        }
        let seconds = now.saturating_duration_since(interval.since).as_secs_f64();
        let rate = answered.rate.max(interval.bytes as f64 / seconds.max(SAMPLE_SECONDS_MIN));
        self.proven_bytes = self.proven_bytes.max(interval.bytes).max(answered.largest);
        // Four times the time of an answer: what is in flight at the beginning, and does not count, is a quarter.
        if seconds >= 4.0 * answered.latency.as_secs_f64().max(SAMPLE_SECONDS_MIN) {
            *interval = Interval { since: now, bytes: 0 };
        }
        self.best = Some(self.best.unwrap_or_default().max(rate));
    }

    /// Time that the line needs for so many bytes. A few bytes that were fast prove nothing for many: a buffer on the way
    /// takes them at once.
    fn seconds(&self, bytes: u64) -> f64 {
        let proven = bytes.min(self.proven_bytes.saturating_mul(PROVEN_TIMES));
        let at_rate = self.best.map_or(0.0, |rate| proven as f64 / rate);
        at_rate + (bytes - proven) as f64 / UNMEASURED
    }
}

impl State {
    fn round_trip(&self) -> Option<Duration> {
        self.round_trip.or(self.connect)
    }
}

impl Line {
    /// Registers a lane.
    pub(crate) fn share(self: &Arc<Self>) -> LineShare {
        let mut state = self.state.lock();
        let id = state.shares.iter().map(|known| known.id + 1).max().unwrap_or_default();
        state.shares.push(Use { id, bytes: 0 });
        LineShare { line: Arc::clone(self), id }
    }

    pub fn figures(&self) -> LineFigures {
        let state = self.state.lock();
        LineFigures {
            rate: state.rate.best,
            round_trip: state.round_trip(),
            in_flight: state.shares.iter().map(|share| share.bytes).sum(),
        }
    }

    /// Records the time from CONNECT to CONNACK.
    pub(super) fn record_connect(&self, round_trip: Duration) {
        self.state.lock().connect = Some(round_trip);
    }

    /// Begins to collect the answers that arrive together.
    pub(crate) fn answers(&self, now: Instant) -> Answered {
        let since = self.state.lock().rate.interval.map(|interval| interval.since);
        Answered { since, now, bytes: 0, rate: 0.0, largest: 0, latency: Duration::ZERO, least: Duration::MAX }
    }

    pub(crate) fn record(&self, answered: &Answered) {
        if answered.rate <= 0.0 {
            return;
        }
        let mut state = self.state.lock();
        state.rate.record(answered);
        state.round_trip = Some(state.round_trip.map_or(answered.least, |known| known.min(answered.least)));
    }

    /// Forgets what was measured: a session ended because nothing moved, so the line may have changed.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        (state.rate, state.round_trip) = (RateEstimate::default(), None);
    }

    /// Time that the line needs for so many bytes, and its round trip.
    pub(super) fn carried(&self, bytes: u64) -> Carried {
        let state = self.state.lock();
        let seconds = state.rate.seconds(bytes);
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 8);
        Carried { time, round_trip: state.round_trip().unwrap_or_default() }
    }
}

/// The share of one lane in a line.
#[derive(Debug)]
pub(crate) struct LineShare {
    line: Arc<Line>,
    id: usize,
}

impl LineShare {
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Records how many bytes of this lane are written and not acknowledged.
    pub(crate) fn set(&self, bytes: u64) {
        if let Some(share) = self.line.state.lock().shares.iter_mut().find(|share| share.id == self.id) {
            share.bytes = bytes;
        }
    }
}

impl Drop for LineShare {
    fn drop(&mut self) {
        self.line.state.lock().shares.retain(|share| share.id != self.id);
    }
}
