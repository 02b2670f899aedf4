//! A centre that answers with any reason code, late and in pieces, refuses by a quota, or ends the connection: only what
//! it refuses is sent again, each event ends in one account, and the order of a key holds.

use crate::common::client::{Client, Hello};
use crate::common::gateway::{CONTRACT, Gateway, payload, sum};
use crate::common::random::Random;
use crate::common::scripted::{Do, Scripted, Seen};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// A gateway whose contract promises this order.
fn gateway(name: &str, order: &str, rest: &str) -> Gateway {
    let mut gateway = Gateway::prepare(name, rest);
    let contract = format!("{CONTRACT}order = \"{order}\"\n");
    std::fs::write(gateway.folder.join("contracts/state.toml"), contract).expect("written");
    gateway.run();
    gateway
}

/// Publishes `events` of each of `keys` keys, one after the other.
fn feed(gateway: &Gateway, keys: usize, events: usize) {
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let address = gateway.address;
            std::thread::spawn(move || {
                let name = format!("device-{worker}");
                let (mut client, _) = Client::connect(address, &Hello { client: &name, ..Hello::default() });
                let mut id = 0;
                for event in 0..events {
                    for key in (worker..keys).step_by(4) {
                        id = id % u16::MAX + 1;
                        let topic = format!("plant/line1/m{key:03}/state");
                        client.publish(true, id, &topic, payload(key, event).as_bytes());
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("published"));
}

/// Sequences of the events that became dead letters, with their reasons.
fn dead(gateway: &Gateway) -> BTreeMap<u64, String> {
    let output = gateway.command(&["dead", "list", "--json", "--limit", "10000", "CONFIG"]);
    let letters: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let one = |letter: &serde_json::Value| {
        (letter["sequence"].as_u64().expect("a number"), letter["reason"].as_str().expect("a reason").to_owned())
    };
    letters.iter().map(one).collect()
}

/// Checks that each event was accepted once or is a dead letter, and that nothing was sent again without a refusal.
fn check_accounts(seen: &[Seen], dead: &BTreeMap<u64, String>, count: usize) {
    let mut accepted = BTreeSet::new();
    let mut refusals: BTreeMap<u64, usize> = BTreeMap::new();
    let mut sends: BTreeMap<u64, usize> = BTreeMap::new();
    for publish in seen {
        for (_, sequence) in &publish.events {
            *sends.entry(*sequence).or_default() += 1;
            *refusals.entry(*sequence).or_default() += usize::from(publish.is_refused());
            assert!(!publish.is_accepted() || accepted.insert(*sequence), "{sequence} was accepted twice");
        }
    }
    for sequence in 1..=count as u64 {
        assert_ne!(accepted.contains(&sequence), dead.contains_key(&sequence), "{sequence}: {:?}", dead.get(&sequence));
        let expected = refusals[&sequence] + usize::from(accepted.contains(&sequence));
        assert_eq!(sends[&sequence], expected, "{sequence} was sent again without a refusal");
    }
    assert_eq!(sends.len(), count);
}

/// Sequences that were accepted behind a later one of their key.
fn broken_order(seen: &[Seen]) -> Vec<u64> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut broken = Vec::new();
    for (key, sequence) in seen.iter().filter(|publish| publish.is_accepted()).flat_map(|publish| &publish.events) {
        let last = last.entry(key).or_default();
        if *sequence < *last {
            broken.push(*sequence);
        }
        *last = (*last).max(*sequence);
    }
    broken
}

/// Answers every reason code at random, up to 30 ms late.
fn any_code(mut random: Random) -> impl FnMut(&Seen) -> Do {
    move |_| {
        let (code, delay) = (random.below(256) as u8, Duration::from_millis(random.below(30)));
        if random.below(3) == 0 { Do::Answer(code) } else { Do::Late(code, delay) }
    }
}

#[test]
fn with_strict_order_no_key_is_ever_out_of_order_whatever_central_answers() {
    const KEYS: usize = 100;
    let centre = Scripted::start(vec![], any_code(Random::seeded()));
    let gateway = gateway("any-strict", "strict", &centre.destination("central"));
    feed(&gateway, KEYS, 8);
    let status = gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (seen, dead) = (centre.seen(), dead(&gateway));
    check_accounts(&seen, &dead, KEYS * 8);
    assert_eq!(broken_order(&seen), [] as [u64; 0]);
    // The answer to the one before has left before the next one of a key comes.
    let mut open: BTreeMap<&str, Instant> = BTreeMap::new();
    for publish in &seen {
        let (key, _) = &publish.events[0];
        let before = open.insert(key, publish.answered.expect("answered").0);
        assert!(before.is_none_or(|before| before <= publish.at), "two publishes of {key} were on the way");
    }
    assert_eq!(status["links"][0]["overtaken"], 0, "{status:#}");
    assert!(centre.own("order").is_empty());
    for (sequence, reason) in &dead {
        let is_named = reason.starts_with("central refuses it: 0x");
        assert!(is_named, "{sequence}: {reason}");
        // Three further attempts, or five seconds.
        let tries = seen.iter().filter(|publish| publish.events[0].1 == *sequence).count();
        let is_clear = ["0x87", "0x90", "0x95", "0x99"].iter().any(|code| reason.contains(code));
        assert!(is_clear || tries >= 2, "{sequence}: {reason}, {tries} tries");
    }
    assert!(dead.len() > 10 && dead.len() < KEYS * 4, "{} dead letters", dead.len());
}

#[test]
fn without_it_every_exception_is_counted_and_announced() {
    const KEYS: usize = 20;
    // Many events of each key are on the way when the first refusals come.
    let mut judge = any_code(Random::seeded());
    let mut count = 0;
    let centre = Scripted::start(vec![], move |seen| {
        count += 1;
        match judge(seen) {
            // What is in flight grows with the first answers.
            _ if count <= 60 => Do::Answer(0),
            _ if count <= 65 => Do::Late(0x97, Duration::from_millis(200)),
            _ if count <= 160 => Do::Late(0, Duration::from_millis(400)),
            other => other,
        }
    });
    let gateway = gateway("any-key", "key", &centre.destination("central"));
    feed(&gateway, KEYS, 40);
    let status = gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (seen, dead) = (centre.seen(), dead(&gateway));
    check_accounts(&seen, &dead, KEYS * 40);
    let broken = broken_order(&seen);
    let counted = status["links"][0]["overtaken"].as_u64().expect("a number");
    assert!(!broken.is_empty(), "the test has no exception");
    assert!(counted >= broken.len() as u64, "{counted} counted, {} seen", broken.len());
    assert!(counted < (KEYS * 40 / 4) as u64, "{counted}: the lane changed its mode");
    let start = Instant::now();
    let announced = loop {
        let told = centre.own("order");
        let count: u64 = told.iter().map(|event| event["data"]["count"].as_u64().expect("a count")).sum();
        if count == counted {
            break told;
        }
        assert!(start.elapsed() < PATIENCE, "{count} of {counted} are announced: {told:#?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let ranges: Vec<(u64, u64)> = announced
        .iter()
        .flat_map(|event| event["data"]["streams"].as_array().expect("a list"))
        .map(|one| (one["first"].as_u64().expect("first"), one["last"].as_u64().expect("last")))
        .collect();
    for sequence in broken {
        assert!(ranges.iter().any(|(first, last)| (first..=last).contains(&&sequence)), "{sequence}: {ranges:?}");
    }
}

/// Central takes 200 events a second and refuses the others with 0x97.
#[test]
fn a_quota_is_kept_to_and_only_what_was_refused_is_sent_again() {
    const KEYS: usize = 50;
    let (mut tokens, mut filled) = (20.0, Instant::now());
    let centre = Scripted::start(vec![], move |_| {
        tokens = f64::min(tokens + filled.elapsed().as_secs_f64() * 200.0, 20.0);
        filled = Instant::now();
        let is_taken = tokens >= 1.0;
        tokens -= if is_taken { 1.0 } else { 0.0 };
        Do::Answer(if is_taken { 0 } else { 0x97 })
    });
    let gateway = gateway("quota", "key", &centre.destination("central"));
    let start = Instant::now();
    feed(&gateway, KEYS, 40);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (seen, dead, elapsed) = (centre.seen(), dead(&gateway), start.elapsed());
    assert!(dead.is_empty());
    check_accounts(&seen, &dead, KEYS * 40);
    let refused: BTreeSet<u64> = seen.iter().filter(|one| one.is_refused()).map(|one| one.events[0].1).collect();
    let (first, again) = seen.iter().filter(|one| refused.contains(&one.events[0].1)).fold(
        (BTreeMap::new(), 0),
        |(mut first, again), one| match first.insert(one.events[0].1, one.bytes) {
            None => (first, again),
            Some(_) => (first, again + one.bytes),
        },
    );
    let once: usize = first.values().sum();
    println!("{} of {} were refused, {again} bytes again for {once}, {elapsed:.1?}", refused.len(), KEYS * 40);
    assert!(!refused.is_empty() && again <= 2 * once, "{again} bytes were sent again for {once}");
}

#[test]
fn a_refused_batch_is_sent_again_alone_and_a_bad_event_in_it_is_found() {
    // The event of sequence 77 is refused for good, and each batch once for now.
    let mut known: BTreeSet<u64> = BTreeSet::new();
    let centre = Scripted::start(vec![], move |seen| {
        let (_, first) = seen.events[0];
        if seen.events.len() > 1 && known.insert(first) {
            return Do::Late(0x97, Duration::from_millis(5));
        }
        let is_bad = seen.events.iter().any(|(_, sequence)| *sequence == 77);
        Do::Late(if is_bad { 0x99 } else { 0 }, Duration::from_millis(3))
    });
    let lane = "\n[lane.critical]\nbatch = { events = 16, age = \"20ms\" }\n";
    let gateway = gateway("batches", "strict", &format!("{}{lane}", centre.destination("central")));
    feed(&gateway, 10, 40);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (seen, dead) = (centre.seen(), dead(&gateway));
    assert_eq!(dead.keys().copied().collect::<Vec<_>>(), [77], "{dead:?}");
    check_accounts(&seen, &dead, 400);
    assert_eq!(broken_order(&seen), [] as [u64; 0]);
    assert!(seen.iter().filter(|publish| publish.is_refused()).count() > 3, "batches were refused");
}

/// Events that are sent alone and batches share the order of their stream.
#[test]
fn a_backlog_in_batches_keeps_the_order_whatever_central_answers() {
    const KEYS: usize = 100;
    let mut random = Random::seeded();
    // Receive Maximum 20: a backlog at once. A refusal holds the whole stream, so that one answer in eight is one.
    let centre = Scripted::start(vec![0x21, 0, 20], move |_| {
        let code = if random.below(8) == 0 { random.below(256) as u8 } else { 0 };
        Do::Late(code, Duration::from_millis(random.below(30)))
    });
    let lane = "\n[lane.critical]\nbatch = \"backlog\"\n";
    let gateway = gateway("any-backlog", "strict", &format!("{}{lane}", centre.destination("central")));
    feed(&gateway, KEYS, 8);
    let status = gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (seen, dead) = (centre.seen(), dead(&gateway));
    check_accounts(&seen, &dead, KEYS * 8);
    assert_eq!(broken_order(&seen), [] as [u64; 0]);
    assert_eq!(status["links"][0]["overtaken"], 0, "{status:#}");
    let alone = seen.iter().filter(|publish| publish.events.len() == 1).count();
    assert!(alone > 0 && alone < seen.len(), "{alone} of {} publishes have one event", seen.len());
}

/// One event that is refused for ever once held up its lane.
#[test]
fn an_event_that_is_refused_again_and_again_holds_up_its_key_alone() {
    let mut bad = None;
    let centre = Scripted::start(vec![], move |seen| {
        let (key, sequence) = &seen.events[0];
        Do::Answer(if key == "m003" && *bad.get_or_insert(*sequence) == *sequence { 0x83 } else { 0 })
    });
    let gateway = gateway("one-key", "key", &centre.destination("central"));
    feed(&gateway, 10, 1);
    gateway.await_status("it is refused", PATIENCE, |status| status["links"][0]["refused_for_now"] != 0);
    // The first of each key is a repeat.
    feed(&gateway, 10, 20);
    let status = gateway.await_status("one key waits", PATIENCE, |status| sum(status, "queued") == 20);
    let seen = centre.seen();
    let count = |key: &str| seen.iter().filter(|one| one.is_accepted() && one.events[0].0 == key).count();
    assert_eq!((count("m003"), count("m004"), count("m009")), (0, 20, 20));
    let notes = status["notes"].to_string();
    assert!(notes.contains("0x83 implementation specific error"), "{notes}");
}

/// Central reads everything that has come before it answers, and ends the connection over one event in four hundred.
#[test]
fn an_event_that_ends_the_connection_is_isolated_by_halving() {
    for (name, lane) in
        [("poison", ""), ("poison-batch", "\n[lane.critical]\nbatch = { events = 50, age = \"20ms\" }\n")]
    {
        let centre = Scripted::start(vec![], move |seen| {
            let is_bad = seen.events.iter().any(|(_, sequence)| *sequence == 333);
            if is_bad { Do::Close } else { Do::Late(0, Duration::from_millis(20)) }
        });
        let gateway = gateway(name, "key", &format!("{}{lane}", centre.destination("central")));
        feed(&gateway, 10, 40);
        gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
        let (seen, dead) = (centre.seen(), dead(&gateway));
        assert_eq!(dead.keys().copied().collect::<Vec<_>>(), [333], "{name}: {dead:?}");
        assert!(dead[&333].contains("ends the connection"), "{dead:?}");
        let accepted: BTreeSet<u64> =
            seen.iter().filter(|one| one.is_accepted()).flat_map(|one| &one.events).map(|(_, at)| *at).collect();
        assert_eq!(accepted.len(), 399, "{name}");
        let connections = seen.iter().map(|one| one.connection).collect::<BTreeSet<_>>().len();
        println!("{name}: {connections} connections carried events");
        assert!(connections <= 30, "{name}: {connections}");
    }
}

/// Central ends the connection at packets above a size that it does not announce.
#[test]
fn a_size_that_central_does_not_take_ends_few_connections() {
    const BYTES_MAX: usize = 6000;
    for (name, lane) in [("size", ""), ("size-batch", "\n[lane.critical]\nbatch = { events = 50, age = \"20ms\" }\n")] {
        let centre = Scripted::start(vec![], |seen| match seen.bytes > BYTES_MAX {
            true => Do::Close,
            false => Do::Late(0, Duration::from_millis(20)),
        });
        let gateway = gateway(name, "key", &format!("{}{lane}", centre.destination("central")));
        let (mut device, _) = Client::connect(gateway.address, &Hello { client: "large", ..Hello::default() });
        let mut counts = Vec::new();
        for round in 1..=6 {
            feed(&gateway, 10, 20 * round);
            let large = payload(900, round).replace('}', &format!(",\"note\":\"{}\"}}", "x".repeat(BYTES_MAX)));
            device.publish(true, round as u16, "plant/line1/m900/state", large.as_bytes());
            feed(&gateway, 10, 20 * round);
            gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
            counts.push(centre.seen().iter().map(|one| one.connection).collect::<BTreeSet<_>>().len());
        }
        println!("{name}: connections after each of the rounds: {counts:?}");
        assert_eq!(dead(&gateway).len(), 6, "the large ones");
        let later = counts.windows(2).skip(1).map(|two| two[1] - two[0]);
        assert!(later.max() <= Some(2), "{name}: {counts:?}");
    }
}

/// The answer to one event is a packet that answers no publish: the gateway itself ends the connection.
#[test]
fn an_event_whose_answer_cannot_be_understood_is_isolated() {
    let centre = Scripted::start(vec![], |seen| match seen.events[0].1 {
        // PUBREC, which answers no QoS 1.
        25 => Do::Raw(vec![0x50, 2, 0, 1]),
        _ => Do::Answer(0),
    });
    let gateway = gateway("no-mqtt", "key", &centre.destination("central"));
    feed(&gateway, 10, 10);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (seen, dead) = (centre.seen(), dead(&gateway));
    assert_eq!(dead.keys().copied().collect::<Vec<_>>(), [25], "{dead:?}");
    let accepted: BTreeSet<u64> = seen.iter().filter(|one| one.is_accepted()).map(|one| one.events[0].1).collect();
    assert_eq!(accepted.len(), 99);
}

/// The status connection was refused for weeks, and nobody knew.
#[test]
fn a_connection_that_central_refuses_is_a_problem_with_its_reason_and_since_when() {
    let centre = Scripted::refusing_wills(Some(0x87), vec![], |_| Do::Answer(0));
    let gateway = gateway("refused-status", "key", &centre.destination("central"));
    feed(&gateway, 4, 1);
    let status = gateway.await_status("it is a problem", PATIENCE, |status| {
        let problems = status["problems"].to_string();
        problems.contains("link central/status: the broker refuses the connection: NotAuthorized (since 20")
    });
    assert_eq!(status["links"][0]["is_up"], true, "the lanes go on: {status:#}");
    assert!(gateway.log().contains("no status connection, will reconnect"), "{}", gateway.log());
    let health = gateway.command(&["health", "CONFIG"]);
    let text = String::from_utf8_lossy(&health.stdout).into_owned();
    assert!(health.status.success() && text.contains("link central/status"), "{text}");
}

#[test]
fn a_broker_that_refuses_a_retained_will_gets_one_that_it_does_not_retain() {
    // Retain Available 0.
    let centre = Scripted::refusing_wills(Some(0x9A), vec![0x25, 0], |_| Do::Answer(0));
    let gateway = gateway("unretained", "key", &centre.destination("central"));
    let status = gateway.await_status("it is a note", PATIENCE, |status| {
        status["notes"].to_string().contains("link central/status: central retains no messages")
    });
    assert!(!status["problems"].to_string().contains("central/status"), "{status:#}");
}

/// Twenty in flight at 300 ms: the backlog grew for ever, and all was well.
#[test]
fn a_lane_that_the_window_of_the_broker_bounds_says_so_with_the_rates() {
    // Receive Maximum 20, Retain Available 0.
    let centre = Scripted::start(vec![0x21, 0, 20, 0x25, 0], |_| Do::Late(0, Duration::from_millis(300)));
    let gateway = gateway("window", "key", &centre.destination("central"));
    feed(&gateway, 40, 40);
    gateway.await_status("it is a note", PATIENCE, |status| {
        let notes = status["notes"].to_string();
        notes.contains("the broker allows 20 publishes in flight (Receive Maximum)")
            && notes.contains("max_inflight_messages")
            && notes.contains("link central/status: central retains no messages")
    });
}

/// Lines of a critical lane with four connections.
const FOUR_CONNECTIONS: &str = "\n[lane.critical]\nconnections = 4\n";

/// Sequences that came for the first time behind a later one of their key.
fn broken_arrival(seen: &[Seen]) -> Vec<u64> {
    let (mut known, mut last) = (BTreeSet::new(), BTreeMap::<&str, u64>::new());
    let mut broken = Vec::new();
    for (key, sequence) in seen.iter().flat_map(|publish| &publish.events) {
        let last = last.entry(key).or_default();
        if known.insert(*sequence) && *sequence < *last {
            broken.push(*sequence);
        }
        *last = (*last).max(*sequence);
    }
    broken
}

#[test]
fn connections_that_share_a_lane_keep_the_order_of_each_key_while_they_die() {
    const KEYS: usize = 100;
    let mut random = Random::seeded();
    let centre = Scripted::start(vec![], move |_| match random.below(60) {
        0 => Do::Close,
        1..20 => Do::Late(0, Duration::from_millis(random.below(30))),
        _ => Do::Answer(0),
    });
    let rest = format!("{}{FOUR_CONNECTIONS}", centre.destination("central"));
    let gateway = gateway("shared-order", "key", &rest);
    feed(&gateway, KEYS, 40);
    let status = gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let seen = centre.seen();
    let sequences: BTreeSet<u64> = seen.iter().flat_map(|one| &one.events).map(|(_, sequence)| *sequence).collect();
    assert_eq!(sequences, (1..=(KEYS * 40) as u64).collect(), "each event arrives");
    assert!(dead(&gateway).is_empty());
    assert_eq!(broken_arrival(&seen), [] as [u64; 0]);
    let connections: BTreeSet<usize> = seen.iter().map(|one| one.connection).collect();
    println!("{} publishes of {} events on {} connections", seen.len(), KEYS * 40, connections.len());
    assert!(connections.len() > 8, "the test ends no connections: {connections:?}");
    assert_eq!(status["links"].as_array().map(Vec::len), Some(3), "a link per lane: {status:#}");
}

#[test]
fn a_connection_that_gets_no_answers_holds_the_others_up_after_a_fixed_number_of_events() {
    const KEYS: usize = 40;
    const COUNT: usize = KEYS * 300;
    let is_silent = Arc::new(AtomicBool::new(true));
    let (silent, mut held) = (Arc::clone(&is_silent), None);
    let centre = Scripted::start(vec![], move |seen| {
        let held = held.get_or_insert(seen.connection);
        if *held == seen.connection && silent.load(Ordering::Relaxed) { Do::Nothing } else { Do::Answer(0) }
    });
    let destination = format!("{}window = 20\nanswer_wait_max = \"20s\"\n", centre.destination("central"));
    let gateway = gateway("shared-bound", "key", &format!("{destination}{FOUR_CONNECTIONS}"));
    feed(&gateway, KEYS, 300);
    let last = || centre.seen().iter().flat_map(|one| &one.events).map(|(_, sequence)| *sequence).max().unwrap_or(0);
    let (start, mut before) = (Instant::now(), 0);
    // The others have stopped once nothing comes for a second.
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = last();
        if now > 0 && now == before {
            break;
        }
        before = now;
        assert!(start.elapsed() < Duration::from_secs(15), "{now} of {COUNT}");
    }
    println!("the others stopped at {before} of {COUNT}");
    assert!((3_000..=4_200).contains(&before), "{before}");
    is_silent.store(false, Ordering::Relaxed);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let sequences: BTreeSet<u64> =
        centre.seen().iter().flat_map(|one| &one.events).map(|(_, sequence)| *sequence).collect();
    assert_eq!(sequences.len(), COUNT, "each event arrives");
    assert_eq!(broken_arrival(&centre.seen()), [] as [u64; 0]);
}
