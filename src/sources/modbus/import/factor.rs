//! Scales of a list: factors, divisors, decimal places, and units with a number in front.

/// Whether a factor multiplies or divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ScaleMeaning {
    /// value = number × factor
    Multiply,
    /// value = number ÷ factor
    Divide,
}

/// The decimal mark of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DecimalMark {
    /// 0,1 is a tenth, and 1.000 a thousand.
    Comma,
    /// 0.1 is a tenth, and 1,000 a thousand.
    Point,
}

/// What a number says of the decimal mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkOf {
    Nothing,
    /// Its separator can only be the decimal mark, or its separators tell which is.
    Plain(DecimalMark),
    /// It may be a number with three decimals, or thousands: `1,000`.
    Open,
}

/// A factor as it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Factor {
    /// A number, which may multiply or divide: `10`, `x10`.
    Number(f64),
    /// What it does is plain: `/10`, `1/10`, `10^-1`.
    Plain(f64),
}

/// What a number says of the decimal mark of its list.
pub(super) fn mark_of(number: &str) -> MarkOf {
    let mark = |separator| if separator == b',' { DecimalMark::Comma } else { DecimalMark::Point };
    let number = number.as_bytes();
    let separators: Vec<usize> = (0..number.len()).filter(|at| matches!(number[*at], b',' | b'.')).collect();
    match separators[..] {
        [] => MarkOf::Nothing,
        [only] => {
            let (before, after) = (&number[..only], &number[only + 1..]);
            let is_group = (1..=3).contains(&before.len()) && before[0] != b'0' && after.len() == 3;
            if is_group { MarkOf::Open } else { MarkOf::Plain(mark(number[only])) }
        }
        // 1,234.5, or 1,234,567.
        [.., before, last] if number[before] != number[last] => MarkOf::Plain(mark(number[last])),
        [.., last] => MarkOf::Plain(if number[last] == b',' { DecimalMark::Point } else { DecimalMark::Comma }),
    }
}

