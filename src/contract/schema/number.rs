//! Numbers of JSON, compared and divided exactly: `0.3` is a multiple of `0.1`, `1` and `1.0` are one.

use serde_json::Number;
use std::cmp::Ordering;
use std::fmt;

/// How two numbers compare.
pub(super) fn compare(a: &Number, b: &Number) -> Ordering {
    // Rounding never changes an order to its opposite: only what seems equal is looked at again.
    match float(a).total_cmp(&float(b)) {
        Ordering::Equal if a.is_f64() && b.is_f64() => Ordering::Equal,
        Ordering::Equal => Decimal::from(a).compare(&Decimal::from(b)),
        unequal => unequal,
    }
}

/// Whether a number has no fraction.
pub(super) fn is_whole(number: &Number) -> bool {
    !number.is_f64() || float(number).fract() == 0.0
}

/// Whether a number is a whole number of times `step`, which is above 0.
pub(super) fn is_multiple(number: &Number, step: &Number) -> bool {
    match (number.as_u64(), step.as_u64()) {
        (Some(number), Some(step)) => number.is_multiple_of(step),
        _ => Decimal::from(number).is_multiple_of(&Decimal::from(step)),
    }
}

/// The number, where it is whole and not negative; the largest there is for what is larger.
pub(super) fn count(number: &Number) -> Option<usize> {
    match number.as_u64() {
        Some(count) => Some(usize::try_from(count).unwrap_or(usize::MAX)),
        None => (is_whole(number) && float(number) >= 0.0).then_some(float(number) as usize),
    }
}

fn float(number: &Number) -> f64 {
    // The other 0 would be less than this one.
    number.as_f64().unwrap_or_default() + 0.0
}

/// A number as `digits` × 10^`exponent`, with no 0 at the end of the digits: equal numbers are written alike.
///
/// The digits of what JSON is read into (`u64`, `i64`, and the shortest form of `f64`) fit into 64 bits and a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    is_negative: bool,
    digits: u64,
    exponent: i32,
}

impl Decimal {
    fn new(is_negative: bool, mut digits: u64, mut exponent: i32) -> Self {
        if digits == 0 {
            return Self { is_negative: false, digits: 0, exponent: 0 };
        }
        while digits.is_multiple_of(10) {
            digits /= 10;
            exponent += 1;
        }
        Self { is_negative, digits, exponent }
    }

    /// How it compares.
    fn compare(self, other: &Self) -> Ordering {
        let sign = |number: &Self| if number.digits == 0 { 0 } else { 1 - 2 * i32::from(number.is_negative) };
        match sign(&self).cmp(&sign(other)) {
            Ordering::Equal if self.is_negative => other.compare_size(&self),
            Ordering::Equal => self.compare_size(other),
            unequal => unequal,
        }
    }

    /// How it compares without the signs.
    fn compare_size(&self, other: &Self) -> Ordering {
        // Where the first digit stands decides; a difference of less than 20 places fits into 128 bits.
        let top = |number: &Self| {
            number.digits.checked_ilog10().map_or(i64::MIN, |log| i64::from(log) + i64::from(number.exponent))
        };
        top(self).cmp(&top(other)).then_with(|| {
            let low = self.exponent.min(other.exponent);
            let scaled = |number: &Self| u128::from(number.digits) * 10_u128.pow(number.exponent.abs_diff(low));
            if self.digits == 0 { Ordering::Equal } else { scaled(self).cmp(&scaled(other)) }
        })
    }

    /// Whether it is a whole number of times `step`, which is above 0.
    fn is_multiple_of(self, step: &Self) -> bool {
        if self.digits == 0 {
            return true;
        }
        match u32::try_from(i64::from(self.exponent) - i64::from(step.exponent)) {
            // digits × 10^more, modulo the digits of the step.
            Ok(more) => {
                let modulus = u128::from(step.digits);
                let (mut rest, mut power, mut more) = (u128::from(self.digits) % modulus, 10 % modulus, more);
                while more > 0 {
                    if more & 1 == 1 {
                        rest = rest * power % modulus;
                    }
                    power = power * power % modulus;
                    more >>= 1;
                }
                rest == 0
            }
            // The step has a coarser last digit: it would have to divide digits that do not end in 0.
            Err(_) => {
                let less = step.exponent.abs_diff(self.exponent);
                let whole = 10_u64.checked_pow(less).and_then(|scale| step.digits.checked_mul(scale));
                whole.is_some_and(|step| self.digits.is_multiple_of(step))
            }
        }
    }
}

