//! Converts values of Sparkplug B to JSON, for every data type of the specification.

use super::output::Output;
use super::proto::{ElementValue, MetricValue, ParameterValue, PropertyKind};

/// Names of the data types by number (Sparkplug B 3.0, section 6.4.16).
const NAMES: [&str; 35] = [
    "Unknown",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "Float",
    "Double",
    "Boolean",
    "String",
    "DateTime",
    "Text",
    "UUID",
    "DataSet",
    "Bytes",
    "File",
    "Template",
    "PropertySet",
    "PropertySetList",
    "Int8Array",
    "Int16Array",
    "Int32Array",
    "Int64Array",
    "UInt8Array",
    "UInt16Array",
    "UInt32Array",
    "UInt64Array",
    "FloatArray",
    "DoubleArray",
    "BooleanArray",
    "StringArray",
    "DateTimeArray",
];

pub(super) const FLOAT: u32 = 9;
pub(super) const DOUBLE: u32 = 10;
pub(super) const BOOLEAN: u32 = 11;
pub(super) const STRING: u32 = 12;
pub(super) const DATA_SET: u32 = 16;
pub(super) const TEMPLATE: u32 = 19;
/// Highest data type of Sparkplug B 3.0.
const TYPE_MAX: u32 = 34;

/// Returns the name of a data type.
pub(super) fn type_name(number: u32) -> Option<&'static str> {
    (1..=TYPE_MAX).contains(&number).then(|| NAMES[number as usize])
}

/// A value as protocol buffers encode it, in any of the messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    Int(u32),
    Long(u64),
    Float(f32),
    Double(f64),
    Boolean(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl Scalar<'_> {
    /// Data type that follows from the encoding. `None` for integers, whose encoding does not show signedness.
    pub(super) fn own_type(self) -> Option<u32> {
        match self {
            Self::Float(_) => Some(FLOAT),
            Self::Double(_) => Some(DOUBLE),
            Self::Boolean(_) => Some(BOOLEAN),
            Self::Text(_) => Some(STRING),
            Self::Int(_) | Self::Long(_) | Self::Bytes(_) => None,
        }
    }
}

impl MetricValue {
    /// The value, unless it is a data set or a template.
    pub(super) fn scalar(&self) -> Option<Scalar<'_>> {
        Some(match self {
            Self::Int(value) => Scalar::Int(*value),
            Self::Long(value) => Scalar::Long(*value),
            Self::Float(value) => Scalar::Float(*value),
            Self::Double(value) => Scalar::Double(*value),
            Self::Boolean(value) => Scalar::Boolean(*value),
            Self::Text(value) => Scalar::Text(value),
            Self::Bytes(value) => Scalar::Bytes(value),
            Self::DataSet(_) | Self::Template(_) => return None,
        })
    }
}

impl PropertyKind {
    /// The value, unless it is a set of properties.
    pub(super) fn scalar(&self) -> Option<Scalar<'_>> {
        Some(match self {
            Self::Int(value) => Scalar::Int(*value),
            Self::Long(value) => Scalar::Long(*value),
            Self::Float(value) => Scalar::Float(*value),
            Self::Double(value) => Scalar::Double(*value),
            Self::Boolean(value) => Scalar::Boolean(*value),
            Self::Text(value) => Scalar::Text(value),
            Self::Set(_) | Self::Sets(_) => return None,
        })
    }
}

impl ElementValue {
    pub(super) fn scalar(&self) -> Scalar<'_> {
        match self {
            Self::Int(value) => Scalar::Int(*value),
            Self::Long(value) => Scalar::Long(*value),
            Self::Float(value) => Scalar::Float(*value),
            Self::Double(value) => Scalar::Double(*value),
            Self::Boolean(value) => Scalar::Boolean(*value),
            Self::Text(value) => Scalar::Text(value),
        }
    }
}

impl ParameterValue {
    pub(super) fn scalar(&self) -> Scalar<'_> {
        match self {
            Self::Int(value) => Scalar::Int(*value),
            Self::Long(value) => Scalar::Long(*value),
            Self::Float(value) => Scalar::Float(*value),
            Self::Double(value) => Scalar::Double(*value),
            Self::Boolean(value) => Scalar::Boolean(*value),
            Self::Text(value) => Scalar::Text(value),
        }
    }
}

