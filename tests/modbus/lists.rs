//! Twelve register lists in the layouts in which vendors and communities publish them; the data are written for these tests.
//! Each is imported right, or refused with what to do: none is wrong with exit code 0.

use crate::common::gateway::scratch_folder;
use forebay::setting::Document;
use forebay::sources::modbus::import::{Imported, Options, Refusal, ScaleMeaning, TextUnit, import};
use forebay::sources::modbus::import::{Meaning, Numbering};
use forebay::sources::modbus::table::Device;
use forebay::sources::modbus::value::Table::{self, Holding, Input};
use std::path::Path;
use std::process::{Command, Output};

fn imported(list: &str, options: &Options) -> (Device, Imported) {
    let imported = import(list.as_bytes(), "list", options).unwrap_or_else(|refusal| panic!("{refusal:#?}"));
    let document = Document::new(Path::new("list.toml"), imported.table.clone());
    let device = Device::read(&document).unwrap_or_else(|problems| panic!("{problems:#?}\n{}", imported.table));
    (device, imported)
}

/// The questions that a list leaves open.
fn questions(list: &str, options: &Options) -> String {
    match import(list.as_bytes(), "list", options) {
        Err(Refusal::Open { questions, .. }) => questions.join("\n"),
        other => panic!("nothing is open: {other:#?}"),
    }
}

/// Name, table, address, type with order, scale and unit of each point.
fn shape(device: &Device) -> Vec<(String, Table, u16, String, f64, String)> {
    let of = |point: &forebay::sources::modbus::table::Point| {
        let order = format!("{:?}", point.encoding.order).to_uppercase();
        let order = if order == "ABCD" || point.count == 1 { String::new() } else { format!(" {order}") };
        let kind = format!("{:?}{order}", point.encoding.kind);
        let unit = point.unit.clone().unwrap_or_default();
        (point.name.clone(), point.table, point.address, kind, point.encoding.scale, unit)
    };
    device.points.iter().map(of).collect()
}

fn row(
    name: &str,
    table: Table,
    address: u16,
    kind: &str,
    scale: f64,
    unit: &str,
) -> (String, Table, u16, String, f64, String) {
    (name.into(), table, address, kind.into(), scale, unit.into())
}

fn zero() -> Options {
    Options { numbering: Numbering::Zero, ..Options::default() }
}

#[test]
fn a_heat_pump_list_with_codes_for_sizes_and_a_division_factor() {
    let list = "Title\tRegister type\tRegister\tDivision factor\tUnit\tSize of variable\tMin value\tMax value\tDefault value\n\
        Outdoor sensor (T1)\tMODBUS_INPUT_REGISTER\t1\t10\t°C\t2\t0\t0\t0\n\
        Pump current\tMODBUS_INPUT_REGISTER\t46\t10\tA\t6\t0\t0\t0\n\
        Fan mode\tMODBUS_HOLDING_REGISTER\t104\t1\t\t4\t0\t4\t0\n\
        Curve offset\tMODBUS_HOLDING_REGISTER\t30\t1\t\t1\t-10\t10\t0\n\
        Degree minutes\tMODBUS_HOLDING_REGISTER\t11\t10\tDM\t3\t-30000\t30000\t0\n";
    let (device, imported) = imported(list, &Options::default());
    assert_eq!(
        shape(&device),
        [
            row("outdoor_sensor_t1", Input, 1, "I16", 0.1, "°C"),
            row("pump_current", Input, 46, "U32", 0.1, "A"),
            row("fan_mode", Holding, 104, "U8", 1.0, ""),
            row("curve_offset", Holding, 30, "I8", 1.0, ""),
            row("degree_minutes", Holding, 11, "I32", 0.1, "DM"),
        ]
    );
    let report = imported.report.join("\n");
    for said in [
        "\"Division factor\" is the divisor",
        "\"Size of variable\" is the type, in NIBE's codes",
        "not used: \"Min value\"",
        "numbering: ",
        "assumed for 2 points: the order of words ABCD",
    ] {
        assert!(report.contains(said) && imported.table.contains(said), "{said}: {report}");
    }
}

