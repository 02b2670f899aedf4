//! Sequence recovery: where a lane resumes its offsets and sequences after a start.
//!
//! Promise: no number is assigned twice, whatever files are lost. Numbers that are skipped to ensure this are recorded as
//! gaps and counted in no account.

use super::core::Core;
use super::marks;
use super::newest_segment::NewestSegment;
use super::position::ReservedNumbers;
use super::sequence_gaps::Gaps;
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::Segment;
use crate::journal::store::state::RESERVE;
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers that lost segments are known to have used.
#[derive(Debug, Default)]
pub(super) struct LostSegments {
    /// Offset of the first lost event, if a segment is lost.
    pub first: Option<u64>,
    /// Every offset below was assigned.
    end: u64,
    /// By stream: every sequence below was assigned.
    sequences: BTreeMap<u32, u64>,
}

impl LostSegments {
    /// Adds the numbers that a damaged segment still reveals.
    pub(super) fn add(&mut self, first: u64, core: &Core, path: &Path) {
        self.first = Some(first);
        self.end = self.end.max(first);
        // A segment that cannot be opened reveals nothing; this is not another error.
        let Ok(view) = Segment::open(&*core.disk, path, core.segments.cache_bytes()).and_then(|segment| segment.view())
        else {
            return;
        };
        let mut note = |stream, next: u64| {
            let known = self.sequences.entry(stream).or_insert(1);
            *known = (*known).max(next);
        };
        if let Ok(summary) = view.summary() {
            summary.sequences.iter().for_each(|(stream, next)| note(*stream, *next));
            for part in summary.closed.iter().flat_map(|closed| &closed.streams) {
                note(part.stream, part.first + part.count);
            }
            self.end = self.end.max(summary.closed.map_or(0, |closed| closed.end));
        }
        if let Ok(Some(block)) = view.last_block() {
            block.header.runs.iter().for_each(|run| note(run.stream, run.first + u64::from(run.count)));
            self.end = self.end.max(block.end());
        }
    }
}

/// The recovery of the numbers of one lane.
pub(super) struct NumberRecovery<'a> {
    pub core: &'a Core,
    pub lane: &'a str,
    pub newest: &'a NewestSegment,
    pub lost: &'a LostSegments,
    /// Whether the lane has files and the high-water marks were lost.
    pub has_lost_marks: bool,
}