/// A value that does not match its declared type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mismatch;

/// Appends a value of a data type as JSON. A number that JSON cannot represent is written as `null`,
/// and its name is returned.
pub(super) fn push_scalar(
    out: &mut Output,
    datatype: u32,
    value: Scalar<'_>,
) -> Result<Option<&'static str>, Mismatch> {
    match (datatype, value) {
        (1..=8 | 13, Scalar::Int(_) | Scalar::Long(_)) => push_integer(out, datatype, value)?,
        // The shortest text that parses to the same 32 bits: 21.1, not 21.100000381469727.
        (FLOAT | DOUBLE, Scalar::Float(number)) => {
            return Ok(push_float(out, f64::from(number), &format!("{number:?}")));
        }
        (FLOAT | DOUBLE, Scalar::Double(number)) => return Ok(push_float(out, number, &format!("{number:?}"))),
        (BOOLEAN, Scalar::Boolean(value)) => out.raw(if value { "true" } else { "false" }),
        (STRING | 14 | 15, Scalar::Text(text)) => out.text(text),
        (17 | 18, Scalar::Bytes(bytes)) => out.base64(bytes),
        (22..=34, Scalar::Bytes(bytes)) => {
            push_array(out, datatype, bytes)?;
            return Ok(nonfinite_in(datatype, bytes));
        }
        _ => return Err(Mismatch),
    }
    Ok(None)
}

/// Appends an integer. Integers are encoded unsigned, in two's complement. Some senders extend the sign, some do not,
/// and some put 32-bit integers into the 64-bit field.
fn push_integer(out: &mut Output, datatype: u32, value: Scalar<'_>) -> Result<(), Mismatch> {
    let (raw, extended) = match value {
        Scalar::Int(raw) => (u64::from(raw), i64::from(raw as i32)),
        Scalar::Long(raw) => (raw, raw as i64),
        _ => return Err(Mismatch),
    };
    let signed = |bits: u32| {
        let low = -(1i64 << (bits - 1));
        if (low..=-low - 1).contains(&extended) {
            Ok(extended)
        } else if raw < 1 << bits {
            // Not sign-extended: the highest of the bits is the sign.
            Ok((raw << (64 - bits)) as i64 >> (64 - bits))
        } else {
            Err(Mismatch)
        }
    };
    let unsigned = |bits: u32| if raw < 1 << bits { Ok(raw) } else { Err(Mismatch) };
    let text = match datatype {
        1 => signed(8)?.to_string(),
        2 => signed(16)?.to_string(),
        3 => signed(32)?.to_string(),
        4 => (raw as i64).to_string(),
        5 => unsigned(8)?.to_string(),
        6 => unsigned(16)?.to_string(),
        7 => unsigned(32)?.to_string(),
        _ => raw.to_string(),
    };
    out.raw(&text);
    Ok(())
}

fn push_float(out: &mut Output, number: f64, text: &str) -> Option<&'static str> {
    if number.is_finite() {
        out.raw(text);
        return None;
    }
    out.raw("null");
    nonfinite(number)
}

/// Name of a number that JSON cannot represent.
fn nonfinite(number: f64) -> Option<&'static str> {
    match number {
        number if number.is_finite() => None,
        number if number.is_nan() => Some("NaN"),
        number if number > 0.0 => Some("Infinity"),
        _ => Some("-Infinity"),
    }
}

/// Name of the first such number of an array, whose place is `null`.
fn nonfinite_in(datatype: u32, bytes: &[u8]) -> Option<&'static str> {
    match datatype {
        30 => bytes.as_chunks::<4>().0.iter().find_map(|item| nonfinite(f32::from_le_bytes(*item).into())),
        31 => bytes.as_chunks::<8>().0.iter().find_map(|item| nonfinite(f64::from_le_bytes(*item))),
        _ => None,
    }
}

