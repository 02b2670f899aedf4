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

mod block;
pub mod disk;
mod gather;
mod open;
mod reader;
mod retention;
mod segment;
mod settled;
mod state;
mod window;
mod writer;

pub use block::{BadBlock, Block, Compressor, Header, Run, append_record};
pub use disk::{Disk, RealDisk};
pub use gather::{NotTaken, Ticket, Waiter};
pub use open::{Journal, Seal, publications_in};
pub use reader::{Follower, Found};
pub use settled::{Account, Outcome, Settled};
pub use window::Fingerprint;

use crate::contract::{Publication, Renderer};
use crate::event::{Record, Timestamp};
use crate::telemetry::{Counter, Histogram};
use gather::Gather;
use segment::Segment;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use window::Window;

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
fn caught<T>(file: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, JournalError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(JournalError::from_redb(file, error)),
        Err(_) => Err(JournalError::Damaged { file: file.to_owned(), reason: "its pages lead nowhere".into() }),
    }
}

/// Renames a damaged file so that it is out of the way but not lost; returns its new name.
fn set_aside(disk: &dyn Disk, path: &Path) -> Result<PathBuf, JournalError> {
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
    state: state::State,
    reserve_bytes: u64,
    cache_bytes: usize,
    tail_bytes: usize,
    window: Mutex<Window>,
    catalog: RwLock<Catalog>,
    opened: Mutex<Vec<Arc<Segment>>>,
    aside: Mutex<Vec<PathBuf>>,
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

impl Core {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self, number: u32) -> Option<Arc<Published>> {
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        catalog.list.get(number as usize)?.clone()
    }

    /// The stream of a publication; 0 for what belongs to none.
    fn stream_of(&self, publication: u32) -> u32 {
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        catalog.list.get(publication as usize).and_then(Option::as_ref).map_or(0, |published| published.stream)
    }

    /// The longest time that settled events of a lane stay.
    fn retention_settled(&self, lane: &Lane) -> Duration {
        if lane.name == DEAD {
            return DEAD_RETENTION;
        }
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        let of_lane = catalog.list.iter().flatten().filter(|published| published.publication.lane == lane.name);
        Duration::from_secs(of_lane.map(|published| published.publication.retention_settled).max().unwrap_or(0))
    }

    /// A closed segment, open for reading.
    fn open_segment(&self, path: &Path) -> Result<Arc<Segment>, JournalError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|segment| segment.path() != path);
    }

    fn set_aside(&self, path: &Path) {
        self.forget_segment(path);
        match set_aside(&*self.disk, path) {
            Ok(to) => {
                tracing::error!(file = %to.display(), "a damaged file is set aside; `forebay salvage` reads what can be read");
                self.aside.lock().unwrap_or_else(PoisonError::into_inner).push(to);
            }
            Err(error) => tracing::error!(%error, "a damaged file cannot be set aside"),
        }
    }
}

/// How long dead letters are kept.
const DEAD_RETENTION: Duration = Duration::from_secs(30 * 86_400);

/// What a lane counts.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Events that got a receipt and are no repeats.
    pub accepted: Counter,
    /// Repeats: acknowledged, and not stored again.
    pub duplicates: Counter,
    /// Events whose id another payload had taken.
    pub id_conflicts: Counter,
    /// Commits that failed.
    pub failed_commits: Counter,
    /// How long commits take.
    pub fsync: Histogram,
}

/// One lane: its log, and the door to it.
#[derive(Debug)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// What it counts.
    pub stats: LaneStats,
    index: usize,
    config: LaneConfig,
    folder: PathBuf,
    gather: Gather,
    core: Arc<Core>,
    log: Mutex<Log>,
    /// Offset after the last event on the disk.
    next: watch::Sender<u64>,
    condition: Mutex<Condition>,
    stopping: (Mutex<bool>, Condvar),
    abandoned: AtomicBool,
    /// A reader found damage in the active segment: the writer leaves it.
    suspect: AtomicBool,
}

