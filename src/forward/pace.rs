//! Pace: rate limits and sending hours of a lane.
//!
//! Promise: a forwarder never exceeds its rate limits; a yielding lane slows down while other lanes of the same
//! destination have a backlog, but never stops because of them.

use super::keys::Connection;
use super::meter::{ByteBudget, Meter};
use crate::clock;
use crate::contract::Order;
use crate::event::Timestamp;
use crate::journal::Lane;
use crate::link::Line;
use crate::setting::{Bytes, Span};
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How the forwarders send a lane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sending {
    /// Sending order after an outage.
    pub catch_up: CatchUp,
    /// Topic level in front of the topic of backlog events with `live-first`; none for MQTT 5 by default.
    pub backfill_topic: Option<String>,
    /// Limits of batches; `None` sends one event per publish.
    pub batch: Option<Batch>,
    pub rate: Rate,
    /// Lower rate limits while other lanes have a backlog; `None` for a lane that does not yield.
    pub yielding: Option<Rate>,
    /// Number of connections that share the events of the lane by key; 0 counts as 1.
    pub connections: u16,
    /// DSCP of the packets of the lane, 0 to 63; `None` for that of the system.
    pub dscp: Option<u8>,
    /// Hours in which the lane is sent; `None` for always.
    pub hours: Option<Hours>,
    /// The order that the contracts of the lane promise, by stream.
    pub orders: Arc<BTreeMap<String, Order>>,
}

impl Sending {
    /// Lists the connections of the lane.
    pub fn connections(&self) -> impl Iterator<Item = Connection> + use<> {
        Connection::all(self.connections.max(1))
    }
}

/// Sending order after an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CatchUp {
    /// The oldest events first.
    #[default]
    OldestFirst,
    /// Live events first, then the backlog with a mark. Only if no contract of the lane keeps an order.
    LiveFirst,
}

/// Limits of a batch: many events in one publish.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    pub when: BatchWhen,
    pub events: usize,
    /// Largest payload in bytes, before compression.
    pub bytes: Bytes,
    /// Longest wait of the first event for further ones.
    pub age: Span,
    pub compression: Compression,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            when: BatchWhen::default(),
            events: 500,
            bytes: Bytes(256 << 10),
            age: Span(Duration::from_secs(5)),
            compression: Compression::default(),
        }
    }
}

/// When events are sent in batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchWhen {
    #[default]
    Always,
    /// While more events wait than the window or the line takes; otherwise each event is sent at once, and alone.
    Backlog,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    #[default]
    None,
    /// zstd, with MQTT 5 only: the content type property announces it.
    Zstd,
}

/// Rate limits; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub events: Option<u64>,
    /// Bytes of publishes per second.
    pub bytes: Option<Bytes>,
}

/// A daily time range in a time zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Hours {
    /// First minute of the day and end (exclusive). The range may span midnight.
    minutes: (u32, u32),
    zone: TimeZone,
}

const MINUTES_OF_A_DAY: u32 = 24 * 60;

impl Hours {
    /// Parses `02:00-04:00`; `zone` is a name such as `Europe/Berlin`, `None` the time zone of the system.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let malformed = || format!("\"{text}\" is not a time range; expected two times such as \"02:00-04:00\"");
        let minute = |time: &str| -> Option<u32> {
            let (hour, minute) = time.trim().split_once(':')?;
            let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
            (hour < 24 && minute < 60 || (hour, minute) == (24, 0)).then_some(hour * 60 + minute)
        };
        let (from, to) = text.split_once('-').ok_or_else(malformed)?;
        let minutes = (minute(from).ok_or_else(malformed)?, minute(to).ok_or_else(malformed)?);
        if minutes.0 == minutes.1 {
            return Err(malformed());
        }
        let zone = match zone {
            None => TimeZone::system(),
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!("\"{name}\" is not a known time zone; expected one such as \"Europe/Berlin\" (package tzdata)")
            })?,
        };
        Ok(Self { minutes, zone })
    }

    /// Whether the range contains a time.
    pub fn contains(&self, at: Timestamp) -> bool {
        let Ok(at) = jiff::Timestamp::from_microsecond(at.0) else { return false };
        let today = at.to_zoned(self.zone.clone()).date();
        // A range over midnight began yesterday.
        [today.yesterday().ok(), Some(today)].into_iter().flatten().any(|day| self.on(day).contains(&at))
    }

    /// When the range begins next, in its time zone; `None` at the end of time.
    pub fn next_start(&self, at: Timestamp) -> Option<jiff::Zoned> {
        let at = jiff::Timestamp::from_microsecond(at.0).ok()?;
        let today = at.to_zoned(self.zone.clone()).date();
        let days = [Some(today), today.tomorrow().ok()].into_iter().flatten();
        let starts = days.map(|day| self.on(day).start);
        starts.filter(|start| *start > at).min().map(|start| start.to_zoned(self.zone.clone()))
    }

    /// The range that begins on a day. It has its full length on every day: where clocks change, a start that does
    /// not exist moves behind the change, and one that exists twice is the first.
    fn on(&self, day: jiff::civil::Date) -> std::ops::Range<jiff::Timestamp> {
        let (from, to) = self.minutes;
        let length = if to > from { to - from } else { MINUTES_OF_A_DAY + to - from };
        let midnight = day.at(0, 0, 0, 0);
        let local = midnight.saturating_add(jiff::SignedDuration::from_mins(i64::from(from)));
        let start =
            self.zone.to_ambiguous_zoned(local).compatible().map_or(jiff::Timestamp::MAX, |zoned| zoned.timestamp());
        start..start.saturating_add(jiff::SignedDuration::from_mins(i64::from(length))).unwrap_or(jiff::Timestamp::MAX)
    }
}

