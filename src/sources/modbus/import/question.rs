//! What a list leaves open: it is found from the list as a whole, set by the user, or asked.

use super::super::value::Table;
use super::address::{self, Evidence, Numbering, Written};
use super::columns::{Column, Meaning, columns, first_number, is_telling};
use super::contents;
use super::draft::{Rules, SizeUnit};
use super::factor::{self, DecimalMark, Factor, MarkOf};
use super::hints;
use super::input::{Row, Sheet};
use super::outcome::{Options, Refusal};
use super::types::{Class, TypeName};
use super::words::words;

/// A list of which every question is settled.
pub(super) struct Settled<'a> {
    pub(super) rules: Rules<'a>,
    pub(super) body: Vec<&'a Row>,
    pub(super) report: Vec<String>,
    pub(super) is_sunspec: bool,
}

/// An answer with the line of the report about it, or the question.
type Found<T> = Result<(T, Option<String>), String>;

/// Settles how a list is to be read, whose head is the row `at`.
pub(super) fn settle<'a>(sheet: &'a Sheet, at: usize, options: &'a Options) -> Result<Settled<'a>, Refusal> {
    let mut rules = Rules {
        columns: columns(&sheet.rows[at], &options.columns)?,
        numbering: options.numbering,
        size: options.size,
        scale: options.scale,
        text_length: options.text_length,
        decimal: options.decimal,
        types: &options.types,
        has_nibe_codes: false,
    };
    // Columns that the user names by their numbers need no head: it may be the first line.
    let has_head = rules.address(&sheet.rows[at]).is_err();
    let rows = &sheet.rows[at + usize::from(has_head)..];
    let mut body: Vec<&Row> = rows.iter().filter(|row| !is_heading(&rules, row, has_head)).collect();
    if body.is_empty() {
        return Err(Refusal::NoList("there is no line below the head".into()));
    }
    contents::correct(&mut rules, &body);
    let mut report = describe(&rules);
    let mut questions = unknown_columns(&rules.columns, &body);
    questions.extend(doubles(&rules.columns, &body));
    questions.extend(hints::questions(&rules, &body));
    report.extend(hints::hints(&rules, &body));
    let mut note = |found: Result<Option<String>, String>| match found {
        Ok(line) => report.extend(line),
        Err(question) => questions.push(question),
    };
    match device(&rules, &body, options) {
        Ok((Some(device), line)) => {
            body.retain(|row| rules.cell(row, Meaning::Device) == device);
            note(Ok(line));
        }
        Ok((None, line)) => note(Ok(line)),
        Err(question) => note(Err(question)),
    }
    let is_sunspec = is_sunspec(&rules, &body);
    note(numbering(&rules, &body, is_sunspec).map(|(numbering, line)| {
        rules.numbering = numbering;
        line
    }));
    note(size(&rules, &body).map(|(size, line)| {
        rules.size = size;
        line
    }));
    note(types(&rules, &body));
    note(decimal_mark(&rules, &body).map(|(mark, line)| {
        rules.decimal = mark;
        line
    }));
    note(scale(&rules, &body));
    note(offsets(&rules, &body));
    match questions.is_empty() {
        true => Ok(Settled { rules, body, report, is_sunspec }),
        false => Err(Refusal::Open { report, questions }),
    }
}

/// Whether a row is the heading of a section: it has no address, and little else.
fn is_heading(rules: &Rules<'_>, row: &Row, has_head: bool) -> bool {
    let filled = row.cells.iter().filter(|cell| !cell.trim().is_empty()).count();
    let has_address =
        [Meaning::Address, Meaning::AddressHex].iter().any(|meaning| !rules.cell(row, *meaning).is_empty());
    // The head may be repeated on each page.
    // Lists in Markdown have a line of dashes below the head.
    let is_line =
        row.cells.iter().all(|cell| cell.trim().chars().all(|letter| matches!(letter, '-' | '=' | ':' | ' ')));
    let is_head = has_head && rules.columns.iter().enumerate().all(|(index, column)| row.cell(index) == column.head);
    (!has_address && filled <= 2) || is_head || is_line
}

