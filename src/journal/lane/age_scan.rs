//! How far the age limits of a lane are applied.

use crate::event::Timestamp;

/// Progress of the age limits of one lane.
#[derive(Debug, Default)]
pub(super) struct Ages {
    pub(super) scans: Vec<AgeScan>,
}

/// Progress of one age limit for one destination.
#[derive(Debug)]
pub(super) struct AgeScan {
    pub destination: String,
    pub limit: u64,
    pub next: u64,
    pub at: Timestamp,
}

impl Ages {
    pub(super) fn of(&mut self, destination: &str, limit: u64) -> &mut AgeScan {
        let index = self.scans.iter().position(|known| known.destination == destination && known.limit == limit);
        let index = index.unwrap_or_else(|| {
            self.scans.push(AgeScan { destination: destination.to_owned(), limit, next: 1, at: Timestamp(0) });
            self.scans.len() - 1
        });
        &mut self.scans[index]
    }
}
