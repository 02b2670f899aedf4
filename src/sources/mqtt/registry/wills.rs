//! Delayed wills: stored on the disk, so that thousands of them take no memory and survive a restart.

use super::clients::Registry;
use super::rows;
use super::session::Key;
use super::table::{Table, WillState};
use crate::ingest::{Change, JournalError};
use crate::runtime::spawn_blocking;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A will whose delay is over.
#[derive(Clone, Debug)]
pub struct DueWill {
    pub key: Key,
    number: u64,
}

impl DueWill {
    /// Returns the key that the session of the will has now: it may have ended since the will became due.
    fn key_now(&self, table: &Table) -> Key {
        let stored = table.clients.get(&self.key).and_then(|entry| entry.stored.as_ref());
        if stored.is_some_and(|stored| stored.number == self.number) {
            return self.key.clone();
        }
        Key::of_ended(self.key.source(), self.number)
    }
}

impl Registry {
    /// Returns the due wills of a listener, at most `max`. Each stays on the disk until [`Registry::finish_will`].
    pub fn due_wills(&self, now: Instant, source: &str, max: usize) -> Vec<DueWill> {
        let mut table = self.table();
        match table.listeners.get_mut(source) {
            Some(asked_at) => *asked_at = now,
            None => drop(table.listeners.insert(source.to_owned(), now)),
        }
        let mut due = Vec::new();
        for (key, entry) in &mut table.clients {
            if due.len() >= max {
                break;
            }
            let (WillState::Pending(delay), None, Some(stored)) = (entry.will, &entry.slot, &entry.stored) else {
                continue;
            };
            let asleep_for = entry.left_at.map_or(Duration::ZERO, |at| now.duration_since(at));
            if asleep_for >= delay && key.source() == source {
                entry.will = WillState::Publishing;
                due.push(DueWill { key: key.clone(), number: stored.number });
            }
        }
        due
    }

    /// Reads the stored form of a due will; `None` if it is gone.
    pub async fn read_will(self: &Arc<Self>, due: &DueWill) -> Result<Option<Vec<u8>>, JournalError> {
        let wait_for = self.request_write(&mut self.table());
        if self.written().wait_for(|written| *written >= wait_for).await.is_err() {
            return Ok(None);
        }
        let (registry, name) = (Arc::clone(self), rows::will_row(due.number));
        let read = spawn_blocking(move || registry.notes.read(&name)).await;
        read.unwrap_or(Ok(None))
    }

    /// Removes a will that was published or dropped, unless its client has left another one meanwhile.
    pub fn finish_will(&self, due: &DueWill) {
        let mut table = self.table();
        let key = due.key_now(&table);
        let Some((key, mut entry)) = table.clients.remove_entry(&key) else { return };
        if let Some(stored) = entry.stored.as_mut().filter(|stored| stored.number == due.number)
            && !matches!(entry.will, WillState::Pending(_))
        {
            entry.will = WillState::None;
            if entry.slot.is_none() {
                table.release_will(stored);
            }
            table.removals.push(Change::Remove(rows::will_row(due.number)));
            self.request_write(&mut table);
        }
        table.clients.insert(key, entry);
    }

    /// Makes a will due again that could not be read or published.
    pub fn retry_will(&self, due: &DueWill) {
        let mut table = self.table();
        let key = due.key_now(&table);
        if let Some(entry) = table.clients.get_mut(&key)
            && entry.will == WillState::Publishing
        {
            entry.will = WillState::Pending(Duration::ZERO);
        }
    }
}