#[test]
fn a_heat_pump_list_with_lines_above_its_head_and_ids() {
    let list = "ModbusManager 1.0\n20250101\nProduct: X700\nDatabase: 1\nTitle;Info;ID;Unit;Size;Factor;Min;Max;Default;Mode\n\
        \"T1 Outdoor\";\"Outdoor temperature\";40004;\"°C\";s16;10;0;0;0;R;\n\
        \"State\";\"\";40305;\"\";u8;1;0;0;0;R;\n\
        \"Energy\";\"Heat; produced\";40771;\"kWh\";u32;10;0;0;0;R/W;\n\
        \"Offset\";\"\";47011;\"\";s8;1;-10;10;0;R/W;\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("--numbering") && open.contains("--scale divide"), "{open}");
    let options = Options { scale: Some(ScaleMeaning::Divide), ..zero() };
    let (device, _) = imported(list, &options);
    assert_eq!(
        shape(&device),
        [
            row("t1_outdoor", Holding, 40_004, "I16", 0.1, "°C"),
            row("state", Holding, 40_305, "U8", 1.0, ""),
            row("energy", Holding, 40_771, "U32", 0.1, "kWh"),
            row("offset", Holding, 47_011, "I8", 1.0, ""),
        ]
    );
}

#[test]
fn a_list_of_several_services_with_scale_factors_that_divide() {
    let list = "dbus-service-name,description,Address,Type,Scalefactor,Range,dbus-obj-path,writable,dbus-unit,Remarks\n\
        com.acme.vebus,Input voltage phase 1,3,uint16,10,0 to 6553.5,/Ac/V,no,V AC,\n\
        com.acme.vebus,Input current phase 1,6,int16,10,-3276.8 to 3276.7,/Ac/I,no,A AC,\n\
        com.acme.vebus,Switch position,33,uint16,1,0 to 65536,/Mode,yes,1=Charger Only;2=Inverter Only;3=On;4=Off,\n\
        com.acme.system,Serial,800,string[6],1,12 characters,/Serial,no,,\n\
        com.acme.system,Relay state,806,uint16,1,0 to 1,/Relay,yes,0=Open;1=Closed,\n\
        com.acme.battery,Battery power,258,int32,1,,/Dc/P,no,W,\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("which device?") && open.contains("does \"Scalefactor\" multiply or divide?"), "{open}");
    let of =
        |device: &str| Options { device: Some(device.into()), scale: Some(ScaleMeaning::Divide), ..Options::default() };
    let (device, _) = imported(list, &of("com.acme.vebus"));
    assert_eq!(
        shape(&device),
        [
            row("input_voltage_phase_1", Holding, 3, "U16", 0.1, "V AC"),
            row("input_current_phase_1", Holding, 6, "I16", 0.1, "A AC"),
            row("switch_position", Holding, 33, "U16", 1.0, ""),
        ]
    );
    assert_eq!(device.points[2].encoding.words.get(&4).map(String::as_str), Some("Off"));
    let (device, _) = imported(list, &of("com.acme.system"));
    assert_eq!(
        (device.points[0].count, device.points[1].address),
        (6, 806),
        "string[6] has six registers: the next point shows it"
    );
    let alone = list.replace(",Relay state,806,", ",Relay state,900,");
    let imported = import(alone.as_bytes(), "list", &of("com.acme.system")).expect("the relay");
    assert!(imported.skipped[0].1.contains("--text-length"), "{:?}", imported.skipped);
    let set = Options { text_length: Some(TextUnit::Registers), ..of("com.acme.system") };
    assert_eq!(import(alone.as_bytes(), "list", &set).expect("both").points, 2);
}

