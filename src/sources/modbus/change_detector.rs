//! Change detection (report by exception): which values have changed enough for an event, and their quality.
//!
//! Promise: a change is due until [`ChangeDetector::mark_reported`] is called; steps of counters and edges are collected
//! meanwhile. No event contains a value that was not read.
//! Invariants:
//! - nothing here waits, and memory is bounded: beyond a limit edges are only counted;
//! - time is an argument.

use super::counter::{CounterProgress, CounterRule};
use super::reading::{Moment, Reading, Registers, read, scale_exponent};
use super::table::{Deadband, Device, Edge, Group, Point, Report};
use super::value::{Type, Value};
use crate::event::Timestamp;
use std::collections::VecDeque;
use std::time::Instant;

/// Edges of a point that may wait for an event; further ones are only counted.
const EDGES_MAX: usize = 64;

/// The quality of the values of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// The device answers, and every value fits its type.
    Good,
    /// The device does not answer; the last values may still be valid.
    Stale,
    /// There is no value: it does not fit its type, or the device has been silent for `bad_after`.
    Bad,
}

impl Quality {
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Stale => "stale",
            Self::Bad => "bad",
        }
    }
}

/// Why an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The first event since the gateway started.
    Start,
    /// A value has changed by more than its deadband, a counter has advanced, or an edge was seen.
    Change,
    /// The interval for events without a change is over.
    Interval,
    Quality,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Change => "change",
            Self::Interval => "interval",
            Self::Quality => "quality",
        }
    }
}

/// A change of a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeChange {
    pub to: bool,
    /// Time of the read that returned the new value.
    pub at: Timestamp,
    /// Time of the read before. The bit changed after it.
    pub after: Timestamp,
}

/// The state of one point.
#[derive(Clone, Debug)]
pub struct PointState {
    /// Index in the list of the device.
    pub point: usize,
    pub current: Option<Reading>,
    /// The reading of the last event.
    pub reported: Option<Reading>,
    /// Progress since the last event, if the point is a counter.
    pub counter: CounterProgress,
    /// Exponent of the scale register of a counter at its last reading.
    exponent: Option<i32>,
    /// Edges that wait for an event.
    pub edges: VecDeque<EdgeChange>,
    pub edges_cut: u64,
    bit: Option<(bool, Timestamp)>,
}

/// Detects the changes of the points that share an event: the points of a group, or a single point.
#[derive(Clone, Debug)]
pub struct ChangeDetector {
    pub points: Vec<PointState>,
    /// Whether the events are those of a single point, not of a group.
    pub is_single: bool,
    /// Time of the last answer of the device.
    pub last_answer: Option<Timestamp>,
    /// Why the device does not answer; `None` while it answers.
    pub silence: Option<String>,
    silent_since: Option<Instant>,
    /// Time and quality of the last event.
    last_event: Option<(Instant, Quality)>,
    is_fresh: bool,
}

impl ChangeDetector {
    /// A detector for these points of a device.
    pub fn new(points: impl IntoIterator<Item = usize>) -> Self {
        let state = |point| PointState {
            point,
            current: None,
            reported: None,
            counter: CounterProgress::default(),
            exponent: None,
            edges: VecDeque::new(),
            edges_cut: 0,
            bit: None,
        };
        Self {
            points: points.into_iter().map(state).collect(),
            is_single: false,
            last_answer: None,
            silence: None,
            silent_since: None,
            last_event: None,
            is_fresh: false,
        }
    }

    /// A detector for one point with separate events.
    pub fn single(point: usize) -> Self {
        Self { is_single: true, ..Self::new([point]) }
    }

    /// Takes the registers of a point from an answer. Ignores points of other detectors.
    pub fn take(&mut self, device: &Device, index: usize, registers: Registers<'_>, at: Moment) {
        let Some(state) = self.points.iter_mut().find(|state| state.point == index) else { return };
        let point = &device.points[index];
        let reading = read(device, index, registers);
        if let (Some(rule), Reading::Good(_), Some(raw)) =
            (&point.counter, &reading, point.encoding.raw(registers.of(point)))
        {
            let exponent = scale_exponent(device, point, registers).ok().flatten();
            state.advance(rule, raw, exponent, at);
        }
        if let (Some(edge), Reading::Good(Value::Bool(on))) = (point.edge, &reading) {
            state.detect_edge(edge, *on, at.wall);
        }
        state.current = Some(reading);
    }

