//! Asking: connections, repeats, and how long a silent device is left alone.

use super::super::transport::{Ask, Fault, Line};
use super::super::write::NotWritten;
use super::{Silence, Source, ask_of};
use crate::clock;
use crate::event::Timestamp;
use crate::sources::Refusal;
use std::time::Duration;

/// Units that a problem names; of more it says how many.
const NAMED_MAX: usize = 3;
/// How long a device that says it is busy is left alone.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// An answer that comes after so many timeouts, or after `LATE_MIN`, is not expected any more.
const LATE_TIMEOUTS: u32 = 10;
const LATE_MIN: Duration = Duration::from_secs(10);

impl Source {
    /// Asks for everything of a group. What the device refuses is told as bad; a fault means that it
    /// did not answer.
    pub(super) async fn read(&mut self, index: usize) -> Result<(), Fault> {
        let mut at = Timestamp::from(clock::wall());
        let unit = self.jobs[index].unit;
        for place in 0..self.jobs[index].reads.len() {
            let ask = ask_of(&self.jobs[index].reads[place]);
            let answer = self.ask(unit, &ask).await;
            at = Timestamp::from(clock::wall());
            let (job, device) = (&mut self.jobs[index], &self.units[unit].device);
            let read = &job.reads[place];
            match answer {
                Ok(registers) => {
                    self.stats.received.add(1);
                    for point in &read.points {
                        let within = &device.points[*point];
                        let start = usize::from(within.address - read.address);
                        let registers = &registers[start..start + usize::from(within.count)];
                        job.tellers.iter_mut().for_each(|teller| teller.watch.take(device, *point, registers, at));
                    }
                }
                Err(fault) if fault.is_absence() => return Err(fault),
                Err(fault) => {
                    self.stats.refuse(Refusal::Answer);
                    let why = fault.to_string();
                    for point in &read.points {
                        job.tellers.iter_mut().for_each(|teller| teller.watch.refuse(*point, &why));
                    }
                }
            }
        }
        self.jobs[index].tellers.iter_mut().for_each(|teller| teller.watch.complete(at));
        Ok(())
    }

    /// Asks, and asks again as often as the configuration says. A device that is known to be silent is
    /// asked once.
    async fn ask(&mut self, unit: usize, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let mut repeats = if self.units[unit].silence.is_some() { 0 } else { self.config.retries };
        let mut may_have_idled = true;
        loop {
            let was_used = self.line.as_ref().is_some_and(Line::is_used);
            let fault = match self.ask_once(unit, ask).await {
                Ok(registers) => return Ok(registers),
                Err(fault @ Fault::NoConnection(_)) => return Err(fault),
                Err(fault) => fault,
            };
            // Many devices end a connection that was idle for a while: that is no fault.
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
        self.settle_doubt(unit).await?;
        self.exchange(unit, ask).await
    }

    /// One request and its answer. The line does not survive anything but an answer.
    async fn exchange(&mut self, unit: usize, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let timeout = self.config.timeout.0;
        let Some(line) = &mut self.line else { return Err(Fault::NoConnection("not connected".into())) };
        let answer = line.ask(self.units[unit].number, ask, timeout).await;
        if let Err(Fault::NoAnswer(_) | Fault::Broken(_)) = &answer {
            self.line = None;
            self.stats.connections.set(0);
            if self.dial.address.is_anonymous() {
                self.units[unit].doubt.add(ask, clock::instant());
                self.is_late_expected = true;
            }
        }
        answer
    }

    /// Makes sure that no older answer of the unit can be taken for the next one.
    async fn settle_doubt(&mut self, unit: usize) -> Result<(), Fault> {
        let late_max = (self.config.timeout.0 * LATE_TIMEOUTS).max(LATE_MIN);
        let Some(known) = self.units.get_mut(unit) else { return Ok(()) };
        if !known.doubt.is_there(clock::instant(), late_max) {
            return Ok(());
        }
        let unsure = || Fault::Broken("an older answer may still be on its way".into());
        let probe = known.doubt.probe(&known.asks).ok_or_else(unsure)?;
        match self.exchange(unit, &probe).await {
            Ok(_) => {}
            Err(Fault::Refused { .. }) if self.units[unit].doubt.settles(&probe) => {}
            Err(Fault::Refused { .. }) => return Err(unsure()),
            Err(fault) => return Err(fault),
        }
        self.units[unit].doubt.clear();
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), Fault> {
        if self.line.is_some() {
            return Ok(());
        }
        let late = if self.is_late_expected { self.config.timeout.0 / 2 } else { Duration::ZERO };
        match self.dial.connect(late).await {
            Ok(line) => {
                self.line = Some(line);
                self.is_late_expected = false;
                self.stats.connects.add(1);
                self.stats.connections.set(1);
                Ok(())
            }
            Err(why) => Err(Fault::NoConnection(why)),
        }
    }

    /// One write. It is not repeated: without an answer it may have been done.
    pub(super) async fn write_once(&mut self, unit: usize, ask: &Ask) -> Result<(), NotWritten> {
        let before = async {
            self.connect().await?;
            self.settle_doubt(unit).await
        };
        before.await.map_err(|fault: Fault| NotWritten::Refused(fault.to_string()))?;
        match self.exchange(unit, ask).await {
            Ok(_) => Ok(()),
            Err(fault @ Fault::Refused { .. }) => Err(NotWritten::Refused(fault.to_string())),
            Err(fault) => Err(NotWritten::Unknown(fault.to_string())),
        }
    }

    /// A unit has answered.
    pub(super) fn hear(&mut self, unit: usize) {
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

    /// A unit, or the whole bus, has not answered.
    pub(super) fn miss(&mut self, unit: usize, fault: &Fault) {
        let reason = if matches!(fault, Fault::NoConnection(_)) { Refusal::Connection } else { Refusal::Answer };
        self.stats.refuse(reason);
        let now = clock::instant();
        let is_bus = matches!(fault, Fault::NoConnection(_));
        let silence = if is_bus { &mut self.down } else { &mut self.units[unit].silence };
        let attempts = silence.as_ref().map_or(0, |silence| silence.attempts);
        let doublings = attempts.min(16);
        let wait = self.config.backoff.0.saturating_mul(1 << doublings).min(self.config.backoff_max.0);
        let why = fault.to_string();
        let is_news = silence.as_ref().is_none_or(|known| known.why != why);
        let next_try = now + wait;
        *silence = Some(Silence { why: why.clone(), attempts: attempts + 1, next_try });
        if !is_bus {
            // There is a connection, whatever the device says.
            self.down = None;
        }
        if is_news {
            let (source, name) = (&self.config.name, &self.units[unit].name);
            let unit = if is_bus { "all" } else { name };
            tracing::warn!(%source, unit, wait = ?wait, "the device does not answer, will ask again: {why}");
        }
        self.show_problem();
        for index in 0..self.jobs.len() {
            if !is_bus && self.jobs[index].unit != unit {
                continue;
            }
            let job = &mut self.jobs[index];
            job.due = next_try;
            job.tellers.iter_mut().for_each(|teller| teller.watch.miss(&why, now));
            self.tell(index, now);
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
