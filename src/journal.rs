//! The journal: events we have promised to deliver.
//!
//! Promise: whoever holds a [`Receipt`] holds proof that the event survives a power cut.
//! Invariants:
//! - one writer a lane; offsets and sequences rise without gaps and are never used twice;
//! - nothing leaves before every destination has settled it;
//! - a damaged file costs itself: it is set aside and named, and the rest serves on.
//!
//! A lane's log is a row of segments, `journal/{lane}/{first offset}.redb`. One is written, the
//! others are only read; each is small enough to be repaired, lost or removed as a whole.
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

pub use audit::{AuditEntry, AuditReader, AuditUsage, BEGUN, DONE};
pub use block::{BadBlock, Block, Compressor, Header, Run, append_record};
pub use block_records::{Step, Walk};
pub use cursor::{Account, OUTCOMES, Outcome, Settled};
pub use disk::{Disk, RealDisk};
pub use gateway_events::OwnEvent;
pub use group_commit::{Bell, NotTaken, Ticket, Waiter};
pub use high_water::Given;
pub use lane::{Backlog, Durable, Lane, LaneStats, LaneStatus};
pub use loss::{Loss, LostStream};
pub use notes::Notes;
pub use open::{Journal, PUBLICATIONS, Seal, publications_in};
#[cfg(test)]
pub(crate) use planted_bugs::{Bug, plant};
pub use reader::{Follower, Found};
pub use state::{Change, Note};
#[cfg(test)]
pub(crate) use stepped::Stepped;

// The journal as a whole: taken out, copied, looked through.
mod backup;
mod export;
mod history;
mod overlay;
mod readonly;
mod salvage;
mod verify;

pub use backup::{Backup, BackupError, BackupProgress};
pub use export::{BadSelection, Export, Progress, SELECTED_MAX, Selection, push_line};
pub use history::{Extent, History};
pub use readonly::{Publications, ReadOnlyJournal, ReadOnlyLane};
pub use salvage::{Salvage, Salvaged};
pub use verify::{Counted, Counting, LaneRecount, OwedRecount, OwedStream, Recount, StateRecount, StreamRecount};

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
#[must_use = "a receipt is what an acknowledgement needs"]
pub struct Receipt(());

/// How the journal is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its folder.
    pub folder: PathBuf,
    /// The lanes, without the one for dead letters.
    pub lanes: Vec<LaneConfig>,
    /// The log of dead letters, named [`DEAD`].
    pub dead: LaneConfig,
    /// How long dead letters are kept.
    pub dead_retention: Duration,
    /// Memory for the window in which repeats are recognised, in bytes.
    pub dedupe_bytes: usize,
    /// What the file system keeps free whatever comes, in bytes.
    pub reserve_bytes: u64,
    /// Cache of each open segment, in bytes.
    pub cache_bytes: usize,
    /// Recently written events kept in memory for those who follow, for each lane, in bytes.
    pub tail_bytes: usize,
    /// The destinations, and where a new one starts.
    pub destinations: Vec<(String, Start)>,
}

/// How a lane is set up.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// Its name.
    pub name: String,
    /// How many bytes its log may take.
    pub budget: u64,
    /// Commits start at least this long apart.
    pub linger: Duration,
    /// What happens when the budget is used up.
    pub full: Full,
    /// Destinations that may not hold back more of the lane than so many bytes.
    pub holds: Vec<(String, u64)>,
    /// Whether the configuration has the lane no more: its events still go out, and it takes no new ones.
    pub is_retired: bool,
}

#[cfg(test)]
impl Config {
    /// A journal without lanes, for tests of what is kept beside them.
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

/// What a lane does when its budget is used up by events that central has not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Full {
    /// Nothing is acknowledged until there is room: devices keep their events.
    #[default]
    StopAcknowledging,
    /// The oldest events are given up, counted and announced.
    ShedOldest,
}

/// Where a destination starts that the journal has not seen before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// With the oldest event there is.
    #[default]
    Oldest,
    /// With the next event that comes.
    Now,
}

