//! Who is connected, and what outlives a connection: sessions, in memory and in the journal's notes.
//!
//! Promise: what a persistent session was told is done (a subscription, the release of a QoS 2
//! exchange) is on the disk before the answer leaves; after a crash nothing of it is lost or doubled.
//!
//! An exchange of QoS 2 that is begun lives in its event's own record. A session's note lists those
//! that were open when it was written; the note `exchanges` says up to which offsets that is
//! all, and a start looks at the records behind these.

mod notes;

use super::outbound::{Outbound, Subscription};
use super::will::Will;
use crate::clock;
use crate::ingest::Taken;
use crate::journal::{Journal, JournalError, Notes, Waiter};
use crate::memory::Permit;
use notes::{Stored, Writer, follow_exchanges, lanes};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// What the notes of sessions begin with.
const PREFIX: &str = "session/";
/// Up to which offsets the sessions' notes know the exchanges.
const EXCHANGES: &str = "exchanges";
/// So many events may pass before that is noted again: what a start looks at once more.
const NOTE_AFTER_EVENTS: u64 = 200_000;
/// Positions of subscribers are noted at most this much later.
const NOTE_AFTER: Duration = Duration::from_secs(5);
/// How long to wait before trying a disk again that failed.
const RETRY: Duration = Duration::from_millis(500);
/// How long a connection that is taken over may take to leave.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long redeliveries of a client without a session are recognised after its connection.
const REDELIVERY_FOR: Duration = Duration::from_secs(300);
/// Session expiry that means never (MQTT 5, section 3.1.2.11.2).
pub const NEVER: u32 = u32::MAX;

/// One client of one listener: `{source}/{client id}`.
pub type Key = String;

/// The place of a connected client.
#[derive(Debug, Default)]
struct Seat {
    user: String,
    /// Rings when another connection takes over.
    taken_over: Notify,
    has_left: watch::Sender<bool>,
}

/// Has the place of a client id. However that ends, the place is free again: without a session to
/// park, the next connection goes on from what the journal has of it.
#[derive(Debug)]
pub struct Place {
    registry: Arc<Registry>,
    key: Key,
    seat: Arc<Seat>,
}

impl Place {
    /// Returns when another connection wants the place. Safe to drop half-way.
    pub async fn taken_over(&self) {
        self.seat.taken_over.notified().await;
    }

    /// Leaves the place, and the session to the next connection.
    pub fn leave(self, session: Box<Session>) {
        self.registry.vacate(&self.key, &self.seat, Some(session));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.vacate(&self.key, &self.seat, None);
    }
}

/// What a connection works with and leaves behind.
#[derive(Debug, Default)]
pub struct Session {
    /// Who it belongs to.
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
    /// Connections before this one.
    pub connections: u64,
    /// Is woken for what is on its way to the disk, by this connection or the one before.
    pub waiter: Waiter,
    /// Covers what is not answered, while no connection does.
    pub permit: Option<Permit>,
}

/// A QoS 2 publish that is taken and not released.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Its way to the disk; `None` if it was there before the gateway started.
    pub taken: Option<Taken>,
    /// The connection that it came by.
    pub connection: u64,
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

/// A persistent session as it is noted, or will be.
#[derive(Debug, Default)]
struct Row {
    number: u64,
    user: String,
    expiry: u32,
    exchanges: HashMap<u16, Option<Taken>>,
    subscriptions: Vec<Subscription>,
    positions: Vec<(String, u64)>,
}

#[derive(Debug, Default)]
struct Entry {
    seat: Option<Arc<Seat>>,
    /// What the last connection left, while there is none.
    parked: Option<Box<Session>>,
    parked_at: Option<Instant>,
    /// Of a persistent session.
    row: Option<Row>,
}

#[derive(Debug, Default)]
struct Table {
    clients: HashMap<Key, Entry>,
    /// Sessions that changed since they were noted; one that is gone is to be removed.
    changed: BTreeSet<Key>,
    /// Counts what somebody waits for.
    wanted: u64,
    persistent: usize,
    is_closing: bool,
}