/// The segments of a lane and what has become of their events.
#[derive(Debug, Default)]
struct Log {
    segments: BTreeMap<u64, Part>,
    active: Option<Arc<Segment>>,
    tail: VecDeque<Arc<Block>>,
    tail_bytes: usize,
    settled: Vec<Settled>,
    is_settled_written: bool,
    /// Low marks that are on the disk, by destination.
    durable_low: BTreeMap<String, u64>,
    sequences: Vec<(u32, u64)>,
}

/// One segment in the row.
#[derive(Clone, Debug)]
struct Part {
    path: PathBuf,
    bytes: u64,
}

struct Oldest {
    first: u64,
    end: u64,
    closed_at: Timestamp,
}

/// What a lane looks like from outside.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct LaneStatus {
    /// Its name.
    pub name: String,
    /// Events it has taken since the journal was begun.
    pub accepted: u64,
    /// Bytes its log takes.
    pub bytes: u64,
    /// Bytes its log may take.
    pub budget: u64,
    /// Segments of its log.
    pub segments: usize,
    /// Why it takes nothing, if so.
    pub problem: Option<String>,
    /// What each destination still needs.
    pub destinations: Vec<Backlog>,
    /// For each stream: name, accepted.
    pub streams: Vec<(String, u64)>,
}

/// What a destination still needs of a lane.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Backlog {
    /// Name of the destination.
    pub destination: String,
    /// Events it still needs.
    pub queued: u64,
    /// Events that central acknowledged.
    pub delivered: u64,
    /// Events that became dead letters on the way.
    pub dead: u64,
    /// Events in files that are set aside.
    pub set_aside: u64,
    /// When the oldest of the queued was recorded, in microseconds since 1970.
    pub oldest: Option<i64>,
}

impl Lane {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in an event. The ticket becomes a receipt once the event is on the disk; `waiter` is
    /// woken then. A repeat of an event with the same `repeats` gets a receipt and is not stored again.
    pub fn submit(
        &self,
        record: &Record<'_>,
        repeats: Option<(Fingerprint, Duration)>,
        waiter: &mut Waiter,
    ) -> Result<Ticket, NotTaken> {
        self.gather.put(record, repeats, waiter, self.index, writer::CUT_BYTES)
    }

    /// The receipt of a ticket, if there is one yet.
    pub fn receipt(&self, ticket: Ticket) -> Option<Receipt> {
        self.gather.receipt(ticket)
    }

    /// Returns when there may be room for another event. Safe to drop half-way.
    pub async fn room(&self) {
        self.gather.room().await;
    }

    /// Whether the journal is closed: tickets without a receipt stay without.
    pub fn is_closed(&self) -> bool {
        self.gather.is_closed()
    }

    /// Hands in an event and waits until it is on the disk.
    pub async fn append(&self, record: &Record<'_>) -> Result<Receipt, NotTaken> {
        let mut waiter = Waiter::default();
        let ticket = loop {
            match self.submit(record, None, &mut waiter) {
                Ok(ticket) => break ticket,
                Err(NotTaken::NoRoom) => self.room().await,
                Err(NotTaken::Closed) => return Err(NotTaken::Closed),
            }
        };
        self.await_receipt(ticket, &waiter).await
    }

    /// Waits for the receipt of a ticket that `waiter` got. Safe to drop half-way.
    pub async fn await_receipt(&self, ticket: Ticket, waiter: &Waiter) -> Result<Receipt, NotTaken> {
        loop {
            if let Some(receipt) = self.receipt(ticket) {
                return Ok(receipt);
            }
            if self.is_closed() {
                return Err(NotTaken::Closed);
            }
            waiter.woken().await;
        }
    }

    /// Offset after the last event on the disk.
    pub fn end(&self) -> u64 {
        *self.next.borrow()
    }

    /// Whether it takes events, and why not.
    pub fn condition(&self) -> Condition {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A publication that one of its records names.
    pub fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.core.published(number)
    }

