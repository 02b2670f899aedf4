//! Dead letters over the socket: which there are, and what is done with them.
//!
//! Promise: a letter that is requeued keeps its id; one that still breaks its contract is refused with the
//! violation; whatever is decided is audited, and repeats of it change nothing.

use super::{App, Letter, failed, off_thread};
use crate::clock;
use crate::contract::SourceKind;
use crate::event::{Attribute, Content, Id, Record, Timestamp};
use crate::ingest::Beside;
use crate::ingest::dead::fates::{Fate, State as FateState};
use crate::ingest::dead::{DeadLetter, Stage};
use crate::journal::{Found, NotTaken, Waiter};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Letters decided on at once.
const LETTERS_MAX: usize = 100_000;
/// Refusals that an answer lists; the others are counted.
const REFUSALS_SHOWN: usize = 100;

/// Which letters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// These, by number; all others fields then only narrow them down.
    #[serde(default)]
    pub ids: Vec<u64>,
    /// All, where nothing else is said.
    #[serde(default)]
    pub all: bool,
    /// Of this stream, with or without its version.
    pub stream: Option<String>,
    /// Whose reason has this in it.
    pub reason: Option<String>,
    /// That this destination refused.
    pub destination: Option<String>,
    /// That became dead letters here.
    pub stage: Option<Stage>,
    /// Written at or after this moment.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub since: Option<Timestamp>,
    /// Written before this moment.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub until: Option<Timestamp>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

impl Which {
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

