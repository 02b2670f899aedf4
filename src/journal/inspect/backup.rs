//! Backup: a consistent copy of a running or stopped journal, and the first start of a restored one.
//!
//! Promise: the copy has every event that was durable when the backup began. An event that is settled in the copy was
//! settled. A journal restored from it assigns no number that the original may have assigned since.
//!
//! The order makes the copy consistent: notes first, so that no saved position is ahead of its events; closed segments as
//! they are; then, for each lane, its cursors, the end of its log, and the events up to there in a segment of their own;
//! publications last.
//!
//! The copy cannot know numbers that the original assigns later. So a gap behind its last number is stored in its
//! `unused.json`, and the first start of a restored journal extends the gap to the current time in microseconds since
//! 1970, which no count of events has reached: one backup may be restored twice.

mod copy;
mod source;

use super::readonly::ReadOnlyJournal;
use crate::api::Backup;
use crate::clock;
use crate::event::Timestamp;
use crate::journal::lane::dropped;
use crate::journal::lane::journal::Journal;
use crate::journal::store::disk::{Disk, RealDisk};
use crate::journal::store::error::JournalError;
use crate::journal::store::state::State;
use copy::CopyJob;
pub use source::BackupError;
use source::{BackupSource, OnProgress};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Journal {
    /// Copies the journal into a new folder while it runs. Blocks the thread.
    pub fn back_up(&self, to: &Path, on_progress: OnProgress<'_>) -> Result<Backup, BackupError> {
        let state = &self.core().state;
        // The cursors are copied from memory, without those of dropped destinations. A new destination with the name of a
        // dropped one keeps its own cursor.
        let is_copied = |name: &str| !name.starts_with(dropped::PREFIX);
        let notes = state.notes("")?.into_iter().filter(|(name, _)| is_copied(name));
        let notes = notes.map(|(name, value)| (name, Some(value))).collect();
        let lanes = self.lanes().iter().chain([self.dead()]);
        let of =
            |known: Arc<crate::journal::lane::publications::Published>| (known.publication.lane.clone(), known.stream);
        let source = BackupSource {
            folder: self.folder(),
            lanes: lanes.map(|lane| Arc::clone(lane.log())).collect(),
            marks: state.marks()?,
            notes,
            late_losses: Box::new(|| {
                let noted = state.notes(crate::journal::lane::loss::PREFIX)?;
                Ok(noted.into_iter().map(|(name, value)| (name, Some(value))).collect())
            }),
            fingerprint: Box::new(|record| self.core().fingerprint(record)),
            streams: self.publications().into_iter().map(of).collect(),
            reserve: self.core().reserve_bytes.load(Ordering::Relaxed),
        };
        copy_to(&source, to, on_progress)
    }
}

impl ReadOnlyJournal {
    /// Copies the journal into a new folder. Blocks the thread.
    pub fn back_up(&self, to: &Path, on_progress: OnProgress<'_>) -> Result<Backup, BackupError> {
        let damaged = self.lanes().iter().flat_map(|lane| lane.damaged()).map(|(_, damage)| damage);
        let mut unreadable = damaged.filter(|damage| !damage.is_quarantined()).map(|damage| damage.to_string());
        if let Some(why) = unreadable.next().or_else(|| self.publications().damaged.first().cloned()) {
            return Err(BackupError::Damaged(why));
        }
        let state = State::open_without_repair(Arc::new(RealDisk), self.folder())?;
        let key = crate::journal::lane::open::stored_fingerprint_key(&state)?;
        let stream_of = |publication| self.publications().of(publication).map_or(0, |known| known.stream);
        let notes = state.notes("")?.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let of =
            |known: &Arc<crate::journal::lane::publications::Published>| (known.publication.lane.clone(), known.stream);
        let source = BackupSource {
            folder: self.folder(),
            lanes: self.lanes().to_vec(),
            marks: state.marks()?,
            notes,
            late_losses: Box::new(|| Ok(Vec::new())),
            fingerprint: Box::new(move |record| key?.fingerprint(record, stream_of(record.publication))),
            streams: self.publications().all().map(of).collect(),
            reserve: 0,
        };
        copy_to(&source, to, on_progress)
    }
}

/// Copies a journal into a new folder.
fn copy_to(source: &BackupSource<'_>, to: &Path, on_progress: OnProgress<'_>) -> Result<Backup, BackupError> {
    let taken = Timestamp::from(clock::wall()).to_string();
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists { path: to.to_owned() });
    }
    let above = to.parent().filter(|above| *above != Path::new("")).unwrap_or(Path::new("."));
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let folder = above.join(name);
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Leftover { path: folder });
        }
        Err(error) => return Err(JournalError::io(&folder, error).into()),
    }
    let mut job = CopyJob::new(source, folder.clone(), on_progress);
    job.outcome = Backup { folder: to.to_owned(), taken, ..Backup::default() };
    let finished = job.run().and_then(|()| {
        fs::rename(&folder, to).map_err(|error| JournalError::io(to, error))?;
        RealDisk.sync_folder(above).map_err(|error| JournalError::io(above, error))?;
        Ok(())
    });
    let outcome = job.outcome;
    if finished.is_err()
        && let Err(error) = fs::remove_dir_all(&folder)
    {
        tracing::warn!(folder = %folder.display(), %error, "could not remove an unfinished backup; remove the folder by hand");
    }
    finished.map(|()| outcome)
}
