//! Dead letters over the socket: which there are, and what is done with them.
//!
//! Promise: a letter that is requeued keeps its id; one that still breaks its contract is refused with the
//! violation; whatever is decided is audited, and repeats of it change nothing.

use super::{Answered, App, Refused, given, json, off_thread, refuse, tried};
use crate::clock;
use crate::contract::{Sender, SourceKind};
use crate::event::{Attribute, Content, Id, Record, Timestamp};
use crate::ingest::dead::fates::{Fate, State as FateState};
use crate::ingest::dead::{DeadLetter, Stage};
use crate::ingest::{Beside, Publishing, Route};
use crate::journal::{Found, NotTaken, Waiter};
use hyper::StatusCode;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Letters decided on at once, and the bytes of their payloads from which on no further one joins them.
const PART_LETTERS: usize = 500;
const PART_BYTES: usize = 1 << 20;
/// Letters that one entry of the audit names.
const LETTERS_AUDITED: usize = 50;
/// Refusals that an answer lists; the others are counted.
const REFUSALS_SHOWN: usize = 100;

/// Which letters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// These, by number; all others fields then only narrow them down.
    #[serde(default)]
    pub ids: BTreeSet<u64>,
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
    number: u64,
    recorded: Timestamp,
    letter: DeadLetter<'static>,
    /// The letter's own id, which is not that of its event.
    id: String,
    publication: u32,
    content_type: Option<String>,
    trace_parent: Option<String>,
}

impl Held {
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

    /// What its source said of it beside the payload. Without an id of its own it gets the letter's: whoever
    /// requeues it twice makes one event in effect.
    fn beside(&self) -> Beside<'_> {
        let letter = &self.letter;
        Beside {
            id: Some(if letter.event_id.is_empty() { &self.id } else { &letter.event_id }),
            key: Some(&*letter.key).filter(|key| !key.is_empty()),
            time: Some(letter.time),
            content_type: self.content_type.as_deref(),
            trace_parent: self.trace_parent.as_deref(),
            exchange: None,
        }
    }
}

/// What is done with letters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Requeue,
    Discard,
}

impl Action {
    /// Its name in the audit.
    fn name(self) -> &'static str {
        match self {
            Self::Requeue => "dead requeue",
            Self::Discard => "dead discard",
        }
    }
}

