//! Register lists in every style: each gives the right table, or a refusal that says what to do. None is wrong with exit
//! code 0.
//!
//! The truth is a handful of points. A style says how a list writes addresses, types, scales and numbers; all pairs of styles
//! are written, each with the columns in an order of its own.

use crate::common::random::Random;
use forebay::setting::Document;
use forebay::sources::modbus::import::{Numbering, Options, Refusal, import};
use forebay::sources::modbus::table::Device;
use forebay::sources::modbus::value::{Table, Type};
use std::path::Path;

struct Truth {
    name: &'static str,
    table: Table,
    address: u16,
    kind: Type,
    registers: u16,
    scale: f64,
    unit: &'static str,
}

const fn truth(
    (name, unit): (&'static str, &'static str),
    table: Table,
    address: u16,
    (kind, registers): (Type, u16),
    scale: f64,
) -> Truth {
    Truth { name, table, address, kind, registers, scale, unit }
}

const POINTS: [Truth; 6] = [
    truth(("voltage", "V"), Table::Holding, 0, (Type::U16, 1), 0.1),
    truth(("current", "A"), Table::Holding, 1, (Type::I16, 1), 0.01),
    truth(("energy", "kWh"), Table::Holding, 16, (Type::U32, 2), 0.001),
    truth(("reactive", "kvarh"), Table::Holding, 18, (Type::I32, 2), 1.0),
    truth(("flow", "m3/h"), Table::Holding, 26, (Type::U16, 1), 0.01),
    truth(("heat", "MJ"), Table::Holding, 174, (Type::U32, 2), 10.0),
];

/// Whether a style gives a table, or leaves a question open.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    Table,
    Refusal,
}

