//! Detects another client with our client id: two gateways of the same name take over each other's sessions without
//! end.

use super::error::LinkError;
use super::reconnect::RECONNECT_MAX;
use crate::backoff::{Backoff, Jitter};
use std::time::Duration;

/// The broker ended a session this short, with nothing in flight, because of another client with the same id, or
/// because it rejects this client.
const SHORT_SESSION: Duration = Duration::from_secs(1);
const SHORT_SESSIONS_SUSPECT: u32 = 3;
/// A session this long shows that no other client uses the client id.
const LONG_SESSION: Duration = Duration::from_secs(60);
/// Pauses that keep two gateways from alternating.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(2), RECONNECT_MAX, Jitter::DownToHalf);

/// How sure it is that another client uses the client id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    Suspected,
    /// The broker has reported a session takeover.
    Confirmed,
}

/// Evidence that another client connects with our client id.
#[derive(Debug, Default)]
pub(super) struct ClientIdConflict {
    takeovers: u32,
    short_sessions: u32,
}

impl ClientIdConflict {
    /// Records how a session ended; `is_idle`: nothing was in flight.
    pub(super) fn record_end(&mut self, error: &LinkError, lasted: Duration, is_idle: bool) {
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

    /// Returns the evidence that another client uses the client id.
    pub(super) fn evidence(&self) -> Option<Conflict> {
        match self {
            Self { takeovers: 1.., .. } => Some(Conflict::Confirmed),
            Self { short_sessions: SHORT_SESSIONS_SUSPECT.., .. } => Some(Conflict::Suspected),
            _ => None,
        }
    }

    /// Pause before the next connection attempt; `None` without evidence of another client.
    pub(super) fn pause(&self) -> Option<Duration> {
        let suspicion = self.takeovers + self.short_sessions.saturating_sub(SHORT_SESSIONS_SUSPECT - 1);
        suspicion.checked_sub(1).map(|earlier| PAUSES.pause(earlier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_taken_over_leaves_the_field_longer_each_time() {
        let taken = LinkError::Ended("session taken over".into());
        let ended = LinkError::Ended("NormalDisconnection".into());
        let mut conflict = ClientIdConflict::default();
        for _ in 0..SHORT_SESSIONS_SUSPECT - 1 {
            conflict.record_end(&ended, Duration::ZERO, true);
            assert_eq!((conflict.pause(), conflict.evidence()), (None, None), "one or two short sessions say nothing");
        }
        conflict.record_end(&ended, Duration::ZERO, true);
        assert!(conflict.pause().is_some());
        assert_eq!(conflict.evidence(), Some(Conflict::Suspected));
        for _ in 0..10 {
            conflict.record_end(&taken, Duration::from_secs(5), false);
        }
        assert!(conflict.pause().is_some_and(|wait| wait >= RECONNECT_MAX / 2 && wait <= RECONNECT_MAX));
        conflict.record_end(&ended, LONG_SESSION, true);
        assert_eq!(conflict.pause(), None, "a long session shows that nobody else is there");
        // An event that kills the connection is another matter.
        for _ in 0..10 {
            conflict.record_end(&ended, Duration::ZERO, false);
        }
        assert_eq!(conflict.pause(), None);
    }
}
