//! Who is connected, and what outlives a connection: sessions, in the journal's notes and as little as possible in memory.
//!
//! Promise: what a persistent session was told is done (a subscription, the release of a QoS 2
//! exchange) is on the disk before the answer leaves; after a crash nothing of it is lost or doubled.
//! Invariants:
//! - a session is found under its listener, its proven name and its client id: nobody else can take it;
//! - a session whose client sleeps is its rows on the disk and some hundred bytes in memory;
//! - sessions are bounded in number and bytes, for each name and in all, and none is promised where the disk is
//!   down to its reserve.
//!
//! An exchange of QoS 2 that is begun lives in its event's own record. A session's head lists those
//! that were open when it was written; the row `exchanges` says up to which offsets that is
//! all, and a start looks at the records behind these.

mod recovery;
mod rows;
mod table;
mod takeover;
mod wills;
mod writer;

pub use rows::will_bytes;
pub use takeover::{NoSession, OpenedSession, Quotas, SessionRequest, SlotGuard};
pub use wills::DueWill;

use super::outbound::{Outbound, Progress, Subscription};
use super::shared_subscription::{GroupNote, Groups};
use super::will::Will;
use crate::ingest::Taken;
use crate::journal::{Change, Journal, Notes, Waiter};
use crate::memory::Permit;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use rows::GroupId;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use table::{StoredSession, Table, Unwritten};
use tokio::sync::watch;

/// So many events may pass before that is noted again: what a start looks at once more.
const NOTE_AFTER_EVENTS: u64 = 200_000;
/// Positions of subscribers are noted at most this much later.
const NOTE_AFTER: Duration = Duration::from_secs(5);
/// How long to wait before trying a disk again that failed.
const RETRY: Duration = Duration::from_millis(500);
/// How long redeliveries of a client are recognised after its connection: as long as most clients take to return.
const REDELIVERY_FOR: Duration = Duration::from_secs(300);
/// Session expiry that means never (MQTT 5, section 3.1.2.11.2).
pub const NEVER: u32 = u32::MAX;

/// One client of one listener: its proven name, if it has one, and its client id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of a client. Lengths stand before the parts that anybody can choose, so that no two clients have the same key.
    pub fn new(source: &str, proven: Option<&str>, client: &str) -> Self {
        Self(match proven {
            Some(name) => format!("{}:{source}/{}:{name}/{client}", source.len(), name.len()).into(),
            None => format!("{}:{source}/-/{client}", source.len()).into(),
        })
    }

    fn as_str(&self) -> &str {
        &self.0
    }

    /// The listener, and what comes behind it.
    fn parts(&self) -> Option<(&str, &str)> {
        let (length, rest) = self.0.split_once(':')?;
        let (source, rest) = rest.split_at_checked(length.parse().ok()?)?;
        Some((source, rest.strip_prefix('/')?))
    }

    fn source(&self) -> &str {
        self.parts().map_or("", |(source, _)| source)
    }

    /// The client id.
    pub fn client(&self) -> &str {
        let behind_name = |rest: &'_ str| -> Option<usize> {
            let (length, _) = rest.split_once(':')?;
            Some(length.len() + 1 + length.parse::<usize>().ok()? + 1)
        };
        let Some((_, rest)) = self.parts() else { return "" };
        let start = if rest.starts_with("-/") { Some(2) } else { behind_name(rest) };
        start.and_then(|start| rest.get(start..)).unwrap_or_default()
    }
}

/// A will that waits for its delay, as it is stored.
#[derive(Debug)]
pub struct PendingWill {
    /// How long it waits after the end of the connection.
    pub delay: Duration,
    /// What is stored of it.
    pub bytes: Vec<u8>,
}

/// What a connection works with and leaves behind.
#[derive(Debug, Default)]
pub struct Session {
    /// Whom it belongs to.
    pub user: String,
    /// Number of the session, in the records of its QoS 2 publishes; 0 if it ends with the connection.
    pub number: u64,
    /// Seconds that it outlives the connection; [`NEVER`] for ever.
    pub expiry: u32,
    /// QoS 2 publishes that are taken and not released, by packet id.
    pub exchanges: HashMap<u16, Exchange>,
    /// QoS 1 publishes whose PUBACK was not written.
    pub unanswered: Vec<Unanswered>,
    /// What the client has subscribed to, and what it is owed of it.
    pub outbound: Outbound,
    /// What to say if the client dies.
    pub will: Option<Will>,
    /// Is woken for what is on its way to the disk, by this connection or the one before.
    pub waiter: Waiter,
    /// Covers what is not answered, while no connection does.
    pub permit: Option<Permit>,
}

/// A QoS 2 publish that is taken and not released.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Its way to the disk; `None` if it was there before the client connected or the gateway started.
    pub taken: Option<Taken>,
    /// Whether it came by the connection that is there now.
    pub is_of_this_connection: bool,
}

/// A QoS 1 publish whose PUBACK was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Its packet id.
    pub packet_id: u16,
    /// Hash of topic and payload.
    pub hash: u64,
    /// Its way to the disk.
    pub taken: Taken,
}

