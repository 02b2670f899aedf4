//! Import: converts a vendor's register list in CSV format to a device table.
//!
//! Promise: the resulting table loads; each line that is not in it is reported with the reason.

mod columns;

use super::table::Device;
use super::value::Table;
use crate::setting::Document;
use columns::{Column, cells, columns, separator};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// The numbering of addresses in the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Numbering {
    /// Detected from the numbers: 30001 and 40001 are classic, all others are protocol addresses.
    #[default]
    Auto,
    /// From 0, as in the protocol.
    Zero,
    One,
    /// 00001 coils, 10001 discrete inputs, 30001 input registers, 40001 holding registers.
    Classic,
}

/// The result of an import.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// The device table as TOML.
    pub table: String,
    /// Number of points in the table.
    pub points: usize,
    /// Lines that are not in the table, with the reasons.
    pub skipped: Vec<(usize, String)>,
}

/// A point as TOML, and its line in the list.
struct ImportedPoint {
    line: usize,
    text: String,
}

/// Converts a list. The error says why it is no register list.
pub fn import(csv: &str, title: &str, numbering: Numbering) -> Result<Imported, String> {
    let csv = csv.trim_start_matches('\u{feff}');
    let separator = separator(csv);
    let rows = cells(csv, separator);
    // Titles may precede the header line.
    let head = rows.iter().position(|(_, row)| columns(row).is_ok());
    let Some(head) = head else {
        let why = rows.first().map_or_else(|| "it is empty".into(), |(_, row)| columns(row).err().unwrap_or_default());
        return Err(format!("no line names the columns: {why}"));
    };
    let names = columns(&rows[head].1)?;
    let body = &rows[head + 1..];
    let cell = |row: &[String], column: Column| -> String {
        let place = names.iter().position(|name| *name == Some(column));
        place.and_then(|place| row.get(place)).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let numbering = match numbering {
        Numbering::Auto if is_classic(body.iter().map(|(_, row)| cell(row, Column::Address))) => Numbering::Classic,
        Numbering::Auto => Numbering::Zero,
        other => other,
    };
    let mut imported = Imported::default();
    let mut found = Vec::new();
    let mut taken = BTreeSet::new();
    for (line, row) in body.iter().filter(|(_, row)| row.iter().any(|cell| !cell.trim().is_empty())) {
        match point(&|column| cell(row, column), numbering, &mut taken) {
            Ok(text) => found.push(ImportedPoint { line: *line, text }),
            Err(why) => imported.skipped.push((*line, why)),
        }
    }
    drop_refused(title, found, &mut imported)?;
    imported.skipped.sort();
    Ok(imported)
}

/// Removes points that the checks of a table refuse, until the table loads.
fn drop_refused(title: &str, mut found: Vec<ImportedPoint>, imported: &mut Imported) -> Result<(), String> {
    loop {
        if found.is_empty() {
            return Err(match imported.skipped.first() {
                Some((line, why)) => format!("no line is a point; line {line}: {why}"),
                None => "there is no line below the head".into(),
            });
        }
        let mut text = format!("description = {}\n", quoted(title));
        text.push_str("\n[group.values]\ninterval = \"5s\"\n");
        found.iter().for_each(|point| text.push_str(&point.text));
        let Err(problems) = Device::read(&Document::new(Path::new("table"), text.clone())) else {
            (imported.points, imported.table) = (found.len(), text);
            return Ok(());
        };
        let mut wrong: Vec<(usize, String)> = Vec::new();
        for problem in problems {
            let place =
                problem.key.strip_prefix("point[").and_then(|rest| rest.split(']').next()?.parse::<usize>().ok());
            match place {
                Some(place) if place < found.len() => wrong.push((place, problem.message)),
                _ => return Err(problem.to_string()),
            }
        }
        wrong.sort();
        wrong.dedup_by_key(|(place, _)| *place);
        for (place, why) in wrong.into_iter().rev() {
            imported.skipped.push((found.remove(place).line, why));
        }
    }
}

/// Whether all addresses have the classic form.
fn is_classic(addresses: impl Iterator<Item = String>) -> bool {
    let mut numbers = addresses.filter_map(|text| text.split('.').next()?.trim().parse::<u32>().ok()).peekable();
    let is_far =
        |number: u32| matches!(number, 10_001..=19_999 | 30_001..=49_999 | 100_001..=165_536 | 300_001..=465_536);
    numbers.peek().is_some() && numbers.all(is_far)
}

fn point(
    cell: &dyn Fn(Column) -> String,
    numbering: Numbering,
    taken: &mut BTreeSet<String>,
) -> Result<String, String> {
    let (table, address, bit) = place(&cell(Column::Address), &cell(Column::Table), numbering)?;
    let (kind, mut length) = kind(&cell(Column::Type), table)?;
    let given = cell(Column::Length);
    if !given.is_empty() {
        let count: u16 = given.parse().map_err(|_| format!("length \"{given}\" is no number"))?;
        length = (kind == "text").then_some(count);
    }
    let mut kind = wide(kind, &given);
    let bit = match cell(Column::Bit) {
        given if given.is_empty() => bit,
        given => Some(given.parse().map_err(|_| format!("bit \"{given}\" is no number"))?),
    };
    let is_bits = table.is_bits();
    if bit.is_some() && !is_bits {
        kind = "bool";
    }
    if kind == "bool" && !is_bits && bit.is_none() {
        return Err("is a bit of a register, and no column says which".into());
    }
    let label = [Column::Name, Column::Description].into_iter().map(cell).find(|text| !text.is_empty());
    let name = unique(&word(label.as_deref().unwrap_or("")), table, address, taken);
    let mut out = String::from("\n[[point]]\n");
    let mut line = |key: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{key} = {value}");
    };
    line("name", &quoted(&name));
    line("table", &quoted(table.name()));
    line("address", &address.to_string());
    if !is_bits {
        line("type", &quoted(kind));
    }
    if let Some(length) = length.filter(|_| kind == "text") {
        line("length", &length.to_string());
    }
    if let Some(bit) = bit.filter(|_| !is_bits) {
        line("bit", &bit.to_string());
    }
    if let Some(order) = order(&cell(Column::Order))? {
        line("order", &quoted(order));
    }
    let is_number = !matches!(kind, "bool" | "text");
    let scale = factor(&cell(Column::Scale))?;
    if let Some(scale) = scale.filter(|scale| *scale != 1.0 && is_number) {
        line("scale", &scale.to_string());
    }
    let offset = decimal(&cell(Column::Offset)).unwrap_or(0.0);
    if offset != 0.0 && is_number {
        line("offset", &offset.to_string());
    }
    let unit = cell(Column::Unit);
    if !unit.is_empty() && unit != "-" {
        line("unit", &quoted(&unit));
    }
    Ok(out)
}

