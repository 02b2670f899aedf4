//! Read-only journal: opens the journal of a stopped gateway for inspection.
//!
//! Promise: while it is open, no gateway starts on the journal. No file is changed except the lock file: a repair stays
//! in memory, and damaged files are reported, not quarantined.

use super::history::{Extent, History, count_block, damaged_first, sequences_after};
use crate::api::StateRecount;
use crate::journal::lane::config::DEAD;
use crate::journal::lane::publications::{PUBLICATIONS, Publications, Published};
use crate::journal::lane::reader::ReadResult;
use crate::journal::lane::seal::Seal;
use crate::journal::lane::sequence_gaps::{GapFile, Gaps};
use crate::journal::store::cursor::Cursor;
use crate::journal::store::disk::{Disk, FolderLock, LOCK, RealDisk};
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::{Segment, Summary, offset_in_name};
use crate::journal::store::state::State;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// redb cache of an open segment: its events are read once, in order.
const CACHE_BYTES: usize = 1 << 20;

/// The journal of a stopped gateway.
#[derive(Debug)]
pub struct ReadOnlyJournal {
    folder: PathBuf,
    /// Format and environment of the journal.
    pub seal: Seal,
    lanes: Vec<Arc<ReadOnlyLane>>,
    publications: Publications,
    _lock: FolderLock,
}

