//! The task of a bus: one loop that asks what is due and hands in what has changed.

mod asking;
mod telling;

use super::plan::{Read, plan};
use super::table::Device;
use super::transport::{Ask, Dial, Doubt, Line};
use super::write::{self, NotWritten, Write, Writer};
use super::{Config, Ready};
use crate::clock;
use crate::ingest::{Ingest, Taken};
use crate::journal::Waiter;
use crate::shutdown::Shutdown;
use crate::sources::Stats;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use telling::Teller;
use tokio::sync::mpsc;

/// How long receipts are awaited at the end.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the loop sleeps at most: what it waits for comes earlier, or is looked for again.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// One bus with its devices.
pub struct Source {
    config: Config,
    dial: Dial,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    waiter: Waiter,
    units: Vec<Unit>,
    jobs: Vec<Job>,
    line: Option<Line>,
    /// Why there is no connection, and when to try again.
    down: Option<Silence>,
    /// Whether an answer may still come that the next connection has to let pass.
    is_late_expected: bool,
    writer: Writer,
    writes: mpsc::Receiver<Write>,
    /// Taken in and not yet on the disk.
    in_flight: VecDeque<(Taken, Instant)>,
}

/// A device as the bus knows it.
struct Unit {
    name: String,
    number: u8,
    device: Arc<Device>,
    doubt: Doubt,
    silence: Option<Silence>,
    /// Everything that is asked of it.
    asks: Vec<Ask>,
}

/// Somebody does not answer.
#[derive(Clone, Debug)]
struct Silence {
    why: String,
    attempts: u32,
    next_try: Instant,
}

/// A group of a unit.
struct Job {
    unit: usize,
    group: usize,
    reads: Vec<Read>,
    due: Instant,
    /// When what was read has to be looked at again.
    look: Option<Instant>,
    tellers: Vec<Teller>,
}

impl Source {
    /// A source that asks once it runs.
    pub fn new(config: Config, ready: Ready, ingest: Arc<Ingest>, stats: Arc<Stats>) -> Self {
        let now = clock::instant();
        let (mut units, mut jobs) = (Vec::new(), Vec::new());
        for (index, (unit, device)) in config.units.iter().zip(ready.devices).enumerate() {
            let mut asks = Vec::new();
            for group in 0..device.groups.len() {
                let reads = plan(&device, group);
                if reads.is_empty() {
                    continue;
                }
                asks.extend(reads.iter().map(ask_of));
                let tellers = telling::tellers(&ingest, &config.name, &unit.name, &device, group);
                jobs.push(Job { unit: index, group, reads, due: now, look: None, tellers });
            }
            let doubt = Doubt::default();
            units.push(Unit { name: unit.name.clone(), number: unit.unit, device, doubt, silence: None, asks });
        }
        let (writer, writes) = write::pair(ready.allowed);
        stats.set_problem(Some("not connected yet".into()));
        Self {
            dial: ready.dial,
            ingest,
            stats,
            waiter: Waiter::default(),
            units,
            jobs,
            line: None,
            down: None,
            is_late_expected: false,
            writer,
            writes,
            in_flight: VecDeque::new(),
            config,
        }
    }

    /// Where the bus is.
    pub fn address(&self) -> String {
        self.dial.address.to_string()
    }

    /// The handle through which commands reach the bus.
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Works until the shutdown; then awaits the receipts of what it has handed in.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let bell = self.waiter.bell();
        loop {
            self.take_receipts();
            let now = clock::instant();
            self.look(now);
            while let Ok(write) = self.writes.try_recv() {
                self.write(write).await;
            }
            let Some(next) = (0..self.jobs.len()).min_by_key(|index| self.jobs[*index].due) else {
                shutdown.begun().await;
                break;
            };
            let due = self.jobs[next].due;
            if due <= clock::instant() {
                // Whatever is dropped half-way has told nobody anything.
                tokio::select! {
                    biased;
                    () = shutdown.begun() => break,
                    () = self.work(next) => {}
                }
                continue;
            }
            let look = self.jobs.iter().filter_map(|job| job.look).min().unwrap_or(due).min(due);
            let wait = look.saturating_duration_since(now).min(SLEEP_MAX);
            // Every arm is safe to drop half-way.
            let write = tokio::select! {
                biased;
                () = shutdown.begun() => break,
                () = bell.rung() => None,
                write = self.writes.recv() => write,
                () = tokio::time::sleep(wait) => None,
            };
            if let Some(write) = write {
                self.write(write).await;
            }
        }
        self.line = None;
        self.stats.connections.set(0);
        self.stats.set_problem(Some("the gateway is shutting down".into()));
        let deadline = tokio::time::sleep(DRAIN_WAIT_MAX);
        tokio::pin!(deadline);
        while !self.in_flight.is_empty() && !self.ingest.is_closed() {
            tokio::select! {
                () = &mut deadline => break,
                () = bell.rung() => self.take_receipts(),
            }
        }
    }

    /// Reads a group, and hands in what has changed.
    async fn work(&mut self, index: usize) {
        let unit = self.jobs[index].unit;
        let started = clock::instant();
        let waits = [&self.down, &self.units[unit].silence].into_iter().flatten().map(|silence| silence.next_try).max();
        if let Some(until) = waits.filter(|until| *until > started) {
            self.jobs[index].due = until;
            return;
        }
        let was_silent = self.units[unit].silence.is_some() || self.down.is_some();
        match self.read(index).await {
            Ok(()) => {
                let now = clock::instant();
                self.hear(unit);
                let job = &mut self.jobs[index];
                let interval = self.units[unit].device.groups[job.group].interval;
                job.due = if was_silent { started + interval } else { next_due(job.due, interval, now) };
                self.tell(index, now);
            }
            Err(fault) => self.miss(unit, &fault),
        }
    }

    /// Does what a command asks; without an answer it is not tried again.
    async fn write(&mut self, write: Write) {
        let is_down = [&self.down, &self.units[write.unit].silence].into_iter().flatten().next();
        let done = match is_down {
            Some(silence) => Err(NotWritten::Refused(format!("the device does not answer: {}", silence.why))),
            None => self.write_once(write.unit, &write.ask).await,
        };
        let unit = &self.units[write.unit].name;
        match &done {
            Ok(()) => tracing::info!(source = %self.config.name, unit, "written"),
            Err(error) => tracing::warn!(source = %self.config.name, unit, %error, "not written"),
        }
        // Whoever asked may have gone.
        let _ = write.answer.send(done);
    }
}

fn ask_of(read: &Read) -> Ask {
    Ask::Read(read.table, read.address, read.count)
}

/// The next time on the same beat that is still to come: what was missed is not made up for.
fn next_due(due: Instant, interval: Duration, now: Instant) -> Instant {
    let next = due + interval;
    if next > now {
        return next;
    }
    let behind = now.duration_since(due).as_nanos();
    let beats = behind / interval.as_nanos().max(1) + 1;
    due + interval.saturating_mul(u32::try_from(beats).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beat_is_kept_and_missed_beats_are_not_made_up_for() {
        let start = clock::instant();
        let at = |millis| start + Duration::from_millis(millis);
        let interval = Duration::from_millis(100);
        assert_eq!(next_due(start, interval, at(3)), at(100));
        assert_eq!(next_due(start, interval, at(99)), at(100));
        assert_eq!(next_due(start, interval, at(100)), at(200));
        assert_eq!(next_due(start, interval, at(1234)), at(1300));
    }
}
