//! Requests that requeue, discard and edit dead letters.
//!
//! Promise: a requeued event keeps its id. A letter that still breaks its contract is refused with the violation. Every
//! decision is audited; repeating it has no effect.

use super::{ApiError, ApiResult, App, blocking, json, read_json, refuse, try_blocking};
use crate::api::{DeadLetterState, DeadLetterStatus, LetterDecision, LetterEdit, LetterFilter, LetterStage};
use crate::clock;
use crate::contract::{Sender, SourceKind};
use crate::event::{Attribute, Content, Id, Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::ingest::{Closed, EventMetadata, Producer, Publishing, Route, Submission};
use crate::journal::ReadResult;
use hyper::StatusCode;
use hyper::body::Incoming;
use std::ops::Range;
use std::sync::Arc;

/// Most letters per batch.
const BATCH_LETTERS: usize = 500;
/// A batch is full once its payloads reach this size.
const BATCH_BYTES: usize = 1 << 20;
/// Most letters in one audit entry.
const LETTERS_AUDITED: usize = 50;
/// Most refusals that a response lists; the others are only counted.
const REFUSALS_SHOWN: usize = 100;

impl LetterFilter {
    fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && !self.all
            && self.stream.is_none()
            && self.reason.is_none()
            && self.destination.is_none()
            && self.stage.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }

    fn matches(&self, id: u64, letter: &DeadLetter<'_>, recorded: Timestamp) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        (self.ids.is_empty() || self.ids.contains(&id))
            && self.stream.as_deref().is_none_or(|wanted| wanted == letter.stream || wanted == letter.stream_id())
            && self.reason.as_deref().is_none_or(|wanted| letter.reason.contains(wanted))
            && is(&self.destination, &letter.destination)
            && self.stage.is_none_or(|wanted| wanted == letter.stage)
            && self.since.is_none_or(|since| recorded >= since)
            && self.until.is_none_or(|until| recorded < until)
    }
}

impl LetterDecision {
    fn refuse(&mut self, id: u64, reason: String) {
        self.refused_count += 1;
        if self.refused.len() < REFUSALS_SHOWN {
            self.refused.push((id, reason));
        }
    }
}

/// A dead letter from the journal.
struct StoredLetter {
    number: u64,
    recorded: Timestamp,
    letter: DeadLetter<'static>,
    /// Id of the dead letter; differs from the id of its event.
    id: String,
    publication: u32,
    content_type: Option<String>,
    trace_parent: Option<String>,
}

impl StoredLetter {
    fn read(number: u64, recorded: Timestamp, letter: DeadLetter<'static>, record: &Record<'_>) -> Self {
        let (mut content_type, mut trace_parent) = (None, None);
        for attribute in &record.attributes {
            match attribute {
                Attribute::ContentType(text) => content_type = Some((*text).to_owned()),
                Attribute::TraceParent(text) => trace_parent = Some((*text).to_owned()),
                _ => {}
            }
        }
        let (id, publication) = (record.id.to_string(), record.publication);
        Self { number, recorded, letter, id, publication, content_type, trace_parent }
    }

    /// Returns the metadata of the event. An event without an id gets the id of the letter, so that requeuing it twice
    /// makes one event.
    fn metadata(&self) -> EventMetadata<'_> {
        let letter = &self.letter;
        EventMetadata {
            id: Some(if letter.event_id.is_empty() { &self.id } else { &letter.event_id }),
            key: Some(&*letter.key).filter(|key| !key.is_empty()),
            time: Some(letter.time),
            content_type: self.content_type.as_deref(),
            trace_parent: self.trace_parent.as_deref(),
            exchange: None,
        }
    }
}

/// Decision about dead letters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Requeue,
    Discard,
}

impl Action {
    /// Returns the name in the audit.
    fn name(self) -> &'static str {
        match self {
            Self::Requeue => "dead requeue",
            Self::Discard => "dead discard",
        }
    }
}

