//! The capture of one contract: polls an Odoo model and turns each change into an event.
//!
//! Promise: every value that stays in Odoo for longer than one interval becomes an event, and so does every
//! deletion of a known record; what no poll can see is found by a comparison within its declared time (`reconcile`). After a
//! crash at any moment no event counts twice.
//! Invariants:
//! - the capture trusts no cursor on `write_date`: that field is the start of the transaction, in whole seconds. Each
//!   poll reads a time window again, in pages of rising ids, and compares the rows with the known records;
//! - the known records and the position follow the receipts. After a crash the capture reads the events behind the
//!   last note from the journal, as if both had been written together;
//! - one call at a time; the pause between calls grows with the time that Odoo takes to answer.

mod absent;
mod deliver;
mod load;
mod passed;
mod poll;
mod reconcile;
mod restore;

use super::change_event::EventContext;
use super::config::ADMINISTRATOR;
use super::context::{CaptureContext, LEARN_EVERY};
use super::hints::Hints;
use super::known_records::IdScope;
use super::mirror::Mirror;
use super::position::Position;
use super::reader::ModelReader;
use super::reconciliation::Reconciliation;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::contract::odoo::Section;
use crate::contract::{Contract, Sender, SourceKind};
use crate::ingest::{Notes, Producer, Route, StoredLog};
use crate::odoo::{Class, OdooError, Refusal as OdooRefusal};
use crate::shutdown::Shutdown;
use crate::sources::Refusal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long hints are collected before their records are read: one change of an order sends several hints.
const HINTS_GATHER: Duration = Duration::from_millis(50);
/// Pauses after errors.
const RETRIES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), Jitter::DownToHalf);
/// A person must correct a refused login or a missing right. Slow retries do no harm meanwhile.
const REFUSED_RETRIES: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(300), Jitter::DownToHalf);
/// The same after a field could not be read: it may be missing for a moment only, as during an upgrade of a module.
const LEARN_SOON: Duration = Duration::from_secs(15);

/// Pause after a poll, in multiples of the time that Odoo took: 4 s of pause follow a poll of 1 s.
const PAUSE_FACTOR: u32 = 4;
/// Interval between two saves of changed records. The journal holds later changes, and each save is a commit.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Number of changed notes after which the known records are saved before their interval is over.
const NOTE_AFTER: usize = 256;

/// Why rows were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    FirstLoad,
    /// A load that the operator asked for.
    Again,
    /// They were written lately, or a hint named them.
    Poll,
    /// All records are compared.
    Reconciliation,
}

/// Why a round was not completed.
#[derive(Debug)]
pub(super) enum RoundError {
    /// A call to Odoo failed.
    Odoo(OdooError),
    /// The journal accepts no more events.
    Closed,
}

impl From<OdooError> for RoundError {
    fn from(error: OdooError) -> Self {
        Self::Odoo(error)
    }
}

/// One contract of one Odoo.
pub(super) struct Capture {
    shared: Arc<CaptureContext>,
    contract: Arc<Contract>,
    section: Section,
    stream: String,
    mirror: Arc<Mirror>,
    hints: Arc<Hints>,
    route: Route,
    log: StoredLog,
    notes: Notes,
    reader: ModelReader,
    own_id: i64,
    position: Position,
    /// Offset in the lane below which the known records contain every event of this capture.
    applied_offset: u64,
    producer: Producer,
    reconciliation: Reconciliation,
    /// The time from which hinted records are read again.
    next_hinted: Instant,
    next_learn: Instant,
    next_poll: Instant,
    next_wide: Instant,
    next_deletion_check: Instant,
    next_note: Instant,
    next_forget: Instant,
    /// Records that were absent in the last check, in a number that needs confirmation by the next one.
    unconfirmed: BTreeSet<i64>,
}

/// Waits until there is a hint and it is time to read hinted records. Cancel-safe.
async fn hinted(hints: &Hints, from: Instant) {
    hints.ready().await;
    tokio::time::sleep_until(from.into()).await;
}

impl Capture {
    pub(super) fn new(
        shared: Arc<CaptureContext>,
        contract: Arc<Contract>,
        mirror: Arc<Mirror>,
        hints: Arc<Hints>,
        notes: Notes,
    ) -> Option<Self> {
        let section = contract.odoo.clone()?;
        let stream = contract.stream().to_owned();
        let route = shared.ingest.route(
            SourceKind::Odoo,
            &shared.config.name,
            &stream,
            Sender { client: shared.client.database(), ..Sender::default() },
        );
        let log = shared.ingest.stored().log(&contract.publication.lane);
        let now = clock::instant();
        let reader = ModelReader::new(
            Arc::clone(&shared.client),
            section.clone(),
            shared.config.language.clone(),
            &contract.publication.surroundings.gateway,
        );
        Some(Self {
            producer: Producer::new(Arc::clone(&shared.ingest)),
            applied_offset: 0,
            reconciliation: Reconciliation::new(shared.pace.alarms()),
            stream,
            route,
            log,
            reader,
            shared,
            contract,
            section,
            mirror,
            hints,
            notes,
            own_id: 0,
            next_hinted: now,
            position: Position::default(),
            next_learn: now,
            next_poll: now,
            next_wide: now,
            next_deletion_check: now,
            next_note: now + NOTE_EVERY,
            next_forget: now,
            unconfirmed: BTreeSet::new(),
        })
    }

