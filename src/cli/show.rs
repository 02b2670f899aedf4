//! Formats answers of the gateway as text.

mod destinations;
mod devices;
mod status;

pub(super) use destinations::{destination_list, destinations};
pub(super) use devices::devices;
pub(super) use status::status;

use super::table::{age, coloured, seconds, shortened, shortened_cell, table, time_of_day, wrapped};
use crate::api::{AuditEntry, Balance, Exception, Letter, LetterStage, Replay, ReplayState, TailEvent};
use crate::event::Timestamp;
use crate::setting::grouped as number;
use crate::telemetry::shown;
use serde::Serialize;
use std::fmt::Write;

pub(super) fn ledger(balances: &[Balance], is_coloured: bool) -> String {
    let rows: Vec<_> = balances
        .iter()
        .flat_map(|balance| &balance.rows)
        .map(|row| {
            let counts =
                [row.owed, row.delivered, row.queued, row.dead, row.expired, row.shed, row.discarded, row.set_aside];
            let names = [&row.destination, &row.lane, &row.stream];
            names.into_iter().cloned().chain(counts.into_iter().map(number)).collect()
        })
        .collect();
    if rows.is_empty() {
        return "the ledger is empty".into();
    }
    let head = [
        "DESTINATION",
        "LANE",
        "STREAM",
        "OWED",
        "DELIVERED",
        "QUEUED",
        "DEAD",
        "EXPIRED",
        "SHED",
        "DISCARDED",
        "SET ASIDE",
    ];
    let mut out = table(&head, &[3, 4, 5, 6, 7, 8, 9, 10], &rows, is_coloured);
    let uneven: Vec<_> = balances.iter().filter_map(Balance::imbalance).collect();
    for text in &uneven {
        let text = wrapped(&format!("! {text}; run `forebay verify`"));
        let _ = writeln!(out, "\n{}", coloured(&text, "31;1", is_coloured));
    }
    if uneven.is_empty() {
        let _ = writeln!(
            out,
            "\n{}",
            coloured("it balances: owed is the sum of the columns to its right", "32", is_coloured)
        );
    }
    out
}

pub(super) fn replay_state(state: ReplayState) -> &'static str {
    match state {
        ReplayState::Running => "running",
        ReplayState::Paused => "paused",
        ReplayState::Done => "done",
        ReplayState::Cancelled => "cancelled",
    }
}

pub(super) fn replays(replays: &[Replay], is_coloured: bool) -> String {
    if replays.is_empty() {
        return "no replays".into();
    }
    let rows: Vec<_> = replays
        .iter()
        .map(|replay| {
            vec![
                replay.id.to_string(),
                seconds(&replay.begun.to_string()),
                replay.destination.clone(),
                replay_state(replay.state).to_owned(),
                number(replay.events),
                number(replay.sent),
                number(replay.failed),
            ]
        })
        .collect();
    table(&["ID", "BEGUN (ZONE)", "TO", "STATE", "EVENTS", "SENT", "FAILED"], &[0, 4, 5, 6], &rows, is_coloured)
}

/// Formats audit entries. A `?` after the time means that the clock was not trusted.
pub(super) fn audit(entries: &[AuditEntry], is_coloured: bool) -> String {
    if entries.is_empty() {
        return "no audit entries".into();
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            let at = seconds(&entry.at);
            let by = entry.by.map_or_else(|| "-".to_owned(), user_name);
            let at = if entry.clockstatus.is_some() { format!("{at}?") } else { at };
            let what = shortened(&entry.detail.to_string(), AUDIT_SHOWN);
            vec![at, by, entry.action.clone(), shortened(&entry.result, REASON_SHOWN), what]
        })
        .collect();
    table(&["AT (ZONE)", "BY", "ACTION", "RESULT", "WHAT"], &[], &rows, is_coloured)
}

/// Returns the user name of a uid on this machine, or the uid if it has no name.
fn user_name(number: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields.find(|user| user.get(2).is_some_and(|known| *known == number.to_string()));
    found.and_then(|user| user.first().map(|name| (*name).to_owned())).unwrap_or_else(|| number.to_string())
}

/// Characters of an audit entry in a table; `--json` shows all.
const AUDIT_SHOWN: usize = 160;

/// Characters of a topic in a table; `dead show` shows all.
const TOPIC_SHOWN: usize = 40;
/// Characters of a reason in a table; `dead show` shows all.
const REASON_SHOWN: usize = 80;

