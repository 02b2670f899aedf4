//! The `[columns]` section of a contract: which column of a file becomes which field of an event, and as what.
//!
//! Promise: a field of a section that passes [`check`] can be made from any cell, or the error says what was expected.

use jiff::civil::Time;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The columns of a contract by the field that they become.
pub type Columns = BTreeMap<String, Column>;

/// One column: a bare text names it, and its cells become texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Heading of the column in a CSV file, or path of an element or attribute in an XML row.
    pub column: String,
    pub kind: CellType,
    /// `strptime` format of a time; ISO 8601 if there is none.
    pub format: Option<String>,
    /// Time zone of times without an offset.
    pub zone: Option<String>,
    /// Values by the text of the cell. Other texts are refused.
    pub values: BTreeMap<String, serde_json::Value>,
}

/// What the text of a cell becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellType {
    #[default]
    Text,
    /// A JSON number with the digits of the cell.
    Number,
    /// An RFC 3339 time in UTC.
    Time,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    column: String,
    #[serde(default, rename = "type")]
    kind: CellType,
    format: Option<String>,
    zone: Option<String>,
    #[serde(default)]
    values: BTreeMap<String, serde_json::Value>,
}

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Column;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the name of a column such as \"Order\", or a table such as { column = \"Good\", type = \"number\" }",
                )
            }
            fn visit_str<E: de::Error>(self, column: &str) -> Result<Column, E> {
                Ok(Column {
                    column: column.to_owned(),
                    kind: CellType::Text,
                    format: None,
                    zone: None,
                    values: BTreeMap::new(),
                })
            }
            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Column, M::Error> {
                let Table { column, kind, format, zone, values } =
                    Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Column { column, kind, format, zone, values })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// How numbers are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberFormat {
    pub decimal: char,
    pub thousands: Option<char>,
}

/// Checks the columns of a contract. The error holds key and message.
pub(super) fn check(columns: &Columns) -> Result<(), (String, String)> {
    for (field, column) in columns {
        let wrong = |key: &str, message: String| Err((format!("columns.{field}{key}"), message));
        if column.column.is_empty() {
            return wrong("", "\"\" is no column; write its heading".into());
        }
        if !column.values.is_empty() && column.kind != CellType::Text {
            return wrong(".values", "says what each text becomes; leave type out".into());
        }
        let has_time_keys = column.format.is_some() || column.zone.is_some();
        if has_time_keys && column.kind != CellType::Time {
            return wrong("", "format and zone need type = \"time\"".into());
        }
        if let Some(zone) = &column.zone
            && let Err(error) = TimeZone::get(zone)
        {
            return wrong(".zone", format!("\"{zone}\" is no time zone such as \"Europe/Berlin\": {error}"));
        }
        if let Some(format) = &column.format
            && let Err(message) = check_format(format, column.zone.is_some())
        {
            return wrong(".format", message);
        }
        if column.kind == CellType::Time && column.format.is_none() && column.zone.is_some() {
            return wrong(".zone", "needs format: ISO 8601 times of a column have an offset".into());
        }
    }
    Ok(())
}

/// Formats a known time and reads it back.
fn check_format(format: &str, has_zone: bool) -> Result<(), String> {
    let wrong =
        |why: String| format!("\"{format}\" is no format of a time: {why}; expected one such as \"%d.%m.%Y %H:%M:%S\"");
    let sample = jiff::Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    let written = strtime::format(format, &sample).map_err(|error| wrong(error.to_string()))?;
    let read = strtime::parse(format, &written).map_err(|error| wrong(error.to_string()))?;
    if read.to_timestamp().is_ok() {
        return Ok(());
    }
    read.to_date().map_err(|_| wrong("it has no complete date".into()))?;
    if has_zone { Ok(()) } else { Err(wrong("it has no offset; set zone to the zone of the file".into())) }
}

