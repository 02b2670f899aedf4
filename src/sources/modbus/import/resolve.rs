//! What lines need to know of each other: lengths of texts, scale registers.

use super::super::value::Table;
use super::draft::{Draft, Length, ScaleReference};
use super::types::Class;
use std::collections::BTreeMap;

/// Lines that are left out, with the reasons.
type Skipped = Vec<(usize, String)>;

/// Settles what depends on other lines. Returns the points and notes for the report.
pub(super) fn resolve(drafts: Vec<Draft>, is_sunspec: bool, skipped: &mut Skipped) -> (Vec<Draft>, Vec<String>) {
    let mut notes = Vec::new();
    let next = next_addresses(&drafts);
    let mut kept: Vec<Draft> = Vec::new();
    let mut has_assumed_text = false;
    for mut draft in drafts {
        if let Some(Length::Open { count, is_bracketed }) = draft.length {
            let gap = next.get(&(draft.table, draft.address)).map(|next| next - draft.address);
            match registers_of_text(count, gap, is_bracketed) {
                Some((registers, is_assumed)) => {
                    has_assumed_text |= is_assumed;
                    draft.length = Some(Length::Registers(registers));
                }
                None => {
                    skipped.push((
                        draft.line,
                        format!("is a text of {count}: letters or registers? Say it: --text-length letters, or --text-length registers"),
                    ));
                    continue;
                }
            }
        }
        if let Some(Length::Registers(registers)) = draft.length {
            draft.registers = registers.into();
        }
        kept.push(draft);
    }
    if has_assumed_text {
        notes.push("the numbers in the types of texts are taken as letters, two in a register".into());
    }
    let mut kept = scales(kept, is_sunspec, skipped, &mut notes);
    if is_sunspec {
        let declared = kept.iter_mut().map(declare_absence).filter(|is_declared| *is_declared).count();
        if declared > 0 {
            notes.push("SunSpec's contents for \"not implemented\" are absent values".into());
        }
    }
    notes.extend(assumptions(&kept));
    (kept, notes)
}

/// Declares what stands for "not implemented" in SunSpec: the smallest signed and the largest unsigned number.
fn declare_absence(draft: &mut Draft) -> bool {
    let pattern = match (draft.class, draft.registers) {
        (Class::Signed | Class::Exponent, 1) => "0x8000",
        (Class::Signed, 2) => "0x80000000",
        (Class::Signed, 4) => "0x8000000000000000",
        (Class::Unsigned, 1) => "0xFFFF",
        (Class::Unsigned, 2) => "0xFFFFFFFF",
        (Class::Unsigned, 4) => "0xFFFFFFFFFFFFFFFF",
        (Class::Float, _) => "nan",
        _ => return false,
    };
    let is_declared = draft.bits.is_none() && draft.absent.is_none();
    if is_declared {
        draft.absent = Some(pattern.to_owned());
    }
    is_declared
}

/// The address of the next point in the same table, by table and address.
fn next_addresses(drafts: &[Draft]) -> BTreeMap<(Table, u32), u32> {
    let mut places: Vec<(Table, u32)> = drafts.iter().map(|draft| (draft.table, draft.address)).collect();
    places.sort_unstable();
    places.dedup();
    let pairs = places.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    pairs.map(|pair| (pair[0], pair[1].1)).collect()
}

/// The registers of a text whose length may be in letters or in registers, and whether that is an assumption.
fn registers_of_text(count: u16, gap: Option<u32>, is_bracketed: bool) -> Option<(u16, bool)> {
    let letters = count.div_ceil(2).max(1);
    match gap {
        Some(gap) if gap == u32::from(count) && count > 1 => Some((count, false)),
        Some(gap) if gap == u32::from(letters) => Some((letters, false)),
        // As many registers would reach into the next point.
        Some(gap) if gap < u32::from(count) => Some((letters, false)),
        _ if is_bracketed => None,
        _ => Some((letters, true)),
    }
}

