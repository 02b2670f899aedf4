//! The lines to the destinations: what each carries.

use super::handles::LinkHandle;
use crate::api::LineStatus;
use std::sync::Arc;

/// The status of each line that carries something.
pub(super) fn statuses(links: &[LinkHandle]) -> Vec<LineStatus> {
    let is_first = |index: usize| links[..index].iter().all(|other| !Arc::ptr_eq(&other.line, &links[index].line));
    let firsts = links.iter().enumerate().filter(|(index, _)| is_first(*index));
    firsts.filter_map(|(_, link)| status(link)).collect()
}

fn status(link: &LinkHandle) -> Option<LineStatus> {
    let figures = link.line.figures();
    Some(LineStatus {
        destination: link.destination.clone(),
        kbit_per_second: figures.rate? * 8.0 / 1000.0,
        round_trip_ms: figures.round_trip.unwrap_or_default().as_secs_f64() * 1000.0,
        in_flight_bytes: figures.in_flight,
        in_flight_seconds: figures.in_flight_seconds().unwrap_or_default(),
    })
}