#[test]
fn a_list_without_a_head() {
    let list = "com.acme.vebus,/Ac/ActiveIn/L1/V,d,V AC,3,uint16,10,R\ncom.acme.vebus,/Ac/ActiveIn/L2/V,d,V AC,4,uint16,10,R\n";
    match import(list.as_bytes(), "list", &Options::default()) {
        Err(Refusal::NoList(why)) => assert!(why.contains("--column 1=name"), "{why}"),
        other => panic!("{other:?}"),
    }
    let columns = [
        ("2", Meaning::Name),
        ("4", Meaning::Unit),
        ("5", Meaning::Address),
        ("6", Meaning::Type),
        ("7", Meaning::Divisor),
        ("8", Meaning::Access),
    ];
    let mut columns: Vec<_> = columns.map(|(number, meaning)| (number.to_owned(), meaning)).into();
    columns.extend(["1", "3"].map(|number| (number.to_owned(), Meaning::Ignore)));
    let (device, _) = imported(list, &Options { columns, ..Options::default() });
    assert_eq!(shape(&device)[1], row("ac_activein_l2_v", Holding, 4, "U16", 0.1, "V AC"));
}

#[test]
fn a_template_of_a_home_automation_with_orders_in_the_types() {
    let list = "_address\tdeviceId\tname\tdescription\tunit\ttype\tlen\tfactor\toffset\tformula\trole\troom\tpoll\twp\tcw\tisScale\n\
        30001\t1\tVoltage L1\t\tV\tfloatbe\t2\t1\t0\t\tlevel\t\ttrue\tfalse\tfalse\tfalse\n\
        30073\t1\tImport\t\tkWh\tfloatsw\t2\t1\t0\t\tlevel\t\ttrue\tfalse\tfalse\tfalse\n\
        30101\t1\tCounter\t\tWh\tuint64be\t4\t0.001\t0\t\tlevel\t\ttrue\tfalse\tfalse\tfalse\n\
        30201\t1\tState\t\t\tuint16be\t1\t1\t0\t\tlevel\t\ttrue\tfalse\tfalse\tfalse\n";
    let (device, _) = imported(list, &Options::default());
    assert_eq!(
        shape(&device),
        [
            row("voltage_l1", Input, 0, "F32", 1.0, "V"),
            row("import", Input, 72, "F32 CDAB", 1.0, "kWh"),
            row("counter", Input, 100, "U64", 0.001, "Wh"),
            row("state", Input, 200, "U16", 1.0, ""),
        ]
    );
}

#[test]
fn a_template_with_formulas_for_scale_registers_and_two_devices() {
    let list = "_address\tdeviceId\tname\tdescription\tunit\ttype\tlen\tfactor\toffset\tformula\trole\troom\tpoll\twp\tcw\tisScale\n\
        40004\t1\tMn\tManufacturer\t\tstring\t16\t1\t0\t\t\t\ttrue\tfalse\tfalse\tfalse\n\
        40071\t1\tA\tAC Current\tA\tuint16be\t1\t1\t\tx * Math.pow(10, sf['40075'])\t\t\ttrue\tfalse\tfalse\tfalse\n\
        40075\t1\tA_SF\t\t\tint16be\t1\t1\t\t\t\t\ttrue\tfalse\tfalse\ttrue\n\
        40004\t200\tMn\tManufacturer\t\tstring\t16\t1\t0\t\t\t\ttrue\tfalse\tfalse\tfalse\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("--numbering") && open.contains("\"1\", \"200\""), "{open}");
    let (device, _) = imported(list, &Options { device: Some("1".into()), ..zero() });
    assert_eq!(
        shape(&device),
        [
            row("mn", Holding, 40_004, "Text", 1.0, ""),
            row("a", Holding, 40_071, "U16", 1.0, "A"),
            row("a_sf", Holding, 40_075, "I16", 1.0, ""),
        ]
    );
    assert_eq!((device.points[0].count, device.points[1].scale_from), (16, Some(2)));
}

