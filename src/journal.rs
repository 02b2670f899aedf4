//! The journal: an append-only log per lane, with the events that the gateway has promised to deliver.
//!
//! Promise: a [`Receipt`] proves that its event survives a power cut.
//! Invariants:
//! - each lane has one writer thread; offsets and sequences rise without gaps and are never used twice;
//! - a segment is removed only after every destination has settled its events;
//! - a damaged file is set aside (`*.damaged`) and reported; the gateway continues without it.
//!
//! The log of a lane is a series of segments, `journal/{lane}/{first offset}.redb`. The writer appends to the newest
//! one; the others are read-only. Each is small enough to be repaired, lost or removed as a whole.
//!
//! Not here: what an event means (`contract`), where it goes (`forward`).

mod audit;
mod block;
mod block_records;
mod cursor;
mod dedupe_window;
pub mod disk;
mod gateway_events;
mod group_commit;
mod heartbeat;
mod high_water;
mod lane;
mod loss;
mod notes;
mod open;
mod planted_bugs;
mod reader;
mod reconfigure;
mod retention;
mod segment;
mod sequence_gaps;
mod sequence_recovery;
mod state;
#[cfg(test)]
mod stepped;
mod writer;

pub use audit::{AuditReader, AuditUsage, BEGUN, DONE};
pub use block::{BadBlock, Block, Compressor, Header, Run, append_record};
pub use block_records::{BlockReader, Step};
pub use cursor::{Account, Cursor, OUTCOMES, Outcome};
pub use disk::{Disk, RealDisk};
pub use gateway_events::GatewayEvent;
pub use group_commit::{SubmitError, Ticket, Waiter, WaiterHandle};
pub use high_water::Given;
pub use lane::{Durable, Lane, LaneStats};
pub use loss::{Loss, LostStream};
pub use notes::Notes;
pub use open::{Journal, PUBLICATIONS, Seal, publications_in};
#[cfg(test)]
pub(crate) use planted_bugs::{Bug, plant};
pub use reader::{Follower, ReadResult};
pub use state::{Change, Note};
#[cfg(test)]
pub(crate) use stepped::Stepped;

// Operations on a whole journal: export, backup, verify, salvage.
mod backup;
mod export;
mod history;
mod overlay;
mod readonly;
mod salvage;
mod verify;

pub use backup::BackupError;
pub use export::{BadSelection, Export, SELECTED_MAX, push_line};
pub use history::{Extent, History};
pub use readonly::{Publications, ReadOnlyJournal, ReadOnlyLane};
pub use salvage::{Salvage, Salvaged};
pub use verify::Verification;

use crate::clock;
use crate::contract::{Publication, Renderer};
use dedupe_window::{Fingerprint, FingerprintKey, Window};
use parking_lot::{Mutex, MutexGuard, RwLock};
use segment::Segment;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Name of the log that holds dead letters.
pub const DEAD: &str = "dead";

/// Proof that the journal holds an event, after fsync.
#[derive(Debug)]
#[must_use = "an acknowledgement needs a receipt"]
pub struct Receipt(());

/// Settings of the journal.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the journal.
    pub folder: PathBuf,
    /// The lanes, without the one for dead letters.
    pub lanes: Vec<LaneConfig>,
    /// The log of dead letters, named [`DEAD`].
    pub dead: LaneConfig,
    /// Retention of dead letters.
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

/// Settings of a lane.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// Name of the lane.
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

/// A segment is closed at this size, or at a sixteenth of the budget of its lane if that is less.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// The status reports a tight disk for this long after segments were reclaimed early.
const RECLAIM_SHOWN_FOR: Duration = Duration::from_secs(600);
/// Closed segments that stay open for reading, over all lanes.
const OPEN_SEGMENTS_MAX: usize = 4;

