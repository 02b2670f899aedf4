//! The clock: the only place that asks what time it is, and that knows whether to believe the answer.
//!
//! Promise: [`instant`] never runs backwards; [`wall`] may, and nothing relies on it for order. [`for_certificates`]
//! is never before what is known to have passed.
//!
//! Not here: who judges the time of day, and tells central that it was wrong (`timekeeper`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Whether the time of day can be believed.
static IS_TRUSTED: AtomicBool = AtomicBool::new(true);
/// Why not.
static DOUBT: Mutex<Option<String>> = Mutex::new(None);
/// The latest moment that is known to have passed before this start, in seconds since 1970.
static PASSED: AtomicU64 = AtomicU64::new(0);
/// From when on the time of day is believed to stay as it is; `None` while nobody has judged it.
static STEADY_FROM: Mutex<Option<Instant>> = Mutex::new(None);

/// When the program was built, in seconds since 1970: it cannot be earlier. Packages set it by `SOURCE_DATE_EPOCH`;
/// otherwise it is the day after which the code was written.
const BUILT: u64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => number(text),
    None => 1_767_225_600, // 2026-01-01
};

const fn number(text: &str) -> u64 {
    match u64::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("SOURCE_DATE_EPOCH is no number of seconds"),
    }
}

/// When the program was built.
pub fn built() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(BUILT)
}

/// Whether the time of day can be believed, as far as the gateway has found out.
pub fn is_trusted() -> bool {
    IS_TRUSTED.load(Ordering::Relaxed)
}

/// Why the time of day cannot be believed; `None` while it can.
pub fn doubt() -> Option<String> {
    DOUBT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Says that the time of day can be believed.
pub fn trust() {
    *DOUBT.lock().unwrap_or_else(PoisonError::into_inner) = None;
    IS_TRUSTED.store(true, Ordering::Relaxed);
}

/// Says that the time of day cannot be believed, and why.
pub fn distrust(why: String) {
    *DOUBT.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    IS_TRUSTED.store(false, Ordering::Relaxed);
}

/// Says which moment has passed for certain.
pub fn set_passed(moment: SystemTime) {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    PASSED.store(seconds, Ordering::Relaxed);
}

/// Says from when on the time of day is believed to stay as it is; until then it may be set once more.
pub fn set_steady_from(from: Instant) {
    *STEADY_FROM.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
}

/// The time of day, where what hangs on the age of things may rely on it.
pub fn steady() -> Option<SystemTime> {
    let from = (*STEADY_FROM.lock().unwrap_or_else(PoisonError::into_inner))?;
    (is_trusted() && instant() >= from).then(wall)
}

/// How long ago `moment` was, at least: what was written down under a clock that cannot have been right counts
/// from when the clock was believed, and nothing has an age while it is not.
pub fn age(moment: SystemTime) -> Duration {
    if !is_trusted() {
        return Duration::ZERO;
    }
    let by_wall = wall().duration_since(moment).unwrap_or_default();
    match *STEADY_FROM.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(from) if moment < built() => instant().saturating_duration_since(from).min(by_wall),
        _ => by_wall,
    }
}

/// The time that certificates are judged at: the time of day, unless it is before the program was built. Then
/// it is certainly wrong, and the latest moment that is known to have passed stands for it.
pub fn for_certificates() -> SystemTime {
    not_before_known(wall(), built(), UNIX_EPOCH + Duration::from_secs(PASSED.load(Ordering::Relaxed)))
}

fn not_before_known(wall: SystemTime, built: SystemTime, passed: SystemTime) -> SystemTime {
    // A time of day that can be right is not overruled by what the journal says: its clock may have been ahead.
    if wall >= built { wall } else { built.max(passed) }
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

/// How long the machine has been up, its sleep included; goes on over a restart of the program.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// What tells one start of the machine from another; empty where the system does not say it.
pub fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_never_judged_before_what_has_passed() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        // 1970: the later of build and journal.
        assert_eq!(not_before_known(at(1000), at(50_000), at(70_000)), at(70_000));
        assert_eq!(not_before_known(at(1000), at(50_000), at(0)), at(50_000));
        // A time that can be right stays, also where the journal was once ahead.
        assert_eq!(not_before_known(at(60_000), at(50_000), at(70_000)), at(60_000));
    }
}