#[test]
fn a_sunspec_list_with_accumulators_and_scale_registers() {
    let list = "Address,Size,Name,Type,Units,Description\n\
        40069,1,C_SunSpec_DID,uint16,,101 = single phase\n\
        40071,1,I_AC_Current,uint16,A,AC total current\n\
        40072,1,I_AC_CurrentA,uint16,A,AC phase A current\n\
        40075,1,I_AC_Current_SF,sunssf,,\n\
        40093,2,I_AC_Energy_WH,acc32,Wh,Lifetime energy\n\
        40095,1,I_AC_Energy_WH_SF,sunssf,,\n\
        40107,1,I_Status,uint16,,Operating state\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("SunSpec") && open.contains("--numbering"), "{open}");
    let (device, _) = imported(list, &zero());
    let points: Vec<_> =
        device.points.iter().map(|point| (point.address, point.scale_from, point.counter.is_some())).collect();
    assert_eq!(
        points,
        [
            (40_069, None, false),
            (40_071, Some(3), false),
            (40_072, Some(3), false),
            (40_075, None, false),
            (40_093, Some(5), true),
            (40_095, None, false),
            (40_107, None, false)
        ]
    );
    // Where no name says which scale register is meant, the point is left out.
    let unclear = list.replace("I_AC_CurrentA,", "Phase_A,");
    let imported = import(unclear.as_bytes(), "list", &zero()).expect("the others");
    assert!(imported.skipped.len() == 1 && imported.skipped[0].1.contains("scale register"), "{:?}", imported.skipped);
}

#[test]
fn an_inverter_list_with_ranges_of_registers_and_formats() {
    let list = "Modbus Register;Description;Type;Format;Access\n\
        30775-30776;Power (W);S32;FIX0;RO\n\
        30783-30784;Grid voltage (V);U32;FIX2;RO\n\
        30513-30516;Total yield (Wh);U64;FIX0;RO\n\
        30201-30202;Condition;U32;ENUM;RO\n\
        40210-40211;Operating mode;U32;ENUM;RW\n\
        31253/31254;Frequency (Hz);U32;FIX2;RO\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("--numbering"), "{open}");
    let (device, _) = imported(list, &zero());
    assert_eq!(
        shape(&device),
        [
            row("power_w", Holding, 30_775, "I32", 1.0, ""),
            row("grid_voltage_v", Holding, 30_783, "U32", 0.01, ""),
            row("total_yield_wh", Holding, 30_513, "U64", 1.0, ""),
            row("condition", Holding, 30_201, "U32", 1.0, ""),
            row("operating_mode", Holding, 40_210, "U32", 1.0, ""),
            row("frequency_hz", Holding, 31_253, "U32", 0.01, ""),
        ]
    );
    let wrong = import(list.replace("S32", "S16").as_bytes(), "list", &zero()).expect("the others");
    assert!(wrong.skipped[0].1.contains("the type has 16 bits, and the size says 32"), "{:?}", wrong.skipped);
}

#[test]
fn a_meter_list_with_hexadecimal_and_decimal_registers() {
    let list = "Parameter,Register (Hex),Register (Dec),Type,Units,Access\n\
        L1 voltage,0000,0,Float (4 bytes),V,R\nL2 voltage,0002,2,Float (4 bytes),V,R\nFrequency,0046,70,Float (4 bytes),Hz,R\n";
    let (device, _) = imported(list, &Options::default());
    assert_eq!(shape(&device)[2], row("frequency", Holding, 70, "F32", 1.0, "Hz"));
    let differs = list
        .replace(",0,Float", ",30001,Float")
        .replace(",2,Float", ",30003,Float")
        .replace(",70,Float", ",30071,Float");
    match import(differs.as_bytes(), "list", &Options::default()) {
        Err(Refusal::NoList(why)) => assert!(why.contains("are not the same") && why.contains("--column"), "{why}"),
        other => panic!("{other:?}"),
    }
    let columns = vec![("Register (Hex)".to_owned(), Meaning::Ignore)];
    let (device, _) = imported(&differs, &Options { columns, ..Options::default() });
    assert_eq!(shape(&device)[2], row("frequency", Input, 70, "F32", 1.0, "Hz"));
}

