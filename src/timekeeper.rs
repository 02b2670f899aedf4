//! The timekeeper: judges the time of day, and reports to central which events were recorded under a wrong one.
//!
//! Promise: while the time of day cannot be right, events are marked and nothing expires by age. When the clock is set,
//! central gets the offset and, for each stream, the sequences recorded before.
//! Invariants:
//! - stored events never change: `gateway.clock` corrects them;
//! - a correction is saved before it is published, together with the sequences at which the next one begins: after a
//!   crash the same correction is published again, under the same id.
//!
//! A *period* lasts from a start or a setting of the clock to the next setting. Within it, time of day and time since
//! boot differ by a constant; the kernel slews both alike, so only a setting changes the difference. A period continues
//! over a restart of the program, and ends with the boot, since the time without power is unknown.
//!
//! Not here: reading the time (`clock`), expiry (`ledger`).

use crate::clock;
use crate::contract::{GatewayNames, Publication};
use crate::event::Timestamp;
use crate::journal::{GatewayEvent, Given, Journal, JournalError, Note, Notes};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const STREAM: &str = "gateway.clock";
/// Lane of the stream: its events are few and urgent.
const LANE: &str = "standard";
/// Interval between checks of the clock.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum jump of the clock that counts as a setting.
const SET_MIN: Duration = Duration::from_secs(10);
/// Wait after a setting is detected: commits with the old time may still be on their way to the disk.
const COMMITS_WAIT: Duration = Duration::from_secs(3);
/// Time without expiry by age after a start or a setting of the clock, which may be set once more.
const STEADY_WAIT: Duration = Duration::from_secs(900);
/// Tolerance for the clocks behind the known past: the build machine's, and the gateway's before the last restart.
const TOLERANCE: Duration = Duration::from_secs(86_400);
/// Interval at which the current time is saved as passed.
const PASSED_INTERVAL: Duration = Duration::from_secs(3600);
/// Pause before another attempt to publish corrections.
const PUBLISH_RETRY: Duration = Duration::from_secs(5);
/// Maximum number of waiting corrections. A clock that is set more often than central accepts corrections is faulty.
const WAITING_MAX: usize = 1000;

const PERIOD: &str = "period";
const PASSED: &str = "passed";
const WAITING: &str = "tell/";

/// Time of day and time since boot at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClockReading {
    boot: String,
    /// Microseconds since boot.
    up: i64,
    wall: Timestamp,
}

impl ClockReading {
    fn take() -> Self {
        let up = i64::try_from(clock::since_boot().as_micros()).unwrap_or(i64::MAX);
        Self { boot: clock::boot(), up, wall: Timestamp::from(clock::wall()) }
    }
}

/// A period in which the clock was not set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Period {
    boot: String,
    /// Microseconds since boot when it began.
    up: i64,
    /// Time of day when it began.
    wall: Timestamp,
    is_trusted: bool,
    /// Position of each lane at the beginning.
    given: Vec<Given>,
}

/// Change of the clock since the beginning of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClockChange {
    None,
    /// Set, by this many microseconds.
    Set(i64),
    Boot,
}

impl Period {
    fn begin(now: &ClockReading, is_trusted: bool, given: Vec<Given>) -> Self {
        Self { boot: now.boot.clone(), up: now.up, wall: now.wall, is_trusted, given }
    }

    /// Time of day without a setting of the clock.
    fn expects(&self, now: &ClockReading) -> Timestamp {
        Timestamp(self.wall.0.saturating_add(now.up - self.up))
    }

    fn change(&self, now: &ClockReading) -> ClockChange {
        if self.boot != now.boot || now.up < self.up {
            return ClockChange::Boot;
        }
        let offset = now.wall.0.saturating_sub(self.expects(now).0);
        if offset.unsigned_abs() <= SET_MIN.as_micros() as u64 { ClockChange::None } else { ClockChange::Set(offset) }
    }