impl super::Handles {
    /// Returns a batch of the selected letters in `range`, and the number at which the next batch starts.
    fn select(&self, filter: &LetterFilter, range: Range<u64>) -> Result<(Vec<StoredLetter>, u64), String> {
        let dead = self.journal.dead();
        let (mut found, mut bytes) = (Vec::new(), 0);
        let mut next = range.start;
        while next < range.end {
            match dead.look(next).map_err(|error| error.to_string())? {
                ReadResult::Lost { to } => next = to.max(next + 1),
                ReadResult::Block(block) => {
                    let (end, recorded) = (block.end(), block.header.recorded);
                    for (number, record) in (block.header.first..).zip(block.records()) {
                        if !(next..range.end).contains(&number) {
                            continue;
                        }
                        let Some(letter) = DeadLetter::read(&record) else { continue };
                        if !filter.matches(number, &letter, recorded) {
                            continue;
                        }
                        bytes += letter.payload.len();
                        found.push(StoredLetter::read(number, recorded, letter, &record));
                        if found.len() >= BATCH_LETTERS || bytes >= BATCH_BYTES {
                            return Ok((found, number + 1));
                        }
                    }
                    next = next.max(end);
                }
            }
        }
        Ok((found, next))
    }

    fn source_kind(&self, source: &str) -> Option<SourceKind> {
        let view = self.view.load();
        let found = view.sources.iter().find(|known| known.name == source).map(|known| known.kind);
        found.or_else(|| (source == "watch").then_some(SourceKind::Watch))
    }

    /// Submits the event of an intake letter to ingest again, with this payload.
    async fn take_in(&self, found: &StoredLetter, payload: &[u8], is_dry_run: bool) -> Result<(), String> {
        let letter = &found.letter;
        let plain = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
        let mut parts = letter.origin.split('/').map(plain);
        let (source, device, beneath) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let kind = self
            .source_kind(&source)
            .ok_or_else(|| format!("its source \"{source}\" is not in the configuration any more"))?;
        // Letters of older versions have no sender.
        let client = if letter.client.is_empty() { device.as_deref().unwrap_or_default() } else { &letter.client };
        let sender = Sender { client, user: &letter.user, proven_by: letter.authtype };
        let mut route = self.ingest.route(kind, &source, &letter.topic, sender);
        if letter.is_by_rule {
            route = route.allowed_by_rule();
        }
        if let Some(objection) = foreign_publisher(letter, kind, &route) {
            return Err(objection);
        }
        if let Some(part) = beneath {
            route = route.with_part(&part);
        }
        if let Some(violation) = self.ingest.requeue_obstacle(&route, payload) {
            return Err(format!("it still breaks its contract: {violation}"));
        }
        if is_dry_run {
            return Ok(());
        }
        let arrived = Timestamp::from(clock::wall());
        let submission = Submission { metadata: found.metadata(), ..Submission::new(&route, payload, arrived) };
        let delivered = Producer::new(Arc::clone(&self.ingest)).deliver(&[submission]).await;
        delivered.map(drop).map_err(|Closed| "the gateway is shutting down".to_owned())
    }

    /// Appends a corrected copy of an event that central refused: a new event that names the original id.
    async fn send_edited(&self, found: &StoredLetter, payload: &[u8], is_dry_run: bool) -> Result<(), String> {
        let letter = &found.letter;
        let stream = letter.stream_id();
        self.ingest
            .check_payload(&stream, payload)
            .map_err(|violation| format!("it breaks its contract: {violation}"))?;
        let known = self.journal.published(found.publication).ok_or("the contract of this event is lost")?;
        let lane = self.journal.lane(&known.publication.lane).ok_or("its lane is not there any more")?;
        if is_dry_run {
            return Ok(());
        }
        let event = Record {
            publication: found.publication,
            id: Id::mint(),
            time: letter.time,
            origin: &letter.origin,
            key: &letter.key,
            content: if letter.is_opaque { Content::Bytes } else { Content::Json },
            attributes: vec![Attribute::OriginalId(&letter.event_id)],
            payload,
        };
        lane.append(&event).await.map(|_receipt| ()).map_err(|_| "the gateway is shutting down".to_owned())
    }
}