    /// Records that the device refuses to read a point, though it answers.
    pub fn mark_refused(&mut self, index: usize, reason: &str) {
        if let Some(state) = self.points.iter_mut().find(|state| state.point == index) {
            state.current = Some(Reading::Bad { reason: reason.to_owned(), raw: Vec::new() });
        }
    }

    /// Records that the read of the group is complete: the device answers.
    pub fn complete(&mut self, at: Timestamp) {
        self.last_answer = Some(at);
        (self.silence, self.silent_since) = (None, None);
        self.is_fresh = true;
    }

    /// Records that the device does not answer.
    pub fn mark_silent(&mut self, why: &str, now: Instant) {
        self.silent_since.get_or_insert(now);
        self.silence = Some(why.to_owned());
    }

    /// The quality of an event at this time.
    pub fn quality(&self, group: &Group, now: Instant) -> Quality {
        match self.silent_since {
            Some(since) if self.last_answer.is_none() || now.duration_since(since) >= group.bad_after => Quality::Bad,
            Some(_) => Quality::Stale,
            None if self.points.iter().any(|state| state.current.as_ref().is_some_and(Reading::is_bad)) => Quality::Bad,
            None => Quality::Good,
        }
    }

    /// Whether an event is due, and why.
    pub fn due(&self, device: &Device, group: &Group, now: Instant) -> Option<Reason> {
        let Some((at, quality)) = self.last_event else {
            let is_known = self.silence.is_some() || self.points.iter().all(|state| state.current.is_some());
            return is_known.then_some(Reason::Start);
        };
        let since = now.saturating_duration_since(at);
        if since < group.min {
            return None;
        }
        let has_turned = |state: &PointState| {
            let is_bad = |reading: &Option<Reading>| reading.as_ref().is_some_and(Reading::is_bad);
            is_bad(&state.current) != is_bad(&state.reported)
        };
        let is_answering = self.silence.is_none();
        if quality != self.quality(group, now) || (is_answering && self.points.iter().any(has_turned)) {
            return Some(Reason::Quality);
        }
        if self.points.iter().any(|state| state.has_changed(&device.points[state.point], is_answering)) {
            return Some(Reason::Change);
        }
        let is_always = group.report == Report::Always && self.is_fresh && is_answering;
        (is_always || group.max.is_some_and(|max| since >= max)).then_some(Reason::Interval)
    }

    /// When to call [`ChangeDetector::due`] again, if nothing is read before.
    pub fn next_check(&self, group: &Group, now: Instant) -> Option<Instant> {
        let (at, _) = self.last_event?;
        let bad_at = self.silent_since.map(|since| since + group.bad_after);
        let times = [Some(at + group.min), group.max.map(|max| at + max), bad_at];
        times.into_iter().flatten().filter(|time| *time > now).min()
    }

    /// Records that the journal has accepted the event for which [`ChangeDetector::due`] gave the reason.
    pub fn mark_reported(&mut self, group: &Group, now: Instant) {
        self.last_event = Some((now, self.quality(group, now)));
        self.is_fresh = false;
        let is_answering = self.silence.is_none();
        for state in &mut self.points {
            // An event of a silent device contains its values only as the last known ones.
            if is_answering {
                state.reported.clone_from(&state.current);
            }
            state.counter.mark_reported();
            state.edges.clear();
            state.edges_cut = 0;
        }
    }

    /// Takes over the state that other detectors have of its points, as not yet reported.
    pub fn inherit<'a>(&mut self, others: impl Iterator<Item = &'a Self>) {
        for other in others {
            for state in &mut self.points {
                if let Some(known) = other.points.iter().find(|known| known.point == state.point) {
                    *state = PointState { reported: None, ..known.clone() };
                }
            }
            self.last_answer = self.last_answer.max(other.last_answer);
            self.silence.clone_from(&other.silence);
            self.silent_since = other.silent_since;
        }
    }
}

impl PointState {
    fn advance(&mut self, rule: &CounterRule, raw: i128, exponent: Option<i32>, at: Moment) {
        let before = std::mem::replace(&mut self.exponent, exponent);
        if let (Some(before), Some(exponent)) = (before, exponent)
            && before != exponent
        {
            // Numbers in different scales cannot be compared.
            self.counter.rescale(exponent - before);
        }
        let power = 10f64.powi(exponent.unwrap_or(0));
        let rule = CounterRule { rate_max: rule.rate_max.map(|rate| rate / power), ..*rule };
        self.counter.advance(raw, at.instant, &rule);
    }

