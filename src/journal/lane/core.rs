//! The state that all lanes of a journal share.

use super::config::DEAD;
use super::dedupe_window::Window;
use super::handle::Lane;
use super::publications::{Catalog, Published};
use super::{audit, loss, planted_bugs};
use crate::clock;
use crate::journal::store::disk::{self, Disk};
use crate::journal::store::error::{JournalError, quarantine};
use crate::journal::store::fingerprint::{Fingerprint, FingerprintKey};
use crate::journal::store::segment::Segment;
use crate::journal::store::state;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The status reports a tight disk for this long after segments were reclaimed early.
const RECLAIM_SHOWN_FOR: Duration = Duration::from_secs(600);
/// Closed segments that stay open for reading, over all lanes.
const OPEN_SEGMENTS_MAX: usize = 4;

/// State that all lanes share.
#[derive(Debug)]
pub(in crate::journal) struct Core {
    pub(in crate::journal) disk: Arc<dyn Disk>,
    pub(in crate::journal) folder: PathBuf,
    /// Identity of the locked folder.
    pub(in crate::journal) identity: disk::Identity,
    pub(in crate::journal) state: state::State,
    pub(in crate::journal) reserve_bytes: AtomicU64,
    /// Lanes in the order of the configuration, without the log of dead letters.
    pub(in crate::journal) lanes: std::sync::OnceLock<Vec<Weak<Lane>>>,
    /// Time when segments were last reclaimed early because the disk was used up.
    pub(in crate::journal) reclaimed_at: Mutex<Option<Instant>>,
    pub(in crate::journal) dead_retention: Mutex<Duration>,
    pub(in crate::journal) cache_bytes: usize,
    pub(in crate::journal) tail_bytes: usize,
    pub(in crate::journal) window: Mutex<Window>,
    pub(in crate::journal) fingerprint_key: FingerprintKey,
    pub(in crate::journal) catalog: RwLock<Catalog>,
    pub(in crate::journal) opened: Mutex<Vec<Arc<Segment>>>,
    pub(in crate::journal) quarantined: Mutex<Vec<PathBuf>>,
    /// Held while events are discarded: the note of the loss and the accounts change together.
    pub(in crate::journal) discard_lock: Mutex<()>,
    /// Notified when a loss waits for its announcement.
    pub(in crate::journal) losses: loss::LossNotify,
    /// Whether a dead letter is resolved.
    pub(in crate::journal) is_resolved: std::sync::OnceLock<IsResolved>,
    pub(super) audited: audit::AuditCounts,
}

/// Returns whether the dead letter at an offset is resolved: nobody has to deal with it.
pub(in crate::journal) struct IsResolved(pub(in crate::journal) Box<dyn Fn(u64) -> bool + Send + Sync>);

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
    pub(in crate::journal) fn disk_room(&self, folder: &Path) -> Result<DiskRoom, JournalError> {
        let free = self.disk.free_bytes(folder).map_err(|error| JournalError::io(folder, error))?;
        let reclaimed_at = *self.reclaimed_at.lock();
        let reclaimed_lately = reclaimed_at.is_some_and(|at| clock::instant().duration_since(at) < RECLAIM_SHOWN_FOR);
        Ok(DiskRoom { free, reserve: self.reserve_bytes.load(Ordering::Relaxed), reclaimed_lately })
    }

    pub(in crate::journal) fn is_disk_used_up(&self, folder: &Path) -> bool {
        self.disk_room(folder).is_ok_and(DiskRoom::is_used_up)
    }

    /// Lanes in reverse order of the configuration: the least urgent one is usually declared last.
    pub(in crate::journal) fn lanes_least_urgent_first(&self) -> impl Iterator<Item = Arc<Lane>> {
        self.lanes.get().into_iter().flatten().rev().filter_map(Weak::upgrade)
    }

    pub(in crate::journal) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }

    /// Fingerprint that identifies repeats of an event; `None` if the gateway minted its id.
    pub(in crate::journal) fn fingerprint(&self, record: &crate::event::Record<'_>) -> Option<Fingerprint> {
        let stream =
            if planted_bugs::has(planted_bugs::Bug::StreamLeftOut) { 0 } else { self.stream_of(record.publication) };
        self.fingerprint_key.fingerprint(record, stream)
    }

    pub(in crate::journal) fn published(&self, number: u32) -> Option<Arc<Published>> {
        let catalog = self.catalog.read();
        catalog.list.get(number as usize)?.clone()
    }

    /// Number of the stream of a publication; 0 for records without a publication.
    pub(in crate::journal) fn stream_of(&self, publication: u32) -> u32 {
        let catalog = self.catalog.read();
        catalog.list.get(publication as usize).and_then(Option::as_ref).map_or(0, |published| published.stream)
    }

    /// Name of a stream by its number; "unmatched" for records without a stream.
    pub(in crate::journal) fn stream_name(&self, stream: u32) -> String {
        let catalog = self.catalog.read();
        let found = catalog.list.iter().flatten().find(|published| published.stream == stream);
        found.map_or_else(|| "unmatched".to_owned(), |published| published.publication.stream_id())
    }

    /// Longest retention of settled events among the streams of a lane.
    pub(in crate::journal) fn retention_settled(&self, lane: &Lane) -> Duration {
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
    pub(in crate::journal) fn age_limits(&self, lane: &str) -> Vec<(u64, Vec<u32>)> {
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
    pub(in crate::journal) fn open_segment(&self, path: &Path) -> Result<Arc<Segment>, JournalError> {
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

    pub(in crate::journal) fn forget_segment(&self, path: &Path) {
        let mut opened = self.opened.lock();
        opened.retain(|segment| segment.path() != path);
    }

    pub(in crate::journal) fn quarantine(&self, path: &Path) {
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
