//! The columns of a list: what their heads mean.

use super::input::Row;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meaning {
    Name,
    Description,
    /// Register type, table or function code.
    Table,
    /// A function code, as a number.
    Function,
    Address,
    AddressHex,
    /// The last register of a value.
    End,
    Type,
    /// Size of a value, in a unit that the head does not say.
    Size,
    Registers,
    Bytes,
    Bits,
    Bit,
    Order,
    /// A factor; the head does not say whether it multiplies or divides.
    Factor,
    Multiplier,
    Divisor,
    /// Number of decimal places.
    Decimals,
    /// A power of ten by which values are multiplied.
    Exponent,
    /// Whether a value has a sign.
    Signed,
    Offset,
    Unit,
    /// The device of a row, in a list of several.
    Device,
    Values,
    Access,
    /// Name or address of the register with the exponent of the scale.
    ScaleFrom,
    Formula,
    Absent,
    /// Known to say nothing that a device table has.
    Ignore,
}

/// Each meaning with its name on the command line, and heads that vendors use, in letters and digits only.
const HEADS: &[(Meaning, &str, &str)] = &[
    (
        Meaning::Name,
        "name",
        "name tag tagname signalname valuename objectname parameter signal variable point pointname label symbol parametername registername \
         bezeichnung title variablename datapoint item itemname measurement measuredvalue quantityname messwert \
         parameterbezeichnung benennung designation fieldname field nom nombre denominazione",
    ),
    (
        Meaning::Description,
        "description",
        "description comment meaning beschreibung functiondescription content info longname definition descriptionen \
         details registerdescription parameterdescription kommentar descripcion descrizione",
    ),
    (
        Meaning::Table,
        "table",
        "table registertype area objecttype modbustype regtype memoryarea registertable registerart objekttyp \
         registerclass kindofregister modbusregistertype inputholding holdinginput",
    ),
    (
        Meaning::Function,
        "function",
        "fc functioncode function modbusfunction readfunction functioncodes readfc fcread funktionscode \
         modbusfunctioncode fct func readfunctioncode functioncodehex modbusfc",
    ),
    (
        Meaning::Address,
        "address",
        "address addr register reg registeraddress modbusaddress registernumber registerno startaddress startregister \
         adresse addressdec dec modbusregister registerdec registerdecimal addressdecimal decaddress decimaladdress \
         regaddr registeradresse start modbusaddressdec regno regnr registernr modbusadresse addressdez dez \
         parameteraddress startaddressdec addresses holdingregister inputregister registeraddressdec modbusaddr \
         direccion indirizzo firstregister offsetaddress pduaddress protocoladdress",
    ),
    (
        Meaning::AddressHex,
        "address-hex",
        "addresshex registerhex hexaddress hex modbusaddresshex startaddresshex regaddrhex hexadecimal \
         addresshexadecimal registeraddresshex registeradressehex addresshexa",
    ),
    (Meaning::End, "end", "end endaddress lastregister endregister lastaddress stop to endadresse"),
    (
        Meaning::Type,
        "type",
        "type datatype format dataformat datentyp valuetype encoding vartype variabletype registerformat formatdata \
         datatypes typ numberformat valueformat representation modbusdatatype typededonnees tipo datenformat dtype",
    ),
    (Meaning::Size, "size", "length size count quantity len width datalength laenge länge sizeofvariable datasize"),
    (
        Meaning::Registers,
        "registers",
        "words registers numberofregisters noofregisters numregisters wordcount registercount regcount lengthwords \
         lengthregisters sizeregisters sizewords numberofwords noofwords regs lengthinregisters nbregisters \
         numofregisters quantityofregisters registersize anzahlregister registerlength lengthinwords",
    ),
    (
        Meaning::Bytes,
        "bytes",
        "bytes sizebytes lengthbytes numberofbytes noofbytes sizeinbytes lengthinbytes bytecount",
    ),
    (Meaning::Bits, "bits", "bits sizebits lengthbits numberofbits bitlength sizeinbits bitwidth"),
    (Meaning::Bit, "bit", "bit bitposition bitnumber bitno bitindex bitoffset bitnr bitpos"),
    (
        Meaning::Order,
        "order",
        "order byteorder wordorder endianness endian wordbyteorder bytewordorder registerorder swap",
    ),
    (
        Meaning::Factor,
        "factor",
        "scale factor gain scaling scalefactor resolution faktor scalingfactor skalierung ratio coefficient \
         skalierungsfaktor conversion conversionfactor scala facteur",
    ),
    (Meaning::Multiplier, "multiplier", "multiplier multiplicator multiply multiplyby multiplikator mult"),
    (
        Meaning::Divisor,
        "divisor",
        "divisor divisionfactor divideby division divider div dividend teiler scaledivisor factordivide",
    ),
    (Meaning::Decimals, "decimals", "decimals decimalplaces decimaldigits digits nachkommastellen decimalpoint dp"),
    (Meaning::Exponent, "exponent", "exponent scaleexponent powerof10 poweroften pow10 powersoften"),
    (Meaning::Signed, "signed", "signed sign signedunsigned issigned hassign vorzeichen"),
    (Meaning::Offset, "offset", "offset bias valueoffset"),
    (
        Meaning::Unit,
        "unit",
        "unit units uom einheit engineeringunit engunit dbusunit unitofmeasure engineeringunits unidad unite \
         measureunit physicalunit",
    ),
    (
        Meaning::Device,
        "device",
        "deviceid unitid slaveid slave slaveaddress modbusid device station stationaddress dbusservicename \
         servicename deviceaddress node nodeid unitidentifier modbusunitid modbusunit",
    ),
    (
        Meaning::Values,
        "values",
        "values enum enumeration valuemeaning possiblevalues states statetext valuetable options enumvalues codes \
         states0n",
    ),
    (
        Meaning::Access,
        "access",
        "access rw readwrite accesstype mode writable writeable permission rights accessright accessrights zugriff \
         accessmode attribute readonly ror roorrw rwro",
    ),
    (
        Meaning::ScaleFrom,
        "scale-from",
        "sf scaleregister scalefactorregister sfregister scalefactorname scalingregister",
    ),
    (Meaning::Formula, "formula", "formula calculation expression formel"),
    (Meaning::Absent, "absent", "invalid invalidvalue nanvalue nan notavailable navalue novalue unimplemented"),
    (
        Meaning::Ignore,
        "ignore",
        "range min max minimum maximum minvalue maxvalue default defaultvalue remarks remark note notes category \
         group role room poll wp cw isscale no nr index id page version since firmware dbusobjpath path rownumber \
         interval pollinterval refresh updaterate section chapter model models required mandatory supported example \
         examples limits validrange valuerange wertebereich bereich writefunction writefc fcwrite bemerkung hinweis \
         lowerlimit upperlimit factorysetting initialvalue samplevalue subgroup block mandatoryoptional source status \
         obsolete icon topic entity deviceclass stateclass translation language link url revision author date ref \
         reference",
    ),
];

