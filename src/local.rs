//! Local: delivers the events of the plant to subscribers on the gateway: last values and feeds of the journal.
//!
//! Promise: a subscriber reads from the journal at its own pace, with the WAN up or down; it slows nobody down and never
//! delays retention.
//! Invariant: subscribers receive the same topics and bytes as central.
//!
//! Not here: sessions and subscriptions (`sources`), delivery to central systems (`forward`).

mod feed;
mod last;
mod tree;
mod waiters;

pub use feed::{Enough, Event, EventRef, Feed, Gap, JournalPosition};
pub use last::LastValue;
pub use waiters::{FilterWaiter, MatchRange};

use crate::clock;
pub use crate::journal::Published;
use crate::journal::{Journal, JournalError, Lane, Note, Notes};
use crate::mqtt::Filter;
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use last::LastValues;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use waiters::FilterWaiters;

/// The last values are saved after this number of events; a start after a crash reads at most these events again.
const SAVE_AFTER_EVENTS: u64 = 200_000;
/// Longest time between two saves if a value has changed.
const SAVE_AFTER: Duration = Duration::from_secs(60);
/// Name of the note that holds, for each lane, the offset up to which the last values are saved.
const POSITIONS: &str = "from";

/// The last values, the feeds of the journal, and the wake-ups of waiting subscribers.
#[derive(Debug)]
pub struct Local {
    journal: Arc<Journal>,
    notes: Notes,
    last: Mutex<LastValues>,
    /// For each lane, the offset up to which the last values are up to date.
    processed: Mutex<HashMap<String, u64>>,
    /// The readers that wait for events of a filter.
    waiters: Arc<FilterWaiters>,
    /// Signals that `processed` has changed.
    progress: watch::Sender<()>,
}

impl Local {
    /// Loads the saved last values; `last_values_bytes` bounds their memory. Blocks the thread.
    pub fn open(journal: Arc<Journal>, last_values_bytes: usize) -> Result<Self, JournalError> {
        let (lanes, ends) =
            journal.lanes().iter().map(|lane| (lane.name.clone(), lane.end())).unzip::<_, _, _, Vec<_>>();
        let mut last = LastValues::new(last_values_bytes, lanes);
        let notes = journal.notes("local");
        last.restore(notes.all(last::PREFIX)?, &ends);
        let saved = notes.read(POSITIONS)?;
        let processed: Option<HashMap<String, u64>> = saved.and_then(|bytes| postcard::from_bytes(&bytes).ok());
        let recent = |lane: &Arc<Lane>| (lane.name.clone(), lane.end().saturating_sub(SAVE_AFTER_EVENTS));
        let processed = match processed {
            Some(processed) => processed,
            None => {
                let recent: HashMap<String, u64> = journal.lanes().iter().map(recent).collect();
                // With this note, a start after a crash begins here.
                if let Err(error) = notes.write(vec![(POSITIONS.into(), postcard::to_stdvec(&recent).ok())]) {
                    tracing::warn!(%error, "cannot save the last values; after a crash, those from before are missing");
                }
                recent
            }
        };
        let mut processed = processed;
        let waiters = Arc::<FilterWaiters>::default();
        for (index, lane) in journal.lanes().iter().enumerate() {
            // A new lane begins at its end, for waiting readers and for the last values.
            let next = *processed.entry(lane.name.clone()).or_insert_with(|| lane.end());
            waiters.matcher().advance(index, next);
        }
        Ok(Self {
            journal,
            notes,
            last: Mutex::new(last),
            processed: Mutex::new(processed),
            waiters,
            progress: watch::channel(()).0,
        })
    }

