//! Values: decoding of registers to values, and encoding of values to registers.
//!
//! Promise: [`Encoding::decode`] returns a value of the declared type or the reason why there is none;
//! it never guesses. [`Encoding::encode`] is its inverse where one exists.

use serde::Deserialize;
use std::collections::BTreeMap;

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
    /// Two characters per register.
    Text,
}

impl Type {
    /// Number of registers of one value; `None` where the point defines it.
    pub fn registers(self) -> Option<u16> {
        match self {
            Self::Bool | Self::U16 | Self::I16 | Self::Bcd16 => Some(1),
            Self::U32 | Self::I32 | Self::F32 | Self::Bcd32 => Some(2),
            Self::U64 | Self::I64 | Self::F64 | Self::Bcd64 => Some(4),
            Self::Text => None,
        }
    }

    /// The smallest and largest value of an integer type.
    pub fn range(self) -> Option<(i128, i128)> {
        match self {
            Self::U16 => Some((0, 0xFFFF)),
            Self::I16 => Some((i16::MIN.into(), i16::MAX.into())),
            Self::U32 => Some((0, u32::MAX.into())),
            Self::I32 => Some((i32::MIN.into(), i32::MAX.into())),
            Self::U64 => Some((0, u64::MAX.into())),
            Self::I64 => Some((i64::MIN.into(), i64::MAX.into())),
            Self::Bcd16 => Some((0, 9_999)),
            Self::Bcd32 => Some((0, 99_999_999)),
            Self::Bcd64 => Some((0, 9_999_999_999_999_999)),
            Self::Bool | Self::F32 | Self::F64 | Self::Text => None,
        }
    }

    fn is_bcd(self) -> bool {
        matches!(self, Self::Bcd16 | Self::Bcd32 | Self::Bcd64)
    }
}

/// The order of bytes: how two registers contain the bytes `ABCD`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Order {
    /// High word first, high byte first: the order of the Modbus standard.
    #[default]
    #[serde(rename = "ABCD")]
    Abcd,
    /// Low word first, high byte first.
    #[serde(rename = "CDAB")]
    Cdab,
    /// High word first, low byte first.
    #[serde(rename = "BADC")]
    Badc,
    /// Low word first, low byte first.
    #[serde(rename = "DCBA")]
    Dcba,
}

impl Order {
    fn has_low_word_first(self) -> bool {
        matches!(self, Self::Cdab | Self::Dcba)
    }

    fn has_low_byte_first(self) -> bool {
        matches!(self, Self::Badc | Self::Dcba)
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

/// How a value is encoded in its registers, and how it is scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    pub kind: Type,
    /// Order of bytes and words.
    pub order: Order,
    /// First and last bit of the value, if it is only a part of the number in the registers.
    pub field: Option<(u8, u8)>,
    pub scale: f64,
    /// Number that is added after scaling.
    pub offset: f64,
    /// Words of an enumeration, by number. If there are any, every other number is invalid.
    pub words: BTreeMap<i128, String>,
}

impl Encoding {
    /// An encoding of a type without bit field, scaling and words.
    pub fn of(kind: Type, order: Order) -> Self {
        Self { kind, order, field: None, scale: 1.0, offset: 0.0, words: BTreeMap::new() }
    }

    /// The unscaled number in the registers; `None` if the type is no integer type or the number is invalid.
    pub fn raw(&self, registers: &[u16]) -> Option<i128> {
        self.whole(registers).unwrap_or_default()
    }

    /// Decodes registers. The error starts in lower case and names the offending value.
    pub fn decode(&self, registers: &[u16]) -> Result<Value, String> {
        if self.kind == Type::Text {
            return self.text(registers).map(Value::Text);
        }
        if let Some(whole) = self.whole(registers)? {
            if !self.words.is_empty() {
                let word = self.words.get(&whole).cloned();
                return word
                    .map(Value::Text)
                    .ok_or_else(|| format!("{whole} is no value of the enumeration ({})", self.known_words()));
            }
            if self.kind == Type::Bool {
                return Ok(Value::Bool(whole != 0));
            }
            return Ok(self.scaled_whole(whole));
        }
        let bytes = self.bytes(registers);
        let number = match self.kind {
            // Converted through its shortest decimal form: 12.3 stays 12.3.
            Type::F32 => {
                let short = f32::from_be_bytes(array(&bytes)?);
                short.to_string().parse().unwrap_or_else(|_| f64::from(short))
            }
            _ => f64::from_be_bytes(array(&bytes)?),
        };
        if !number.is_finite() {
            return Err(format!("{number} is no number"));
        }
        let scaled = self.scaled(number);
        if scaled.is_finite() { Ok(Value::Float(scaled)) } else { Err(format!("{number} is too large to scale")) }
    }

