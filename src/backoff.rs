//! Back-off: a pause that doubles with each failure in a row, up to a longest one.
//!
//! Invariant: the randomness of all pauses is drawn here, so that a simulation can seed it.

use std::time::Duration;

/// The pauses of one place, and the number of its failures in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    jitter: Jitter,
    failures: u32,
}

/// How a pause is randomised, so that peers which failed together do not come back together.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Jitter {
    None,
    /// Between the pause and twice the pause.
    UpToDouble,
    /// Between half the pause and the pause.
    DownToHalf,
    /// Between this duration and the pause.
    From(Duration),
}

/// Every longest pause is reached before: 2^16 times the first one.
const DOUBLINGS_MAX: u32 = 16;

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration, jitter: Jitter) -> Self {
        Self { first, longest, jitter, failures: 0 }
    }

    /// Counts a failure and returns the pause after it.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Starts again with the first pause.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the pause after `earlier` failures and one more, for a place that counts its failures itself.
    pub(crate) fn pause(&self, earlier: u32) -> Duration {
        let pause = self.first.saturating_mul(1 << earlier.min(DOUBLINGS_MAX)).min(self.longest);
        match self.jitter {
            Jitter::None => pause,
            Jitter::UpToDouble => random_between(pause, pause * 2),
            Jitter::DownToHalf => random_between(pause / 2, pause),
            Jitter::From(least) => random_between(least, pause),
        }
    }
}

/// Returns a random duration between `from` and `to`.
pub(crate) fn random_between(from: Duration, to: Duration) -> Duration {
    from + to.saturating_sub(from).mul_f64(f64::from(random()) / f64::from(u32::MAX))
}

fn random() -> u32 {
    #[cfg(test)]
    if let Some(random) = seeded::next() {
        return random;
    }
    // UUIDv4 is random in all of these bits.
    (uuid::Uuid::new_v4().as_u128() >> 96) as u32
}

/// Seeded random numbers per thread, which make a simulation repeatable.
#[cfg(test)]
pub(crate) mod seeded {
    use std::cell::Cell;

    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }

    /// Seeds the random numbers of this thread; `seed` is not 0.
    pub(crate) fn begin(seed: u64) {
        STATE.set(seed);
    }

    pub(super) fn next() -> Option<u32> {
        let mut state = STATE.get();
        if state == 0 {
            return None;
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        STATE.set(state);
        Some((state >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again_after_a_success() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 5, Jitter::None);
        let pauses: Vec<u64> = (0..5).map(|_| backoff.next().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.next(), second);
        assert_eq!(backoff.pause(u32::MAX), second * 5);
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(30));
        for earlier in 0..200 {
            let pause = Backoff::new(first, longest, Jitter::None).pause(earlier);
            let bounds = |jitter, from, to| {
                let random = Backoff::new(first, longest, jitter).pause(earlier);
                assert!((from..=to).contains(&random), "{jitter:?}: {random:?}");
            };
            bounds(Jitter::UpToDouble, pause, pause * 2);
            bounds(Jitter::DownToHalf, pause / 2, pause);
            bounds(Jitter::From(first / 4), first / 4, pause);
        }
    }
}
