//! Selects stored dead letters.
//!
//! Invariant: a batch is bounded in letters and bytes, whatever the selection is.

use crate::admin::handles::Handles;
use crate::admin::request::{ApiError, blocking, refuse};
use crate::api::LetterFilter;
use crate::event::{Attribute, Record, Timestamp};
use crate::ingest::EventMetadata;
use crate::ingest::dead::DeadLetter;
use crate::journal::ReadResult;
use hyper::StatusCode;
use std::ops::Range;
use std::sync::Arc;

const BATCH_LETTERS: usize = 500;
/// A batch is full once its payloads reach this size.
const BATCH_BYTES: usize = 1 << 20;

impl LetterFilter {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && !self.all
            && self.stream.is_none()
            && self.reason.is_none()
            && self.destination.is_none()
            && self.stage.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }

    pub(super) fn matches(&self, id: u64, letter: &DeadLetter<'_>, recorded: Timestamp) -> bool {
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

/// A dead letter from the journal.
pub(super) struct StoredLetter {
    pub number: u64,
    pub recorded: Timestamp,
    pub letter: DeadLetter<'static>,
    /// Id of the dead letter; differs from the id of its event.
    pub id: String,
    pub publication: u32,
    content_type: Option<String>,
    trace_parent: Option<String>,
    /// Block of properties of its publish.
    pub properties: Vec<u8>,
}

impl StoredLetter {
    fn read(number: u64, recorded: Timestamp, letter: DeadLetter<'static>, record: &Record<'_>) -> Self {
        let (mut content_type, mut trace_parent, mut properties) = (None, None, Vec::new());
        for attribute in &record.attributes {
            match attribute {
                Attribute::ContentType(text) => content_type = Some((*text).to_owned()),
                Attribute::TraceParent(text) => trace_parent = Some((*text).to_owned()),
                Attribute::Properties(block) => properties = (*block).to_vec(),
                _ => {}
            }
        }
        let (id, publication) = (record.id.to_string(), record.publication);
        Self { number, recorded, letter, id, publication, content_type, trace_parent, properties }
    }

    /// Returns the metadata of the event. An event without an id gets the id of the letter, so that requeuing
    /// it twice makes one event.
    pub(super) fn metadata(&self) -> EventMetadata<'_> {
        let letter = &self.letter;
        EventMetadata {
            id: Some(if letter.event_id.is_empty() { &self.id } else { &letter.event_id }),
            key: Some(&*letter.key).filter(|key| !key.is_empty()),
            time: Some(letter.time),
            content_type: self.content_type.as_deref(),
            trace_parent: self.trace_parent.as_deref(),
            ..EventMetadata::default()
        }
    }
}

impl Handles {
    /// Reads a batch of the selected letters. Blocks the thread.
    fn select(&self, filter: &LetterFilter, range: Range<u64>) -> Result<(Vec<StoredLetter>, u64), String> {
        let dead = self.journal.dead();
        let (mut found, mut bytes) = (Vec::new(), 0);
        let mut next = range.start;
        while next < range.end {
            match dead.read_at(next).map_err(|error| error.to_string())? {
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
}

/// Returns a batch of the selected letters in `range`, and the number at which the next batch starts.
pub(super) async fn select(
    handles: &Arc<Handles>,
    filter: &LetterFilter,
    range: Range<u64>,
) -> Result<(Vec<StoredLetter>, u64), ApiError> {
    let (handles, filter) = (Arc::clone(handles), filter.clone());
    blocking(move || handles.select(&filter, range)).await?.map_err(bad_request)
}

pub(super) fn bad_request(reason: String) -> ApiError {
    refuse(StatusCode::BAD_REQUEST, reason)
}

/// Error for an unknown letter.
pub(super) fn not_found(id: u64) -> ApiError {
    let text = format!("there is no dead letter {id}; `forebay dead list` shows all");
    refuse(StatusCode::NOT_FOUND, text)
}