impl Column {
    /// Appends the JSON value of a cell that is not empty. The error says what was expected, without the cell.
    pub fn push_value(&self, cell: &str, numbers: NumberFormat, json: &mut Vec<u8>) -> Result<(), String> {
        if !self.values.is_empty() {
            let value = self.values.get(cell).or_else(|| self.values.get(cell.trim()));
            let value = value.ok_or_else(|| {
                let known: Vec<_> = self.values.keys().cloned().collect();
                format!("is none of the values {}", super::terms::quoted(&known))
            })?;
            json.extend_from_slice(value.to_string().as_bytes());
            return Ok(());
        }
        match self.kind {
            CellType::Text => super::json::push_json_string(json, cell),
            CellType::Number => push_number(cell.trim(), numbers, json)?,
            CellType::Time => {
                let time = self.time(cell.trim())?;
                super::json::push_json_string(json, &time.to_string());
            }
        }
        Ok(())
    }

    fn time(&self, cell: &str) -> Result<jiff::Timestamp, String> {
        let Some(format) = &self.format else {
            return cell.parse().map_err(|_| "is no ISO 8601 time with an offset".to_owned());
        };
        let wrong = |_| format!("is no time in the format \"{format}\"");
        let read = strtime::parse(format, cell).map_err(wrong)?;
        if let Ok(time) = read.to_timestamp() {
            return Ok(time);
        }
        let date = read.to_date().map_err(wrong)?;
        let local = date.to_datetime(read.to_time().unwrap_or(Time::midnight()));
        let zone = TimeZone::get(self.zone.as_deref().unwrap_or("UTC")).map_err(wrong)?;
        zone.to_ambiguous_zoned(local).compatible().map(|zoned| zoned.timestamp()).map_err(wrong)
    }
}