pub(super) fn letters(letters: &[Letter], is_coloured: bool) -> String {
    if letters.is_empty() {
        return "no dead letters".into();
    }
    let rows: Vec<_> = letters
        .iter()
        .map(|letter| {
            vec![
                letter.id.to_string(),
                seconds(&letter.recorded),
                letter.fate.state.name().to_owned(),
                letter.stream.to_string(),
                shortened_cell(&letter.origin, TOPIC_SHOWN),
                shortened_cell(&letter.topic, TOPIC_SHOWN),
                shortened(&letter.reason, REASON_SHOWN),
            ]
        })
        .collect();
    table(&["ID", "RECORDED (ZONE)", "STATE", "STREAM", "FROM", "TOPIC", "REASON"], &[0], &rows, is_coloured)
}

/// Letters that have something in common.
#[derive(Debug, Serialize)]
pub(super) struct LetterCount {
    pub what: String,
    pub count: u64,
    /// Numbers of the oldest and the newest letter.
    pub first: u64,
    pub last: u64,
    /// Time of the newest one, RFC 3339.
    pub recorded: String,
}

pub(super) fn letter_counts(counts: &[LetterCount], is_coloured: bool) -> String {
    if counts.is_empty() {
        return "no dead letters".into();
    }
    let row = |one: &LetterCount| {
        vec![number(one.count), one.first.to_string(), one.last.to_string(), seconds(&one.recorded), one.what.clone()]
    };
    let rows: Vec<_> = counts.iter().map(row).collect();
    table(&["LETTERS", "FIRST", "LAST", "NEWEST (ZONE)", "WHAT"], &[0, 1, 2], &rows, is_coloured)
}

pub(super) fn exceptions(open: &[Exception], is_coloured: bool) -> String {
    if open.is_empty() {
        return "no open exceptions".into();
    }
    let rows: Vec<_> = open
        .iter()
        .map(|one| {
            vec![
                one.severity.to_string(),
                one.kind.to_string(),
                one.reference.clone(),
                seconds(&one.since),
                age(&one.opened),
                one.reason.clone(),
            ]
        })
        .collect();
    table(&["SEVERITY", "KIND", "WHAT", "SINCE (ZONE)", "OPEN FOR", "REASON"], &[4], &rows, is_coloured)
}

pub(super) fn letter(letter: &Letter, is_coloured: bool) -> String {
    let mut out = String::new();
    let stage = match letter.stage {
        LetterStage::Intake => "at intake".to_owned(),
        LetterStage::Central => format!("by central, {}", letter.destination),
    };
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{}  {}", coloured(&format!("{name:<12}"), "1", is_coloured), shown(value));
        }
    };
    line("id", &letter.id.to_string());
    line("recorded", &letter.recorded);
    line("refused", &stage);
    line("reason", &letter.reason);
    line("stream", &letter.stream);
    line("version", &letter.version);
    line("topic", &letter.topic);
    line("from", &letter.origin);
    line("client", &letter.client);
    match letter.authtype {
        Some(kind) => line("user", &format!("{} (proven: {})", letter.user, kind.as_str())),
        None if letter.user.is_empty() => {}
        None => line("user", &format!("{} (claimed, not proven)", letter.user)),
    }
    line("event id", &letter.event_id);
    line("key", &letter.key);
    if letter.sequence > 0 {
        line("sequence", &letter.sequence.to_string());
    }
    line("attempts", &(letter.attempts + letter.fate.attempts).to_string());
    for (name, at) in [("first", letter.first_attempt), ("last", letter.last_attempt)] {
        if at != Timestamp::default() {
            line(name, &at.to_string());
        }
    }
    let fate = &letter.fate;
    if fate.at != Timestamp::default() {
        line("state", &format!("{} since {}", fate.state.name(), fate.at));
        line("last reason", &fate.reason);
    }
    line("payload", &format!("{} bytes", letter.payload_bytes));
    let payload = letter.payload_text.as_deref().or(letter.payload_base64.as_deref()).unwrap_or_default();
    out.push('\n');
    // Line by line, to keep the line breaks of the payload.
    for line in payload.lines() {
        let _ = writeln!(out, "{}", shown(line));
    }
    out
}

pub(super) fn tail_event(event: &TailEvent, is_coloured: bool) -> String {
    let time = time_of_day(&event.recorded);
    if let Some(reason) = &event.reason {
        let topic = event.topic.as_deref().unwrap_or_default();
        return format!(
            "{time}  {}  {}  from {}: {}",
            coloured(&format!("{:<8}", event.lane), "31", is_coloured),
            coloured(&shown(topic), "31", is_coloured),
            shown(&event.origin),
            shown(reason)
        );
    }
    let data = match (&event.data, &event.data_base64) {
        (Some(data), _) => data.to_string(),
        (None, Some(encoded)) => format!("base64 {encoded}"),
        _ => String::new(),
    };
    format!(
        "{time}  {:<8}  {}  {}  {}",
        event.lane,
        coloured(&format!("{:<24}", shown(&event.stream)), "36", is_coloured),
        coloured(&format!("{:<20}", shown(&event.key)), "1", is_coloured),
        shown(&data)
    )
}