/// Returns why a letter must not be requeued whose client had the right to publish only by its own name: the contract
/// that matches the topic now may name another publisher.
fn foreign_publisher(letter: &DeadLetter<'_>, kind: SourceKind, route: &Route) -> Option<String> {
    if letter.authtype.is_none() || letter.is_by_rule {
        return None;
    }
    let user = &letter.user;
    if kind == SourceKind::Http && !route.requires_other_publisher(user) {
        return None;
    }
    match route.publishing() {
        Publishing::Unmatched => None,
        Publishing::By { name, .. } if name == user => None,
        Publishing::By { stream, name } => Some(format!(
            "by the contract of stream \"{stream}\" its topic belongs to \"{name}\", but \"{user}\" published it; add a rule (acl) that allows this, then let the client publish it again"
        )),
        Publishing::ByNobody { stream } => Some(format!(
            "the contract of stream \"{stream}\" names no publisher; add a rule (acl) that allows \"{user}\" the topic, then let the client publish it again"
        )),
    }
}

fn bad_request(reason: String) -> ApiError {
    refuse(StatusCode::BAD_REQUEST, reason)
}

/// Error for an unknown letter.
pub(super) fn not_found(id: u64) -> ApiError {
    let text = format!("there is no dead letter {id}; `forebay dead list` shows all");
    refuse(StatusCode::NOT_FOUND, text)
}

fn fate(state: DeadLetterState, attempts: u32) -> DeadLetterStatus {
    DeadLetterStatus { state, at: Timestamp::from(clock::wall()), attempts, ..DeadLetterStatus::default() }
}

/// Saves new statuses of letters together with their audit entries.
async fn save(app: &App, letters: Vec<(StoredLetter, DeadLetterStatus)>, action: &'static str) -> Result<(), ApiError> {
    if letters.is_empty() {
        return Ok(());
    }
    let handles = Arc::clone(&app.handles);
    let written = try_blocking(move || {
        let list: Vec<_> = letters.iter().map(|(found, fate)| (found.number, &found.letter, fate.clone())).collect();
        handles.fates.put_audited(&list, |changed| {
            let what: Vec<_> = letters
                .iter()
                .filter(|(found, _)| changed.contains(&found.number))
                .map(|(found, _)| serde_json::json!({"letter": found.number, "stream": found.letter.stream, "event": found.letter.event_id, "written": found.recorded.to_string()}))
                .collect();
            // Chunks bound the size of an entry.
            what.chunks(LETTERS_AUDITED).map(|part| handles.audit_note(action, &part)).collect()
        })
    });
    written.await.map(|_| ())
}

async fn select(app: &App, filter: &LetterFilter, range: Range<u64>) -> Result<(Vec<StoredLetter>, u64), ApiError> {
    let (handles, filter) = (Arc::clone(&app.handles), filter.clone());
    blocking(move || handles.select(&filter, range)).await?.map_err(bad_request)
}

/// Returns why the status of a letter is final; `None` if it is not.
fn final_reason(app: &App, number: u64) -> Option<String> {
    let fate = app.handles.fates.of(number);
    fate.state.is_final().then(|| format!("it is {} already, since {}", fate.state.name(), fate.at))
}

