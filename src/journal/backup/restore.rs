//! What says that a journal is a copy, and what its first start makes of that.

use crate::clock;
use crate::event::Timestamp;
use crate::journal::JournalError;
use crate::journal::disk::{Disk, RealDisk, read_whole, write_json};
use crate::journal::sequence_gaps::GapFile;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// What says that a journal is a copy that no gateway has run on yet.
const FILE: &str = "backup.json";
/// Its name after the first start.
const USED: &str = "restored.json";

#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// When it was taken, RFC 3339.
    taken: String,
    version: String,
}

impl Manifest {
    /// Of a backup taken at that time, RFC 3339.
    pub(super) fn new(taken: &str) -> Self {
        Self { format: 1, taken: taken.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Puts it into the folder of a copy.
    pub(super) fn write(&self, folder: &Path) -> Result<(), JournalError> {
        let path = folder.join(FILE);
        write_json(&RealDisk, &path, self).map_err(|error| JournalError::io(&path, error))
    }
}

/// Before a start gives a number: a journal that is restored from a backup passes over everything that
/// the one it was taken from may have given since.
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
    tracing::warn!(%taken, "this journal is restored from a backup: numbers go on behind every one that may have been given since, and central gets again what it had acknowledged since");
    disk.rename(&path, &folder.join(USED)).map_err(|error| JournalError::io(&path, error))?;
    disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))
}
