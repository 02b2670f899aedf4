//! Brings what births declare to the disk, on a thread of its own: a storm of births is written once for each
//! node and device.

use super::nodes::{NodeKey, Nodes};
use super::notes::Stale;
use crate::clock;
use crate::journal::{Bell, Change, Notes};
use crate::telemetry::Limiter;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
/// While the disk fails, nodes that were forgotten are remembered for their notes up to this number: some 8 MB. The notes
/// of others go when the next start finds no room for them, or with the next birth.
const DIRTY_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Saver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

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
    bells: Vec<Bell>,
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
        work.bells.push(bell());
        work.number
    }

    /// Wants the notes of a node to go that declared something and was forgotten.
    pub(super) fn forget(&self, key: Arc<NodeKey>) {
        let mut work = self.shared.lock();
        if work.dirty.len() < DIRTY_MAX {
            work.add(key, Stale::All);
            work.number += 1;
            self.shared.woken.notify_one();
        }
    }

    pub(super) fn saved(&self) -> u64 {
        self.shared.saved.load(Ordering::Acquire)
    }
}

impl Work {
    fn add(&mut self, key: Arc<NodeKey>, stale: Stale) {
        match self.dirty.entry(key) {
            Entry::Occupied(mut entry) => entry.get_mut().add(stale),
            Entry::Vacant(entry) => drop(entry.insert(stale)),
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
            while work.dirty.is_empty() {
                if work.is_closing {
                    return;
                }
                self.woken.wait(&mut work);
            }
            let dirty = std::mem::take(&mut work.dirty);
            let bells = std::mem::take(&mut work.bells);
            let number = work.number;
            drop(work);
            let failed = self.write(dirty, &warnings);
            let mut work = self.lock();
            let pause = if failed.is_empty() {
                self.saved.store(number, Ordering::Release);
                bells.iter().chain(&work.bells).for_each(Bell::ring);
                if work.number == number {
                    // Those that came meanwhile waited for this.
                    work.bells.clear();
                }
                GATHER
            } else {
                failed.into_iter().for_each(|(key, stale)| work.add(key, stale));
                work.bells.extend(bells);
                RETRY_AFTER
            };
            if work.is_closing && pause == RETRY_AFTER {
                return;
            }
            if !work.is_closing {
                self.woken.wait_while_for(&mut work, |work| !work.is_closing, pause);
            }
        }
    }

    /// Writes notes; returns those that could not be written.
    fn write(&self, dirty: HashMap<Arc<NodeKey>, Stale>, warnings: &Limiter) -> Vec<(Arc<NodeKey>, Stale)> {
        let lock = || self.nodes.lock();
        let mut dirty: Vec<_> = dirty.into_iter().collect();
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
                if let Some(held_back) = warnings.allow(clock::instant()) {
                    tracing::error!(%error, held_back, "a Sparkplug birth cannot be stored; it is not acknowledged until it can");
                }
                return dirty;
            }
            dirty.truncate(from);
        }
        dirty
    }
}

fn size(change: &Change) -> usize {
    match change {
        Change::Put(name, note) => name.len() + note.len(),
        Change::Remove(name) | Change::RemoveAll(name) => name.len(),
    }
}