/// Columns of a point in a style: heads and cells.
type Columns = Vec<(&'static str, String)>;

/// How a style writes addresses: name, options, and what is expected.
const ADDRESSES: [(&str, Numbering, Expect); 11] = [
    ("decimal", Numbering::Auto, Expect::Table),
    ("0x", Numbering::Auto, Expect::Table),
    ("hex column", Numbering::Auto, Expect::Table),
    ("both", Numbering::Auto, Expect::Table),
    ("hex without a sign", Numbering::Auto, Expect::Refusal),
    ("classic", Numbering::Auto, Expect::Table),
    ("six digits", Numbering::Auto, Expect::Table),
    ("4x", Numbering::Auto, Expect::Table),
    ("range", Numbering::Auto, Expect::Table),
    ("one as the head says", Numbering::Auto, Expect::Table),
    ("one as set", Numbering::One, Expect::Table),
];

fn address(style: &str, point: &Truth) -> Columns {
    let (at, last) = (u32::from(point.address), u32::from(point.address + point.registers - 1));
    match style {
        "decimal" => vec![("Address", at.to_string())],
        "0x" => vec![("Register", format!("0x{at:04X}"))],
        "hex column" => vec![("Register (Hex)", format!("{at:04x}"))],
        "both" => vec![("Register (Hex)", format!("{at:04X}")), ("Register (Dec)", at.to_string())],
        "hex without a sign" => vec![("Address", format!("{at:04X}"))],
        "classic" => vec![("Modbus register", (40_001 + at).to_string())],
        "six digits" => vec![("Address", (400_001 + at).to_string())],
        "4x" => vec![("Address", format!("4x{:05}", at + 1))],
        "range" => vec![("Register", if at == last { at.to_string() } else { format!("{at} - {last}") })],
        "one as the head says" => vec![("Register (1-based)", (at + 1).to_string())],
        _ => vec![("Address", (at + 1).to_string())],
    }
}

const TYPES: [(&str, Expect); 9] = [
    ("names", Expect::Table),
    ("short", Expect::Table),
    ("words", Expect::Table),
    ("sign and bits", Expect::Table),
    ("sign column", Expect::Table),
    ("registers", Expect::Table),
    ("bytes", Expect::Table),
    ("unknown head", Expect::Refusal),
    ("none", Expect::Refusal),
];

fn kind(style: &str, point: &Truth) -> Columns {
    let is_signed = matches!(point.kind, Type::I16 | Type::I32);
    let bits = point.registers * 16;
    let sign = if is_signed { "signed" } else { "unsigned" };
    match style {
        "names" => vec![("Data type", format!("{}INT{bits}", if is_signed { "" } else { "U" }))],
        "short" => vec![("Type", format!("{}{bits}", if is_signed { "S" } else { "U" }))],
        "words" => vec![(
            "Datentyp",
            match point.kind {
                Type::U16 => "WORD".into(),
                Type::I16 => "short".into(),
                Type::U32 => "U_DWORD".into(),
                _ => "DINT".into(),
            },
        )],
        "sign and bits" => vec![("Format", format!("{bits}-bit {sign}"))],
        "sign column" => vec![("Type", format!("{bits} bit")), ("Signed", if is_signed { "yes" } else { "no" }.into())],
        "registers" => vec![("Type", sign.into()), ("Words", point.registers.to_string())],
        "bytes" => vec![("Type", sign.into()), ("Length (bytes)", (point.registers * 2).to_string())],
        "unknown head" => vec![("Kind", format!("{}INT{bits}", if is_signed { "" } else { "U" }))],
        _ => vec![],
    }
}

const SCALES: [(&str, Expect); 18] = [
    ("multiplier", Expect::Table),
    ("comma", Expect::Table),
    ("three decimals", Expect::Table),
    ("three decimals with comma", Expect::Table),
    ("power", Expect::Table),
    ("fraction", Expect::Table),
    ("decimals", Expect::Table),
    ("exponents as said", Expect::Table),
    ("exponents for scale registers", Expect::Table),
    ("divisor", Expect::Table),
    ("unit", Expect::Table),
    ("gain that divides", Expect::Refusal),
    ("x10 that divides", Expect::Refusal),
    ("exponents by another name", Expect::Refusal),
    ("unknown head", Expect::Refusal),
    ("behind the unit", Expect::Refusal),
    ("in a remark", Expect::Refusal),
    ("two that differ", Expect::Refusal),
];

fn scale(style: &str, point: &Truth) -> Columns {
    let unit = ("Unit", point.unit.to_owned());
    let (scale, inverse) = (point.scale, format!("{}", (1e6 / point.scale).round() / 1e6));
    let places = -point.scale.log10().round() as i32;
    let columns = match style {
        "multiplier" => vec![("Multiplier", scale.to_string())],
        "comma" => vec![("Multiplier", scale.to_string().replace('.', ","))],
        "three decimals" => vec![("Multiplier", format!("{scale:.3}"))],
        "three decimals with comma" => vec![("Multiplier", format!("{scale:.3}").replace('.', ","))],
        "power" => vec![("Multiplier", format!("10^{}", -places))],
        "fraction" => vec![("Factor", if scale > 1.0 { format!("{scale}/1") } else { format!("1/{inverse}") })],
        "decimals" => vec![("Decimals", places.to_string())],
        "exponents as said" => vec![("Exponent", (-places).to_string())],
        "exponents for scale registers" => vec![("SF", (-places).to_string())],
        "divisor" => vec![("Divisor", inverse)],
        "unit" if scale == 1.0 => vec![],
        "unit" => return vec![("Unit", format!("{scale} {}", point.unit))],
        "gain that divides" => vec![("Gain", inverse)],
        "x10 that divides" => vec![("Scale", format!("x{inverse}"))],
        "exponents by another name" => vec![("Scale factor", (-places).to_string())],
        "unknown head" => vec![("Sk.", inverse)],
        "behind the unit" if scale == 1.0 => vec![],
        "behind the unit" => return vec![("Unit", format!("{}/{inverse}", point.unit))],
        "in a remark" => vec![("Note", if scale == 1.0 { String::new() } else { format!("divide by {inverse}") })],
        _ => vec![("Multiplier", scale.to_string()), ("Decimals", (places + 1).to_string())],
    };
    [vec![unit], columns].concat()
}

/// Writes a list; cells with the separator are quoted.
fn written(columns: &[Columns], separator: char, order: &[usize]) -> String {
    let quoted = |cell: &str| if cell.contains(separator) { format!("\"{cell}\"") } else { cell.to_owned() };
    let heads: Vec<_> = columns[0].iter().map(|(head, _)| quoted(head)).collect();
    let rows = columns.iter().map(|row| row.iter().map(|(_, cell)| quoted(cell)).collect::<Vec<_>>());
    let lines = [heads].into_iter().chain(rows).map(|cells| {
        let cells: Vec<_> = order.iter().map(|column| cells[*column].clone()).collect();
        cells.join(&separator.to_string())
    });
    lines.map(|line| line + "\n").collect()
}

fn shuffled(length: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    for last in (1..length).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

/// What is wrong with a table, if anything. Points may be missing where lines were left out.
fn wrong(device: &Device) -> Option<String> {
    device.points.iter().find_map(|point| {
        let Some(truth) = POINTS.iter().find(|truth| truth.name == point.name) else {
            return Some(format!("\"{}\" is none", point.name));
        };
        let found = (point.table, point.address, point.encoding.kind, point.encoding.scale, point.unit.as_deref());
        let wanted = (truth.table, truth.address, truth.kind, truth.scale, Some(truth.unit));
        (found != wanted).then(|| format!("\"{}\" is {found:?}, not {wanted:?}", point.name))
    })
}

#[test]
fn a_list_in_any_style_gives_the_right_table_or_is_refused() {
    let mut random = Random::seeded();
    for (address_style, numbering, address_expected) in ADDRESSES {
        for (type_style, type_expected) in TYPES {
            for (scale_style, scale_expected) in SCALES {
                let separator = [';', '\t', ',', '|'][random.below(4) as usize];
                let row = |point: &Truth| {
                    let name = vec![("Name", point.name.to_owned())];
                    [name, address(address_style, point), kind(type_style, point), scale(scale_style, point)].concat()
                };
                let mut rows: Vec<Columns> = POINTS.iter().map(row).collect();
                // Columns that a style has only where they say something.
                let widest = rows.iter().map(Vec::len).max().expect("rows");
                let full = rows.iter().find(|row| row.len() == widest).expect("one").clone();
                for row in rows.iter_mut().filter(|row| row.len() < widest) {
                    let cells = full.iter().map(|(head, _)| {
                        let own = row.iter().find(|(other, _)| other == head);
                        (*head, own.map(|(_, cell)| cell.clone()).unwrap_or_default())
                    });
                    *row = cells.collect();
                }
                let list = written(&rows, separator, &shuffled(widest, &mut random));
                let options = Options { numbering, ..Options::default() };
                let what = format!("{address_style}, {type_style}, {scale_style}:\n{list}");
                let expected = [address_expected, type_expected, scale_expected];
                match import(list.as_bytes(), "list", &options) {
                    Ok(imported) => {
                        let document = Document::new(Path::new("t"), imported.table.clone());
                        let device = Device::read(&document).unwrap_or_else(|problems| panic!("{what}{problems:?}"));
                        let is_whole = imported.skipped.is_empty();
                        assert!(
                            !(is_whole && wrong(&device).is_some()),
                            "{what}{}\n{:#?}",
                            wrong(&device).unwrap_or_default(),
                            imported.report
                        );
                        assert!(!(is_whole && expected.contains(&Expect::Refusal)), "{what}{}", imported.table);
                        let must = expected.iter().all(|expected| *expected == Expect::Table);
                        assert!(is_whole || !must, "{what}{:#?}", imported.skipped);
                    }
                    Err(Refusal::NoList(why)) => panic!("{what}{why}"),
                    Err(Refusal::Open { questions, .. }) => {
                        assert!(expected.iter().any(|expected| *expected != Expect::Table), "{what}{questions:#?}");
                        assert!(
                            questions.iter().all(|question| question.contains("--") || question.contains("column")),
                            "{questions:?}"
                        );
                    }
                }
            }
        }
    }
}
