//! `forebay config show`: every setting with its value, and where the value comes from.
//!
//! Invariant: defaults and meanings are those of the reference page `config/README.md`, which a test compares with the
//! keys of the program.

use super::config_file::ConfigFile;
use super::table::table;
use crate::setting::Document;
use crate::telemetry::{shown_json, shows_colours};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// The reference of all keys.
const REFERENCE: &str = include_str!("../../config/README.md");

#[derive(Debug, Subcommand)]
pub(super) enum Settings {
    /// Show the settings of the configuration file, each with its line; with --all, also the defaults
    #[command(after_help = "Examples:\n  forebay config show\n  forebay config show --all destination")]
    Show(Show),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Only keys that contain this text
    key: Option<String>,
    /// Also settings that the file does not contain, with their defaults and meanings
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

/// A setting of the file, or a default.
#[derive(Debug, Serialize)]
struct Setting {
    key: String,
    value: String,
    /// Line in the file; `None` for a default.
    line: Option<usize>,
    meaning: String,
}

/// A key of the reference page.
struct Described {
    /// The table that the key is in, such as `source.mqtt`; empty for the top level.
    table: String,
    key: String,
    default: String,
    meaning: String,
}

pub(super) fn run(Settings::Show(args): &Settings) -> anyhow::Result<ExitCode> {
    let document = Document::read(&args.config)?;
    let root: toml::Table = document.parse().context("the settings cannot be listed; see `forebay check`")?;
    let reference = reference();
    let mut settings = Vec::new();
    push_table("", &root, &document, &reference, &mut settings);
    if args.all {
        push_defaults(&root, &reference, &mut settings);
    }
    settings.retain(|setting| args.key.as_ref().is_none_or(|wanted| setting.key.contains(wanted)));
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", shown_json(&serde_json::to_string_pretty(&settings)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let from = |setting: &Setting| setting.line.map_or_else(|| "default".to_owned(), |line| format!("line {line}"));
    let rows: Vec<_> =
        settings.iter().map(|one| vec![one.key.clone(), one.value.clone(), from(one), one.meaning.clone()]).collect();
    write!(out, "{}", table(&["KEY", "VALUE", "FROM", "MEANING"], &[], &rows, shows_colours(&std::io::stdout())))?;
    Ok(ExitCode::SUCCESS)
}

/// Adds the settings of a table and of the tables in it, in the order of their names.
fn push_table(
    at: &str,
    table: &toml::Table,
    document: &Document,
    reference: &[Described],
    settings: &mut Vec<Setting>,
) {
    for (name, value) in table {
        let key = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match value {
            toml::Value::Table(inner) => push_table(&key, inner, document, reference, settings),
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                for (index, item) in items.iter().enumerate() {
                    if let toml::Value::Table(inner) = item {
                        push_table(&format!("{key}[{index}]"), inner, document, reference, settings);
                    }
                }
            }
            value => {
                let described = reference.iter().find(|described| described.is(&key));
                settings.push(Setting {
                    value: value.to_string(),
                    line: Some(document.problem(key.as_str(), "").line),
                    meaning: described.map_or_else(String::new, |described| described.meaning.clone()),
                    key,
                });
            }
        }
    }
}

/// Adds the defaults of the top level and of every table that the file has.
fn push_defaults(root: &toml::Table, reference: &[Described], settings: &mut Vec<Setting>) {
    let mut places: Vec<(String, String)> = vec![(String::new(), String::new())];
    let mut push = |table: String, place: String| places.push((table, place));
    if let Some(toml::Value::Table(kinds)) = root.get("source") {
        for (kind, list) in kinds {
            let count = list.as_array().map_or(0, Vec::len);
            (0..count).for_each(|index| push(format!("source.{kind}"), format!("source.{kind}[{index}]")));
        }
    }
    let destinations = root.get("destination").and_then(toml::Value::as_array).map_or(0, Vec::len);
    (0..destinations).for_each(|index| push("destination".into(), format!("destination[{index}]")));
    for name in ["dead", "monitoring", "log"] {
        push(name.into(), name.into());
    }
    for (table, place) in places {
        for described in
            reference.iter().filter(|described| described.table == table && described.default != "required")
        {
            let key = if place.is_empty() { described.key.clone() } else { format!("{place}.{}", described.key) };
            let is_set = |setting: &Setting| setting.key == key || setting.key.starts_with(&format!("{key}."));
            if !settings.iter().any(is_set) {
                let (value, meaning) = (described.default.clone(), described.meaning.clone());
                settings.push(Setting { key, value, line: None, meaning });
            }
        }
    }
}

impl Described {
    /// It describes a key of a file, such as `source.mqtt[0].listen`.
    fn is(&self, key: &str) -> bool {
        let mut plain = String::new();
        let mut is_index = false;
        for letter in key.chars() {
            is_index = letter == '[' || is_index && letter != ']';
            if !is_index && letter != ']' {
                plain.push(letter);
            }
        }
        let own = if self.table.is_empty() { self.key.clone() } else { format!("{}.{}", self.table, self.key) };
        match self.table.as_str() {
            "lane" => plain.starts_with("lane.") && plain.ends_with(&format!(".{}", self.key)),
            _ => plain == own,
        }
    }
}

/// Reads the tables of the reference page.
fn reference() -> Vec<Described> {
    let mut found = Vec::new();
    let mut table: Option<String> = None;
    for line in REFERENCE.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            table = table_of(heading);
        }
        let Some(table) = &table else { continue };
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [keys, _, default, meaning] = cells[..] else { continue };
        for key in keys.split('`').skip(1).step_by(2) {
            // `monitoring.listen` is in a section of two tables.
            let (table, key) = match (table.as_str(), key.split_once('.')) {
                ("monitoring", Some((table, key))) => (table.to_owned(), key),
                _ => (table.clone(), key),
            };
            found.push(Described { table, key: key.to_owned(), default: plain(default), meaning: plain(meaning) });
        }
    }
    found
}

/// The table that a section describes; `None` for other sections.
fn table_of(heading: &str) -> Option<String> {
    if heading == "Top level" {
        return Some(String::new());
    }
    let name = heading.strip_prefix('`')?.split('`').next()?.trim_matches(['[', ']']);
    Some(name.trim_end_matches(".NAME").to_owned())
}

/// Text of a cell without links and back quotes.
fn plain(cell: &str) -> String {
    let mut out = String::new();
    let mut rest = cell;
    while let Some((before, link)) = rest.split_once("](") {
        out.push_str(&before.replace('[', ""));
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_defaults_and_meanings_of_the_main_tables() {
        let reference = reference();
        let find = |key: &str| reference.iter().find(|described| described.is(key)).map(|found| found.default.as_str());
        assert_eq!(find("data_dir"), Some("\"/var/lib/forebay\""));
        assert_eq!(find("source.mqtt[3].topic_max"), Some("1024"));
        assert_eq!(find("log.level"), Some("\"info\""));
        assert!(find("lane.bulk.linger").is_some() && find("destination[0].url") == Some("required"));
        assert_eq!(plain("see [Limits](x.md#y) of `a`"), "see Limits of a");
        assert!(reference.len() > 100, "{}", reference.len());
    }
}
