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

use super::history::{History, count_block, sequences_after};
use super::readonly::{ReadOnlyJournal, ReadOnlyLane, sequences_at};
use crate::api::{Backup, BackupProgress};
use crate::clock;
use crate::event::{Record, Timestamp};
use crate::journal::lane::dropped;
use crate::journal::lane::handle::Lane;
use crate::journal::lane::journal::Journal;
use crate::journal::lane::reader::ReadResult;
use crate::journal::store::disk::{Disk, RealDisk};
use crate::journal::store::error::JournalError;
use crate::journal::store::fingerprint::Fingerprint;
use crate::journal::store::segment::Segment;
use crate::journal::store::state::{Note, State};
use copy::CopyJob;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
pub type OnProgress<'a> = &'a mut dyn FnMut(BackupProgress) -> ControlFlow<()>;

/// A lane that can be copied.
trait Copyable: History {
    /// Segments that are complete: first offset and file.
    fn closed(&self) -> Vec<(u64, PathBuf)>;
    /// Opens a segment so that its file stays unchanged meanwhile; `None` if that is not certain.
    fn open_stable(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError>;
    /// The next sequence of every stream at the start of the segment at `first`, or behind the newest.
    fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError>;
}

type FingerprintOf<'a> = dyn Fn(&Record<'_>) -> Option<Fingerprint> + 'a;

struct BackupSource<'a> {
    folder: &'a Path,
    lanes: Vec<Arc<dyn Copyable>>,
    marks: Vec<(String, u64)>,
    notes: Vec<Note>,
    /// Losses noted while the lanes were copied: the copied accounts may include them.
    late_losses: Box<dyn Fn() -> Result<Vec<Note>, JournalError> + 'a>,
    /// Computes the fingerprint of an event.
    fingerprint: Box<FingerprintOf<'a>>,
    /// Lanes and streams of all publications.
    streams: Vec<(String, u32)>,
    reserve: u64,
}

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
            lanes: lanes.map(|lane| Arc::clone(lane) as Arc<dyn Copyable>).collect(),
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
        source.back_up(to, on_progress)
    }
}

impl ReadOnlyJournal {
    /// Copies the journal into a new folder. Blocks the thread.
    pub fn back_up(&self, to: &Path, on_progress: OnProgress<'_>) -> Result<Backup, BackupError> {
        let unreadable = self.lanes().iter().flat_map(|lane| lane.damaged()).map(|(_, why)| why);
        if let Some(why) = unreadable.chain(self.publications().damaged.clone()).find(|why| !why.ends_with("set aside"))
        {
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
            lanes: self.lanes().iter().map(|lane| Arc::clone(lane) as Arc<dyn Copyable>).collect(),
            marks: state.marks()?,
            notes,
            late_losses: Box::new(|| Ok(Vec::new())),
            fingerprint: Box::new(move |record| key?.fingerprint(record, stream_of(record.publication))),
            streams: self.publications().all().map(of).collect(),
            reserve: 0,
        };
        source.back_up(to, on_progress)
    }
}

impl BackupSource<'_> {
    fn back_up(&self, to: &Path, on_progress: OnProgress<'_>) -> Result<Backup, BackupError> {
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
        let mut job = CopyJob::new(self, folder.clone(), on_progress);
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
}

impl Copyable for Lane {
    fn closed(&self) -> Vec<(u64, PathBuf)> {
        let log = self.log();
        let active = log.active.as_ref().map(|active| active.path());
        let closed = log.segments.iter().filter(|(_, part)| Some(part.path.as_path()) != active);
        closed.map(|(first, part)| (*first, part.path.clone())).collect()
    }

    fn open_stable(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError> {
        Ok(Some(self.core.segments.open(file)?).filter(|segment| segment.is_closed()))
    }

    fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError> {
        let (path, active) = {
            let log = self.log();
            let path = log.segments.get(&first).map(|part| part.path.clone());
            let newest = log.segments.values().next_back().map(|part| part.path.clone());
            (path.clone().or(newest), log.active.clone().filter(|active| Some(active.path()) == path.as_deref()))
        };
        let Some(path) = path else { return Ok(self.log().sequences.clone()) };
        let segment = active.map_or_else(|| self.core.segments.open(&path), Ok)?;
        let summary = segment.view()?.summary()?;
        if summary.first == first {
            return Ok(summary.sequences);
        }
        let mut sequences = sequences_after(&summary);
        let mut next = summary.first;
        // The summary of a segment after a crash does not describe its content.
        while summary.closed.is_none()
            && next < first
            && let ReadResult::Block(block) = self.read_at(next)?
        {
            count_block(&mut sequences, &block);
            next = block.end();
        }
        Ok(sequences)
    }
}

impl Copyable for ReadOnlyLane {
    fn closed(&self) -> Vec<(u64, PathBuf)> {
        // The newest may not be closed: its events are copied one by one.
        let count = self.segments.len().saturating_sub(1);
        self.segments.iter().take(count).map(|(first, path)| (*first, path.clone())).collect()
    }

    fn open_stable(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError> {
        self.open_segment(file).map(Some)
    }

    fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError> {
        sequences_at(self, first)
    }
}
