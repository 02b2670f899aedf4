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

use super::block::Compressor;
use super::disk::{Disk, RealDisk, read_whole, write_whole};
use super::history::{History, count_block, sequences_after};
use super::segment::{Closed, FORMAT, Segment, StreamPart, Summary, file_name};
use super::settled::Settled;
use super::shelf::{Shelf, ShelfLane, sequences_at};
use super::state::{Note, State};
use super::unused::Unused;
use super::window::Fingerprint;
use super::{Found, Journal, JournalError, Lane, sequence_mark};
use crate::clock;
use crate::event::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What says that a journal is a copy that no gateway has run on yet.
const FILE: &str = "backup.json";
/// Its name after the first start.
const USED: &str = "restored.json";
/// Numbers that are passed over behind those of a backup, should the clock be wrong at the first start:
/// at 10,000 events a second they last for 14 years.
const AHEAD: u64 = 1 << 42;
/// Rounds of copying closed segments before the lanes' ends are taken: each is shorter than the last.
const ROUNDS: usize = 3;
/// How often the end of a lane is taken again, since retention removed events of it meanwhile.
const TAIL_TRIES: usize = 5;
/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;
/// Plain bytes of blocks in one commit of the copied end.
const COMMIT_BYTES: usize = 1 << 20;
const CACHE_BYTES: usize = 1 << 20;
/// Fingerprints that the copied end of a lane carries: as many as a segment has.
const PRINTS_MAX: usize = 128 << 10;

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
pub struct Copied {
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

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// When it was taken, RFC 3339.
    taken: String,
    version: String,
}

/// Told how far it is; [`ControlFlow::Break`] breaks the backup off.
pub type Tell<'a> = &'a mut dyn FnMut(Copied) -> ControlFlow<()>;

/// A lane that can be copied.
trait Copyable: History {
    /// Segments behind which others follow, or that are closed: first offset and file.
    fn closed(&self) -> Vec<(u64, PathBuf)>;
    /// The segment, held so that nobody changes its file; `None` if somebody may.
    fn hold(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError>;
    /// The next sequence of every stream at the start of the segment at `first`, or behind the newest.
    fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError>;
}

/// What is copied.
struct Source<'a> {
    folder: &'a Path,
    lanes: Vec<Arc<dyn Copyable>>,
    marks: Vec<(String, u64)>,
    notes: Vec<Note>,
    /// Streams of each lane that its publications name.
    streams: Vec<(String, u32)>,
    reserve: u64,
}

impl Journal {
    /// Copies the journal into a new folder while it runs. Blocks the thread.
    pub fn back_up(&self, to: &Path, tell: Tell<'_>) -> Result<Backup, BackupError> {
        let state = &self.core.state;
        let notes = state.notes("")?.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let lanes = self.lanes().iter().chain([self.dead()]);
        let of = |known: Arc<super::Published>| (known.publication.lane.clone(), known.stream);
        let source = Source {
            folder: &self.folder,
            lanes: lanes.map(|lane| Arc::clone(lane) as Arc<dyn Copyable>).collect(),
            marks: state.marks()?,
            notes,
            streams: self.publications().into_iter().map(of).collect(),
            reserve: self.core.reserve_bytes,
        };
        source.back_up(to, tell)
    }
}

impl Shelf {
    /// Copies the journal into a new folder. Blocks the thread.
    pub fn back_up(&self, to: &Path, tell: Tell<'_>) -> Result<Backup, BackupError> {
        let unreadable = self.lanes().iter().flat_map(|lane| lane.damaged()).map(|(_, why)| why);
        if let Some(why) = unreadable.chain(self.publications().damaged.clone()).find(|why| !why.ends_with("set aside"))
        {
            return Err(BackupError::Damaged(why));
        }
        let state = State::open_untouched(Arc::new(RealDisk), self.folder())?;
        let notes = state.notes("")?.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let of = |known: &Arc<super::Published>| (known.publication.lane.clone(), known.stream);
        let source = Source {
            folder: self.folder(),
            lanes: self.lanes().iter().map(|lane| Arc::clone(lane) as Arc<dyn Copyable>).collect(),
            marks: state.marks()?,
            notes,
            streams: self.publications().all().map(of).collect(),
            reserve: 0,
        };
        source.back_up(to, tell)
    }
}

/// A backup under way.
struct Work<'a, 't> {
    source: &'a Source<'a>,
    /// The folder under its temporary name.
    folder: PathBuf,
    tell: Tell<'t>,
    copied: Copied,
    outcome: Backup,
    unused: Unused,
    marks: BTreeMap<String, u64>,
}

