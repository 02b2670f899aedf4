//! Readings: what the registers of an answer say of a point.
//!
//! Promise: a reading is a value of the declared type, a declared absence, or the reason why there is neither.

use super::table::{Device, Point};
use super::value::{SCALE_EXPONENT_MAX, Value};
use crate::clock;
use crate::event::Timestamp;
use std::time::Instant;

/// The result of reading a point.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    Good(Value),
    /// The device says that it has no value, in the way that its table declares.
    Absent,
    /// There is no valid value.
    Bad {
        /// Why the value is not valid.
        reason: String,
        /// The registers; empty if the device refused the request.
        raw: Vec<u16>,
    },
}

impl Reading {
    /// Whether it is neither a value nor a declared absence.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Bad { .. })
    }

    /// The value as a number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Good(value) => value.number(),
            _ => None,
        }
    }
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Time of day, for events.
    pub wall: Timestamp,
    /// For durations, such as the pace of counters.
    pub instant: Instant,
}

impl Moment {
    pub fn now() -> Self {
        Self { wall: Timestamp::from(clock::wall()), instant: clock::instant() }
    }
}

/// The registers of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Registers<'a> {
    /// Address of the first one.
    pub address: u16,
    /// Registers, or bits as 0 and 1.
    pub words: &'a [u16],
}

impl<'a> Registers<'a> {
    /// The registers of a point; empty if the answer does not have them.
    pub fn of(&self, point: &Point) -> &'a [u16] {
        let start = point.address.checked_sub(self.address).map(usize::from);
        start.and_then(|start| self.words.get(start..start + usize::from(point.count))).unwrap_or_default()
    }
}

/// Reads a point from an answer that covers its [`Device::extent`].
pub fn read(device: &Device, index: usize, registers: Registers<'_>) -> Reading {
    let point = &device.points[index];
    let own = registers.of(point);
    let bad = |reason: String| Reading::Bad { reason, raw: own.to_vec() };
    if point.encoding.is_absent(own, &point.absent) {
        return Reading::Absent;
    }
    let decoded = match scale_exponent(device, point, registers) {
        Err(Reading::Bad { reason, .. }) => return bad(reason),
        Err(other) => return other,
        Ok(None) => point.encoding.decode(own),
        Ok(Some(exponent)) => point.encoding.with_exponent(exponent).decode(own),
    };
    let mut sum = match decoded {
        Ok(value) => value,
        Err(reason) => return bad(reason),
    };
    for term in &point.terms {
        let other = &device.points[term.point];
        match read(device, term.point, registers) {
            Reading::Good(value) => sum = plus(&sum, &value, term.factor),
            Reading::Absent => return bad(format!("its part \"{}\" has no value", other.name)),
            Reading::Bad { reason, .. } => return bad(format!("its part \"{}\": {reason}", other.name)),
        }
    }
    Reading::Good(sum)
}

/// The exponent in the scale register of a point; `None` if it has none. The error is the reading that follows.
pub fn scale_exponent(device: &Device, point: &Point, registers: Registers<'_>) -> Result<Option<i32>, Reading> {
    let Some(scale) = point.scale_from.map(|index| &device.points[index]) else { return Ok(None) };
    let own = registers.of(scale);
    if scale.encoding.is_absent(own, &scale.absent) {
        return Err(Reading::Absent);
    }
    let bad = |reason: String| Reading::Bad { reason, raw: own.to_vec() };
    match scale.encoding.raw(own) {
        Some(exponent) if exponent.abs() <= SCALE_EXPONENT_MAX => Ok(Some(exponent as i32)),
        Some(exponent) => Err(bad(format!(
            "its scale, point \"{}\", is {exponent}; -{SCALE_EXPONENT_MAX} to {SCALE_EXPONENT_MAX} are powers of ten",
            scale.name
        ))),
        None => Err(bad(format!("its scale, point \"{}\", is no number", scale.name))),
    }
}

/// Adds a part. The sum is an integer if everything in it is.
fn plus(sum: &Value, part: &Value, factor: f64) -> Value {
    if let (Value::Int(sum), Value::Int(part), true) = (sum, part, factor.fract() == 0.0 && factor.abs() < 9e15) {
        return Value::Int(sum.saturating_add(part.saturating_mul(factor as i128)));
    }
    Value::Float(sum.number().unwrap_or(0.0) + part.number().unwrap_or(0.0) * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Document;
    use std::path::Path;

    fn device(text: &str) -> Device {
        Device::read(&Document::new(Path::new("t.toml"), text.into())).expect("good")
    }

    fn value(device: &Device, name: &str, words: &[u16]) -> Reading {
        let index = device.points.iter().position(|point| point.name == name).expect(name);
        read(device, index, Registers { address: 0, words })
    }

    const SUNSPEC: &str = r#"
[[point]]
name = "power"
address = 0
type = "i16"
scale_from = "power_sf"
absent = ["0x8000"]
[[point]]
name = "power_sf"
address = 1
type = "i16"
absent = ["0x8000"]
"#;

    #[test]
    fn a_scale_register_that_changes_by_the_hour_scales_the_value_of_its_moment() {
        let device = device(SUNSPEC);
        let power = |words: [u16; 2]| value(&device, "power", &words);
        assert_eq!(power([2305, (-1i16) as u16]), Reading::Good(Value::Float(230.5)));
        assert_eq!(power([2305, 0]), Reading::Good(Value::Int(2305)));
        assert_eq!(power([2305, 2]), Reading::Good(Value::Int(230_500)));
        assert_eq!(power([0x8000, 2]), Reading::Absent);
        assert_eq!(power([5, 0x8000]), Reading::Absent, "without a scale there is no value");
        let Reading::Bad { reason, raw } = power([5, 11]) else { panic!("no power of ten") };
        assert!(reason.contains("\"power_sf\", is 11") && raw == [5], "{reason}");
    }

    #[test]
    fn a_number_in_two_registers_is_one_value() {
        let device = device(
            "[[point]]\nname = \"kwh\"\naddress = 0\nscale = 0.1\nadd = [{ point = \"mwh\", factor = 1000 }]\n[[point]]\nname = \"mwh\"\naddress = 1\nabsent = [65535]\n",
        );
        assert_eq!(value(&device, "kwh", &[1234, 5]), Reading::Good(Value::Float(5123.4)));
        let Reading::Bad { reason, .. } = value(&device, "kwh", &[1234, 65_535]) else { panic!("half a number") };
        assert_eq!(reason, "its part \"mwh\" has no value");
    }
}
