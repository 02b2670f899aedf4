//! What a backup copies, what it reports, and why it fails.

use crate::api::BackupProgress;
use crate::journal::lane::log::LaneLog;
use crate::journal::lane::newest_segment::FingerprintOf;
use crate::journal::store::error::JournalError;
use crate::journal::store::state::Note;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a backup failed. Its files are removed, except those that an error names.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path} is there already; a backup goes to a folder that is not", path = path.display())]
    Exists { path: PathBuf },
    /// An earlier backup was interrupted.
    #[error("{path} remains from an interrupted backup; remove it", path = path.display())]
    Leftover { path: PathBuf },
    /// The file system is too small, or the gateway would have too little left.
    #[error("{path} has {free} left; the backup takes {needed}, and {reserve} stay free for the gateway",
        path = path.display(), free = crate::setting::Bytes(*free), needed = crate::setting::Bytes(*needed),
        reserve = crate::setting::Bytes(*reserve))]
    NoRoom {
        path: PathBuf,
        free: u64,
        needed: u64,
        /// Bytes that have to stay free.
        reserve: u64,
    },
    /// A file of the journal is damaged.
    #[error("{0}; start the gateway once, which sets it aside, or take it out with salvage")]
    Damaged(String),
    /// The caller has cancelled the backup.
    #[error("the backup was cancelled")]
    BrokenOff,
    /// An error of the journal or of the disk.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Called with the progress; [`ControlFlow::Break`] cancels the backup.
pub(super) type OnProgress<'a> = &'a mut dyn FnMut(BackupProgress) -> ControlFlow<()>;

pub(super) struct BackupSource<'a> {
    pub folder: &'a Path,
    pub lanes: Vec<Arc<LaneLog>>,
    pub marks: Vec<(String, u64)>,
    pub notes: Vec<Note>,
    /// Losses noted while the lanes were copied: the copied accounts may include them.
    pub late_losses: Box<dyn Fn() -> Result<Vec<Note>, JournalError> + 'a>,
    /// Computes the fingerprint of an event.
    pub fingerprint: Box<FingerprintOf<'a>>,
    /// Lanes and streams of all publications.
    pub streams: Vec<(String, u32)>,
    pub reserve: u64,
}
