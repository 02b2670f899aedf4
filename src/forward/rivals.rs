//! Another client with our client id: two gateways of one name take each other's sessions for ever.

use crate::link::LinkError;
use crate::link::{RECONNECT_MAX, jitter};
use std::time::Duration;

/// A session this short, with nothing in flight, was ended for another client of the same id, or by a
/// broker that does not want us.
const SHORT_SESSION: Duration = Duration::from_secs(1);
const SHORT_SESSIONS_SUSPECT: u32 = 3;
/// A session this long shows that nobody else claims the client id.
const LONG_SESSION: Duration = Duration::from_secs(60);

/// Signs that another client connects with our client id.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    takeovers: u32,
    short_sessions: u32,
}

impl Rivals {
    /// Notes how a session ended.
    pub(super) fn note(&mut self, error: &LinkError, lasted: Duration, is_idle: bool) {
        if lasted >= LONG_SESSION {
            *self = Self::default();
        }
        if error.is_takeover() {
            self.takeovers += 1;
        } else if error.is_by_peer() && lasted < SHORT_SESSION && is_idle {
            self.short_sessions += 1;
        } else {
            self.short_sessions = 0;
        }
    }

    /// Whether the broker has said so.
    pub(super) fn is_certain(&self) -> bool {
        self.takeovers > 0
    }

    /// How long to leave the field to the other one; `None` where there are no signs of one.
    pub(super) fn wait(&self) -> Option<Duration> {
        let suspicion = self.takeovers + self.short_sessions.saturating_sub(SHORT_SESSIONS_SUSPECT - 1);
        // Twice as long each time, with jitter, so that two gateways do not take turns.
        let longest = Duration::from_secs(1) * 2u32.pow(suspicion.min(5));
        (suspicion > 0).then(|| jitter(longest / 2, longest.min(RECONNECT_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_taken_over_leaves_the_field_longer_each_time() {
        let taken = LinkError::Ended("session taken over".into());
        let ended = LinkError::Ended("NormalDisconnection".into());
        let mut rivals = Rivals::default();
        for _ in 0..SHORT_SESSIONS_SUSPECT - 1 {
            rivals.note(&ended, Duration::ZERO, true);
            assert_eq!(rivals.wait(), None, "one or two short sessions say nothing");
        }
        rivals.note(&ended, Duration::ZERO, true);
        assert!(rivals.wait().is_some());
        for _ in 0..10 {
            rivals.note(&taken, Duration::from_secs(5), false);
        }
        assert!(rivals.wait().is_some_and(|wait| wait >= RECONNECT_MAX / 2 && wait <= RECONNECT_MAX));
        rivals.note(&ended, LONG_SESSION, true);
        assert_eq!(rivals.wait(), None, "a long session shows that nobody else is there");
        // An event that kills the connection is another matter.
        for _ in 0..10 {
            rivals.note(&ended, Duration::ZERO, false);
        }
        assert_eq!(rivals.wait(), None);
    }
}
