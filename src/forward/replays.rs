//! Replays: their filters, destinations, states and progress.
//!
//! Promise: a replay survives a restart and loses at most a few seconds of its progress; a paused replay stays
//! paused.

use crate::api::{Replay, ReplayFilter, ReplayState};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::{Journal, JournalError, Lane, Notes, Published};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

const PREFIX: &str = "replay/";
/// Largest number of stored replays; the oldest ended ones are removed first.
const STORED_MAX: usize = 50;

impl ReplayFilter {
    /// Whether the filter selects an event. It selects streams of the gateway itself only by name.
    pub fn takes(&self, published: &Published, key: &str, recorded: Timestamp) -> bool {
        let is_stream = if self.streams.is_empty() {
            !published.publication.stream.starts_with("gateway.")
        } else {
            self.streams.iter().any(|wanted| published.is_named(wanted))
        };
        is_stream
            && !published.publication.is_to_devices()
            && self.key.as_deref().is_none_or(|wanted| wanted == key)
            && self.since.is_none_or(|since| recorded >= since)
            && self.until.is_none_or(|until| recorded < until)
    }
}

/// A replay that is asked for.
#[derive(Clone, Debug, Default)]
pub struct ReplaySpec {
    pub destination: String,
    pub filter: ReplayFilter,
    /// Events per second at most; `None` for no limit.
    pub rate: Option<u64>,
}

/// All replays of the gateway, saved as notes.
#[derive(Debug)]
pub struct Replays {
    notes: Notes,
    /// Held from reading a state to saving the state that follows from it.
    write_lock: Mutex<()>,
    by_id: Mutex<BTreeMap<u64, Replay>>,
    changed: Notify,
}

impl Replays {
    /// Loads the saved replays. Blocks the thread.
    pub fn open(journal: &Journal) -> Result<Self, JournalError> {
        let notes = journal.notes("again");
        let read = |(_, text): (String, Vec<u8>)| serde_json::from_slice::<Replay>(&text).ok();
        let by_id = notes.all(PREFIX)?.into_iter().filter_map(read).map(|replay| (replay.id, replay)).collect();
        Ok(Self { notes, write_lock: Mutex::default(), by_id: Mutex::new(by_id), changed: Notify::new() })
    }

    fn write_lock(&self) -> MutexGuard<'_, ()> {
        self.write_lock.lock()
    }

    fn by_id(&self) -> MutexGuard<'_, BTreeMap<u64, Replay>> {
        self.by_id.lock()
    }

    /// Returns all replays, oldest first.
    pub fn list(&self) -> Vec<Replay> {
        self.by_id().values().cloned().collect()
    }

    /// Returns a replay by its number.
    pub fn find(&self, id: u64) -> Option<Replay> {
        self.by_id().get(&id).cloned()
    }

    /// Returns the oldest running replay of a destination.
    pub(super) fn running(&self, destination: &str) -> Option<Replay> {
        let is_next = |replay: &&Replay| replay.state == ReplayState::Running && replay.destination == destination;
        self.by_id().values().find(is_next).cloned()
    }

    /// Waits until a replay may have been started, paused or resumed. Safe to drop half-way.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Starts a replay; with `is_dry_run`, only counts its events. Blocks the thread while it counts.
    pub fn begin(&self, journal: &Journal, wanted: ReplaySpec, is_dry_run: bool) -> Result<Replay, JournalError> {
        let ReplaySpec { destination, filter, rate } = wanted;
        let mut events = 0;
        let mut lanes = Vec::new();
        for lane in journal.lanes() {
            let from = filter.since.map_or_else(|| lane.first(), |since| lane.offset_at(since));
            let end = lane.end();
            events += count(lane, &destination, &filter, (from, end))?;
            lanes.push((lane.name.clone(), from, end));
        }
        let _guard = self.write_lock();
        let id = self.by_id().keys().next_back().map_or(1, |last| last + 1);
        let begun = Timestamp::from(clock::wall());
        let state = ReplayState::Running;
        let replay = Replay { id, destination, filter, rate, state, events, sent: 0, failed: 0, begun, lanes };
        if !is_dry_run {
            self.save(&replay)?;
            self.remove_old()?;
        }
        Ok(replay)
    }

    /// Saves a replay. The caller holds `write_lock`. Blocks the thread.
    fn save(&self, replay: &Replay) -> Result<(), JournalError> {
        self.notes.write(vec![(format!("{PREFIX}{:010}", replay.id), serde_json::to_vec(replay).ok())])?;
        self.by_id().insert(replay.id, replay.clone());
        self.changed.notify_waiters();
        Ok(())
    }

    /// Saves the progress of a replay; keeps its state, and returns `false`, if it is no
    /// longer running. Blocks the thread.
    pub(super) fn save_progress(&self, replay: &Replay) -> Result<bool, JournalError> {
        let _guard = self.write_lock();
        let state = self.find(replay.id).map(|by_id| by_id.state);
        let is_running = state == Some(ReplayState::Running);
        self.save(&Replay {
            state: if is_running { replay.state } else { state.unwrap_or(replay.state) },
            ..replay.clone()
        })?;
        Ok(is_running)
    }

    /// Pauses, resumes or cancels a replay. Returns `None` if there is none of that number or it
    /// has ended. Blocks the thread.
    pub fn set_state(&self, id: u64, state: ReplayState) -> Result<Option<Replay>, JournalError> {
        let _guard = self.write_lock();
        let Some(replay) = self.find(id) else { return Ok(None) };
        if matches!(replay.state, ReplayState::Done | ReplayState::Cancelled) {
            return Ok(None);
        }
        let replay = Replay { state, ..replay };
        self.save(&replay)?;
        Ok(Some(replay))
    }

    fn remove_old(&self) -> Result<(), JournalError> {
        let over = |replay: &Replay| matches!(replay.state, ReplayState::Done | ReplayState::Cancelled);
        let old: Vec<u64> = {
            let by_id = self.by_id();
            let surplus = by_id.len().saturating_sub(STORED_MAX);
            by_id.values().filter(|replay| over(replay)).take(surplus).map(|replay| replay.id).collect()
        };
        if old.is_empty() {
            return Ok(());
        }
        self.notes.write(old.iter().map(|id| (format!("{PREFIX}{id:010}"), None)).collect())?;
        self.by_id().retain(|id, _| !old.contains(id));
        Ok(())
    }
}

