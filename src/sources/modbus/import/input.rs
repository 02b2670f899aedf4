//! Reading the file of a list: text in any usual encoding, or a spreadsheet.

use calamine::{Data, Reader};
use encoding_rs::{UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};
use std::io::Cursor;

/// Larger lists are no lists; a spreadsheet unpacks to a multiple of it.
pub const FILE_BYTES_MAX: usize = 16 << 20;

/// A sheet of a spreadsheet, or a whole text file.
#[derive(Clone, Debug, Default)]
pub(super) struct Sheet {
    /// Its name; empty for a text file.
    pub(super) name: String,
    pub(super) rows: Vec<Row>,
}

/// A row that is not empty.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Number of its first line in the file, or of its row in the sheet, from 1.
    pub(super) line: usize,
    pub(super) cells: Vec<String>,
}

impl Row {
    fn new(line: usize, cells: Vec<String>) -> Option<Self> {
        cells.iter().any(|cell| !cell.trim().is_empty()).then_some(Self { line, cells })
    }

    /// A cell without the blanks around it; empty if the row ends before it.
    pub(super) fn cell(&self, column: usize) -> &str {
        self.cells.get(column).map_or("", |cell| cell.trim())
    }
}

/// The sheets of a file.
pub(super) fn sheets(bytes: &[u8]) -> Result<Vec<Sheet>, String> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("it has {} bytes; {FILE_BYTES_MAX} are allowed", bytes.len()));
    }
    // Archives (xlsx, ods, xlsb), and the container of the old xls.
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\xD0\xCF\x11\xE0") {
        return spreadsheet(bytes);
    }
    if bytes.starts_with(b"%PDF") {
        return Err("it is a PDF; copy its table into a spreadsheet, and save that".into());
    }
    let text = text(bytes);
    let rows = rows(&text, separator(&text));
    Ok(vec![Sheet { name: String::new(), rows }])
}

fn spreadsheet(bytes: &[u8]) -> Result<Vec<Sheet>, String> {
    let wrong = |error: calamine::Error| format!("the spreadsheet cannot be read: {error}; save it as CSV");
    let mut book = calamine::open_workbook_auto_from_rs(Cursor::new(bytes)).map_err(wrong)?;
    let mut sheets = Vec::new();
    for name in book.sheet_names() {
        let range = book.worksheet_range(&name).map_err(wrong)?;
        let first = range.start().map_or(0, |(row, _)| row as usize);
        let row = |(index, cells): (usize, &[Data])| Row::new(first + index + 1, cells.iter().map(shown).collect());
        let rows = range.rows().enumerate().filter_map(row).collect();
        sheets.push(Sheet { name, rows });
    }
    Ok(sheets)
}

/// A cell as a person reads it: whole numbers without a fraction.
fn shown(cell: &Data) -> String {
    match cell {
        Data::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => (*number as i64).to_string(),
        // Three decimals could be thousands.
        Data::Float(number) => match number.to_string() {
            text if text.split_once('.').is_some_and(|(_, decimals)| decimals.len() == 3) => text + "0",
            text => text,
        },
        // A spreadsheet takes bits such as "4-7" for a day: what stood there is lost.
        Data::DateTime(_) | Data::DateTimeIso(_) | Data::DurationIso(_) => "(date)".into(),
        other => other.to_string(),
    }
}

/// Decodes a text: UTF-16 with or without its mark ("Unicode text" of a spreadsheet), UTF-8, or Windows-1252.
pub(super) fn text(bytes: &[u8]) -> String {
    let zeros = |from: usize| bytes.iter().skip(from).step_by(2).take(200).filter(|byte| **byte == 0).count();
    let shown = bytes.len().min(400) / 2;
    let charset = match bytes {
        [0xFF, 0xFE, ..] => UTF_16LE,
        [0xFE, 0xFF, ..] => UTF_16BE,
        // ASCII in UTF-16 has a zero in each pair.
        _ if shown > 0 && zeros(1) * 2 > shown => UTF_16LE,
        _ if shown > 0 && zeros(0) * 2 > shown => UTF_16BE,
        _ if std::str::from_utf8(bytes).is_ok() => UTF_8,
        _ => WINDOWS_1252,
    };
    charset.decode(bytes).0.into_owned()
}