#[test]
fn a_power_analyser_list_in_german() {
    let list = "Messgrößen 19000 ff.;;;;\nBezeichnung;Adresse;Datentyp;Einheit;Faktor\n\
        Spannung L1-N;19000;FLOAT;V;1\nScheinleistung;19032;FLOAT;VA;1\nWirkarbeit;19060;FLOAT;Wh;0,001\n";
    let latin: Vec<u8> = list.chars().map(|letter| letter as u8).collect();
    let imported = import(&latin, "list", &Options::default()).expect("a list");
    let device = Device::read(&Document::new(Path::new("t"), imported.table)).expect("it loads");
    assert_eq!(
        shape(&device),
        [
            row("spannung_l1_n", Holding, 19_000, "F32", 1.0, "V"),
            row("scheinleistung", Holding, 19_032, "F32", 1.0, "VA"),
            row("wirkarbeit", Holding, 19_060, "F32", 0.001, "Wh"),
        ]
    );
}

#[test]
fn an_inverter_protocol_with_scales_in_its_units() {
    let list = "No.,Register,Description,R/W,Data type,Unit,Note\n\
        1,500,Running state,R,U16,,0=standby;1=self-test;2=normal;3=alarm\n\
        2,529,Day energy,R,U16,0.1kWh,\n3,587,Battery voltage,R,U16,0.01V,\n4,590,Battery power,R,S16,W,\n\
        5,586,Battery temperature,R,S16,0.1℃,read as offset 1000\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("line 6 says \"read as offset 1000\" in the column \"Note\""), "{open}");
    let columns = vec![("Note".to_owned(), Meaning::Ignore)];
    let (device, imported) = imported(list, &Options { columns, ..Options::default() });
    assert_eq!(
        shape(&device)[..4],
        [
            row("running_state", Holding, 500, "U16", 1.0, ""),
            row("day_energy", Holding, 529, "U16", 0.1, "kWh"),
            row("battery_voltage", Holding, 587, "U16", 0.01, "V"),
            row("battery_power", Holding, 590, "I16", 1.0, "W"),
        ]
    );
    assert_eq!(device.points[0].encoding.words.len(), 4);
    let report = imported.report.join("\n");
    assert!(report.contains("not used: \"No.\", \"Note\""), "{report}");
    assert!(report.contains("look again: line 6 says \"read as offset 1000\""), "{report}");
}

#[test]
fn a_plc_list_with_bits_orders_and_columns_of_its_own() {
    let list = "Tag;Area;Register;Bit;Data type;Word order;Sk.;Plant\n\
        Motor on;Holding;10;0;BOOL;;;A\nTrip;Holding;10;1;BOOL;;;A\nSpeed;Holding;12;;DINT;LSW first;100;A\nSetpoint;Holding;14;;REAL;Big-endian, word swap;;A\n\
        Lamp;Coils;3;;BOOL;;;A\n";
    let open = questions(list, &Options::default());
    assert!(
        open.contains("what is the column \"Sk.\", which holds \"100\"?") && open.contains("--column \"Sk.=divisor\""),
        "{open}"
    );
    let columns = vec![("Sk.".to_owned(), Meaning::Divisor)];
    let (device, imported) = imported(list, &Options { columns, ..Options::default() });
    assert_eq!(
        shape(&device),
        [
            row("motor_on", Holding, 10, "Bool", 1.0, ""),
            row("trip", Holding, 10, "Bool", 1.0, ""),
            row("speed", Holding, 12, "I32 CDAB", 0.01, ""),
            row("setpoint", Holding, 14, "F32 CDAB", 1.0, ""),
            row("lamp", Table::Coil, 3, "Bool", 1.0, ""),
        ]
    );
    assert!(imported.report.iter().any(|line| line == "not known, and not used: \"Plant\""), "{:?}", imported.report);
}

