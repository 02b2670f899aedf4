//! Blocks: many records in one value, compressed, with a checksum and a format version.
//!
//! Promise: a block that decodes is exactly what was encoded; anything else is reported as damaged or as newer than this
//! version. Golden files in `tests/golden` hold every format written so far.
//!
//! Layout: `"FB"`, format, codec, CRC-32C of all that follows (u32, little endian), length of the plain body (u32, little
//! endian), body. The plain body is a postcard [`Header`] and then the records, each with a length prefix (u32, little
//! endian).

use super::cursor::{Cursor, SettledV1};
use crate::event::{Record, Timestamp, append_postcard};
use serde::{Deserialize, Serialize};

/// Block format that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u8 = 2;
const MAGIC: [u8; 2] = *b"FB";
const PREFIX_BYTES: usize = 12;
const CODEC_PLAIN: u8 = 0;
const CODEC_ZSTD: u8 = 1;
/// Largest accepted body: room for the largest payload, 8 MiB, and for the records around it.
const BODY_BYTES_MAX: usize = 24 << 20;
/// Below this size compression saves no page of the file.
const COMPRESS_FROM_BYTES: usize = 2048;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Offset of the first record.
    pub first: u64,
    pub count: u32,
    /// Time when the journal stored them.
    pub recorded: Timestamp,
    /// Sequences of the records, one run for each stream.
    pub runs: Vec<Run>,
    /// Cursors of the destinations, if one changed since the block before.
    pub settled: Vec<Cursor>,
}

/// A header in format 1.
#[derive(Deserialize)]
struct HeaderV1 {
    first: u64,
    count: u32,
    recorded: Timestamp,
    runs: Vec<Run>,
    settled: Vec<SettledV1>,
}

impl From<HeaderV1> for Header {
    fn from(old: HeaderV1) -> Self {
        let settled = old.settled.into_iter().map(Cursor::from).collect();
        Self { first: old.first, count: old.count, recorded: old.recorded, runs: old.runs, settled }
    }
}

/// Sequences of one stream in a block: `count` of them from `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Number of the stream in this journal.
    pub stream: u32,
    /// Sequence of its first record.
    pub first: u64,
    pub count: u32,
}

#[derive(Debug)]
pub struct Block {
    pub header: Header,
    body: Vec<u8>,
    records_from: usize,
}

/// Why a stored value is no valid block.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadBlock {
    /// The content is not what was written.
    #[error("block is damaged: {0}")]
    Damaged(&'static str),
    /// A newer version of Forebay wrote the block.
    #[error("block has format {0}; this Forebay reads up to {FORMAT}")]
    Newer(u8),
}

impl Block {
    /// Builds a block from encoded records, each with a length prefix.
    pub fn new(header: Header, records: &[u8]) -> Self {
        let mut body = Vec::with_capacity(records.len() + 128);
        append_postcard(&mut body, &header);
        let records_from = body.len();
        body.extend_from_slice(records);
        Self { header, body, records_from }
    }

    /// Encodes the block as the value to store.
    pub fn encode(&self, compressor: &mut Compressor) -> Vec<u8> {
        let mut value = Vec::with_capacity(PREFIX_BYTES + self.body.len() / 2);
        value.extend_from_slice(&MAGIC);
        value.push(FORMAT);
        value.push(CODEC_PLAIN);
        value.extend_from_slice(&[0; 4]);
        value.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        if self.body.len() >= COMPRESS_FROM_BYTES && compressor.append(&self.body, &mut value) {
            value[3] = CODEC_ZSTD;
        } else {
            value.extend_from_slice(&self.body);
        }
        let checksum = checksum(&value);
        value[4..8].copy_from_slice(&checksum.to_le_bytes());
        value
    }

