//! The fields of known records, and their values in little memory: records of one contract are much alike.
//!
//! Promise: packed values unpack to the same text.
//! Invariants: the dictionary of a shape is made once, from its first records, and lives as long as the shape. It is stored
//! nowhere: notes hold the text.

use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};

/// Records before a shape has a dictionary. It takes some 100 kB, which is much for a handful of records.
const DICTIONARY_AFTER: usize = 256;
/// Records that a dictionary is made of: it has the products, units and places of many others.
const SAMPLES: usize = 16;
/// Longest dictionary: a record has some 500 bytes.
const DICTIONARY_BYTES_MAX: usize = 16 << 10;
/// The fastest: a record of 500 bytes takes some 100 bytes and 20 µs.
const LEVEL: i32 = 1;
/// The first byte of packed values: the text itself, or length and compressed text.
const RAW: u8 = 0;
const COMPRESSED: u8 = 1;
const LENGTH_BYTES: usize = 4;

/// A list of fields that records have.
pub(super) struct Shape {
    /// Names of the fields.
    pub(super) names: Vec<String>,
    packed: usize,
    /// Values of some of its first records, until there is a dictionary.
    samples: Vec<u8>,
    dictionary: Option<Dictionary>,
}

struct Dictionary {
    encoder: EncoderDictionary<'static>,
    decoder: DecoderDictionary<'static>,
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shape({:?})", self.names)
    }
}

impl Shape {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self { names, packed: 0, samples: Vec::new(), dictionary: None }
    }

    /// Packs the values of a record, which are a JSON array.
    pub(super) fn pack(&mut self, text: &str) -> Box<[u8]> {
        if self.dictionary.is_none() {
            self.sample(text);
        }
        let compressed = self.dictionary.as_ref().and_then(|dictionary| dictionary.compress(text));
        compressed.unwrap_or_else(|| [&[RAW][..], text.as_bytes()].concat()).into()
    }

    fn sample(&mut self, text: &str) {
        let is_one = self.packed.is_multiple_of(DICTIONARY_AFTER / SAMPLES);
        self.packed += 1;
        if is_one && self.samples.len() + text.len() <= DICTIONARY_BYTES_MAX {
            self.samples.extend_from_slice(text.as_bytes());
        }
        if self.packed >= DICTIONARY_AFTER {
            let samples = std::mem::take(&mut self.samples);
            let (encoder, decoder) = (EncoderDictionary::copy(&samples, LEVEL), DecoderDictionary::copy(&samples));
            self.dictionary = Some(Dictionary { encoder, decoder });
        }
    }

    /// The values of a record; empty for a deleted one.
    pub(super) fn unpack(&self, packed: &[u8]) -> String {
        let bytes = match packed.split_first() {
            Some((&RAW, text)) => text.to_vec(),
            Some((&COMPRESSED, rest)) => {
                self.dictionary.as_ref().and_then(|dictionary| dictionary.decompress(rest)).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        String::from_utf8(bytes).unwrap_or_default()
    }
}

impl Dictionary {
    /// Length and compressed text; `None` if the text itself is as short.
    fn compress(&self, text: &str) -> Option<Vec<u8>> {
        let mut compressor = Compressor::with_prepared_dictionary(&self.encoder).ok()?;
        compressor.include_contentsize(false).ok()?;
        let compressed = compressor.compress(text.as_bytes()).ok()?;
        let length = u32::try_from(text.len()).ok()?.to_le_bytes();
        let is_shorter = compressed.len() + LENGTH_BYTES < text.len();
        is_shorter.then(|| [&[COMPRESSED][..], &length, &compressed].concat())
    }

    fn decompress(&self, packed: &[u8]) -> Option<Vec<u8>> {
        let (length, compressed) = packed.split_at_checked(LENGTH_BYTES)?;
        let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
        let mut decompressor = Decompressor::with_prepared_dictionary(&self.decoder).ok()?;
        decompressor.decompress(compressed, length).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(number: usize) -> String {
        format!(
            r#"["WH/MO/{number:05}","confirmed",{{"id":9,"name":"[P-VALVE] Ball valve","default_code":"P-VALVE"}},{number}.0,"2026-11-{:02}T06:00:00Z",null,[]]"#,
            1 + number % 28
        )
    }

    #[test]
    fn values_unpack_to_what_they_were_whenever_they_were_packed() {
        let mut shape = Shape::new(vec!["name".into()]);
        let texts: Vec<String> = (0..1000).map(values).collect();
        let packed: Vec<_> = texts.iter().map(|text| shape.pack(text)).collect();
        for (text, packed) in texts.iter().zip(&packed) {
            assert_eq!(shape.unpack(packed), *text);
        }
        for text in ["", "[]", "[null]", &format!("[\"{}\"]", "é\u{1f600}".repeat(50_000))] {
            let packed = shape.pack(text);
            assert_eq!(shape.unpack(&packed), text);
        }
        assert_eq!(shape.unpack(&[]), "");
        let (raw, late) = (texts[900].len(), packed[900].len());
        assert!(late * 3 < raw, "{late} of {raw} bytes");
        assert_eq!(shape.pack(&texts[900]), packed[900], "equal values have equal bytes");
    }
}