    /// Where a destination is.
    pub fn settled(&self, destination: &str) -> Option<Settled> {
        self.log().settled.iter().find(|settled| settled.destination == destination).cloned()
    }

    /// Settles events for a destination. Written with the next append, or alone when the lane is idle.
    pub fn settle(&self, destination: &str, events: &[(u64, u32, Outcome)]) {
        self.change_settled(destination, |settled| {
            for &(offset, stream, outcome) in events {
                settled.settle(offset, stream, outcome);
            }
        });
    }

    /// Passes over offsets whose segment is lost.
    pub fn pass_over(&self, destination: &str, to: u64) {
        self.change_settled(destination, |settled| {
            settled.set_aside += to.saturating_sub(settled.low);
            settled.skip_to(to);
        });
    }

    fn change_settled(&self, destination: &str, change: impl FnOnce(&mut Settled)) {
        let mut log = self.log();
        if let Some(settled) = log.settled.iter_mut().find(|settled| settled.destination == destination) {
            change(settled);
            log.is_settled_written = false;
        }
    }

    /// What the lane looks like.
    pub fn status(&self) -> LaneStatus {
        let end = self.end();
        let log = self.log();
        let destinations = log
            .settled
            .iter()
            .map(|settled| {
                let above: u64 = settled.ranges.iter().map(|(from, to)| to - from).sum();
                Backlog {
                    destination: settled.destination.clone(),
                    queued: end.saturating_sub(settled.low).saturating_sub(above),
                    delivered: settled.accounts.iter().map(|account| account.delivered).sum(),
                    dead: settled.accounts.iter().map(|account| account.dead).sum(),
                    set_aside: settled.set_aside,
                    oldest: None,
                }
            })
            .collect();
        let catalog = self.core.catalog.read().unwrap_or_else(PoisonError::into_inner);
        let name_of = |stream: u32| {
            let found = catalog.list.iter().flatten().find(|published| published.stream == stream);
            found.map_or_else(|| "unmatched".to_owned(), |published| published.publication.stream_id())
        };
        LaneStatus {
            name: self.name.clone(),
            accepted: log.sequences.iter().map(|(_, next)| next - 1).sum(),
            bytes: log.segments.values().map(|part| part.bytes).sum(),
            budget: self.config.budget,
            segments: log.segments.len(),
            problem: match self.condition() {
                Condition::Good => None,
                Condition::Full(why) | Condition::Failed(why) => Some(why),
            },
            destinations,
            streams: log.sequences.iter().map(|(stream, next)| (name_of(*stream), next - 1)).collect(),
        }
    }

    fn set_condition(&self, condition: Condition) {
        let mut current = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == condition {
            return;
        }
        match &condition {
            Condition::Good => tracing::info!(lane = %self.name, "the lane takes events again"),
            Condition::Full(reason) => {
                tracing::error!(lane = %self.name, %reason, "the lane is full: nothing is acknowledged")
            }
            Condition::Failed(reason) => {
                tracing::error!(lane = %self.name, %reason, "the disk fails: nothing is acknowledged")
            }
        }
        *current = condition;
    }

    /// Waits, or returns `true` at once when the journal closes.
    fn pause(&self, wait: Duration) -> bool {
        let stopping = self.stopping.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.stopping.1.wait_timeout_while(stopping, wait, |stopping| !*stopping);
        *outcome.unwrap_or_else(PoisonError::into_inner).0
    }

    fn stop(&self) {
        self.gather.close();
    }

