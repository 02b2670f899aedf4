//! Polling: connections, requests, repeats, and the backoff for silent devices.

use super::super::blocks::{SPLITS_MAX, Sweep, Verdict};
use super::super::reading::{Moment, Reading, Registers};
use super::super::transport::{Ask, Fault};
use super::super::write::NotWritten;
use super::{Bus, Silence, ask_of};
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::event::Timestamp;
use crate::sources::{PointState, Refusal};
use std::time::Duration;

/// Number of units that a problem names; it only counts the others.
const NAMED_MAX: usize = 3;
/// Pause after the answer "busy" of a device.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// A late answer is possible until this many timeouts have passed, and at least for `LATE_MIN`.
const LATE_TIMEOUTS: u32 = 10;
const LATE_MIN: Duration = Duration::from_secs(10);

impl Bus {
    /// Reads all points of a group. Points that the device refuses become bad. An error means that the device did not
    /// answer. Returns whether points are still searched for.
    pub(super) async fn read(&mut self, index: usize) -> Result<bool, Fault> {
        let unit = self.polls[index].unit;
        let mut sweep = self.polls[index].blocks.sweep(SPLITS_MAX, clock::instant());
        let mut at = Moment::now();
        let mut absence = None;
        while let Some(read) = sweep.next() {
            let answer = self.ask(unit, &ask_of(read)).await;
            at = Moment::now();
            match answer {
                Err(fault) if fault.is_absence() => {
                    absence = Some(fault);
                    break;
                }
                answer => self.take(index, &mut sweep, answer, at),
            }
        }
        let outcome = self.polls[index].blocks.finish(&self.units[unit].device, sweep);
        if outcome.has_changed {
            let polls = self.polls.iter().filter(|poll| poll.unit == unit);
            self.units[unit].asks = polls.flat_map(|poll| poll.blocks.reads()).map(ask_of).collect();
        }
        if outcome.has_refused {
            self.log_refused(index);
        }
        match absence {
            Some(fault) => Err(fault),
            None => {
                self.polls[index].reporters.iter_mut().for_each(|reporter| reporter.detector.complete(at.wall));
                Ok(outcome.is_pending)
            }
        }
    }

    fn log_refused(&self, index: usize) {
        let poll = &self.polls[index];
        let unit = &self.units[poll.unit];
        let named = |(point, fault): (usize, &Fault)| {
            let point = &unit.device.points[point];
            let place = unit.device.place(point.table, u32::from(point.address), point.end());
            format!("{} ({place}): {fault}", point.name)
        };
        let refused = some_of(poll.blocks.refused().map(named).collect());
        tracing::warn!(
            source = %self.config.name, unit = %unit.name, %refused,
            "the device refuses to read points, will try again, the others are read"
        );
    }

    /// Takes the answer to the next request of a sweep.
    fn take(&mut self, index: usize, sweep: &mut Sweep, answer: Result<Vec<u16>, Fault>, at: Moment) {
        let poll = &mut self.polls[index];
        let unit = &self.units[poll.unit];
        let device = &unit.device;
        let outcome = answer.as_ref().map(|_| ());
        let Some((read, verdict)) = sweep.take(device, outcome, at.instant) else { return };
        match (answer, verdict) {
            (Ok(words), _) => {
                self.stats.received.add(1);
                let registers = Registers { address: read.address, words: &words };
                for point in &read.points {
                    poll.reporters.iter_mut().for_each(|one| one.detector.take(device, *point, registers, at));
                }
            }
            (Err(_), Verdict::Refused { fault }) => {
                self.stats.refuse(Refusal::Answer);
                let why = fault.to_string();
                for point in &read.points {
                    poll.reporters.iter_mut().for_each(|one| one.detector.mark_refused(*point, &why));
                }
            }
            (Err(_), _) => self.stats.refuse(Refusal::Answer),
        }
    }

    /// Sends a request and repeats it up to `retries` times. A request to a device that is known to be silent is not
    /// repeated.
    async fn ask(&mut self, unit: usize, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let mut repeats = if self.units[unit].silence.is_some() { 0 } else { self.config.retries };
        let mut may_have_idled = true;
        loop {
            let was_used = self.line.is_used();
            let fault = match self.ask_once(unit, ask).await {
                Ok(registers) => return Ok(registers),
                Err(fault @ Fault::NoConnection(_)) => return Err(fault),
                Err(fault) => fault,
            };
            // Many devices close a connection that was idle for a while: that is no fault.
            if may_have_idled && was_used && matches!(fault, Fault::Broken(_)) {
                may_have_idled = false;
                continue;
            }
            if repeats == 0 || !(fault.is_absence() || fault.is_busy()) {
                return Err(fault);
            }
            repeats -= 1;
            if fault.is_busy() {
                tokio::time::sleep(BUSY_WAIT).await;
            }
        }
    }

    async fn ask_once(&mut self, unit: usize, ask: &Ask) -> Result<Vec<u16>, Fault> {
        self.connect().await?;
        self.rule_out_late_answers(unit).await?;
        self.exchange(unit, ask).await
    }

    /// Sends one request and receives its answer.
    async fn exchange(&mut self, unit: usize, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let answer = self.line.exchange(self.units[unit].number, ask).await;
        self.stats.connections.set(u64::from(self.line.is_connected()));
        if answer.as_ref().err().is_some_and(Fault::is_unanswered) && self.line.dial().is_anonymous() {
            self.units[unit].late_answers.add(ask, clock::instant());
        }
        answer
    }

