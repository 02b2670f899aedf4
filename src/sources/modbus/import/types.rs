//! Names of types in vendors' lists.

use super::super::value::Type;

/// What a list says of a type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TypeName {
    pub(super) class: Class,
    /// Number of bits, if the name gives it.
    pub(super) bits: Option<u32>,
    /// The order of bytes, if the name gives it.
    pub(super) order: Option<&'static str>,
    /// A number in brackets: how many values, or the length of a text.
    pub(super) count: Option<u16>,
    /// What the length of a text counts, if the name says so.
    pub(super) counts: Option<TextUnit>,
    /// Whether `count` stood in brackets.
    pub(super) is_bracketed: bool,
}

/// What the length of a text counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TextUnit {
    Letters,
    Registers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The list does not say whether there is a sign.
    Unknown,
    Unsigned,
    Signed,
    Float,
    Bcd,
    /// Four decimal digits a register.
    Decimal,
    Bool,
    /// The upper byte of a register.
    HighByte,
    Text,
    /// Counts up (`acc32` of SunSpec).
    Counter,
    /// The exponent of a scale (`sunssf` of SunSpec).
    Exponent,
}

/// Words of a type that say nothing.
const FILLERS: [&str; 13] =
    ["bit", "bits", "number", "value", "precision", "ieee", "754", "t", "point", "type", "format", "data", "modbus"];

/// Endings of types, with the order that they stand for.
const ENDINGS: [(&str, &str); 5] = [("be", "ABCD"), ("le", "DCBA"), ("sw", "CDAB"), ("ws", "CDAB"), ("sb", "BADC")];

impl TypeName {
    /// Parses a name such as `UINT16`, `int32sw`, `S_DWORD`, `16-bit unsigned` or `Float (4 bytes)`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_lowercase();
        let (plain, count) = brackets(&lower);
        let mut tokens = tokens(&plain);
        if let Some(name) = text_name(&tokens, count) {
            return Ok(name);
        }
        let order = take_order(&mut tokens);
        let bits = take_bits(&mut tokens);
        let is_known_word = tokens.iter().any(|token| token == "bit") && tokens.len() == 1 && bits.is_none();
        if !is_known_word {
            tokens.retain(|token| !FILLERS.contains(&token.as_str()));
        }
        let is_ieee = tokens.is_empty() && lower.contains("ieee");
        let word = if is_ieee { "float".to_owned() } else { tokens.concat() };
        let unknown = || {
            format!(
                "type \"{text}\" is not known; say what it is with --type \"{text}=u16\" (or i16, u32, f32, …), or leave the line out"
            )
        };
        // The brackets of `UINT(16)` hold a size, those of `UINT16[2]` a number of values.
        let (bits, count) = match (bits, count) {
            (None, Some(size @ (8 | 16 | 32 | 64))) => (Some(size.into()), None),
            other => other,
        };
        if count.is_some_and(|count| count > 1) && class(&word, bits).is_some() {
            return Err(format!(
                "type \"{text}\" is an array; give each value a line, or say what the whole is with --type \"{text}=u32\""
            ));
        }
        if let Some((class, own)) = class(&word, bits) {
            return Self::number(class, bits.or(own), order).checked(text);
        }
        // Endings that name an order: uint32be, floatsw, F32LE.
        for (ending, named) in ENDINGS {
            if let (Some(stem), None) = (word.strip_suffix(ending), order)
                && let Some((class, own)) = class(stem, bits)
            {
                return Self::number(class, bits.or(own), Some(named)).checked(text);
            }
        }
        Err(match word.as_str() {
            "sint" => format!(
                "type \"{text}\" has 8 bits in PLC languages and 16 elsewhere; say which with --type \"{text}=i16\""
            ),
            "usint" => format!(
                "type \"{text}\" has 8 bits in PLC languages and 16 elsewhere; say which with --type \"{text}=u16\""
            ),
            "date" | "time" | "datetime" | "timestamp" | "ipaddr" | "mac" | "eui" => {
                format!(
                    "type \"{text}\" cannot be read as a value; use --type \"{text}=u16\" for its registers, or leave the line out"
                )
            }
            _ => unknown(),
        })
    }

    /// A type without a length.
    pub(super) fn number(class: Class, bits: Option<u32>, order: Option<&'static str>) -> Self {
        // Of a single byte, "little-endian" is the upper one.
        let (class, order) = match (bits, order) {
            (Some(8), Some("DCBA")) => (Class::HighByte, None),
            (Some(8), _) => (class, None),
            _ => (class, order),
        };
        Self { class, bits, order, count: None, counts: None, is_bracketed: false }
    }

    fn checked(self, text: &str) -> Result<Self, String> {
        let allowed: &[u32] = match self.class {
            Class::Unsigned | Class::Signed | Class::Unknown => &[8, 16, 32, 64],
            Class::Float => &[32, 64],
            Class::Bcd => &[16, 32, 64],
            Class::Decimal => &[32, 48, 64],
            Class::Counter => &[16, 32, 64],
            Class::Exponent => &[16],
            Class::HighByte => &[8],
            Class::Bool => &[1, 8, 16],
            Class::Text => return Ok(self),
        };
        match self.bits.filter(|bits| !allowed.contains(bits)) {
            Some(bits) => Err(format!("type \"{text}\" has {bits} bits, which no type of Forebay has")),
            None => Ok(self),
        }
    }

    /// The type of Forebay for so many bits; `None` if there is none.
    pub(super) fn of_bits(class: Class, bits: u32) -> Option<(&'static str, Type)> {
        Some(match (class, bits) {
            (Class::Unsigned | Class::Unknown, 8) => ("u8", Type::U8),
            (Class::Unsigned | Class::Unknown | Class::Counter, 16) => ("u16", Type::U16),
            (Class::Unsigned | Class::Unknown | Class::Counter, 32) => ("u32", Type::U32),
            (Class::Unsigned | Class::Unknown | Class::Counter, 64) => ("u64", Type::U64),
            (Class::Signed, 8) => ("i8", Type::I8),
            (Class::Signed | Class::Exponent, 16) => ("i16", Type::I16),
            (Class::Signed, 32) => ("i32", Type::I32),
            (Class::Signed, 64) => ("i64", Type::I64),
            (Class::Float, 32) => ("f32", Type::F32),
            (Class::Float, 64) => ("f64", Type::F64),
            (Class::Bcd, 16) => ("bcd16", Type::Bcd16),
            (Class::Bcd, 32) => ("bcd32", Type::Bcd32),
            (Class::Bcd, 64) => ("bcd64", Type::Bcd64),
            (Class::Decimal, 32) => ("m10k32", Type::M10k32),
            (Class::Decimal, 48) => ("m10k48", Type::M10k48),
            (Class::Decimal, 64) => ("m10k64", Type::M10k64),
            (Class::HighByte, 8) => ("u16", Type::U16),
            _ => return None,
        })
    }
}

