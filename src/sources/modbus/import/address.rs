//! Addresses of a list: how they are written, and how the list counts them.

use super::super::value::Table;

/// The numbering of addresses in the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Numbering {
    /// Found from the numbers; refused where they leave it open.
    #[default]
    Auto,
    /// From 0, as in the protocol.
    Zero,
    /// From 1.
    One,
    /// 00001 coils, 10001 discrete inputs, 30001 input registers, 40001 holding registers.
    Classic,
}

/// An address as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) number: u32,
    /// Whether it has the five or six digits of a classic number.
    is_padded: bool,
    /// The last register, if the cell names a range.
    pub(super) end: Option<u32>,
    pub(super) bit: Option<u8>,
    /// The table that a prefix such as `4x` names; the number then counts from 1.
    prefix: Option<Table>,
}

impl Written {
    /// Parses a cell: `40001`, `0x1F4`, `1F4h`, `30775-30776`, `40001.5`, `4x00017`.
    pub(super) fn parse(text: &str, is_hex: bool) -> Result<Self, String> {
        let wrong = || format!("address \"{text}\" is no number");
        let plain: String = text.trim().to_lowercase().replace([' ', '\u{a0}', '_', '\r'], "");
        let (prefix, rest) = prefix(&plain);
        if let Some((first, second)) = split_range(rest) {
            let (first, second) = (number(first, is_hex).ok_or_else(wrong)?, number(second, is_hex).ok_or_else(wrong)?);
            // "30775-6" leaves out what is the same.
            let power = 10u32.checked_pow(second.to_string().len() as u32);
            let second = match power {
                Some(power) if second < first && second > 0 => first / power * power + second,
                _ => second,
            };
            if second < first || second - first >= 125 {
                return Err(format!("address \"{text}\" is no range of registers"));
            }
            return Ok(Self { number: first, is_padded: is_padded(rest), end: Some(second), bit: None, prefix });
        }
        if let Some((before, after)) = rest.split_once(['.', ':', ',']) {
            let bit = after.parse::<u8>().ok().filter(|bit| *bit < 16 && after.len() <= 2);
            let (Some(number), Some(bit)) = (number(before, is_hex), bit) else {
                let what = if after.len() == 3 && after.bytes().all(|byte| byte.is_ascii_digit()) {
                    "a bit, or a number with a separator of thousands? Write it without the separator"
                } else {
                    "behind the separator stands no bit from 0 to 15"
                };
                return Err(format!("address \"{text}\": {what}"));
            };
            return Ok(Self { number, is_padded: is_padded(before), end: None, bit: Some(bit), prefix });
        }
        let number = number(rest, is_hex).ok_or_else(wrong)?;
        Ok(Self { number, is_padded: is_padded(rest), end: None, bit: None, prefix })
    }

    /// Table and offset of a classic number.
    fn classic(&self) -> Option<(Table, u32)> {
        let (digit, rest) = match self.number {
            0..=99_999 => (self.number / 10_000, self.number % 10_000),
            // Six digits.
            _ => (self.number / 100_000, self.number % 100_000),
        };
        let table = match digit {
            0 if self.is_padded => Table::Coil,
            1 => Table::Discrete,
            3 => Table::Input,
            4 => Table::Holding,
            _ => return None,
        };
        (rest > 0 && rest <= 65_536).then(|| (table, rest - 1))
    }

    /// Table, if the address names one, and address from 0.
    pub(super) fn place(&self, numbering: Numbering, named: Option<Table>) -> Result<(Option<Table>, u32), String> {
        let number = self.number;
        if let Some(table) = self.prefix {
            let at = number.checked_sub(1).ok_or_else(|| format!("address {number} behind a prefix counts from 1"))?;
            return Ok((Some(table), at));
        }
        match numbering {
            Numbering::Classic => {
                let (table, at) = self.classic().ok_or_else(|| {
                    format!("address {number} is none of 00001, 10001, 30001 and 40001 and what follows them; --numbering zero or one is for lists with other numbers")
                })?;
                match named.filter(|named| *named != table) {
                    Some(named) => Err(format!(
                        "address {number} is in the table \"{}\", and the list says \"{}\"; say how it counts with --numbering",
                        table.name(),
                        named.name()
                    )),
                    None => Ok((Some(table), at)),
                }
            }
            Numbering::One => {
                let at = number.checked_sub(1).ok_or("address 0 in a list that counts from 1")?;
                Ok((named, at))
            }
            Numbering::Auto | Numbering::Zero => Ok((named, number)),
        }
    }
}

