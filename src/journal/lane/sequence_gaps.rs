//! Sequence gaps: offsets and sequences that no event has.
//!
//! After a loss the journal resumes behind every number that it may have assigned. No event has a number of the gap:
//! readers skip it, and no account counts it.
//!
//! Promise: a number below the end of a gap that [`GapFile::save`] stored is never assigned again.
//! The gaps have a small file of their own, which survives another loss of `state.redb`.

use crate::journal::store::disk::{Disk, read_whole, write_json};
use crate::journal::store::error::{JournalError, quarantine};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const FILE: &str = "unused.json";

/// The gaps of all lanes, as stored in `unused.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::journal) struct GapFile {
    lanes: BTreeMap<String, Gaps>,
}

/// The gaps of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gaps {
    /// Offsets: from, to (exclusive), in order.
    pub offsets: Vec<(u64, u64)>,
    /// Sequences of a stream: stream, from, to (exclusive), in order.
    pub sequences: Vec<(u32, u64, u64)>,
}

impl GapFile {
    /// Reads the gaps. Quarantines a damaged file and returns its new path as the second value.
    pub(crate) fn load(disk: &dyn Disk, folder: &Path) -> Result<(Self, Option<PathBuf>), JournalError> {
        let path = folder.join(FILE);
        match read_whole(disk, &path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(gap_file) => Ok((gap_file, None)),
                Err(_) => Ok((Self::default(), Some(quarantine(disk, &path)?))),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok((Self::default(), None)),
            Err(error) => Err(JournalError::io(&path, error)),
        }
    }

    /// The gaps of a lane.
    pub(crate) fn of(&self, lane: &str) -> Gaps {
        self.lanes.get(lane).cloned().unwrap_or_default()
    }

    /// Stores the gaps of a lane; returns when they are durable.
    pub(crate) fn save(&mut self, lane: &str, gaps: &Gaps, disk: &dyn Disk, folder: &Path) -> Result<(), JournalError> {
        if self.of(lane) == *gaps {
            return Ok(());
        }
        self.lanes.insert(lane.to_owned(), gaps.clone());
        let path = folder.join(FILE);
        write_json(disk, &path, self).map_err(|error| JournalError::io(&path, error))
    }
}

impl GapFile {
    /// Extends the last gap of every lane and stream to `to`; returns when that is durable.
    pub(crate) fn widen_last(&mut self, to: u64, disk: &dyn Disk, folder: &Path) -> Result<(), JournalError> {
        for lane in self.lanes.clone().keys() {
            let mut gaps = self.of(lane);
            if let Some(last) = gaps.offsets.last_mut() {
                last.1 = last.1.max(to);
            }
            let streams: BTreeSet<u32> = gaps.sequences.iter().map(|gap| gap.0).collect();
            for stream in streams {
                if let Some(last) = gaps.sequences.iter_mut().rev().find(|gap| gap.0 == stream) {
                    last.2 = last.2.max(to);
                }
            }
            self.save(lane, &gaps, disk, folder)?;
        }
        Ok(())
    }
}

impl Gaps {
    /// The first offset at or after `offset` that is in no gap.
    pub(crate) fn skip_gap(&self, offset: u64) -> u64 {
        let found = self.offsets.iter().find(|(from, to)| (*from..*to).contains(&offset));
        found.map_or(offset, |(_, to)| *to)
    }

    /// `to`, or the start of a gap between `offset` and `to`.
    pub(crate) fn clip_at_gap(&self, offset: u64, to: u64) -> u64 {
        let starts = self.offsets.iter().map(|(from, _)| *from);
        starts.filter(|from| *from > offset).min().map_or(to, |from| from.min(to))
    }

    /// The first sequence of a stream at or after `sequence` that is in no gap.
    pub(crate) fn skip_sequence_gap(&self, stream: u32, sequence: u64) -> u64 {
        let mut of_stream = self.sequences.iter().filter(|gap| gap.0 == stream);
        of_stream.find(|(_, from, to)| (*from..*to).contains(&sequence)).map_or(sequence, |(_, _, to)| *to)
    }

