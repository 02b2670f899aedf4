//! Registry of clients: connections, sessions that outlive them, and delayed wills, over all listeners.
//!
//! Promise: what a persistent session confirms (a subscription, the release of a QoS 2 exchange) is on the disk
//! before the answer leaves. After a crash nothing of it is lost or doubled.
//! Invariants:
//! - a session is found by listener, proven name and client id: another name cannot take it over;
//! - a session whose client is not connected is its rows on the disk, and some hundred bytes in memory;
//! - number and bytes of sessions are limited, per name and in all; no new session is created when the disk is down
//!   to its reserve.
//!
//! A QoS 2 exchange that begins is stored in the record of its event. The head row of a session lists the exchanges
//! that were open when it was written; the row `exchanges` says up to which offsets the heads are complete, and
//! recovery reads the records from there on.

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
use crate::ingest::{Change, Notes, StoredEvents, Submitted, Waiter};
use crate::memory::Permit;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use rows::GroupId;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use table::{StoredSession, Table, Unwritten};
use tokio::sync::watch;

/// Number of events after which the row `exchanges` is written again: the events that recovery reads.
const WRITE_AFTER_EVENTS: u64 = 200_000;
/// The progress of subscribers is written at most this much later.
const WRITE_AFTER: Duration = Duration::from_secs(5);
/// Pause before a failed write is repeated.
const RETRY: Duration = Duration::from_millis(500);
/// The time that redeliveries of a client are recognised after its connection: as long as most clients take to
/// reconnect.
const REDELIVERY_FOR: Duration = Duration::from_secs(300);

/// Identifies a client: listener, proven name if there is one, and client id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Builds the key of a client. Lengths precede the parts that clients choose, so no two clients have the same
    /// key.
    pub fn new(source: &str, proven: Option<&str>, client: &str) -> Self {
        Self(match proven {
            Some(name) => format!("{}:{source}/{}:{name}/{client}", source.len(), name.len()).into(),
            None => format!("{}:{source}/-/{client}", source.len()).into(),
        })
    }

    fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the listener and the rest of the key.
    fn parts(&self) -> Option<(&str, &str)> {
        let (length, rest) = self.0.split_once(':')?;
        let (source, rest) = rest.split_at_checked(length.parse().ok()?)?;
        Some((source, rest.strip_prefix('/')?))
    }

    fn source(&self) -> &str {
        self.parts().map_or("", |(source, _)| source)
    }

    /// Returns the client id.
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

/// A will that is published after its delay.
#[derive(Debug)]
pub struct PendingWill {
    /// The time between the end of the connection and the publication.
    pub delay: Duration,
    /// The stored form.
    pub bytes: Vec<u8>,
}

/// A session while its client is connected.
#[derive(Debug, Default)]
pub struct Session {
    /// The user name of the client, for the log.
    pub user: String,
    /// Number of the session in the records of its QoS 2 publishes; 0 if it ends with the connection.
    pub number: u64,
    /// Seconds that it outlives the connection; `NEVER_EXPIRES` for no end.
    pub expiry: u32,
    /// QoS 2 publishes that are accepted and not released, by packet id.
    pub exchanges: HashMap<u16, Exchange>,
    /// QoS 1 publishes whose PUBACK was not written.
    pub unanswered: Vec<Unanswered>,
    /// Subscriptions, and the publishes to the client.
    pub outbound: Outbound,
    /// The will of the client.
    pub will: Option<Will>,
    /// Woken when events of the last connection are on the disk, while no connection has it.
    pub waiter: Option<Waiter>,
    /// Covers `unanswered` while no connection does.
    pub permit: Option<Permit>,
}

/// A QoS 2 publish that is accepted and not released.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Its place in the journal; `None` if it was there before the client connected or the gateway started.
    pub taken: Option<Submitted>,
    /// Whether it arrived on the present connection.
    pub is_of_this_connection: bool,
}

/// A QoS 1 publish whose PUBACK was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    pub packet_id: u16,
    /// Hash of topic and payload.
    pub hash: u64,
    /// Its place in the journal.
    pub taken: Submitted,
}

/// The clients of all listeners.
#[derive(Debug)]
pub struct Registry {
    stored: StoredEvents,
    notes: Notes,
    groups: Groups,
    table: Mutex<Table>,
    /// Held while a QoS 2 publish is submitted and remembered: a head that is written in between would miss it.
    gate: RwLock<()>,
    work: Condvar,
    written: watch::Sender<u64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Registry {
    fn table(&self) -> MutexGuard<'_, Table> {
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

    /// Returns the stored position of a shared subscription, with which a group without members continues. May read
    /// from the disk.
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
        keep_groups(&mut self.table(), source, notes);
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

fn keep_groups(table: &mut Table, source: &str, notes: Vec<(String, GroupNote)>) {
    for (filter, note) in notes {
        if let Some(id) = GroupId::of(source, &filter).filter(|id| table.groups.contains_key(id)) {
            table.ended_groups.insert(id, note.encode());
        }
    }
}

#[cfg(test)]
mod tests;
