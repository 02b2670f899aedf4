//! Bytes from outside and from the disk, as bad as chance and coverage make them. In the test run
//! each target gets a moment; `tests/run` gives it longer. Seeds are in `tests/seeds`.

use forebay::event::Record;
use forebay::journal::Block;
use forebay::mqtt;

/// Every seed, and then random changes of it, go through `target`.
fn fuzz(name: &str, target: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds").join(name);
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        seeds.push(std::fs::read(entry.expect("entry").path()).expect("a seed"));
    }
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| target(seed));
    let millis: u64 =
        std::env::var("BOLERO_RANDOM_TEST_TIME_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let until = std::time::Instant::now() + std::time::Duration::from_millis(millis);
    let mut rounds = 0u64;
    while std::time::Instant::now() < until {
        bolero::check!().with_iterations(2000).with_type::<(u8, Vec<(u16, u8)>, Vec<u8>)>().for_each(
            |(pick, changes, tail)| {
                let mut bytes = seeds[usize::from(*pick) % seeds.len()].clone();
                for (at, value) in changes {
                    if !bytes.is_empty() {
                        let at = usize::from(*at) % bytes.len();
                        bytes[at] ^= *value;
                    }
                }
                bytes.extend_from_slice(tail);
                target(&bytes);
            },
        );
        rounds += 2000;
    }
    println!("{name}: {rounds} inputs from {} seeds", seeds.len());
}

#[test]
fn bytes_of_a_device_are_read_or_refused() {
    fuzz("mqtt", |bytes| {
        for is_v5 in [false, true] {
            let mut rest = bytes;
            while let Ok(Some(frame)) = mqtt::frame(rest, 1 << 20) {
                if frame.first >> 4 == 3 {
                    let _ = mqtt::publish(frame.first, frame.body, is_v5);
                }
                rest = &rest[frame.length..];
            }
        }
    });
}

#[test]
fn stored_records_and_blocks_are_read_or_refused() {
    fuzz("stored", |bytes| {
        let _ = Record::decode(bytes);
        if let Ok(block) = Block::decode(bytes) {
            assert_eq!(block.records().count() as u64 + block.header.first, block.end());
        }
    });
}

#[test]
fn sparkplug_messages_become_json_or_are_refused() {
    use crate::common::fault_disk::FaultDisk;
    use crate::power_cut::{config, open_with};
    use forebay::ingest::sparkplug::Sparkplug;
    use forebay::memory::{Budget, LIMIT_DEFAULT};
    let journal = open_with(&FaultDisk::default(), &config()).expect("opens");
    let sparkplug = Sparkplug::open(&journal, &Budget::new(LIMIT_DEFAULT)).expect("opens");
    let waiter = forebay::journal::Waiter::default();
    let sparkplug = std::panic::AssertUnwindSafe((sparkplug, waiter));
    fuzz("sparkplug", |bytes| {
        let (sparkplug, waiter) = &*sparkplug;
        for topic in ["spBv1.0/g/NBIRTH/n", "spBv1.0/g/NDATA/n", "spBv1.0/g/DDATA/n/d", "spBv1.0/STATE/h"] {
            let decoded = sparkplug.decode("plant", topic, bytes);
            if let Ok(json) = &decoded.json {
                serde_json::from_slice::<serde_json::Value>(json).expect("what comes of it is JSON");
            }
            if let Some(change) = decoded.change {
                sparkplug.apply(change, "edge", || waiter.bell());
            }
        }
    });
}