    fn takes(&self, id: u64, letter: &DeadLetter<'_>, recorded: Timestamp) -> bool {
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

/// What was done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Decided {
    /// Letters that were meant.
    pub matched: u64,
    /// Letters that it was done to, or would be.
    pub done: u64,
    /// Letters that it was not done to: number and reason; the first of them.
    pub refused: Vec<(u64, String)>,
    /// How many those are in all.
    pub refused_count: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
}

impl Decided {
    fn refuse(&mut self, id: u64, reason: String) {
        self.refused_count += 1;
        if self.refused.len() < REFUSALS_SHOWN {
            self.refused.push((id, reason));
        }
    }
}

/// A payload in place of the one that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The payload as text.
    pub payload: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// A letter as it is in the journal.
struct Held {
    id: u64,
    recorded: Timestamp,
    letter: DeadLetter<'static>,
    record: Vec<u8>,
}

impl super::Handles {
    fn select(&self, which: &Which) -> Result<Vec<Held>, String> {
        if which.is_empty() {
            return Err(
                "which letters? give numbers, --stream, --reason, --destination, --since or --until, or --all".into()
            );
        }
        let dead = self.journal.dead();
        let mut found = Vec::new();
        let (mut next, end) = match (which.ids.iter().min(), which.ids.iter().max()) {
            (Some(first), Some(last)) => ((*first).max(1), last.saturating_add(1).min(dead.end())),
            _ => (dead.first(), dead.end()),
        };
        while next < end && found.len() < LETTERS_MAX {
            match dead.look(next) {
                Ok(Found::Block(block)) => {
                    for (offset, record) in (block.header.first..).zip(block.records()) {
                        if !(next..end).contains(&offset) {
                            continue;
                        }
                        let Some(letter) = DeadLetter::read(&record) else { continue };
                        if which.takes(offset, &letter, block.header.recorded) {
                            let mut bytes = Vec::new();
                            record.encode(&mut bytes);
                            found.push(Held { id: offset, recorded: block.header.recorded, letter, record: bytes });
                        }
                    }
                    next = next.max(block.end());
                }
                Ok(Found::Lost { to }) => next = to.max(next + 1),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(found)
    }

    fn source_kind(&self, source: &str) -> Option<SourceKind> {
        self.view.load().sources.iter().find(|known| known.name == source).map(|known| known.kind)
    }

    /// Takes a letter of the intake in once more, with this payload.
    async fn take_in(&self, found: &Held, payload: &[u8], is_dry_run: bool) -> Result<(), String> {
        let letter = &found.letter;
        let source = letter.origin.split('/').next().unwrap_or_default();
        let source = percent_encoding::percent_decode_str(source).decode_utf8_lossy().into_owned();
        let kind = self
            .source_kind(&source)
            .ok_or_else(|| format!("its source \"{source}\" is not in the configuration any more"))?;
        let device = letter.origin.split('/').nth(1).unwrap_or_default();
        let device = percent_encoding::percent_decode_str(device).decode_utf8_lossy().into_owned();
        // Letters of older versions do not say who sent them.
        let client = if letter.client.is_empty() { device.as_str() } else { &letter.client };
        let route = self.ingest.route(kind, &source, &letter.topic, client, &letter.user);
        if let Some(violation) = self.ingest.objection(&route, payload) {
            return Err(format!("it still breaks its contract: {violation}"));
        }
        if is_dry_run {
            return Ok(());
        }
        // The letter's own id: whoever requeues it twice makes one event in effect.
        let record = Record::decode(&found.record).map_err(|error| error.to_string())?;
        let id = record.id.to_string();
        let beside = Beside { id: Some(&id), time: Some(letter.time), ..Beside::default() };
        let mut waiter = Waiter::default();
        let now = Timestamp::from(clock::wall());
        let taken = loop {
            match self.ingest.accept(&route, payload, beside, now, &mut waiter) {
                Ok(taken) => break taken,
                Err(NotTaken::NoRoom) => self.ingest.room(&route).await,
                Err(NotTaken::Closed) => return Err("the gateway is shutting down".into()),
            }
        };
        while self.ingest.receipt(&taken).is_none() {
            if self.ingest.is_closed() {
                return Err("the gateway is shutting down".into());
            }
            waiter.woken().await;
        }
        Ok(())
    }

    /// Sends what central has refused with another payload: another event, which names the one before.
    async fn send_edited(&self, found: &Held, payload: &[u8], is_dry_run: bool) -> Result<(), String> {
        let letter = &found.letter;
        let record = Record::decode(&found.record).map_err(|error| error.to_string())?;
        let stream = letter.stream_id();
        self.ingest
            .check_payload(&stream, payload)
            .map_err(|violation| format!("it breaks its contract: {violation}"))?;
        let known = self.journal.published(record.publication).ok_or("the contract of this event is lost")?;
        let lane = self.journal.lane(&known.publication.lane).ok_or("its lane is not there any more")?;
        if is_dry_run {
            return Ok(());
        }
        let event = Record {
            publication: record.publication,
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

fn wrong(reason: String) -> Response {
    (StatusCode::BAD_REQUEST, reason).into_response()
}

fn fate(state: FateState, attempts: u32) -> Fate {
    Fate { state, at: Timestamp::from(clock::wall()), attempts, ..Fate::default() }
}

/// Notes the fates of letters, audited.
async fn put(app: &App, letters: Vec<(Held, Fate)>, action: &'static str) -> Result<(), Response> {
    if letters.is_empty() {
        return Ok(());
    }
    let handles = Arc::clone(&app.handles);
    let written = off_thread(move || {
        let list: Vec<_> = letters.iter().map(|(found, fate)| (found.id, &found.letter, fate.clone())).collect();
        let changed = handles.fates.put(&list)?;
        let what: Vec<_> = letters
            .iter()
            .filter(|(found, _)| changed.contains(&found.id))
            .map(|(found, _)| serde_json::json!({"letter": found.id, "stream": found.letter.stream, "event": found.letter.event_id, "written": found.recorded.to_string()}))
            .collect();
        // A part at a time, so that no entry grows without bound.
        what.chunks(200).try_for_each(|part| handles.journal.audit(action, &part))
    });
    written.await.map_err(IntoResponse::into_response)?.map_err(failed)
}

async fn select(app: &App, which: &Which) -> Result<Vec<Held>, Response> {
    let (handles, wanted) = (Arc::clone(&app.handles), which.clone());
    let found =
        off_thread(move || handles.select(&wanted)).await.map_err(IntoResponse::into_response)?.map_err(wrong)?;
    // A letter outlives its destination and its stream: only what none has may be a slip of the pen.
    if found.is_empty() {
        let destination = which.destination.as_deref().and_then(|name| app.handles.unknown_destination(name));
        let unknown = destination.or_else(|| app.handles.unknown_stream(which.stream.as_deref()?));
        if let Some(text) = unknown {
            return Err(wrong(format!("no letter is meant: {text}")));
        }
    }
    Ok(found)
}

/// What is decided of these letters: nothing yet. Numbers that no letter has are refused.
fn undecided(which: &Which, letters: &[Held]) -> Decided {
    let mut decided = Decided { matched: letters.len() as u64, dry_run: which.dry_run, ..Decided::default() };
    for id in which.ids.iter().filter(|id| !letters.iter().any(|found| found.id == **id)) {
        decided.refuse(*id, "there is no such letter, or not with all that was asked for".into());
    }
    decided
}

/// Why nothing is done with a letter any more.
fn is_over(app: &App, id: u64) -> Option<String> {
    let fate = app.handles.fates.of(id);
    fate.state.is_final().then(|| format!("it is {} already, since {}", fate.state.name(), fate.at))
}

pub(super) async fn requeue(State(app): State<App>, Json(which): Json<Which>) -> Result<Json<Decided>, Response> {
    let letters = select(&app, &which).await?;
    let mut decided = undecided(&which, &letters);
    let mut done = Vec::new();
    for found in letters {
        if let Some(reason) = is_over(&app, found.id) {
            decided.refuse(found.id, reason);
            continue;
        }
        let attempts = app.handles.fates.of(found.id).attempts;
        let outcome = match found.letter.stage {
            Stage::Intake => {
                let payload = found.letter.payload.to_vec();
                app.handles
                    .take_in(&found, &payload, which.dry_run)
                    .await
                    .map(|()| fate(FateState::TakenIn, attempts + 1))
            }
            Stage::Central
                if app.handles.view.load().links.iter().any(|link| link.destination == *found.letter.destination) =>
            {
                let destination = found.letter.destination.to_string();
                Ok(Fate { destination, ..fate(FateState::Requeued, attempts) })
            }
            Stage::Central => {
                Err(format!("its destination \"{}\" is not in the configuration any more", found.letter.destination))
            }
        };
        match outcome {
            Ok(fate) => {
                decided.done += 1;
                done.push((found, fate));
            }
            Err(reason) => decided.refuse(found.id, reason),
        }
    }
    if !which.dry_run {
        put(&app, done, "dead requeue").await?;
    }
    Ok(Json(decided))
}

pub(super) async fn discard(State(app): State<App>, Json(which): Json<Which>) -> Result<Json<Decided>, Response> {
    let letters = select(&app, &which).await?;
    let mut decided = undecided(&which, &letters);
    let mut done = Vec::new();
    for found in letters {
        match is_over(&app, found.id) {
            Some(reason) => decided.refuse(found.id, reason),
            None => {
                decided.done += 1;
                let attempts = app.handles.fates.of(found.id).attempts;
                done.push((found, fate(FateState::Discarded, attempts)));
            }
        }
    }
    if !which.dry_run {
        put(&app, done, "dead discard").await?;
    }
    Ok(Json(decided))
}

pub(super) async fn edit(
    State(app): State<App>,
    Path(id): Path<u64>,
    Json(edit): Json<Edit>,
) -> Result<Json<Decided>, Response> {
    let which = Which { ids: vec![id], ..Which::default() };
    let Some(found) = select(&app, &which).await?.into_iter().next() else {
        let text = format!("there is no dead letter {id}; `forebay dead list` shows which there are");
        return Err((StatusCode::NOT_FOUND, text).into_response());
    };
    if let Some(reason) = is_over(&app, id) {
        return Err(wrong(format!("dead letter {id}: {reason}")));
    }
    let payload = edit.payload.as_bytes();
    let attempts = app.handles.fates.of(id).attempts + 1;
    let (outcome, state) = match found.letter.stage {
        Stage::Intake => (app.handles.take_in(&found, payload, edit.dry_run).await, FateState::TakenIn),
        // The event that central refused stays what it was; it is given up for another one.
        Stage::Central => (app.handles.send_edited(&found, payload, edit.dry_run).await, FateState::Discarded),
    };
    outcome.map_err(|reason| wrong(format!("dead letter {id}: {reason}")))?;
    if !edit.dry_run {
        put(&app, vec![(found, fate(state, attempts))], "dead edit").await?;
    }
    Ok(Json(Decided { matched: 1, done: 1, dry_run: edit.dry_run, ..Decided::default() }))
}

/// Adds to a letter what has become of it.
pub(super) fn with_fate(mut letter: Letter, app: &App) -> Letter {
    letter.fate = app.handles.fates.of(letter.id);
    letter
}
