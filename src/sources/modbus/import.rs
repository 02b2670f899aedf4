//! Import: makes a device table from a vendor's register list.
//!
//! Promise: nothing is guessed in silence. The result says which column was taken as what, which were not used, and what was
//! assumed, as comments in the table and as a report. What the list leaves open and what would make values wrong is a
//! question, and no table. The table loads; each line that is not in it is reported with the reason.

mod address;
mod columns;
mod contents;
mod draft;
mod factor;
mod hints;
mod input;
mod measure;
mod outcome;
mod question;
mod render;
mod resolve;
mod types;
mod words;

pub use address::Numbering;
pub use columns::Meaning;
pub use draft::SizeUnit;
pub use factor::{DecimalMark, ScaleMeaning};
pub use input::FILE_BYTES_MAX;
pub use outcome::{Imported, Options, Refusal};
pub use types::TextUnit;

use draft::Draft;
use input::{Row, Sheet};

/// Makes a table from the bytes of a file.
pub fn import(bytes: &[u8], title: &str, options: &Options) -> Result<Imported, Refusal> {
    let sheet = chosen(&input::sheets(bytes)?, options)?;
    let list = question::settle(&sheet, head(&sheet.rows, options)?, options)?;
    let mut imported = Imported { report: list.report, ..Imported::default() };
    let mut drafts: Vec<Draft> = Vec::new();
    for row in list.body {
        match list.rules.draft(row) {
            Ok(draft) => drafts.push(draft),
            Err(why) => imported.skipped.push((row.line, why)),
        }
    }
    let (drafts, notes) = resolve::resolve(drafts, list.is_sunspec, &mut imported.skipped);
    imported.report.extend(notes);
    imported.report.push(
        "all points are in one group, read every 5 s, without deadbands: each change of a last digit is an event"
            .into(),
    );
    render::render(title, drafts, &mut imported)?;
    imported.skipped.sort();
    Ok(imported)
}

/// The sheet that is the list: the one that has a head, or the one that the user names.
fn chosen(sheets: &[Sheet], options: &Options) -> Result<Sheet, Refusal> {
    let names = |sheets: &[&Sheet]| {
        let names: Vec<_> = sheets.iter().map(|sheet| format!("\"{}\"", sheet.name)).collect();
        names.join(", ")
    };
    if let Some(name) = &options.sheet {
        let found = sheets.iter().find(|sheet| sheet.name == *name).cloned();
        let all: Vec<&Sheet> = sheets.iter().collect();
        return found
            .ok_or_else(|| Refusal::NoList(format!("there is no sheet \"{name}\"; there are {}", names(&all))));
    }
    let lists: Vec<&Sheet> = sheets.iter().filter(|sheet| head(&sheet.rows, options).is_ok()).collect();
    match &lists[..] {
        [only] => Ok((*only).clone()),
        [] => {
            let widest = sheets.iter().max_by_key(|sheet| sheet.rows.len());
            let rows = widest.map_or(&[][..], |sheet| &sheet.rows);
            Err(head(rows, options).err().unwrap_or_default().into())
        }
        several => Err(Refusal::Open {
            report: Vec::new(),
            questions: vec![format!("which sheet? {} have a head. Say it: --sheet NAME", names(several))],
        }),
    }
}

