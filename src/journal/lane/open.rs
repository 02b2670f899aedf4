//! Opening and closing the journal: recovery at a start, and a clean shutdown.
//!
//! Promise: `open` repairs what a crash left, quarantines damaged files, and assigns no number twice. `close` commits the
//! queued events and closes every file cleanly.
//! Not here: the numbers of a lane after a loss (`sequence_recovery`).

use super::condition::Condition;
use super::config::{Config, DEAD, LaneConfig, Start};
use super::core::{Core, DiskRoom};
use super::dedupe_window::Window;
use super::group_commit::CommitQueue;
use super::handle::{Durable, Lane, LaneStats, Log, SegmentFile};
use super::heartbeat::Heartbeat;
use super::planted_bugs::{self, Bug};
use super::publications::{PUBLICATIONS, PublicationFile, Published, load_catalog};
use super::reader::ReadResult;
use super::retention::Ages;
use super::sequence_gaps::{GapFile, Gaps};
use super::sequence_recovery::{LostSegments, numbers};
use super::writer::{Active, Position, Writer};
use crate::clock;
use crate::contract::Publication;
use crate::event::Timestamp;
use crate::journal::store::cursor::{Account, Cursor, Outcome};
use crate::journal::store::disk::{Disk, FolderLock, make_folder, read_whole, write_json, write_whole};
use crate::journal::store::error::JournalError;
use crate::journal::store::fingerprint::{Fingerprint, FingerprintKey};
use crate::journal::store::segment::{FORMAT as SEGMENT_FORMAT, Segment, StreamPart, file_name, offset_in_name};
use crate::journal::store::state::State;
use crate::service::Unresponsive;
use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Journal format that this version writes, and the newest that it opens.
const FORMAT: u64 = 3;
/// Name of the file with the seal.
const SEAL: &str = "journal.toml";
/// Name of the note with the key of the fingerprints.
const FINGERPRINT_KEY: &str = "dedupe/key";
/// Stack of a writer thread: redb's tree walks are shallow.
const WRITER_STACK_BYTES: usize = 512 << 10;

/// The format of a journal and the environment that it belongs to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seal {
    #[serde(default)]
    pub format: u64,
    /// Environment; a gateway of another environment cannot open the journal.
    pub environment: String,
}

#[derive(Debug)]
pub struct Journal {
    pub(in crate::journal) core: Arc<Core>,
    pub(in crate::journal) folder: PathBuf,
    lanes: Vec<Arc<Lane>>,
    dead: Arc<Lane>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: FolderLock,
}

impl Journal {
    /// Opens the journal, or creates it. Repairs what a crash left and quarantines damaged files.
    pub fn open(config: &Config, seal: &Seal, disk: Arc<dyn Disk>) -> Result<Self, JournalError> {
        let (journal, writers) = Self::open_without_threads(config, seal, disk)?;
        for writer in writers {
            let thread = std::thread::Builder::new()
                .name(format!("journal-{}", writer.lane_name()))
                .stack_size(WRITER_STACK_BYTES)
                .spawn(move || writer.run())
                .map_err(|error| JournalError::io(&config.folder, error))?;
            journal.threads().push(thread);
        }
        Ok(journal)
    }

