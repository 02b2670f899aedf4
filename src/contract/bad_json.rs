//! Why a text is no JSON: the line, the column and the cause.
//!
//! Promise: a message contains no value of the text.

use std::fmt;

/// A text that is no JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadJson {
    line: usize,
    /// In bytes, counting from 1.
    column: usize,
    cause: String,
}

/// What a text that is no UTF-8 starts with, and its name.
const STARTS: [(&[u8], &str); 4] = [
    (
        b"\xEF\xBB\xBF",
        "the text begins with a byte order mark (U+FEFF), which JSON does not allow; send UTF-8 without it",
    ),
    (b"\xFF\xFE", "the text is UTF-16; JSON is UTF-8"),
    (b"\xFE\xFF", "the text is UTF-16; JSON is UTF-8"),
    (b"\x1F\x8B", "the payload is compressed (gzip); send it uncompressed"),
];

/// Words of other languages that stand for values which JSON does not have, and what to send.
const WORDS: [(&str, &str); 9] = [
    ("nan", "NaN is no number of JSON; send null, or leave the field out"),
    ("-nan", "NaN is no number of JSON; send null, or leave the field out"),
    ("inf", "infinity is no number of JSON; send null, or leave the field out"),
    ("-inf", "infinity is no number of JSON; send null, or leave the field out"),
    ("none", "None is no value of JSON; write null"),
    ("true", "True is no value of JSON; write true in lower case"),
    ("false", "False is no value of JSON; write false in lower case"),
    ("undefined", "undefined is no value of JSON; write null"),
    ("null", "NULL is no value of JSON; write null in lower case"),
];

impl BadJson {
    /// The error that `serde_json` found in a text.
    pub(super) fn new(text: &[u8], error: &serde_json::Error) -> Self {
        let place = |cause: &str| Self { line: 1, column: 1, cause: cause.to_owned() };
        if let Some((_, cause)) = STARTS.iter().find(|(start, _)| text.starts_with(start)) {
            return place(cause);
        }
        let zeros = text.first_chunk::<4>().map(|start| start.map(|byte| byte == 0));
        if matches!(zeros, Some([false, true, false, true] | [true, false, true, false])) {
            return place("the text is UTF-16; JSON is UTF-8");
        }
        let (line, column) = (error.line(), error.column());
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        let start =
            text.split(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(|line| line.len() + 1).sum::<usize>();
        let at = (start + column).saturating_sub(1);
        Self { line, column, cause: cause(said, text, at, error.is_eof()) }
    }
}

/// The cause in plain words: what `serde_json` says, and what stands at its place.
fn cause(said: &str, text: &[u8], at: usize, is_at_end: bool) -> String {
    let rest = text.get(at..).unwrap_or_default();
    // Of a word, `serde_json` names the first letter that it does not expect.
    let is_of_word = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    let before = text.get(..at).unwrap_or_default().iter().rev().take_while(|byte| is_of_word(byte)).count();
    let lower: Vec<u8> = text.iter().skip(at - before.min(at)).take(12).map(u8::to_ascii_lowercase).collect();
    let word = WORDS.iter().find(|(word, _)| lower.starts_with(word.as_bytes()));
    match said {
        _ if is_at_end => "the text ends too early".into(),
        "recursion limit exceeded" => "it is nested more than 128 levels deep".into(),
        "number out of range" => "a number is out of range; JSON numbers reach up to 1.8e308 here".into(),
        "invalid unicode code point" => "a string is no UTF-8".into(),
        "lone leading surrogate in hex escape" | "unexpected end of hex escape" => {
            "a \\u escape is half a surrogate pair".into()
        }
        "trailing characters" if rest.first() == Some(&0) => "a NUL character follows the end of the JSON".into(),
        "trailing characters" => "something follows the end of the JSON".into(),
        "expected value" | "expected ident" | "invalid number" if word.is_some() => {
            word.map_or("", |(_, cause)| cause).into()
        }
        "expected value" if rest.first() == Some(&b'\'') => "strings have double quotes in JSON".into(),
        _ if rest.first() == Some(&0) => "a NUL character is not allowed".into(),
        other => other.to_owned(),
    }
}

impl fmt::Display for BadJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "is no JSON at line {} column {}: {}", self.line, self.column, self.cause)
    }
}

impl std::error::Error for BadJson {}

#[cfg(test)]
mod tests {
    use super::super::json::Tree;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_json_says_where_and_why() {
        let reason = |text: &[u8]| Tree::parse(text).expect_err("no JSON").to_string();
        let deep = "[".repeat(200);
        let utf16: Vec<u8> = "{\"v\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let cases: [(&[u8], &str, &str); 19] = [
            (b"\xEF\xBB\xBF{\"v\":1}", "line 1 column 1", "byte order mark"),
            (deep.as_bytes(), "line 1 column 128", "more than 128 levels"),
            (b"1e400", "line 1 column", "out of range"),
            (b"{\n\"a\":1,\n\"b\":2,\n\"c\": NaN,\n\"d\":3}", "line 4 column 6", "NaN is no number"),
            (b"{\"v\": nan}", "line 1 column", "NaN is no number"),
            (b"[-Infinity]", "line 1 column", "infinity is no number"),
            (b"[Infinity]", "line 1 column 2", "infinity is no number"),
            (b"{\"v\":1}\n\0", "line 2 column 1", "NUL character follows"),
            (b"{\"v\":1}\0", "line 1 column 8", "NUL character follows"),
            (b"{\"v\":1} x", "line 1 column 9", "something follows"),
            (b"{\"v\":", "line 1 column 5", "ends too early"),
            (&utf16, "line 1 column 1", "UTF-16"),
            (b"\xFF\xFE{\0", "line 1 column 1", "UTF-16"),
            (b"{\"v\":\"\xE4\"}", "line 1 column", "no UTF-8"),
            (b"{\"v\":\"\\ud800\"}", "line 1 column", "surrogate"),
            (b"{'v':1}", "line 1 column 2", "key must be a string"),
            (b"{\"v\":True}", "line 1 column 6", "lower case"),
            (b"{\"v\":'x'}", "line 1 column 6", "double quotes"),
            (b"\x1F\x8B\x08\0", "line 1 column 1", "gzip"),
        ];
        for (text, place, cause) in cases {
            let said = reason(text);
            let text = String::from_utf8_lossy(text);
            assert!(
                said.starts_with("is no JSON at line ") && said.contains(place) && said.contains(cause),
                "{text}: {said}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_reason_holds_no_value_of_the_text(text in proptest::collection::vec(any::<u8>(), 0..60), secret in "[0-9]{9}") {
            let text = [&text[..], secret.as_bytes(), b" secret ", secret.as_bytes()].concat();
            if let Err(error) = Tree::parse(&text) {
                prop_assert!(!error.to_string().contains(&secret));
            }
        }
    }
}
