//! Counters: by how much a counter has advanced, judged by what is possible.
//!
//! Promise: a step is reported only if the counter can have made it. With `rate_max`, all steps together are at most
//! `rate_max` × time. Without it, the counter's own pace is the measure: a jump, and the return from a wrong reading, are
//! in no step.
//! Invariant: a reading that does not follow from the one before is believed only once the counter counts from there. Until
//! then the gateway waits: a register that shows a wrong number does not count.
//!
//! What happens in the field: the last digit falls and returns; a meter shows 0 or "not implemented" for a second or a
//! night; a PLC begins again at 0 or at a number of its own; a counter rolls over.

use std::time::{Duration, Instant};

/// What a counter can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CounterRule {
    /// The unscaled number at which it begins again at 0.
    pub rolls_at: i128,
    /// The largest unscaled number of counts in a second, if it is known.
    pub rate_max: Option<f64>,
}

/// Counts between two readings that any counter may make.
const STEP_FREE: i128 = 64;
/// How much faster than ever before a counter may count without being doubted.
const FASTER_MAX: f64 = 4.0;
/// Rises in a row, each of about the same pace, that are a counter at work and no random numbers.
const RISES_MIN: u8 = 2;
/// Some meters refresh their registers every 15 minutes: that much time may be made up for in one step.
const REFRESH_MAX: Duration = Duration::from_secs(15 * 60);
/// A counter has begun again near 0 if it shows at most this part of its earlier number.
const NEAR_ZERO_PART: i128 = 100;

