//! Replays over the socket.

use super::{Answered, App, given, json, refuse, tried};
use crate::forward::again::{Filter, ReplayState};
use crate::journal::BadSelection;
use hyper::StatusCode;
use hyper::body::Incoming;
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

pub(super) async fn begin(app: App, body: Incoming) -> Answered {
    let wish: Wish = given(body).await?;
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
    let begun = tried(move || {
        let handles = &app.handles;
        let Wish { destination, filter, rate, dry_run } = wish;
        let replay = handles.replays.begin(&handles.journal, &destination, filter, rate, dry_run)?;
        if !dry_run {
            handles.audit("replay", &replay)?;
        }
        Ok(replay)
    });
    begun.await.map(json)
}

pub(super) fn show(app: &App, id: u64) -> Answered {
    let found = app.handles.replays.find(id);
    found.map(json).ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("there is no replay {id}")))
}

pub(super) async fn set_state(app: App, id: u64, word: String) -> Answered {
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
    let set = tried(move || {
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
            format!("there is no replay {id} that goes on; see `forebay replay list`"),
        )),
    }
}
