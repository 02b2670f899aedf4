//! The timekeeper: judges the time of day, and tells central which events were recorded under another one.
//!
//! Promise: while the time of day cannot be right, events say so and nothing expires by age; when the clock is set,
//! central gets the offset and, for each stream, the sequences that were recorded before.
//! Invariants:
//! - what is stored never changes: `gateway.clock` corrects it;
//! - a correction is noted before it is told, together with the numbers that the next one begins with: a crash
//!   tells the same again, under the same id.
//!
//! A *period* lasts from a start or a setting of the clock to the next one. Within it, time of day and time since
//! boot differ by the same amount; the kernel slews both alike, so that only a setting changes that. It goes on
//! over a restart of the program, and ends with the boot, since nobody knows how long the machine was off.
//!
//! Not here: what the time is (`clock`), what expires (`ledger`).

use crate::clock;
use crate::contract::{Publication, Surroundings};
use crate::event::Timestamp;
use crate::journal::{Given, Journal, JournalError, Note, Notes, OwnEvent};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Stream of the corrections.
const STREAM: &str = "gateway.clock";
/// Its lane: it is small, and wanted soon.
const LANE: &str = "standard";
/// The clock is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A clock that moved by more than this was set.
const SET_MIN: Duration = Duration::from_secs(10);
/// When a setting is seen, commits with the old time may still be on their way to the disk.
const COMMITS_WAIT: Duration = Duration::from_secs(3);
/// Nothing expires by age for so long after a start, or after the clock was set: it may be set once more.
const STEADY_WAIT: Duration = Duration::from_secs(900);
/// How far the clocks may be wrong that tell what has passed: the build machine's, and ours before the last restart.
const TOLERANCE: Duration = Duration::from_secs(86_400);
/// How often it is noted which time has passed.
const PASSED_EVERY: Duration = Duration::from_secs(3600);
/// What could not be told is tried again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// Corrections that may wait; a clock that is set more often than central takes them has other troubles.
const WAITING_MAX: usize = 1000;

/// Names of the notes.
const PERIOD: &str = "period";
const PASSED: &str = "passed";
const WAITING: &str = "tell/";

/// What the clocks say at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reading {
    /// Which boot it is.
    boot: String,
    /// Microseconds since boot.
    up: i64,
    /// Time of day.
    wall: Timestamp,
}

impl Reading {
    fn take() -> Self {
        let up = i64::try_from(clock::since_boot().as_micros()).unwrap_or(i64::MAX);
        Self { boot: clock::boot(), up, wall: Timestamp::from(clock::wall()) }
    }
}

/// A time in which the clock was not set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Period {
    boot: String,
    /// Microseconds since boot when it began.
    up: i64,
    /// Time of day when it began.
    wall: Timestamp,
    is_trusted: bool,
    /// How far each lane had come when it began.
    given: Vec<Given>,
}

/// How a reading stands to the period before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    /// By so many microseconds.
    Set(i64),
    /// The machine was started anew.
    Boot,
}

impl Period {
    fn begin(now: &Reading, is_trusted: bool, given: Vec<Given>) -> Self {
        Self { boot: now.boot.clone(), up: now.up, wall: now.wall, is_trusted, given }
    }

    /// What the time of day would be had the clock not been set.
    fn expects(&self, now: &Reading) -> Timestamp {
        Timestamp(self.wall.0.saturating_add(now.up - self.up))
    }

    fn change(&self, now: &Reading) -> Change {
        if self.boot != now.boot || now.up < self.up {
            return Change::Boot;
        }
        let offset = now.wall.0.saturating_sub(self.expects(now).0);
        if offset.unsigned_abs() <= SET_MIN.as_micros() as u64 { Change::None } else { Change::Set(offset) }
    }