impl super::Handles {
    /// A part of the letters that are meant, from a number on, and where the next part begins.
    fn select(&self, which: &Which, range: Range<u64>) -> Result<(Vec<Held>, u64), String> {
        let dead = self.journal.dead();
        let (mut found, mut bytes) = (Vec::new(), 0);
        let mut next = range.start;
        while next < range.end {
            match dead.look(next).map_err(|error| error.to_string())? {
                Found::Lost { to } => next = to.max(next + 1),
                Found::Block(block) => {
                    let (end, recorded) = (block.end(), block.header.recorded);
                    for (number, record) in (block.header.first..).zip(block.records()) {
                        if !(next..range.end).contains(&number) {
                            continue;
                        }
                        let Some(letter) = DeadLetter::read(&record) else { continue };
                        if !which.takes(number, &letter, recorded) {
                            continue;
                        }
                        bytes += letter.payload.len();
                        found.push(Held::read(number, recorded, letter, &record));
                        if found.len() >= PART_LETTERS || bytes >= PART_BYTES {
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

    /// Takes a letter of the intake in once more, with this payload.
    async fn take_in(&self, found: &Held, payload: &[u8], is_dry_run: bool) -> Result<(), String> {
        let letter = &found.letter;
        let plain = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
        let mut parts = letter.origin.split('/').map(plain);
        let (source, device, beneath) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let kind = self
            .source_kind(&source)
            .ok_or_else(|| format!("its source \"{source}\" is not in the configuration any more"))?;
        // Letters of older versions do not say who sent them.
        let client = if letter.client.is_empty() { device.as_deref().unwrap_or_default() } else { &letter.client };
        let sender = Sender { client, user: &letter.user, proven_by: letter.authtype };
        let mut route = self.ingest.route(kind, &source, &letter.topic, sender);
        if letter.is_by_rule {
            route = route.allowed_by_rule();
        }
        if let Some(objection) = foreign(letter, kind, &route) {
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
        let mut waiter = Waiter::default();
        let now = Timestamp::from(clock::wall());
        let taken = loop {
            match self.ingest.accept(&route, payload, found.beside(), now, &mut waiter) {
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

/// What stands against taking in what a client was allowed to publish by its name alone: the contract that matches the
/// topic now may be another one, for another publisher.
fn foreign(letter: &DeadLetter<'_>, kind: SourceKind, route: &Route) -> Option<String> {
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
            "its topic is that of \"{name}\" by the contract of stream \"{stream}\", and \"{user}\" has published it; a rule (acl) would have to allow that, before the client publishes it again"
        )),
        Publishing::ByNobody { stream } => Some(format!(
            "the contract of stream \"{stream}\" names no publisher, so that a rule (acl) would have to allow \"{user}\" the topic, before the client publishes it again"
        )),
    }
}

fn wrong(reason: String) -> Refused {
    refuse(StatusCode::BAD_REQUEST, reason)
}

/// That there is no such letter.
pub(super) fn none(id: u64) -> Refused {
    let text = format!("there is no dead letter {id}; `forebay dead list` shows which there are");
    refuse(StatusCode::NOT_FOUND, text)
}

fn fate(state: FateState, attempts: u32) -> Fate {
    Fate { state, at: Timestamp::from(clock::wall()), attempts, ..Fate::default() }
}

/// Notes the fates of letters, audited.
async fn put(app: &App, letters: Vec<(Held, Fate)>, action: &'static str) -> Result<(), Refused> {
    if letters.is_empty() {
        return Ok(());
    }
    let handles = Arc::clone(&app.handles);
    let written = tried(move || {
        let list: Vec<_> = letters.iter().map(|(found, fate)| (found.number, &found.letter, fate.clone())).collect();
        handles.fates.put_audited(&list, |changed| {
            let what: Vec<_> = letters
                .iter()
                .filter(|(found, _)| changed.contains(&found.number))
                .map(|(found, _)| serde_json::json!({"letter": found.number, "stream": found.letter.stream, "event": found.letter.event_id, "written": found.recorded.to_string()}))
                .collect();
            // A part at a time, so that no entry grows without bound.
            what.chunks(LETTERS_AUDITED).map(|part| handles.audit_note(action, &part)).collect()
        })
    });
    written.await.map(|_| ())
}

async fn select(app: &App, which: &Which, range: Range<u64>) -> Result<(Vec<Held>, u64), Refused> {
    let (handles, wanted) = (Arc::clone(&app.handles), which.clone());
    off_thread(move || handles.select(&wanted, range)).await?.map_err(wrong)
}

/// Why nothing is done with a letter any more.
fn is_over(app: &App, number: u64) -> Option<String> {
    let fate = app.handles.fates.of(number);
    fate.state.is_final().then(|| format!("it is {} already, since {}", fate.state.name(), fate.at))
}

/// What becomes of one letter, or why nothing does.
async fn decide(app: &App, action: Action, found: &Held, is_dry_run: bool) -> Result<Fate, String> {
    if let Some(reason) = is_over(app, found.number) {
        return Err(reason);
    }
    let attempts = app.handles.fates.of(found.number).attempts;
    let letter = &found.letter;
    match (action, letter.stage) {
        (Action::Discard, _) => Ok(fate(FateState::Discarded, attempts)),
        (Action::Requeue, Stage::Intake) => {
            app.handles.take_in(found, &letter.payload, is_dry_run).await?;
            Ok(fate(FateState::TakenIn, attempts + 1))
        }
        (Action::Requeue, Stage::Central) => {
            let destination = letter.destination.to_string();
            if !app.handles.view.load().links.iter().any(|link| link.destination == destination) {
                return Err(format!("its destination \"{destination}\" is not in the configuration any more"));
            }
            Ok(Fate { destination, ..fate(FateState::Requeued, attempts) })
        }
    }
}

/// Decides on all letters that are meant, part by part: each is on the disk and audited before the next.
pub(super) async fn decide_all(app: App, body: Incoming, action: Action) -> Answered {
    let which: Which = given(body).await?;
    let (app, which) = (&app, &which);
    if which.is_empty() {
        let text = "which letters? give numbers, --stream, --reason, --destination, --since or --until, or --all";
        return Err(wrong(text.into()));
    }
    let dead = app.handles.journal.dead();
    let mut range = match (which.ids.first(), which.ids.last()) {
        (Some(first), Some(last)) => (*first).max(1)..last.saturating_add(1).min(dead.end()),
        _ => dead.first()..dead.end(),
    };
    let mut decided = Decided { dry_run: which.dry_run, ..Decided::default() };
    let mut missing = which.ids.clone();
    while range.start < range.end {
        let (letters, next) = select(app, which, range.clone()).await?;
        range.start = next;
        let mut done = Vec::new();
        for found in letters {
            decided.matched += 1;
            missing.remove(&found.number);
            match decide(app, action, &found, which.dry_run).await {
                Ok(fate) => {
                    decided.done += 1;
                    done.push((found, fate));
                }
                Err(reason) => decided.refuse(found.number, reason),
            }
        }
        if !which.dry_run {
            put(app, done, action.name()).await?;
        }
    }
    // A letter outlives its destination and its stream: only what none has may be a slip of the pen.
    if decided.matched == 0 {
        let destination = which.destination.as_deref().and_then(|name| app.handles.unknown_destination(name));
        let unknown = destination.or_else(|| app.handles.unknown_stream(which.stream.as_deref()?));
        if let Some(text) = unknown {
            return Err(wrong(format!("no letter is meant: {text}")));
        }
    }
    for number in missing {
        decided.refuse(number, "there is no such letter, or not with all that was asked for".into());
    }
    Ok(json(decided))
}

pub(super) async fn edit(app: App, id: u64, body: Incoming) -> Answered {
    let edit: Edit = given(body).await?;
    let which = Which { ids: [id].into(), ..Which::default() };
    let range = id..id.saturating_add(1).min(app.handles.journal.dead().end());
    let Some(found) = select(&app, &which, range).await?.0.pop() else {
        return Err(none(id));
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
    Ok(json(Decided { matched: 1, done: 1, dry_run: edit.dry_run, ..Decided::default() }))
}
