//! Rows of a CSV file.

use super::cells::Cells;
use super::config::Config;
use super::text::{RowMeter, Utf8, wrong};
use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Result};

/// Reads the rows of a CSV file.
pub(super) struct CsvRows<T> {
    reader: Reader<BufReader<T>>,
    headings: Vec<String>,
    record: StringRecord,
    meter: RowMeter,
    /// Lines before the part that `reader` reads.
    skipped: u64,
    /// Lines to add to the position of every record but the first. The crate takes CR LF for an end at CR, and counts the
    /// LF to the next record.
    late: u64,
    /// A first row that was read for the number of its cells.
    first: Option<Cells>,
}

impl<R: Read> CsvRows<Utf8<R>> {
    /// Reads the header.
    pub(super) fn open(text: Utf8<R>, config: &Config) -> Result<Self> {
        let meter = text.meter();
        let mut text = BufReader::new(text);
        let mut line = Vec::new();
        for _ in 0..config.skip {
            line.clear();
            text.read_until(b'\n', &mut line)?;
            meter.restart();
        }
        let start = text.fill_buf()?;
        let end = start.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let late = u64::from(start[..end].ends_with(b"\r"));
        let reader =
            ReaderBuilder::new().delimiter(config.separator as u8).has_headers(false).flexible(true).from_reader(text);
        let skipped = u64::from(config.skip);
        let mut rows =
            Self { reader, headings: Vec::new(), record: StringRecord::new(), meter, skipped, late, first: None };
        let Some(cells) = rows.read()?.then(|| rows.record.iter().map(str::to_owned).collect::<Vec<_>>()) else {
            return Ok(rows);
        };
        if config.header {
            rows.headings = cells.iter().map(|name| name.trim().to_owned()).collect();
            rows.name_headings()?;
        } else {
            rows.headings = (1..=cells.len()).map(|number| number.to_string()).collect();
            rows.first = Some(rows.cells());
        }
        Ok(rows)
    }

    /// Names columns without a heading by their number, and refuses headings that occur twice.
    fn name_headings(&mut self) -> Result<()> {
        for (index, heading) in self.headings.iter_mut().enumerate() {
            if heading.is_empty() {
                *heading = (index + 1).to_string();
            }
        }
        let mut known = HashSet::new();
        match self.headings.iter().find(|heading| !known.insert(heading.as_str())) {
            Some(twice) => Err(wrong(format!("the heading \"{twice}\" occurs twice"))),
            None => Ok(()),
        }
    }

    pub(super) fn headings(&self) -> &[String] {
        &self.headings
    }

    /// The next row with its line.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Cells)>> {
        let (cells, late) = match self.first.take() {
            Some(first) => (first, 0),
            None if self.read()? => (self.cells(), self.late),
            None => return Ok(None),
        };
        let line = self.record.position().map_or(0, csv::Position::line);
        Ok(Some((self.skipped + line + late, cells)))
    }

    fn read(&mut self) -> Result<bool> {
        let read = self.reader.read_record(&mut self.record).map_err(|error| match error.into_kind() {
            ErrorKind::Io(error) => error,
            other => wrong(format!("{other:?}")),
        })?;
        self.meter.restart();
        Ok(read)
    }

    /// The cells of the record. Further empty cells are no problem: many programs end each row with a separator.
    fn cells(&self) -> Cells {
        let (expected, found) = (self.headings.len(), self.record.len());
        let is_longer = self.record.iter().skip(expected).any(|cell| !cell.trim().is_empty());
        let problem = (found < expected || is_longer)
            .then(|| format!("row: has {found} cells where there are {expected} columns"));
        let named = self.headings.iter().zip(&self.record);
        Cells { cells: named.map(|(name, text)| (name.clone(), text.to_owned())).collect(), problem }
    }
}