/// Errors of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process holds the lock.
    #[error("the journal {folder} is in use by process {holder}; one gateway has one journal", folder = folder.display())]
    InUse {
        /// Folder of the journal.
        folder: PathBuf,
        /// Process number of the holder.
        holder: String,
    },
    /// The journal belongs to another environment.
    #[error("the journal {folder} belongs to environment \"{sealed}\", not to \"{wanted}\"; use another data_dir", folder = folder.display())]
    Sealed {
        /// Folder of the journal.
        folder: PathBuf,
        /// Environment in the seal.
        sealed: String,
        /// Environment in the configuration.
        wanted: String,
    },
    /// A newer version of Forebay wrote the file.
    #[error("{file} has format {format}; this Forebay reads up to {newest}: install the newer version again", file = file.display())]
    Newer {
        /// Path of the file.
        file: PathBuf,
        /// Format of the file.
        format: u64,
        /// Newest format that this version reads.
        newest: u64,
    },
    /// The content of a file is not what was written.
    #[error("{file} is damaged: {reason}", file = file.display())]
    Damaged {
        /// Path of the file.
        file: PathBuf,
        /// Mismatch that was found.
        reason: String,
    },
    /// The disk fails or is full.
    #[error("{file}: {error}", file = file.display())]
    Io {
        /// Path of the file or folder.
        file: PathBuf,
        /// Error of the operating system.
        error: io::Error,
    },
}

impl JournalError {
    /// Whether a file does not exist.
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }

    fn io(file: &Path, error: io::Error) -> Self {
        Self::Io { file: file.to_owned(), error }
    }

    fn from_redb(file: &Path, error: redb::Error) -> Self {
        match error {
            // redb returns these for a file that is no redb file, or that is cut short.
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::Damaged { file: file.to_owned(), reason: error.to_string() }
            }
            redb::Error::Io(error) => Self::io(file, error),
            redb::Error::PreviousIo => Self::io(file, io::Error::other("an earlier write failed")),
            redb::Error::DatabaseClosed => Self::io(file, io::Error::other("the file is closed")),
            other => Self::Damaged { file: file.to_owned(), reason: other.to_string() },
        }
    }
}

/// Runs a call of redb and reports a panic in it as damage of the file: pages that a failing disk has changed can lead
/// redb anywhere, and this must not stop the gateway.
fn catch_panic<T>(file: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, JournalError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(JournalError::from_redb(file, error)),
        Err(_) => Err(JournalError::Damaged { file: file.to_owned(), reason: "redb cannot read its pages".into() }),
    }
}

/// Renames a damaged file to `*.damaged`; returns the new path.
fn quarantine(disk: &dyn Disk, path: &Path) -> Result<PathBuf, JournalError> {
    let mut to = path.to_owned();
    to.as_mut_os_string().push(".damaged");
    disk.rename(path, &to).map_err(|error| JournalError::io(path, error))?;
    if let Some(folder) = path.parent() {
        disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))?;
    }
    Ok(to)
}

/// Whether a lane accepts events, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// The lane accepts events.
    #[default]
    Good,
    /// Budget or disk is used up; the gateway acknowledges nothing until there is room.
    Full(String),
    /// The disk fails; the gateway acknowledges nothing until a commit succeeds.
    Failed(String),
}

