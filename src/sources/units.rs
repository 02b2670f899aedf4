//! Health of the devices that a source polls, and of their points: whether there are values, not whether there is a
//! connection.
//!
//! Promise: each state has the moment since when it lasts, and a state that is not good has its reason.

use crate::api::{PointStatus, UnitStatus};
use crate::event::Timestamp;
use parking_lot::Mutex;

/// The units of one source.
#[derive(Debug, Default)]
pub struct Units(Mutex<Vec<UnitHealth>>);

/// Whether a point has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointState {
    /// It was not read yet.
    Unknown,
    Good,
    /// The device says that it has no value, in the way that its table declares.
    Absent,
    /// The device refuses it, or its registers hold no value.
    Bad,
}

impl PointState {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Absent => "absent",
            Self::Bad => "bad",
        }
    }
}

#[derive(Clone, Debug)]
pub struct UnitHealth {
    name: String,
    number: u8,
    /// State and reason of the whole unit, and since when.
    state: (&'static str, String),
    since: Timestamp,
    last_answer: Option<Timestamp>,
    silence: Option<String>,
    points: Vec<PointHealth>,
}

#[derive(Clone, Debug)]
struct PointHealth {
    group: String,
    name: String,
    state: PointState,
    reason: String,
    since: Timestamp,
}

impl Units {
    pub fn set(&self, units: Vec<UnitHealth>) {
        *self.0.lock() = units;
    }

    /// Changes one unit; returns whether its state is another one now.
    pub fn update(&self, index: usize, now: Timestamp, change: impl FnOnce(&mut UnitHealth)) -> bool {
        let mut units = self.0.lock();
        let Some(unit) = units.get_mut(index) else { return false };
        change(unit);
        unit.judge(now)
    }

    /// The units that have no value at all, and those that lack some, each with name and reason.
    pub fn troubles(&self) -> (Vec<String>, Vec<String>) {
        let units = self.0.lock();
        let (mut without, mut partly) = (Vec::new(), Vec::new());
        for unit in units.iter().filter(|unit| !matches!(unit.state.0, "good" | "unknown")) {
            let has_value =
                unit.points.iter().any(|point| matches!(point.state, PointState::Good | PointState::Absent));
            let list = if has_value && unit.silence.is_none() { &mut partly } else { &mut without };
            list.push(format!("{}: {}", unit.name, unit.state.1));
        }
        (without, partly)
    }

    /// The status of every unit.
    pub fn status(&self, source: &str) -> Vec<UnitStatus> {
        self.0.lock().iter().map(|unit| unit.status(source)).collect()
    }
}

impl UnitHealth {
    /// A unit that was not asked yet. `points` are the group and the name of each.
    pub fn new(name: &str, number: u8, points: impl Iterator<Item = (String, String)>, now: Timestamp) -> Self {
        let point =
            |(group, name)| PointHealth { group, name, state: PointState::Unknown, reason: String::new(), since: now };
        Self {
            name: name.to_owned(),
            number,
            state: ("unknown", "not read yet".into()),
            since: now,
            last_answer: None,
            silence: None,
            points: points.map(point).collect(),
        }
    }

    /// Records the state of a point.
    pub fn note(&mut self, point: usize, state: PointState, reason: &str, now: Timestamp) {
        let Some(point) = self.points.get_mut(point) else { return };
        if point.state != state {
            (point.state, point.since) = (state, now);
        }
        if point.reason != reason {
            reason.clone_into(&mut point.reason);
        }
    }

    pub fn answered(&mut self, now: Timestamp) {
        (self.last_answer, self.silence) = (Some(now), None);
    }

    /// Records that the unit does not answer.
    pub fn silent(&mut self, why: &str) {
        self.silence = Some(why.to_owned());
    }

    /// Finds the state of the whole unit; returns whether it has changed.
    fn judge(&mut self, now: Timestamp) -> bool {
        let state = match &self.silence {
            Some(why) => ("silent", why.clone()),
            None => self.state_of_points(),
        };
        if state.0 != self.state.0 {
            self.since = now;
        }
        let has_changed = state != self.state;
        self.state = state;
        has_changed
    }

    fn state_of_points(&self) -> (&'static str, String) {
        let mut bad = self.points.iter().filter(|point| point.state == PointState::Bad);
        match bad.next() {
            Some(first) => {
                let (count, all) = (1 + bad.count(), self.points.len());
                let reason = format!("{count} of {all} points have no value, such as {}: {}", first.name, first.reason);
                ("bad", reason)
            }
            None if self.points.iter().all(|point| point.state == PointState::Unknown) => {
                ("unknown", "not read yet".into())
            }
            None => ("good", String::new()),
        }
    }

    fn status(&self, source: &str) -> UnitStatus {
        let reason = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let of_point = |point: &PointHealth| PointStatus {
            group: point.group.clone(),
            name: point.name.clone(),
            // What was read before the silence is no value of now.
            state: match self.silence {
                Some(_) if point.state != PointState::Unknown => "stale",
                _ => point.state.name(),
            }
            .to_owned(),
            reason: reason(&point.reason),
            since: point.since.to_string(),
        };
        UnitStatus {
            source: source.to_owned(),
            unit: self.name.clone(),
            number: self.number,
            state: self.state.0.to_owned(),
            reason: reason(&self.state.1),
            since: self.since.to_string(),
            last_answer: self.last_answer.map(|at| at.to_string()),
            points: self.points.iter().map(of_point).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp(second * 1_000_000)
    }

    fn units() -> Units {
        let points = ["power", "speed"].map(|name| ("g".to_owned(), name.to_owned()));
        let units = Units::default();
        units.set(vec![UnitHealth::new("press-4", 3, points.into_iter(), second(0))]);
        units
    }

    #[test]
    fn a_unit_is_good_when_it_has_values_and_not_when_it_is_connected() {
        let units = units();
        let state = || {
            let status = units.status("bus").remove(0);
            (status.state, status.since)
        };
        assert_eq!(state(), ("unknown".into(), second(0).to_string()));
        units.update(0, second(1), |unit| {
            unit.answered(second(1));
            unit.note(0, PointState::Good, "", second(1));
            unit.note(1, PointState::Bad, "exception 2", second(1));
        });
        assert_eq!(state(), ("bad".into(), second(1).to_string()));
        assert_eq!(units.troubles().1, ["press-4: 1 of 2 points have no value, such as speed: exception 2"]);
        units.update(0, second(2), |unit| unit.note(1, PointState::Absent, "", second(2)));
        units.update(0, second(3), |unit| unit.note(1, PointState::Good, "", second(3)));
        assert_eq!(state(), ("good".into(), second(2).to_string()), "since the first moment without a bad one");
        units.update(0, second(9), |unit| unit.silent("no answer within 1s"));
        let status = units.status("bus").remove(0);
        assert_eq!((status.state.as_str(), status.points[0].state.as_str()), ("silent", "stale"));
        assert_eq!(status.points[0].since, second(1).to_string());
        assert_eq!(units.troubles().0, ["press-4: no answer within 1s"]);
    }

    #[test]
    fn a_unit_without_any_value_is_a_problem_and_no_note() {
        let units = units();
        units.update(0, second(1), |unit| {
            (0..2).for_each(|point| unit.note(point, PointState::Bad, "exception 1", second(1)));
        });
        let (without, partly) = units.troubles();
        assert!(without.len() == 1 && partly.is_empty(), "{without:?} {partly:?}");
    }
}
