//! Recovery at the start of the gateway: sessions, subscriptions, delayed wills and QoS 2 exchanges.
//!
//! Invariant: every row is read once and none is kept in memory.

use super::super::shared_subscription::Groups;
use super::super::stored_will::StoredWill;
use super::clients::Registry;
use super::rows::{self, GroupId, Head, SUBSCRIPTIONS, WILLS, follow_exchanges, parse_row};
use super::session::Key;
use super::table::{Table, WillState};
use super::writer::Writer;
use crate::clock;
use crate::ingest::{Change, JournalError, Notes, StoredEvents};
use crate::local::Local;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

impl Registry {
    /// Reads the stored sessions and the QoS 2 exchanges that began after their heads were written. Blocks the thread.
    pub fn open(stored: StoredEvents, local: Arc<Local>) -> Result<Arc<Self>, JournalError> {
        let notes = stored.notes("mqtt");
        let mut table = Table::default();
        let keys = find_heads(&mut table, &notes)?;
        find_subscriptions(&mut table, &keys, &notes)?;
        find_wills(&mut table, &keys, &notes)?;
        find_groups(&mut table, &notes)?;
        find_exchanges(&mut table, &keys, &notes, &stored)?;
        if table.persistent > 0 {
            tracing::info!(sessions = table.persistent, bytes = table.bytes, "loaded the sessions of clients");
        }
        let registry = Arc::new(Self {
            groups: Groups::new(local),
            stored,
            notes,
            table: Mutex::new(table),
            gate: RwLock::new(()),
            work: Condvar::new(),
            written: watch::channel(0).0,
            writer: Mutex::new(None),
        });
        let writer = Writer::new(Arc::clone(&registry));
        let thread = std::thread::Builder::new().name("sessions".into()).spawn(move || writer.run());
        *registry.writer.lock() = thread.ok();
        Ok(registry)
    }
}

type Keys = HashMap<u64, Key>;

fn find_heads(table: &mut Table, notes: &Notes) -> Result<Keys, JournalError> {
    let mut keys = Keys::new();
    notes.each(rows::HEADS, |name, bytes| {
        let key = Key(name[rows::HEADS.len()..].into());
        match Head::read(bytes) {
            // A session without expiry ended with the gateway.
            Some(head) if head.expiry > 0 => {
                let stored = table.add_session(&key, head.number, head.expiry, &head.share);
                let entry = table.clients.entry(key.clone()).or_default();
                entry.stored = Some(stored);
                entry.left_at = Some(clock::instant());
                keys.insert(head.number, key);
            }
            _ => table.removals.push(Change::Remove(name.to_owned())),
        }
    })?;
    Ok(keys)
}

fn find_subscriptions(table: &mut Table, keys: &Keys, notes: &Notes) -> Result<(), JournalError> {
    let mut orphans = BTreeSet::new();
    notes.each(SUBSCRIPTIONS, |name, _| {
        let Some((number, filter)) = parse_row(name, SUBSCRIPTIONS) else {
            table.removals.push(Change::Remove(name.to_owned()));
            return;
        };
        let Some(key) = keys.get(&number) else {
            orphans.insert(number);
            return;
        };
        let Some(mut stored) = table.clients.get_mut(key).and_then(|entry| entry.stored.take()) else { return };
        table.charge(&mut stored, rows::subscription_bytes(filter).cast_signed());
        if let Some(group) = GroupId::of(key.source(), filter) {
            stored.groups.push(group);
            table.join_group(group);
        }
        table.clients.entry(key.clone()).or_default().stored = Some(stored);
    })?;
    table.removals.extend(orphans.into_iter().map(|number| Change::RemoveAll(rows::subscription_rows(number))));
    Ok(())
}

fn find_wills(table: &mut Table, keys: &Keys, notes: &Notes) -> Result<(), JournalError> {
    notes.each(WILLS, |name, bytes| {
        let key = parse_row(name, WILLS).and_then(|(number, _)| keys.get(&number));
        let (Some(key), Some(will)) = (key, StoredWill::read(bytes)) else {
            table.removals.push(Change::Remove(name.to_owned()));
            return;
        };
        let Some(entry) = table.clients.get_mut(key) else { return };
        // The delay starts again: while the gateway was down, the client could not reconnect.
        entry.will = WillState::Pending(if key.is_of_ended() { Duration::ZERO } else { will.delay() });
        let Some(mut stored) = entry.stored.take() else { return };
        stored.will_bytes = rows::will_bytes(bytes.len());
        table.charge(&mut stored, rows::will_bytes(bytes.len()).cast_signed());
        table.clients.entry(key.clone()).or_default().stored = Some(stored);
    })
}

/// Removes the positions of groups that no session subscribes to.
fn find_groups(table: &mut Table, notes: &Notes) -> Result<(), JournalError> {
    let known: BTreeSet<String> = table.groups.keys().map(|group| group.row()).collect();
    notes.each("group/", |name, _| {
        if !known.contains(name) {
            table.removals.push(Change::Remove(name.to_owned()));
        }
    })
}

/// Finds exchanges in the records that are newer than the heads.
fn find_exchanges(table: &mut Table, keys: &Keys, notes: &Notes, stored: &StoredEvents) -> Result<(), JournalError> {
    if keys.is_empty() {
        return Ok(());
    }
    let from: HashMap<String, u64> = match notes.read(rows::EXCHANGES)? {
        Some(bytes) => postcard::from_bytes(&bytes).unwrap_or_default(),
        None => HashMap::new(),
    };
    let mut found: HashMap<u64, BTreeSet<u16>> = HashMap::new();
    for log in stored.logs() {
        follow_exchanges(&log, from.get(log.name()).copied(), |session, packet_id| {
            if keys.contains_key(&session) {
                found.entry(session).or_default().insert(packet_id);
            }
        })?;
    }
    for (number, ids) in found {
        let Some(key) = keys.get(&number) else { continue };
        let head = notes.read(&rows::head_row(key))?.and_then(|bytes| Head::read(&bytes));
        let Some(entry) = table.clients.get_mut(key) else { continue };
        let mut content = head.map(Head::content).unwrap_or_default();
        content.exchanges.extend(ids.into_iter().map(|id| (id, None)));
        entry.unwritten.get_or_insert_default().content = content;
        // The next write moves the row `exchanges` past these records, so it has to include these exchanges.
        table.changed.insert(key.clone());
    }
    Ok(())
}
