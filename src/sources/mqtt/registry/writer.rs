//! The writer thread of sessions: it joins many changes in one commit and drops written state from memory.

use super::super::shared_subscription::Group;
use super::clients::Registry;
use super::rows::{self, GroupId};
use super::session::Key;
use super::table::Table;
use crate::clock;
use crate::ingest::{Change, Durable, JournalError, StoredEvents, StoredLog};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of events after which the row `exchanges` is written again: the events that recovery reads.
const WRITE_AFTER_EVENTS: u64 = 200_000;
/// The progress of subscribers is written at most this much later.
const WRITE_AFTER: Duration = Duration::from_secs(5);
/// Pause before a failed write is repeated.
const RETRY: Duration = Duration::from_millis(500);
/// Interval of the search for expired sessions.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Interval of the check whether the state file has become too large for its content.
const COMPACT_EVERY: Duration = Duration::from_secs(60);

/// Writes the rows of sessions; owned by one thread.
pub(super) struct Writer {
    registry: Arc<Registry>,
    /// Sum of the ends of all lanes when the row `exchanges` was written.
    exchanges_end: u64,
    written_at: Instant,
    swept_at: Instant,
    compacted_at: Instant,
    /// Whether rows were removed since the last compaction.
    has_removed: bool,
}

/// The changes of one commit, and the parts of the table that they cover.
struct Batch {
    changes: Vec<Change>,
    keys: BTreeSet<Key>,
    /// Number of changes per session.
    counts: HashMap<Key, usize>,
    removals: usize,
    ended: Vec<(GroupId, Vec<u8>)>,
    moved: Vec<Arc<Group>>,
    /// Number of wills among the changes.
    wills: usize,
}

fn sum_of_ends(stored: &StoredEvents) -> u64 {
    stored.logs().map(|log| log.end()).sum()
}

