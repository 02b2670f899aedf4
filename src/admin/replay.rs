//! Replays over the socket.

use super::{App, failed, off_thread};
use crate::forward::again::{Filter, Replay, ReplayState};
use crate::journal::BadSelection;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// A replay that somebody asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Who is to get the events.
    pub destination: String,
    /// Which events.
    pub filter: Filter,
    /// Events a second at most.
    pub rate: Option<u64>,
    /// Only count them.
    #[serde(default)]
    pub dry_run: bool,
}

impl super::Handles {
    /// That there is no such destination, and which there are.
    pub(super) fn unknown_destination(&self, wanted: &str) -> Option<String> {
        let mut names: Vec<_> = self.view.load().links.iter().map(|link| link.destination.clone()).collect();
        names.dedup();
        (!names.iter().any(|name| name == wanted)).then(|| match names.as_slice() {
            [] => format!("there is no destination \"{wanted}\"; none is configured"),
            names => format!("there is no destination \"{wanted}\"; there are {}", names.join(", ")),
        })
    }

    /// That there is no such stream, with or without its version, and which there are.
    pub(super) fn unknown_stream(&self, wanted: &str) -> Option<String> {
        BadSelection::no_stream(wanted, &self.journal.publications()).map(|bad| bad.to_string())
    }
}

fn refuse(code: StatusCode, text: String) -> Response {
    (code, text).into_response()
}

pub(super) async fn begin(State(app): State<App>, Json(wish): Json<Wish>) -> Result<Json<Replay>, Response> {
    let mut streams = wish.filter.streams.iter().filter(|pattern| !pattern.ends_with('*'));
    let unknown = app.handles.unknown_destination(&wish.destination);
    if let Some(text) = unknown.or_else(|| streams.find_map(|stream| app.handles.unknown_stream(stream))) {
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    if let (Some(since), Some(until)) = (wish.filter.since, wish.filter.until)
        && since >= until
    {
        return Err(refuse(StatusCode::BAD_REQUEST, format!("nothing lies between {since} and {until}")));
    }
    let begun = off_thread(move || {
        let handles = &app.handles;
        let Wish { destination, filter, rate, dry_run } = wish;
        let replay = handles.replays.begin(&handles.journal, &destination, filter, rate, dry_run)?;
        if !dry_run {
            handles.audit("replay", &replay)?;
        }
        Ok(replay)
    });
    begun.await.map_err(IntoResponse::into_response)?.map(Json).map_err(failed)
}

pub(super) async fn list(State(app): State<App>) -> Json<Vec<Replay>> {
    Json(app.handles.replays.list())
}

pub(super) async fn show(State(app): State<App>, Path(id): Path<u64>) -> Result<Json<Replay>, Response> {
    let found = app.handles.replays.find(id);
    found.map(Json).ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("there is no replay {id}")))
}

pub(super) async fn set_state(
    State(app): State<App>,
    Path((id, word)): Path<(u64, String)>,
) -> Result<Json<Replay>, Response> {
    let state = match word.as_str() {
        "pause" => ReplayState::Paused,
        "resume" => ReplayState::Running,
        "cancel" => ReplayState::Cancelled,
        _ => {
            return Err(refuse(
                StatusCode::NOT_FOUND,
                format!("\"{word}\" cannot be done; pause, resume and cancel can"),
            ));
        }
    };
    let set = off_thread(move || {
        let set = app.handles.replays.set_state(id, state)?;
        if let Some(replay) = &set {
            app.handles.audit(&format!("replay {word}"), replay)?;
        }
        Ok(set)
    });
    match set.await.map_err(IntoResponse::into_response)?.map_err(failed)? {
        Some(replay) => Ok(Json(replay)),
        None => Err(refuse(
            StatusCode::NOT_FOUND,
            format!("there is no replay {id} that goes on; see `forebay replay list`"),
        )),
    }
}
