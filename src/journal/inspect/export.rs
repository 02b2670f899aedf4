//! Export: writes the events of a journal as central sees them, one JSON object per line.
//!
//! Promise: every selected event that existed at the beginning is written once, lane by lane in order; events that cannot
//! be written are counted. Memory use does not depend on the size of the journal.
//!
//! Not here: the output of the lines (`cli`), their transport (`admin`).

use super::extent::Extent;
use crate::api::{ExportProgress, Selection};
use crate::contract::push_json_string;
use crate::event::{Record, Timestamp};
use crate::journal::lane::block_records::BlockReader;
use crate::journal::lane::config::DEAD;
use crate::journal::lane::log::{LaneLog, ReadResult};
use crate::journal::lane::publications::Published;
use crate::journal::store::block::Block;
use crate::journal::store::error::JournalError;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A step ends after this many bytes of lines.
const STEP_BYTES: usize = 64 << 10;
/// A step reads at most this many blocks and files, so that it ends even if it finds nothing.
const STEP_READS: usize = 64;
/// Largest number of streams and keys in a selection.
pub const SELECTED_MAX: usize = 256;

/// Why a selection is invalid.
#[derive(Debug, thiserror::Error)]
pub enum BadSelection {
    /// No stream has this name.
    #[error("there is no stream \"{wanted}\"; there are {known}")]
    NoStream {
        /// Name or pattern in the selection.
        wanted: String,
        /// Names of the existing streams.
        known: String,
    },
    /// The selection ends before it begins.
    #[error("--until {until} is not after --since {since}")]
    Empty { since: Timestamp, until: Timestamp },
    /// The selection has too many streams and keys.
    #[error("{count} streams and keys are named; at most {SELECTED_MAX} can be")]
    TooMany {
        /// Number of streams and keys.
        count: usize,
    },
}

impl BadSelection {
    /// Returns an error if no stream matches a name or pattern.
    pub fn no_stream(wanted: &str, publications: &[Arc<Published>]) -> Option<Self> {
        if publications.iter().any(|published| published.is_named(wanted)) {
            return None;
        }
        let known: BTreeSet<_> = publications.iter().map(|one| one.renderer.stream_id()).collect();
        let known: Vec<_> = known.into_iter().collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Some(Self::NoStream { wanted: wanted.to_owned(), known })
    }
}

pub struct Export {
    lanes: Vec<LaneExport>,
    /// Numbers of the selected streams; `None` selects all.
    streams: Option<BTreeSet<u32>>,
    selection: Selection,
    with_offsets: bool,
    lane: usize,
    progress: ExportProgress,
}