    fn last(&self) -> MutexGuard<'_, LastValues> {
        self.last.lock()
    }

    /// Returns the publication that renders a last value.
    pub fn published(&self, value: &LastValue) -> Option<Arc<Published>> {
        self.journal.published(value.record()?.publication)
    }

    /// Reads the event at a position. Returns `None` if retention has removed it or its segment is damaged.
    pub async fn event_at(&self, place: JournalPosition) -> Option<Event> {
        Event::at(&self.journal, place).await
    }

    /// Returns the last values of all topics for which `wanted` returns `true`.
    pub fn last_values(&self, wanted: impl Fn(&str) -> bool) -> Vec<(Arc<str>, Arc<LastValue>)> {
        self.last().matching(wanted)
    }

    /// Waits until the last values include all events that are durable at the time of the call, or the gateway
    /// stops. Safe to drop half-way.
    pub async fn caught_up(&self) {
        let mut progress = self.progress.subscribe();
        let ends: Vec<(String, u64)> =
            self.journal.lanes().iter().map(|lane| (lane.name.clone(), lane.end())).collect();
        let is_caught_up = || {
            let processed = self.processed.lock();
            ends.iter().all(|(lane, end)| processed.get(lane).is_some_and(|at| at >= end))
        };
        while !is_caught_up() {
            if self.journal.dead().is_closed() || progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// Opens a feed of the events that the last values do not include yet.
    pub fn feed(&self) -> Feed {
        let processed = self.processed.lock();
        Feed::new(&self.journal, |lane| processed.get(&lane.name).copied())
    }

    /// Opens a feed that begins at the offset that `from` returns for a lane, or else at the end of the lane.
    pub fn feed_from(&self, from: impl Fn(&str) -> Option<u64>) -> Feed {
        Feed::new(&self.journal, |lane| from(&lane.name))
    }

    /// Registers a reader that waits for events of `filter` after the position of `feed`.
    pub fn register_waiter(&self, filter: &Filter, feed: &Feed) -> FilterWaiter {
        let from: Vec<u64> = feed.positions().map(|(_, next)| next).collect();
        self.waiters.register(filter, &from)
    }

    /// Reads the journal and updates the last values until shutdown.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        let mut feed = self.feed();
        let mut saved = (clock::instant(), position(&feed));
        loop {
            let wait = SAVE_AFTER.saturating_sub(clock::instant().duration_since(saved.0));
            tokio::select! {
                () = shutdown.begun() => break,
                is_open = feed.ready() => {
                    if !is_open {
                        break;
                    }
                    self.follow(&mut feed);
                }
                () = tokio::time::sleep(wait) => {}
            }
            let now = position(&feed);
            let passed = now.saturating_sub(saved.1);
            if passed >= SAVE_AFTER_EVENTS || clock::instant().duration_since(saved.0) >= SAVE_AFTER {
                if passed > 0 {
                    self.save(encode_positions(&feed)).await;
                }
                saved = (clock::instant(), now);
            }
        }
        self.save(encode_positions(&feed)).await;
    }

    fn follow(&self, feed: &mut Feed) {
        let mut topic = Vec::new();
        let mut last = self.last();
        let mut matcher = self.waiters.matcher();
        feed.look(|event| {
            topic.clear();
            event.published.renderer.push_topic(event.record, &mut topic);
            if let Ok(topic) = std::str::from_utf8(&topic) {
                // A command is no state: a later subscriber must not execute it.
                if !event.published.publication.is_to_devices() {
                    last.update(topic, &event);
                }
                matcher.wake_matching(event.place.lane, event.place.offset, topic);
            }
            Enough::No
        });
        feed.positions().enumerate().for_each(|(lane, (_, next))| matcher.advance(lane, next));
        drop(matcher);
        // Still under the lock of the last values: a subscriber that reads them and then opens a feed misses no event.
        let mut processed = self.processed.lock();
        for (lane, next) in feed.positions() {
            match processed.get_mut(lane) {
                Some(known) => *known = next,
                None => drop(processed.insert(lane.to_owned(), next)),
            }
        }
        drop(processed);
        self.progress.send_replace(());
    }

    async fn save(&self, from: Option<Vec<u8>>) {
        let mut notes: Vec<Note> = self.last().take_changes();
        notes.push((POSITIONS.into(), from));
        let ours = self.notes.clone();
        let written = spawn_blocking(move || ours.write(notes)).await;
        self.last().written(matches!(written, Ok(Ok(()))));
        if let Ok(Err(error)) = written {
            // Only the next start takes longer: it reads more events again.
            tracing::warn!(%error, "cannot save the last values, will retry");
        }
    }
}

/// Encodes the positions of a feed for the note [`POSITIONS`].
fn encode_positions(feed: &Feed) -> Option<Vec<u8>> {
    let from: HashMap<&str, u64> = feed.positions().collect();
    postcard::to_stdvec(&from).ok()
}

fn position(feed: &Feed) -> u64 {
    feed.positions().map(|(_, next)| next).sum()
}
