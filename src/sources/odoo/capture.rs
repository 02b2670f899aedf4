//! The capture of one contract: polls an Odoo model and turns each change into an event.
//!
//! Promise: every value that stays in Odoo for longer than one interval becomes an event, and so does every
//! deletion of a known record; after a crash at any moment no event counts twice.
//! Invariants:
//! - the capture trusts no cursor on `write_date`: that field is the start of the transaction, in whole seconds. Each
//!   poll reads a time window again, in pages of rising ids, and compares the rows with the known records;
//! - the known records and the position follow the receipts. After a crash the capture reads the events behind the
//!   last note from the journal, as if both had been written together;
//! - one call at a time; the pause between calls grows with the time that Odoo takes to answer.

mod calls;
mod deletions;
mod restore;

use super::change_event::{EventContext, Occasion};
use super::config::{ADMINISTRATOR, Config};
use super::health::Health;
use super::hints::Hints;
use super::known_records::{ChangeEvent, Comparison, ForgetLimits, IdScope, Pool};
use super::mirror::Mirror;
use super::model_fields::{ModelFields, Row};
use super::position::Position;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::contract::odoo::Section;
use crate::contract::{Contract, Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{Closed, EventMetadata, Ingest, Notes, Producer, Route, StoredLog, Submission};
use crate::odoo::{Answer, Class, Client, OdooError, write_time};
use crate::setting::Span;
use crate::shutdown::Shutdown;
use crate::sources::{Refusal, Stats};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows per page. A slow Odoo reads them within a second, far below its limit of 120 s for a call.
const PAGE_ROWS: usize = 200;
/// Every poll reads at least this far back. Most transactions are shorter.
const WINDOW: Duration = Duration::from_secs(30);
/// Interval at which a poll reads the whole overlap: transactions longer than [`WINDOW`] are rare.
const WIDE_EVERY: Duration = Duration::from_secs(60);
/// Pause after a poll, in multiples of the time that Odoo took: 4 s of pause follow a poll of 1 s.
const PAUSE_FACTOR: u32 = 4;
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Interval between two saves of changed records. The journal holds later changes, and each save is a commit.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Number of changed notes after which the known records are saved before their interval is over.
const NOTE_AFTER: usize = 256;
/// Interval between two searches for records to forget while memory is used up: a search visits every record.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// How long hints are collected before their records are read: one change of an order sends several hints.
const HINTS_GATHER: Duration = Duration::from_millis(50);
const RETRIES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), Jitter::DownToHalf);
/// A person must correct a refused login or a missing right. Slow retries do no harm meanwhile.
const REFUSED_RETRIES: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(300), Jitter::DownToHalf);

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

/// The context that the captures of one Odoo share.
#[derive(Debug)]
pub(super) struct CaptureContext {
    pub(super) config: Config,
    pub(super) client: Client,
    pub(super) ingest: Arc<Ingest>,
    pub(super) stats: Arc<Stats>,
    pub(super) health: Health,
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
    model_fields: Option<ModelFields>,
    own_id: i64,
    major: u32,
    position: Position,
    /// Offset in the lane below which the known records contain every event of this capture.
    applied_offset: u64,
    producer: Producer,
    next_poll: Instant,
    next_wide: Instant,
    next_deletion_check: Instant,
    next_note: Instant,
    next_forget: Instant,
    /// Records that were missing in the last check, in a number that needs confirmation by the next one.
    unconfirmed_missing: BTreeSet<i64>,
}

impl Capture {
    pub(super) fn new(
        shared: Arc<CaptureContext>,
        contract: Arc<Contract>,
        section: Section,
        pool: Pool,
        notes: Notes,
    ) -> Self {
        let mirror = Arc::new(Mirror::new(&shared.config, &contract, &section.model, pool));
        let stream = contract.stream().to_owned();
        let route = shared.ingest.route(
            SourceKind::Odoo,
            &shared.config.name,
            &stream,
            Sender { client: shared.client.database(), ..Sender::default() },
        );
        let log = shared.ingest.stored().log(&contract.publication.lane);
        let now = clock::instant();
        Self {
            producer: Producer::new(Arc::clone(&shared.ingest)),
            applied_offset: 0,
            stream,
            route,
            log,
            shared,
            contract,
            section,
            mirror,
            hints: Arc::default(),
            notes,
            model_fields: None,
            own_id: 0,
            major: 0,
            position: Position::default(),
            next_poll: now,
            next_wide: now,
            next_deletion_check: now,
            next_note: now + NOTE_EVERY,
            next_forget: now,
            unconfirmed_missing: BTreeSet::new(),
        }
    }