impl Meaning {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        HEADS.iter().find(|(meaning, ..)| *meaning == self).map_or("", |(_, name, _)| name)
    }

    /// Parses a name of the command line.
    pub fn parse(name: &str) -> Result<Self, String> {
        let known = HEADS.iter().find(|(_, known, _)| *known == name).map(|(meaning, ..)| *meaning);
        known.ok_or_else(|| {
            let names: Vec<_> = HEADS.iter().map(|(_, name, _)| *name).collect();
            format!("\"{name}\" is no meaning of a column; there are {}", names.join(", "))
        })
    }
}

/// A column of a list.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Its head as it is written.
    pub(super) head: String,
    /// `None` if the head is not known.
    pub(super) meaning: Option<Meaning>,
    /// Why a known meaning is not used.
    pub(super) unused: Option<&'static str>,
    /// Whether the user has said what it is.
    pub(super) is_given: bool,
}

/// Letters and digits of a head.
fn plain(head: &str) -> String {
    head.to_lowercase().chars().filter(|letter| letter.is_alphanumeric()).collect()
}

/// The meaning of a head, without regard to what else the list has.
fn meaning_of(head: &str) -> Option<Meaning> {
    let word = plain(head);
    let known = |word: &str| {
        HEADS.iter().find(|(.., heads)| heads.split(' ').any(|head| head == word)).map(|(meaning, ..)| *meaning)
    };
    known(&word).or_else(|| {
        // Without what stands in brackets: "Address (PDU)", "Unit [SI]".
        let outside =
            head.split(['(', '[']).next().map(plain).filter(|outside| !outside.is_empty() && *outside != word)?;
        let inside = plain(head.split_once(['(', '['])?.1);
        let meaning = known(&outside)?;
        Some(match (meaning, inside.as_str()) {
            (Meaning::Address, "hex" | "hexadecimal") => Meaning::AddressHex,
            (Meaning::Size, "registers" | "words" | "register") => Meaning::Registers,
            (Meaning::Size, "bytes" | "byte") => Meaning::Bytes,
            (Meaning::Size, "bits" | "bit") => Meaning::Bits,
            // An address that counts in a way of its own is the user's to explain.
            (meaning, _) => meaning,
        })
    })
}

