//! What one publisher may take of a lane's budget, of the dead letters', and of each second.

use crate::common::client::{Client, Heard, Hello, publish};
use crate::common::free_address;
use crate::common::gateway::{Gateway, accepted, payload};
use crate::common::random::Random;
use std::time::{Duration, Instant};

const STATE: &str = "plant/a/m1/state";

/// Some 60 kB that do not compress.
fn noise(id: usize) -> String {
    let noise = Random::with_seed(id as u64).text(60_000);
    format!(r#"{{"msg_id":"n{id}","note":"{noise}"}}"#)
}

/// Publishes until nothing is acknowledged for some seconds; how much was.
fn publish_without_end(gateway: &Gateway, client: &str, topic: &str) -> (Client, usize) {
    let (mut hog, _) = Client::connect(gateway.address, &Hello { client, ..Hello::default() });
    let mut acknowledged = 0;
    for id in 1.. {
        assert!(id < 3000, "180 MB found room");
        hog.send(&publish(true, 1, id, topic, &[], noise(id.into()).as_bytes()));
        match hog.hear(Duration::from_secs(4)) {
            Heard::Packet(packet) => assert_eq!(packet[0], 0x40, "{packet:?}"),
            Heard::Nothing => break,
            Heard::End => panic!("the gateway ends the connection"),
        }
        acknowledged += 1;
    }
    (hog, acknowledged)
}

/// Publishes small events as another client; the longest wait for a PUBACK.
fn others_publish(gateway: &Gateway, client: &str) -> Duration {
    let (mut device, _) = Client::connect(gateway.address, &Hello { client, ..Hello::default() });
    let publish = |id: u16| {
        let start = Instant::now();
        device.publish(true, id, STATE, payload(7, id.into()).as_bytes());
        start.elapsed()
    };
    (1..=50).map(publish).max().expect("some")
}

fn without_central(name: &str, more: &str) -> Gateway {
    let rest = format!("{more}\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n", free_address());
    Gateway::start(name, &rest)
}

pub fn a_lane_filled_by_one() -> Duration {
    let gateway = without_central("fair-lane", "\n[lane.critical]\nbudget = \"16MB\"\n");
    let (mut hog, acknowledged) = publish_without_end(&gateway, "hog", STATE);
    assert!(acknowledged > 130, "only {acknowledged} of 60 kB found room in 16 MB");
    let waited = others_publish(&gateway, "device");
    let status = gateway.status();
    let problems = status["problems"].to_string();
    let is_named = problems.contains("lane critical: the budget of 16.0 MB is used up") && problems.contains("hog");
    assert!(is_named && !problems.contains("device"), "{problems}");
    // It lives, and is still asked to wait.
    hog.send(&[0xC0, 0]);
    assert_eq!(hog.hear(Duration::from_secs(5)), Heard::Packet(vec![0xD0]));
    waited
}

pub fn dead_letters_filled_by_one() -> Duration {
    let gateway = Gateway::start("fair-dead", "\n[dead]\nbudget = \"16MB\"\n");
    let (mut device, _) = Client::connect(gateway.address, &Hello { client: "device", ..Hello::default() });
    device.publish(true, 1, "nowhere/device", b"mine");
    let (_hog, acknowledged) = publish_without_end(&gateway, "hog", "nowhere/hog");
    assert!(acknowledged > 150, "{acknowledged} of 60 kB are all that found room in 16 MB");
    let start = Instant::now();
    device.publish(true, 2, "nowhere/device", b"mine too");
    let waited = start.elapsed();
    let list = gateway.command(&["dead", "list", "--json", "--limit", "1000", "CONFIG"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert_eq!(list.matches("nowhere/device").count(), 2, "what others wrote is still there");
    let problems = gateway.status()["problems"].to_string();
    assert!(problems.contains("dead letters of others") && problems.contains("hog"), "{problems}");
    waited
}

pub fn a_client_over_its_rate() -> Duration {
    let mut gateway = Gateway::prepare("fair-rate", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config + "events_per_second_max = 100\n").expect("written");
    gateway.run();
    let (mut quick, _) = Client::connect(gateway.address, &Hello { client: "quick", ..Hello::default() });
    let start = Instant::now();
    // 200 that want an answer and 200 that want none: none is lost, and PINGREQ behind them is answered.
    for id in 1..=200u16 {
        quick.send(&publish(true, 1, id, STATE, &[], payload(1, id.into()).as_bytes()));
        quick.send(&publish(true, 0, 0, STATE, &[], payload(2, id.into()).as_bytes()));
    }
    quick.send(&[0xC0, 0]);
    let others = others_publish(&gateway, "device");
    // A burst of 100 and the one that exceeds it, 100 a second since then, and the 50 of the other client.
    let (so_far, allowed) = (accepted(&gateway.status()), 151.0 + 100.0 * start.elapsed().as_secs_f64());
    assert!((so_far as f64) <= allowed, "{so_far} events, {allowed} at most");
    let mut acknowledged = 0;
    while acknowledged < 200 {
        match quick.hear(Duration::from_secs(10)) {
            Heard::Packet(packet) if packet[0] == 0x40 => acknowledged += 1,
            Heard::Packet(packet) => assert_eq!(packet, [0xD0]),
            end => panic!("{end:?} after {acknowledged}"),
        }
    }
    let took = start.elapsed();
    assert!((2..20).contains(&took.as_secs()), "400 events at 100 a second, and a burst of 100: {took:?}");
    let status = gateway.await_status("all are taken", Duration::from_secs(20), |status| accepted(status) == 450);
    assert_eq!(status["sources"][0]["dropped"], 0);
    others
}

/// What was there before a start belongs to nobody: a lane that is nearly full keeps a small device no longer waiting.
#[test]
fn a_start_with_a_lane_that_is_nearly_full_slows_nobody_small() {
    let mut gateway = without_central("fair-start", "\n[lane.critical]\nbudget = \"16MB\"\n");
    let (hog, _) = publish_without_end(&gateway, "hog", STATE);
    let before = accepted(&gateway.status());
    drop(hog);
    gateway.kill();
    gateway.run();
    assert!(others_publish(&gateway, "device") < super::AT_ONCE);
    assert_eq!(accepted(&gateway.status()), before + 50, "what was acknowledged is there, and the small ones too");
}
