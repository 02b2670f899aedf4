//! The tables of `forebay top`.

use crate::api::{
    DeviceStatus, Exception, Letter, LinkStatus, ListedDevice, RefusedClient, SourceStatus, Status, UnitStatus,
};
use crate::cli::table::{age, clock_offset, millis, peer_address};
use crate::setting::{grouped as number, rough};
use crate::telemetry::shown;
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    #[default]
    Lanes,
    Links,
    Sources,
    Devices,
    Letters,
    Exceptions,
}

impl Page {
    pub(super) const ALL: [Self; 6] =
        [Self::Lanes, Self::Links, Self::Sources, Self::Devices, Self::Letters, Self::Exceptions];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lanes => "lanes",
            Self::Links => "links",
            Self::Sources => "sources",
            Self::Devices => "devices",
            Self::Letters => "dead letters",
            Self::Exceptions => "exceptions",
        }
    }

    /// The page that follows `step` pages later.
    pub(super) fn next(self, step: usize) -> Self {
        Self::ALL[(self as usize + step) % Self::ALL.len()]
    }
}

/// A clock that is so far off puts events into the wrong shift.
const CLOCK_OFF_SECONDS: f64 = 3600.0;

/// The look of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mood {
    Bad,
    Doubtful,
    Good,
}

#[derive(Debug)]
pub(super) struct TableRow {
    pub mood: Mood,
    pub cells: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Listing {
    pub head: Vec<&'static str>,
    /// Columns of numbers.
    pub right: Vec<usize>,
    /// Columns that are left out of a narrow terminal, the first ones first.
    optional: Vec<usize>,
    pub rows: Vec<TableRow>,
}

impl Listing {
    /// Keeps the rows that contain a text.
    pub(super) fn keep(&mut self, wanted: &str) {
        let wanted = wanted.to_lowercase();
        self.rows.retain(|row| row.cells.iter().any(|cell| cell.to_lowercase().contains(&wanted)));
    }

    /// Sorts by a column; 0 is the worst first, in the order of the names.
    pub(super) fn sort(&mut self, by: usize, is_reversed: bool) {
        let by = by % (self.head.len() + 1);
        match by {
            0 => self.rows.sort_by(|one, other| {
                one.mood.cmp(&other.mood).then_with(|| natural(&one.cells[0]).cmp(&natural(&other.cells[0])))
            }),
            by => self.rows.sort_by(|one, other| natural(&one.cells[by - 1]).cmp(&natural(&other.cells[by - 1]))),
        }
        if is_reversed {
            self.rows.reverse();
        }
    }

