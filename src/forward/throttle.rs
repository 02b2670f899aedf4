//! The throttle of a lane: how fast it is sent while central refuses a large share of its events for now.
//!
//! A quota of central is a rate that nobody tells. The throttle finds it: it halves the rate while more than a fifth of
//! the answers refuse, and doubles it once a second at most otherwise. A refusal now and then changes nothing: only the refused
//! event waits.
//!
//! Promise: a lane that central refuses as a whole sends at most [`PAUSE_MAX`] apart, and is fast again within seconds
//! after central accepts.

use std::time::{Duration, Instant};

/// Weight of the newest answer in the share of refusals: some five refusals in a row tell.
const WEIGHT: f64 = 0.05;
/// Share of refusals above which the lane slows down.
const SHARE_MAX: f64 = 0.2;
/// Lowest rate at the first refusals, in publishes per second.
const FIRST_RATE_MIN: f64 = 10.0;
/// Longest time between two publishes.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Rate from which on the lane has no limit any more, in publishes per second.
const RATE_MAX: f64 = 10_000.0;
/// Pause after the rate is lowered: central has no room at this moment.
const PAUSE: Duration = Duration::from_millis(200);
/// Least time between two rises of the rate, and publishes that are accepted meanwhile.
const RISE: Duration = Duration::from_secs(1);
const RISE_ACCEPTED: u32 = 5;

#[derive(Debug)]
pub(super) struct Throttle {
    /// Share of refusals among the last answers.
    share: f64,
    /// Publishes per second; `None` without a limit.
    rate: Option<f64>,
    /// Answers to publishes before this time are about an earlier rate.
    changed_at: Instant,
    /// Publishes accepted since then.
    accepted: u32,
    /// Publishes that may be sent now.
    level: f64,
    filled_at: Instant,
}

impl Throttle {
    pub(super) fn new(now: Instant) -> Self {
        Self { share: 0.0, rate: None, changed_at: now, accepted: 0, level: 0.0, filled_at: now }
    }

    /// Counts an answer to a publish that was sent at `sent_at`. Returns whether the lane becomes faster.
    pub(super) fn answered(&mut self, is_refused: bool, sent_at: Instant, now: Instant) -> bool {
        if sent_at < self.changed_at {
            return false;
        }
        self.share += WEIGHT * (f64::from(u8::from(is_refused)) - self.share);
        let since = now.saturating_duration_since(self.changed_at);
        match (is_refused, self.rate) {
            (true, _) if self.share <= SHARE_MAX => {}
            (true, None) => {
                let measured = f64::from(self.accepted) / since.max(RISE).as_secs_f64();
                self.set(Some(measured.max(FIRST_RATE_MIN)), now);
            }
            (true, Some(rate)) => self.set(Some((rate / 2.0).max(1.0 / PAUSE_MAX.as_secs_f64())), now),
            (false, rate) => {
                self.accepted = self.accepted.saturating_add(1);
                // Below one a second, the first acceptance tells that central is open again.
                let is_open = |rate: f64| rate < 1.0 || (self.share < SHARE_MAX && self.accepted >= RISE_ACCEPTED);
                if let Some(rate) = rate.filter(|rate| since >= RISE && is_open(*rate)) {
                    let rate = (rate * 2.0).max(1.0);
                    self.set((rate < RATE_MAX).then_some(rate), now);
                    return true;
                }
            }
        }
        false
    }

    fn set(&mut self, rate: Option<f64>, now: Instant) {
        let is_lower = rate.is_some_and(|rate| self.rate.is_none_or(|before| rate <= before));
        if is_lower {
            self.level = -PAUSE.as_secs_f64() * rate.unwrap_or_default();
            // What is refused at the lower rate counts from here.
            self.share = SHARE_MAX / 2.0;
        }
        (self.rate, self.changed_at, self.filled_at, self.accepted) = (rate, now, now, 0);
    }

    /// Time until the next publish may be sent; zero if one may be sent now.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let since = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.level = (self.level + since * rate).min((rate / 10.0).max(1.0));
        self.filled_at = now;
        if self.level >= 1.0 { Duration::ZERO } else { Duration::from_secs_f64((1.0 - self.level) / rate) }
    }

    /// Returns whether another publish may be sent after `sent` since the last [`Throttle::wait`].
    pub(super) fn allows(&self, sent: u64) -> bool {
        self.rate.is_none() || self.level - sent as f64 >= 1.0
    }

    pub(super) fn spend(&mut self, sent: u64) {
        if self.rate.is_some() {
            self.level -= sent as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A centre with a token bucket; returns how many publishes it accepted and refused in `seconds`.
    fn run(quota: f64, burst: f64, seconds: u64) -> (u32, u32) {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let (mut tokens, mut accepted, mut refused) = (burst, 0, 0);
        for step in 0..seconds * 1000 {
            let now = start + Duration::from_millis(step);
            tokens = (tokens + quota / 1000.0).min(burst);
            // At most five in a millisecond.
            let mut sent = 0;
            while sent < 5 && throttle.wait(now).is_zero() {
                throttle.spend(1);
                sent += 1;
                let is_refused = tokens < 1.0;
                tokens -= if is_refused { 0.0 } else { 1.0 };
                throttle.answered(is_refused, now, now);
                (accepted, refused) = if is_refused { (accepted, refused + 1) } else { (accepted + 1, refused) };
            }
        }
        (accepted, refused)
    }

    #[test]
    fn a_quota_is_found_and_used_with_few_refusals() {
        for (quota, burst) in [(1.0, 1.0), (10.0, 1.0), (100.0, 50.0), (100.0, 1.0), (1000.0, 10.0)] {
            let (accepted, refused) = run(quota, burst, 100);
            assert!(f64::from(accepted) >= quota * 50.0, "{quota}/s: {accepted} accepted, {refused} refused");
            assert!(f64::from(refused) <= f64::from(accepted) * 0.5 + 60.0, "{quota}/s: {accepted}, {refused} refused");
        }
    }

    #[test]
    fn refusals_now_and_then_slow_nothing_down_and_a_closed_centre_is_asked_seldom() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        for number in 0..10_000u64 {
            throttle.answered(number % 20 == 0, start, start);
        }
        assert!(throttle.wait(start).is_zero(), "one in twenty is refused");
        let (mut now, mut asked) = (start, Vec::new());
        for _ in 0..80 {
            now += throttle.wait(now);
            throttle.wait(now);
            throttle.spend(1);
            asked.push(now);
            throttle.answered(true, now, now);
        }
        assert!(asked[79].duration_since(asked[78]) >= PAUSE_MAX, "{:?}", asked[79].duration_since(asked[78]));
        let reopened = now;
        while throttle.rate.is_some() {
            now += throttle.wait(now);
            throttle.wait(now);
            throttle.spend(1);
            throttle.answered(false, now, now);
            assert!(now.duration_since(reopened) < Duration::from_secs(60), "rate {:?}", throttle.rate);
        }
    }
}