/// The clients of every listener.
#[derive(Debug)]
pub struct Registry {
    journal: Arc<Journal>,
    notes: Notes,
    table: Mutex<Table>,
    /// Held while a QoS 2 publish is handed in and remembered: a note that was made in between
    /// would pass over it.
    gate: RwLock<()>,
    work: Condvar,
    written: watch::Sender<u64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

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

/// What CONNECT asks of a session.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Who asks.
    pub user: &'a str,
    /// Whether what was there before is to be forgotten.
    pub is_clean: bool,
    /// Seconds that the session is to outlive the connection.
    pub expiry: u32,
    /// Persistent sessions at most, over all listeners.
    pub sessions_max: usize,
}

/// Why a client gets no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSession {
    /// The client id belongs to another user.
    Foreign,
    /// There are too many sessions.
    TooMany,
    /// The connection that has the client id does not leave.
    Stuck,
}

impl Registry {
    /// Reads the sessions that were noted, and what their clients had begun since. Blocks the thread.
    pub fn open(journal: Arc<Journal>) -> Result<Arc<Self>, JournalError> {
        let mut table = Table::default();
        let notes = journal.notes("mqtt");
        for (name, bytes) in notes.all(PREFIX)? {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            match postcard::from_bytes::<Stored>(&bytes) {
                // A session that was to end with its connection has ended with the gateway.
                Ok(stored) if stored.expiry > 0 => {
                    let row = Row {
                        number: stored.number,
                        user: stored.user,
                        expiry: stored.expiry,
                        exchanges: stored.exchanges.into_iter().map(|id| (id, None)).collect(),
                        subscriptions: stored.subscriptions,
                        positions: stored.positions,
                    };
                    let entry = Entry { row: Some(row), parked_at: Some(clock::instant()), ..Entry::default() };
                    table.clients.insert(key.to_owned(), entry);
                    table.persistent += 1;
                }
                _ => drop(table.changed.insert(key.to_owned())),
            }
        }
        let from: HashMap<String, u64> = match notes.read(EXCHANGES)? {
            Some(bytes) => postcard::from_bytes(&bytes).unwrap_or_default(),
            None => HashMap::new(),
        };
        if table.persistent > 0 {
            for lane in lanes(&journal) {
                follow_exchanges(&mut table, lane, from.get(&lane.name).copied())?;
            }
        }
        let registry = Arc::new(Self {
            journal,
            notes,
            table: Mutex::new(table),
            gate: RwLock::new(()),
            work: Condvar::new(),
            written: watch::channel(0).0,
            writer: Mutex::new(None),
        });
        let writer = Writer { registry: Arc::clone(&registry), noted: 0 };
        let thread = std::thread::Builder::new().name("sessions".into()).spawn(move || writer.run());
        *registry.writer.lock().unwrap_or_else(PoisonError::into_inner) = thread.ok();
        Ok(registry)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of a client id, and its session; whoever had it leaves first.
    pub async fn enter(self: &Arc<Self>, key: &Key, wish: Wish<'_>) -> Result<Entered, NoSession> {
        let deadline = clock::instant() + LEAVE_WAIT_MAX;
        loop {
            let mut has_left = {
                let mut table = self.table();
                match table.clients.get(key).and_then(|entry| entry.seat.as_ref()) {
                    None => return self.sit(&mut table, key, wish),
                    Some(seat) => {
                        if seat.user != wish.user {
                            return Err(NoSession::Foreign);
                        }
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

    fn sit(self: &Arc<Self>, table: &mut Table, key: &Key, wish: Wish<'_>) -> Result<Entered, NoSession> {
        let row = table.clients.get(key).and_then(|entry| entry.row.as_ref());
        if row.is_some_and(|row| row.user != wish.user) {
            return Err(NoSession::Foreign);
        }
        if row.is_none() && wish.expiry > 0 && table.persistent >= wish.sessions_max {
            return Err(NoSession::TooMany);
        }
        let mut entry = table.clients.remove(key).unwrap_or_default();
        let is_present = entry.row.is_some() && !wish.is_clean;
        let mut wait_for = 0;
        let parked = entry.parked.take();
        let mut session = match (is_present, parked, &entry.row) {
            (true, Some(parked), _) => parked,
            (true, None, Some(row)) => Box::new(row.session()),
            (_, parked, row) => {
                if row.is_some() {
                    entry.row = None;
                    table.persistent -= 1;
                    table.changed.insert(key.clone());
                    table.wanted += 1;
                    wait_for = table.wanted;
                }
                // Redeliveries are recognised whether there is a session or not.
                let before = parked.map(|parked| *parked).unwrap_or_default();
                let (unanswered, waiter) = (before.unanswered, before.waiter);
                let user = wish.user.to_owned();
                Box::new(Session { unanswered, waiter, connections: before.connections, user, ..Session::default() })
            }
        };
        session.connections += 1;
        session.expiry = wish.expiry;
        session.will = None;
        match &mut entry.row {
            Some(row) if row.expiry != wish.expiry => {
                row.expiry = wish.expiry;
                table.changed.insert(key.clone());
            }
            None if wish.expiry > 0 => {
                session.number = uuid::Uuid::new_v4().as_u64_pair().0.max(1);
                entry.row = Some(Row {
                    number: session.number,
                    user: wish.user.to_owned(),
                    expiry: wish.expiry,
                    ..Row::default()
                });
                table.persistent += 1;
                table.changed.insert(key.clone());
                table.wanted += 1;
                wait_for = table.wanted;
            }
            _ => {}
        }
        let seat = Arc::new(Seat { user: wish.user.to_owned(), ..Seat::default() });
        entry.seat = Some(Arc::clone(&seat));
        table.clients.insert(key.clone(), entry);
        if wait_for > 0 {
            self.work.notify_one();
        }
        let place = Place { registry: Arc::clone(self), key: key.clone(), seat };
        Ok(Entered { place, session, is_present, wait_for })
    }

    /// Frees a place, if it is still this one's, and parks the session.
    fn vacate(&self, key: &Key, seat: &Arc<Seat>, mut session: Option<Box<Session>>) {
        let mut table = self.table();
        let is_ours = |entry: &Entry| entry.seat.as_ref().is_some_and(|known| Arc::ptr_eq(known, seat));
        if !table.clients.get(key).is_some_and(is_ours) {
            return;
        }
        let mut entry = table.clients.remove(key).unwrap_or_default();
        entry.seat = None;
        entry.parked_at = Some(clock::instant());
        if let Some(session) = &mut session {
            session.outbound.rest();
            if let Some(row) = &mut entry.row {
                row.expiry = session.expiry;
                row.positions = session.outbound.positions();
                table.changed.insert(key.clone());
            }
        }
        if entry.row.as_ref().is_some_and(|row| row.expiry == 0) {
            entry.row = None;
            table.persistent -= 1;
            table.changed.insert(key.clone());
        }
        if entry.row.is_none() {
            // What ends with the connection leaves no more than what it was not answered, and its will.
            session = session.filter(|session| !session.unanswered.is_empty() || session.will.is_some());
            if let Some(session) = &mut session {
                session.exchanges.clear();
                session.outbound = Outbound::default();
            }
        }
        if entry.row.is_some() || session.is_some() {
            entry.parked = session;
            table.clients.insert(key.clone(), entry);
        }
        drop(table);
        seat.has_left.send_replace(true);
    }

    fn change_row(&self, key: &Key, is_urgent: bool, change: impl FnOnce(&mut Row)) -> u64 {
        let mut table = self.table();
        let Some(row) = table.clients.get_mut(key).and_then(|entry| entry.row.as_mut()) else { return 0 };
        change(row);
        table.changed.insert(key.clone());
        if !is_urgent {
            return 0;
        }
        table.wanted += 1;
        self.work.notify_one();
        table.wanted
    }

    /// To be held from before a QoS 2 publish is handed in until it is remembered.
    pub fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a QoS 2 publish of a persistent session.
    pub fn hold(&self, key: &Key, packet_id: u16, taken: Taken) {
        self.change_row(key, false, |row| {
            row.exchanges.insert(packet_id, Some(taken));
        });
    }

    /// Ends a QoS 2 exchange; what is returned has to be written before PUBCOMP may leave.
    pub fn release(&self, key: &Key, packet_id: u16) -> u64 {
        self.change_row(key, true, |row| {
            row.exchanges.remove(&packet_id);
        })
    }

    /// Notes the subscriptions; what is returned has to be written before SUBACK may leave.
    pub fn subscribe(&self, key: &Key, outbound: &Outbound) -> u64 {
        self.change_row(key, true, |row| {
            row.subscriptions = outbound.subscriptions();
            row.positions = outbound.positions();
        })
    }

    /// Notes, some time, how far the client has got.
    pub fn note_positions(&self, key: &Key, positions: Vec<(String, u64)>) {
        self.change_row(key, false, |row| row.positions = positions);
    }

    /// Says what has been written.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Forgets sessions that have expired, and hands out the wills that are due, each with its client.
    pub fn sweep(&self, now: Instant, source: &str) -> Vec<(Key, Will)> {
        let mut table = self.table();
        let mut due = Vec::new();
        let mut gone = Vec::new();
        for (key, entry) in &mut table.clients {
            if entry.seat.is_some() || !key.strip_prefix(source).is_some_and(|rest| rest.starts_with('/')) {
                continue;
            }
            let parked_for = entry.parked_at.map_or(Duration::ZERO, |at| now.duration_since(at));
            if let Some(parked) = &mut entry.parked
                && parked.will.as_ref().is_some_and(|will| parked_for >= will.delay)
            {
                due.extend(parked.will.take().map(|will| (key.clone(), will)));
            }
            let has_will = entry.parked.as_ref().is_some_and(|parked| parked.will.is_some());
            let is_over = match &entry.row {
                Some(row) => row.expiry != NEVER && parked_for >= Duration::from_secs(row.expiry.into()),
                None => parked_for >= REDELIVERY_FOR,
            };
            if is_over && !has_will {
                gone.push(key.clone());
            }
        }
        for key in gone {
            if table.clients.remove(&key).is_some_and(|entry| entry.row.is_some()) {
                table.persistent -= 1;
                table.changed.insert(key);
            }
        }
        due
    }

    /// How many persistent sessions there are.
    pub fn persistent(&self) -> usize {
        self.table().persistent
    }

    /// Writes what is to be written, and ends.
    pub fn close(&self) {
        self.table().is_closing = true;
        self.work.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of sessions panicked; what was answered is on the disk");
        }
    }
}

impl Row {
    fn session(&self) -> Session {
        let exchanges =
            self.exchanges.iter().map(|(id, taken)| (*id, Exchange { taken: *taken, connection: 0 })).collect();
        Session {
            user: self.user.clone(),
            number: self.number,
            expiry: self.expiry,
            exchanges,
            outbound: Outbound::restore(&self.subscriptions, &self.positions),
            ..Session::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Config, RealDisk, Seal};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_connection_that_ends_half_way_frees_its_place_and_keeps_the_session() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let config = Config::of_notes(folder.path().join("journal"));
        let seal = Seal { format: 1, environment: "test".into() };
        let journal = Arc::new(Journal::open(&config, &seal, Arc::new(RealDisk)).expect("opens"));
        let registry = Registry::open(journal).expect("opens");
        let wish = |expiry| Wish { user: "", is_clean: false, expiry, sessions_max: 10 };
        let key = "devices/press".to_owned();
        for (expiry, is_present) in [(0, false), (0, false), (60, false), (60, true), (60, true)] {
            let began = clock::instant();
            let entered = registry.enter(&key, wish(expiry)).await.expect("a place");
            assert_eq!(entered.is_present, is_present);
            assert!(clock::instant().duration_since(began) < LEAVE_WAIT_MAX / 2, "nobody is waited for");
            // Never left: the task was cancelled, or panicked.
            drop(entered);
        }
        assert_eq!(registry.persistent(), 1);
        registry.close();
    }
}
