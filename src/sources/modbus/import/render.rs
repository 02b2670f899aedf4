//! The table that an import writes.

use super::super::table::Device;
use super::draft::{Draft, Length, ScaleReference};
use super::outcome::{Imported, Refusal};
use super::types::Class;
use crate::setting::Document;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// A point as TOML, and its line in the list.
struct Rendered {
    line: usize,
    text: String,
    summary: String,
}

/// Writes the table. Points that the checks of a table refuse are left out, until it loads.
pub(super) fn render(title: &str, drafts: Vec<Draft>, imported: &mut Imported) -> Result<(), Refusal> {
    let mut taken = BTreeSet::new();
    let names: Vec<String> = drafts.iter().map(|draft| unique(draft, &mut taken)).collect();
    let mut points: Vec<Rendered> =
        drafts.iter().zip(&names).map(|(draft, name)| point(draft, name, &drafts, &names)).collect();
    loop {
        if points.is_empty() {
            let first = imported.skipped.iter().min();
            let why = first.map_or_else(
                || "there is no line below the head".to_owned(),
                |(line, why)| format!("no line is a point; line {line}: {why}"),
            );
            return Err(Refusal::NoList(why));
        }
        let mut text = String::from("[group.values]\ninterval = \"5s\"\n");
        points.iter().for_each(|point| text.push_str(&point.text));
        let Err(problems) = Device::read(&Document::new(Path::new("table"), text.clone())) else {
            imported.points = points.len();
            imported.lines = points.iter().map(|point| (point.line, point.summary.clone())).collect();
            imported.table = format!("{}\ndescription = {}\n\n{text}", comments(imported), quoted(title));
            return Ok(());
        };
        let mut wrong: Vec<(usize, String)> = Vec::new();
        for problem in problems {
            let place =
                problem.key.strip_prefix("point[").and_then(|rest| rest.split(']').next()?.parse::<usize>().ok());
            match place {
                Some(place) if place < points.len() => wrong.push((place, problem.message)),
                _ => return Err(Refusal::NoList(problem.to_string())),
            }
        }
        wrong.sort();
        wrong.dedup_by_key(|(place, _)| *place);
        for (place, why) in wrong.into_iter().rev() {
            imported.skipped.push((points.remove(place).line, why));
        }
    }
}

/// The report as comments.
fn comments(imported: &Imported) -> String {
    let mut out = String::from("# Made by `forebay modbus import`; check it against the manual and the device.\n");
    let skipped = imported.skipped.iter().map(|(line, why)| format!("line {line} is left out: {why}"));
    for line in imported.report.iter().cloned().chain(skipped) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# - {}", line.replace(|letter: char| letter.is_control(), " "));
    }
    out
}

fn point(draft: &Draft, name: &str, drafts: &[Draft], names: &[String]) -> Rendered {
    let label: String = draft.label.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let mut out = format!("\n# line {}: {label}\n[[point]]\n", draft.line);
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(out, "{key} = {value}");
    };
    line("name", &quoted(name));
    line("table", &quoted(draft.table.name()));
    line("address", &draft.address.to_string());
    let is_bits = draft.table.is_bits();
    if !is_bits {
        line("type", &quoted(draft.kind));
    }
    if let Some(Length::Registers(length)) = draft.length {
        line("length", &length.to_string());
    }
    match draft.bits.filter(|_| !is_bits) {
        Some((first, last)) if first == last => line("bit", &first.to_string()),
        Some((first, last)) => line("bits", &format!("[{first}, {last}]")),
        None => {}
    }
    if let Some(order) = &draft.order {
        line("order", &quoted(order));
    }
    if draft.scale != 1.0 {
        line("scale", &draft.scale.to_string());
    }
    if draft.offset != 0.0 {
        line("offset", &draft.offset.to_string());
    }
    if let Some(ScaleReference::Address(address)) = draft.scale_reference {
        let is_it = |other: &Draft| other.address == address && other.table == draft.table;
        if let Some(at) = drafts.iter().position(is_it) {
            line("scale_from", &quoted(&names[at]));
        }
    }
    if !draft.unit.is_empty() {
        line("unit", &quoted(&draft.unit));
    }
    if !draft.values.is_empty() {
        let words: Vec<_> =
            draft.values.iter().map(|(number, word)| format!("\"{number}\" = {}", quoted(word))).collect();
        line("values", &format!("{{ {} }}", words.join(", ")));
    }
    if draft.class == Class::Counter {
        line("counter", "true");
    }
    if let Some(absent) = &draft.absent {
        let is_number = absent.parse::<i64>().is_ok();
        line("absent", &if is_number { format!("[{absent}]") } else { format!("[{}]", quoted(absent)) });
    }
    let scale = if draft.scale == 1.0 { String::new() } else { format!(" × {}", draft.scale) };
    let order = draft.order.as_ref().map_or_else(String::new, |order| format!(" {order}"));
    let unit = if draft.unit.is_empty() { String::new() } else { format!(" {}", draft.unit) };
    let (table, address, kind) = (draft.table.name(), draft.address, draft.kind);
    let more = more(draft);
    let summary = format!("{table} {address} {kind}{order}{scale}{unit} → {name}{more}");
    Rendered { line: draft.line, text: out, summary }
}

/// What else was understood of a line.
fn more(draft: &Draft) -> String {
    let mut parts = Vec::new();
    match draft.bits.filter(|_| !draft.table.is_bits()) {
        Some((first, last)) if first == last => parts.push(format!("bit {first}")),
        Some((first, last)) => parts.push(format!("bits {first} to {last}")),
        None => {}
    }
    if let Some(Length::Registers(length)) = draft.length {
        parts.push(format!("{length} registers"));
    }
    if draft.offset != 0.0 {
        parts.push(format!("offset {}", draft.offset));
    }
    if let Some(ScaleReference::Address(address)) = draft.scale_reference {
        parts.push(format!("scale in register {address}"));
    }
    if !draft.values.is_empty() {
        parts.push(format!("{} words", draft.values.len()));
    }
    if draft.class == Class::Counter {
        parts.push("a counter".into());
    }
    parts.extend(draft.absent.iter().map(|absent| format!("absent {absent}")));
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// A name of letters, digits and `_`, from the label or the address.
fn unique(draft: &Draft, taken: &mut BTreeSet<String>) -> String {
    let word = word(&draft.label);
    let plain = if word.is_empty() { format!("{}_{}", draft.table.name(), draft.address) } else { word };
    let mut name = plain.clone();
    let mut count = 2;
    while !taken.insert(name.clone()) {
        name = format!("{plain}_{count}");
        count += 1;
    }
    name
}

/// Longest name that is made of a label; the table allows 64 letters, and a number may follow.
const NAME_LETTERS_MAX: usize = 56;

fn word(text: &str) -> String {
    let mut out = String::new();
    for letter in text.to_lowercase().chars() {
        match letter {
            'a'..='z' | '0'..='9' => out.push(letter),
            'ä' => out.push_str("ae"),
            'ö' => out.push_str("oe"),
            'ü' => out.push_str("ue"),
            'ß' => out.push_str("ss"),
            _ if !out.is_empty() && !out.ends_with('_') => out.push('_'),
            _ => {}
        }
    }
    out.truncate(NAME_LETTERS_MAX);
    out.trim_end_matches('_').to_owned()
}

/// A TOML string. TOML understands the escapes of JSON.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
