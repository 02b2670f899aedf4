//! Reading last year's journal: files of every stored format, as they were written.
//!
//! `FOREBAY_WRITE_GOLDEN=1` writes those of the newest format that are missing; old ones never change.

use forebay::event::{Attribute, AuthType, Content, Id, Record, Timestamp};
use forebay::journal::{Block, Compressor, Cursor, Header, OUTCOMES, Outcome, Run, append_record};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn text_record() -> Record<'static> {
    Record {
        publication: 3,
        id: Id::Text("msg-4711"),
        time: Timestamp(1_764_000_000_123_456),
        origin: "shopfloor/press%204",
        key: "press 4",
        content: Content::Json,
        attributes: vec![
            Attribute::TraceParent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            Attribute::ContentType("application/json"),
            Attribute::OriginalId("msg-4711"),
            Attribute::Violation("/state: is missing"),
            Attribute::ClockStatus("holdover"),
        ],
        payload: br#"{"state":"idle"}"#,
    }
}

/// One that somebody else than its device handed in, for each kind of proof, over QoS 2.
fn auth_record() -> Record<'static> {
    let auth = |kind| Attribute::Auth { kind, name: "line 1" };
    let kinds = [AuthType::User, AuthType::ServiceAccount, AuthType::ApiKey].map(auth);
    let exchange = Attribute::Exchange { session: 1 << 40, packet_id: 7 };
    Record { attributes: kinds.into_iter().chain([exchange]).collect(), ..text_record() }
}

fn minted_record() -> Record<'static> {
    Record {
        id: Id::Uuid([7; 16]),
        content: Content::Bytes,
        attributes: vec![],
        payload: &[0, 1, 2, 255],
        ..text_record()
    }
}

fn block() -> Block {
    let mut records = Vec::new();
    append_record(&mut records, &text_record());
    append_record(&mut records, &minted_record());
    let header = Header {
        first: 42,
        count: 2,
        recorded: Timestamp(1_764_000_001_000_000),
        runs: vec![Run { stream: 1, first: 7, count: 2 }],
        settled: vec![],
    };
    Block::new(header, &records)
}

fn large_block() -> Block {
    let mut records = Vec::new();
    for _ in 0..100 {
        append_record(&mut records, &text_record());
    }
    Block::new(Header { first: 1, count: 100, ..Header::default() }, &records)
}

fn read_or_write(name: &str, written: Vec<u8>) -> Vec<u8> {
    let path = golden(name);
    if !path.exists() && std::env::var_os("FOREBAY_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        std::fs::write(&path, &written).expect("written");
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn records_of_format_1_are_read_for_ever() {
    let all =
        [("record-text.v1", text_record()), ("record-minted.v1", minted_record()), ("record-auth.v1", auth_record())];
    for (name, record) in all {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let stored = read_or_write(name, bytes.clone());
        assert_eq!(Record::decode(&stored).expect("reads"), record);
        assert_eq!(stored, bytes, "{name}: the format changed without a new version");
    }
}

#[test]
fn blocks_of_format_1_are_read_for_ever() {
    for (name, block) in [("block-plain.v1", block()), ("block-zstd.v1", large_block())] {
        let stored = std::fs::read(golden(name)).expect("stays in the repository");
        let read = Block::decode(&stored).expect("reads");
        assert_eq!(read.header, block.header);
        assert_eq!(read.records().collect::<Vec<_>>(), block.records().collect::<Vec<_>>());
    }
}

/// A cursor with every outcome.
fn settled() -> Cursor {
    let mut settled = Cursor::new("central", 40);
    settled.ranges = vec![(44, 50)];
    for (index, outcome) in OUTCOMES.into_iter().enumerate() {
        settled.account(1).add(outcome, index as u64 + 1);
    }
    settled.account(2).add(Outcome::Delivered, 1 << 40);
    settled
}

#[test]
fn blocks_of_format_2_are_read_for_ever() {
    let with_cursor = {
        let mut records = Vec::new();
        append_record(&mut records, &text_record());
        Block::new(Header { first: 42, count: 1, settled: vec![settled()], ..Header::default() }, &records)
    };
    for (name, block) in
        [("block-plain.v2", block()), ("block-zstd.v2", large_block()), ("block-cursor.v2", with_cursor)]
    {
        let stored = read_or_write(name, block.encode(&mut Compressor::default()));
        let read = Block::decode(&stored).expect("reads");
        assert_eq!(read.header, block.header);
        assert_eq!(read.records().collect::<Vec<_>>(), block.records().collect::<Vec<_>>());
    }
}
