//! Pace: how fast a lane may be sent, and when.
//!
//! Promise: no more leaves than the ceilings say; what yields slows down while other lanes of the same
//! destination have a backlog, and never stops for it.

use crate::clock;
use crate::event::Timestamp;
use crate::journal::Lane;
use crate::setting::{Bytes, Span};
use jiff::tz::TimeZone;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How a lane is sent.
#[derive(Clone, Debug, Default)]
pub struct Sending {
    /// What goes out first after an outage.
    pub catch_up: CatchUp,
    /// Topic level in front of what is sent from the backlog by `live-first`; none for MQTT 5 by default.
    pub backfill_topic: Option<String>,
    /// Many events in one publish.
    pub batch: Option<Batch>,
    /// Ceilings.
    pub rate: Rate,
    /// Lower ceilings while other lanes have a backlog; `None` for a lane that does not yield.
    pub yielding: Option<Rate>,
    /// When it is sent at all.
    pub hours: Option<Hours>,
}

/// What goes out first after an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CatchUp {
    /// The oldest.
    #[default]
    OldestFirst,
    /// What comes now; the backlog behind it, marked. Only where no contract keeps an order.
    LiveFirst,
}

/// Many events in one publish.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// How many events at most.
    #[serde(default = "batch_events")]
    pub events: usize,
    /// How many bytes at most, before compression.
    #[serde(default = "batch_bytes")]
    pub bytes: Bytes,
    /// How long the first may wait for the others.
    #[serde(default = "batch_age")]
    pub age: Span,
    /// How they are compressed.
    #[serde(default)]
    pub compression: Compression,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// zstd; with MQTT 5 only, where the content type says so.
    Zstd,
}

fn batch_events() -> usize {
    500
}

fn batch_bytes() -> Bytes {
    Bytes(256 << 10)
}

fn batch_age() -> Span {
    Span(Duration::from_secs(5))
}

/// Ceilings for what leaves in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Events.
    pub events: Option<u64>,
    /// Bytes of publishes.
    pub bytes: Option<Bytes>,
}

/// A part of the day, in a time zone.
#[derive(Clone, Debug)]
pub struct Hours {
    /// Minutes of the day: from, to (exclusive). It may go over midnight.
    minutes: (u32, u32),
    zone: TimeZone,
}

impl Hours {
    /// Reads `02:00-04:00`; `zone` is a name such as `Europe/Berlin`, or the zone of the machine.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no part of the day; expected two times such as \"02:00-04:00\"");
        let minute = |time: &str| -> Option<u32> {
            let (hour, minute) = time.trim().split_once(':')?;
            let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
            (hour < 24 && minute < 60 || (hour, minute) == (24, 0)).then_some(hour * 60 + minute)
        };
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let minutes = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
        if minutes.0 == minutes.1 {
            return Err(wrong());
        }
        let zone = match zone {
            None => TimeZone::system(),
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!(
                    "\"{name}\" is no time zone known here; expected one such as \"Europe/Berlin\" (package tzdata)"
                )
            })?,
        };
        Ok(Self { minutes, zone })
    }

    /// Whether a moment is in it.
    pub fn contains(&self, at: Timestamp) -> bool {
        let Ok(at) = jiff::Timestamp::from_microsecond(at.0) else { return false };
        let local = at.to_zoned(self.zone.clone());
        let minute = local.hour() as u32 * 60 + local.minute() as u32;
        let (from, to) = self.minutes;
        if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
    }
}

/// How far the forwarders of one destination are; each lane sees what the others have before them, also while
/// their forwarders rest. What a lane has before it outside its hours presses nobody: it is not to leave now.
#[derive(Debug)]
pub struct Pressure {
    lanes: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    lane: Arc<Lane>,
    reached: AtomicU64,
    hours: Option<Hours>,
}

/// A lane that is further behind than this has a backlog: more than is in flight in normal times.
const BACKLOG_FROM: u64 = 1000;

impl Pressure {
    /// Nobody is behind yet. `hours` of a lane are those in which it is sent.
    pub fn new(lanes: &[Arc<Lane>], hours: impl Fn(&str) -> Option<Hours>) -> Arc<Self> {
        let known = |lane: &Arc<Lane>| {
            let reached = AtomicU64::new(lane.end());
            Known { lane: Arc::clone(lane), reached, hours: hours(&lane.name) }
        };
        Arc::new(Self { lanes: lanes.iter().map(known).collect() })
    }

    /// Says how far a lane is: its events from this offset on are not acknowledged, or count as if they were not.
    pub fn note(&self, lane: &str, reached: u64) {
        if let Some(known) = self.lanes.iter().find(|known| known.lane.name == lane) {
            known.reached.store(reached, Ordering::Relaxed);
        }
    }

