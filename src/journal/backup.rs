//! Backup: a consistent copy of a journal, running or not, and what a start makes of a restored one.
//!
//! Promise: every event that was on the disk before a backup began is in it; what it says is settled
//! was; and a journal that is restored from it gives no number that the old one may have given since.
//!
//! The order makes it consistent: notes first, so that no position is ahead of the events it stands for;
//! closed segments as they are; then, for each lane, where destinations stand, the end of its log, and
//! the events up to there in a segment of their own; the publications they name last.
//!
//! Numbers given after the backup are unknown to it. So a gap behind its last number goes into its
//! `unused.json`, and the first start on a restored journal widens that to the present moment in
//! microseconds since 1970, which no row of numbers that counts events has reached: so that one backup
//! may be restored twice.

mod copy;
mod restore;

pub(super) use restore::note_restore;

use super::disk::{Disk, RealDisk};
use super::history::{History, count_block, sequences_after};
use super::readonly::{ReadOnlyJournal, ReadOnlyLane, sequences_at};
use super::segment::Segment;
use super::state::{Note, State};
use super::{Fingerprint, Found, Journal, JournalError, Lane};
use crate::clock;
use crate::event::{Record, Timestamp};
use copy::CopyJob;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why there is no backup. Nothing is left of it but what is said.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something is there.
    #[error("{path} is there already; a backup goes to a folder that is not", path = path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// An earlier one was cut short.
    #[error("{path} is left of a backup that did not end; remove it", path = path.display())]
    Leftover {
        /// What is left.
        path: PathBuf,
    },
    /// The file system is too small, or would be left too full for the gateway.
    #[error("{path} has {free} left; the backup takes {needed}, and {reserve} stay free for the gateway",
        path = path.display(), free = crate::setting::Bytes(*free), needed = crate::setting::Bytes(*needed),
        reserve = crate::setting::Bytes(*reserve))]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// Bytes that are left.
        free: u64,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that have to stay free.
        reserve: u64,
    },
    /// A file of the journal is damaged.
    #[error("{0}; start the gateway once, which sets it aside, or take it out with salvage")]
    Damaged(String),
    /// Whoever asked went away.
    #[error("the backup was broken off")]
    BrokenOff,
    /// The journal or the disk.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// How far a backup is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupProgress {
    /// What is copied now: the name of a lane, or `state`.
    pub part: String,
    /// Bytes copied so far.
    pub done: u64,
    /// Bytes in all, as far as known.
    pub total: u64,
}

/// A finished backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Where it is.
    pub folder: PathBuf,
    /// When it was begun, RFC 3339.
    pub taken: String,
    /// Bytes it takes.
    pub bytes: u64,
    /// Events in it: lane, how many, offset after the last.
    pub lanes: Vec<(String, u64, u64)>,
    /// Damaged files of the journal that are not in it.
    pub left_out: Vec<String>,
}

/// Told how far it is; [`ControlFlow::Break`] breaks the backup off.
pub type OnProgress<'a> = &'a mut dyn FnMut(BackupProgress) -> ControlFlow<()>;

/// A lane that can be copied.
trait Copyable: History {
    /// Segments behind which others follow, or that are closed: first offset and file.
    fn closed(&self) -> Vec<(u64, PathBuf)>;
    /// The segment, held so that nobody changes its file; `None` if somebody may.
    fn open_stable(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError>;
    /// The next sequence of every stream at the start of the segment at `first`, or behind the newest.
    fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError>;
}

type FingerprintOf<'a> = dyn Fn(&Record<'_>) -> Option<Fingerprint> + 'a;

/// What is copied.
struct BackupSource<'a> {
    folder: &'a Path,
    lanes: Vec<Arc<dyn Copyable>>,
    marks: Vec<(String, u64)>,
    notes: Vec<Note>,
    /// Losses that were noted while the lanes were copied: their accounts may be in the copy.
    late_losses: Box<dyn Fn() -> Result<Vec<Note>, JournalError> + 'a>,
    /// What repeats of an event are known by.
    fingerprint: Box<FingerprintOf<'a>>,
    /// Streams of each lane that its publications name.
    streams: Vec<(String, u32)>,
    reserve: u64,
}

impl Journal {
    /// Copies the journal into a new folder while it runs. Blocks the thread.
    pub fn back_up(&self, to: &Path, on_progress: OnProgress<'_>) -> Result<Backup, BackupError> {
        let state = &self.core.state;
        // The cursors that are copied are those in memory, without any dropped one; a destination that comes meanwhile under
        // the name of a dropped one keeps its own.
        let is_copied = |name: &str| !name.starts_with(super::open::DROPPED);
        let notes = state.notes("")?.into_iter().filter(|(name, _)| is_copied(name));
        let notes = notes.map(|(name, value)| (name, Some(value))).collect();
        let lanes = self.lanes().iter().chain([self.dead()]);
        let of = |known: Arc<super::Published>| (known.publication.lane.clone(), known.stream);
        let source = BackupSource {
            folder: &self.folder,
            lanes: lanes.map(|lane| Arc::clone(lane) as Arc<dyn Copyable>).collect(),
            marks: state.marks()?,
            notes,
            late_losses: Box::new(|| {
                let noted = state.notes(super::loss::PREFIX)?;
                Ok(noted.into_iter().map(|(name, value)| (name, Some(value))).collect())
            }),
            fingerprint: Box::new(|record| self.core.fingerprint(record)),
            streams: self.publications().into_iter().map(of).collect(),
            reserve: self.core.reserve_bytes.load(Ordering::Relaxed),
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
        let key = super::open::stored_fingerprint_key(&state)?;
        let stream_of = |publication| self.publications().of(publication).map_or(0, |known| known.stream);
        let notes = state.notes("")?.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let of = |known: &Arc<super::Published>| (known.publication.lane.clone(), known.stream);
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
        let mut work = CopyJob::new(self, folder.clone(), on_progress);
        work.outcome = Backup { folder: to.to_owned(), taken, ..Backup::default() };
        let finished = work.run().and_then(|()| {
            fs::rename(&folder, to).map_err(|error| JournalError::io(to, error))?;
            RealDisk.sync_folder(above).map_err(|error| JournalError::io(above, error))?;
            Ok(())
        });
        let outcome = work.outcome;
        if finished.is_err()
            && let Err(error) = fs::remove_dir_all(&folder)
        {
            tracing::warn!(folder = %folder.display(), %error, "what is left of a backup could not be removed");
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
        Ok(Some(self.core.open_segment(file)?).filter(|segment| segment.is_closed()))
    }

    fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError> {
        let (path, active) = {
            let log = self.log();
            let path = log.segments.get(&first).map(|part| part.path.clone());
            let newest = log.segments.values().next_back().map(|part| part.path.clone());
            (path.clone().or(newest), log.active.clone().filter(|active| Some(active.path()) == path.as_deref()))
        };
        let Some(path) = path else { return Ok(self.log().sequences.clone()) };
        let segment = active.map_or_else(|| self.core.open_segment(&path), Ok)?;
        let summary = segment.view()?.summary()?;
        if summary.first == first {
            return Ok(summary.sequences);
        }
        let mut sequences = sequences_after(&summary);
        let mut next = summary.first;
        // One that a crash left says nothing of what it holds.
        while summary.closed.is_none()
            && next < first
            && let Found::Block(block) = self.look(next)?
        {
            count_block(&mut sequences, &block);
            next = block.end();
        }
        Ok(sequences)
    }
}

impl Copyable for ReadOnlyLane {
    fn closed(&self) -> Vec<(u64, PathBuf)> {
        // The newest may not be closed: its events are copied.
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
