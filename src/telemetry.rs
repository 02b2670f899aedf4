//! Telemetry: counters and histograms, logging, and escaping of device data for output.
//!
//! Promise: counting never blocks and never allocates. Log rates are limited, and a log event is one line whatever devices
//! send. Each part owns a struct of counters; the gateway reads them all.

mod escape;
mod follow;
mod log;
pub mod metrics;
mod recent;

pub use escape::{shown, shown_json};
pub use follow::{FOLLOW, follow, may_follow};
pub(crate) use log::shows_colours;
pub use log::{LogFormat, Logging, start_logging};
pub use recent::{RECENT_BYTES_MAX, recent_lines};

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A counter that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets per power of two: quantiles are exact to within an eighth.
const BUCKETS_PER_DOUBLING: u32 = 8;
/// Number of buckets: covers 1 µs to over an hour.
const BUCKETS: usize = 32 * BUCKETS_PER_DOUBLING as usize;

/// A histogram of durations with logarithmic buckets.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    /// Sum of all durations in microseconds.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts `times` occurrences of `duration`.
    pub fn record(&self, duration: Duration, times: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        self.buckets[bucket_of(micros)].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add(micros.saturating_mul(times), Ordering::Relaxed);
    }

    /// Returns a copy of the counts.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

fn bucket_of(micros: u64) -> usize {
    let doubling = micros.ilog2();
    let within = if doubling >= 3 { (micros >> (doubling - 3)) & 7 } else { (micros << (3 - doubling)) & 7 };
    ((doubling * BUCKETS_PER_DOUBLING) as usize + within as usize).min(BUCKETS - 1)
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    buckets: Vec<u64>,
    /// Sum of all durations in microseconds.
    sum: u64,
}

impl Snapshot {
    /// Returns the counts recorded after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |index: usize| earlier.buckets.get(index).copied().unwrap_or(0);
        let buckets = self.buckets.iter().enumerate().map(|(i, n)| n.saturating_sub(before(i))).collect();
        Self { buckets, sum: self.sum.saturating_sub(earlier.sum) }
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of all recorded durations.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum)
    }

    /// Number of durations below two to the power of `doublings` microseconds; exact.
    pub fn below(&self, doublings: u32) -> u64 {
        self.buckets.iter().take((doublings * BUCKETS_PER_DOUBLING) as usize).sum()
    }

    /// Returns the quantile `quantile` (0 to 1); zero if nothing was recorded.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let wanted = ((self.count() as f64) * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let doubling = index as u32 / BUCKETS_PER_DOUBLING;
                let within = (index as u32 % BUCKETS_PER_DOUBLING + 1) as f64 / BUCKETS_PER_DOUBLING as f64;
                let micros = (1u64 << doubling) as f64 * (1.0 + within);
                return Duration::from_micros(micros as u64);
            }
        }
        Duration::ZERO
    }
}

/// Limits the rate of a log line: a short burst, then one line per period. Counts suppressed lines.
#[derive(Debug)]
pub struct Limiter {
    every: Duration,
    state: Mutex<LimiterState>,
}

#[derive(Debug, Default)]
struct LimiterState {
    /// Theoretical arrival time of the generic cell rate algorithm: when all lines so far would fit one per `every`.
    paid_until: Option<Instant>,
    suppressed: u64,
}

/// Size of the burst after a quiet period: the first line is seldom the one that explains the problem.
const LIMITER_BURST: u32 = 5;

impl Limiter {
    /// Creates a limiter that allows one line per `every` after the burst.
    pub fn new(every: Duration) -> Self {
        Self { every, state: Mutex::default() }
    }

    /// Returns the number of suppressed lines since the last one if a line may be written now; `None` if not.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let paid_until = state.paid_until.unwrap_or(now).max(now);
        if paid_until.duration_since(now) > self.every * (LIMITER_BURST - 1) {
            state.suppressed += 1;
            return None;
        }
        state.paid_until = Some(paid_until + self.every);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_an_eighth() {
        let histogram = Histogram::default();
        for micros in 1..=10_000u64 {
            histogram.record(Duration::from_micros(micros), 1);
        }
        let snapshot = histogram.snapshot();
        for (quantile, micros) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let measured = snapshot.quantile(quantile).as_micros() as f64;
            assert!((measured / micros - 1.0).abs() < 0.14, "{quantile}: {measured}");
        }
        assert_eq!(snapshot.since(&snapshot).quantile(0.99), Duration::ZERO);
        assert_eq!((snapshot.below(10), snapshot.below(14), snapshot.count()), (1023, 10_000, 10_000));
        assert_eq!(snapshot.sum(), Duration::from_micros(50_005_000));
    }

    #[test]
    fn a_limiter_counts_what_it_holds_back() {
        let limiter = Limiter::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |second| limiter.allow(start + Duration::from_secs(second));
        assert!((0..5).all(|_| at(0) == Some(0)), "the first few");
        assert_eq!((at(1), at(2)), (None, None));
        assert_eq!((at(11), at(12)), (Some(2), None), "then one in a while");
        assert_eq!((at(100), at(100)), (Some(1), Some(0)), "and a few again after a silence");
    }
}
