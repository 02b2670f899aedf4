//! JSON as Odoo really sends it. Python writes values that JSON does not have: one such value must not cost the whole
//! answer.
//!
//! Promise: an answer that differs from JSON only in single values is read. A number that JSON cannot express becomes a
//! marker ([`impossible`]), a character that UTF-8 cannot express becomes U+FFFD.
//! Invariant: the work and the memory are linear in the bytes of the answer, which are bounded (`http`).

use crate::event::text;
use serde_json::Value;
use std::borrow::Cow;

/// Member name of the object that stands for an impossible value. No field of Odoo has such a name.
const MARKER: &str = "\u{0}impossible";
/// The words that Python writes for numbers that are none, longest first.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Parses an answer; repairs it first if it is no JSON. The error says what is wrong, and where.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let bytes = text::without_byte_order_mark(bytes);
    let strict = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let text = String::from_utf8_lossy(bytes);
    let repaired = repaired(&text);
    if matches!((&text, &repaired), (Cow::Borrowed(_), Cow::Borrowed(_))) {
        return Err(strict.to_string());
    }
    serde_json::from_str(&repaired).map_err(|error| error.to_string())
}

/// What Odoo gave instead of a value, such as `NaN`; `None` for a value.
pub fn impossible(value: &Value) -> Option<&str> {
    value.as_object()?.get(MARKER)?.as_str()
}

fn marker(out: &mut String, what: &str) {
    out.push_str("{\"\\u0000impossible\":\"");
    out.push_str(what);
    out.push_str("\"}");
}

/// Replaces what JSON does not have; borrows a text that needs no repair.
fn repaired(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    // The part of the text before this byte is in `out`.
    let mut copied = 0;
    let mut at = 0;
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string(text, at, &mut copied, &mut out),
            b'-' | b'0'..=b'9' | b'I' | b'N' => {
                let end = token_end(bytes, at);
                let token = &text[at..end];
                let is_finite = || token.parse::<f64>().is_ok_and(f64::is_finite);
                if WORDS.contains(&token) || token.parse::<f64>().is_ok() && !is_finite() {
                    out.push_str(&text[copied..at]);
                    marker(&mut out, token.get(..TOKEN_SHOWN_MAX).unwrap_or(token));
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Length to which a number is cut in its marker.
const TOKEN_SHOWN_MAX: usize = 32;

/// The end of a number or word that begins at `at`.
fn token_end(bytes: &[u8], at: usize) -> usize {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
    at + length.max(1)
}

/// Repairs the string that begins at `at`; returns its end.
fn string(text: &str, at: usize, copied: &mut usize, out: &mut String) -> usize {
    let bytes = text.as_bytes();
    let mut at = at + 1;
    let mut replace = |from: usize, to: usize, by: &str| {
        out.push_str(&text[*copied..from]);
        out.push_str(by);
        *copied = to;
    };
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => match surrogate(text, at) {
                Some(0xD800..=0xDBFF) if matches!(surrogate(text, at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
                Some(_) => {
                    replace(at, at + 6, "\\ufffd");
                    at += 6;
                }
                None => at += 2,
            },
            byte if byte < 0x20 => {
                replace(at, at + 1, &format!("\\u{byte:04x}"));
                at += 1;
            }
            _ => at += 1,
        }
    }
    // A string without an end: the parser reports it.
    bytes.len()
}

/// The surrogate that is escaped at `at`, such as `\ud83d`.
fn surrogate(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    u16::from_str_radix(digits, 16).ok().filter(|code| (0xD800..=0xDFFF).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_that_json_does_not_have_costs_only_itself() {
        for (given, what) in [
            ("NaN", "NaN"),
            ("Infinity", "Infinity"),
            ("-Infinity", "-Infinity"),
            ("1e999", "1e999"),
            ("-1.5E+400", "-1.5E+400"),
        ] {
            let read = parse(format!(r#"[{{"id": 1, "q": {given}}}, {{"id": 2, "q": -3.5e2}}]"#).as_bytes());
            let read = read.expect(given);
            assert_eq!(impossible(&read[0]["q"]), Some(what), "{given}");
            assert_eq!((&read[1]["q"], impossible(&read[1]["q"])), (&json!(-350.0), None), "{given}");
        }
    }

    #[test]
    fn texts_that_name_such_values_stay_as_they_are() {
        let text = r#"{"a": "NaN, -Infinity \" 1e999 \\", "b": NaN}"#;
        let read = parse(text.as_bytes()).expect("read");
        assert_eq!(read["a"], "NaN, -Infinity \" 1e999 \\");
        assert_eq!(impossible(&read["b"]), Some("NaN"));
    }

    #[test]
    fn characters_that_no_text_can_hold_are_replaced() {
        let read = |bytes: &[u8]| parse(bytes).map_err(|error| format!("{bytes:?}: {error}"));
        assert_eq!(read(br#"["a\ud800b"]"#), Ok(json!(["a\u{fffd}b"])));
        assert_eq!(read(br#"["\udc00\ud83d\ude00\ud83d"]"#), Ok(json!(["\u{fffd}\u{1f600}\u{fffd}"])));
        assert_eq!(read(b"[\"a\xffb\"]"), Ok(json!(["a\u{fffd}b"])));
        assert_eq!(read(b"[\"a\x01\nb\"]"), Ok(json!(["a\u{1}\nb"])));
        assert_eq!(read("\u{feff}[1]".as_bytes()), Ok(json!([1])));
    }

    #[test]
    fn what_is_no_json_stays_an_error_with_its_place() {
        for text in ["", "<html>", "[1, 2", r#"["a"#, r#"{"a": NaN"#, "[nan]", r#"["\ud8"#, "[1,]"] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(error.contains("line") && error.contains("column"), "{text}: {error}");
        }
    }

    #[test]
    fn no_input_panics_and_what_is_repaired_is_json() {
        let text = r#"[{"a": NaN, "\ud83d\ude00é": [-Infinity, 1e999, "x\"\\\ud800"]}, Infinity]"#.as_bytes();
        for at in 0..text.len() {
            drop(parse(&text[..at]));
            for byte in [b'"', b'\\', b'u', b'N', b'-', b'1', b'{', 0, 0x1F, 0x80, 0xC3, 0xED, 0xFF] {
                let mut other = text.to_vec();
                other[at] = byte;
                if let Ok(value) = parse(&other) {
                    assert!(serde_json::from_str::<Value>(&value.to_string()).is_ok(), "{other:?}");
                }
                other.insert(at, byte);
                drop(parse(&other));
            }
        }
    }
}
