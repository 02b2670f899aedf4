//! What `format` asks of a string.

use fluent_uri::{Iri, IriRef, Uri, UriRef};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest regular expression that a payload may hold: reading it takes the square of its length.
const REGEX_BYTES_MAX: usize = 4096;

/// A format of draft 2020-12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `2026-11-23T08:00:00Z` (RFC 3339).
    DateTime,
    /// `2026-11-23` (RFC 3339).
    Date,
    /// `08:00:00Z` (RFC 3339).
    Time,
    /// `P1DT2H` (ISO 8601).
    Duration,
    /// RFC 5321.
    Email,
    /// RFC 6531.
    IdnEmail,
    /// RFC 1123.
    Hostname,
    /// Four numbers (RFC 2673).
    Ipv4,
    /// RFC 4291.
    Ipv6,
    /// RFC 3986.
    Uri,
    /// RFC 3986, also relative.
    UriReference,
    /// RFC 3987.
    Iri,
    /// RFC 3987, also relative.
    IriReference,
    /// RFC 6570.
    UriTemplate,
    /// RFC 4122.
    Uuid,
    /// RFC 6901.
    JsonPointer,
    /// A draft of the same group.
    RelativeJsonPointer,
    /// ECMA-262.
    Regex,
}

const NAMES: [(&str, Format); 18] = [
    ("date-time", Format::DateTime),
    ("date", Format::Date),
    ("time", Format::Time),
    ("duration", Format::Duration),
    ("email", Format::Email),
    ("idn-email", Format::IdnEmail),
    ("hostname", Format::Hostname),
    ("ipv4", Format::Ipv4),
    ("ipv6", Format::Ipv6),
    ("uri", Format::Uri),
    ("uri-reference", Format::UriReference),
    ("iri", Format::Iri),
    ("iri-reference", Format::IriReference),
    ("uri-template", Format::UriTemplate),
    ("uuid", Format::Uuid),
    ("json-pointer", Format::JsonPointer),
    ("relative-json-pointer", Format::RelativeJsonPointer),
    ("regex", Format::Regex),
];

impl Format {
    /// The format of this name. What the specification does not know, it does not assert; neither does it here with
    /// `idn-hostname`.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// Whether a string is in it.
    pub fn takes(self, text: &str) -> bool {
        match self {
            Self::DateTime => is_date_time(text),
            Self::Date => is_date(text),
            Self::Time => is_time(text),
            Self::Duration => is_duration(text),
            Self::Email => text.is_ascii() && is_email(text),
            Self::IdnEmail => is_email(text),
            Self::Hostname => is_hostname(text),
            Self::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Self::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
            Self::Uri => Uri::parse(text).is_ok(),
            Self::UriReference => UriRef::parse(text).is_ok(),
            Self::Iri => Iri::parse(text).is_ok(),
            Self::IriReference => IriRef::parse(text).is_ok(),
            Self::UriTemplate => is_uri_template(text),
            Self::Uuid => text.len() == 36 && text.parse::<uuid::Uuid>().is_ok(),
            Self::JsonPointer => is_json_pointer(text),
            Self::RelativeJsonPointer => is_relative_json_pointer(text),
            Self::Regex => text.len() <= REGEX_BYTES_MAX && jsonschema_regex::is_valid_ecma_regex(text),
        }
    }
}

fn are_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The number that these digits are.
fn digits(text: &str) -> Option<u32> {
    if are_digits(text) { text.parse().ok() } else { None }
}

fn is_date_time(text: &str) -> bool {
    // A letter before the time, of either case; no other character is a byte there.
    match (text.get(..10), text.get(10..11), text.get(11..)) {
        (Some(date), Some("T" | "t"), Some(time)) => is_date(date) && is_time(time),
        _ => false,
    }
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some(year), Some(month), Some(day), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    if (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return false;
    }
    let (Some(year), Some(month), Some(day)) = (digits(year), digits(month), digits(day)) else { return false };
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=days).contains(&day)
}