/// Progress of the lanes of one destination. Each forwarder sees the backlogs of the other lanes, also while their
/// forwarders are disconnected. A lane outside its sending hours counts as without backlog.
#[derive(Debug)]
pub struct Pressure {
    lanes: Vec<LaneProgress>,
    budget: Option<(ByteBudget, Arc<Meter>)>,
    line: Arc<Line>,
}

#[derive(Debug)]
struct LaneProgress {
    lane: Arc<Lane>,
    /// For each connection, the offset from which on events count as unacknowledged.
    reached: Vec<AtomicU64>,
    /// The rate limits bound the connections together.
    pacer: Mutex<Pacer>,
    hours: Option<Hours>,
}

/// Number of unacknowledged events above which a lane has a backlog: more than are in flight in normal operation.
const BACKLOG_FROM: u64 = 1000;

impl Pressure {
    /// Creates it without backlogs. `sending` returns how a lane is sent; `budget` is the one in bytes.
    pub fn new<'s>(
        lanes: &[Arc<Lane>],
        sending: impl Fn(&str) -> Option<&'s Sending>,
        budget: Option<(ByteBudget, Arc<Meter>)>,
    ) -> Arc<Self> {
        let progress = |lane: &Arc<Lane>| {
            let sending = sending(&lane.name);
            let connections = sending.map_or(1, |sending| sending.connections().count());
            let reached = (0..connections).map(|_| AtomicU64::new(lane.end())).collect();
            let (pacer, hours) = (Mutex::new(Pacer::new()), sending.and_then(|sending| sending.hours.clone()));
            LaneProgress { lane: Arc::clone(lane), reached, pacer, hours }
        };
        Arc::new(Self { lanes: lanes.iter().map(progress).collect(), budget, line: Arc::default() })
    }

    /// The line that all connections to the destination share.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Whether the byte budget of the destination keeps a connection from sending.
    pub(super) fn is_out_of_budget(&self, connection: &str) -> bool {
        self.budget.as_ref().is_some_and(|(budget, meter)| meter.is_used_up(budget, connection))
    }

    fn progress(&self, lane: &str) -> Option<&LaneProgress> {
        self.lanes.iter().find(|progress| progress.lane.name == lane)
    }

    /// Records that the events of `lane` from offset `reached` on count as unacknowledged on a connection.
    pub fn note(&self, lane: &str, connection: Connection, reached: u64) {
        let known = self.progress(lane).and_then(|progress| progress.reached.get(usize::from(connection.number)));
        known.into_iter().for_each(|known| known.store(reached, Ordering::Relaxed));
    }

    /// Applies `change` to the rate limits of a lane.
    fn with_pacer<T: Default>(&self, lane: &str, change: impl FnOnce(&mut Pacer) -> T) -> T {
        self.progress(lane).map_or_else(T::default, |progress| change(&mut progress.pacer.lock()))
    }

    /// Whether a lane other than `lane` has a backlog.
    pub fn has_other_backlog(&self, lane: &str) -> bool {
        let others = self.lanes.iter().filter(|progress| progress.lane.name != lane);
        others.filter(|progress| progress.has_backlog()).any(|progress| !self.is_out_of_budget(&progress.lane.name))
    }

    /// Whether any lane has a backlog; replays and requeued dead letters wait until none has.
    pub fn has_any_backlog(&self) -> bool {
        self.lanes.iter().any(LaneProgress::has_backlog)
    }
}

impl LaneProgress {
    fn has_backlog(&self) -> bool {
        let reached = self.reached.iter().map(|reached| reached.load(Ordering::Relaxed)).min();
        self.lane.end().saturating_sub(reached.unwrap_or_default()) > BACKLOG_FROM && self.is_open()
    }

    fn is_open(&self) -> bool {
        self.hours.as_ref().is_none_or(|hours| hours.contains(Timestamp::from(clock::wall())))
    }
}

/// A token bucket: it fills at `rate` per second and holds the tokens of a tenth of a second.
#[derive(Debug)]
struct TokenBucket {
    rate: f64,
    level: f64,
    filled_at: Instant,
}

impl TokenBucket {
    fn new(rate: u64, now: Instant) -> Self {
        Self { rate: rate.max(1) as f64, level: 0.0, filled_at: now }
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.level = (self.level + since * self.rate).min((self.rate / 10.0).max(1.0));
        self.filled_at = now;
    }