    /// The correction of what was recorded in this period, up to where `until` says the lanes had come. `None` if that is nothing.
    fn correction(&self, offset: Option<i64>, now: &Reading, until: &[Given]) -> Option<Correction> {
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

    /// The same for the same period.
    fn id(&self) -> String {
        format!("clock-{}-{}-{}", self.boot, self.up, self.wall.0)
    }
}

/// What is told of a period that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Correction {
    /// How the clock was judged while these events were recorded.
    status: Status,
    /// Why it is over.
    cause: Cause,
    /// To be added to times of the period; `None` where nobody knows.
    offset_seconds: Option<f64>,
    /// When the period began, by its own clock.
    from: String,
    /// When it ended, by its own clock.
    to: Option<String>,
    /// When it ended, by the clock since then.
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

/// What was recorded of one stream: both numbers included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Corrected {
    lane: String,
    stream: String,
    first: u64,
    last: u64,
}

/// What is known of the clock between two looks.
#[derive(Debug)]
struct Watching {
    period: Period,
    /// How far the lanes had come at the last look at which the clock was as before.
    looked: Vec<u64>,
    /// A setting of the clock that was seen, and is not told yet.
    seen: Option<Seen>,
    noted: Instant,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    /// The period that begins with it; where its lanes begin is not known yet.
    next: Period,
}

/// Judges the clock, and tells when it was set.
#[derive(Debug)]
pub struct Timekeeper {
    journal: Arc<Journal>,
    around: Surroundings,
    notes: Notes,
    publication: u32,
    watching: Mutex<Watching>,
    told: Notify,
}

