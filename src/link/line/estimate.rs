//! Estimates of the rate and the round trip of a line.
//!
//! Promise: the rate is a lower bound. It counts only what central has acknowledged, and only over times in which these
//! bytes were certainly carried, whatever a proxy on the way buffers.

use std::time::{Duration, Instant};

/// Content of a segment that fits any usual line, with a TLS record around it.
pub(crate) const SEGMENT_BYTES: u64 = 1300;
/// Least number of bytes in flight: a peer acknowledges every second segment.
pub(super) const FLOOR_BYTES: u64 = 2 * SEGMENT_BYTES;
/// Rate in bytes per second that a line is taken to have before one is measured.
const UNMEASURED: f64 = 1000.0;
/// The rate of a sample counts for this many times its bytes.
const PROVEN_TIMES: u64 = 4;
/// The largest sample of this time, and of the one before, counts.
const WINDOW: Duration = Duration::from_secs(10);
/// Intervals in which bytes are counted at the same time.
const INTERVALS: usize = 4;
/// Shortest interval of a sample, in seconds: less is below the resolution of timers and schedulers.
const SAMPLE_SECONDS_MIN: f64 = 0.001;
/// A round trip counts for so long. Then the bytes in flight are reduced, so that it is measured without what stands in
/// queues.
const ROUND_TRIP_AGE: Duration = Duration::from_secs(60);
/// A line with a shorter round trip needs no fresh one: one second of data is more than two of them.
const ROUND_TRIP_SHORT: Duration = Duration::from_millis(500);
/// Longest time with reduced bytes in flight.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Answers that arrived together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    /// The intervals in which they are counted.
    intervals: [Option<Interval>; INTERVALS],
    now: Instant,
    /// Bytes per second of the fastest publish.
    rate: f64,
    /// Bytes of the largest publish.
    largest: u64,
    /// Time from sending to acknowledgement of the last publish.
    latency: Duration,
    /// The same of the fastest small publish, and when it was sent.
    small: Option<(Duration, Instant)>,
}

impl Answers {
    /// Adds an acknowledged publish that was sent at `sent_at` at the earliest.
    pub(crate) fn add(&mut self, bytes: usize, sent_at: Instant) {
        let latency = self.now.saturating_duration_since(sent_at);
        let bytes = bytes as u64;
        for interval in self.intervals.iter_mut().flatten().filter(|interval| sent_at >= interval.since) {
            interval.bytes += bytes;
        }
        self.rate = self.rate.max(bytes as f64 / latency.as_secs_f64().max(SAMPLE_SECONDS_MIN));
        self.largest = self.largest.max(bytes);
        self.latency = latency;
        // The time of a large one is that of its bytes.
        if bytes <= FLOOR_BYTES && self.small.is_none_or(|(least, _)| latency < least) {
            self.small = Some((latency, sent_at));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.largest == 0
    }
}

/// The largest lower bound of the last 10 to 20 s in which the line was full.
#[derive(Debug, Default)]
pub(super) struct RateEstimate {
    /// The intervals in which acknowledged bytes are counted. One begins after the time of an answer: bytes that are
    /// sent in the first of these times and answered in the second are a sample of a line that is not full; of a full
    /// line, the fourth has the best.
    intervals: [Option<Interval>; INTERVALS],
    /// Index of the newest interval.
    newest: usize,
    current: Bucket,
    previous: Bucket,
    rotated_at: Option<Instant>,
    /// Most bytes that were acknowledged in one interval: for many more, the rate is not proven.
    proven_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    since: Instant,
    /// Bytes that were sent after `since` and are acknowledged.
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    rate: f64,
    /// There was more to send than the bound allowed: only then a low rate says something.
    is_full: bool,
}

impl RateEstimate {
    pub(super) fn best(&self) -> Option<f64> {
        let best = self.current.rate.max(self.previous.rate);
        (best > 0.0).then_some(best)
    }

    pub(super) fn is_full(&self) -> bool {
        self.current.is_full || self.previous.is_full
    }

    pub(super) fn mark_full(&mut self) {
        self.current.is_full = true;
    }

    /// Keeps the estimate, because what is in flight takes longer than its window.
    pub(super) fn hold(&mut self, now: Instant) {
        self.rotated_at = Some(now);
    }

