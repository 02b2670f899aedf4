//! Recovery of one lane at a start: its segments, its numbers, and the cursor of each destination.
//!
//! Promise: a damaged newest segment is quarantined, and its events are counted as lost for every destination. What the
//! recovery skips is stored before a number is assigned.
//! Not here: the numbers of a lane after a loss (`sequence_recovery`).

use super::config::{LaneConfig, Start};
use super::core::Core;
use super::dropped;
use super::handle::Lane;
use super::log::LogContent;
use super::marks;
use super::newest_segment::{NewestSegment, SegmentFingerprints};
use super::planted_bugs::{self, Bug};
use super::position::{Active, Position, ReservedNumbers};
use super::segment_files::SegmentFile;
use super::segment_files::list_segments;
use super::sequence_gaps::{GapFile, Gaps};
use super::sequence_recovery::{LostSegments, NumberRecovery};
use crate::event::{Record, Timestamp};
use crate::journal::store::cursor::{Cursor, Outcome};
use crate::journal::store::disk::{Identity, make_folder};
use crate::journal::store::error::JournalError;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The recovery of a lane.
pub(super) struct Recovery<'a> {
    pub core: &'a Arc<Core>,
    /// Index of the lane among all lanes.
    pub index: usize,
    pub config: &'a LaneConfig,
    pub destinations: &'a [(String, Start)],
    /// Whether the state, and with it the high-water marks, was lost.
    pub has_lost_marks: bool,
    pub gap_file: &'a mut GapFile,
    /// Fingerprints of all lanes that are recovered so far.
    pub fingerprints: &'a mut Vec<SegmentFingerprints>,
}

/// What the numbers and the segments say about the log.
struct LogRange {
    end: u64,
    /// The next sequence of every stream.
    sequences: Vec<(u32, u64)>,
    /// First offset of the oldest segment; the next offset if there is no segment.
    oldest: u64,
    /// The sequences there; `None` if they cannot be read.
    oldest_sequences: Option<Vec<(u32, u64)>>,
    /// Offset of the first lost event, if no segment is left.
    lost_from: Option<u64>,
    gaps: Gaps,
}

type SegmentFiles = BTreeMap<u64, SegmentFile>;

