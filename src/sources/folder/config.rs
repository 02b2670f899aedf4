//! The settings of a folder source, with their checks.

use crate::contract::NumberFormat;
use crate::setting::Span;
use encoding_rs::Encoding;
use glob::Pattern;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The configuration of a folder source.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// Folder into which programs drop files. `done` and `failed` are created in it.
    pub path: PathBuf,
    pub format: Format,
    /// Patterns of file names; by default those of the format. Capital and small letters are the same.
    #[serde(default)]
    pub files: Vec<String>,
    /// How the gateway knows that a file is complete.
    #[serde(default)]
    pub complete: Complete,
    /// How long a file must stay unchanged before it is complete.
    #[serde(default = "settle")]
    pub settle: Span,
    /// Name of the file that marks `{file}` or `{stem}` as complete.
    pub marker: Option<String>,
    /// Encoding of files without a byte order mark and, for XML, without a declaration.
    #[serde(default = "encoding")]
    pub encoding: String,
    /// Separator of the cells in CSV.
    #[serde(default = "separator")]
    pub separator: char,
    /// Whether the first line of CSV names the columns; else they are named by their number, from 1.
    #[serde(default = "header")]
    pub header: bool,
    /// Lines of CSV before the header or the first row.
    #[serde(default)]
    pub skip: u32,
    /// Mark before the decimals of a number.
    #[serde(default = "decimal")]
    pub decimal: char,
    /// Mark between thousands.
    pub thousands: Option<char>,
    /// Name of the XML element that is a row.
    pub row: Option<String>,
    /// What happens to a file whose content was read before.
    #[serde(default)]
    pub repeats: Repeats,
    /// Interval at which the folder is read.
    #[serde(default = "poll")]
    pub poll: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    Csv,
    /// One JSON value in each line.
    Jsonl,
    Xml,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Complete {
    /// Its size and time did not change for `settle`.
    #[default]
    Settled,
    /// It is there: programs write it under another name and rename it.
    Renamed,
    /// The file `marker` is there.
    Marker,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repeats {
    /// It is moved to `done`, and none of its rows becomes an event.
    #[default]
    Skip,
    /// Its rows become events again, with other ids.
    Accept,
}

/// Longer than programs pause while they write.
fn settle() -> Span {
    Span(Duration::from_secs(10))
}
fn encoding() -> String {
    "utf-8".into()
}
fn separator() -> char {
    ','
}
fn header() -> bool {
    true
}
fn decimal() -> char {
    '.'
}
fn poll() -> Span {
    Span(Duration::from_secs(2))
}

/// Endings of names under which programs write files that are not complete.
const UNFINISHED: [&str; 7] = [".tmp", ".temp", ".part", ".filepart", ".partial", ".crdownload", ".swp"];

impl Config {
    /// Checks the values. The error is the key and the reason.
    pub(super) fn check_values(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: String| Err((key.to_owned(), message));
        if let Err(message) = self.patterns() {
            return wrong("files", message);
        }
        if Encoding::for_label(self.encoding.as_bytes()).is_none() {
            let message = format!(
                "\"{}\" is no encoding; expected one such as \"utf-8\", \"windows-1252\" or \"utf-16le\"",
                self.encoding
            );
            return wrong("encoding", message);
        }
        for (key, span, min, max) in [("settle", self.settle, 0, 86_400), ("poll", self.poll, 1, 3600)] {
            let (min, max) = (Duration::from_secs(min), Duration::from_secs(max));
            if !(min..=max).contains(&span.0) {
                return wrong(key, format!("{span} is out of bounds; {} to {} are allowed", Span(min), Span(max)));
            }
        }
        match (&self.marker, self.complete) {
            (None, Complete::Marker) => {
                return wrong(
                    "marker",
                    "is missing; it names the file that marks a file as complete, such as \"{file}.done\"".into(),
                );
            }
            (Some(_), Complete::Settled | Complete::Renamed) => {
                return wrong("marker", "needs complete = \"marker\"".into());
            }
            (Some(marker), _) if !(marker.contains("{file}") || marker.contains("{stem}")) || marker.contains('/') => {
                let message = format!("\"{marker}\" is no name of a marker; expected one such as \"{{file}}.done\"");
                return wrong("marker", message);
            }
            _ => {}
        }
        if !self.separator.is_ascii() || matches!(self.separator, '"' | '\n' | '\r' | '\0') {
            let message = format!(
                "{:?} separates no cells; expected one such as \",\", \";\" or \"\\t\"",
                self.separator.to_string()
            );
            return wrong("separator", message);
        }
        if self.thousands == Some(self.decimal) || self.decimal.is_ascii_digit() {
            let message = format!("\"{}\" is the mark before decimals and between thousands", self.decimal);
            return wrong("decimal", message);
        }
        match (&self.row, self.format) {
            (None, Format::Xml) => {
                wrong("row", "is missing; it names the element that is one row, such as \"order\"".into())
            }
            (Some(_), Format::Csv | Format::Jsonl) => wrong("row", "has a meaning for format = \"xml\" only".into()),
            _ => Ok(()),
        }
    }

    /// The patterns of file names, from the setting or the format.
    pub(super) fn pattern_texts(&self) -> Vec<String> {
        let of_format: &[&str] = match self.format {
            Format::Csv => &["*.csv"],
            Format::Jsonl => &["*.jsonl", "*.ndjson"],
            Format::Xml => &["*.xml"],
        };
        if self.files.is_empty() {
            of_format.iter().map(|text| (*text).to_owned()).collect()
        } else {
            self.files.clone()
        }
    }

    fn patterns(&self) -> Result<Vec<Pattern>, String> {
        let parse = |text: String| {
            let pattern = Pattern::new(&text).ok().filter(|_| !text.is_empty() && !text.contains('/'));
            pattern.ok_or_else(|| format!("\"{text}\" is no pattern of file names; expected one such as \"*.csv\""))
        };
        self.pattern_texts().into_iter().map(parse).collect()
    }

    /// Decides which names are files to read.
    pub(super) fn names(&self) -> Result<Names, String> {
        Ok(Names(self.patterns()?))
    }

    /// The name of the marker of a file.
    pub(super) fn marker_of(&self, file: &str) -> Option<String> {
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
        self.marker.as_ref().map(|marker| marker.replace("{file}", file).replace("{stem}", stem))
    }

    pub(super) fn numbers(&self) -> NumberFormat {
        NumberFormat { decimal: self.decimal, thousands: self.thousands }
    }
}

/// Patterns of the names of files to read.
#[derive(Clone, Debug)]
pub(super) struct Names(Vec<Pattern>);

impl Names {
    /// Whether a file of this name is read: hidden files, lock files of office programs and names that programs use
    /// for files that they still write are not.
    pub(super) fn take(&self, name: &str) -> bool {
        let small = name.to_lowercase();
        let is_unfinished = UNFINISHED.iter().any(|ending| small.ends_with(ending));
        let any_case = glob::MatchOptions { case_sensitive: false, ..glob::MatchOptions::new() };
        !is_unfinished
            && !name.starts_with(['.', '~'])
            && self.0.iter().any(|pattern| pattern.matches_with(name, any_case))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Config {
        toml::from_str(&format!("name = \"a\"\npath = \"a\"\n{more}")).expect(more)
    }

    #[test]
    fn unfinished_and_hidden_files_are_not_read() {
        let names = config("format = \"csv\"").names().expect("patterns");
        for good in ["a.csv", "EXPORT.CSV", "Aufträge 30.11.csv"] {
            assert!(names.take(good), "{good}");
        }
        for other in ["a.csv.tmp", ".a.csv", "~$a.csv", "a.csv.filepart", "a.xml", "csv"] {
            assert!(!names.take(other), "{other}");
        }
        let all = config("format = \"csv\"\nfiles = [\"*\"]").names().expect("patterns");
        assert!(all.take("noending") && !all.take("a.TMP"));
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        for (more, key, part) in [
            ("format = \"csv\"\nfiles = [\"a/*.csv\"]", "files", "is no pattern"),
            ("format = \"csv\"\nfiles = [\"[\"]", "files", "is no pattern"),
            ("format = \"csv\"\nencoding = \"klingon\"", "encoding", "windows-1252"),
            ("format = \"csv\"\nsettle = \"2d\"", "settle", "0s to 1d"),
            ("format = \"csv\"\ncomplete = \"marker\"", "marker", "is missing"),
            ("format = \"csv\"\nmarker = \"{file}.ok\"", "marker", "complete = \"marker\""),
            ("format = \"csv\"\ncomplete = \"marker\"\nmarker = \"ok\"", "marker", "{file}.done"),
            ("format = \"csv\"\nseparator = \"\\n\"", "separator", "separates no cells"),
            ("format = \"csv\"\ndecimal = \",\"\nthousands = \",\"", "decimal", "between thousands"),
            ("format = \"xml\"", "row", "is missing"),
            ("format = \"csv\"\nrow = \"a\"", "row", "\"xml\" only"),
        ] {
            let (at, message) = config(more).check_values().expect_err(more);
            assert!(at == key && message.contains(part), "{more}: {at}: {message}");
        }
    }
}
