//! Setting types that configuration and contract files use.
//!
//! Promise: a parsed value is within its bounds. An error names the value and what is allowed.

pub mod access;
mod document;
mod findings;
mod hints;
mod mismatch;
mod reader;
mod share;

pub use document::{Document, Problem};
pub use findings::Findings;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// A duration, written like `250ms`, `30s`, `24h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = "expected a time such as \"250ms\", \"30s\", \"24h\" or \"7d\"";
        let wrong = |_| format!("\"{text}\" is not a duration; {allowed}");
        let span: jiff::Span = text.parse().map_err(wrong)?;
        let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(wrong)?;
        Duration::try_from(duration).map(Span).map_err(wrong)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with its unit in quotes, such as \"250ms\", \"30s\" or \"24h\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl fmt::Display for Span {
    /// Writes the largest unit without a fraction, or seconds with one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            m if m < 1000 => write!(f, "{m}ms"),
            m if m % 86_400_000 == 0 => write!(f, "{}d", m / 86_400_000),
            m if m % 3_600_000 == 0 => write!(f, "{}h", m / 3_600_000),
            m if m % 60_000 == 0 => write!(f, "{}m", m / 60_000),
            m if m % 1000 == 0 => write!(f, "{}s", m / 1000),
            _ => write!(f, "{:.1}s", self.0.as_secs_f64()),
        }
    }
}

/// A number of bytes, written like `512KiB`, `64MB` or `20GB`, or as a bare number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl Bytes {
    pub fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let (number, factor) = BYTE_UNITS
            .iter()
            .find_map(|(unit, factor)| trimmed.strip_suffix(unit).map(|rest| (rest, *factor)))
            .unwrap_or((trimmed.strip_suffix('B').unwrap_or(trimmed), 1));
        let count: Option<f64> = number.trim().parse().ok();
        match count.map(|count| count * factor as f64) {
            Some(bytes) if (0.0..9e18).contains(&bytes) => Ok(Self(bytes as u64)),
            _ => Err(format!(
                "\"{text}\" is not a number of bytes; expected one such as \"512KiB\", \"64MB\" or \"20GB\""
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes such as \"512KiB\", \"64MB\" or 1048576")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Bytes, E> {
                u64::try_from(value).map(Bytes).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Bytes, E> {
                Ok(Bytes(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Bytes, E> {
                Bytes::parse(value).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl fmt::Display for Bytes {
    /// Writes three digits and a decimal unit: `1.23 GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["kB", "MB", "GB", "TB"] {
            if value < 999.5 {
                break;
            }
            value /= 1000.0;
            unit = next;
        }
        match value {
            _ if unit == "B" => write!(f, "{} B", self.0),
            v if v < 9.995 => write!(f, "{v:.2} {unit}"),
            v if v < 99.95 => write!(f, "{v:.1} {unit}"),
            v => write!(f, "{v:.0} {unit}"),
        }
    }
}

/// Formats a number with digits in groups of three: `1,234,567`.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a duration in its two largest units: `2d 3h`.
pub fn rough(span: Duration) -> String {
    match span.as_secs() {
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{}m {}s", s / 60, s % 60),
        s if s < 86_400 => format!("{}h {}m", s / 3600, s / 60 % 60),
        s => format!("{}d {}h", s / 86_400, s / 3600 % 24),
    }
}

/// Checks a name that becomes part of topics, URIs, client ids and file names.
pub fn check_word(word: &str) -> Result<(), String> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !word.is_empty() && word.len() <= 64 && word.bytes().all(is_good) {
        Ok(())
    } else {
        Err(format!("\"{word}\" is no name; 1 to 64 letters, digits, \"-\", \"_\" and \".\" are allowed"))
    }
}

/// Longest path of a Unix socket in bytes: the kernel limit is 108, with the terminating zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Checks that a socket can be created at `path`: the path is short enough, and nothing but a socket, which
/// may be replaced, exists there.
pub fn check_socket_path(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt;
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(format!(
            "\"{}\" is {bytes} bytes long; the path of a socket has at most {SOCKET_PATH_BYTES_MAX}, such as \"/run/forebay/forebay.sock\"",
            path.display()
        ));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(format!(
            "\"{}\" exists and is no socket, so it is not replaced; name a path that does not exist",
            path.display()
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_as_people_write_them() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("24h", 86_400_000), ("7d", 604_800_000)] {
            assert_eq!(Span::parse(text), Ok(Span(Duration::from_millis(millis))), "{text}");
            assert_eq!(Span::parse(text).map(|s| Span::parse(&s.to_string())), Ok(Span::parse(text)));
        }
        for (text, bytes) in [("20GB", 20_000_000_000), ("512KiB", 524_288), ("7", 7), ("1.5 MB", 1_500_000)] {
            assert_eq!(Bytes::parse(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "fast", "-3s", "12 parsecs"] {
            assert!(Span::parse(text).is_err(), "{text}");
            assert!(Bytes::parse(text).is_err(), "{text}");
        }
    }
}
