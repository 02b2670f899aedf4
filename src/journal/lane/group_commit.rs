//! Group commit: the queue of a lane, in which the next batch gathers while the writer commits the one before.
//!
//! Promise: a batch never exceeds its bound, except for one event that alone is larger; a producer that finds no room
//! is woken when there is some.

use super::dedupe_window::DurableCopy;
use crate::event::Record;
use crate::journal::store::block;
use crate::journal::store::fingerprint::Fingerprint;
use crate::journal::store::segment::Synced;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::Notify;

/// Proof that the journal holds an event, after fsync.
#[derive(Debug)]
#[must_use = "an acknowledgement needs a receipt"]
pub struct Receipt(());

/// A batch of this size fills some blocks and is committed at once, without linger.
const CUT_BYTES: usize = 256 << 10;
/// Largest size of the batch that gathers in a lane during a commit.
const GATHER_BYTES_MAX: usize = 2 << 20;

/// One event of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchEntry {
    /// End of its record in the bytes of the batch.
    pub end: usize,
    pub publication: u32,
    /// Fingerprint, and how long repeats are recognised.
    pub repeats: Option<(Fingerprint, Duration)>,
}

/// Proof that every event of a batch is on disk; receipts are issued only with it.
#[derive(Debug)]
#[must_use = "a batch without its proof gets no receipts"]
pub(crate) struct BatchDurable(());

impl BatchDurable {
    /// A commit wrote the batch. A repeat in it repeats an event of the same batch, or one that was on disk before.
    pub(crate) fn committed(_: Synced) -> Self {
        Self(())
    }

    /// The batch needed no commit: every event in it repeats one on disk. `None` if one does not.
    pub(crate) fn repeated(entries: usize, copies: &[DurableCopy]) -> Option<Self> {
        (copies.len() == entries).then_some(Self(()))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Number of the batch, counting from 1.
    pub number: u64,
    /// Encoded records, each with a length prefix.
    pub bytes: Vec<u8>,
    /// One entry for each record.
    pub entries: Vec<BatchEntry>,
    waiters: Vec<Arc<Notify>>,
}

/// The queue of a lane: producers put events in, and the writer takes them out in batches.
#[derive(Debug)]
pub(crate) struct CommitQueue {
    state: Mutex<QueueState>,
    work: Condvar,
    /// Wakes producers that found no room.
    room: Notify,
    /// Number of the newest durable batch.
    durable: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug)]
struct QueueState {
    batch: Batch,
    closing: bool,
    /// Commands for the writer; none is there twice, so that their number is bounded by that of dropped destinations.
    commands: Vec<Command>,
}

/// A message to the writer of a lane.
#[derive(Debug)]
pub(crate) enum Command {
    /// Write changed cursors soon, without waiting for the next commit.
    WriteCursors,
    /// Begin a new segment: a reader found damage in the active one.
    Rotate,
    /// Reclaim or shed a segment: another lane needs disk space.
    Reclaim,
    /// Remove the cursor of a dropped destination from the log; then drop `done`.
    ForgetDestination {
        destination: String,
        /// Its receiver waits for the removal.
        done: mpsc::Sender<()>,
    },
    /// Stop the retries of a batch on a failing disk.
    StopRetries,
}

/// The place of an event that is not yet durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub(super) u64);

/// A producer that submits events and waits for their receipts: a connection or a source.
///
/// Each batch with at least one of its events wakes it once.
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
    /// Waits until a batch with one of its events became durable since the last call. Cancel-safe.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    /// A handle to wait on while the waiter itself is borrowed.
    pub fn bell(&self) -> WaiterHandle {
        WaiterHandle(Arc::clone(&self.notify))
    }

    /// Registers for batch `number` of lane `lane`; returns whether it was not registered yet.
    fn register(&mut self, lane: usize, number: u64) -> bool {
        if self.registered.len() <= lane {
            self.registered.resize(lane + 1, 0);
        }
        std::mem::replace(&mut self.registered[lane], number) != number
    }
}

/// A handle that is notified together with its waiter.
#[derive(Clone, Debug)]
pub struct WaiterHandle(Arc<Notify>);

impl WaiterHandle {
    /// Waits until a batch with an event of the waiter became durable since the last call. Cancel-safe.
    pub async fn rung(&self) {
        self.0.notified().await;
    }

    /// Number that identifies the waiter as long as one of its handles exists.
    pub fn waiter(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Whether the waiter is dropped.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Wakes the waiter, for a receipt that depends on more than a batch.
    pub fn ring(&self) {
        self.0.notify_one();
    }
}

/// Why the queue did not accept an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// The batch is full: wait for room and try again.
    NoRoom,
    Closed,
}

#[derive(Debug)]
pub(crate) enum WriterWork {
    /// A batch to commit; the next one gathers meanwhile.
    Batch(Batch),
    /// No event arrived within the timeout, or a command did.
    Idle,
    /// The journal closes and no event is left.
    Close,
}