impl Writer {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        let now = clock::instant();
        Self { registry, exchanges_end: 0, written_at: now, swept_at: now, compacted_at: now, has_removed: false }
    }

    pub(super) fn run(mut self) {
        let mut done = 0;
        loop {
            let (wanted, is_closing) = self.await_work(done);
            match self.write() {
                Ok(()) => {
                    self.written_at = clock::instant();
                    done = wanted;
                    self.registry.written.send_replace(done);
                }
                Err(error) if is_closing => {
                    tracing::error!(%error, "could not write the sessions; after a restart clients find them as they were last written");
                }
                Err(error) => {
                    tracing::error!(%error, "could not write the sessions, will retry; PUBCOMP and SUBACK wait meanwhile");
                    std::thread::sleep(RETRY);
                }
            }
            if is_closing {
                return;
            }
        }
    }

    /// Waits for work. Returns the number of the requested write, and whether the gateway shuts down.
    fn await_work(&mut self, done: u64) -> (u64, bool) {
        let registry = Arc::clone(&self.registry);
        let mut table = registry.table();
        loop {
            let now = clock::instant();
            let has_changed = !table.changed.is_empty() || !table.removals.is_empty();
            let is_due = has_changed && now.duration_since(self.written_at) >= WRITE_AFTER;
            let passed = sum_of_ends(&registry.stored).saturating_sub(self.exchanges_end);
            let is_far = table.persistent > 0 && passed >= WRITE_AFTER_EVENTS;
            if table.wanted > done || table.is_closing || is_due || is_far {
                return (table.wanted, table.is_closing);
            }
            if now.duration_since(self.swept_at) >= SWEEP_EVERY {
                self.swept_at = now;
                sweep(&mut table, now);
            }
            if self.has_removed && now.duration_since(self.compacted_at) >= COMPACT_EVERY {
                (self.compacted_at, self.has_removed) = (now, false);
                drop(table);
                if let Err(error) = registry.notes.compact() {
                    tracing::warn!(%error, "could not compact the state; it stays as large as it is");
                }
                table = registry.table();
                continue;
            }
            registry.work.wait_for(&mut table, SWEEP_EVERY);
        }
    }

    fn write(&mut self) -> Result<(), JournalError> {
        let registry = Arc::clone(&self.registry);
        let batch = {
            let _closed = registry.gate.write();
            let mut table = registry.table();
            self.gather(&mut table)
        };
        self.has_removed |= batch.removals > 0;
        let written = registry.notes.change(batch.changes);
        let mut table = registry.table();
        if written.is_err() {
            table.changed.extend(batch.keys);
            batch.moved.iter().for_each(|group| group.note_again());
            return written;
        }
        if batch.wills > 0 {
            tracing::debug!(wills = batch.wills, "saved wills that wait for their delay");
        }
        table.removals.drain(..batch.removals);
        for (group, note) in batch.ended {
            if table.ended_groups.get(&group) == Some(&note) {
                table.ended_groups.remove(&group);
            }
        }
        for (key, count) in batch.counts {
            let has_changed = table.changed.contains(&key);
            let Some(entry) = table.clients.get_mut(&key) else { continue };
            let Some(unwritten) = &mut entry.unwritten else { continue };
            unwritten.changes.drain(..count.min(unwritten.changes.len()));
            if entry.slot.is_none() && !has_changed && unwritten.changes.is_empty() {
                entry.unwritten = None;
            }
        }
        Ok(())
    }

    /// Collects all changes. Heads and the row `exchanges` describe the same moment; no exchange begins meanwhile.
    fn gather(&mut self, table: &mut Table) -> Batch {
        let logs: Vec<StoredLog> = self.registry.stored.logs().collect();
        let durable: Vec<Durable> = logs.iter().map(StoredLog::durable).collect();
        let keys = std::mem::take(&mut table.changed);
        let removals = table.removals.len();
        let mut changes = table.removals.clone();
        let mut counts = HashMap::new();
        for key in &keys {
            let Some(entry) = table.clients.get(key) else { continue };
            let (Some(stored), Some(unwritten)) = (&entry.stored, &entry.unwritten) else { continue };
            changes.extend(unwritten.changes.iter().cloned());
            let (head, is_all) = unwritten.content.head(stored.number, stored.expiry, &stored.share, &durable);
            changes.push(Change::Put(rows::head_row(key), postcard::to_stdvec(&head).unwrap_or_default()));
            counts.insert(key.clone(), unwritten.changes.len());
            if !is_all {
                table.changed.insert(key.clone());
            }
        }
        let ended: Vec<_> = table.ended_groups.iter().map(|(group, note)| (*group, note.clone())).collect();
        changes.extend(ended.iter().map(|(group, note)| Change::Put(group.row(), note.clone())));
        let mut moved = Vec::new();
        for (source, filter, group) in self.registry.groups.moved() {
            if let Some(id) = GroupId::of(&source, &filter).filter(|id| table.groups.contains_key(id)) {
                changes.push(Change::Put(id.row(), group.note().encode()));
                moved.push(group);
            }
        }
        let ends: HashMap<&str, u64> =
            logs.iter().map(StoredLog::name).zip(durable.iter().map(|durable| durable.end)).collect();
        self.exchanges_end = durable.iter().map(|durable| durable.end).sum();
        changes.push(Change::Put(rows::EXCHANGES.into(), postcard::to_stdvec(&ends).unwrap_or_default()));
        let is_will = |change: &&Change| matches!(change, Change::Put(name, _) if name.starts_with(rows::WILLS));
        let wills = changes.iter().filter(is_will).count();
        Batch { changes, keys, counts, removals, ended, moved, wills }
    }
}

/// Deletes expired sessions and old unacknowledged publishes.
fn sweep(table: &mut Table, now: Instant) {
    for key in table.expired(now) {
        let Some(mut entry) = table.clients.remove(&key) else { continue };
        if let Some(stored) = entry.stored.take() {
            table.delete(&key, stored);
        }
        table.take_unanswered(&mut entry);
    }
    table.trim_unanswered(now);
}
