//! Formats results as text: aligned tables, colours only on a terminal.
//!
//! Promise: data from devices reaches the terminal only as printable text, never as control sequences. A table row is one
//! line.

use crate::api::{
    AuditEntry, Balance, DeviceStatus, Exception, Letter, LetterStage, Replay, ReplayState, Status, TailEvent,
};
use crate::clock;
use crate::event::Timestamp;
use crate::setting::{Bytes, grouped as number, rough};
use crate::telemetry::shown;
use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

/// Formats a table with aligned columns. `right` lists the right-aligned columns of numbers.
pub(crate) fn table(head: &[&str], right: &[usize], rows: &[Vec<String>], is_coloured: bool) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>, is_head: bool| {
        let mut line = String::new();
        for (index, cell) in cells.enumerate() {
            let pad = " ".repeat(widths[index].saturating_sub(cell.chars().count()));
            if right.contains(&index) {
                let _ = write!(line, "{pad}{cell}  ");
            } else {
                let _ = write!(line, "{cell}{pad}  ");
            }
        }
        let line = line.trim_end();
        let _ = if is_head && is_coloured { writeln!(out, "\x1b[1m{line}\x1b[0m") } else { writeln!(out, "{line}") };
    };
    push(&mut head.iter().copied(), true);
    for row in &rows {
        push(&mut row.iter().map(|cell| &**cell), false);
    }
    out
}

/// Returns the age of an RFC 3339 time.
fn age(moment: &str) -> String {
    let moment = Timestamp::parse(moment);
    moment.map_or_else(|| "-".into(), |moment| rough(Timestamp::from(clock::wall()).since(moment)))
}

