//! How a client gets its place and its session.

use super::stored::{self, Content, Head};
use super::table::{Entry, Table, Waiting};
use super::{Exchange, Key, LEAVE_WAIT_MAX, Outbound, Place, Registry, Seat, Session, Subscription};
use crate::clock;
use crate::journal::{Change, JournalError};
use crate::runtime::spawn_blocking;
use std::sync::Arc;

/// What [`Registry::enter`] found.
#[derive(Debug)]
pub struct Entered {
    /// The client's place.
    pub place: Place,
    /// Its session.
    pub session: Box<Session>,
    /// Whether the session was there before.
    pub is_present: bool,
    /// What has to be on the disk before the client is answered.
    pub wait_for: u64,
}

/// How many sessions there may be over all listeners, and how many bytes they may take on the disk.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// Sessions in all.
    pub sessions: usize,
    /// Sessions of one share.
    pub sessions_of_name: usize,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of one share.
    pub bytes_of_name: u64,
}

/// What CONNECT asks of a session.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Who asks.
    pub user: &'a str,
    /// Whose sessions it is counted with: those of a proven name, or of an address.
    pub share: &'a str,
    /// Whether what was there before is to be forgotten.
    pub is_clean: bool,
    /// Seconds that the session is to outlive the connection.
    pub expiry: u32,
    /// What a will that may have to wait takes on the disk; 0 if there is none.
    pub will_bytes: u64,
    /// What there may be.
    pub quotas: Quotas,
}

/// Why a client gets no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSession {
    /// There are too many sessions, or they take too many bytes; which setting says so.
    TooMany(&'static str),
    /// The disk is down to its reserve.
    NoDisk,
    /// The connection that has the place does not leave.
    Stuck,
    /// The disk does not give back what is there of the session.
    Unreadable,
}

/// What a client has found at its place.
struct Seated {
    place: Place,
    session: Box<Session>,
    /// Its session, if that was there before: its number, and what was not written yet.
    before: Option<(u64, Option<Content>)>,
    wait_for: u64,
}

/// What the disk has of a session.
struct Loaded {
    content: Option<Content>,
    subscriptions: Vec<Subscription>,
}

