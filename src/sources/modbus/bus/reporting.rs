//! Reporting: hands in the events that are due; each stays due until the journal accepts it.

use super::super::payload::payload;
use super::super::reading::Moment;
use super::Bus;
use super::reporter::{Reporter, reporters};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Submission, SubmitError};
use std::time::{Duration, Instant};

/// Events of a bus that may wait for their receipts; beyond this number changes are collected.
const IN_FLIGHT_MAX: usize = 4096;
/// Pause before an event for which there was no room is handed in again.
const NO_ROOM_WAIT: Duration = Duration::from_millis(50);

impl Bus {
    /// Hands in the events of a group that are due.
    pub(super) fn report(&mut self, index: usize, now: Instant) {
        self.follow_contracts(index);
        let Some(poll) = self.polls.get_mut(index) else { return };
        let unit = &self.units[poll.unit];
        let group = &unit.device.groups[poll.group];
        poll.next_check = None;
        for Reporter { detector, route, .. } in &mut poll.reporters {
            if let Some(reason) = detector.due(&unit.device, group, now) {
                let at = Moment { wall: Timestamp::from(clock::wall()), instant: now };
                let has_room = self.in_flight.len() < IN_FLIGHT_MAX;
                let taken = match has_room {
                    true => {
                        let payload = payload(&unit.device, group, detector, reason, at);
                        self.producer.submit(&Submission::new(route, &payload, at.wall))
                    }
                    false => Err(SubmitError::NoRoom),
                };
                match taken {
                    Ok(taken) => {
                        detector.mark_reported(group, now);
                        self.in_flight.push_back((taken, now));
                    }
                    Err(SubmitError::NoRoom) => poll.next_check = earlier(poll.next_check, now + NO_ROOM_WAIT),
                    // The gateway is stopping; the next start reports every value.
                    Err(SubmitError::Closed) => {}
                }
            }
            if let Some(at) = detector.next_check(group, now) {
                poll.next_check = earlier(poll.next_check, at);
            }
        }
    }

    /// Checks the groups whose scheduled check is due.
    pub(super) fn report_scheduled(&mut self, now: Instant) {
        for index in 0..self.polls.len() {
            if self.polls[index].next_check.is_some_and(|at| at <= now) {
                self.report(index, now);
            }
        }
    }

    /// Removes the events that have their receipts from those in flight, and records their latency.
    pub(super) fn take_receipts(&mut self) {
        let (ingest, stats) = (&self.ingest, &self.stats);
        self.in_flight.retain(|(taken, since)| {
            let is_durable = ingest.receipt(taken).is_some();
            if is_durable {
                stats.ack.record(clock::instant().duration_since(*since), 1);
            }
            !is_durable
        });
    }

    /// Applies new contracts: events may have other routes, or other points may have events of their own.
    fn follow_contracts(&mut self, index: usize) {
        let poll = &self.polls[index];
        if poll.reporters.iter().all(|reporter| self.ingest.is_current(&reporter.route)) {
            return;
        }
        let unit = &self.units[poll.unit];
        let mut next = reporters(&self.ingest, &self.config.name, &unit.name, &unit.device, poll.group);
        let same = |old: &[Reporter], new: &[Reporter]| {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| old.topic == new.topic)
        };
        let poll = &mut self.polls[index];
        if same(&poll.reporters, &next) {
            for (reporter, next) in poll.reporters.iter_mut().zip(next) {
                reporter.route = next.route;
            }
            return;
        }
        // Reporters with other points start new, with the values that were read last.
        for reporter in &mut next {
            let known = poll.reporters.iter().map(|old| &old.detector);
            reporter.detector.inherit(known);
        }
        poll.reporters = next;
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}
