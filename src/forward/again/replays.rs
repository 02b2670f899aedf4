//! Replays: which settled events are to be sent again, to whom, and how far that is.
//!
//! Promise: a replay that was begun is there after a restart, at most some seconds behind where it was;
//! what is paused stays paused.

use crate::clock;
use crate::event::Timestamp;
use crate::journal::{Journal, JournalError, Lane, Notes, Published};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

const PREFIX: &str = "replay/";
/// Replays that are remembered; the oldest that are over leave first.
const KEPT_MAX: usize = 50;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Recorded at or after this moment.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub since: Option<Timestamp>,
    /// Recorded before this moment.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub until: Option<Timestamp>,
    /// Streams; `*` at the end stands for any rest. All, if there is none.
    #[serde(default)]
    pub streams: Vec<String>,
    /// This key alone.
    pub key: Option<String>,
}

impl Filter {
    /// Whether an event is meant. The gateway's own streams are only where they are named.
    pub fn takes(&self, published: &Published, key: &str, recorded: Timestamp) -> bool {
        let is_stream = if self.streams.is_empty() {
            !published.publication.stream.starts_with("gateway.")
        } else {
            self.streams.iter().any(|wanted| published.is_named(wanted))
        };
        is_stream
            && self.key.as_deref().is_none_or(|wanted| wanted == key)
            && self.since.is_none_or(|since| recorded >= since)
            && self.until.is_none_or(|until| recorded < until)
    }
}

/// How a replay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayState {
    /// It goes on whenever nothing else has to be sent.
    Running,
    /// It waits for `resume`.
    Paused,
    /// Everything is acknowledged.
    Done,
    /// Somebody ended it.
    Cancelled,
}

/// A replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Its number.
    pub id: u64,
    /// Who gets the events.
    pub destination: String,
    /// Which events.
    pub filter: Filter,
    /// Events a second at most.
    pub rate: Option<u64>,
    /// How it stands.
    pub state: ReplayState,
    /// How many events there were when it was begun.
    pub events: u64,
    /// How many central has acknowledged; after a restart some may be counted twice.
    pub sent: u64,
    /// Events that central refused for ever, or that left the journal while it refused them for now.
    pub failed: u64,
    /// When it was begun.
    #[serde(with = "crate::event::as_text")]
    pub begun: Timestamp,
    /// For each lane: name, next offset, end (exclusive).
    pub(super) lanes: Vec<(String, u64, u64)>,
}

/// All replays.
#[derive(Debug)]
pub struct Replays {
    notes: Notes,
    /// Held from reading how a replay stands to having written what follows.
    writing: Mutex<()>,
    known: Mutex<BTreeMap<u64, Replay>>,
    changed: Notify,
}

