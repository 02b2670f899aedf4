//! One lane of the journal: its commit queue and its log.
//!
//! Promise: an event whose ticket became a receipt is on disk.
//! Not here: the thread that writes the log (`writer`), the content of the log (`log`), recovery at a start (`recovery`).

use super::age_scan::Ages;
use super::condition::Condition;
use super::config::{Full, LaneConfig};
use super::core::Core;
use super::group_commit::{Command, CommitQueue, Receipt, SubmitError, Ticket, Waiter};
use super::heartbeat::Heartbeat;
use super::lane_stats::LaneStats;
use super::log::{LaneLog, LogContent};
use crate::api::LaneStatus;
use crate::event::Record;
use crate::journal::store::disk::Identity;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A segment is closed at this size, or at a sixteenth of the budget of its lane if that is less.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// The status reports a writer that is busy with one piece of work for longer than this.
const COMMIT_SHOWN_AFTER: Duration = Duration::from_secs(10);

/// One lane: its log and the queue of events to be committed.
#[derive(Debug)]
pub struct Lane {
    pub stats: LaneStats,
    log: Arc<LaneLog>,
    /// Index among the lanes of the journal.
    index: usize,
    pub(super) settings: ArcSwap<LaneConfig>,
    /// Identity of the folder when the journal was opened.
    identity: Identity,
    pub(super) queue: Arc<CommitQueue>,
    pub(super) core: Arc<Core>,
    condition: Mutex<Condition>,
    pub(super) ages: Mutex<Ages>,
    /// Held while segments are removed, by the writer of this lane or of another.
    pub(super) retention_lock: Mutex<()>,
    /// Liveness of the writer thread.
    pub(super) heartbeat: Heartbeat,
}

/// A lane is read like its log.
impl Deref for Lane {
    type Target = LaneLog;

    fn deref(&self) -> &LaneLog {
        &self.log
    }
}

impl Lane {
    pub(super) fn new(
        core: &Arc<Core>,
        index: usize,
        config: &LaneConfig,
        identity: Identity,
        content: LogContent,
    ) -> Self {
        let queue = Arc::new(CommitQueue::new());
        let (cache, publications) = (Arc::clone(&core.segments), Arc::clone(&core.publications));
        Self {
            stats: LaneStats::default(),
            log: Arc::new(LaneLog::new(content, cache, publications, Some(Arc::clone(&queue)), core.tail_bytes)),
            index,
            settings: ArcSwap::from_pointee(config.clone()),
            identity,
            queue,
            core: Arc::clone(core),
            condition: Mutex::new(Condition::Good),
            ages: Mutex::default(),
            retention_lock: Mutex::default(),
            heartbeat: Heartbeat::default(),
        }
    }

    /// The log of the lane.
    pub fn log(&self) -> &Arc<LaneLog> {
        &self.log
    }

    /// Whether the lane is no longer configured: its events are still delivered, and it accepts no new ones.
    pub fn is_retired(&self) -> bool {
        self.settings.load().is_retired
    }

    /// Returns an error text if the folder of the journal or lane is not the one that was opened: the next start would
    /// not find events that are written now.
    pub(super) fn misplaced_folder(&self) -> Option<String> {
        let core = &self.core;
        let is_same = |folder: &Path, opened| core.disk.identity(folder).is_ok_and(|found| found == opened);
        let expected = [(core.folder.as_path(), core.identity), (self.folder(), self.identity)];
        let (folder, _) = expected.into_iter().find(|(folder, opened)| !is_same(folder, *opened))?;
        Some(format!(
            "{} is not the folder that was opened: it was moved or replaced; put it back, or restart the gateway",
            folder.display()
        ))
    }

    /// Queues an event for the next commit. When the event is durable, the ticket becomes a receipt and `waiter` is woken.
    ///
    /// With `dedupe`, a repeat of an event that is on disk and was stored within that time is not stored again; it gets
    /// the receipt of the first copy. A repeat has the same source, device, id, stream, key and payload. An event that
    /// shares only source, device and id is stored under a minted id. An event with an id minted by the
    /// gateway is never a repeat.
    pub fn submit(
        &self,
        record: &Record<'_>,
        dedupe: Option<Duration>,
        waiter: &mut Waiter,
    ) -> Result<Ticket, SubmitError> {
        let repeats = dedupe.and_then(|reach| Some((self.core.fingerprint(record)?, reach)));
        self.queue.put(record, repeats, waiter, self.index)
    }

