//! Forecasts: time until the disk is full at the present rate, and time to drain the backlogs.
//!
//! Promise: forecasts follow from rates measured over the last minute, and are absent if no rate is known.

use crate::api::{Drain, Outlook};
use crate::clock;
use crate::journal::{DiskRoom, Full, Journal};
use crate::shutdown::Shutdown;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);
/// Number of samples: rates cover a minute.
const SAMPLES: usize = 31;
const SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;

/// Counters of one lane at one time.
#[derive(Clone, Debug, Default)]
struct LaneSample {
    end: u64,
    /// Events that each destination has settled since the journal was created.
    settled: Vec<(String, u64)>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    lanes: Vec<LaneSample>,
}

/// Measures the rates of every lane.
#[derive(Debug)]
pub struct Survival {
    journal: Arc<Journal>,
    samples: Mutex<VecDeque<Sample>>,
    /// Start time, and bytes that the process had written to the disk by then.
    started: (Instant, u64),
}

impl Survival {
    /// Creates the meter without samples.
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal, samples: Mutex::default(), started: (clock::instant(), written_bytes()) }
    }

    /// Takes samples until the shutdown.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        loop {
            self.sample(clock::instant());
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(SAMPLE_INTERVAL) => {}
            }
        }
    }

    fn sample(&self, at: Instant) {
        let of_lane = |lane: &Arc<crate::journal::Lane>| LaneSample {
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
        let mut samples = self.samples.lock();
        samples.push_back(Sample { at, lanes });
        while samples.len() > SAMPLES {
            samples.pop_front();
        }
    }

    /// Bytes written to the disk per day at the rate since the start; `None` in the first minute.
    pub fn flash_bytes_per_day(&self) -> Option<u64> {
        let elapsed = clock::instant().duration_since(self.started.0).as_secs_f64();
        let written = written_bytes().saturating_sub(self.started.1);
        (elapsed >= 60.0).then(|| (written as f64 / elapsed * 86_400.0) as u64)
    }

    /// Returns the forecast for each lane.
    pub fn outlooks(&self) -> Vec<Outlook> {
        let now = clock::instant();
        self.sample(now);
        let samples = self.samples.lock();
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else { return Vec::new() };
        let elapsed = last.at.duration_since(first.at).as_secs_f64();
        let lanes = self.journal.lanes().iter().zip(first.lanes.iter().zip(&last.lanes));
        let mut outlooks: Vec<_> = lanes.map(|(lane, (before, after))| outlook(lane, before, after, elapsed)).collect();
        let held: u64 = self.journal.lanes().iter().map(|lane| lane.bytes()).sum();
        if let Ok(room) = self.journal.disk_room() {
            limit_by_disk(&mut outlooks, held, room);
        }
        outlooks
    }
}

/// Shortens forecasts if the disk is full before the budgets are used up. Settled events count as free space.
fn limit_by_disk(outlooks: &mut [Outlook], held: u64, room: DiskRoom) {
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

fn outlook(lane: &crate::journal::Lane, before: &LaneSample, after: &LaneSample, elapsed: f64) -> Outlook {
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
            let count = |sample: &LaneSample| {
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
            Full::ShedOldest => "sheds the oldest".into(),
        },
        drains,
    }
}

/// Bytes that this process has written to disks (`write_bytes` of the kernel).
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
        // 1,000 bytes until the reserve, 40 delivered, at 10 bytes per second.
        limit_by_disk(&mut lanes, 200, DiskRoom { free: 1500, reserve: 500, reclaimed_lately: false });
        let seconds: Vec<_> = lanes.iter().map(|lane| lane.full_in_seconds).collect();
        assert_eq!(seconds, [Some(104), Some(3), None, None]);
    }
}
