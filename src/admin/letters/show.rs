//! Shows dead letters: lists without payloads, single letters with the payload.
//!
//! Promise: a list needs the memory of one block of the dead-letter log and of the letters that it shows, whatever the
//! payload sizes are.

use super::selection::not_found;
use crate::admin::handles::Handles;
use crate::admin::request::{ApiError, ApiResult, CommandRequest, Query, blocking, json, refuse};
use crate::admin::streaming::{self, Items};
use crate::api::{DeadLetterStatus, Letter, LetterFilter, LetterStage};
use crate::event::Timestamp;
use crate::ingest::dead::DeadLetter;
use crate::journal::ReadResult;
use base64::Engine;
use hyper::StatusCode;
use std::collections::VecDeque;
use std::sync::Arc;

/// Lists letters from an id on, or the newest ones.
pub(in crate::admin) async fn list(request: CommandRequest, query: Query<'_>) -> ApiResult {
    let (from, limit) = (query.number("from")?.unwrap_or(0), query.limit()?);
    let choice = Choice::of(query)?;
    let handles = Arc::clone(&request.handles);
    let found = blocking(move || match (from, choice.takes_all(&handles)) {
        (0, true) => letters(Arc::clone(&handles), handles.first_of_newest(limit), limit, choice),
        (0, false) => newest(letters(handles, 1, usize::MAX, choice), limit),
        (from, _) => letters(handles, from, limit, choice),
    });
    streaming::array(request.shutdown, "dead letters", found.await?)
}

pub(in crate::admin) async fn show(request: CommandRequest, id: u64) -> ApiResult {
    blocking(move || request.handles.whole_letter(id)).await?.map(json).ok_or_else(|| not_found(id))
}

/// The letters of a list.
#[derive(Debug, Default)]
struct Choice {
    filter: LetterFilter,
    /// Only letters that wait for a decision, or for its result.
    is_open: bool,
}

impl Choice {
    fn of(query: Query<'_>) -> Result<Self, ApiError> {
        let wrong = |name: &str, text: &str, allowed: &str| {
            refuse(StatusCode::BAD_REQUEST, format!("{name} is \"{text}\"; expected {allowed}"))
        };
        let time = |name: &str| {
            let parse = |text: String| Timestamp::parse(&text).ok_or_else(|| wrong(name, &text, "a time in RFC 3339"));
            query.text(name).map(parse).transpose()
        };
        let stage = match query.text("stage").as_deref() {
            None => None,
            Some("intake") => Some(LetterStage::Intake),
            Some("central") => Some(LetterStage::Central),
            Some(other) => return Err(wrong("stage", other, "\"intake\" or \"central\"")),
        };
        let filter = LetterFilter {
            stream: query.text("stream"),
            reason: query.text("reason"),
            destination: query.text("destination"),
            stage,
            since: time("since")?,
            until: time("until")?,
            ..LetterFilter::default()
        };
        Ok(Self { filter, is_open: query.text("state").as_deref() == Some("open") })
    }

    /// Returns whether the choice takes every letter: the newest ones are then found without reading all others.
    fn takes_all(&self, handles: &Handles) -> bool {
        self.filter.is_empty() && !(self.is_open && handles.fates.decided_from(0) > 0)
    }
}

/// Returns the last `limit` of all items. They are without payloads, so that their memory is bounded.
fn newest(items: Items, limit: usize) -> Items {
    let mut kept = VecDeque::new();
    for item in items {
        if kept.len() == limit {
            kept.pop_front();
        }
        kept.push_back(item);
    }
    Box::new(kept.into_iter())
}

/// Returns encoded letters from an id on; reads one block of the log at a time.
fn letters(handles: Arc<Handles>, from: u64, limit: usize, choice: Choice) -> Items {
    let mut next = from.max(1);
    let blocks = std::iter::from_fn(move || {
        let (found, after) = handles.letters_at(next, &choice)?;
        next = after;
        Some(found)
    });
    let encoded = |found: Result<Vec<Letter>, String>| -> Vec<Result<Vec<u8>, String>> {
        match found {
            Ok(letters) => letters.iter().map(streaming::item).collect(),
            Err(error) => vec![Err(error)],
        }
    };
    Box::new(blocks.flat_map(encoded).take(limit))
}

