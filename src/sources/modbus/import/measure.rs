//! What the number in a register means: scale, offset, unit, words and absence.

use super::address::Written;
use super::columns::Meaning;
use super::draft::{Draft, Rules, ScaleReference};
use super::factor::{self, Factor, ScaleMeaning};
use super::input::Row;
use super::types::Class;
use super::words::words;

impl Rules<'_> {
    /// Scale, offset, unit, words and absence.
    pub(super) fn measure(&self, row: &Row, draft: &mut Draft) -> Result<(), String> {
        let is_number = !matches!(draft.class, Class::Bool | Class::Text);
        let unit = match self.cell(row, Meaning::Unit) {
            "-" | "--" | "—" | "/" | "n/a" | "N/A" | "none" | "None" | "NA" => "",
            unit => unit,
        };
        if is_number {
            draft.values = self.values(row).unwrap_or_default();
            draft.scale = self.scale(row, draft)?;
            let offset = self.cell(row, Meaning::Offset);
            if !matches!(offset, "" | "-") {
                draft.offset =
                    factor::decimal(offset, self.decimal).ok_or_else(|| format!("offset \"{offset}\" is no number"))?;
            }
            self.formula(row, draft)?;
            let absent = self.cell(row, Meaning::Absent);
            draft.absent = (!matches!(absent, "" | "-")).then(|| absent.to_owned());
        }
        let is_words = words(unit).is_some();
        draft.unit = match factor::unit_with_scale(unit) {
            _ if is_words => String::new(),
            Some((number, unit)) if is_number => {
                if self.has_scale_cell(row) && number != 1.0 && draft.scale != number {
                    return Err(format!(
                        "its unit \"{}\" says another scale than its columns, {}; leave one out with --column \"…=ignore\"",
                        self.cell(row, Meaning::Unit),
                        draft.scale
                    ));
                }
                draft.scale = if number == 1.0 { draft.scale } else { number };
                unit.to_owned()
            }
            None if is_number && factor::has_scale_within(unit) => {
                return Err(format!("its unit \"{unit}\" seems to hold a scale; write that into a column of its own"));
            }
            _ => unit.to_owned(),
        };
        if !draft.values.is_empty() && (draft.scale != 1.0 || draft.offset != 0.0) {
            draft.values.clear();
        }
        Ok(())
    }

    fn has_scale_cell(&self, row: &Row) -> bool {
        [Meaning::Factor, Meaning::Multiplier, Meaning::Divisor, Meaning::Decimals, Meaning::Exponent]
            .into_iter()
            .any(|meaning| !matches!(self.cell(row, meaning), "" | "-"))
    }

    /// The words of an enumeration, from whichever column has them.
    fn values(&self, row: &Row) -> Option<Vec<(i64, String)>> {
        let own = words(self.cell(row, Meaning::Values));
        own.or_else(|| (0..self.columns.len()).find_map(|column| words(row.cell(column))))
    }

    fn scale(&self, row: &Row, draft: &mut Draft) -> Result<f64, String> {
        let plain = |cell: &str, is_divisor: bool| -> Result<f64, String> {
            Ok(match factor::factor(cell, self.decimal)? {
                None => 1.0,
                Some(Factor::Plain(number)) => number,
                Some(Factor::Number(number)) if is_divisor => factor::inverse(number),
                Some(Factor::Number(number)) => number,
            })
        };
        let decimals = self.cell(row, Meaning::Decimals);
        let by_decimals = match decimals {
            "" | "-" => 1.0,
            cell => {
                let places =
                    factor::decimals(cell).ok_or_else(|| format!("decimal places \"{cell}\" are no whole number"))?;
                factor::inverse(10f64.powi(places))
            }
        };
        let cell = self.cell(row, Meaning::Factor);
        let is_reference =
            cell.chars().next().is_some_and(char::is_alphabetic) && factor::factor(cell, self.decimal).is_err();
        if is_reference {
            draft.scale_reference = Some(ScaleReference::Name(cell.to_owned()));
        }
        let reference = self.cell(row, Meaning::ScaleFrom);
        if !matches!(reference, "" | "-") {
            draft.scale_reference = Some(match reference.parse::<u32>() {
                Ok(_) => ScaleReference::Address(self.place_of(reference)?),
                Err(_) => ScaleReference::Name(reference.to_owned()),
            });
        }
        let factor = if is_reference { 1.0 } else { plain(cell, self.scale == Some(ScaleMeaning::Divide))? };
        let multiplier = plain(self.cell(row, Meaning::Multiplier), false)?;
        let divisor = plain(self.cell(row, Meaning::Divisor), true)?;
        let by_exponent = match self.cell(row, Meaning::Exponent) {
            "" | "-" => 1.0,
            cell => {
                let power = cell.replace('\u{2212}', "-").parse().ok().filter(|power: &i32| (-9..=9).contains(power));
                let power = power.ok_or_else(|| format!("exponent \"{cell}\" is no whole number from -9 to 9"))?;
                if power < 0 { factor::inverse(10f64.powi(-power)) } else { 10f64.powi(power) }
            }
        };
        one_scale([factor, multiplier * divisor, by_decimals, by_exponent])
    }

    /// A formula of ioBroker that takes the exponent of the scale from another register.
    fn formula(&self, row: &Row, draft: &mut Draft) -> Result<(), String> {
        let cell = self.cell(row, Meaning::Formula);
        if matches!(cell, "" | "-" | "x") {
            return Ok(());
        }
        let plain: String = cell.chars().filter(|letter| !letter.is_whitespace() && !"'\"".contains(*letter)).collect();
        let address = plain.strip_prefix("x*Math.pow(10,sf[").and_then(|rest| rest.strip_suffix("])"));
        let address = address.ok_or_else(|| {
            format!("formula \"{cell}\" is not understood; write scale, offset or scale_from into the table by hand")
        })?;
        draft.scale_reference = Some(ScaleReference::Address(self.place_of(address)?));
        Ok(())
    }

    /// The protocol's address of a register that another line names by its number.
    fn place_of(&self, number: &str) -> Result<u32, String> {
        Written::parse(number, false)?.place(self.numbering, None).map(|(_, address)| address)
    }
}

/// The scale that several columns of a line say; an error if they contradict each other.
fn one_scale(scales: [f64; 4]) -> Result<f64, String> {
    let mut said = scales.into_iter().filter(|scale| *scale != 1.0);
    let first = said.next().unwrap_or(1.0);
    match said.find(|other| (other / first - 1.0).abs() > 1e-9) {
        Some(other) => {
            Err(format!("its columns say two scales, {first} and {other}; leave one out with --column \"…=ignore\""))
        }
        None => Ok(first),
    }
}