/// The columns of a head line. `given` has meanings that the user has set, by head or by number from 1.
pub(super) fn columns(row: &Row, given: &[(String, Meaning)]) -> Result<Vec<Column>, String> {
    let mut columns: Vec<Column> = Vec::new();
    for (index, cell) in row.cells.iter().enumerate() {
        let head = cell.trim().to_owned();
        let is_it = |name: &str| name.trim().eq_ignore_ascii_case(&head) || name == (index + 1).to_string();
        let own = given.iter().find(|(name, _)| is_it(name)).map(|(_, meaning)| *meaning);
        let meaning = own.or_else(|| meaning_of(&head));
        columns.push(Column { head, meaning, unused: None, is_given: own.is_some() });
    }
    let has = |columns: &[Column], meaning: Meaning| columns.iter().any(|column| column.meaning == Some(meaning));
    // A list without another column of addresses may call them ids.
    if !has(&columns, Meaning::Address)
        && let Some(column) =
            columns.iter_mut().find(|column| matches!(plain(&column.head).as_str(), "id" | "no" | "nr"))
        && column.meaning == Some(Meaning::Ignore)
        && row.cells.len() > 2
        && !has_hex(row)
    {
        column.meaning = Some(Meaning::Address);
    }
    if !has(&columns, Meaning::Address) && !has(&columns, Meaning::AddressHex) {
        take_addresses(&mut columns);
    }
    if !has(&columns, Meaning::Address) && !has(&columns, Meaning::AddressHex) {
        return Err("no column of addresses, such as \"address\" or \"register\"".into());
    }
    if !has(&columns, Meaning::Name) && !has(&columns, Meaning::Description) {
        take_names(&mut columns);
    }
    if !has(&columns, Meaning::Name) && !has(&columns, Meaning::Description) {
        return Err("no column of names, such as \"name\" or \"parameter\"".into());
    }
    mark_doubles(&mut columns);
    Ok(columns)
}

/// Marks columns that say the same as an earlier one, or as one that the user has named.
pub(super) fn mark_doubles(columns: &mut [Column]) {
    let given = columns.iter().filter(|column| column.is_given);
    let mut seen: Vec<Meaning> = given.filter_map(|column| column.meaning).collect();
    for column in columns {
        let Some(meaning) = column.meaning.filter(|meaning| *meaning != Meaning::Ignore) else { continue };
        let is_double = seen.contains(&meaning) && !column.is_given;
        column.unused = is_double.then_some("another column says the same");
        seen.push(meaning);
    }
}

/// Takes unknown heads with the word "address" or "register" for those of addresses, where no other column has them.
fn take_addresses(columns: &mut [Column]) {
    const WORDS: [&str; 5] = ["address", "adresse", "addr", "register", "reg"];
    // Heads that count or name something of a register.
    const OTHERS: [&str; 15] = [
        "slave",
        "device",
        "unit",
        "ip",
        "write",
        "count",
        "number",
        "type",
        "size",
        "length",
        "function",
        "name",
        "description",
        "format",
        "map",
    ];
    for column in columns.iter_mut().filter(|column| column.meaning.is_none()) {
        let words = head_words(&column.head);
        let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
        if has(&WORDS) && !has(&OTHERS) {
            column.meaning = Some(if has(&["hex", "hexadecimal"]) { Meaning::AddressHex } else { Meaning::Address });
        }
    }
}

/// Takes unknown heads with the word "name" or the like for those of names, where no other column has them.
fn take_names(columns: &mut [Column]) {
    const WORDS: [&str; 7] = ["name", "description", "parameter", "signal", "variable", "bezeichnung", "measurement"];
    const OTHERS: [&str; 4] = ["device", "file", "group", "vendor"];
    for column in columns.iter_mut().filter(|column| column.meaning.is_none()) {
        let words = head_words(&column.head);
        let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
        if has(&WORDS) && !has(&OTHERS) {
            column.meaning = Some(Meaning::Name);
        }
    }
}