    /// The step since the last event, scaled.
    pub fn step(&self, point: &Point) -> Value {
        match self.exponent {
            None => point.encoding.scaled_step(self.counter.step),
            Some(exponent) => point.encoding.with_exponent(exponent).scaled_step(self.counter.step),
        }
    }

    fn detect_edge(&mut self, edge: Edge, on: bool, at: Timestamp) {
        let Some((before, after)) = self.bit.replace((on, at)) else { return };
        let matches = edge == Edge::Both || (edge == Edge::Rising) == on;
        if before == on || !matches {
            return;
        }
        if self.edges.len() < EDGES_MAX {
            self.edges.push_back(EdgeChange { to: on, at, after });
        } else {
            self.edges_cut += 1;
        }
    }

    /// Whether the point has a change to report. For a silent device only edges and counter steps count.
    pub fn has_changed(&self, point: &Point, is_answering: bool) -> bool {
        if !self.edges.is_empty() || self.edges_cut > 0 {
            return true;
        }
        let is_absent = |reading: &Option<Reading>| *reading == Some(Reading::Absent);
        if is_answering && is_absent(&self.reported) != is_absent(&self.current) {
            return true;
        }
        if point.counter.is_some() {
            if self.counter.resets > 0 || self.counter.withheld > 0 {
                return true;
            }
            let Some(step) = self.step(point).number() else { return false };
            let last = self.reported.as_ref().and_then(Reading::number);
            let band = match point.deadband {
                Deadband::Absolute(band) => band,
                Deadband::Relative(share) => share * last.unwrap_or(0.0).abs(),
            };
            return step != 0.0 && step.abs() > band;
        }
        if !is_answering {
            return false;
        }
        match (&self.reported, &self.current) {
            (Some(Reading::Good(reported)), Some(Reading::Good(current))) => {
                // A bit with one kind of edge does not report the other one.
                let is_one_sided = matches!(point.edge, Some(Edge::Rising | Edge::Falling));
                let counts = point.encoding.kind != Type::Bool || !is_one_sided;
                counts && has_left_deadband(reported, current, point.deadband)
            }
            (reported, current) => reported != current,
        }
    }
}