/// Why a time of day cannot be right; `None` if it can. `passed` is known to have passed before a restart.
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
    /// Judges the clock for the first time. Blocks the thread.
    pub fn open(journal: Arc<Journal>, around: Surroundings) -> Result<Arc<Self>, JournalError> {
        let publication = journal.publish(&Publication::own(STREAM, &around, LANE))?;
        let notes = journal.notes("clock");
        let now = Reading::take();
        let noted = notes.read(PERIOD)?.and_then(|bytes| serde_json::from_slice::<Period>(&bytes).ok());
        let passed = notes.read(PASSED)?.and_then(|bytes| serde_json::from_slice::<Timestamp>(&bytes).ok());
        let passed = passed.or_else(|| newest(&journal));
        if let Some(passed) = passed {
            clock::set_passed(passed.into());
        }
        let is_empty = journal.lanes().iter().all(|lane| lane.end() <= 1);
        clock::set_steady_from(clock::instant() + if is_empty { Duration::ZERO } else { STEADY_WAIT });
        let given: Vec<Given> = journal.lanes().iter().map(|lane| lane.given()).collect();
        let change = noted.as_ref().map_or(Change::Boot, |period| period.change(&now));
        let why = match (&noted, change) {
            (Some(period), Change::None) if period.is_trusted => None,
            // Whoever sets a clock while the machine runs knows better than the journal.
            (_, Change::Set(_)) => doubt(now.wall, None),
            _ => doubt(now.wall, passed),
        };
        judge(why);
        let mut changes: Vec<Note> = Vec::new();
        let period = match noted {
            Some(period) if change == Change::None => period,
            noted => {
                let offset = match change {
                    Change::Set(offset) => Some(offset),
                    _ => None,
                };
                let mut next = Period::begin(&now, clock::is_trusted(), given);
                if let Some(old) = noted.filter(|old| offset.is_some() || !old.is_trusted) {
                    next.given = ended_while_away(&journal, &old, &now, offset)?;
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
        let watching = Watching { looked: ends(&journal), period, seen: None, noted: clock::instant() };
        Ok(Arc::new(Self { journal, around, notes, publication, watching: Mutex::new(watching), told: Notify::new() }))
    }

    fn watching(&self) -> MutexGuard<'_, Watching> {
        self.watching.lock()
    }

    /// Works until the shutdown; what is cut short is done at the next start.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.keep_looking() => {}
            // Apart, since it waits where its lane is full.
            () = self.keep_telling() => {}
        }
    }

    async fn keep_looking(self: &Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let keeper = Arc::clone(self);
            match spawn_blocking(move || keeper.look(&Reading::take())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "what was recorded before the clock was set cannot be noted yet")
                }
                Err(_) => return,
            }
        }
    }

    fn look(&self, now: &Reading) -> Result<(), JournalError> {
        let mut watching = self.watching();
        // Set once more: the time in between was a period of its own.
        if watching.seen.as_ref().is_some_and(|seen| seen.next.change(now) != Change::None) {
            self.begin_next(&mut watching)?;
        }
        if watching.seen.as_ref().is_some_and(|seen| clock::instant().duration_since(seen.at) >= COMMITS_WAIT) {
            self.begin_next(&mut watching)?;
        }
        if watching.seen.is_none() {
            match watching.period.change(now) {
                Change::Set(offset) => self.see(&mut watching, now, offset),
                _ => watching.looked = ends(&self.journal),
            }
        }
        if clock::is_trusted() && clock::instant().duration_since(watching.noted) >= PASSED_EVERY {
            self.notes.write(passed_at(&watching.period, now.wall).into_iter().collect())?;
            watching.noted = clock::instant();
        }
        Ok(())
    }

    /// The clock was set: what comes from now on is judged anew.
    fn see(&self, watching: &mut Watching, now: &Reading, offset: i64) {
        let by = Duration::from_micros(offset.unsigned_abs());
        tracing::warn!(?by, is_forward = offset > 0, wait = ?STEADY_WAIT, "the clock was set; nothing expires by age for a while");
        judge(doubt(now.wall, None));
        clock::set_steady_from(clock::instant() + STEADY_WAIT);
        self.journal.clock_was_set(offset);
        let next = Period::begin(now, clock::is_trusted(), Vec::new());
        watching.seen = Some(Seen { at: clock::instant(), next });
    }

    /// Notes what was recorded until the clock was set, and begins the next period there.
    fn begin_next(&self, watching: &mut Watching) -> Result<(), JournalError> {
        let Some(seen) = &watching.seen else { return Ok(()) };
        let mut next = seen.next.clone();
        let at = Reading { boot: next.boot.clone(), up: next.up, wall: next.wall };
        let old_wall = watching.period.expects(&at);
        let is_later = |recorded: Timestamp| recorded.0.abs_diff(at.wall.0) < recorded.0.abs_diff(old_wall.0);
        for (lane, from) in self.journal.lanes().iter().zip(&watching.looked) {
            next.given.push(lane.given_before(*from, is_later)?);
        }
        let offset = at.wall.0 - old_wall.0;
        let correction = watching.period.correction(Some(offset), &at, &next.given);
        let mut changes: Vec<Note> = vec![(PERIOD.into(), serde_json::to_vec(&next).ok())];
        changes.extend(passed_at(&next, next.wall));
        if self.notes.all(WAITING)?.len() < WAITING_MAX {
            changes.extend(waiting(&watching.period, correction));
        }
        self.notes.write(changes)?;
        watching.looked = next.given.iter().map(|given| given.end).collect();
        watching.period = next;
        watching.seen = None;
        watching.noted = clock::instant();
        self.told.notify_one();
        Ok(())
    }

    async fn keep_telling(self: &Arc<Self>) {
        loop {
            let keeper = Arc::clone(self);
            let waiting = match spawn_blocking(move || keeper.notes.all(WAITING)).await {
                Ok(Ok(waiting)) => waiting,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "corrections of the clock cannot be read, and are told later");
                    tokio::time::sleep(TELL_AGAIN).await;
                    continue;
                }
                Err(_) => return,
            };
            for (name, content) in waiting {
                let data: serde_json::Value = serde_json::from_slice(&content).unwrap_or_default();
                let event = OwnEvent {
                    lane: LANE,
                    publication: self.publication,
                    id: &name[WAITING.len()..],
                    device: "clock",
                    gateway: &self.around.gateway,
                };
                if self.journal.append_own(event, &data).await.is_err() {
                    return;
                }
                let keeper = Arc::clone(self);
                let done = spawn_blocking(move || keeper.notes.write(vec![(name, None)])).await;
                if let Ok(Err(error)) = done {
                    tracing::warn!(%error, "a correction that is told cannot be ticked off, and will be told again");
                }
            }
            self.told.notified().await;
        }
    }

    /// Takes the time of day for right, since a person says so. Blocks the thread.
    pub fn trust(&self) -> Result<(), JournalError> {
        let mut watching = self.watching();
        let now = Reading::take();
        let mut period = watching.period.clone();
        period.is_trusted = true;
        let mut changes = vec![(PERIOD.to_owned(), serde_json::to_vec(&period).ok())];
        changes.extend(passed_at(&period, now.wall));
        self.notes.write(changes)?;
        watching.period = period;
        if let Some(seen) = &mut watching.seen {
            seen.next.is_trusted = true;
        }
        judge(None);
        Ok(())
    }
}

