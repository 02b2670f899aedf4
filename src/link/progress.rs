//! Liveness of a session: when to send a PINGREQ, and when the connection counts as dead.
//!
//! Promise: a connection whose bytes move is never dead, however slow the line is; one whose bytes do not move is left in
//! a bounded time.
//! Progress is any packet of the broker, or bytes that the socket takes after it took none: then TCP has received an
//! acknowledgement. Bytes that an empty buffer takes prove nothing.
//!
//! Not here: the estimate of the line (`line`).

use super::error::LinkError;
use std::time::{Duration, Instant};

/// With publishes in flight, the gateway sends a PINGREQ after this time without incoming bytes, unless the line needs
/// longer for what is in flight.
const PING_AFTER: Duration = Duration::from_secs(2);
/// Least time without progress after which the connection is dead. TCP itself recovers from shorter interruptions.
const STILL_MAX: Duration = Duration::from_secs(15);
/// The same, in round trips.
const STILL_ROUND_TRIPS: u32 = 8;
/// The connection may be still, and an acknowledgement may take, this many times as long as the line needs for the
/// bytes in flight.
const CARRY_TIMES: u32 = 4;
/// The same up to [`RESEND_MAX`]. TCP doubles its timeout with each loss, and the bytes in flight delay the first one: after
/// three losses of one segment it resends 7 times that delay later.
const RESEND_TIMES: u32 = 8;
const RESEND_MAX: Duration = Duration::from_secs(60);

/// Times that the line needs for the bytes that are written and not acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    pub time: Duration,
    pub round_trip: Duration,
}

/// The next step of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Check again after this time.
    Wait(Duration),
    /// Send a PINGREQ, and check again after this time.
    Ping(Duration),
}

/// The progress of one session.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) keep_alive: Duration,
    answer_wait_max: Duration,
    received_at: Instant,
    sent_at: Instant,
    acknowledged_at: Instant,
    /// Time at which the socket last took bytes after it had taken none.
    moved_at: Instant,
    /// The socket takes no bytes.
    is_blocked: bool,
    /// Since when something of the broker is expected: an acknowledgement or a PINGRESP.
    expecting_since: Option<Instant>,
    /// Time of the unanswered PINGREQ.
    pinged_at: Option<Instant>,
    /// There were publishes in flight at the last check.
    had_in_flight: bool,
}

impl Progress {
    pub(super) fn new(keep_alive: Duration, answer_wait_max: Duration, now: Instant) -> Self {
        Self {
            keep_alive,
            answer_wait_max,
            received_at: now,
            sent_at: now,
            acknowledged_at: now,
            moved_at: now,
            is_blocked: false,
            expecting_since: None,
            pinged_at: None,
            had_in_flight: false,
        }
    }

    pub(super) fn received(&mut self, now: Instant) {
        self.received_at = now;
        self.pinged_at = None;
    }

    pub(super) fn acknowledged(&mut self, now: Instant) {
        self.acknowledged_at = now;
    }

    /// Records that everything is written.
    pub(super) fn sent(&mut self, now: Instant) {
        self.sent_at = now;
    }

    /// Records that the socket takes no more bytes.
    pub(super) fn blocked(&mut self) {
        self.is_blocked = true;
    }

    /// Records that the socket has taken bytes.
    pub(super) fn took(&mut self, now: impl FnOnce() -> Instant) {
        if std::mem::take(&mut self.is_blocked) {
            self.moved_at = now();
        }
    }

    /// Records that the gateway holds back the rest of what has to be answered.
    pub(super) fn held_back(&mut self, now: Instant) {
        (self.moved_at, self.acknowledged_at) = (now, now);
    }

    pub(super) fn pinged(&mut self, now: Instant) {
        self.pinged_at = Some(now);
        self.sent_at = now;
    }

    pub(super) fn is_ping_pending(&self) -> bool {
        self.pinged_at.is_some()
    }