    /// Reads changes until the shutdown.
    pub(super) async fn run(mut self, mut shutdown: Shutdown) {
        if let Err(error) = self.restore().await {
            tracing::warn!(source = %self.shared.config.name, stream = %self.stream, %error, "could not read the saved records; will load all records from Odoo again");
        }
        let mut failures = 0;
        loop {
            // A round dropped half-way may have put events into the journal; the next start reads them from there.
            let ended = tokio::select! {
                () = shutdown.begun() => break,
                ended = self.round() => ended,
            };
            let pause = match ended {
                Ok(()) => {
                    failures = 0;
                    self.shared.stats.note_answer();
                    self.shared.health.works(&self.stream);
                    self.next_poll.min(self.reconciliation.next).saturating_duration_since(clock::instant())
                }
                Err(RoundError::Closed) => break,
                Err(RoundError::Odoo(error)) if self.is_not_installed(&error) => {
                    let remark = format!("model {} is not installed; will look for it again", self.reader.model());
                    self.shared.health.works(&self.stream);
                    self.shared.health.remarks(&self.stream, vec![remark]);
                    LEARN_EVERY / 3
                }
                Err(RoundError::Odoo(error)) => {
                    failures += 1;
                    self.fail(&error, failures)
                }
            };
            tokio::select! {
                () = shutdown.begun() => break,
                () = tokio::time::sleep(pause) => {}
                () = hinted(&self.hints, self.next_hinted), if failures == 0 => {}
                () = self.mirror.load_requested(), if failures == 0 => {}
            }
            self.note_if_due().await;
        }
        self.note().await;
    }

    /// Whether the contract expects that some Odoos do not have its model, and this one has not.
    fn is_not_installed(&self, error: &OdooError) -> bool {
        let is_unknown = matches!(error, OdooError::Refused { why: OdooRefusal::UnknownModel, .. });
        self.section.model.is_optional && is_unknown && !self.reader.has_learnt()
    }

    /// Reports an error in the status; returns the pause before the next round.
    fn fail(&mut self, error: &OdooError, failures: u32) -> Duration {
        self.shared.stats.refuse(Refusal::Answer);
        self.shared.health.fails(&self.stream, error);
        self.next_wide = clock::instant();
        let retries = match error.class() {
            Class::Retry => RETRIES,
            Class::Authentication | Class::Permanent => {
                // Fields and rights may have changed by the next round.
                self.next_learn = clock::instant();
                REFUSED_RETRIES
            }
        };
        retries.pause(failures.saturating_sub(1)).max(error.pause().unwrap_or_default())
    }

    /// Does everything that is due: learn, first load, hinted records, poll, a part of the reconciliation.
    async fn round(&mut self) -> Result<(), RoundError> {
        self.applied_offset = self.log.end();
        let began = clock::instant();
        let faults = self.reader.fault_count();
        self.learn_if_due().await?;
        if self.mirror.take_load_request() {
            self.begin_again().await;
        }
        if self.position.load_after.is_some() {
            self.load().await?;
        }
        let hinted = self.hints.gather(HINTS_GATHER, super::reader::PAGE_ROWS).await;
        self.read_hinted(hinted).await?;
        if began >= self.next_poll {
            self.poll_and_pace(began).await?;
        }
        self.reconcile().await?;
        if self.reader.fault_count() > faults {
            // The field may be missing for a moment only.
            self.next_learn = self.next_learn.min(clock::instant() + LEARN_SOON);
        }
        self.shared.health.remarks(&self.stream, self.reader.remarks());
        Ok(())
    }

    /// Learns the version of the server, the account, and which fields, languages and companies there are.
    async fn learn_if_due(&mut self) -> Result<(), RoundError> {
        let session = self.shared.client.session().await?;
        if session.is_administrator && !self.shared.config.administrator {
            return Err(RoundError::Odoo(OdooError::Denied(ADMINISTRATOR.into())));
        }
        self.own_id = session.user_id;
        let now = clock::instant();
        if self.reader.has_learnt() && now < self.next_learn {
            return Ok(());
        }
        let account = self.shared.account().await?;
        let is_first = !self.reader.has_learnt();
        let changes = self.reader.learn(&account).await?;
        let remarks = self.reader.remarks();
        // Somebody may be giving a right, or upgrading a module.
        self.next_learn = now + if remarks.is_empty() { LEARN_EVERY } else { LEARN_EVERY / 3 };
        if is_first && !remarks.is_empty() {
            tracing::warn!(source = %self.shared.config.name, stream = %self.stream, "{}", remarks.join("; "));
        }
        let digest = self.reader.digest();
        // A field that was denied for a while, and is back, leaves the digest as it was.
        let has_changed = self.position.learnt != digest || !changes.is_empty();
        if has_changed && self.position.load_after.is_none() {
            let changes = if changes.is_empty() { "since the last start".to_owned() } else { changes.join("; ") };
            tracing::info!(source = %self.shared.config.name, stream = %self.stream, changes, "what the account can read has changed; will compare all records");
            self.reconciliation.hurry();
        }
        self.position.learnt = digest;
        Ok(())
    }

    fn bytes_max(&self) -> usize {
        usize::try_from(self.shared.config.records_memory.0).unwrap_or(usize::MAX)
    }

    /// Seconds since 1970. Records written earlier are too old for this contract.
    fn recent_after(&self) -> Option<i64> {
        Some(self.position.mark - i64::try_from(self.section.recent?.0.as_secs()).unwrap_or(i64::MAX))
    }

    fn event_context(&self) -> EventContext<'_> {
        EventContext { system_of_record: &self.contract.system_of_record, section: &self.section, own_id: self.own_id }
    }

    fn id_scope(&self) -> IdScope<'_> {
        IdScope {
            database: self.shared.client.database(),
            model: self.section.model.first(),
            stream: &self.stream,
            epoch: self.position.epoch,
        }
    }
}
