//! One line of a list, as far as it is understood.

use super::super::value::Table;
use super::address::{Numbering, Written};
use super::columns::{Column, Meaning};
use super::factor::{DecimalMark, ScaleMeaning};
use super::input::Row;
use super::types::{self, Class, TextUnit, TypeName};

/// What the size of a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SizeUnit {
    Registers,
    Bytes,
    Bits,
}

/// What holds for every line.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub(super) columns: Vec<Column>,
    pub(super) numbering: Numbering,
    pub(super) size: Option<SizeUnit>,
    pub(super) scale: Option<ScaleMeaning>,
    pub(super) text_length: Option<TextUnit>,
    pub(super) decimal: Option<DecimalMark>,
    /// Types that the user has named.
    pub(super) types: &'a [(String, String)],
    /// Whether sizes are codes of NIBE.
    pub(super) has_nibe_codes: bool,
}

/// The length of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Registers(u16),
    /// Letters or registers: what follows decides.
    Open {
        count: u16,
        is_bracketed: bool,
    },
}

/// A register that gives the exponent of a scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ScaleReference {
    Name(String),
    Address(u32),
}

/// A point of the table to be.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) line: usize,
    /// The name in the list.
    pub(super) label: String,
    pub(super) table: Table,
    /// Whether the list says which table.
    pub(super) is_table_known: bool,
    pub(super) address: u32,
    pub(super) kind: &'static str,
    pub(super) class: Class,
    pub(super) registers: u32,
    pub(super) length: Option<Length>,
    pub(super) bits: Option<(u8, u8)>,
    pub(super) order: Option<String>,
    /// Whether it has more than one word, and the list does not say their order.
    pub(super) is_order_assumed: bool,
    pub(super) is_size_assumed: bool,
    pub(super) scale: f64,
    pub(super) scale_reference: Option<ScaleReference>,
    pub(super) offset: f64,
    pub(super) unit: String,
    pub(super) values: Vec<(i64, String)>,
    pub(super) absent: Option<String>,
}

/// Codes in the column "Size of variable" of NIBE's S series.
const NIBE_CODES: [(&str, &str); 6] =
    [("1", "s8"), ("2", "s16"), ("3", "s32"), ("4", "u8"), ("5", "u16"), ("6", "u32")];

