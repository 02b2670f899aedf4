//! Errors of the journal, and what is done with a damaged file.
//!
//! Promise: a panic of redb on damaged pages becomes an error; it stops nothing.

use super::disk::Disk;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process holds the lock.
    #[error("the journal {folder} is in use by process {holder}; one gateway has one journal", folder = folder.display())]
    InUse {
        folder: PathBuf,
        /// Process number of the holder.
        holder: String,
    },
    /// The journal belongs to another environment.
    #[error("the journal {folder} belongs to environment \"{sealed}\", not to \"{wanted}\"; use another data_dir", folder = folder.display())]
    Sealed { folder: PathBuf, sealed: String, wanted: String },
    /// The journal belongs to a gateway of another name.
    #[error("the journal {folder} belongs to gateway \"{sealed}\", not to \"{wanted}\": the name is part of every event; set name = \"{sealed}\", or use another data_dir", folder = folder.display())]
    Named { folder: PathBuf, sealed: String, wanted: String },
    /// A newer version of Forebay wrote the file.
    #[error("{file} has format {format}; this Forebay reads up to {newest}: install the newer version again", file = file.display())]
    Newer {
        file: PathBuf,
        format: u64,
        /// Newest format that this version reads.
        newest: u64,
    },
    /// The content of a file is not what was written.
    #[error("{file} is damaged: {reason}", file = file.display())]
    Damaged { file: PathBuf, reason: String },
    /// The disk fails or is full.
    #[error("{file}: {error}", file = file.display())]
    Io {
        /// Path of the file or folder.
        file: PathBuf,
        /// Error of the operating system.
        error: io::Error,
    },
}

impl JournalError {
    /// Whether a file does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }

    pub(crate) fn io(file: &Path, error: io::Error) -> Self {
        Self::Io { file: file.to_owned(), error }
    }

    pub(super) fn from_redb(file: &Path, error: redb::Error) -> Self {
        match error {
            // redb returns these for a file that is no redb file, or that is cut short.
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::Damaged { file: file.to_owned(), reason: error.to_string() }
            }
            redb::Error::Io(error) => Self::io(file, error),
            redb::Error::PreviousIo => Self::io(file, io::Error::other("an earlier write failed")),
            redb::Error::DatabaseClosed => Self::io(file, io::Error::other("the file is closed")),
            other => Self::Damaged { file: file.to_owned(), reason: other.to_string() },
        }
    }
}

/// Runs a call of redb and reports a panic in it as damage of the file: pages that a failing disk has changed can lead
/// redb anywhere, and this must not stop the gateway.
pub(super) fn catch_panic<T>(file: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, JournalError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(JournalError::from_redb(file, error)),
        Err(_) => Err(JournalError::Damaged { file: file.to_owned(), reason: "redb cannot read its pages".into() }),
    }
}

/// Renames a damaged file to `*.damaged`; returns the new path.
pub(crate) fn quarantine(disk: &dyn Disk, path: &Path) -> Result<PathBuf, JournalError> {
    let mut to = path.to_owned();
    to.as_mut_os_string().push(".damaged");
    disk.rename(path, &to).map_err(|error| JournalError::io(path, error))?;
    if let Some(folder) = path.parent() {
        disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))?;
    }
    Ok(to)
}