/// Splits off a number in brackets at the end: `string[6]`, `char(16)`. Others, such as `(4 bytes)`, are words of the type.
fn brackets(text: &str) -> (String, Option<u16>) {
    let inner = text.trim().strip_suffix([']', ')']).and_then(|rest| rest.rsplit_once(['[', '(']));
    match inner.map(|(before, number)| (before, number.trim().parse())) {
        Some((before, Ok(number))) => (before.to_owned(), Some(number)),
        _ => (text.to_owned(), None),
    }
}

/// Runs of letters and of digits.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut before = ' ';
    for letter in text.chars() {
        let joins =
            letter.is_alphabetic() && before.is_alphabetic() || letter.is_ascii_digit() && before.is_ascii_digit();
        if letter.is_alphanumeric() {
            match tokens.last_mut() {
                Some(last) if joins => last.push(letter),
                _ => tokens.push(letter.to_string()),
            }
        }
        before = letter;
    }
    tokens
}

/// A text, with its length: `STRING8`, `char[20]`, `ASCII 16 bytes`, `UTF8`.
fn text_name(tokens: &[String], count: Option<u16>) -> Option<TypeName> {
    const WORDS: [&str; 11] = [
        "string",
        "str",
        "ascii",
        "text",
        "char",
        "chars",
        "utf",
        "varchar",
        "octetstring",
        "characters",
        "stringascii",
    ];
    let is_text = tokens.iter().any(|token| WORDS.contains(&token.as_str()));
    if !is_text || tokens.iter().any(|token| token.starts_with("unsigned") || token.starts_with("signed")) {
        return None;
    }
    // The number of a character set is no length.
    let is_charset = |at: usize| at > 0 && tokens[at - 1] == "utf";
    let number = (0..tokens.len()).find(|at| !is_charset(*at) && tokens[*at].parse::<u16>().is_ok());
    let counts = number.and_then(|at| match tokens.get(at + 1).map(String::as_str) {
        Some("byte" | "bytes" | "char" | "chars" | "characters" | "letters") => Some(TextUnit::Letters),
        Some("register" | "registers" | "regs" | "words") => Some(TextUnit::Registers),
        _ => None,
    });
    let is_bracketed = count.is_some();
    let count = count.or(number.and_then(|at| tokens[at].parse().ok()));
    let order = tokens.iter().any(|token| token == "le" || token.ends_with("le")).then_some("BADC");
    Some(TypeName { class: Class::Text, bits: None, order, count, counts, is_bracketed })
}

