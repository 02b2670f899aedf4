//! Numbers of JSON texts as they are written.
//!
//! A number that travels outside of its payload (as key or id, masked, kept) has to stay as the device wrote it: serial
//! numbers of SIM cards have 20 digits, and a double has 17.
//!
//! Invariant: the text of a number is the text in the payload, byte for byte.

use serde_json::Number;
use std::borrow::Cow;
use std::cell::Cell;

/// A number: its value, which may be rounded, and its text.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonNumber<'a> {
    value: Number,
    /// The text; `None` if it is the text of the value, as for each integer of 64 bits.
    text: Option<&'a str>,
}

impl<'a> JsonNumber<'a> {
    /// A number with its text, which JSON allows.
    pub fn of_text(value: f64, text: &'a str) -> Self {
        // `serde_json` reports numbers that are not finite as errors.
        Self { value: Number::from_f64(value).unwrap_or_else(|| 0.into()), text: Some(text) }
    }

    /// The value: exact for integers of 64 bits, else the nearest double.
    pub fn value(&self) -> &Number {
        &self.value
    }

    /// The text as it was written.
    pub fn text(&self) -> Cow<'a, str> {
        self.text.map_or_else(|| Cow::Owned(self.value.to_string()), Cow::Borrowed)
    }

    /// The exact value of an integer of up to 38 digits without an exponent.
    pub fn integer(&self) -> Option<i128> {
        match self.text {
            None => self.value.as_i128(),
            Some(text) => text.parse().ok(),
        }
    }
}

impl From<u64> for JsonNumber<'_> {
    fn from(value: u64) -> Self {
        Self { value: value.into(), text: None }
    }
}

impl From<i64> for JsonNumber<'_> {
    fn from(value: i64) -> Self {
        Self { value: value.into(), text: None }
    }
}

/// Finds the texts of the numbers that `serde_json` reads as doubles, in the order of the text.
///
/// `serde_json` does not tell the text of a number, except with its feature `arbitrary_precision`, which makes a string of
/// each number of every payload.
#[derive(Debug)]
pub(super) struct NumberTexts<'a> {
    bytes: &'a [u8],
    at: Cell<usize>,
}

impl<'a> NumberTexts<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: Cell::new(0) }
    }

    /// Returns the text of the next number that is no integer of 64 bits. `serde_json` has read the text up to its end,
    /// so it is valid JSON.
    pub(super) fn next_inexact(&self) -> &'a str {
        while let Some(text) = self.next() {
            let is_integer = text != "-0" && (text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok());
            if !is_integer {
                return text;
            }
        }
        // The visitor asks only for numbers that are there.
        "0"
    }

    fn next(&self) -> Option<&'a str> {
        let mut at = self.at.get();
        loop {
            match self.bytes.get(at)? {
                b'"' => at = end_of_string(self.bytes, at + 1)?,
                b'-' | b'0'..=b'9' => {
                    let rest = &self.bytes[at..];
                    let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                    let length = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
                    self.at.set(at + length);
                    return std::str::from_utf8(&rest[..length]).ok();
                }
                _ => at += 1,
            }
        }
    }
}

/// Returns the place behind the string whose content begins at `at`.
fn end_of_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += bytes.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::{Pointer, Tree};
    use proptest::prelude::*;

    /// Any number that JSON allows and that a double can approximate.
    fn number() -> impl Strategy<Value = String> {
        let integer = prop_oneof![Just("0".to_owned()), "[1-9][0-9]{0,40}"];
        let fraction = prop_oneof![Just(String::new()), "\\.[0-9]{1,30}"];
        let exponent = prop_oneof![3 => Just(String::new()), 1 => "[eE][+-]?[0-2]?[0-9]{1,2}"];
        (any::<bool>(), integer, fraction, exponent)
            .prop_map(|(is_negative, a, b, c)| format!("{}{a}{b}{c}", if is_negative { "-" } else { "" }))
            .prop_filter("a double has it", |text| text.parse::<f64>().is_ok_and(f64::is_finite))
    }

    proptest! {
        #[test]
        fn a_number_keeps_its_text(list in proptest::collection::vec((".*", number()), 1..8)) {
            let members = list.iter().enumerate().map(|(index, (name, number))| {
                let mut text = Vec::new();
                super::super::json::push_json_string(&mut text, &format!("{index}{name}"));
                format!("{}:[{number},{{\"x\":{number}}}]", String::from_utf8(text).expect("UTF-8"))
            });
            let text = format!("{{{}}}", members.collect::<Vec<_>>().join(" ,\n"));
            let tree = Tree::parse(text.as_bytes()).expect("JSON");
            for (index, (name, number)) in list.iter().enumerate() {
                let escaped = super::super::json::escaped(&format!("{index}{name}"));
                for end in ["0", "1/x"] {
                    let pointer = Pointer::parse(&format!("/{escaped}/{end}")).expect("a pointer");
                    let found = tree.at(&pointer).and_then(|value| value.scalar()).map(|text| text.into_owned());
                    prop_assert_eq!(found.as_deref(), Some(number.as_str()));
                }
            }
            let mut written = Vec::new();
            tree.write(&mut written);
            let compact = text.replace(" ,\n", ",");
            prop_assert_eq!(String::from_utf8(written).expect("UTF-8"), compact);
        }
    }
}