/// The clients of every listener.
#[derive(Debug)]
pub struct Registry {
    journal: Arc<Journal>,
    notes: Notes,
    groups: Groups,
    table: Mutex<Table>,
    /// Held while a QoS 2 publish is handed in and remembered: a head that was written in between
    /// would pass over it.
    gate: RwLock<()>,
    work: Condvar,
    written: watch::Sender<u64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Registry {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Changes what is to be written of a connected client's session; what is returned has to be written before an
    /// answer may leave that says so.
    fn change(
        &self,
        key: &Key,
        is_urgent: bool,
        change: impl FnOnce(&mut Table, &mut StoredSession, &mut Unwritten),
    ) -> u64 {
        let mut table = self.table();
        let Some((key, mut entry)) = table.clients.remove_entry(key) else { return 0 };
        let has_row = entry.row.is_some();
        if let Some(row) = &mut entry.row {
            change(&mut table, row, entry.unwritten.get_or_insert_default());
            table.changed.insert(key.clone());
        }
        table.clients.insert(key, entry);
        if !is_urgent || !has_row {
            return 0;
        }
        self.request_write(&mut table)
    }

    /// Whether a client has a connection.
    pub fn is_connected(&self, key: &Key) -> bool {
        self.table().clients.get(key).is_some_and(|entry| entry.slot.is_some())
    }

    /// To be held from before a QoS 2 publish is handed in until it is remembered.
    pub fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    /// Remembers a QoS 2 publish of a persistent session.
    pub fn hold(&self, key: &Key, packet_id: u16, taken: Taken) {
        self.change(key, false, |_, _, unwritten| {
            unwritten.content.exchanges.insert(packet_id, Some(taken));
        });
    }

    /// Ends a QoS 2 exchange; what is returned has to be written before PUBCOMP may leave.
    pub fn release(&self, key: &Key, packet_id: u16) -> u64 {
        self.change(key, true, |_, _, unwritten| {
            unwritten.content.exchanges.remove(&packet_id);
        })
    }

    /// Adds a subscription of a persistent session, or replaces the one of the same filter; `false` if there is no
    /// room for it. It is on the disk with what [`Registry::save_progress`] returns.
    pub fn subscribed(&self, key: &Key, subscription: &Subscription, is_new: bool, quotas: Quotas) -> bool {
        if is_new && !self.has_disk_room() {
            return false;
        }
        let mut has_room = true;
        self.change(key, false, |table, row, unwritten| {
            let bytes = rows::subscription_bytes(&subscription.filter).cast_signed();
            if is_new {
                has_room = table.has_bytes(&row.share, bytes, quotas);
                if !has_room {
                    return;
                }
                table.charge(row, bytes);
                if let Some(group) = GroupId::of(key.source(), &subscription.filter) {
                    row.groups.push(group);
                    table.join_group(group);
                }
            }
            let (name, value) = rows::subscription(row.number, subscription);
            unwritten.changes.push(Change::Put(name, value));
        });
        has_room
    }

    /// Removes a subscription of a persistent session; see [`Registry::save_progress`].
    pub fn unsubscribed(&self, key: &Key, filter: &str) {
        self.change(key, false, |table, row, unwritten| {
            table.charge(row, -rows::subscription_bytes(filter).cast_signed());
            let row_name = format!("{}{filter}", rows::subscription_rows(row.number));
            unwritten.changes.push(Change::Remove(row_name));
            if let Some(group) = GroupId::of(key.source(), filter)
                && let Some(index) = row.groups.iter().position(|known| *known == group)
            {
                row.groups.swap_remove(index);
                table.leave_group(group);
            }
        });
    }

    /// Notes how far the client is, with the subscriptions that changed; what is returned has to be written before
    /// SUBACK may leave.
    pub fn save_progress(&self, key: &Key, progress: Progress) -> u64 {
        self.change(key, true, |_, _, unwritten| unwritten.content.progress = progress)
    }

    /// Notes, some time, how far the client has got.
    pub fn note_progress(&self, key: &Key, progress: Progress) {
        self.change(key, false, |_, _, unwritten| unwritten.content.progress = progress);
    }

    /// The group of a shared subscription of a listener, as it was written. One that sleeps goes on where it was. May
    /// read from the disk.
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

    /// Keeps how far groups were handed out whose last connected member may go.
    pub fn keep_groups(&self, source: &str, notes: Vec<(String, GroupNote)>) {
        keep_groups(&mut self.table(), source, notes);
    }

    /// The groups of shared subscriptions of all listeners.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Says what has been written.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Whether the disk has more left than its reserve.
    fn has_disk_room(&self) -> bool {
        self.journal.disk_room().is_ok_and(|room| !room.is_used_up())
    }

    /// How many persistent sessions there are.
    pub fn persistent(&self) -> usize {
        self.table().persistent
    }

    /// Writes what is to be written, and ends.
    pub fn close(&self) {
        self.table().is_closing = true;
        self.work.notify_one();
        let writer = self.writer.lock().take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of sessions panicked; what was answered is on the disk");
        }
    }
}

fn keep_groups(table: &mut Table, source: &str, notes: Vec<(String, GroupNote)>) {
    for (filter, note) in notes {
        if let Some(id) = GroupId::of(source, &filter).filter(|id| table.groups.contains_key(id)) {
            table.ended_groups.insert(id, note.encode());
        }
    }
}

#[cfg(test)]
mod tests;