    /// Correction for the events recorded in this period, up to the lane positions `until`. `None` if
    /// there are no such events.
    fn correction(&self, offset: Option<i64>, now: &ClockReading, until: &[Given]) -> Option<Correction> {
        let mut streams = Vec::new();
        for lane in until {
            let before = self.given.iter().find(|given| given.lane == lane.lane);
            for (stream, next) in &lane.streams {
                let known = before.and_then(|given| given.streams.iter().find(|(name, _)| name == stream));
                let first = known.map_or(1, |(_, next)| *next);
                if first < *next {
                    let (lane, stream) = (lane.lane.clone(), stream.clone());
                    streams.push(Corrected { lane, stream, first, last: next - 1 });
                }
            }
        }
        let to = if offset.is_some() { Some(self.expects(now).to_string()) } else { None };
        (!streams.is_empty()).then(|| Correction {
            status: if self.is_trusted { Status::Trusted } else { Status::Untrusted },
            cause: if offset.is_some() { Cause::Set } else { Cause::Restart },
            offset_seconds: offset.map(|micros| micros as f64 / 1e6),
            from: self.wall.to_string(),
            to,
            set_to: now.wall.to_string(),
            streams,
        })
    }

    /// Id of the correction, the same for the same period.
    fn id(&self) -> String {
        format!("clock-{}-{}-{}", self.boot, self.up, self.wall.0)
    }
}

/// Correction of a finished period, as published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Correction {
    /// Judgement of the clock while these events were recorded.
    status: Status,
    /// Reason for the end of the period.
    cause: Cause,
    /// Offset to add to times of the period; `None` if unknown.
    offset_seconds: Option<f64>,
    /// Beginning of the period, by its own clock.
    from: String,
    /// End of the period, by its own clock.
    to: Option<String>,
    /// End of the period, by the clock after the setting.
    set_to: String,
    streams: Vec<Corrected>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Trusted,
    Untrusted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Cause {
    Set,
    Restart,
}

/// Events of one stream that were recorded, both sequences included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Corrected {
    lane: String,
    stream: String,
    first: u64,
    last: u64,
}

/// State between two checks of the clock.
#[derive(Debug)]
struct ClockWatch {
    period: Period,
    /// Position of the lanes at the last check before the clock changed.
    lane_ends: Vec<u64>,
    /// A detected setting of the clock that is not yet recorded.
    detected: Option<DetectedSetting>,
    passed_saved: Instant,
}

#[derive(Debug)]
struct DetectedSetting {
    at: Instant,
    /// The new period; the positions of its lanes are not known yet.
    next: Period,
}

/// Judges the clock, and publishes corrections.
#[derive(Debug)]
pub struct Timekeeper {
    journal: Arc<Journal>,
    around: GatewayNames,
    notes: Notes,
    publication: u32,
    watch: Mutex<ClockWatch>,
    saved: Notify,
}

/// Reason why a time of day cannot be right, if there is one. `passed` is a moment known to
/// have passed before a restart.
fn doubt(wall: Timestamp, passed: Option<Timestamp>) -> Option<String> {
    let built = Timestamp::from(clock::built());
    let latest = wall.plus(TOLERANCE);
    if latest < built {
        return Some(format!("this program was built on {}", &built.to_string()[..10]));
    }
    let passed = passed.filter(|passed| latest < *passed)?;
    Some(format!("it was {passed} before the last restart"))
}