    /// Opens the journal without writer threads; the caller runs the writers.
    pub(super) fn open_without_threads(
        config: &Config,
        seal: &Seal,
        disk: Arc<dyn Disk>,
    ) -> Result<(Self, Vec<Writer>), JournalError> {
        let folder = &config.folder;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| JournalError::io(&path, error)
        };
        make_folder(&*disk, folder).map_err(failed(folder))?;
        let lock = match disk.lock(folder).map_err(failed(folder))? {
            Ok(lock) => lock,
            Err(holder) => return Err(JournalError::InUse { folder: folder.clone(), holder }),
        };
        check_seal(&*disk, folder, seal)?;
        let (state, quarantined_state) = State::open(Arc::clone(&disk), folder)?;
        super::restored::note_restore(&*disk, folder)?;
        let fingerprint_key = fingerprint_key(&state)?;
        let (mut gap_file, quarantined_gap_file) = GapFile::load(&*disk, folder)?;
        let catalog = load_catalog(&*disk, folder)?;
        let quarantined = damaged_files(&*disk, folder, quarantined_state.into_iter().chain(quarantined_gap_file))?;
        // Includes an earlier start: it may have died before it recorded the numbers that it skipped.
        let has_lost_marks = quarantined.iter().any(|file| file.ends_with("state.redb.damaged"));
        let core = Arc::new(Core {
            disk,
            folder: folder.clone(),
            identity: lock.folder,
            state,
            reserve_bytes: config.reserve_bytes.into(),
            lanes: std::sync::OnceLock::new(),
            reclaimed_at: Mutex::default(),
            dead_retention: config.dead_retention.into(),
            cache_bytes: config.cache_bytes,
            tail_bytes: config.tail_bytes,
            window: Mutex::new(Window::new(config.dedupe_bytes)),
            fingerprint_key,
            catalog: RwLock::new(catalog),
            opened: Mutex::new(Vec::new()),
            quarantined: Mutex::new(quarantined),
            discard_lock: Mutex::new(()),
            losses: Arc::default(),
            is_resolved: std::sync::OnceLock::new(),
            audited: super::audit::AuditCounts::default(),
        });
        let mut opened = Vec::new();
        let mut fingerprints = Vec::new();
        let retired = retired_lanes(&core, config)?;
        for (index, lane) in config.lanes.iter().chain(&retired).chain([&config.dead]).enumerate() {
            let destinations: &[_] = if lane.name == DEAD { &[] } else { &config.destinations };
            opened.push(open_lane(
                &core,
                folder,
                index,
                lane,
                destinations,
                has_lost_marks,
                &mut gap_file,
                &mut fingerprints,
            )?);
        }
        restore_window(&core, fingerprints);
        let (mut lanes, positions): (Vec<_>, Vec<_>) =
            opened.into_iter().map(|(lane, position)| (Arc::new(lane), position)).unzip();
        let of_events = lanes.iter().filter(|lane| lane.name != DEAD);
        // Nobody else has this core yet: this is the only call of `set`.
        let _ = core.lanes.set(of_events.map(Arc::downgrade).collect());
        let writers =
            lanes.iter().zip(positions).map(|(lane, position)| Writer::new(Arc::clone(lane), position)).collect();
        let Some(dead) = lanes.pop() else { unreachable!("the log of dead letters is always opened") };
        let journal = Self { core, folder: folder.clone(), lanes, dead, threads: Mutex::default(), _lock: lock };
        Ok((journal, writers))
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock()
    }

    /// Lanes of events, in the order of the configuration.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// The lane with this name.
    pub fn lane(&self, name: &str) -> Option<&Arc<Lane>> {
        self.lanes.iter().find(|lane| lane.name == name)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Free space of its file system.
    pub fn disk_room(&self) -> Result<DiskRoom, JournalError> {
        self.core.disk_room(&self.folder)
    }

    /// Returns an error if a writer is dead, or busy with one piece of work for longer than `work_max`.
    pub fn check(&self, work_max: Duration) -> Result<(), Unresponsive> {
        self.lanes.iter().chain([&self.dead]).try_for_each(|lane| lane.heartbeat.check(&lane.name, work_max))
    }

    /// The log of dead letters.
    pub fn dead(&self) -> &Arc<Lane> {
        &self.dead
    }

    /// Returns the number of a publication; stores a new one durably.
    pub fn publish(&self, publication: &Publication) -> Result<u32, JournalError> {
        let mut catalog = self.core.catalog.write();
        let known = catalog.list.iter().flatten().find(|known| known.publication == *publication);
        if let Some(known) = known {
            return Ok(known.number);
        }
        let stream_id = publication.stream_id();
        let same_stream = catalog.list.iter().flatten().find(|known| known.publication.stream_id() == stream_id);
        let next_stream = || catalog.list.iter().flatten().map(|known| known.stream).max().unwrap_or(0) + 1;
        let stream = same_stream.map_or_else(next_stream, |known| known.stream);
        let number = catalog.list.len().max(1) as u32;
        let file = PublicationFile { number, stream, publication: publication.clone() };
        let path = self.folder.join(PUBLICATIONS).join(format!("{number}.json"));
        write_json(&*self.core.disk, &path, &file).map_err(|error| JournalError::io(&path, error))?;
        catalog.put(file);
        Ok(number)
    }

    /// The publication with this number.
    pub fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.core.published(number)
    }

    /// All publications, in the order of their numbers.
    pub fn publications(&self) -> Vec<Arc<Published>> {
        let catalog = self.core.catalog.read();
        catalog.list.iter().flatten().cloned().collect()
    }

    /// Number of repeats from a device since the start; `origin` is `{source}/{device}`.
    pub fn repeats_of(&self, origin: &str) -> u64 {
        self.lanes.iter().map(|lane| lane.stats.repeats_of(origin)).sum()
    }

    /// Sets the function that tells which dead letters are resolved: only unresolved ones are losses when they expire.
    pub fn set_resolved_check(&self, is_resolved: Box<dyn Fn(u64) -> bool + Send + Sync>) {
        // Later calls have no effect: a journal is opened once.
        let _ = self.core.is_resolved.set(super::core::IsResolved(is_resolved));
    }

    /// Damaged files that are set aside, including those of earlier runs.
    pub fn set_aside(&self) -> Vec<PathBuf> {
        self.core.quarantined.lock().clone()
    }

    /// Number of fingerprints in the dedupe window, its capacity, and the time since which it is complete.
    pub fn window(&self) -> (usize, usize, Option<Timestamp>) {
        let window = self.core.window();
        (window.held(), window.capacity(), window.reaches_back_to())
    }

    /// Shifts the dedupe window after the clock was set by `micros`: repeats stay repeats.
    pub fn clock_was_set(&self, micros: i64) {
        self.core.window().shift(micros);
    }

    /// Accepts no more events, commits those that are queued, and closes every file cleanly. If the disk does not take
    /// them within `patience`, they are dropped: nobody got a receipt for them.
    pub fn close(&self, patience: Duration) {
        let all = || self.lanes.iter().chain([&self.dead]);
        all().for_each(|lane| lane.stop());
        let deadline = clock::instant() + patience;
        let writers = std::mem::take(&mut *self.threads());
        while clock::instant() < deadline && writers.iter().any(|writer| !writer.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        all().for_each(|lane| lane.stop_waiting());
        for writer in writers {
            if writer.join().is_err() {
                tracing::error!("a writer of the journal panicked; all acknowledged events are durable");
            }
        }
        self.core.opened.lock().clear();
        self.core.state.close();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close(Duration::from_secs(1));
    }
}

