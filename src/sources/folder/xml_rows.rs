//! Rows of an XML file: the elements of one name, wherever they are.
//!
//! The cells of a row are its attributes (`@id`) and the texts of the elements in it (`customer/name`,
//! `position/@number`). Prefixes of namespaces are left out.

use super::cells::Cells;
use super::text::{RowMeter, Utf8, wrong};
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use std::io::{BufReader, Read, Result};

/// Deepest nesting of elements.
const DEPTH_MAX: usize = 64;
/// The newlines up to an element are counted over so many bytes at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Reads the rows of an XML file.
pub(super) struct XmlRows<T> {
    reader: Reader<BufReader<T>>,
    meter: RowMeter,
    /// Name of the element that is a row.
    row: String,
    buffer: Vec<u8>,
    line: u64,
    /// Elements around the row.
    outside: usize,
}

/// A row that is being read.
struct Open {
    line: u64,
    cells: Cells,
    /// Names of the open elements in the row.
    path: Vec<String>,
    /// Text of each open element, the row itself first.
    texts: Vec<String>,
}

impl<R: Read> XmlRows<Utf8<R>> {
    pub(super) fn new(text: Utf8<R>, row: String) -> Self {
        let meter = text.meter();
        let mut reader = Reader::from_reader(BufReader::with_capacity(BUFFER_BYTES, text));
        reader.config_mut().expand_empty_elements = true;
        Self { reader, meter, row, buffer: Vec::new(), line: 1, outside: 0 }
    }

    /// The next row with its line.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Cells)>> {
        let mut open: Option<Open> = None;
        loop {
            self.buffer.clear();
            let (line, depth) = (self.line, self.outside);
            let at = |what: String| wrong(format!("line {line}: {what}"));
            let event = self.reader.read_event_into(&mut self.buffer).map_err(|error| match error {
                quick_xml::Error::Io(error) => std::io::Error::new(error.kind(), error.to_string()),
                error => at(error.to_string()),
            })?;
            self.line += newlines_of(&event);
            match event {
                Event::Start(start) => match &mut open {
                    Some(open) => open.enter(&start).map_err(at)?,
                    None if local(&start) == self.row => open = Some(Open::new(line, &start).map_err(at)?),
                    None if depth == DEPTH_MAX => {
                        return Err(at(format!("more than {DEPTH_MAX} elements in each other")));
                    }
                    None => self.outside += 1,
                },
                Event::End(_) => match open.take() {
                    Some(mut row) => {
                        if let Some(cells) = row.leave() {
                            self.meter.restart();
                            return Ok(Some((row.line, cells)));
                        }
                        open = Some(row);
                    }
                    None => {
                        self.meter.restart();
                        self.outside = self.outside.saturating_sub(1);
                    }
                },
                Event::Text(text) => push(&mut open, &text.xml10_content()),
                Event::CData(text) => push(&mut open, &text.xml10_content()),
                Event::GeneralRef(entity) => {
                    let character = entity.resolve_char_ref().map_err(|error| at(error.to_string()))?;
                    match (character, resolve_predefined_entity(&entity.xml10_content())) {
                        (Some(character), _) => push(&mut open, character.encode_utf8(&mut [0; 4])),
                        (None, Some(text)) => push(&mut open, text),
                        (None, None) => {
                            return Err(at(format!("the entity \"&{};\" is not known", entity.xml10_content())));
                        }
                    }
                }
                Event::DocType(_) => return Err(at("has a document type, which is not read; remove it".into())),
                Event::Eof if open.is_some() || depth > 0 => {
                    return Err(at("the file ends before its last element is closed; is it complete?".into()));
                }
                Event::Eof => return Ok(None),
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }
}

fn push(open: &mut Option<Open>, text: &str) {
    if let Some(into) = open.as_mut().and_then(|open| open.texts.last_mut()) {
        into.push_str(text);
    }
}

/// Name of an element without the prefix of its namespace.
fn local(start: &BytesStart<'_>) -> String {
    start.local_name().as_ref().to_string()
}

fn newlines_of(event: &Event<'_>) -> u64 {
    let text: &str = event;
    text.bytes().filter(|byte| *byte == b'\n').count() as u64
}

impl Open {
    fn new(line: u64, start: &BytesStart<'_>) -> std::result::Result<Self, String> {
        let mut open = Self { line, cells: Cells::default(), path: Vec::new(), texts: vec![String::new()] };
        open.attributes(start)?;
        Ok(open)
    }

    fn name(&self, last: &str) -> String {
        self.path.iter().map(String::as_str).chain([last]).collect::<Vec<_>>().join("/")
    }

    fn attributes(&mut self, start: &BytesStart<'_>) -> std::result::Result<(), String> {
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| error.to_string())?;
            let key = attribute.key;
            if key.as_namespace_binding().is_some() {
                continue;
            }
            let value =
                attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).map_err(|error| error.to_string())?;
            let name = self.name(&format!("@{}", key.local_name().as_ref()));
            self.cells.cells.push((name, value.into_owned()));
        }
        Ok(())
    }

    fn enter(&mut self, start: &BytesStart<'_>) -> std::result::Result<(), String> {
        if self.path.len() == DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} elements in each other"));
        }
        self.path.push(local(start));
        self.texts.push(String::new());
        self.attributes(start)
    }

    /// Closes an element; returns the cells if it is the row itself.
    fn leave(&mut self) -> Option<Cells> {
        let text = self.texts.pop().unwrap_or_default();
        let name = match self.path.pop() {
            Some(last) => self.name(&last),
            // The text of the row itself.
            None => ".".to_owned(),
        };
        if !text.trim().is_empty() {
            self.cells.cells.push((name, text.trim().to_owned()));
        }
        self.texts.is_empty().then(|| std::mem::take(&mut self.cells))
    }
}