impl Source<'_> {
    fn back_up(&self, to: &Path, tell: Tell<'_>) -> Result<Backup, BackupError> {
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
        let (unused, _) = Unused::load(&RealDisk, self.folder).unwrap_or_default();
        let mut work = Work {
            source: self,
            folder: folder.clone(),
            tell,
            copied: Copied::default(),
            outcome: Backup { folder: to.to_owned(), taken, ..Backup::default() },
            unused,
            marks: self.marks.iter().cloned().collect(),
        };
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

impl Work<'_, '_> {
    fn run(&mut self) -> Result<(), BackupError> {
        self.check_room()?;
        let mut reached = Vec::new();
        for lane in &self.source.lanes {
            self.copied.part = lane.name().to_owned();
            let folder = self.folder.join(lane.name());
            make_folder(&folder)?;
            let mut copied = BTreeSet::new();
            for _ in 0..ROUNDS {
                let new: Vec<_> = lane.closed().into_iter().filter(|(first, _)| !copied.contains(first)).collect();
                if new.is_empty() {
                    break;
                }
                for (first, file) in new {
                    self.copy_segment(&**lane, first, &file, &folder)?;
                    copied.insert(first);
                }
            }
            reached.push((folder, copied));
        }
        // The ends of all lanes are taken together, after what takes long.
        for (lane, (folder, copied)) in self.source.lanes.iter().zip(reached) {
            self.copied.part = lane.name().to_owned();
            self.copy_tail(&**lane, &folder, &copied)?;
            sync_folder(&folder)?;
        }
        self.copied.part = "state".into();
        self.copy_rest()?;
        self.told(0)
    }

    fn told(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.copied.done += bytes;
        self.copied.total = self.copied.total.max(self.copied.done);
        match (self.tell)(self.copied.clone()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(BackupError::BrokenOff),
        }
    }

    fn check_room(&mut self) -> Result<(), BackupError> {
        let mut needed = 0u64;
        for lane in &self.source.lanes {
            let folder = self.source.folder.join(lane.name());
            let files = RealDisk.list(&folder).map_err(|error| JournalError::io(&folder, error))?;
            needed += files.iter().filter(|(name, _)| name.ends_with(".redb")).map(|(_, bytes)| bytes).sum::<u64>();
            self.outcome.left_out.extend(lane.damaged().into_iter().map(|(_, why)| why));
        }
        let failed = |error| JournalError::io(self.source.folder, error);
        for entry in fs::read_dir(self.source.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() && name != "publications" && self.source.lanes.iter().all(|lane| name != lane.name()) {
                self.outcome.left_out.push(format!("{}: no lane of that name is configured", path.display()));
            }
        }
        self.copied.total = needed;
        let free = self.free()?;
        if free < needed.saturating_add(self.source.reserve) {
            return Err(BackupError::NoRoom { path: self.folder.clone(), free, needed, reserve: self.source.reserve });
        }
        Ok(())
    }

    fn free(&self) -> Result<u64, JournalError> {
        RealDisk.free_bytes(&self.folder).map_err(|error| JournalError::io(&self.folder, error))
    }

    /// Copies a segment that is only read from now on.
    fn copy_segment(&mut self, lane: &dyn Copyable, first: u64, file: &Path, folder: &Path) -> Result<(), BackupError> {
        let held = match lane.hold(file) {
            Ok(Some(held)) => held,
            // A reader of an earlier handle may still close it, which writes: its events are copied instead.
            Ok(None) => return self.copy_events(lane, first, file, folder),
            Err(JournalError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error @ JournalError::Damaged { .. }) => {
                self.outcome.left_out.push(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let to = folder.join(file_name(first));
        let outcome = self.copy_file(file, &to);
        drop(held);
        match outcome {
            // Every destination had settled it, and retention removed it.
            Err(BackupError::Journal(JournalError::Io { error, .. })) if error.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            other => other,
        }
    }

    fn copy_file(&mut self, from: &Path, to: &Path) -> Result<(), BackupError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| JournalError::io(&path, error)
        };
        let mut source = File::open(from).map_err(failed(from))?;
        let mut target = File::options().write(true).create_new(true).mode(0o600).open(to).map_err(failed(to))?;
        let length = source.metadata().map_err(failed(from))?.len();
        // Some file systems share the blocks, which is at once; the copy is its own all the same.
        if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
            target.sync_all().map_err(failed(to))?;
            self.outcome.bytes += length;
            return self.told(length);
        }
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = source.read(&mut buffer).map_err(failed(from))?;
            if read == 0 {
                break;
            }
            let free = self.free()?;
            let needed = read as u64;
            if free < self.source.reserve + needed {
                return Err(BackupError::NoRoom {
                    path: self.folder.clone(),
                    free,
                    needed,
                    reserve: self.source.reserve,
                });
            }
            target.write_all(&buffer[..read]).map_err(failed(to))?;
            self.outcome.bytes += needed;
            self.told(needed)?;
        }
        target.sync_all().map_err(failed(to))?;
        Ok(())
    }

    /// Copies a segment by its events, for one whose file may change under the copy.
    fn copy_events(&mut self, lane: &dyn Copyable, first: u64, file: &Path, folder: &Path) -> Result<(), BackupError> {
        let extent = lane.extent(first).filter(|extent| extent.first == first);
        let end = extent.map_or_else(|| lane.next_file(first), |extent| extent.end);
        let cursors = lane.cursors();
        let sequences = lane.sequences_at(first)?;
        if self.write_tail(lane, folder, first, end, cursors, sequences)?.is_none() {
            self.outcome.left_out.push(format!("{}: its events were removed meanwhile", file.display()));
        }
        Ok(())
    }

    /// Copies what is behind the copied segments, up to the end of the lane's log at this moment.
    fn copy_tail(&mut self, lane: &dyn Copyable, folder: &Path, copied: &BTreeSet<u64>) -> Result<(), BackupError> {
        for _ in 0..TAIL_TRIES {
            // First where destinations stand, then the end: nothing is settled that is not there.
            let cursors = lane.cursors();
            let (first, end) = match copied.last() {
                Some(last) => (lane.next_file(*last), lane.end()),
                None => (lane.oldest(), lane.end()),
            };
            let first = first.min(end);
            let sequences = lane.sequences_at(first)?;
            if let Some(next) = self.write_tail(lane, folder, first, end, cursors, sequences)? {
                let events = end - 1 - lane.gaps().offsets_below(end);
                self.outcome.lanes.push((lane.name().to_owned(), events, end));
                return self.reserve(lane, first, end, next);
            }
        }
        Err(BackupError::Damaged(format!("lane {}: events at its end cannot be read", lane.name())))
    }

    /// Writes events into a closed segment of their own; returns the next sequence of every stream, or
    /// `None` if some are not there any more.
    fn write_tail(
        &mut self,
        lane: &dyn Copyable,
        folder: &Path,
        first: u64,
        end: u64,
        settled: Vec<Settled>,
        sequences: Vec<(u32, u64)>,
    ) -> Result<Option<Vec<(u32, u64)>>, BackupError> {
        let now = Timestamp::from(clock::wall());
        let mut summary = Summary { format: FORMAT, first, begun: now, sequences, settled, closed: None };
        let segment = Segment::create(&RealDisk, folder, &summary, CACHE_BYTES)?;
        let mut compressor = Compressor::default();
        let mut next_sequences = summary.sequences.clone();
        let mut parts: BTreeMap<u32, StreamPart> = BTreeMap::new();
        let (mut prints, mut values, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = lane.gaps().pass(first);
        while next < end {
            let Found::Block(block) = lane.find(next)? else { return Ok(None) };
            if block.header.first != next {
                return Ok(None);
            }
            next = lane.gaps().pass(block.end());
            count_block(&mut next_sequences, &block);
            for run in &block.header.runs {
                let recorded = block.header.recorded;
                let part = parts.entry(run.stream).or_insert(StreamPart {
                    stream: run.stream,
                    first: run.first,
                    count: 0,
                    recorded: (recorded, recorded),
                });
                part.count += u64::from(run.count);
                part.recorded.1 = recorded;
            }
            if prints.len() < PRINTS_MAX {
                prints.extend(block.records().filter_map(|record| Fingerprint::of(&record)));
            }
            bytes += block.bytes();
            values.push((block.header.first, block.encode(&mut compressor)));
            if bytes >= COMMIT_BYTES {
                self.write_blocks(&segment, &mut values)?;
                bytes = 0;
            }
        }
        self.write_blocks(&segment, &mut values)?;
        summary.closed = Some(Closed { end, at: now, streams: parts.into_values().collect() });
        segment.write(&[], Some(&summary), &prints)?;
        Ok(Some(next_sequences))
    }

    fn write_blocks(&mut self, segment: &Segment, values: &mut Vec<(u64, Vec<u8>)>) -> Result<(), BackupError> {
        let free = self.free()?;
        let needed: u64 = values.iter().map(|(_, value)| value.len() as u64).sum();
        let reserve = self.source.reserve;
        if free < reserve + needed {
            return Err(BackupError::NoRoom { path: self.folder.clone(), free, needed, reserve });
        }
        let blocks: Vec<_> = values.iter().map(|(first, value)| (*first, value.as_slice())).collect();
        segment.write(&blocks, None, &[])?;
        values.clear();
        self.outcome.bytes += needed;
        self.told(needed)
    }

    /// Notes numbers that the journal may give from now on as not given by the copy.
    fn reserve(
        &mut self,
        lane: &dyn Copyable,
        first: u64,
        end: u64,
        mut sequences: Vec<(u32, u64)>,
    ) -> Result<(), BackupError> {
        let name = lane.name();
        let of_lane = self.source.streams.iter().filter(|(of, _)| of == name).map(|(_, stream)| *stream);
        for stream in of_lane {
            if sequences.iter().all(|(known, _)| *known != stream) {
                sequences.push((stream, 1));
            }
        }
        let mut gaps = lane.gaps().clone();
        gaps.add_offsets(end, end + AHEAD);
        let mut raise = |mark: String, number: u64| {
            self.marks.insert(format!("given/{mark}"), number);
            self.marks.insert(mark, number);
        };
        raise(format!("offset/{name}"), end + AHEAD);
        for (stream, next) in sequences {
            let next = gaps.pass_sequence(stream, next);
            gaps.add_sequences(stream, next, next + AHEAD);
            raise(sequence_mark(name, stream), next + AHEAD);
        }
        self.marks.insert(format!("segment/{name}"), first);
        self.unused.save(name, &gaps, &RealDisk, &self.folder)?;
        Ok(())
    }

    /// Copies what is beside the lanes.
    fn copy_rest(&mut self) -> Result<(), BackupError> {
        let publications = self.folder.join("publications");
        make_folder(&publications)?;
        let from = self.source.folder.join("publications");
        for (name, _) in RealDisk.list(&from).map_err(|error| JournalError::io(&from, error))? {
            if name.ends_with(".json") {
                self.copy_file(&from.join(&name), &publications.join(&name))?;
            }
        }
        sync_folder(&publications)?;
        self.copy_file(&self.source.folder.join("journal.toml"), &self.folder.join("journal.toml"))?;
        let (state, _) = State::open(Arc::new(RealDisk), &self.folder)?;
        state.raise(&self.marks.iter().map(|(name, mark)| (name.clone(), *mark)).collect::<Vec<_>>())?;
        state.note(&self.source.notes)?;
        state.close();
        let manifest =
            Manifest { format: 1, taken: self.outcome.taken.clone(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let path = self.folder.join(FILE);
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| JournalError::io(&path, error.into()))?;
        write_whole(&RealDisk, &path, &text).map_err(|error| JournalError::io(&path, error))?;
        Ok(sync_folder(&self.folder)?)
    }
}

fn make_folder(folder: &Path) -> Result<(), JournalError> {
    RealDisk.make_folder(folder).map_err(|error| JournalError::io(folder, error))
}

fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    RealDisk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))
}