    /// Time until the next send is allowed; zero if it is allowed now. One send may overdraw the bucket.
    fn wait(&self) -> Duration {
        if self.level > 0.0 { Duration::ZERO } else { Duration::from_secs_f64((1.0 - self.level) / self.rate) }
    }
}

/// Enforces the rate limits of one lane.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: Rate,
    events: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
}

impl Pacer {
    pub(super) fn new() -> Self {
        Self { rate: Rate::default(), events: None, bytes: None }
    }

    /// Time until `rate` allows the next send; zero if it allows one now.
    pub(super) fn wait(&mut self, rate: Rate) -> Duration {
        let now = clock::instant();
        // Also if the new rate has no limit: debt under the old limit no longer delays anything.
        if rate != self.rate {
            self.rate = rate;
            self.events = rate.events.map(|rate| TokenBucket::new(rate, now));
            self.bytes = rate.bytes.map(|rate| TokenBucket::new(rate.0, now));
        }
        let buckets = [&mut self.events, &mut self.bytes];
        let wait = |bucket: &mut TokenBucket| {
            bucket.fill(now);
            bucket.wait()
        };
        buckets.into_iter().flatten().map(wait).max().unwrap_or_default()
    }

    /// Number of events that may be sent now.
    pub(super) fn events(&self) -> usize {
        let has_bytes = self.bytes.as_ref().is_none_or(|bucket| bucket.level > 0.0);
        match &self.events {
            _ if !has_bytes => 0,
            Some(bucket) => bucket.level.ceil().max(0.0) as usize,
            None => usize::MAX,
        }
    }

    pub(super) fn spend(&mut self, events: usize, bytes: usize) {
        if let Some(bucket) = &mut self.events {
            bucket.level -= events as f64;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.level -= bytes as f64;
        }
    }
}

/// Interval at which the forwarder checks whether the sending hours or a new day or month have begun.
const HOURS_POLL: Duration = Duration::from_secs(5);

/// What a connection of a lane may send now: the sending hours and rate limits of the lane, and the other lanes of its
/// destination.
#[derive(Debug)]
pub(super) struct Allowance {
    lane: String,
    connection: Connection,
    sending: Arc<Sending>,
    pressure: Arc<Pressure>,
}

impl Allowance {
    pub(super) fn new((lane, connection): (&Lane, Connection), sending: Arc<Sending>, pressure: Arc<Pressure>) -> Self {
        Self { lane: lane.name.clone(), connection, sending, pressure }
    }

    /// Time until sending is allowed; zero if it is allowed now.
    pub(super) fn wait(&mut self) -> Duration {
        let closed = |hours: &Hours| !hours.contains(Timestamp::from(clock::wall()));
        if self.sending.hours.as_ref().is_some_and(closed) {
            return HOURS_POLL.max(self.pressure.with_pacer(&self.lane, |pacer| pacer.wait(Rate::default())));
        }
        if self.pressure.is_out_of_budget(&self.lane) {
            return HOURS_POLL;
        }
        let rate = match self.sending.yielding {
            Some(lower) if self.pressure.has_other_backlog(&self.lane) => lower,
            _ => self.sending.rate,
        };
        self.pressure.with_pacer(&self.lane, |pacer| pacer.wait(rate))
    }

    /// Number of events that may be sent now.
    pub(super) fn events(&self) -> usize {
        self.pressure.with_pacer(&self.lane, |pacer| pacer.events())
    }

    pub(super) fn spend(&mut self, events: usize, bytes: usize) {
        self.pressure.with_pacer(&self.lane, |pacer| pacer.spend(events, bytes));
    }

    /// Reports the progress of this lane to the other forwarders of the destination.
    pub(super) fn report(&self, reached: u64) {
        self.pressure.note(&self.lane, self.connection, reached);
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
        // On 2026-03-29 the clock goes from 02:00 to 03:00, on 2026-10-25 from 03:00 back to 02:00.
        if let Ok(hour) = Hours::parse("02:00-03:00", Some("Europe/Berlin")) {
            assert!(hour.contains(at("2026-03-29T01:30:00Z")), "the hour that does not exist is sent after the change");
            assert!(!hour.contains(at("2026-03-29T02:00:00Z")) && !hour.contains(at("2026-03-29T00:59:00Z")));
            assert!(hour.contains(at("2026-10-25T00:30:00Z")));
            assert!(!hour.contains(at("2026-10-25T01:30:00Z")), "the hour that exists twice is sent once");
            let next = |time| hour.next_start(at(time)).expect("a start").timestamp().to_string();
            assert_eq!(next("2026-11-30T12:00:00Z"), "2026-12-01T01:00:00Z");
            assert_eq!(next("2026-03-28T12:00:00Z"), "2026-03-29T01:00:00Z");
            assert_eq!(next("2026-11-30T00:59:00Z"), "2026-11-30T01:00:00Z");
        }
        for malformed in ["", "2-4", "02:00", "25:00-26:00", "03:00-03:00"] {
            let error = Hours::parse(malformed, None).expect_err(malformed);
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
        let mut bucket = TokenBucket::new(100, Instant::now());
        let start = bucket.filled_at;
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