impl Timekeeper {
    /// Judges the clock at the start. Blocks the thread.
    pub fn open(journal: Arc<Journal>, around: GatewayNames) -> Result<Arc<Self>, JournalError> {
        let publication = journal.publish(&Publication::own(STREAM, &around, LANE))?;
        let notes = journal.notes("clock");
        let now = ClockReading::take();
        let noted = notes.read(PERIOD)?.and_then(|bytes| serde_json::from_slice::<Period>(&bytes).ok());
        let passed = notes.read(PASSED)?.and_then(|bytes| serde_json::from_slice::<Timestamp>(&bytes).ok());
        let passed = passed.or_else(|| newest(&journal));
        if let Some(passed) = passed {
            clock::set_passed(passed.into());
        }
        let is_empty = journal.lanes().iter().all(|lane| lane.end() <= 1);
        clock::set_steady_from(clock::instant() + if is_empty { Duration::ZERO } else { STEADY_WAIT });
        let given: Vec<Given> = journal.lanes().iter().map(|lane| lane.given()).collect();
        let change = noted.as_ref().map_or(ClockChange::Boot, |period| period.change(&now));
        let why = match (&noted, change) {
            (Some(period), ClockChange::None) if period.is_trusted => None,
            // A setting while the machine runs overrules the journal.
            (_, ClockChange::Set(_)) => doubt(now.wall, None),
            _ => doubt(now.wall, passed),
        };
        judge(why);
        let mut changes: Vec<Note> = Vec::new();
        let period = match noted {
            Some(period) if change == ClockChange::None => period,
            noted => {
                let offset = match change {
                    ClockChange::Set(offset) => Some(offset),
                    _ => None,
                };
                let mut next = Period::begin(&now, clock::is_trusted(), given);
                if let Some(old) = noted.filter(|old| offset.is_some() || !old.is_trusted) {
                    next.given = positions_at_unobserved_end(&journal, &old, &now, offset)?;
                    changes.extend(waiting(&old, old.correction(offset, &now, &next.given)));
                }
                changes.push((PERIOD.into(), serde_json::to_vec(&next).ok()));
                changes.extend(passed_at(&next, now.wall));
                next
            }
        };
        if !changes.is_empty() {
            notes.write(changes)?;
        }
        let watch = ClockWatch { lane_ends: ends(&journal), period, detected: None, passed_saved: clock::instant() };
        Ok(Arc::new(Self { journal, around, notes, publication, watch: Mutex::new(watch), saved: Notify::new() }))
    }

    fn watch(&self) -> MutexGuard<'_, ClockWatch> {
        self.watch.lock()
    }

    /// Runs until the shutdown; the next start completes interrupted work.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.watch_clock() => {}
            // A branch of its own, since it waits while its lane is full.
            () = self.publish_corrections() => {}
        }
    }

    async fn watch_clock(self: &Arc<Self>) {
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let keeper = Arc::clone(self);
            match spawn_blocking(move || keeper.check(&ClockReading::take())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "could not save the correction of the clock; will retry")
                }
                Err(_) => return,
            }
        }
    }

    fn check(&self, now: &ClockReading) -> Result<(), JournalError> {
        let mut watch = self.watch();
        // The clock was set again: the time in between was a period of its own.
        if watch.detected.as_ref().is_some_and(|detected| detected.next.change(now) != ClockChange::None) {
            self.begin_next(&mut watch)?;
        }
        if watch.detected.as_ref().is_some_and(|found| clock::instant().duration_since(found.at) >= COMMITS_WAIT) {
            self.begin_next(&mut watch)?;
        }
        if watch.detected.is_none() {
            match watch.period.change(now) {
                ClockChange::Set(offset) => self.clock_was_set(&mut watch, now, offset),
                _ => watch.lane_ends = ends(&self.journal),
            }
        }
        if clock::is_trusted() && clock::instant().duration_since(watch.passed_saved) >= PASSED_INTERVAL {
            self.notes.write(passed_at(&watch.period, now.wall).into_iter().collect())?;
            watch.passed_saved = clock::instant();
        }
        Ok(())
    }

    /// Handles a setting of the clock: judges the new time, and delays expiry.
    fn clock_was_set(&self, watch: &mut ClockWatch, now: &ClockReading, offset: i64) {
        let by = Duration::from_micros(offset.unsigned_abs());
        tracing::warn!(?by, is_forward = offset > 0, wait = ?STEADY_WAIT, "the clock was set; expiry by age is suspended");
        judge(doubt(now.wall, None));
        clock::set_steady_from(clock::instant() + STEADY_WAIT);
        self.journal.clock_was_set(offset);
        let next = Period::begin(now, clock::is_trusted(), Vec::new());
        watch.detected = Some(DetectedSetting { at: clock::instant(), next });
    }

    /// Saves the correction for the old period, and begins the next one.
    fn begin_next(&self, watch: &mut ClockWatch) -> Result<(), JournalError> {
        let Some(detected) = &watch.detected else { return Ok(()) };
        let mut next = detected.next.clone();
        let at = ClockReading { boot: next.boot.clone(), up: next.up, wall: next.wall };
        let old_wall = watch.period.expects(&at);
        let is_later = |recorded: Timestamp| recorded.0.abs_diff(at.wall.0) < recorded.0.abs_diff(old_wall.0);
        for (lane, from) in self.journal.lanes().iter().zip(&watch.lane_ends) {
            next.given.push(lane.given_before(*from, is_later)?);
        }
        let offset = at.wall.0 - old_wall.0;
        let correction = watch.period.correction(Some(offset), &at, &next.given);
        let mut changes: Vec<Note> = vec![(PERIOD.into(), serde_json::to_vec(&next).ok())];
        changes.extend(passed_at(&next, next.wall));
        if self.notes.all(WAITING)?.len() < WAITING_MAX {
            changes.extend(waiting(&watch.period, correction));
        }
        self.notes.write(changes)?;
        watch.lane_ends = next.given.iter().map(|given| given.end).collect();
        watch.period = next;
        watch.detected = None;
        watch.passed_saved = clock::instant();
        self.saved.notify_one();
        Ok(())
    }

    async fn publish_corrections(self: &Arc<Self>) {
        loop {
            let keeper = Arc::clone(self);
            let waiting = match spawn_blocking(move || keeper.notes.all(WAITING)).await {
                Ok(Ok(waiting)) => waiting,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "could not read the clock corrections; will retry");
                    tokio::time::sleep(PUBLISH_RETRY).await;
                    continue;
                }
                Err(_) => return,
            };
            for (name, content) in waiting {
                let data: serde_json::Value = serde_json::from_slice(&content).unwrap_or_default();
                let event = GatewayEvent {
                    lane: LANE,
                    publication: self.publication,
                    id: &name[WAITING.len()..],
                    device: "clock",
                    gateway: &self.around.gateway,
                };
                if self.journal.append_gateway_event(event, &data).await.is_err() {
                    return;
                }
                let keeper = Arc::clone(self);
                let done = spawn_blocking(move || keeper.notes.write(vec![(name, None)])).await;
                if let Ok(Err(error)) = done {
                    tracing::warn!(%error, "could not remove a published clock correction; it will be published again");
                }
            }
            self.saved.notified().await;
        }
    }

    /// Trusts the time of day on the word of an operator. Blocks the thread.
    pub fn trust(&self) -> Result<(), JournalError> {
        let mut watch = self.watch();
        let now = ClockReading::take();
        let mut period = watch.period.clone();
        period.is_trusted = true;
        let mut changes = vec![(PERIOD.to_owned(), serde_json::to_vec(&period).ok())];
        changes.extend(passed_at(&period, now.wall));
        self.notes.write(changes)?;
        watch.period = period;
        if let Some(detected) = &mut watch.detected {
            detected.next.is_trusted = true;
        }
        judge(None);
        Ok(())
    }
}