/// Splits off `4x`, `3x` or `1x`, behind which numbers count from 1. `0x` begins a hexadecimal number.
fn prefix(text: &str) -> (Option<Table>, &str) {
    for (prefix, table) in [("4x", Table::Holding), ("3x", Table::Input), ("1x", Table::Discrete)] {
        if let Some(rest) = text.strip_prefix(prefix)
            && rest.bytes().all(|byte| byte.is_ascii_digit() || b"-.:/".contains(&byte))
        {
            return (Some(table), rest);
        }
    }
    // Addresses of Schneider's PLCs are those of the protocol.
    (None, text.trim_start_matches("%mw").trim_start_matches("%iw"))
}

/// The ends of a range: `30775-30776`, `31253/31254`, `7~14`, `40001…40002`.
fn split_range(text: &str) -> Option<(&str, &str)> {
    for separator in ["...", "..", "…", "\n", "–", "-", "~", "/", "to", "&", "+"] {
        if let Some((first, second)) = text.split_once(separator)
            && !first.is_empty()
            && !second.is_empty()
        {
            return Some((first, second));
        }
    }
    // Behind a colon may stand a bit.
    let (first, second) = text.split_once([':', ',', ';'])?;
    (second.len() == first.len() && second.len() >= 4).then_some((first, second))
}

fn number(text: &str, is_hex: bool) -> Option<u32> {
    let hex =
        text.strip_prefix("0x").or(text.strip_suffix('h')).or(text.strip_prefix('$')).or(text.strip_prefix("16#"));
    match hex {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if is_hex => u32::from_str_radix(text, 16).ok(),
        None => text.parse().ok(),
    }
}

fn is_padded(text: &str) -> bool {
    matches!(text.len(), 5 | 6) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What is known of a list, for the question how it counts.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    /// The addresses, each with whether its type is a number (`true`) or a bit (`false`), if the list says.
    pub(super) addresses: &'a [(Written, Option<bool>)],
    /// Whether it has registers of SunSpec, which counts in a way of its own.
    pub(super) is_sunspec: bool,
    /// Whether the head of the column says that it holds addresses, rather than ids.
    pub(super) is_plain_head: bool,
}

/// Finds how a list counts, with the reason. The error is the question that is open.
pub(super) fn detect(evidence: &Evidence<'_>) -> Result<(Numbering, String), String> {
    let own: Vec<_> = evidence.addresses.iter().filter(|(written, _)| written.prefix.is_none()).collect();
    if own.is_empty() {
        return Ok((Numbering::Zero, "each address names its table, and counts from 1".into()));
    }
    let smallest = own.iter().map(|(written, _)| written.number).min().unwrap_or(0);
    let places: Vec<_> = own.iter().map(|(written, is_number)| (written.classic(), *is_number)).collect();
    let is_contrary = |(place, is_number): &(Option<(Table, u32)>, Option<bool>)| match place {
        None => true,
        // A number in a table of bits is none of its.
        Some((table, _)) => table.is_bits() && *is_number == Some(true),
    };
    let contrary = places.iter().filter(|place| is_contrary(place)).count();
    if contrary == places.len() || (contrary > 0 && !has_small(&own)) {
        let hint = match smallest {
            1 => "; the smallest is 1: if the list counts from 1, use --numbering one",
            _ => "",
        };
        return Ok((Numbering::Zero, format!("the numbers are taken as addresses of the protocol, from 0{hint}")));
    }
    let ask = |why: &str| {
        Err(format!(
            "how does the list count? {why}. Say it: --numbering classic (40001 is the first holding register), zero (40001 is address 40001 of the protocol) or one (40001 is address 40000)"
        ))
    };
    if contrary > 0 {
        return ask("some addresses look classic, such as 40001, others do not");
    }
    if evidence.is_sunspec {
        return ask("addresses from 40000 on are classic in most lists, and those of the protocol in SunSpec");
    }
    if !evidence.is_plain_head {
        return ask("the numbers look classic, such as 40001, but the head does not say that they are addresses");
    }
    // A classic list begins near the first register of a table.
    let first = places.iter().filter_map(|(place, _)| place.as_ref().map(|(_, at)| *at)).min().unwrap_or(0);
    if first > FIRST_MAX {
        return ask("the numbers look classic, such as 40001, but none is near the beginning of a table");
    }
    Ok((
        Numbering::Classic,
        "the numbers are classic: 30001 is the first input register, 40001 the first holding register".into(),
    ))
}

