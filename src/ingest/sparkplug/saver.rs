//! Writes the declarations of births to disk on its own thread. During a storm of births, each node and device is
//! written once.

use super::nodes::{NodeKey, Nodes};
use super::notes::{Stale, node_of};
use crate::clock;
use crate::journal::{Change, JournalError, Notes, WaiterHandle};
use crate::telemetry::Limiter;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Pause after a save, in which births gather.
const GATHER: Duration = Duration::from_millis(100);
/// Pause after a disk error.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Size of a write, so not all notes are in memory twice.
const WRITE_BYTES: usize = 1 << 20;
/// Maximum number of nodes with waiting notes: about 8 MB. Above it, for example after long disk errors, all notes are
/// compared with the state in memory.
const DIRTY_MAX: usize = 4096;
/// Maximum size of the names of devices with waiting notes: some thousand. For a node above it, all notes are written.
const NAMES_BYTES_MAX: usize = 256 << 10;
/// Number of waiting bells above which bells without a waiter, and duplicates, are removed.
const BELLS_MIN: usize = 1024;

#[derive(Debug)]
pub(super) struct Saver {
    state: Arc<SaverState>,
    thread: Option<JoinHandle<()>>,
}

/// A node with outdated notes.
type DirtyNode = (Arc<NodeKey>, Stale);

#[derive(Debug)]
struct SaverState {
    nodes: Arc<Mutex<Nodes>>,
    notes: Notes,
    pending: Mutex<PendingNotes>,
    woken: Condvar,
    saved: AtomicU64,
}

#[derive(Debug, Default)]
struct PendingNotes {
    dirty: HashMap<Arc<NodeKey>, Stale>,
    /// Size of the names of devices in `dirty`, in bytes.
    names_bytes: usize,
    /// Whether all notes must be compared with the state in memory; `dirty` is empty then.
    is_sweep_due: bool,
    bells: Vec<WaiterHandle>,
    /// Number of bells above which they are cleaned up.
    bells_max: usize,
    number: u64,
    is_closing: bool,
}

