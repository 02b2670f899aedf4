//! Settings files: parses TOML into types, and finds the position of errors.
//!
//! Promise: every problem names the file, the line, the key, the value and what is allowed.

use super::hints;
use super::mismatch::{deserialize, fill, find, remove};
use super::reader::Mismatch;
use crate::event::text;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// An error in a settings file: position, value, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// Line number from 1; 0 for the whole file.
    pub line: usize,
    /// Key of the setting, such as `source.mqtt[0].listen`.
    pub key: String,
    /// The offending value and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Problem {}

/// Most type mismatches that are reported: a file with more is of another kind.
const PROBLEMS_MAX: usize = 20;

/// Collects every value by key. List items with a `name` are identified by it instead of the index.
fn flatten(key: String, value: &toml::Value, found: &mut BTreeMap<String, String>) {
    let child_key = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(part, value)| flatten(child_key(part), value, found));
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            for (index, item) in items.iter().enumerate() {
                let name = item.get("name").and_then(toml::Value::as_str);
                flatten(format!("{key}[{}]", name.map_or_else(|| index.to_string(), str::to_owned)), item, found);
            }
        }
        other => {
            found.insert(key, serde_json::to_string(other).unwrap_or_default());
        }
    }
}

/// Whether a value may be a secret written into the file. Paths of secrets match too.
fn may_be_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    ["password", "token", "key", "secret", "url"].iter().any(|word| last.contains(word))
}

/// The text of a settings file, to find the position of problems.
#[derive(Clone, Debug)]
pub struct Document {
    file: PathBuf,
    text: String,
}