/// How far behind the first register of a table a classic list begins at most.
const FIRST_MAX: u32 = 99;

fn has_small(own: &[&(Written, Option<bool>)]) -> bool {
    let is_far = |number: u32| (30_001..=49_999).contains(&number) || (300_001..=465_536).contains(&number);
    let others = own.iter().map(|(written, _)| written.number).filter(|number| !is_far(*number));
    let mut others = others.peekable();
    others.peek().is_some()
        && others.all(|number| number < 10_000)
        && own.iter().any(|(written, _)| is_far(written.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Written {
        Written::parse(text, false).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn addresses_are_read_as_vendors_write_them() {
        let number = |text: &str| (written(text).number, written(text).end, written(text).bit);
        assert_eq!(number("40001"), (40_001, None, None));
        assert_eq!(number(" 3 "), (3, None, None));
        assert_eq!(number("0x1F4"), (500, None, None));
        assert_eq!(number("1F4h"), (500, None, None));
        assert_eq!(number("30775-30776"), (30_775, Some(30_776), None));
        assert_eq!(number("30775 … 30776"), (30_775, Some(30_776), None));
        assert_eq!(number("30775-6"), (30_775, Some(30_776), None));
        assert_eq!(number("31253/31254"), (31_253, Some(31_254), None));
        assert_eq!(number("7~14"), (7, Some(14), None));
        assert_eq!(number("31.2"), (31, None, Some(2)));
        assert_eq!(number("40001:15"), (40_001, None, Some(15)));
        assert_eq!(Written::parse("1A", true).map(|written| written.number), Ok(26));
        assert_eq!(written("4x00017").place(Numbering::Zero, None), Ok((Some(Table::Holding), 16)));
        for (text, why) in [
            ("y", "is no number"),
            ("40.001", "separator of thousands"),
            ("40001.77", "no bit from 0 to 15"),
            ("5-2000", "no range"),
            ("1-4000000000", "no range"),
            ("4294967295-4294967290", "no range"),
        ] {
            assert!(Written::parse(text, false).expect_err(text).contains(why), "{text}");
        }
    }

    fn found(addresses: &[&str]) -> Result<Numbering, String> {
        found_in(addresses, Some(true), false, true)
    }

    fn found_in(
        addresses: &[&str],
        is_number: Option<bool>,
        is_sunspec: bool,
        is_plain_head: bool,
    ) -> Result<Numbering, String> {
        let addresses: Vec<_> = addresses.iter().map(|text| (written(text), is_number)).collect();
        let evidence = Evidence { addresses: &addresses, is_sunspec, is_plain_head };
        detect(&evidence).map(|(numbering, _)| numbering)
    }

    #[test]
    fn the_numbering_is_found_or_asked_for() {
        assert_eq!(found(&["40001", "40010", "30005"]), Ok(Numbering::Classic));
        assert_eq!(found(&["30001", "30003"]), Ok(Numbering::Classic));
        assert_eq!(found(&["400001", "400017"]), Ok(Numbering::Classic));
        assert_eq!(found(&["1", "2", "17"]), Ok(Numbering::Zero));
        assert_eq!(found(&["19000", "19002"]), Ok(Numbering::Zero), "numbers are in no table of bits");
        assert_eq!(found_in(&["10001", "10002"], Some(false), false, true), Ok(Numbering::Classic));
        assert_eq!(found(&["32260", "40004", "50100", "20001"]), Ok(Numbering::Zero));
        for (open, why) in [
            (found(&["40001", "5"]), "others do not"),
            (found_in(&["40069", "40071"], Some(true), true, true), "SunSpec"),
            (found_in(&["40004", "40008"], Some(true), false, false), "the head does not say"),
            (found(&["40500", "43005"]), "near the beginning"),
        ] {
            let question = open.expect_err(why);
            assert!(question.contains(why) && question.contains("--numbering"), "{question}");
        }
    }

    #[test]
    fn a_place_that_contradicts_its_table_is_refused() {
        assert_eq!(written("40011").place(Numbering::Classic, None), Ok((Some(Table::Holding), 10)));
        assert!(written("40011").place(Numbering::Classic, Some(Table::Input)).is_err());
        assert_eq!(written("40011").place(Numbering::One, None), Ok((None, 40_010)));
        assert!(written("0").place(Numbering::One, None).is_err());
        assert_eq!(written("00017").place(Numbering::Classic, None), Ok((Some(Table::Coil), 16)));
        assert!(written("17").place(Numbering::Classic, None).is_err());
    }
}
