//! Notes of dropped destinations, in the state: from the drop until the log of a lane has no cursor of theirs.
//!
//! Promise: a start after a crash gives a dropped destination no cursor, even where the log still has one.

use crate::journal::store::error::JournalError;
use crate::journal::store::state::State;

/// Prefix of the names of the notes.
pub(in crate::journal) const PREFIX: &str = "dropped/";

/// Name of the note that a destination was dropped in a lane while the log still has its cursor.
pub(super) fn note(lane: &str, destination: &str) -> String {
    format!("{PREFIX}{lane}/{destination}")
}

/// Destinations that were dropped in a lane while the log still has their cursors.
pub(super) fn in_lane(state: &State, lane: &str) -> Result<Vec<String>, JournalError> {
    // Names have no slash: notes of other lanes do not have this prefix.
    let prefix = note(lane, "");
    let notes = state.notes(&prefix)?;
    Ok(notes.into_iter().map(|(name, _)| name[prefix.len()..].to_owned()).collect())
}
