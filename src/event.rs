//! The event: one fact of the plant, and its stored record.
//!
//! Promise: every later version of [`Record::decode`] reads the output of [`Record::encode`].
//! Invariants:
//! - a record is immutable; sequence, offset and recorded time belong to its block;
//! - decoding never panics and never allocates more than the length of its input.
//!
//! Not here: the representation of an event at central (`contract`), storage (`journal`).

pub mod text;

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment in UTC, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// Latest moment that RFC 3339 can represent: the end of the year 9999.
const TIMESTAMP_MAX: i64 = 253_402_300_799_999_999;
/// Earliest moment that RFC 3339 can represent: the start of the year 0.
const TIMESTAMP_MIN: i64 = -62_167_219_200_000_000;

impl Timestamp {
    /// Returns the moment `duration` later, at most the end of the year 9999.
    pub fn plus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros)).clamped()
    }

    /// Returns the time since `earlier`; zero if this moment is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    /// Returns the moment `span` earlier.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Parses RFC 3339 text such as `2026-11-23T08:00:00.123Z`.
    pub fn parse(text: &str) -> Option<Self> {
        let at: jiff::Timestamp = text.parse().ok()?;
        Some(Self(at.as_microsecond()).clamped())
    }

    /// Converts a number of seconds, milliseconds, microseconds or nanoseconds since 1970. Devices use all four units;
    /// their ranges between 1971 and 2286 do not overlap.
    pub fn from_epoch_number(number: f64) -> Option<Self> {
        let magnitude = number.abs();
        let micros = match magnitude {
            _ if !number.is_finite() => return None,
            m if m < 1e10 => number * 1e6,
            m if m < 1e13 => number * 1e3,
            m if m < 1e16 => number,
            m if m < 1e19 => number / 1e3,
            _ => return None,
        };
        Some(Self(micros.round() as i64).clamped())
    }

    /// The same for an integer, without the rounding of a double.
    pub fn from_epoch_integer(number: i128) -> Option<Self> {
        let micros = match number.unsigned_abs() {
            m if m < 10_u128.pow(10) => number * 1_000_000,
            m if m < 10_u128.pow(13) => number * 1_000,
            m if m < 10_u128.pow(16) => number,
            m if m < 10_u128.pow(19) => number.div_euclid(1_000),
            _ => return None,
        };
        i64::try_from(micros).ok().map(|micros| Self(micros).clamped())
    }

    /// Appends the moment as RFC 3339 in UTC with microseconds, 27 bytes.
    pub fn write_rfc3339(self, out: &mut Vec<u8>) {
        let micros = self.clamped().0;
        let seconds = micros.div_euclid(1_000_000);
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        digits(out, year, 4);
        out.push(b'-');
        digits(out, month, 2);
        out.push(b'-');
        digits(out, day, 2);
        out.push(b'T');
        digits(out, (of_day / 3600) as u32, 2);
        out.push(b':');
        digits(out, (of_day / 60 % 60) as u32, 2);
        out.push(b':');
        digits(out, (of_day % 60) as u32, 2);
        out.push(b'.');
        digits(out, micros.rem_euclid(1_000_000) as u32, 6);
        out.push(b'Z');
    }

    fn clamped(self) -> Self {
        Self(self.0.clamp(TIMESTAMP_MIN, TIMESTAMP_MAX))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(at: SystemTime) -> Self {
        let micros = match at.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        Self(micros).clamped()
    }
}

impl From<Timestamp> for SystemTime {
    fn from(at: Timestamp) -> Self {
        let micros = Duration::from_micros(at.0.unsigned_abs());
        if at.0 < 0 { UNIX_EPOCH - micros } else { UNIX_EPOCH + micros }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(27);
        self.write_rfc3339(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or("?"))
    }
}

/// Serializes a moment as RFC 3339 text, for people and other programs.
pub mod as_text {
    use super::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text).ok_or_else(|| de::Error::custom(format!("\"{text}\" is no time")))
    }
}

/// Serializes an optional moment as RFC 3339 text.
pub mod as_text_if_any {
    use super::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes the text, or none.
    pub fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.collect_str(at),
            None => serializer.serialize_none(),
        }
    }

    /// Reads the text, if present.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let wrong = || de::Error::custom(format!("\"{text}\" is no time"));
        Timestamp::parse(&text).map(Some).ok_or_else(wrong)
    }
}