impl Document {
    pub fn read(file: &Path) -> Result<Self, Problem> {
        let problem =
            |line: usize, message: String| Problem { file: file.to_owned(), line, key: String::new(), message };
        let bytes = std::fs::read(file).map_err(|error| problem(0, format!("cannot be read: {error}")))?;
        if text::is_utf16(&bytes) {
            return Err(problem(0, format!("cannot be read: {}", text::UTF16)));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(file, text)),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let (before, after) = error.as_bytes().split_at(valid);
                let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
                let byte = after.first().copied().unwrap_or_default();
                Err(problem(line, format!("byte 0x{byte:02X} is not UTF-8; save the file as UTF-8")))
            }
        }
    }

    /// Creates a document from a text.
    pub fn new(file: &Path, text: String) -> Self {
        Self { file: file.to_owned(), text }
    }

    /// Returns the text of the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the path of the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Parses the document into `T`. The error is the first mismatch.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let root = self.root().map_err(|mismatch| self.at(mismatch))?;
        deserialize(&root, &self.text).map_err(|mismatch| self.at(mismatch))
    }

    fn root(&self) -> Result<Spanned<DeTable<'_>>, Mismatch> {
        DeTable::parse(&self.text).map_err(|error| Mismatch::of_syntax(&error).explain_repeat(&self.text))
    }

    fn at(&self, Mismatch { key, span, message }: Mismatch) -> Problem {
        // The span of a missing top-level field is the whole file.
        let span = span.filter(|span| !key.is_empty() || *span != (0..self.text.len()));
        let written = self.value(&key).or_else(|| span.clone().and_then(|span| self.text.get(span)).map(str::to_owned));
        let line = span.map_or_else(|| self.line_of(&key), |span| self.line_at(span.start));
        let message = hints::explain(&key, &message, &written.unwrap_or_default());
        Problem { file: self.file.clone(), line, key, message }
    }

    /// The message about a value, with a hint.
    fn explained(&self, key: &str, message: &str) -> String {
        hints::explain(key, message, &self.value(key).unwrap_or_default())
    }

    /// Parses the document into `T`. The error is every mismatch.
    pub fn parse_all<T: DeserializeOwned>(&self) -> Result<T, Vec<Problem>> {
        let first = match self.parse() {
            Ok(value) => return Ok(value),
            Err(problem) => problem,
        };
        let Ok(mut root) = self.root() else { return Err(vec![first]) };
        let mut problems = vec![first];
        let mut filled: Vec<String> = Vec::new();
        // Remove the mismatched value, or fill in the missing one, and parse the rest again.
        while let Some(last) = problems.last().map(|problem| (problem.key.clone(), problem.message.clone()))
            && (fill(root.get_mut(), &last, &mut filled) || remove(root.get_mut(), &last.0))
            && let Err(Mismatch { key, message, .. }) = deserialize::<T>(&root, &self.text)
            && !filled.contains(&key)
        {
            let was_removed = |problem: &Problem| {
                let name = problem.key.rsplit('.').next().unwrap_or_default();
                message.contains(&format!("missing field `{name}`"))
            };
            if problems.iter().any(was_removed) || problems.len() >= PROBLEMS_MAX {
                break;
            }
            let message = self.explained(&key, &message);
            problems.push(self.problem(key, message));
        }
        Err(problems)
    }

    /// Describes the differences to a newer version of the file, one line per key. Omits values that may be secrets.
    pub fn differences(&self, newer: &Self) -> Vec<String> {
        let values = |document: &Self| {
            let mut found = BTreeMap::new();
            if let Ok(root) = document.text.parse::<toml::Table>() {
                flatten(String::new(), &toml::Value::Table(root), &mut found);
            }
            found
        };
        let (old, new) = (values(self), values(newer));
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let line = |key: &String| match (old.get(key), new.get(key)) {
            (Some(old), Some(new)) if old == new => None,
            (Some(_), Some(_)) if may_be_secret(key) => Some(format!("{key}: changed")),
            (Some(old), Some(new)) => Some(format!("{key}: {old} → {new}")),
            (Some(_), None) => Some(format!("{key}: removed")),
            (None, Some(_)) if may_be_secret(key) => Some(format!("{key}: added")),
            (None, new) => Some(format!("{key}: {}", new.map_or("", String::as_str))),
        };
        keys.into_iter().filter_map(line).collect()
    }

    /// Creates a problem with the value of `key`.
    pub fn problem(&self, key: impl Into<String>, message: impl Into<String>) -> Problem {
        let key = key.into();
        Problem { file: self.file.clone(), line: self.line_of(&key), key, message: message.into() }
    }

    /// Returns the value of a key as JSON, or as it is written if JSON has no such value; `None` if the file does not contain
    /// the key.
    pub fn value(&self, key: &str) -> Option<String> {
        self.value_as_json(key).or_else(|| {
            let mut root = self.root().ok()?;
            let span = find(root.get_mut(), key)?.span();
            self.text.get(span).map(str::to_owned)
        })
    }

    fn value_as_json(&self, key: &str) -> Option<String> {
        let root: toml::Table = self.text.parse().ok()?;
        let mut steps = key.split(['.', '[', ']']).filter(|step| !step.is_empty());
        let first = root.get(steps.next()?)?;
        let found = steps.try_fold(first, |value, step| match step.parse::<usize>() {
            Ok(index) if value.is_array() => value.get(index),
            _ => value.get(step),
        })?;
        serde_json::to_string(found).ok()
    }

    /// Returns the string of a top-level key from a file that may be invalid elsewhere.
    pub fn value_without_parsing(&self, key: &str) -> Option<String> {
        let lines = self.text.lines().take_while(|line| !line.trim_start().starts_with('['));
        let mut values = lines.filter_map(|line| line.trim_start().strip_prefix(key)?.trim_start().strip_prefix('='));
        let value = values.next()?.trim().strip_prefix('"')?;
        value.split_once('"').map(|(value, _)| value.to_owned())
    }

    /// Returns the line of a key, or of the innermost existing table around it; 0 if there is none.
    fn line_of(&self, key: &str) -> usize {
        let Ok(root) = DeTable::parse(&self.text) else {
            return 0;
        };
        let mut start = None;
        let mut table = Some(root.get_ref());
        let mut array = None;
        for step in key.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let next = match (table, array) {
                (Some(inside), _) => inside
                    .iter()
                    .find(|(name, _)| name.get_ref() == step)
                    .map(|(name, value)| (name.span().start, value)),
                (None, Some(items)) => {
                    let items: &toml::de::DeArray<'_> = items;
                    step.parse::<usize>()
                        .ok()
                        .and_then(|index| items.get(index))
                        .map(|value| (value.span().start, value))
                }
                (None, None) => None,
            };
            let Some((at, value)) = next else { break };
            start = Some(at);
            table = value.get_ref().as_table();
            array = match value.get_ref() {
                DeValue::Array(items) => Some(items),
                _ => None,
            };
        }
        start.map_or(0, |start| self.line_at(start))
    }

    fn line_at(&self, byte: usize) -> usize {
        self.text.bytes().take(byte).filter(|&b| b == b'\n').count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Span;

    #[test]
    fn differences_name_keys_and_values_but_no_secret() {
        let document = |text: &str| Document::new(Path::new("a.toml"), text.into());
        let old = document("site = \"a\"\n[[source.mqtt]]\nname = \"x\"\nwindow = 1\ntoken = \"t1\"\n");
        let new = document("[[source.mqtt]]\nname = \"x\"\nwindow = 2\ntoken = \"t2\"\nacl = [{ who = \"a\" }]\n");
        assert_eq!(
            old.differences(&new),
            [
                "site: removed",
                "source.mqtt[x].acl[0].who: \"a\"",
                "source.mqtt[x].token: changed",
                "source.mqtt[x].window: 1 → 2",
            ]
        );
        assert!(old.differences(&old).is_empty());
    }

    #[test]
    fn a_table_or_key_that_is_there_twice_is_named_with_the_first_line() {
        let message = |text: &str| {
            let problem = Document::new(Path::new("a.toml"), text.into()).parse::<toml::Table>().expect_err("refused");
            (problem.line, problem.message)
        };
        let (line, text) = message("[[source.mqtt]]\nname = \"a\"\n\n[source.mqtt]\nname = \"b\"\n");
        assert_eq!(line, 4);
        assert_eq!(
            text,
            "[source.mqtt] repeats [[source.mqtt]] of line 1; another item of the list begins with [[source.mqtt]]"
        );
        let (line, text) = message("[watch]\na = 1\n[log]\n[ watch ]\nb = 2\n");
        assert!(line == 4 && text.starts_with("[watch] is there already, in line 1;"), "{line} {text}");
        let (line, text) = message("site = \"a\"\nname = \"b\"\nsite = \"c\"\n");
        assert!(line == 3 && text.starts_with("`site` is there twice"), "{line} {text}");
    }

    #[test]
    fn a_file_in_another_encoding_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("a.toml");
        let message = |bytes: &[u8]| {
            std::fs::write(&file, bytes).expect("written");
            let parsed = Document::read(&file).and_then(|document| document.parse::<toml::Table>());
            parsed.map_or_else(|problem| problem.to_string(), |table| table.keys().cloned().collect())
        };
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        assert!(message(&wide("\u{feff}site = \"a\"\n")).contains("it is text in UTF-16; save it as UTF-8"));
        assert!(message(b"# Werk\nsite = \"K\xF6ln\"\n").contains("a.toml:2: byte 0xF6 is not UTF-8"));
        // Notepad's "UTF-8 with BOM".
        assert_eq!(message("\u{feff}site = \"a\"\n".as_bytes()), "site");
    }

    #[test]
    fn a_problem_names_file_line_key_and_what_is_allowed() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "its fields are only read in")]
        struct Inner {
            wait: Span,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "its fields are only read in")]
        struct Outer {
            part: Vec<Inner>,
        }
        let document =
            Document::new(Path::new("a.toml"), "\n[[part]]\nwait = \"2s\"\n\n[[part]]\nwait = \"soon\"\n".into());
        let problem = document.parse::<Outer>().expect_err("soon is no time");
        assert_eq!((problem.line, problem.key.as_str()), (6, "part[1].wait"));
        assert!(problem.message.contains("soon") && problem.message.contains("250ms"), "{problem}");
        assert_eq!(document.problem("part[1].wait", "x").line, 6);
        assert_eq!(document.problem("part[0].lacking", "x").line, 2);

        let document = Document::new(Path::new("a.toml"), "part = []\nparts = 3\n".into());
        let problem = document.parse::<Outer>().expect_err("parts is unknown");
        assert_eq!(problem.line, 2);
        assert!(problem.message.contains("unknown field `parts`"), "{problem}");
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Format {
        Text,
        Json,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "some fields are only read in")]
    struct Settings {
        format: Option<Format>,
        range: Option<Vec<f64>>,
        name: Option<String>,
        inner: Option<Vec<Size>>,
        one: Option<Size>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "some fields are only read in")]
    struct Size {
        size: u16,
    }

    fn read(text: &str) -> Result<Settings, (String, String)> {
        let document = Document::new(Path::new("a.toml"), text.into());
        document.parse::<Settings>().map_err(|problem| (problem.key, problem.message))
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_is_allowed() {
        for (text, key, message) in [
            ("range = [0, 1e999]", "range[1]", "`1e999` is out of range"),
            ("range = [0, true]", "range[1]", "`true`, expected a number"),
            ("range = 0", "range", "`0`, expected a list; write range = ["),
            ("name = 0xFFFFFFFFFFFFFFFF", "name", "`18446744073709551615`, expected a text in quotes"),
            ("name = 0xFFFFFFFFFFFFFFFFF", "name", "`295147905179352825855`, expected a text in quotes"),
            (
                "name = 0x1FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
                "name",
                "`0x1FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF` is out of range",
            ),
            ("name = 1979-05-27", "name", "`1979-05-27` is a date or time, and no setting is one; put it in quotes"),
            ("inner = [{ size = 07:32:00 }]", "inner[0].size", "`07:32:00` is a date or time"),
            ("inner = [{ size = 70000 }]", "inner[0].size", "`70000`, expected a whole number from 0 to 65535"),
            ("inner = [{}]", "inner[0]", "missing field `size`"),
            ("[inner]\nsize = 1", "inner", "a table, expected a list"),
            ("[[inner]]", "inner[0]", "missing field `size`"),
            ("[[inner]]\nsize = 1\n[[inner]]\n", "inner[1]", "missing field `size`"),
            ("[[inner]]\nsize = 1\n[[inner]]\nsized = 1\n", "inner[1].sized", "unknown field `sized`"),
            ("one.size = \"1\"", "one.size", "expected a whole number"),
            ("[one.size]\na.b = 1", "one.size", "expected a whole number"),
            ("[[name]]", "name", "expected a text in quotes"),
            ("[[format]]", "format", "unknown value"),
            ("[[one]]\nsize = 1", "one", "[[one]] begins an item of a list; expected [one]"),
            ("format = \"xml\"", "format", "unknown value `xml`, expected `text` or `json`"),
            (
                "format = { json = 1, xml = 2 }",
                "format",
                "unknown value `{ json = 1, xml = 2 }`, expected `text` or `json`",
            ),
            ("format = 1", "format", "unknown value `1`, expected `text` or `json`"),
            ("format = [\"text\"]", "format", "unknown value `[\"text\"]`, expected `text` or `json`"),
            ("formt = 1", "formt", "unknown field `formt`, expected one of `format`"),
        ] {
            let (found, said) = read(text).expect_err(text);
            assert_eq!(found, key, "{text}: {said}");
            assert!(said.contains(message), "{text}: {said}");
        }
        let good = read("range = [-1, inf]\nformat = \"json\"\nname = \"a\"").expect("fits");
        assert_eq!(good.range, Some(vec![-1.0, f64::INFINITY]));
        assert!(matches!(good.format, Some(Format::Json)) && good.name.as_deref() == Some("a"));
        assert!(matches!(read("format = \"text\"").expect("fits").format, Some(Format::Text)));
    }
}