impl Registry {
    /// Takes the place of a client, and its session; whoever had it leaves first. Safe to drop half-way.
    pub async fn enter(self: &Arc<Self>, key: &Key, wish: Wish<'_>) -> Result<Entered, NoSession> {
        let Seated { place, mut session, before, wait_for } = self.take_seat(key, wish).await?;
        let Some((number, content)) = before else {
            return Ok(Entered { place, session, is_present: false, wait_for });
        };
        // What was not written yet is read back from the disk: first it has to get there.
        if self.written().wait_for(|written| *written >= wait_for).await.is_err() {
            return Err(NoSession::Stuck);
        }
        let has_head = content.is_some();
        let (registry, of) = (Arc::clone(self), key.clone());
        let loaded = spawn_blocking(move || registry.load(&of, number, has_head)).await;
        let loaded = match loaded {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                tracing::error!(%error, "could not read a session; its client is refused and will try again");
                return Err(NoSession::Unreadable);
            }
            Err(_) => return Err(NoSession::Stuck),
        };
        let content = content.or(loaded.content).unwrap_or_default();
        session.number = number;
        let known = |(id, taken): (&u16, &Option<_>)| (*id, Exchange { taken: *taken, is_of_this_connection: false });
        session.exchanges = content.exchanges.iter().map(known).collect();
        session.outbound = Outbound::restore(loaded.subscriptions, &content.progress);
        let wait_for = self.wake(key, wish, content);
        Ok(Entered { place, session, is_present: true, wait_for })
    }

    async fn take_seat(self: &Arc<Self>, key: &Key, wish: Wish<'_>) -> Result<Seated, NoSession> {
        let deadline = clock::instant() + LEAVE_WAIT_MAX;
        loop {
            let mut has_left = {
                let mut table = self.table();
                match table.clients.get(key).and_then(|entry| entry.seat.as_ref()) {
                    None => return self.sit(&mut table, key, wish),
                    Some(seat) => {
                        seat.taken_over.notify_one();
                        seat.has_left.subscribe()
                    }
                }
            };
            let wait = deadline.saturating_duration_since(clock::instant());
            if tokio::time::timeout(wait, has_left.wait_for(|left| *left)).await.is_err() {
                return Err(NoSession::Stuck);
            }
        }
    }

    fn sit(self: &Arc<Self>, table: &mut Table, key: &Key, wish: Wish<'_>) -> Result<Seated, NoSession> {
        let before = table.clients.get(key).and_then(|entry| entry.row.as_ref());
        table.admits(key, &wish, before)?;
        let is_present = before.is_some() && !wish.is_clean;
        if !is_present && wish.expiry > 0 && !self.has_disk_room() {
            return Err(NoSession::NoDisk);
        }
        let (key, mut entry) = table.take(key);
        let mut session = Box::new(Session { user: wish.user.to_owned(), expiry: wish.expiry, ..Session::default() });
        // Redeliveries are recognised whether there is a session or not.
        if let Some(leftover) = table.take_leftover(&mut entry) {
            session.unanswered = leftover.unanswered.into();
            session.waiter = leftover.waiter;
            session.permit = leftover.permit;
        }
        let mut wait_for = 0;
        let mut before = None;
        if is_present && let Some(row) = &entry.row {
            let unwritten = entry.unwritten.as_ref();
            if unwritten.is_some_and(|unwritten| !unwritten.changes.is_empty()) {
                wait_for = self.want(table);
            }
            before = Some((row.number, unwritten.map(|unwritten| unwritten.content.clone())));
        } else {
            if let Some(row) = entry.row.take() {
                entry.unwritten = None;
                entry.will = Waiting::None;
                table.forget(&key, row);
                wait_for = self.want(table);
            }
            if wish.expiry > 0 {
                self.begin(table, &key, &mut entry, wish);
                session.number = entry.row.as_ref().map_or(0, |row| row.number);
                wait_for = self.want(table);
            }
        }
        let seat = Arc::new(Seat::default());
        entry.seat = Some(Arc::clone(&seat));
        table.clients.insert(key.clone(), entry);
        let place = Place { registry: Arc::clone(self), key, seat };
        Ok(Seated { place, session, before, wait_for })
    }

    /// Begins a persistent session.
    fn begin(&self, table: &mut Table, key: &Key, entry: &mut Entry, wish: Wish<'_>) {
        let number = uuid::Uuid::new_v4().as_u64_pair().0.max(1);
        let mut row = table.put_row(key, number, wish.expiry, wish.share);
        row.will_bytes = wish.will_bytes;
        table.charge(&mut row, wish.will_bytes.cast_signed());
        entry.row = Some(row);
        entry.unwritten = Some(Box::default());
        table.changed.insert(key.clone());
    }

    /// Has everything written that is to be; what is returned is written with it.
    pub(super) fn want(&self, table: &mut Table) -> u64 {
        table.wanted += 1;
        self.work.notify_one();
        table.wanted
    }

    /// Reads what the disk has of a session. Blocks the thread.
    fn load(&self, key: &Key, number: u64, has_head: bool) -> Result<Loaded, JournalError> {
        let content = if has_head { None } else { self.notes.read(&stored::head_row(key))? };
        let mut subscriptions = Vec::new();
        self.notes.each(&stored::subscription_rows(number), |name, value| {
            subscriptions.extend(stored::read_subscription(name, value));
        })?;
        Ok(Loaded { content: content.and_then(|bytes| Some(Head::read(&bytes)?.content())), subscriptions })
    }

    /// Puts what was loaded of a session where it can be changed; its will is not spoken any more.
    fn wake(&self, key: &Key, wish: Wish<'_>, content: Content) -> u64 {
        let mut table = self.table();
        let Some((key, mut entry)) = table.clients.remove_entry(key) else { return 0 };
        let mut wait_for = 0;
        if let Some(row) = &mut entry.row {
            let unwritten = entry.unwritten.get_or_insert_default();
            unwritten.content = content;
            if row.expiry != wish.expiry {
                row.expiry = wish.expiry;
                table.changed.insert(key.clone());
            }
            let more = wish.will_bytes.cast_signed() - row.will_bytes.cast_signed();
            table.charge(row, more);
            row.will_bytes = wish.will_bytes;
            if matches!(entry.will, Waiting::Pending(_)) {
                // A crash must not speak the will of a client that has come back.
                unwritten.changes.push(Change::Remove(stored::will_row(row.number)));
                entry.will = Waiting::None;
                table.changed.insert(key.clone());
                wait_for = self.want(&mut table);
            }
        }
        table.clients.insert(key, entry);
        wait_for
    }
}
