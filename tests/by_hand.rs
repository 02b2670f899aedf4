//! Damage by hand: files and folders of the journal that somebody removes, replaces or moves while the gateway runs.
//!
//! SQLite calls these "how to corrupt". Nothing that was acknowledged is lost by them without a word.

use crate::acknowledgement::body;
use crate::common::centre::Centre;
use crate::common::client::{Client, Heard, Hello};
use crate::common::free_address;
use crate::common::gateway::{Gateway, accepted, payload, sum};
use crate::lanes::{contract, prepare};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const TOPIC: &str = "plant/line1/m00/state";

fn start(name: &str) -> (Gateway, Client) {
    let rest =
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:1\"\n[lane.critical]\nlinger = \"0s\"\n";
    let gateway = Gateway::start(name, rest);
    let (client, _) = Client::connect(gateway.address, &Hello::default());
    (gateway, client)
}

fn publish(client: &mut Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        client.publish(true, number as u16 + 1, TOPIC, payload(0, number).as_bytes());
    }
}

/// How many events of the devices the journal holds, read from the files.
fn held(gateway: &Gateway) -> usize {
    let output = gateway.command(&["export", "CONFIG"]);
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("\"msg_id\"")).count()
}

fn journal(gateway: &Gateway) -> PathBuf {
    gateway.folder.join("data/journal")
}

/// The segments of the critical lane, oldest first.
fn segments(gateway: &Gateway) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(journal(gateway).join("critical")).expect("the lane");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "redb"));
    files.sort();
    files
}

/// The segment that is written.
fn active(gateway: &Gateway) -> PathBuf {
    segments(gateway).pop().expect("a segment")
}

/// The lock was a file alone: without it a second gateway began segments over those of the first.
#[test]
fn a_second_gateway_is_refused_although_the_lock_file_was_removed() {
    let (mut gateway, mut client) = start("no-lock");
    publish(&mut client, 0..20);
    std::fs::remove_file(journal(&gateway).join("LOCK")).expect("removed");
    let second = gateway.command(&["run", "CONFIG"]);
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("in use"), "{said}");
    let verify = gateway.command(&["verify", "--journal", journal(&gateway).to_str().expect("text")]);
    assert!(String::from_utf8_lossy(&verify.stderr).contains("in use"), "{verify:?}");
    publish(&mut client, 20..40);
    gateway.kill();
    assert_eq!(held(&gateway), 40);
    gateway.run();
    assert_eq!(accepted(&gateway.status()), 40);
}

/// Events went on into a file without a name, and were gone at the next start.
#[test]
fn a_segment_that_is_removed_or_replaced_while_it_is_written_is_written_anew() {
    for what in ["removed", "replaced"] {
        let (mut gateway, mut client) = start("segment-gone");
        publish(&mut client, 0..30);
        let segment = active(&gateway);
        match what {
            "removed" => std::fs::remove_file(&segment).expect("removed"),
            _ => {
                let other = segment.with_extension("other");
                std::fs::copy(&segment, &other).expect("copied");
                std::fs::rename(&other, &segment).expect("replaced");
            }
        }
        publish(&mut client, 30..60);
        assert!(gateway.log().contains("removed or replaced by hand"), "{}", gateway.log());
        gateway.kill();
        assert_eq!(held(&gateway), 60, "{what}");
        gateway.run();
        assert_eq!(sum(&gateway.status(), "queued"), 60, "{what}");
    }
}

