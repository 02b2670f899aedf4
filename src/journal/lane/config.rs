//! Settings of the journal and of its lanes.

use std::path::PathBuf;
use std::time::Duration;

/// Name of the log that holds dead letters.
pub const DEAD: &str = "dead";

#[derive(Clone, Debug)]
pub struct Config {
    pub folder: PathBuf,
    /// The lanes, without the one for dead letters.
    pub lanes: Vec<LaneConfig>,
    /// The log of dead letters, named [`DEAD`].
    pub dead: LaneConfig,
    pub dead_retention: Duration,
    /// Memory of the dedupe window, in bytes.
    pub dedupe_bytes: usize,
    /// Bytes of the file system that the journal always leaves free.
    pub reserve_bytes: u64,
    /// redb cache of each open segment, in bytes.
    pub cache_bytes: usize,
    /// Memory per lane for the newest events, from which followers read, in bytes.
    pub tail_bytes: usize,
    /// Destinations, and the event at which a new one starts.
    pub destinations: Vec<(String, Start)>,
}

#[derive(Clone, Debug)]
pub struct LaneConfig {
    pub name: String,
    /// Largest size of its log, in bytes.
    pub budget: u64,
    /// Minimum time between the starts of two commits.
    pub linger: Duration,
    /// Behaviour when the budget is used up.
    pub full: Full,
    /// Limits in bytes on the backlog that a destination may cause in this lane.
    pub holds: Vec<(String, u64)>,
    /// Whether the lane is no longer configured: its events are still delivered, and it accepts no new ones.
    pub is_retired: bool,
}

#[cfg(test)]
impl Config {
    /// A journal without lanes, for tests of notes and audit.
    pub(crate) fn of_notes(folder: PathBuf) -> Self {
        Self {
            folder,
            lanes: vec![],
            dead: LaneConfig::dead(256 << 20),
            dead_retention: Duration::from_secs(60),
            dedupe_bytes: 1 << 16,
            reserve_bytes: 0,
            cache_bytes: 1 << 16,
            tail_bytes: 1 << 16,
            destinations: vec![],
        }
    }
}

impl LaneConfig {
    /// A lane that stops acknowledging when it is full.
    pub fn new(name: &str, budget: u64, linger: Duration) -> Self {
        Self { name: name.to_owned(), budget, linger, full: Full::default(), holds: Vec::new(), is_retired: false }
    }

    /// The log of dead letters.
    pub fn dead(budget: u64) -> Self {
        Self::new(DEAD, budget, Duration::from_millis(50))
    }
}

/// Behaviour of a lane whose budget is used up by events that central has not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Full {
    /// The gateway acknowledges no event of the lane until there is room: devices keep their events.
    #[default]
    StopAcknowledging,
    /// The gateway discards the oldest events, counts them and announces the loss.
    ShedOldest,
}

/// The event at which a new destination starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The oldest event in the journal.
    #[default]
    Oldest,
    /// The next event that the journal accepts.
    Now,
}
