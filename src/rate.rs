//! Rate limits for many callers, each with a rate per second and a burst.
//!
//! Invariant: the table of callers has a maximum size. When it is full, the caller whose debt ends first is removed, so
//! many new callers cannot erase the debt of one that is far ahead.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Maximum number of callers in the table, more than a plant has. About 100 bytes each.
pub(crate) const CALLERS_MAX: usize = 4096;

/// For each caller, the time at which all its units would have passed at its rate (generic cell rate algorithm).
#[derive(Debug)]
pub(crate) struct Rates<K> {
    /// Time that one unit takes at the rate.
    unit: Duration,
    /// Maximum time by which a caller may be ahead of its rate.
    burst: Duration,
    paid_until: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash + Clone> Rates<K> {
    /// Allows `per_second` units per second, with a burst of `burst`.
    pub(crate) fn new(per_second: f64, burst: Duration) -> Self {
        Self { unit: Duration::from_secs_f64(1.0 / per_second.max(1e-9)), burst, paid_until: Mutex::default() }
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        self.paid_until.lock()
    }

    /// Checks whether a caller may have another unit now; the error is the time to wait.
    pub(crate) fn check(&self, caller: &K, now: Instant) -> Result<(), Duration> {
        let ahead = self.callers().get(caller).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if ahead > self.burst { Err(ahead - self.burst) } else { Ok(()) }
    }

    /// Whether a caller has no debt.
    pub(crate) fn is_clear(&self, caller: &K, now: Instant) -> bool {
        self.callers().get(caller).is_none_or(|until| *until <= now)
    }

    /// Charges a caller. A batch is charged as a whole and may exceed the burst; the next unit then waits longer.
    pub(crate) fn charge(&self, caller: &K, units: u64, now: Instant) {
        let cost = Duration::from_secs_f64((self.unit.as_secs_f64() * units as f64).min(COST_MAX.as_secs_f64()));
        let mut callers = self.callers();
        if let Some(until) = callers.get_mut(caller) {
            *until = (*until).max(now) + cost;
            return;
        }
        if callers.len() >= CALLERS_MAX {
            callers.retain(|_, until| *until > now);
        }
        if callers.len() >= CALLERS_MAX {
            let first = callers.iter().min_by_key(|(_, until)| **until).map(|(caller, _)| caller.clone());
            if let Some(first) = first {
                callers.remove(&first);
            }
        }
        callers.insert(caller.clone(), now + cost);
    }
}

/// Maximum cost of a single charge, so times stay in the range of the clock.
const COST_MAX: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_too_fast_waits_and_nobody_else_does() {
        let rates = Rates::new(10.0, Duration::from_secs(1));
        let start = Instant::now();
        let mut passed = 0;
        while rates.check(&"a", start).is_ok() {
            rates.charge(&"a", 1, start);
            passed += 1;
        }
        assert_eq!(passed, 11, "a second's worth, and the one that fills it");
        assert!(rates.check(&"b", start).is_ok() && rates.is_clear(&"b", start));
        assert_eq!(rates.check(&"a", start).map_err(|wait| wait.as_millis()), Err(100));
        assert!(rates.check(&"a", start + Duration::from_millis(100)).is_ok());
        rates.charge(&"b", 30, start);
        assert_eq!(rates.check(&"b", start).map_err(|wait| wait.as_secs()), Err(2), "a batch is charged as a whole");
    }

    #[test]
    fn callers_without_end_take_no_memory_without_end_and_forgive_no_debt() {
        let rates = Rates::new(1.0, Duration::from_secs(1));
        let now = Instant::now();
        rates.charge(&usize::MAX, 1000, now);
        for caller in 0..2 * CALLERS_MAX {
            rates.charge(&caller, 5, now);
        }
        assert!(rates.callers().len() <= CALLERS_MAX);
        assert!(rates.check(&usize::MAX, now).is_err(), "the debt of a caller far ahead is kept");
    }
}
