//! What an inspection of a whole log reads: its files, their summaries, and the damage.

use super::super::damage::Damage;
use super::super::segment_files::damaged_first;
use super::{LaneLog, ReadResult};
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::{Segment, Summary};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl LaneLog {
    /// First offset of the file behind the one that holds `offset`; the end of the log if there is none.
    pub(in crate::journal) fn next_file(&self, offset: u64) -> u64 {
        let next = self.log.lock().segments.range(offset + 1..).next().map(|(first, _)| *first);
        next.unwrap_or_else(|| self.end())
    }

    /// Segments that nobody writes: first offset and file.
    pub(in crate::journal) fn closed_files(&self) -> Vec<(u64, PathBuf)> {
        let log = self.log.lock();
        let active = log.active.as_ref().map(|active| active.path());
        let closed = log.segments.iter().filter(|(_, part)| Some(part.path.as_path()) != active);
        let mut files: Vec<_> = closed.map(|(first, part)| (*first, part.path.clone())).collect();
        if self.queue.is_none() {
            // The newest segment of a stopped journal may not be closed.
            files.pop();
        }
        files
    }

    /// Summary of the segment that holds `offset`, if nobody writes it and it can be read.
    pub(in crate::journal) fn summary_of(&self, offset: u64) -> Option<Summary> {
        let path = {
            let log = self.log.lock();
            let (_, part) = log.segments.range(..=offset).next_back()?;
            let is_active = log.active.as_ref().is_some_and(|active| active.path() == part.path);
            (!is_active).then(|| part.path.clone())?
        };
        // The reader of its events reports a file that cannot be read.
        self.cache.open(&path).and_then(|segment| segment.view()?.summary()).ok()
    }

    /// Opens a segment so that its file stays unchanged meanwhile; `None` if that is not certain.
    pub(in crate::journal) fn open_stable(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError> {
        let is_stable = |segment: &Arc<Segment>| segment.is_closed() || self.queue.is_none();
        Ok(Some(self.cache.open(file)?).filter(is_stable))
    }

    /// The next sequence of every stream at the start of the segment that begins at `first`, or behind the newest segment
    /// if there is none at `first`.
    pub(in crate::journal) fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError> {
        let (path, active) = {
            let log = self.log.lock();
            let newest = || log.segments.values().next_back();
            let Some(part) = log.segments.get(&first).or_else(newest) else { return Ok(log.sequences.clone()) };
            (part.path.clone(), log.active.clone().filter(|active| active.path() == part.path))
        };
        let segment = active.map_or_else(|| self.cache.open(&path), Ok)?;
        let summary = segment.view()?.summary()?;
        if summary.first == first {
            return Ok(summary.sequences);
        }
        let mut sequences = summary.sequences_after();
        let mut next = summary.first;
        // The summary of a segment after a crash does not describe its content.
        while summary.closed.is_none()
            && next < first
            && let ReadResult::Block(block) = self.read_at(next)?
        {
            block.raise_sequences(&mut sequences);
            next = block.end();
        }
        Ok(sequences)
    }

    /// Damaged files of the lane: first offset, and what is damaged.
    pub(in crate::journal) fn damaged(&self) -> Vec<(u64, Damage)> {
        let quarantined = self.cache.quarantined().into_iter().filter(|file| file.parent() == Some(&self.folder));
        let quarantined = quarantined.map(|file| (damaged_first(&file).unwrap_or(0), Damage::Quarantined(file)));
        quarantined.chain(self.unreadable.iter().cloned()).collect()
    }
}