/// Questions about columns that say something else than an earlier one of the same meaning.
fn doubles(columns: &[Column], body: &[&Row]) -> Vec<String> {
    const HARMLESS: [Meaning; 5] =
        [Meaning::Name, Meaning::Description, Meaning::Unit, Meaning::Access, Meaning::Values];
    let mut questions = Vec::new();
    for (index, column) in columns.iter().enumerate().filter(|(_, column)| column.unused.is_some()) {
        let Some(meaning) = column.meaning.filter(|meaning| !HARMLESS.contains(meaning)) else { continue };
        let Some(first) = columns.iter().position(|other| other.meaning == Some(meaning)) else { continue };
        let differs = |row: &&&Row| !row.cell(index).is_empty() && row.cell(index) != row.cell(first);
        if let Some(row) = body.iter().find(differs) {
            let (one, other) = (&columns[first].head, &column.head);
            questions.push(format!(
                "which is the {}, \"{one}\" or \"{other}\"? Line {} has {} and {}. Say it: --column \"{other}=ignore\", or --column \"{one}=ignore\"",
                meaning.name(),
                row.line,
                row.cell(first),
                row.cell(index)
            ));
        }
    }
    questions
}

/// What the columns were taken as.
fn describe(rules: &Rules<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut silent, mut unknown) = (Vec::new(), Vec::new());
    for column in rules.columns.iter().filter(|column| !column.head.is_empty()) {
        let head = format!("\"{}\"", column.head);
        match (column.meaning, column.unused) {
            (Some(_), Some(why)) => silent.push(format!("{head} ({why})")),
            (Some(Meaning::Ignore), None) => silent.push(head),
            (Some(Meaning::Size), None) if rules.has_nibe_codes => {
                lines.push(format!(
                    "column {head} is the type, in NIBE's codes: 1 i8, 2 i16, 3 i32, 4 u8, 5 u16, 6 u32"
                ));
            }
            (Some(Meaning::Offset), None) => {
                lines.push(format!("column {head} is the offset, which is added behind the scale"))
            }
            (Some(meaning), None) => lines.push(format!("column {head} is the {}", meaning.name())),
            (None, _) => unknown.push(head),
        }
    }
    if !silent.is_empty() {
        lines.push(format!("not used: {}", silent.join(", ")));
    }
    if !unknown.is_empty() {
        lines.push(format!("not known, and not used: {}", unknown.join(", ")));
    }
    lines
}

/// Questions about columns whose heads are not known, and whose contents would change values.
fn unknown_columns(columns: &[Column], body: &[&Row]) -> Vec<String> {
    let mut questions = Vec::new();
    for (index, column) in columns.iter().enumerate().filter(|(_, column)| column.meaning.is_none()) {
        let filled: Vec<&str> = body.iter().map(|row| row.cell(index)).filter(|cell| !cell.is_empty()).collect();
        let is_number = |cell: &str| factor::factor(cell, None).ok().flatten().is_some() || cell.parse::<f64>().is_ok();
        let is_type = |cell: &str| TypeName::parse(cell).is_ok();
        let telling = filled.iter().filter(|cell| is_number(cell) || is_type(cell)).count();
        let has_words = filled.iter().any(|cell| words(cell).is_some());
        if (telling * 2 > filled.len() && !has_words) || (is_telling(&column.head) && !filled.is_empty()) {
            let name = if column.head.is_empty() { (index + 1).to_string() } else { column.head.clone() };
            questions.push(format!(
                "what is the column \"{name}\", which holds {}? Say it: --column \"{name}=divisor\" (or multiplier, type, registers, order, offset, …), or --column \"{name}=ignore\"",
                examples(&filled)
            ));
        }
    }
    questions
}

fn examples(cells: &[&str]) -> String {
    let mut shown: Vec<String> = Vec::new();
    for cell in cells {
        let cell = format!("\"{cell}\"");
        if !shown.contains(&cell) && shown.len() < 3 {
            shown.push(cell);
        }
    }
    shown.join(", ")
}