/// What was written after the move was found by no start.
#[test]
fn a_folder_that_is_moved_away_stops_acknowledgements_until_it_is_back() {
    for inner in ["", "critical"] {
        let (mut gateway, mut client) = start("folder-moved");
        publish(&mut client, 0..20);
        let folder = journal(&gateway).join(inner);
        let folder = folder.components().collect::<PathBuf>();
        let aside = folder.with_extension("aside");
        std::fs::rename(&folder, &aside).expect("moved");
        std::fs::create_dir(&folder).expect("another in its place");
        let sent = crate::common::client::publish(true, 1, 21, TOPIC, &[], payload(0, 20).as_bytes());
        client.send(&sent);
        assert_eq!(client.hear(Duration::from_secs(2)), Heard::Nothing, "{inner}");
        gateway.await_status("it says why", PATIENCE, |status| {
            status["problems"].to_string().contains("moved or replaced")
        });
        std::fs::remove_dir(&folder).expect("it is empty");
        std::fs::rename(&aside, &folder).expect("moved back");
        let answer = client.receive().expect("a PUBACK");
        assert_eq!(answer[0], 0x40);
        gateway.kill();
        assert_eq!(held(&gateway), 21, "{inner}");
    }
}

/// Sessions, positions and marks went on into a file without a name.
#[test]
fn the_state_is_written_anew_if_its_file_is_removed_or_replaced() {
    for what in ["removed", "replaced"] {
        let (mut gateway, mut client) = start("state-gone");
        publish(&mut client, 0..10);
        let state = journal(&gateway).join("state.redb");
        match what {
            "removed" => std::fs::remove_file(&state).expect("removed"),
            _ => {
                // As an operator does who puts an older copy back.
                let other = state.with_extension("other");
                std::fs::copy(&state, &other).expect("copied");
                std::fs::rename(&other, &state).expect("replaced");
            }
        }
        // Session expiry: an hour.
        let properties = vec![0x11, 0, 0, 0x0E, 0x10];
        let session = Hello { client: "keeper", is_clean: false, properties, ..Hello::default() };
        let (_, connack) = Client::connect(gateway.address, &session);
        assert_eq!((connack[1], connack[2]), (0, 0), "{what}: {connack:?}");
        assert!(state.exists(), "what CONNACK promised is in a file that a start finds");
        publish(&mut client, 10..20);
        gateway.kill();
        gateway.run();
        let (_, connack) = Client::connect(gateway.address, &session);
        assert_eq!((connack[1], connack[2]), (1, 0), "{what}, the session is there: {connack:?}");
        assert_eq!(accepted(&gateway.status()), 20, "{what}: no number was given twice");
    }
}

/// A closed segment that was gone stopped the forwarder for ever.
#[test]
fn a_closed_segment_that_is_removed_costs_its_own_events_and_no_others() {
    for is_running in [true, false] {
        let address = free_address();
        let rest = format!(
            "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{address}\"\n[lane.critical]\nbudget = \"8MiB\"\nlinger = \"0s\"\n"
        );
        let mut gateway = prepare("closed-gone", &rest, &[("good", contract("good", "critical", ""))]);
        gateway.run();
        let (mut client, _) = Client::connect(gateway.address, &Hello::default());
        for number in 1..=40 {
            client.publish(true, number as u16, "plant/line1/m01/good", body(number).as_bytes());
        }
        if !is_running {
            gateway.stop();
        }
        let segments = segments(&gateway);
        assert!(segments.len() > 3, "{segments:?}");
        std::fs::remove_file(&segments[1]).expect("removed");
        if !is_running {
            gateway.run();
        }
        let centre = Centre::at(&address.to_string(), |_| PubAckReason::Success);
        let status = gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
        let lost = sum(&status, "set_aside");
        // A running gateway may have the file open, and deliver it all the same.
        assert!((is_running || lost > 0) && lost < 20, "{status:#}");
        let found = centre.events().iter().filter(|event| event["data"]["seq"].is_u64()).count() as u64;
        assert_eq!(found + lost, 40, "each event is delivered, or counted as lost");
        // Which streams the file held may not be known: the sum over all of them balances.
        let output = gateway.command(&["status", "--ledger", "--json", "CONFIG"]);
        let balances: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let balances = balances.as_array().expect("a list");
        assert!(!balances.is_empty() && balances.iter().all(|balance| balance["difference"] == 0), "{balances:#?}");
    }
}
