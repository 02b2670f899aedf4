//! Formats the status of the gateway.

use crate::api::{BudgetStatus, LineStatus, LinkStatus, PeriodUse, SourceStatus, Status};
use crate::cli::table::{age, coloured, millis, table, wrapped};
use crate::setting::{Bytes, grouped as number, rough};
use crate::telemetry::shown;
use std::fmt::Write;
use std::time::Duration;

pub(in crate::cli) fn status(status: &Status, is_coloured: bool) -> String {
    let mut out = summary(status, is_coloured);
    out.push('\n');
    for table in [
        lanes(status, is_coloured),
        outlook(status, is_coloured),
        links(status, is_coloured),
        lines(status, is_coloured),
        budgets(status, is_coloured),
        sources(status, is_coloured),
    ] {
        if !table.is_empty() {
            out.push_str(&table);
            out.push('\n');
        }
    }
    out.push_str(&counts(status));
    out
}

/// Formats name, problems and notes.
fn summary(status: &Status, is_coloured: bool) -> String {
    let title = format!(
        "{} · site {} · environment {} · forebay {} · up {}",
        shown(&status.name),
        shown(&status.site),
        shown(&status.environment),
        shown(&status.version),
        rough(Duration::from_secs(status.uptime_seconds)),
    );
    let mut out = wrapped(&title);
    out.push('\n');
    let mut push = |sign: &str, colour: &str, text: &str| {
        let text = wrapped(&format!("{sign} {}", shown(text)));
        let _ = writeln!(out, "{}{}", coloured(sign, colour, is_coloured), text.strip_prefix(sign).unwrap_or(&text));
    };
    status.problems.iter().for_each(|problem| push("!", "31;1", problem));
    status.notes.iter().for_each(|note| push("·", "33;1", note));
    if status.problems.is_empty() && status.notes.is_empty() {
        let _ = writeln!(out, "{}", coloured("all is well", "32", is_coloured));
    }
    out
}

