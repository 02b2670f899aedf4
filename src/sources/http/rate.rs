//! How many events a second each caller may hand in.
//!
//! Invariant: never more callers are remembered than [`CALLERS_MAX`]; over it the debts of all are
//! forgiven, which is safe, since everything else here is bounded too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Callers that are remembered: more than a plant has.
const CALLERS_MAX: usize = 4096;
/// What a caller may be ahead of its rate.
const BURST: Duration = Duration::from_secs(1);

/// The rates of all callers: for each, when everything so far would have been through at its rate
/// (the generic cell rate algorithm).
#[derive(Debug)]
pub(super) struct Rates {
    per_second: u32,
    paid_until: Mutex<HashMap<String, Instant>>,
}

impl Rates {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second, paid_until: Mutex::default() }
    }

    /// Whether a caller may hand in now; the error is how long it has to wait.
    pub(super) fn check(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        let callers = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = callers.get(caller).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if ahead > BURST { Err(ahead - BURST) } else { Ok(()) }
    }

    /// Charges a caller for events. A batch is charged as a whole, so that it can be larger than a
    /// burst; the next request then waits the longer.
    pub(super) fn charge(&self, caller: &str, events: usize, now: Instant) {
        let cost = Duration::from_secs_f64(events as f64 / f64::from(self.per_second.max(1)));
        let mut callers = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        if !callers.contains_key(caller) && callers.len() >= CALLERS_MAX {
            callers.retain(|_, until| *until > now);
            if callers.len() >= CALLERS_MAX {
                callers.clear();
            }
        }
        match callers.get_mut(caller) {
            Some(until) => *until = (*until).max(now) + cost,
            None => {
                callers.insert(caller.to_owned(), now + cost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_too_fast_waits_and_nobody_else_does() {
        let rates = Rates::new(10);
        let start = Instant::now();
        let mut passed = 0;
        while rates.check("a", start).is_ok() {
            rates.charge("a", 1, start);
            passed += 1;
        }
        assert_eq!(passed, 11, "a second's worth, and the one that fills it");
        assert!(rates.check("b", start).is_ok());
        assert_eq!(rates.check("a", start).map_err(|wait| wait.as_millis()), Err(100));
        assert!(rates.check("a", start + Duration::from_millis(100)).is_ok());
        rates.charge("b", 30, start);
        assert_eq!(rates.check("b", start).map_err(|wait| wait.as_secs()), Err(2), "a batch is charged as a whole");
    }

    #[test]
    fn callers_without_end_take_no_memory_without_end() {
        let rates = Rates::new(1);
        let now = Instant::now();
        for caller in 0..3 * CALLERS_MAX {
            rates.charge(&caller.to_string(), 5, now);
        }
        assert!(rates.paid_until.lock().expect("lock").len() <= CALLERS_MAX);
    }
}
