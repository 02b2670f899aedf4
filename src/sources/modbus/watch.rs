//! From values to events: what has changed enough to be told, and how good it is.
//!
//! Promise: a change counts as told only when [`Watch::told`] says so; until then it stays due, and
//! steps of counters and edges gather. No value is told that was not read.
//! Invariants:
//! - nothing here waits, and nothing grows: edges that nobody takes are counted beyond a bound;
//! - time comes in as an argument.

use super::table::{Deadband, Device, Edge, Group, Point, Report};
use super::value::{Type, Value};
use crate::event::Timestamp;
use std::collections::VecDeque;
use std::time::Instant;

/// Edges of a point that may wait to be told; more are counted.
const EDGES_MAX: usize = 64;

/// How good what is told is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// The device answers, and every value fits its type.
    Good,
    /// The device does not answer; what was read last may still hold.
    Stale,
    /// There is no value: it does not fit its type, or the device has been silent for long.
    Bad,
}

impl Quality {
    /// Its name.
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
    /// The first one since the gateway started.
    Start,
    /// A value has changed by more than its deadband, a counter has counted, an edge was seen.
    Change,
    /// It is time.
    Interval,
    /// The quality has changed.
    Quality,
}

impl Reason {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Change => "change",
            Self::Interval => "interval",
            Self::Quality => "quality",
        }
    }
}

/// What was read of a point.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// A value.
    Good(Value),
    /// What the device says is no value.
    Bad {
        /// Why not.
        reason: String,
        /// The registers; empty where the device refused to tell them.
        raw: Vec<u16>,
    },
}

/// What registers say of a point.
pub fn read(point: &Point, registers: &[u16]) -> Reading {
    let bad = |reason: String| Reading::Bad { reason, raw: registers.to_vec() };
    if let Some(number) = point.encoding.raw(registers).filter(|number| point.absent.contains(number)) {
        return bad(format!("{number} means that there is no value"));
    }
    match point.encoding.decode(registers) {
        Ok(value) => Reading::Good(value),
        Err(reason) => bad(reason),
    }
}

/// A change of a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it changed to.
    pub to: bool,
    /// When it was seen.
    pub at: Timestamp,
    /// When the reading before was made: it changed after that.
    pub after: Timestamp,
}

/// How far a counter has counted since it was told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// By how much, as it stands in the register.
    pub step: i128,
    /// How often it began anew without having reached its end.
    pub resets: u32,
    last: Option<i128>,
}

impl Counted {
    /// Follows the counter to `now`. It begins anew at `rolls_at`; one that falls from elsewhere was
    /// reset, and has counted from 0 since.
    fn follow(&mut self, now: i128, rolls_at: i128) {
        let Some(last) = self.last.replace(now) else { return };
        if now >= last {
            self.step += now - last;
            return;
        }
        let around = rolls_at - last + now;
        if around <= rolls_at / 4 {
            self.step += around;
        } else {
            self.step += now;
            self.resets += 1;
        }
    }
}

/// One point that is watched.
#[derive(Clone, Debug)]
pub struct Member {
    /// Place in the list of the device.
    pub point: usize,
    /// What was read last.
    pub now: Option<Reading>,
    /// What was told last.
    pub told: Option<Reading>,
    /// How far it has counted, where it is a counter.
    pub counted: Counted,
    /// Edges that wait to be told.
    pub edges: VecDeque<Seen>,
    /// Edges beyond those.
    pub edges_cut: u64,
    bit: Option<(bool, Timestamp)>,
}

/// What one event is made of: the points of a group, or one of them.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The points.
    pub members: Vec<Member>,
    /// Whether its events are of one point, not of a group.
    pub is_single: bool,
    /// When the device was last heard.
    pub heard: Option<Timestamp>,
    /// Why the device is not heard, if it is not.
    pub silence: Option<String>,
    silent_since: Option<Instant>,
    told: Option<(Instant, Quality)>,
    is_fresh: bool,
}

impl Watch {
    /// A watch over these points of a device.
    pub fn new(points: impl IntoIterator<Item = usize>) -> Self {
        let member = |point| Member {
            point,
            now: None,
            told: None,
            counted: Counted::default(),
            edges: VecDeque::new(),
            edges_cut: 0,
            bit: None,
        };
        Self {
            members: points.into_iter().map(member).collect(),
            is_single: false,
            heard: None,
            silence: None,
            silent_since: None,
            told: None,
            is_fresh: false,
        }
    }

