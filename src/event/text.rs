//! Text that leaves the gateway: keys, ids and attributes, made safe for every place that they travel to.
//!
//! A topic, a user property of MQTT 5 and an attribute of a CloudEvent may hold no control characters and no
//! non-characters of Unicode. Brokers close the connection over one (Mosquitto does), and SDKs of CloudEvents refuse the event.
//!
//! Invariant: different texts stay different.

use std::borrow::Cow;
use std::fmt;

/// Whether a character is allowed in none of these places: control characters (C0, DEL, C1; CloudEvents 1.0, type String)
/// and non-characters (U+FDD0 to U+FDEF, and the last two of each plane).
pub fn is_unsafe(character: char) -> bool {
    let number = u32::from(character);
    character.is_control() || (0xFDD0..=0xFDEF).contains(&number) || number & 0xFFFE == 0xFFFE
}

/// Returns a text without unsafe characters: percent-encoded, if it has some or looks percent-encoded already.
pub fn safe(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (0x20..0x7F).contains(&byte) && byte != b'%') {
        return Cow::Borrowed(text);
    }
    if !text.contains(is_unsafe) && !has_escape(text.as_bytes()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character == '%' || is_unsafe(character) {
            push_escaped(&mut out, character);
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

/// Returns the start of a text: at most `bytes_max` bytes, and whole characters.
pub fn start(text: &str, bytes_max: usize) -> &str {
    let end = (0..=text.len().min(bytes_max)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// Appends a character percent-encoded.
pub fn push_escaped(out: &mut String, character: char) {
    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
        out.push('%');
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
        }
    }
}

/// Whether a text has a `%` with two hexadecimal digits behind it.
fn has_escape(text: &[u8]) -> bool {
    text.windows(3).any(|part| part[0] == b'%' && part[1].is_ascii_hexdigit() && part[2].is_ascii_hexdigit())
}

/// What is wrong with an attribute of a CloudEvent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadText {
    /// It is empty or too long: its bytes, and the most that are allowed.
    Length(usize, usize),
    Unsafe(char),
}

impl fmt::Display for BadText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length(bytes, bytes_max) => write!(f, "is {bytes} bytes long; it has 1 to {bytes_max}"),
            Self::Unsafe(character) if character.is_control() => {
                write!(f, "holds a control character (U+{:04X})", u32::from(character))
            }
            Self::Unsafe(character) => write!(f, "holds U+{:04X}, which is no character", u32::from(character)),
        }
    }
}

/// Checks an attribute that a sender gives by the rules of CloudEvents, at every door in: not empty, not too long, and
/// without unsafe characters.
pub fn check(text: &str, bytes_max: usize) -> Result<(), BadText> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(BadText::Length(text.len(), bytes_max));
    }
    text.chars().find(|character| is_unsafe(*character)).map_or(Ok(()), |character| Err(BadText::Unsafe(character)))
}

/// Whether a text is a W3C trace context (`traceparent`, <https://www.w3.org/TR/trace-context/#traceparent-header>).
pub fn is_trace_parent(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits =
        |from: usize, length: usize| bytes.get(from..from + length).is_some_and(|part| part.iter().all(is_hex));
    let is_zero = |from: usize, length: usize| bytes[from..from + length].iter().all(|byte| *byte == b'0');
    let has_parts = digits(0, 2) && digits(3, 32) && digits(36, 16) && digits(53, 2);
    // Later versions may be longer.
    let has_end = bytes.len() == 55 || (!text.starts_with("00") && bytes.get(55) == Some(&b'-') && bytes.len() <= 128);
    has_parts
        && has_end
        && [2, 35, 52].iter().all(|at| bytes[*at] == b'-')
        && !text.starts_with("ff")
        && !is_zero(3, 32)
        && !is_zero(36, 16)
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A text without the byte order mark that editors of Windows, and some proxies, put in front of UTF-8.
pub(crate) fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

/// Describes a file in UTF-16, and what to do.
pub(crate) const UTF16: &str = "it is text in UTF-16; save it as UTF-8 (Notepad: Save as, Encoding, UTF-8)";

/// Returns whether bytes are text in UTF-16, by their byte order mark.
pub(crate) fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts with many of the characters that matter.
    fn text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("%".to_owned()),
            Just("%01".to_owned()),
            Just("%25".to_owned()),
            Just("\u{1}".to_owned()),
            Just("\u{7f}".to_owned()),
            Just("\u{85}".to_owned()),
            Just("\u{fffe}".to_owned()),
            Just("\u{fdd0}".to_owned()),
            Just("\u{10ffff}".to_owned()),
            Just("\u{feff}".to_owned()),
            "[a-f0-9]",
            ".",
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn a_safe_text_has_no_unsafe_character_and_stays_different(a in text(), b in text()) {
            let (safe_a, safe_b) = (safe(&a), safe(&b));
            prop_assert!(!safe_a.contains(is_unsafe));
            prop_assert_eq!(a.is_empty(), safe_a.is_empty());
            prop_assert_eq!(a == b, safe_a == safe_b, "{:?} {:?}", &a, &b);
            prop_assert_eq!(check(&safe_a, usize::MAX).is_ok(), !a.is_empty());
        }
    }

    #[test]
    fn ordinary_texts_stay_as_they_are() {
        for text in ["", "press-4", "50 %", "100%!", "ü/ñ", "\u{feff}x", "line/1"] {
            assert_eq!(safe(text), text);
        }
        assert_eq!(safe("a\u{1}"), "a%01");
        assert_eq!(safe("a%01"), "a%2501");
        assert_eq!(safe("\u{fffe}"), "%EF%BF%BE");
    }

    #[test]
    fn a_trace_context_has_the_form_of_the_standard() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_trace_parent(good) && is_trace_parent(&format!("cc{}-what-follows", &good[2..])));
        let zero = good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        for bad in
            ["", "xx", &good[..54], &format!("{good}-x"), &good.to_uppercase(), &zero, &good.replace("00-", "ff-")]
        {
            assert!(!is_trace_parent(bad), "{bad}");
        }
    }
}