    /// Gives up on a disk that does not take the last batch.
    fn stop_waiting(&self) {
        *self.stopping.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopping.1.notify_all();
    }

    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES_MAX.min(self.config.budget / 16).max(256 << 10)
    }

    fn offset_mark(&self) -> String {
        format!("offset/{}", self.name)
    }

    fn segment_mark(&self) -> String {
        format!("segment/{}", self.name)
    }

    fn sequence_mark(&self, stream: u32) -> String {
        sequence_mark(&self.name, stream)
    }

    fn bytes(&self) -> u64 {
        self.log().segments.values().map(|part| part.bytes).sum()
    }

    fn sequences(&self) -> Vec<(u32, u64)> {
        self.log().sequences.clone()
    }

    /// The cursors to write; empty if nothing changed since the last time, unless `all`.
    fn take_settled(&self, all: bool) -> Vec<Settled> {
        let mut log = self.log();
        if log.is_settled_written && !all {
            return Vec::new();
        }
        log.is_settled_written = true;
        log.settled.clone()
    }

    fn has_unwritten_cursors(&self) -> bool {
        !self.log().is_settled_written
    }

    fn grow(&self, active_bytes: u64) {
        let mut log = self.log();
        if let Some(mut last) = log.segments.last_entry() {
            last.get_mut().bytes = active_bytes;
        }
    }

    fn begin_active(&self, first: u64, segment: Arc<Segment>) {
        let mut log = self.log();
        let part = Part { path: segment.path().to_owned(), bytes: 0 };
        log.segments.insert(first, part);
        log.active = Some(segment);
    }

    fn release_active(&self) {
        let Some(active) = self.log().active.take() else { return };
        if Arc::strong_count(&active) > 1 {
            // A reader still looks at it: it stays open until that one is done.
            self.core.opened.lock().unwrap_or_else(PoisonError::into_inner).push(active);
        }
    }

    fn published_blocks(log: &mut Log, blocks: Vec<Arc<Block>>, bytes_max: usize) {
        for block in blocks {
            log.tail_bytes += block.bytes();
            log.tail.push_back(block);
        }
        while log.tail_bytes > bytes_max && log.tail.len() > 1 {
            if let Some(oldest) = log.tail.pop_front() {
                log.tail_bytes -= oldest.bytes();
            }
        }
    }

    fn reached(&self, end: u64, blocks: Vec<Arc<Block>>, sequences: Vec<(u32, u64)>) {
        {
            let mut log = self.log();
            Self::published_blocks(&mut log, blocks, self.core.tail_bytes);
            log.sequences = sequences;
        }
        self.next.send_replace(end);
    }

    fn followers_wake(&self) {
        self.next.send_modify(|_| ());
    }

    /// Everything below is settled by every destination, and the disk knows it; without
    /// destinations, nothing is.
    fn settled_low(&self) -> u64 {
        if self.name == DEAD {
            return u64::MAX;
        }
        let log = self.log();
        let lows = log.settled.iter().map(|settled| log.durable_low.get(&settled.destination).copied().unwrap_or(0));
        lows.min().unwrap_or(0)
    }

    fn note_durable(&self, settled: &[Settled]) {
        let mut log = self.log();
        for settled in settled {
            log.durable_low.insert(settled.destination.clone(), settled.low);
        }
    }

    fn oldest_closed(&self) -> Option<Oldest> {
        let (first, path, end) = {
            let log = self.log();
            let mut parts = log.segments.iter();
            let (first, part) = parts.next()?;
            let (end, _) = parts.next()?;
            (*first, part.path.clone(), *end)
        };
        let segment = self.core.open_segment(&path).ok()?;
        let closed_at = segment
            .view()
            .and_then(|view| view.summary())
            .ok()
            .map(|summary| summary.closed.map_or(summary.begun, |closed| closed.at))?;
        Some(Oldest { first, end, closed_at })
    }

    fn remove_segment(&self, first: u64) -> Result<(), JournalError> {
        let part = self.log().segments.remove(&first);
        let Some(part) = part else { return Ok(()) };
        self.core.forget_segment(&part.path);
        self.core.disk.remove(&part.path).map_err(|error| JournalError::io(&part.path, error))?;
        tracing::debug!(lane = %self.name, first, "a segment is done and removed");
        Ok(())
    }
}

fn sequence_mark(lane: &str, stream: u32) -> String {
    format!("sequence/{lane}/{stream}")
}
