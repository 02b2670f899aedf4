//! The capture of one contract: what changes in a model becomes events, without missing a change.
//!
//! Promise: a value that stands in Odoo for longer than an interval is told, and every deletion of a
//! record that was known; a crash at any moment repeats nothing in effect.
//! Invariants:
//! - no cursor on `write_date` is trusted: it is when a transaction began, in whole seconds. Each
//!   poll reads a window again, by pages of rising ids, and compares with what is known;
//! - what is known and the position follow the receipts. After a crash, what the journal took behind
//!   the last note is read from the journal, so that both are as if written together;
//! - one call at a time, and pauses that grow with the time that Odoo takes.

mod gone;
mod kept;

use super::known::{Ages, Event, Known, Place, Verdict};
use super::meaning::{Occasion, Telling};
use super::place::Position;
use super::shape::{Row, Shape};
use super::{Hints, Mirror, Shared};
use crate::clock;
use crate::contract::odoo::Section;
use crate::contract::{Contract, Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{Beside, Route, Taken};
use crate::journal::{Lane, NotTaken, Notes, Waiter};
use crate::odoo::{Answer, Class, OdooError, write_time};
use crate::setting::{Span, grouped};
use crate::shutdown::Shutdown;
use crate::sources::Refusal;
use kept::NOTE_EVERY;
use parking_lot::MutexGuard;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of one page: a second at most even where Odoo is slow, far below its 120 s for a call.
const PAGE_ROWS: usize = 200;
/// Every poll reads at least so far back: most transactions are shorter.
const HOT: Duration = Duration::from_secs(30);
/// The whole overlap is read so often: transactions longer than [`HOT`] are rare.
const WIDE_EVERY: Duration = Duration::from_secs(60);
/// Odoo is asked at most this share of the time: a poll that took 1 s is followed by 4 s of pause.
const PAUSE_FACTOR: u32 = 4;
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// What is known is noted after so many changed notes, or after a time.
const NOTE_AFTER: usize = 256;
/// Where there is too much, what may be forgotten is looked for so often: looking takes a while.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// How long hints gather before they are read: one change of an order sends several.
const HINTS_GATHER: Duration = Duration::from_millis(50);
/// Pauses after errors: doubling, with jitter.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A refused login or right is a person's work: asking on slowly does no harm.
const REFUSED_RETRY_MIN: Duration = Duration::from_secs(5);
const REFUSED_RETRY_MAX: Duration = Duration::from_secs(300);

/// Why a round ended before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Odoo did not give what was asked for.
    Odoo(OdooError),
    /// The journal takes no more.
    Closed,
}

impl From<OdooError> for Stop {
    fn from(error: OdooError) -> Self {
        Self::Odoo(error)
    }
}

/// One contract of one Odoo.
pub(super) struct Capture {
    shared: Arc<Shared>,
    contract: Arc<Contract>,
    section: Section,
    stream: String,
    mirror: Arc<Mirror>,
    hints: Arc<Hints>,
    route: Route,
    lane: Arc<Lane>,
    notes: Notes,
    shape: Option<Shape>,
    own_id: i64,
    major: u32,
    position: Position,
    /// Offset of the lane below which every event of ours is known.
    followed: u64,
    waiter: Waiter,
    next_poll: Instant,
    next_wide: Instant,
    next_look: Instant,
    next_note: Instant,
    next_forget: Instant,
    /// Missing in the last look, and too many to be believed at once.
    doubted: BTreeSet<i64>,
}

impl Capture {
    pub(super) fn new(
        shared: Arc<Shared>,
        contract: Arc<Contract>,
        section: Section,
        mirror: Arc<Mirror>,
        hints: Arc<Hints>,
        notes: Notes,
    ) -> Self {
        let stream = contract.stream().to_owned();
        let route = shared.ingest.route(
            SourceKind::Odoo,
            &shared.config.name,
            &stream,
            Sender { client: shared.client.database(), ..Sender::default() },
        );
        let journal = shared.ingest.journal();
        let lane = Arc::clone(journal.lane(&contract.publication.lane).unwrap_or(journal.dead()));
        let now = clock::instant();
        Self {
            followed: 0,
            stream,
            route,
            lane,
            shared,
            contract,
            section,
            mirror,
            hints,
            notes,
            shape: None,
            own_id: 0,
            major: 0,
            position: Position::default(),
            waiter: Waiter::default(),
            next_poll: now,
            next_wide: now,
            next_look: now,
            next_note: now + NOTE_EVERY,
            next_forget: now,
            doubted: BTreeSet::new(),
        }
    }

