//! Requests that start, show, pause, resume and cancel replays.

use super::{ApiResult, App, json, read_json, refuse, try_blocking};
use crate::api::{ReplayRequest, ReplayState};
use crate::journal::BadSelection;
use hyper::StatusCode;
use hyper::body::Incoming;

impl super::Handles {
    /// Returns an error text with the known destinations if `wanted` is not one of them.
    pub(super) fn unknown_destination(&self, wanted: &str) -> Option<String> {
        let mut names: Vec<_> = self.view.load().links.iter().map(|link| link.destination.clone()).collect();
        names.dedup();
        (!names.iter().any(|name| name == wanted)).then(|| match names.as_slice() {
            [] => format!("there is no destination \"{wanted}\"; none is configured"),
            names => format!("there is no destination \"{wanted}\"; there are {}", names.join(", ")),
        })
    }

    /// Returns an error text with the known streams if `wanted`, with or without version, is not one of them.
    pub(super) fn unknown_stream(&self, wanted: &str) -> Option<String> {
        BadSelection::no_stream(wanted, &self.journal.publications()).map(|bad| bad.to_string())
    }
}

pub(super) async fn begin(app: App, body: Incoming) -> ApiResult {
    let request: ReplayRequest = read_json(body).await?;
    let mut streams = request.filter.streams.iter().filter(|pattern| !pattern.ends_with('*'));
    let unknown = app.handles.unknown_destination(&request.destination);
    if let Some(text) = unknown.or_else(|| streams.find_map(|stream| app.handles.unknown_stream(stream))) {
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    if let (Some(since), Some(until)) = (request.filter.since, request.filter.until)
        && since >= until
    {
        return Err(refuse(StatusCode::BAD_REQUEST, format!("nothing lies between {since} and {until}")));
    }
    let begun = try_blocking(move || {
        let handles = &app.handles;
        let ReplayRequest { destination, filter, rate, dry_run } = request;
        let replay = handles.replays.begin(&handles.journal, &destination, filter, rate, dry_run)?;
        if !dry_run {
            handles.audit("replay", &replay)?;
        }
        Ok(replay)
    });
    begun.await.map(json)
}

pub(super) fn show(app: &App, id: u64) -> ApiResult {
    let found = app.handles.replays.find(id);
    found.map(json).ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("there is no replay {id}")))
}

pub(super) async fn set_state(app: App, id: u64, word: String) -> ApiResult {
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
        let set = app.handles.replays.set_state(id, state)?;
        if let Some(replay) = &set {
            app.handles.audit(&format!("replay {word}"), replay)?;
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