impl Recovery<'_> {
    pub(super) fn run(mut self) -> Result<(Lane, Position), JournalError> {
        let folder = self.core.folder.join(&self.config.name);
        let identity = self.make_folder(&folder)?;
        // A crash interrupted the creation of an unfinished segment: it never counted.
        let remove = |path: &Path| self.core.disk.remove(path).map_err(|error| JournalError::io(path, error));
        let (mut segments, has_damaged) = list_segments(&self.core.segments, &folder, remove)?;
        let has_files = has_damaged || !segments.is_empty();
        let (newest, mut lost) = self.read_newest(&mut segments)?;
        self.restore_older_fingerprints(&segments, newest.active.is_some());
        self.note_missing_segment(&segments, &mut lost)?;
        let mut gaps = self.gap_file.of(&self.config.name);
        let (offsets, sequences) = self.recover_numbers(&newest, &lost, has_files, &mut gaps)?;
        let range = LogRange {
            end: offsets.next,
            sequences: sequences.iter().map(|(stream, numbers)| (*stream, numbers.next)).collect(),
            oldest: segments.first_key_value().map_or(offsets.next, |(first, _)| *first),
            oldest_sequences: self.first_sequences(&segments, newest.active.as_ref())?,
            lost_from: segments.is_empty().then(|| lost.first.unwrap_or(1)),
            gaps,
        };
        let dropped = dropped::in_lane(&self.core.state, &self.config.name)?;
        let settled = self.recover_cursors(&newest, &dropped, &range);
        // After a gap the old segment is not continued: its blocks would enclose a hole in the middle of a segment.
        let active = newest.active.filter(|_| offsets.next == newest.next);
        let content = LogContent {
            name: self.config.name.clone(),
            folder,
            gaps: range.gaps,
            segments,
            active: active.as_ref().map(|active| Arc::clone(&active.segment)),
            settled,
            sequences: range.sequences,
            end: offsets.next,
            unreadable: Vec::new(),
        };
        let lane = Lane::new(self.core, self.index, self.config, identity, content);
        Ok((lane, Position { offsets, sequences, active, dropped }))
    }

    fn make_folder(&self, folder: &Path) -> Result<Identity, JournalError> {
        let failed = |error| JournalError::io(folder, error);
        make_folder(&*self.core.disk, folder).map_err(failed)?;
        self.core.disk.identity(folder).map_err(failed)
    }

    /// Reads the newest readable segment; quarantines damaged ones.
    fn read_newest(&mut self, segments: &mut SegmentFiles) -> Result<(NewestSegment, LostSegments), JournalError> {
        let core = self.core;
        let cache = &core.segments;
        let mut lost = LostSegments::default();
        while let Some((&first, part)) = segments.last_key_value() {
            let fingerprint_of = |record: &Record<'_>| core.fingerprint(record);
            let read = cache
                .open_newest(&part.path)
                .and_then(|segment| NewestSegment::read(segment, first, Some(&fingerprint_of)));
            match read {
                Ok(mut newest) => {
                    self.fingerprints.push(std::mem::take(&mut newest.fingerprints));
                    return Ok((newest, lost));
                }
                Err(error @ JournalError::Damaged { .. }) => {
                    tracing::error!(lane = %self.config.name, %error, "could not read the newest segment; setting it aside");
                    lost.add(first, core, &part.path);
                    cache.quarantine(&part.path);
                    segments.remove(&first);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((NewestSegment::default(), lost))
    }

    /// Adds the fingerprints of closed segments, newest first, until the window would be full.
    fn restore_older_fingerprints(&mut self, segments: &SegmentFiles, has_active: bool) {
        let capacity = self.core.window().capacity();
        let mut count: usize = self.fingerprints.iter().map(|(_, list)| list.len()).sum();
        for part in segments.values().rev().skip(1).take(if has_active || segments.len() > 1 { usize::MAX } else { 0 })
        {
            if count >= capacity {
                return;
            }
            let read = self.core.segments.open(&part.path).and_then(|segment| {
                let view = segment.view()?;
                Ok((view.summary()?.closed.map_or(Timestamp(0), |closed| closed.at), view.fingerprints()?))
            });
            match read {
                Ok(found) => {
                    count += found.1.len();
                    // Segments without ids come from contracts without ids; older ones may still have some.
                    self.fingerprints.push(found);
                }
                // The first reader that needs its events finds the damage again and quarantines the segment.
                Err(error) => {
                    tracing::warn!(%error, "could not read the ids of a segment; some repeats may be stored again")
                }
            }
        }
    }

    /// A segment that was begun and is not there is lost too.
    fn note_missing_segment(&self, segments: &SegmentFiles, lost: &mut LostSegments) -> Result<(), JournalError> {
        let begun = self.core.state.mark(&marks::segment(&self.config.name))?;
        let newest_first = segments.last_key_value().map_or(0, |(first, _)| *first);
        if begun > newest_first.max(1) {
            lost.first = Some(lost.first.unwrap_or(u64::MAX).min(begun));
        }
        Ok(())
    }

    /// The next numbers. New gaps are durable when this returns: what is skipped now must stay skipped.
    fn recover_numbers(
        &mut self,
        newest: &NewestSegment,
        lost: &LostSegments,
        has_files: bool,
        gaps: &mut Gaps,
    ) -> Result<(ReservedNumbers, BTreeMap<u32, ReservedNumbers>), JournalError> {
        let (core, lane) = (self.core, self.config.name.as_str());
        let has_lost_marks = self.has_lost_marks && has_files;
        let found = NumberRecovery { core, lane, newest, lost, has_lost_marks }.run(gaps)?;
        self.gap_file.save(lane, gaps, &*core.disk, &core.folder)?;
        Ok(found)
    }

    /// The sequences at the start of the oldest segment; `None` if it cannot be read.
    fn first_sequences(
        &self,
        segments: &SegmentFiles,
        active: Option<&Active>,
    ) -> Result<Option<Vec<(u32, u64)>>, JournalError> {
        let Some((_, part)) = segments.first_key_value() else { return Ok(Some(Vec::new())) };
        if let Some(active) = active.filter(|active| active.segment.path() == part.path) {
            return Ok(Some(active.summary.sequences.clone()));
        }
        match self.core.segments.open(&part.path).and_then(|segment| segment.view()?.summary()) {
            Ok(summary) => Ok(Some(summary.sequences)),
            // The first reader that needs its events quarantines it.
            Err(JournalError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn recover_cursors(&self, newest: &NewestSegment, dropped: &[String], range: &LogRange) -> Vec<Cursor> {
        let mut settled = newest.settled.clone();
        // A crash may have come before the log recorded that an operator dropped a destination. A new destination with the
        // same name gets a cursor of its own below.
        settled.retain(|cursor| !dropped.contains(&cursor.destination));
        if planted_bugs::has(Bug::DroppedByPrefix) {
            settled.retain(|cursor| !dropped.iter().any(|name| name.starts_with(&cursor.destination)));
        }
        for (name, start) in self.destinations {
            if settled.iter().all(|known| known.destination != *name) {
                settled.push(new_cursor(name, *start, range));
            }
        }
        let gaps = &range.gaps.offsets;
        let lost_to = gaps.last().filter(|gap| gap.1 == range.end).map_or(range.end, |gap| gap.0);
        for cursor in &mut settled {
            gaps.iter().for_each(|(from, to)| cursor.skip(*from, *to));
            // The events of the newest segment are lost; destinations do not wait for them. Sequences in the lost range are
            // not attributed to a stream: nobody knows which events had them.
            cursor.mark_lost(newest.next, lost_to, &[]);
        }
        settled
    }
}

/// The cursor of a destination that the log has none of.
fn new_cursor(name: &str, start: Start, range: &LogRange) -> Cursor {
    let mut cursor = match (start, &range.oldest_sequences) {
        (Start::Now, _) => Cursor::owed_from(name, range.end, range.sequences.iter().copied()),
        (Start::Oldest, Some(sequences)) => Cursor::owed_from(name, range.oldest, sequences.iter().copied()),
        (Start::Oldest, None) => {
            Cursor::owed_from_unknown(name, range.oldest, range.gaps.assigned_between(1, range.oldest))
        }
    };
    if let Some(lost_from) = range.lost_from
        && range.end > 1
    {
        // The cursor was in the lost segment. Events removed before that were settled.
        let first = lost_from.min(range.end);
        cursor.low = first;
        cursor.account(0).add(Outcome::Delivered, range.gaps.assigned_between(1, first));
    }
    cursor
}