/// Counts the events of a lane that a replay would send.
fn count(
    lane: &Arc<Lane>,
    destination: &str,
    filter: &ReplayFilter,
    (from, end): (u64, u64),
) -> Result<u64, JournalError> {
    let Some(settled) = lane.settled(destination) else { return Ok(0) };
    let mut count = 0;
    let mut next = from;
    while next < end {
        match lane.read_at(next)? {
            crate::journal::ReadResult::Lost { to } => next = to.max(next + 1),
            crate::journal::ReadResult::Block(block) => {
                let mut walk = crate::journal::BlockReader::new(block);
                let (recorded, block_end) = (walk.recorded(), walk.end());
                while let Some(step) = walk.step(lane) {
                    let Some((published, _)) = step.numbered else { continue };
                    let is_selected = (next..end).contains(&step.offset) && settled.contains(step.offset);
                    count += u64::from(is_selected && filter.takes(published, step.record.key, recorded));
                }
                next = block_end.max(next + 1);
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Config, RealDisk, Seal};
    use std::time::Duration;

    #[test]
    fn what_is_paused_stays_paused_however_far_it_is_noted_to_be() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let config = Config::of_notes(folder.path().join("journal"));
        let seal = Seal { format: 1, environment: "test".into(), name: None };
        let journal = Journal::open(&config, &seal, Arc::new(RealDisk)).expect("opens");
        let replays = Replays::open(&journal).expect("opens");
        let wanted = || ReplaySpec { destination: "central".into(), ..ReplaySpec::default() };
        for round in 0..20 {
            let replay = replays.begin(&journal, wanted(), false).expect("begins");
            std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    let mut sent = 0;
                    let mut now = replay.clone();
                    while replays.save_progress(&now).expect("noted") {
                        sent += 1;
                        now.sent = sent;
                    }
                });
                std::thread::sleep(Duration::from_millis(3));
                replays.set_state(replay.id, ReplayState::Paused).expect("noted");
                // `save_progress` returns `false`, or the worker would not end.
                worker.join().expect("no panic");
            });
            assert_eq!(replays.find(replay.id).map(|found| found.state), Some(ReplayState::Paused), "round {round}");
        }
        let ids: Vec<u64> = std::thread::scope(|scope| {
            let begin = || replays.begin(&journal, wanted(), false).expect("begins").id;
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
        });
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "each has a number of its own");
        journal.close(Duration::from_secs(5));
    }
}