fn check_seal(disk: &dyn Disk, folder: &Path, seal: &Seal) -> Result<(), JournalError> {
    let path = folder.join(SEAL);
    match read_whole(disk, &path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let found: Seal = toml::from_str(&text)
                .map_err(|error| JournalError::Damaged { file: path.clone(), reason: error.message().to_owned() })?;
            if found.format > FORMAT {
                return Err(JournalError::Newer { file: path, format: found.format, newest: FORMAT });
            }
            if found.environment != seal.environment {
                return Err(JournalError::Sealed {
                    folder: folder.to_owned(),
                    sealed: found.environment,
                    wanted: seal.environment.clone(),
                });
            }
            if found.format < FORMAT {
                // From now on an older Forebay refuses the whole journal.
                write_seal(disk, &path, seal)?;
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let publications = folder.join(PUBLICATIONS);
            make_folder(disk, &publications).map_err(|error| JournalError::io(&publications, error))?;
            write_seal(disk, &path, seal)
        }
        Err(error) => Err(JournalError::io(&path, error)),
    }
}

fn write_seal(disk: &dyn Disk, path: &Path, seal: &Seal) -> Result<(), JournalError> {
    let text = format!(
        "# The seal of this journal. Forebay checks it at every start.\nformat = {FORMAT}\nenvironment = {:?}\n",
        seal.environment
    );
    write_whole(disk, path, text.as_bytes()).map_err(|error| JournalError::io(path, error))
}