/// Where the lanes end.
fn ends(journal: &Journal) -> Vec<u64> {
    journal.lanes().iter().map(|lane| lane.end()).collect()
}

/// When the journal took its newest event.
fn newest(journal: &Journal) -> Option<Timestamp> {
    journal.lanes().iter().filter_map(|lane| lane.recorded_at(lane.end().checked_sub(1)?)).max()
}

/// How far the lanes had come when a period ended that nobody saw end. A setting just before a crash may have been
/// recorded under; where times of both clocks could be mixed up, all is taken for the old one's.
fn ended_while_away(
    journal: &Journal,
    old: &Period,
    now: &Reading,
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

/// The note that a correction waits in.
fn waiting(period: &Period, correction: Option<Correction>) -> Option<Note> {
    let correction = correction?;
    tracing::info!(status = ?correction.status, offset_seconds = ?correction.offset_seconds, streams = correction.streams.len(), "what was recorded under the clock before is told to central");
    Some((format!("{WAITING}{}", period.id()), serde_json::to_vec(&correction).ok()))
}

/// The note of which moment has passed, in a period whose clock is trusted.
fn passed_at(period: &Period, now: Timestamp) -> Option<Note> {
    period.is_trusted.then(|| {
        clock::set_passed(now.into());
        (PASSED.to_owned(), serde_json::to_vec(&now).ok())
    })
}

/// Makes known whether the clock can be believed.
fn judge(why: Option<String>) {
    match why {
        None => {
            if !clock::is_trusted() {
                tracing::info!("the time of day is believed");
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

    fn reading(boot: &str, up: i64, wall: i64) -> Reading {
        Reading { boot: boot.into(), up: up * SECOND, wall: Timestamp(wall) }
    }

    fn given(lane: &str, end: u64, streams: &[(&str, u64)]) -> Given {
        Given { lane: lane.into(), end, streams: streams.iter().map(|(name, next)| ((*name).into(), *next)).collect() }
    }

    #[test]
    fn a_clock_that_is_set_is_told_from_one_that_runs_and_from_another_boot() {
        let period = Period::begin(&reading("a", 100, 1000 * SECOND), false, vec![]);
        assert_eq!(period.change(&reading("a", 100 + 86_400, 1000 * SECOND + 86_400 * SECOND)), Change::None);
        assert_eq!(period.change(&reading("a", 160, 1069 * SECOND)), Change::None, "9 s are within what is not told");
        assert_eq!(period.change(&reading("a", 160, DAY)), Change::Set(DAY - 1060 * SECOND));
        assert_eq!(period.change(&reading("a", 160, 1000 * SECOND)), Change::Set(-60 * SECOND));
        assert_eq!(period.change(&reading("b", 160, 1060 * SECOND)), Change::Boot);
        assert_eq!(period.change(&reading("", 3, 1060 * SECOND)), Change::Boot);
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