    /// A watch over one point, with events of its own.
    pub fn single(point: usize) -> Self {
        Self { is_single: true, ..Self::new([point]) }
    }

    /// Takes what was read of a point; of points that it does not watch it takes nothing.
    pub fn take(&mut self, device: &Device, index: usize, registers: &[u16], at: Timestamp) {
        let Some(member) = self.members.iter_mut().find(|member| member.point == index) else { return };
        let point = &device.points[index];
        let reading = read(point, registers);
        if let (Some(rolls_at), Reading::Good(_), Some(raw)) = (point.counter, &reading, point.encoding.raw(registers))
        {
            member.counted.follow(raw, rolls_at);
        }
        if let (Some(wanted), Reading::Good(Value::Bool(on))) = (point.edge, &reading) {
            member.follow_bit(wanted, *on, at);
        }
        member.now = Some(reading);
    }

    /// A point that the device refuses to tell, though it answers.
    pub fn refuse(&mut self, index: usize, reason: &str) {
        if let Some(member) = self.members.iter_mut().find(|member| member.point == index) {
            member.now = Some(Reading::Bad { reason: reason.to_owned(), raw: Vec::new() });
        }
    }

    /// The reading of the group is complete: the device is there.
    pub fn complete(&mut self, at: Timestamp) {
        self.heard = Some(at);
        (self.silence, self.silent_since) = (None, None);
        self.is_fresh = true;
    }

    /// The device does not answer.
    pub fn miss(&mut self, why: &str, now: Instant) {
        self.silent_since.get_or_insert(now);
        self.silence = Some(why.to_owned());
    }

    /// How good it is.
    pub fn quality(&self, group: &Group, now: Instant) -> Quality {
        match self.silent_since {
            Some(since) if self.heard.is_none() || now.duration_since(since) >= group.bad_after => Quality::Bad,
            Some(_) => Quality::Stale,
            None if self.members.iter().any(|member| matches!(member.now, Some(Reading::Bad { .. }))) => Quality::Bad,
            None => Quality::Good,
        }
    }

    /// Whether an event is due, and why.
    pub fn due(&self, device: &Device, group: &Group, now: Instant) -> Option<Reason> {
        let Some((at, quality)) = self.told else {
            let is_known = self.silence.is_some() || self.members.iter().all(|member| member.now.is_some());
            return is_known.then_some(Reason::Start);
        };
        let turned = |member: &Member| {
            let is_bad = |reading: &Option<Reading>| matches!(reading, Some(Reading::Bad { .. }));
            is_bad(&member.now) != is_bad(&member.told)
        };
        let is_heard = self.silence.is_none();
        if quality != self.quality(group, now) || (is_heard && self.members.iter().any(turned)) {
            return Some(Reason::Quality);
        }
        let since = now.saturating_duration_since(at);
        if since < group.min {
            return None;
        }
        if self.members.iter().any(|member| member.has_changed(&device.points[member.point], is_heard)) {
            return Some(Reason::Change);
        }
        let is_wanted = group.report == Report::Always && self.is_fresh && is_heard;
        (is_wanted || group.max.is_some_and(|max| since >= max)).then_some(Reason::Interval)
    }

    /// When to ask [`Watch::due`] again, if nothing is read before.
    pub fn look_again(&self, group: &Group, now: Instant) -> Option<Instant> {
        let (at, _) = self.told?;
        let bad_at = self.silent_since.map(|since| since + group.bad_after);
        let times = [Some(at + group.min), group.max.map(|max| at + max), bad_at];
        times.into_iter().flatten().filter(|time| *time > now).min()
    }

    /// The journal has taken the event that [`Watch::due`] asked for.
    pub fn told(&mut self, group: &Group, now: Instant) {
        self.told = Some((now, self.quality(group, now)));
        self.is_fresh = false;
        let is_heard = self.silence.is_none();
        for member in &mut self.members {
            // What was read before the silence is told only as what was known last.
            if is_heard {
                member.told.clone_from(&member.now);
            }
            (member.counted.step, member.counted.resets) = (0, 0);
            member.edges.clear();
            member.edges_cut = 0;
        }
    }