fn coloured(text: &str, code: &str, is_coloured: bool) -> String {
    if is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn millis(value: f64) -> String {
    if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

pub(super) fn status(status: &Status, is_coloured: bool) -> String {
    let mut out = String::new();
    let up = status.uptime_seconds;
    let _ = writeln!(
        out,
        "{} · site {} · environment {} · forebay {} · up {}",
        status.name,
        status.site,
        status.environment,
        status.version,
        rough(Duration::from_secs(up)),
    );
    for problem in &status.problems {
        let _ = writeln!(out, "{} {}", coloured("!", "31;1", is_coloured), shown(problem));
    }
    for note in &status.notes {
        let _ = writeln!(out, "{} {}", coloured("·", "33;1", is_coloured), shown(note));
    }
    if status.problems.is_empty() && status.notes.is_empty() {
        let _ = writeln!(out, "{}", coloured("all is well", "32", is_coloured));
    }
    out.push('\n');
    let mut rows = Vec::new();
    for lane in &status.lanes {
        for to in &lane.destinations {
            rows.push(vec![
                lane.name.clone(),
                to.destination.clone(),
                number(lane.accepted),
                number(to.delivered),
                number(to.queued),
                to.oldest.as_deref().map_or_else(|| "-".into(), age),
                number(to.dead + to.set_aside + to.expired + to.shed + to.discarded),
                format!("{} of {}", Bytes(lane.bytes), Bytes(lane.budget)),
            ]);
        }
        if lane.destinations.is_empty() {
            let room = format!("{} of {}", Bytes(lane.bytes), Bytes(lane.budget));
            let dash = || "-".to_owned();
            rows.push(vec![lane.name.clone(), dash(), number(lane.accepted), dash(), dash(), dash(), dash(), room]);
        }
    }
    let head = ["LANE", "DESTINATION", "ACCEPTED", "DELIVERED", "QUEUED", "OLDEST", "LOST OR DEAD", "DISK"];
    out.push_str(&table(&head, &[2, 3, 4, 5, 6, 7], &rows, is_coloured));
    out.push('\n');
    let outlook = outlook(status, is_coloured);
    if !outlook.is_empty() {
        out.push_str(&outlook);
        out.push('\n');
    }
    let rows: Vec<_> = status
        .links
        .iter()
        .map(|link| {
            let state = if link.is_up { "up".to_owned() } else { "down".to_owned() };
            let answer = if link.delivered > 0 {
                format!("{} / {}", millis(link.answer_ms.0), millis(link.answer_ms.1))
            } else {
                "-".into()
            };
            vec![
                link.destination.clone(),
                link.lane.clone(),
                state,
                number(link.in_flight as u64),
                answer,
                number(link.unheard),
            ]
        })
        .collect();
    if !rows.is_empty() {
        out.push_str(&table(
            &["LINK", "LANE", "STATE", "IN FLIGHT", "ANSWER P50 / P99", "UNHEARD"],
            &[3, 4, 5],
            &rows,
            is_coloured,
        ));
        out.push('\n');
    }
    let rows: Vec<_> = status
        .sources
        .iter()
        .map(|source| {
            let ack = if source.received > 0 {
                format!("{} / {}", millis(source.ack_ms.0), millis(source.ack_ms.1))
            } else {
                "-".into()
            };
            vec![
                source.name.clone(),
                source.kind.clone(),
                source.address.clone(),
                source.problem.clone().unwrap_or_else(|| "works".into()),
                number(source.connections),
                number(source.received),
                ack,
                number(source.refused),
                number(source.dropped),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let head =
            ["SOURCE", "KIND", "ADDRESS", "STATE", "CONNECTED", "RECEIVED", "ACK P50 / P99", "REFUSED", "DROPPED"];
        out.push_str(&table(&head, &[4, 5, 6, 7, 8], &rows, is_coloured));
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "dead letters {} (since start: {} unmatched, {} broke their contract) · repeats {} · ids in window {} of {}",
        number(status.dead.total),
        number(status.dead.unmatched),
        number(status.dead.violations),
        number(status.repeats.duplicates),
        number(status.repeats.ids as u64),
        number(status.repeats.ids_max as u64),
    );
    if let Some(sparkplug) = &status.sparkplug {
        let _ = writeln!(
            out,
            "sparkplug nodes {} in {} bytes (since start: {} gaps, {} undecodable messages, {} nodes evicted from memory, {} rebirths requested)",
            number(sparkplug.nodes as u64),
            number(sparkplug.bytes as u64),
            number(sparkplug.gaps),
            number(sparkplug.refused),
            number(sparkplug.forgotten),
            number(sparkplug.rebirths_asked),
        );
    }
    out
}

/// Formats forecasts: when lanes are full, and when backlogs are drained.
fn outlook(status: &Status, is_coloured: bool) -> String {
    let seconds =
        |seconds: Option<u64>| seconds.map_or_else(|| "-".to_owned(), |count| rough(Duration::from_secs(count)));
    let mut rows = Vec::new();
    for lane in &status.outlooks {
        for to in &lane.drains {
            rows.push(vec![
                lane.lane.clone(),
                to.destination.clone(),
                format!("{:.0}", lane.events_per_second),
                format!("{:.0}", to.events_per_second),
                Bytes(to.queued_bytes).to_string(),
                if to.queued == 0 { "-".into() } else { seconds(to.drained_in_seconds) },
                seconds(lane.full_in_seconds),
                lane.then.clone(),
            ]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let head =
        ["LANE", "DESTINATION", "IN / S", "OUT / S", "BACKLOG", "DRAINED IN", "FULL IN, WITHOUT WAN", "WHEN FULL, IT"];
    let mut out = table(&head, &[2, 3, 4, 5, 6], &rows, is_coloured);
    if let Some(bytes) = status.flash_bytes_per_day {
        let _ = writeln!(out, "written to the disk: {} per day at this rate", Bytes(bytes));
    }
    out
}

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
        let text = format!("! {text}; run `forebay verify`");
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
                replay.begun.to_string().get(..19).unwrap_or_default().replace('T', " "),
                replay.destination.clone(),
                replay_state(replay.state).to_owned(),
                number(replay.events),
                number(replay.sent),
                number(replay.failed),
            ]
        })
        .collect();
    table(&["ID", "BEGUN (UTC)", "TO", "STATE", "EVENTS", "SENT", "FAILED"], &[0, 4, 5, 6], &rows, is_coloured)
}

/// Formats audit entries. A `?` after the time means that the clock was not trusted.
pub(super) fn audit(entries: &[AuditEntry], is_coloured: bool) -> String {
    if entries.is_empty() {
        return "no audit entries".into();
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            let at = entry.at.get(..19).unwrap_or_default().replace('T', " ");
            let by = entry.by.map_or_else(|| "-".to_owned(), user_name);
            let at = if entry.clockstatus.is_some() { format!("{at}?") } else { at };
            let what = shortened(&entry.detail.to_string(), AUDIT_SHOWN);
            vec![at, by, entry.action.clone(), shortened(&entry.result, REASON_SHOWN), what]
        })
        .collect();
    table(&["AT (UTC)", "BY", "ACTION", "RESULT", "WHAT"], &[], &rows, is_coloured)
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

/// Truncates a text to `chars_max` characters, with `…` at the end.
fn shortened(text: &str, chars_max: usize) -> String {
    let text = shown(text);
    match text.char_indices().nth(chars_max) {
        None => text.into_owned(),
        Some(_) => text.chars().take(chars_max - 1).chain(['…']).collect(),
    }
}

pub(super) fn letters(letters: &[Letter], is_coloured: bool) -> String {
    if letters.is_empty() {
        return "no dead letters".into();
    }
    let rows: Vec<_> = letters
        .iter()
        .map(|letter| {
            vec![
                letter.id.to_string(),
                letter.recorded.get(..19).unwrap_or_default().replace('T', " "),
                letter.fate.state.name().to_owned(),
                letter.stream.to_string(),
                shortened(&letter.origin, TOPIC_SHOWN),
                shortened(&letter.topic, TOPIC_SHOWN),
                shortened(&letter.reason, REASON_SHOWN),
            ]
        })
        .collect();
    table(&["ID", "RECORDED (UTC)", "STATE", "STREAM", "FROM", "TOPIC", "REASON"], &[0], &rows, is_coloured)
}

pub(super) fn devices(devices: &[DeviceStatus], is_coloured: bool) -> String {
    if devices.is_empty() {
        return "no device has connected since the gateway started".into();
    }
    let time = |text: &Option<String>| text.as_deref().and_then(|text| text.get(..19)).unwrap_or("-").replace('T', " ");
    let rows: Vec<_> = devices
        .iter()
        .map(|device| {
            vec![
                device.client.clone(),
                match (device.identity.as_str(), device.authtype) {
                    ("", _) => "-".into(),
                    (name, Some(_)) => name.to_owned(),
                    (name, None) => format!("({name})"),
                },
                time(&device.connected_since),
                format!("{:.1}", device.rate),
                time(&device.last_event),
                number(device.received),
                number(device.refused),
                number(device.dead),
                number(device.duplicates),
                device.clock_offset.map_or_else(|| "-".into(), |seconds| format!("{seconds:+.1} s")),
            ]
        })
        .collect();
    let head = [
        "DEVICE",
        "IDENTITY",
        "CONNECTED SINCE",
        "PER SECOND",
        "LAST EVENT",
        "RECEIVED",
        "REFUSED",
        "DEAD",
        "REPEATS",
        "CLOCK",
    ];
    table(&head, &[3, 5, 6, 7, 8, 9], &rows, is_coloured)
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
                one.since.get(..19).unwrap_or_default().replace('T', " "),
                age(&one.opened),
                one.reason.clone(),
            ]
        })
        .collect();
    table(&["SEVERITY", "KIND", "WHAT", "SINCE (UTC)", "OPEN FOR", "REASON"], &[4], &rows, is_coloured)
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
    let time = event.recorded.get(11..23).unwrap_or_default();
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