/// The device whose lines are imported, in a list of several.
fn device(rules: &Rules<'_>, body: &[&Row], options: &Options) -> Found<Option<String>> {
    let Some(column) = rules.columns.iter().find(|column| column.meaning == Some(Meaning::Device)) else {
        return Ok((None, None));
    };
    let mut devices: Vec<&str> = Vec::new();
    for device in body.iter().map(|row| rules.cell(row, Meaning::Device)) {
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    let names = devices.iter().map(|device| format!("\"{device}\"")).collect::<Vec<_>>().join(", ");
    match (&options.device, &devices[..]) {
        (Some(wanted), _) if devices.contains(&wanted.as_str()) => {
            let line = format!("only the lines in which \"{}\" is \"{wanted}\"", column.head);
            Ok((Some(wanted.clone()), Some(line)))
        }
        (Some(wanted), _) => {
            Err(format!("\"{wanted}\" is none of the devices in the column \"{}\": {names}", column.head))
        }
        (None, [_]) => Ok((None, Some(format!("all lines are of the device {names}")))),
        (None, _) => Err(format!(
            "which device? The column \"{}\" has {names}, and each gets a table of its own. Say it: --device NAME",
            column.head
        )),
    }
}

/// Whether the list has registers of SunSpec, by their types or names.
fn is_sunspec(rules: &Rules<'_>, body: &[&Row]) -> bool {
    let is_of = |row: &&&Row| {
        let class = rules.type_name(row).ok().flatten().map(|name| name.class);
        let name = rules.cell(row, Meaning::Name);
        matches!(class, Some(Class::Exponent | Class::Counter))
            || name.ends_with("_SF")
            || name.eq_ignore_ascii_case("SunS")
    };
    body.iter().filter(is_of).count() > 0
}

fn numbering(rules: &Rules<'_>, body: &[&Row], is_sunspec: bool) -> Found<Numbering> {
    if rules.numbering != Numbering::Auto {
        return Ok((rules.numbering, Some("numbering: as set".into())));
    }
    let is_number = |row: &Row| {
        let name = rules.type_name(row).ok().flatten();
        name.map(|name| name.class != Class::Bool)
    };
    if let Some(column) =
        rules.columns.iter().find(|column| column.meaning == Some(Meaning::Address) && column.unused.is_none())
    {
        let hex = body.iter().map(|row| rules.cell(row, Meaning::Address)).find(|cell| {
            let has_digit = cell.bytes().any(|byte| byte.is_ascii_digit());
            has_digit && cell.len() <= 6 && Written::parse(cell, false).is_err() && Written::parse(cell, true).is_ok()
        });
        if let Some(cell) = hex {
            let head = &column.head;
            return Err(format!(
                "are all addresses of \"{head}\" hexadecimal, as \"{cell}\" is? Say it: --column \"{head}=address-hex\", or correct the lines that are not"
            ));
        }
        match first_number(&column.head) {
            Some(0) => {
                return Ok((Numbering::Zero, Some(format!("numbering: from 0, as the head \"{}\" says", column.head))));
            }
            Some(_) => {
                return Ok((Numbering::One, Some(format!("numbering: from 1, as the head \"{}\" says", column.head))));
            }
            None => {}
        }
    }
    let addresses: Vec<(Written, Option<bool>)> =
        body.iter().filter_map(|row| Some((rules.address(row).ok()?, is_number(row)))).collect();
    let head =
        rules.columns.iter().find(|column| matches!(column.meaning, Some(Meaning::Address | Meaning::AddressHex)));
    let plain = head.map_or_else(String::new, |column| column.head.to_lowercase());
    let is_plain_head = ["reg", "addr", "adr", "dec", "start", "offset"].iter().any(|word| plain.contains(word));
    let evidence = Evidence { addresses: &addresses, is_sunspec, is_plain_head };
    address::detect(&evidence).map(|(numbering, why)| (numbering, Some(format!("numbering: {why}"))))
}

/// What sizes count: found from lines whose types have a known number of bits.
fn size(rules: &Rules<'_>, body: &[&Row]) -> Found<Option<SizeUnit>> {
    let Some(column) =
        rules.columns.iter().find(|column| column.meaning == Some(Meaning::Size) && column.unused.is_none())
    else {
        return Ok((None, None));
    };
    if rules.has_nibe_codes || rules.size.is_some() {
        return Ok((rules.size, None));
    }
    let mut possible = vec![SizeUnit::Registers, SizeUnit::Bytes, SizeUnit::Bits];
    let (mut has_evidence, mut is_needed) = (false, false);
    let mut sizes = Vec::new();
    for row in body {
        let cell = rules.cell(row, Meaning::Size);
        let Ok(number) = cell.parse::<u32>() else { continue };
        sizes.push(cell);
        let name = rules.type_name(row).ok().flatten();
        let range = rules.address(row).ok().and_then(|written| Some((written.end? - written.number + 1) * 16));
        let known = name.as_ref().and_then(|name| name.bits).or(range);
        match known.or(usual(name.as_ref())) {
            Some(bits) => {
                has_evidence = true;
                let counted = |unit: &SizeUnit| number.saturating_mul(unit.bits());
                possible.retain(|unit| counted(unit) == bits || (bits < 16 && counted(unit) == 16));
            }
            None => is_needed = true,
        }
    }
    let head = &column.head;
    match (&possible[..], has_evidence) {
        ([only], true) => {
            let what = match only {
                SizeUnit::Registers => "registers",
                SizeUnit::Bytes => "bytes",
                SizeUnit::Bits => "bits",
            };
            Ok((Some(*only), Some(format!("\"{head}\" counts {what}, as the sizes of the types show"))))
        }
        // Every type says its size itself.
        (_, true) if !is_needed && !possible.is_empty() => Ok((None, None)),
        _ if sizes.is_empty() => Ok((None, None)),
        ([], true) => Err(format!(
            "what does \"{head}\" count? Its numbers ({}) fit neither registers, bytes nor bits of the types. Say it: --size registers, bytes or bits, or --column \"{head}=ignore\"",
            examples(&sizes)
        )),
        _ => Err(format!(
            "what does \"{head}\" count? Its numbers ({}) could be registers, bytes or bits. Say it: --size registers, bytes or bits",
            examples(&sizes)
        )),
    }
}

/// The number of bits of types that have one in every list.
fn usual(name: Option<&TypeName>) -> Option<u32> {
    // A float without a number is of 32 bits, unless its size says 64: that is for the size to say.
    name.filter(|name| name.class == Class::Float).map(|_| 32)
}

/// Whether factors multiply or divide.
fn scale(rules: &Rules<'_>, body: &[&Row]) -> Result<Option<String>, String> {
    let Some(column) =
        rules.columns.iter().find(|column| column.meaning == Some(Meaning::Factor) && column.unused.is_none())
    else {
        return Ok(None);
    };
    let numbers = || body.iter().filter_map(|row| rules.cell(row, Meaning::Factor).parse::<i32>().ok());
    if !column.is_given && numbers().any(|number| number <= 0) && numbers().all(|number| (-10..=10).contains(&number)) {
        let head = &column.head;
        return Err(format!(
            "does \"{head}\" hold powers of ten (-1 is 0.1)? Say it: --column \"{head}=exponent\", or --column \"{head}=multiplier\" if not"
        ));
    }
    if let Some(meaning) = rules.scale {
        return Ok(Some(format!("\"{}\" {}s, as set", column.head, format!("{meaning:?}").to_lowercase())));
    }
    let factors: Vec<f64> = body
        .iter()
        .filter_map(|row| match factor::factor(rules.cell(row, Meaning::Factor), rules.decimal) {
            Ok(Some(Factor::Number(number))) => Some(number.abs()),
            _ => None,
        })
        .collect();
    match factor::question(&column.head, &factors) {
        Some(question) => Err(question),
        None if factors.iter().any(|factor| *factor != 1.0) => Ok(Some(format!("\"{}\" multiplies", column.head))),
        None => Ok(None),
    }
}

/// The decimal mark, where numbers such as `1,000` leave it open: found from the other numbers.
fn decimal_mark(rules: &Rules<'_>, body: &[&Row]) -> Found<Option<DecimalMark>> {
    const COLUMNS: [Meaning; 4] = [Meaning::Factor, Meaning::Multiplier, Meaning::Divisor, Meaning::Offset];
    if rules.decimal.is_some() {
        return Ok((rules.decimal, None));
    }
    let (mut open, mut marks) = (None, Vec::new());
    for cell in body.iter().flat_map(|row| COLUMNS.map(|meaning| rules.cell(row, meaning))) {
        for number in cell.split(|letter: char| !letter.is_ascii_digit() && !matches!(letter, '.' | ',')) {
            match factor::mark_of(number) {
                MarkOf::Open => open = open.or(Some(number)),
                MarkOf::Plain(mark) if !marks.contains(&mark) => marks.push(mark),
                _ => {}
            }
        }
    }
    match (open, &marks[..]) {
        (None, _) => Ok((None, None)),
        (Some(number), [mark]) => {
            let read = factor::decimal(number, Some(*mark)).unwrap_or_default();
            Ok((Some(*mark), Some(format!("\"{number}\" is {read}, as the other numbers are written"))))
        }
        (Some(number), _) => {
            let as_comma = factor::decimal(number, Some(DecimalMark::Comma)).unwrap_or_default();
            let as_point = factor::decimal(number, Some(DecimalMark::Point)).unwrap_or_default();
            Err(format!(
                "is \"{number}\" {as_comma} or {as_point}? Say it: --decimal comma ({as_comma}), or --decimal point ({as_point})"
            ))
        }
    }
}

/// A list without a column of types.
fn types(rules: &Rules<'_>, body: &[&Row]) -> Result<Option<String>, String> {
    let has_size = [Meaning::Size, Meaning::Registers, Meaning::Bytes, Meaning::Bits, Meaning::End]
        .into_iter()
        .any(|meaning| rules.has(meaning));
    let is_said = rules.has(Meaning::Type) || rules.has_nibe_codes || (has_size && rules.has(Meaning::Signed));
    let own = rules.types.iter().find(|(name, _)| name.is_empty());
    if let (false, Some((_, own))) = (is_said, own) {
        return Ok(Some(format!("the type of each register is {own}, as set")));
    }
    let is_register = |row: &&&Row| {
        let written = rules.address(row);
        let is_bits = rules.table(row).ok().flatten().is_some_and(Table::is_bits);
        !is_bits && written.is_ok_and(|written| written.bit.is_none()) && rules.cell(row, Meaning::Bit).is_empty()
    };
    match body.iter().find(is_register) {
        Some(_) if is_said => Ok(None),
        None => Ok(None),
        Some(row) => {
            let types = if has_size { "unsigned, signed or float" } else { "u16, i16, u32 or f32" };
            let first = types.split(',').next().unwrap_or_default();
            Err(format!(
                "which type have the values, such as that of line {}? No column says it. Say it: --type \"={first}\", or another such as {types}; or add a column of types",
                row.line
            ))
        }
    }
}

/// A column of offsets may hold those of registers, not of values.
fn offsets(rules: &Rules<'_>, body: &[&Row]) -> Result<Option<String>, String> {
    let numbers: Vec<f64> =
        body.iter().filter_map(|row| factor::decimal(rules.cell(row, Meaning::Offset), rules.decimal)).collect();
    let rises = numbers.windows(2).filter(|pair| pair[1] > pair[0]).count();
    if rises >= 3 && rises + 1 == numbers.len() {
        return Err("is the offset one of the value or of the register? It rises from line to line. Say it: --column \"offset=offset\", or --column \"offset=ignore\" (with the head of your list)".into());
    }
    Ok(None)
}