    /// Takes over what other watches know of its points; all of it is yet to be told.
    pub fn inherit<'a>(&mut self, others: impl Iterator<Item = &'a Self>) {
        for other in others {
            for member in &mut self.members {
                if let Some(known) = other.members.iter().find(|known| known.point == member.point) {
                    *member = Member { told: None, ..known.clone() };
                }
            }
            self.heard = self.heard.max(other.heard);
            self.silence.clone_from(&other.silence);
            self.silent_since = other.silent_since;
        }
    }
}

impl Member {
    fn follow_bit(&mut self, wanted: Edge, on: bool, at: Timestamp) {
        let Some((before, after)) = self.bit.replace((on, at)) else { return };
        let is_wanted = wanted == Edge::Both || (wanted == Edge::Rising) == on;
        if before == on || !is_wanted {
            return;
        }
        if self.edges.len() < EDGES_MAX {
            self.edges.push_back(Seen { to: on, at, after });
        } else {
            self.edges_cut += 1;
        }
    }

    /// Whether there is something to tell. Of a silent device only what was seen before counts.
    pub fn has_changed(&self, point: &Point, is_heard: bool) -> bool {
        if !self.edges.is_empty() || self.edges_cut > 0 || self.counted.resets > 0 {
            return true;
        }
        if point.counter.is_some() {
            let Some(step) = point.encoding.scaled_step(self.counted.step).number() else { return false };
            let band = match point.deadband {
                Deadband::Absolute(band) => band,
                Deadband::Relative(share) => share * number(&self.told).unwrap_or(0.0).abs(),
            };
            return step != 0.0 && step.abs() > band;
        }
        if !is_heard {
            return false;
        }
        match (&self.told, &self.now) {
            (Some(Reading::Good(told)), Some(Reading::Good(now))) => {
                // Of a bit with one kind of edge the other is no news.
                let is_one_sided = matches!(point.edge, Some(Edge::Rising | Edge::Falling));
                let is_news = point.encoding.kind != Type::Bool || !is_one_sided;
                is_news && moved(told, now, point.deadband)
            }
            (told, now) => told != now,
        }
    }
}

fn number(reading: &Option<Reading>) -> Option<f64> {
    match reading {
        Some(Reading::Good(value)) => value.number(),
        _ => None,
    }
}

