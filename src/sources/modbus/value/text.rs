//! Texts in registers: what devices write there, with their paddings and character sets.
//!
//! Promise: padding is no part of a text, and no letter of a text is lost in silence. A byte that is no letter is an error
//! that names it.

use encoding_rs::{Encoding as Charset, WINDOWS_1252};

/// How a text is stored in registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextFormat {
    /// The character set; `None` for UTF-8 where the bytes are valid, and Windows-1252 (a superset of Latin-1) elsewhere.
    charset: Option<&'static Charset>,
    /// Letters at the end that are padding, in addition to NUL, 0xFF, blanks and line ends.
    padding: String,
}

/// Bytes at the ends of a text that devices fill unused registers with.
const FILLERS: [u8; 2] = [0, 0xFF];

impl TextFormat {
    /// A format from the settings of a point. The error names the key.
    pub fn new(charset: Option<&str>, padding: Option<&str>) -> Result<Self, (&'static str, String)> {
        let charset = match charset {
            None | Some("auto") => None,
            Some(name) => Some(Charset::for_label(name.as_bytes()).ok_or_else(|| {
                let message = format!(
                    "\"{name}\" is no character set that is known; expected \"auto\", \"utf-8\", \"latin1\", \"utf-16be\", or another name of the WHATWG Encoding Standard"
                );
                ("encoding", message)
            })?),
        };
        Ok(Self { charset, padding: padding.unwrap_or_default().to_owned() })
    }

    /// Decodes the bytes of a text. NUL ends it, unless it is in front.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<String, String> {
        let text = match self.charset {
            Some(charset) if !charset.is_ascii_compatible() => decoded(charset, bytes)?,
            charset => {
                let start = bytes.iter().position(|byte| !FILLERS.contains(byte)).unwrap_or(bytes.len());
                let bytes = &bytes[start..];
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                let is_filler = |byte: &u8| FILLERS.contains(byte) || byte.is_ascii_whitespace();
                let end = bytes[..end].iter().rposition(|byte| !is_filler(byte)).map_or(0, |last| last + 1);
                match (charset, std::str::from_utf8(&bytes[..end])) {
                    (None, Ok(text)) => text.to_owned(),
                    (None, Err(_)) => decoded(WINDOWS_1252, &bytes[..end])?,
                    (Some(charset), _) => decoded(charset, &bytes[..end])?,
                }
            }
        };
        // Fillers of wide character sets.
        let text = text.trim_start_matches(['\0', '\u{ffff}', '\u{feff}']);
        let text = text.split('\0').next().unwrap_or_default().trim_end_matches('\u{ffff}');
        let is_padding = |letter: char| letter.is_whitespace() || self.padding.contains(letter);
        let text = text.trim_start().trim_end_matches(is_padding);
        match text.chars().find(|letter| letter.is_control() && !letter.is_whitespace()) {
            Some(letter) => Err(format!("the character U+{:04X} is no letter of a text", u32::from(letter))),
            None => Ok(text.replace(|letter: char| letter.is_control(), " ")),
        }
    }
}

fn decoded(charset: &'static Charset, bytes: &[u8]) -> Result<String, String> {
    let text = charset.decode_without_bom_handling_and_without_replacement(bytes);
    text.map(String::from).ok_or_else(|| {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "the bytes {} are no text in {}; set encoding to the character set of the device",
            hex.join(" "),
            charset.name()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(charset: Option<&str>, bytes: &[u8]) -> Result<String, String> {
        TextFormat::new(charset, None).expect("good").decode(bytes)
    }

    #[test]
    fn texts_of_devices_are_read_with_any_padding() {
        let good = |bytes: &[u8], wanted: &str| assert_eq!(text(None, bytes), Ok(wanted.to_owned()), "{bytes:x?}");
        good(b"SN123\xff\xff\xff", "SN123");
        good(b"SN123\xff\0\0", "SN123");
        good(b"SN123   ", "SN123");
        good(b"SN123\r\n\0", "SN123");
        good(b"\0\0SN123", "SN123");
        good(b"\xff\xffSN123\0stale", "SN123");
        good(b"\xff\xff\xff\xff", "");
        good(b"\0\0\0\0", "");
        good(b"  ", "");
        good(b"K\xfchler 1", "Kühler 1");
        good("Kühler 1".as_bytes(), "Kühler 1");
        good(b"two\nlines", "two lines");
    }

    #[test]
    fn the_character_set_and_the_padding_can_be_set() {
        assert_eq!(text(Some("latin1"), b"caf\xe9\0"), Ok("café".into()));
        assert_eq!(text(Some("utf-16be"), b"\0K\0\xfc\0h\0\0\0\0"), Ok("Küh".into()));
        assert_eq!(text(Some("utf-16le"), b"K\0\xfc\0\xff\xff"), Ok("Kü".into()));
        assert_eq!(text(Some("gbk"), b"\xb5\xe7\xb1\xed"), Ok("电表".into()));
        let padded = TextFormat::new(None, Some("#.")).expect("good");
        assert_eq!(padded.decode(b"A.1#.#"), Ok("A.1".into()));
        let (key, said) = TextFormat::new(Some("runes"), None).expect_err("unknown");
        assert!(key == "encoding" && said.contains("\"runes\""), "{said}");
    }

    #[test]
    fn what_is_no_text_is_named() {
        let said = text(None, b"A\x07B").expect_err("a bell");
        assert!(said.contains("U+0007"), "{said}");
        let said = text(Some("utf-8"), b"caf\xe9s").expect_err("Latin-1");
        assert!(said.contains("63 61 66 e9 73") && said.contains("UTF-8") && said.contains("set encoding"), "{said}");
    }

    proptest! {
        #[test]
        fn a_padded_text_is_the_text(
            text in "[!-~äöüß]([ -~äöüß]{0,20}[!-~äöüß])?",
            front in prop::collection::vec(prop::sample::select(vec![0u8, 0xFF]), 0..4),
            back in prop::collection::vec(prop::sample::select(vec![0u8, 0xFF, b' ']), 0..9),
            latin: bool,
        ) {
            let own: Vec<u8> = match latin {
                true => text.chars().map(|letter| letter as u8).collect(),
                false => text.clone().into_bytes(),
            };
            let bytes = [front, own, back].concat();
            let charset = latin.then_some("latin1");
            prop_assert_eq!(self::text(charset, &bytes), Ok(text));
        }
    }
}