fn is_time(text: &str) -> bool {
    let Some(clock) = text.get(..8) else { return false };
    let Some([hour, minute, second]) = clock_of(clock) else { return false };
    let mut rest = &text[8..];
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
        if rest.len() == fraction.len() {
            return false;
        }
    }
    let offset = if matches!(rest, "Z" | "z") {
        0
    } else {
        let east = match rest.get(..1) {
            Some("+") => 1,
            Some("-") => -1,
            _ => return false,
        };
        match clock_of(&format!("{}:00", &rest[1..])) {
            Some([hours, minutes, _]) if hours < 24 && minutes < 60 => east * (hours * 60 + minutes) as i32,
            _ => return false,
        }
    };
    // A leap second is the last of a day of UTC.
    let of_day = (hour * 60 + minute) as i32 - offset;
    hour < 24 && minute < 60 && (second < 60 || second == 60 && of_day.rem_euclid(1440) == 1439)
}

/// `HH:MM:SS`
fn clock_of(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split(':').map(|part| if part.len() == 2 { digits(part) } else { None });
    let clock = [parts.next()??, parts.next()??, parts.next()??];
    if parts.next().is_none() { Some(clock) } else { None }
}

fn is_duration(text: &str) -> bool {
    /// Numbers with these units, in this order and without a gap between them.
    fn are(mut text: &str, units: &str) -> bool {
        let mut next = 0;
        while !text.is_empty() {
            let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
            let found = unit.chars().next().and_then(|unit| units.find(unit));
            match found {
                Some(at) if unit.len() < text.len() && (next == 0 || at == next) => next = at + 1,
                _ => return false,
            }
            text = &unit[1..];
        }
        next > 0
    }
    let Some(period) = text.strip_prefix('P') else { return false };
    match period.split_once('T') {
        Some(("", time)) => are(time, "HMS"),
        Some((date, time)) => are(date, "YMD") && are(time, "HMS"),
        None => are(period, "YMD") || are(period, "W"),
    }
}

fn is_email(text: &str) -> bool {
    // RFC 5321, section 4.1.2; beyond ASCII RFC 6531.
    let is_atom = |c: char| c.is_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let is_local = match local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => {
            let mut is_escaped = false;
            let good = quoted.chars().all(|c| {
                let good = !c.is_control() && (is_escaped || c != '"');
                is_escaped = c == '\\' && !is_escaped;
                good
            });
            good && !is_escaped
        }
        None => local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom)),
    };
    let is_domain = match domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => match address.strip_prefix("IPv6:") {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => address.parse::<Ipv4Addr>().is_ok(),
        },
        None => are_labels(domain, |c| c.is_ascii_alphanumeric() || !c.is_ascii()),
    };
    is_local && is_domain && local.len() <= 64
}

fn is_hostname(text: &str) -> bool {
    are_labels(text, |c| c.is_ascii_alphanumeric())
}

/// Whether these are labels of a domain, each with a letter or digit at both ends.
fn are_labels(text: &str, is_letter: impl Fn(char) -> bool) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c == '-' || is_letter(c))
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_uri_template(text: &str) -> bool {
    // RFC 6570, section 2.
    let is_literal = |part: &str| {
        let mut rest = part;
        while let Some(at) = rest.find(|c: char| c.is_control() || " \"%<>\\^`{|}".contains(c)) {
            let escape = rest[at..].get(1..3).is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
            if !rest[at..].starts_with('%') || !escape {
                return false;
            }
            rest = &rest[at + 3..];
        }
        true
    };
    let is_name = |name: &str| {
        !name.is_empty()
            && name.split('.').all(|word| {
                !word.is_empty()
                    && is_literal(word)
                    && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '%')
            })
    };
    let is_variable = |variable: &str| {
        if let Some((name, length)) = variable.split_once(':') {
            is_name(name) && length.len() <= 4 && !length.starts_with('0') && digits(length).is_some()
        } else {
            is_name(variable.strip_suffix('*').unwrap_or(variable))
        }
    };
    let mut rest = text;
    while let Some((literal, expression)) = rest.split_once('{') {
        let Some((expression, after)) = expression.split_once('}') else { return false };
        let variables = expression.strip_prefix(['+', '#', '.', '/', ';', '?', '&']).unwrap_or(expression);
        if !is_literal(literal) || !variables.split(',').all(is_variable) {
            return false;
        }
        rest = after;
    }
    is_literal(rest)
}

fn is_json_pointer(text: &str) -> bool {
    let is_step = |step: &str| step.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    text.is_empty() || text.starts_with('/') && is_step(text)
}

fn is_relative_json_pointer(text: &str) -> bool {
    let is_number = |number: &str| are_digits(number) && (number == "0" || !number.starts_with('0'));
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    is_number(&text[..text.len() - rest.len()]) && (rest == "#" || is_json_pointer(rest))
}
