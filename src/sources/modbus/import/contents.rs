//! Columns whose contents say something else than their heads.

use super::columns::{Column, Meaning, mark_doubles};
use super::draft::{Rules, table_of};
use super::factor;
use super::input::Row;
use super::types::TypeName;

/// Corrects what the columns were taken as by their heads. What the user has named stays.
pub(super) fn correct(rules: &mut Rules<'_>, body: &[&Row]) {
    take_tables_and_access(&mut rules.columns, body);
    take_types_for_sizes(&mut rules.columns, body);
    take_formats(&mut rules.columns, body);
    take_descriptions(&mut rules.columns, body);
    take_exponents(&mut rules.columns, body);
    mark_doubles(&mut rules.columns);
    rules.has_nibe_codes = has_nibe_codes(rules, body);
}

/// The cells of a column that are not empty.
fn filled<'a>(body: &'a [&Row], index: usize) -> impl Iterator<Item = &'a str> {
    body.iter().map(move |row| row.cell(index)).filter(|cell| !matches!(*cell, "" | "-"))
}

/// Columns called "type" may hold tables or rights, those called "register type" may hold types.
fn take_tables_and_access(columns: &mut [Column], body: &[&Row]) {
    for (index, column) in columns.iter_mut().enumerate().filter(|(_, column)| !column.is_given) {
        let all = |is: &dyn Fn(&str) -> bool| filled(body, index).next().is_some() && filled(body, index).all(is);
        let (are_tables, are_types) = (
            all(&|cell| table_of(cell, false).is_ok_and(|table| table.is_some())),
            all(&|cell| TypeName::parse(cell).is_ok()),
        );
        column.meaning = match column.meaning {
            Some(Meaning::Type | Meaning::Access) if are_tables && !are_types => Some(Meaning::Table),
            Some(Meaning::Type | Meaning::Table | Meaning::Function) if all(&is_access) => Some(Meaning::Access),
            Some(Meaning::Table) if are_types && !are_tables => Some(Meaning::Type),
            other => other,
        };
    }
}

/// Whether a cell says who may read and write.
fn is_access(cell: &str) -> bool {
    matches!(
        cell.to_lowercase().as_str(),
        "r" | "w"
            | "rw"
            | "r/w"
            | "ro"
            | "wo"
            | "read"
            | "write"
            | "read only"
            | "read/write"
            | "read-only"
            | "read write"
    )
}

/// A column for the names of scale registers may hold the exponents themselves.
fn take_exponents(columns: &mut [Column], body: &[&Row]) {
    for (index, column) in columns.iter_mut().enumerate().filter(|(_, column)| !column.is_given) {
        let exponent = |cell: &str| cell.parse::<i32>().ok().filter(|power| (-10..=10).contains(power));
        let has_low = filled(body, index).any(|cell| exponent(cell).is_some_and(|power| power <= 0));
        if column.meaning == Some(Meaning::ScaleFrom)
            && has_low
            && filled(body, index).all(|cell| exponent(cell).is_some())
        {
            column.meaning = Some(Meaning::Exponent);
        }
    }
}

/// A column called "size" may hold types: `s16`, `u32`.
fn take_types_for_sizes(columns: &mut [Column], body: &[&Row]) {
    if columns.iter().any(|column| column.meaning == Some(Meaning::Type)) {
        return;
    }
    let Some(index) = columns.iter().position(|column| column.meaning == Some(Meaning::Size)) else { return };
    let filled = body.iter().map(|row| row.cell(index)).filter(|cell| !cell.is_empty());
    let has_letters = |cell: &str| cell.chars().any(char::is_alphabetic);
    let (types, others): (Vec<_>, Vec<_>) = filled.partition(|cell| has_letters(cell) && TypeName::parse(cell).is_ok());
    if types.len() > others.len() {
        columns[index].meaning = Some(Meaning::Type);
    }
}

/// A second column of types may hold SMA's formats, which say the decimal places.
fn take_formats(columns: &mut [Column], body: &[&Row]) {
    for (index, column) in columns.iter_mut().enumerate() {
        let is_open = column.meaning.is_none() || (column.meaning == Some(Meaning::Type) && column.unused.is_some());
        let mut cells = body.iter().map(|row| row.cell(index)).filter(|cell| !cell.is_empty()).peekable();
        if is_open && cells.peek().is_some() && cells.all(factor::is_format) {
            (column.meaning, column.unused) = (Some(Meaning::Decimals), None);
        }
    }
}

/// A column called "function" may say what a point is for.
fn take_descriptions(columns: &mut [Column], body: &[&Row]) {
    for (index, column) in
        columns.iter_mut().enumerate().filter(|(_, column)| column.meaning == Some(Meaning::Function))
    {
        let cells = body.iter().map(|row| row.cell(index)).filter(|cell| !cell.is_empty());
        let (codes, others): (Vec<_>, Vec<_>) = cells.partition(|cell| table_of(cell, true).is_ok());
        if others.len() > codes.len() {
            column.meaning = Some(Meaning::Description);
        }
    }
}

/// NIBE's lists of the S series say type and size with a code from 1 to 6, in a column of this name.
fn has_nibe_codes(rules: &Rules<'_>, body: &[&Row]) -> bool {
    let Some(column) = rules.columns.iter().find(|column| column.meaning == Some(Meaning::Size)) else { return false };
    let is_code = |cell: &str| matches!(cell, "1" | "2" | "3" | "4" | "5" | "6");
    column.head.eq_ignore_ascii_case("size of variable")
        && !rules.has(Meaning::Type)
        && body.iter().all(|row| is_code(rules.cell(row, Meaning::Size)))
}
