//! Replays: settled events that the gateway sends again.

use crate::event::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Destination that receives the events.
    pub destination: String,
    pub filter: ReplayFilter,
    pub rate: Option<u64>,
    #[serde(default)]
    pub dry_run: bool,
}

/// Selects the events of a replay. The journal stores it with the replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayFilter {
    /// Only events recorded at or after this time.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub since: Option<Timestamp>,
    /// Only events recorded before this time.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub until: Option<Timestamp>,
    /// Only these streams; a pattern may end in `*`. An empty list means all streams except those of the gateway.
    #[serde(default)]
    pub streams: Vec<String>,
    /// Only events with this key.
    pub key: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayState {
    /// It sends whenever no lane of the destination has a backlog.
    Running,
    Paused,
    /// Central has answered every event.
    Done,
    Cancelled,
}

/// Settled events that the gateway sends to a destination again. The journal stores it as a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Number of the replay, unique in this gateway.
    pub id: u64,
    pub destination: String,
    pub filter: ReplayFilter,
    /// Largest rate in events per second.
    pub rate: Option<u64>,
    pub state: ReplayState,
    /// Number of selected events at the start.
    pub events: u64,
    /// Number of events that central has acknowledged; after a restart some may be counted twice.
    pub sent: u64,
    /// Number of events that central rejected permanently, or that were removed from the journal
    /// while central rejected them temporarily.
    pub failed: u64,
    #[serde(with = "crate::event::as_text")]
    pub begun: Timestamp,
    /// For each lane: name, next offset, end (exclusive).
    pub lanes: Vec<(String, u64, u64)>,
}
