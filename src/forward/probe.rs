//! Probe: finds the event or the batch that ends the connection.
//!
//! From the second connection on that ends with publishes in flight, the forwarder halves the number of publishes in
//! flight with each further one. A batch that is alone then is halved as well. An event that is alone is sent once more,
//! after central has answered a PINGREQ: if the connection ends again, the event is the reason. An event of a size that
//! has ended a connection before is probed at once.
//!
//! Promise: one event among a thousand is found within a dozen connections, also if central acknowledges none of them.
//! A central that ends every connection gets [`VERDICTS_MAX`] events taken from its lane, and then one per
//! [`VERDICT_PAUSE`].

use super::in_flight::{InFlight, Publish};
use super::packet_sizes::PacketSizes;
use crate::clock;
use crate::link::LinkError;
use std::time::{Duration, Instant};

/// Connections that end with publishes in flight before the number is halved: one may be a fault of the line.
const ENDS_BEFORE_HALVING: u32 = 2;
/// Publishes that are answered in a row before earlier ends of connections are forgotten.
const PASSED_MAX: usize = 1000;
/// Events that may be found guilty in a row while central answers no publish: after that, central is the reason.
const VERDICTS_MAX: u32 = 3;
/// Time between two further ones.
const VERDICT_PAUSE: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Probe {
    /// Connections that ended with publishes in flight.
    ends: u32,
    /// Largest number of publishes in flight; `None` for that of the window.
    limit: Option<usize>,
    /// Publishes answered since the limit changed.
    passed: usize,
    /// Offset of the event under suspicion.
    suspect: Option<u64>,
    pub step: ProbeStep,
    /// Events found guilty since central answered a publish.
    verdicts: u32,
    last_verdict: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ProbeStep {
    /// Nothing is probed in this session.
    #[default]
    Off,
    Pinged,
    /// The event was sent alone.
    Sent,
}

impl Probe {
    /// Returns the offset of the event to probe.
    pub(super) fn due(&self) -> Option<u64> {
        self.suspect
    }

    /// Largest number of publishes in flight.
    pub(super) fn window(&self, window: usize) -> usize {
        self.limit.map_or(window, |limit| limit.min(window))
    }

    /// Clears the suspicion: the event is not the reason, or it needs no probe.
    pub(super) fn clear(&mut self) {
        (self.suspect, self.step) = (None, ProbeStep::Off);
    }

    /// Counts answered publishes: with each full window, twice as many may be in flight.
    pub(super) fn record_passed(&mut self, publishes: usize) {
        if publishes == 0 || self.ends == 0 {
            return;
        }
        self.passed += publishes;
        self.verdicts = 0;
        match self.limit {
            Some(limit) if self.passed >= limit => {
                self.limit = Some(limit * 2).filter(|limit| *limit < PASSED_MAX);
                self.passed = 0;
            }
            None if self.passed >= PASSED_MAX => *self = Self { suspect: self.suspect, ..Self::default() },
            _ => {}
        }
    }

    /// Returns the offset of the event that proved to be the reason for the end of a connection.
    pub(super) fn guilty(&mut self, error: &LinkError, lowest: Option<u64>) -> Option<u64> {
        let suspect = self.suspect.filter(|suspect| lowest == Some(*suspect))?;
        if self.step != ProbeStep::Sent || !error.may_be_about_a_publish() {
            return None;
        }
        let now = clock::instant();
        let is_soon = self.last_verdict.is_some_and(|last| now.duration_since(last) < VERDICT_PAUSE);
        if self.verdicts >= VERDICTS_MAX && is_soon {
            return None;
        }
        self.verdicts += 1;
        self.last_verdict = Some(now);
        Some(suspect)
    }

    /// Counts the end of a connection. Returns the number of events of the batch that was alone in flight.
    pub(super) fn record_end(
        &mut self,
        error: &LinkError,
        in_flight: &InFlight<Publish>,
        sizes: &PacketSizes,
    ) -> Option<usize> {
        let count = in_flight.count();
        if count == 0 || !error.may_be_about_a_publish() {
            return None;
        }
        self.ends = self.ends.saturating_add(1);
        self.passed = 0;
        let now = clock::instant();
        let is_suspect = |(publish, bytes): &(&Publish, usize)| publish.count() == 1 && sizes.is_suspect(*bytes, now);
        if let Some((suspect, _)) = in_flight.sizes().find(is_suspect) {
            self.suspect = Some(suspect.offset);
            return None;
        }
        if self.ends < ENDS_BEFORE_HALVING {
            return None;
        }
        self.limit = Some((count / 2).max(1));
        let alone = in_flight.iter().next().filter(|_| count == 1)?;
        match alone.count() {
            1 => {
                self.suspect = Some(alone.offset);
                None
            }
            events => Some(events),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;
    use std::io;

    /// Central reads all of what is in flight before it answers, and ends the connection over one event.
    fn connections_until_found(bad: u64, count: u64) -> usize {
        let broken = LinkError::Broken(io::Error::from(io::ErrorKind::UnexpectedEof));
        let mut probe = Probe::default();
        let mut settled = 0;
        for connection in 1..100 {
            loop {
                let mut in_flight = InFlight::default();
                let window = if probe.due().is_some() { 1 } else { probe.window(1000) as u64 };
                if probe.due().is_some() {
                    probe.step = ProbeStep::Sent;
                }
                let sent = settled..(settled + window).min(count);
                for offset in sent.clone() {
                    in_flight.push(Publish::new(offset, 0, Instant::now(), Timestamp(0)), 1);
                }
                if sent.contains(&bad) {
                    if probe.guilty(&broken, in_flight.lowest()) == Some(bad) {
                        return connection;
                    }
                    probe.record_end(&broken, &in_flight, &PacketSizes::default());
                    break;
                }
                settled = sent.end;
                probe.clear();
                probe.record_passed(in_flight.count());
            }
        }
        panic!("not found");
    }

    #[test]
    fn one_event_among_a_thousand_is_found_within_few_connections() {
        for bad in [0, 1, 7, 499, 500, 998, 999] {
            let connections = connections_until_found(bad, 1000);
            assert!(connections <= 30, "{bad}: {connections}");
        }
    }

    #[test]
    fn a_central_that_ends_every_connection_does_not_empty_the_lane() {
        let broken = LinkError::Broken(io::Error::from(io::ErrorKind::UnexpectedEof));
        let mut probe = Probe::default();
        let mut guilty = 0;
        for offset in 0..20 {
            let mut in_flight = InFlight::default();
            in_flight.push(Publish::new(offset, 0, Instant::now(), Timestamp(0)), 1);
            for _ in 0..4 {
                probe.record_end(&broken, &in_flight, &PacketSizes::default());
                probe.step = ProbeStep::Sent;
                guilty += u32::from(probe.guilty(&broken, in_flight.lowest()).is_some());
            }
            probe.clear();
        }
        assert!(guilty <= VERDICTS_MAX + 1, "{guilty}");
        let refused = LinkError::Refused("NotAuthorized".into());
        assert_eq!(probe.guilty(&refused, Some(19)), None);
    }
}
