//! The byte meter of a destination: what its connections have carried in the present day and month, and whether a budget
//! is used up.
//!
//! Promise: a budget holds through restarts and crashes. After a crash the meter may count up to `RESERVE_SHARE` too
//! much. Too little it counts only by what was carried while the last form was written.
//!
//! Not here: the counting of bytes (`link/traffic`).

use crate::api::{BudgetStatus, PeriodUse};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::{Journal, JournalError, Notes};
use crate::link::Traffic;
use crate::runtime::spawn_blocking;
use crate::setting::{Bytes, Findings};
use crate::shutdown::Shutdown;
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The setting `budget` of a destination: bytes on the line in both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByteBudget {
    pub day: Option<Bytes>,
    pub month: Option<Bytes>,
    /// Lanes that are sent after the budget is used up.
    #[serde(default)]
    pub beyond: Vec<String>,
    /// Budgets of single lanes within it.
    #[serde(default)]
    pub lane: BTreeMap<String, LaneBudget>,
}

/// The budget of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaneBudget {
    pub day: Option<Bytes>,
    pub month: Option<Bytes>,
}

/// Smallest budget of a destination: an idle one needs up to 1 MB in a day.
const DAY_MIN: u64 = 1_000_000;
/// Smallest budget of a lane: one event with the connection that carries it.
const LANE_DAY_MIN: u64 = 10_000;

impl ByteBudget {
    /// Checks the values. `lanes` are the names of all lanes.
    pub fn check(&self, lanes: &[String], found: &mut Findings<'_>) {
        if self.day.is_none() && self.month.is_none() && self.lane.is_empty() {
            found.problem(
                "budget",
                "limits nothing; expected day, month or both, such as { day = \"50MB\", month = \"500MB\" }",
            );
        }
        check_amounts("budget", (self.day, self.month), DAY_MIN, found);
        let unknown = |name: &String| format!("there is no lane \"{name}\"; the lanes are {}", lanes.join(", "));
        for name in self.beyond.iter().filter(|name| !lanes.contains(name)) {
            found.problem("budget.beyond", unknown(name));
        }
        for (name, budget) in &self.lane {
            let key = format!("budget.lane.{name}");
            if !lanes.contains(name) {
                found.problem(&key, unknown(name));
            }
            if budget.day.is_none() && budget.month.is_none() {
                found.problem(&key, "limits nothing; expected day, month or both, such as { day = \"5MB\" }");
            }
            check_amounts(&key, (budget.day, budget.month), LANE_DAY_MIN, found);
        }
    }
}

fn check_amounts(key: &str, (day, month): (Option<Bytes>, Option<Bytes>), least: u64, found: &mut Findings<'_>) {
    for (period, amount) in [("day", day), ("month", month)] {
        if let Some(amount) = amount.filter(|amount| amount.0 < least) {
            let message = format!("{amount} is too little; at least {} are needed", Bytes(least));
            found.problem(&format!("{key}.{period}"), message);
        }
    }
    if let (Some(day), Some(month)) = (day, month)
        && day > month
    {
        found.problem(&format!("{key}.day"), format!("{day} a day are more than the {month} of a month"));
    }
}

/// What was carried in one day or month.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Period {
    /// Such as `2026-11-30` or `2026-11`.
    name: String,
    bytes: u64,
    lanes: BTreeMap<String, u64>,
}

impl Period {
    /// Begins a new period if `name` is one. While the clock is behind, the period that has begun continues.
    fn roll(&mut self, name: &str) {
        if name > self.name.as_str() && !self.name.is_empty() {
            *self = Self::default();
        }
        name.clone_into(&mut self.name);
    }

    fn add(&mut self, connection: &str, bytes: u64) {
        self.bytes += bytes;
        *self.lanes.entry(connection.to_owned()).or_default() += bytes;
    }
}

/// The stored form of a meter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Stored {
    day: Period,
    month: Period,
    /// Bytes that are added after a crash.
    reserved: u64,
}

#[derive(Debug)]
struct Connection {
    name: String,
    traffic: Arc<Traffic>,
    /// Bytes of `traffic` that are in the periods.
    counted: u64,
}

#[derive(Debug, Default)]
struct State {
    budget: Option<ByteBudget>,
    connections: Vec<Connection>,
    day: Period,
    month: Period,
    /// Bytes of the month up to which the stored form covers a crash.
    covered: u64,
    /// Bytes at earlier moments, for the rate.
    samples: VecDeque<(Instant, u64)>,
    /// Bytes since the process started.
    total: u64,
}

/// The meter of one destination.
#[derive(Debug)]
pub struct Meter {
    destination: String,
    notes: Notes,
    state: Mutex<State>,
    /// Wakes the writer: more was carried than the stored form covers.
    is_uncovered: Notify,
}

/// Share of a budget that is stored as used in advance, so that the meter is written a hundred times per budget and not
/// with every packet: a hundredth.
const RESERVE_SHARE: u64 = 100;
/// Reserve without a budget.
const RESERVE: u64 = 10_000_000;
/// Reserve at the end of a run, for what the connections carry until they are closed.
const RESERVE_LAST: u64 = 10_000;
/// Interval of the samples for the rate, and of the check whether to write.
const TICK: Duration = Duration::from_secs(10);
/// Number of samples: the rate covers ten minutes.
const SAMPLES: usize = 61;

