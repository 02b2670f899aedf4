//! What the gateway remembers of edge nodes is bounded in bytes: of a node, of a sender and in all, in memory and on the disk.

use super::{Bench, message, metric};
use crate::common::births::birth;
use crate::common::fault_disk::{Fault, FaultDisk};
use crate::power_cut::{config, open_with};
use forebay::ingest::sparkplug::proto::MetricValue;

/// The smallest memory limit: 4 MiB for all nodes, 3 MiB for a sender, 256 KiB for a node.
pub(super) const SMALL: u64 = 32 << 20;
const ALL: usize = 4 << 20;
const SENDER: usize = 3 << 20;
const NODE: usize = 256 << 10;

fn by_alias(alias: u64) -> Vec<u8> {
    message(None, vec![metric("", alias, 0, MetricValue::Boolean(true))])
}

pub(super) fn noted(bench: &Bench) -> (usize, usize) {
    let notes = bench._journal.notes("sparkplug").all("").expect("read");
    (notes.len(), notes.iter().map(|(_, note)| note.len()).sum())
}

fn await_notes(bench: &Bench, what: &str, is_so: impl Fn((usize, usize)) -> bool) {
    let start = std::time::Instant::now();
    while !is_so(noted(bench)) {
        assert!(start.elapsed() < super::LONG, "{what}: {:?}", noted(bench));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn names_above_their_bound_are_refused_with_the_bound() {
    let bench = Bench::open(&FaultDisk::default());
    let long = "n".repeat(250_000);
    let refused = bench.device("DBIRTH", &message(Some(1), vec![metric(&long, 1, 11, MetricValue::Boolean(true))]));
    let refused = refused.expect_err("too long");
    assert!(refused.starts_with("metric \"nnn") && refused.ends_with("its name has 250000 bytes; 1024 are allowed"));
    assert!(refused.len() < 300, "{refused}");
    let longest = metric(&long[..1024], 1, 11, MetricValue::Boolean(true));
    assert!(bench.device("DBIRTH", &message(Some(1), vec![longest])).is_ok());
    let refused = bench.take(&format!("spBv1.0/g/NDATA/{}", &long[..1024]), &by_alias(1)).expect_err("too long");
    assert_eq!(refused, "topic: has 1040 bytes; 1024 are allowed for Sparkplug B");
    // A message that is small and is not when it is read.
    let refused = bench.node("NDATA", &[0x12, 0].repeat(125_000)).expect_err("too much");
    assert!(
        refused.starts_with("payload: has 250000 bytes and takes more than 16777216 bytes of memory to read"),
        "{refused}"
    );
    assert!(bench.sparkplug.bytes() < 10_000, "{}", bench.sparkplug.bytes());
}

#[test]
fn a_big_node_and_a_plant_have_room() {
    let bench = Bench::open(&FaultDisk::default());
    // 10,000 metrics with names of 100 bytes, and 24 MiB of such nodes.
    for number in 0..16 {
        bench.take(&format!("spBv1.0/g/NBIRTH/n-{number}"), &birth(10_000, 100, number)).expect("room");
    }
    for number in 0..16 {
        let data = bench.take(&format!("spBv1.0/g/NDATA/n-{number}"), &by_alias(9999)).expect("its alias is known");
        assert!(data["metrics"].to_string().contains(&format!("270f/{number:x}/nnn")), "{data}");
    }
    assert_eq!(bench.sparkplug.stats.forgotten.value(), 0);
    assert!((16_000_000..24 << 20).contains(&bench.sparkplug.bytes()), "{}", bench.sparkplug.bytes());
}

#[test]
fn a_node_that_declares_too_much_is_refused_and_its_aliases_of_before_count_no_more() {
    let disk = FaultDisk::default();
    let bench = Bench::open_within(&disk, SMALL);
    let on_device = |number: usize| bench.take(&format!("spBv1.0/g/DBIRTH/n/d-{number}"), &birth(500, 100, number));
    bench.node("NBIRTH", &super::node_birth(0)).expect("a birth");
    let refused = (0..10).find_map(|number| on_device(number).err()).expect("too much");
    assert!(refused.starts_with("metrics: with this birth of device g/n/d-4 its node takes "), "{refused}");
    assert!(refused.contains(&format!("bytes of memory; {NODE} are allowed for a node")), "{refused}");
    assert!(bench.take("spBv1.0/g/DDATA/n/d-3", &by_alias(7)).is_ok());
    // The same device again, with less; then with too much, whose aliases are others.
    assert!(bench.take("spBv1.0/g/DBIRTH/n/d-3", &birth(10, 10, 1)).is_ok());
    assert!(bench.take("spBv1.0/g/DDATA/n/d-3", &by_alias(7)).is_ok());
    assert!(bench.take("spBv1.0/g/DBIRTH/n/d-3", &birth(4000, 100, 2)).is_err());
    let refused = bench.take("spBv1.0/g/DDATA/n/d-3", &by_alias(7)).expect_err("of which birth is it?");
    assert_eq!(refused, "alias 7: is unknown to device g/n/d-3: no birth certificate of it is known");
    // Of the node itself alike; and a restart changes nothing of it.
    assert!(bench.node("NDATA", &by_alias(1)).is_err_and(|reason| reason.contains("its value is no Double")));
    assert!(bench.node("NBIRTH", &birth(8000, 100, 2)).is_err());
    let check = |bench: Bench| {
        assert!(bench.node("NDATA", &by_alias(1)).is_err_and(|reason| reason.starts_with("alias 1: is unknown")));
        assert!(bench.take("spBv1.0/g/DDATA/n/d-1", &by_alias(1)).is_err());
        assert!(bench.sparkplug.bytes() < 10_000, "{}", bench.sparkplug.bytes());
        assert_eq!(noted(&bench).0, 0);
    };
    check(bench);
    check(Bench::open_within(&disk, SMALL));
    // So it is with a birth that cannot be read, whose aliases nobody knows.
    let bench = Bench::open(&disk);
    for refused in [b"\xFF\xFF".to_vec(), [0x12, 0].repeat(125_000), birth(1, 5000, 1)] {
        bench.node("NBIRTH", &birth(2, 10, 1)).expect("a birth");
        assert!(bench.node("NDATA", &by_alias(1)).is_ok());
        assert!(bench.node("NBIRTH", &refused).is_err());
        assert!(bench.node("NDATA", &by_alias(1)).is_err());
    }
}

#[test]
fn a_sender_that_declares_without_end_loses_its_own_and_asks_for_rebirths_grow_rare() {
    let disk = FaultDisk::default();
    let bench = Bench::open_within(&disk, SMALL);
    let take = |sender: &str, kind: &str, node: &str, payload: &[u8]| {
        bench.take_from(sender, &format!("spBv1.0/g/{kind}/{node}"), payload)
    };
    let big = birth(2000, 100, 1);
    for node in ["calm-1", "calm-2"] {
        take("calm", "NBIRTH", node, &big).expect("room");
    }
    for number in 0..30 {
        for sender in ["wild-1", "wild-2"] {
            take(sender, "NBIRTH", &format!("{sender}-{number}"), &big).expect("its event is taken all the same");
            assert!(bench.sparkplug.bytes() <= ALL, "{}", bench.sparkplug.bytes());
        }
    }
    for node in ["calm-1", "calm-2"] {
        assert!(take("calm", "NDATA", node, &by_alias(1)).is_ok(), "others were to lose theirs");
    }
    assert!(take("wild-1", "NDATA", "wild-1-29", &by_alias(1)).is_ok(), "the last is the last to go");
    assert!(bench.sparkplug.stats.forgotten.value() >= 40);
    await_notes(&bench, "what is forgotten is on the disk no more", |(_, bytes)| bytes <= ALL);
    // It is asked once, is born, is forgotten again, and is not asked again at once.
    while bench.asked().is_some() {}
    let lost = "wild-1-0";
    let refused = take("wild-1", "NDATA", lost, &by_alias(1)).expect_err("forgotten");
    assert!(refused.starts_with("alias 1: is unknown to node g/wild-1-0"), "{refused}");
    assert_eq!(bench.asked().as_deref(), Some("spBv1.0/g/NCMD/wild-1-0"));
    take("wild-1", "NBIRTH", lost, &big).expect("room");
    assert!(take("wild-1", "NDATA", lost, &by_alias(1)).is_ok());
    for number in 0..30 {
        take("wild-1", "NBIRTH", &format!("wild-1-{number}b"), &big).expect("taken");
    }
    assert!(take("wild-1", "NDATA", lost, &by_alias(1)).is_err());
    assert_eq!(bench.asked(), None, "asked once within the pause");
}

#[test]
fn one_sender_alone_stays_within_its_part_and_tiny_nodes_count_too() {
    let bench = Bench::open_within(&FaultDisk::default(), SMALL);
    for number in 0..6000 {
        let topic = format!("spBv1.0/g/NDATA/{}-{number}", "n".repeat(200));
        assert!(bench.take(&topic, &by_alias(1)).is_err());
    }
    let held = bench.sparkplug.bytes();
    assert!(held <= SENDER && held > SENDER / 2, "{held}");
    assert!(bench.sparkplug.node_count() < 4000, "{}", bench.sparkplug.node_count());
    let asks = std::iter::from_fn(|| bench.asked()).count();
    assert!(asks <= 1000, "{asks}");
}

#[test]
fn a_start_with_less_memory_keeps_what_fits_and_removes_the_rest() {
    let disk = FaultDisk::default();
    let bench = Bench::open(&disk);
    for number in 0..20 {
        bench.take(&format!("spBv1.0/g/NBIRTH/n-{number}"), &birth(2000, 100, number)).expect("room");
    }
    bench.take("spBv1.0/g/NBIRTH/huge", &birth(9000, 100, 1)).expect("room");
    assert_eq!(noted(&bench).0, 21);
    drop(bench);
    let bench = Bench::open_within(&disk, SMALL);
    let (notes, bytes) = noted(&bench);
    assert!((10..=12).contains(&notes) && bytes <= SENDER, "{notes} of {bytes} bytes");
    assert_eq!(notes, bench.sparkplug.node_count());
    let kept =
        (0..20).filter(|number| bench.take(&format!("spBv1.0/g/NDATA/n-{number}"), &by_alias(5)).is_ok()).count();
    assert_eq!(kept, notes);
    drop(bench);
    // What says nothing to this version is removed as well.
    let journal = open_with(&disk, &config()).expect("opens");
    journal.notes("sparkplug").write(vec![("of another version".into(), Some(vec![9; 1000]))]).expect("written");
    drop(journal);
    assert_eq!(noted(&Bench::open_within(&disk, SMALL)).0, notes);
}

#[test]
fn a_device_is_a_note_of_its_own_that_goes_with_its_node() {
    let disk = FaultDisk::default();
    let bench = Bench::open(&disk);
    let sizes = |bench: &Bench| -> Vec<usize> {
        bench._journal.notes("sparkplug").all("").expect("read").iter().map(|(_, note)| note.len()).collect()
    };
    let knows = |bench: &Bench, device: &str| bench.take(&format!("spBv1.0/g/DDATA/n/{device}"), &by_alias(3)).is_ok();
    let born = |bench: &Bench, device: &str, length: usize| {
        bench.take(&format!("spBv1.0/g/DBIRTH/n/{device}"), &birth(4, length, 0))
    };
    // A device that is born before its node, and a second one that leaves the notes of both alone.
    born(&bench, "first", 10).expect("a birth");
    assert_eq!(sizes(&bench).len(), 2);
    bench.node("NBIRTH", &birth(5000, 100, 1)).expect("a birth");
    assert_eq!(sizes(&bench).len(), 1, "devices are born after their node");
    for device in ["first", "second", "third"] {
        born(&bench, device, 10).expect("a birth");
    }
    let before = bench._journal.notes("sparkplug").all("").expect("read");
    assert!(before[0].1.len() > 500_000 && before[1..].iter().all(|(_, note)| note.len() < 100), "{:?}", sizes(&bench));
    // A birth that is refused takes its own along, and a second one finds nothing to write.
    for _ in 0..2 {
        born(&bench, "third", 2000).expect_err("too long a name");
        assert_eq!(sizes(&bench).len(), 3);
    }
    drop(bench);
    let bench = Bench::open(&disk);
    assert!(knows(&bench, "first") && knows(&bench, "second") && !knows(&bench, "third"));
    assert!(bench.take("spBv1.0/g/NDATA/n", &by_alias(4999)).is_ok());
    // Many at once.
    let numbers: Vec<u64> = (0..60)
        .map(|number| {
            let topic = format!("spBv1.0/g/DBIRTH/n/{}-{number}", "d".repeat(80));
            let change = bench.sparkplug.decode("plant", &topic, &birth(4, 10, 0)).change.expect("a change");
            bench.sparkplug.apply(change, "edge", || bench.waiter.bell())
        })
        .collect();
    await_notes(&bench, "all are there", |(notes, _)| notes == 63);
    let start = std::time::Instant::now();
    while !bench.sparkplug.is_saved(numbers[59]) {
        assert!(start.elapsed() < super::LONG);
    }
    assert!(bench.node("NBIRTH", &birth(1, 2000, 1)).is_err());
    assert_eq!(sizes(&bench), [0; 0]);
    // Without its node, a device counts for nothing.
    bench._journal.notes("sparkplug").write(vec![("0/first".into(), Some(vec![2, 0]))]).expect("written");
    drop(bench);
    assert_eq!(sizes(&Bench::open(&disk)), [0; 0]);
}

/// Each dead device stayed until the next birth of its node: vehicles and sessions with ever new names filled it up.
#[test]
fn devices_that_come_and_go_leave_nothing_behind() {
    let bench = Bench::open_within(&FaultDisk::default(), SMALL);
    bench.node("NBIRTH", &super::node_birth(0)).expect("a birth");
    let alone = bench.sparkplug.bytes();
    let apply = |kind: &str, device: &str, payload: &[u8]| {
        let decoded = bench.sparkplug.decode("plant", &format!("spBv1.0/g/{kind}/n/{device}"), payload);
        bench.sparkplug.apply(decoded.change.expect("a change"), "edge", || bench.waiter.bell());
        decoded.json
    };
    for number in 0..300 {
        let device = format!("{}-{number}", "vehicle".repeat(100));
        apply("DBIRTH", &device, &birth(4, 10, 0)).expect("there is room");
        apply("DDATA", &device, &by_alias(3)).expect("its alias is known");
        apply("DDEATH", &device, &message(None, vec![])).expect("a death");
        let refused = apply("DDATA", &device, &by_alias(3)).expect_err("it is dead");
        assert!(refused.contains("no birth certificate of it is known"), "{refused}");
    }
    assert_eq!(bench.sparkplug.bytes(), alone);
    await_notes(&bench, "there is a note of the node alone", |(notes, _)| notes == 1);
}

/// A node that restarts with a birth that is too large was told to have lost messages, and asked for the same birth again.
#[test]
fn the_numbers_of_a_node_begin_anew_with_a_birth_that_is_refused() {
    let bench = Bench::open_within(&FaultDisk::default(), SMALL);
    bench.node("NBIRTH", &super::node_birth(0)).expect("a birth");
    for seq in 1..5 {
        bench
            .node("NDATA", &message(Some(seq), vec![metric("Supply/Voltage", 1, 10, MetricValue::Double(1.0))]))
            .expect("data");
    }
    assert!(bench.node("NBIRTH", &birth(8000, 100, 0)).is_err());
    assert_eq!((bench.sparkplug.stats.gaps.value(), bench.asked()), (0, None));
    // Of one that cannot be read no number is known, and so none is missed.
    assert!(bench.node("NBIRTH", b"\xFF\xFF").is_err());
    let data = message(Some(200), vec![metric("Supply/Voltage", 1, 10, MetricValue::Double(1.0))]);
    let _ = bench.node("NDATA", &data);
    assert_eq!(bench.sparkplug.stats.gaps.value(), 0);
    // One of its devices is no new beginning: number 9 behind 0.
    bench.node("NBIRTH", &super::node_birth(1)).expect("a birth");
    let mut large = birth(3000, 100, 0);
    // Field 3 is the number of the message; of a field that comes twice, the last counts.
    large.extend([0x18, 9]);
    assert!(bench.device("DBIRTH", &large).is_err_and(|reason| reason.contains("are allowed for a node")));
    assert_eq!(bench.sparkplug.stats.gaps.value(), 1);
}

/// The STATE message of a host is plain text or JSON, and has the same bound.
#[test]
fn the_state_of_a_host_has_a_bound_too() {
    let bench = Bench::open_within(&FaultDisk::default(), SMALL);
    let take = |payload: &[u8]| bench.take("STATE/host", payload);
    assert_eq!(take(b"ONLINE").expect("a word")["state"], "ONLINE");
    assert_eq!(take(br#"{"online":true}"#).expect("JSON")["state"]["online"], true);
    for payload in [vec![1; 2 << 20], vec![0xFF; 2 << 20], vec![1; 500_000], vec![b'a'; 4 << 20]] {
        let refused = take(&payload).expect_err("too much");
        assert!(refused.starts_with("payload: becomes more than "), "{refused}");
    }
}

/// While the disk of the notes alone fails, births of ever new nodes filled the memory; and what was forgotten meanwhile
/// stayed on the disk, to be believed after the next start.
#[test]
fn a_disk_that_fails_for_long_costs_no_memory_and_no_note_outlives_what_was_forgotten() {
    let disk = FaultDisk::default();
    let bench = Bench::open_within(&disk, SMALL);
    let apply = |topic: &str, payload: &[u8]| {
        let change = bench.sparkplug.decode("plant", topic, payload).change.expect("a change");
        bench.sparkplug.apply(change, "edge", || bench.waiter.bell())
    };
    for number in 0..20 {
        bench.take(&format!("spBv1.0/g/NBIRTH/early-{number}"), &birth(500, 100, number)).expect("a birth");
    }
    disk.fail_at("state.redb", Some(Fault::Sync));
    // More than are remembered one by one, of which each one's birth makes others go.
    for number in 0..6000 {
        apply(&format!("spBv1.0/g/NBIRTH/late-{number}"), &birth(5, 100, number));
    }
    let last = apply("spBv1.0/g/NBIRTH/last", &birth(3, 10, 1));
    assert!(!bench.sparkplug.is_saved(last), "nothing is said to be on a disk that fails");
    disk.fail(None);
    let start = std::time::Instant::now();
    while !bench.sparkplug.is_saved(last) {
        assert!(start.elapsed() < super::LONG, "it is never saved");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let known = |bench: &Bench| {
        let names =
            (0..20).map(|number| format!("early-{number}")).chain((0..6000).map(|number| format!("late-{number}")));
        names
            .filter(|node| {
                bench.sparkplug.decode("plant", &format!("spBv1.0/g/NDATA/{node}"), &by_alias(2)).json.is_ok()
            })
            .count()
    };
    let before = known(&bench);
    assert!(before < 2000, "many were forgotten: {before}");
    let (notes, bytes) = noted(&bench);
    assert_eq!(notes, before + 1, "a note of each that is known, and of no other");
    assert!(bytes <= SENDER, "{bytes}");
    drop(bench);
    assert_eq!(known(&Bench::open_within(&disk, SMALL)), before);
}