/// The separator that gives the most lines as many cells as the widest ones.
fn separator(text: &str) -> char {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(50).collect();
    let score = |separator: char| {
        let counts: Vec<usize> = lines.iter().map(|line| line.matches(separator).count()).collect();
        let widest = counts.iter().copied().max().unwrap_or(0);
        let common = (1..=widest).max_by_key(|count| counts.iter().filter(|one| *one == count).count() * count);
        common.map_or(0, |common| counts.iter().filter(|count| **count == common).count() * common)
    };
    // Of equals the first: a comma may be a decimal comma.
    let mut best = (';', 0);
    for separator in [';', '\t', '|', ','] {
        let score = score(separator);
        if score > best.1 {
            best = (separator, score);
        }
    }
    best.0
}

/// The rows of a text. A quoted cell may contain separators, line ends and doubled quotes.
fn rows(text: &str, separator: char) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut row, mut cell, mut is_quoted) = (Vec::new(), String::new(), false);
    let (mut line, mut begins) = (1, 1);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' if is_quoted => is_quoted = false,
            '"' if cell.trim().is_empty() => {
                cell.clear();
                is_quoted = true;
            }
            '\n' if !is_quoted => {
                row.push(std::mem::take(&mut cell));
                rows.extend(Row::new(begins, std::mem::take(&mut row)));
                line += 1;
                begins = line;
            }
            '\r' if !is_quoted => {}
            letter if letter == separator && !is_quoted => row.push(std::mem::take(&mut cell)),
            letter => {
                line += usize::from(letter == '\n');
                cell.push(letter);
            }
        }
    }
    row.push(cell);
    rows.extend(Row::new(begins, row));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(bytes: &[u8]) -> Vec<Vec<String>> {
        let sheets = sheets(bytes).expect("a list");
        sheets[0].rows.iter().map(|row| row.cells.clone()).collect()
    }

    #[test]
    fn lists_are_read_in_the_encodings_that_spreadsheets_write() {
        let text = "Name;Adresse\r\nKühler;5\r\n";
        let wanted = vec![vec!["Name".to_owned(), "Adresse".into()], vec!["Kühler".into(), "5".into()]];
        let utf16: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = utf16.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = utf16.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let marked = |mark: &[u8], bytes: &[u8]| [mark, bytes].concat();
        let latin: Vec<u8> = text.chars().map(|letter| letter as u8).collect();
        for bytes in [
            text.as_bytes().to_vec(),
            marked(b"\xEF\xBB\xBF", text.as_bytes()),
            latin,
            marked(b"\xFF\xFE", &little),
            marked(b"\xFE\xFF", &big),
            little.clone(),
            big.clone(),
        ] {
            assert_eq!(cells(&bytes), wanted, "{bytes:x?}");
        }
    }

    #[test]
    fn the_separator_is_the_one_that_makes_a_table() {
        assert_eq!(cells(b"name\taddress, decimal\na, b\t1\n")[1], ["a, b", "1"]);
        assert_eq!(cells(b"name,address,scale\na,1,\"0,1\"\n")[1], ["a", "1", "0,1"]);
        assert_eq!(cells(b"ModbusManager 1.0\nTitle;ID;Factor\n\"a; \"\"b\"\"\";1;0,1\n")[2], ["a; \"b\"", "1", "0,1"]);
        assert_eq!(cells(b"a|b\n1|2\n")[1], ["1", "2"]);
    }

    #[test]
    fn what_is_no_list_is_named() {
        assert!(sheets(b"%PDF-1.4").expect_err("a PDF").contains("copy its table"));
        assert!(sheets(b"PK\x03\x04rubbish").expect_err("no spreadsheet").contains("save it as CSV"));
    }
}
