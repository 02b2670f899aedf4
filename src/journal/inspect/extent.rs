//! What a closed file of a log holds: its offsets, times and streams.

use crate::event::Timestamp;
use crate::journal::lane::log::LaneLog;
use crate::journal::store::segment::{StreamPart, Summary};

/// Content of a closed file according to its summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Offset of its first event.
    pub first: u64,
    /// Offset after its last event.
    pub end: u64,
    /// Earliest and latest time at which its events were recorded.
    pub recorded: (Timestamp, Timestamp),
    pub streams: Vec<StreamPart>,
}

impl Extent {
    fn holds(&self, offset: u64) -> bool {
        (self.first..self.end).contains(&offset)
    }

    /// The extent of the closed file that holds `offset`; `None` if there is none.
    pub(super) fn at(log: &LaneLog, offset: u64) -> Option<Self> {
        Self::of(&log.summary_of(offset)?).filter(|extent| extent.holds(offset))
    }

    fn of(summary: &Summary) -> Option<Self> {
        let closed = summary.closed.as_ref()?;
        let times = || closed.streams.iter().flat_map(|part| [part.recorded.0, part.recorded.1]);
        // The clock may have been set back meanwhile.
        let from = times().chain([summary.begun]).min().unwrap_or(summary.begun);
        let to = times().chain([closed.at]).max().unwrap_or(closed.at);
        Some(Self { first: summary.first, end: closed.end, recorded: (from, to), streams: closed.streams.clone() })
    }
}
