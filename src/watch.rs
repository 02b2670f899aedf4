//! The watch: exceptions of the business, computed here on a schedule, with the WAN up or down.
//!
//! Promise: an exception opens once, tells when it changes, and closes once, under one id, through
//! crashes and restarts; each step is an event like any other.
//! Invariants:
//! - nothing is asked of Odoo for it: it looks at what the sources know, so that what comes true by the
//!   clock alone is seen while Odoo is away too;
//! - a step is noted before its event is handed in, and noted as done after the receipt: after a crash the
//!   same event, with the same id and bytes, is handed in again and recognised.
//!
//! Not here: where the facts come from (`sources`).

mod kind;
mod rules;
mod steps;

pub use kind::{Kind, Severity};
pub use steps::Exception;

use crate::clock;
use crate::contract::{Pointer, Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{Beside, Ingest, Route, Taken};
use crate::journal::{JournalError, NotTaken, Notes, Waiter};
use crate::local::Local;
use crate::runtime::spawn_blocking;
use crate::setting::Span;
use crate::shutdown::Shutdown;
use crate::sources::odoo::Mirrors;
use parking_lot::Mutex;
use rules::{Facts, Key, Machine};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use steps::{Step, Steps};

/// The watch as the configuration says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How often it looks.
    #[serde(default = "every")]
    pub every: Span,
    /// Thresholds that differ from the defaults.
    #[serde(default)]
    pub rule: BTreeMap<Kind, Setting>,
    /// Which machine stands at which work center.
    pub machines: Option<Machines>,
}

/// How one kind of exception is watched for.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// How long it has to last.
    pub after: Option<Span>,
    /// How bad it is.
    pub severity: Option<Severity>,
    /// Whether it is watched for at all.
    pub enabled: Option<bool>,
}

/// Where the states of machines come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machines {
    /// The stream whose key is the machine.
    #[serde(default = "stream")]
    pub stream: String,
    /// JSON pointer to the state.
    #[serde(default = "state")]
    pub state: String,
    /// States in which a machine runs.
    #[serde(default = "running")]
    pub running: Vec<String>,
    /// Code of the work center that each machine stands at.
    pub work_centers: BTreeMap<String, String>,
}

fn every() -> Span {
    Span(Duration::from_secs(30))
}
fn stream() -> String {
    "machine.state".into()
}
fn state() -> String {
    "/state".into()
}
fn running() -> Vec<String> {
    vec!["running".into()]
}

/// The streams of the steps; a contract has to declare each.
pub const STREAMS: [&str; 3] = ["exception.opened", "exception.updated", "exception.closed"];

impl Config {
    /// Checks values: key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
        if !allowed.contains(&self.every.0) {
            return Err(("every", format!("{} is out of bounds; 1s to 1h are allowed", self.every)));
        }
        match &self.machines {
            Some(machines) => Pointer::parse(&machines.state).map(|_| ()).map_err(|error| ("machines.state", error)),
            None => Ok(()),
        }
    }
}

/// Steps that wait for their receipts together: one sync of the disk serves them all.
const STEPS_AT_ONCE: usize = 200;

/// What stands open, for whoever asks.
#[derive(Debug, Default)]
pub struct Board {
    open: Mutex<Vec<Exception>>,
}

impl Board {
    /// Every exception that stands open, the oldest first.
    pub fn exceptions(&self) -> Vec<Exception> {
        self.open.lock().clone()
    }
}

/// The watch.
pub struct Watch {
    config: Config,
    mirrors: Mirrors,
    ingest: Arc<Ingest>,
    local: Arc<Local>,
    notes: Notes,
    board: Arc<Board>,
    steps: Steps,
    /// When a condition was first seen whose beginning nothing tells, and that is not open yet.
    first_seen: HashMap<Key, Timestamp>,
    waiter: Waiter,
}

impl Watch {
    /// A watch over these records; it looks once it runs. Blocks the thread.
    pub fn open(
        config: Config,
        mirrors: Mirrors,
        ingest: Arc<Ingest>,
        local: Arc<Local>,
        notes: Notes,
    ) -> Result<Self, JournalError> {
        let steps = Steps::restore(notes.all("open/")?);
        let board = Arc::new(Board::default());
        let watch = Self {
            config,
            mirrors,
            ingest,
            local,
            notes,
            board,
            steps,
            first_seen: HashMap::new(),
            waiter: Waiter::default(),
        };
        watch.show();
        Ok(watch)
    }

