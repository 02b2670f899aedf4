//! Brings what births declare to the disk, on a thread of its own: a storm of births is written once for each
//! node and device.

use super::nodes::{NodeKey, Nodes};
use super::notes::{Stale, node_of};
use crate::clock;
use crate::journal::{Bell, Change, JournalError, Notes};
use crate::telemetry::Limiter;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long births gather behind a save.
const GATHER: Duration = Duration::from_millis(100);
/// How long to wait after the disk failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Notes are written so many bytes at a time, so that they do not all stand in memory twice.
const WRITE_BYTES: usize = 1 << 20;
/// Nodes whose notes wait to be written one by one: some 8 MB. With more, which a disk that fails may come to, all notes are
/// compared with what is known.
const DIRTY_MAX: usize = 4096;
/// Names of devices whose notes wait: some thousand. Of the node that exceeds it, all is written.
const NAMES_BYTES_MAX: usize = 256 << 10;
/// Bells that wait before those are looked for that ring for nobody, or twice for the same.
const BELLS_AT_FIRST: usize = 1024;

#[derive(Debug)]
pub(super) struct Saver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A node whose notes are to be written, and which of them.
type Wanted = (Arc<NodeKey>, Stale);

#[derive(Debug)]
struct Shared {
    nodes: Arc<Mutex<Nodes>>,
    notes: Notes,
    work: Mutex<Work>,
    woken: Condvar,
    saved: AtomicU64,
}

#[derive(Debug, Default)]
struct Work {
    dirty: HashMap<Arc<NodeKey>, Stale>,
    /// Bytes of the names of devices in `dirty`.
    names_bytes: usize,
    /// Whether all notes are to be compared with what is known; `dirty` is empty then.
    is_sweep_due: bool,
    bells: Vec<Bell>,
    /// How many bells there may be before they are looked through.
    bells_max: usize,
    number: u64,
    is_closing: bool,
}

impl Saver {
    pub(super) fn start(notes: Notes, nodes: Arc<Mutex<Nodes>>) -> Self {
        let shared =
            Arc::new(Shared { nodes, notes, work: Mutex::default(), woken: Condvar::new(), saved: AtomicU64::new(0) });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("sparkplug-notes".into()).spawn(move || theirs.run());
        if let Err(error) = &thread {
            tracing::error!(%error, "no thread for Sparkplug notes: births will not be acknowledged");
        }
        Self { shared, thread: thread.ok() }
    }

    /// Wants notes of a node to be written, or only what was wanted before. The bell rings once [`Saver::saved`] has
    /// reached the number that is returned.
    pub(super) fn save(&self, key: Arc<NodeKey>, stale: Option<Stale>, bell: impl FnOnce() -> Bell) -> u64 {
        let mut work = self.shared.lock();
        if let Some(stale) = stale {
            work.add(key, stale);
            work.number += 1;
            self.shared.woken.notify_one();
        } else if self.saved() == work.number {
            return 0;
        }
        work.add_bell(bell());
        work.number
    }

    /// Wants the notes of a node to go that declared something and was forgotten.
    pub(super) fn forget(&self, key: Arc<NodeKey>) {
        let mut work = self.shared.lock();
        work.add(key, Stale::All);
        work.number += 1;
        self.shared.woken.notify_one();
    }

    pub(super) fn saved(&self) -> u64 {
        self.shared.saved.load(Ordering::Acquire)
    }
}

impl Work {
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

    /// Has all notes compared with what is known.
    fn sweep(&mut self) {
        (self.dirty, self.names_bytes, self.is_sweep_due) = (HashMap::new(), 0, true);
    }

    fn is_empty(&self) -> bool {
        self.dirty.is_empty() && !self.is_sweep_due
    }

    fn add_bell(&mut self, bell: Bell) {
        self.bells.push(bell);
        if self.bells.len() > self.bells_max.max(BELLS_AT_FIRST) {
            self.bells.retain(|bell| !bell.is_alone());
            self.bells.sort_unstable_by_key(Bell::waiter);
            self.bells.dedup_by_key(|bell| bell.waiter());
            self.bells_max = 2 * self.bells.len();
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has cost births that were never acknowledged.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock()
    }

    fn run(&self) {
        let warnings = Limiter::new(Duration::from_secs(60));
        loop {
            let mut work = self.lock();
            while work.is_empty() {
                if work.is_closing {
                    return;
                }
                self.woken.wait(&mut work);
            }
            let (dirty, bells) = (std::mem::take(&mut work.dirty), std::mem::take(&mut work.bells));
            let is_sweep = std::mem::take(&mut work.is_sweep_due);
            let number = work.number;
            work.names_bytes = 0;
            drop(work);
            let written = if is_sweep { self.write_all() } else { Ok(()) };
            let failed = match written {
                Ok(()) => self.write(dirty.into_iter().collect()),
                Err(error) => Err((error, Vec::new())),
            };
            let mut work = self.lock();
            let pause = if let Err((error, failed)) = failed {
                if let Some(held_back) = warnings.allow(clock::instant()) {
                    tracing::error!(%error, held_back, "a Sparkplug birth cannot be stored; it is not acknowledged until it can");
                }
                if is_sweep {
                    work.sweep();
                }
                failed.into_iter().for_each(|(key, stale)| work.add(key, stale));
                bells.into_iter().for_each(|bell| work.add_bell(bell));
                RETRY_AFTER
            } else {
                self.saved.store(number, Ordering::Release);
                bells.iter().chain(&work.bells).for_each(Bell::ring);
                if work.number == number {
                    // Those that came meanwhile waited for this.
                    work.bells.clear();
                }
                GATHER
            };
            if work.is_closing && pause == RETRY_AFTER {
                return;
            }
            if !work.is_closing {
                self.woken.wait_while_for(&mut work, |work| !work.is_closing, pause);
            }
        }
    }

    /// Removes the notes of nodes that have declared nothing any more, and writes those of all others.
    fn write_all(&self) -> Result<(), JournalError> {
        let all = self.nodes.lock().all_noted();
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

    /// Writes notes; the error has those that could not be written.
    fn write(&self, mut dirty: Vec<Wanted>) -> Result<(), (JournalError, Vec<Wanted>)> {
        let lock = || self.nodes.lock();
        {
            // What goes comes last and so is the first: never more is on the disk than in memory.
            let nodes = lock();
            dirty.sort_by_cached_key(|(key, _)| !nodes.is_noted(key));
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
