//! Compaction of the state: returns the space of removed notes to the file system.
//!
//! Promise: at every moment the old file or the new one is complete under the name `state.redb`. (redb can compact in
//! place, but a crash in the middle of that costs a full repair.)

use super::{Slot, State, catch_panic};
use crate::journal::store::error::JournalError;
use std::path::Path;

/// Smaller files are not compacted: redb starts with 1.6 MB, and the ordinary notes of a plant take as much again.
const BYTES_MIN: u64 = 4 << 20;
/// The file is compacted when it is larger than this many times its live data: the copy then takes less than a third
/// of the space that is freed.
const TIMES_MAX: u64 = 3;

impl State {
    /// Compacts the file if most of it is free. All other users of the state wait meanwhile: some milliseconds
    /// per MB of live data.
    pub(crate) fn compact(&self) -> Result<(), JournalError> {
        let mut guard = self.lock();
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let Some(length) = self.length(folder)?.filter(|length| *length >= BYTES_MIN) else { return Ok(()) };
        let Slot::Open(handle) = &*guard else { return Ok(()) };
        let live = catch_panic(&self.path, || {
            let write = handle.database.begin_write()?;
            let stats = write.stats()?;
            write.abort()?;
            Ok(stats.stored_bytes() + stats.metadata_bytes())
        })?;
        let free = self.disk.free_bytes(folder).map_err(|error| JournalError::io(folder, error))?;
        if length <= live.saturating_mul(TIMES_MAX) || free < live.saturating_mul(2).saturating_add(BYTES_MIN) {
            return Ok(());
        }
        // If this fails after the rename, the next write detects it and creates another file.
        let compacted = self.write_new(Some(&handle.database))?;
        *guard = Slot::Open(compacted);
        let now = self.length(folder)?.unwrap_or(0);
        tracing::info!(before = length, now, "compacted the state");
        Ok(())
    }

    /// Length of the file; `None` if it does not exist.
    fn length(&self, folder: &Path) -> Result<Option<u64>, JournalError> {
        let files = self.disk.list(folder).map_err(|error| JournalError::io(folder, error))?;
        let own = self.path.file_name().and_then(|name| name.to_str());
        Ok(files.into_iter().find(|(name, _)| Some(name.as_str()) == own).map(|(_, length)| length))
    }
}
