//! Parsing of vendors' CSV files: finds the separator and the meaning of each column.

/// The meaning of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Name,
    Description,
    Table,
    Address,
    Type,
    Length,
    Bit,
    Order,
    Scale,
    Offset,
    Unit,
}

/// Column headers that vendors use, reduced to letters and digits.
const HEADS: [(Column, &[&str]); 11] = [
    (
        Column::Name,
        &[
            "name",
            "tag",
            "tagname",
            "parameter",
            "signal",
            "variable",
            "point",
            "pointname",
            "label",
            "symbol",
            "parametername",
            "registername",
            "bezeichnung",
        ],
    ),
    (Column::Description, &["description", "comment", "meaning", "beschreibung", "function description", "content"]),
    (
        Column::Table,
        &[
            "table",
            "registertype",
            "area",
            "fc",
            "functioncode",
            "function",
            "modbusfunction",
            "objecttype",
            "modbustype",
            "readfunction",
            "access",
        ],
    ),
    (
        Column::Address,
        &[
            "address",
            "addr",
            "register",
            "reg",
            "registeraddress",
            "modbusaddress",
            "registernumber",
            "registerno",
            "startaddress",
            "startregister",
            "adresse",
            "addressdec",
            "dec",
            "modbusregister",
            "addresshex",
        ],
    ),
    (Column::Type, &["type", "datatype", "format", "dataformat", "datentyp", "valuetype", "encoding"]),
    (
        Column::Length,
        &[
            "length",
            "words",
            "size",
            "count",
            "registers",
            "quantity",
            "len",
            "numberofregisters",
            "noofregisters",
            "numregisters",
            "wordcount",
        ],
    ),
    (Column::Bit, &["bit", "bitposition", "bitnumber"]),
    (Column::Order, &["order", "byteorder", "wordorder", "endianness", "endian"]),
    (
        Column::Scale,
        &["scale", "factor", "multiplier", "gain", "scaling", "scalefactor", "resolution", "faktor", "scalingfactor"],
    ),
    (Column::Offset, &["offset", "bias", "valueoffset"]),
    (Column::Unit, &["unit", "units", "uom", "einheit", "engineeringunit", "engunit"]),
];

/// The meaning of each column of a header line. The error says why the line is no header.
pub(super) fn columns(row: &[String]) -> Result<Vec<Option<Column>>, String> {
    let mut found: Vec<Option<Column>> = Vec::new();
    for cell in row {
        let plain: String = cell.to_lowercase().chars().filter(|letter| letter.is_alphanumeric()).collect();
        let column = HEADS.iter().find(|(_, heads)| heads.contains(&plain.as_str())).map(|(column, _)| *column);
        // If two columns have the same meaning, the first one is used.
        found.push(column.filter(|column| !found.contains(&Some(*column))));
    }
    if !found.contains(&Some(Column::Address)) {
        return Err("no column of addresses, such as \"address\" or \"register\"".into());
    }
    if !found.contains(&Some(Column::Name)) && !found.contains(&Some(Column::Description)) {
        return Err("no column of names, such as \"name\" or \"parameter\"".into());
    }
    Ok(found)
}

/// The most frequent separator in the first lines.
pub(super) fn separator(csv: &str) -> char {
    let count = |separator: char| csv.lines().take(20).map(|line| line.matches(separator).count()).sum::<usize>();
    [';', '\t', ','].into_iter().max_by_key(|separator| (count(*separator), *separator == ';')).unwrap_or(',')
}

/// The cells of each row, with the number of its first line. A quoted cell may contain separators,
/// line ends and doubled quotes.
pub(super) fn cells(csv: &str, separator: char) -> Vec<(usize, Vec<String>)> {
    let mut rows = Vec::new();
    let (mut row, mut cell, mut is_quoted) = (Vec::new(), String::new(), false);
    let (mut line, mut begins) = (1, 1);
    let mut letters = csv.chars().peekable();
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
                rows.push((begins, std::mem::take(&mut row)));
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
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push((begins, row));
    }
    rows.retain(|(_, row)| row.iter().any(|cell| !cell.trim().is_empty()));
    rows
}