/// Appends an array. Arrays are packed, little-endian (Sparkplug B 3.0, section 6.4.17). Stops when the output is full.
fn push_array(out: &mut Output, datatype: u32, bytes: &[u8]) -> Result<(), Mismatch> {
    fn each<const N: usize>(
        out: &mut Output,
        bytes: &[u8],
        text: impl Fn([u8; N]) -> Option<String>,
    ) -> Result<(), Mismatch> {
        let (items, []) = bytes.as_chunks::<N>() else { return Err(Mismatch) };
        for (index, item) in items.iter().enumerate() {
            if out.is_over() {
                break;
            }
            out.raw(if index > 0 { "," } else { "" });
            out.raw(text(*item).as_deref().unwrap_or("null"));
        }
        Ok(())
    }
    out.raw("[");
    match datatype {
        22 => each(out, bytes, |item| Some(i8::from_le_bytes(item).to_string()))?,
        23 => each(out, bytes, |item| Some(i16::from_le_bytes(item).to_string()))?,
        24 => each(out, bytes, |item| Some(i32::from_le_bytes(item).to_string()))?,
        25 => each(out, bytes, |item| Some(i64::from_le_bytes(item).to_string()))?,
        26 => each(out, bytes, |item| Some(u8::from_le_bytes(item).to_string()))?,
        27 => each(out, bytes, |item| Some(u16::from_le_bytes(item).to_string()))?,
        28 => each(out, bytes, |item| Some(u32::from_le_bytes(item).to_string()))?,
        29 | 34 => each(out, bytes, |item| Some(u64::from_le_bytes(item).to_string()))?,
        30 => {
            each(out, bytes, |item| Some(f32::from_le_bytes(item)).filter(|n| n.is_finite()).map(|n| format!("{n:?}")))?
        }
        31 => {
            each(out, bytes, |item| Some(f64::from_le_bytes(item)).filter(|n| n.is_finite()).map(|n| format!("{n:?}")))?
        }
        32 => {
            let (count, bits) = bytes.split_first_chunk::<4>().ok_or(Mismatch)?;
            let count = u32::from_le_bytes(*count) as usize;
            if bits.len() != count.div_ceil(8) {
                return Err(Mismatch);
            }
            for index in 0..count {
                if out.is_over() {
                    break;
                }
                let is_set = bits[index / 8] & (0x80 >> (index % 8)) != 0;
                out.raw(if index > 0 { "," } else { "" });
                out.raw(if is_set { "true" } else { "false" });
            }
        }
        _ => {
            let text = std::str::from_utf8(bytes).map_err(|_| Mismatch)?;
            // Each string ends with a zero byte.
            let text = if text.is_empty() { None } else { Some(text.strip_suffix('\0').ok_or(Mismatch)?) };
            for (index, item) in text.into_iter().flat_map(|text| text.split('\0')).enumerate() {
                if out.is_over() {
                    break;
                }
                out.raw(if index > 0 { "," } else { "" });
                out.text(item);
            }
        }
    }
    out.raw("]");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(datatype: u32, value: Scalar<'_>) -> Option<String> {
        let mut out = Output::new(0, 1 << 20);
        push_scalar(&mut out, datatype, value).ok()?;
        String::from_utf8(out.whole()?).ok()
    }

    #[test]
    fn integers_keep_their_sign_however_they_are_packed() {
        for (datatype, value, expected) in [
            (1, Scalar::Int(0xFF), Some("-1")),
            (1, Scalar::Int(0xFFFF_FFFF), Some("-1")),
            (1, Scalar::Int(0x80), Some("-128")),
            (1, Scalar::Int(0x7F), Some("127")),
            (1, Scalar::Int(0x100), None),
            (2, Scalar::Int(0x8000), Some("-32768")),
            (2, Scalar::Int(0xFFFF_8000), Some("-32768")),
            (3, Scalar::Int(0x8000_0000), Some("-2147483648")),
            (3, Scalar::Long(u64::MAX), Some("-1")),
            (4, Scalar::Long(u64::MAX), Some("-1")),
            (4, Scalar::Long(1 << 63), Some("-9223372036854775808")),
            (5, Scalar::Int(255), Some("255")),
            (5, Scalar::Int(256), None),
            (7, Scalar::Long(4_294_967_295), Some("4294967295")),
            (8, Scalar::Long(u64::MAX), Some("18446744073709551615")),
            (13, Scalar::Long(1_764_000_000_000), Some("1764000000000")),
            (3, Scalar::Text("1"), None),
            (12, Scalar::Int(1), None),
            (0, Scalar::Int(1), None),
        ] {
            assert_eq!(json(datatype, value).as_deref(), expected, "{datatype} {value:?}");
        }
    }

    #[test]
    fn floats_are_written_as_short_as_they_are_meant_and_nan_is_named() {
        assert_eq!(json(FLOAT, Scalar::Float(21.1)).as_deref(), Some("21.1"));
        assert_eq!(json(DOUBLE, Scalar::Double(1e300)).map(|text| text.parse::<f64>()), Some(Ok(1e300)));
        for (number, name) in [(f64::NAN, "NaN"), (f64::INFINITY, "Infinity"), (f64::NEG_INFINITY, "-Infinity")] {
            let mut out = Output::new(0, 100);
            assert_eq!(push_scalar(&mut out, DOUBLE, Scalar::Double(number)), Ok(Some(name)));
            assert_eq!(out.whole().as_deref(), Some(&b"null"[..]));
        }
    }

    #[test]
    fn an_array_names_the_first_number_that_json_does_not_have() {
        let bytes = [1.0_f64, f64::NEG_INFINITY, f64::NAN].map(f64::to_le_bytes).concat();
        let mut out = Output::new(0, 100);
        assert_eq!(push_scalar(&mut out, 31, Scalar::Bytes(&bytes)), Ok(Some("-Infinity")));
        assert_eq!(out.whole().as_deref(), Some(&b"[1.0,null,null]"[..]));
        assert_eq!(nonfinite_in(30, &f32::NAN.to_le_bytes()), Some("NaN"));
        assert_eq!(nonfinite_in(23, &[0xFF, 0xFF]), None);
    }

    #[test]
    fn arrays_unpack_and_broken_ones_are_refused() {
        for (datatype, bytes, expected) in [
            (22, &[0xFF, 1][..], Some("[-1,1]")),
            (23, &[0xFE, 0xFF, 1, 0], Some("[-2,1]")),
            (23, &[1], None),
            (27, &[0xFF, 0xFF], Some("[65535]")),
            (30, &[0, 0, 0x80, 0x3F, 0, 0, 0xC0, 0x7F], Some("[1.0,null]")),
            (
                32,
                &[10, 0, 0, 0, 0b1010_0000, 0b0100_0000],
                Some("[true,false,true,false,false,false,false,false,false,true]"),
            ),
            (32, &[0xFF, 0xFF, 0xFF, 0xFF, 0], None),
            (32, &[1, 0], None),
            (33, b"ab\0\0c\"\0", Some(r#"["ab","","c\""]"#)),
            (33, b"", Some("[]")),
            (33, b"open", None),
            (34, &[1, 0, 0, 0, 0, 0, 0, 0], Some("[1]")),
            (17, &[1, 2, 3], Some("\"AQID\"")),
        ] {
            assert_eq!(json(datatype, Scalar::Bytes(bytes)).as_deref(), expected, "{datatype} {bytes:?}");
        }
    }

    /// A message of 8 MiB became 400 MB: a bit of a Boolean array takes six bytes of JSON.
    #[test]
    fn whatever_the_type_the_output_keeps_to_its_bound() {
        const BOUND: usize = 10_000;
        // The bytes with the longest JSON for each type, and the text that grows most.
        let ones = vec![0xFF; 1 << 20];
        let bits = [&(8u32 << 20).to_le_bytes()[..], &vec![0; 1 << 20]].concat();
        let texts = vec![0; 1 << 20];
        let text = "\u{1}".repeat(1 << 20);
        for datatype in 1..=TYPE_MAX {
            let values = [
                Scalar::Bytes(&ones),
                Scalar::Bytes(&bits),
                Scalar::Bytes(&texts),
                Scalar::Text(&text),
                Scalar::Long(u64::MAX),
                Scalar::Double(f64::MIN),
            ];
            for value in values {
                let mut out = Output::new(0, BOUND);
                let pushed = push_scalar(&mut out, datatype, value);
                let is_large = matches!(value, Scalar::Bytes(_) | Scalar::Text(_));
                assert_eq!(pushed.is_ok() && is_large, out.is_over(), "{datatype}");
                assert!(out.len() <= BOUND, "{datatype}: {}", out.len());
            }
        }
    }
}
