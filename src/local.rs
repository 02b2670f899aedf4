//! Local: what subscribers on the gateway are told of the plant's own events.
//!
//! Promise: a subscriber reads from the journal at its own pace, with the WAN up or down; it slows
//! nobody, and it never holds back what retention removes.
//! Invariant: the topics and bytes are those that central gets.
//!
//! Not here: who is connected and subscribed (`sources`), where events go beyond the plant (`forward`).

mod attention;
mod feed;
mod filter;
mod last;
mod tree;

pub use attention::{Attention, Reach};
pub use feed::{Enough, Event, Feed, Gap, Passing, Place};
pub use filter::{Filter, split_share};
pub use last::LastValue;

use crate::clock;
use crate::journal::{Journal, JournalError, Lane, Note, Notes};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use attention::Attentions;
use last::LastValues;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Notes are written when so many events have passed since the last time, so that a start after a
/// crash looks at no more than these again.
const NOTE_AFTER_EVENTS: u64 = 200_000;
/// Or after so long, if anything changed.
const NOTE_AFTER: Duration = Duration::from_secs(60);
/// Name of the note that says up to where the last values are noted.
const FROM: &str = "from";

/// The last values, and the feeds of those who want to be told more.
#[derive(Debug)]
pub struct Local {
    journal: Arc<Journal>,
    notes: Notes,
    last: Mutex<LastValues>,
    /// Up to where the last values have followed each lane.
    followed: Mutex<HashMap<String, u64>>,
    /// Those who wait for events of a filter.
    attentions: Arc<Attentions>,
    /// Says that the last values have followed further.
    progress: watch::Sender<()>,
}

impl Local {
    /// Reads what was noted; `last_values_bytes` bounds the last values. Blocks the thread.
    pub fn open(journal: Arc<Journal>, last_values_bytes: usize) -> Result<Self, JournalError> {
        let (lanes, ends) =
            journal.lanes().iter().map(|lane| (lane.name.clone(), lane.end())).unzip::<_, _, _, Vec<_>>();
        let mut last = LastValues::new(last_values_bytes, lanes);
        let notes = journal.notes("local");
        last.restore(notes.all(last::PREFIX)?, &ends);
        let noted = notes.read(FROM)?;
        let followed: Option<HashMap<String, u64>> = noted.and_then(|bytes| postcard::from_bytes(&bytes).ok());
        let recent = |lane: &Arc<Lane>| (lane.name.clone(), lane.end().saturating_sub(NOTE_AFTER_EVENTS));
        let followed = match followed {
            Some(followed) => followed,
            None => {
                let recent: HashMap<String, u64> = journal.lanes().iter().map(recent).collect();
                // From now on a start after a crash knows where to begin.
                if let Err(error) = notes.write(vec![(FROM.into(), postcard::to_stdvec(&recent).ok())]) {
                    tracing::warn!(%error, "the last values cannot be noted; after a crash they are known only from then on");
                }
                recent
            }
        };
        let mut followed = followed;
        let attentions = Arc::<Attentions>::default();
        for (index, lane) in journal.lanes().iter().enumerate() {
            // A lane that is new begins now, for whoever waits in it as for the last values.
            let next = *followed.entry(lane.name.clone()).or_insert_with(|| lane.end());
            attentions.follow().reached(index, next);
        }
        Ok(Self {
            journal,
            notes,
            last: Mutex::new(last),
            followed: Mutex::new(followed),
            attentions,
            progress: watch::channel(()).0,
        })
    }

    fn last(&self) -> MutexGuard<'_, LastValues> {
        self.last.lock()
    }

    /// The journal that it follows.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Last values whose topic `wanted` takes.
    pub fn last_values(&self, wanted: impl Fn(&str) -> bool) -> Vec<(Arc<str>, Arc<LastValue>)> {
        self.last().matching(wanted)
    }

    /// Returns when the last values are those of everything that is on the disk at the call, or the
    /// gateway stops. Safe to drop half-way.
    pub async fn caught_up(&self) {
        let mut progress = self.progress.subscribe();
        let ends: Vec<(String, u64)> =
            self.journal.lanes().iter().map(|lane| (lane.name.clone(), lane.end())).collect();
        let is_there = || {
            let followed = self.followed.lock();
            ends.iter().all(|(lane, end)| followed.get(lane).is_some_and(|at| at >= end))
        };
        while !is_there() {
            if self.journal.dead().is_closed() || progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// A feed of what the last values do not tell yet.
    pub fn feed(&self) -> Feed {
        let followed = self.followed.lock();
        Feed::new(&self.journal, |lane| followed.get(&lane.name).copied())
    }

    /// A feed that begins at these offsets of the lanes, where they are known.
    pub fn feed_from(&self, from: impl Fn(&str) -> Option<u64>) -> Feed {
        Feed::new(&self.journal, |lane| from(&lane.name))
    }

    /// Waits for events of a filter behind what a feed has looked at.
    pub fn attend(&self, filter: &Filter, feed: &Feed) -> Attention {
        let from: Vec<u64> = feed.positions().map(|(_, next)| next).collect();
        self.attentions.attend(filter, &from)
    }

    /// Follows the journal and keeps the last values, until the shutdown.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        let mut feed = self.feed();
        let mut noted = (clock::instant(), position(&feed));
        loop {
            let wait = NOTE_AFTER.saturating_sub(clock::instant().duration_since(noted.0));
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
            let passed = now.saturating_sub(noted.1);
            if passed >= NOTE_AFTER_EVENTS || clock::instant().duration_since(noted.0) >= NOTE_AFTER {
                if passed > 0 {
                    self.write_notes(from(&feed)).await;
                }
                noted = (clock::instant(), now);
            }
        }
        self.write_notes(from(&feed)).await;
    }

    fn follow(&self, feed: &mut Feed) {
        let mut topic = Vec::new();
        let mut last = self.last();
        let mut attentive = self.attentions.follow();
        feed.look(|passing| {
            topic.clear();
            passing.published.renderer.push_topic(passing.record, &mut topic);
            if let Ok(topic) = std::str::from_utf8(&topic) {
                last.note(topic, &passing);
                attentive.note(passing.place.lane, passing.place.offset, topic);
            }
            Enough::No
        });
        feed.positions().enumerate().for_each(|(lane, (_, next))| attentive.reached(lane, next));
        drop(attentive);
        // Under the same lock: who asks for last values and then for a feed misses nothing.
        let mut followed = self.followed.lock();
        for (lane, next) in feed.positions() {
            match followed.get_mut(lane) {
                Some(known) => *known = next,
                None => drop(followed.insert(lane.to_owned(), next)),
            }
        }
        drop(followed);
        self.progress.send_replace(());
    }

    async fn write_notes(&self, from: Option<Vec<u8>>) {
        let mut notes: Vec<Note> = self.last().take_changes();
        notes.push((FROM.into(), from));
        let ours = self.notes.clone();
        let written = spawn_blocking(move || ours.write(notes)).await;
        self.last().written(matches!(written, Ok(Ok(()))));
        if let Ok(Err(error)) = written {
            // Until a write succeeds, a later start only takes longer to know the last values.
            tracing::warn!(%error, "the last values cannot be noted");
        }
    }
}

/// What is noted of how far the last values have followed.
fn from(feed: &Feed) -> Option<Vec<u8>> {
    let from: HashMap<&str, u64> = feed.positions().collect();
    postcard::to_stdvec(&from).ok()
}

fn position(feed: &Feed) -> u64 {
    feed.positions().map(|(_, next)| next).sum()
}
