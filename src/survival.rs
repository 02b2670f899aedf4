//! Survival: how long the disk lasts at the present rate, and how long the drain will take.
//!
//! Promise: what is said follows from what was measured in the last minutes, and is left out where
//! nothing can be said.

use crate::clock;
use crate::journal::{DiskRoom, Full, Journal};
use crate::shutdown::Shutdown;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Samples that rates are measured over: a minute.
const SAMPLES: usize = 31;
/// Longer than this nobody plans: ten years.
const SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;

/// One lane at one moment.
#[derive(Clone, Debug, Default)]
struct Sample {
    end: u64,
    /// Events that each destination has settled since the journal was begun.
    settled: Vec<(String, u64)>,
}

#[derive(Debug)]
struct Moment {
    at: Instant,
    lanes: Vec<Sample>,
}

/// Measures the rates of every lane.
#[derive(Debug)]
pub struct Survival {
    journal: Arc<Journal>,
    moments: Mutex<VecDeque<Moment>>,
    /// When the gateway was started, and what it had written to the disk then.
    begun: (Instant, u64),
}

/// How long a lane lasts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outlook {
    /// The lane.
    pub lane: String,
    /// Events that came in a second, over the last minute.
    pub events_per_second: f64,
    /// Bytes of the log that they took.
    pub bytes_per_second: f64,
    /// Bytes of the log that somebody still needs.
    pub needed_bytes: u64,
    /// Seconds until the budget or the disk is used up, if central takes nothing more.
    pub full_in_seconds: Option<u64>,
    /// What happens then.
    pub then: String,
    /// For each destination.
    pub drains: Vec<Drain>,
}

/// How long a destination takes for what it is still owed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Drain {
    /// The destination.
    pub destination: String,
    /// Events that it still needs.
    pub queued: u64,
    /// About how many bytes of the log those take.
    pub queued_bytes: u64,
    /// Events that it settled in a second, over the last minute.
    pub events_per_second: f64,
    /// Seconds until nothing waits any more, at the present speed of the link and of what comes in.
    pub drained_in_seconds: Option<u64>,
}

impl Survival {
    /// Nothing is measured yet.
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal, moments: Mutex::default(), begun: (clock::instant(), written_bytes()) }
    }

    /// Measures until the shutdown.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        loop {
            self.sample(clock::instant());
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(SAMPLE_EVERY) => {}
            }
        }
    }

    fn sample(&self, at: Instant) {
        let of_lane = |lane: &Arc<crate::journal::Lane>| Sample {
            end: lane.end(),
            settled: lane
                .destinations()
                .into_iter()
                .map(|name| {
                    let settled = lane.settled(&name).unwrap_or_default();
                    let total = settled.accounts.iter().map(crate::journal::Account::settled).sum();
                    (name, total)
                })
                .collect(),
        };
        let lanes = self.journal.lanes().iter().map(of_lane).collect();
        let mut moments = self.moments.lock();
        moments.push_back(Moment { at, lanes });
        while moments.len() > SAMPLES {
            moments.pop_front();
        }
    }

    /// Bytes written to the disk in a day, at the rate since the start; `None` in the first minute.
    pub fn flash_bytes_per_day(&self) -> Option<u64> {
        let elapsed = clock::instant().duration_since(self.begun.0).as_secs_f64();
        let written = written_bytes().saturating_sub(self.begun.1);
        (elapsed >= 60.0).then(|| (written as f64 / elapsed * 86_400.0) as u64)
    }

    /// How long each lane lasts.
    pub fn outlooks(&self) -> Vec<Outlook> {
        let now = clock::instant();
        self.sample(now);
        let moments = self.moments.lock();
        let (Some(first), Some(last)) = (moments.front(), moments.back()) else { return Vec::new() };
        let elapsed = last.at.duration_since(first.at).as_secs_f64();
        let lanes = self.journal.lanes().iter().zip(first.lanes.iter().zip(&last.lanes));
        let mut outlooks: Vec<_> = lanes.map(|(lane, (before, after))| outlook(lane, before, after, elapsed)).collect();
        let held: u64 = self.journal.lanes().iter().map(|lane| lane.bytes()).sum();
        if let Ok(room) = self.journal.disk_room() {
            by_disk(&mut outlooks, held, room);
        }
        outlooks
    }
}

