//! The state that all lanes of a journal share.

use super::audit::Audit;
use super::config::{Config, DEAD};
use super::dedupe_window::Window;
use super::planted_bugs::{self, Bug};
use super::publications::{Publications, Published};
use crate::clock;
use crate::event::Record;
use crate::journal::store::disk::{Disk, Identity};
use crate::journal::store::error::JournalError;
use crate::journal::store::fingerprint::{Fingerprint, FingerprintKey};
use crate::journal::store::segment_cache::SegmentCache;
use crate::journal::store::state::State;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The status reports a tight disk for this long after segments were reclaimed early.
const RECLAIM_SHOWN_FOR: Duration = Duration::from_secs(600);

/// State that all lanes share.
#[derive(Debug)]
pub(in crate::journal) struct Core {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) folder: PathBuf,
    /// Identity of the locked folder.
    pub(super) identity: Identity,
    pub(in crate::journal) state: Arc<State>,
    pub(super) audit: Audit,
    pub(in crate::journal) reserve_bytes: AtomicU64,
    /// Time when segments were last reclaimed early because the disk was used up.
    pub(super) reclaimed_at: Mutex<Option<Instant>>,
    pub(super) dead_retention: Mutex<Duration>,
    pub(super) tail_bytes: usize,
    window: Mutex<Window>,
    fingerprint_key: FingerprintKey,
    pub(in crate::journal) publications: Arc<RwLock<Publications>>,
    pub(in crate::journal) segments: Arc<SegmentCache>,
    /// Held while events are discarded: the note of the loss and the accounts change together.
    pub(super) discard_lock: Mutex<()>,
    /// Notified when a loss waits for its announcement.
    pub(super) losses: Notify,
    /// Whether a dead letter is resolved.
    pub(super) is_resolved: OnceLock<IsResolved>,
}

/// What a start reads before the lanes.
pub(super) struct Opened {
    pub disk: Arc<dyn Disk>,
    /// Identity of the locked folder.
    pub identity: Identity,
    pub state: State,
    pub fingerprint_key: FingerprintKey,
    pub publications: Publications,
    pub quarantined: Vec<PathBuf>,
}

/// Returns whether the dead letter at an offset is resolved: nobody has to deal with it.
pub(super) struct IsResolved(pub(super) Box<dyn Fn(u64) -> bool + Send + Sync>);

impl std::fmt::Debug for IsResolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IsResolved")
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
    pub(super) fn new(config: &Config, opened: Opened) -> Self {
        let Opened { disk, identity, state, fingerprint_key, publications, quarantined } = opened;
        let state = Arc::new(state);
        Self {
            segments: Arc::new(SegmentCache::new(Arc::clone(&disk), config.cache_bytes, quarantined)),
            disk,
            folder: config.folder.clone(),
            identity,
            audit: Audit::new(Arc::clone(&state)),
            state,
            reserve_bytes: config.reserve_bytes.into(),
            reclaimed_at: Mutex::default(),
            dead_retention: config.dead_retention.into(),
            tail_bytes: config.tail_bytes,
            window: Mutex::new(Window::new(config.dedupe_bytes)),
            fingerprint_key,
            publications: Arc::new(RwLock::new(publications)),
            discard_lock: Mutex::new(()),
            losses: Notify::new(),
            is_resolved: OnceLock::new(),
        }
    }

    pub(super) fn disk_room(&self, folder: &Path) -> Result<DiskRoom, JournalError> {
        let free = self.disk.free_bytes(folder).map_err(|error| JournalError::io(folder, error))?;
        let reclaimed_at = *self.reclaimed_at.lock();
        let reclaimed_lately = reclaimed_at.is_some_and(|at| clock::instant().duration_since(at) < RECLAIM_SHOWN_FOR);
        Ok(DiskRoom { free, reserve: self.reserve_bytes.load(Ordering::Relaxed), reclaimed_lately })
    }

    pub(super) fn is_disk_used_up(&self, folder: &Path) -> bool {
        self.disk_room(folder).is_ok_and(DiskRoom::is_used_up)
    }

    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }

    /// Fingerprint that identifies repeats of an event; `None` if the gateway minted its id.
    pub(in crate::journal) fn fingerprint(&self, record: &Record<'_>) -> Option<Fingerprint> {
        let stream = if planted_bugs::has(Bug::StreamLeftOut) { 0 } else { self.stream_of(record.publication) };
        self.fingerprint_key.fingerprint(record, stream)
    }

    pub(super) fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.publications.read().of(number)
    }

    /// Number of the stream of a publication; 0 for records without a publication.
    pub(super) fn stream_of(&self, publication: u32) -> u32 {
        self.publications.read().stream_of(publication)
    }

    /// Name of a stream by its number; "unmatched" for records without a stream.
    pub(in crate::journal) fn stream_name(&self, stream: u32) -> String {
        self.publications.read().stream_name(stream)
    }

    /// Longest retention of settled events among the streams of a lane.
    pub(super) fn retention_settled(&self, lane: &str) -> Duration {
        if lane == DEAD {
            return *self.dead_retention.lock();
        }
        Duration::from_secs(self.publications.read().retention_settled(lane))
    }
}
