//! Text for the terminal: aligned tables, colours, ages, shortened texts.
//!
//! Promise: data from devices reaches the terminal only as printable text, never as control sequences. A table row is one
//! line.

use crate::clock;
use crate::event::Timestamp;
use crate::setting::rough;
use crate::telemetry::shown;
use jiff::tz::TimeZone;
use std::borrow::Cow;
use std::fmt::Write;
use std::sync::OnceLock;
use std::time::Duration;

/// Formats a table with aligned columns. `right` lists the right-aligned columns of numbers. On a terminal it fits the
/// width: long texts are shortened, then columns are left out.
pub(super) fn table(head: &[&str], right: &[usize], rows: &[Vec<String>], is_coloured: bool) -> String {
    table_within(head, right, rows, (is_coloured, columns()))
}

/// Columns that are left out of a table that does not fit, the first ones first. `--json` has them all.
const OPTIONAL: [&str; 19] = [
    "REPEATS",
    "DISK",
    "LAST ANSWER (ZONE)",
    "IN FLIGHT",
    "DROPPED",
    "BACKLOG",
    "WHEN FULL, IT",
    "ACK P50 / P99",
    "USED UP IN",
    "CONNECTED SINCE",
    "ACCEPTED",
    "IDENTITY",
    "KIND",
    "FROM",
    "OUT / S",
    "NO.",
    "RECEIVED",
    "STREAM",
    "UNHEARD",
];
/// Columns of the ledger that say nothing while all their cells are 0.
const OPTIONAL_IF_ZERO: [&str; 5] = ["SET ASIDE", "DISCARDED", "SHED", "EXPIRED", "DEAD"];
/// A text is not shortened below this width while there are columns to leave out.
const SHORTENED_MIN: usize = 28;
/// A text is never shortened below this width.
const SHORTENED_LEAST: usize = 10;
/// Blanks between two columns.
const GAP: usize = 2;

/// The width of the terminal: `COLUMNS`, else that of standard output; `None` if it is no terminal.
fn columns() -> Option<usize> {
    let set = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let own = || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    set.or_else(own).filter(|columns| *columns >= 40)
}

fn table_within(
    head: &[&str],
    right: &[usize],
    rows: &[Vec<String>],
    (is_coloured, columns): (bool, Option<usize>),
) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let titles: Vec<Cow<'_, str>> = head.iter().map(|title| with_zone(title)).collect();
    let mut widths: Vec<usize> = titles.iter().map(|title| title.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let is_zero = |index: usize| rows.iter().all(|row| row.get(index).is_some_and(|cell| cell == "0"));
    let kept = match columns {
        Some(columns) => fit(head, right, &mut widths, (columns, &is_zero)),
        None => (0..head.len()).collect(),
    };
    let mut out = String::new();
    let mut push = |cells: &dyn Fn(usize) -> String, is_head: bool| {
        let mut line = String::new();
        for index in &kept {
            let cell = shortened_cell(&cells(*index), widths[*index]);
            let pad = " ".repeat(widths[*index].saturating_sub(cell.chars().count()));
            let _ = match right.contains(index) {
                true => write!(line, "{pad}{cell}  "),
                false => write!(line, "{cell}{pad}  "),
            };
        }
        let line = line.trim_end();
        let _ = if is_head && is_coloured { writeln!(out, "\x1b[1m{line}\x1b[0m") } else { writeln!(out, "{line}") };
    };
    push(&|index| titles[index].clone().into_owned(), true);
    for row in &rows {
        push(&|index| row.get(index).map_or_else(String::new, |cell| cell.clone().into_owned()), false);
    }
    out
}

