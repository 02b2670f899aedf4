//! Telling: what has changed is handed in, and stays due until it is taken.

use super::super::report::payload;
use super::super::table::Device;
use super::super::watch::Watch;
use super::Source;
use crate::clock;
use crate::contract::{Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{Beside, Ingest, Route};
use crate::journal::NotTaken;
use std::time::{Duration, Instant};

/// Events of a bus that may be on their way to the disk; beyond them changes gather.
const IN_FLIGHT_MAX: usize = 4096;
/// How soon what found no room is handed in again.
const ROOM_AGAIN: Duration = Duration::from_millis(50);

/// A watch, and where its events lead.
pub(super) struct Teller {
    pub(super) watch: Watch,
    topic: String,
    route: Route,
}

/// What a group of a unit is told by: one for the group, and one for each point that a contract wants
/// on its own.
pub(super) fn tellers(ingest: &Ingest, source: &str, unit: &str, device: &Device, group: usize) -> Vec<Teller> {
    let whole = format!("{unit}/{}", device.groups[group].name);
    let teller = |watch: Watch, topic: String| {
        let route = ingest.route(SourceKind::Modbus, source, &topic, Sender { client: unit, ..Sender::default() });
        Teller { watch, topic, route }
    };
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for (index, point) in device.points.iter().enumerate().filter(|(_, point)| point.group == group) {
        let topic = format!("{whole}/{}", point.name);
        if ingest.has_contract_of_its_own(SourceKind::Modbus, source, &topic, &whole) {
            alone.push(teller(Watch::single(index), topic));
        } else {
            together.push(index);
        }
    }
    let grouped = (!together.is_empty()).then(|| teller(Watch::new(together), whole));
    grouped.into_iter().chain(alone).collect()
}

impl Source {
    /// Hands in what is due of a group.
    pub(super) fn tell(&mut self, index: usize, now: Instant) {
        self.follow_contracts(index);
        let Some(job) = self.jobs.get_mut(index) else { return };
        let unit = &self.units[job.unit];
        let group = &unit.device.groups[job.group];
        job.look = None;
        for Teller { watch, route, .. } in &mut job.tellers {
            if let Some(reason) = watch.due(&unit.device, group, now) {
                let at = Timestamp::from(clock::wall());
                let has_room = self.in_flight.len() < IN_FLIGHT_MAX;
                let taken = match has_room {
                    true => {
                        let payload = payload(&unit.device, group, watch, reason, now, at);
                        self.ingest.accept(route, &payload, Beside::default(), at, &mut self.waiter)
                    }
                    false => Err(NotTaken::NoRoom),
                };
                match taken {
                    Ok(taken) => {
                        watch.told(group, now);
                        self.in_flight.push_back((taken, now));
                    }
                    Err(NotTaken::NoRoom) => job.look = earlier(job.look, now + ROOM_AGAIN),
                    // The end of the gateway; the next start begins with a snapshot.
                    Err(NotTaken::Closed) => {}
                }
            }
            if let Some(at) = watch.look_again(group, now) {
                job.look = earlier(job.look, at);
            }
        }
    }

    /// Looks at the groups whose time has come.
    pub(super) fn look(&mut self, now: Instant) {
        for index in 0..self.jobs.len() {
            if self.jobs[index].look.is_some_and(|at| at <= now) {
                self.tell(index, now);
            }
        }
    }

    /// Counts what is on the disk.
    pub(super) fn take_receipts(&mut self) {
        let (ingest, stats) = (&self.ingest, &self.stats);
        self.in_flight.retain(|(taken, since)| {
            let is_in = ingest.receipt(taken).is_some();
            if is_in {
                stats.ack.record(clock::instant().duration_since(*since), 1);
            }
            !is_in
        });
    }

    /// Other contracts may lead elsewhere, or want points on their own.
    fn follow_contracts(&mut self, index: usize) {
        let job = &self.jobs[index];
        if job.tellers.iter().all(|teller| self.ingest.is_current(&teller.route)) {
            return;
        }
        let unit = &self.units[job.unit];
        let mut next = tellers(&self.ingest, &self.config.name, &unit.name, &unit.device, job.group);
        let same = |old: &[Teller], new: &[Teller]| {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| old.topic == new.topic)
        };
        let job = &mut self.jobs[index];
        if same(&job.tellers, &next) {
            for (teller, next) in job.tellers.iter_mut().zip(next) {
                teller.route = next.route;
            }
            return;
        }
        // What changes its shape begins anew, with what was read last.
        for teller in &mut next {
            let known = job.tellers.iter().map(|old| &old.watch);
            teller.watch.inherit(known);
        }
        job.tellers = next;
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}
