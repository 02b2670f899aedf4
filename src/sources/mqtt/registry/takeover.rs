//! Session takeover: how a connection gets its client's slot and session, and how it gives them back.
//!
//! Promise: a client has one connection at a time. A newer connection asks the older one to end and waits until it has
//! released the slot (MQTT 5, section 3.1.4; reason code *Session taken over*).
//! Invariant: however a connection ends, its slot becomes free.

use super::super::outbound::{Outbound, Subscription};
use super::clients::Registry;
use super::rows::{self, Head, HeadContent};
use super::session::{Exchange, Key, NoSession, PendingWill, Session, SessionRequest};
use super::table::{ClientEntry, ConnectionSlot, Table, UnansweredPublishes, WillState};
use crate::clock;
use crate::ingest::{Change, JournalError};
use crate::runtime::spawn_blocking;
use std::sync::Arc;
use std::time::Duration;

/// The time that a connection that is taken over may take to release its slot.
pub(super) const LEAVE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Holds the connection slot of a client. Dropping it frees the slot; the next connection then continues with the state
/// of the session that is in the journal.
#[derive(Debug)]
pub struct SlotGuard {
    registry: Arc<Registry>,
    key: Key,
    slot: Arc<ConnectionSlot>,
}

impl SlotGuard {
    /// Returns when a newer connection takes over. Safe to drop half-way.
    pub async fn taken_over(&self) {
        self.slot.taken_over.notified().await;
    }

    /// Frees the slot and keeps the session for the next connection. `later` is a will that waits for its delay.
    pub fn release(self, session: Box<Session>, later: Option<PendingWill>) {
        self.registry.release_slot(&self.key, &self.slot, Some(LeftSession { session, later }));
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.registry.release_slot(&self.key, &self.slot, None);
    }
}

#[derive(Debug)]
pub struct OpenedSession {
    /// Keeps other connections of the client out.
    pub slot: SlotGuard,
    pub session: Box<Session>,
    /// Whether the session was there before.
    pub is_present: bool,
    /// The write that has to be on the disk before CONNACK; see [`Registry::written`].
    pub wait_for: u64,
}

/// The slot of a connection, and what is in memory of its client's session.
struct OccupiedSlot {
    slot: SlotGuard,
    session: Box<Session>,
    /// Number of an earlier session, and its state where that is not on the disk yet.
    before: Option<(u64, Option<HeadContent>)>,
    wait_for: u64,
}

/// The session that a connection leaves, and its will if that waits for its delay.
struct LeftSession {
    session: Box<Session>,
    later: Option<PendingWill>,
}

/// A session as it was read from the disk.
struct Loaded {
    content: Option<HeadContent>,
    subscriptions: Vec<Subscription>,
}