/// End positions of the lanes.
fn ends(journal: &Journal) -> Vec<u64> {
    journal.lanes().iter().map(|lane| lane.end()).collect()
}

/// Time at which the journal recorded its newest event.
fn newest(journal: &Journal) -> Option<Timestamp> {
    journal.lanes().iter().filter_map(|lane| lane.recorded_at(lane.end().checked_sub(1)?)).max()
}

/// Positions of the lanes at the end of a period that ended unobserved. Events may have been recorded after a setting
/// shortly before a crash. Where times of both clocks could overlap, all events count for the old one.
fn positions_at_unobserved_end(
    journal: &Journal,
    old: &Period,
    now: &ClockReading,
    offset: Option<i64>,
) -> Result<Vec<Given>, JournalError> {
    let expected = old.expects(now);
    let is_apart = offset.is_some_and(|offset| offset.abs() > now.up - old.up);
    let is_later = |recorded: Timestamp| recorded.0.abs_diff(now.wall.0) < recorded.0.abs_diff(expected.0);
    let begin = |lane: &str| old.given.iter().find(|given| given.lane == lane).map_or(1, |given| given.end);
    let each = |lane: &Arc<crate::journal::Lane>| {
        if is_apart { lane.given_before(begin(&lane.name), is_later) } else { Ok(lane.given()) }
    };
    journal.lanes().iter().map(each).collect()
}

/// Note in which a correction waits.
fn waiting(period: &Period, correction: Option<Correction>) -> Option<Note> {
    let correction = correction?;
    tracing::info!(status = ?correction.status, offset_seconds = ?correction.offset_seconds, streams = correction.streams.len(), "reporting the events recorded under the earlier clock to central");
    Some((format!("{WAITING}{}", period.id()), serde_json::to_vec(&correction).ok()))
}

