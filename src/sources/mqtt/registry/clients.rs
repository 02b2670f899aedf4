//! The clients of all listeners, and the changes of their sessions.

use super::super::outbound::{Progress, Subscription};
use super::super::shared_subscription::{GroupNote, Groups};
use super::rows::{self, GroupId};
use super::session::{Key, Quotas};
use super::table::{StoredSession, Table, Unwritten};
use crate::ingest::{Change, Notes, StoredEvents, Submitted};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use tokio::sync::watch;

/// The clients of all listeners.
#[derive(Debug)]
pub struct Registry {
    pub(super) stored: StoredEvents,
    pub(super) notes: Notes,
    pub(super) groups: Groups,
    pub(super) table: Mutex<Table>,
    /// Held while a QoS 2 publish is submitted and remembered: a head that is written in between would miss it.
    pub(super) gate: RwLock<()>,
    pub(super) work: Condvar,
    pub(super) written: watch::Sender<u64>,
    pub(super) writer: Mutex<Option<JoinHandle<()>>>,
}

impl Registry {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Changes the unwritten state of a client's session. If the change is urgent, returns the number of the write
    /// that an answer has to wait for; else 0.
    fn change(
        &self,
        key: &Key,
        is_urgent: bool,
        change: impl FnOnce(&mut Table, &mut StoredSession, &mut Unwritten),
    ) -> u64 {
        let mut table = self.table();
        let Some((key, mut entry)) = table.clients.remove_entry(key) else { return 0 };
        let is_persistent = entry.stored.is_some();
        if let Some(stored) = &mut entry.stored {
            change(&mut table, stored, entry.unwritten.get_or_insert_default());
            table.changed.insert(key.clone());
        }
        table.clients.insert(key, entry);
        if !is_urgent || !is_persistent {
            return 0;
        }
        self.request_write(&mut table)
    }

    /// Asks the writer thread to write all changes now. Returns the number of that write; see [`Registry::written`].
    pub(super) fn request_write(&self, table: &mut Table) -> u64 {
        table.wanted += 1;
        self.work.notify_one();
        table.wanted
    }

    /// Returns whether a client is connected.
    pub fn is_connected(&self, key: &Key) -> bool {
        self.table().clients.get(key).is_some_and(|entry| entry.slot.is_some())
    }

    /// Returns the guard that has to be held from before a QoS 2 publish is submitted until it is remembered.
    pub fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Remembers a QoS 2 publish of a persistent session.
    pub fn hold(&self, key: &Key, packet_id: u16, taken: Submitted) {
        self.change(key, false, |_, _, unwritten| {
            unwritten.content.exchanges.insert(packet_id, Some(taken));
        });
    }

    /// Ends a QoS 2 exchange. Returns the number of the write that PUBCOMP has to wait for.
    pub fn release(&self, key: &Key, packet_id: u16) -> u64 {
        self.change(key, true, |_, _, unwritten| {
            unwritten.content.exchanges.remove(&packet_id);
        })
    }

    /// Adds or replaces a subscription of a persistent session; [`Registry::save_progress`] requests the write.
    /// Returns `false` if a limit or the reserve of the disk is reached.
    pub fn subscribed(&self, key: &Key, subscription: &Subscription, is_new: bool, quotas: Quotas) -> bool {
        if is_new && !self.stored.has_disk_room() {
            return false;
        }
        let mut has_room = true;
        self.change(key, false, |table, stored, unwritten| {
            let bytes = rows::subscription_bytes(&subscription.filter).cast_signed();
            if is_new {
                has_room = table.has_bytes(&stored.share, bytes, quotas);
                if !has_room {
                    return;
                }
                table.charge(stored, bytes);
                if let Some(group) = GroupId::of(key.source(), &subscription.filter) {
                    stored.groups.push(group);
                    table.join_group(group);
                }
            }
            let (name, value) = rows::subscription(stored.number, subscription);
            unwritten.changes.push(Change::Put(name, value));
        });
        has_room
    }

    /// Removes a subscription of a persistent session; [`Registry::save_progress`] requests the write.
    pub fn unsubscribed(&self, key: &Key, filter: &str) {
        self.change(key, false, |table, stored, unwritten| {
            table.charge(stored, -rows::subscription_bytes(filter).cast_signed());
            let row_name = format!("{}{filter}", rows::subscription_rows(stored.number));
            unwritten.changes.push(Change::Remove(row_name));
            if let Some(group) = GroupId::of(key.source(), filter)
                && let Some(index) = stored.groups.iter().position(|known| *known == group)
            {
                stored.groups.swap_remove(index);
                table.leave_group(group);
            }
        });
    }

    /// Saves the progress and the changed subscriptions. Returns the number of the write that SUBACK has to wait for.
    pub fn save_progress(&self, key: &Key, progress: Progress) -> u64 {
        self.change(key, true, |_, _, unwritten| unwritten.content.progress = progress)
    }

    /// Saves the progress with a later write.
    pub fn save_progress_later(&self, key: &Key, progress: Progress) {
        self.change(key, false, |_, _, unwritten| unwritten.content.progress = progress);
    }

    /// Returns the stored position of a shared subscription, with which a group without members continues.
    /// May read from the disk.
    pub fn group_note(&self, source: &str, filter: &str) -> Option<GroupNote> {
        let id = GroupId::of(source, filter)?;
        let ended = {
            let table = self.table();
            table.groups.get(&id)?;
            table.ended_groups.get(&id).cloned()
        };
        let bytes = match ended {
            Some(bytes) => bytes,
            None => self.notes.read(&id.row()).ok()??,
        };
        GroupNote::decode(&bytes)
    }

    /// Saves the positions of groups whose last connected member may leave.
    pub fn keep_groups(&self, source: &str, notes: Vec<(String, GroupNote)>) {
        self.table().keep_groups(source, notes);
    }

    /// Returns the groups of shared subscriptions of all listeners.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Follows the number of the newest write that is on the disk.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Returns the number of persistent sessions.
    pub fn persistent(&self) -> usize {
        self.table().persistent
    }

    /// Writes all changes and ends the writer thread.
    pub fn close(&self) {
        self.table().is_closing = true;
        self.work.notify_one();
        let writer = self.writer.lock().take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer thread of sessions panicked; all acknowledged changes are on the disk");
        }
    }
}
