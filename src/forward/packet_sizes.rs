//! The packet sizes that central takes, where it does not announce a limit and ends the connection at a packet above it.
//!
//! Promise: once a size has ended a connection, no batch has that size again, and a larger event is probed at once.

use std::time::{Duration, Instant};

/// After this time a size may be tried again: the limit may have been raised.
const FAILED_FOR: Duration = Duration::from_secs(3600);

/// What one link has learned.
#[derive(Debug, Default)]
pub(super) struct PacketSizes {
    /// Largest packet that central accepted.
    passed: usize,
    /// Smallest packet that was alone in flight when the connection ended, and when that was.
    failed: Option<(usize, Instant)>,
}

impl PacketSizes {
    /// Records that central accepted a packet.
    #[inline]
    pub(super) fn record_passed(&mut self, bytes: usize) {
        if bytes > self.passed {
            self.passed = bytes;
            self.failed = self.failed.filter(|(failed, _)| *failed > bytes);
        }
    }

    /// Records that central ended the connection while nothing but this packet was in flight.
    pub(super) fn record_failed(&mut self, bytes: usize, now: Instant) {
        // A smaller one fails for another reason.
        if bytes > self.passed {
            let smallest = self.failed_at(now).map_or(bytes, |failed| failed.min(bytes));
            self.failed = Some((smallest, now));
        }
    }

    fn failed_at(&self, now: Instant) -> Option<usize> {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < FAILED_FOR;
        self.failed.filter(|(_, at)| is_recent(*at)).map(|(bytes, _)| bytes)
    }

    /// Returns whether a packet is as large as one that ended a connection.
    pub(super) fn is_suspect(&self, bytes: usize, now: Instant) -> bool {
        self.failed_at(now).is_some_and(|failed| bytes >= failed)
    }

    /// Largest batch that is sent: one that passed, or half of what failed.
    pub(super) fn batch_bytes_max(&self, now: Instant) -> usize {
        self.failed_at(now).map_or(usize::MAX, |failed| self.passed.max(failed / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_not_tried_again_until_something_larger_passes_or_an_hour_is_over() {
        let start = Instant::now();
        let mut sizes = PacketSizes::default();
        sizes.record_passed(1000);
        assert_eq!(sizes.batch_bytes_max(start), usize::MAX);
        sizes.record_failed(900, start);
        assert!(!sizes.is_suspect(900, start), "it has passed");
        sizes.record_failed(8000, start);
        assert_eq!(sizes.batch_bytes_max(start), 4000);
        sizes.record_failed(6000, start);
        sizes.record_failed(7000, start);
        assert!(sizes.is_suspect(6000, start) && !sizes.is_suspect(5999, start));
        sizes.record_passed(5000);
        assert_eq!(sizes.batch_bytes_max(start), 5000);
        let later = start + FAILED_FOR;
        assert!(!sizes.is_suspect(6000, later));
        assert_eq!(sizes.batch_bytes_max(later), usize::MAX);
        sizes.record_passed(7000);
        assert_eq!(sizes.batch_bytes_max(start), usize::MAX, "the limit was raised");
    }
}
