//! Decodes the bytes of a file to UTF-8 while they are read.
//!
//! Promise: what is read is UTF-8 without zero bytes, or reading fails with a message that names the line; nothing is
//! replaced silently. A row that never ends fails at [`ROW_BYTES_MAX`], so a file of any size takes bounded memory.

use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8};
use std::io::{Error, ErrorKind, Read, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest row, in bytes of UTF-8.
pub(super) const ROW_BYTES_MAX: usize = 1 << 20;
/// Bytes that are read from the file at once.
const CHUNK_BYTES: usize = 16 << 10;
/// A chunk in UTF-8: one byte becomes at most three.
const TEXT_BYTES: usize = 3 * CHUNK_BYTES + 16;
/// The readers behind take text ahead of the row that they return.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// Counts the bytes that were read since the last row.
#[derive(Clone, Debug, Default)]
pub(super) struct RowMeter(Arc<AtomicUsize>);

impl RowMeter {
    /// A row is complete.
    pub(super) fn restart(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Reads a file as UTF-8.
pub(super) struct Utf8<R> {
    inner: R,
    decoder: Decoder,
    chunk: Vec<u8>,
    /// Part of `chunk` that is not decoded yet.
    undecoded: std::ops::Range<usize>,
    text: Vec<u8>,
    /// Part of `text` that was not given out yet.
    decoded: std::ops::Range<usize>,
    /// Whether `chunk` is the last one.
    is_at_end: bool,
    /// Whether the decoder has ended.
    is_decoded: bool,
    line: u64,
    meter: RowMeter,
}

impl<R: Read> Utf8<R> {
    /// Reads with the encoding of the byte order mark, else of the XML declaration if `is_xml`, else with `encoding`.
    pub(super) fn new(mut inner: R, encoding: &'static Encoding, is_xml: bool) -> Result<Self> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = fill(&mut inner, &mut chunk)?;
        let start = &chunk[..length];
        let (encoding, mark_bytes) = match Encoding::for_bom(start) {
            Some(found) => found,
            None if is_xml => (declared(start)?.unwrap_or(encoding), 0),
            None => (encoding, 0),
        };
        Ok(Self {
            inner,
            decoder: encoding.new_decoder_without_bom_handling(),
            undecoded: mark_bytes..length,
            is_at_end: length < chunk.len(),
            is_decoded: false,
            chunk,
            text: vec![0; TEXT_BYTES],
            decoded: 0..0,
            line: 1,
            meter: RowMeter::default(),
        })
    }

    pub(super) fn meter(&self) -> RowMeter {
        self.meter.clone()
    }

    /// Decodes the next chunk. Returns false at the end of the file.
    fn decode(&mut self) -> Result<bool> {
        if self.is_decoded {
            return Ok(false);
        }
        if self.undecoded.is_empty() && !self.is_at_end {
            let length = fill(&mut self.inner, &mut self.chunk)?;
            self.undecoded = 0..length;
            self.is_at_end = length < self.chunk.len();
        }
        let source = &self.chunk[self.undecoded.clone()];
        let (result, read, written) =
            self.decoder.decode_to_utf8_without_replacement(source, &mut self.text, self.is_at_end);
        let text = &self.text[..written];
        if let Some(at) = text.iter().position(|byte| *byte == 0) {
            let line = self.line + newlines(&text[..at]);
            return Err(wrong(format!(
                "line {line} has a zero byte; set encoding if the file is UTF-16 (\"utf-16le\" or \"utf-16be\")"
            )));
        }
        self.line += newlines(text);
        self.undecoded.start += read;
        self.decoded = 0..written;
        if let DecoderResult::Malformed(bad, after) = result {
            let end = read.saturating_sub(usize::from(after));
            let bytes = source[end.saturating_sub(usize::from(bad))..end].iter().map(|byte| format!("{byte:02X}"));
            let (bytes, name) = (bytes.collect::<Vec<_>>().join(" "), self.decoder.encoding().name());
            let hint = if self.decoder.encoding() == UTF_8 { "; set encoding, mostly to \"windows-1252\"" } else { "" };
            return Err(wrong(format!("line {} has bytes that are no {name}: {bytes}{hint}", self.line)));
        }
        self.is_decoded = self.is_at_end && result == DecoderResult::InputEmpty;
        Ok(true)
    }
}

impl<R: Read> Read for Utf8<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        while self.decoded.is_empty() {
            if !self.decode()? {
                return Ok(0);
            }
        }
        let length = out.len().min(self.decoded.len());
        out[..length].copy_from_slice(&self.text[self.decoded.start..][..length]);
        self.decoded.start += length;
        if self.meter.0.fetch_add(length, Ordering::Relaxed) > ROW_BYTES_MAX + READ_AHEAD_BYTES {
            return Err(wrong(format!(
                "a row before line {} is longer than 1 MiB; is a closing quotation mark or tag missing?",
                self.line
            )));
        }
        Ok(length)
    }
}

/// Reads until `buffer` is full or the file ends.
fn fill(inner: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match inner.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn newlines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The encoding in the XML declaration, which is ASCII in every encoding but UTF-16.
fn declared(start: &[u8]) -> Result<Option<&'static Encoding>> {
    let end = start.windows(2).position(|two| two == b"?>").unwrap_or(0);
    let declaration = String::from_utf8_lossy(&start[..end]);
    let value = declaration.split_once("encoding").map(|(_, rest)| rest.trim_start_matches([' ', '=', '\t']));
    let Some(quoted) = value.filter(|rest| rest.starts_with(['"', '\''])) else { return Ok(None) };
    let label = quoted[1..].split(['"', '\'']).next().unwrap_or_default();
    match Encoding::for_label(label.as_bytes()) {
        Some(found) => Ok(Some(found)),
        None => Err(wrong(format!("line 1 declares the encoding \"{}\", which is not known", label.escape_debug()))),
    }
}

/// An error about the content of a file.
pub(super) fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8], encoding: &str, is_xml: bool) -> std::result::Result<String, String> {
        let encoding = Encoding::for_label(encoding.as_bytes()).expect("an encoding");
        let mut reader = Utf8::new(bytes, encoding, is_xml).map_err(|error| error.to_string())?;
        let mut text = String::new();
        reader.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[test]
    fn files_are_read_in_their_encoding() {
        assert_eq!(text("Größe\n".as_bytes(), "utf-8", false).as_deref(), Ok("Größe\n"));
        assert_eq!(text(b"\xEF\xBB\xBFGr\xC3\xB6\xC3\x9Fe", "windows-1252", false).as_deref(), Ok("Größe"));
        assert_eq!(text(b"Gr\xF6\xDFe \x80", "windows-1252", false).as_deref(), Ok("Größe €"));
        assert_eq!(text(b"\xFF\xFEG\0\xF6\0", "utf-8", false).as_deref(), Ok("Gö"));
        let xml = b"<?xml version=\"1.0\" encoding='ISO-8859-1'?><a>\xF6</a>";
        assert!(text(xml, "utf-8", true).expect("text").ends_with("<a>ö</a>"));
        let long = "ä;".repeat(100_000);
        assert_eq!(text(long.as_bytes(), "utf-8", false).as_deref(), Ok(long.as_str()));
    }

    #[test]
    fn bytes_that_do_not_fit_are_named_with_their_line() {
        let message = text(b"a\nb\nGr\xF6\xDFe", "utf-8", false).expect_err("no UTF-8");
        assert!(message.contains("line 3") && message.contains("F6") && message.contains("windows-1252"), "{message}");
        let message = text(b"G\0r\0", "utf-8", false).expect_err("UTF-16");
        assert!(message.contains("utf-16le"), "{message}");
        let message = text("cut ä".as_bytes().split_last().expect("bytes").1, "utf-8", false).expect_err("cut");
        assert!(message.contains("line 1") && message.contains("C3"), "{message}");
        let message = text(b"<?xml encoding=\"klingon\"?>", "utf-8", true).expect_err("encoding");
        assert!(message.contains("klingon"), "{message}");
        let message = text("x".repeat(3 << 20).as_bytes(), "utf-8", false).expect_err("a long row");
        assert!(message.contains("1 MiB"), "{message}");
    }
}