    /// What stands open.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Shows what stands open on a board that is there already.
    #[must_use]
    pub fn shown_on(mut self, board: Arc<Board>) -> Self {
        self.board = board;
        self.show();
        self
    }

    /// Looks on its schedule until the shutdown.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        loop {
            // Dropped half-way, a pass leaves steps that are noted and handed in again at the next start.
            let passed = tokio::select! {
                () = shutdown.begun() => return,
                passed = self.pass() => passed,
            };
            if let Err(error) = passed {
                if error.is_none() {
                    return;
                }
                tracing::error!(error = ?error, "the watch cannot note its steps, will retry");
            }
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(self.config.every.0) => {}
            }
        }
    }

    /// One look. The error is `None` when the journal takes no more.
    async fn pass(&mut self) -> Result<(), Option<JournalError>> {
        self.finish().await?;
        let now = Timestamp::from(clock::wall());
        let machines = self.machines();
        let mirrors = self.mirrors.all();
        // Thousands of records are read: not on a thread that serves.
        let gathering = spawn_blocking(move || Facts::gather(&mirrors, now));
        let facts = gathering.await.map_err(|_| None::<JournalError>)?;
        let conditions = rules::conditions(&self.config, &facts, &machines, now, &mut self.first_seen);
        let judged = facts.judged(self.config.machines.is_some());
        self.steps.compare(conditions, &judged, now);
        self.finish().await
    }

    /// Notes the steps that are due, hands their events in, and notes that they are done.
    async fn finish(&mut self) -> Result<(), Option<JournalError>> {
        let due: Vec<Step> = self.steps.due();
        if due.is_empty() {
            return Ok(());
        }
        self.write(self.steps.notes(&due)).await?;
        for some in due.chunks(STEPS_AT_ONCE) {
            self.hand_in(some).await?;
            for step in some {
                tracing::info!(kind = %step.kind, reference = %step.reference, step = %step.stream, "exception");
            }
        }
        let notes = self.steps.done(&due);
        self.show();
        self.write(notes).await
    }

    async fn write(&self, notes: Vec<crate::journal::Note>) -> Result<(), Option<JournalError>> {
        let ours = self.notes.clone();
        match spawn_blocking(move || ours.write(notes)).await {
            Ok(written) => written.map_err(Some),
            // The runtime is ending.
            Err(_) => Err(None),
        }
    }

    /// Hands events in, and waits for their receipts.
    async fn hand_in(&mut self, steps: &[Step]) -> Result<(), Option<JournalError>> {
        let now = Timestamp::from(clock::wall());
        let mut all: Vec<Taken> = Vec::with_capacity(steps.len());
        for step in steps {
            let route: Route = self.ingest.route(
                SourceKind::Watch,
                "watch",
                &step.stream,
                Sender { client: &step.source, ..Sender::default() },
            );
            let beside = Beside {
                id: Some(&step.event_id),
                key: Some(&step.exception),
                time: Some(step.time),
                ..Beside::default()
            };
            all.push(loop {
                match self.ingest.accept(&route, step.payload.as_bytes(), beside, now, &mut self.waiter) {
                    Ok(taken) => break taken,
                    Err(NotTaken::Closed) => return Err(None),
                    Err(NotTaken::NoRoom) => self.ingest.room(&route).await,
                }
            });
        }
        for taken in &all {
            while self.ingest.receipt(taken).is_none() {
                if self.ingest.is_closed() {
                    return Err(None);
                }
                self.waiter.woken().await;
            }
        }
        Ok(())
    }

    fn show(&self) {
        *self.board.open.lock() = self.steps.open();
    }

    /// What machines last said of themselves.
    fn machines(&self) -> Vec<Machine> {
        let Some(config) = &self.config.machines else { return Vec::new() };
        let Ok(pointer) = Pointer::parse(&config.state) else { return Vec::new() };
        let journal = self.ingest.journal();
        let mut seen = BTreeSet::new();
        let mut machines = Vec::new();
        for (_, value) in self.local.last_values(|_| true) {
            let Some(record) = value.record() else { continue };
            let Some(published) = value.published(journal) else { continue };
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