impl Copyable for Lane {
    fn closed(&self) -> Vec<(u64, PathBuf)> {
        let log = self.log();
        let active = log.active.as_ref().map(|active| active.path());
        let closed = log.segments.iter().filter(|(_, part)| Some(part.path.as_path()) != active);
        closed.map(|(first, part)| (*first, part.path.clone())).collect()
    }

    fn hold(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError> {
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

impl Copyable for ShelfLane {
    fn closed(&self) -> Vec<(u64, PathBuf)> {
        // The newest may not be closed: its events are copied.
        let count = self.segments.len().saturating_sub(1);
        self.segments.iter().take(count).map(|(first, path)| (*first, path.clone())).collect()
    }

    fn hold(&self, file: &Path) -> Result<Option<Arc<Segment>>, JournalError> {
        self.open_segment(file).map(Some)
    }

    fn sequences_at(&self, first: u64) -> Result<Vec<(u32, u64)>, JournalError> {
        sequences_at(self, first)
    }
}

/// Before a start gives a number: a journal that is restored from a backup passes over everything that
/// the one it was taken from may have given since.
pub(super) fn note_restore(disk: &dyn Disk, folder: &Path) -> Result<(), JournalError> {
    let path = folder.join(FILE);
    let manifest = match read_whole(disk, &path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(JournalError::io(&path, error)),
    };
    let taken = serde_json::from_slice::<Manifest>(&manifest).map_or_else(|_| "?".into(), |known| known.taken);
    let now = u64::try_from(Timestamp::from(clock::wall()).0).unwrap_or(0);
    let (mut unused, _) = Unused::load(disk, folder)?;
    unused.widen_last(now, disk, folder)?;
    tracing::warn!(%taken, "this journal is restored from a backup: numbers go on behind every one that may have been given since, and central gets again what it had acknowledged since");
    disk.rename(&path, &folder.join(USED)).map_err(|error| JournalError::io(&path, error))?;
    disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))
}
