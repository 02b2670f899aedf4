//! The encoding of a value in its registers, with its scale.

use super::absent::Absent;
use super::kind::{Type, Value};
use super::order::Order;
use super::text::TextFormat;
use std::collections::BTreeMap;

/// Largest exponent of a scale register, in both directions: the bound of SunSpec for `sunssf`.
pub const SCALE_EXPONENT_MAX: i128 = 10;

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
    /// Character set and padding of a text.
    pub text: TextFormat,
}

impl Encoding {
    /// An encoding of a type without bit field, scaling and words.
    pub fn of(kind: Type, order: Order) -> Self {
        Self { kind, order, field: None, scale: 1.0, offset: 0.0, words: BTreeMap::new(), text: TextFormat::default() }
    }

    /// The same encoding with a scale that is larger by this power of ten.
    pub fn with_exponent(&self, exponent: i32) -> Self {
        let power = 10f64.powi(exponent.abs());
        Self { scale: if exponent < 0 { self.scale / power } else { self.scale * power }, ..self.clone() }
    }

    /// The unscaled number in the registers; `None` if the type is no integer type or the number is invalid.
    pub fn raw(&self, registers: &[u16]) -> Option<i128> {
        self.whole(registers).unwrap_or_default()
    }

    /// Whether the registers contain one of these absences.
    pub fn is_absent(&self, registers: &[u16], absent: &[Absent]) -> bool {
        if absent.is_empty() {
            return false;
        }
        let bits = || {
            let all = registers.len() <= 4;
            let bytes = all.then(|| self.order.sorted(registers))?;
            let number = bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            Some(match (self.field, self.kind) {
                (Some((first, last)), _) => number >> first & (u64::MAX >> (63 - (last - first))),
                (None, Type::U8 | Type::I8) => number & 0xFF,
                _ => number,
            })
        };
        let value = match self.kind {
            Type::F32 | Type::F64 => self.float(registers).ok().map(Value::Float),
            Type::Text => self.text(registers).ok().map(Value::Text),
            _ => None,
        };
        let (bits, whole) = (bits(), self.raw(registers));
        absent.iter().any(|absent| absent.is(bits, whole, value.as_ref()))
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
        let number = self.float(registers)?;
        if !number.is_finite() {
            return Err(format!("{number} is no number"));
        }
        let scaled = self.scaled(number);
        if scaled.is_finite() { Ok(Value::Float(scaled)) } else { Err(format!("{number} is too large to scale")) }
    }