    /// Decides whether the connection is alive. An error means that it is dead.
    pub(super) fn check(&mut self, has_in_flight: bool, carried: Carried, now: Instant) -> Result<Step, LinkError> {
        // The first publish in flight has the whole time, however long ago the last answer came.
        if !has_in_flight || !self.had_in_flight {
            self.acknowledged_at = now;
        }
        self.had_in_flight = has_in_flight;
        let answer_max = self.answer_wait_max.max(carried.time * CARRY_TIMES);
        let unacknowledged = now.duration_since(self.acknowledged_at);
        if unacknowledged >= answer_max {
            return Err(LinkError::Stuck(unacknowledged));
        }
        let silent = now.duration_since(self.received_at);
        let still_max = still_max(carried);
        let mut left = answer_max - unacknowledged;
        if has_in_flight || self.pinged_at.is_some() {
            let expecting = *self.expecting_since.get_or_insert(now);
            let still = now.duration_since(self.received_at.max(self.moved_at).max(expecting));
            if still >= still_max {
                return Err(LinkError::Silent(silent));
            }
            left = left.min(still_max - still);
        } else {
            self.expecting_since = None;
            left = Duration::MAX;
        }
        if self.pinged_at.is_some() {
            return Ok(Step::Wait(left));
        }
        // The answer to the PINGREQ proves that the broker lives, in time before the connection counts as dead.
        let busy = PING_AFTER.max(carried.round_trip * 4).max(carried.time * 2).min(still_max / 2);
        let ping_after = if has_in_flight { busy.min(self.keep_alive) } else { self.keep_alive };
        // The broker expects a packet within the keep-alive, regardless of what it sends itself.
        let unsent = now.duration_since(self.sent_at);
        if silent >= ping_after || unsent >= self.keep_alive {
            self.pinged(now);
            self.expecting_since.get_or_insert(now);
            return Ok(Step::Ping(left.min(still_max)));
        }
        Ok(Step::Wait(left.min(ping_after - silent).min(self.keep_alive - unsent)))
    }

    /// The same while nothing is read, which is no silence of the broker.
    pub(super) fn check_unread(&mut self, has_output: bool, now: Instant) -> Step {
        self.received_at = now;
        self.acknowledged_at = now;
        self.pinged_at = None;
        self.expecting_since = None;
        let unsent = now.duration_since(self.sent_at);
        if unsent < self.keep_alive {
            return Step::Wait(self.keep_alive - unsent);
        }
        if has_output {
            return Step::Wait(self.keep_alive);
        }
        self.sent_at = now;
        Step::Ping(self.keep_alive)
    }
}