impl Rules<'_> {
    /// The cell of a meaning; empty if there is no such column.
    pub(super) fn cell<'r>(&self, row: &'r Row, meaning: Meaning) -> &'r str {
        let is_it = |column: &Column| column.meaning == Some(meaning) && column.unused.is_none();
        self.columns.iter().position(is_it).map_or("", |column| row.cell(column))
    }

    pub(super) fn has(&self, meaning: Meaning) -> bool {
        self.columns.iter().any(|column| column.meaning == Some(meaning) && column.unused.is_none())
    }

    /// The address of a line; a decimal one before a hexadecimal one.
    pub(super) fn address(&self, row: &Row) -> Result<Written, String> {
        let (plain, hex) = (self.cell(row, Meaning::Address), self.cell(row, Meaning::AddressHex));
        match (plain, hex) {
            ("", "") => Err("there is no address".into()),
            ("", hex) => Written::parse(hex, true),
            (plain, "") => Written::parse(plain, false),
            (plain, hex) => {
                let (first, second) = (Written::parse(plain, false)?, Written::parse(hex, true)?);
                if first.number == second.number {
                    return Ok(first);
                }
                Err(format!(
                    "addresses {plain} and {hex} (hexadecimal) are not the same; say which column counts with --column \"…=ignore\""
                ))
            }
        }
    }

    /// The type of a line, as far as its name goes; `None` if the list has no types.
    pub(super) fn type_name(&self, row: &Row) -> Result<Option<TypeName>, String> {
        let cell = self.cell(row, Meaning::Type);
        if let Some((_, own)) = self.types.iter().find(|(name, _)| name.trim().eq_ignore_ascii_case(cell)) {
            return TypeName::parse(own).map(Some);
        }
        if self.has_nibe_codes {
            let code = self.cell(row, Meaning::Size);
            let own = NIBE_CODES.iter().find(|(known, _)| *known == code).map(|(_, own)| *own);
            return own.map(TypeName::parse).transpose();
        }
        match cell {
            "" => Ok(None),
            cell => TypeName::parse(cell).map(Some),
        }
    }

    /// Understands a line.
    pub(super) fn draft(&self, row: &Row) -> Result<Draft, String> {
        let access = self.cell(row, Meaning::Access).to_lowercase();
        if matches!(access.as_str(), "w" | "wo" | "write" | "write only" | "writeonly" | "write-only") {
            return Err("it can only be written".into());
        }
        let written = self.address(row)?;
        let named = self.table(row)?;
        let (table, address) = written.place(self.numbering, named)?;
        let (is_table_known, table) = (table.is_some(), table.unwrap_or_default());
        let label = [Meaning::Name, Meaning::Description].map(|meaning| self.cell(row, meaning));
        let label = label.into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned();
        let name = if table.is_bits() { None } else { self.type_name(row)? };
        let mut draft = Draft {
            line: row.line,
            label,
            table,
            is_table_known,
            address,
            kind: "bool",
            class: Class::Bool,
            registers: 1,
            length: None,
            bits: None,
            order: None,
            is_order_assumed: false,
            is_size_assumed: false,
            scale: 1.0,
            scale_reference: None,
            offset: 0.0,
            unit: String::new(),
            values: Vec::new(),
            absent: None,
        };
        if !table.is_bits() {
            self.shape(row, &written, name, &mut draft)?;
        }
        self.measure(row, &mut draft)?;
        Ok(draft)
    }

    /// The table that a line names.
    pub(super) fn table(&self, row: &Row) -> Result<Option<Table>, String> {
        let by_name = table_of(self.cell(row, Meaning::Table), false)?;
        let by_function = table_of(self.cell(row, Meaning::Function), true)?;
        match (by_name, by_function) {
            (Some(one), Some(other)) if one != other => {
                Err(format!("the table is \"{}\" in one column and \"{}\" in another", one.name(), other.name()))
            }
            (one, other) => Ok(one.or(other)),
        }
    }

    /// Type, size, bits and order of a register.
    fn shape(&self, row: &Row, written: &Written, name: Option<TypeName>, draft: &mut Draft) -> Result<(), String> {
        let bits = match self.cell(row, Meaning::Bit) {
            "" => written.bit.map(|bit| (bit, bit)),
            cell => Some(bit_range(cell)?),
        };
        let size = self.size(row, written)?;
        let name = match name {
            Some(name) => name,
            None if bits.is_some() => TypeName::parse("bool")?,
            None if self.has(Meaning::Type) || self.has_nibe_codes => {
                return Err("it has no type; give one with --type \"=u16\", or leave the line out".into());
            }
            None => TypeName::number(Class::Unsigned, None, None),
        };
        let name = self.with_sign(row, name)?;
        let is_part = bits.is_some() && matches!(name.class, Class::Bool | Class::Unsigned | Class::Unknown);
        draft.class = name.class;
        match name.class {
            Class::Text => draft.length = Some(self.text_length(&name, size, written)?),
            Class::Bool if bits.is_none() => {
                let cell = self.cell(row, Meaning::Type);
                return Err(format!(
                    "is a bit of a register, and no column says which; if the register is 0 or 1 as a whole, say --type \"{cell}=u16\""
                ));
            }
            Class::Unknown if !is_part => {
                let cell = self.cell(row, Meaning::Type);
                return Err(format!(
                    "type \"{cell}\" does not say whether it has a sign; say it with --type \"{cell}=i16\" or u16"
                ));
            }
            _ if is_part => {}
            class => {
                draft.is_size_assumed =
                    name.bits.is_none() && size.is_none() && matches!(class, Class::Unsigned | Class::Signed);
                let wanted = width(&name, size)?;
                let (kind, of) =
                    TypeName::of_bits(class, wanted).ok_or_else(|| format!("no type of Forebay has {wanted} bits"))?;
                (draft.kind, draft.registers) = (kind, of.registers().map_or(1, u32::from));
            }
        }
        match bits {
            Some((first, last)) if first == last => (draft.kind, draft.class) = ("bool", Class::Bool),
            Some(_) => (draft.kind, draft.class) = ("u16", Class::Unsigned),
            None if draft.class == Class::HighByte => draft.bits = Some((8, 15)),
            None if draft.class == Class::Text => draft.kind = "text",
            None => {}
        }
        draft.bits = bits.or(draft.bits);
        let by_column = types::order(self.cell(row, Meaning::Order))?;
        draft.is_order_assumed = draft.registers > 1 && by_column.is_none() && name.order.is_none();
        let order = by_column.or(name.order.map(str::to_owned)).filter(|order| order != "ABCD");
        draft.order = order.filter(|_| draft.registers > 1 || draft.class == Class::Text || draft.bits.is_none());
        Ok(())
    }

    /// The type with what a column of signs says.
    fn with_sign(&self, row: &Row, name: TypeName) -> Result<TypeName, String> {
        let cell = self.cell(row, Meaning::Signed).to_lowercase();
        let class = match cell.as_str() {
            "" | "-" => return Ok(name),
            "yes" | "y" | "true" | "1" | "x" | "s" | "signed" | "+/-" | "±" | "ja" => Class::Signed,
            "no" | "n" | "false" | "0" | "u" | "unsigned" | "+" | "nein" => Class::Unsigned,
            _ => return Err(format!("sign \"{cell}\" is not known; expected signed or unsigned, yes or no")),
        };
        let has_type = !self.cell(row, Meaning::Type).is_empty();
        match name.class {
            Class::Unknown => Ok(TypeName { class, ..name }),
            Class::Unsigned if !has_type => Ok(TypeName { class, ..name }),
            Class::Unsigned | Class::Signed if name.class != class => Err(format!(
                "its type and its sign \"{cell}\" contradict each other; say the type with --type \"{}=i16\" (or u16, …)",
                self.cell(row, Meaning::Type)
            )),
            _ => Ok(name),
        }
    }

    /// The size of a value in bits, by its own column or by the range of its address.
    fn size(&self, row: &Row, written: &Written) -> Result<Option<u32>, String> {
        let mut end = written.end;
        let cell = self.cell(row, Meaning::End);
        if end.is_none() && !cell.is_empty() {
            end = Some(Written::parse(cell, false)?.number);
        }
        let by_range = end.map(|end| end.saturating_sub(written.number).saturating_add(1).saturating_mul(16));
        let columns = [
            (Meaning::Registers, Some(SizeUnit::Registers)),
            (Meaning::Bytes, Some(SizeUnit::Bytes)),
            (Meaning::Bits, Some(SizeUnit::Bits)),
            (Meaning::Size, self.size),
        ];
        let mut found = by_range;
        for (meaning, unit) in columns {
            let cell = self.cell(row, meaning);
            if cell.is_empty() || cell == "-" || (meaning == Meaning::Size && self.has_nibe_codes) {
                continue;
            }
            let number: u32 = cell.parse().map_err(|_| format!("size \"{cell}\" is no number"))?;
            let Some(unit) = unit else { continue };
            let bits = number.saturating_mul(unit.bits());
            if found.is_some_and(|known| known != bits.max(16) && known != bits) {
                return Err(format!("the size {cell} does not fit the registers that the address names"));
            }
            found = Some(bits);
        }
        Ok(found.filter(|bits| *bits > 0))
    }

    fn text_length(&self, name: &TypeName, size: Option<u32>, written: &Written) -> Result<Length, String> {
        let letters = |count: u16| Length::Registers(count.div_ceil(2).max(1));
        let is_sized = size.is_some() && (written.end.is_some() || name.count.is_none());
        match (size, name.count) {
            (Some(bits), _) if is_sized => match u16::try_from((bits / 16).max(1)) {
                Ok(registers) => Ok(Length::Registers(registers)),
                Err(_) => Err(format!("a text of {} registers is longer than any", bits / 16)),
            },
            (_, Some(count)) => Ok(match name.counts.or(self.text_length) {
                Some(TextUnit::Letters) => letters(count),
                Some(TextUnit::Registers) => Length::Registers(count),
                None => match size.map(|bits| bits / 16) {
                    Some(registers) if registers == u32::from(count) || registers == u32::from(count.div_ceil(2)) => {
                        Length::Registers(registers as u16)
                    }
                    _ => Length::Open { count, is_bracketed: name.is_bracketed },
                },
            }),
            _ => Err("is a text, and no column says how long".into()),
        }
    }
}

