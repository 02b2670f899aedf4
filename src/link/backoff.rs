//! Back-off before reconnecting to a broker.

use std::time::Duration;

/// Range of the random wait between reconnects in the first minute.
pub const RECONNECT_EARLY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(750));
const RECONNECT_EARLY_FOR: Duration = Duration::from_secs(60);
/// Longest wait between reconnects.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// Returns the wait before the next reconnect: 250 to 750 ms in the first minute, then doubled up to 30 s, with full
/// jitter.
pub fn reconnect_wait(down_for: Duration, attempt: u32) -> Duration {
    if down_for < RECONNECT_EARLY_FOR {
        return jitter(RECONNECT_EARLY.0, RECONNECT_EARLY.1);
    }
    let doublings = (down_for.as_secs() / RECONNECT_EARLY_FOR.as_secs()).min(u64::from(attempt)).min(6);
    jitter(RECONNECT_EARLY.0, (Duration::from_secs(1) * 2u32.pow(doublings as u32)).min(RECONNECT_MAX))
}

/// Returns a random duration between `from` and `to`.
pub fn jitter(from: Duration, to: Duration) -> Duration {
    let random = random();
    from + to.saturating_sub(from).mul_f64(f64::from(random) / f64::from(u32::MAX))
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
    fn reconnects_come_soon_at_first_and_never_rarer_than_twice_a_minute() {
        for attempt in 0..200 {
            let early = reconnect_wait(Duration::from_secs(59), attempt);
            assert!((RECONNECT_EARLY.0..=RECONNECT_EARLY.1).contains(&early));
            assert!(reconnect_wait(Duration::from_secs(86_400), attempt) <= RECONNECT_MAX);
        }
    }
}