/// The key of the journal's fingerprints; creates one if there is none. With a new key the fingerprints of closed
/// segments match nothing: repeats of their events are stored again.
fn fingerprint_key(state: &State) -> Result<FingerprintKey, JournalError> {
    if let Some(key) = stored_fingerprint_key(state)? {
        return Ok(key);
    }
    let mut bytes = [0; FingerprintKey::BYTES];
    bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[..8]);
    state.write_notes(&[(FINGERPRINT_KEY.into(), Some(bytes.to_vec()))])?;
    Ok(FingerprintKey::from_bytes(bytes))
}

/// The key in the state, if there is one.
pub(in crate::journal) fn stored_fingerprint_key(state: &State) -> Result<Option<FingerprintKey>, JournalError> {
    let known = state.read_note(FINGERPRINT_KEY)?;
    Ok(known.and_then(|bytes| bytes.try_into().ok()).map(FingerprintKey::from_bytes))
}

/// Time when a segment ended, and its fingerprints.
type SegmentFingerprints = (Timestamp, Vec<Fingerprint>);

fn restore_window(core: &Core, mut fingerprints: Vec<SegmentFingerprints>) {
    fingerprints.sort_by_key(|(ended, _)| *ended);
    let mut window = core.window();
    let mut room = window.capacity();
    // Restore only the newest that fit.
    let keep = fingerprints.iter().rev().take_while(|(_, list)| {
        let fits = room > 0;
        room = room.saturating_sub(list.len());
        fits
    });
    let keep = keep.count();
    for (at, list) in fingerprints.iter().skip(fingerprints.len() - keep) {
        window.restore(list, *at);
    }
}

/// Lanes in the journal that are no longer configured. Their events are still delivered and counted.
fn retired_lanes(core: &Core, config: &Config) -> Result<Vec<LaneConfig>, JournalError> {
    let failed = |error| JournalError::io(&core.folder, error);
    let is_configured = |name: &str| config.lanes.iter().any(|lane| lane.name == name);
    let mut retired = Vec::new();
    for name in core.disk.folders(&core.folder).map_err(failed)? {
        let folder = core.folder.join(&name);
        if name == DEAD || name == PUBLICATIONS || is_configured(&name) {
            continue;
        }
        let files = core.disk.list(&folder).map_err(|error| JournalError::io(&folder, error))?;
        if files.iter().all(|(file, _)| offset_in_name(file).is_none()) {
            continue;
        }
        tracing::warn!(lane = %name, "the journal has a lane that is not in the configuration; its events are still delivered, and it accepts no new ones");
        let holds = config.lanes.first().map(|lane| lane.holds.clone()).unwrap_or_default();
        retired.push(LaneConfig { holds, is_retired: true, ..LaneConfig::new(&name, u64::MAX, Duration::ZERO) });
    }
    retired.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(retired)
}

/// Content of the newest segment of a lane.
pub(in crate::journal) struct NewestSegment {
    pub next: u64,
    pub sequences: BTreeMap<u32, u64>,
    settled: Vec<Cursor>,
    active: Option<Active>,
}