    /// Reads changes until the shutdown.
    pub(super) async fn run(mut self, mut shutdown: Shutdown) {
        if let Err(error) = self.restore().await {
            tracing::warn!(source = %self.shared.config.name, stream = %self.stream, %error, "what is known of Odoo cannot be read; it is loaded anew");
        }
        let mut failures = 0;
        loop {
            // Dropped half-way, a round leaves events in the journal that the next start finds there.
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
                Err(Stop::Closed) => break,
                Err(Stop::Odoo(error)) => {
                    failures += 1;
                    self.fail(&error, failures)
                }
            };
            tokio::select! {
                () = shutdown.begun() => break,
                () = tokio::time::sleep(pause) => {}
                () = self.hints.given(), if failures == 0 => {}
            }
            self.note_if_due().await;
        }
        self.note().await;
    }

    /// Shows an error; returns how long to wait.
    fn fail(&mut self, error: &OdooError, failures: u32) -> Duration {
        self.shared.stats.refuse(Refusal::Answer);
        self.shared.health.fails(&self.stream, error);
        self.next_wide = clock::instant();
        let (min, max) = match error.class() {
            Class::Retry => (RETRY_MIN, RETRY_MAX),
            Class::Authentication | Class::Permanent => {
                // Fields, rights and login may be others by then.
                self.shape = None;
                self.shared.client.forget();
                (REFUSED_RETRY_MIN, REFUSED_RETRY_MAX)
            }
        };
        let wait = (min * 2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(max);
        crate::link::jitter(wait / 2, wait)
    }

    /// One round: whatever is due.
    async fn round(&mut self) -> Result<(), Stop> {
        self.followed = self.lane.end();
        let began = clock::instant();
        self.learn().await?;
        if self.position.load_after.is_some() {
            self.load().await?;
        }
        let hinted = self.hints.gather(HINTS_GATHER, PAGE_ROWS).await;
        if !hinted.is_empty() {
            self.look_at(&hinted).await?;
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

    /// Learns what the server is and which of the wanted fields there are.
    async fn learn(&mut self) -> Result<(), Stop> {
        let session = self.shared.client.session().await?;
        if session.is_administrator && !self.shared.config.administrator {
            return Err(Stop::Odoo(OdooError::Denied(super::ADMINISTRATOR.into())));
        }
        (self.own_id, self.major) = (session.user_id, session.version);
        if self.shape.is_some() {
            return Ok(());
        }
        let arguments = json!({"allfields": self.section.fields, "attributes": ["type", "store"]});
        let described = self.call("fields_get", arguments).await?.value;
        let shape = Shape::fit(&self.section, &described);
        if shape.is_empty() {
            return Err(Stop::Odoo(OdooError::Refused {
                why: crate::odoo::Refusal::Access,
                name: String::new(),
                message: format!("{}: none of the fields in odoo.fields is there for this account", self.section.model),
            }));
        }
        if !shape.missing.is_empty() || !shape.not_stored.is_empty() {
            tracing::warn!(
                source = %self.shared.config.name, stream = %self.stream, missing = %shape.missing.join(", "),
                not_stored = %shape.not_stored.join(", "), "some fields are not read: missing ones are not there in this Odoo or for this account; of those that are not stored, no change would show"
            );
        }
        self.shared.health.lacks(&self.stream, &shape);
        self.shape = Some(shape);
        Ok(())
    }

    /// Reads everything that counts at the beginning, by pages, and goes on where it was.
    async fn load(&mut self) -> Result<(), Stop> {
        if self.position.mark == 0 {
            // Before the first page: what changes meanwhile is found by the first poll.
            let answer = self.call("search_count", json!({"domain": [["id", "=", 0]]})).await?;
            self.position.mark = server_seconds(&answer);
            self.position.load_mark = self.position.mark;
        }
        let total = self.count().await?;
        while let Some(after) = self.position.load_after {
            self.followed = self.lane.end();
            let condition = [self.loaded(), vec![json!(["id", ">", after])]].concat();
            let (rows, _) = self.read(condition).await?;
            let last = rows.last().map(|row| row.id);
            let is_end = rows.len() < PAGE_ROWS;
            self.take(rows, true).await?;
            self.position.load_after = last.filter(|_| !is_end);
            let loaded = self.mirror.known().len();
            self.shared.health.loads(&self.stream, (!is_end).then_some((loaded, total)));
            if self.mirror.known().dirty_count() >= NOTE_AFTER {
                self.followed = self.lane.end();
                self.note().await;
            }
        }
        // What was written before is loaded, or is none of what the first load takes.
        self.position.swept = self.position.mark;
        let records = self.mirror.known().len();
        tracing::info!(source = %self.shared.config.name, stream = %self.stream, records, "first load is complete");
        self.next_look = clock::instant() + self.shared.config.deletions.0;
        self.followed = self.lane.end();
        self.note().await;
        Ok(())
    }

    async fn count(&self) -> Result<u64, Stop> {
        let domain = [self.domain(), self.loaded()].concat();
        let answer = self.call("search_count", json!({"domain": domain})).await?;
        Ok(answer.value.as_u64().unwrap_or(0))
    }

    /// One poll: the window, and what else is due. Returns how long Odoo took.
    async fn poll(&mut self) -> Result<Duration, Stop> {
        let began = clock::instant();
        let config = &self.shared.config;
        let day = i64::try_from(config.sweep.0.as_secs()).unwrap_or(i64::MAX);
        let is_sweep = self.position.swept + day <= self.position.mark;
        // After a silence, the transactions of before it count too.
        let now = Timestamp::from(clock::wall()).0.div_euclid(1_000_000);
        let is_late = now - self.position.mark > (HOT.as_secs() as i64) / 2 + self.section.interval.0.as_secs() as i64;
        let is_wide = is_late || began >= self.next_wide;
        let back = match (is_sweep, is_wide) {
            (true, _) => day + config.overlap.0.as_secs() as i64,
            (_, true) => config.overlap.0.as_secs() as i64,
            _ => HOT.as_secs() as i64,
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
            self.take(rows, false).await?;
            if is_end {
                break;
            }
        }
        let mark = mark.unwrap_or(self.position.mark);
        // A server clock that was set back must not make a hole.
        self.position.mark = mark;
        if is_wide {
            self.next_wide = began + WIDE_EVERY;
        }
        if is_sweep {
            self.position.swept = mark;
            let forgotten = self.forget();
            tracing::info!(source = %self.shared.config.name, stream = %self.stream, forgotten, "swept");
        }
        if began >= self.next_look {
            took += self.look_for_deletions().await?;
            self.next_look = began + self.shared.config.deletions.0;
        }
        self.mirror.read_at(Timestamp::from(clock::wall()));
        self.mirror.complete();
        Ok(took)
    }

    /// Forgets what has ended long ago, or is too much; returns how many records.
    fn forget(&mut self) -> usize {
        self.next_forget = clock::instant() + FORGET_EVERY;
        let config = &self.shared.config;
        let ages = Ages {
            // The next sweep reads from here on once more.
            settled: self.position.swept - config.overlap.0.as_secs() as i64,
            ended: self.position.mark - config.forget.0.as_secs() as i64,
            stale: self.recent_after().unwrap_or(i64::MIN),
        };
        self.mirror.known().forget(&self.section, &ages, self.bytes_max())
    }

    /// Seconds since 1970: what was written before is too old for this contract.
    fn recent_after(&self) -> Option<i64> {
        Some(self.position.mark - self.section.recent?.0.as_secs() as i64)
    }

    fn bytes_max(&self) -> usize {
        usize::try_from(self.shared.config.records_memory.0).unwrap_or(usize::MAX)
    }

    /// What the first load takes.
    fn loaded(&self) -> Vec<Value> {
        let recent =
            self.recent_after().map(|after| json!(["write_date", ">=", write_time(Timestamp(after * 1_000_000))]));
        self.section.load.iter().cloned().chain(recent).collect()
    }

    /// Reads a page of rows.
    async fn read(&self, condition: Vec<Value>) -> Result<(Vec<Row>, Answer), Stop> {
        let shape = self.shape.as_ref();
        let Some(shape) = shape else { unreachable!("a round learns the shape first") };
        let domain = [self.domain(), condition].concat();
        let mut arguments = json!({
            "domain": domain, "fields": shape.wanted(), "order": "id", "limit": PAGE_ROWS,
        });
        // Without it every link costs a look at the other record's name. Before 15 it is not understood.
        if !shape.has_names && self.major >= 15 {
            arguments["load"] = Value::Null;
        }
        let answer = self.call("search_read", arguments).await?;
        let rows = answer.value.as_array().into_iter().flatten().filter_map(|given| shape.row(given)).collect();
        Ok((rows, answer))
    }

    fn domain(&self) -> Vec<Value> {
        let mut domain = self.section.domain.clone();
        // What belongs to no company belongs to each.
        domain.extend(self.section.company.map(|company| json!(["company_id", "in", [company, false]])));
        domain
    }

    async fn call(&self, method: &str, arguments: Value) -> Result<Answer, OdooError> {
        let Value::Object(mut arguments) = arguments else { unreachable!("arguments go by name") };
        // Archived records are records, and messages come in one language.
        let mut context = json!({"active_test": false, "lang": "en_US"});
        if let Some(company) = self.section.company {
            context["allowed_company_ids"] = json!([company]);
        }
        arguments.insert("context".into(), context);
        let arguments: Map<String, Value> = arguments;
        self.shared.client.call(&self.section.model, method, None, arguments).await
    }

    /// Tells what is new of rows, and knows it once it is on the disk.
    async fn take(&mut self, rows: Vec<Row>, is_first: bool) -> Result<(), Stop> {
        let overlap = self.shared.config.overlap.0.as_secs() as i64;
        let born_after = self.position.load_mark - overlap;
        let mut events = Vec::new();
        {
            let (telling, place) = (self.telling(), self.place());
            let mut known = self.mirror.known();
            for row in &rows {
                let occasion = match (is_first, row.create_date >= born_after) {
                    (true, _) => Occasion::FirstLoad,
                    (_, true) => Occasion::New,
                    _ => Occasion::Written,
                };
                match known.judge(row, occasion, &telling, &place) {
                    Verdict::Same => {}
                    Verdict::Quiet(entry) => known.put(row.id, Some(entry)),
                    Verdict::Tell(event) => events.push(*event),
                }
            }
        }
        self.hand_in(events).await
    }

    /// Hands events in, waits for their receipts, and takes over what they say.
    async fn hand_in(&mut self, events: Vec<Event>) -> Result<(), Stop> {
        let arrived = clock::instant();
        let now = Timestamp::from(clock::wall());
        let mut taken: Vec<Taken> = Vec::with_capacity(events.len());
        for event in &events {
            let payload = event.payload.to_string();
            let key = event.record_id.to_string();
            let time = event.then.is_some().then_some(Timestamp(event.write_date.saturating_mul(1_000_000)));
            let beside = Beside { id: Some(&event.id), key: Some(&key), time, ..Beside::default() };
            taken.push(loop {
                match self.shared.ingest.accept(&self.route, payload.as_bytes(), beside, now, &mut self.waiter) {
                    Ok(taken) => break taken,
                    Err(NotTaken::Closed) => return Err(Stop::Closed),
                    Err(NotTaken::NoRoom) => self.shared.ingest.room(&self.route).await,
                }
            });
        }
        for taken in &taken {
            while self.shared.ingest.receipt(taken).is_none() {
                if self.shared.ingest.is_closed() {
                    return Err(Stop::Closed);
                }
                self.waiter.woken().await;
            }
        }
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
            if event.then.is_some() && known.is_full(bytes_max) && !known.contains(event.record_id) {
                is_full = true;
                continue;
            }
            known.put(event.record_id, event.then);
        }
        let has_room = !known.is_full(bytes_max);
        drop(known);
        if is_full || has_room {
            self.shared.health.full(&self.stream, is_full);
        }
        Ok(())
    }

    fn telling(&self) -> Telling<'_> {
        Telling { system_of_record: &self.contract.system_of_record, section: &self.section, own_id: self.own_id }
    }

    fn place(&self) -> Place<'_> {
        Place { database: self.shared.client.database(), model: &self.section.model, stream: &self.stream }
    }
}

/// The server's clock when it began to answer, in seconds since 1970; a second less, since it says whole ones.
fn server_seconds(answer: &Answer) -> i64 {
    let at = answer.server_time.unwrap_or_else(|| Timestamp::from(clock::wall()));
    at.before(answer.took).0.div_euclid(1_000_000) - 1
}

fn round_up(span: Duration) -> Duration {
    Duration::from_millis(u64::try_from(span.as_millis().div_ceil(100)).unwrap_or(u64::MAX).saturating_mul(100))
}

impl Mirror {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}

/// `4,000 of 10,000`.
pub(super) fn progress(loaded: usize, total: u64) -> String {
    format!("{} of {}", grouped(loaded as u64), grouped(total.max(loaded as u64)))
}