/// Converts a day count since 1970-01-01 to year, month and day, after Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn civil_from_days(days: i64) -> (u32, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year as u32, month as u32, day as u32)
}

fn digits(out: &mut Vec<u8>, mut number: u32, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    for digit in out[start..].iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
}

/// The identity of an event: unique together with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Id<'a> {
    /// UUID version 7, created by the gateway.
    Uuid([u8; 16]),
    /// Id from the device or system that reported the event.
    Text(#[serde(borrow)] &'a str),
}

impl Id<'_> {
    /// Appends the identity as text.
    pub fn push_text(&self, out: &mut Vec<u8>) {
        match self {
            Id::Uuid(bytes) => {
                let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
                let text = uuid::Uuid::from_bytes(*bytes).hyphenated().encode_lower(&mut text);
                out.extend_from_slice(text.as_bytes());
            }
            Id::Text(text) => out.extend_from_slice(text.as_bytes()),
        }
    }

    pub fn mint() -> Id<'static> {
        Id::Uuid(*uuid::Uuid::now_v7().as_bytes())
    }
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Uuid(bytes) => {
                let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
                f.write_str(uuid::Uuid::from_bytes(*bytes).hyphenated().encode_lower(&mut text))
            }
            Id::Text(text) => f.write_str(text),
        }
    }
}

/// Format of a payload, which decides how the envelope embeds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Valid JSON, embedded as it is.
    Json,
    /// Anything else, embedded as base64.
    Bytes,
}

