//! Messages that make much of little: in JSON, in notes that the disk does not take, in devices that come and go.

use super::bounds::{SMALL, noted};
use super::{Bench, message, metric, node_birth};
use crate::common::births::birth;
use crate::common::fault_disk::{Fault, FaultDisk};
use crate::common::process::resident;
use forebay::ingest::sparkplug::proto::{MetricValue, Payload};
use forebay::journal::Waiter;
use prost::Message;
use std::time::{Duration, Instant};

/// How far the memory of this process rises above what it takes now. A test has a process of its own under nextest.
fn risen(what: impl FnOnce()) -> u64 {
    let (before, _) = resident(std::process::id());
    what();
    resident(std::process::id()).1.saturating_sub(before)
}

fn apply(bench: &Bench, topic: &str, payload: &[u8]) -> u64 {
    let change = bench.sparkplug.decode("plant", topic, payload).change.expect("a change");
    bench.sparkplug.apply(change, "edge", || bench.waiter.bell())
}

fn await_saved(bench: &Bench, number: u64) {
    let start = Instant::now();
    while !bench.sparkplug.is_saved(number) {
        assert!(start.elapsed() < super::LONG, "it is never saved");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_message_that_becomes_far_more_json_takes_no_more_memory_than_its_bound() {
    let bench = Bench::open(&FaultDisk::default());
    let bits = |bytes: usize| {
        let array = [&u32::try_from(8 * bytes).expect("fits").to_le_bytes()[..], &vec![0; bytes]].concat();
        message(None, vec![metric("m", 0, 32, MetricValue::Bytes(array))])
    };
    let zeros = "\u{1}".repeat(8_000_000);
    let text = message(None, vec![metric("m", 0, 12, MetricValue::Text(zeros.clone()))]);
    let uuid = Payload { uuid: Some(zeros.clone()), ..Payload::default() }.encode_to_vec();
    let inputs = [bits(8_000_000), text, uuid];
    for input in &inputs {
        let take = || {
            let refused = bench.node("NDATA", input).expect_err("too much");
            assert_eq!(refused, "payload: becomes more than 8388608 bytes of JSON");
        };
        let risen = risen(take);
        assert!(risen < 48 << 20, "{} MiB for {} bytes", risen >> 20, input.len());
    }
    let state = || assert!(bench.take("spBv1.0/STATE/h", zeros.as_bytes()).is_err());
    assert!(risen(state) < 48 << 20);
    // With less memory the bound is lower.
    let bench = Bench::open_within(&FaultDisk::default(), SMALL);
    let refused = bench.node("NDATA", &bits(1_000_000)).expect_err("too much");
    assert_eq!(refused, "payload: becomes more than 2097152 bytes of JSON");
}

#[test]
fn nodes_of_ever_new_names_wait_within_bounds_for_a_disk_that_takes_no_notes() {
    let disk = FaultDisk::default();
    let bench = Bench::open_within(&disk, SMALL);
    disk.fail_at("state.redb", Some(Fault::Full));
    let (birth, death) = (node_birth(0), message(None, vec![]));
    let last = std::cell::Cell::new(0);
    let risen = risen(|| {
        for number in 0..20_000 {
            for (kind, payload) in [("NBIRTH", &birth), ("NDEATH", &death)] {
                let topic = format!("spBv1.0/{}/{kind}/{}-{number}", "g".repeat(400), "n".repeat(400));
                let change = bench.sparkplug.decode("plant", &topic, payload).change.expect("a change");
                last.set(bench.sparkplug.apply(change, "edge", || Waiter::default().bell()).max(last.get()));
            }
        }
    });
    assert!(risen < 20 << 20, "{} MiB", risen >> 20);
    assert!(!bench.sparkplug.is_saved(last.get()));
    disk.fail(None);
    await_saved(&bench, last.get());
}

#[test]
fn what_was_forgotten_faster_than_it_is_removed_does_not_come_back() {
    let disk = FaultDisk::default();
    let bench = Bench::open_within(&disk, SMALL);
    let topic = |kind: &str, stamp: &str, number: usize| format!("spBv1.0/g/{kind}/{stamp}-{number}");
    let declares = birth(2, 10, 1);
    let last = (0..1200).map(|number| apply(&bench, &topic("NBIRTH", "old", number), &declares)).max();
    await_saved(&bench, last.expect("some"));
    assert!(noted(&bench).0 == 1200);
    // The disk fails while thousands of others take their place.
    disk.fail_at("state.redb", Some(Fault::Full));
    let last = (0..6000).map(|number| apply(&bench, &topic("NBIRTH", "new", number), &declares)).max();
    // A birth of one that was forgotten is refused: what it declared before counts no more.
    let refused = apply(&bench, &topic("NBIRTH", "old", 0), &birth(1, 5000, 1));
    assert!(refused > 0 && !bench.sparkplug.is_saved(refused));
    disk.fail(None);
    await_saved(&bench, refused.max(last.expect("some")));
    let known = |bench: &Bench| {
        let by_alias = message(None, vec![metric("", 1, 0, MetricValue::Boolean(true))]);
        let is_known = |stamp: &str, number: usize| {
            bench.sparkplug.decode("plant", &topic("NDATA", stamp, number), &by_alias).json.is_ok()
        };
        let count = |stamp: &str, of: usize| (0..of).filter(|number| is_known(stamp, *number)).count();
        (count("old", 1200), count("new", 6000))
    };
    let before = known(&bench);
    assert!(before.0 == 0 && before.1 > 500, "{before:?}");
    let held = noted(&bench).0;
    assert_eq!(held, before.1, "notes of nodes that are known no more");
    drop(bench);
    let bench = Bench::open_within(&disk, SMALL);
    assert_eq!((known(&bench), noted(&bench).0), (before, held));
}

#[test]
fn a_refused_birth_is_noted_even_where_nothing_is_known_of_the_node() {
    let disk = FaultDisk::default();
    let bench = Bench::open(&disk);
    disk.fail_at("state.redb", Some(Fault::Full));
    let number = apply(&bench, "spBv1.0/g/NBIRTH/n", &birth(1, 5000, 1));
    assert!(number > 0 && !bench.sparkplug.is_saved(number), "its note may be on the disk still");
    disk.fail(None);
    await_saved(&bench, number);
}

#[test]
fn devices_that_come_and_go_leave_nothing_of_their_node_s_bound() {
    let disk = FaultDisk::default();
    let bench = Bench::open_within(&disk, SMALL);
    bench.node("NBIRTH", &node_birth(0)).expect("a birth");
    let declares = birth(2, 10, 1);
    for number in 0..3000 {
        for (kind, payload) in [("DBIRTH", &declares), ("DDEATH", &message(None, vec![]))] {
            let topic = format!("spBv1.0/g/{kind}/n/device-{number}");
            let decoded = bench.sparkplug.decode("plant", &topic, payload);
            assert!(decoded.json.is_ok(), "{topic}: {:?}", decoded.json);
            let number = bench.sparkplug.apply(decoded.change.expect("a change"), "edge", || bench.waiter.bell());
            if topic.ends_with("999") {
                await_saved(&bench, number);
            }
        }
    }
    assert_eq!(noted(&bench).0, 1);
    let by_alias = message(None, vec![metric("", 1, 0, MetricValue::Boolean(true))]);
    let refused = bench.take("spBv1.0/g/DDATA/n/device-7", &by_alias).expect_err("it is dead");
    assert_eq!(refused, "alias 1: is unknown to device g/n/device-7: no birth certificate of it is known");
    assert_eq!(bench.asked().as_deref(), Some("spBv1.0/g/NCMD/n"));
}

#[test]
fn a_refused_node_birth_is_no_gap_and_asks_for_nothing() {
    let bench = Bench::open(&FaultDisk::default());
    let data = |seq| message(Some(seq), vec![metric("Supply/Voltage", 0, 10, MetricValue::Double(1.0))]);
    for refused in [birth(1, 5000, 1), b"\xFF\xFF".to_vec()] {
        bench.node("NBIRTH", &node_birth(0)).expect("a birth");
        for seq in 1..40 {
            bench.node("NDATA", &data(seq)).expect("data");
        }
        assert!(bench.node("NBIRTH", &refused).is_err());
        assert_eq!((bench.sparkplug.stats.gaps.value(), bench.asked()), (0, None));
        // Data behind it follows it.
        bench.node("NDATA", &data(1)).expect("data");
        assert_eq!(bench.sparkplug.stats.gaps.value(), 0);
        while bench.asked().is_some() {}
    }
}

#[test]
fn a_death_that_comes_again_writes_nothing() {
    let disk = FaultDisk::default();
    let bench = Bench::open(&disk);
    let death = message(None, vec![]);
    bench.node("NBIRTH", &node_birth(0)).expect("a birth");
    bench.device("DBIRTH", &birth(2, 10, 1)).expect("a birth");
    for (topic, first) in [("spBv1.0/g/DDEATH/n/d", true), ("spBv1.0/g/NDEATH/n", true), ("spBv1.0/g/NDEATH/x", false)]
    {
        for is_new in [first, false, false] {
            let number = apply(&bench, topic, &death);
            assert_eq!(number > 0, is_new, "{topic}");
            await_saved(&bench, number);
        }
    }
}