/// Shortens texts and leaves columns out until the table fits. Returns the columns that stay.
fn fit(
    head: &[&str],
    right: &[usize],
    widths: &mut [usize],
    (columns, is_zero): (usize, &dyn Fn(usize) -> bool),
) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..head.len()).collect();
    // Times are useless without their end.
    let is_text =
        |index: usize| !right.contains(&index) && !head[index].contains("(ZONE)") && !head[index].contains("SINCE");
    let next_optional = |kept: &[usize]| {
        let place = |name: &&str| kept.iter().position(|index| head[*index] == *name);
        let empty = OPTIONAL_IF_ZERO.iter().filter_map(place).find(|place| is_zero(kept[*place]));
        empty.or_else(|| OPTIONAL.iter().find_map(place))
    };
    let least = |index: usize, kept: &[usize]| {
        let least = if next_optional(kept).is_some() { SHORTENED_MIN } else { SHORTENED_LEAST };
        least.max(head[index].chars().count())
    };
    let total = |kept: &[usize], widths: &[usize]| {
        kept.iter().map(|index| widths[*index]).sum::<usize>() + GAP * kept.len().saturating_sub(1)
    };
    loop {
        let excess = total(&kept, widths).saturating_sub(columns);
        if excess == 0 {
            return kept;
        }
        let can_shrink = |index: &&usize| is_text(**index) && widths[**index] > least(**index, &kept);
        let room: usize = kept.iter().filter(can_shrink).map(|index| widths[*index] - least(*index, &kept)).sum();
        match (room >= excess, next_optional(&kept)) {
            (false, Some(position)) => drop(kept.remove(position)),
            (false, None) if room == 0 => return kept,
            _ => {
                let widest = kept.iter().filter(can_shrink).max_by_key(|index| widths[**index]).copied();
                let Some(widest) = widest else { return kept };
                widths[widest] -= 1;
            }
        }
    }
}

/// Breaks a text between words, so that no line is wider than the terminal. Further lines are indented.
pub(super) fn wrapped(text: &str) -> String {
    wrapped_within(text, columns())
}

fn wrapped_within(text: &str, columns: Option<usize>) -> String {
    const INDENT: &str = "  ";
    let Some(columns) = columns else { return text.to_owned() };
    let (mut out, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let width = word.chars().count();
        if used > 0 && used + 1 + width > columns {
            out.push('\n');
            out.push_str(INDENT);
            used = INDENT.len();
        } else if !out.is_empty() {
            out.push(' ');
            used += 1;
        }
        // A path may be longer than a line.
        for letter in word.chars() {
            if used == columns {
                out.push('\n');
                out.push_str(INDENT);
                used = INDENT.len();
            }
            out.push(letter);
            used += 1;
        }
    }
    out
}

/// The address of a peer, without its port.
pub(super) fn peer_address(peer: &str) -> String {
    let address = peer.parse().map(|peer: std::net::SocketAddr| peer.ip().to_canonical().to_string());
    address.unwrap_or_else(|_| if peer.is_empty() { "-".into() } else { peer.to_owned() })
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

/// Truncates a text of a table. A name, which has no blanks, keeps its end too: names of machines often differ there alone.
pub(super) fn shortened_cell(text: &str, chars_max: usize) -> String {
    let text = shown(text);
    let count = text.chars().count();
    if count <= chars_max || text.contains(' ') {
        return shortened(&text, chars_max);
    }
    let start = chars_max / 2;
    let end = chars_max - start - 1;
    text.chars().take(start).chain(['…']).chain(text.chars().skip(count - end)).collect()
}

/// Formats the seconds that a clock is ahead of that of the gateway.
pub(super) fn clock_offset(seconds: f64) -> String {
    let sign = if seconds < 0.0 { '-' } else { '+' };
    match Duration::try_from_secs_f64(seconds.abs()) {
        Ok(span) if span >= Duration::from_secs(60) => format!("{sign}{}", rough(span)),
        _ => format!("{seconds:+.1} s"),
    }
}

/// The time zone of the times in tables.
static ZONE: OnceLock<TimeZone> = OnceLock::new();

/// Has tables show times in UTC, instead of the time zone of the system.
pub(super) fn use_utc() {
    ZONE.get_or_init(|| TimeZone::UTC);
}

fn zone() -> &'static TimeZone {
    ZONE.get_or_init(TimeZone::system)
}

/// The head of a column, with the time zone in place of `(ZONE)`.
fn with_zone(head: &str) -> Cow<'_, str> {
    match head.strip_suffix("(ZONE)") {
        Some(name) if matches!(zone().iana_name(), Some("UTC" | "Etc/UTC")) => format!("{name}(UTC)").into(),
        Some(name) => format!("{name}(local)").into(),
        None => head.into(),
    }
}

/// Returns an RFC 3339 time up to its seconds, in the time zone of the tables.
pub(super) fn seconds(time: &str) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S")
}