fn lanes(status: &Status, is_coloured: bool) -> String {
    let mut rows = Vec::new();
    for lane in &status.lanes {
        let room = || format!("{} of {}", Bytes(lane.bytes), Bytes(lane.budget));
        for to in &lane.destinations {
            rows.push(vec![
                lane.name.clone(),
                to.destination.clone(),
                number(lane.accepted),
                number(to.delivered),
                number(to.queued),
                to.oldest.as_deref().map_or_else(|| "-".into(), age),
                number(to.dead + to.set_aside + to.expired + to.shed + to.discarded),
                room(),
            ]);
        }
        if lane.destinations.is_empty() {
            let dash = || "-".to_owned();
            rows.push(vec![lane.name.clone(), dash(), number(lane.accepted), dash(), dash(), dash(), dash(), room()]);
        }
    }
    let head = ["LANE", "DESTINATION", "ACCEPTED", "DELIVERED", "QUEUED", "OLDEST", "LOST OR DEAD", "DISK"];
    table(&head, &[2, 3, 4, 5, 6, 7], &rows, is_coloured)
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

fn links(status: &Status, is_coloured: bool) -> String {
    let row = |link: &LinkStatus| {
        vec![
            link.destination.clone(),
            link.lane.clone(),
            if link.is_up { "up" } else { "down" }.to_owned(),
            number(link.in_flight as u64),
            quantiles(link.answer_ms, link.delivered),
            number(link.unheard),
        ]
    };
    let head = ["LINK", "LANE", "STATE", "IN FLIGHT", "ANSWER P50 / P99", "UNHEARD"];
    table_if_any(&head, &[3, 4, 5], &status.links.iter().map(row).collect::<Vec<_>>(), is_coloured)
}

fn lines(status: &Status, is_coloured: bool) -> String {
    let row = |line: &LineStatus| {
        vec![
            line.destination.clone(),
            format!("{:.0} kbit/s", line.kbit_per_second),
            millis(line.round_trip_ms),
            Bytes(line.in_flight_bytes).to_string(),
            format!("{:.1} s", line.in_flight_seconds),
        ]
    };
    let head = ["LINE", "AT LEAST", "ROUND TRIP", "IN FLIGHT", "WHICH TAKES"];
    table_if_any(&head, &[1, 2, 3, 4], &status.lines.iter().map(row).collect::<Vec<_>>(), is_coloured)
}

/// Formats the bytes on the line, and what is left of the budgets.
fn budgets(status: &Status, is_coloured: bool) -> String {
    let amount = |period: &PeriodUse| match period.bytes_max {
        Some(max) => format!("{} of {}", Bytes(period.bytes), Bytes(max)),
        None => Bytes(period.bytes).to_string(),
    };
    let row = |budget: &BudgetStatus| {
        let used_up_in = budget.used_up_in_seconds.map(|seconds| rough(Duration::from_secs(seconds)));
        vec![
            budget.destination.clone(),
            amount(&budget.day),
            amount(&budget.month),
            used_up_in.unwrap_or_else(|| "-".into()),
            if budget.stopped.is_empty() { "-".into() } else { stopped(budget) },
        ]
    };
    let head = ["BYTES TO AND FROM", "TODAY", "THIS MONTH", "USED UP IN", "WAITING LANES"];
    table_if_any(&head, &[1, 2, 3], &status.budgets.iter().map(row).collect::<Vec<_>>(), is_coloured)
}

fn stopped(budget: &BudgetStatus) -> String {
    budget.stopped.iter().map(|(lane, _)| lane.as_str()).collect::<Vec<_>>().join(", ")
}

fn sources(status: &Status, is_coloured: bool) -> String {
    let row = |source: &SourceStatus| {
        vec![
            source.name.clone(),
            source.kind.clone(),
            source.address.clone(),
            source.problem.clone().unwrap_or_else(|| "works".into()),
            number(source.connections),
            number(source.received),
            quantiles(source.ack_ms, source.received),
            number(source.refused),
            number(source.dropped),
        ]
    };
    let head = ["SOURCE", "KIND", "ADDRESS", "STATE", "CONNECTED", "RECEIVED", "ACK P50 / P99", "REFUSED", "DROPPED"];
    table_if_any(&head, &[4, 5, 6, 7, 8], &status.sources.iter().map(row).collect::<Vec<_>>(), is_coloured)
}

fn table_if_any(head: &[&str], right: &[usize], rows: &[Vec<String>], is_coloured: bool) -> String {
    if rows.is_empty() { String::new() } else { table(head, right, rows, is_coloured) }
}

/// Formats median and 99th percentile of `count` durations.
fn quantiles((median, p99): (f64, f64), count: u64) -> String {
    if count > 0 { format!("{} / {}", millis(median), millis(p99)) } else { "-".into() }
}

/// Formats the counts of dead letters, repeats and Sparkplug nodes.
fn counts(status: &Status) -> String {
    let mut text = format!(
        "dead letters {} held of {} (since start: {} unmatched, {} broke their contract) · repeats {} · ids in window {} of {}",
        number(status.dead.held),
        number(status.dead.total),
        number(status.dead.unmatched),
        number(status.dead.violations),
        number(status.repeats.duplicates),
        number(status.repeats.ids as u64),
        number(status.repeats.ids_max as u64),
    );
    if let Some(sparkplug) = &status.sparkplug {
        let _ = write!(
            text,
            "\nsparkplug nodes {} in {} bytes (since start: {} gaps, {} undecodable messages, {} nodes evicted from memory, {} rebirths requested)",
            number(sparkplug.nodes as u64),
            number(sparkplug.bytes as u64),
            number(sparkplug.gaps),
            number(sparkplug.refused),
            number(sparkplug.forgotten),
            number(sparkplug.rebirths_asked),
        );
    }
    text.lines().map(|line| wrapped(line) + "\n").collect()
}