/// Appends a number with the digits that `text` has.
fn push_number(text: &str, numbers: NumberFormat, json: &mut Vec<u8>) -> Result<(), String> {
    let wrong = || {
        let thousands = numbers.thousands.map(|mark| format!(" and \"{mark}\" between thousands"));
        format!("is no number with \"{}\" before decimals{}", numbers.decimal, thousands.unwrap_or_default())
    };
    let (sign, digits) = match text.strip_prefix(['-', '+', '\u{2212}']) {
        Some(rest) if !text.starts_with('+') => ("-", rest),
        Some(rest) => ("", rest),
        None => ("", text),
    };
    let (mantissa, exponent) = match digits.find(['e', 'E']) {
        Some(at) => (&digits[..at], Some(&digits[at + 1..])),
        None => (digits, None),
    };
    let (whole, fraction) = match mantissa.split_once(numbers.decimal) {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let whole = match numbers.thousands {
        Some(mark) if whole.contains(mark) => {
            let groups: Vec<_> = whole.split(mark).collect();
            let are_whole = groups[1..].iter().all(|group| group.len() == 3) && (1..=3).contains(&groups[0].len());
            if !are_whole {
                return Err(wrong());
            }
            groups.concat()
        }
        _ => whole.to_owned(),
    };
    let exponent_digits = exponent.map(|text| text.strip_prefix(['-', '+']).unwrap_or(text));
    let is_number = are_digits(&whole) && fraction.is_none_or(are_digits) && exponent_digits.is_none_or(are_digits);
    if !is_number {
        return Err(wrong());
    }
    let shown = whole.trim_start_matches('0');
    let whole = if shown.is_empty() { "0" } else { shown };
    let (point, exponent_mark) = (fraction.map(|_| "."), exponent.map(|_| "e"));
    let parts = [Some(sign), Some(whole), point, fraction, exponent_mark, exponent];
    parts.into_iter().flatten().for_each(|part| json.extend_from_slice(part.as_bytes()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GERMAN: NumberFormat = NumberFormat { decimal: ',', thousands: Some('.') };
    const PLAIN: NumberFormat = NumberFormat { decimal: '.', thousands: None };

    fn column(text: &str) -> Column {
        #[derive(Deserialize)]
        struct One {
            c: Column,
        }
        toml::from_str::<One>(&format!("c = {text}")).expect(text).c
    }

    fn value(column: &Column, cell: &str, numbers: NumberFormat) -> Result<String, String> {
        let mut json = Vec::new();
        column.push_value(cell, numbers, &mut json).map(|()| String::from_utf8(json).expect("UTF-8"))
    }

    #[test]
    fn numbers_keep_the_digits_of_the_file() {
        let number = column("{ column = \"n\", type = \"number\" }");
        for (cell, numbers, expected) in [
            ("12,50", GERMAN, "12.50"),
            ("1.234.567,8", GERMAN, "1234567.8"),
            (" -0012 ", PLAIN, "-12"),
            ("+7", PLAIN, "7"),
            ("000", PLAIN, "0"),
            ("12345678901234567890.123456789", PLAIN, "12345678901234567890.123456789"),
            ("1.5E-03", PLAIN, "1.5e-03"),
        ] {
            assert_eq!(value(&number, cell, numbers).as_deref(), Ok(expected), "{cell}");
        }
        for (cell, numbers) in [
            ("12.5", GERMAN),
            ("1.23", GERMAN),
            ("1.2345,6", GERMAN),
            ("12,5", PLAIN),
            ("", PLAIN),
            (".5", PLAIN),
            ("5.", PLAIN),
            ("1e", PLAIN),
            ("NaN", PLAIN),
            ("--1", PLAIN),
            ("1 000", PLAIN),
            ("0x10", PLAIN),
        ] {
            let message = value(&number, cell, numbers).expect_err(cell);
            assert!(message.starts_with("is no number with \""), "{cell}: {message}");
        }
    }

    #[test]
    fn times_are_read_in_their_zone() {
        let local =
            column("{ column = \"t\", type = \"time\", format = \"%d.%m.%Y %H:%M\", zone = \"Europe/Berlin\" }");
        assert_eq!(value(&local, "30.11.2026 06:30", PLAIN).as_deref(), Ok("\"2026-11-30T05:30:00Z\""));
        assert_eq!(value(&local, "01.07.2026 06:30", PLAIN).as_deref(), Ok("\"2026-07-01T04:30:00Z\""));
        assert_eq!(value(&local, "31.02.2026 06:30", PLAIN), Err("is no time in the format \"%d.%m.%Y %H:%M\"".into()));
        let date = column("{ column = \"t\", type = \"time\", format = \"%Y%m%d\", zone = \"UTC\" }");
        assert_eq!(value(&date, "20261130", PLAIN).as_deref(), Ok("\"2026-11-30T00:00:00Z\""));
        let iso = column("{ column = \"t\", type = \"time\" }");
        assert_eq!(value(&iso, "2026-11-30T06:30:00+01:00", PLAIN).as_deref(), Ok("\"2026-11-30T05:30:00Z\""));
        assert!(value(&iso, "2026-11-30T06:30:00", PLAIN).is_err());
    }

    #[test]
    fn texts_become_their_values() {
        let state = column("{ column = \"s\", values = { 1 = \"running\", J = true } }");
        assert_eq!(value(&state, "1", PLAIN).as_deref(), Ok("\"running\""));
        assert_eq!(value(&state, " J", PLAIN).as_deref(), Ok("true"));
        assert_eq!(value(&state, "2", PLAIN), Err("is none of the values \"1\" and \"J\"".into()));
        assert_eq!(value(&column("\"s\""), " a\"b ", PLAIN).as_deref(), Ok("\" a\\\"b \""));
    }

    #[test]
    fn columns_that_cannot_be_are_named() {
        for (text, key, part) in [
            ("\"\"", "columns.c", "is no column"),
            ("{ column = \"a\", zone = \"UTC\" }", "columns.c", "need type"),
            (
                "{ column = \"a\", type = \"time\", format = \"%d.%m.\", zone = \"UTC\" }",
                "columns.c.format",
                "no complete date",
            ),
            (
                "{ column = \"a\", type = \"time\", format = \"%Q\", zone = \"UTC\" }",
                "columns.c.format",
                "is no format",
            ),
            ("{ column = \"a\", type = \"time\", format = \"%d.%m.%Y\" }", "columns.c.format", "set zone"),
            (
                "{ column = \"a\", type = \"time\", format = \"%F\", zone = \"Mars/Base\" }",
                "columns.c.zone",
                "is no time zone",
            ),
            ("{ column = \"a\", type = \"number\", values = { a = 1 } }", "columns.c.values", "leave type out"),
        ] {
            let columns = Columns::from([("c".to_owned(), column(text))]);
            let (at, message) = check(&columns).expect_err(text);
            assert!(at == key && message.contains(part), "{text}: {at}: {message}");
        }
    }
}