/// The words of a head, in lower case.
fn head_words(head: &str) -> Vec<String> {
    let lower = head.to_lowercase();
    lower.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Whether an unknown head has a word of something that changes values.
pub(super) fn is_telling(head: &str) -> bool {
    const BEGINNINGS: [&str; 20] = [
        "sign", "swap", "endian", "order", "scal", "fact", "faktor", "divi", "mult", "gain", "offset", "expon",
        "decim", "resol", "type", "format", "size", "length", "regist", "address",
    ];
    // What these say is of no use for a table.
    const OTHERS: [&str; 6] = ["write", "default", "min", "max", "alarm", "user"];
    let words = head_words(head);
    let has = |list: &[&str]| words.iter().any(|word| list.iter().any(|start| word.starts_with(start)));
    has(&BEGINNINGS) && !has(&OTHERS)
}

/// How a head says that its numbers count: from 0 or from 1.
pub(super) fn first_number(head: &str) -> Option<u32> {
    let word = plain(head);
    let has = |words: &[&str]| words.iter().any(|one| word.contains(one));
    match (has(&["0based", "zerobased", "base0", "pdu", "protocoladdr"]), has(&["1based", "onebased", "base1"])) {
        (true, false) => Some(0),
        (false, true) => Some(1),
        _ => None,
    }
}

fn has_hex(row: &Row) -> bool {
    row.cells.iter().any(|cell| meaning_of(cell) == Some(Meaning::AddressHex))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(heads: &[&str]) -> Vec<Option<Meaning>> {
        let row = Row { line: 1, cells: heads.iter().map(|head| (*head).to_owned()).collect() };
        let columns = columns(&row, &[]).expect("a head");
        columns.iter().map(|column| column.meaning.filter(|_| column.unused.is_none())).collect()
    }

    #[test]
    fn heads_of_vendors_are_known() {
        use Meaning::{Address, AddressHex, Device, Divisor, Factor, Ignore, Name, Size, Table, Type, Unit};
        assert_eq!(
            meanings(&[
                "Title",
                "Register type",
                "Register",
                "Division factor",
                "Unit",
                "Size of variable",
                "Min value"
            ]),
            [Some(Name), Some(Table), Some(Address), Some(Divisor), Some(Unit), Some(Size), Some(Ignore)]
        );
        assert_eq!(
            meanings(&["Title", "Info", "ID", "Size", "Factor"])[2..],
            [Some(Address), Some(Size), Some(Factor)]
        );
        assert_eq!(
            meanings(&["Name", "Register (Hex)", "Register (Dec)", "Type"]),
            [Some(Name), Some(AddressHex), Some(Address), Some(Type)]
        );
        assert_eq!(meanings(&["_address", "deviceId", "name"]), [Some(Address), Some(Device), Some(Name)]);
        assert_eq!(meanings(&["Name", "Address", "Wobble"])[2], None);
        assert_eq!(meanings(&["Address", "Addr", "Name"]), [Some(Address), None, Some(Name)]);
        assert_eq!(
            meanings(&["Modicom address", "Physical address (hex)", "Variable"])[..2],
            [Some(Address), Some(AddressHex)]
        );
        assert_eq!(meanings(&["Register", "Name of the value", "Vendor name"]), [Some(Address), Some(Name), None]);
        assert_eq!(meanings(&["Name", "Slave address", "Modbus data address"])[1..], [Some(Device), Some(Address)]);
    }

    #[test]
    fn heads_that_would_change_values_are_telling() {
        assert!(["Word swap?", "Scaling (x)", "Signed/Unsigned?", "Sub-format"].into_iter().all(is_telling));
        assert!(!["Plant", "Design", "Room", "Default format", ""].into_iter().any(is_telling));
        let first = ["Address (1-based)", "Register (base 0)", "PDU address", "Address"].map(first_number);
        assert_eq!(first, [Some(1), Some(0), Some(0), None]);
    }

    #[test]
    fn every_meaning_can_be_named() {
        for (meaning, name, _) in HEADS {
            assert_eq!((Meaning::parse(name), meaning.name()), (Ok(*meaning), *name));
        }
        assert!(Meaning::parse("colour").expect_err("unknown").contains("multiplier"));
    }

    #[test]
    fn no_head_means_two_things() {
        let all: Vec<_> = HEADS.iter().flat_map(|(.., heads)| heads.split(' ')).collect();
        for (index, head) in all.iter().enumerate() {
            assert!(!all[..index].contains(head), "{head}");
        }
    }
}
