//! Where a capture is, as it is noted.

use serde::{Deserialize, Serialize};

/// The version of the note.
const FORMAT: u8 = 1;

/// Where a capture is. Times are Odoo's own, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) format: u8,
    /// When the last complete poll began.
    pub(super) mark: i64,
    /// The number behind which the first load goes on; `None` once it is complete.
    pub(super) load_after: Option<i64>,
    /// When the first load began: what was made later is new.
    pub(super) load_mark: i64,
    /// When the last sweep was.
    pub(super) swept: i64,
    /// Offset in the lane below which the noted records hold everything.
    pub(super) offset: u64,
}

impl Default for Position {
    fn default() -> Self {
        Self { format: FORMAT, mark: 0, load_after: Some(0), load_mark: 0, swept: 0, offset: 0 }
    }
}

impl Position {
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok()
    }

    /// `None` for what a newer version wrote.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|position: &Self| position.format == FORMAT)
    }
}
