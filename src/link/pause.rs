//! How long to wait before a broker is tried again.

use std::time::Duration;

/// Reconnects in the first minute are this far apart, at random.
pub const RECONNECT_EARLY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(750));
const RECONNECT_EARLY_FOR: Duration = Duration::from_secs(60);
/// No reconnect waits longer.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// 250 to 750 ms in the first minute; then doubling to 30 s, with full jitter.
pub fn reconnect_wait(down_for: Duration, attempt: u32) -> Duration {
    if down_for < RECONNECT_EARLY_FOR {
        return jitter(RECONNECT_EARLY.0, RECONNECT_EARLY.1);
    }
    let doublings = (down_for.as_secs() / RECONNECT_EARLY_FOR.as_secs()).min(u64::from(attempt)).min(6);
    jitter(RECONNECT_EARLY.0, (Duration::from_secs(1) * 2u32.pow(doublings as u32)).min(RECONNECT_MAX))
}

/// A random time between two.
pub fn jitter(from: Duration, to: Duration) -> Duration {
    // UUIDv4 is random in all of these bits.
    let random = (uuid::Uuid::new_v4().as_u128() >> 96) as u32;
    from + to.saturating_sub(from).mul_f64(f64::from(random) / f64::from(u32::MAX))
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