/// The index of the head line; titles may precede it.
fn head(rows: &[Row], options: &Options) -> Result<usize, String> {
    let is_head = |row: &Row| columns::columns(row, &options.columns);
    rows.iter().position(|row| is_head(row).is_ok()).ok_or_else(|| {
        let why = rows.first().map_or_else(|| "it is empty".into(), |row| is_head(row).err().unwrap_or_default());
        format!(
            "no line names the columns: {why}; add such a line, or say which column is what: --column 1=name --column 2=address"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::Device;
    use super::super::value::{Order, Table, Type};
    use super::*;
    use crate::setting::Document;
    use proptest::prelude::*;
    use std::path::Path;

    fn device(list: &str, options: &Options) -> (Device, Imported) {
        let imported = import(list.as_bytes(), "a meter", options).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        let document = Document::new(Path::new("t"), imported.table.clone());
        let device = Device::read(&document).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(device.points.len(), imported.points);
        (device, imported)
    }

    #[test]
    fn lists_of_vendors_become_tables() {
        let (device, imported) = device(
            "Acme Power Meter;;;;\nRegister;Parameter;Format;Unit;Multiplier\n40001;Voltage L1-N;UINT16;V;0,1\n40002;Energy \"total\";FLOAT32;kWh;\n40010;\"Serial; No\";STRING8;;\n30005;Temp;INT16;°C;/10\n40003;Overlap;UINT16;;\nfoo;Bad;UINT16;;\n40020;Odd;UINT24;;\n",
            &Options::default(),
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
        let lines: Vec<_> = imported.skipped.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [7, 8, 9], "{:?}", imported.skipped);
        assert!(imported.skipped[0].1.contains("overlaps point \"energy_total\""), "{:?}", imported.skipped);
    }

    #[test]
    fn columns_say_table_size_order_and_bit() {
        let (device, imported) = device(
            "name,function code,address,type,length,word order,bit\nA,3,0x10,float,2,CDAB,\nB,4,20,uint,4,,\nC,1,7,,,,\nD,03,30,bool,,,5\nE,holding,31.2,,,,\n",
            &Options::default(),
        );
        assert!(imported.skipped.is_empty(), "{:?}", imported.skipped);
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
    fn numbering_can_be_set() {
        let address = |numbering| {
            let (device, _) = device("name\taddress\ttype\nx\t1\tu16\n", &Options { numbering, ..Options::default() });
            device.points[0].address
        };
        assert_eq!((address(Numbering::Auto), address(Numbering::Zero), address(Numbering::One)), (1, 1, 0));
    }

    #[test]
    fn a_list_without_types_is_asked_about() {
        let list = "name\taddress\nx\t1\n";
        let Err(Refusal::Open { questions, .. }) = import(list.as_bytes(), "x", &Options::default()) else {
            panic!("a guess")
        };
        assert!(questions[0].contains("--type \"=u16\""), "{questions:?}");
        let types = vec![(String::new(), "f32".to_owned())];
        let (device, imported) = device(list, &Options { types, ..Options::default() });
        assert_eq!(device.points[0].encoding.kind, Type::F32);
        assert!(imported.report.iter().any(|line| line.contains("is f32, as set")), "{:?}", imported.report);
        let (device, _) = super::tests::device("name\taddress\ttable\nx\t1\tcoil\n", &Options::default());
        assert_eq!(device.points[0].encoding.kind, Type::Bool, "a bit has one type");
    }

    #[test]
    fn what_is_no_list_is_refused_with_a_reason() {
        for (list, why) in [
            ("", "it is empty"),
            ("a;b\n1;2\n", "no column of addresses"),
            ("name;address;type\nx;y;u16\n", "line 2: address \"y\" is no number"),
            ("name;address\n", "no line below the head"),
        ] {
            match import(list.as_bytes(), "x", &Options::default()) {
                Err(Refusal::NoList(error)) => assert!(error.contains(why), "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_size_that_could_be_anything_is_asked_about() {
        let list = "name,address,type,size\na,1,unsigned,2\nb,5,unsigned,4\n";
        let Err(Refusal::Open { questions, .. }) = import(list.as_bytes(), "x", &Options::default()) else {
            panic!("a guess")
        };
        assert!(questions[0].contains("--size registers, bytes or bits"), "{questions:?}");
        let kinds = |size| {
            let (device, _) = device(list, &Options { size: Some(size), ..Options::default() });
            device.points.iter().map(|point| point.encoding.kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(SizeUnit::Registers), [Type::U32, Type::U64]);
        assert_eq!(kinds(SizeUnit::Bytes), [Type::U16, Type::U32]);
    }

    #[test]
    fn columns_that_contradict_each_other_are_asked_about() {
        let list = "name,register,address,type\na,40001,0,U16\nb,40002,1,U16\n";
        let Err(Refusal::Open { questions, .. }) = import(list.as_bytes(), "x", &Options::default()) else {
            panic!("a guess")
        };
        assert!(questions[0].contains("which is the address, \"register\" or \"address\"?"), "{questions:?}");
        let columns = vec![("register".to_owned(), Meaning::Ignore)];
        let (device, _) = device(list, &Options { columns, ..Options::default() });
        assert_eq!(device.points[1].address, 1);
    }

    /// How a generated list is written.
    #[derive(Clone, Debug)]
    struct Style {
        separator: char,
        order: Vec<usize>,
        heads: usize,
        addresses: Numbering,
        is_hex: bool,
        scales: usize,
        types: usize,
        has_comma: bool,
        encoding: usize,
        has_title: bool,
    }

    fn style() -> impl Strategy<Value = Style> {
        let columns = Just((0..7).collect::<Vec<usize>>()).prop_shuffle();
        let numbering = prop::sample::select(vec![Numbering::Zero, Numbering::One, Numbering::Classic]);
        let whole = (0usize..3, 0usize..4, 0usize..3, 0usize..3);
        (prop::sample::select(vec![';', '\t', ',', '|']), columns, numbering, any::<(bool, bool, bool)>(), whole)
            .prop_map(
                |(separator, order, addresses, (is_hex, has_comma, has_title), (heads, scales, types, encoding))| {
                    Style {
                        separator,
                        order,
                        heads,
                        addresses,
                        is_hex: is_hex && addresses != Numbering::Classic,
                        scales,
                        types,
                        has_comma: has_comma && separator != ',',
                        encoding,
                        has_title,
                    }
                },
            )
    }

    /// Name, table, address, type by three names, scale, unit.
    type Known = (&'static str, Table, u16, [&'static str; 3], Type, f64, &'static str);

    const POINTS: [Known; 6] = [
        ("voltage", Table::Input, 0, ["UINT16", "U16", "unsigned 16 bit"], Type::U16, 0.1, "V"),
        ("current", Table::Input, 1, ["INT16", "s16", "16-bit signed"], Type::I16, 0.01, "A"),
        ("energy", Table::Holding, 16, ["UINT32", "U_DWORD", "unsigned long"], Type::U32, 0.001, "kWh"),
        ("power", Table::Holding, 18, ["FLOAT32", "REAL", "Float (4 bytes)"], Type::F32, 1.0, "W"),
        ("total", Table::Holding, 20, ["UINT64", "uint64be", "QWORD"], Type::U64, 1.0, "Wh"),
        ("flow", Table::Input, 40, ["INT32", "S_DWORD", "DINT"], Type::I32, 0.1, "m3/h"),
    ];

    fn written(style: &Style) -> (Vec<u8>, Options) {
        let heads = [
            ["Name", "Parameter", "Bezeichnung"],
            ["Register type", "Table", "Area"],
            ["Address", "Register", "Adresse"],
            ["Type", "Data type", "Datentyp"],
            ["Unit", "Einheit", "UOM"],
            ["Remarks", "Note", "Bemerkung"],
        ];
        let scale_head = ["Multiplier", "Divisor", "Factor", "Decimals"][style.scales];
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut head: Vec<String> = heads.iter().map(|names| names[style.heads].to_owned()).collect();
        head.push(scale_head.into());
        rows.push(head);
        for (name, table, address, types, _, scale, unit) in POINTS {
            let number = match style.addresses {
                Numbering::Classic => u32::from(address) + if table == Table::Input { 30_001 } else { 40_001 },
                Numbering::One => u32::from(address) + 1,
                _ => u32::from(address),
            };
            let number = if style.is_hex { format!("0x{number:X}") } else { number.to_string() };
            let places = (1.0 / scale).log10().round();
            let scale = match style.scales {
                1 => format!("{}", (1.0 / scale).round()),
                3 => format!("{places}"),
                _ => scale.to_string(),
            };
            let scale = if style.has_comma { scale.replace('.', ",") } else { scale };
            rows.push(vec![
                name.into(),
                table.name().into(),
                number,
                types[style.types].into(),
                unit.into(),
                "as in the manual".into(),
                scale,
            ]);
        }
        let line = |row: &Vec<String>| {
            let cells: Vec<_> = style.order.iter().map(|column| row[*column].clone()).collect();
            cells.join(&style.separator.to_string()) + "\r\n"
        };
        let title = if style.has_title { "Acme meter\r\n" } else { "" };
        let text = format!("{title}{}", rows.iter().map(line).collect::<String>());
        let bytes = match style.encoding {
            0 => text.into_bytes(),
            1 => [b"\xEF\xBB\xBF", text.as_bytes()].concat(),
            _ => [b"\xFF\xFE".to_vec(), text.encode_utf16().flat_map(u16::to_le_bytes).collect()].concat(),
        };
        let numbering = if style.addresses == Numbering::One { Numbering::One } else { Numbering::Auto };
        (bytes, Options { numbering, ..Options::default() })
    }

    proptest! {
        #[test]
        fn any_order_of_columns_and_any_format_gives_the_right_table(style in style()) {
            let (bytes, options) = written(&style);
            let imported = match import(&bytes, "generated", &options) {
                Ok(imported) => imported,
                Err(refusal) => return Err(TestCaseError::fail(format!("{refusal:?}"))),
            };
            let device = Device::read(&Document::new(Path::new("t"), imported.table)).expect("it loads");
            let found: Vec<_> = device
                .points
                .iter()
                .map(|point| (point.name.clone(), point.table, point.address, point.encoding.kind, point.encoding.scale, point.unit.clone()))
                .collect();
            let wanted: Vec<_> = POINTS
                .iter()
                .map(|(name, table, address, _, kind, scale, unit)| ((*name).to_owned(), *table, *address, *kind, *scale, Some((*unit).to_owned())))
                .collect();
            prop_assert_eq!(found, wanted, "{:?}", imported.skipped);
        }

        #[test]
        fn any_cells_are_a_table_or_a_refusal(cells in prop::collection::vec("[ -~]{0,12}", 1..60), width in 1usize..8) {
            let rows: Vec<String> = cells.chunks(width).map(|row| row.join(";")).collect();
            let list = format!("name;address;type;scale;size\n{}\n", rows.join("\n"));
            if let Ok(imported) = import(list.as_bytes(), "random", &Options::default()) {
                prop_assert!(Device::read(&Document::new(Path::new("t"), imported.table)).is_ok());
            }
        }

        #[test]
        fn any_bytes_are_a_table_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = import(&bytes, "random", &Options::default());
            let _ = import(&[b"PK\x03\x04", &bytes[..]].concat(), "random", &Options::default());
        }
    }
}