/// Finds the scale registers that points name, or that SunSpec's names say.
fn scales(drafts: Vec<Draft>, is_sunspec: bool, skipped: &mut Skipped, notes: &mut Vec<String>) -> Vec<Draft> {
    let exponents: Vec<Draft> = drafts.iter().filter(|draft| is_exponent(draft)).cloned().collect();
    let mut by_name = 0;
    let mut kept = Vec::new();
    for mut draft in drafts {
        let is_number = matches!(draft.class, Class::Unsigned | Class::Signed | Class::Counter) && draft.bits.is_none();
        let found = match &draft.scale_reference {
            Some(reference) => exponents.iter().find(|exponent| is_named(exponent, reference)).ok_or_else(|| {
                let name = match reference {
                    ScaleReference::Name(name) => format!("\"{name}\""),
                    ScaleReference::Address(address) => address.to_string(),
                };
                format!("its scale register {name} is not in the list")
            }),
            None if is_sunspec
                && is_number
                && !is_exponent(&draft)
                && !draft.unit.is_empty()
                && !exponents.is_empty() =>
            {
                by_name += 1;
                of_name(&draft, &exponents).ok_or_else(|| {
                    "which scale register belongs to it is not plain; add a column \"scale register\" with its name"
                        .into()
                })
            }
            None => {
                kept.push(draft);
                continue;
            }
        };
        match found {
            Ok(exponent) if exponent.table == draft.table => {
                draft.scale_reference = Some(ScaleReference::Address(exponent.address));
                kept.push(draft);
            }
            Ok(_) => skipped.push((draft.line, "its scale register is in another table".into())),
            Err(why) => skipped.push((draft.line, why)),
        }
    }
    if by_name > 0 {
        notes.push("scale registers belong to the points whose names begin like theirs (X_SF to X…)".into());
    }
    kept
}

fn is_exponent(draft: &Draft) -> bool {
    draft.class == Class::Exponent || (draft.kind == "i16" && draft.label.ends_with("_SF"))
}

fn is_named(exponent: &Draft, reference: &ScaleReference) -> bool {
    match reference {
        ScaleReference::Name(name) => exponent.label.eq_ignore_ascii_case(name.trim()),
        ScaleReference::Address(address) => exponent.address == *address,
    }
}

/// Shorter names begin too many others.
const STEM_LETTERS_MIN: usize = 4;

/// The scale register with the longest name that begins like that of the point.
fn of_name<'a>(draft: &Draft, exponents: &'a [Draft]) -> Option<&'a Draft> {
    let stem = |exponent: &Draft| exponent.label.strip_suffix("_SF").unwrap_or(&exponent.label).to_owned();
    let fits = |exponent: &&Draft| {
        let stem = stem(exponent);
        draft.label == stem || (stem.len() >= STEM_LETTERS_MIN && draft.label.starts_with(&stem))
    };
    exponents.iter().filter(fits).max_by_key(|exponent| stem(exponent).len())
}

/// What was assumed of single lines, once for all of them.
fn assumptions(drafts: &[Draft]) -> Vec<String> {
    let count = |is: &dyn Fn(&Draft) -> bool| drafts.iter().filter(|draft| is(draft)).count();
    let mut notes = Vec::new();
    let mut note = |number: usize, what: &str| {
        if number > 0 {
            let points = if number == 1 { "1 point".to_owned() } else { format!("{number} points") };
            notes.push(format!("assumed for {points}: {what}"));
        }
    };
    note(count(&|draft| !draft.is_table_known), "holding registers, since the list does not say which table");
    note(
        count(&|draft| draft.is_order_assumed && draft.class != Class::Text),
        "the order of words ABCD, since the list does not say",
    );
    note(count(&|draft| draft.is_size_assumed), "16 bits, since the list does not say the size");
    let is_large = |draft: &Draft| draft.scale >= 10.0 && draft.registers == 1 && draft.class != Class::Text;
    if let Some(draft) = drafts.iter().find(|draft| is_large(draft)) {
        notes.push(format!(
            "look again: \"{}\" (line {}) is a register of 16 bits with the scale {}; many lists mean to divide",
            draft.label, draft.line, draft.scale
        ));
    }
    notes
}