/// Longest time without progress.
fn still_max(carried: Carried) -> Duration {
    let resends = RESEND_MAX.min(carried.time * RESEND_TIMES);
    STILL_MAX.max(carried.round_trip * STILL_ROUND_TRIPS).max(carried.time * CARRY_TIMES).max(resends)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A session that is checked as often as it wants, with a clock of its own.
    struct Simulated {
        progress: Progress,
        start: Instant,
        now: Instant,
        pings: usize,
    }

    impl Simulated {
        fn new() -> Self {
            let now = Instant::now();
            Self { progress: Progress::new(30 * SECOND, 60 * SECOND, now), start: now, now, pings: 0 }
        }

        fn elapsed(&self) -> Duration {
            self.now.duration_since(self.start)
        }

        /// Checks until `until` after the start; `at` happens at its time. Returns the error that ends the session.
        fn run(&mut self, until: Duration, has_in_flight: bool, carried: Carried) -> Result<(), LinkError> {
            while self.elapsed() < until {
                let wait = match self.progress.check(has_in_flight, carried, self.now)? {
                    Step::Wait(wait) => wait,
                    Step::Ping(wait) => {
                        self.pings += 1;
                        wait
                    }
                };
                assert!(!wait.is_zero(), "a check that wants another one at once");
                self.now = (self.now + wait).min(self.start + until);
            }
            Ok(())
        }
    }

    /// `kilobytes` at `rate` bytes per second.
    fn carried(kilobytes: u32, rate: u32, round_trip_ms: u64) -> Carried {
        let time = Duration::from_secs_f64(f64::from(kilobytes * 1000) / f64::from(rate));
        Carried { time, round_trip: Duration::from_millis(round_trip_ms) }
    }

    #[test]
    fn a_cut_line_is_left_after_fifteen_seconds() {
        for carried in [carried(0, 1, 0), carried(1, 1000, 600), carried(600, 10_000_000, 1)] {
            let mut session = Simulated::new();
            let error = session.run(60 * SECOND, true, carried).expect_err("dead");
            assert!(matches!(error, LinkError::Silent(_)), "{error}");
            assert_eq!(session.elapsed(), 15 * SECOND, "{carried:?}");
            assert_eq!(session.pings, 1, "it asked before");
        }
    }

    #[test]
    fn an_idle_line_that_is_cut_is_left_fifteen_seconds_after_its_keep_alive() {
        let mut session = Simulated::new();
        assert!(session.run(90 * SECOND, false, Carried::default()).is_err());
        assert_eq!(session.elapsed(), 45 * SECOND);
    }

    #[test]
    fn a_large_event_has_four_times_the_time_that_the_line_needs_for_it() {
        // 200 kB through a proxy that has taken everything and answers nothing.
        let large = carried(200, 8192, 300);
        let mut session = Simulated::new();
        session.run(97 * SECOND, true, large).expect("not yet");
        assert!(session.run(200 * SECOND, true, large).is_err());
        assert!(session.elapsed() < 98 * SECOND);
    }

    #[test]
    fn three_losses_of_one_segment_in_a_row_are_survived_on_a_line_that_is_full() {
        // 9.6 kbit/s with a round trip of 1.6 s: the bytes in flight delay an answer by 6 s, so that the timeouts of TCP
        // take 6, 12 and 24 s.
        let full = carried(7, 1200, 1650);
        let mut session = Simulated::new();
        session.run(42 * SECOND, true, full).expect("TCP resends");
        assert!(session.run(60 * SECOND, true, full).is_err(), "but not for ever");
    }

    #[test]
    fn a_socket_that_takes_bytes_again_is_progress_and_an_empty_one_is_none() {
        let small = carried(1, 1200, 1200);
        let mut session = Simulated::new();
        for second in 1..=50 {
            session.progress.blocked();
            session.run(second * SECOND, true, small).expect("bytes move");
            let now = session.now;
            session.progress.took(|| now);
            session.progress.acknowledged(now);
        }
        // From here on the line is cut; the buffer of the kernel still takes bytes.
        let mut end = Ok(());
        for second in 51..=70 {
            let now = session.now;
            session.progress.took(|| now);
            end = session.run(second * SECOND, true, small);
            if end.is_err() {
                break;
            }
        }
        assert!(end.is_err());
        assert_eq!(session.elapsed(), 65 * SECOND);
    }

    #[test]
    fn a_broker_that_answers_pings_but_acknowledges_nothing_is_left_after_the_answer_wait() {
        let mut session = Simulated::new();
        let mut second = 0;
        let error = loop {
            second += 1;
            if let Err(error) = session.run(second * SECOND, true, carried(1, 8000, 50)) {
                break error;
            }
            let now = session.now;
            session.progress.received(now);
        };
        assert!(matches!(error, LinkError::Stuck(_)), "{error}");
        assert_eq!(session.elapsed(), 60 * SECOND);
    }

    #[test]
    fn a_publish_after_a_long_idle_time_has_the_whole_time() {
        let mut session = Simulated::new();
        session.run(29 * SECOND, false, Carried::default()).expect("idle");
        session.run(43 * SECOND, true, Carried::default()).expect("14 s after the publish");
        assert!(session.run(60 * SECOND, true, Carried::default()).is_err());
        assert_eq!(session.elapsed(), 44 * SECOND);
    }
}
