//! The clock: the only module that reads the time, and that knows whether the time of day is trusted.
//!
//! Promise: [`instant`] never runs backwards; [`wall`] may, and nothing derives an order from it. [`for_certificates`]
//! is never before a moment that is known to have passed.
//!
//! The time is a value, [`Clock`]. Every thread reads the system's clock unless a test has set another one
//! ([`Clock::enter`]), so large parts of the gateway run in a test's time without passing a clock around.
//!
//! Not here: judging the time of day, and reporting corrections to central (`timekeeper`).

#![expect(clippy::disallowed_methods, reason = "the one module that asks the time")]

use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time source of a clock, and the judgement of it.
#[derive(Debug)]
struct ClockState {
    source: Source,
    /// Whether the time of day is trusted.
    is_trusted: AtomicBool,
    /// Reason why it is not.
    doubt: Mutex<Option<String>>,
    /// Latest moment known to have passed before this start, in seconds since 1970.
    passed: AtomicU64,
    /// Moment from which the time of day counts as stable; `None` before the first judgement.
    steady_from: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Source {
    System,
    /// Time of the tokio runtime, which a test may pause and advance.
    Runtime {
        origin: Instant,
        /// Time of day at `origin`, in microseconds since 1970.
        wall: AtomicI64,
    },
}

impl ClockState {
    const fn new(source: Source) -> Self {
        Self {
            source,
            is_trusted: AtomicBool::new(true),
            doubt: Mutex::new(None),
            passed: AtomicU64::new(0),
            steady_from: Mutex::new(None),
        }
    }
}

static SYSTEM: ClockState = ClockState::new(Source::System);

thread_local! {
    /// Clock of this thread, if it is not the system's.
    static OVERRIDE: RefCell<Option<Clock>> = const { RefCell::new(None) };
}

/// A clock that follows the time of the tokio runtime, for tests that pause and advance it.
#[derive(Clone, Debug)]
pub struct Clock(Arc<ClockState>);

/// Restores the system's clock of the thread when dropped.
#[derive(Debug)]
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        OVERRIDE.with_borrow_mut(Option::take);
    }
}

impl Clock {
    /// Creates a clock whose time of day is `wall` now. Must be called within a runtime.
    pub fn of_runtime(wall: SystemTime) -> Self {
        let source = Source::Runtime { origin: runtime_now(), wall: AtomicI64::new(micros(wall)) };
        Self(Arc::new(ClockState::new(source)))
    }

    /// Sets this clock for the thread until the returned value is dropped.
    pub fn enter(&self) -> Entered {
        OVERRIDE.set(Some(self.clone()));
        Entered(())
    }

    /// Sets the time of day, as an operator or a time server does. Durations are unaffected.
    pub fn set_wall(&self, to: SystemTime) {
        if let Source::Runtime { origin, wall } = &self.0.source {
            let elapsed = runtime_now().duration_since(*origin).as_micros() as i64;
            wall.store(micros(to) - elapsed, Ordering::Relaxed);
        }
    }
}

fn runtime_now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn micros(moment: SystemTime) -> i64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// Calls `f` with the clock of this thread.
fn with_clock<T>(f: impl FnOnce(&ClockState) -> T) -> T {
    OVERRIDE.with_borrow(|own| f(own.as_ref().map_or(&SYSTEM, |clock| &clock.0)))
}

/// Time of the build, in seconds since 1970: the current time cannot be earlier. Packages set it by
/// `SOURCE_DATE_EPOCH`; otherwise it is the day after which the code was written.
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

pub fn built() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(BUILT)
}

/// Whether the gateway trusts the time of day.
pub fn is_trusted() -> bool {
    with_clock(|clock| clock.is_trusted.load(Ordering::Relaxed))
}

/// Reason why the time of day is not trusted; `None` while it is.
pub fn doubt() -> Option<String> {
    with_clock(|clock| clock.doubt.lock().clone())
}

/// Marks the time of day as trusted.
pub fn trust() {
    set_doubt(None);
}

/// Marks the time of day as not trusted, with the reason.
pub fn distrust(why: String) {
    set_doubt(Some(why));
}