/// One lane of a read-only journal.
#[derive(Debug)]
pub struct ReadOnlyLane {
    name: String,
    pub(super) folder: PathBuf,
    pub(super) segments: BTreeMap<u64, PathBuf>,
    pub(super) end: u64,
    pub(super) settled: Vec<Cursor>,
    gaps: Gaps,
    damaged: Vec<(u64, String)>,
    publications: Publications,
    /// The segment that was read last.
    opened: Mutex<Option<Arc<Segment>>>,
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
        let (gap_file, gap_file_damage) = load_gap_file(folder);
        let mut lanes = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| JournalError::io(folder, error))? {
            let path = entry.map_err(|error| JournalError::io(folder, error))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() && name != PUBLICATIONS {
                let mut lane = ReadOnlyLane::open(&name, path, gap_file.of(&name), publications.clone())?;
                lane.damaged.extend(gap_file_damage.iter().map(|why| (0, why.clone())));
                lanes.push(Arc::new(lane));
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
    pub fn lanes(&self) -> &[Arc<ReadOnlyLane>] {
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

impl ReadOnlyLane {
    fn open(name: &str, folder: PathBuf, gaps: Gaps, publications: Publications) -> Result<Self, JournalError> {
        let mut lane = Self {
            name: name.to_owned(),
            folder,
            segments: BTreeMap::new(),
            end: 1,
            settled: Vec::new(),
            gaps,
            damaged: Vec::new(),
            publications,
            opened: Mutex::new(None),
        };
        for (name, _) in RealDisk.list(&lane.folder).map_err(|error| JournalError::io(&lane.folder, error))? {
            let path = lane.folder.join(&name);
            if let Some(first) = offset_in_name(&name) {
                lane.segments.insert(first, path);
            } else if name.ends_with(".damaged") {
                lane.damaged.push((damaged_first(&path).unwrap_or(0), format!("{} is set aside", path.display())));
            }
        }
        while let Some((&first, path)) = lane.segments.last_key_value() {
            match newest(path, first) {
                Ok((end, settled)) => {
                    (lane.end, lane.settled) = (end, settled);
                    break;
                }
                Err(error @ JournalError::Damaged { .. }) => {
                    lane.damaged.push((first, error.to_string()));
                    lane.segments.remove(&first);
                }
                Err(error) => return Err(error),
            }
        }
        // Like a start: behind every recorded gap.
        lane.end = lane.gaps.skip_gap(lane.end);
        Ok(lane)
    }

    /// The segment that holds an offset, or the next one: first offset, file, and start of the segment behind it.
    fn segment(&self, offset: u64) -> Option<(u64, &PathBuf, Option<u64>)> {
        let (first, path) = self.segments.range(..=offset).next_back().or_else(|| self.segments.iter().next())?;
        Some((*first, path, self.segments.range(first + 1..).next().map(|(next, _)| *next)))
    }

    pub(super) fn open_segment(&self, path: &Path) -> Result<Arc<Segment>, JournalError> {
        let mut opened = self.opened.lock();
        if let Some(segment) = opened.as_ref().filter(|segment| segment.path() == path) {
            return Ok(Arc::clone(segment));
        }
        *opened = None;
        let segment = Arc::new(Segment::open_without_repair(&RealDisk, path, CACHE_BYTES)?);
        *opened = Some(Arc::clone(&segment));
        Ok(segment)
    }

    pub(super) fn summary(&self, path: &Path) -> Result<Summary, JournalError> {
        self.open_segment(path)?.view()?.summary()
    }
}

/// End of the newest segment, and the cursors at its end.
fn newest(path: &Path, first: u64) -> Result<(u64, Vec<Cursor>), JournalError> {
    let segment = Segment::open_without_repair(&RealDisk, path, CACHE_BYTES)?;
    let summary = segment.view()?.summary()?;
    let mut settled = summary.settled.clone();
    if let Some(closed) = &summary.closed {
        return Ok((closed.end, settled));
    }
    let mut next = first;
    while let Some(block) = segment.view()?.block_from(next)? {
        next = block.end();
        for newer in &block.header.settled {
            match settled.iter_mut().find(|known| known.destination == newer.destination) {
                Some(known) if newer.is_past(known) => *known = newer.clone(),
                Some(_) => {}
                None => settled.push(newer.clone()),
            }
        }
    }
    Ok((next, settled))
}

impl History for ReadOnlyLane {
    fn name(&self) -> &str {
        &self.name
    }

    fn oldest(&self) -> u64 {
        self.segments.keys().next().copied().unwrap_or(self.end)
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    fn find(&self, offset: u64) -> Result<ReadResult, JournalError> {
        let mut offset = self.gaps.skip_gap(offset);
        loop {
            let lost = |offset, to| Ok(ReadResult::Lost { to: self.gaps.clip_at_gap(offset, to) });
            let Some((first, path, limit)) = self.segment(offset) else { return lost(offset, self.end) };
            offset = offset.max(first);
            match (self.open_segment(path)?.view()?.block_from(offset)?, limit) {
                (Some(block), limit) if limit.is_none_or(|limit| block.header.first < limit) => {
                    return Ok(ReadResult::Block(Arc::new(block)));
                }
                (_, Some(limit)) if limit == offset => {}
                (_, Some(limit)) => return lost(offset, limit),
                (_, None) => return lost(offset, self.end),
            }
        }
    }

    fn next_file(&self, offset: u64) -> u64 {
        self.segments.range(offset + 1..).next().map_or(self.end, |(first, _)| *first)
    }

    fn extent(&self, offset: u64) -> Option<Extent> {
        let (_, path, _) = self.segment(offset)?;
        Extent::of(&self.summary(path).ok()?).filter(|extent| extent.holds(offset))
    }

    fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.publications.of(number)
    }

    fn stream_name(&self, stream: u32) -> String {
        self.publications.stream_name(stream)
    }

    fn cursors(&self) -> Vec<Cursor> {
        self.settled.clone()
    }

    fn damaged(&self) -> Vec<(u64, String)> {
        self.damaged.clone()
    }
}

/// The next sequence of every stream at the start of the segment that begins at `first`, or behind the newest
/// segment if there is none at `first`.
pub(super) fn sequences_at(lane: &ReadOnlyLane, first: u64) -> Result<Vec<(u32, u64)>, JournalError> {
    if let Some(path) = lane.segments.get(&first) {
        return Ok(lane.summary(path)?.sequences);
    }
    let Some((&newest, path)) = lane.segments.last_key_value() else { return Ok(Vec::new()) };
    let summary = lane.summary(path)?;
    let mut sequences = sequences_after(&summary);
    if summary.closed.is_none() {
        let segment = lane.open_segment(path)?;
        let mut next = newest;
        while let Some(block) = segment.view()?.block_from(next)? {
            next = block.end();
            count_block(&mut sequences, &block);
        }
    }
    Ok(sequences)
}