    /// Makes sure that a late answer of the unit cannot be mistaken for the answer to the next request.
    async fn rule_out_late_answers(&mut self, unit: usize) -> Result<(), Fault> {
        let late_max = (self.config.timeout.0 * LATE_TIMEOUTS).max(LATE_MIN);
        let Some(known) = self.units.get_mut(unit) else { return Ok(()) };
        if !known.late_answers.are_possible(clock::instant(), late_max) {
            return Ok(());
        }
        let unsure = || Fault::Broken("a late answer to an earlier request may still arrive".into());
        let probe = known.late_answers.probe(&known.asks).ok_or_else(unsure)?;
        match self.exchange(unit, &probe).await {
            Ok(_) => {}
            Err(Fault::Refused { .. }) if self.units[unit].late_answers.refusal_rules_out(&probe) => {}
            Err(Fault::Refused { .. }) => return Err(unsure()),
            Err(fault) => return Err(fault),
        }
        self.units[unit].late_answers.clear();
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), Fault> {
        if self.line.connect().await? {
            self.stats.connects.add(1);
            self.stats.connections.set(1);
        }
        Ok(())
    }

    /// Sends one write. It is not repeated: a device that did not answer may have executed it.
    pub(super) async fn write_once(&mut self, unit: usize, ask: &Ask) -> Result<(), NotWritten> {
        let before = async {
            self.connect().await?;
            self.rule_out_late_answers(unit).await
        };
        before.await.map_err(|fault: Fault| NotWritten::Refused(fault.to_string()))?;
        match self.exchange(unit, ask).await {
            Ok(_) => Ok(()),
            Err(fault @ Fault::Refused { .. }) => Err(NotWritten::Refused(fault.to_string())),
            Err(fault) => Err(NotWritten::Unknown(fault.to_string())),
        }
    }

    /// Records that a group of a unit was read.
    pub(super) fn mark_answered(&mut self, index: usize) {
        self.stats.note_answer();
        let unit = self.polls[index].unit;
        let was_down = self.down.take().is_some();
        let was_silent = self.units[unit].silence.take().is_some();
        if was_down || was_silent {
            // It may have been replaced, or have another firmware now.
            let now = clock::instant();
            self.polls.iter_mut().filter(|poll| poll.unit == unit).for_each(|poll| poll.blocks.search_again(now));
            let (source, unit) = (&self.config.name, &self.units[unit].name);
            tracing::info!(%source, unit, "the device answers again");
        }
        let has_changed = self.note_points(index);
        if has_changed || was_down || was_silent || self.stats.problem().is_some() {
            self.show_problem();
        }
    }

    /// Records which points of a group have values; returns whether the state of the unit has changed.
    fn note_points(&self, index: usize) -> bool {
        let poll = &self.polls[index];
        let now = Timestamp::from(clock::wall());
        self.stats.units.update(poll.unit, now, |health| {
            health.answered(now);
            for state in poll.reporters.iter().flat_map(|reporter| &reporter.detector.points) {
                let (condition, reason) = match &state.current {
                    None => (PointState::Unknown, ""),
                    Some(Reading::Good(_)) => (PointState::Good, ""),
                    Some(Reading::Absent) => (PointState::Absent, ""),
                    Some(Reading::Bad { reason, .. }) => (PointState::Bad, reason.as_str()),
                };
                health.note(state.point, condition, reason, now);
            }
        })
    }

    /// Records that a unit, or the whole bus, has not answered.
    pub(super) fn mark_silent(&mut self, unit: usize, fault: &Fault) {
        let reason = if matches!(fault, Fault::NoConnection(_)) { Refusal::Connection } else { Refusal::Answer };
        self.stats.refuse(reason);
        let now = clock::instant();
        let is_bus = matches!(fault, Fault::NoConnection(_));
        let silence = if is_bus { &mut self.down } else { &mut self.units[unit].silence };
        let attempts = silence.as_ref().map_or(0, |silence| silence.attempts);
        let wait = Backoff::new(self.config.backoff.0, self.config.backoff_max.0, Jitter::None).pause(attempts);
        let why = fault.to_string();
        let has_changed = silence.as_ref().is_none_or(|known| known.why != why);
        let next_try = now + wait;
        *silence = Some(Silence { why: why.clone(), attempts: attempts + 1, next_try });
        if !is_bus {
            // The connection works; only the device does not answer.
            self.down = None;
        }
        if has_changed {
            let (source, name) = (&self.config.name, &self.units[unit].name);
            let unit = if is_bus { "all" } else { name };
            tracing::warn!(%source, unit, wait = ?wait, "the device does not answer, will ask again: {why}");
        }
        let at = Timestamp::from(clock::wall());
        for index in (0..self.units.len()).filter(|index| is_bus || *index == unit) {
            self.stats.units.update(index, at, |health| health.silent(&why));
        }
        self.show_problem();
        for index in 0..self.polls.len() {
            if !is_bus && self.polls[index].unit != unit {
                continue;
            }
            let poll = &mut self.polls[index];
            poll.due = next_try;
            poll.reporters.iter_mut().for_each(|reporter| reporter.detector.mark_silent(&why, now));
            self.report(index, now);
        }
    }

    /// Shows what is wrong: units without any value are a problem, points without one are worth a note.
    fn show_problem(&self) {
        if let Some(down) = &self.down {
            self.stats.set_problem(Some(down.why.clone()));
            return;
        }
        let (without, partly) = self.stats.units.troubles();
        self.stats.set_problem((!without.is_empty()).then(|| some_of(without)));
        self.stats.set_notes(if partly.is_empty() { Vec::new() } else { vec![some_of(partly)] });
    }
}

/// The first of these, and how many more there are.
fn some_of(mut named: Vec<String>) -> String {
    let more = named.len().saturating_sub(NAMED_MAX);
    named.truncate(NAMED_MAX);
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named.join("; ")
}