struct LaneExport {
    log: Arc<LaneLog>,
    next: u64,
    end: u64,
    /// End of the file that was read last.
    file_end: u64,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl Export {
    /// Begins an export of lanes. `with_offsets` wraps each event into an object with its lane and offset.
    pub fn new(
        lanes: impl IntoIterator<Item = Arc<LaneLog>>,
        publications: &[Arc<Published>],
        selection: Selection,
        with_offsets: bool,
    ) -> Result<Self, BadSelection> {
        let count = selection.streams.len() + selection.keys.len();
        if count > SELECTED_MAX {
            return Err(BadSelection::TooMany { count });
        }
        if let (Some(since), Some(until)) = (selection.since, selection.until)
            && until <= since
        {
            return Err(BadSelection::Empty { since, until });
        }
        let mut streams = BTreeSet::new();
        for wanted in &selection.streams {
            if let Some(bad) = BadSelection::no_stream(wanted, publications) {
                return Err(bad);
            }
            let meant = publications.iter().filter(|published| published.is_named(wanted));
            streams.extend(meant.map(|published| published.stream));
        }
        let parts: Vec<_> = lanes.into_iter().filter(|lane| lane.name != DEAD).map(LaneExport::new).collect();
        let progress = ExportProgress { total: parts.iter().map(LaneExport::left).sum(), ..ExportProgress::default() };
        let streams = (!selection.streams.is_empty()).then_some(streams);
        Ok(Self { lanes: parts, streams, selection, with_offsets, lane: 0, progress })
    }

    pub fn progress(&self) -> &ExportProgress {
        &self.progress
    }

    /// Appends some lines to `out`, or none. Returns `false` at the end. Blocks the thread.
    pub fn step(&mut self, out: &mut Vec<u8>) -> Result<bool, JournalError> {
        for _ in 0..STEP_READS {
            let Some(part) = self.lanes.get(self.lane) else {
                self.progress.done = self.progress.total;
                self.progress.is_complete = true;
                return Ok(false);
            };
            if part.next >= part.end {
                self.lane += 1;
            } else {
                self.export_next(out)?;
            }
            if out.len() >= STEP_BYTES {
                break;
            }
        }
        Ok(true)
    }

    /// Processes the next file or block.
    fn export_next(&mut self, out: &mut Vec<u8>) -> Result<(), JournalError> {
        let part = &mut self.lanes[self.lane];
        let assigned = part.log.gaps().skip_gap(part.next);
        if assigned > part.next {
            part.advance(assigned, &mut self.progress);
            return Ok(());
        }
        if part.next >= part.file_end {
            let extent = Extent::at(&part.log, part.next);
            part.file_end = extent.as_ref().map_or_else(|| part.log.next_file(part.next), |extent| extent.end);
            if let Some(extent) = extent
                && is_excluded(&self.selection, self.streams.as_ref(), &extent)
            {
                part.advance(extent.end, &mut self.progress);
                return Ok(());
            }
        }
        let before = part.next;
        match part.log.read_at(before) {
            Ok(ReadResult::Block(block)) => self.write(&block, out),
            Ok(ReadResult::Lost { to }) => {
                let to = to.clamp(before + 1, part.end);
                self.progress.lost += to - before;
                part.advance(to, &mut self.progress);
            }
            // Happens in a stopped journal; a running one quarantines the file and returns `Lost`.
            Err(error @ JournalError::Damaged { .. }) => {
                let to = part.log.next_file(before).clamp(before + 1, part.end);
                if to == part.end && part.log.end() > part.end {
                    return Err(error);
                }
                self.progress.lost += to - before;
                part.advance(to, &mut self.progress);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, block: &Arc<Block>, out: &mut Vec<u8>) {
        let Self { lanes, streams, selection, with_offsets, lane, progress } = self;
        let part = &mut lanes[*lane];
        let recorded = block.header.recorded;
        let is_in_time = selection.since.is_none_or(|since| recorded >= since)
            && selection.until.is_none_or(|until| recorded < until);
        let is_wanted = |stream: u32| streams.as_ref().is_none_or(|streams| streams.contains(&stream));
        if is_in_time && block.header.runs.iter().any(|run| is_wanted(run.stream)) {
            let mut walk = BlockReader::new(Arc::clone(block));
            while let Some(step) = walk.step_with(|number| part.log.published(number)) {
                if step.offset < part.next || step.offset >= part.end {
                    continue;
                }
                if !selection.keys.is_empty() && !selection.keys.iter().any(|key| key == step.record.key) {
                    continue;
                }
                match step.numbered {
                    Some(numbered) if is_wanted(numbered.0.stream) => {
                        let place = with_offsets.then_some((part.log.name.as_str(), step.offset));
                        push_line(numbered, &step.record, recorded, place, out);
                        progress.events += 1;
                    }
                    Some(_) => {}
                    None => progress.unrendered += 1,
                }
            }
        }
        part.advance(block.end().max(part.next + 1), progress);
    }
}

impl LaneExport {
    fn new(log: Arc<LaneLog>) -> Self {
        let (next, end) = (log.first(), log.end());
        Self { log, next, end, file_end: 0 }
    }

    fn left(&self) -> u64 {
        self.log.gaps().assigned_between(self.next, self.end)
    }

    fn advance(&mut self, next: u64, progress: &mut ExportProgress) {
        let before = self.left();
        self.next = next.min(self.end).max(self.next);
        progress.done += before - self.left();
    }
}

fn is_excluded(selection: &Selection, streams: Option<&BTreeSet<u32>>, extent: &Extent) -> bool {
    selection.since.is_some_and(|since| extent.recorded.1 < since)
        || selection.until.is_some_and(|until| extent.recorded.0 >= until)
        || streams.is_some_and(|streams| !extent.streams.iter().any(|part| streams.contains(&part.stream)))
}

/// Appends one event, with its publication and its sequence, as a line.
pub fn push_line(
    (published, sequence): (&Arc<Published>, u64),
    record: &Record<'_>,
    recorded: Timestamp,
    place: Option<(&str, u64)>,
    out: &mut Vec<u8>,
) {
    if let Some((lane, offset)) = place {
        out.extend_from_slice(br#"{"lane":"#);
        push_json_string(out, lane);
        out.extend_from_slice(format!(r#","offset":{offset},"event":"#).as_bytes());
    }
    let start = out.len();
    published.renderer.render_structured(record, sequence, recorded, out);
    // JSON allows line ends in a payload outside of strings; spaces there mean the same.
    for byte in out[start..].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    if place.is_some() {
        out.push(b'}');
    }
    out.push(b'\n');
}
