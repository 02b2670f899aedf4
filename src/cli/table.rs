//! Text for the terminal: aligned tables, colours, ages, shortened texts.
//!
//! Promise: data from devices reaches the terminal only as printable text, never as control sequences. A table row is one
//! line.

use crate::clock;
use crate::event::Timestamp;
use crate::setting::rough;
use crate::telemetry::shown;
use std::borrow::Cow;
use std::fmt::Write;

/// Formats a table with aligned columns. `right` lists the right-aligned columns of numbers.
pub(super) fn table(head: &[&str], right: &[usize], rows: &[Vec<String>], is_coloured: bool) -> String {
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
pub(super) fn age(moment: &str) -> String {
    let moment = Timestamp::parse(moment);
    moment.map_or_else(|| "-".into(), |moment| rough(Timestamp::from(clock::wall()).since(moment)))
}

pub(super) fn coloured(text: &str, code: &str, is_coloured: bool) -> String {
    if is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

pub(super) fn millis(value: f64) -> String {
    if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

/// Truncates a text to `chars_max` characters, with `…` at the end.
pub(super) fn shortened(text: &str, chars_max: usize) -> String {
    let text = shown(text);
    match text.char_indices().nth(chars_max) {
        None => text.into_owned(),
        Some(_) => text.chars().take(chars_max - 1).chain(['…']).collect(),
    }
}

/// Returns an RFC 3339 time up to its seconds, for a table.
pub(super) fn seconds(time: &str) -> String {
    time.get(..19).unwrap_or_default().replace('T', " ")
}

pub(super) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
