//! Segments that are open for reading, over all lanes, and the files that were found damaged.
//!
//! Promise: a damaged file of a running journal is renamed to `*.damaged`, and the rest of the journal stays readable.
//! Invariant: a file is never open twice.

use super::disk::Disk;
use super::error::{JournalError, quarantine};
use super::segment::Segment;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Segments that stay open for reading.
const OPEN_MAX: usize = 4;

/// The open segments of a journal.
#[derive(Debug)]
pub(crate) struct SegmentCache {
    disk: Arc<dyn Disk>,
    cache_bytes: usize,
    /// Whether no file may be changed: a repair stays in memory.
    is_read_only: bool,
    opened: Mutex<Vec<Arc<Segment>>>,
    quarantined: Mutex<Vec<PathBuf>>,
}

impl SegmentCache {
    /// Creates a cache without open segments; each of them will have `cache_bytes` of memory for its pages. `quarantined`
    /// are files that are known to be damaged.
    pub(crate) fn new(disk: Arc<dyn Disk>, cache_bytes: usize, quarantined: Vec<PathBuf>) -> Self {
        Self { disk, cache_bytes, is_read_only: false, opened: Mutex::default(), quarantined: Mutex::new(quarantined) }
    }

    /// A cache for the files of a stopped journal, which stay as they are.
    pub(crate) fn read_only(disk: Arc<dyn Disk>, cache_bytes: usize) -> Self {
        Self { is_read_only: true, ..Self::new(disk, cache_bytes, Vec::new()) }
    }

    /// Opens a segment that nobody else has open, as its writer does.
    pub(crate) fn open_newest(&self, path: &Path) -> Result<Segment, JournalError> {
        match self.is_read_only {
            true => Segment::open_without_repair(&*self.disk, path, self.cache_bytes),
            false => Segment::open(&*self.disk, path, self.cache_bytes),
        }
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// redb cache of each open segment, in bytes.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// Opens a closed segment for reading, or returns the open one.
    pub(crate) fn open(&self, path: &Path) -> Result<Arc<Segment>, JournalError> {
        let mut opened = self.opened.lock();
        if let Some(index) = opened.iter().position(|segment| segment.path() == path) {
            let segment = opened.remove(index);
            opened.push(Arc::clone(&segment));
            return Ok(segment);
        }
        if opened.len() >= OPEN_MAX
            && let Some(index) = opened.iter().position(|segment| Arc::strong_count(segment) == 1)
        {
            // It is closed under the lock: a file must never be open twice.
            drop(opened.remove(index));
        }
        let segment = match self.is_read_only {
            true => Segment::open_without_repair(&*self.disk, path, self.cache_bytes)?,
            false => Segment::open_closed(&*self.disk, path, self.cache_bytes)?,
        };
        let segment = Arc::new(segment);
        opened.push(Arc::clone(&segment));
        Ok(segment)
    }

    /// Takes over the handle of a writer, which `release` returns. Readers that find no active segment open the file
    /// themselves, under the same lock: they must not do so before the handle is closed or listed here, since two handles
    /// on one file would damage it.
    pub(crate) fn take_over(&self, release: impl FnOnce() -> Option<Arc<Segment>>) {
        let mut opened = self.opened.lock();
        let Some(active) = release() else { return };
        if Arc::strong_count(&active) > 1 {
            // A reader still uses the handle; it stays open until that reader is done.
            opened.push(active);
        } else {
            drop(active);
        }
    }

    /// Closes a segment, as soon as its readers are done.
    pub(crate) fn forget(&self, path: &Path) {
        self.opened.lock().retain(|segment| segment.path() != path);
    }

    pub(crate) fn close(&self) {
        self.opened.lock().clear();
    }

    pub(crate) fn quarantine(&self, path: &Path) {
        self.forget(path);
        match quarantine(&*self.disk, path) {
            Ok(to) => {
                tracing::error!(file = %to.display(), "set aside a damaged file under this name; the gateway continues without it");
                self.add_quarantined(to);
            }
            Err(error) => {
                tracing::error!(%error, "could not set a damaged file aside; the gateway continues without it")
            }
        }
    }

    /// Lists a file as damaged.
    pub(crate) fn add_quarantined(&self, path: PathBuf) {
        self.quarantined.lock().push(path);
    }

    /// Damaged files, including those of earlier runs.
    pub(crate) fn quarantined(&self) -> Vec<PathBuf> {
        self.quarantined.lock().clone()
    }
}
