//! A JSON buffer with a maximum size.
//!
//! Promise: the buffer never exceeds its bound. A byte of a message may become 48 bytes of JSON, so the size of each
//! item is checked before it is written.

use crate::contract::push_json_string;
use crate::event::text;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Length of the pieces in which a text is escaped, in bytes.
const PIECE_BYTES: usize = 512;
/// Maximum length of an escaped byte: `\u0000`.
const ESCAPED_BYTES_MAX: usize = 6;

#[derive(Debug)]
pub(super) struct Output {
    bytes: Vec<u8>,
    bytes_max: usize,
    is_over: bool,
}

impl Output {
    /// Creates a buffer with an initial capacity of `bytes`.
    pub(super) fn new(bytes: usize, bytes_max: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes.min(bytes_max)), bytes_max, is_over: false }
    }

    /// Whether some output did not fit. Further output is dropped, and the buffer is of no use.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn last(&self) -> Option<u8> {
        self.bytes.last().copied()
    }

    pub(super) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// Returns the JSON; `None` if it exceeded the bound.
    pub(super) fn whole(self) -> Option<Vec<u8>> {
        (!self.is_over).then_some(self.bytes)
    }

    pub(super) fn raw(&mut self, json: &str) {
        if self.has_room(json.len()) {
            self.bytes.extend_from_slice(json.as_bytes());
        }
    }

    /// Appends a text as a JSON string.
    pub(super) fn text(&mut self, text: &str) {
        if text.len().saturating_mul(ESCAPED_BYTES_MAX) + 2 <= self.bytes_max.saturating_sub(self.bytes.len()) {
            return push_json_string(&mut self.bytes, text);
        }
        // A text that may not fit is escaped in pieces, so at most one piece is escaped in vain.
        self.raw("\"");
        let mut rest = text;
        while !rest.is_empty() && !self.is_over {
            let piece = text::start(rest, PIECE_BYTES);
            let behind = &rest[piece.len()..];
            let mut escaped = Vec::with_capacity(2 * PIECE_BYTES);
            push_json_string(&mut escaped, piece);
            // Without the quotation marks of the piece.
            let inner = &escaped[1..escaped.len() - 1];
            if self.has_room(inner.len()) {
                self.bytes.extend_from_slice(inner);
            }
            rest = behind;
        }
        self.raw("\"");
    }

    /// Appends bytes as a JSON string in base64.
    pub(super) fn base64(&mut self, bytes: &[u8]) {
        let length = base64::encoded_len(bytes.len(), true).unwrap_or(usize::MAX);
        if self.has_room(length.saturating_add(2)) {
            self.text(&STANDARD.encode(bytes));
        }
    }

    fn has_room(&mut self, more: usize) -> bool {
        self.is_over |= more > self.bytes_max - self.bytes.len();
        !self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_pieces_is_the_text_and_what_does_not_fit_is_told() {
        let text = "a\"\\\n\u{1}ä€😀".repeat(500);
        let mut json = Vec::new();
        push_json_string(&mut json, &text);
        for bytes_max in [json.len() * 8, json.len() + 1, json.len(), json.len() - 1, 100, 2, 0] {
            let mut out = Output::new(64, bytes_max);
            out.text(&text);
            assert!(out.len() <= bytes_max);
            assert_eq!(out.whole(), (bytes_max >= json.len()).then(|| json.clone()), "{bytes_max}");
        }
    }
}
