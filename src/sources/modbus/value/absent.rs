//! Declared absences: contents of registers by which a device says that it has no value.
//!
//! Promise: every content that a type can have can be declared: numbers beyond TOML's 64 signed bits, and bit patterns,
//! as texts.

use super::kind::{Type, Value};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;

/// A number or text as it is written in a device table: TOML's integers have 64 signed bits, its texts have any number.
#[derive(Clone, Debug, PartialEq)]
pub enum Notation {
    Whole(i128),
    /// A number with a fraction, or none at all (`nan`).
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for Notation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Notation;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a text such as \"0xFFFF\"")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Notation, E> {
                Ok(Notation::Whole(value.into()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Notation, E> {
                Ok(Notation::Whole(value.into()))
            }
            fn visit_i128<E: de::Error>(self, value: i128) -> Result<Notation, E> {
                Ok(Notation::Whole(value))
            }
            fn visit_u128<E: de::Error>(self, value: u128) -> Result<Notation, E> {
                i128::try_from(value).map(Notation::Whole).map_err(|_| E::custom(format!("{value} fits no register")))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Notation, E> {
                Ok(Notation::Float(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Notation, E> {
                Ok(Notation::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Notation {
    /// A whole number, in decimal or hexadecimal notation.
    pub fn whole(&self) -> Option<i128> {
        match self {
            Self::Whole(whole) => Some(*whole),
            Self::Float(number) => (number.fract() == 0.0 && number.abs() < 9e15).then_some(*number as i128),
            Self::Text(text) => match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
                Some(hex) => i128::from_str_radix(hex, 16).ok(),
                None => text.trim().parse().ok(),
            },
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(whole) => Some(*whole as f64),
            Self::Float(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
        }
    }
}

impl fmt::Display for Notation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(whole) => write!(f, "{whole}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "\"{text}\""),
        }
    }
}

/// A content of a point's registers that means "no value".
#[derive(Clone, Debug)]
pub enum Absent {
    /// A number, before scaling.
    Whole(i128),
    /// The bits of all registers of the point, or of its part of them.
    Bits(u64),
    /// A floating-point number, before scaling.
    Float(f64),
    /// A text, without padding.
    Text(String),
}

impl PartialEq for Absent {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => one == other,
            (Self::Bits(one), Self::Bits(other)) => one == other,
            // A declared NaN equals itself, so that an unchanged table is recognised as such.
            (Self::Float(one), Self::Float(other)) => one == other || (one.is_nan() && other.is_nan()),
            (Self::Text(one), Self::Text(other)) => one == other,
            _ => false,
        }
    }
}

impl Absent {
    /// Checks a declaration for a type whose value has `bits` bits and, if it is an integer, this range.
    pub fn new(written: &Notation, kind: Type, bits: u32, range: Option<(i128, i128)>) -> Result<Self, String> {
        if kind == Type::Text {
            return match written {
                Notation::Text(text) => Ok(Self::Text(text.trim().to_owned())),
                other => Err(format!("{other} is no text; write \"{other}\"")),
            };
        }
        if let Notation::Text(text) = written
            && let Some(hex) = text.strip_prefix("0x").or(text.strip_prefix("0X"))
        {
            let pattern = u64::from_str_radix(hex, 16).ok().filter(|pattern| bits >= 64 || pattern >> bits == 0);
            return pattern.map(Self::Bits).ok_or_else(|| {
                format!(
                    "{written} is no pattern of {bits} bits; expected one such as \"0x{:X}\"",
                    u64::MAX >> (64 - bits.clamp(1, 64))
                )
            });
        }
        let unknown = || format!("{written} is no number; expected one, or bits such as \"0xFFFF\"");
        if kind.is_float() {
            return written.number().map(Self::Float).ok_or_else(unknown);
        }
        let (least, most) = range.ok_or("a bit is on or off; it has no content that means \"no value\"")?;
        match written.whole() {
            Some(whole) if (least..=most).contains(&whole) => Ok(Self::Whole(whole)),
            Some(whole)
                if least < 0
                    && whole > most
                    && u64::try_from(whole).is_ok_and(|bits_| bits >= 64 || bits_ >> bits == 0) =>
            {
                Err(format!(
                    "{whole} is impossible; the type holds {least} to {most}; write \"0x{whole:X}\" for the bits, or {}",
                    whole - (1 << bits)
                ))
            }
            Some(whole) => Err(format!("{whole} is impossible; the type holds {least} to {most}")),
            None => Err(unknown()),
        }
    }

    /// Whether a content is this one. `bits` are those of the registers, `whole` the unscaled integer, `value` the unscaled
    /// value; each where there is one.
    pub(super) fn is(&self, bits: Option<u64>, whole: Option<i128>, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Whole(wanted), _) => whole == Some(*wanted),
            (Self::Bits(wanted), _) => bits == Some(*wanted),
            (Self::Float(wanted), Some(Value::Float(number))) => {
                number == wanted || (number.is_nan() && wanted.is_nan())
            }
            (Self::Text(wanted), Some(Value::Text(text))) => text == wanted,
            _ => false,
        }
    }
}