/// A segment closes at this size or a sixteenth of its lane's budget.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// How long it is shown that events had to leave for the disk's sake.
const RECLAIM_SHOWN_FOR: Duration = Duration::from_secs(600);
/// Closed segments that stay open for reading, over all lanes.
const OPEN_SEGMENTS_MAX: usize = 4;

/// What a journal operation may come back with.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has the journal.
    #[error("the journal {folder} is in use by process {holder}; one gateway has one journal", folder = folder.display())]
    InUse {
        /// The journal.
        folder: PathBuf,
        /// Process number of the other.
        holder: String,
    },
    /// The journal belongs to another environment.
    #[error("the journal {folder} belongs to environment \"{sealed}\", not to \"{wanted}\"; use another data_dir", folder = folder.display())]
    Sealed {
        /// The journal.
        folder: PathBuf,
        /// Whose it is.
        sealed: String,
        /// Who asks.
        wanted: String,
    },
    /// Written by a newer version.
    #[error("{file} has format {format}; this Forebay reads up to {newest}: install the newer version again", file = file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        format: u64,
        /// The newest one that is understood.
        newest: u64,
    },
    /// Changed since it was written.
    #[error("{file} is damaged: {reason}", file = file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The disk fails or is full.
    #[error("{file}: {error}", file = file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
}

impl JournalError {
    /// Whether a file is not there.
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }

    fn io(file: &Path, error: io::Error) -> Self {
        Self::Io { file: file.to_owned(), error }
    }

    fn from_redb(file: &Path, error: redb::Error) -> Self {
        match error {
            // redb says so of a file that is none of its own, or that ends too early.
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

/// Runs a piece of redb, and takes a panic of its for damage: a file changed by a failing disk can
/// lead a tree walk anywhere, and must cost that file only.
fn catch_panic<T>(file: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, JournalError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(JournalError::from_redb(file, error)),
        Err(_) => Err(JournalError::Damaged { file: file.to_owned(), reason: "its pages lead nowhere".into() }),
    }
}

/// Renames a damaged file so that it is out of the way but not lost; returns its new name.
fn quarantine(disk: &dyn Disk, path: &Path) -> Result<PathBuf, JournalError> {
    let mut to = path.to_owned();
    to.as_mut_os_string().push(".damaged");
    disk.rename(path, &to).map_err(|error| JournalError::io(path, error))?;
    if let Some(folder) = path.parent() {
        disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))?;
    }
    Ok(to)
}

/// Whether a lane takes events, and why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// It does.
    #[default]
    Good,
    /// There is no room; nothing is acknowledged until there is.
    Full(String),
    /// The disk fails; nothing is acknowledged until a commit succeeds.
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

/// What all lanes share.
#[derive(Debug)]
struct Core {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// The folder that the lock is on.
    identity: disk::Identity,
    state: state::State,
    reserve_bytes: AtomicU64,
    /// The lanes, in their order, without the log of dead letters.
    lanes: std::sync::OnceLock<Vec<Weak<Lane>>>,
    /// When events last had to leave for the disk's sake.
    reclaimed_at: Mutex<Option<Instant>>,
    dead_retention: Mutex<Duration>,
    cache_bytes: usize,
    tail_bytes: usize,
    window: Mutex<Window>,
    fingerprint_key: FingerprintKey,
    catalog: RwLock<Catalog>,
    opened: Mutex<Vec<Arc<Segment>>>,
    quarantined: Mutex<Vec<PathBuf>>,
    /// Held while something is given up: its note and its accounts belong together.
    discard_lock: Mutex<()>,
    /// Rung when a loss waits for its announcement.
    losses: loss::LossNotify,
    /// Whether a dead letter needs nobody any more.
    is_resolved: std::sync::OnceLock<IsResolved>,
    audited: audit::AuditCounts,
}

/// Says whether a dead letter needs nobody any more.
struct IsResolved(Box<dyn Fn(u64) -> bool + Send + Sync>);

impl std::fmt::Debug for IsResolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IsResolved")
    }
}

/// The publications that stored events refer to, by number.
#[derive(Debug, Default)]
struct Catalog {
    list: Vec<Option<Arc<Published>>>,
}

