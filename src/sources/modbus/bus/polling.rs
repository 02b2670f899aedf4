//! Polling: connections, requests, repeats, and the backoff for silent devices.

use super::super::reading::{ReadAt, Registers};
use super::super::transport::{Ask, Connection, Fault};
use super::super::write::NotWritten;
use super::{Bus, Silence, ask_of};
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::event::Timestamp;
use crate::sources::Refusal;
use std::time::Duration;

/// Number of units that a problem names; it only counts the others.
const NAMED_MAX: usize = 3;
/// Pause after the answer "busy" of a device.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// A late answer is possible until this many timeouts have passed, and at least for `LATE_MIN`.
const LATE_TIMEOUTS: u32 = 10;
const LATE_MIN: Duration = Duration::from_secs(10);

impl Bus {
    /// Reads all points of a group. Points that the device refuses become bad. An error means that
    /// the device did not answer.
    pub(super) async fn read(&mut self, index: usize) -> Result<(), Fault> {
        let mut at = Timestamp::from(clock::wall());
        let unit = self.polls[index].unit;
        for number in 0..self.polls[index].reads.len() {
            let ask = ask_of(&self.polls[index].reads[number]);
            let answer = self.ask(unit, &ask).await;
            at = Timestamp::from(clock::wall());
            let (poll, device) = (&mut self.polls[index], &self.units[unit].device);
            let read = &poll.reads[number];
            match answer {
                Ok(registers) => {
                    self.stats.received.add(1);
                    let registers = Registers { address: read.address, words: &registers };
                    let read_at = ReadAt { wall: at, instant: clock::instant() };
                    for point in &read.points {
                        for reporter in &mut poll.reporters {
                            reporter.detector.take(device, *point, registers, read_at);
                        }
                    }
                }
                Err(fault) if fault.is_absence() => return Err(fault),
                Err(fault) => {
                    self.stats.refuse(Refusal::Answer);
                    let why = fault.to_string();
                    for point in &read.points {
                        poll.reporters.iter_mut().for_each(|reporter| reporter.detector.mark_refused(*point, &why));
                    }
                }
            }
        }
        self.polls[index].reporters.iter_mut().for_each(|reporter| reporter.detector.complete(at));
        Ok(())
    }

    /// Sends a request and repeats it up to `retries` times. A request to a device that is known to
    /// be silent is not repeated.
    async fn ask(&mut self, unit: usize, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let mut repeats = if self.units[unit].silence.is_some() { 0 } else { self.config.retries };
        let mut may_have_idled = true;
        loop {
            let was_used = self.connection.as_ref().is_some_and(Connection::is_used);
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

    /// Sends one request and receives its answer. Closes the connection if no valid answer arrives.
    async fn exchange(&mut self, unit: usize, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let timeout = self.config.timeout.0;
        let Some(connection) = &mut self.connection else { return Err(Fault::NoConnection("not connected".into())) };
        let answer = connection.ask(self.units[unit].number, ask, timeout).await;
        if let Err(Fault::NoAnswer(_) | Fault::Broken(_)) = &answer {
            self.connection = None;
            self.stats.connections.set(0);
            if self.dial.address.is_anonymous() {
                self.units[unit].late_answers.add(ask, clock::instant());
                self.is_late_expected = true;
            }
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
        if self.connection.is_some() {
            return Ok(());
        }
        let late = if self.is_late_expected { self.config.timeout.0 / 2 } else { Duration::ZERO };
        match self.dial.connect(late).await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.is_late_expected = false;
                self.stats.connects.add(1);
                self.stats.connections.set(1);
                Ok(())
            }
            Err(why) => Err(Fault::NoConnection(why)),
        }
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

    /// Records that a unit has answered.
    pub(super) fn mark_answered(&mut self, unit: usize) {
        self.stats.note_answer();
        let was_down = self.down.take().is_some();
        let was_silent = self.units[unit].silence.take().is_some();
        if was_down || was_silent {
            let (source, unit) = (&self.config.name, &self.units[unit].name);
            tracing::info!(%source, unit, "the device answers again");
        }
        if was_down || was_silent || self.stats.problem().is_some() {
            self.show_problem();
        }
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

    fn show_problem(&self) {
        if let Some(down) = &self.down {
            self.stats.set_problem(Some(down.why.clone()));
            return;
        }
        let silent = self.units.iter().filter_map(|unit| Some((&unit.name, unit.silence.as_ref()?)));
        let mut named: Vec<_> =
            silent.clone().take(NAMED_MAX).map(|(name, silence)| format!("{name}: {}", silence.why)).collect();
        let count = silent.count();
        if count > NAMED_MAX {
            named.push(format!("and {} more", count - NAMED_MAX));
        }
        self.stats.set_problem((count > 0).then(|| named.join("; ")));
    }
}
