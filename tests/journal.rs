//! The log of a lane: whatever goes in comes out, in order, cut into blocks and segments.

use crate::common::fault_disk::FaultDisk;
use crate::power_cut::{open, publication};
use forebay::event::{Content, Id, Record, Timestamp};
use forebay::journal::{Found, Outcome, Waiter};
use proptest::prelude::*;
use std::time::{Duration, Instant};

/// Plain bytes of a block at most, unless one record alone is larger.
const BLOCK_PLAIN_MAX: usize = 256 << 10;

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![8 => 0usize..400, 2 => 400usize..20_000, 1 => 20_000usize..200_000];
    proptest::collection::vec(size, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sizes_come_out_as_they_went_in(sizes in sizes(), compressible: bool) {
        let disk = FaultDisk::default();
        let journal = open(&disk).expect("opens");
        let publication = journal.publish(&publication()).expect("publishes");
        let lane = journal.lane("critical").expect("the lane");
        let mut waiter = Waiter::default();
        let mut last = None;
        let payloads: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(index, size)| {
            let mut random = index as u64 * 0x9E37_79B9_7F4A_7C15 | 1;
            (0..*size).map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if compressible { b'x' } else { random as u8 }
            }).collect()
        }).collect();
        let mut settled = 0;
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
            // Some in one commit, some alone; and central takes them, so that the budget lasts.
            if index % 7 == 0 {
                while last.is_some_and(|ticket| lane.receipt(ticket).is_none()) {
                    prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
                    let events: Vec<_> = (settled + 1..lane.end().saturating_sub(60)).map(|offset| (offset, 1, Outcome::Delivered)).collect();
                    settled = settled.max(lane.end().saturating_sub(61));
                    lane.settle("central", &events);
                    std::thread::yield_now();
                }
            }
        }
        let start = Instant::now();
        while last.is_some_and(|ticket| lane.receipt(ticket).is_none()) {
            prop_assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lane.condition());
            let events: Vec<_> = (1..lane.end().saturating_sub(20)).map(|offset| (offset, 1, Outcome::Delivered)).collect();
            lane.settle("central", &events);
            std::thread::sleep(Duration::from_millis(1));
        }
        prop_assert_eq!(lane.end(), payloads.len() as u64 + 1);
        let mut next = lane.settled("central").map_or(1, |settled| settled.low);
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
