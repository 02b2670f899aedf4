//! Shows dead letters: lists without payloads, single letters with the payload.
//!
//! Promise: a list needs the memory of one block of the dead-letter log, whatever the payload sizes are.

use super::selection::not_found;
use crate::admin::handles::Handles;
use crate::admin::request::{ApiResult, CommandRequest, Query, blocking, json};
use crate::admin::streaming::{self, Items};
use crate::api::{DeadLetterStatus, Letter};
use crate::event::{Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::journal::ReadResult;
use base64::Engine;
use std::sync::Arc;

/// Lists letters from an id on, or the newest ones.
pub(in crate::admin) async fn list(request: CommandRequest, query: Query<'_>) -> ApiResult {
    let (from, limit) = (query.number("from")?.unwrap_or(0), query.limit()?);
    let handles = Arc::clone(&request.handles);
    let found = blocking(move || {
        let from = if from > 0 { from } else { handles.first_of_newest(limit) };
        letters(handles, from, limit)
    });
    streaming::array(request.shutdown, "dead letters", found.await?)
}

pub(in crate::admin) async fn show(request: CommandRequest, id: u64) -> ApiResult {
    blocking(move || request.handles.whole_letter(id)).await?.map(json).ok_or_else(|| not_found(id))
}

/// Returns encoded letters from an id on; reads one block of the log at a time.
fn letters(handles: Arc<Handles>, from: u64, limit: usize) -> Items {
    let mut next = from.max(1);
    let blocks = std::iter::from_fn(move || {
        let (found, after) = handles.letters_at(next)?;
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
    fn letters_at(&self, from: u64) -> Option<(Result<Vec<Letter>, String>, u64)> {
        let dead = self.journal.dead();
        if from >= dead.end() {
            return None;
        }
        Some(match dead.read_at(from) {
            Ok(ReadResult::Block(block)) => {
                let numbered = (block.header.first..).zip(block.records()).filter(|(number, _)| *number >= from);
                let shown = numbered.filter_map(|(number, record)| {
                    let found = letter(number, block.header.recorded, &record, self.fates.of(number))?;
                    Some(found.0)
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
        let (mut found, payload) = letter(id, block.header.recorded, &record, self.fates.of(id))?;
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

/// Decodes a record into a letter without its payload; `None` if the record is no letter.
fn letter(id: u64, recorded: Timestamp, record: &Record<'_>, fate: DeadLetterStatus) -> Option<(Letter, Vec<u8>)> {
    let stored = DeadLetter::read(record)?;
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
    Some((letter, payload))
}
