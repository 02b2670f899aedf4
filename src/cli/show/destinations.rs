//! Formats the destinations of the gateway.

use crate::api::Status;
use crate::cli::table::{age, table};
use crate::setting::grouped as number;
use serde::Serialize;

/// A destination with the sums of its lanes.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Destination {
    name: String,
    /// It is in the configuration; the events of another one wait until it is dropped.
    is_configured: bool,
    is_up: bool,
    queued: u64,
    delivered: u64,
    /// Time of its oldest queued event, RFC 3339.
    oldest: Option<String>,
}

/// Sums up the lanes of each destination.
pub(in crate::cli) fn destination_list(status: &Status) -> Vec<Destination> {
    let mut list: Vec<Destination> = Vec::new();
    for backlog in status.lanes.iter().flat_map(|lane| &lane.destinations) {
        let mut links = status.links.iter().filter(|link| link.destination == backlog.destination).peekable();
        let is_configured = links.peek().is_some();
        let is_up = is_configured && links.all(|link| link.is_up);
        let index = list.iter().position(|known| known.name == backlog.destination).unwrap_or_else(|| {
            let name = backlog.destination.clone();
            list.push(Destination { name, is_configured, is_up, queued: 0, delivered: 0, oldest: None });
            list.len() - 1
        });
        let known = &mut list[index];
        known.queued += backlog.queued;
        known.delivered += backlog.delivered;
        known.oldest = known.oldest.take().into_iter().chain(backlog.oldest.clone()).min();
    }
    list
}

pub(in crate::cli) fn destinations(list: &[Destination], is_coloured: bool) -> String {
    if list.is_empty() {
        return "no destinations".into();
    }
    let rows: Vec<_> = list
        .iter()
        .map(|one| {
            let state = match (one.is_configured, one.is_up) {
                (false, _) => "not in the configuration: `forebay destination drop`",
                (true, true) => "up",
                (true, false) => "down",
            };
            let oldest = one.oldest.as_deref().map_or_else(|| "-".to_owned(), age);
            vec![one.name.clone(), number(one.queued), oldest, number(one.delivered), state.to_owned()]
        })
        .collect();
    table(&["DESTINATION", "QUEUED", "OLDEST", "DELIVERED", "STATE"], &[1, 2, 3], &rows, is_coloured)
}