#[expect(clippy::too_many_arguments, reason = "shared state, and the settings of one lane")]
fn open_lane(
    core: &Arc<Core>,
    journal: &Path,
    index: usize,
    config: &LaneConfig,
    destinations: &[(String, Start)],
    has_lost_marks: bool,
    gap_file: &mut GapFile,
    fingerprints: &mut Vec<SegmentFingerprints>,
) -> Result<(Lane, Position), JournalError> {
    let folder = journal.join(&config.name);
    let failed = |error| JournalError::io(&folder, error);
    make_folder(&*core.disk, &folder).map_err(failed)?;
    let identity = core.disk.identity(&folder).map_err(failed)?;
    let (mut segments, has_damaged) = list_segments(core, &folder)?;
    let has_files = has_damaged || !segments.is_empty();
    let mut lost = LostSegments::default();
    let newest = loop {
        let Some((&first, part)) = segments.last_key_value() else { break None };
        match read_newest(core, &part.path, first, fingerprints) {
            Ok(newest) => break Some(newest),
            Err(error @ JournalError::Damaged { .. }) => {
                tracing::error!(lane = %config.name, %error, "could not read the newest segment; setting it aside");
                lost.add(first, core, &part.path);
                core.quarantine(&part.path.clone());
                segments.remove(&first);
            }
            Err(error) => return Err(error),
        }
    };
    let newest =
        newest.unwrap_or(NewestSegment { next: 1, sequences: BTreeMap::new(), settled: Vec::new(), active: None });
    restore_older_fingerprints(core, &segments, newest.active.is_some(), fingerprints);

    let segment_mark = core.state.mark(&format!("segment/{}", config.name))?;
    let newest_first = segments.last_key_value().map_or(0, |(first, _)| *first);
    if segment_mark > newest_first.max(1) {
        lost.first = Some(lost.first.unwrap_or(u64::MAX).min(segment_mark));
    }
    let mut gaps = gap_file.of(&config.name);
    let (offsets, sequences) = numbers(core, &config.name, &newest, &lost, has_lost_marks && has_files, &mut gaps)?;
    // Before a number is assigned: what is skipped now must stay skipped.
    gap_file.save(&config.name, &gaps, &*core.disk, journal)?;
    let oldest = segments.first_key_value().map_or(offsets.next, |(first, _)| *first);
    let oldest_sequences = first_sequences(core, &segments, newest.active.as_ref())?;
    // After a gap the old segment is not continued: its blocks would enclose a hole in the middle of a segment.
    let active = newest.active.filter(|_| offsets.next == newest.next);
    let mut settled = newest.settled;
    // A crash may have come before the log recorded that an operator dropped a destination. A new destination with the
    // same name gets a cursor of its own below.
    let dropped = dropped_in(core, &config.name)?;
    settled.retain(|cursor| !dropped.contains(&cursor.destination));
    if planted_bugs::has(Bug::DroppedByPrefix) {
        settled.retain(|cursor| !dropped.iter().any(|name| name.starts_with(&cursor.destination)));
    }
    for (name, start) in destinations {
        if settled.iter().any(|known| known.destination == *name) {
            continue;
        }
        let mut cursor = match start {
            Start::Now => {
                owed_from(name, offsets.next, sequences.iter().map(|(stream, numbers)| (*stream, numbers.next)))
            }
            Start::Oldest => match &oldest_sequences {
                Some(sequences) => owed_from(name, oldest, sequences.iter().copied()),
                None => owed_from_unknown(name, oldest, &gaps),
            },
        };
        if segments.is_empty() && offsets.next > 1 {
            // The cursor was in the lost segment. Events removed before that were settled.
            let first = lost.first.unwrap_or(1).min(offsets.next);
            cursor.low = first;
            cursor.account(0).add(Outcome::Delivered, first - 1 - gaps.offsets_below(first));
        }
        settled.push(cursor);
    }
    let lost_to = gaps.offsets.last().filter(|gap| gap.1 == offsets.next).map_or(offsets.next, |gap| gap.0);
    for cursor in &mut settled {
        gaps.offsets.iter().for_each(|(from, to)| cursor.skip(*from, *to));
        // The events of the newest segment are lost; destinations do not wait for them. Sequences in the lost range are not
        // attributed to a stream: nobody knows which events had them.
        cursor.mark_lost(newest.next, lost_to, &[]);
    }
    let log = Log {
        durable_low: settled.iter().map(|settled| (settled.destination.clone(), settled.low)).collect(),
        segments,
        active: active.as_ref().map(|active| Arc::clone(&active.segment)),
        settled,
        end: offsets.next,
        sequences: sequences.iter().map(|(stream, numbers)| (*stream, numbers.next)).collect(),
        ..Log::default()
    };
    let lane = Lane {
        name: config.name.clone(),
        stats: LaneStats::default(),
        index,
        settings: ArcSwap::from_pointee(config.clone()),
        folder,
        identity,
        queue: CommitQueue::new(),
        core: Arc::clone(core),
        log: Mutex::new(log),
        next: watch::channel(Durable { end: offsets.next, batch: 0 }).0,
        condition: Mutex::new(Condition::Good),
        stopping: (Mutex::new(false), Condvar::new()),
        active_damaged: AtomicBool::new(false),
        gaps,
        ages: Mutex::new(Ages::default()),
        dropped: Mutex::new(dropped),
        reclaim_requested: AtomicBool::new(false),
        retention_lock: Mutex::default(),
        heartbeat: Heartbeat::default(),
    };
    Ok((lane, Position { offsets, sequences, active }))
}

