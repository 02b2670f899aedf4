//! The batch that gathers while the one before it is on its way to the disk.
//!
//! Promise: a batch never holds more than its bound, except for one event that alone is larger;
//! whoever finds no room is told when there is some.

use super::dedupe_window::{DurableCopy, Fingerprint};
use super::segment::Synced;
use super::{Receipt, block};
use crate::event::Record;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Bytes that may gather in one lane while a commit is under way.
const GATHER_BYTES_MAX: usize = 2 << 20;

/// One event of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchEntry {
    /// Where its record ends in the batch's bytes.
    pub end: usize,
    /// Its publication.
    pub publication: u32,
    /// What repeats of it are known by, and for how long.
    pub repeats: Option<(Fingerprint, Duration)>,
}

/// Proof that every event of a batch is on disk: its receipts need it.
#[derive(Debug)]
#[must_use = "a batch without its proof gets no receipts"]
pub struct BatchDurable(());

impl BatchDurable {
    /// A commit wrote what the batch holds. Repeats in it are of events of the same batch, or were on disk before.
    pub fn committed(_: Synced) -> Self {
        Self(())
    }

    /// Nothing of the batch had to be written: every event in it repeats one that is on disk. `None` if one does not.
    pub fn repeated(entries: usize, copies: &[DurableCopy]) -> Option<Self> {
        (copies.len() == entries).then_some(Self(()))
    }
}

/// Events on their way into one commit.
#[derive(Debug, Default)]
pub struct Batch {
    /// Number of the batch; they count up from 1.
    pub number: u64,
    /// The records, each behind its length.
    pub bytes: Vec<u8>,
    /// One for each record.
    pub entries: Vec<BatchEntry>,
    waiters: Vec<Arc<Notify>>,
}

/// The door of a lane: events go in, and the writer takes them out in batches.
#[derive(Debug)]
pub struct CommitQueue {
    state: Mutex<QueueState>,
    /// The writer waits here.
    work: Condvar,
    /// Those who found no room wait here.
    room: Notify,
    /// The newest batch that is on the disk.
    durable: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug)]
struct QueueState {
    batch: Batch,
    closing: bool,
    nudged: bool,
}

/// A place in a batch that is not yet on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub(super) u64);

/// One who hands in events and waits for receipts: a connection, a source.
///
/// Each batch that holds one of its events wakes it once.
#[derive(Debug)]
pub struct Waiter {
    notify: Arc<Notify>,
    registered: Vec<u64>,
}

impl Default for Waiter {
    fn default() -> Self {
        Self { notify: Arc::new(Notify::new()), registered: Vec::new() }
    }
}

impl Waiter {
    /// Returns when a batch with one of its events reached the disk since the last call.
    /// Safe to drop half-way.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    /// A handle to wait on while the waiter itself is in use.
    pub fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.notify))
    }

    /// Whether it still has to be woken by batch `number` of lane `lane`.
    fn register(&mut self, lane: usize, number: u64) -> bool {
        if self.registered.len() <= lane {
            self.registered.resize(lane + 1, 0);
        }
        std::mem::replace(&mut self.registered[lane], number) != number
    }
}

/// What rings when a waiter is woken.
#[derive(Clone, Debug)]
pub struct Bell(Arc<Notify>);

impl Bell {
    /// Returns when a batch with an event of the waiter reached the disk since the last call.
    /// Safe to drop half-way.
    pub async fn rung(&self) {
        self.0.notified().await;
    }

    /// A number of its waiter, as long as a bell of it is there.
    pub fn waiter(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Whether its waiter is gone.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Wakes the waiter, for a receipt that hangs on more than a batch.
    pub fn ring(&self) {
        self.0.notify_one();
    }
}

/// Why an event did not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The batch is full: wait for room, and try again.
    NoRoom,
    /// The journal is closing.
    Closed,
}

/// What the writer woke up for.
#[derive(Debug)]
pub enum WriterWork {
    /// A batch, and a fresh one gathers.
    Batch(Batch),
    /// Nothing came in the time given, or somebody nudged.
    Idle,
    /// The journal closes and nothing is left.
    Close,
}

