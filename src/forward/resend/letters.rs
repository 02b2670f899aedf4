//! Reads requeued dead letters, and decides on their status by central's answers.

use crate::api::{DeadLetterState, DeadLetterStatus};
use crate::clock;
use crate::event::{Content, Id, Record, Timestamp};
use crate::forward::outgoing::Outgoing;
use crate::ingest::dead::DeadLetter;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::journal::{Journal, Published};
use crate::link::Rejection;
use crate::runtime::spawn_blocking;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause before a temporarily rejected event is sent again.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct LetterReader {
    journal: Arc<Journal>,
    fates: Arc<DeadLetterStatuses>,
    queue: VecDeque<u64>,
    /// Dead letters to send again only after `backoff_until`: central rejected them temporarily, or
    /// they could not be read.
    backed_off: HashSet<u64>,
    backoff_until: Option<Instant>,
}

/// A dead letter with the record that holds it.
#[derive(Debug)]
pub(super) struct Letter {
    pub id: u64,
    pub content: Arc<DeadLetter<'static>>,
    record: Vec<u8>,
    published: Arc<Published>,
}

impl LetterReader {
    pub(super) fn new(journal: Arc<Journal>, fates: Arc<DeadLetterStatuses>) -> Self {
        Self { journal, fates, queue: VecDeque::new(), backed_off: HashSet::new(), backoff_until: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Ends the pause of deferred dead letters once it is over.
    pub(super) fn end_pause(&mut self, now: Instant) {
        if self.backoff_until.is_some_and(|at| now >= at) {
            self.backed_off.clear();
            self.backoff_until = None;
        }
    }

    /// Loads the dead letters that are requeued for a destination, without those in flight.
    pub(super) fn load(&mut self, destination: &str, in_flight: impl Iterator<Item = u64>) {
        if self.queue.is_empty() {
            let in_flight: HashSet<u64> = in_flight.collect();
            let requeued = self.fates.requeued(destination).into_iter();
            self.queue = requeued.filter(|id| !in_flight.contains(id) && !self.backed_off.contains(id)).collect();
        }
    }

    /// Reads the next dead letter; `None` if it cannot be sent now.
    pub(super) async fn next(&mut self) -> Option<Letter> {
        let id = self.queue.pop_front()?;
        let dead = Arc::clone(self.journal.dead());
        let read = spawn_blocking(move || {
            let mut walk = dead.walk_at(id).ok()??;
            let step = walk.step_to(&dead, id)?;
            let content = DeadLetter::read(&step.record)?;
            let mut record = Vec::new();
            step.record.encode(&mut record);
            Some((Arc::new(content), record))
        });
        // The dead letter may have been removed, the disk may fail, or its publication may be lost.
        let letter = read.await.ok().flatten().and_then(|(content, record)| {
            let published = self.journal.published(Record::decode(&record).ok()?.publication)?;
            Some(Letter { id, content, record, published })
        });
        if letter.is_none() {
            self.back_off(id);
        }
        letter
    }

    /// Defers a dead letter until the end of the current pause.
    pub(super) fn back_off(&mut self, letter: u64) {
        self.backed_off.insert(letter);
        self.backoff_until.get_or_insert(clock::instant() + REFUSED_PAUSE);
    }

    /// Returns the new status of a dead letter after central's answer; `None` if it stays requeued.
    pub(super) fn decide(
        &mut self,
        letter: u64,
        content: &DeadLetter<'_>,
        rejection: Option<Rejection>,
    ) -> Option<DeadLetterStatus> {
        match rejection {
            None => Some(self.status(letter, DeadLetterState::Delivered, String::new())),
            Some(Rejection::Permanent(code, why) | Rejection::Unclear(code, why)) => {
                Some(self.held(letter, content, format!("central refuses it again: 0x{code:02x} {why}")))
            }
            Some(Rejection::Temporary(..)) => {
                self.back_off(letter);
                None
            }
        }
    }

    /// Holds a dead letter that cannot be sent.
    pub(super) async fn hold(&mut self, letter: u64, content: Arc<DeadLetter<'static>>, reason: String) {
        let status = self.held(letter, &content, reason);
        self.save(vec![(letter, content, status)]).await;
    }

    fn held(&self, letter: u64, content: &DeadLetter<'_>, reason: String) -> DeadLetterStatus {
        tracing::warn!(letter, destination = %content.destination, %reason, "central rejected a requeued dead letter; it is held again");
        self.status(letter, DeadLetterState::Held, reason)
    }

    fn status(&self, letter: u64, state: DeadLetterState, reason: String) -> DeadLetterStatus {
        let (at, attempts) = (Timestamp::from(clock::wall()), self.fates.of(letter).attempts + 1);
        DeadLetterStatus { state, at, attempts, reason, ..DeadLetterStatus::default() }
    }

    /// Saves the outcome of dead letters.
    pub(super) async fn save(&self, decided: Vec<(u64, Arc<DeadLetter<'static>>, DeadLetterStatus)>) {
        if decided.is_empty() {
            return;
        }
        let fates = Arc::clone(&self.fates);
        let put = spawn_blocking(move || {
            let list: Vec<_> = decided.iter().map(|(id, letter, status)| (*id, &**letter, status.clone())).collect();
            fates.put(&list)
        });
        if let Ok(Err(error)) = put.await {
            // The letters are still requeued.
            tracing::warn!(%error, "cannot save the outcome of requeued dead letters; will send them again");
        }
    }
}

impl Letter {
    /// The event of the dead letter; `None` if its record cannot be read.
    pub(super) fn outgoing(&self) -> Option<Outgoing<'_>> {
        let record = Record::decode(&self.record).ok()?;
        let letter = &self.content;
        let event = Record {
            publication: record.publication,
            id: Id::Text(&letter.event_id),
            time: letter.time,
            origin: &letter.origin,
            key: &letter.key,
            content: if letter.is_opaque { Content::Bytes } else { Content::Json },
            attributes: record.attributes.clone(),
            payload: &letter.payload,
        };
        let recorded = letter.taken.unwrap_or(letter.time);
        let (published, sequence) = (&self.published, letter.sequence);
        Some(Outgoing { offset: self.id, record: event, published, sequence, recorded, mark: None })
    }
}