#[test]
fn an_inverter_list_with_gains_and_quantities() {
    let list = "No.,Signal name,Read/Write,Type,Unit,Gain,Address,Quantity,Scope\n\
        1,Model,RO,STR,N/A,1,30000,15,\n2,Input power,RO,I32,kW,1000,32064,2,\n3,Line voltage,RO,U16,V,10,32066,1,\n\
        4,Device status,RO,U16,N/A,1,32089,1,\n5,Day energy,RO,U32,kWh,100,32114,2,\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("does \"Gain\" multiply or divide?"), "{open}");
    let (device, _) = imported(list, &Options { scale: Some(ScaleMeaning::Divide), ..Options::default() });
    assert_eq!(
        shape(&device),
        [
            row("model", Holding, 30_000, "Text", 1.0, ""),
            row("input_power", Holding, 32_064, "I32", 0.001, "kW"),
            row("line_voltage", Holding, 32_066, "U16", 0.1, "V"),
            row("device_status", Holding, 32_089, "U16", 1.0, ""),
            row("day_energy", Holding, 32_114, "U32", 0.01, "kWh"),
        ]
    );
    assert_eq!(device.points[0].count, 15);
}

#[test]
fn a_storage_list_with_both_addresses_and_a_column_without_a_meaning() {
    let list = "Addr (hex),Addr (dec),Description,Unit,Format,N1,Access,Function Code\n\
        0x06,6,Inverter article number,-,String,8,R/O,0x03\n0x38,56,Inverter state,-,U16,1,R/O,0x03\n\
        0x64,100,Total DC power,W,Float,2,R/O,0x03\n0x70,112,Battery state of charge,%,S16,1,R/W,0x03/0x06\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("what is the column \"N1\""), "{open}");
    let columns = vec![("N1".to_owned(), Meaning::Registers)];
    let (device, _) = imported(list, &Options { columns, ..Options::default() });
    assert_eq!(
        shape(&device),
        [
            row("inverter_article_number", Holding, 6, "Text", 1.0, ""),
            row("inverter_state", Holding, 56, "U16", 1.0, ""),
            row("total_dc_power", Holding, 100, "F32", 1.0, "W"),
            row("battery_state_of_charge", Holding, 112, "I16", 1.0, "%"),
        ]
    );
}

#[test]
fn a_table_of_a_wiki_page() {
    let list = "# Registers of the pump\n\n| Register | Name | Type | Unit | Multiplier |\n|---|---|:--|---|---|\n\
        | 0 | Speed | UINT16 | rpm | 1 |\n| 1 | Flow | INT16 | m3/h | 0.01 |\n";
    let (device, imported) = imported(list, &Options::default());
    assert!(imported.skipped.is_empty(), "{:?}", imported.skipped);
    assert_eq!(
        shape(&device),
        [row("speed", Holding, 0, "U16", 1.0, "rpm"), row("flow", Holding, 1, "I16", 0.01, "m3/h")]
    );
}

#[test]
fn a_list_whose_type_column_names_tables() {
    let list = "Name;Type;Address;Data type\nSpeed;Holding Register;3;UINT16\nRunning;Coil;1;BOOL\nTemperature;Input Register;7;INT16\n";
    let (device, imported) = imported(list, &Options::default());
    assert_eq!(
        shape(&device),
        [
            row("speed", Holding, 3, "U16", 1.0, ""),
            row("running", Table::Coil, 1, "Bool", 1.0, ""),
            row("temperature", Input, 7, "I16", 1.0, ""),
        ]
    );
    assert!(imported.report.iter().any(|line| line == "column \"Type\" is the table"), "{:?}", imported.report);
}