/// Returns the time of day of an RFC 3339 time, with milliseconds, in the time zone of the tables.
pub(super) fn time_of_day(time: &str) -> String {
    in_zone(time, "%H:%M:%S%.3f")
}

fn in_zone(time: &str, format: &str) -> String {
    let Some(at) = Timestamp::parse(time).and_then(|at| jiff::Timestamp::from_microsecond(at.0).ok()) else {
        return String::new();
    };
    at.to_zoned(zone().clone()).strftime(format).to_string()
}

/// Time before the time that is left is guessed: the first figures are those of a cold cache.
const GUESS_AFTER: Duration = Duration::from_secs(2);

/// Guesses how long the rest takes, from a share and the time that it took.
pub(super) fn time_left(share: f64, took: Duration) -> Option<String> {
    let left = Duration::try_from_secs_f64(took.as_secs_f64() * (1.0 - share) / share).ok()?;
    (took >= GUESS_AFTER && share < 1.0).then(|| format!("{} left", rough(left)))
}

/// A bar of `width` characters.
pub(super) fn bar(share: f64, width: usize) -> String {
    let full = ((share * width as f64) as usize).min(width);
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

pub(super) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 50 devices with long names, at the widths of usual terminals: no line is wider, and what matters is there.
    #[test]
    fn a_table_of_long_names_fits_the_terminal() {
        let head = [
            "DEVICE",
            "IDENTITY",
            "ADDRESS",
            "CONNECTED SINCE",
            "PER SECOND",
            "LAST EVENT",
            "RECEIVED",
            "REFUSED",
            "DEAD",
            "REPEATS",
            "CLOCK",
        ];
        let row = |number: usize| -> Vec<String> {
            let name = format!("packaging-machine-of-hall-seven-number-{number:03}");
            let cells = [
                &name,
                &name,
                "10.20.30.40",
                "2026-11-30 19:00:00",
                "12.5",
                "12m 3s",
                "1,234,567",
                "0",
                "3",
                "0",
                "+0.1 s",
            ];
            cells.iter().map(|cell| (*cell).to_owned()).collect()
        };
        let rows: Vec<_> = (0..50).map(row).collect();
        let right = [4, 6, 7, 8, 9, 10];
        let widest = |columns| {
            let text = table_within(&head, &right, &rows, (false, columns));
            (text.lines().map(|line| line.chars().count()).max().unwrap_or_default(), text)
        };
        for columns in [80, 120] {
            let (width, text) = widest(Some(columns));
            assert!(width <= columns, "{width} of {columns}: {text}");
            let first = text.lines().next().unwrap_or_default();
            assert!(
                ["DEVICE", "ADDRESS", "LAST EVENT", "DEAD", "REFUSED"].iter().all(|name| first.contains(name)),
                "{first}"
            );
        }
        let (width, text) = widest(None);
        assert!(width > 150 && text.contains("number-049"), "a pipe gets everything");
    }

    #[test]
    fn a_name_keeps_its_end_and_a_sentence_its_beginning() {
        let name = "packaging-machine-of-hall-seven-number-001";
        assert_eq!(shortened_cell(name, 16), "packagin…ber-001");
        assert_eq!(shortened_cell("ä".repeat(20).as_str(), 11), format!("{0}…{0}", "ä".repeat(5)));
        assert_eq!(shortened_cell("the sensor is broken", 11), "the sensor…");
        assert_eq!((clock_offset(-547_601.7), clock_offset(0.13)), ("-6d 8h".into(), "+0.1 s".into()));
        assert_eq!(clock_offset(f64::NAN), "NaN s");
    }

    #[test]
    fn a_long_text_breaks_between_words_and_loses_nothing() {
        let text = format!("! lane critical: {} cannot be written: no space left on the device", "/data".repeat(20));
        for columns in [40, 80] {
            let wrapped = wrapped_within(&text, Some(columns));
            assert!(wrapped.lines().all(|line| line.chars().count() <= columns), "{wrapped}");
            let bare = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(bare(&wrapped), bare(&text));
        }
        assert_eq!(wrapped_within("one two three", Some(9)), "one two\n  three");
        assert_eq!(wrapped_within(&text, None), text);
    }
}