/// Prefix of the notes named by [`dropped`].
pub(in crate::journal) const DROPPED: &str = "dropped/";

/// Name of the note that a destination was dropped in a lane while the log still has its cursor.
pub(in crate::journal) fn dropped(lane: &str, destination: &str) -> String {
    format!("{DROPPED}{lane}/{destination}")
}

/// Destinations that were dropped in a lane while the log still has their cursors.
fn dropped_in(core: &Core, lane: &str) -> Result<Vec<String>, JournalError> {
    // Names have no slash: notes of other lanes do not have this prefix.
    let prefix = dropped(lane, "");
    let notes = core.state.notes(&prefix)?;
    Ok(notes.into_iter().map(|(name, _)| name[prefix.len()..].to_owned()).collect())
}

/// A cursor that is owed the events from `offset` on, with these next sequences.
pub(in crate::journal) fn owed_from(
    name: &str,
    offset: u64,
    sequences: impl IntoIterator<Item = (u32, u64)>,
) -> Cursor {
    let mut cursor = Cursor::new(name, offset);
    cursor.accounts = sequences.into_iter().map(|(stream, next)| Account::new(stream, next)).collect();
    cursor
}

/// Like [`owed_from`] if the sequences are unknown: earlier events are counted without a stream.
pub(in crate::journal) fn owed_from_unknown(name: &str, offset: u64, gaps: &Gaps) -> Cursor {
    let mut cursor = Cursor::new(name, offset);
    cursor.account(0).add(Outcome::NotOwed, offset - 1 - gaps.offsets_below(offset));
    cursor
}

/// The sequences at the start of the oldest segment; `None` if it cannot be read.
fn first_sequences(
    core: &Core,
    segments: &BTreeMap<u64, SegmentFile>,
    active: Option<&Active>,
) -> Result<Option<Vec<(u32, u64)>>, JournalError> {
    match segments.first_key_value() {
        Some((_, part)) => match active.filter(|active| active.segment.path() == part.path) {
            Some(active) => Ok(Some(active.summary.sequences.clone())),
            None => match core.open_segment(&part.path).and_then(|segment| segment.view()?.summary()) {
                Ok(summary) => Ok(Some(summary.sequences)),
                // The first reader that needs its events quarantines it.
                Err(JournalError::Damaged { .. }) => Ok(None),
                Err(error) => Err(error),
            },
        },
        None => Ok(Some(Vec::new())),
    }
}

/// Damaged files in the folder of the journal, of this start and of earlier ones.
fn damaged_files(
    disk: &dyn Disk,
    folder: &Path,
    new: impl Iterator<Item = PathBuf>,
) -> Result<Vec<PathBuf>, JournalError> {
    let found = disk.list(folder).map_err(|error| JournalError::io(folder, error))?;
    let mut files: Vec<_> =
        found.into_iter().filter(|(name, _)| name.ends_with(".damaged")).map(|(name, _)| folder.join(name)).collect();
    files.extend(new);
    files.sort();
    files.dedup();
    Ok(files)
}

/// The segments of a lane, and whether the folder has damaged ones too.
fn list_segments(core: &Core, folder: &Path) -> Result<(BTreeMap<u64, SegmentFile>, bool), JournalError> {
    let mut segments = BTreeMap::new();
    let mut has_damaged = false;
    for (name, _) in core.disk.list(folder).map_err(|error| JournalError::io(folder, error))? {
        let path = folder.join(&name);
        if name.ends_with(".tmp") {
            // A crash interrupted the creation of this segment: it never counted.
            core.disk.remove(&path).map_err(|error| JournalError::io(&path, error))?;
        } else if let Some(first) = offset_in_name(&name) {
            debug_assert_eq!(file_name(first), name);
            let bytes = core.disk.allocated_bytes(&path).map_err(|error| JournalError::io(&path, error))?;
            segments.insert(first, SegmentFile { path, bytes });
        } else if name.ends_with(".damaged") {
            core.quarantined.lock().push(path);
            has_damaged = true;
        }
    }
    Ok((segments, has_damaged))
}