    pub(super) fn answers(&self, now: Instant) -> Answers {
        let intervals = self.intervals.map(|interval| interval.map(|interval| Interval { bytes: 0, ..interval }));
        Answers { intervals, now, rate: 0.0, largest: 0, latency: Duration::ZERO, small: None }
    }

    pub(super) fn record(&mut self, answers: &Answers) {
        let now = answers.now;
        let mut rate = answers.rate;
        self.proven_bytes = self.proven_bytes.max(answers.largest);
        for known in self.intervals.iter_mut().flatten() {
            // Another lane may have begun a new interval meanwhile.
            let added = answers.intervals.iter().flatten().find(|interval| interval.since == known.since);
            known.bytes += added.map_or(0, |interval| interval.bytes);
            self.proven_bytes = self.proven_bytes.max(known.bytes);
            let seconds = now.saturating_duration_since(known.since).as_secs_f64();
            rate = rate.max(known.bytes as f64 / seconds.max(SAMPLE_SECONDS_MIN));
        }
        let since = self.intervals[self.newest].map(|interval| now.saturating_duration_since(interval.since));
        if since.is_none_or(|since| since.as_secs_f64() >= answers.latency.as_secs_f64().max(SAMPLE_SECONDS_MIN)) {
            self.newest = (self.newest + 1) % INTERVALS;
            self.intervals[self.newest] = Some(Interval { since: now, bytes: 0 });
        }
        self.current.rate = self.current.rate.max(rate);
        self.rotate(now);
    }

    fn rotate(&mut self, now: Instant) {
        let rotated_at = *self.rotated_at.get_or_insert(now);
        if now.saturating_duration_since(rotated_at) < WINDOW {
            return;
        }
        self.rotated_at = Some(now);
        let current = std::mem::take(&mut self.current);
        self.previous = match current.is_full {
            true => current,
            // Nothing is learned of a decline while there is little to send.
            false => Bucket { rate: current.rate.max(self.previous.rate), is_full: self.previous.is_full },
        };
    }

    /// Time that the line needs for so many bytes. A few bytes that were fast prove nothing for many: a buffer on the way
    /// takes them at once.
    pub(super) fn seconds(&self, bytes: u64) -> f64 {
        let proven = bytes.min(self.proven_bytes.saturating_mul(PROVEN_TIMES));
        let at_rate = self.best().map_or(0.0, |rate| proven as f64 / rate);
        at_rate + (bytes - proven) as f64 / UNMEASURED
    }
}

/// The shortest time of late from sending a small publish to its acknowledgement. It includes what the broker needs.
#[derive(Debug, Default)]
pub(super) struct RoundTripEstimate {
    /// CONNECT to CONNACK of the last session, until there is an answer.
    pub(super) connect: Option<Duration>,
    least: Option<Duration>,
    measured_at: Option<Instant>,
    draining_since: Option<Instant>,
}

impl RoundTripEstimate {
    pub(super) fn value(&self) -> Option<Duration> {
        self.least.or(self.connect)
    }

    /// The shorter one of both measured times: a publish itself takes time on a narrow line.
    pub(super) fn shortest(&self) -> Duration {
        self.least.into_iter().chain(self.connect).min().unwrap_or_default()
    }

    /// Returns whether the bytes in flight are to be reduced for now.
    pub(super) fn is_draining(&mut self, now: Instant) -> bool {
        if let Some(since) = self.draining_since {
            if now.saturating_duration_since(since) >= DRAIN_MAX {
                (self.draining_since, self.measured_at) = (None, Some(now));
            }
        } else if let (Some(least), Some(at)) = (self.least, self.measured_at)
            && least > ROUND_TRIP_SHORT
            && now.saturating_duration_since(at) >= ROUND_TRIP_AGE
        {
            self.draining_since = Some(now);
        }
        self.draining_since.is_some()
    }

    pub(super) fn record(&mut self, answers: &Answers) {
        let Some((latency, sent_at)) = answers.small else { return };
        // What was sent before has stood in queues.
        let is_drained = self.draining_since.is_some_and(|since| sent_at > since);
        if is_drained || self.least.is_none_or(|least| latency <= least) {
            self.least = Some(latency);
        }
        if is_drained || self.least.is_none_or(|least| latency <= least + least / 10) {
            (self.measured_at, self.draining_since) = (Some(answers.now), None);
        }
    }
}
