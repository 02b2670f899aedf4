//! The clock: the only place that asks what time it is, and that knows whether to believe the answer.
//!
//! Promise: [`instant`] never runs backwards; [`wall`] may, and nothing relies on it for order. [`for_certificates`]
//! is never before what is known to have passed.
//!
//! The time is a value, [`Clock`]. Every thread reads the system's clock unless a test has given it another one
//! ([`Clock::enter`]): so whole parts of the gateway run in a test's time without being handed a clock one by one.
//!
//! Not here: who judges the time of day, and tells central that it was wrong (`timekeeper`).

use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where a clock gets its time from, and what is known about it.
#[derive(Debug)]
struct State {
    source: Source,
    /// Whether the time of day can be believed.
    is_trusted: AtomicBool,
    /// Why not.
    doubt: Mutex<Option<String>>,
    /// The latest moment that is known to have passed before this start, in seconds since 1970.
    passed: AtomicU64,
    /// From when on the time of day is believed to stay as it is; `None` while nobody has judged it.
    steady_from: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Source {
    System,
    /// The time of the runtime, which a test may pause and advance.
    Runtime {
        origin: Instant,
        /// Time of day at `origin`, in microseconds since 1970.
        wall: AtomicI64,
    },
}

impl State {
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

static SYSTEM: State = State::new(Source::System);

thread_local! {
    /// The clock of this thread, where it is not the system's.
    static OWN: RefCell<Option<Clock>> = const { RefCell::new(None) };
}

/// A clock that follows the runtime's time, for tests that pause and advance it.
#[derive(Clone, Debug)]
pub struct Clock(Arc<State>);

/// Gives the thread the system's clock back when it is dropped.
#[derive(Debug)]
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        OWN.with_borrow_mut(Option::take);
    }
}

impl Clock {
    /// A clock whose time of day is `wall` now. Within a runtime.
    pub fn of_runtime(wall: SystemTime) -> Self {
        let source = Source::Runtime { origin: runtime_now(), wall: AtomicI64::new(micros(wall)) };
        Self(Arc::new(State::new(source)))
    }

    /// Makes it the clock of this thread until the returned value is dropped.
    pub fn enter(&self) -> Entered {
        OWN.set(Some(self.clone()));
        Entered(())
    }

    /// Sets the time of day, as an operator or a time server does; durations are unaffected.
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

/// Asks the clock of this thread.
fn ask<T>(question: impl FnOnce(&State) -> T) -> T {
    OWN.with_borrow(|own| question(own.as_ref().map_or(&SYSTEM, |clock| &clock.0)))
}

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
    ask(|clock| clock.is_trusted.load(Ordering::Relaxed))
}

/// Why the time of day cannot be believed; `None` while it can.
pub fn doubt() -> Option<String> {
    ask(|clock| clock.doubt.lock().clone())
}

/// Says that the time of day can be believed.
pub fn trust() {
    set_doubt(None);
}

/// Says that the time of day cannot be believed, and why.
pub fn distrust(why: String) {
    set_doubt(Some(why));
}

fn set_doubt(why: Option<String>) {
    ask(|clock| {
        let is_trusted = why.is_none();
        *clock.doubt.lock() = why;
        clock.is_trusted.store(is_trusted, Ordering::Relaxed);
    });
}

/// Says which moment has passed for certain.
pub fn set_passed(moment: SystemTime) {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ask(|clock| clock.passed.store(seconds, Ordering::Relaxed));
}

/// Says from when on the time of day is believed to stay as it is; until then it may be set once more.
pub fn set_steady_from(from: Instant) {
    ask(|clock| *clock.steady_from.lock() = Some(from));
}

fn steady_from() -> Option<Instant> {
    ask(|clock| *clock.steady_from.lock())
}

/// The time of day, where what hangs on the age of things may rely on it.
pub fn steady() -> Option<SystemTime> {
    let from = steady_from()?;
    (is_trusted() && instant() >= from).then(wall)
}

/// How long ago `moment` was, at least: what was written down under a clock that cannot have been right counts
/// from when the clock was believed, and nothing has an age while it is not.
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

/// The time that certificates are judged at: the time of day, unless it is before the program was built. Then
/// it is certainly wrong, and the latest moment that is known to have passed stands for it.
pub fn for_certificates() -> SystemTime {
    not_before_known(
        wall(),
        built(),
        UNIX_EPOCH + Duration::from_secs(ask(|clock| clock.passed.load(Ordering::Relaxed))),
    )
}

fn not_before_known(wall: SystemTime, built: SystemTime, passed: SystemTime) -> SystemTime {
    // A time of day that can be right is not overruled by what the journal says: its clock may have been ahead.
    if wall >= built { wall } else { built.max(passed) }
}

/// Time of day, as the operating system believes it to be.
pub fn wall() -> SystemTime {
    ask(|clock| match &clock.source {
        Source::System => SystemTime::now(),
        Source::Runtime { origin, wall } => {
            let base = Duration::from_micros(u64::try_from(wall.load(Ordering::Relaxed)).unwrap_or(0));
            UNIX_EPOCH + base + runtime_now().duration_since(*origin)
        }
    })
}

/// Microseconds on the clock that the service manager compares with its own.
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() as u64 / 1000
}

/// A moment to measure durations from; unaffected by changes of the time of day.
pub fn instant() -> Instant {
    ask(|clock| match &clock.source {
        Source::System => Instant::now(),
        Source::Runtime { .. } => runtime_now(),
    })
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
        // 1970: the later of build and journal.
        assert_eq!(not_before_known(at(1000), at(50_000), at(70_000)), at(70_000));
        assert_eq!(not_before_known(at(1000), at(50_000), at(0)), at(50_000));
        // A time that can be right stays, also where the journal was once ahead.
        assert_eq!(not_before_known(at(60_000), at(50_000), at(70_000)), at(60_000));
    }
}