/// A publication with its numbers in this journal.
#[derive(Debug)]
pub struct Published {
    /// Number of the publication; what records hold.
    pub number: u32,
    /// Number of its stream; versions of one major share it.
    pub stream: u32,
    /// The publication.
    pub publication: Publication,
    /// The publication, ready to render.
    pub renderer: Renderer,
}

impl Published {
    /// Whether its stream is the one of this name, with or without its version, or begins as a pattern with `*` at the end says.
    pub fn is_named(&self, wanted: &str) -> bool {
        let names = [self.publication.stream.as_str(), self.renderer.stream_id()];
        match wanted.strip_suffix('*') {
            Some(start) => names.iter().any(|name| name.starts_with(start)),
            None => names.contains(&wanted),
        }
    }
}

/// What is left of the file system of the journal, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRoom {
    /// What an ordinary user may still write.
    pub free: u64,
    /// What stays free whatever comes.
    pub reserve: u64,
    /// Whether events had to leave for it lately.
    pub reclaimed_lately: bool,
}

impl DiskRoom {
    /// Whether nothing may be written before something leaves.
    pub fn is_used_up(self) -> bool {
        self.free < self.reserve
    }

    /// Whether events leave, or have lately, because others need their room.
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

    /// The lanes, the least urgent first as they are usually declared.
    fn lanes_least_urgent_first(&self) -> impl Iterator<Item = Arc<Lane>> {
        self.lanes.get().into_iter().flatten().rev().filter_map(Weak::upgrade)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }

    /// What repeats of an event are known by; `None` if its id was minted here.
    fn fingerprint(&self, record: &crate::event::Record<'_>) -> Option<Fingerprint> {
        let stream =
            if planted_bugs::has(planted_bugs::Bug::StreamLeftOut) { 0 } else { self.stream_of(record.publication) };
        self.fingerprint_key.fingerprint(record, stream)
    }

    fn published(&self, number: u32) -> Option<Arc<Published>> {
        let catalog = self.catalog.read();
        catalog.list.get(number as usize)?.clone()
    }

    /// The stream of a publication; 0 for what belongs to none.
    fn stream_of(&self, publication: u32) -> u32 {
        let catalog = self.catalog.read();
        catalog.list.get(publication as usize).and_then(Option::as_ref).map_or(0, |published| published.stream)
    }

    /// Name of a stream by its number; what belongs to none is "unmatched".
    fn stream_name(&self, stream: u32) -> String {
        let catalog = self.catalog.read();
        let found = catalog.list.iter().flatten().find(|published| published.stream == stream);
        found.map_or_else(|| "unmatched".to_owned(), |published| published.publication.stream_id())
    }

    /// The longest time that settled events of a lane stay.
    fn retention_settled(&self, lane: &Lane) -> Duration {
        if lane.name == DEAD {
            return *self.dead_retention.lock();
        }
        let catalog = self.catalog.read();
        let of_lane = catalog.list.iter().flatten().filter(|published| published.publication.lane == lane.name);
        Duration::from_secs(of_lane.map(|published| published.publication.retention_settled).max().unwrap_or(0))
    }

    /// The ages that events of a lane may reach unsettled, in seconds, each with the publications it is for.
    /// Where every stream of the plant has one, the gateway's own reports go with the last of them: they would
    /// hold whole segments otherwise, whose events have expired.
    fn age_limits(&self, lane: &str) -> Vec<(u64, Vec<u32>)> {
        let catalog = self.catalog.read();
        let of_lane = || catalog.list.iter().flatten().filter(|known| known.publication.lane == lane);
        // The newest version of each stream is the one in force.
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

    /// A closed segment, open for reading.
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
            // Closed under the lock, so that no file is ever open twice.
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
                tracing::error!(file = %to.display(), "a damaged file is set aside under this name; the gateway goes on with the rest");
                self.quarantined.lock().push(to);
            }
            Err(error) => tracing::error!(%error, "a damaged file cannot be set aside"),
        }
    }
}

fn sequence_mark(lane: &str, stream: u32) -> String {
    format!("sequence/{lane}/{stream}")
}
