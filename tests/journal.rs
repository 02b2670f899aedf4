//! The log of a lane: whatever goes in comes out, in order, cut into blocks and segments.

use crate::common::fault_disk::FaultDisk;
use crate::power_cut::{config, open_with, publication};
use forebay::event::{Content, Id, Record, Timestamp};
use forebay::journal::{Found, Waiter};
use proptest::prelude::*;
use std::time::{Duration, Instant};

/// Plain bytes of a block at most, unless one record alone is larger.
const BLOCK_PLAIN_MAX: usize = 256 << 10;

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![8 => 0usize..400, 2 => 400usize..20_000, 1 => 20_000usize..200_000];
    proptest::collection::vec(size, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sizes_come_out_as_they_went_in(sizes in sizes(), compressible: bool) {
        let disk = FaultDisk::default();
        let mut config = config();
        // Room for all of it, in segments of a megabyte.
        config.lanes[0].budget = (sizes.iter().sum::<usize>() as u64 * 4).max(16 << 20);
        let journal = open_with(&disk, &config).expect("opens");
        let publication = journal.publish(&publication()).expect("publishes");
        let lane = journal.lane("critical").expect("the lane");
        let mut waiter = Waiter::default();
        let mut last = None;
        let payloads: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(index, size)| {
            let mut random = (index as u64 * 0x9E37_79B9_7F4A_7C15) | 1;
            (0..*size).map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if compressible { b'x' } else { random as u8 }
            }).collect()
        }).collect();
        for (index, payload) in payloads.iter().enumerate() {
            let record = Record {
                publication,
                id: Id::Uuid([index as u8; 16]),
                time: Timestamp(index as i64),
                origin: "s/d",
                key: "k",
                content: Content::Bytes,
                attributes: vec![],
                payload,
            };
            let start = Instant::now();
            last = loop {
                match lane.submit(&record, None, &mut waiter) {
                    Ok(ticket) => break Some(ticket),
                    Err(_) => {
                        prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
                        std::thread::yield_now();
                    }
                }
            };
            // Some in one commit, some alone.
            while index % 7 == 0 && last.is_some_and(|ticket| lane.receipt(ticket).is_none()) {
                prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
                std::thread::yield_now();
            }
        }
        let start = Instant::now();
        while last.is_some_and(|ticket| lane.receipt(ticket).is_none()) {
            prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
            std::thread::sleep(Duration::from_millis(1));
        }
        prop_assert_eq!(lane.end(), payloads.len() as u64 + 1);
        let mut next = 1;
        while next < lane.end() {
            match lane.look(next).expect("reads") {
                Found::Lost { to } => prop_assert!(false, "lost {next} to {to}"),
                Found::Block(block) => {
                    prop_assert!(block.header.count == 1 || block.bytes() <= BLOCK_PLAIN_MAX + 1024, "{} bytes", block.bytes());
                    for (offset, record) in (block.header.first..).zip(block.records()) {
                        prop_assert_eq!(record.payload, &payloads[offset as usize - 1][..]);
                        prop_assert_eq!(record.time, Timestamp(offset as i64 - 1));
                    }
                    next = block.end();
                }
            }
        }
        journal.close(Duration::from_secs(5));
    }
}