impl CommitQueue {
    /// Creates an empty queue, whose first batch has number 1.
    pub(crate) fn new() -> Self {
        let batch = Batch { number: 1, ..Batch::default() };
        Self {
            state: Mutex::new(QueueState { batch, closing: false, commands: Vec::new() }),
            work: Condvar::new(),
            room: Notify::new(),
            durable: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    /// Adds an event. `lane` is the index of the lane for the waiter; a batch of [`CUT_BYTES`] wakes the writer
    /// before the linger is over.
    pub(crate) fn put(
        &self,
        record: &Record<'_>,
        repeats: Option<(Fingerprint, Duration)>,
        waiter: &mut Waiter,
        lane: usize,
    ) -> Result<Ticket, SubmitError> {
        let mut state = self.lock();
        if state.closing {
            return Err(SubmitError::Closed);
        }
        let batch = &mut state.batch;
        let before = batch.bytes.len();
        let wanted = record.payload.len() + record.key.len() + record.origin.len() + 128;
        if before > 0 && before + wanted > GATHER_BYTES_MAX {
            return Err(SubmitError::NoRoom);
        }
        block::append_record(&mut batch.bytes, record);
        batch.entries.push(BatchEntry { end: batch.bytes.len(), publication: record.publication, repeats });
        if waiter.register(lane, batch.number) {
            batch.waiters.push(Arc::clone(&waiter.notify));
        }
        let ticket = Ticket(batch.number);
        let wakes = before == 0 || (before < CUT_BYTES && batch.bytes.len() >= CUT_BYTES);
        drop(state);
        if wakes {
            self.work.notify_one();
        }
        Ok(ticket)
    }

    /// Waits until there may be room again. Cancel-safe.
    pub(crate) async fn room(&self) {
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

    /// The receipt of a ticket, if its batch is durable.
    pub(crate) fn receipt(&self, ticket: Ticket) -> Option<Receipt> {
        (self.durable.load(Ordering::Acquire) >= ticket.0).then_some(Receipt(()))
    }

    /// Whether the journal is closed: a ticket without a receipt never gets one.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits for a batch; `spare` is reused for the next one. `hold` returns how long the batch may still
    /// gather, unless it reaches [`CUT_BYTES`].
    pub(crate) fn take(&self, spare: Batch, idle_after: Duration, hold: impl Fn() -> Duration) -> WriterWork {
        let mut state = self.lock();
        while state.batch.entries.is_empty() {
            if state.closing {
                return WriterWork::Close;
            }
            if !state.commands.is_empty() {
                return WriterWork::Idle;
            }
            let timeout = self.work.wait_for(&mut state, idle_after);
            if timeout.timed_out() && state.batch.entries.is_empty() && !state.closing {
                return WriterWork::Idle;
            }
        }
        loop {
            let wait = hold();
            if wait.is_zero() || state.closing || state.batch.bytes.len() >= CUT_BYTES {
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

    /// Returns the current batch, if it has events, without waiting; for a writer that a test steps.
    #[cfg(test)]
    pub fn poll(&self, spare: Batch) -> WriterWork {
        let mut state = self.lock();
        if state.batch.entries.is_empty() {
            return if state.closing { WriterWork::Close } else { WriterWork::Idle };
        }
        let number = state.batch.number + 1;
        let taken = std::mem::replace(&mut state.batch, Batch { number, ..spare });
        drop(state);
        self.room.notify_waiters();
        WriterWork::Batch(taken)
    }

    /// Issues the receipts of a durable batch, wakes its waiters, and empties the batch for reuse.
    pub(crate) fn done(&self, batch: &mut Batch, _proof: BatchDurable) {
        self.durable.store(batch.number, Ordering::Release);
        for waiter in batch.waiters.drain(..) {
            waiter.notify_one();
        }
        batch.entries.clear();
        batch.bytes.clear();
        // Memory of a burst is released.
        batch.bytes.shrink_to(GATHER_BYTES_MAX / 4);
    }

    /// Sends a command to the writer and wakes it.
    pub(crate) fn send(&self, command: Command) {
        let mut state = self.lock();
        let is_same = |other: &Command| std::mem::discriminant(other) == std::mem::discriminant(&command);
        if matches!(command, Command::ForgetDestination { .. }) || !state.commands.iter().any(is_same) {
            state.commands.push(command);
        }
        drop(state);
        self.work.notify_one();
    }

    /// Takes the commands that have arrived.
    pub(crate) fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut self.lock().commands)
    }

    /// Waits for `wait`; returns `true` at once after [`Command::StopRetries`].
    pub(crate) fn pause(&self, wait: Duration) -> bool {
        let is_stopped =
            |state: &QueueState| state.commands.iter().any(|command| matches!(command, Command::StopRetries));
        let mut state = self.lock();
        self.work.wait_while_for(&mut state, |state| !is_stopped(state), wait);
        is_stopped(&state)
    }

    /// Accepts no more events; the writer commits those that are queued.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
        self.room.notify_waiters();
    }

    /// Marks the writer as ended, and wakes everybody who still waits.
    pub(crate) fn mark_closed(&self) {
        self.closed.store(true, Ordering::Release);
        for waiter in self.lock().batch.waiters.drain(..) {
            waiter.notify_one();
        }
        self.room.notify_waiters();
    }
}