fn set_doubt(why: Option<String>) {
    with_clock(|clock| {
        let is_trusted = why.is_none();
        *clock.doubt.lock() = why;
        clock.is_trusted.store(is_trusted, Ordering::Relaxed);
    });
}

/// Sets the moment that is known to have passed.
pub fn set_passed(moment: SystemTime) {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    with_clock(|clock| clock.passed.store(seconds, Ordering::Relaxed));
}

/// Sets the moment from which the time of day counts as stable; until then it may be set once more.
pub fn set_steady_from(from: Instant) {
    with_clock(|clock| *clock.steady_from.lock() = Some(from));
}

fn steady_from() -> Option<Instant> {
    with_clock(|clock| *clock.steady_from.lock())
}

/// Returns the wall clock, or `None` while it is untrusted or may still be set. For decisions by age.
pub fn steady() -> Option<SystemTime> {
    let from = steady_from()?;
    (is_trusted() && instant() >= from).then(wall)
}

/// Returns the minimum age of `moment`. A moment before the build was recorded under a wrong clock: its age counts from
/// when the clock became stable. While the clock is not trusted, every age is zero.
pub fn age(moment: SystemTime) -> Duration {
    if !is_trusted() {
        return Duration::ZERO;
    }
    let by_wall = wall().duration_since(moment).unwrap_or_default();
    match steady_from() {
        Some(from) if moment < built() => instant().saturating_duration_since(from).min(by_wall),
        _ => by_wall,
    }
}

/// Returns the time for certificate validation: the time of day, unless it is before the build. Then it is certainly
/// wrong, and the latest moment known to have passed replaces it.
pub fn for_certificates() -> SystemTime {
    not_before_known(
        wall(),
        built(),
        UNIX_EPOCH + Duration::from_secs(with_clock(|clock| clock.passed.load(Ordering::Relaxed))),
    )
}

fn not_before_known(wall: SystemTime, built: SystemTime, passed: SystemTime) -> SystemTime {
    // The journal does not overrule a plausible time of day: its clock may have been ahead.
    if wall >= built { wall } else { built.max(passed) }
}

/// Time of day of the operating system.
pub fn wall() -> SystemTime {
    with_clock(|clock| match &clock.source {
        Source::System => SystemTime::now(),
        Source::Runtime { origin, wall } => {
            let base = Duration::from_micros(u64::try_from(wall.load(Ordering::Relaxed)).unwrap_or(0));
            UNIX_EPOCH + base + runtime_now().duration_since(*origin)
        }
    })
}

/// Monotonic time in microseconds, on the clock that the service manager uses.
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() as u64 / 1000
}

/// A moment to measure durations from; unaffected by changes of the time of day.
pub fn instant() -> Instant {
    with_clock(|clock| match &clock.source {
        Source::System => Instant::now(),
        Source::Runtime { .. } => runtime_now(),
    })
}

/// Time since boot, including sleep; continues over a restart of the program.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Id of the current boot; empty if the system provides none.
pub fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thread_with_a_clock_of_its_own_lives_in_that_time() {
        let day = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let minute = Duration::from_secs(60);
        let clock = Clock::of_runtime(day);
        {
            let _entered = clock.enter();
            let start = instant();
            tokio::time::advance(minute).await;
            assert_eq!((instant(), wall()), (start + minute, day + minute));
            clock.set_wall(day);
            distrust("a test".into());
            assert_eq!((instant(), wall(), is_trusted()), (start + minute, day, false));
            std::thread::spawn(|| assert!(is_trusted() && wall() != UNIX_EPOCH)).join().expect("the system's clock");
        }
        assert!(is_trusted(), "doubt of another clock is none of this one");
    }

    #[test]
    fn certificates_are_never_judged_before_what_has_passed() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        // 1970: the later of build time and journal time.
        assert_eq!(not_before_known(at(1000), at(50_000), at(70_000)), at(70_000));
        assert_eq!(not_before_known(at(1000), at(50_000), at(0)), at(50_000));
        // A plausible time stays, even if the journal was once ahead.
        assert_eq!(not_before_known(at(60_000), at(50_000), at(70_000)), at(60_000));
    }
}
