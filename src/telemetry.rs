//! Telemetry: what the parts count, how the gateway logs, and how what devices send is shown.
//!
//! Promise: counting never blocks and never allocates; a log line never floods, and is one line whatever devices send.
//! Each part owns a struct of these and the gateway reads them all.

mod follow;
mod log;
pub mod metrics;
mod recent;

pub use follow::{FOLLOW, follow, may_follow};
pub use log::{LogFormat, Logging, start_logging};
pub use recent::{RECENT_BYTES_MAX, recent_lines};

use parking_lot::Mutex;
use std::borrow::Cow;
use std::fmt::Write;
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
    /// Of all durations, in microseconds.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { steps: (0..STEPS).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts `times` occurrences of `duration`.
    pub fn record(&self, duration: Duration, times: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        self.steps[step_of(micros)].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add(micros.saturating_mul(times), Ordering::Relaxed);
    }

    /// What has been counted so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            steps: self.steps.iter().map(|step| step.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

fn step_of(micros: u64) -> usize {
    let doubling = micros.ilog2();
    let within = if doubling >= 3 { (micros >> (doubling - 3)) & 7 } else { (micros << (3 - doubling)) & 7 };
    ((doubling * STEPS_PER_DOUBLING) as usize + within as usize).min(STEPS - 1)
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    steps: Vec<u64>,
    /// Microseconds.
    sum: u64,
}

impl Snapshot {
    /// What was counted after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |index: usize| earlier.steps.get(index).copied().unwrap_or(0);
        let steps = self.steps.iter().enumerate().map(|(i, n)| n.saturating_sub(before(i))).collect();
        Self { steps, sum: self.sum.saturating_sub(earlier.sum) }
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.steps.iter().sum()
    }

    /// All durations together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum)
    }

    /// How many durations were below two to the power of `doublings` microseconds; exact.
    pub fn below(&self, doublings: u32) -> u64 {
        self.steps.iter().take((doublings * STEPS_PER_DOUBLING) as usize).sum()
    }

    /// The duration that a share `quantile` (0 to 1) of all does not exceed; zero if there is none.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let wanted = ((self.count() as f64) * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.steps.iter().enumerate() {
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

/// Lets a few log lines through, then one in a while, and counts the others.
#[derive(Debug)]
pub struct Limiter {
    every: Duration,
    state: Mutex<LimiterState>,
}

#[derive(Debug, Default)]
struct LimiterState {
    /// When all lines so far would have been through at one in `every`: the generic cell rate algorithm.
    paid_until: Option<Instant>,
    held_back: u64,
}

/// Lines that may come one after the other after a silence: the first is seldom the one that explains.
const LIMITER_BURST: u32 = 5;

impl Limiter {
    /// One line in `every`, after the first few.
    pub fn new(every: Duration) -> Self {
        Self { every, state: Mutex::default() }
    }

    /// How many lines were held back since the last, if this one may be written; `None` if not.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let paid_until = state.paid_until.unwrap_or(now).max(now);
        if paid_until.duration_since(now) > self.every * (LIMITER_BURST - 1) {
            state.held_back += 1;
            return None;
        }
        state.paid_until = Some(paid_until + self.every);
        Some(std::mem::take(&mut state.held_back))
    }
}

/// Text from a device or a file as a terminal or a log may show it: on one line, without anything
/// that moves the cursor, changes colours or turns the reading direction.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unshowable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            letter if is_unshowable(letter) => out.extend(letter.escape_unicode()),
            letter => out.push(letter),
        }
    }
    Cow::Owned(out)
}

/// Controls (C0, DEL and C1), line and paragraph separators, and what sets or overrides the reading direction.
fn is_unshowable(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200E}' | '\u{200F}' | '\u{061C}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// JSON without characters that a terminal would act on; it says the same.
pub fn shown_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        // Everything below U+0020 in a string is escaped already; line ends are the layout.
        if letter == '\n' || shown(letter.encode_utf8(&mut [0; 4])).len() == letter.len_utf8() {
            out.push(letter);
        } else {
            let _ = letter.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_stays_on_its_line_and_moves_no_cursor() {
        assert_eq!(shown("press 4 · µm²"), "press 4 · µm²");
        assert_eq!(shown("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(shown("\x1b[31m\u{9b}\u{202e}\u{2066}\x7f"), "\\u{1b}[31m\\u{9b}\\u{202e}\\u{2066}\\u{7f}");
    }

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
