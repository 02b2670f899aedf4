//! Read-only journal: opens the journal of a stopped gateway for inspection.
//!
//! Promise: while it is open, no gateway starts on the journal. No file is changed except the lock file: a repair stays
//! in memory, and damaged files are reported, not quarantined.

use crate::api::StateRecount;
use crate::journal::lane::config::DEAD;
use crate::journal::lane::damage::Damage;
use crate::journal::lane::log::{LaneLog, LogContent};
use crate::journal::lane::newest_segment::NewestSegment;
use crate::journal::lane::publications::{PUBLICATIONS, Publications};
use crate::journal::lane::seal::Seal;
use crate::journal::lane::segment_files::list_segments;
use crate::journal::lane::sequence_gaps::GapFile;
use crate::journal::store::disk::{Disk, FolderLock, LOCK, RealDisk};
use crate::journal::store::error::JournalError;
use crate::journal::store::segment_cache::SegmentCache;
use crate::journal::store::state::State;
use parking_lot::RwLock;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// redb cache of each open segment: its events are read once, in order.
const CACHE_BYTES: usize = 1 << 20;

/// The journal of a stopped gateway.
#[derive(Debug)]
pub struct ReadOnlyJournal {
    folder: PathBuf,
    /// Format and environment of the journal.
    pub seal: Seal,
    lanes: Vec<Arc<LaneLog>>,
    publications: Publications,
    _lock: FolderLock,
}

impl ReadOnlyJournal {
    /// Opens a journal for inspection. Fails with [`JournalError::InUse`] if a gateway runs on it.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let disk = RealDisk;
        let seal = Seal::read(&disk, folder)?;
        let lock_path = folder.join(LOCK);
        let is_new = !lock_path.exists();
        let lock = match disk.lock(folder).map_err(|error| JournalError::io(&lock_path, error))? {
            Ok(lock) => lock,
            Err(holder) => return Err(JournalError::InUse { folder: folder.to_owned(), holder }),
        };
        if is_new {
            give_to_owner(folder, &lock_path);
        }
        let publications = Publications::load(folder);
        let shared = Arc::new(RwLock::new(publications.clone()));
        let cache = Arc::new(SegmentCache::read_only(Arc::new(RealDisk), CACHE_BYTES));
        let (gap_file, gap_file_damage) = load_gap_file(folder);
        let mut lanes = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| JournalError::io(folder, error))? {
            let path = entry.map_err(|error| JournalError::io(folder, error))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() && name != PUBLICATIONS {
                let gaps = gap_file.of(&name);
                let unreadable = gap_file_damage.iter().map(|why| (0, Damage::Unreadable(why.clone()))).collect();
                let content = LogContent { name, folder: path, gaps, unreadable, ..LogContent::default() };
                lanes.push(Arc::new(open_log(content, &cache, &shared)?));
            }
        }
        // Lanes of events first, by name; dead letters last.
        lanes.sort_by(|a, b| (a.name == DEAD, &a.name).cmp(&(b.name == DEAD, &b.name)));
        Ok(Self { folder: folder.to_owned(), seal, lanes, publications, _lock: lock })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Counts the notes in `state.redb` and checks their checksums. Blocks the thread.
    pub fn recount_state(&self) -> StateRecount {
        State::recount_without_repair(Arc::new(RealDisk), &self.folder)
    }

    /// Its lanes, the log of dead letters last.
    pub fn lanes(&self) -> &[Arc<LaneLog>] {
        &self.lanes
    }

    pub fn publications(&self) -> &Publications {
        &self.publications
    }
}

/// Reads the gaps. Unlike a start it does not quarantine a damaged file; the second value describes the damage.
fn load_gap_file(folder: &Path) -> (GapFile, Option<String>) {
    let path = folder.join("unused.json");
    match fs::read(&path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(gap_file) => (gap_file, None),
            Err(error) => (GapFile::default(), Some(format!("{}: {error}", path.display()))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (GapFile::default(), None),
        Err(error) => (GapFile::default(), Some(format!("{}: {error}", path.display()))),
    }
}

/// Gives a new lock file to the owner of the folder: one that belongs to root would keep the gateway's user out.
fn give_to_owner(folder: &Path, lock: &Path) {
    use std::os::unix::fs::{MetadataExt, chown};
    if let Ok(owner) = fs::metadata(folder) {
        // If that is not permitted, this user owns the folder already, or its owner has to correct the rights.
        let _ = chown(lock, Some(owner.uid()), Some(owner.gid()));
    }
}

/// Reads the log of a lane, of which `content` has name, folder and gaps. Damage is reported and stays where it is.
fn open_log(
    mut content: LogContent,
    cache: &Arc<SegmentCache>,
    publications: &Arc<RwLock<Publications>>,
) -> Result<LaneLog, JournalError> {
    (content.segments, _) = list_segments(cache, &content.folder, |_| Ok(()))?;
    let newest = loop {
        let Some((&first, part)) = content.segments.last_key_value() else { break NewestSegment::default() };
        match cache.open_newest(&part.path).and_then(|segment| NewestSegment::read(segment, first, None)) {
            Ok(newest) => break newest,
            Err(error @ JournalError::Damaged { .. }) => {
                content.unreadable.push((first, Damage::Unreadable(error.to_string())));
                content.segments.remove(&first);
            }
            Err(error) => return Err(error),
        }
    };
    // Like a start: behind every recorded gap.
    content.end = content.gaps.skip_gap(newest.next);
    content.settled = newest.settled;
    content.sequences = newest.sequences.into_iter().collect();
    Ok(LaneLog::new(content, Arc::clone(cache), Arc::clone(publications), None, 0))
}
