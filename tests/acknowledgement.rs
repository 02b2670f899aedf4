//! An acknowledgement is a promise without exceptions: not for a repeat, a second lane, a reload, or an operator.
//!
//! Each test tells one way in which an acknowledged event was lost. The model (`tests/model.rs`) looks for others.

use crate::common::centre::Centre;
use crate::common::client::{Client, Heard, Hello, publish};
use crate::common::free_address;
use crate::common::gateway::{Gateway, sum};
use crate::common::http::Client as HttpClient;
use crate::common::random::Random;
use crate::lanes::{contract, event, ledger, prepare};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::net::SocketAddr;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// How long an acknowledgement is waited for that must not come.
const SILENCE: Duration = Duration::from_secs(2);

/// Two lanes; the first is full after some megabytes, since its destination is down.
fn full_lane(address: SocketAddr) -> String {
    format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{address}\"\n[lane.critical]\nbudget = \"8MiB\"\nlinger = \"0s\"\n"
    )
}

/// A payload that takes its room on disk, since it does not compress.
pub fn body(number: u64) -> String {
    event(number, &Random::with_seed(number).text(60_000))
}

/// Publishes until no PUBACK comes; returns the numbers that were acknowledged, and the one that was not.
fn fill(client: &mut Client, topic: &str) -> (Vec<u64>, u64) {
    let mut acknowledged = Vec::new();
    for number in 1.. {
        client.send(&publish(true, 1, number as u16, topic, &[], body(number).as_bytes()));
        match client.hear(SILENCE) {
            Heard::Packet(_) => acknowledged.push(number),
            _ => return (acknowledged, number),
        }
        assert!(number < 1000, "the lane does not get full");
    }
    unreachable!("the numbers end above")
}

/// The numbers of the events that the journal holds, read from the files.
fn exported(gateway: &Gateway) -> Vec<u64> {
    let output = gateway.command(&["export", "CONFIG"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers = text.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        event["data"]["seq"].as_u64()
    });
    let mut numbers: Vec<u64> = numbers.flatten().collect();
    numbers.sort_unstable();
    numbers
}