impl Meter {
    /// The counter of a connection: the name of a lane, or of another connection.
    pub fn traffic(&self, connection: &str) -> Arc<Traffic> {
        let mut state = self.state.lock();
        if let Some(known) = state.connections.iter().find(|known| known.name == connection) {
            return Arc::clone(&known.traffic);
        }
        let traffic = Arc::<Traffic>::default();
        let new = Connection { name: connection.to_owned(), traffic: Arc::clone(&traffic), counted: 0 };
        state.connections.push(new);
        traffic
    }

    /// Whether a budget allows a connection to send nothing now.
    pub(super) fn is_used_up(&self, budget: &ByteBudget, connection: &str) -> bool {
        let mut state = self.state.lock();
        state.count(Timestamp::from(clock::wall()));
        if state.month.bytes >= state.covered {
            self.is_uncovered.notify_one();
        }
        state.stop(budget, connection).is_some()
    }

    /// What was carried, and what of the budget is left.
    pub fn status(&self, lanes: &[String]) -> BudgetStatus {
        let mut state = self.state.lock();
        state.count(Timestamp::from(clock::wall()));
        let (day, month) = state.budget.as_ref().map(|budget| (budget.day, budget.month)).unwrap_or_default();
        let period = |period: &Period, max: Option<Bytes>| PeriodUse {
            name: period.name.clone(),
            bytes: period.bytes,
            bytes_max: max.map(|max| max.0),
        };
        let stopped = |lane: &String| Some((lane.clone(), state.stop(state.budget.as_ref()?, lane)?));
        let stopped = lanes.iter().filter_map(stopped).collect();
        BudgetStatus {
            destination: self.destination.clone(),
            is_limited: state.budget.is_some(),
            day: period(&state.day, day),
            month: period(&state.month, month),
            bytes: state.total,
            stopped,
            used_up_in_seconds: state.used_up_in(),
        }
    }

    /// Samples and stores until the shutdown. `budget` is the one in force.
    pub async fn run(self: Arc<Self>, budget: Option<ByteBudget>, mut shutdown: Shutdown) {
        self.state.lock().budget = budget;
        loop {
            let is_over = tokio::select! {
                () = shutdown.begun() => true,
                () = tokio::time::sleep(TICK) => false,
                () = self.is_uncovered.notified() => false,
            };
            if let Some(stored) = self.due(is_over) {
                let meter = Arc::clone(&self);
                let written = match spawn_blocking(move || meter.store(&stored)).await {
                    Ok(written) => written.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = written {
                    tracing::warn!(destination = %self.destination, %error, "cannot store the byte meter, will retry");
                    self.state.lock().covered = 0;
                    tokio::select! {
                        () = shutdown.begun() => return,
                        () = tokio::time::sleep(TICK) => {}
                    }
                }
            }
            if is_over {
                return;
            }
        }
    }

    /// Returns what is to be stored, if it is time. At the end of a run little is reserved.
    fn due(&self, is_over: bool) -> Option<Stored> {
        let mut state = self.state.lock();
        state.count(Timestamp::from(clock::wall()));
        let now = clock::instant();
        let total = state.total;
        if state.samples.back().is_none_or(|(last, _)| now.saturating_duration_since(*last) >= TICK) {
            state.samples.push_back((now, total));
        }
        while state.samples.len() > SAMPLES {
            state.samples.pop_front();
        }
        if !is_over && state.month.bytes < state.covered && state.covered > 0 {
            return None;
        }
        let reserved = if is_over { RESERVE_LAST } else { state.reserve() };
        state.covered = state.month.bytes + reserved;
        Some(Stored { day: state.day.clone(), month: state.month.clone(), reserved })
    }

    fn store(&self, stored: &Stored) -> Result<(), JournalError> {
        let content = serde_json::to_vec(stored).unwrap_or_default();
        self.notes.write(vec![(self.destination.clone(), Some(content))])
    }
}

impl State {
    /// Adds what the connections have carried since the last call.
    fn count(&mut self, wall: Timestamp) {
        let at = jiff::Timestamp::from_microsecond(wall.0).unwrap_or_default().to_zoned(TimeZone::system());
        let day = format!("{:04}-{:02}-{:02}", at.year(), at.month(), at.day());
        self.day.roll(&day);
        let had = self.month.name.clone();
        self.month.roll(&day[..7]);
        if had != self.month.name {
            self.covered = 0;
        }
        for connection in &mut self.connections {
            let bytes = connection.traffic.bytes();
            let new = bytes - connection.counted;
            if new > 0 {
                connection.counted = bytes;
                self.day.add(&connection.name, new);
                self.month.add(&connection.name, new);
                self.total += new;
            }
        }
    }

    fn reserve(&self) -> u64 {
        let budget = self.budget.as_ref();
        let amounts = budget.into_iter().flat_map(|budget| [budget.day, budget.month]).flatten();
        amounts.map(|amount| amount.0 / RESERVE_SHARE).min().unwrap_or(RESERVE)
    }