    fn known_words(&self) -> String {
        const SHOWN: usize = 8;
        let mut shown: Vec<_> = self.words.keys().take(SHOWN).map(ToString::to_string).collect();
        if self.words.len() > SHOWN {
            shown.push("…".into());
        }
        shown.join(", ")
    }

    /// The integer in the registers; `Ok(None)` if the type is no integer type.
    fn whole(&self, registers: &[u16]) -> Result<Option<i128>, String> {
        let bytes = self.bytes(registers);
        let unsigned = bytes.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        let whole = match self.kind {
            Type::Bool | Type::U16 | Type::U32 | Type::U64 => unsigned as i128,
            Type::I16 => i16::from_be_bytes(array(&bytes)?).into(),
            Type::I32 => i32::from_be_bytes(array(&bytes)?).into(),
            Type::I64 => i64::from_be_bytes(array(&bytes)?).into(),
            kind if kind.is_bcd() => {
                let mut digits = 0;
                for byte in &bytes {
                    let (high, low) = (byte >> 4, byte & 0xF);
                    if high > 9 || low > 9 {
                        return Err(format!("0x{unsigned:0width$x} is no BCD number", width = bytes.len() * 2));
                    }
                    digits = digits * 100 + i128::from(high) * 10 + i128::from(low);
                }
                digits
            }
            _ => return Ok(None),
        };
        Ok(Some(match self.field {
            None => whole,
            Some((first, last)) => whole >> first & ((1 << (last - first + 1)) - 1),
        }))
    }

    /// The bytes in the order `ABCD`.
    fn bytes(&self, registers: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(registers.len() * 2);
        let mut push = |register: &u16| {
            bytes.extend_from_slice(&match self.order.has_low_byte_first() {
                true => register.to_le_bytes(),
                false => register.to_be_bytes(),
            });
        };
        // Texts have no words.
        if self.order.has_low_word_first() && self.kind != Type::Text {
            registers.iter().rev().for_each(&mut push);
        } else {
            registers.iter().for_each(&mut push);
        }
        bytes
    }

    fn text(&self, registers: &[u16]) -> Result<String, String> {
        let bytes = self.bytes(registers);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[..end]).map_err(|error| {
            let at = error.valid_up_to();
            format!("byte 0x{:02x} at {at} is no text", bytes[at])
        })?;
        match text.chars().find(|letter| letter.is_control()) {
            Some(letter) => Err(format!("{} is no text", letter.escape_unicode())),
            None => Ok(text.trim_end().to_owned()),
        }
    }

    fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.offset == 0.0
    }

    /// Scales an integer. The result is an integer if scale and offset are.
    pub fn scaled_whole(&self, whole: i128) -> Value {
        let exact = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i128);
        match (exact(self.scale), exact(self.offset)) {
            (Some(scale), Some(offset)) => Value::Int(whole.saturating_mul(scale).saturating_add(offset)),
            _ => Value::Float(self.scaled(whole as f64)),
        }
    }

    /// Scales a difference of two numbers.
    pub fn scaled_step(&self, step: i128) -> Value {
        Self { offset: 0.0, ..self.clone() }.scaled_whole(step)
    }

    fn scaled(&self, number: f64) -> f64 {
        if self.is_plain() {
            return number;
        }
        // 0.1 is no binary fraction. Dividing by 10 rounds only once: 3 · 0.1 becomes exactly 0.3.
        let inverse = (1.0 / self.scale).round();
        let is_fraction = self.scale.abs() < 1.0 && (inverse * self.scale - 1.0).abs() < 1e-12;
        let scaled = if is_fraction { number / inverse } else { number * self.scale };
        if self.offset == 0.0 { scaled } else { scaled + self.offset }
    }

    /// Encodes a value; the error says why the registers cannot represent it.
    pub fn encode(&self, value: &Value) -> Result<Vec<u16>, String> {
        if self.field.is_some() || self.kind == Type::Text {
            return Err("bits of a register and texts cannot be written".into());
        }
        let bytes = match (self.kind, value) {
            (Type::Bool, Value::Bool(on)) => vec![0, u8::from(*on)],
            (Type::F32, value) => {
                let number = self.unscaled(value)? as f32;
                if !number.is_finite() {
                    return Err(format!("{value} does not fit f32"));
                }
                number.to_be_bytes().to_vec()
            }
            (Type::F64, value) => self.unscaled(value)?.to_be_bytes().to_vec(),
            (kind, value) => {
                let whole = self.unscaled_whole(value)?;
                let (least, most) = kind.range().ok_or_else(|| format!("{value} is no value of a bit"))?;
                if !(least..=most).contains(&whole) {
                    return Err(format!("{value} is {whole} in the register, which has room for {least} to {most}"));
                }
                let coded = if kind.is_bcd() { bcd(whole) } else { whole };
                let wanted = usize::from(kind.registers().unwrap_or(1)) * 2;
                coded.to_be_bytes()[16 - wanted..].to_vec()
            }
        };
        let mut registers: Vec<u16> = bytes
            .chunks_exact(2)
            .map(|pair| match self.order.has_low_byte_first() && self.kind != Type::Bool {
                true => u16::from_le_bytes([pair[0], pair[1]]),
                false => u16::from_be_bytes([pair[0], pair[1]]),
            })
            .collect();
        if self.order.has_low_word_first() {
            registers.reverse();
        }
        Ok(registers)
    }

    fn unscaled(&self, value: &Value) -> Result<f64, String> {
        let number = value.number().ok_or_else(|| format!("\"{value}\" is no number"))?;
        let raw = (number - self.offset) / self.scale;
        if raw.is_finite() { Ok(raw) } else { Err(format!("{value} cannot be scaled")) }
    }

    fn unscaled_whole(&self, value: &Value) -> Result<i128, String> {
        if let Value::Text(word) = value {
            let known = self.words.iter().find(|(_, known)| *known == word);
            return known.map(|(number, _)| *number).ok_or_else(|| format!("\"{word}\" is no word of the enumeration"));
        }
        if let (Value::Int(whole), true) = (value, self.is_plain()) {
            return Ok(*whole);
        }
        let raw = self.unscaled(value)?;
        if (raw - raw.round()).abs() > 1e-6 || raw.abs() > 9e15 {
            return Err(format!("{value} is {raw} in the register, which is no whole number"));
        }
        Ok(raw.round() as i128)
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes where {N} are needed", bytes.len()))
}