    /// The receipt of a ticket, if its event is durable.
    pub fn receipt(&self, ticket: Ticket) -> Option<Receipt> {
        self.queue.receipt(ticket)
    }

    /// Waits until there may be room for another event. Cancel-safe.
    pub async fn room(&self) {
        self.queue.room().await;
    }

    /// Whether the journal is closed: a ticket without a receipt never gets one.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Stores an event and waits until it is durable.
    pub async fn append(&self, record: &Record<'_>) -> Result<Receipt, SubmitError> {
        let mut waiter = Waiter::default();
        let ticket = self.submit_when_room(record, &mut waiter).await?;
        self.await_receipt(ticket, &waiter).await
    }

    /// Queues an event as soon as there is room. Fails only with [`SubmitError::Closed`].
    pub async fn submit_when_room(&self, record: &Record<'_>, waiter: &mut Waiter) -> Result<Ticket, SubmitError> {
        loop {
            match self.submit(record, None, waiter) {
                Err(SubmitError::NoRoom) => self.room().await,
                submitted => return submitted,
            }
        }
    }

    /// Waits for the receipt of a ticket that was issued to `waiter`. Cancel-safe.
    pub async fn await_receipt(&self, ticket: Ticket, waiter: &Waiter) -> Result<Receipt, SubmitError> {
        loop {
            if let Some(receipt) = self.receipt(ticket) {
                return Ok(receipt);
            }
            if self.is_closed() {
                return Err(SubmitError::Closed);
            }
            waiter.woken().await;
        }
    }

    /// Behaviour when the budget is used up.
    pub fn full(&self) -> Full {
        self.settings.load().full
    }

    /// Largest size of the log in bytes.
    pub fn budget(&self) -> u64 {
        self.settings.load().budget
    }

    /// Bytes of the segments that a destination still needs, budget in bytes, and number of events that a destination
    /// still needs. Without destinations, every event is needed.
    pub fn load(&self) -> (u64, u64, u64) {
        let budget = self.budget();
        let (bytes, events) = self.needed();
        (bytes, budget, events)
    }

    /// Whether the lane accepts events, and if not, why.
    pub fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    pub(super) fn set_condition(&self, condition: Condition) {
        let mut current = self.condition.lock();
        if *current == condition {
            return;
        }
        match &condition {
            Condition::Good => tracing::info!(lane = %self.name, "the lane accepts events again"),
            Condition::Full(reason) => {
                tracing::error!(lane = %self.name, %reason, "the lane is full: the gateway acknowledges none of its events until there is room")
            }
            Condition::Failed(reason) => {
                tracing::error!(lane = %self.name, %reason, "the disk fails: the gateway acknowledges no event of the lane until a commit succeeds")
            }
        }
        *current = condition;
    }

    /// Makes the writer store changed cursors soon, without waiting for the next commit.
    pub fn write_cursors_soon(&self) {
        self.queue.send(Command::WriteCursors);
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES_MAX.min(self.settings.load().budget / 16).max(256 << 10)
    }

    /// Removes the cursor of a destination; drops `done` when the log does not have it any more.
    pub(super) fn forget_destination(&self, destination: &str, done: mpsc::Sender<()>) {
        self.remove_cursor(destination);
        // Blocks of the active segment still hold its cursor.
        self.queue.send(Command::ForgetDestination { destination: destination.to_owned(), done });
    }

    /// Status of the lane at this moment.
    pub fn status(&self) -> LaneStatus {
        let end = self.end();
        let settings = self.settings.load();
        let accepted = |(stream, next): &(u32, u64)| {
            (self.stream_name(*stream), (next - 1).saturating_sub(self.gaps().sequences_of(*stream)))
        };
        LaneStatus {
            name: self.name.clone(),
            accepted: end - 1 - self.gaps().offsets_below(end),
            destinations: self.backlogs(end),
            bytes: self.bytes(),
            budget: settings.budget,
            segments: self.segment_count(),
            problem: match self.condition() {
                Condition::Good => {
                    self.heartbeat.check(&self.name, COMMIT_SHOWN_AFTER).err().map(|why| why.to_string())
                }
                Condition::Full(why) | Condition::Failed(why) => Some(why),
            },
            retired: settings.is_retired,
            streams: self.sequences().iter().map(accepted).collect(),
        }
    }
}