    /// The known records of the contract.
    pub(super) fn mirror(&self) -> Arc<Mirror> {
        Arc::clone(&self.mirror)
    }

    /// The model, with the hints about its records.
    pub(super) fn hinted(&self) -> (String, Arc<Hints>) {
        (self.section.model.clone(), Arc::clone(&self.hints))
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
                    self.next_poll.saturating_duration_since(clock::instant())
                }
                Err(RoundError::Closed) => break,
                Err(RoundError::Odoo(error)) => {
                    failures += 1;
                    self.fail(&error, failures)
                }
            };
            tokio::select! {
                () = shutdown.begun() => break,
                () = tokio::time::sleep(pause) => {}
                () = self.hints.ready(), if failures == 0 => {}
            }
            self.note_if_due().await;
        }
        self.note().await;
    }

    /// Reports an error in the status; returns the pause before the next round.
    fn fail(&mut self, error: &OdooError, failures: u32) -> Duration {
        self.shared.stats.refuse(Refusal::Answer);
        self.shared.health.fails(&self.stream, error);
        self.next_wide = clock::instant();
        let retries = match error.class() {
            Class::Retry => RETRIES,
            Class::Authentication | Class::Permanent => {
                // Fields, rights and login may have changed by the next round.
                self.model_fields = None;
                self.shared.client.forget();
                REFUSED_RETRIES
            }
        };
        retries.pause(failures.saturating_sub(1))
    }

    /// Does everything that is due: first load, hinted records, poll.
    async fn round(&mut self) -> Result<(), RoundError> {
        self.applied_offset = self.log.end();
        let began = clock::instant();
        self.describe_model().await?;
        if self.position.load_after.is_some() {
            self.load().await?;
        }
        let hinted = self.hints.gather(HINTS_GATHER, PAGE_ROWS).await;
        if !hinted.is_empty() {
            self.read_hinted(&hinted).await?;
        }
        if began >= self.next_poll {
            let took = self.poll().await?;
            let pause = (took * PAUSE_FACTOR).min(PAUSE_MAX);
            let wait = self.section.interval.0.max(took + pause);
            let is_slow = wait > self.section.interval.0 * 2;
            self.shared.health.slowed(&self.stream, is_slow.then_some((Span(round_up(wait)), Span(round_up(took)))));
            self.next_poll = began + wait;
        }
        Ok(())
    }

    /// Reads the version of the server, the account, and which fields of the contract the model has.
    async fn describe_model(&mut self) -> Result<(), RoundError> {
        let session = self.shared.client.session().await?;
        if session.is_administrator && !self.shared.config.administrator {
            return Err(RoundError::Odoo(OdooError::Denied(ADMINISTRATOR.into())));
        }
        (self.own_id, self.major) = (session.user_id, session.version);
        if self.model_fields.is_some() {
            return Ok(());
        }
        let arguments = json!({"allfields": self.section.fields, "attributes": ["type", "store"]});
        let described = self.call("fields_get", arguments).await?.value;
        let model_fields = ModelFields::resolve(&self.section, &described);
        if model_fields.is_empty() {
            return Err(RoundError::Odoo(OdooError::Refused {
                why: crate::odoo::Refusal::Access,
                name: String::new(),
                message: format!("{}: none of the fields in odoo.fields is there for this account", self.section.model),
            }));
        }
        if !model_fields.missing.is_empty() || !model_fields.not_stored.is_empty() {
            tracing::warn!(
                source = %self.shared.config.name, stream = %self.stream, missing = %model_fields.missing.join(", "),
                not_stored = %model_fields.not_stored.join(", "), "some fields are not read: missing fields do not exist in this Odoo or are not readable for this account; changes of fields that are not stored cannot be detected"
            );
        }
        self.shared.health.unread_fields(&self.stream, &model_fields);
        self.model_fields = Some(model_fields);
        Ok(())
    }

    /// Does the first load, page by page; continues at the saved position after a restart.
    async fn load(&mut self) -> Result<(), RoundError> {
        if self.position.mark == 0 {
            // The mark is taken before the first page: the first poll finds every change made during the load.
            let answer = self.call("search_count", json!({"domain": [["id", "=", 0]]})).await?;
            self.position.mark = server_seconds(&answer);
            self.position.load_mark = self.position.mark;
        }
        let total = self.count().await?;
        while let Some(after) = self.position.load_after {
            self.applied_offset = self.log.end();
            let condition = [self.load_conditions(), vec![json!(["id", ">", after])]].concat();
            let (rows, _) = self.read(condition).await?;
            let last = rows.last().map(|row| row.id);
            let is_end = rows.len() < PAGE_ROWS;
            self.process_rows(rows, true).await?;
            self.position.load_after = last.filter(|_| !is_end);
            let loaded = self.mirror.known().len();
            self.shared.health.loads(&self.stream, (!is_end).then_some((loaded, total)));
            if self.mirror.known().dirty_count() >= NOTE_AFTER {
                self.applied_offset = self.log.end();
                self.note().await;
            }
        }
        // Every earlier record is loaded now, or the first load excludes it.
        self.position.swept = self.position.mark;
        let records = self.mirror.known().len();
        tracing::info!(source = %self.shared.config.name, stream = %self.stream, records, "first load is complete");
        self.next_deletion_check = clock::instant() + self.shared.config.deletions.0;
        self.applied_offset = self.log.end();
        self.note().await;
        Ok(())
    }

    /// Does one poll: reads the window, and sweeps or checks for deletions when due. Returns how long Odoo took.
    async fn poll(&mut self) -> Result<Duration, RoundError> {
        let began = clock::instant();
        let config = &self.shared.config;
        let sweep = i64::try_from(config.sweep.0.as_secs()).unwrap_or(i64::MAX);
        let is_sweep = self.position.swept + sweep <= self.position.mark;
        // After a gap between polls, transactions from before the gap may have committed late.
        let now = Timestamp::from(clock::wall()).0.div_euclid(1_000_000);
        let is_late =
            now - self.position.mark > (WINDOW.as_secs() as i64) / 2 + self.section.interval.0.as_secs() as i64;
        let is_wide = is_late || began >= self.next_wide;
        let back = match (is_sweep, is_wide) {
            (true, _) => sweep + config.overlap.0.as_secs() as i64,
            (_, true) => config.overlap.0.as_secs() as i64,
            _ => WINDOW.as_secs() as i64,
        };
        let since = write_time(Timestamp((self.position.mark - back) * 1_000_000));
        let mut mark = None;
        let mut after = 0;
        let mut took = Duration::ZERO;
        loop {
            let condition = vec![json!(["write_date", ">=", since]), json!(["id", ">", after])];
            let (rows, answer) = self.read(condition).await?;
            took += answer.took;
            mark.get_or_insert_with(|| server_seconds(&answer));
            let is_end = rows.len() < PAGE_ROWS;
            after = rows.last().map_or(after, |row| row.id);
            self.process_rows(rows, false).await?;
            if is_end {
                break;
            }
        }
        let mark = mark.unwrap_or(self.position.mark);
        // The mark follows a server clock that was set back; otherwise changes would be missed.
        self.position.mark = mark;
        if is_wide {
            self.next_wide = began + WIDE_EVERY;
        }
        if is_sweep {
            self.position.swept = mark;
            let forgotten = self.forget();
            tracing::info!(source = %self.shared.config.name, stream = %self.stream, forgotten, "sweep is complete");
        }
        if began >= self.next_deletion_check {
            took += self.check_deletions().await?;
            self.next_deletion_check = began + self.shared.config.deletions.0;
        }
        self.mirror.read_at(Timestamp::from(clock::wall()));
        self.mirror.complete();
        Ok(took)
    }

    /// Forgets records that ended long ago, and more of them while memory is used up; returns how many.
    fn forget(&mut self) -> usize {
        self.next_forget = clock::instant() + FORGET_EVERY;
        let config = &self.shared.config;
        let limits = ForgetLimits {
            // The next sweep reads everything from here on again.
            settled: self.position.swept - config.overlap.0.as_secs() as i64,
            ended: self.position.mark - config.forget.0.as_secs() as i64,
            stale: self.recent_after().unwrap_or(i64::MIN),
        };
        self.mirror.known().forget(&self.section, &limits, self.bytes_max())
    }

    /// Seconds since 1970. Records written earlier are too old for this contract.
    fn recent_after(&self) -> Option<i64> {
        Some(self.position.mark - self.section.recent?.0.as_secs() as i64)
    }

    fn bytes_max(&self) -> usize {
        usize::try_from(self.shared.config.records_memory.0).unwrap_or(usize::MAX)
    }

    /// Makes events of the changed rows, and updates the known records once the events are durable.
    async fn process_rows(&mut self, rows: Vec<Row>, is_first: bool) -> Result<(), RoundError> {
        let overlap = self.shared.config.overlap.0.as_secs() as i64;
        let created_after = self.position.load_mark - overlap;
        let mut events = Vec::new();
        {
            let (context, id_scope) = (self.event_context(), self.id_scope());
            let mut known = self.mirror.known();
            for row in &rows {
                let occasion = match (is_first, row.create_date >= created_after) {
                    (true, _) => Occasion::FirstLoad,
                    (_, true) => Occasion::New,
                    _ => Occasion::Written,
                };
                match known.compare(row, occasion, &context, &id_scope) {
                    Comparison::Unchanged => {}
                    Comparison::Unreported(record) => known.update(row.id, Some(record)),
                    Comparison::Changed(event) => events.push(*event),
                }
            }
        }
        self.hand_in(events).await
    }

    /// Hands events in, waits for their receipts, then updates the known records.
    async fn hand_in(&mut self, events: Vec<ChangeEvent>) -> Result<(), RoundError> {
        let arrived = clock::instant();
        let now = Timestamp::from(clock::wall());
        let texts = events.iter().map(|event| (event.payload.to_string(), event.record_id.to_string()));
        let texts: Vec<(String, String)> = texts.collect();
        let submissions = events.iter().zip(&texts).map(|(event, (payload, key))| {
            let time = event.after.is_some().then_some(Timestamp(event.write_date.saturating_mul(1_000_000)));
            let metadata = EventMetadata { id: Some(&event.id), key: Some(key), time, ..EventMetadata::default() };
            Submission { metadata, ..Submission::new(&self.route, payload.as_bytes(), now) }
        });
        let submissions: Vec<Submission<'_>> = submissions.collect();
        self.producer.deliver(&submissions).await.map_err(|Closed| RoundError::Closed)?;
        self.shared.stats.received.add(events.len() as u64);
        if !events.is_empty() {
            self.shared.stats.ack.record(clock::instant().duration_since(arrived), events.len() as u64);
        }
        let bytes_max = self.bytes_max();
        if self.mirror.known().is_full(bytes_max) && clock::instant() >= self.next_forget {
            self.forget();
        }
        let mut known = self.mirror.known();
        let mut is_full = false;
        for event in events {
            if event.after.is_some() && known.is_full(bytes_max) && !known.contains(event.record_id) {
                is_full = true;
                continue;
            }
            known.update(event.record_id, event.after);
        }
        let has_room = !known.is_full(bytes_max);
        drop(known);
        if is_full || has_room {
            self.shared.health.full(&self.stream, is_full);
        }
        Ok(())
    }

    fn event_context(&self) -> EventContext<'_> {
        EventContext { system_of_record: &self.contract.system_of_record, section: &self.section, own_id: self.own_id }
    }

    fn id_scope(&self) -> IdScope<'_> {
        IdScope { database: self.shared.client.database(), model: &self.section.model, stream: &self.stream }
    }
}

/// The server's clock at the start of its answer, in seconds since 1970, minus one because its header has whole seconds.
fn server_seconds(answer: &Answer) -> i64 {
    let at = answer.server_time.unwrap_or_else(|| Timestamp::from(clock::wall()));
    at.before(answer.took).0.div_euclid(1_000_000) - 1
}

fn round_up(span: Duration) -> Duration {
    Duration::from_millis(u64::try_from(span.as_millis().div_ceil(100)).unwrap_or(u64::MAX).saturating_mul(100))
}
