//! The clock: the only place that asks what time it is.
//!
//! Promise: [`instant`] never runs backwards; [`wall`] may, and nothing relies on it for order.

use std::time::{Instant, SystemTime};

/// Time of day, as the operating system believes it to be.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// A moment to measure durations from; unaffected by changes of the time of day.
pub fn instant() -> Instant {
    Instant::now()
}
