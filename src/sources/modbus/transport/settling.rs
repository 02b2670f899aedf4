//! Settling: how long a device may need after a connection is made, before it answers.
//!
//! Some devices ignore what they are asked in the first seconds of a connection, or the first request, or close a connection
//! over which they are asked too early. A client that connects again after each failure, and asks at once, never gets an
//! answer.
//!
//! Promise: recovery does not repeat what has failed. A connection that has not answered yet is kept for a while, and for
//! longer each time that one had to be replaced; a connection that the device closes is followed by one that waits longer
//! before the first request.

use std::time::Duration;

/// How long a connection without an answer is kept; devices are known that need two seconds.
const PATIENCE_MIN: Duration = Duration::from_secs(3);
const PATIENCE_MAX: Duration = Duration::from_secs(300);
/// Requests without an answer after which a connection may be replaced.
const REQUESTS_MIN: u32 = 3;
/// Pause before the first request after the device has closed a connection without an answer; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// What is known about the device's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settling {
    configured: Duration,
    learnt: Duration,
    patience: Duration,
    /// Whether the present connection has answered, and the requests that it has not answered before.
    has_answered: bool,
    unanswered: u32,
}

impl Settling {
    /// `configured` is the pause that the operator has set.
    pub(super) fn new(configured: Duration) -> Self {
        Self { configured, learnt: Duration::ZERO, patience: PATIENCE_MIN, has_answered: false, unanswered: 0 }
    }

    /// Begins a connection; returns how long to wait before its first request.
    pub(super) fn connected(&mut self) -> Duration {
        (self.has_answered, self.unanswered) = (false, 0);
        self.configured.max(self.learnt)
    }

    pub(super) fn answered(&mut self) {
        if !self.has_answered {
            // The next connection tries less, in case the pause was not the reason.
            self.learnt = if self.learnt > PAUSE_MIN { self.learnt / 2 } else { Duration::ZERO };
            (self.has_answered, self.patience) = (true, PATIENCE_MIN);
        }
    }

    /// Records a request without an answer over a connection of this age; returns whether the connection has to be replaced.
    /// One that has answered before is: it may be dead.
    pub(super) fn is_over(&mut self, age: Duration) -> bool {
        self.unanswered += 1;
        let is_over = self.has_answered || (age >= self.patience && self.unanswered >= REQUESTS_MIN);
        if is_over && !self.has_answered {
            self.patience = (self.patience * 2).min(PATIENCE_MAX);
        }
        is_over
    }

    /// Records that the device has ended the connection.
    pub(super) fn ended(&mut self) {
        if !self.has_answered {
            self.learnt = (self.learnt * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_connection_that_has_not_answered_yet_is_kept_for_a_while() {
        let mut settling = Settling::new(Duration::ZERO);
        assert_eq!(settling.connected(), Duration::ZERO);
        let over: Vec<_> = [1, 1, 2, 2, 3].map(|age| settling.is_over(SECOND * age)).into();
        assert_eq!(over, [false, false, false, false, true]);
        settling.connected();
        assert!(!settling.is_over(SECOND) && !settling.is_over(SECOND * 2) && !settling.is_over(SECOND * 5));
        assert!(settling.is_over(SECOND * 6), "twice as long");
        settling.connected();
        settling.answered();
        assert!(settling.is_over(SECOND), "it may be dead");
    }

    #[test]
    fn a_device_that_closes_connections_over_which_it_is_asked_early_is_asked_later() {
        let mut settling = Settling::new(Duration::from_millis(100));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push(settling.connected().as_millis());
            settling.ended();
        }
        assert_eq!(pauses, [100, 500, 1000, 2000, 4000, 8000, 8000]);
        settling.connected();
        settling.answered();
        settling.ended();
        assert_eq!(settling.connected(), SECOND * 4, "a little less is tried the next time");
        (0..4).for_each(|_| {
            settling.answered();
            settling.connected();
        });
        assert_eq!(settling.connected(), Duration::from_millis(100), "and in the end none");
    }
}