impl SizeUnit {
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Registers => 16,
            Self::Bytes => 8,
            Self::Bits => 1,
        }
    }
}

/// The number of bits of a value.
fn width(name: &TypeName, size: Option<u32>) -> Result<u32, String> {
    let Some(own) = name.bits else {
        let usual = match name.class {
            Class::Float | Class::Decimal => 32,
            _ => 16,
        };
        return Ok(size.unwrap_or(usual));
    };
    match size {
        // A byte may have a register to itself.
        Some(size) if size != own && !(own < 16 && size == 16) => {
            Err(format!("the type has {own} bits, and the size says {size}"))
        }
        _ => Ok(own),
    }
}

/// A bit, or the first and the last bit of a part: `5`, `4-7`, `4..7`.
fn bit_range(text: &str) -> Result<(u8, u8), String> {
    let wrong = || format!("bit \"{text}\" is none from 0 to 15");
    let plain = text.trim().trim_start_matches(['b', 'B']);
    let (first, last) =
        ["..", "-", "–", ":"].iter().find_map(|separator| plain.split_once(separator)).unwrap_or((plain, plain));
    let (first, last): (u8, u8) =
        (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
    let (first, last) = (first.min(last), first.max(last));
    if last < 16 { Ok((first, last)) } else { Err(wrong()) }
}

/// The table of a register type or a function code.
pub(super) fn table_of(text: &str, is_function: bool) -> Result<Option<Table>, String> {
    let lower = text.trim().to_lowercase();
    if lower.is_empty() || lower == "-" {
        return Ok(None);
    }
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let words: Vec<&str> =
        lower.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let is_code = is_function || has(&["fc", "function"]);
    for word in &words {
        let code = word.trim_start_matches("fc").trim_start_matches("0x").trim_start_matches('0');
        let table = match code {
            "1" | "5" | "15" | "f" if is_code => Table::Coil,
            "2" if is_code => Table::Discrete,
            "3" | "6" | "16" | "10" if is_code => Table::Holding,
            "4" if is_code => Table::Input,
            _ => continue,
        };
        return Ok(Some(table));
    }
    Ok(Some(match words.first().copied().unwrap_or_default() {
        _ if has(&["coil"]) => Table::Coil,
        _ if has(&["discrete", "digital input"]) => Table::Discrete,
        _ if has(&["hold"]) => Table::Holding,
        _ if has(&["input"]) => Table::Input,
        "0x" => Table::Coil,
        "1x" => Table::Discrete,
        "3x" => Table::Input,
        "4x" => Table::Holding,
        "hr" => Table::Holding,
        "ir" => Table::Input,
        "3" | "4" | "03" | "04" => {
            return Err(format!(
                "table \"{text}\" is a function code or the first digit of addresses; say which with --column \"…=function\""
            ));
        }
        _ => return Err(format!("table \"{text}\" is none of coil, discrete, holding and input, nor a function code")),
    }))
}