    /// The width of each column in a terminal; 0 for one that is left out.
    pub(super) fn widths(&self, columns: usize) -> Vec<usize> {
        const GAP: usize = 2;
        // A text keeps more of its width while there are columns to leave out.
        const TEXT_MIN: usize = 28;
        const TEXT_LEAST: usize = 12;
        let widest = |index: usize| {
            let cells = self.rows.iter().map(|row| row.cells[index].chars().count());
            cells.chain([self.head[index].chars().count()]).max().unwrap_or_default()
        };
        let mut widths: Vec<usize> = (0..self.head.len()).map(widest).collect();
        let mut optional = self.optional.iter();
        loop {
            let text_min = if optional.len() > 0 { TEXT_MIN } else { TEXT_LEAST };
            let used: usize = widths.iter().filter(|width| **width > 0).map(|width| width + GAP).sum();
            let excess = used.saturating_sub(columns + GAP);
            let shrinkable = |index: &usize| !self.right.contains(index) && widths[*index] > text_min;
            let room: usize = (0..widths.len()).filter(shrinkable).map(|index| widths[index] - text_min).sum();
            let largest = (0..widths.len()).filter(shrinkable).max_by_key(|index| widths[*index]);
            match (excess, room >= excess, largest) {
                (0, ..) => return widths,
                (_, true, Some(largest)) => widths[largest] -= 1,
                _ => match (optional.next(), largest) {
                    (Some(index), _) => widths[*index] = 0,
                    (None, Some(largest)) => widths[largest] -= 1,
                    (None, None) => return widths,
                },
            }
        }
    }
}

/// A text with its numbers as numbers: press-2 comes before press-10.
fn natural(text: &str) -> Vec<(u64, String)> {
    let mut parts: Vec<(u64, String)> = vec![(0, String::new())];
    let mut digits = String::new();
    for letter in text.chars().filter(|letter| *letter != ',').chain(['\0']) {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        if !digits.is_empty() {
            parts.push((digits.parse().unwrap_or(u64::MAX), String::new()));
            digits.clear();
        }
        if let Some((_, text)) = parts.last_mut().filter(|_| letter != '\0') {
            text.push(letter);
        }
    }
    // A text that begins with a number is compared by it.
    if parts.len() > 1 && parts[0].1.is_empty() {
        parts.remove(0);
    }
    parts
}

fn row(mood: Mood, cells: Vec<String>) -> TableRow {
    TableRow { mood, cells: cells.iter().map(|cell| shown(cell).into_owned()).collect() }
}

/// Returns the table of a page.
pub(super) fn of(
    page: Page,
    status: &Status,
    (devices, letters, exceptions): (&[ListedDevice], &[Letter], &[Exception]),
) -> Listing {
    let (head, right, optional, rows): (&[&'static str], &[usize], &[usize], Vec<TableRow>) = match page {
        Page::Lanes => (
            &["LANE", "TO", "IN/S", "OUT/S", "QUEUED", "OLDEST", "DELIVERED", "DEAD", "FULL IN", "THEN IT"],
            &[2, 3, 4, 5, 6, 7, 8],
            &[6, 9, 1],
            lanes(status),
        ),
        Page::Links => (
            &["LINK", "LANE", "STATE", "SINCE", "IN FLIGHT", "ANSWER P99", "UNHEARD", "REASON"],
            &[3, 4, 5, 6],
            &[6, 4],
            status.links.iter().map(link).collect(),
        ),
        Page::Sources => (
            &["SOURCE", "KIND", "ADDRESS", "CONNECTED", "RECEIVED", "REFUSED", "DROPPED", "ACK P99", "STATE"],
            &[3, 4, 5, 6, 7],
            &[6, 1, 7],
            status.sources.iter().map(source).collect(),
        ),
        Page::Devices => (
            &["DEVICE", "ADDRESS", "PER S", "LAST", "RECEIVED", "REFUSED", "DEAD", "CLOCK", "IDENTITY", "STATE"],
            &[2, 3, 4, 5, 6, 7],
            &[8, 4, 9, 7],
            devices.iter().map(device).collect(),
        ),
        Page::Letters => (
            &["ID", "AGE", "STREAM", "FROM", "TOPIC", "REASON"],
            &[0, 1],
            &[2, 3],
            letters.iter().map(letter).collect(),
        ),
        Page::Exceptions => (
            &["SEVERITY", "KIND", "WHAT", "OPEN FOR", "REASON"],
            &[3],
            &[1],
            exceptions.iter().map(exception).collect(),
        ),
    };
    Listing { head: head.to_vec(), right: right.to_vec(), optional: optional.to_vec(), rows }
}

fn lanes(status: &Status) -> Vec<TableRow> {
    let mut rows = Vec::new();
    for lane in &status.lanes {
        let outlook = status.outlooks.iter().find(|outlook| outlook.lane == lane.name);
        for to in &lane.destinations {
            let drain =
                outlook.and_then(|outlook| outlook.drains.iter().find(|drain| drain.destination == to.destination));
            let rate = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
            let full =
                outlook.and_then(|outlook| outlook.full_in_seconds).map(|seconds| rough(Duration::from_secs(seconds)));
            let mood = match (&lane.problem, to.queued) {
                (Some(_), _) => Mood::Bad,
                (None, 1..) if to.oldest.is_some() && drain.is_none_or(|drain| drain.events_per_second == 0.0) => {
                    Mood::Doubtful
                }
                _ => Mood::Good,
            };
            rows.push(row(
                mood,
                vec![
                    lane.name.clone(),
                    to.destination.clone(),
                    rate(outlook.map(|outlook| outlook.events_per_second)),
                    rate(drain.map(|drain| drain.events_per_second)),
                    number(to.queued),
                    to.oldest.as_deref().map_or_else(|| "-".into(), age),
                    number(to.delivered),
                    number(to.dead),
                    full.unwrap_or_else(|| "-".into()),
                    outlook.map_or_else(String::new, |outlook| outlook.then.clone()),
                ],
            ));
        }
    }
    rows
}

fn link(link: &LinkStatus) -> TableRow {
    let mood = if link.is_up { Mood::Good } else { Mood::Bad };
    row(
        mood,
        vec![
            link.destination.clone(),
            link.lane.clone(),
            if link.is_up { "up" } else { "down" }.into(),
            link.since.as_deref().map_or_else(|| "-".into(), age),
            number(link.in_flight as u64),
            millis(link.answer_ms.1),
            number(link.unheard),
            link.reason.clone().or_else(|| link.note.clone()).unwrap_or_default(),
        ],
    )
}

fn source(source: &SourceStatus) -> TableRow {
    let mood = match (&source.problem, source.refused + source.dropped) {
        (Some(_), _) => Mood::Bad,
        (None, 1..) => Mood::Doubtful,
        (None, 0) => Mood::Good,
    };
    row(
        mood,
        vec![
            source.name.clone(),
            source.kind.clone(),
            source.address.clone(),
            number(source.connections),
            number(source.received),
            number(source.refused),
            number(source.dropped),
            millis(source.ack_ms.1),
            source.problem.clone().unwrap_or_else(|| "works".into()),
        ],
    )
}

fn device(device: &ListedDevice) -> TableRow {
    match device {
        ListedDevice::Mqtt(client) => client_row(client),
        ListedDevice::Modbus(unit) => unit_row(unit),
        ListedDevice::Refused(client) => refused_row(client),
    }
}

fn refused_row(client: &RefusedClient) -> TableRow {
    let dash = || "-".to_owned();
    let name = if client.client.is_empty() { "(no client id)".to_owned() } else { client.client.clone() };
    row(
        Mood::Bad,
        vec![
            name,
            peer_address(&client.peer),
            dash(),
            age(&client.at),
            dash(),
            number(client.count),
            dash(),
            dash(),
            client.user.clone(),
            client.why.clone(),
        ],
    )
}

fn client_row(client: &DeviceStatus) -> TableRow {
    let is_off = client.clock_offset.is_some_and(|seconds| seconds.abs() >= CLOCK_OFF_SECONDS);
    let mood = match client.refused + client.dead {
        _ if is_off => Mood::Bad,
        0 => Mood::Good,
        _ => Mood::Doubtful,
    };
    row(
        mood,
        vec![
            client.client.clone(),
            peer_address(&client.peer),
            format!("{:.1}", client.rate),
            client.last_event.as_deref().map_or_else(|| "-".into(), age),
            number(client.received),
            number(client.refused),
            number(client.dead),
            client.clock_offset.map_or_else(|| "-".into(), clock_offset),
            client.identity.clone(),
            if client.connected_since.is_some() { "connected" } else { "away" }.into(),
        ],
    )
}

fn unit_row(unit: &UnitStatus) -> TableRow {
    let mood = if unit.reason.is_some() { Mood::Bad } else { Mood::Good };
    let dash = || "-".to_owned();
    row(
        mood,
        vec![
            format!("{}/{}", unit.source, unit.unit),
            format!("unit {}", unit.number),
            dash(),
            unit.last_answer.as_deref().map_or_else(dash, age),
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            unit.reason.clone().unwrap_or_else(|| unit.state.clone()),
        ],
    )
}

fn letter(letter: &Letter) -> TableRow {
    row(
        Mood::Good,
        vec![
            letter.id.to_string(),
            age(&letter.recorded),
            letter.stream.clone(),
            letter.origin.clone(),
            letter.topic.clone(),
            letter.reason.clone(),
        ],
    )
}

fn exception(one: &Exception) -> TableRow {
    let severity = one.severity.to_string();
    let mood = match severity.as_str() {
        "critical" => Mood::Bad,
        "warning" => Mood::Doubtful,
        _ => Mood::Good,
    };
    row(mood, vec![severity, one.kind.to_string(), one.reference.clone(), age(&one.opened), one.reason.clone()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_by_their_numbers() {
        let mut names = ["press-10", "press-2", "1,000", "20", "press-2a"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["press-2", "press-2a", "press-10", "20", "1,000"]);
    }
}
