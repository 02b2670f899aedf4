//! The watch: detects business exceptions (late orders, blocked work centers, …) on a schedule, independent of the WAN.
//!
//! Promise: an exception opens once, reports its changes, and closes once, under one id, across crashes and restarts.
//! Each of these transitions is a normal event.
//! Invariants:
//! - the watch makes no calls to Odoo: it evaluates the records that the sources know. So it detects an exception that
//!   only the passing of time causes even while Odoo is unreachable;
//! - the watch saves a transition before it hands in the event, and marks it as done after the receipt. After a crash it
//!   hands in the same event with the same id and bytes, which is recognised as a repeat.
//!
//! Not here: the source of the records (`sources`).

mod config;
mod exception_kind;
mod rules;
mod transitions;

pub use config::{Config, Machines, RuleSetting, STREAMS};

use crate::api::Exception;
use crate::clock;
use crate::contract::{Pointer, Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{Closed, EventMetadata, Ingest, Producer, Route, Submission};
use crate::journal::{JournalError, Notes};
use crate::local::Local;
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use crate::sources::odoo::Mirrors;
use parking_lot::Mutex;
use rules::{Facts, Key, Machine};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use transitions::{TrackedExceptions, Transition};

/// Transitions that wait for their receipts together: one fsync covers all of them.
const TRANSITIONS_AT_ONCE: usize = 200;

/// The open exceptions, for the command socket and metrics.
#[derive(Debug, Default)]
pub struct Board {
    open: Mutex<Vec<Exception>>,
}

impl Board {
    /// Every open exception, the oldest first.
    pub fn exceptions(&self) -> Vec<Exception> {
        self.open.lock().clone()
    }
}

/// Evaluates the rules on a schedule and hands in the events of exceptions.
pub struct Watch {
    config: Config,
    mirrors: Mirrors,
    ingest: Arc<Ingest>,
    local: Arc<Local>,
    notes: Notes,
    board: Arc<Board>,
    tracked: TrackedExceptions,
    /// Time of the first detection of conditions whose beginning the records do not contain.
    first_seen: HashMap<Key, Timestamp>,
    producer: Producer,
}

impl Watch {
    /// Creates a watch over these records and restores its exceptions; it evaluates once it runs. Blocks the thread.
    pub fn open(
        config: Config,
        mirrors: Mirrors,
        ingest: Arc<Ingest>,
        local: Arc<Local>,
        notes: Notes,
    ) -> Result<Self, JournalError> {
        let tracked = TrackedExceptions::restore(notes.all("open/")?);
        let board = Arc::new(Board::default());
        let watch = Self {
            config,
            mirrors,
            producer: Producer::new(Arc::clone(&ingest)),
            ingest,
            local,
            notes,
            board,
            tracked,
            first_seen: HashMap::new(),
        };
        watch.show();
        Ok(watch)
    }

    /// The board with the open exceptions.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Uses an existing board for the open exceptions.
    #[must_use]
    pub fn shown_on(mut self, board: Arc<Board>) -> Self {
        self.board = board;
        self.show();
        self
    }

    /// Evaluates on the schedule until the shutdown.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        loop {
            // A pass dropped half-way leaves saved transitions; the next start hands them in again.
            let passed = tokio::select! {
                () = shutdown.begun() => return,
                passed = self.pass() => passed,
            };
            if let Err(error) = passed {
                if error.is_none() {
                    return;
                }
                tracing::error!(error = ?error, "could not save exceptions, will retry; check the disk");
            }
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(self.config.every.0) => {}
            }
        }
    }

    /// One evaluation. The error is `None` if the journal is closed.
    async fn pass(&mut self) -> Result<(), Option<JournalError>> {
        self.finish().await?;
        let now = Timestamp::from(clock::wall());
        let machines = self.machines();
        let mirrors = self.mirrors.all();
        // Thousands of records are read: keep that off the runtime's threads.
        let gathering = spawn_blocking(move || Facts::gather(&mirrors, now));
        let facts = gathering.await.map_err(|_| None::<JournalError>)?;
        let conditions = rules::conditions(&self.config, &facts, &machines, now, &mut self.first_seen);
        let decidable = facts.decidable(self.config.machines.is_some());
        self.tracked.compare(conditions, &decidable, now);
        self.finish().await
    }

    /// Saves the transitions that are due, hands their events in, and marks them as done.
    async fn finish(&mut self) -> Result<(), Option<JournalError>> {
        let due: Vec<Transition> = self.tracked.due();
        if due.is_empty() {
            return Ok(());
        }
        self.write(self.tracked.notes(&due)).await?;
        for batch in due.chunks(TRANSITIONS_AT_ONCE) {
            self.hand_in(batch).await?;
            for transition in batch {
                tracing::info!(kind = %transition.kind, reference = %transition.reference, step = %transition.stream, "exception");
            }
        }
        let notes = self.tracked.done(&due);
        self.show();
        self.write(notes).await
    }

    async fn write(&self, notes: Vec<crate::journal::Note>) -> Result<(), Option<JournalError>> {
        let ours = self.notes.clone();
        match spawn_blocking(move || ours.write(notes)).await {
            Ok(written) => written.map_err(Some),
            // The runtime is shutting down.
            Err(_) => Err(None),
        }
    }

    /// Hands events in, and waits for their receipts.
    async fn hand_in(&mut self, transitions: &[Transition]) -> Result<(), Option<JournalError>> {
        let arrived = Timestamp::from(clock::wall());
        let route = |transition: &Transition| {
            let sender = Sender { client: &transition.source, ..Sender::default() };
            self.ingest.route(SourceKind::Watch, "watch", &transition.stream, sender)
        };
        let routes: Vec<Route> = transitions.iter().map(route).collect();
        let submissions = transitions.iter().zip(&routes).map(|(transition, route)| Submission {
            metadata: EventMetadata {
                id: Some(&transition.event_id),
                key: Some(&transition.exception),
                time: Some(transition.time),
                ..EventMetadata::default()
            },
            ..Submission::new(route, transition.payload.as_bytes(), arrived)
        });
        let submissions: Vec<Submission<'_>> = submissions.collect();
        self.producer.deliver(&submissions).await.map(drop).map_err(|Closed| None)
    }

    fn show(&self) {
        *self.board.open.lock() = self.tracked.open();
    }

    /// The last reported state of each machine.
    fn machines(&self) -> Vec<Machine> {
        let Some(config) = &self.config.machines else { return Vec::new() };
        let Ok(pointer) = Pointer::parse(&config.state) else { return Vec::new() };
        let mut seen = BTreeSet::new();
        let mut machines = Vec::new();
        for (_, value) in self.local.last_values(|_| true) {
            let Some(record) = value.record() else { continue };
            let Some(published) = self.local.published(&value) else { continue };
            let Some(work_center) = config.work_centers.get(record.key) else { continue };
            if published.publication.stream != config.stream || !seen.insert(record.key.to_owned()) {
                continue;
            }
            let tree = crate::contract::Tree::parse(record.payload).ok();
            let state = tree.as_ref().and_then(|tree| tree.at(&pointer)?.scalar()).map(|state| state.into_owned());
            let Some(state) = state else { continue };
            machines.push(Machine {
                name: record.key.to_owned(),
                work_center: work_center.clone(),
                is_running: config.running.contains(&state),
                state,
                since: record.time,
            });
        }
        machines
    }
}
