//! The journal of a gateway: its lanes, the log of dead letters, and what they share.
//!
//! Promise: `close` commits the queued events and closes every file cleanly.
//! Not here: recovery at a start (`open`).

use super::audit::{AuditReader, AuditUsage};
use super::core::{Core, DiskRoom, IsResolved};
use super::group_commit::Command;
use super::handle::Lane;
use super::publications::Published;
use super::writer::Writer;
use crate::clock;
use crate::contract::Publication;
use crate::event::Timestamp;
use crate::journal::store::disk::FolderLock;
use crate::journal::store::error::JournalError;
use crate::journal::store::state::Note;
use crate::service::Unresponsive;
use parking_lot::Mutex;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of a writer thread: redb's tree walks are shallow.
const WRITER_STACK_BYTES: usize = 512 << 10;

#[derive(Debug)]
pub struct Journal {
    core: Arc<Core>,
    lanes: Vec<Arc<Lane>>,
    dead: Arc<Lane>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: FolderLock,
}

impl Journal {
    pub(super) fn new(core: Arc<Core>, lanes: Vec<Arc<Lane>>, dead: Arc<Lane>, lock: FolderLock) -> Self {
        Self { core, lanes, dead, threads: Mutex::default(), _lock: lock }
    }

    /// Starts a thread for each writer.
    pub(super) fn start(&self, writers: Vec<Writer>) -> Result<(), JournalError> {
        for writer in writers {
            let thread = std::thread::Builder::new()
                .name(format!("journal-{}", writer.lane_name()))
                .stack_size(WRITER_STACK_BYTES)
                .spawn(move || writer.run())
                .map_err(|error| JournalError::io(self.folder(), error))?;
            self.threads.lock().push(thread);
        }
        Ok(())
    }

    pub(in crate::journal) fn core(&self) -> &Arc<Core> {
        &self.core
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
        &self.core.folder
    }

    /// Free space of its file system.
    pub fn disk_room(&self) -> Result<DiskRoom, JournalError> {
        self.core.disk_room(&self.core.folder)
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
        self.core.publications.write().add(publication, &*self.core.disk, self.folder())
    }

    /// The publication with this number.
    pub fn published(&self, number: u32) -> Option<Arc<Published>> {
        self.core.published(number)
    }

    /// All publications, in the order of their numbers.
    pub fn publications(&self) -> Vec<Arc<Published>> {
        self.core.publications.read().all().cloned().collect()
    }

    /// Number of repeats from a device since the start; `origin` is `{source}/{device}`.
    pub fn repeats_of(&self, origin: &str) -> u64 {
        self.lanes.iter().map(|lane| lane.stats.repeats_of(origin)).sum()
    }

    /// Sets the function that tells which dead letters are resolved: only unresolved ones are losses when they expire.
    pub fn set_resolved_check(&self, is_resolved: Box<dyn Fn(u64) -> bool + Send + Sync>) {
        // Later calls have no effect: a journal is opened once.
        let _ = self.core.is_resolved.set(IsResolved(is_resolved));
    }

    /// Damaged files in quarantine, including those of earlier runs.
    pub fn quarantined(&self) -> Vec<PathBuf> {
        self.core.segments.quarantined()
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
        all().for_each(|lane| lane.queue.close());
        let deadline = clock::instant() + patience;
        let writers = std::mem::take(&mut *self.threads.lock());
        while clock::instant() < deadline && writers.iter().any(|writer| !writer.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        all().for_each(|lane| lane.queue.send(Command::StopRetries));
        for writer in writers {
            if writer.join().is_err() {
                tracing::error!("a writer of the journal panicked; all acknowledged events are durable");
            }
        }
        self.core.segments.close();
        self.core.state.close();
    }

    /// Writes an entry of the audit with action, user id, detail and result; returns when it is durable. Blocks the thread.
    pub fn audit(
        &self,
        action: &str,
        by: Option<u32>,
        detail: &impl Serialize,
        result: &str,
    ) -> Result<(), JournalError> {
        self.core.state.write_notes(&[self.audit_note(action, by, detail, result)])?;
        self.core.audit.trim()
    }

    /// Creates an entry of the audit to be written together with notes of a part.
    pub fn audit_note(&self, action: &str, by: Option<u32>, detail: &impl Serialize, result: &str) -> Note {
        self.core.audit.entry(action, by, detail, result)
    }

    /// The newest entries of the audit as JSON, oldest first, read page by page. Blocks the thread.
    pub fn audited(&self, limit: usize) -> Result<AuditReader, JournalError> {
        self.core.audit.newest(limit)
    }

    /// Fill level of the audit. Blocks the thread.
    pub fn audit_usage(&self) -> AuditUsage {
        self.core.audit.usage()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close(Duration::from_secs(1));
    }
}
