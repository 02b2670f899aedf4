//! The upper storey of the journal: operations on all events of a running or a stopped journal.
//!
//! Promise: nothing here changes a stored event.

pub(super) mod backup;
pub(super) mod export;
mod extent;
pub(super) mod readonly;
pub(super) mod salvage;
pub(super) mod verify;
