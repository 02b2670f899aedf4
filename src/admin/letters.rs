//! Shows dead letters: lists without payloads, single letters with the payload.
//!
//! Promise: a list needs the memory of one block of the dead-letter log, whatever the payload sizes are.

use super::rows::{self, Items};
use super::{ApiResult, App, Handles, Query, blocking, dead, json, limit};
use crate::api::DeadLetterStatus;
use crate::event::{Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::journal::ReadResult;
use base64::Engine;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::Value;
use std::sync::Arc;

/// Lists letters from a read_json id on, or the newest ones.
pub(super) async fn list(app: App, query: Query<'_>) -> ApiResult {
    let (from, limit) = (query.number("from")?.unwrap_or(0), limit(query)?);
    let handles = Arc::clone(&app.handles);
    let found = blocking(move || {
        let from = if from > 0 { from } else { handles.first_of_newest(limit) };
        letters(handles, from, limit)
    });
    rows::array(app, "dead letters", found.await?)
}

pub(super) async fn show(app: App, id: u64) -> ApiResult {
    blocking(move || app.handles.whole_letter(id)).await?.map(json).ok_or_else(|| dead::not_found(id))
}

/// A dead letter in a response.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Letter {
    /// Number of the letter: its offset in the dead-letter log.
    pub id: u64,
    /// Time of the commit, RFC 3339.
    pub recorded: String,
    /// The stored letter; its times as RFC 3339.
    #[serde(flatten, serialize_with = "with_shown_times", deserialize_with = "from_shown_times")]
    pub letter: DeadLetter<'static>,
    /// Status of the letter.
    pub fate: DeadLetterStatus,
    /// Size of the payload in bytes.
    pub payload_bytes: usize,
    /// The payload of a single letter if it is UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_text: Option<String>,
    /// The payload of a single letter in base64 if it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
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
            Ok(letters) => letters.iter().map(rows::item).collect(),
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
        Some(match dead.look(from) {
            Ok(ReadResult::Block(block)) => {
                let numbered = (block.header.first..).zip(block.records()).filter(|(number, _)| *number >= from);
                let shown = numbered.filter_map(|(number, record)| {
                    let found = letter(number, block.header.recorded, &record)?;
                    Some(Letter { fate: self.fates.of(number), ..found })
                });
                (Ok(shown.collect()), block.end().max(from + 1))
            }
            Ok(ReadResult::Lost { to }) => (Ok(Vec::new()), to.max(from + 1)),
            Err(error) => (Err(error.to_string()), u64::MAX),
        })
    }

    /// Returns a letter with its payload. Blocks the thread.
    fn whole_letter(&self, id: u64) -> Option<Letter> {
        let Ok(ReadResult::Block(block)) = self.journal.dead().look(id) else { return None };
        let (_, record) = (block.header.first..).zip(block.records()).find(|(number, _)| *number == id)?;
        let mut found = letter(id, block.header.recorded, &record)?;
        found.fate = self.fates.of(id);
        let payload = std::mem::take(&mut found.letter.payload).into_owned();
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
                match dead.look(next) {
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

/// Fields of a letter that are RFC 3339 text in responses, and microseconds as stored.
const TIMES: [&str; 4] = ["time", "first_attempt", "last_attempt", "taken"];

fn with_shown_times<S: Serializer>(letter: &DeadLetter<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut fields = serde_json::to_value(letter).map_err(ser::Error::custom)?;
    for name in TIMES {
        if let Some(micros) = fields[name].as_i64() {
            fields[name] = Timestamp(micros).to_string().into();
        }
    }
    fields.serialize(serializer)
}

fn from_shown_times<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeadLetter<'static>, D::Error> {
    let mut fields = Value::deserialize(deserializer)?;
    for name in TIMES {
        if let Some(time) = fields[name].as_str().and_then(Timestamp::parse) {
            fields[name] = time.0.into();
        }
    }
    serde_json::from_value(fields).map_err(de::Error::custom)
}

/// Decodes a record into a letter without its payload.
fn letter(id: u64, recorded: Timestamp, record: &Record<'_>) -> Option<Letter> {
    let letter = DeadLetter::read(record)?;
    let payload_bytes = letter.payload.len();
    Some(Letter {
        id,
        recorded: recorded.to_string(),
        letter,
        fate: DeadLetterStatus::default(),
        payload_bytes,
        payload_text: None,
        payload_base64: None,
    })
}