/// An attribute that most events do not have.
///
/// New kinds are appended at the end: the order is part of the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attribute<'a> {
    /// W3C trace context of the PUBLISH.
    TraceParent(#[serde(borrow)] &'a str),
    /// Media type of a payload that is not JSON.
    ContentType(&'a str),
    /// Id from the device, if an event with another payload already has it.
    OriginalId(&'a str),
    /// Violation of the contract, where the contract delivers the event in spite of it.
    Violation(&'a str),
    /// State of the clock when the gateway accepted the event: `holdover` or `untrusted`.
    ClockStatus(&'a str),
    /// QoS 2 exchange in which the event arrived. Never leaves the gateway.
    Exchange {
        /// Number of the client's session.
        session: u64,
        packet_id: u16,
    },
    /// Client that submitted the event, if it is not the device that the event is about.
    Auth {
        /// How the name was authenticated.
        kind: AuthType,
        name: &'a str,
    },
    /// The moment after which the sender does not want the event delivered any more (message expiry of MQTT 5).
    Expires(Timestamp),
    /// Response topic of the PUBLISH.
    ResponseTopic(&'a str),
    /// Correlation data of the PUBLISH.
    CorrelationData(&'a [u8]),
    /// A user property of the PUBLISH that its contract keeps.
    UserProperty { name: &'a str, value: &'a str },
    /// The block of properties of the PUBLISH, kept with a dead letter. Never leaves the gateway.
    Properties(&'a [u8]),
}

/// Kind of principal that submitted an event, with the values of the auth context extension of CloudEvents
/// (<https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/authcontext.md>).
///
/// New kinds are appended at the end: the order is part of the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthType {
    /// An account of the password file.
    User,
    /// The subject of a client certificate.
    ServiceAccount,
    /// The holder of a bearer token.
    ApiKey,
}

impl AuthType {
    /// Value of the attribute `authtype`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServiceAccount => "service_account",
            Self::ApiKey => "api_key",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// Publication (contract version and gateway names) that renders this event.
    pub publication: u32,
    /// Identity; the same on every copy.
    #[serde(borrow)]
    pub id: Id<'a>,
    pub time: Timestamp,
    /// `{source}/{device}`, each part percent-encoded.
    pub origin: &'a str,
    /// Key, for which order is kept.
    pub key: &'a str,
    pub content: Content,
    /// Attributes that most events do not have.
    pub attributes: Vec<Attribute<'a>>,
    /// Payload, after `keep` and `mask`.
    #[serde(serialize_with = "in_one_piece")]
    pub payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        append_postcard(out, self);
    }

    /// Decodes a record that fills `bytes` exactly.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DamagedRecord> {
        match postcard::take_from_bytes(bytes) {
            Ok((record, [])) => Ok(record),
            Ok((_, rest)) => Err(DamagedRecord(format!("{} trailing bytes", rest.len()))),
            Err(error) => Err(DamagedRecord(error.to_string())),
        }
    }

    /// Returns the first attribute for which `pick` returns a value.
    pub fn attribute<T>(&self, pick: impl Fn(&Attribute<'a>) -> Option<T>) -> Option<T> {
        self.attributes.iter().find_map(pick)
    }
}

/// Bytes that cannot be decoded as a record: damaged, or written by a newer Forebay.
#[derive(Debug, thiserror::Error)]
#[error("stored record is damaged: {0}")]
pub struct DamagedRecord(String);

/// Appends a value in postcard, the encoding of the journal.
pub fn append_postcard<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    // Writing to memory cannot fail, and postcard supports all parts of these types.
    if let Err(error) = postcard::serialize_with_flavor(value, Appender(out)) {
        unreachable!("a plain value always encodes: {error}");
    }
}

struct Appender<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Appender<'_> {
    type Output = ();

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Serializes bytes as one block. By default serde would serialize them one by one, as a list of numbers.
fn in_one_piece<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// Appends `text` to `out`, percent-encoding all characters that a URI path segment may not contain (RFC 3986, section
/// 3.3: unreserved characters, `:` and `@` stay).
pub fn push_path_segment(out: &mut String, text: &str) {
    for &byte in text.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'@' => {
                out.push(byte as char);
            }
            _ => {
                out.push('%');
                out.push(char::from(b"0123456789ABCDEF"[(byte >> 4) as usize]));
                out.push(char::from(b"0123456789ABCDEF"[(byte & 15) as usize]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record<'a>(id: Id<'a>, key: &'a str, payload: &'a [u8]) -> Record<'a> {
        Record {
            publication: 7,
            id,
            time: Timestamp(1_764_000_000_000_001),
            origin: "shopfloor/press-4",
            key,
            content: Content::Json,
            attributes: vec![Attribute::TraceParent("00-ab-cd-01")],
            payload,
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(id in ".*", key in ".*", payload in proptest::collection::vec(any::<u8>(), 0..600)) {
            let written = record(Id::Text(&id), &key, &payload);
            let mut bytes = Vec::new();
            written.encode(&mut bytes);
            prop_assert_eq!(Record::decode(&bytes).ok(), Some(written));
        }

        #[test]
        fn damaged_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes);
        }

        #[test]
        fn a_time_reads_back_as_it_was_written(micros in TIMESTAMP_MIN..TIMESTAMP_MAX) {
            prop_assert_eq!(Timestamp::parse(&Timestamp(micros).to_string()), Some(Timestamp(micros)));
        }
    }

    #[test]
    fn epoch_numbers_of_every_unit_are_the_same_moment() {
        let second = Timestamp(1_764_000_000_000_000);
        for number in [1_764_000_000.0, 1_764_000_000e3, 1_764_000_000e6, 1_764_000_000e9] {
            assert_eq!(Timestamp::from_epoch_number(number), Some(second), "{number}");
        }
        for number in [1_764_000_000, 1_764_000_000_000, 1_764_000_000_000_000, 1_764_000_000_000_000_000] {
            assert_eq!(Timestamp::from_epoch_integer(number), Some(second), "{number}");
        }
        assert_eq!(Timestamp::from_epoch_integer(1_764_000_000_000_001_999), Some(Timestamp(second.0 + 1)));
        assert_eq!(Timestamp::from_epoch_integer(i128::MAX), None);
        assert_eq!(Timestamp::from_epoch_number(f64::NAN), None);
        assert_eq!(Timestamp::from_epoch_number(1e30), None);
    }

    #[test]
    fn a_record_with_trailing_bytes_is_refused() {
        let mut bytes = Vec::new();
        record(Id::Uuid([1; 16]), "k", b"{}").encode(&mut bytes);
        bytes.push(0);
        assert!(Record::decode(&bytes).is_err());
    }

    #[test]
    fn path_segments_hold_no_reserved_character() {
        let mut out = String::new();
        push_path_segment(&mut out, "a/b c+#%ü");
        assert_eq!(out, "a%2Fb%20c%2B%23%25%C3%BC");
    }
}