    pub fn decode(value: &[u8]) -> Result<Self, BadBlock> {
        let damaged = |why| Err(BadBlock::Damaged(why));
        if value.len() < PREFIX_BYTES || value[..2] != MAGIC {
            return damaged("it does not start as one");
        }
        if value[2] > FORMAT {
            return Err(BadBlock::Newer(value[2]));
        }
        let word = |at: usize| u32::from_le_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
        if word(4) != checksum(value) {
            return damaged("checksum mismatch");
        }
        let length = word(8) as usize;
        if length > BODY_BYTES_MAX {
            return damaged("its length is beyond the limit");
        }
        let body = match value[3] {
            CODEC_PLAIN => value[PREFIX_BYTES..].to_vec(),
            CODEC_ZSTD => match zstd::bulk::decompress(&value[PREFIX_BYTES..], length) {
                Ok(body) => body,
                Err(_) => return damaged("it does not decompress"),
            },
            _ => return damaged("its codec is unknown"),
        };
        if body.len() != length {
            return damaged("length mismatch");
        }
        let read = match value[2] {
            1 => postcard::take_from_bytes::<HeaderV1>(&body).map(|(header, rest)| (Header::from(header), rest)),
            _ => postcard::take_from_bytes::<Header>(&body),
        };
        let Ok((header, rest)) = read else {
            return damaged("its header does not decode");
        };
        let records_from = body.len() - rest.len();
        let block = Self { header, body, records_from };
        let mut count = 0u32;
        for record in block.raw_records() {
            if record.is_none() {
                return damaged("a record is cut short");
            }
            count += 1;
        }
        if count != block.header.count {
            return damaged("record count mismatch");
        }
        Ok(block)
    }

    /// First bytes of every stored value.
    pub const MAGIC: [u8; 2] = MAGIC;
    /// Bytes of a value before its body.
    pub const HEAD_BYTES: usize = PREFIX_BYTES;

    /// Raises the next sequences of streams to the end of the block.
    pub fn raise_sequences(&self, sequences: &mut Vec<(u32, u64)>) {
        for run in &self.header.runs {
            raise_sequence(sequences, run.stream, run.first + u64::from(run.count));
        }
    }

    /// The same block with its header in the newest format.
    pub fn reencoded(&self) -> Self {
        Self::new(self.header.clone(), &self.body[self.records_from..])
    }

    /// The same block without cursors.
    pub fn without_cursors(&self) -> Self {
        let header = Header { settled: Vec::new(), ..self.header.clone() };
        Self::new(header, &self.body[self.records_from..])
    }

    /// Decodes a block at the start of `bytes`, which may be longer; also returns its length. For a scan that does not
    /// use the order of the file.
    pub fn decode_first(bytes: &[u8]) -> Result<(Self, usize), BadBlock> {
        let damaged = BadBlock::Damaged("it does not start as one");
        if bytes.len() < PREFIX_BYTES || bytes[..2] != MAGIC {
            return Err(damaged);
        }
        if bytes[2] > FORMAT {
            return Err(BadBlock::Newer(bytes[2]));
        }
        let plain = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        let body = match bytes[3] {
            CODEC_PLAIN => plain,
            CODEC_ZSTD => zstd::zstd_safe::find_frame_compressed_size(&bytes[PREFIX_BYTES..]).unwrap_or(usize::MAX),
            _ => return Err(damaged),
        };
        let value = body.checked_add(PREFIX_BYTES).and_then(|length| bytes.get(..length)).ok_or(damaged)?;
        Ok((Self::decode(value)?, value.len()))
    }

    /// Largest possible length of a value that begins with `prefix`; `None` if no block begins like
    /// this. Reads the first [`Block::HEAD_BYTES`].
    pub fn value_bytes_max(prefix: &[u8]) -> Option<usize> {
        let is_one = prefix.len() >= PREFIX_BYTES && prefix[..2] == MAGIC && (1..=FORMAT).contains(&prefix[2]);
        // Compressed bodies are shorter than plain ones: otherwise the body is stored plain.
        let plain = u32::from_le_bytes(*prefix.get(8..12)?.first_chunk()?) as usize;
        (is_one && prefix[3] <= CODEC_ZSTD && plain <= BODY_BYTES_MAX).then_some(PREFIX_BYTES + plain)
    }

    /// Offset after the last record.
    pub fn end(&self) -> u64 {
        self.header.first + u64::from(self.header.count)
    }

    /// Size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Position of the first record, for [`Block::record_at`].
    pub fn start(&self) -> usize {
        self.records_from
    }

    /// The record at a position, and the position of the next; `None` at the end.
    pub fn record_at(&self, position: usize) -> Option<(Record<'_>, usize)> {
        let (bytes, next) = self.raw_at(position)?;
        // The checksum is correct: only a bug can have written a record that does not decode. The block then ends here,
        // and the caller reports the difference in count.
        Some((Record::decode(bytes).ok()?, next))
    }