/// Takes words that say an order.
fn take_order(tokens: &mut Vec<String>) -> Option<&'static str> {
    let is_at = |tokens: &[String], at: usize, words: &[&str]| {
        tokens.len() >= at + words.len() && tokens[at..].iter().zip(words).all(|(token, word)| token == word)
    };
    for &(words, order) in ORDER_WORDS {
        if let Some(at) = (0..tokens.len()).find(|at| is_at(tokens, *at, words)) {
            // A single letter is an ending, and no type by itself.
            if words.len() == 1 && tokens.len() == 1 {
                continue;
            }
            tokens.drain(at..at + words.len());
            return Some(order);
        }
    }
    None
}

const ORDER_WORDS: &[(&[&str], &str)] = &[
    (&["big", "endian", "word", "swap"], "CDAB"),
    (&["big", "endian", "swapped"], "CDAB"),
    (&["big", "endian", "byte", "swap"], "BADC"),
    (&["little", "endian", "byte", "swap"], "BADC"),
    (&["little", "endian", "word", "swap"], "BADC"),
    (&["mid", "big"], "BADC"),
    (&["mid", "little"], "CDAB"),
    (&["big", "endian"], "ABCD"),
    (&["little", "endian"], "DCBA"),
    (&["bigendian"], "ABCD"),
    (&["littleendian"], "DCBA"),
    (&["word", "swap"], "CDAB"),
    (&["word", "swapped"], "CDAB"),
    (&["words", "swapped"], "CDAB"),
    (&["wordswap"], "CDAB"),
    (&["byte", "swap"], "BADC"),
    (&["bytes", "swapped"], "BADC"),
    (&["byteswap"], "BADC"),
    (&["msw", "first"], "ABCD"),
    (&["lsw", "first"], "CDAB"),
    (&["high", "word", "first"], "ABCD"),
    (&["low", "word", "first"], "CDAB"),
    (&["msb", "first"], "ABCD"),
    (&["inverse"], "CDAB"),
    (&["inverted"], "CDAB"),
    (&["reversed"], "CDAB"),
    (&["swapped"], "CDAB"),
    (&["swap"], "CDAB"),
    (&["abcd"], "ABCD"),
    (&["cdab"], "CDAB"),
    (&["badc"], "BADC"),
    (&["dcba"], "DCBA"),
    (&["be"], "ABCD"),
    (&["le"], "DCBA"),
    (&["sw"], "CDAB"),
    (&["sb"], "BADC"),
    (&["r"], "CDAB"),
    (&["msw"], "ABCD"),
    (&["lsw"], "CDAB"),
];

/// Parses the cell of a column of orders. The error says what is allowed.
pub(super) fn order(text: &str) -> Result<Option<String>, String> {
    let plain = text.trim();
    if plain.is_empty() || plain == "-" {
        return Ok(None);
    }
    let mut tokens = tokens(&plain.to_lowercase());
    let digits = match tokens.concat().as_str() {
        "1234" | "3210" | "10" | "highlow" | "big" | "msb" | "standard" | "normal" | "hilo" | "bigbig" => Some("ABCD"),
        "3412" | "1032" | "01" | "lowhigh" | "littleword" | "lohi" | "biglittle" => Some("CDAB"),
        "2143" | "2301" | "littlebig" => Some("BADC"),
        "4321" | "0123" | "little" | "littlelittle" => Some("DCBA"),
        _ => None,
    };
    if let Some(order) = digits {
        return Ok(Some(order.into()));
    }
    let upper = tokens.concat().to_uppercase();
    if upper.len() == 8 && super::super::value::Order::try_from(upper.clone()).is_ok() {
        return Ok(Some(upper));
    }
    tokens.push(String::new());
    match take_order(&mut tokens) {
        Some(order)
            if tokens.iter().all(|token| {
                matches!(token.as_str(), "" | "order" | "first" | "bytes" | "words" | "and" | "byte" | "word")
            }) =>
        {
            Ok(Some(order.into()))
        }
        _ => Err(format!(
            "order \"{text}\" is not known; expected ABCD, CDAB (low word first), BADC (low byte first) or DCBA"
        )),
    }
}

