//! Salvage: extracts the events of a file that can no longer be read as a segment.
//!
//! Promise: a block is extracted only if its checksum matches, and each event once. Missing offsets are reported. The
//! file is never changed.
//!
//! First the file is read in its own order. If that is broken, it is scanned byte by byte: redb stores a value in one
//! piece, and a block begins with a magic number, its length and its checksum.

use crate::event::Timestamp;
use crate::journal::lane::segment_files::damaged_first;
use crate::journal::store::block::Block;
use crate::journal::store::cursor::Cursor;
use crate::journal::store::disk::{Disk, DiskFile, FolderLock, LOCK, Open, RealDisk};
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::{Segment, Summary, offset_in_name};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at once during a scan.
const SCAN_BYTES: usize = 1 << 20;
/// redb cache for a file that is read once.
const CACHE_BYTES: usize = 1 << 20;

/// Content found in a file.
#[derive(Clone, Debug, Serialize)]
pub struct Salvaged {
    pub file: PathBuf,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Reason why it cannot be read in its own order; `None` if it can.
    pub broken: Option<String>,
    pub blocks: u64,
    /// Events in the valid blocks.
    pub events: u64,
    /// Offset of the first event of the file, by its name or by its content.
    pub first: u64,
    /// Offset after the last event, if known.
    pub end: Option<u64>,
    /// Missing offsets: from, to (exclusive).
    pub missing: Vec<(u64, u64)>,
    /// Blocks ignored since a newer block has the same offsets: remains of a commit that never ended.
    pub superseded: u64,
    /// Low marks of destinations when the file was created or closed, if readable.
    pub cursors: Vec<(String, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct BlockLocation {
    end: u64,
    recorded: Timestamp,
    /// Position in the file and length; `None` if the block was found in the file's own order.
    at: Option<(u64, usize)>,
}

/// A damaged file and the blocks found in it.
#[derive(Debug)]
pub struct Salvage {
    pub found: Salvaged,
    segment: Option<Segment>,
    file: Box<dyn DiskFile>,
    places: BTreeMap<u64, BlockLocation>,
    _lock: Option<FolderLock>,
}

/// Locks the journal that a segment belongs to. A file with another ending, such as `.damaged`, is no segment of a running
/// gateway; and where the user may not lock, the file is read as it is.
fn lock_journal_of(path: &Path) -> Result<Option<FolderLock>, JournalError> {
    let journal = path.parent().and_then(Path::parent).filter(|journal| journal.join(LOCK).exists());
    let Some(journal) = journal.filter(|_| path.extension().is_some_and(|ending| ending == "redb")) else {
        return Ok(None);
    };
    match RealDisk.lock(journal) {
        Ok(Ok(lock)) => Ok(Some(lock)),
        Ok(Err(holder)) => Err(JournalError::InUse { folder: journal.to_owned(), holder }),
        Err(_) => Ok(None),
    }
}

impl Salvage {
    /// Reads a whole file. `on_progress` receives the number of bytes done and the length of the file. Fails with
    /// [`JournalError::InUse`] if a gateway may write the file meanwhile.
    pub fn open(path: &Path, mut on_progress: impl FnMut(u64, u64)) -> Result<Self, JournalError> {
        let lock = lock_journal_of(path)?;
        let file = RealDisk.open(path, Open::ReadOnly).map_err(|error| JournalError::io(path, error))?;
        let bytes = file.length().map_err(|error| JournalError::io(path, error))?;
        let found = Salvaged {
            file: path.to_owned(),
            bytes,
            broken: None,
            blocks: 0,
            events: 0,
            first: 0,
            end: None,
            missing: Vec::new(),
            superseded: 0,
            cursors: Vec::new(),
        };
        let mut salvage = Self { found, segment: None, file, places: BTreeMap::new(), _lock: lock };
        let mut summary = None;
        if let Err(error) = salvage.read_in_order(path, &mut summary) {
            salvage.found.broken = Some(error.to_string());
            salvage.scan_bytes(&mut on_progress).map_err(|error| JournalError::io(path, error))?;
        }
        salvage.summarize(path, summary.as_ref());
        Ok(salvage)
    }

    /// Reads the blocks in the file's own order, as far as possible.
    fn read_in_order(&mut self, path: &Path, summary: &mut Option<Summary>) -> Result<(), JournalError> {
        let segment = Segment::open_without_repair(&RealDisk, path, CACHE_BYTES)?;
        let view = segment.view()?;
        let outcome = (|| {
            *summary = view.summary().ok();
            let mut next = 0;
            while let Some(block) = view.block_from(next)? {
                // A broken tree can lead in a circle.
                if block.end() <= next {
                    return Err(JournalError::Damaged {
                        file: path.to_owned(),
                        reason: "its tree leads in a circle".into(),
                    });
                }
                next = block.end();
                self.keep(&block, None);
            }
            match summary {
                Some(_) => Ok(()),
                None => view.summary().map(|_| ()),
            }
        })();
        drop(view);
        self.segment = Some(segment);
        outcome
    }

    /// Scans the whole file for blocks.
    fn scan_bytes(&mut self, on_progress: &mut dyn FnMut(u64, u64)) -> std::io::Result<()> {
        let length = self.found.bytes;
        let mut window = Vec::new();
        let mut base = 0;
        while base < length {
            window.resize(SCAN_BYTES.min((length - base) as usize), 0);
            self.file.read(base, &mut window)?;
            let mut next = base;
            while let Some(place) = find_magic(&window, base, next) {
                next = place + Block::MAGIC.len() as u64;
                if let Some((block, bytes)) = self.block_at(place)? {
                    self.keep(&block, Some((place, bytes)));
                    next = place + bytes as u64;
                }
            }
            // The last byte of a window may be the first byte of a block.
            let end = base + window.len() as u64;
            base = if end < length { next.max(end - 1) } else { end };
            on_progress(base.min(length), length);
        }
        Ok(())
    }

    fn block_at(&self, place: u64) -> std::io::Result<Option<(Block, usize)>> {
        let left = usize::try_from(self.found.bytes - place).unwrap_or(usize::MAX);
        let mut value = vec![0; Block::HEAD_BYTES.min(left)];
        self.file.read(place, &mut value)?;
        let Some(bytes_max) = Block::value_bytes_max(&value) else { return Ok(None) };
        value.resize(bytes_max.min(left), 0);
        self.file.read(place, &mut value)?;
        Ok(Block::decode_first(&value).ok())
    }

    fn keep(&mut self, block: &Block, at: Option<(u64, usize)>) {
        let (first, end, recorded) = (block.header.first, block.end(), block.header.recorded);
        if end <= first {
            return;
        }
        let overlapping: Vec<u64> =
            self.places.range(..end).filter(|(_, place)| place.end > first).map(|(first, _)| *first).collect();
        for other in &overlapping {
            let known = self.places[other];
            // redb copies a page to change it: old copies of a block are found too.
            if (*other, known.end, known.recorded) == (first, end, recorded) {
                return;
            }
            if known.at.is_none() || known.recorded >= recorded {
                self.found.superseded += 1;
                return;
            }
        }
        for other in overlapping {
            self.places.remove(&other);
            self.found.superseded += 1;
        }
        self.places.insert(first, BlockLocation { end, recorded, at });
    }

    /// Summarizes the blocks found and the missing offsets.
    fn summarize(&mut self, path: &Path, summary: Option<&Summary>) {
        let found = &mut self.found;
        found.blocks = self.places.len() as u64;
        found.events = self.places.iter().map(|(first, place)| place.end - first).sum();
        let lowest = self.places.keys().next().copied();
        let highest = self.places.values().next_back().map(|place| place.end);
        let named = damaged_first(path);
        found.first = summary.map(|summary| summary.first).or(named).or(lowest).unwrap_or(0);
        let closed = summary.and_then(|summary| summary.closed.as_ref()).map(|closed| closed.end);
        // A quarantined file ends where the next one of its lane begins.
        found.end = closed.or_else(|| next_first(path, found.first));
        found.cursors = summary.map(|summary| cursors(&summary.settled)).unwrap_or_default();
        let mut next = found.first;
        for (first, place) in &self.places {
            if *first > next {
                found.missing.push((next, *first));
            }
            next = next.max(place.end);
        }
        if let Some(end) = found.end.filter(|end| *end > next && *end > highest.unwrap_or(0)) {
            found.missing.push((next, end));
        }
    }

    /// The blocks in the order of their offsets.
    pub fn blocks(&self) -> impl Iterator<Item = Result<Arc<Block>, JournalError>> {
        let path = &self.found.file;
        self.places.iter().map(move |(first, place)| {
            let block = match (place.at, &self.segment) {
                (Some((at, bytes)), _) => {
                    let mut value = vec![0; bytes];
                    self.file.read(at, &mut value).map_err(|error| JournalError::io(path, error))?;
                    Block::decode(&value).ok()
                }
                (None, Some(segment)) => segment.view()?.block_from(*first)?,
                (None, None) => None,
            };
            let changed = || JournalError::Damaged { file: path.clone(), reason: "it changes while it is read".into() };
            block.map(Arc::new).ok_or_else(changed)
        })
    }
}

/// Position of the next magic number at or after `from` in a window of the file.
fn find_magic(window: &[u8], base: u64, from: u64) -> Option<u64> {
    let rest = window.get(usize::try_from(from - base).ok()?..)?;
    rest.windows(Block::MAGIC.len()).position(|two| two == Block::MAGIC).map(|index| from + index as u64)
}

fn cursors(settled: &[Cursor]) -> Vec<(String, u64)> {
    settled.iter().map(|settled| (settled.destination.clone(), settled.low)).collect()
}

/// First offset of the next segment in the same folder.
fn next_first(path: &Path, first: u64) -> Option<u64> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let names = RealDisk.list(folder).ok()?;
    let firsts = names.iter().filter_map(|(name, _)| offset_in_name(name.trim_end_matches(".damaged")));
    firsts.filter(|other| *other > first).min()
}