fn read_newest(
    core: &Core,
    path: &Path,
    first: u64,
    fingerprints: &mut Vec<SegmentFingerprints>,
) -> Result<NewestSegment, JournalError> {
    let segment = Segment::open(&*core.disk, path, core.cache_bytes)?;
    let view = segment.view()?;
    let mut summary = view.summary()?;
    let mut sequences: BTreeMap<u32, u64> = summary.sequences.iter().copied().collect();
    let mut settled = summary.settled.clone();
    if let Some(closed) = &summary.closed {
        for part in &closed.streams {
            sequences.insert(part.stream, part.first + part.count);
        }
        fingerprints.push((closed.at, view.fingerprints()?));
        return Ok(NewestSegment { next: closed.end, sequences, settled, active: None });
    }
    let mut next = first;
    let mut bytes = 0;
    let mut active_fingerprints = Vec::new();
    let mut parts = BTreeMap::new();
    let mut recorded = summary.begun;
    while let Some(block) = view.block_from(next)? {
        next = block.end();
        bytes += (block.bytes() as u64 / 2).next_power_of_two().max(4096);
        recorded = block.header.recorded;
        for run in &block.header.runs {
            sequences.insert(run.stream, run.first + u64::from(run.count));
            StreamPart::add(&mut parts, run, recorded);
        }
        for newer in &block.header.settled {
            match settled.iter_mut().find(|known| known.destination == newer.destination) {
                Some(known) if newer.is_past(known) => *known = newer.clone(),
                Some(_) => {}
                None => settled.push(newer.clone()),
            }
        }
        active_fingerprints.extend(block.records().filter_map(|record| core.fingerprint(&record)));
    }
    drop(view);
    fingerprints.push((recorded, active_fingerprints.clone()));
    // From now on everything is written to it in this format, including the fingerprints at its end.
    summary.format = SEGMENT_FORMAT;
    let begun = instant_of(summary.begun);
    let active = Active { segment: Arc::new(segment), summary, bytes, fingerprints: active_fingerprints, parts, begun };
    Ok(NewestSegment { next, sequences, settled, active: Some(active) })
}

/// The instant at which the wall clock showed `begun`, as far as the clocks allow.
fn instant_of(begun: Timestamp) -> Instant {
    let elapsed = Timestamp::from(clock::wall()).since(begun);
    let now = clock::instant();
    now.checked_sub(elapsed).unwrap_or(now)
}

/// Adds the fingerprints of closed segments, newest first, until the window would be full.
fn restore_older_fingerprints(
    core: &Core,
    segments: &BTreeMap<u64, SegmentFile>,
    has_active: bool,
    fingerprints: &mut Vec<SegmentFingerprints>,
) {
    let capacity = core.window().capacity();
    let mut count: usize = fingerprints.iter().map(|(_, list)| list.len()).sum();
    for part in segments.values().rev().skip(1).take(if has_active || segments.len() > 1 { usize::MAX } else { 0 }) {
        if count >= capacity {
            return;
        }
        let read = core.open_segment(&part.path).and_then(|segment| {
            let view = segment.view()?;
            Ok((view.summary()?.closed.map_or(Timestamp(0), |closed| closed.at), view.fingerprints()?))
        });
        match read {
            Ok(found) => {
                count += found.1.len();
                // Segments without ids come from contracts without ids; older ones may still have some.
                fingerprints.push(found);
            }
            // The first reader that needs its events finds the damage again and quarantines the segment.
            Err(error) => {
                tracing::warn!(%error, "could not read the ids of a segment; some repeats may be stored again")
            }
        }
    }
}

impl Lane {
    /// Reads the log at an offset, for a single access. Blocks the thread.
    pub fn look(&self, offset: u64) -> Result<ReadResult, JournalError> {
        self.read_at(offset)
    }
}

impl Seal {
    /// Reads the seal of a journal without taking its lock; `None` if there is none or this user may not read it.
    pub fn of(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join(SEAL)).ok()?;
        toml::from_str(&text).ok()
    }
}