    /// Whether a lane other than this one has a backlog.
    pub fn is_on(&self, lane: &str) -> bool {
        self.lanes.iter().filter(|known| known.lane.name != lane).any(Known::presses)
    }

    /// Whether any lane has a backlog: what is sent again stays behind that.
    pub fn is_on_at_all(&self) -> bool {
        self.lanes.iter().any(Known::presses)
    }
}

impl Known {
    fn presses(&self) -> bool {
        self.lane.end().saturating_sub(self.reached.load(Ordering::Relaxed)) > BACKLOG_FROM && self.is_open()
    }

    fn is_open(&self) -> bool {
        self.hours.as_ref().is_none_or(|hours| hours.contains(Timestamp::from(clock::wall())))
    }
}

/// A bucket that fills at a rate, and holds a tenth of a second of it.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        Self { rate: rate.max(1) as f64, level: 0.0, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.level = (self.level + since * self.rate).min((self.rate / 10.0).max(1.0));
        self.filled = now;
    }

    /// How long until something may pass; zero if it may now. What passes may overdraw the bucket once.
    fn wait(&self) -> Duration {
        if self.level > 0.0 { Duration::ZERO } else { Duration::from_secs_f64((1.0 - self.level) / self.rate) }
    }
}

/// Keeps one lane within its ceilings.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: Rate,
    events: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Pacer {
    pub fn new() -> Self {
        Self { rate: Rate::default(), events: None, bytes: None }
    }

    /// How long nothing may be sent under `rate`; zero if something may.
    pub fn wait(&mut self, rate: Rate) -> Duration {
        let now = clock::instant();
        // Also where there is no ceiling any more: what the one before has used up holds nothing back.
        if rate != self.rate {
            self.rate = rate;
            self.events = rate.events.map(|rate| Bucket::new(rate, now));
            self.bytes = rate.bytes.map(|rate| Bucket::new(rate.0, now));
        }
        let buckets = [&mut self.events, &mut self.bytes];
        let wait = |bucket: &mut Bucket| {
            bucket.fill(now);
            bucket.wait()
        };
        buckets.into_iter().flatten().map(wait).max().unwrap_or_default()
    }

    /// How many events may pass now.
    pub fn events(&self) -> usize {
        let has_bytes = self.bytes.as_ref().is_none_or(|bucket| bucket.level > 0.0);
        match &self.events {
            _ if !has_bytes => 0,
            Some(bucket) => bucket.level.ceil().max(0.0) as usize,
            None => usize::MAX,
        }
    }

    pub fn spend(&mut self, events: usize, bytes: usize) {
        if let Some(bucket) = &mut self.events {
            bucket.level -= events as f64;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.level -= bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_day_may_go_over_midnight_and_knows_its_zone() {
        let at = |text: &str| Timestamp::parse(text).expect("a time");
        let night = Hours::parse("22:00-04:30", Some("UTC")).expect("reads");
        for (time, is_in) in [("21:59", false), ("22:00", true), ("00:00", true), ("04:29", true), ("04:30", false)] {
            assert_eq!(night.contains(at(&format!("2026-11-25T{time}:00Z"))), is_in, "{time}");
        }
        if let Ok(berlin) = Hours::parse("02:00-04:00", Some("Europe/Berlin")) {
            assert!(berlin.contains(at("2026-01-15T01:30:00Z")) && !berlin.contains(at("2026-01-15T03:30:00Z")));
            assert!(berlin.contains(at("2026-07-15T00:30:00Z")), "an hour earlier in summer");
        }
        for wrong in ["", "2-4", "02:00", "25:00-26:00", "03:00-03:00"] {
            let error = Hours::parse(wrong, None).expect_err(wrong);
            assert!(error.contains("02:00-04:00"), "{error}");
        }
        assert!(Hours::parse("02:00-04:00", Some("Mars/Base")).is_err_and(|error| error.contains("Mars/Base")));
    }

    #[test]
    fn a_ceiling_that_is_gone_holds_nothing_back() {
        let mut pacer = Pacer::new();
        let rate = Rate { events: Some(10), bytes: Some(Bytes(1000)) };
        pacer.wait(rate);
        pacer.spend(1000, 1_000_000);
        assert!(!pacer.wait(rate).is_zero() && pacer.events() == 0, "used up");
        assert!(pacer.wait(Rate::default()).is_zero());
        assert_eq!(pacer.events(), usize::MAX);
    }

    #[test]
    fn a_pacer_lets_no_more_pass_than_its_rate() {
        let mut bucket = Bucket::new(100, Instant::now());
        let start = bucket.filled;
        let mut passed = 0.0;
        for milli in 1..=10_000 {
            bucket.fill(start + Duration::from_millis(milli));
            while bucket.wait().is_zero() {
                bucket.level -= 1.0;
                passed += 1.0;
            }
        }
        assert!((990.0..=1011.0).contains(&passed), "{passed} in ten seconds at 100 a second");
    }
}