impl Condition {
    fn of(error: &JournalError) -> Self {
        match error {
            JournalError::Io { error, .. } if error.raw_os_error() == Some(28) => {
                Self::Full(format!("the disk is full ({error})"))
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// State that all lanes share.
#[derive(Debug)]
struct Core {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// Identity of the locked folder.
    identity: disk::Identity,
    state: state::State,
    reserve_bytes: AtomicU64,
    /// Lanes in the order of the configuration, without the log of dead letters.
    lanes: std::sync::OnceLock<Vec<Weak<Lane>>>,
    /// Time when segments were last reclaimed early because the disk was used up.
    reclaimed_at: Mutex<Option<Instant>>,
    dead_retention: Mutex<Duration>,
    cache_bytes: usize,
    tail_bytes: usize,
    window: Mutex<Window>,
    fingerprint_key: FingerprintKey,
    catalog: RwLock<Catalog>,
    opened: Mutex<Vec<Arc<Segment>>>,
    quarantined: Mutex<Vec<PathBuf>>,
    /// Held while events are discarded: the note of the loss and the accounts change together.
    discard_lock: Mutex<()>,
    /// Notified when a loss waits for its announcement.
    losses: loss::LossNotify,
    /// Whether a dead letter is resolved.
    is_resolved: std::sync::OnceLock<IsResolved>,
    audited: audit::AuditCounts,
}

/// Returns whether the dead letter at an offset is resolved: nobody has to deal with it.
struct IsResolved(Box<dyn Fn(u64) -> bool + Send + Sync>);

impl std::fmt::Debug for IsResolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IsResolved")
    }
}

/// Publications that stored events refer to, by number.
#[derive(Debug, Default)]
struct Catalog {
    list: Vec<Option<Arc<Published>>>,
}

/// A publication and its numbers in this journal.
#[derive(Debug)]
pub struct Published {
    /// Number of the publication, as stored in records.
    pub number: u32,
    /// Number of its stream; all versions with the same major version share it.
    pub stream: u32,
    /// Publication as central sees it.
    pub publication: Publication,
    /// Renderer of its events.
    pub renderer: Renderer,
}

impl Published {
    /// Whether `wanted` names its stream, with or without version; a `*` at the end matches any rest.
    pub fn is_named(&self, wanted: &str) -> bool {
        let names = [self.publication.stream.as_str(), self.renderer.stream_id()];
        match wanted.strip_suffix('*') {
            Some(start) => names.iter().any(|name| name.starts_with(start)),
            None => names.contains(&wanted),
        }
    }
}

/// Free space of the file system of the journal, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRoom {
    /// Bytes that an unprivileged user may still write.
    pub free: u64,
    /// Bytes that always stay free (`disk_reserve`).
    pub reserve: u64,
    /// Whether segments were reclaimed early in the last ten minutes.
    pub reclaimed_lately: bool,
}

impl DiskRoom {
    /// Whether the reserve is reached: nothing may be written before space is reclaimed.
    pub fn is_used_up(self) -> bool {
        self.free < self.reserve
    }

    /// Whether the reserve is reached, or segments were reclaimed early lately.
    pub fn is_tight(self) -> bool {
        self.is_used_up() || self.reclaimed_lately
    }
}

impl Core {
    fn disk_room(&self, folder: &Path) -> Result<DiskRoom, JournalError> {
        let free = self.disk.free_bytes(folder).map_err(|error| JournalError::io(folder, error))?;
        let reclaimed_at = *self.reclaimed_at.lock();
        let reclaimed_lately = reclaimed_at.is_some_and(|at| clock::instant().duration_since(at) < RECLAIM_SHOWN_FOR);
        Ok(DiskRoom { free, reserve: self.reserve_bytes.load(Ordering::Relaxed), reclaimed_lately })
    }

    fn is_disk_used_up(&self, folder: &Path) -> bool {
        self.disk_room(folder).is_ok_and(DiskRoom::is_used_up)
    }

    /// Lanes in reverse order of the configuration: the least urgent one is usually declared last.
    fn lanes_least_urgent_first(&self) -> impl Iterator<Item = Arc<Lane>> {
        self.lanes.get().into_iter().flatten().rev().filter_map(Weak::upgrade)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }

    /// Fingerprint that identifies repeats of an event; `None` if the gateway minted its id.
    fn fingerprint(&self, record: &crate::event::Record<'_>) -> Option<Fingerprint> {
        let stream =
            if planted_bugs::has(planted_bugs::Bug::StreamLeftOut) { 0 } else { self.stream_of(record.publication) };
        self.fingerprint_key.fingerprint(record, stream)
    }

    fn published(&self, number: u32) -> Option<Arc<Published>> {
        let catalog = self.catalog.read();
        catalog.list.get(number as usize)?.clone()
    }