impl NumberRecovery<'_> {
    /// Recovers the next offset and the next sequence of every stream. Adds skipped numbers to `gaps`
    /// and logs each gap once.
    pub(super) fn run(
        &self,
        gaps: &mut Gaps,
    ) -> Result<(ReservedNumbers, BTreeMap<u32, ReservedNumbers>), JournalError> {
        let (offsets, may_be_incomplete) = self.offsets(gaps)?;
        let mut sequences = BTreeMap::new();
        for stream in self.core.publications.read().streams() {
            if let Some(numbers) = self.sequences_of(stream, may_be_incomplete, gaps)? {
                sequences.insert(stream, numbers);
            }
        }
        Ok((offsets, sequences))
    }

    fn mark(&self, name: &str) -> Result<u64, JournalError> {
        self.core.state.mark(name)
    }

    /// The next offset, and whether events may have been assigned that are not in the log.
    fn offsets(&self, gaps: &mut Gaps) -> Result<(ReservedNumbers, bool), JournalError> {
        let Self { lane, newest, lost, has_lost_marks, .. } = self;
        let offset_mark = marks::offset(lane);
        let noted = self.mark(&marks::given(&offset_mark))?;
        let known = NumberEvidence {
            assigned_below: newest.next.max(lost.end).max(lost.first.unwrap_or(0)).max(noted),
            mark: self.mark(&offset_mark)?,
            gap_end: gaps.offsets.last().map_or(0, |gap| gap.1),
        };
        let may_be_incomplete = lost.first.is_some()
            || known.has_lost_mark()
            || known.has_no_evidence() && *has_lost_marks
            || noted > newest.next.max(known.gap_end);
        let (next, gap) = known.resume(may_be_incomplete, *has_lost_marks);
        if let Some((from, to)) = gap {
            let events_lost = from.saturating_sub(newest.next.max(known.gap_end));
            tracing::error!(
                lane,
                events_lost,
                from,
                to,
                "files of this lane are lost or damaged; it resumes behind every number that it may have assigned and skips those in between"
            );
            gaps.offsets.push((from, to));
        }
        Ok((ReservedNumbers { next, reserved: known.mark }, may_be_incomplete))
    }

    /// The next sequence of a stream; `None` if the lane never gave one.
    fn sequences_of(
        &self,
        stream: u32,
        may_be_incomplete: bool,
        gaps: &mut Gaps,
    ) -> Result<Option<ReservedNumbers>, JournalError> {
        let Self { core, lane, newest, lost, has_lost_marks } = self;
        let name = marks::sequence(lane, stream);
        let next_in = |sequences: &BTreeMap<u32, u64>| sequences.get(&stream).copied().unwrap_or(1);
        let known = NumberEvidence {
            assigned_below: next_in(&newest.sequences)
                .max(self.mark(&marks::given(&name))?)
                .max(next_in(&lost.sequences)),
            mark: self.mark(&name)?,
            gap_end: gaps.sequences.iter().filter(|gap| gap.0 == stream).map(|gap| gap.2).max().unwrap_or(0),
        };
        let may_be_lost = may_be_incomplete && *has_lost_marks && core.publications.read().is_of_lane(stream, lane);
        if known.assigned_below == 1 && known.has_no_evidence() && !may_be_lost {
            return Ok(None);
        }
        let (next, gap) = known.resume(may_be_incomplete || known.has_lost_mark(), *has_lost_marks);
        if let Some((from, to)) = gap {
            let name = core.stream_name(stream);
            tracing::error!(lane, stream = %name, from, to, "to consumers of this stream its sequence skips these numbers; no event has them, except events in files that are set aside");
            gaps.sequences.push((stream, from, to));
        }
        Ok(Some(ReservedNumbers { next, reserved: known.mark }))
    }
}

/// Evidence, at a start, of the numbers that were assigned in one series (offsets, or sequences of a stream).
#[derive(Clone, Copy, Debug)]
struct NumberEvidence {
    /// Every number below was assigned.
    assigned_below: u64,
    /// High-water mark: no number from here on was assigned; 0 if unknown.
    mark: u64,
    /// End of the last gap; 0 without one.
    gap_end: u64,
}

impl NumberEvidence {
    /// Whether the high-water mark is lost: it is always raised before a number is assigned.
    fn has_lost_mark(&self) -> bool {
        self.mark < self.assigned_below && self.assigned_below > self.gap_end.max(1)
    }

    /// Whether neither a mark nor a gap limits the assigned numbers.
    fn has_no_evidence(&self) -> bool {
        self.mark == 0 && self.gap_end == 0
    }

    /// The next number, and the new gap below it, if any. With `may_be_incomplete`, numbers at or above
    /// `assigned_below` may have been assigned too.
    fn resume(&self, may_be_incomplete: bool, has_lost_marks: bool) -> (u64, Option<(u64, u64)>) {
        let from = self.assigned_below.max(self.gap_end);
        if !may_be_incomplete {
            return (from, None);
        }
        let is_mark_lost = self.has_lost_mark() || has_lost_marks && self.has_no_evidence();
        let to = from.max(self.mark) + if is_mark_lost { RESERVE } else { 0 };
        (to, (to > from).then_some((from, to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_behind_what_may_have_been_given_and_only_once() {
        let known = |assigned_below, mark, gap_end| NumberEvidence { assigned_below, mark, gap_end };
        assert_eq!(known(4, 1000, 0).resume(false, false), (4, None), "nothing is lost");
        assert_eq!(known(4, 1000, 0).resume(true, false), (1000, Some((4, 1000))), "a segment is lost");
        assert_eq!(known(4, 0, 0).resume(true, true), (4 + RESERVE, Some((4, 4 + RESERVE))), "the marks are lost");
        assert_eq!(known(4, 2, 0).resume(true, false), (4 + RESERVE, Some((4, 4 + RESERVE))), "an old mark");
        assert_eq!(known(4, 0, 2000).resume(true, true), (2000, None), "lost again before anything was given");
        assert_eq!(known(1, 0, 0).resume(false, false), (1, None), "new");
    }
}
