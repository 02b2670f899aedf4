//! Requests that start, show, pause, resume and cancel replays.

use super::request::{ApiResult, CommandRequest, json, read_json, refuse, try_blocking};
use crate::api::{ReplayRequest, ReplayState};
use crate::forward::replays::ReplaySpec;
use crate::journal::DONE;
use hyper::StatusCode;
use hyper::body::Incoming;

pub(super) async fn begin(request: CommandRequest, body: Incoming) -> ApiResult {
    let wanted: ReplayRequest = read_json(body).await?;
    let mut streams = wanted.filter.streams.iter().filter(|pattern| !pattern.ends_with('*'));
    let unknown = request.handles.unknown_destination(&wanted.destination);
    if let Some(text) = unknown.or_else(|| streams.find_map(|stream| request.handles.unknown_stream(stream))) {
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    if let (Some(since), Some(until)) = (wanted.filter.since, wanted.filter.until)
        && since >= until
    {
        return Err(refuse(StatusCode::BAD_REQUEST, format!("nothing lies between {since} and {until}")));
    }
    let begun = try_blocking(move || {
        let handles = &request.handles;
        let ReplayRequest { destination, filter, rate, dry_run } = wanted;
        let replay = handles.replays.begin(&handles.journal, ReplaySpec { destination, filter, rate }, dry_run)?;
        if !dry_run {
            request.audit("replay", &replay, DONE)?;
        }
        Ok(replay)
    });
    begun.await.map(json)
}

pub(super) fn show(request: &CommandRequest, id: u64) -> ApiResult {
    let found = request.handles.replays.find(id);
    found.map(json).ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("there is no replay {id}")))
}

pub(super) async fn set_state(request: CommandRequest, id: u64, word: String) -> ApiResult {
    let state = match word.as_str() {
        "pause" => ReplayState::Paused,
        "resume" => ReplayState::Running,
        "cancel" => ReplayState::Cancelled,
        _ => {
            return Err(refuse(
                StatusCode::NOT_FOUND,
                format!("\"{word}\" is no action; expected pause, resume or cancel"),
            ));
        }
    };
    let set = try_blocking(move || {
        let set = request.handles.replays.set_state(id, state)?;
        if let Some(replay) = &set {
            request.audit(&format!("replay {word}"), replay, DONE)?;
        }
        Ok(set)
    });
    match set.await? {
        Some(replay) => Ok(json(replay)),
        None => Err(refuse(
            StatusCode::NOT_FOUND,
            format!("there is no running or paused replay {id}; see `forebay replay list`"),
        )),
    }
}