/// Applies the action to one letter. Returns its new status, or why it is refused.
async fn decide(app: &App, action: Action, found: &StoredLetter, is_dry_run: bool) -> Result<DeadLetterStatus, String> {
    if let Some(reason) = final_reason(app, found.number) {
        return Err(reason);
    }
    let attempts = app.handles.fates.of(found.number).attempts;
    let letter = &found.letter;
    match (action, letter.stage) {
        (Action::Discard, _) => Ok(fate(DeadLetterState::Discarded, attempts)),
        (Action::Requeue, LetterStage::Intake) => {
            app.handles.take_in(found, &letter.payload, is_dry_run).await?;
            Ok(fate(DeadLetterState::TakenIn, attempts + 1))
        }
        (Action::Requeue, LetterStage::Central) => {
            let destination = letter.destination.to_string();
            if !app.handles.view.load().links.iter().any(|link| link.destination == destination) {
                return Err(format!("its destination \"{destination}\" is not in the configuration any more"));
            }
            Ok(DeadLetterStatus { destination, ..fate(DeadLetterState::Requeued, attempts) })
        }
    }
}

/// Applies the action to all selected letters in batches: each batch is durable and audited before the next.
pub(super) async fn decide_all(app: App, body: Incoming, action: Action) -> ApiResult {
    let filter: LetterFilter = read_json(body).await?;
    let (app, filter) = (&app, &filter);
    if filter.is_empty() {
        let text = "which letters? give numbers, --stream, --reason, --destination, --since or --until, or --all";
        return Err(bad_request(text.into()));
    }
    let dead = app.handles.journal.dead();
    let mut range = match (filter.ids.first(), filter.ids.last()) {
        (Some(first), Some(last)) => (*first).max(1)..last.saturating_add(1).min(dead.end()),
        _ => dead.first()..dead.end(),
    };
    let mut decided = LetterDecision { dry_run: filter.dry_run, ..LetterDecision::default() };
    let mut missing = filter.ids.clone();
    while range.start < range.end {
        let (letters, next) = select(app, filter, range.clone()).await?;
        range.start = next;
        let mut done = Vec::new();
        for found in letters {
            decided.matched += 1;
            missing.remove(&found.number);
            match decide(app, action, &found, filter.dry_run).await {
                Ok(fate) => {
                    decided.done += 1;
                    done.push((found, fate));
                }
                Err(reason) => decided.refuse(found.number, reason),
            }
        }
        if !filter.dry_run {
            save(app, done, action.name()).await?;
        }
    }
    // Letters outlive their destination and stream: an unknown name is an error only if no letter has it.
    if decided.matched == 0 {
        let destination = filter.destination.as_deref().and_then(|name| app.handles.unknown_destination(name));
        let unknown = destination.or_else(|| app.handles.unknown_stream(filter.stream.as_deref()?));
        if let Some(text) = unknown {
            return Err(bad_request(format!("no letter matches: {text}")));
        }
    }
    for number in missing {
        decided.refuse(number, "there is no such letter, or it does not match the other conditions".into());
    }
    Ok(json(decided))
}

pub(super) async fn edit(app: App, id: u64, body: Incoming) -> ApiResult {
    let edit: LetterEdit = read_json(body).await?;
    let filter = LetterFilter { ids: [id].into(), ..LetterFilter::default() };
    let range = id..id.saturating_add(1).min(app.handles.journal.dead().end());
    let Some(found) = select(&app, &filter, range).await?.0.pop() else {
        return Err(not_found(id));
    };
    if let Some(reason) = final_reason(&app, id) {
        return Err(bad_request(format!("dead letter {id}: {reason}")));
    }
    let payload = edit.payload.as_bytes();
    let attempts = app.handles.fates.of(id).attempts + 1;
    let (outcome, state) = match found.letter.stage {
        LetterStage::Intake => (app.handles.take_in(&found, payload, edit.dry_run).await, DeadLetterState::TakenIn),
        // The refused event stays unchanged and is discarded in favour of the new one.
        LetterStage::Central => {
            (app.handles.send_edited(&found, payload, edit.dry_run).await, DeadLetterState::Discarded)
        }
    };
    outcome.map_err(|reason| bad_request(format!("dead letter {id}: {reason}")))?;
    if !edit.dry_run {
        save(&app, vec![(found, fate(state, attempts))], "dead edit").await?;
    }
    Ok(json(LetterDecision { matched: 1, done: 1, dry_run: edit.dry_run, ..LetterDecision::default() }))
}