/// Parses a number with a decimal point or comma; `1,234.5` and `1.234,5` have separators of thousands, and `1,000` has one
/// where the decimal mark of the list is the point.
pub(super) fn decimal(text: &str, mark: Option<DecimalMark>) -> Option<f64> {
    let plain: String = text.trim().replace(['\u{2212}', '–'], "-").replace([' ', '\u{a0}'], "");
    let unsigned = plain.trim_start_matches(['-', '+']);
    if mark_of(unsigned) == MarkOf::Open
        && let Some(mark) = mark
        && unsigned.contains(',') != (mark == DecimalMark::Comma)
    {
        return plain.replace(['.', ','], "").parse().ok();
    }
    let (dots, commas) = (plain.matches('.').count(), plain.matches(',').count());
    let plain = match (dots, commas) {
        (1.., 1..) if plain.rfind(',') > plain.rfind('.') => plain.replace('.', "").replace(',', "."),
        (1.., 1..) => plain.replace(',', ""),
        (2.., 0) => plain.replace('.', ""),
        (0, 2..) => plain.replace(',', ""),
        _ => plain.replace(',', "."),
    };
    plain.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Parses a factor; `None` if the cell is empty. The error says why it is none.
pub(super) fn factor(text: &str, mark: Option<DecimalMark>) -> Result<Option<Factor>, String> {
    let plain = text.trim();
    if plain.is_empty() || matches!(plain, "-" | "--" | "n/a" | "N/A" | "—") {
        return Ok(None);
    }
    let wrong = || format!("scale \"{text}\" is no number");
    let decimal = |text: &str| decimal(text, mark);
    let good = |number: f64| if number != 0.0 && number.is_finite() { Ok(number) } else { Err(wrong()) };
    if let Some(rest) = plain.strip_prefix(['x', 'X', '*', '×']) {
        return good(decimal(rest).ok_or_else(wrong)?).map(|number| Some(Factor::Number(number)));
    }
    if let Some((over, under)) = plain.split_once(['/', '÷', ':']) {
        let over = if over.trim().is_empty() { 1.0 } else { decimal(over).ok_or_else(wrong)? };
        return good(over / decimal(under).ok_or_else(wrong)?).map(|number| Some(Factor::Plain(number)));
    }
    if let Some((base, exponent)) = plain.split_once('^') {
        let (base, exponent) = (decimal(base).ok_or_else(wrong)?, decimal(exponent).ok_or_else(wrong)?);
        return good(base.powf(exponent)).map(|number| Some(Factor::Plain(rounded(number))));
    }
    good(decimal(plain).ok_or_else(wrong)?).map(|number| Some(Factor::Number(number)))
}

/// A power of ten without the noise of its calculation.
fn rounded(number: f64) -> f64 {
    format!("{number:e}").parse::<f64>().map_or(number, |number| format!("{number:.12}").parse().unwrap_or(number))
}

/// What a factor that is larger than 1 does to an integer is not plain. Returns the question, if the list leaves it open.
pub(super) fn question(head: &str, factors: &[f64]) -> Option<String> {
    let largest = factors.iter().copied().filter(|factor| *factor > 1.0).fold(0.0, f64::max);
    (largest > 1.0).then(|| {
        format!(
            "does \"{head}\" multiply or divide? It has factors such as {largest}, which make 2300 {} or {}. Say it: --scale multiply, or --scale divide",
            2300.0 * largest,
            2300.0 / largest
        )
    })
}

/// The factor of one number that a column of divisors or of decimal places gives.
pub(super) fn inverse(number: f64) -> f64 {
    let inverse = 1.0 / number;
    // 1/10 is written as 0.1.
    format!("{inverse:.12}").parse().ok().filter(|short: &f64| (short * number - 1.0).abs() < 1e-15).unwrap_or(inverse)
}

/// The decimal places of a cell: a number, or a format of SMA (`FIX2`; `TEMP` has one place, other words none).
pub(super) fn decimals(text: &str) -> Option<i32> {
    let plain = text.trim().to_uppercase();
    match plain.strip_prefix("FIX") {
        Some(places) => places.parse().ok(),
        None if plain == "TEMP" => Some(1),
        None if is_format(&plain) => Some(0),
        None => plain.parse().ok(),
    }
    .filter(|places| (-9..=9).contains(places))
}

/// Whether a cell is one of SMA's formats.
pub(super) fn is_format(text: &str) -> bool {
    let plain = text.trim().to_uppercase();
    plain.strip_prefix("FIX").is_some_and(|places| places.parse::<u8>().is_ok())
        || matches!(
            plain.as_str(),
            "RAW" | "ENUM" | "TAGLIST" | "DT" | "DURATION" | "FW" | "UTF8" | "TEMP" | "REV" | "IP4" | "HEX"
        )
}

/// Whether a unit seems to hold a scale in another form: `V/10`, `kWh*0.1`, `10^-2 A`.
pub(super) fn has_scale_within(unit: &str) -> bool {
    let is_number = |text: &str| decimal(text.trim(), None).is_some();
    let behind = unit
        .rsplit_once(['/', '*', '×', '÷'])
        .is_some_and(|(before, after)| before.chars().any(char::is_alphabetic) && is_number(after));
    behind || (unit.contains('^') && unit.trim_start().starts_with("10^"))
}

/// Splits a unit with a number in front, such as `0.1V` or `10 W`: the number is a scale.
pub(super) fn unit_with_scale(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && !matches!(letter, '.' | ','))?;
    let (number, unit) = (decimal(&text[..end], None)?, text[end..].trim());
    let begins_well =
        unit.chars().next().is_some_and(|letter| letter.is_alphabetic() || matches!(letter, '°' | '%' | '℃'));
    (begins_well && number > 0.0).then_some((number, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_read_as_vendors_write_them() {
        use Factor::{Number, Plain};
        for (text, wanted) in [
            ("0.1", Number(0.1)),
            ("0,1", Number(0.1)),
            ("10", Number(10.0)),
            ("x0.1", Number(0.1)),
            ("×10", Number(10.0)),
            ("/10", Plain(0.1)),
            ("1/10", Plain(0.1)),
            ("10^-2", Plain(0.01)),
            ("1E-3", Number(0.001)),
        ] {
            assert_eq!(factor(text, None), Ok(Some(wanted)), "{text}");
        }
        assert_eq!((factor("", None), factor("-", None)), (Ok(None), Ok(None)));
        assert!(["much", "0", "/0"].into_iter().all(|text| factor(text, None).is_err()));
        let numbers = ["1.234,5", "1,234.5", "−3"].map(|text| decimal(text, None));
        assert_eq!(numbers, [Some(1234.5), Some(1234.5), Some(-3.0)]);
        assert_eq!((inverse(10.0), inverse(100.0), inverse(1000.0), inverse(3600.0) * 3600.0), (0.1, 0.01, 0.001, 1.0));
    }

    #[test]
    fn a_number_with_one_separator_is_read_by_the_mark_of_its_list() {
        use DecimalMark::{Comma, Point};
        for (text, wanted) in [
            ("1,000", MarkOf::Open),
            ("12.500", MarkOf::Open),
            ("0,001", MarkOf::Plain(Comma)),
            ("0.1", MarkOf::Plain(Point)),
            ("1234.500", MarkOf::Plain(Point)),
            ("1,234.5", MarkOf::Plain(Point)),
            ("1.234.567", MarkOf::Plain(Comma)),
            ("10", MarkOf::Nothing),
        ] {
            assert_eq!(mark_of(text), wanted, "{text}");
        }
        assert_eq!((decimal("1,000", Some(Comma)), decimal("1,000", Some(Point))), (Some(1.0), Some(1000.0)));
        assert_eq!((decimal("-1.500", Some(Comma)), decimal("-1.500", Some(Point))), (Some(-1500.0), Some(-1.5)));
        assert_eq!(decimal("0.1", Some(Comma)), Some(0.1), "it can be nothing else");
    }

    #[test]
    fn a_scale_within_a_unit_is_noticed() {
        assert!(["V/10", "kWh*0.1", "10^-2 A"].into_iter().all(has_scale_within));
        assert!(!["V", "m3/h", "kWh/100km", "1/min", "W/m²", "%"].into_iter().any(has_scale_within));
    }

    #[test]
    fn decimal_places_are_numbers_or_formats() {
        let places: Vec<_> = ["2", "FIX0", "FIX3", "TEMP", "ENUM", "x"].map(decimals).into();
        assert_eq!(places, [Some(2), Some(0), Some(3), Some(1), Some(0), None]);
    }

    #[test]
    fn a_factor_that_may_divide_is_asked_about() {
        assert_eq!(question("Scalefactor", &[1.0, 0.1, 0.01]), None);
        let question = question("Scalefactor", &[1.0, 10.0]).expect("open");
        assert!(question.contains("2300 23000 or 230.") && question.contains("--scale divide"), "{question}");
    }

    #[test]
    fn a_unit_with_a_number_in_front_is_a_scale() {
        assert_eq!(unit_with_scale("0.1V"), Some((0.1, "V")));
        assert_eq!(unit_with_scale("10 W"), Some((10.0, "W")));
        assert_eq!(unit_with_scale("0,01 °C"), Some((0.01, "°C")));
        for text in ["V", "", "0=Off;1=On", "m3", "1", "0-100%"] {
            assert_eq!(unit_with_scale(text), None, "{text}");
        }
    }
}
