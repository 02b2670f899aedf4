//! The notes of sessions: what they say, and when they are written.

use super::{EXCHANGES, Key, NOTE_AFTER, NOTE_AFTER_EVENTS, PREFIX, RETRY, Registry, Row, Subscription, Table};
use crate::clock;
use crate::event::Attribute;
use crate::journal::{Durable, Found, Journal, JournalError, Lane, Note};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// What is noted of a session. The order of the fields is part of the stored format.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) format: u8,
    pub(super) number: u64,
    pub(super) user: String,
    pub(super) expiry: u32,
    /// Packet ids of open exchanges.
    pub(super) exchanges: Vec<u16>,
    pub(super) subscriptions: Vec<Subscription>,
    /// For each lane, the first event that the client may still need.
    pub(super) positions: Vec<(String, u64)>,
}

/// Every log that records of exchanges can be in, in the order of [`Taken`]'s numbers.
pub(super) fn lanes(journal: &Journal) -> impl Iterator<Item = &Arc<Lane>> {
    journal.lanes().iter().chain([journal.dead()])
}

/// Finds the exchanges in the records from `from` on.
pub(super) fn follow_exchanges(table: &mut Table, lane: &Lane, from: Option<u64>) -> Result<(), JournalError> {
    let end = lane.end();
    let mut next = from.unwrap_or(end);
    let keys: HashMap<u64, Key> =
        table.clients.iter().filter_map(|(key, entry)| Some((entry.row.as_ref()?.number, key.clone()))).collect();
    while next < end {
        let block = match lane.look(next)? {
            Found::Block(block) => block,
            Found::Lost { to } => {
                next = to.max(next + 1);
                continue;
            }
        };
        for (offset, record) in (block.header.first..).zip(block.records()) {
            let exchange = record.attribute(|attribute| match attribute {
                Attribute::Exchange { session, packet_id } => Some((*session, *packet_id)),
                _ => None,
            });
            let Some((session, packet_id)) = exchange.filter(|_| offset >= next) else { continue };
            let Some(key) = keys.get(&session) else { continue };
            if let Some(row) = table.clients.get_mut(key).and_then(|entry| entry.row.as_mut()) {
                row.exchanges.insert(packet_id, None);
                // The next note passes over this record, and has to say what it found.
                table.changed.insert(key.clone());
            }
        }
        next = block.end();
    }
    Ok(())
}

impl Row {
    /// What to note, when the logs are on the disk as far as `durable` says; and whether that is all.
    fn stored(&self, durable: &[Durable]) -> (Stored, bool) {
        let mut is_all = true;
        let mut exchanges = Vec::new();
        for (id, taken) in &self.exchanges {
            if taken.is_none_or(|taken| taken.is_in(durable)) {
                exchanges.push(*id);
            } else {
                is_all = false;
            }
        }
        let stored = Stored {
            format: 1,
            number: self.number,
            user: self.user.clone(),
            expiry: self.expiry,
            exchanges,
            subscriptions: self.subscriptions.clone(),
            positions: self.positions.clone(),
        };
        (stored, is_all)
    }
}

/// Writes the notes, many changes at once.
pub(super) struct Writer {
    pub(super) registry: Arc<Registry>,
    /// Sum of the lanes' ends when the exchanges were noted.
    pub(super) noted: u64,
}

impl Writer {
    pub(super) fn run(mut self) {
        let registry = Arc::clone(&self.registry);
        let mut written_at = clock::instant();
        let mut done = 0;
        loop {
            let (wanted, is_closing) = {
                let mut table = registry.table();
                loop {
                    let now = clock::instant();
                    let is_due = !table.changed.is_empty() && now.duration_since(written_at) >= NOTE_AFTER;
                    let passed = sum_of_ends(&registry.journal).saturating_sub(self.noted);
                    let is_far = table.persistent > 0 && passed >= NOTE_AFTER_EVENTS;
                    if table.wanted > done || table.is_closing || is_due || is_far {
                        break (table.wanted, table.is_closing);
                    }
                    let wait = Duration::from_secs(1);
                    table = registry.work.wait_timeout(table, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
            };
            match self.write() {
                Ok(()) => {
                    written_at = clock::instant();
                    done = wanted;
                    registry.written.send_replace(done);
                }
                Err(error) if is_closing => {
                    tracing::error!(%error, "the sessions cannot be noted; clients find them as they were before");
                }
                Err(error) => {
                    tracing::error!(%error, "the sessions cannot be noted, will retry; PUBCOMP and SUBACK wait");
                    std::thread::sleep(RETRY);
                }
            }
            if is_closing {
                return;
            }
        }
    }

    fn write(&mut self) -> Result<(), JournalError> {
        let journal = &self.registry.journal;
        let (notes, taken) = {
            let _closed = self.registry.gate.write().unwrap_or_else(PoisonError::into_inner);
            let mut table = self.registry.table();
            let durable: Vec<Durable> = lanes(journal).map(|lane| lane.durable()).collect();
            let taken = std::mem::take(&mut table.changed);
            let mut notes: Vec<Note> = Vec::with_capacity(taken.len() + 1);
            for key in &taken {
                let row = table.clients.get(key).and_then(|entry| entry.row.as_ref());
                let value = row.map(|row| row.stored(&durable));
                if value.as_ref().is_some_and(|(_, is_all)| !is_all) {
                    table.changed.insert(key.clone());
                }
                let bytes = value.and_then(|(stored, _)| postcard::to_stdvec(&stored).ok());
                notes.push((format!("{PREFIX}{key}"), bytes));
            }
            let from: HashMap<&str, u64> =
                lanes(journal).map(|lane| lane.name.as_str()).zip(durable.iter().map(|durable| durable.end)).collect();
            self.noted = durable.iter().map(|durable| durable.end).sum();
            notes.push((EXCHANGES.into(), postcard::to_stdvec(&from).ok()));
            (notes, taken)
        };
        let written = self.registry.notes.write(notes);
        if written.is_err() {
            self.registry.table().changed.extend(taken);
        }
        written
    }
}

fn sum_of_ends(journal: &Journal) -> u64 {
    lanes(journal).map(|lane| lane.end()).sum()
}