/// Whether a value has left its deadband.
fn moved(told: &Value, now: &Value, deadband: Deadband) -> bool {
    if told == now {
        return false;
    }
    match (told.number(), now.number(), deadband) {
        (Some(told), Some(now), Deadband::Absolute(band)) => band == 0.0 || (now - told).abs() > band,
        (Some(told), Some(now), Deadband::Relative(share)) => (now - told).abs() > share * told.abs(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::{Encoding, Order};
    use super::*;
    use crate::clock;
    use std::time::Duration;

    /// A watch over one point, with a clock of its own.
    struct Bench {
        device: Device,
        watch: Watch,
        start: Instant,
        second: u64,
    }

    impl Bench {
        fn new(kind: Type, change: impl FnOnce(&mut Point, &mut Group)) -> Self {
            let mut point = Point::plain(Encoding::of(kind, Order::Abcd));
            let mut group = Group::default();
            change(&mut point, &mut group);
            let device = Device { points: vec![point], groups: vec![group], ..Device::default() };
            Self { device, watch: Watch::new([0]), start: clock::instant(), second: 0 }
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_secs(self.second)
        }

        fn due(&self) -> Option<Reason> {
            self.watch.due(&self.device, &self.device.groups[0], self.now())
        }

        /// A second later the registers say this; what is told of it.
        fn read(&mut self, registers: &[u16]) -> Option<Reason> {
            let reason = self.read_untold(registers);
            if reason.is_some() {
                self.watch.told(&self.device.groups[0], self.now());
            }
            reason
        }

        /// The same, where the journal takes nothing.
        fn read_untold(&mut self, registers: &[u16]) -> Option<Reason> {
            self.second += 1;
            let at = Timestamp(self.second as i64 * 1_000_000);
            self.watch.take(&self.device, 0, registers, at);
            self.watch.complete(at);
            self.due()
        }

        fn step(&self) -> (i128, u32) {
            (self.watch.members[0].counted.step, self.watch.members[0].counted.resets)
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
        assert_eq!(bench.read_untold(&[2]), Some(Reason::Change));
        assert_eq!(bench.read_untold(&[2]), Some(Reason::Change), "still");
        assert_eq!(bench.read_untold(&[1]), None, "it is again what was told");
        assert_eq!(bench.read_untold(&[3]), Some(Reason::Change));
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
        let mut bench = Bench::new(Type::U16, |point, _| point.counter = Some(65_536));
        assert_eq!((bench.read(&[65_530]), bench.step()), (Some(Reason::Start), (0, 0)));
        assert_eq!((bench.read_untold(&[65_534]), bench.step()), (Some(Reason::Change), (4, 0)));
        assert_eq!(
            (bench.read_untold(&[3]), bench.step()),
            (Some(Reason::Change), (9, 0)),
            "over the end, and untold steps gather"
        );
        assert_eq!((bench.read(&[3]), bench.step()), (Some(Reason::Change), (0, 0)));
        assert_eq!((bench.read(&[40_000]), bench.read_untold(&[2])), (Some(Reason::Change), Some(Reason::Change)));
        assert_eq!(bench.step(), (2, 1), "a reset, and two since");
        let mut bench = Bench::new(Type::U16, |point, _| {
            (point.counter, point.deadband) = (Some(1000), Deadband::Absolute(10.0));
        });
        assert_eq!(bench.read(&[990]), Some(Reason::Start));
        assert_eq!((bench.read(&[999]), bench.read(&[1]), bench.step()), (None, Some(Reason::Change), (0, 0)));
    }

    #[test]
    fn edges_gather_with_the_time_they_were_seen_and_are_bounded() {
        let mut bench = Bench::new(Type::Bool, |point, _| {
            (point.edge, point.encoding.field) = (Some(Edge::Rising), Some((0, 0)));
        });
        assert_eq!(bench.read(&[0]), Some(Reason::Start));
        assert_eq!(bench.read_untold(&[1]), Some(Reason::Change));
        assert_eq!(bench.read_untold(&[0]), Some(Reason::Change), "what rose and fell is not lost");
        let edges = &bench.watch.members[0].edges;
        assert_eq!(edges[0], Seen { to: true, at: Timestamp(2_000_000), after: Timestamp(1_000_000) });
        for _ in 0..EDGES_MAX {
            bench.read_untold(&[1]);
            bench.read_untold(&[0]);
        }
        assert_eq!((bench.watch.members[0].edges.len(), bench.watch.members[0].edges_cut), (EDGES_MAX, 1));
        bench.read(&[0]);
        assert_eq!((bench.read(&[1]), bench.read(&[0]), bench.read(&[0])), (Some(Reason::Change), None, None));
    }

    #[test]
    fn silence_is_stale_then_bad_and_no_value_is_told_in_it() {
        let mut bench = Bench::new(Type::U16, |_, group| group.bad_after = Duration::from_secs(30));
        assert_eq!(bench.read(&[7]), Some(Reason::Start));
        let mut told = Vec::new();
        for _ in 0..60 {
            bench.second += 1;
            bench.watch.miss("no answer", bench.now());
            if let Some(reason) = bench.due() {
                told.push((reason, bench.watch.quality(&bench.device.groups[0], bench.now()), bench.second));
                bench.watch.told(&bench.device.groups[0], bench.now());
            }
        }
        assert_eq!(told, [(Reason::Quality, Quality::Stale, 2), (Reason::Quality, Quality::Bad, 32)]);
        assert_eq!(bench.read(&[7]), Some(Reason::Quality), "it is back");
        assert_eq!(bench.read(&[7]), None);
    }

    #[test]
    fn a_device_that_never_answered_is_bad_and_not_stale() {
        let mut bench = Bench::new(Type::U16, |_, _| {});
        assert_eq!(bench.due(), None, "nothing is known yet");
        bench.watch.miss("no answer", bench.now());
        assert_eq!(bench.due(), Some(Reason::Start));
        assert_eq!(bench.watch.quality(&bench.device.groups[0], bench.now()), Quality::Bad);
    }

    #[test]
    fn a_value_that_does_not_fit_is_bad_with_its_registers() {
        let mut bench = Bench::new(Type::Bcd16, |point, _| point.absent = vec![9999]);
        assert_eq!(bench.read(&[0x1234]), Some(Reason::Start));
        assert_eq!(bench.read(&[0x12FA]), Some(Reason::Quality));
        let wanted = Reading::Bad { reason: "0x12fa is no BCD number".into(), raw: vec![0x12FA] };
        assert_eq!(bench.watch.members[0].now, Some(wanted));
        assert_eq!(bench.read(&[0x9999]), Some(Reason::Change), "bad for another reason");
        assert_eq!(bench.read(&[0x1234]), Some(Reason::Quality));
    }
}
