//! The saved position of a capture: which changes of Odoo it has processed.
//!
//! The capture saves it as a note, together with the records that changed (`capture`).

use serde::{Deserialize, Serialize};

/// Format version of the note.
const FORMAT: u8 = 2;

/// The position of a capture. Times are those of Odoo's clock, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) format: u8,
    /// Start of the last complete poll.
    pub(super) mark: i64,
    /// Id after which the first load continues; `None` once the load is complete.
    pub(super) load_after: Option<i64>,
    /// Start of the first load. Records created later are new records.
    pub(super) load_mark: i64,
    /// Number of loads that the operator has asked for after the first one.
    pub(super) epoch: u32,
    /// Time of the last sweep.
    pub(super) swept: i64,
    /// Offset in the lane below which the saved records contain every event.
    pub(super) offset: u64,
    /// Digest of the fields, languages and companies that the records were read with.
    pub(super) learnt: u64,
}

impl Default for Position {
    fn default() -> Self {
        Self { format: FORMAT, mark: 0, load_after: Some(0), load_mark: 0, epoch: 0, swept: 0, offset: 0, learnt: 0 }
    }
}

impl Position {
    /// Starts another load, in which every record is reported once more.
    pub(super) fn load_again(&mut self) {
        self.load_after = Some(0);
        self.epoch = self.epoch.saturating_add(1);
    }

    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok()
    }

    /// Returns `None` for bytes that cannot be read or that another version wrote.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|position: &Self| position.format == FORMAT)
    }
}