/// The disk may be used up before the budgets are; what is delivered makes way on it.
fn by_disk(outlooks: &mut [Outlook], held: u64, room: DiskRoom) {
    let needed: u64 = outlooks.iter().map(|outlook| outlook.needed_bytes).sum();
    let bytes = room.free.saturating_add(held.saturating_sub(needed)).saturating_sub(room.reserve);
    let per_second: f64 = outlooks.iter().map(|outlook| outlook.bytes_per_second).sum();
    let Some(full) = seconds(bytes as f64, per_second) else { return };
    for outlook in outlooks.iter_mut().filter(|outlook| outlook.bytes_per_second > 0.0) {
        outlook.full_in_seconds = Some(outlook.full_in_seconds.map_or(full, |budget| budget.min(full)));
    }
}

fn seconds(amount: f64, rate: f64) -> Option<u64> {
    (rate > 0.0).then(|| amount / rate).filter(|seconds| *seconds < SECONDS_MAX).map(|seconds| seconds as u64)
}

fn outlook(lane: &crate::journal::Lane, before: &Sample, after: &Sample, elapsed: f64) -> Outlook {
    let status = lane.status();
    let per_second = |count: u64| if elapsed > 0.5 { count as f64 / elapsed } else { 0.0 };
    let events_per_second = per_second(after.end.saturating_sub(before.end));
    let held = lane.held_events();
    let bytes_each = if held > 0 { status.bytes as f64 / held as f64 } else { 0.0 };
    let queued_most = status.destinations.iter().map(|to| to.queued).max().unwrap_or(held);
    let needed_bytes = (queued_most as f64 * bytes_each) as u64;
    let bytes_per_second = events_per_second * bytes_each;
    let drains = status
        .destinations
        .iter()
        .map(|to| {
            let count = |sample: &Sample| {
                sample.settled.iter().find(|(name, _)| *name == to.destination).map_or(0, |(_, count)| *count)
            };
            let rate = per_second(count(after).saturating_sub(count(before)));
            Drain {
                destination: to.destination.clone(),
                queued: to.queued,
                queued_bytes: (to.queued as f64 * bytes_each) as u64,
                events_per_second: rate,
                drained_in_seconds: if to.queued == 0 {
                    Some(0)
                } else {
                    seconds(to.queued as f64, rate - events_per_second)
                },
            }
        })
        .collect();
    Outlook {
        lane: lane.name.clone(),
        events_per_second,
        bytes_per_second,
        needed_bytes,
        full_in_seconds: seconds(status.budget.saturating_sub(needed_bytes) as f64, bytes_per_second),
        then: match lane.full() {
            Full::StopAcknowledging => "stops acknowledging".into(),
            Full::ShedOldest => "gives up the oldest".into(),
        },
        drains,
    }
}

/// Bytes that this process has caused to be written to a disk, as the kernel counts them.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_used_up_before_a_budget_is_what_counts() {
        let lane = |bytes_per_second, full_in_seconds| Outlook {
            bytes_per_second,
            full_in_seconds,
            needed_bytes: 40,
            ..Outlook::default()
        };
        let mut lanes = vec![lane(6.0, Some(1000)), lane(4.0, Some(3)), lane(0.0, None), lane(0.0, None)];
        // 1,000 to write until the reserve, 40 that are delivered, at 10 a second.
        by_disk(&mut lanes, 200, DiskRoom { free: 1500, reserve: 500, reclaimed_lately: false });
        let seconds: Vec<_> = lanes.iter().map(|lane| lane.full_in_seconds).collect();
        assert_eq!(seconds, [Some(104), Some(3), None, None]);
    }
}
