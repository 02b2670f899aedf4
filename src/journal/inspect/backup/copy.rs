//! The copy job of a backup: closed segments as files, the end of each lane event by event, then state and publications.

use super::source::{BackupError, BackupSource, OnProgress};
use crate::api::{Backup, BackupProgress};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::inspect::extent::Extent;
use crate::journal::lane::log::{LaneLog, ReadResult};
use crate::journal::lane::marks;
use crate::journal::lane::publications::PUBLICATIONS;
use crate::journal::lane::restored::Manifest;
use crate::journal::lane::sequence_gaps::GapFile;
use crate::journal::store::block::Compressor;
use crate::journal::store::cursor::Cursor;
use crate::journal::store::disk::{self, Disk, RealDisk};
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::{Closed, FORMAT, Segment, StreamPart, Summary, Synced, file_name};
use crate::journal::store::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Gap behind the numbers of a backup, in case the clock is wrong at the first start: at 10,000 events per second
/// it lasts for 14 years.
const AHEAD: u64 = 1 << 42;
/// Rounds of copying closed segments before the ends of lanes are read: each is shorter than the last.
const ROUNDS: usize = 3;
/// Tries to read the end of a lane, in case retention removed events of it meanwhile.
const TAIL_TRIES: usize = 5;
const COPY_BYTES: usize = 1 << 20;
/// Plain bytes of blocks in one commit of the copied end.
const COMMIT_BYTES: usize = 1 << 20;
const CACHE_BYTES: usize = 1 << 20;
/// Largest number of fingerprints for the copied end of a lane: as many as a segment has.
const FINGERPRINTS_MAX: usize = 128 << 10;

pub(super) struct CopyJob<'a, 't> {
    source: &'a BackupSource<'a>,
    /// Folder under its temporary name.
    folder: PathBuf,
    on_progress: OnProgress<'t>,
    copied: BackupProgress,
    pub(super) outcome: Backup,
    gap_file: GapFile,
    marks: BTreeMap<String, u64>,
}

impl<'a, 't> CopyJob<'a, 't> {
    /// Begins with an existing, empty folder.
    pub(super) fn new(source: &'a BackupSource<'a>, folder: PathBuf, on_progress: OnProgress<'t>) -> Self {
        Self {
            source,
            folder,
            on_progress,
            copied: BackupProgress::default(),
            outcome: Backup::default(),
            gap_file: GapFile::default(),
            marks: source.marks.iter().cloned().collect(),
        }
    }

    pub(super) fn run(&mut self) -> Result<(), BackupError> {
        self.check_room()?;
        let mut reached = Vec::new();
        for lane in &self.source.lanes {
            self.copied.part = lane.name.clone();
            let folder = self.folder.join(lane.name.as_str());
            make_folder(&folder)?;
            let mut copied = BTreeSet::new();
            for _ in 0..ROUNDS {
                let new: Vec<_> =
                    lane.closed_files().into_iter().filter(|(first, _)| !copied.contains(first)).collect();
                if new.is_empty() {
                    break;
                }
                for (first, file) in new {
                    self.copy_segment(lane, first, &file, &folder)?;
                    copied.insert(first);
                }
            }
            reached.push((folder, copied));
        }
        // The ends of all lanes are read together, after the long copies.
        for (lane, (folder, copied)) in self.source.lanes.iter().zip(reached) {
            self.copied.part = lane.name.clone();
            self.copy_tail(lane, &folder, &copied)?;
            sync_folder(&folder)?;
        }
        self.copied.part = "state".into();
        self.copy_rest()?;
        self.report(0)
    }

    fn report(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.copied.done += bytes;
        self.copied.total = self.copied.total.max(self.copied.done);
        match (self.on_progress)(self.copied.clone()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(BackupError::BrokenOff),
        }
    }