fn has_left_deadband(reported: &Value, current: &Value, deadband: Deadband) -> bool {
    if reported == current {
        return false;
    }
    match (reported.number(), current.number(), deadband) {
        (Some(old), Some(new), Deadband::Absolute(band)) => band == 0.0 || (new - old).abs() > band,
        (Some(old), Some(new), Deadband::Relative(share)) => (new - old).abs() > share * old.abs(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::{Absent, Encoding, Order};
    use super::*;
    use crate::clock;
    use std::time::Duration;

    /// A detector for one point, with its own clock.
    struct Bench {
        device: Device,
        detector: ChangeDetector,
        start: Instant,
        second: u64,
    }

    impl Bench {
        fn new(kind: Type, change: impl FnOnce(&mut Point, &mut Group)) -> Self {
            let mut point = Point::plain(Encoding::of(kind, Order::Abcd));
            let mut group = Group::default();
            change(&mut point, &mut group);
            let device = Device { points: vec![point], groups: vec![group], ..Device::default() };
            Self { device, detector: ChangeDetector::new([0]), start: clock::instant(), second: 0 }
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_secs(self.second)
        }

        fn due(&self) -> Option<Reason> {
            self.detector.due(&self.device, &self.device.groups[0], self.now())
        }

        /// Reads these registers one second later; returns the reason of the event that they cause.
        fn read(&mut self, registers: &[u16]) -> Option<Reason> {
            let reason = self.read_unreported(registers);
            if reason.is_some() {
                self.detector.mark_reported(&self.device.groups[0], self.now());
            }
            reason
        }

        /// The same, but the journal does not accept the event.
        fn read_unreported(&mut self, registers: &[u16]) -> Option<Reason> {
            self.second += 1;
            let at = Timestamp(self.second as i64 * 1_000_000);
            let registers = Registers { address: 0, words: registers };
            self.detector.take(&self.device, 0, registers, Moment { wall: at, instant: self.now() });
            self.detector.complete(at);
            self.due()
        }

        fn step(&self) -> (i128, u32) {
            (self.detector.points[0].counter.step, self.detector.points[0].counter.resets)
        }
    }

    #[test]
    fn a_change_is_what_leaves_the_deadband_of_what_was_told_last() {
        let mut bench = Bench::new(Type::U16, |point, _| point.deadband = Deadband::Absolute(5.0));
        assert_eq!(bench.read(&[100]), Some(Reason::Start));
        assert_eq!(bench.read(&[103]), None);
        assert_eq!(bench.read(&[105]), None, "it creeps, and the band does not creep with it");
        assert_eq!(bench.read(&[106]), Some(Reason::Change));
        assert_eq!(bench.read(&[102]), None);
        let mut bench = Bench::new(Type::U16, |point, _| point.deadband = Deadband::Relative(0.02));
        assert_eq!(bench.read(&[1000]), Some(Reason::Start));
        assert_eq!((bench.read(&[1020]), bench.read(&[979])), (None, Some(Reason::Change)));
    }

    #[test]
    fn what_the_journal_did_not_take_is_told_again() {
        let mut bench = Bench::new(Type::U16, |_, _| {});
        assert_eq!(bench.read(&[1]), Some(Reason::Start));
        assert_eq!(bench.read_unreported(&[2]), Some(Reason::Change));
        assert_eq!(bench.read_unreported(&[2]), Some(Reason::Change), "still");
        assert_eq!(bench.read_unreported(&[1]), None, "it equals the reported value again");
        assert_eq!(bench.read_unreported(&[3]), Some(Reason::Change));
        assert_eq!((bench.read(&[3]), bench.read(&[3])), (Some(Reason::Change), None));
    }

    #[test]
    fn events_keep_their_least_and_most_distance() {
        let mut bench = Bench::new(Type::U16, |_, group| {
            (group.min, group.max) = (Duration::from_secs(3), Some(Duration::from_secs(10)));
        });
        assert_eq!(bench.read(&[1]), Some(Reason::Start));
        assert_eq!((bench.read(&[2]), bench.read(&[3])), (None, None));
        assert_eq!(bench.read(&[4]), Some(Reason::Change), "after three seconds");
        let silent: Vec<_> = (0..10).map(|_| bench.read(&[4])).collect();
        assert_eq!(silent.iter().flatten().collect::<Vec<_>>(), [&Reason::Interval]);
        assert_eq!(silent[9], Some(Reason::Interval), "after ten");
    }

    #[test]
    fn counters_roll_over_and_are_reset() {
        let counter = |rolls_at| Some(CounterRule { rolls_at, rate_max: None });
        let mut bench = Bench::new(Type::U16, |point, _| point.counter = counter(65_536));
        assert_eq!((bench.read(&[65_530]), bench.step()), (Some(Reason::Start), (0, 0)));
        assert_eq!((bench.read_unreported(&[65_534]), bench.step()), (Some(Reason::Change), (4, 0)));
        let rolled_over = (Some(Reason::Change), (9, 0));
        assert_eq!((bench.read_unreported(&[3]), bench.step()), rolled_over, "unreported steps add up");
        assert_eq!((bench.read(&[3]), bench.step()), (Some(Reason::Change), (0, 0)));
        assert_eq!((bench.read(&[40_000]), bench.read(&[40_001])), (None, Some(Reason::Change)), "it was set");
        assert_eq!((bench.read(&[2]), bench.read_unreported(&[4])), (None, Some(Reason::Change)));
        assert_eq!(bench.step(), (4, 1), "a reset, and four since");
        let mut bench = Bench::new(Type::U16, |point, _| {
            (point.counter, point.deadband) = (counter(1000), Deadband::Absolute(10.0));
        });
        assert_eq!(bench.read(&[990]), Some(Reason::Start));
        assert_eq!((bench.read(&[999]), bench.read(&[1]), bench.step()), (None, Some(Reason::Change), (0, 0)));
    }

    #[test]
    fn a_declared_absence_is_left_out_and_the_quality_stays_good() {
        let mut bench = Bench::new(Type::U32, |point, _| {
            point.counter = Some(CounterRule { rolls_at: 1 << 32, rate_max: None });
            point.absent = vec![Absent::Bits(0xFFFF_FFFF)];
        });
        assert_eq!(bench.read(&[0, 1000]), Some(Reason::Start));
        assert_eq!((bench.read(&[0xFFFF, 0xFFFF]), bench.read(&[0xFFFF, 0xFFFF])), (Some(Reason::Change), None));
        assert_eq!(bench.detector.points[0].current, Some(Reading::Absent));
        assert_eq!(bench.detector.quality(&bench.device.groups[0], bench.now()), Quality::Good);
        assert_eq!((bench.read_unreported(&[0, 1003]), bench.step()), (Some(Reason::Change), (3, 0)));
    }

    #[test]
    fn the_least_distance_holds_for_every_kind_of_event() {
        let mut bench = Bench::new(Type::Bcd16, |_, group| group.min = Duration::from_secs(5));
        assert_eq!(bench.read(&[1]), Some(Reason::Start));
        let bad: Vec<_> = (0..4).map(|_| bench.read(&[0xFFFF])).collect();
        assert_eq!((bad, bench.read(&[0xFFFF])), (vec![None; 4], Some(Reason::Quality)));
        bench.detector.mark_silent("no answer", bench.now());
        assert_eq!((bench.due(), bench.read(&[2])), (None, None), "it has turned good meanwhile");
    }

    #[test]
    fn edges_gather_with_the_time_they_were_seen_and_are_bounded() {
        let mut bench = Bench::new(Type::Bool, |point, _| {
            (point.edge, point.encoding.field) = (Some(Edge::Rising), Some((0, 0)));
        });
        assert_eq!(bench.read(&[0]), Some(Reason::Start));
        assert_eq!(bench.read_unreported(&[1]), Some(Reason::Change));
        assert_eq!(bench.read_unreported(&[0]), Some(Reason::Change), "what rose and fell is not lost");
        let edges = &bench.detector.points[0].edges;
        assert_eq!(edges[0], EdgeChange { to: true, at: Timestamp(2_000_000), after: Timestamp(1_000_000) });
        for _ in 0..EDGES_MAX {
            bench.read_unreported(&[1]);
            bench.read_unreported(&[0]);
        }
        assert_eq!((bench.detector.points[0].edges.len(), bench.detector.points[0].edges_cut), (EDGES_MAX, 1));
        bench.read(&[0]);
        assert_eq!((bench.read(&[1]), bench.read(&[0]), bench.read(&[0])), (Some(Reason::Change), None, None));
    }

    #[test]
    fn silence_is_stale_then_bad_and_no_value_is_told_in_it() {
        let mut bench = Bench::new(Type::U16, |_, group| group.bad_after = Duration::from_secs(30));
        assert_eq!(bench.read(&[7]), Some(Reason::Start));
        let mut reported = Vec::new();
        for _ in 0..60 {
            bench.second += 1;
            bench.detector.mark_silent("no answer", bench.now());
            if let Some(reason) = bench.due() {
                reported.push((reason, bench.detector.quality(&bench.device.groups[0], bench.now()), bench.second));
                bench.detector.mark_reported(&bench.device.groups[0], bench.now());
            }
        }
        assert_eq!(reported, [(Reason::Quality, Quality::Stale, 2), (Reason::Quality, Quality::Bad, 32)]);
        assert_eq!(bench.read(&[7]), Some(Reason::Quality), "it is back");
        assert_eq!(bench.read(&[7]), None);
    }

    #[test]
    fn a_device_that_never_answered_is_bad_and_not_stale() {
        let mut bench = Bench::new(Type::U16, |_, _| {});
        assert_eq!(bench.due(), None, "nothing is known yet");
        bench.detector.mark_silent("no answer", bench.now());
        assert_eq!(bench.due(), Some(Reason::Start));
        assert_eq!(bench.detector.quality(&bench.device.groups[0], bench.now()), Quality::Bad);
    }

    #[test]
    fn a_value_that_does_not_fit_is_bad_with_its_registers() {
        let mut bench = Bench::new(Type::Bcd16, |point, _| point.absent = vec![Absent::Whole(9999)]);
        assert_eq!(bench.read(&[0x1234]), Some(Reason::Start));
        assert_eq!(bench.read(&[0x12FA]), Some(Reason::Quality));
        let wanted = Reading::Bad { reason: "0x12fa is no BCD number".into(), raw: vec![0x12FA] };
        assert_eq!(bench.detector.points[0].current, Some(wanted));
        assert_eq!(bench.read(&[0x9999]), Some(Reason::Quality), "a declared absence is good");
        assert_eq!(bench.read(&[0x1234]), Some(Reason::Change));
    }
}
