//! Reads a file row by row, in any format.

use super::cells::{Cells, Layout};
use super::config::{Config, Format};
use super::csv_rows::CsvRows;
use super::text::{Utf8, wrong};
use super::xml_rows::XmlRows;
use encoding_rs::{Encoding, UTF_8};
use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind};

/// One row of a file, as it is handed in.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// Line of the file on which the row begins, from 1.
    pub(super) line: u64,
    /// The event as JSON.
    pub(super) payload: Vec<u8>,
    /// Why the row cannot become an event, starting with the field.
    pub(super) refusal: Option<String>,
}

/// Why a file cannot be read.
#[derive(Debug)]
pub(super) enum RowError {
    /// The content of the file is wrong.
    Content(String),
    /// The file system did not deliver the content.
    Disk(Error),
}

impl From<Error> for RowError {
    fn from(error: Error) -> Self {
        match error.kind() {
            // `text` and the readers report wrong content this way.
            ErrorKind::InvalidData => Self::Content(error.to_string()),
            _ => Self::Disk(error),
        }
    }
}

/// The rows of an open file.
pub(super) enum Rows {
    Csv(Box<CsvRows<Utf8<File>>>, Layout),
    Xml(Box<XmlRows<Utf8<File>>>, Layout),
    Lines { text: BufReader<Utf8<File>>, line: u64 },
}

impl Rows {
    /// Starts reading a file, and checks that it has the columns of the layout.
    pub(super) fn open(file: File, config: &Config, layout: Layout) -> Result<Self, RowError> {
        let encoding = Encoding::for_label(config.encoding.as_bytes()).unwrap_or(UTF_8);
        let text = Utf8::new(file, encoding, config.format == Format::Xml)?;
        Ok(match config.format {
            Format::Csv => {
                let rows = CsvRows::open(text, config)?;
                layout.check_headings(rows.headings())?;
                Self::Csv(Box::new(rows), layout)
            }
            Format::Xml => {
                let row = config.row.clone().unwrap_or_default();
                Self::Xml(Box::new(XmlRows::new(text, row)), layout)
            }
            Format::Jsonl => Self::Lines { text: BufReader::new(text), line: 0 },
        })
    }

    /// The next row; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<Row>, RowError> {
        match self {
            Self::Csv(rows, layout) => Ok(rows.next()?.map(|(line, cells)| row(layout, line, &cells))),
            Self::Xml(rows, layout) => Ok(rows.next()?.map(|(line, cells)| row(layout, line, &cells))),
            Self::Lines { text, line } => next_line(text, line),
        }
    }
}

fn row(layout: &Layout, line: u64, cells: &Cells) -> Row {
    let (payload, refusal) = layout.event(cells);
    Row { line, payload, refusal }
}

/// The next line that is not empty.
fn next_line(text: &mut BufReader<Utf8<File>>, line: &mut u64) -> Result<Option<Row>, RowError> {
    loop {
        let mut payload = Vec::new();
        if text.read_until(b'\n', &mut payload)? == 0 {
            return Ok(None);
        }
        text.get_ref().meter().restart();
        *line += 1;
        let end = payload.trim_ascii_end().len();
        payload.truncate(end);
        if !payload.is_empty() {
            return Ok(Some(Row { line: *line, payload, refusal: None }));
        }
    }
}

impl Layout {
    /// Checks that a file has every column that the contract names.
    fn check_headings(&self, headings: &[String]) -> Result<(), RowError> {
        let missing: Vec<_> = self.columns().filter(|column| !headings.iter().any(|name| name == column)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let quoted = |names: Vec<&str>| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let hint = match headings {
            [sole] if sole.contains([';', '\t', ',', '|']) => "; is separator right?",
            _ => "",
        };
        let (missing, found) = (quoted(missing), quoted(headings.iter().map(String::as_str).collect()));
        Err(wrong(format!("the file has no column {missing}, which the contract names; it has {found}{hint}")).into())
    }
}
