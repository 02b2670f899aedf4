//! History: the events of a lane from the oldest to the newest, in a running or a stopped journal.
//!
//! Promise: no page of a file is pinned between two calls, so that a slow reader makes no file grow.

use crate::event::Timestamp;
use crate::journal::lane::handle::Lane;
use crate::journal::lane::publications::Published;
use crate::journal::lane::reader::ReadResult;
use crate::journal::lane::sequence_gaps::Gaps;
use crate::journal::store::block::Block;
use crate::journal::store::cursor::Cursor;
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::{StreamPart, Summary};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The events of a lane, as export, backup and verification read them. Every call may block the thread.
pub trait History: Send + Sync {
    fn name(&self) -> &str;
    /// Offset of the oldest event that may exist.
    fn oldest(&self) -> u64;
    /// Offset after the newest event.
    fn end(&self) -> u64;
    /// Offsets and sequences that no event has.
    fn gaps(&self) -> &Gaps;
    /// The block that holds `offset` or comes next, or the range that is lost there.
    fn find(&self, offset: u64) -> Result<ReadResult, JournalError>;
    /// First offset of the file behind the one that holds `offset`; the end of the lane if there is none.
    fn next_file(&self, offset: u64) -> u64;
    /// Summary of the closed file that holds `offset`; `None` if there is none.
    fn extent(&self, offset: u64) -> Option<Extent>;
    /// Publication by the number in a record.
    fn published(&self, number: u32) -> Option<Arc<Published>>;
    /// Name of a stream by its number; `unmatched` for records without a stream.
    fn stream_name(&self, stream: u32) -> String;
    fn cursors(&self) -> Vec<Cursor>;
    /// Quarantined or unreadable files of the lane: first offset, and reason.
    fn damaged(&self) -> Vec<(u64, String)>;
}

/// Content of a closed file according to its summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset of its first event.
    pub first: u64,
    /// Offset after its last event.
    pub end: u64,
    /// Earliest and latest time at which its events were recorded.
    pub recorded: (Timestamp, Timestamp),
    pub streams: Vec<StreamPart>,
}

impl Extent {
    pub(super) fn holds(&self, offset: u64) -> bool {
        (self.first..self.end).contains(&offset)
    }

    pub(super) fn of(summary: &Summary) -> Option<Self> {
        let closed = summary.closed.as_ref()?;
        let times = || closed.streams.iter().flat_map(|part| [part.recorded.0, part.recorded.1]);
        // The clock may have been set back meanwhile.
        let from = times().chain([summary.begun]).min().unwrap_or(summary.begun);
        let to = times().chain([closed.at]).max().unwrap_or(closed.at);
        Some(Self { first: summary.first, end: closed.end, recorded: (from, to), streams: closed.streams.clone() })
    }
}

/// The next sequence of every stream behind a segment, from its summary.
pub(super) fn sequences_after(summary: &Summary) -> Vec<(u32, u64)> {
    let mut next = summary.sequences.clone();
    for part in summary.closed.iter().flat_map(|closed| &closed.streams) {
        raise(&mut next, part.stream, part.first + part.count);
    }
    next
}

/// Raises the next sequences to the end of a block.
pub(super) fn count_block(sequences: &mut Vec<(u32, u64)>, block: &Block) {
    for run in &block.header.runs {
        raise(sequences, run.stream, run.first + u64::from(run.count));
    }
}

fn raise(sequences: &mut Vec<(u32, u64)>, stream: u32, next: u64) {
    match sequences.iter_mut().find(|(known, _)| *known == stream) {
        Some((_, known)) => *known = (*known).max(next),
        None => sequences.push((stream, next)),
    }
}

impl Lane {
    /// The closed file that holds an offset: first offset and path.
    pub(super) fn closed_file(&self, offset: u64) -> Option<(u64, PathBuf)> {
        let log = self.log();
        let (first, part) = log.segments.range(..=offset).next_back()?;
        let is_active = log.active.as_ref().is_some_and(|active| active.path() == part.path);
        (!is_active).then(|| (*first, part.path.clone()))
    }
}

impl History for Lane {
    fn name(&self) -> &str {
        &self.name
    }

    fn oldest(&self) -> u64 {
        self.log().segments.keys().next().copied().unwrap_or_else(|| self.end())
    }

    fn end(&self) -> u64 {
        Lane::end(self)
    }

    fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    fn find(&self, offset: u64) -> Result<ReadResult, JournalError> {
        self.read_at(offset)
    }

    fn next_file(&self, offset: u64) -> u64 {
        self.log().segments.range(offset + 1..).next().map_or_else(|| self.end(), |(first, _)| *first)
    }

    fn extent(&self, offset: u64) -> Option<Extent> {
        let (_, path) = self.closed_file(offset)?;
        // The reader of its events reports a file that cannot be read.
        let summary = self.core.segments.open(&path).and_then(|segment| segment.view()?.summary()).ok()?;
        Extent::of(&summary).filter(|extent| extent.holds(offset))
    }

    fn published(&self, number: u32) -> Option<Arc<Published>> {
        Lane::published(self, number)
    }

    fn stream_name(&self, stream: u32) -> String {
        self.core.stream_name(stream)
    }

    fn cursors(&self) -> Vec<Cursor> {
        self.log().settled.clone()
    }

    fn damaged(&self) -> Vec<(u64, String)> {
        let aside = self.core.segments.quarantined();
        let own = aside.iter().filter(|file| file.parent() == Some(&self.folder));
        own.map(|file| (damaged_first(file).unwrap_or(0), format!("{} is set aside", file.display()))).collect()
    }
}

/// First offset of a segment according to its file name, quarantined or not.
pub(super) fn damaged_first(file: &Path) -> Option<u64> {
    let name = file.file_name()?.to_str()?;
    crate::journal::store::segment::offset_in_name(name.trim_end_matches(".damaged"))
}