/// Takes the number of bits: `16`, `4 bytes`, `2 registers`.
fn take_bits(tokens: &mut Vec<String>) -> Option<u32> {
    // The number of the standard is no size.
    tokens.retain(|token| token != "754");
    let at = tokens.iter().position(|token| token.parse::<u32>().is_ok())?;
    let number: u32 = tokens.remove(at).parse().ok()?;
    let factor = match tokens.get(at).map(String::as_str) {
        Some("byte" | "bytes") => 8,
        Some("register" | "registers" | "words" | "regs") => 16,
        _ => return Some(number),
    };
    tokens.remove(at);
    number.checked_mul(factor)
}

/// The class of a word, and its bits if it has a fixed number of them.
fn class(word: &str, bits: Option<u32>) -> Option<(Class, Option<u32>)> {
    use Class::{Bcd, Bool, Counter, Decimal, Exponent, Float, Signed, Unknown, Unsigned};
    Some(match word {
        "" => return bits.map(|_| (Unknown, None)),
        "u" | "uint" | "unsigned" | "unsignedint" | "unsignedinteger" | "uinteger" | "ui" | "intu" | "integeru"
        | "intunsigned" | "integerunsigned" | "uns" | "enum" | "enumeration" | "bitfield" | "bitmap" | "bitmask"
        | "flags" | "hex" | "raw" | "count" => (Unsigned, None),
        "usint" | "sint" if bits.is_some() => (if word == "sint" { Signed } else { Unsigned }, None),
        "i" | "s" | "int" | "integer" | "signed" | "signedint" | "signedinteger" | "ints" | "integers" | "si"
        | "intsigned" | "integersigned" => (Signed, None),
        "word" | "uword" | "ushort" | "unsignedshort" | "unsignedword" | "wordu" => (Unsigned, Some(16)),
        "short" | "sword" | "signedshort" | "signedword" | "shortint" | "words" => (Signed, Some(16)),
        "dword" | "udword" | "udint" | "ulong" | "unsignedlong" | "unsigneddword" | "doubleword"
        | "unsignedlongint" => (Unsigned, Some(32)),
        "dint" | "long" | "sdword" | "signedlong" | "signeddword" | "longint" | "slong" => (Signed, Some(32)),
        "qword" | "lword" | "uqword" | "ulint" | "ulonglong" | "unsignedlonglong" | "unsignedqword" => {
            (Unsigned, Some(64))
        }
        "lint" | "longlong" | "sqword" | "signedqword" | "signedlonglong" => (Signed, Some(64)),
        "byte" | "ubyte" | "uchar" | "unsignedchar" | "unsignedbyte" => (Unsigned, Some(8)),
        "sbyte" | "signedbyte" | "signedchar" => (Signed, Some(8)),
        "f" | "float" | "real" | "floating" | "fp" | "flt" | "floatreal" => (Float, None),
        "single" | "floatsingle" | "singlefloat" => (Float, Some(32)),
        "double" | "lreal" | "floatdouble" | "doublefloat" => (Float, Some(64)),
        "bcd" => (Bcd, None),
        "mod" | "mk" | "m10k" => (Decimal, None),
        "bool" | "boolean" | "bit" | "coil" | "flag" | "binary" | "b" => (Bool, None),
        "acc" => (Counter, None),
        "sunssf" | "ssf" => (Exponent, Some(16)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_names_of_vendors_are_known() {
        use Class::{Bool, Counter, Exponent, Float, HighByte, Signed, Text, Unknown, Unsigned};
        let check = |text: &str, class: Class, bits: Option<u32>, order: Option<&str>| {
            let found = TypeName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((found.class, found.bits, found.order), (class, bits, order), "{text}");
        };
        for text in [
            "UINT16",
            "U16",
            "uint16_t",
            "INT16U",
            "U_WORD",
            "WORD",
            "16-bit unsigned",
            "Unsigned 16",
            "unsigned 16 bit integer",
            "unsigned short",
            "16 bit unsigned int",
            "bitfield16",
            "enum16",
            "UINT(16)",
        ] {
            let found = TypeName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((found.class, found.bits), (Unsigned, Some(16)), "{text}");
        }
        for text in ["INT16", "S16", "i16", "int16_t", "S_WORD", "short", "16-bit signed", "Signed 16", "INT16S"] {
            check(text, Signed, Some(16), None);
        }
        for text in [
            "U32",
            "UINT32",
            "DWORD",
            "U_DWORD",
            "unsigned long",
            "ulong",
            "UDINT",
            "uint (2 registers)",
            "uint 4 bytes",
        ] {
            check(text, Unsigned, Some(32), None);
        }
        for text in ["S_DWORD", "INT32", "s32", "long", "DINT", "signed 32 bit"] {
            check(text, Signed, Some(32), None);
        }
        for text in [
            "Float (4 bytes)",
            "FLOAT32",
            "F32",
            "REAL32",
            "IEEE 754 float 32",
            "IEEE-754 32 bit",
            "float32",
            "32-bit float",
            "32 bit floating point",
            "single",
            "FP32",
        ] {
            check(text, Float, Some(32), None);
        }
        check("float", Float, None, None);
        check("double", Float, Some(64), None);
        check("unsigned", Unsigned, None, None);
        check("s8", Signed, Some(8), None);
        check("u8", Unsigned, Some(8), None);
        check("acc32", Counter, Some(32), None);
        check("sunssf", Exponent, Some(16), None);
        check("BOOL", Bool, None, None);
        check("bit", Bool, None, None);
        check("UTF8", Text, None, None);
        check("16 bit", Unknown, Some(16), None);
        check("uint16be", Unsigned, Some(16), Some("ABCD"));
        check("uint32be", Unsigned, Some(32), Some("ABCD"));
        check("int64be", Signed, Some(64), Some("ABCD"));
        check("int32sw", Signed, Some(32), Some("CDAB"));
        check("floatbe", Float, None, Some("ABCD"));
        check("floatsw", Float, None, Some("CDAB"));
        check("F32LE", Float, Some(32), Some("DCBA"));
        check("U_DWORD_R", Unsigned, Some(32), Some("CDAB"));
        check("FP32_R", Float, Some(32), Some("CDAB"));
        check("float32 CDAB", Float, Some(32), Some("CDAB"));
        check("INT32 (LSW first)", Signed, Some(32), Some("CDAB"));
        check("uint8le", HighByte, Some(8), None);
        check("uint8be", Unsigned, Some(8), None);
        let text = |text: &str| TypeName::parse(text).map(|name| (name.class, name.count, name.counts)).expect(text);
        assert_eq!(text("string[6]"), (Text, Some(6), None));
        assert_eq!(text("STRING8"), (Text, Some(8), None));
        assert_eq!(text("ASCII 16 bytes"), (Text, Some(16), Some(TextUnit::Letters)));
        assert_eq!(text("string (8 registers)"), (Text, Some(8), Some(TextUnit::Registers)));
        assert_eq!(text("UTF8"), (Text, None, None));
    }

    #[test]
    fn what_is_not_known_says_what_to_do() {
        for (text, wanted) in [
            ("widget", "--type \"widget=u16\""),
            ("UINT24", "has 24 bits"),
            ("UINT16[2]", "is an array"),
            ("SINT", "8 bits in PLC languages"),
            ("datetime", "cannot be read as a value"),
            ("2", "has 2 bits"),
        ] {
            let error = TypeName::parse(text).expect_err(text);
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn orders_are_known_by_many_names() {
        for (text, wanted) in [
            ("ABCD", "ABCD"),
            ("Big-endian", "ABCD"),
            ("Big-endian, word swap", "CDAB"),
            ("MSW first", "ABCD"),
            ("LSW first", "CDAB"),
            ("word swap", "CDAB"),
            ("byte swap", "BADC"),
            ("little endian", "DCBA"),
            ("Low word first", "CDAB"),
            ("3-2-1-0", "ABCD"),
            ("1-0-3-2", "CDAB"),
            ("EFGHABCD", "EFGHABCD"),
        ] {
            assert_eq!(order(text), Ok(Some(wanted.to_owned())), "{text}");
        }
        assert_eq!(order(""), Ok(None));
        assert!(order("sideways").is_err() && order("word swap maybe").is_err());
    }
}