    /// Number of the stream of a publication; 0 for records without a publication.
    fn stream_of(&self, publication: u32) -> u32 {
        let catalog = self.catalog.read();
        catalog.list.get(publication as usize).and_then(Option::as_ref).map_or(0, |published| published.stream)
    }

    /// Name of a stream by its number; "unmatched" for records without a stream.
    fn stream_name(&self, stream: u32) -> String {
        let catalog = self.catalog.read();
        let found = catalog.list.iter().flatten().find(|published| published.stream == stream);
        found.map_or_else(|| "unmatched".to_owned(), |published| published.publication.stream_id())
    }

    /// Longest retention of settled events among the streams of a lane.
    fn retention_settled(&self, lane: &Lane) -> Duration {
        if lane.name == DEAD {
            return *self.dead_retention.lock();
        }
        let catalog = self.catalog.read();
        let of_lane = catalog.list.iter().flatten().filter(|published| published.publication.lane == lane.name);
        Duration::from_secs(of_lane.map(|published| published.publication.retention_settled).max().unwrap_or(0))
    }

    /// Limits on the age of unsettled events of a lane, in seconds, each with the publications that it applies to.
    /// If every stream of the plant has a limit, the largest one applies to the gateway's own events too: otherwise
    /// they would keep whole segments whose other events have expired.
    fn age_limits(&self, lane: &str) -> Vec<(u64, Vec<u32>)> {
        let catalog = self.catalog.read();
        let of_lane = || catalog.list.iter().flatten().filter(|known| known.publication.lane == lane);
        // The newest version of each stream is in force.
        let newest: BTreeMap<u32, Option<u64>> = of_lane()
            .filter(|known| !known.publication.is_own())
            .map(|known| (known.stream, known.publication.retention_unsettled))
            .collect();
        let own = newest.into_values().collect::<Option<Vec<u64>>>().and_then(|limits| limits.into_iter().max());
        let mut limits: Vec<(u64, Vec<u32>)> = Vec::new();
        for known in of_lane() {
            let limit = if known.publication.is_own() { own } else { known.publication.retention_unsettled };
            let Some(limit) = limit else { continue };
            match limits.iter_mut().find(|(other, _)| *other == limit) {
                Some((_, publications)) => publications.push(known.number),
                None => limits.push((limit, vec![known.number])),
            }
        }
        limits
    }

    /// Opens a closed segment for reading, or returns the open one.
    fn open_segment(&self, path: &Path) -> Result<Arc<Segment>, JournalError> {
        let mut opened = self.opened.lock();
        if let Some(index) = opened.iter().position(|segment| segment.path() == path) {
            let segment = opened.remove(index);
            opened.push(Arc::clone(&segment));
            return Ok(segment);
        }
        if opened.len() >= OPEN_SEGMENTS_MAX
            && let Some(index) = opened.iter().position(|segment| Arc::strong_count(segment) == 1)
        {
            // It is closed under the lock: a file must never be open twice.
            drop(opened.remove(index));
        }
        let segment = Arc::new(Segment::open_closed(&*self.disk, path, self.cache_bytes)?);
        opened.push(Arc::clone(&segment));
        Ok(segment)
    }

    fn forget_segment(&self, path: &Path) {
        let mut opened = self.opened.lock();
        opened.retain(|segment| segment.path() != path);
    }

    fn quarantine(&self, path: &Path) {
        self.forget_segment(path);
        match quarantine(&*self.disk, path) {
            Ok(to) => {
                tracing::error!(file = %to.display(), "set aside a damaged file under this name; the gateway continues without it");
                self.quarantined.lock().push(to);
            }
            Err(error) => {
                tracing::error!(%error, "could not set a damaged file aside; the gateway continues without it")
            }
        }
    }
}

fn sequence_mark(lane: &str, stream: u32) -> String {
    format!("sequence/{lane}/{stream}")
}