/// The dedupe window knew the event of a batch that waited for room, and the repeat in another lane was acknowledged
/// although neither copy was on disk.
#[test]
fn a_repeat_in_another_lane_is_acknowledged_only_once_a_copy_is_on_disk() {
    for ends in ["killed", "stopped"] {
        let mut gateway =
            prepare("repeat-lane", &full_lane(free_address()), &[("good", contract("good", "critical", ""))]);
        gateway.run();
        let (mut client, _) = Client::connect(gateway.address, &Hello::default());
        let (mut acknowledged, waiting) = fill(&mut client, "plant/line1/m01/good");
        client.die();
        // The natural answer of an operator: the lane is full, so the contract moves to another one.
        let moved = contract("good", "standard", "").replace("1.0.0", "1.0.1");
        std::fs::write(gateway.folder.join("contracts/good.toml"), moved).expect("written");
        let reloaded = gateway.command(&["reload", "CONFIG"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        let (mut client, _) = Client::connect(gateway.address, &Hello::default());
        client.publish(true, 7, "plant/line1/m01/good", body(waiting).as_bytes());
        acknowledged.push(waiting);
        match ends {
            "killed" => gateway.kill(),
            _ => gateway.stop(),
        }
        assert_eq!(exported(&gateway), acknowledged, "{ends}: what was acknowledged is what the journal holds");
    }
}

/// As documented: 507 says "repeat it with the same ids", and the repeat got 202 from memory.
#[test]
fn a_post_that_is_repeated_after_a_reload_is_answered_202_only_from_disk() {
    let http = free_address();
    let rest = format!("{}[[source.http]]\nname = \"programs\"\nlisten = \"{http}\"\n", full_lane(free_address()));
    let of = |lane: &str, version: &str| {
        contract("good", lane, "")
            .replace(
                "source = \"mqtt\", topic = \"plant/{line}/{machine}/good\"",
                "source = \"http\", topic = \"{machine}\"",
            )
            .replace("1.0.0", version)
    };
    let mut gateway = prepare("repeat-http", &rest, &[("good", of("critical", "1.0.0"))]);
    gateway.run();
    let json = [("content-type", "application/json")];
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for number in 1..1000 {
        let answer = HttpClient::dial(http).post("/events/erp", &json, body(number).as_bytes());
        if answer.status != 202 {
            refused = number;
            break;
        }
        acknowledged.push(number);
    }
    assert!(refused > 0, "the lane gets full");
    std::fs::write(gateway.folder.join("contracts/good.toml"), of("standard", "1.0.1")).expect("written");
    assert!(gateway.command(&["reload", "CONFIG"]).status.success());
    let answer = HttpClient::dial(http).post("/events/erp", &json, body(refused).as_bytes());
    assert_eq!(answer.status, 202, "{answer:?}");
    acknowledged.push(refused);
    gateway.kill();
    assert_eq!(exported(&gateway), acknowledged);
}

/// Counters by topic often share ids and payloads: each stream, and each key, has events of its own.
#[test]
fn the_same_id_and_payload_in_another_stream_or_for_another_key_is_another_event() {
    let by_line =
        |kind: &str, lane: &str| contract(kind, lane, "").replace("key = \"{machine}\"", "key = \"{line}-{machine}\"");
    let contracts = [("good", by_line("good", "critical")), ("scrap", by_line("scrap", "standard"))];
    let centre = Centre::start();
    let mut gateway = prepare("same-id", &centre.destination("central"), &contracts);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let payload = br#"{"msg_id":"17","n":1}"#;
    let topics = [
        "plant/line1/press-4/good",
        "plant/line1/press-4/scrap",
        "plant/line2/press-4/good",
        "plant/line1/press-4/good",
    ];
    for (index, topic) in topics.iter().enumerate() {
        client.publish(true, index as u16 + 1, topic, payload);
    }
    centre.await_that("three events come", PATIENCE, |centre| centre.events().len() >= 3);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let mut found: Vec<(String, String)> = centre
        .events()
        .iter()
        .map(|event| {
            (event["type"].as_str().unwrap_or("").to_owned(), event["subject"].as_str().unwrap_or("").to_owned())
        })
        .collect();
    found.sort();
    let wanted = [("good", "line1-press-4"), ("good", "line2-press-4"), ("scrap", "line1-press-4")];
    let named = |(kind, key): &(&str, &str)| (found[0].0.replace("good", kind), (*key).to_owned());
    assert_eq!(found, wanted.iter().map(named).collect::<Vec<_>>(), "the fourth publish alone is a repeat");
    // Those that share source and id with the first are told apart by a minted id.
    let mut ids: Vec<_> = centre.events().iter().map(|event| event["id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
}

fn two_destinations(one: SocketAddr, other: SocketAddr) -> String {
    format!(
        "\n[lane.critical]\nbudget = \"8MiB\"\nlinger = \"0s\"\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{one}\"\nfrom = \"now\"\n[[destination]]\nname = \"central-old\"\nurl = \"mqtt://{other}\"\n"
    )
}

/// The note that one destination was dropped counted for every name that it begins with, at each start.
#[test]
fn dropping_one_destination_takes_nothing_from_another_whose_name_begins_like_it() {
    let address = free_address();
    let rest = two_destinations(address, free_address());
    let mut gateway = prepare("drop-prefix", &rest, &[("good", contract("good", "critical", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let (acknowledged, _) = fill(&mut client, "plant/line1/m01/good");
    client.die();
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let (before, _) = config.split_once("[[destination]]\nname = \"central-old\"").expect("the destination");
    std::fs::write(gateway.config(), before).expect("written");
    assert!(gateway.command(&["reload", "CONFIG"]).status.success());
    let dropped = gateway.command(&["destination", "drop", "central-old", "CONFIG"]);
    assert!(dropped.status.success(), "{dropped:?}");
    for _ in 0..2 {
        gateway.stop();
        gateway.run();
        let queued = ledger(&gateway, "queued");
        assert!(queued >= acknowledged.len() as u64, "{queued} of {} events are still owed", acknowledged.len());
    }
    let centre = Centre::at(&address.to_string(), |_| PubAckReason::Success);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let mut found: Vec<u64> = centre.events().iter().filter_map(|event| event["data"]["seq"].as_u64()).collect();
    found.sort_unstable();
    found.dedup();
    assert!(acknowledged.iter().all(|number| found.contains(number)), "{found:?}");
}

/// A lane that left the configuration was not opened: its events were neither sent nor counted.
#[test]
fn a_lane_that_leaves_the_configuration_still_delivers_what_it_holds() {
    let address = free_address();
    let rest = format!(
        "\n[lane.quality]\nbudget = \"16MiB\"\nlinger = \"0s\"\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{address}\"\n"
    );
    let mut gateway = prepare("lane-gone", &rest, &[("good", contract("good", "quality", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=20 {
        client.publish(true, number as u16, "plant/line1/m01/good", event(number, "x").as_bytes());
    }
    client.die();
    gateway.stop();
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace("[lane.quality]\nbudget = \"16MiB\"\nlinger = \"0s\"\n", ""))
        .expect("written");
    std::fs::remove_file(gateway.folder.join("contracts/good.toml")).expect("removed");
    gateway.run();
    let status = gateway.status();
    assert_eq!(sum(&status, "queued"), 20, "{status:#}");
    assert!(status["notes"].to_string().contains("lane quality is not in the configuration"), "{status:#}");
    assert_eq!(ledger(&gateway, "queued"), 20);
    let centre = Centre::at(&address.to_string(), |_| PubAckReason::Success);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let found: Vec<u64> = centre.events().iter().filter_map(|event| event["data"]["seq"].as_u64()).collect();
    assert_eq!(found, (1..=20).collect::<Vec<_>>());
    assert!(!gateway.status()["notes"].to_string().contains("lane quality"), "an empty one is no problem");
}