impl Handles {
    /// Reads the block with the letter `from`, or the next one. Returns its letters from there on and the start of the
    /// following block; `None` at the end of the log. Blocks the thread.
    fn letters_at(&self, from: u64, choice: &Choice) -> Option<(Result<Vec<Letter>, String>, u64)> {
        let dead = self.journal.dead();
        if from >= dead.end() {
            return None;
        }
        Some(match dead.read_at(from) {
            Ok(ReadResult::Block(block)) => {
                let numbered = (block.header.first..).zip(block.records()).filter(|(number, _)| *number >= from);
                let recorded = block.header.recorded;
                let shown = numbered.filter_map(|(number, record)| {
                    let stored = DeadLetter::read(&record)?;
                    let fate = self.fates.of(number);
                    let is_chosen =
                        choice.filter.matches(number, &stored, recorded) && !(choice.is_open && fate.state.is_final());
                    is_chosen.then(|| letter(number, recorded, stored, fate).0)
                });
                (Ok(shown.collect()), block.end().max(from + 1))
            }
            Ok(ReadResult::Lost { to }) => (Ok(Vec::new()), to.max(from + 1)),
            Err(error) => (Err(error.to_string()), u64::MAX),
        })
    }

    /// Returns a letter with its payload. Blocks the thread.
    fn whole_letter(&self, id: u64) -> Option<Letter> {
        let Ok(ReadResult::Block(block)) = self.journal.dead().read_at(id) else { return None };
        let (_, record) = (block.header.first..).zip(block.records()).find(|(number, _)| *number == id)?;
        let stored = DeadLetter::read(&record)?;
        let (mut found, payload) = letter(id, block.header.recorded, stored, self.fates.of(id));
        match String::from_utf8(payload) {
            Ok(text) => found.payload_text = Some(text),
            Err(error) => {
                found.payload_base64 = Some(base64::engine::general_purpose::STANDARD.encode(error.as_bytes()));
            }
        }
        Some(found)
    }

    /// Returns the id of the oldest of the newest `limit` letters. Ids may have gaps. Blocks the thread.
    fn first_of_newest(&self, limit: usize) -> u64 {
        let dead = self.journal.dead();
        let (mut end, mut step, mut missing) = (dead.end(), limit as u64, limit);
        while end > 1 {
            let from = dead.before(end, step);
            let mut numbers: Vec<u64> = Vec::new();
            let mut next = from.max(1);
            while next < end {
                match dead.read_at(next) {
                    Ok(ReadResult::Block(block)) => {
                        numbers.extend((block.header.first..block.end()).filter(|number| (next..end).contains(number)));
                        next = block.end().max(next + 1);
                    }
                    Ok(ReadResult::Lost { to }) => next = to.max(next + 1),
                    Err(_) => break,
                }
            }
            if numbers.len() >= missing {
                return numbers[numbers.len() - missing];
            }
            missing -= numbers.len();
            (end, step) = (from, step.saturating_mul(4));
        }
        1
    }
}

/// Returns a letter without its payload, and the payload.
fn letter(id: u64, recorded: Timestamp, stored: DeadLetter<'_>, fate: DeadLetterStatus) -> (Letter, Vec<u8>) {
    let payload = stored.payload.into_owned();
    let letter = Letter {
        id,
        recorded: recorded.to_string(),
        attempts: stored.attempts,
        authtype: stored.authtype,
        client: stored.client.into_owned(),
        destination: stored.destination.into_owned(),
        event_id: stored.event_id,
        first_attempt: stored.first_attempt,
        is_by_rule: stored.is_by_rule,
        is_opaque: stored.is_opaque,
        key: stored.key.into_owned(),
        last_attempt: stored.last_attempt,
        origin: stored.origin.into_owned(),
        reason: stored.reason.into_owned(),
        sequence: stored.sequence,
        stage: stored.stage,
        stream: stored.stream.into_owned(),
        taken: stored.taken,
        time: stored.time,
        topic: stored.topic.into_owned(),
        user: stored.user.into_owned(),
        version: stored.version.into_owned(),
        fate,
        payload_bytes: payload.len(),
        payload_text: None,
        payload_base64: None,
    };
    (letter, payload)
}