impl Replays {
    /// Reads what is noted. Blocks the thread.
    pub fn open(journal: &Journal) -> Result<Self, JournalError> {
        let notes = journal.notes("again");
        let read = |(_, text): (String, Vec<u8>)| serde_json::from_slice::<Replay>(&text).ok();
        let known = notes.all(PREFIX)?.into_iter().filter_map(read).map(|replay| (replay.id, replay)).collect();
        Ok(Self { notes, writing: Mutex::default(), known: Mutex::new(known), changed: Notify::new() })
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Replay>> {
        self.known.lock()
    }

    /// Every replay, oldest first.
    pub fn list(&self) -> Vec<Replay> {
        self.known().values().cloned().collect()
    }

    /// A replay by its number.
    pub fn find(&self, id: u64) -> Option<Replay> {
        self.known().get(&id).cloned()
    }

    /// The oldest one of a destination that is running.
    pub(super) fn running(&self, destination: &str) -> Option<Replay> {
        let is_next = |replay: &&Replay| replay.state == ReplayState::Running && replay.destination == destination;
        self.known().values().find(is_next).cloned()
    }

    /// Returns when a replay may have been begun, paused or resumed. Safe to drop half-way.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Begins a replay, or only counts what it would send. Blocks the thread, for as long as counting takes.
    pub fn begin(
        &self,
        journal: &Journal,
        destination: &str,
        filter: Filter,
        rate: Option<u64>,
        is_dry_run: bool,
    ) -> Result<Replay, JournalError> {
        let mut events = 0;
        let mut lanes = Vec::new();
        for lane in journal.lanes() {
            let from = filter.since.map_or_else(|| lane.first(), |since| lane.offset_at(since));
            let end = lane.end();
            events += count(lane, destination, &filter, from, end)?;
            lanes.push((lane.name.clone(), from, end));
        }
        let _writing = self.writing();
        let id = self.known().keys().next_back().map_or(1, |last| last + 1);
        let begun = Timestamp::from(clock::wall());
        let destination = destination.to_owned();
        let state = ReplayState::Running;
        let replay = Replay { id, destination, filter, rate, state, events, sent: 0, failed: 0, begun, lanes };
        if !is_dry_run {
            self.save(&replay)?;
            self.forget_old()?;
        }
        Ok(replay)
    }

    /// Notes how a replay stands. The caller holds `writing`. Blocks the thread.
    fn save(&self, replay: &Replay) -> Result<(), JournalError> {
        self.notes.write(vec![(format!("{PREFIX}{:010}", replay.id), serde_json::to_vec(replay).ok())])?;
        self.known().insert(replay.id, replay.clone());
        self.changed.notify_waiters();
        Ok(())
    }

    /// Notes how far a replay is, unless somebody has paused or ended it meanwhile; `false` then. Blocks the thread.
    pub(super) fn advance(&self, replay: &Replay) -> Result<bool, JournalError> {
        let _writing = self.writing();
        let state = self.find(replay.id).map(|known| known.state);
        let is_running = state == Some(ReplayState::Running);
        self.save(&Replay {
            state: if is_running { replay.state } else { state.unwrap_or(replay.state) },
            ..replay.clone()
        })?;
        Ok(is_running)
    }

    /// Pauses, resumes or ends a replay. `None` if there is none of that number, or it is over. Blocks the thread.
    pub fn set_state(&self, id: u64, state: ReplayState) -> Result<Option<Replay>, JournalError> {
        let _writing = self.writing();
        let Some(replay) = self.find(id) else { return Ok(None) };
        if matches!(replay.state, ReplayState::Done | ReplayState::Cancelled) {
            return Ok(None);
        }
        let replay = Replay { state, ..replay };
        self.save(&replay)?;
        Ok(Some(replay))
    }

    fn forget_old(&self) -> Result<(), JournalError> {
        let over = |replay: &Replay| matches!(replay.state, ReplayState::Done | ReplayState::Cancelled);
        let old: Vec<u64> = {
            let known = self.known();
            let surplus = known.len().saturating_sub(KEPT_MAX);
            known.values().filter(|replay| over(replay)).take(surplus).map(|replay| replay.id).collect()
        };
        if old.is_empty() {
            return Ok(());
        }
        self.notes.write(old.iter().map(|id| (format!("{PREFIX}{id:010}"), None)).collect())?;
        self.known().retain(|id, _| !old.contains(id));
        Ok(())
    }
}

/// How many events of a lane a replay would send.
fn count(lane: &Arc<Lane>, destination: &str, filter: &Filter, from: u64, end: u64) -> Result<u64, JournalError> {
    let Some(settled) = lane.settled(destination) else { return Ok(0) };
    let mut count = 0;
    let mut next = from;
    while next < end {
        match lane.look(next)? {
            crate::journal::Found::Lost { to } => next = to.max(next + 1),
            crate::journal::Found::Block(block) => {
                let mut walk = crate::journal::Walk::new(block);
                let (recorded, block_end) = (walk.recorded(), walk.end());
                while let Some(step) = walk.step(lane) {
                    let Some((published, _)) = step.numbered else { continue };
                    let is_meant = (next..end).contains(&step.offset) && settled.contains(step.offset);
                    count += u64::from(is_meant && filter.takes(published, step.record.key, recorded));
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
        let seal = Seal { format: 1, environment: "test".into() };
        let journal = Journal::open(&config, &seal, Arc::new(RealDisk)).expect("opens");
        let replays = Replays::open(&journal).expect("opens");
        for round in 0..20 {
            let replay = replays.begin(&journal, "central", Filter::default(), None, false).expect("begins");
            std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    let mut sent = 0;
                    let mut now = replay.clone();
                    while replays.advance(&now).expect("noted") {
                        sent += 1;
                        now.sent = sent;
                    }
                });
                std::thread::sleep(Duration::from_millis(3));
                replays.set_state(replay.id, ReplayState::Paused).expect("noted");
                // It is told so, or would go on for ever.
                worker.join().expect("no panic");
            });
            assert_eq!(replays.find(replay.id).map(|found| found.state), Some(ReplayState::Paused), "round {round}");
        }
        let ids: Vec<u64> = std::thread::scope(|scope| {
            let begin = || replays.begin(&journal, "central", Filter::default(), None, false).expect("begins").id;
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
        });
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "each has a number of its own");
        journal.close(Duration::from_secs(5));
    }
}
