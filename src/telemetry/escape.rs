//! Escapes text from devices and files for terminal and log.

use std::borrow::Cow;
use std::fmt::Write;

/// Escapes text from a device or a file for terminal and log: one line, without characters that move the cursor, change
/// colours or override the reading direction.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            letter if needs_escape(letter) => out.extend(letter.escape_unicode()),
            letter => out.push(letter),
        }
    }
    Cow::Owned(out)
}

/// Whether a character is a control (C0, DEL, C1), a line or paragraph separator, or a bidirectional control.
fn needs_escape(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200E}' | '\u{200F}' | '\u{061C}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Escapes characters in JSON that a terminal would interpret; the value stays the same.
pub fn shown_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        // Everything below U+0020 in a string is escaped already; line ends are the layout.
        if letter == '\n' || shown(letter.encode_utf8(&mut [0; 4])).len() == letter.len_utf8() {
            out.push(letter);
        } else {
            let _ = letter.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_stays_on_its_line_and_moves_no_cursor() {
        assert_eq!(shown("press 4 · µm²"), "press 4 · µm²");
        assert_eq!(shown("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(shown("\x1b[31m\u{9b}\u{202e}\u{2066}\x7f"), "\\u{1b}[31m\\u{9b}\\u{202e}\\u{2066}\\u{7f}");
    }
}