    /// The unscaled number of a floating-point type.
    fn float(&self, registers: &[u16]) -> Result<f64, String> {
        let bytes = self.order.sorted(registers);
        Ok(match self.kind {
            // Converted through its shortest decimal form: 12.3 stays 12.3.
            Type::F32 => {
                let short = f32::from_be_bytes(array(&bytes)?);
                short.to_string().parse().unwrap_or_else(|_| f64::from(short))
            }
            _ => f64::from_be_bytes(array(&bytes)?),
        })
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
        let bytes = self.order.sorted(registers);
        let unsigned = bytes.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        let whole = match self.kind {
            Type::Bool | Type::U16 | Type::U32 | Type::U64 => unsigned as i128,
            Type::U8 => (unsigned & 0xFF) as i128,
            Type::I8 => i8::from_be_bytes([(unsigned & 0xFF) as u8]).into(),
            Type::I16 => i16::from_be_bytes(array(&bytes)?).into(),
            Type::I32 => i32::from_be_bytes(array(&bytes)?).into(),
            Type::I64 => i64::from_be_bytes(array(&bytes)?).into(),
            kind if kind.is_m10k() => {
                let mut number = 0;
                for pair in bytes.chunks_exact(2) {
                    let digits = i128::from(i16::from_be_bytes([pair[0], pair[1]]));
                    if digits.abs() > 9_999 {
                        return Err(format!("{digits} in a register is more than four decimal digits"));
                    }
                    number = number * 10_000 + digits;
                }
                number
            }
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

    fn text(&self, registers: &[u16]) -> Result<String, String> {
        // Texts have bytes, and no words.
        let order = if self.order.has_low_byte_first() { Order::Badc } else { Order::Abcd };
        self.text.decode(&order.sorted(registers))
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

    /// Whether the value is only a part of its register, or a text: then it cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.field.is_some() || matches!(self.kind, Type::Text | Type::U8 | Type::I8) || self.kind.is_m10k()
    }

    /// Encodes a value; the error says why the registers cannot represent it.
    pub fn encode(&self, value: &Value) -> Result<Vec<u16>, String> {
        if self.is_read_only() {
            return Err("parts of a register, texts and numbers in decimal registers cannot be written".into());
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
        let order = if self.kind == Type::Bool { Order::Abcd } else { self.order };
        Ok(order.registers(&bytes))
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
    use super::super::absent::Notation;
    use super::*;
    use proptest::prelude::*;

    const ORDERS: [Order; 4] = [Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba];

    #[test]
    fn the_four_orders_are_what_they_are_called() {
        for (order, registers) in [
            (Order::Abcd, [0x4142, 0x4344]),
            (Order::Cdab, [0x4344, 0x4142]),
            (Order::Badc, [0x4241, 0x4443]),
            (Order::Dcba, [0x4443, 0x4241]),
        ] {
            assert_eq!(Encoding::of(Type::U32, order).decode(&registers), Ok(Value::Int(0x4142_4344)), "{order:?}");
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
        check(Type::M10k32, &[1, 10_000], "10000 in a register is more than four decimal digits");
        check(Type::Text, &[0x4107], "U+0007 is no letter");
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

    #[test]
    fn small_and_decimal_registers_are_read() {
        let read = |kind, registers: &[u16]| Encoding::of(kind, Order::Abcd).decode(registers);
        assert_eq!(read(Type::U8, &[0x12FE]), Ok(Value::Int(254)));
        assert_eq!(read(Type::I8, &[0x00FE]), Ok(Value::Int(-2)));
        assert_eq!(read(Type::M10k32, &[12, 3456]), Ok(Value::Int(123_456)));
        assert_eq!(read(Type::M10k64, &[0, 1, 2, 3]), Ok(Value::Int(100_020_003)));
        assert_eq!(read(Type::M10k32, &[(-12i16) as u16, (-34i16) as u16]), Ok(Value::Int(-120_034)));
        assert_eq!(Encoding::of(Type::M10k48, Order::Cdab).decode(&[3, 2, 1]), Ok(Value::Int(100_020_003)));
        let scaled = |exponent| Encoding::of(Type::I16, Order::Abcd).with_exponent(exponent).decode(&[2305]);
        assert_eq!(
            (scaled(-1), scaled(0), scaled(2)),
            (Ok(Value::Float(230.5)), Ok(Value::Int(2305)), Ok(Value::Int(230_500)))
        );
        assert_eq!(scaled(-10), Ok(Value::Float(2305e-10)));
    }

    #[test]
    fn every_type_can_say_that_it_has_no_value() {
        let is_absent = |kind: Type, written: Notation, registers: &[u16]| {
            let absent = Absent::new(&written, kind, kind.bits(), kind.range()).expect("possible");
            Encoding::of(kind, Order::Abcd).is_absent(registers, &[absent])
        };
        let text = |text: &str| Notation::Text(text.into());
        let (whole, float) = (Notation::Whole, Notation::Float);
        for (kind, written, registers) in [
            (Type::U16, whole(0xFFFF), &[0xFFFF][..]),
            (Type::U16, text("65535"), &[0xFFFF]),
            (Type::I16, whole(-32_768), &[0x8000]),
            (Type::I16, text("0x8000"), &[0x8000]),
            (Type::U8, text("0xFF"), &[0x12FF]),
            (Type::I8, whole(-128), &[0x80]),
            (Type::U32, text("0xFFFFFFFF"), &[0xFFFF; 2]),
            (Type::I32, text("0x80000000"), &[0x8000, 0]),
            (Type::U64, whole(u64::MAX.into()), &[0xFFFF; 4]),
            (Type::U64, text("18446744073709551615"), &[0xFFFF; 4]),
            (Type::U64, text("0xFFFFFFFFFFFFFFFF"), &[0xFFFF; 4]),
            (Type::I64, whole(i64::MIN.into()), &[0x8000, 0, 0, 0]),
            (Type::F32, float(-9999.0), &[0xC61C, 0x3C00]),
            (Type::F32, whole(-9999), &[0xC61C, 0x3C00]),
            (Type::F32, float(f64::NAN), &[0x7FC0, 0]),
            (Type::F32, text("0x7FC00000"), &[0x7FC0, 0]),
            (Type::F64, text("nan"), &[0x7FF8, 0, 0, 0]),
            (Type::Bcd16, text("0xFFFF"), &[0xFFFF]),
            (Type::Bcd32, whole(99_999_999), &[0x9999, 0x9999]),
            (Type::M10k32, text("0x80008000"), &[0x8000, 0x8000]),
            (Type::Text, text("---"), &[0x2D2D, 0x2D00]),
        ] {
            assert!(is_absent(kind, written.clone(), registers), "{kind:?} {written}");
            let others = vec![0x3131; registers.len()];
            assert!(!is_absent(kind, written.clone(), &others), "{kind:?} {written}");
        }
        let refused = |kind: Type, written: Notation, wanted: &str| {
            let said = Absent::new(&written, kind, kind.bits(), kind.range()).expect_err(wanted);
            assert!(said.contains(wanted), "{said}");
        };
        refused(Type::I16, whole(0x8000), "write \"0x8000\" for the bits, or -32768");
        refused(Type::U16, whole(-1), "-1 is impossible; the type holds 0 to 65535");
        refused(Type::U16, text("0x10000"), "no pattern of 16 bits; expected one such as \"0xFFFF\"");
        refused(Type::U16, text("none"), "\"none\" is no number");
        refused(Type::Text, whole(0), "write \"0\"");
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
        fn any_registers_are_a_value_or_a_reason(kind in 0usize..18, order in 0usize..4, registers in prop::collection::vec(any::<u16>(), 0..6)) {
            let kind = [
                Type::Bool, Type::U16, Type::I16, Type::U32, Type::I32, Type::U64, Type::I64, Type::F32, Type::F64,
                Type::Bcd16, Type::Bcd32, Type::Bcd64, Type::Text, Type::U8, Type::I8, Type::M10k32, Type::M10k48, Type::M10k64,
            ][kind];
            match Encoding::of(kind, ORDERS[order]).decode(&registers) {
                Ok(value) => prop_assert!(value.number().is_none_or(f64::is_finite)),
                Err(reason) => prop_assert!(!reason.is_empty()),
            }
        }
    }
}