/// Progress of a counter since the last event.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CounterProgress {
    /// Unscaled number by which the counter has advanced.
    pub step: i128,
    /// How often it began again near 0.
    pub resets: u32,
    /// How often it moved in a way that is in no step.
    pub withheld: u32,
    /// The last reading that is believed.
    base: Option<Base>,
    /// A later reading that does not follow from it.
    doubt: Option<Doubt>,
    /// Where the counter stood before it began again: it may return there.
    former: Option<Former>,
    /// The fastest counting so far, in counts per second.
    fastest: f64,
    /// Counts that are possible now, with `rate_max`.
    credit: f64,
    last_read: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Base {
    value: i128,
    at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Doubt {
    /// The first reading that does not follow, and the newest one.
    first: Base,
    newest: Base,
    /// Rises in a row since `first`, and the pace of the newest one in counts per second.
    rises: u8,
    pace: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Former {
    base: Base,
    /// What was reported since.
    reported: i128,
}

impl CounterProgress {
    /// Takes the unscaled number `value` that was read at `at`.
    pub(super) fn advance(&mut self, value: i128, at: Instant, rule: &CounterRule) {
        self.earn(at, rule);
        let reading = Base { value, at };
        let Some(base) = self.base else {
            // The highest number of a type often means "not implemented".
            if value != rule.rolls_at - 1 {
                self.base = Some(reading);
            }
            return;
        };
        if let Some(step) = self.follows(base, reading, rule) {
            self.count(base, reading, step);
            self.doubt = None;
            return;
        }
        if let Some(step) = self.returns(reading, rule) {
            self.count(base, reading, step);
            (self.doubt, self.former) = (None, None);
            return;
        }
        let doubt = match self.doubt {
            // A number that was wrong only for a while: the counter is above its last number again.
            Some(doubt) if doubt.first.value < base.value && value >= base.value => Doubt::new(reading),
            Some(doubt) if value > doubt.newest.value => {
                let risen = doubt.rise(reading);
                if risen.rises >= RISES_MIN || self.follows(doubt.newest, reading, rule).is_some() {
                    self.believe(base, risen, rule);
                    return;
                }
                risen
            }
            Some(doubt) if value == doubt.newest.value => Doubt { newest: reading, ..doubt },
            _ => Doubt::new(reading),
        };
        self.doubt = Some(doubt);
    }

    /// Starts again at 0 after an event.
    pub(super) fn mark_reported(&mut self) {
        (self.step, self.resets, self.withheld) = (0, 0, 0);
    }

    /// Takes the next reading as the first one: its counts are larger by this power of ten, so that it cannot be compared
    /// with those before.
    pub(super) fn rescale(&mut self, exponent: i32) {
        let power = 10f64.powi(exponent);
        if self.base.take().is_some() {
            self.withheld += 1;
        }
        (self.doubt, self.former) = (None, None);
        self.step = (self.step as f64 / power) as i128;
        self.fastest /= power;
        self.credit = (self.credit / power).floor();
    }

    /// Whether there is something to report.
    pub fn has_moved(&self) -> bool {
        self.step != 0 || self.resets > 0 || self.withheld > 0
    }

    /// Adds the counts that have become possible.
    fn earn(&mut self, now: Instant, rule: &CounterRule) {
        let Some(last) = self.last_read.replace(now) else {
            self.credit = 1.0;
            return;
        };
        if let Some(rate) = rule.rate_max {
            let most = rate * REFRESH_MAX.as_secs_f64() + 1.0;
            self.credit = self.credit.min(most) + rate * now.saturating_duration_since(last).as_secs_f64();
        }
    }

    /// Counts that are possible in the time between two readings.
    fn possible(&self, from: Base, to: Base, rule: &CounterRule) -> i128 {
        match rule.rate_max {
            Some(_) => self.usual(from, to, rule),
            // Beyond a quarter of the range it is not plain which way the counter went.
            None => self.usual(from, to, rule).max(STEP_FREE).min((rule.rolls_at / 4).max(1)),
        }
    }

    /// The same by what is known of this counter.
    fn usual(&self, from: Base, to: Base, rule: &CounterRule) -> i128 {
        match rule.rate_max {
            Some(_) => self.credit as i128,
            None => (self.fastest * FASTER_MAX * from.seconds_to(to)) as i128,
        }
    }

    /// The step from one reading to a later one, if it is possible: forwards, or over the end.
    fn follows(&self, from: Base, to: Base, rule: &CounterRule) -> Option<i128> {
        let step = to.value - from.value;
        let step = if step < 0 { step + rule.rolls_at } else { step };
        let is_in_range = to.value < rule.rolls_at && (to.value >= from.value || to.value >= 0);
        (is_in_range && (0..=self.possible(from, to, rule)).contains(&step)).then_some(step)
    }

    /// The step of a counter that shows again what it showed before it seemed to begin again.
    fn returns(&self, to: Base, rule: &CounterRule) -> Option<i128> {
        let former = self.former?;
        let since = to.value - former.base.value;
        let is_there = since >= 0 && (since <= self.possible(former.base, to, rule) || since <= former.reported);
        is_there.then(|| (since - former.reported).max(0))
    }

    fn count(&mut self, from: Base, to: Base, step: i128) {
        if step > 0 {
            self.fastest = self.fastest.max(pace(step, from.seconds_to(to)));
            self.credit -= step as f64;
            self.step += step;
            if let Some(former) = &mut self.former {
                former.reported += step;
            }
        }
        self.base = Some(to);
        if self.former.is_some_and(|former| to.value >= former.base.value) {
            self.former = None;
        }
    }

    /// Believes a doubtful number, because the counter counts from there.
    fn believe(&mut self, base: Base, doubt: Doubt, rule: &CounterRule) {
        let Doubt { first, newest: now, .. } = doubt;
        self.doubt = None;
        // How it counts from there is the best measure of how it got there.
        self.fastest = self.fastest.max(doubt.pace);
        if let Some(step) = self.follows(base, first, rule) {
            self.count(base, first, step);
        } else if (0..=self.near_zero(base, first, rule)).contains(&first.value) && first.value < base.value {
            self.former = Some(Former { base, reported: 0 });
            self.resets += 1;
            let begun = if first.value <= self.usual(base, first, rule) { first.value } else { 0 };
            self.count(base, first, begun);
        } else {
            self.withheld += 1;
            self.former = None;
        }
        let rise = now.value - first.value;
        if rise <= self.possible(first, now, rule) {
            self.count(first, now, rise);
        } else {
            self.withheld += 1;
        }
        self.base = Some(now);
    }

    fn near_zero(&self, base: Base, first: Base, rule: &CounterRule) -> i128 {
        (base.value / NEAR_ZERO_PART).max(self.possible(base, first, rule))
    }
}

impl Doubt {
    fn new(reading: Base) -> Self {
        Self { first: reading, newest: reading, rises: 0, pace: 0.0 }
    }

    /// Adds a reading that is higher than the newest one.
    fn rise(self, to: Base) -> Self {
        let pace = pace(to.value - self.newest.value, self.newest.seconds_to(to));
        let is_similar = pace <= self.pace * FASTER_MAX && self.pace <= pace * FASTER_MAX;
        Self { newest: to, rises: if is_similar { self.rises + 1 } else { 1 }, pace, ..self }
    }
}

impl Base {
    fn seconds_to(self, to: Self) -> f64 {
        to.at.saturating_duration_since(self.at).as_secs_f64()
    }
}

/// Counts per second; 0 if no time has passed.
fn pace(step: i128, seconds: f64) -> f64 {
    if seconds > 0.0 { step as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use proptest::prelude::*;

    /// A counter that is read once a second.
    struct Bench {
        counter: CounterProgress,
        rule: CounterRule,
        now: Instant,
    }

    impl Bench {
        fn new(rolls_at: i128, rate_max: Option<f64>) -> Self {
            Self {
                counter: CounterProgress::default(),
                rule: CounterRule { rolls_at, rate_max },
                now: clock::instant(),
            }
        }

        fn read(&mut self, value: i128) {
            self.now += Duration::from_secs(1);
            self.counter.advance(value, self.now, &self.rule);
        }

        /// Step, resets and withheld movements of these readings.
        fn all(&mut self, values: &[i128]) -> (i128, u32, u32) {
            self.counter.mark_reported();
            values.iter().for_each(|value| self.read(*value));
            (self.counter.step, self.counter.resets, self.counter.withheld)
        }
    }

    const U16: i128 = 1 << 16;
    const U32: i128 = 1 << 32;
    const U64: i128 = 1 << 64;

    #[test]
    fn a_counter_rolls_over_near_its_end_and_is_reset_elsewhere() {
        let mut counter = Bench::new(1000, None);
        assert_eq!(counter.all(&[990, 999, 1]), (11, 0, 0), "9, and 2 over the end");
        assert_eq!(counter.all(&[500]), (0, 0, 0), "it is not believed yet");
        assert_eq!(counter.all(&[501, 503]), (3, 0, 1), "it was set, and counts from there");
        assert_eq!(counter.all(&[3, 5]), (5, 1, 0), "3 since the reset at its pace, and 2");
        assert_eq!(Bench::new(U16, None).all(&[65_534, 3]), (5, 0, 0));
    }

    #[test]
    fn a_total_that_falls_by_its_last_digit_and_returns_is_no_step() {
        assert_eq!(Bench::new(U32, None).all(&[10_020, 10_019, 10_020]), (0, 0, 0));
        assert_eq!(Bench::new(U32, Some(1.0)).all(&[10_020, 10_019, 10_020, 10_021]), (1, 0, 0));
    }

    #[test]
    fn a_meter_that_shows_0_for_a_while_has_made_nothing() {
        assert_eq!(Bench::new(U32, None).all(&[10_020, 0, 10_020]), (0, 0, 0));
        assert_eq!(Bench::new(U32, None).all(&[10_020, 0, 0, 0, 10_025]), (5, 0, 0));
        let begun = Bench::new(U32, None).all(&[10_020, 0, 1, 10_022, 10_023]);
        assert_eq!((begun.0, begun.1), (3, 1), "it counted from 0 before it remembered its total");
    }

    #[test]
    fn a_plc_that_begins_at_its_own_number_has_made_nothing() {
        assert_eq!(Bench::new(U16, None).all(&[59_990, 60_000, 5, 5]), (10, 0, 0));
        let mut counter = Bench::new(U16, None);
        assert_eq!(counter.all(&[59_999, 60_000, 50, 51]), (2, 1, 0), "the 50 are in no step");
        assert_eq!(Bench::new(U16, Some(5.0)).all(&[65_000, 5, 6, 7]), (7, 1, 0), "at this rate the 5 are possible");
        assert_eq!(Bench::new(U16, Some(2.0)).all(&[65_000, 50, 51, 52]), (2, 1, 0));
    }

    #[test]
    fn not_implemented_at_night_is_no_energy() {
        for rolls_at in [U16, U32, U64] {
            let mut readings = vec![1000, 1001];
            readings.extend([rolls_at - 1; 50]);
            readings.extend([1001, 1003]);
            assert_eq!(Bench::new(rolls_at, None).all(&readings), (3, 0, 0), "{rolls_at}");
            // The gateway starts at night.
            let (step, _, _) = Bench::new(rolls_at, None).all(&readings[2..]);
            assert_eq!(step, 2, "{rolls_at}");
        }
    }

    #[test]
    fn a_jump_is_withheld_and_marked() {
        let mut counter = Bench::new(U32, None);
        assert_eq!(counter.all(&[100, 101, 102, 1_500_000]), (2, 0, 0));
        assert_eq!(counter.all(&[1_500_001, 1_500_003]), (3, 0, 1));
        let mut counter = Bench::new(U32, Some(5.0));
        assert_eq!(counter.all(&[100, 104, 90_000, 90_003]), (7, 0, 1));
    }

    #[test]
    fn a_fast_counter_is_counted_whole() {
        let fast: Vec<i128> = (0..50).map(|second| 5000 + second * 694).collect();
        assert_eq!(Bench::new(U32, None).all(&fast), (49 * 694, 0, 0));
        let batches = [1000, 1000, 1500, 1500, 1500, 2000, 2000, 2500, 2500, 3000];
        assert_eq!(Bench::new(U32, None).all(&batches), (2000, 0, 0));
    }

    #[test]
    fn a_scale_that_changes_makes_no_step() {
        let mut counter = Bench::new(U32, None);
        assert_eq!(counter.all(&[10_000, 10_020]), (20, 0, 0));
        counter.counter.rescale(1);
        [1002, 1003].into_iter().for_each(|value| counter.read(value));
        let CounterProgress { step, withheld, .. } = counter.counter;
        assert_eq!((step, withheld), (3, 1), "2 and 1, in tens");
    }

    #[test]
    fn counts_of_a_quarter_of_an_hour_come_at_once_where_registers_are_slow() {
        let mut counter = Bench::new(U32, Some(2.0));
        let mut readings = vec![100; 900];
        readings.extend([1800; 2]);
        assert_eq!(counter.all(&readings), (1700, 0, 0));
    }

    proptest! {
        #[test]
        fn all_steps_together_are_possible_at_the_rate(
            readings in prop::collection::vec((0i128..70_000, 0u64..100_000), 2..80),
            rate in 0.1f64..50.0,
            rolls_at in prop::sample::select(vec![1000i128, U16, U32]),
        ) {
            let mut counter = CounterProgress::default();
            let rule = CounterRule { rolls_at, rate_max: Some(rate) };
            let start = clock::instant();
            let mut millis = 0;
            for (value, wait) in readings {
                counter.advance(value, start + Duration::from_millis(millis), &rule);
                let most = 1.0 + rate * millis as f64 / 1000.0;
                prop_assert!(counter.step as f64 <= most + 1e-6, "{} counts in {millis} ms", counter.step);
                millis += wait;
            }
        }

        #[test]
        fn no_piece_is_reported_that_was_not_made(
            start in 1000i128..1_000_000_000,
            story in prop::collection::vec((0i128..=8, disturbance()), 1..120),
        ) {
            let mut counter = Bench::new(U32, None);
            let (mut shown, mut made) = (start, 0);
            counter.read(shown);
            let mut is_reset = false;
            for (pieces, disturbance) in story {
                shown += pieces;
                made += pieces;
                match disturbance {
                    Disturbance::None => {}
                    Disturbance::Reset => (shown, is_reset) = (0, true),
                    Disturbance::Shows(value, times) => (0..times).for_each(|_| counter.read(value)),
                    Disturbance::FallsBack => counter.read((shown - 1).max(0)),
                    Disturbance::Silence(seconds) => counter.now += Duration::from_secs(seconds),
                }
                counter.read(shown);
                prop_assert!(counter.counter.step <= made, "{} of {made}", counter.counter.step);
            }
            if !is_reset {
                prop_assert_eq!((counter.counter.step, counter.counter.withheld), (made, 0));
            }
        }

        #[test]
        fn every_count_over_any_number_of_rollovers_is_in_a_step(
            start in 0i128..U16,
            pieces in prop::collection::vec(0i128..=60, 1..4000),
        ) {
            let mut counter = Bench::new(U16, None);
            let mut total = start;
            counter.read(total % U16);
            for piece in &pieces {
                total += piece;
                counter.read(total % U16);
            }
            prop_assert_eq!((counter.counter.step, counter.counter.resets), (total - start, 0));
        }
    }

    #[derive(Clone, Debug)]
    enum Disturbance {
        None,
        Reset,
        /// A wrong number, and for how many readings.
        Shows(i128, u32),
        FallsBack,
        Silence(u64),
    }

    fn disturbance() -> impl Strategy<Value = Disturbance> {
        prop_oneof![
            8 => Just(Disturbance::None),
            1 => Just(Disturbance::Reset),
            1 => (prop_oneof![Just(0), Just(U32 - 1), 2_000_000_000i128..U32], 1u32..5).prop_map(|(value, times)| Disturbance::Shows(value, times)),
            1 => Just(Disturbance::FallsBack),
            1 => (1u64..40_000).prop_map(Disturbance::Silence),
        ]
    }
}