    fn raw_at(&self, position: usize) -> Option<(&[u8], usize)> {
        let prefix = self.body.get(position..position + 4)?;
        let length = u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
        let bytes = self.body.get(position + 4..position.checked_add(4)?.checked_add(length)?)?;
        Some((bytes, position + 4 + length))
    }

    fn raw_records(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut position = Some(self.records_from);
        std::iter::from_fn(move || {
            let at = position?;
            if at == self.body.len() {
                return None;
            }
            match self.raw_at(at) {
                Some((bytes, next)) => {
                    position = Some(next);
                    Some(Some(bytes))
                }
                None => {
                    position = None;
                    Some(None)
                }
            }
        })
    }

    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.raw_records().map_while(|bytes| Record::decode(bytes?).ok())
    }
}

fn checksum(value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&value[2..4]), &value[8..])
}

/// Raises the next sequence of one stream.
pub(super) fn raise_sequence(sequences: &mut Vec<(u32, u64)>, stream: u32, next: u64) {
    match sequences.iter_mut().find(|(known, _)| *known == stream) {
        Some((_, known)) => *known = (*known).max(next),
        None => sequences.push((stream, next)),
    }
}

/// Appends a record with a length prefix.
pub fn append_record(out: &mut Vec<u8>, record: &Record<'_>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    record.encode(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

/// Compresses blocks; keeps the tables of the codec between them.
pub struct Compressor(Option<zstd::bulk::Compressor<'static>>);

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

/// zstd level 1: on payloads whose values do not repeat, 0.35 of the size at 0.57 µs per event;
/// level 3 is no smaller and takes 0.95 µs, lz4 reaches 0.61 at 0.27 µs.
const ZSTD_LEVEL: i32 = 1;

impl Default for Compressor {
    fn default() -> Self {
        Self(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok())
    }
}

impl Compressor {
    /// Appends the compressed `plain` to `out`. Returns `false` and appends nothing if that saves nothing.
    fn append(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(compressor) = &mut self.0 else { return false };
        match compressor.compress(plain) {
            Ok(packed) if packed.len() < plain.len() => {
                out.extend_from_slice(&packed);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Content, Id};
    use proptest::prelude::*;

    fn block(payloads: &[Vec<u8>]) -> Block {
        let mut records = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            let id = format!("id-{index}");
            append_record(
                &mut records,
                &Record {
                    publication: 1,
                    id: Id::Text(&id),
                    time: Timestamp(index as i64),
                    origin: "s/d",
                    key: "k",
                    content: Content::Bytes,
                    attributes: vec![],
                    payload,
                },
            );
        }
        let header = Header { first: 10, count: payloads.len() as u32, ..Header::default() };
        Block::new(header, &records)
    }

    proptest! {
        #[test]
        fn a_block_reads_back_as_it_was_written(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..60)) {
            let written = block(&payloads);
            let read = Block::decode(&written.encode(&mut Compressor::default())).expect("reads back");
            prop_assert_eq!(&read.header, &written.header);
            let found: Vec<Vec<u8>> = read.records().map(|record| record.payload.to_vec()).collect();
            prop_assert_eq!(found, payloads);
        }

        #[test]
        fn a_block_with_any_bit_changed_is_refused(bit in 0usize..800, payload in proptest::collection::vec(any::<u8>(), 100..200)) {
            let mut value = block(&[payload]).encode(&mut Compressor::default());
            value[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Block::decode(&value).is_err());
        }

        #[test]
        fn a_block_is_found_whatever_follows_it(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..60), rest in proptest::collection::vec(any::<u8>(), 0..99)) {
            let written = block(&payloads);
            let mut value = written.encode(&mut Compressor::default());
            let length = value.len();
            value.extend_from_slice(&rest);
            prop_assert!(Block::value_bytes_max(&value).is_some_and(|bytes_max| bytes_max >= length));
            let (read, bytes) = Block::decode_first(&value).expect("reads back");
            prop_assert_eq!((&read.header, bytes), (&written.header, length));
            prop_assert!(Block::decode_first(&value[..length - 1]).is_err(), "a part of one is none");
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Block::decode(&bytes);
            let _ = Block::decode_first(&bytes);
            let _ = Block::value_bytes_max(&bytes);
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut value = block(&[]).encode(&mut Compressor::default());
        value[2] = FORMAT + 1;
        assert_eq!(Block::decode(&value).err(), Some(BadBlock::Newer(FORMAT + 1)));
    }
}