    /// The reason why a connection may send nothing.
    fn stop(&self, budget: &ByteBudget, connection: &str) -> Option<String> {
        let is_over = |period: &Period, max: Option<Bytes>| max.is_some_and(|max| period.bytes >= max.0);
        let of_lane = |period: &Period| period.lanes.get(connection).copied().unwrap_or_default();
        if let Some(own) = budget.lane.get(connection) {
            for (period, max) in [(&self.day, own.day), (&self.month, own.month)] {
                if let Some(max) = max.filter(|max| of_lane(period) >= max.0) {
                    return Some(format!("the budget of the lane for {} ({max}) is used up", period.name));
                }
            }
        }
        if budget.beyond.iter().any(|lane| lane == connection) {
            return None;
        }
        let periods = [(&self.day, budget.day), (&self.month, budget.month)];
        let (period, max) = periods.into_iter().find(|(period, max)| is_over(period, *max))?;
        Some(format!("the budget for {} ({}) is used up", period.name, max.unwrap_or(Bytes(0))))
    }

    /// Seconds until the first budget is used up at the rate of the last ten minutes.
    fn used_up_in(&self) -> Option<u64> {
        let budget = self.budget.as_ref()?;
        let (at, bytes) = self.samples.front()?;
        let elapsed = clock::instant().saturating_duration_since(*at).as_secs_f64();
        let rate = (self.total - bytes) as f64 / elapsed.max(1.0);
        let left = [(&self.day, budget.day), (&self.month, budget.month)];
        let left = left.into_iter().filter_map(|(period, max)| Some(max?.0.saturating_sub(period.bytes))).min()?;
        (rate > 0.0).then(|| (left as f64 / rate) as u64)
    }
}

/// The meters of all destinations, for as long as the process runs.
#[derive(Debug)]
pub struct Meters {
    notes: Notes,
    stored: BTreeMap<String, Stored>,
    meters: Mutex<BTreeMap<String, Arc<Meter>>>,
}

impl Meters {
    /// Reads what earlier runs have counted. Blocks the thread.
    pub fn open(journal: &Journal) -> Result<Self, JournalError> {
        let notes = journal.notes("meter");
        let read = |(name, content): (String, Vec<u8>)| Some((name, serde_json::from_slice(&content).ok()?));
        let stored = notes.all("")?.into_iter().filter_map(read).collect();
        Ok(Self { notes, stored, meters: Mutex::default() })
    }

    /// The meter of a destination.
    pub fn of(&self, destination: &str) -> Arc<Meter> {
        let mut meters = self.meters.lock();
        let meter = meters.entry(destination.to_owned()).or_insert_with(|| {
            let Stored { mut day, mut month, reserved } = self.stored.get(destination).cloned().unwrap_or_default();
            day.bytes += reserved;
            month.bytes += reserved;
            let state = Mutex::new(State { day, month, ..State::default() });
            Arc::new(Meter {
                destination: destination.to_owned(),
                notes: self.notes.clone(),
                state,
                is_uncovered: Notify::new(),
            })
        });
        Arc::clone(meter)
    }

    /// All meters, by destination.
    pub fn all(&self) -> Vec<Arc<Meter>> {
        self.meters.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).expect("a time")
    }

    #[test]
    fn a_period_ends_when_the_clock_passes_it_and_not_when_it_goes_back() {
        let mut state = State::default();
        state.count(at("2026-11-29T12:00:00Z"));
        state.day.add("bulk", 70);
        state.month.add("bulk", 70);
        state.count(at("2026-11-30T12:00:00Z"));
        assert_eq!((state.day.bytes, state.month.bytes), (0, 70));
        state.day.add("bulk", 5);
        state.count(at("2026-11-27T12:00:00Z"));
        assert_eq!((state.day.bytes, state.month.bytes), (5, 70), "a clock that goes back gives no new budget");
        state.count(at("2026-12-02T12:00:00Z"));
        assert_eq!((state.day.bytes, state.month.bytes), (0, 0));
    }

    #[test]
    fn only_the_lanes_that_are_named_pass_a_budget_that_is_used_up() {
        let budget: ByteBudget =
            toml::from_str("day = \"50MB\"\nmonth = \"500MB\"\nbeyond = [\"critical\"]\n[lane.bulk]\nday = \"5MB\"\n")
                .expect("parses");
        let mut state = State::default();
        let stopped = |state: &State| -> Vec<bool> {
            ["critical", "standard", "bulk", "again"].iter().map(|lane| state.stop(&budget, lane).is_some()).collect()
        };
        assert_eq!(stopped(&state), [false, false, false, false]);
        state.day.add("bulk", 5_000_000);
        assert_eq!(stopped(&state), [false, false, true, false]);
        state.day.add("standard", 45_000_000);
        assert_eq!(stopped(&state), [false, true, true, true]);
        state.day = Period::default();
        state.month.add("standard", 500_000_000);
        assert_eq!(stopped(&state), [false, true, true, true]);
        assert!(state.stop(&budget, "standard").is_some_and(|why| why.contains("(500 MB) is used up")));
    }
}