impl Saver {
    pub(super) fn start(notes: Notes, nodes: Arc<Mutex<Nodes>>) -> Self {
        let state = Arc::new(SaverState {
            nodes,
            notes,
            pending: Mutex::default(),
            woken: Condvar::new(),
            saved: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("sparkplug-notes".into()).spawn(move || of_thread.run());
        if let Err(error) = &thread {
            tracing::error!(%error, "could not start the thread for Sparkplug notes; births will not be acknowledged");
        }
        Self { state, thread: thread.ok() }
    }

    /// Schedules notes of a node; with `None`, waits for earlier saves only. The bell rings once
    /// [`Saver::saved`] reaches the returned number.
    pub(super) fn save(&self, key: Arc<NodeKey>, stale: Option<Stale>, bell: impl FnOnce() -> WaiterHandle) -> u64 {
        let mut pending = self.state.lock();
        if let Some(stale) = stale {
            pending.add(key, stale);
            pending.number += 1;
            self.state.woken.notify_one();
        } else if self.saved() == pending.number {
            return 0;
        }
        pending.add_bell(bell());
        pending.number
    }

    /// Schedules the removal of the notes of a node whose declarations were evicted.
    pub(super) fn forget(&self, key: Arc<NodeKey>) {
        let mut pending = self.state.lock();
        pending.add(key, Stale::All);
        pending.number += 1;
        self.state.woken.notify_one();
    }

    pub(super) fn saved(&self) -> u64 {
        self.state.saved.load(Ordering::Acquire)
    }
}

impl PendingNotes {
    fn add(&mut self, key: Arc<NodeKey>, stale: Stale) {
        if self.is_sweep_due {
            return;
        }
        let count = self.dirty.len();
        match self.dirty.entry(key) {
            Entry::Vacant(_) if count >= DIRTY_MAX => self.sweep(),
            Entry::Vacant(entry) => {
                self.names_bytes += stale.bytes();
                entry.insert(stale);
            }
            Entry::Occupied(mut entry) => {
                let waiting = entry.get_mut();
                self.names_bytes -= waiting.bytes();
                waiting.add(stale);
                if self.names_bytes + waiting.bytes() > NAMES_BYTES_MAX {
                    *waiting = Stale::All;
                }
                self.names_bytes += waiting.bytes();
            }
        }
    }

    /// Schedules a comparison of all notes with the state in memory.
    fn sweep(&mut self) {
        (self.dirty, self.names_bytes, self.is_sweep_due) = (HashMap::new(), 0, true);
    }

    fn is_empty(&self) -> bool {
        self.dirty.is_empty() && !self.is_sweep_due
    }

    fn add_bell(&mut self, bell: WaiterHandle) {
        self.bells.push(bell);
        if self.bells.len() > self.bells_max.max(BELLS_MIN) {
            self.bells.retain(|bell| !bell.is_alone());
            self.bells.sort_unstable_by_key(WaiterHandle::waiter);
            self.bells.dedup_by_key(|bell| bell.waiter());
            self.bells_max = 2 * self.bells.len();
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.state.lock().is_closing = true;
        self.state.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // After a panic of the thread, only unacknowledged births are lost.
            let _ = thread.join();
        }
    }
}

impl SaverState {
    fn lock(&self) -> MutexGuard<'_, PendingNotes> {
        self.pending.lock()
    }

    fn run(&self) {
        let warnings = Limiter::new(Duration::from_secs(60));
        loop {
            let mut pending = self.lock();
            while pending.is_empty() {
                if pending.is_closing {
                    return;
                }
                self.woken.wait(&mut pending);
            }
            let (dirty, bells) = (std::mem::take(&mut pending.dirty), std::mem::take(&mut pending.bells));
            let is_sweep = std::mem::take(&mut pending.is_sweep_due);
            let number = pending.number;
            pending.names_bytes = 0;
            drop(pending);
            let written = if is_sweep { self.write_all() } else { Ok(()) };
            let failed = match written {
                Ok(()) => self.write(dirty.into_iter().collect()),
                Err(error) => Err((error, Vec::new())),
            };
            let mut pending = self.lock();
            let pause = if let Err((error, failed)) = failed {
                if let Some(held_back) = warnings.allow(clock::instant()) {
                    tracing::error!(%error, held_back, "could not store a Sparkplug birth; will retry, and acknowledge it only then");
                }
                if is_sweep {
                    pending.sweep();
                }
                failed.into_iter().for_each(|(key, stale)| pending.add(key, stale));
                bells.into_iter().for_each(|bell| pending.add_bell(bell));
                RETRY_AFTER
            } else {
                self.saved.store(number, Ordering::Release);
                bells.iter().chain(&pending.bells).for_each(WaiterHandle::ring);
                if pending.number == number {
                    // Bells that arrived during the save waited for it too.
                    pending.bells.clear();
                }
                GATHER
            };
            if pending.is_closing && pause == RETRY_AFTER {
                return;
            }
            if !pending.is_closing {
                self.woken.wait_while_for(&mut pending, |pending| !pending.is_closing, pause);
            }
        }
    }

    /// Removes the notes of nodes without declarations, and writes the notes of all others.
    fn write_all(&self) -> Result<(), JournalError> {
        let all = self.nodes.lock().keys_with_notes();
        let known: HashSet<String> = all.iter().map(|key| key.note()).collect();
        loop {
            let (mut unknown, mut bytes) = (Vec::new(), 0);
            self.notes.each("", |name, _| {
                if bytes < WRITE_BYTES && !known.contains(node_of(name)) {
                    bytes += name.len();
                    unknown.push(Change::Remove(name.to_owned()));
                }
            })?;
            if unknown.is_empty() {
                break;
            }
            self.notes.change(unknown)?;
        }
        self.write(all.into_iter().map(|key| (key, Stale::All)).collect()).map_err(|(error, _)| error)
    }

    /// Writes notes; the error contains those not written.
    fn write(&self, mut dirty: Vec<DirtyNode>) -> Result<(), (JournalError, Vec<DirtyNode>)> {
        let lock = || self.nodes.lock();
        {
            // Removals are sorted last and so are written first: the disk never holds more than the memory.
            let nodes = lock();
            dirty.sort_by_cached_key(|(key, _)| !nodes.has_notes(key));
        }
        while !dirty.is_empty() {
            let (mut changes, mut bytes, mut from) = (Vec::new(), 0, dirty.len());
            {
                let nodes = lock();
                while from > 0 && bytes < WRITE_BYTES {
                    from -= 1;
                    let (key, stale) = &dirty[from];
                    let of_node = nodes.changes(key, stale);
                    bytes += of_node.iter().map(size).sum::<usize>();
                    changes.extend(of_node);
                }
            }
            if let Err(error) = self.notes.change(changes) {
                return Err((error, dirty));
            }
            dirty.truncate(from);
        }
        Ok(())
    }
}

fn size(change: &Change) -> usize {
    match change {
        Change::Put(name, note) => name.len() + note.len(),
        Change::Remove(name) | Change::RemoveAll(name) => name.len(),
    }
}
