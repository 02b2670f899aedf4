//! Operations on the whole journal: export, backup, verification.

use crate::event::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExportRequest {
    pub selection: Selection,
    /// Whether each event includes its lane and offset.
    pub with_offsets: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupRequest {
    /// Absolute path of a folder that does not exist yet.
    pub to: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Recorded at this moment or later.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Streams, with or without version; a `*` at the end matches any rest. Empty: all streams.
    pub streams: Vec<String>,
    /// Keys of the events. Empty: all keys.
    pub keys: Vec<String>,
}

/// Progress of an export. All numbers except `done` and `total` count events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportProgress {
    pub done: u64,
    pub total: u64,
    pub events: u64,
    /// Selected events that cannot be rendered: their publication is lost.
    pub unrendered: u64,
    /// Events in files that are set aside or unreadable.
    pub lost: u64,
    /// Whether the export is finished.
    pub is_complete: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupProgress {
    /// Part that is being copied: the name of a lane, or `state`.
    pub part: String,
    pub done: u64,
    /// Bytes in all, as far as known.
    pub total: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    pub folder: PathBuf,
    /// Time when it began, RFC 3339.
    pub taken: String,
    pub bytes: u64,
    /// For each lane: name, number of events, offset after the last.
    pub lanes: Vec<(String, u64, u64)>,
    /// Damaged files of the journal that were not copied.
    pub left_out: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recount {
    /// Result of each lane, the log of dead letters last.
    pub lanes: Vec<LaneRecount>,
    /// Result for the notes: sessions of clients, positions, the audit.
    pub state: StateRecount,
    /// Whether no fault was found.
    pub is_good: bool,
}

/// Count of the notes in `state.redb`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecount {
    pub notes: u64,
    /// Bytes of their names and values.
    pub bytes: u64,
    /// Why the notes cannot be read to the end, or which checksum does not match.
    pub fault: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LaneRecount {
    pub lane: String,
    /// Offset of the oldest stored event.
    pub first: u64,
    /// Offset after the last event.
    pub end: u64,
    /// Blocks with a valid checksum.
    pub blocks: u64,
    pub events: u64,
    pub streams: Vec<StreamRecount>,
    pub destinations: Vec<OwedRecount>,
    pub faults: Vec<String>,
    /// Number of faults that are not described.
    pub faults_unnamed: u64,
    /// Remarks for the operator that are no faults.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRecount {
    /// Name of the stream; `unmatched` for records without one.
    pub stream: String,
    /// Number of the stream in this journal.
    pub number: u32,
    /// Sequence of the oldest stored event.
    pub first: u64,
    /// Sequence of the last event.
    pub last: u64,
    pub events: u64,
    /// Events accepted since the journal was created: sequences up to `last`, without gaps.
    pub accepted: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OwedRecount {
    pub destination: String,
    /// Unsettled events according to its cursor.
    pub queued: u64,
    /// Stored events above its cursor.
    pub counted: u64,
    pub streams: Vec<OwedStream>,
}

/// Backlog of one destination in one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedStream {
    pub stream: String,
    /// Number of the stream in this journal.
    pub number: u32,
    /// Stored events above the cursor.
    pub queued: u64,
    /// Accepted events that are not queued.
    pub settled: u64,
    /// Events in the accounts of this destination.
    pub in_accounts: u64,
    /// Settled events in no account: older than the destination, or in a damaged file.
    pub in_none: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProgress {
    pub done: u64,
    pub total: u64,
}