fn bcd(whole: i128) -> i128 {
    let (mut rest, mut coded, mut shift) = (whole, 0, 0);
    while rest > 0 {
        coded |= (rest % 10) << shift;
        rest /= 10;
        shift += 4;
    }
    coded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDERS: [Order; 4] = [Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba];

    #[test]
    fn the_four_orders_are_what_they_are_called() {
        let letters = |order| {
            let registers = match order {
                Order::Abcd => [0x4142, 0x4344],
                Order::Cdab => [0x4344, 0x4142],
                Order::Badc => [0x4241, 0x4443],
                Order::Dcba => [0x4443, 0x4241],
            };
            Encoding::of(Type::U32, order).decode(&registers)
        };
        for order in ORDERS {
            assert_eq!(letters(order), Ok(Value::Int(0x4142_4344)), "{order:?}");
        }
        let text = |order, registers: &[u16]| Encoding::of(Type::Text, order).decode(registers);
        assert_eq!(text(Order::Abcd, &[0x4865, 0x6C6C, 0x6F00]), Ok(Value::Text("Hello".into())));
        assert_eq!(text(Order::Badc, &[0x6548, 0x6C6C, 0x006F]), Ok(Value::Text("Hello".into())));
    }

    #[test]
    fn what_does_not_fit_its_type_is_no_value() {
        let check = |kind, registers: &[u16], why: &str| {
            let reason = Encoding::of(kind, Order::Abcd).decode(registers).expect_err(why);
            assert!(reason.contains(why), "{reason}");
        };
        check(Type::Bcd16, &[0x12A4], "0x12a4 is no BCD");
        check(Type::F32, &[0x7FC0, 0], "is no number");
        check(Type::F64, &[0x7FF0, 0, 0, 0], "is no number");
        check(Type::Text, &[0x41FF], "0xff at 1");
        check(Type::Text, &[0x4107], "is no text");
        let mut word = Encoding::of(Type::U16, Order::Abcd);
        word.words = [(0, "off".to_owned()), (1, "running".to_owned())].into();
        assert_eq!(word.decode(&[1]), Ok(Value::Text("running".into())));
        assert_eq!(word.decode(&[9]), Err("9 is no value of the enumeration (0, 1)".into()));
    }

    #[test]
    fn scaling_keeps_decimals_and_whole_numbers() {
        let scaled = |scale, offset, registers: &[u16]| {
            Encoding { scale, offset, ..Encoding::of(Type::I16, Order::Abcd) }.decode(registers)
        };
        assert_eq!(scaled(0.1, 0.0, &[3]), Ok(Value::Float(0.3)));
        assert_eq!(scaled(0.01, -40.0, &[2512]), Ok(Value::Float(25.12 - 40.0)));
        assert_eq!(scaled(10.0, 5.0, &[0xFFFF]), Ok(Value::Int(-5)));
        let field = Encoding { field: Some((4, 7)), ..Encoding::of(Type::U16, Order::Abcd) };
        assert_eq!(field.decode(&[0xABCD]), Ok(Value::Int(0xC)));
        assert_eq!(Encoding::of(Type::F32, Order::Abcd).decode(&[0x4144, 0xCCCD]), Ok(Value::Float(12.3)));
        assert_eq!(Encoding::of(Type::U64, Order::Abcd).decode(&[0xFFFF; 4]), Ok(Value::Int(u64::MAX.into())));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(kind in 0usize..9, order in 0usize..4, seed: i128) {
            let kind = [
                Type::U16, Type::I16, Type::U32, Type::I32, Type::U64, Type::I64, Type::Bcd16, Type::Bcd32, Type::Bcd64,
            ][kind];
            let (least, most) = kind.range().expect("whole numbers");
            let value = Value::Int(least + seed.rem_euclid(most - least + 1));
            let encoding = Encoding::of(kind, ORDERS[order]);
            let registers = encoding.encode(&value).expect("fits");
            prop_assert_eq!(registers.len(), usize::from(kind.registers().expect("known")));
            prop_assert_eq!(encoding.decode(&registers), Ok(value));
        }

        #[test]
        fn floats_come_back_exactly(order in 0usize..4, short: f32, long: f64) {
            for (kind, number) in [(Type::F32, short.to_string().parse().unwrap_or(f64::NAN)), (Type::F64, long)] {
                let encoding = Encoding::of(kind, ORDERS[order]);
                match number.is_finite() {
                    true => {
                        let registers = encoding.encode(&Value::Float(number)).expect("fits");
                        prop_assert_eq!(encoding.decode(&registers), Ok(Value::Float(number)));
                    }
                    false => prop_assert!(encoding.encode(&Value::Float(number)).is_err()),
                }
            }
        }

        #[test]
        fn any_registers_are_a_value_or_a_reason(kind in 0usize..13, order in 0usize..4, registers in prop::collection::vec(any::<u16>(), 0..6)) {
            let kind = [
                Type::Bool, Type::U16, Type::I16, Type::U32, Type::I32, Type::U64, Type::I64, Type::F32, Type::F64,
                Type::Bcd16, Type::Bcd32, Type::Bcd64, Type::Text,
            ][kind];
            match Encoding::of(kind, ORDERS[order]).decode(&registers) {
                Ok(value) => prop_assert!(value.number().is_none_or(f64::is_finite)),
                Err(reason) => prop_assert!(!reason.is_empty()),
            }
        }
    }
}
