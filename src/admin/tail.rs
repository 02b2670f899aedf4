//! Follows new events and dead letters: one JSON object per line, until the client disconnects.
//!
//! Invariant: a slow client holds back its own lines only, never a lane.

use super::request::{ApiResult, CommandRequest, Query, refuse};
use crate::api::TailEvent;
use crate::contract::on_one_line;
use crate::event::{Content, Record, Timestamp};
use crate::http::{self, BodySender};
use crate::ingest::dead::DeadLetter;
use crate::journal::{DEAD, Follower, Lane, ReadResult};
use crate::shutdown::Shutdown;
use base64::Engine;
use hyper::StatusCode;
use std::sync::Arc;
use tokio::sync::Mutex;

pub(super) fn tail(request: CommandRequest, query: Query<'_>) -> ApiResult {
    let stream = query.text("stream");
    if let Some(text) = stream.as_ref().and_then(|stream| request.handles.unknown_stream(stream)) {
        return Err(refuse(StatusCode::NOT_FOUND, text));
    }
    let (sender, reply) = http::streaming(16);
    let sender = Arc::new(Mutex::new(sender));
    let journal = &request.handles.journal;
    for lane in journal.lanes().iter().chain([journal.dead()]) {
        let (lane, sender, shutdown) = (Arc::clone(lane), Arc::clone(&sender), request.shutdown.clone());
        tokio::spawn(follow(lane, stream.clone(), sender, shutdown));
    }
    Ok(reply)
}

/// Writes new events of a lane until the reader disconnects.
async fn follow(lane: Arc<Lane>, stream: Option<String>, sender: Arc<Mutex<BodySender>>, mut shutdown: Shutdown) {
    let mut reader = sender.lock().await.reader();
    let mut follower = Follower::new(&lane);
    let mut next = follower.end();
    loop {
        let found = tokio::select! {
            () = shutdown.begun() => return,
            // Needed on an idle lane, whose next event may be days away.
            () = reader.gone() => return,
            found = follower.find(next) => found,
        };
        match found {
            None => return,
            Some(ReadResult::Lost { to }) => next = to.max(next + 1),
            Some(ReadResult::Block(block)) => {
                let mut lines = Vec::new();
                let numbered = (block.header.first..).zip(block.records()).filter(|(offset, _)| *offset >= next);
                for (offset, record) in numbered {
                    if let Some(event) = tail_event(&lane, (offset, block.header.recorded), &record, stream.as_deref())
                        && let Ok(line) = serde_json::to_vec(&event)
                    {
                        lines.extend_from_slice(&line);
                        lines.push(b'\n');
                    }
                }
                next = next.max(block.end());
                if !lines.is_empty() && !sender.lock().await.send(lines).await {
                    return;
                }
            }
        }
    }
}

/// Returns an event with its offset and the time of its commit; `None` if it is in another stream than the wanted one.
fn tail_event(
    lane: &Lane,
    (offset, recorded): (u64, Timestamp),
    record: &Record<'_>,
    wanted: Option<&str>,
) -> Option<TailEvent> {
    if lane.name == DEAD {
        return dead_letter((offset, recorded), record, wanted);
    }
    let published = lane.published(record.publication);
    if wanted.is_some_and(|wanted| !published.as_ref().is_some_and(|one| one.is_named(wanted))) {
        return None;
    }
    let is_json = record.content == Content::Json;
    Some(TailEvent {
        lane: lane.name.clone(),
        stream: published.map_or_else(String::new, |published| published.publication.stream.clone()),
        offset,
        recorded: recorded.to_string(),
        time: record.time.to_string(),
        origin: record.origin.to_owned(),
        key: record.key.to_owned(),
        id: record.id.to_string(),
        data: is_json.then(|| on_one_line(record.payload)).flatten(),
        data_base64: (!is_json).then(|| base64::engine::general_purpose::STANDARD.encode(record.payload)),
        topic: None,
        reason: None,
    })
}

/// Returns a dead letter without its payload, as lists of dead letters do.
fn dead_letter((offset, recorded): (u64, Timestamp), record: &Record<'_>, wanted: Option<&str>) -> Option<TailEvent> {
    let letter = DeadLetter::read(record)?;
    let is_named = |wanted: &str| match wanted.strip_suffix('*') {
        Some(start) => letter.stream.starts_with(start),
        None => letter.stream == wanted || letter.stream_id() == wanted,
    };
    wanted.is_none_or(is_named).then(|| TailEvent {
        lane: DEAD.to_owned(),
        stream: letter.stream.to_string(),
        offset,
        recorded: recorded.to_string(),
        time: letter.time.to_string(),
        origin: letter.origin.to_string(),
        key: letter.key.to_string(),
        id: letter.event_id.clone(),
        data: None,
        data_base64: None,
        topic: Some(letter.topic.to_string()),
        reason: Some(letter.reason.to_string()),
    })
}
