//! Replay: settled events once more, marked, behind what is live, through restarts.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, sum};
use crate::lanes::{contract, ledger, other_hours, prepare, publish};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn run(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let output = gateway.command(&[&["replay"], arguments, &["CONFIG"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn replayed(centre: &Centre) -> Vec<u64> {
    let marked = centre.arrived().into_iter().filter(|arrival| arrival.is_marked("replay"));
    marked.flat_map(|arrival| arrival.events).map(|event| event["data"]["seq"].as_u64().expect("a number")).collect()
}

fn state(gateway: &Gateway, id: usize) -> serde_json::Value {
    let (_, text) = run(gateway, &["list", "--json"]);
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON")[id - 1].clone()
}

#[test]
fn settled_events_are_sent_once_more_and_marked() {
    let centre = Centre::start();
    let contracts = [("trace", contract("trace", "bulk", "")), ("count", contract("count", "standard", ""))];
    let mut gateway = prepare("replay", &centre.destination("central"), &contracts);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..101, 10);
    publish(&mut client, "count", 101..151, 10);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let first = centre.events();
    let (is_good, text) =
        run(&gateway, &["--since", "1h", "--stream", "machine.trace", "--to", "central", "--dry-run"]);
    assert!(is_good && text.contains("100 events would be sent to central"), "{text}");
    let (_, text) = run(&gateway, &["--since", "1h", "--key", "m02", "--to", "central", "--dry-run"]);
    assert!(text.contains("0 events"), "{text}");
    assert!(replayed(&centre).is_empty());
    let (is_good, text) = run(&gateway, &["--since", "1h", "--stream", "machine.*", "--to", "central"]);
    assert!(is_good && text.contains("150 events"), "{text}");
    gateway.await_status("it is done", PATIENCE, |_| state(&gateway, 1)["state"] == "done");
    let mut found = replayed(&centre);
    found.sort_unstable();
    assert_eq!(found, (1..151).collect::<Vec<_>>());
    assert_eq!(state(&gateway, 1)["sent"], 150);
    for event in centre.events().iter().skip(150) {
        assert!(first.contains(event), "the same bytes: {event:#}");
    }
    assert_eq!(ledger(&gateway, "delivered"), 150, "a replay is in no account");
}

#[test]
fn a_replay_is_paused_goes_on_after_a_kill_and_is_cancelled() {
    let centre = Centre::start();
    let mut gateway = prepare(
        "pause",
        &format!("{}[lane.bulk]\nlinger = \"0s\"\n", centre.destination("central")),
        &[("trace", contract("trace", "bulk", ""))],
    );
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..401, 10);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (is_good, text) = run(&gateway, &["--to", "central", "--all", "--rate", "50"]);
    assert!(is_good, "{text}");
    centre.await_that("it goes on", PATIENCE, |centre| replayed(centre).len() > 20);
    let (is_good, text) = run(&gateway, &["pause", "1"]);
    assert!(is_good && text.contains("paused"), "{text}");
    std::thread::sleep(Duration::from_millis(500));
    let count = replayed(&centre).len();
    gateway.kill();
    gateway.run();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(replayed(&centre).len(), count, "what is paused stays so");
    // What is live passes it.
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let (is_good, text) = run(&gateway, &["resume", "1"]);
    assert!(is_good, "{text}");
    publish(&mut client, "trace", 401..411, 10);
    centre.await_that("the live ones are there", PATIENCE, |centre| {
        let arrived = centre.arrived();
        arrived.iter().any(|arrival| !arrival.is_marked("replay") && arrival.events[0]["data"]["seq"] == 410)
    });
    assert_eq!(state(&gateway, 1)["state"], "running");
    gateway.kill();
    gateway.run();
    centre.await_that("it goes on after a kill", PATIENCE, |centre| replayed(centre).len() > count + 60);
    let (is_good, text) = run(&gateway, &["cancel", "1"]);
    assert!(is_good && text.contains("cancelled"), "{text}");
    let (is_good, text) = run(&gateway, &["resume", "1"]);
    assert!(!is_good && text.contains("no running or paused replay 1"), "{text}");
    let found = replayed(&centre);
    let mut once = found.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once, (1..=once.len() as u64).collect::<Vec<_>>(), "none is left out in between");
}

#[test]
fn what_central_refuses_for_now_in_a_replay_goes_again_and_what_it_refuses_for_ever_is_counted() {
    let mood = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&mood);
    let taken = Arc::new(Mutex::new(BTreeSet::new()));
    let took = Arc::clone(&taken);
    let killed = Arc::new(AtomicBool::new(false));
    let after_kill = Arc::clone(&killed);
    let centre = Centre::answering(move |arrival| {
        let number = arrival.events[0]["data"]["seq"].as_u64().unwrap_or(0);
        match arrival.is_marked("replay") {
            true if number == 33 => PubAckReason::NotAuthorized,
            true if number % 7 == 0 && asked.load(Ordering::Relaxed) => PubAckReason::QuotaExceeded,
            true => {
                took.lock().expect("lock").insert(number);
                PubAckReason::Success
            }
            // The newest cursor was lost with the kill: what it held goes as if it were new, and not in the replay.
            false => {
                if after_kill.load(Ordering::Relaxed) {
                    took.lock().expect("lock").insert(number);
                }
                PubAckReason::Success
            }
        }
    });
    let mut gateway = prepare("quota", &centre.destination("central"), &[("trace", contract("trace", "standard", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..301, 10);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (is_good, text) = run(&gateway, &["--to", "central", "--stream", "machine.trace"]);
    assert!(is_good, "{text}");
    centre.await_that("it is refused again", PATIENCE, |centre| {
        replayed(centre).iter().filter(|number| **number == 7).count() >= 2
    });
    let standing = state(&gateway, 1);
    assert_eq!(standing["state"], "running", "{standing:#}");
    assert!(!taken.lock().expect("lock").contains(&7) && replayed(&centre).len() < 200, "it does not run ahead");
    // A kill meanwhile: what was refused is below where it goes on.
    gateway.kill();
    killed.store(true, Ordering::Relaxed);
    gateway.run();
    mood.store(false, Ordering::Relaxed);
    gateway.await_status("it is done", PATIENCE, |status| {
        state(&gateway, 1)["state"] == "done" && sum(status, "queued") == 0
    });
    let found = taken.lock().expect("lock").clone();
    let missing: Vec<u64> = (1..301).filter(|number| *number != 33 && !found.contains(number)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(state(&gateway, 1)["failed"].as_u64().is_some_and(|failed| failed >= 1), "{:#}", state(&gateway, 1));
}

#[test]
fn a_lane_outside_its_hours_holds_no_replay_back() {
    let centre = Centre::start();
    let rest = format!(
        "{}[lane.night]\nlinger = \"0s\"\nhours = \"{}\"\ntime_zone = \"UTC\"\n",
        centre.destination("central"),
        other_hours()
    );
    let contracts = [("trace", contract("trace", "bulk", "")), ("extract", contract("extract", "night", ""))];
    let mut gateway = prepare("resting", &rest, &contracts);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..21, 10);
    centre.await_that("they are there", PATIENCE, |centre| centre.events().len() >= 20);
    // A backlog for anybody who does not know of the hours.
    publish(&mut client, "extract", 1001..2201, 10);
    let (is_good, text) = run(&gateway, &["--to", "central", "--stream", "machine.trace"]);
    assert!(is_good && text.contains("20 events"), "{text}");
    centre.await_that("the replay goes on", PATIENCE, |centre| replayed(centre).len() == 20);
    assert_eq!(centre.events().len(), 40, "the night has not come");
}

#[test]
fn a_wrong_replay_says_what_is_possible() {
    let centre = Centre::start();
    let gateway = Gateway::start("wrong", &centre.destination("central"));
    for (arguments, words) in [
        (&["--since", "1h"][..], &["--to"][..]),
        (&["--to", "nobody", "--all"], &["\"nobody\"", "central"]),
        (&["--to", "central"], &["the whole journal", "--all"]),
        (&["--to", "central", "--stream", "machine.stat"], &["\"machine.stat\"", "machine.state.v1"]),
        (&["--to", "central", "--since", "yesterday"], &["yesterday", "2h"]),
        (&["--to", "central", "--since", "1h", "--until", "2h"], &["nothing lies between"]),
        (&["pause", "7"], &["no running or paused replay 7"]),
    ] {
        let (is_good, text) = run(&gateway, arguments);
        assert!(!is_good, "{arguments:?}: {text}");
        for word in words {
            assert!(text.contains(word), "\"{word}\" is missing in: {text}");
        }
    }
}