    /// Adds a gap of offsets; joins it with an adjacent one.
    pub(in crate::journal) fn add_offsets(&mut self, from: u64, to: u64) {
        match self.offsets.last_mut() {
            Some(last) if last.1 >= from => last.1 = last.1.max(to),
            _ => self.offsets.push((from, to)),
        }
    }

    /// Like [`Gaps::add_offsets`], for the sequences of a stream.
    pub(in crate::journal) fn add_sequences(&mut self, stream: u32, from: u64, to: u64) {
        match self.sequences.iter_mut().rev().find(|gap| gap.0 == stream) {
            Some(last) if last.2 >= from => last.2 = last.2.max(to),
            _ => self.sequences.push((stream, from, to)),
        }
    }

    /// Number of offsets below `end` that are in a gap.
    pub(crate) fn offsets_below(&self, end: u64) -> u64 {
        self.offsets_between(0, end)
    }

    /// Number of offsets in a range that are in a gap.
    pub(crate) fn offsets_between(&self, first: u64, end: u64) -> u64 {
        self.offsets.iter().map(|(from, to)| end.min(*to).saturating_sub(first.max(*from))).sum()
    }

    /// Number of sequences of a stream in a range that are in a gap.
    pub(crate) fn sequences_between(&self, stream: u32, from: u64, to: u64) -> u64 {
        let gaps = self.sequences.iter().filter(|gap| gap.0 == stream);
        gaps.map(|(_, start, end)| (*end).min(to).saturating_sub((*start).max(from))).sum()
    }

    /// Number of offsets in a range that were assigned.
    pub(crate) fn assigned_between(&self, from: u64, to: u64) -> u64 {
        to.saturating_sub(from).saturating_sub(self.offsets_below(to).saturating_sub(self.offsets_below(from)))
    }

    /// Number of sequences of a stream that are in a gap.
    pub(crate) fn sequences_of(&self, stream: u32) -> u64 {
        self.sequences.iter().filter(|gap| gap.0 == stream).map(|(_, from, to)| to - from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_that_touch_are_one() {
        let mut gaps = Gaps::default();
        gaps.add_offsets(4, 10);
        gaps.add_offsets(10, 20);
        gaps.add_offsets(25, 30);
        assert_eq!(gaps.offsets, [(4, 20), (25, 30)]);
        gaps.add_sequences(1, 4, 10);
        gaps.add_sequences(2, 4, 10);
        gaps.add_sequences(1, 10, 20);
        assert_eq!(gaps.sequences, [(1, 4, 20), (2, 4, 10)]);
    }

    #[test]
    fn a_gap_is_passed_over_and_counted_once() {
        let gaps = Gaps { offsets: vec![(4, 10), (20, 30)], sequences: vec![(1, 4, 10), (2, 1, 3), (1, 12, 13)] };
        assert_eq!(
            (gaps.skip_gap(3), gaps.skip_gap(4), gaps.skip_gap(9), gaps.skip_gap(10), gaps.skip_gap(29)),
            (3, 10, 10, 10, 30)
        );
        assert_eq!((gaps.clip_at_gap(2, 15), gaps.clip_at_gap(10, 15), gaps.clip_at_gap(12, 40)), (4, 15, 20));
        assert_eq!((gaps.offsets_below(4), gaps.offsets_below(25), gaps.offsets_below(99)), (0, 11, 16));
        assert_eq!(
            (gaps.assigned_between(1, 30), gaps.assigned_between(5, 22), gaps.assigned_between(5, 9)),
            (13, 10, 0)
        );
        assert_eq!(
            (gaps.skip_sequence_gap(1, 5), gaps.skip_sequence_gap(1, 10), gaps.skip_sequence_gap(3, 5)),
            (10, 10, 5)
        );
        assert_eq!((gaps.sequences_of(1), gaps.sequences_of(2), gaps.sequences_of(3)), (7, 2, 0));
    }
}
