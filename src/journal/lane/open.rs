//! Opens the journal: recovery at a start, lane by lane.
//!
//! Promise: `open` repairs what a crash left, quarantines damaged files, and assigns no number twice.
//! Not here: how one lane recovers (`recovery`), its numbers after a loss (`sequence_recovery`).

use super::config::{Config, DEAD, LaneConfig};
use super::core::{Core, Opened};
use super::journal::Journal;
use super::newest_segment::SegmentFingerprints;
use super::publications::{PUBLICATIONS, Publications};
use super::recovery::Recovery;
use super::restored::note_restore;
use super::seal::Seal;
use super::sequence_gaps::GapFile;
use super::writer::Writer;
use crate::journal::store::disk::{Disk, make_folder};
use crate::journal::store::error::JournalError;
use crate::journal::store::fingerprint::FingerprintKey;
use crate::journal::store::segment::offset_in_name;
use crate::journal::store::state::State;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Name of the note with the key of the fingerprints.
const FINGERPRINT_KEY: &str = "dedupe/key";

impl Journal {
    /// Opens the journal, or creates it. Repairs what a crash left and quarantines damaged files.
    pub fn open(config: &Config, seal: &Seal, disk: Arc<dyn Disk>) -> Result<Self, JournalError> {
        let (journal, writers) = Self::open_without_threads(config, seal, disk)?;
        journal.start(writers)?;
        Ok(journal)
    }

    /// Opens the journal without writer threads; the caller runs the writers.
    pub(super) fn open_without_threads(
        config: &Config,
        seal: &Seal,
        disk: Arc<dyn Disk>,
    ) -> Result<(Self, Vec<Writer>), JournalError> {
        let folder = &config.folder;
        let failed = |error| JournalError::io(folder, error);
        make_folder(&*disk, folder).map_err(failed)?;
        let lock = match disk.lock(folder).map_err(failed)? {
            Ok(lock) => lock,
            Err(holder) => return Err(JournalError::InUse { folder: folder.clone(), holder }),
        };
        seal.check(&*disk, folder)?;
        let (state, quarantined_state) = State::open(Arc::clone(&disk), folder)?;
        note_restore(&*disk, folder)?;
        let fingerprint_key = fingerprint_key(&state)?;
        let (mut gap_file, quarantined_gap_file) = GapFile::load(&*disk, folder)?;
        let publications = Publications::open(&*disk, folder)?;
        let quarantined = damaged_files(&*disk, folder, quarantined_state.into_iter().chain(quarantined_gap_file))?;
        // Includes an earlier start: it may have died before it recorded the numbers that it skipped.
        let has_lost_marks = quarantined.iter().any(|file| file.ends_with("state.redb.damaged"));
        let opened = Opened { disk, identity: lock.folder, state, fingerprint_key, publications, quarantined };
        let core = Arc::new(Core::new(config, opened));
        let mut lanes = Vec::new();
        let mut positions = Vec::new();
        let mut fingerprints = Vec::new();
        let retired = retired_lanes(&core, config)?;
        for (index, lane) in config.lanes.iter().chain(&retired).chain([&config.dead]).enumerate() {
            let destinations: &[_] = if lane.name == DEAD { &[] } else { &config.destinations };
            let recovery = Recovery {
                core: &core,
                index,
                config: lane,
                destinations,
                has_lost_marks,
                gap_file: &mut gap_file,
                fingerprints: &mut fingerprints,
            };
            let (lane, position) = recovery.run()?;
            lanes.push(Arc::new(lane));
            positions.push(position);
        }
        restore_window(&core, fingerprints);
        let of_events: Arc<[_]> = lanes.iter().filter(|lane| lane.name != DEAD).cloned().collect();
        let writers = lanes
            .iter()
            .zip(positions)
            .map(|(lane, position)| Writer::new(Arc::clone(lane), Arc::clone(&of_events), position))
            .collect();
        let Some(dead) = lanes.pop() else { unreachable!("the log of dead letters is always opened") };
        Ok((Self::new(core, lanes, dead, lock), writers))
    }
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