impl From<&Number> for Decimal {
    fn from(number: &Number) -> Self {
        if let Some(number) = number.as_u64() {
            return Self::new(false, number, 0);
        }
        if let Some(number) = number.as_i64() {
            return Self::new(number < 0, number.unsigned_abs(), 0);
        }
        // The shortest text that reads back as the same number has at most 17 digits.
        let written = format!("{:e}", number.as_f64().unwrap_or_default());
        let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
        let fraction = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len() as i32);
        let bare = digits.chars().filter(char::is_ascii_digit).collect::<String>();
        let exponent = exponent.parse::<i32>().unwrap_or(0) - fraction;
        Self::new(digits.starts_with('-'), bare.parse().unwrap_or(0), exponent)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_negative { "-" } else { "" };
        match self.exponent {
            0 => write!(f, "{sign}{}", self.digits),
            1..=20 => write!(f, "{sign}{}{:0width$}", self.digits, 0, width = self.exponent as usize),
            -20..=-1 => {
                let places = self.exponent.unsigned_abs() as usize;
                let digits = format!("{:0width$}", self.digits, width = places + 1);
                let (whole, fraction) = digits.split_at(digits.len() - places);
                write!(f, "{sign}{whole}.{fraction}")
            }
            _ => write!(f, "{sign}{}e{}", self.digits, self.exponent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> Number {
        serde_json::from_str(text).expect("a number")
    }

    #[test]
    fn they_are_exact_where_floating_point_is_not() {
        for (value, step, is) in [
            ("0.3", "0.1", true),
            ("0.0075", "0.0001", true),
            ("0.00751", "0.0001", false),
            ("1e308", "0.5", true),
            ("1e308", "0.123456789", false),
            ("9007199254740993", "2", false),
            ("18446744073709551615", "5", true),
            ("-4.5", "1.5", true),
            ("-4", "2", true),
            ("7", "100", false),
            ("500", "100", true),
            ("0", "3", true),
            ("5", "1e300", false),
        ] {
            assert_eq!(is_multiple(&number(value), &number(step)), is, "{value} of {step}");
        }
        for (a, b, order) in [
            ("1.0", "1", Ordering::Equal),
            ("-0.0", "0", Ordering::Equal),
            ("-0.0", "0.0", Ordering::Equal),
            ("18446744073709551615", "1.8446744073709552e19", Ordering::Less),
            ("9007199254740993", "9007199254740992.0", Ordering::Greater),
            ("-9007199254740993", "-9007199254740992", Ordering::Less),
        ] {
            assert_eq!(compare(&number(a), &number(b)), order, "{a} and {b}");
        }
        assert!(!is_whole(&number("1.5")) && is_whole(&number("1e300")) && is_whole(&number("-2")));
        let counts = ["3e2", "-1", "0.5", "1e300"].map(|text| count(&number(text)));
        assert_eq!(counts, [Some(300), None, None, Some(usize::MAX)]);
    }

    proptest! {
        #[test]
        fn they_compare_as_floating_point_does(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(a.is_finite() && b.is_finite());
            let of = |float| Number::from_f64(float).expect("finite");
            prop_assert_eq!(Some(compare(&of(a), &of(b))), a.partial_cmp(&b));
            prop_assert_eq!(Some(Decimal::from(&of(a)).compare(&Decimal::from(&of(b)))), a.partial_cmp(&b));
        }

        #[test]
        fn they_compare_as_integers_do(a in any::<i64>(), less in 0..3_i64) {
            let b = a.saturating_sub(less);
            prop_assert_eq!(compare(&a.into(), &b.into()), a.cmp(&b));
        }

        #[test]
        fn what_is_written_reads_back(float in any::<f64>()) {
            prop_assume!(float.is_finite());
            let written = Decimal::from(&Number::from_f64(float).expect("finite")).to_string();
            prop_assert_eq!(written.parse::<f64>().ok(), Some(float));
        }
    }
}
