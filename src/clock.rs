//! The clock: the only place that asks what time it is.
//!
//! Promise: [`instant`] never runs backwards; [`wall`] may, and nothing relies on it for order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

/// Whether the time of day can be believed.
static IS_TRUSTED: AtomicBool = AtomicBool::new(true);

/// Whether the time of day can be believed, as far as the gateway has found out.
pub fn is_trusted() -> bool {
    IS_TRUSTED.load(Ordering::Relaxed)
}

/// Says whether the time of day can be believed.
pub fn set_trusted(is_trusted: bool) {
    IS_TRUSTED.store(is_trusted, Ordering::Relaxed);
}

/// Time of day, as the operating system believes it to be.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Microseconds on the clock that the service manager compares with its own.
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() as u64 / 1000
}

/// A moment to measure durations from; unaffected by changes of the time of day.
pub fn instant() -> Instant {
    Instant::now()
}