/// The type with the size that the length column gives, for lists whose type column gives none.
fn wide(kind: &'static str, registers: &str) -> &'static str {
    match (kind, registers) {
        ("u16", "2") => "u32",
        ("u16", "4") => "u64",
        ("i16", "2") => "i32",
        ("i16", "4") => "i64",
        ("f32", "4") => "f64",
        ("bcd16", "2") => "bcd32",
        ("bcd16", "4") => "bcd64",
        (kind, _) => kind,
    }
}

/// Table, address from 0, and the bit if the address names one.
fn place(address: &str, table: &str, numbering: Numbering) -> Result<(Table, u32, Option<u8>), String> {
    let wrong = || format!("address \"{address}\" is no number");
    let (number, bit) = match address.split_once(['.', ':']) {
        Some((number, bit)) => (number, Some(bit.parse::<u8>().map_err(|_| wrong())?)),
        None => (address, None),
    };
    let number = number.trim().replace(' ', "");
    let lower = number.to_ascii_lowercase();
    let parsed = match (lower.strip_prefix("0x"), lower.strip_suffix('h')) {
        (Some(hex), _) | (None, Some(hex)) => u32::from_str_radix(hex, 16),
        (None, None) => lower.parse(),
    };
    let number = parsed.map_err(|_| wrong())?;
    let named = table_of(table)?;
    match numbering {
        Numbering::Classic => {
            let long = number >= 100_000;
            let (digit, rest) =
                if long { (number / 100_000, number % 100_000) } else { (number / 10_000, number % 10_000) };
            let table = match digit {
                0 => Table::Coil,
                1 => Table::Discrete,
                3 => Table::Input,
                4 => Table::Holding,
                _ => return Err(format!("address {number} is none of 00001, 10001, 30001 and 40001")),
            };
            let at =
                rest.checked_sub(1).ok_or_else(|| format!("address {number} is no register; they count from 1"))?;
            Ok((table, at, bit))
        }
        Numbering::One => {
            let at = number.checked_sub(1).ok_or("address 0 in a list that counts from 1")?;
            Ok((named.unwrap_or_default(), at, bit))
        }
        Numbering::Auto | Numbering::Zero => Ok((named.unwrap_or_default(), number, bit)),
    }
}

fn table_of(text: &str) -> Result<Option<Table>, String> {
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    Ok(match lower.trim().trim_start_matches("fc").trim_start_matches("0x").trim_start_matches('0') {
        "" if lower.trim().is_empty() => None,
        "1" | "1x" | "5" | "f" => Some(Table::Coil),
        "2" => Some(Table::Discrete),
        "3" | "4x" | "6" | "16" | "10" => Some(Table::Holding),
        "4" | "3x" => Some(Table::Input),
        _ if has(&["coil"]) => Some(Table::Coil),
        _ if has(&["discrete"]) => Some(Table::Discrete),
        _ if has(&["hold", "r/w", "rw"]) => Some(Table::Holding),
        _ if has(&["input"]) => Some(Table::Input),
        _ => return Err(format!("table \"{text}\" is none of coil, discrete, holding and input, nor a function code")),
    })
}

/// The type, and the length of a text if the type column gives it.
fn kind(text: &str, table: Table) -> Result<(&'static str, Option<u16>), String> {
    if table.is_bits() {
        return Ok(("bool", None));
    }
    let plain: String = text.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let digits: String = plain.chars().filter(char::is_ascii_digit).collect();
    let letters: String = plain.chars().filter(char::is_ascii_alphabetic).collect();
    let size = digits.parse::<u16>().ok();
    let sized = |kinds: [&'static str; 3], default: &'static str| match size {
        Some(16) => Ok(kinds[0]),
        Some(32) => Ok(kinds[1]),
        Some(64) => Ok(kinds[2]),
        None => Ok(default),
        Some(_) => Err(format!("type \"{text}\" has a size that no register has")),
    };
    let (unsigned, signed) = (["u16", "u32", "u64"], ["i16", "i32", "i64"]);
    let found = match letters.as_str() {
        "" if digits.is_empty() => "u16",
        "u" | "uint" | "unsigned" | "unsignedint" | "unsignedinteger" | "ui" | "unsignedbit" | "ubit" => {
            sized(unsigned, "u16")?
        }
        "word" | "uword" | "ushort" | "bitfield" | "enum" | "bitmap" => sized(unsigned, "u16")?,
        "dword" | "udword" | "udint" | "ulong" | "ulint" if size.is_none() => {
            if letters == "ulint" {
                "u64"
            } else {
                "u32"
            }
        }
        "qword" | "lword" => "u64",
        "i" | "int" | "s" | "sint" | "signed" | "signedint" | "signedinteger" | "si" | "integer" | "short"
        | "signedbit" => sized(signed, "i16")?,
        "dint" | "long" => "i32",
        "lint" => "i64",
        "f" | "float" | "real" | "ieee" | "floatingpoint" | "single" | "floatieee" | "fp" => match size {
            Some(64) => "f64",
            _ => "f32",
        },
        "double" | "lreal" => "f64",
        "bcd" => sized(["bcd16", "bcd32", "bcd64"], "bcd16")?,
        "bool" | "bit" | "boolean" => "bool",
        "string" | "ascii" | "text" | "char" | "utf" | "str" => {
            return Ok(("text", size.map(|letters| letters.div_ceil(2).max(1))));
        }
        _ => return Err(format!("type \"{text}\" is not known")),
    };
    Ok((found, None))
}

fn order(text: &str) -> Result<Option<&'static str>, String> {
    let plain: String = text.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    Ok(match plain.as_str() {
        "" | "abcd" | "big" | "bigendian" | "be" | "1234" | "msb" | "msw" | "highlow" => None,
        "cdab" | "wordswap" | "swapped" | "littleword" | "lsw" | "3412" | "lowhigh" | "midlittle" => Some("CDAB"),
        "badc" | "byteswap" | "2143" => Some("BADC"),
        "dcba" | "little" | "littleendian" | "le" | "4321" => Some("DCBA"),
        _ => return Err(format!("order \"{text}\" is none of ABCD, CDAB, BADC and DCBA")),
    })
}

/// Parses a number with a decimal point or comma.
fn decimal(text: &str) -> Option<f64> {
    text.trim().replace(',', ".").parse().ok().filter(|number: &f64| number.is_finite())
}

/// Parses a scale factor: `0.1`, `x0.1`, `/10`, `1/10`.
fn factor(text: &str) -> Result<Option<f64>, String> {
    let plain = text.trim().trim_start_matches(['x', 'X', '*', '×']).trim();
    if plain.is_empty() || plain == "-" {
        return Ok(None);
    }
    let divided = plain.split_once(['/', '÷', ':']);
    let number = match divided {
        Some((over, under)) => {
            let over = if over.trim().is_empty() { Some(1.0) } else { decimal(over) };
            over.zip(decimal(under)).map(|(over, under)| over / under)
        }
        None => decimal(plain),
    };
    match number {
        Some(number) if number != 0.0 && number.is_finite() => Ok(Some(number)),
        _ => Err(format!("scale \"{text}\" is no number")),
    }
}

/// Makes a name of letters, digits and `_`.
fn word(text: &str) -> String {
    let mut out = String::new();
    for letter in text.to_lowercase().chars() {
        match letter {
            'a'..='z' | '0'..='9' => out.push(letter),
            'ä' => out.push_str("ae"),
            'ö' => out.push_str("oe"),
            'ü' => out.push_str("ue"),
            'ß' => out.push_str("ss"),
            _ if !out.is_empty() && !out.ends_with('_') => out.push('_'),
            _ => {}
        }
    }
    out.truncate(56);
    out.trim_end_matches('_').to_owned()
}

fn unique(name: &str, table: Table, address: u32, taken: &mut BTreeSet<String>) -> String {
    let plain = if name.is_empty() { format!("{}_{address}", table.name()) } else { name.to_owned() };
    let mut name = plain.clone();
    let mut count = 2;
    while !taken.insert(name.clone()) {
        name = format!("{plain}_{count}");
        count += 1;
    }
    name
}

/// A TOML string. TOML understands the escapes of JSON.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::modbus::value::{Order, Type};

    fn device(csv: &str, numbering: Numbering) -> (Device, Vec<(usize, String)>) {
        let imported = import(csv, "a meter", numbering).expect("a list");
        let device = Device::read(&Document::new(Path::new("t"), imported.table.clone())).expect("it loads");
        assert_eq!(device.points.len(), imported.points);
        (device, imported.skipped)
    }

    #[test]
    fn lists_of_vendors_become_tables() {
        let (device, skipped) = device(
            "Acme Power Meter;;;;\nRegister;Parameter;Format;Unit;Multiplier\n40001;Voltage L1-N;UINT16;V;0,1\n40002;Energy \"total\";FLOAT32;kWh;\n40010;\"Serial; No\";STRING8;;\n30005;Temp;INT16;°C;/10\n40003;Overlap;UINT16;;\nfoo;Bad;UINT16;;\n40020;Odd;UINT24;;\n",
            Numbering::Auto,
        );
        let shown: Vec<_> = device
            .points
            .iter()
            .map(|point| (point.name.as_str(), point.table, point.address, point.encoding.kind, point.encoding.scale))
            .collect();
        use Table::{Holding, Input};
        assert_eq!(
            shown,
            [
                ("voltage_l1_n", Holding, 0, Type::U16, 0.1),
                ("energy_total", Holding, 1, Type::F32, 1.0),
                ("serial_no", Holding, 9, Type::Text, 1.0),
                ("temp", Input, 4, Type::I16, 0.1),
            ]
        );
        assert_eq!(device.points[2].count, 4);
        assert_eq!(device.points[3].unit.as_deref(), Some("°C"));
        let lines: Vec<_> = skipped.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [7, 8, 9], "{skipped:?}");
        assert!(skipped[0].1.contains("overlaps point \"energy_total\""), "{skipped:?}");
    }

    #[test]
    fn columns_say_table_size_order_and_bit() {
        let (device, skipped) = device(
            "name,function code,address,type,length,word order,bit\nA,3,0x10,float,2,CDAB,\nB,4,20,uint,4,,\nC,1,7,,,,\nD,03,30,bool,,,5\nE,holding,31.2,,,,\n",
            Numbering::Auto,
        );
        assert!(skipped.is_empty(), "{skipped:?}");
        let kinds: Vec<_> =
            device.points.iter().map(|point| (point.table, point.address, point.encoding.kind)).collect();
        use Table::{Coil, Holding, Input};
        assert_eq!(
            kinds,
            [
                (Holding, 16, Type::F32),
                (Input, 20, Type::U64),
                (Coil, 7, Type::Bool),
                (Holding, 30, Type::Bool),
                (Holding, 31, Type::Bool)
            ]
        );
        assert_eq!(device.points[0].encoding.order, Order::Cdab);
        assert_eq!((device.points[3].encoding.field, device.points[4].encoding.field), (Some((5, 5)), Some((2, 2))));
    }

    #[test]
    fn numbering_can_be_said() {
        let address = |numbering| {
            let (device, _) = device("name\taddress\nx\t1\n", numbering);
            device.points[0].address
        };
        assert_eq!((address(Numbering::Auto), address(Numbering::Zero), address(Numbering::One)), (1, 1, 0));
    }

    #[test]
    fn what_is_no_list_is_refused_with_a_reason() {
        for (csv, why) in [
            ("", "it is empty"),
            ("a;b\n1;2\n", "no column of addresses"),
            ("name;address\nx;y\n", "line 2: address \"y\" is no number"),
            ("name;address\n", "no line below the head"),
        ] {
            let error = import(csv, "x", Numbering::Auto).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }
}