impl CommitQueue {
    /// A door for batches from number `first` on.
    pub fn new() -> Self {
        let batch = Batch { number: 1, ..Batch::default() };
        Self {
            state: Mutex::new(QueueState { batch, closing: false, nudged: false }),
            work: Condvar::new(),
            room: Notify::new(),
            durable: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    /// Puts an event in. `lane` tells the waiter's lanes apart; `cut_bytes` is where a batch is
    /// worth a commit of its own, linger or not.
    pub fn put(
        &self,
        record: &Record<'_>,
        repeats: Option<(Fingerprint, Duration)>,
        waiter: &mut Waiter,
        lane: usize,
        cut_bytes: usize,
    ) -> Result<Ticket, NotTaken> {
        let mut state = self.lock();
        if state.closing {
            return Err(NotTaken::Closed);
        }
        let batch = &mut state.batch;
        let before = batch.bytes.len();
        let wanted = record.payload.len() + record.key.len() + record.origin.len() + 128;
        if before > 0 && before + wanted > GATHER_BYTES_MAX {
            return Err(NotTaken::NoRoom);
        }
        block::append_record(&mut batch.bytes, record);
        batch.entries.push(BatchEntry { end: batch.bytes.len(), publication: record.publication, repeats });
        if waiter.register(lane, batch.number) {
            batch.waiters.push(Arc::clone(&waiter.notify));
        }
        let ticket = Ticket(batch.number);
        let wakes = before == 0 || (before < cut_bytes && batch.bytes.len() >= cut_bytes);
        drop(state);
        if wakes {
            self.work.notify_one();
        }
        Ok(ticket)
    }

    /// Returns when there may be room again. Safe to drop half-way.
    pub async fn room(&self) {
        let room = self.room.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        let full = {
            let state = self.lock();
            !state.closing && state.batch.bytes.len() > GATHER_BYTES_MAX / 2
        };
        if full {
            room.await;
        }
    }

    /// The receipt of a ticket, if its batch is on the disk.
    pub fn receipt(&self, ticket: Ticket) -> Option<Receipt> {
        (self.durable.load(Ordering::Acquire) >= ticket.0).then_some(Receipt(()))
    }

    /// Whether the journal is closed: a ticket without a receipt will never get one.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits for a batch; `spare` is used for the next one. With `hold` it waits for that long
    /// after the first event, unless the batch is worth a commit before.
    pub fn take(
        &self,
        spare: Batch,
        idle_after: Duration,
        hold: impl Fn() -> Duration,
        cut_bytes: usize,
    ) -> WriterWork {
        let mut state = self.lock();
        while state.batch.entries.is_empty() {
            if state.closing {
                return WriterWork::Close;
            }
            if std::mem::take(&mut state.nudged) {
                return WriterWork::Idle;
            }
            let timeout = self.work.wait_for(&mut state, idle_after);
            if timeout.timed_out() && state.batch.entries.is_empty() && !state.closing {
                return WriterWork::Idle;
            }
        }
        loop {
            let wait = hold();
            if wait.is_zero() || state.closing || state.batch.bytes.len() >= cut_bytes {
                break;
            }
            self.work.wait_for(&mut state, wait);
        }
        let number = state.batch.number + 1;
        let taken = std::mem::replace(&mut state.batch, Batch { number, ..spare });
        drop(state);
        self.room.notify_waiters();
        WriterWork::Batch(taken)
    }

    /// A batch, if one gathers, without waiting for it or for more; for writers that are stepped.
    #[cfg(test)]
    pub fn poll(&self, spare: Batch) -> WriterWork {
        let mut state = self.lock();
        if state.batch.entries.is_empty() {
            state.nudged = false;
            return if state.closing { WriterWork::Close } else { WriterWork::Idle };
        }
        let number = state.batch.number + 1;
        let taken = std::mem::replace(&mut state.batch, Batch { number, ..spare });
        drop(state);
        self.room.notify_waiters();
        WriterWork::Batch(taken)
    }

    /// Gives receipts for a batch that is on disk, wakes those who wait, and makes the batch reusable.
    pub fn done(&self, batch: &mut Batch, _proof: BatchDurable) {
        self.durable.store(batch.number, Ordering::Release);
        for waiter in batch.waiters.drain(..) {
            waiter.notify_one();
        }
        batch.entries.clear();
        batch.bytes.clear();
        // A burst's memory is not kept.
        batch.bytes.shrink_to(GATHER_BYTES_MAX / 4);
    }

    /// Makes the writer look up from waiting.
    pub fn nudge(&self) {
        self.lock().nudged = true;
        self.work.notify_one();
    }

    /// Lets nothing more in; the writer finishes what is there.
    pub fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
        self.room.notify_waiters();
    }

    /// Says that the writer has ended, and wakes everybody who still waits.
    pub fn mark_closed(&self) {
        self.closed.store(true, Ordering::Release);
        for waiter in self.lock().batch.waiters.drain(..) {
            waiter.notify_one();
        }
        self.room.notify_waiters();
    }
}
