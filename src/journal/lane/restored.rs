//! The manifest of a backup, and the first start of a restored journal.
//!
//! Promise: the gaps are widened before the journal assigns a number.

use super::sequence_gaps::GapFile;
use crate::clock;
use crate::event::Timestamp;
use crate::journal::store::disk::{Disk, RealDisk, read_whole, write_json};
use crate::journal::store::error::JournalError;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Name of the manifest: the journal is a copy on which no gateway has run yet.
const FILE: &str = "backup.json";
/// Name of the manifest after the first start.
const USED: &str = "restored.json";

#[derive(Serialize, Deserialize)]
pub(in crate::journal) struct Manifest {
    format: u32,
    /// Time when the backup was taken, RFC 3339.
    taken: String,
    version: String,
}

impl Manifest {
    /// Manifest of a backup taken at `taken`, RFC 3339.
    pub(in crate::journal) fn new(taken: &str) -> Self {
        Self { format: 1, taken: taken.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Writes the manifest into the folder of a copy.
    pub(in crate::journal) fn write(&self, folder: &Path) -> Result<(), JournalError> {
        let path = folder.join(FILE);
        write_json(&RealDisk, &path, self).map_err(|error| JournalError::io(&path, error))
    }
}

/// Before a start assigns numbers: skips all numbers that the original of a restored journal may
/// have assigned since the backup.
pub(in crate::journal) fn note_restore(disk: &dyn Disk, folder: &Path) -> Result<(), JournalError> {
    let path = folder.join(FILE);
    let manifest = match read_whole(disk, &path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(JournalError::io(&path, error)),
    };
    let taken = serde_json::from_slice::<Manifest>(&manifest).map_or_else(|_| "?".into(), |known| known.taken);
    let now = u64::try_from(Timestamp::from(clock::wall()).0).unwrap_or(0);
    let (mut gap_file, _) = GapFile::load(disk, folder)?;
    gap_file.widen_last(now, disk, folder)?;
    tracing::warn!(%taken, "this journal is restored from a backup: it skips all numbers that may have been assigned since, and sends events again that central acknowledged since");
    disk.rename(&path, &folder.join(USED)).map_err(|error| JournalError::io(&path, error))?;
    disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))
}
