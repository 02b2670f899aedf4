//! Telemetry: what the parts count, and how the gateway logs.
//!
//! Promise: counting never blocks and never allocates; a log line never floods.
//! Each part owns a struct of these and the gateway reads them all.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes `count` away.
    pub fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Steps of a histogram for each doubling: a value is known to within an eighth.
const STEPS_PER_DOUBLING: u32 = 8;
/// Enough for 1 µs to over an hour.
const STEPS: usize = 32 * STEPS_PER_DOUBLING as usize;

/// Durations, counted in steps that grow with them.
#[derive(Debug)]
pub struct Histogram {
    steps: Box<[AtomicU64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { steps: (0..STEPS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Histogram {
    /// Counts `times` occurrences of `duration`.
    pub fn record(&self, duration: Duration, times: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        self.steps[step_of(micros)].fetch_add(times, Ordering::Relaxed);
    }

    /// What has been counted so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.steps.iter().map(|step| step.load(Ordering::Relaxed)).collect())
    }
}

fn step_of(micros: u64) -> usize {
    let doubling = micros.ilog2();
    let within = if doubling >= 3 { (micros >> (doubling - 3)) & 7 } else { (micros << (3 - doubling)) & 7 };
    ((doubling * STEPS_PER_DOUBLING) as usize + within as usize).min(STEPS - 1)
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(Vec<u64>);

impl Snapshot {
    /// What was counted after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |index: usize| earlier.0.get(index).copied().unwrap_or(0);
        Self(self.0.iter().enumerate().map(|(i, n)| n.saturating_sub(before(i))).collect())
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The duration that a share `quantile` (0 to 1) of all does not exceed; zero if there is none.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let wanted = ((self.count() as f64) * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let doubling = index as u32 / STEPS_PER_DOUBLING;
                let within = (index as u32 % STEPS_PER_DOUBLING + 1) as f64 / STEPS_PER_DOUBLING as f64;
                let micros = (1u64 << doubling) as f64 * (1.0 + within);
                return Duration::from_micros(micros as u64);
            }
        }
        Duration::ZERO
    }
}

/// Lets one log line through in a while and counts the others.
#[derive(Debug)]
pub struct Limiter {
    every: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Limiter {
    /// One line in `every`.
    pub fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new((None, 0)) }
    }

    /// How many lines were held back since the last, if this one may be written; `None` if not.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let Ok(mut state) = self.state.lock() else { return None };
        match state.0 {
            Some(last) if now.duration_since(last) < self.every => {
                state.1 += 1;
                None
            }
            _ => {
                state.0 = Some(now);
                Some(std::mem::take(&mut state.1))
            }
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error, from `level` up. The `FOREBAY_LOG` variable overrides it
/// (`debug`, or `forebay::link=trace,info`).
pub fn start_logging(format: LogFormat, level: tracing::Level) {
    use tracing_subscriber::{filter::Targets, prelude::*};
    let wanted = std::env::var("FOREBAY_LOG").ok();
    let targets = match wanted.as_deref().map(str::parse::<Targets>) {
        Some(Ok(targets)) => targets,
        _ => Targets::new().with_default(level),
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    // A second start (in tests) keeps the first one's settings.
    let _ = match format {
        LogFormat::Text => registry
            .with(layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).with_filter(targets))
            .try_init(),
        LogFormat::Json => registry.with(layer.json().with_filter(targets)).try_init(),
    };
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
    }

    #[test]
    fn a_limiter_counts_what_it_holds_back() {
        let limiter = Limiter::new(Duration::from_secs(10));
        let start = crate_instant();
        assert_eq!(limiter.allow(start), Some(0));
        assert_eq!(limiter.allow(start + Duration::from_secs(1)), None);
        assert_eq!(limiter.allow(start + Duration::from_secs(2)), None);
        assert_eq!(limiter.allow(start + Duration::from_secs(11)), Some(2));
    }

    fn crate_instant() -> Instant {
        Instant::now()
    }
}
