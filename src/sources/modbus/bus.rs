//! The task of a bus: one loop that polls the groups that are due and hands in the events of changed values.

mod polling;
mod reporter;
mod reporting;

use super::blocks::Blocks;
use super::plan::{Read, plan};
use super::table::Device;
use super::transport::{Ask, LateAnswers, Line};
use super::write::{self, NotWritten, QueuedWrite, Writer};
use super::{Config, Ready};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Ingest, Producer, Submitted};
use crate::shutdown::Shutdown;
use crate::sources::{Stats, UnitHealth};
use reporter::{Reporter, reporters};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long the source waits for receipts at shutdown.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// The longest sleep of the loop. Whatever it waits for wakes it earlier, or is checked again after this.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Pause between two polls while it is not known which registers the device refuses.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// One bus with its devices.
pub struct Bus {
    config: Config,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    producer: Producer,
    units: Vec<Unit>,
    polls: Vec<GroupPoll>,
    line: Line,
    /// Why there is no connection, and the time of the next attempt.
    down: Option<Silence>,
    writer: Writer,
    writes: mpsc::Receiver<QueuedWrite>,
    /// Accepted by the journal and not yet durable.
    in_flight: VecDeque<(Submitted, Instant)>,
}

/// The state of one device on the bus.
struct Unit {
    name: String,
    number: u8,
    device: Arc<Device>,
    late_answers: LateAnswers,
    silence: Option<Silence>,
    /// Requests that it answers, as far as is known.
    asks: Vec<Ask>,
}

/// A device or the bus does not answer.
#[derive(Clone, Debug)]
struct Silence {
    why: String,
    attempts: u32,
    next_try: Instant,
}

/// The poll of one group of a unit.
struct GroupPoll {
    unit: usize,
    group: usize,
    blocks: Blocks,
    due: Instant,
    /// When to check again whether an event is due, if nothing is read before.
    next_check: Option<Instant>,
    reporters: Vec<Reporter>,
}

impl Bus {
    /// Creates a source; it connects once it runs.
    pub fn new(config: Config, ready: Ready, ingest: Arc<Ingest>, stats: Arc<Stats>) -> Self {
        let now = clock::instant();
        let (mut units, mut polls) = (Vec::new(), Vec::new());
        let at = Timestamp::from(clock::wall());
        let health = config.units.iter().zip(&ready.devices).map(|(unit, device)| {
            let points = device.points.iter();
            let points = points.map(|point| (device.groups[point.group].name.clone(), point.name.clone()));
            UnitHealth::new(&unit.name, unit.unit, points, at)
        });
        stats.units.set(health.collect());
        for (index, (unit, device)) in config.units.iter().zip(ready.devices).enumerate() {
            let mut asks = Vec::new();
            for group in 0..device.groups.len() {
                let reads = plan(&device, group);
                if reads.is_empty() {
                    continue;
                }
                asks.extend(reads.iter().map(ask_of));
                let reporters = reporters(&ingest, &config.name, &unit.name, &device, group);
                let blocks = Blocks::new(reads);
                polls.push(GroupPoll { unit: index, group, blocks, due: now, next_check: None, reporters });
            }
            let late_answers = LateAnswers::default();
            units.push(Unit { name: unit.name.clone(), number: unit.unit, device, late_answers, silence: None, asks });
        }
        let (writer, writes) = write::channel(ready.writable);
        stats.set_problem(Some("not connected yet".into()));
        let timeout = config.timeout.0;
        Self {
            line: Line::new(ready.dial, timeout, timeout / 2),
            producer: Producer::new(Arc::clone(&ingest)),
            ingest,
            stats,
            units,
            polls,
            down: None,
            writer,
            writes,
            in_flight: VecDeque::new(),
            config,
        }
    }

    /// The address of the bus.
    pub fn address(&self) -> String {
        self.line.dial().address.to_string()
    }

    /// The handle through which commands reach the bus.
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Polls until the shutdown, then waits for the receipts of the events that it handed in.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let bell = self.producer.bell();
        loop {
            self.take_receipts();
            let now = clock::instant();
            self.report_scheduled(now);
            while let Ok(write) = self.writes.try_recv() {
                self.write(write).await;
            }
            let Some(next) = (0..self.polls.len()).min_by_key(|index| self.polls[*index].due) else {
                shutdown.begun().await;
                break;
            };
            let due = self.polls[next].due;
            if due <= clock::instant() {
                // A poll dropped half-way has handed in nothing.
                tokio::select! {
                    biased;
                    () = shutdown.begun() => break,
                    () = self.poll(next) => {}
                }
                continue;
            }
            let check = self.polls.iter().filter_map(|poll| poll.next_check).min().unwrap_or(due).min(due);
            let wait = check.saturating_duration_since(now).min(SLEEP_MAX);
            // Every arm is cancel-safe.
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
        self.line.close();
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

    /// Reads a group and hands in the events of its changes.
    async fn poll(&mut self, index: usize) {
        let unit = self.polls[index].unit;
        let started = clock::instant();
        let waits = [&self.down, &self.units[unit].silence].into_iter().flatten().map(|silence| silence.next_try).max();
        if let Some(until) = waits.filter(|until| *until > started) {
            self.polls[index].due = until;
            return;
        }
        let was_silent = self.units[unit].silence.is_some() || self.down.is_some();
        match self.read(index).await {
            Ok(is_pending) => {
                let now = clock::instant();
                self.mark_answered(index);
                let poll = &mut self.polls[index];
                let interval = self.units[unit].device.groups[poll.group].interval;
                poll.due = match is_pending {
                    true => now + interval.min(SEARCH_INTERVAL),
                    false if was_silent => started + interval,
                    false => next_due(poll.due, interval, now),
                };
                self.report(index, now);
            }
            Err(fault) => self.mark_silent(unit, &fault),
        }
    }

    /// Executes a write command. A write without an answer is not repeated.
    async fn write(&mut self, write: QueuedWrite) {
        let is_down = [&self.down, &self.units[write.unit].silence].into_iter().flatten().next();
        let done = match is_down {
            Some(silence) => Err(NotWritten::Refused(format!("the device does not answer: {}", silence.why))),
            None => self.write_once(write.unit, &write.ask).await,
        };
        let unit = &self.units[write.unit].name;
        match &done {
            Ok(()) => tracing::info!(source = %self.config.name, unit, "value written to the device"),
            Err(error) => tracing::warn!(source = %self.config.name, unit, %error, "could not write to the device"),
        }
        // The caller may have stopped waiting.
        let _ = write.answer.send(done);
    }
}

fn ask_of(read: &Read) -> Ask {
    Ask::Read(read.table, read.address, read.count)
}

/// The next future time in the same rhythm. Polls that were missed are skipped.
fn next_due(due: Instant, interval: Duration, now: Instant) -> Instant {
    let next = due + interval;
    if next > now {
        return next;
    }
    let behind = now.duration_since(due).as_nanos();
    let intervals = behind / interval.as_nanos().max(1) + 1;
    due + interval.saturating_mul(u32::try_from(intervals).unwrap_or(u32::MAX))
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
