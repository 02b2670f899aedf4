//! The tables of a device, the types of values, and values.

use serde::Deserialize;

/// The tables of a Modbus device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// Bits that can be written.
    Coil,
    /// Bits that can only be read.
    Discrete,
    /// Registers that can be written.
    #[default]
    Holding,
    /// Registers that can only be read.
    Input,
}

impl Table {
    /// Whether it holds bits rather than registers.
    pub fn is_bits(self) -> bool {
        matches!(self, Self::Coil | Self::Discrete)
    }

    /// The name in device tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coil => "coil",
            Self::Discrete => "discrete",
            Self::Holding => "holding",
            Self::Input => "input",
        }
    }
}

/// How a value is coded in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// One bit: of a table of bits, or of a register.
    Bool,
    /// The low byte of a register.
    U8,
    /// The low byte of a register, signed.
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    /// Four decimal digits.
    Bcd16,
    /// Eight decimal digits.
    Bcd32,
    /// Sixteen decimal digits.
    Bcd64,
    /// Two registers of four decimal digits each ("MOD10", "M10K"), signed.
    M10k32,
    /// Three such registers.
    M10k48,
    /// Four such registers.
    M10k64,
    /// Two characters per register.
    Text,
}

impl Type {
    /// Number of registers of one value; `None` where the point defines it.
    pub fn registers(self) -> Option<u16> {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::U16 | Self::I16 | Self::Bcd16 => Some(1),
            Self::U32 | Self::I32 | Self::F32 | Self::Bcd32 | Self::M10k32 => Some(2),
            Self::M10k48 => Some(3),
            Self::U64 | Self::I64 | Self::F64 | Self::Bcd64 | Self::M10k64 => Some(4),
            Self::Text => None,
        }
    }

    /// The smallest and largest value of an integer type.
    pub fn range(self) -> Option<(i128, i128)> {
        match self {
            Self::U8 => Some((0, 0xFF)),
            Self::I8 => Some((i8::MIN.into(), i8::MAX.into())),
            Self::U16 => Some((0, 0xFFFF)),
            Self::I16 => Some((i16::MIN.into(), i16::MAX.into())),
            Self::U32 => Some((0, u32::MAX.into())),
            Self::I32 => Some((i32::MIN.into(), i32::MAX.into())),
            Self::U64 => Some((0, u64::MAX.into())),
            Self::I64 => Some((i64::MIN.into(), i64::MAX.into())),
            Self::Bcd16 => Some((0, 9_999)),
            Self::Bcd32 => Some((0, 99_999_999)),
            Self::Bcd64 => Some((0, 9_999_999_999_999_999)),
            Self::M10k32 => Some((-99_999_999, 99_999_999)),
            Self::M10k48 => Some((-999_999_999_999, 999_999_999_999)),
            Self::M10k64 => Some((-9_999_999_999_999_999, 9_999_999_999_999_999)),
            Self::Bool | Self::F32 | Self::F64 | Self::Text => None,
        }
    }

    /// Number of bits of one value in its registers; 0 where the point defines it.
    pub fn bits(self) -> u32 {
        match self {
            Self::Bool => 1,
            Self::U8 | Self::I8 => 8,
            other => u32::from(other.registers().unwrap_or(0)) * 16,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    pub(super) fn is_bcd(self) -> bool {
        matches!(self, Self::Bcd16 | Self::Bcd32 | Self::Bcd64)
    }

    pub(super) fn is_m10k(self) -> bool {
        matches!(self, Self::M10k32 | Self::M10k48 | Self::M10k64)
    }
}

/// The value of a point.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i128),
    /// A finite floating-point number.
    Float(f64),
    /// A text, or a word of an enumeration.
    Text(String),
}

impl Value {
    /// The value as a number; `None` for bits and texts.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(whole) => Some(*whole as f64),
            Self::Float(number) => Some(*number),
            Self::Bool(_) | Self::Text(_) => None,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(on) => write!(f, "{on}"),
            Self::Int(whole) => write!(f, "{whole}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}