impl Registry {
    /// Takes over the slot of a client and opens its session. An earlier connection ends first. Safe to drop half-way.
    pub async fn open_session(
        self: &Arc<Self>,
        key: &Key,
        request: SessionRequest<'_>,
    ) -> Result<OpenedSession, NoSession> {
        let OccupiedSlot { slot, mut session, before, wait_for } = self.take_over(key, request).await?;
        let Some((number, content)) = before else {
            return Ok(OpenedSession { slot, session, is_present: false, wait_for });
        };
        // Rows that are not written yet are read back below, so they have to be written first.
        if self.written().wait_for(|written| *written >= wait_for).await.is_err() {
            return Err(NoSession::Stuck);
        }
        let has_head = content.is_some();
        let (registry, of) = (Arc::clone(self), key.clone());
        let loaded = spawn_blocking(move || registry.load(&of, number, has_head)).await;
        let loaded = match loaded {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                tracing::error!(%error, "could not read a session; refused its client, which can connect again");
                return Err(NoSession::Unreadable);
            }
            Err(_) => return Err(NoSession::Stuck),
        };
        let content = content.or(loaded.content).unwrap_or_default();
        session.number = number;
        let known = |(id, taken): (&u16, &Option<_>)| (*id, Exchange { taken: *taken, is_of_this_connection: false });
        session.exchanges = content.exchanges.iter().map(known).collect();
        session.outbound = Outbound::restore(loaded.subscriptions, &content.progress);
        let wait_for = self.resume(key, request, content);
        Ok(OpenedSession { slot, session, is_present: true, wait_for })
    }

    async fn take_over(self: &Arc<Self>, key: &Key, request: SessionRequest<'_>) -> Result<OccupiedSlot, NoSession> {
        let deadline = clock::instant() + LEAVE_WAIT_MAX;
        loop {
            let mut is_released = {
                let mut table = self.table();
                match table.clients.get(key).and_then(|entry| entry.slot.as_ref()) {
                    None => return self.occupy(&mut table, key, request),
                    Some(slot) => {
                        slot.taken_over.notify_one();
                        slot.is_released.subscribe()
                    }
                }
            };
            let wait = deadline.saturating_duration_since(clock::instant());
            if tokio::time::timeout(wait, is_released.wait_for(|left| *left)).await.is_err() {
                return Err(NoSession::Stuck);
            }
        }
    }

    fn occupy(
        self: &Arc<Self>,
        table: &mut Table,
        key: &Key,
        request: SessionRequest<'_>,
    ) -> Result<OccupiedSlot, NoSession> {
        let before = table.clients.get(key).and_then(|entry| entry.stored.as_ref());
        table.check_limits(key, &request, before)?;
        let is_present = before.is_some() && !request.is_clean;
        if !is_present && request.expiry > 0 && !self.stored.has_disk_room() {
            return Err(NoSession::NoDisk);
        }
        let (key, mut entry) = table.take(key);
        let mut session =
            Box::new(Session { user: request.user.to_owned(), expiry: request.expiry, ..Session::default() });
        // Redeliveries are recognised even without a persistent session.
        if let Some(unanswered) = table.take_unanswered(&mut entry) {
            session.unanswered = unanswered.publishes.into();
            session.waiter = unanswered.waiter;
            session.permit = unanswered.permit;
        }
        let mut wait_for = 0;
        let mut before = None;
        if is_present && let Some(stored) = &entry.stored {
            let unwritten = entry.unwritten.as_ref();
            if unwritten.is_some_and(|unwritten| !unwritten.changes.is_empty()) {
                wait_for = self.request_write(table);
            }
            before = Some((stored.number, unwritten.map(|unwritten| unwritten.content.clone())));
        } else {
            let earlier = ClientEntry {
                left_at: entry.left_at,
                stored: entry.stored.take(),
                unwritten: entry.unwritten.take(),
                will: std::mem::take(&mut entry.will),
                ..ClientEntry::default()
            };
            if earlier.will != WillState::None {
                table.end_before_will(&key, earlier);
                wait_for = self.request_write(table);
            } else if let Some(stored) = earlier.stored {
                table.delete(&key, stored);
                wait_for = self.request_write(table);
            }
            if request.expiry > 0 {
                self.create_session(table, &key, &mut entry, request);
                session.number = entry.stored.as_ref().map_or(0, |stored| stored.number);
                wait_for = self.request_write(table);
            }
        }
        let slot = Arc::new(ConnectionSlot::default());
        entry.slot = Some(Arc::clone(&slot));
        table.clients.insert(key.clone(), entry);
        let slot = SlotGuard { registry: Arc::clone(self), key, slot };
        Ok(OccupiedSlot { slot, session, before, wait_for })
    }

    fn create_session(&self, table: &mut Table, key: &Key, entry: &mut ClientEntry, request: SessionRequest<'_>) {
        let number = uuid::Uuid::new_v4().as_u64_pair().0.max(1);
        let mut stored = table.add_session(key, number, request.expiry, request.share);
        stored.will_bytes = request.will_bytes;
        table.charge(&mut stored, request.will_bytes.cast_signed());
        entry.stored = Some(stored);
        entry.unwritten = Some(Box::default());
        table.changed.insert(key.clone());
    }

    /// Reads a session from the disk. Blocks the thread.
    fn load(&self, key: &Key, number: u64, has_head: bool) -> Result<Loaded, JournalError> {
        let content = if has_head { None } else { self.notes.read(&rows::head_row(key))? };
        let mut subscriptions = Vec::new();
        self.notes.each(&rows::subscription_rows(number), |name, value| {
            subscriptions.extend(rows::read_subscription(name, value));
        })?;
        Ok(Loaded { content: content.and_then(|bytes| Some(Head::read(&bytes)?.content())), subscriptions })
    }

    /// Puts the loaded state of a session into the table, and cancels the will that waits. Returns the write to wait for.
    fn resume(&self, key: &Key, request: SessionRequest<'_>, content: HeadContent) -> u64 {
        let mut table = self.table();
        let Some((key, mut entry)) = table.clients.remove_entry(key) else { return 0 };
        let mut wait_for = 0;
        if let Some(stored) = &mut entry.stored {
            let unwritten = entry.unwritten.get_or_insert_default();
            unwritten.content = content;
            if stored.expiry != request.expiry {
                stored.expiry = request.expiry;
                table.changed.insert(key.clone());
            }
            let more = request.will_bytes.cast_signed() - stored.will_bytes.cast_signed();
            table.charge(stored, more);
            stored.will_bytes = request.will_bytes;
            if matches!(entry.will, WillState::Pending(_)) {
                // After a crash the will of a client that has returned must not be published.
                unwritten.changes.push(Change::Remove(rows::will_row(stored.number)));
                entry.will = WillState::None;
                table.changed.insert(key.clone());
                wait_for = self.request_write(&mut table);
            }
        }
        table.clients.insert(key, entry);
        wait_for
    }

    /// Frees a slot, if it is still that of this connection, and keeps the state of the session that is not on the disk.
    fn release_slot(&self, key: &Key, slot: &Arc<ConnectionSlot>, left: Option<LeftSession>) {
        let mut table = self.table();
        let is_own = |entry: &ClientEntry| entry.slot.as_ref().is_some_and(|known| Arc::ptr_eq(known, slot));
        if !table.clients.get(key).is_some_and(is_own) {
            return;
        }
        let (key, mut entry) = table.take(key);
        let now = clock::instant();
        entry.slot = None;
        entry.left_at = Some(now);
        if let Some(left) = left {
            self.save_session(&mut table, &key, &mut entry, left);
        }
        if entry.stored.as_ref().is_some_and(|stored| stored.expiry == 0)
            && let Some(stored) = entry.stored.take()
        {
            entry.unwritten = None;
            table.delete(&key, stored);
        }
        if entry.unwritten.is_some() {
            table.changed.insert(key.clone());
        }
        if entry.stored.is_some() || entry.unanswered.is_some() {
            table.clients.insert(key, entry);
        }
        table.trim_unanswered(now);
        drop(table);
        slot.is_released.send_replace(true);
    }

    /// Keeps the state that a connection leaves in its session until it is written.
    fn save_session(&self, table: &mut Table, key: &Key, entry: &mut ClientEntry, left: LeftSession) {
        let LeftSession { mut session, later } = left;
        session.outbound.suspend();
        if let Some(stored) = &mut entry.stored {
            stored.expiry = session.expiry;
            if stored.expiry > 0 {
                let unwritten = entry.unwritten.get_or_insert_default();
                unwritten.content.progress = session.outbound.progress();
                if let Some(PendingWill { delay, bytes }) = later {
                    unwritten.changes.push(Change::Put(rows::will_row(stored.number), bytes));
                    entry.will = WillState::Pending(delay);
                    self.request_write(table);
                } else if entry.will == WillState::None {
                    table.release_will(stored);
                }
            }
        }
        table.keep_groups(key.source(), session.outbound.group_notes());
        let is_awaited = entry.unwritten.as_ref().is_some_and(|unwritten| !unwritten.content.exchanges.is_empty());
        if !session.unanswered.is_empty() || is_awaited {
            let Session { unanswered, waiter, permit, .. } = *session;
            let unanswered = UnansweredPublishes { publishes: unanswered.into(), waiter, permit };
            table.keep_unanswered(key, entry, unanswered, clock::instant());
        }
    }
}