/// Note of the passed time, for a period with a trusted clock.
fn passed_at(period: &Period, now: Timestamp) -> Option<Note> {
    period.is_trusted.then(|| {
        clock::set_passed(now.into());
        (PASSED.to_owned(), serde_json::to_vec(&now).ok())
    })
}

/// Applies the judgement of the clock, and logs it.
fn judge(why: Option<String>) {
    match why {
        None => {
            if !clock::is_trusted() {
                tracing::info!("the time of day is trusted");
            }
            clock::trust();
        }
        Some(why) => {
            tracing::error!(now = %Timestamp::from(clock::wall()), %why, "the time of day cannot be right; events are marked untrusted until it is set");
            clock::distrust(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 1_790_000_000_000_000;
    const SECOND: i64 = 1_000_000;

    fn reading(boot: &str, up: i64, wall: i64) -> ClockReading {
        ClockReading { boot: boot.into(), up: up * SECOND, wall: Timestamp(wall) }
    }

    fn given(lane: &str, end: u64, streams: &[(&str, u64)]) -> Given {
        Given { lane: lane.into(), end, streams: streams.iter().map(|(name, next)| ((*name).into(), *next)).collect() }
    }

    #[test]
    fn a_setting_of_the_clock_differs_from_its_run_and_from_another_boot() {
        let period = Period::begin(&reading("a", 100, 1000 * SECOND), false, vec![]);
        assert_eq!(period.change(&reading("a", 100 + 86_400, 1000 * SECOND + 86_400 * SECOND)), ClockChange::None);
        assert_eq!(period.change(&reading("a", 160, 1069 * SECOND)), ClockChange::None, "9 s are tolerated");
        assert_eq!(period.change(&reading("a", 160, DAY)), ClockChange::Set(DAY - 1060 * SECOND));
        assert_eq!(period.change(&reading("a", 160, 1000 * SECOND)), ClockChange::Set(-60 * SECOND));
        assert_eq!(period.change(&reading("b", 160, 1060 * SECOND)), ClockChange::Boot);
        assert_eq!(period.change(&reading("", 3, 1060 * SECOND)), ClockChange::Boot);
    }

    #[test]
    fn a_correction_names_what_each_stream_recorded_in_its_period() {
        let before = vec![given("critical", 5, &[("a.v1", 3), ("b.v1", 3)])];
        let period = Period::begin(&reading("boot", 100, 1000 * SECOND), false, before);
        let until = [given("critical", 9, &[("a.v1", 5), ("b.v1", 3), ("c.v2", 3)]), given("bulk", 1, &[])];
        let now = reading("boot", 160, DAY);
        let correction = period.correction(Some(DAY - 1060 * SECOND), &now, &until).expect("something");
        let named: Vec<_> = correction.streams.iter().map(|one| (one.stream.as_str(), one.first, one.last)).collect();
        assert_eq!(named, [("a.v1", 3, 4), ("c.v2", 1, 2)]);
        assert_eq!(correction.offset_seconds, Some((DAY - 1060 * SECOND) as f64 / 1e6));
        assert_eq!(serde_json::to_value(&correction).expect("JSON")["to"], Timestamp(1060 * SECOND).to_string());
        let unknown = period.correction(None, &reading("other", 1, DAY), &until).expect("something");
        assert_eq!((unknown.offset_seconds, unknown.cause), (None, Cause::Restart));
        assert_eq!(period.correction(Some(1), &now, &period.given), None, "nothing was recorded");
        assert_ne!(period.id(), Period::begin(&now, true, vec![]).id());
    }

    #[test]
    fn a_time_of_day_is_doubted_only_where_it_cannot_be_right() {
        let built = Timestamp::from(clock::built());
        assert!(doubt(Timestamp(0), None).is_some_and(|why| why.contains("was built on")));
        assert_eq!(doubt(built, None), None);
        assert_eq!(doubt(built, Some(built.plus(TOLERANCE))), None, "within what clocks may differ");
        let why = doubt(built, Some(built.plus(TOLERANCE * 2))).expect("two days earlier");
        assert!(why.contains("before the last restart"), "{why}");
    }
}
