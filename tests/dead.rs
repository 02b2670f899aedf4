//! Dead letters: requeued with the same id, edited, given up; singly and by filter.

use crate::common::centre::Centre;
use crate::common::client::{Client, Heard, Hello, publish};
use crate::common::gateway::{Gateway, sum};
use crate::common::random::Random;
use crate::lanes::ledger;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn run(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let output = gateway.command(&[arguments, &["CONFIG"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn letters(gateway: &Gateway) -> Vec<serde_json::Value> {
    let (_, text) = run(gateway, &["dead", "list", "--all", "--json"]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn states(gateway: &Gateway) -> Vec<String> {
    letters(gateway).iter().map(|letter| letter["fate"]["state"].as_str().expect("a state").to_owned()).collect()
}

/// The contract learns a word.
fn learn_paused(gateway: &Gateway) {
    let schema = gateway.folder.join("contracts/state.json");
    let wider = std::fs::read_to_string(&schema).expect("read").replace("\"fault\"", "\"fault\",\"paused\"");
    std::fs::write(&schema, wider).expect("written");
    let contract = gateway.folder.join("contracts/state.toml");
    let newer = std::fs::read_to_string(&contract).expect("read").replace("1.0.0", "1.1.0");
    std::fs::write(&contract, newer).expect("written");
}

#[test]
fn what_central_refused_is_sent_again_with_the_same_id_and_sequence() {
    let refuses = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&refuses);
    let centre = Centre::answering(move |arrival| {
        let is_meant = arrival.events[0]["data"]["seq"].as_u64().is_some_and(|number| number % 10 == 0);
        if is_meant && asked.load(Ordering::Relaxed) { PubAckReason::NotAuthorized } else { PubAckReason::Success }
    });
    let mut gateway = Gateway::start("again", &centre.destination("central"));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=40u16 {
        client.publish(
            true,
            number,
            "plant/line1/m01/state",
            crate::common::gateway::payload(1, number.into()).as_bytes(),
        );
    }
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    assert_eq!((ledger(&gateway, "delivered"), ledger(&gateway, "dead")), (36, 4));
    let before: Vec<_> = centre.events().into_iter().filter(|event| event["data"]["seq"] == 20).collect();

    // Still refused: it is held again, with the reason and one attempt more.
    let (is_good, text) = run(&gateway, &["dead", "requeue", "1"]);
    assert!(is_good && text.contains("1 of 1 letter: requeued"), "{text}");
    gateway.await_status("it is refused again", PATIENCE, |_| {
        letters(&gateway)[0]["fate"]["reason"].as_str().is_some_and(|reason| reason.contains("refuses it again: 0x87"))
    });
    assert_eq!(states(&gateway), ["held", "held", "held", "held"]);

    refuses.store(false, Ordering::Relaxed);
    let (_, text) = run(&gateway, &["dead", "requeue", "--reason", "0x87", "--dry-run"]);
    assert!(text.contains("4 of 4 letters: would be requeued"), "{text}");
    assert_eq!(states(&gateway), ["held", "held", "held", "held"], "a dry run changes nothing");
    centre.forget();
    let (is_good, text) = run(&gateway, &["dead", "requeue", "--stream", "machine.state"]);
    assert!(is_good && text.contains("4 of 4"), "{text}");
    // A kill in the middle: what is requeued stays requeued.
    gateway.kill();
    gateway.run();
    centre.await_that("they arrive", PATIENCE, |centre| centre.events().len() >= 4);
    gateway.await_status("they are delivered", PATIENCE, |_| states(&gateway).iter().all(|state| state == "delivered"));
    let after: Vec<_> = centre.events().into_iter().filter(|event| event["data"]["seq"] == 20).collect();
    assert_eq!(before[0], after[0], "the same id, sequence and bytes");
    assert_eq!((ledger(&gateway, "delivered"), ledger(&gateway, "dead")), (40, 0));
    let (is_good, text) = run(&gateway, &["dead", "requeue", "2"]);
    assert!(!is_good && text.contains("letter 2: it is delivered already"), "{text}");
    gateway.kill();
    gateway.run();
    assert_eq!((ledger(&gateway, "delivered"), ledger(&gateway, "dead")), (40, 0), "also after a restart");
}

#[test]
fn what_broke_its_contract_is_taken_in_once_it_fits() {
    let centre = Centre::start();
    let mut gateway = Gateway::start("fits", &centre.destination("central"));
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "press-1", ..Hello::default() });
    let topic = "plant/line1/m01/state";
    client.publish(true, 1, topic, br#"{"msg_id":"a1","seq":1,"state":"paused"}"#);
    client.publish(true, 2, topic, br#"{"msg_id":"a2","seq":2,"state":"broken"}"#);
    client.publish(true, 3, "nowhere/at/all", b"{}");
    assert_eq!(letters(&gateway).len(), 3);
    let (is_good, text) = run(&gateway, &["dead", "requeue", "1", "3"]);
    assert!(
        !is_good && text.contains("0 of 2") && text.contains("letter 1: it still breaks its contract: /state"),
        "{text}"
    );
    assert!(text.contains("letter 3: it still breaks its contract: topic: no contract matches"), "{text}");

    gateway.stop();
    learn_paused(&gateway);
    gateway.run();
    let (_, text) = run(&gateway, &["dead", "requeue", "--stage", "intake", "--stream", "machine.state"]);
    assert!(text.contains("1 of 2") && text.contains("letter 2: it still breaks"), "{text}");
    centre.await_that("it arrives", PATIENCE, |centre| centre.events().iter().any(|event| event["id"] == "a1"));
    let event = &centre.events()[0];
    assert_eq!(event["source"], "/plant/gw/devices/press-1", "as if it had come now: {event:#}");
    // Twice is once.
    let (is_good, text) = run(&gateway, &["dead", "requeue", "1"]);
    assert!(!is_good && text.contains("it is taken in already"), "{text}");

    let (is_good, text) = run(&gateway, &["dead", "edit", "2", "--set", "/state=stopped"]);
    assert!(!is_good && text.contains("it still breaks its contract: /state"), "{text}");
    let (is_good, text) = run(&gateway, &["dead", "edit", "2", "--set", "/state=\"idle\""]);
    assert!(is_good, "{text}");
    centre.await_that("the edited one arrives", PATIENCE, |centre| {
        centre.events().iter().any(|event| event["id"] == "a2" && event["data"]["state"] == "idle")
    });
    assert_eq!(states(&gateway), ["taken-in", "taken-in", "held"]);
    let (is_good, text) = run(&gateway, &["dead", "discard", "--all"]);
    assert!(!is_good && text.contains("1 of 3"), "those that are done stay so: {text}");
    gateway.kill();
    gateway.run();
    assert_eq!(states(&gateway), ["taken-in", "taken-in", "discarded"]);
    let (_, audit) = run(&gateway, &["audit", "--json"]);
    let entries: Vec<serde_json::Value> = serde_json::from_str(&audit).expect("JSON");
    let actions: Vec<_> = entries.iter().map(|entry| entry["action"].as_str().unwrap_or_default()).collect();
    assert_eq!(actions, ["dead requeue", "dead edit", "dead discard"], "{audit}");
    let me = rustix::process::getuid().as_raw();
    assert!(entries.iter().all(|entry| entry["by"] == me), "{audit}");
    ledger(&gateway, "owed");
}

#[test]
fn an_edited_event_of_central_is_another_event_that_names_the_first() {
    let centre = Centre::answering(|arrival| {
        if arrival.events[0]["data"]["state"] == "fault" {
            PubAckReason::PayloadFormatInvalid
        } else {
            PubAckReason::Success
        }
    });
    let gateway = Gateway::start("edit", &centre.destination("central"));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", br#"{"msg_id":"a1","seq":1,"state":"fault"}"#);
    gateway.await_status("it is dead", PATIENCE, |status| sum(status, "dead") == 1);
    let (is_good, text) = run(&gateway, &["dead", "edit", "1", "--set", "/state=7"]);
    assert!(!is_good && text.contains("/state"), "{text}");
    let (is_good, text) = run(&gateway, &["dead", "edit", "1", "--set", "/state=idle"]);
    assert!(is_good, "{text}");
    centre.await_that("it arrives", PATIENCE, |centre| {
        centre.events().iter().any(|event| event["data"]["state"] == "idle")
    });
    let events = centre.events();
    let event = events.iter().find(|event| event["data"]["state"] == "idle").expect("the edited one");
    assert_eq!(event["originalid"], "a1");
    assert_ne!(event["id"], "a1");
    assert_eq!((ledger(&gateway, "delivered"), ledger(&gateway, "discarded"), ledger(&gateway, "dead")), (1, 1, 0));
}

#[test]
fn dead_letters_keep_within_their_budget_and_what_leaves_is_told() {
    let centre = Centre::start();
    let gateway = Gateway::start("flood", &format!("{}[dead]\nbudget = \"1MiB\"\n", centre.destination("central")));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let mut random = Random::with_seed(7);
    for number in 1..=300u16 {
        // No JSON, and no two alike.
        client.publish(true, number, "plant/line1/m01/state", &random.bytes(20_000));
    }
    client.publish(true, 301, "plant/line1/m01/state", crate::common::gateway::payload(1, 1).as_bytes());
    let left = letters(&gateway).len() as u64;
    assert!(left < 200, "{left} of 300 letters are there");
    centre.await_that("those that left are told", PATIENCE, |centre| {
        let told: u64 = centre.own("loss").iter().filter_map(|event| event["data"]["count"].as_u64()).sum();
        told > 100 && told + letters(&gateway).len() as u64 == 300
    });
    assert!(centre.own("loss").iter().all(|event| event["data"]["lane"] == "dead"));
    centre.await_that("the lane goes on", PATIENCE, |centre| centre.events().len() == 1);
}

/// More letters than are decided on at once, and among them payloads that fill a part alone.
#[test]
fn many_letters_are_decided_on_part_by_part() {
    let centre = Centre::start();
    let mut gateway = Gateway::start("parts", &centre.destination("central"));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let large = "x".repeat(150_000);
    for part in 0..13u32 {
        let hundred = part * 100 + 1..=part * 100 + 100;
        for number in hundred.clone() {
            let note = if number % 100 == 0 { &large } else { "" };
            let payload = format!(r#"{{"msg_id":"{number}","seq":{number},"state":"paused","note":"{note}"}}"#);
            client.send(&publish(true, 1, number as u16, "plant/line1/m01/state", &[], payload.as_bytes()));
        }
        for _ in hundred {
            assert!(matches!(client.hear(PATIENCE), Heard::Packet(_)), "a PUBACK");
        }
    }
    let (is_good, text) = run(&gateway, &["dead", "discard", "--reason", "/state", "--dry-run"]);
    assert!(is_good && text.contains("1300 of 1300 letters: would be discarded"), "{text}");
    let (is_good, text) = run(&gateway, &["dead", "requeue", "--all"]);
    assert!(!is_good && text.contains("0 of 1300") && text.contains("1200 more"), "{text}");
    gateway.stop();
    learn_paused(&gateway);
    gateway.run();
    let (is_good, text) = run(&gateway, &["dead", "requeue", "1299", "1300", "1301", "7"]);
    assert!(!is_good && text.contains("3 of 3") && text.contains("letter 1301: there is no such letter"), "{text}");
    let (is_good, text) = run(&gateway, &["dead", "requeue", "--reason", "/state"]);
    assert!(!is_good && text.contains("1297 of 1300"), "three are taken in already: {text}");
    gateway.await_status("all is delivered", PATIENCE, |status| {
        sum(status, "queued") == 0 && sum(status, "delivered") == 1300
    });
    let mut ids: Vec<_> = centre.events().iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1300);
    ledger(&gateway, "owed");
}

#[test]
fn a_filter_that_says_nothing_is_refused() {
    let gateway = Gateway::start("which", "");
    for word in ["requeue", "discard"] {
        let (is_good, text) = run(&gateway, &["dead", word]);
        assert!(!is_good && text.contains("which letters?") && text.contains("--all"), "{text}");
        let (is_good, text) = run(&gateway, &["dead", word, "--since", "soon"]);
        assert!(!is_good && text.contains("soon") && text.contains("2h"), "{text}");
        let (is_good, text) = run(&gateway, &["dead", word, "--destination", "cental"]);
        assert!(!is_good && text.contains("there is no destination \"cental\""), "{text}");
        let (is_good, text) = run(&gateway, &["dead", word, "--stream", "machine.stat"]);
        assert!(!is_good && text.contains("there is no stream \"machine.stat\"; there are"), "{text}");
        assert!(text.contains("machine.state.v1"), "{text}");
        let (is_good, text) = run(&gateway, &["dead", word, "7"]);
        assert!(!is_good && text.contains("letter 7: there is no such letter"), "{text}");
    }
}
