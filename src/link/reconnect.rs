//! When to connect to a broker again: soon in the first minute of an outage, then with back-off.

use crate::backoff::{Backoff, Jitter, random_between};
use crate::clock;
use std::time::{Duration, Instant};

/// Range of the random wait between attempts in the first minute.
const EARLY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(750));
const EARLY_FOR: Duration = Duration::from_secs(60);
pub(super) const RECONNECT_MAX: Duration = Duration::from_secs(30);
const LATER: Backoff = Backoff::new(Duration::from_secs(1), RECONNECT_MAX, Jitter::From(EARLY.0));

/// The attempts to connect since a link was last good.
#[derive(Debug, Default)]
pub(super) struct Reconnect {
    down_since: Option<Instant>,
    attempts: u32,
}

impl Reconnect {
    /// Counts a failed attempt or a lost session, and returns the wait before the next attempt.
    pub(super) fn wait(&mut self) -> Duration {
        let now = clock::instant();
        let down_for = now.duration_since(*self.down_since.get_or_insert(now));
        let attempts = self.attempts;
        self.attempts = attempts.saturating_add(1);
        wait(down_for, attempts)
    }

    /// Records that the link was good: the next outage begins again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The wait doubles with each minute of the outage, but not faster than with each attempt.
fn wait(down_for: Duration, attempts: u32) -> Duration {
    if down_for < EARLY_FOR {
        return random_between(EARLY.0, EARLY.1);
    }
    let minutes = u32::try_from(down_for.as_secs() / EARLY_FOR.as_secs()).unwrap_or(u32::MAX);
    LATER.pause(minutes.min(attempts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_come_soon_at_first_and_never_rarer_than_twice_a_minute() {
        for attempt in 0..200 {
            let early = wait(Duration::from_secs(59), attempt);
            assert!((EARLY.0..=EARLY.1).contains(&early));
            assert!(wait(Duration::from_secs(86_400), attempt) <= RECONNECT_MAX);
        }
    }
}