    fn check_room(&mut self) -> Result<(), BackupError> {
        let mut needed = 0u64;
        for lane in &self.source.lanes {
            let folder = self.source.folder.join(lane.name.as_str());
            let files = RealDisk.list(&folder).map_err(|error| JournalError::io(&folder, error))?;
            needed += files.iter().filter(|(name, _)| name.ends_with(".redb")).map(|(_, bytes)| bytes).sum::<u64>();
            self.outcome.left_out.extend(lane.damaged().into_iter().map(|(_, damage)| damage.to_string()));
        }
        let failed = |error| JournalError::io(self.source.folder, error);
        for entry in fs::read_dir(self.source.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() && name != PUBLICATIONS && self.source.lanes.iter().all(|lane| name != lane.name.as_str())
            {
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

    fn copy_segment(&mut self, lane: &LaneLog, first: u64, file: &Path, folder: &Path) -> Result<(), BackupError> {
        let held = match lane.open_stable(file) {
            Ok(Some(held)) => held,
            // A reader with an earlier handle may still close it, which writes: copy its events instead.
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
        // Some file systems share the blocks, which is instant; the copy is independent all the same.
        if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
            target.sync_all().map_err(failed(to))?;
            self.outcome.bytes += length;
            return self.report(length);
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
            self.report(needed)?;
        }
        target.sync_all().map_err(failed(to))?;
        Ok(())
    }

    /// Copies a segment event by event, since its file may change meanwhile.
    fn copy_events(&mut self, lane: &LaneLog, first: u64, file: &Path, folder: &Path) -> Result<(), BackupError> {
        let extent = Extent::at(lane, first).filter(|extent| extent.first == first);
        let end = extent.map_or_else(|| lane.next_file(first), |extent| extent.end);
        let cursors = lane.cursors();
        let summary = new_summary(first, cursors, lane.sequences_at(first)?);
        if self.write_tail(lane, folder, summary, end)?.is_none() {
            self.outcome.left_out.push(format!("{}: its events were removed meanwhile", file.display()));
        }
        Ok(())
    }

    /// Copies the events behind the copied segments, up to the current end of the lane's log.
    fn copy_tail(&mut self, lane: &LaneLog, folder: &Path, copied: &BTreeSet<u64>) -> Result<(), BackupError> {
        for _ in 0..TAIL_TRIES {
            // Events removed before this moment are below the cursors; events removed later are detected below.
            let first = copied.last().map_or_else(|| lane.first(), |last| lane.next_file(*last));
            // First the cursors, then the end: no settled event is missing from the copy.
            let cursors = lane.cursors();
            let end = lane.end();
            let first = first.min(end);
            let summary = new_summary(first, cursors, lane.sequences_at(first)?);
            if let Some(next) = self.write_tail(lane, folder, summary, end)? {
                let events = end - 1 - lane.gaps().offsets_below(end);
                self.outcome.lanes.push((lane.name.clone(), events, end));
                return self.reserve(lane, first, end, next);
            }
        }
        Err(BackupError::Damaged(format!("lane {}: events at its end cannot be read", lane.name)))
    }

    /// Writes events into a new, closed segment; returns the next sequence of every stream, or `None` if
    /// some events no longer exist.
    fn write_tail(
        &mut self,
        lane: &LaneLog,
        folder: &Path,
        mut summary: Summary,
        end: u64,
    ) -> Result<Option<Vec<(u32, u64)>>, BackupError> {
        let first = summary.first;
        let segment = Segment::create(&RealDisk, folder, &summary, CACHE_BYTES)?;
        let mut compressor = Compressor::default();
        let mut next_sequences = summary.sequences.clone();
        let mut parts: BTreeMap<u32, StreamPart> = BTreeMap::new();
        let (mut fingerprints, mut values, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = lane.gaps().skip_gap(first);
        while next < end {
            let block = match lane.read_at(next)? {
                ReadResult::Block(block) if block.header.first == next => Some(block),
                _ => None,
            };
            let Some(block) = block else {
                let path = folder.join(file_name(first));
                drop(segment);
                fs::remove_file(&path).map_err(|error| JournalError::io(&path, error))?;
                return Ok(None);
            };
            next = lane.gaps().skip_gap(block.end());
            block.raise_sequences(&mut next_sequences);
            for run in &block.header.runs {
                StreamPart::add(&mut parts, run, block.header.recorded);
            }
            if fingerprints.len() < FINGERPRINTS_MAX {
                fingerprints.extend(block.records().filter_map(|record| (self.source.fingerprint)(&record)));
            }
            bytes += block.bytes();
            values.push((block.header.first, block.reencoded().encode(&mut compressor)));
            if bytes >= COMMIT_BYTES {
                self.write_blocks(&segment, &mut values)?;
                bytes = 0;
            }
        }
        self.write_blocks(&segment, &mut values)?;
        summary.closed = Some(Closed { end, at: summary.begun, streams: parts.into_values().collect() });
        let Synced { .. } = segment.write(&[], Some(&summary), &fingerprints)?;
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
        let Synced { .. } = segment.write(&blocks, None, &[])?;
        values.clear();
        self.outcome.bytes += needed;
        self.report(needed)
    }

    /// Reserves the numbers that the original may assign from now on, so that the copy does not assign them.
    fn reserve(
        &mut self,
        lane: &LaneLog,
        first: u64,
        end: u64,
        mut sequences: Vec<(u32, u64)>,
    ) -> Result<(), BackupError> {
        let name = lane.name.as_str();
        let of_lane = self.source.streams.iter().filter(|(of, _)| of == name).map(|(_, stream)| *stream);
        for stream in of_lane {
            if sequences.iter().all(|(known, _)| *known != stream) {
                sequences.push((stream, 1));
            }
        }
        let mut gaps = lane.gaps().clone();
        gaps.add_offsets(end, end + AHEAD);
        let mut raise = |mark: String, number: u64| {
            self.marks.insert(marks::given(&mark), number);
            self.marks.insert(mark, number);
        };
        raise(marks::offset(name), end + AHEAD);
        for (stream, next) in sequences {
            let next = gaps.skip_sequence_gap(stream, next);
            gaps.add_sequences(stream, next, next + AHEAD);
            raise(marks::sequence(name, stream), next + AHEAD);
        }
        self.marks.insert(marks::segment(name), first);
        self.gap_file.save(name, &gaps, &RealDisk, &self.folder)?;
        Ok(())
    }

    /// Copies publications, seal, marks and notes.
    fn copy_rest(&mut self) -> Result<(), BackupError> {
        let publications = self.folder.join(PUBLICATIONS);
        make_folder(&publications)?;
        let from = self.source.folder.join(PUBLICATIONS);
        for (name, _) in RealDisk.list(&from).map_err(|error| JournalError::io(&from, error))? {
            if name.ends_with(".json") {
                self.copy_file(&from.join(&name), &publications.join(&name))?;
            }
        }
        sync_folder(&publications)?;
        self.copy_file(&self.source.folder.join("journal.toml"), &self.folder.join("journal.toml"))?;
        let (state, _) = State::open(Arc::new(RealDisk), &self.folder)?;
        state.raise(&self.marks.iter().map(|(name, mark)| (name.clone(), *mark)).collect::<Vec<_>>())?;
        state.write_notes(&self.source.notes)?;
        state.write_notes(&(self.source.late_losses)()?)?;
        state.close();
        Manifest::new(&self.outcome.taken).write(&self.folder)?;
        Ok(sync_folder(&self.folder)?)
    }
}

/// Summary of a segment that is written now.
fn new_summary(first: u64, settled: Vec<Cursor>, sequences: Vec<(u32, u64)>) -> Summary {
    let begun = Timestamp::from(clock::wall());
    Summary { format: FORMAT, first, begun, sequences, settled, closed: None }
}

fn make_folder(folder: &Path) -> Result<(), JournalError> {
    disk::make_folder(&RealDisk, folder).map_err(|error| JournalError::io(folder, error))
}

fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    RealDisk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))
}