#[test]
fn a_list_with_two_addresses_that_differ_by_one() {
    let list = "Description,Register,Address,Size,Type,Units\nCurrent A,3000,2999,2,FLOAT32,A\nFrequency,3110,3109,2,FLOAT32,Hz\n";
    let open = questions(list, &Options::default());
    assert!(open.contains("which is the address, \"Register\" or \"Address\"?"), "{open}");
    let columns = vec![("Register".to_owned(), Meaning::Ignore)];
    let (device, _) = imported(list, &Options { columns, ..Options::default() });
    assert_eq!(shape(&device)[1], row("frequency", Holding, 3109, "F32", 1.0, "Hz"));
}

#[test]
fn a_spreadsheet_as_it_comes() {
    let imported = import(include_bytes!("registers.xlsx"), "list", &Options::default()).expect("a list");
    let device = Device::read(&Document::new(Path::new("t"), imported.table)).expect("it loads");
    assert_eq!(
        shape(&device),
        [
            row("voltage_l1", Holding, 0, "U16", 0.1, "V"),
            row("energy", Holding, 1, "U32", 0.01, "kWh"),
            row("state", Holding, 9, "U16", 1.0, ""),
        ]
    );
    let notes = Options { sheet: Some("Notes".into()), ..Options::default() };
    match import(include_bytes!("registers.xlsx"), "list", &notes) {
        Err(Refusal::NoList(why)) => assert!(why.contains("no line names the columns"), "{why}"),
        other => panic!("{other:?}"),
    }
}

fn forebay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay")).args(["modbus", "import"]).args(arguments).output().expect("it runs")
}

#[test]
fn the_command_says_what_it_took_and_what_is_open() {
    let folder = scratch_folder("modbus-lists");
    let list = folder.path().join("list.csv");
    let path = list.display().to_string();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    std::fs::write(&list, "Name,Address,Type,Scale,Wobble\nVoltage,3,U16,10,x\n").expect("written");
    let output = forebay(&[&path]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "no table: {said}");
    assert!(
        said.contains("open: does \"Scale\" multiply or divide?") && said.contains("leaves 1 question open"),
        "{said}"
    );
    let output = forebay(&[&path, "--scale", "divide"]);
    let (table, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    for part in [
        "column \"Scale\" is the factor",
        "not known, and not used: \"Wobble\"",
        "numbering: ",
        "\"Scale\" divides, as set",
    ] {
        assert!(said.contains(part) && table.contains(&format!("# - {part}")), "{part}: {said}\n{table}");
    }
    let output = forebay(&[&path, "--scale", "divide", "--explain"]);
    assert_eq!(text(&output.stdout), "line 2: holding 3 u16 × 0.1 → voltage\n");
    let utf16: Vec<u8> = "Name\tAddress\tType\nVoltage\t3\tU16\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(&list, [&b"\xFF\xFE"[..], &utf16].concat()).expect("written");
    assert!(forebay(&[&path]).status.success(), "a spreadsheet's \"Unicode text\"");
}

/// One address below 10000 once switched the classic numbering off for all rows: inputs became holding register 30001.
#[test]
fn a_list_of_four_tables_with_leading_zeros_has_the_classic_numbering() {
    let list = "Address,Name,Type\n00001,Pump,BOOL\n10001,Door,BOOL\n30001,Voltage,INT16\n40001,Setpoint,UINT16\n";
    let (device, _) = imported(list, &Options::default());
    let places: Vec<_> = device.points.iter().map(|point| (point.name.as_str(), point.table, point.address)).collect();
    let expected =
        [("pump", Table::Coil, 0), ("door", Table::Discrete, 0), ("voltage", Input, 0), ("setpoint", Holding, 0)];
    assert_eq!(places, expected);
    // Without the zeros nobody knows which table a row means.
    let mixed = "Address,Name,Type\n1,Pump,UINT16\n30001,Voltage,INT16\n40001,Setpoint,UINT16\n";
    assert!(questions(mixed, &Options::default()).contains("--numbering"));
}
