//! Connections and memory of clients that have logged in: one party holds nearly all, another comes.

use super::logins::{PASSWORD, with_users};
use crate::common::client::{Client, Heard, Hello, properties, publish};
use crate::common::gateway::Gateway;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// `connections_max` of these tests.
const SEATS: usize = 20;
const MORE: &str = "connections_max = 20\nconnects_per_second_max = 10000\n";

/// CONNECTs from an address; the reason code of the answer.
fn enter(to: SocketAddr, from: [u8; 4], client: &str, user: Option<&str>) -> (Client, u8) {
    let mut device = Client::dial_from(from, to);
    device.stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    device.send(&Hello { client, login: user.map(|user| (user, PASSWORD)), ..Hello::default() }.bytes());
    let connack = device.receive().expect("a CONNACK");
    (device, connack[2])
}

/// Takes every connection there may be.
fn fill(gateway: &Gateway, from: [u8; 4], user: Option<&str>) -> Vec<Client> {
    let all = (0..SEATS).map(|number| enter(gateway.address, from, &format!("idle-{number}"), user));
    let all: Vec<_> = all.collect();
    assert!(all.iter().all(|(_, code)| *code == 0), "one party alone may use every connection");
    all.into_iter().map(|(client, _)| client).collect()
}

/// An evicted client is told why.
fn must_go(client: &mut Client, why: &str) {
    let Heard::Packet(packet) = client.hear(Duration::from_secs(3)) else { panic!("it may stay") };
    let reason = properties(&packet[2..]).0.into_iter().find(|(id, _)| *id == 0x1F).expect("a reason string").1;
    let reason = String::from_utf8_lossy(&reason[2..]).into_owned();
    assert!(packet[..2] == [0xE0, 0x97] && reason.contains(why), "{packet:?}: {reason}");
    assert_eq!(client.hear(Duration::from_secs(3)), Heard::End);
}

/// The 99th percentile of how long so many publishes waited for their PUBACK.
fn p99(device: &mut Client, topic: &str, count: u16) -> Duration {
    let mut waits: Vec<Duration> = (1..=count)
        .map(|id| {
            let start = Instant::now();
            device.publish(true, id, topic, format!(r#"{{"msg_id":"{id}"}}"#).as_bytes());
            start.elapsed()
        })
        .collect();
    waits.sort();
    waits[waits.len() * 99 / 100]
}

pub fn idle_connections_of_one_user() -> Duration {
    let gateway = with_users("fair-idle-user", 2, MORE);
    // The first check of a password is not part of the measured wait.
    drop(enter(gateway.address, [127, 0, 0, 3], "first", Some("m1")));
    gateway.await_status("it has left", Duration::from_secs(5), |status| status["sources"][0]["connections"] == 0);
    let mut idle = fill(&gateway, [127, 0, 0, 2], Some("m0"));
    idle[0].send(&[0xC0, 0]);
    assert_eq!(idle[0].receive(), Some(vec![0xD0]), "the first one is not idle longest any more");
    let start = Instant::now();
    // From the same address: a proven name counts for itself, also behind a router.
    let (mut device, code) = enter(gateway.address, [127, 0, 0, 2], "device", Some("m1"));
    assert_eq!(code, 0, "m1 is let in");
    let waited = start.elapsed();
    must_go(&mut idle[1], "connections_max");
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("connections_max")).expect("a line");
    for part in ["idle-1", "m0", "127.0.0.2"] {
        assert!(line.contains(part), "{line}");
    }
    let (_, code) = enter(gateway.address, [127, 0, 0, 2], "again", Some("m0"));
    assert_eq!(code, 0x97, "who has most of them gets no other one");
    assert_eq!(idle[2].hear(Duration::from_millis(100)), Heard::Nothing, "nobody goes for that");
    let (is_over, to) = (AtomicBool::new(false), gateway.address);
    let p99 = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(enter(to, [127, 0, 0, 2], "again", Some("m0")).1, 0x97);
            }
        });
        let p99 = p99(&mut device, "plant/a/m1/state", 100);
        is_over.store(true, Ordering::Relaxed);
        p99
    });
    waited.max(p99)
}

pub fn idle_connections_of_one_address() -> Duration {
    let mut gateway = Gateway::prepare("fair-idle-address", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}{MORE}")).expect("written");
    gateway.run();
    let mut idle = fill(&gateway, [127, 0, 0, 2], None);
    let start = Instant::now();
    let (_one, code) = enter(gateway.address, [127, 0, 0, 3], "one", None);
    assert_eq!(code, 0);
    let (_other, code) = enter(gateway.address, [127, 0, 0, 4], "other", None);
    assert_eq!(code, 0);
    let waited = start.elapsed();
    must_go(&mut idle[0], "connections_max");
    must_go(&mut idle[1], "connections_max");
    // A connection takes the place of the one before it of the same client, at the bound too.
    let (_same, code) = enter(gateway.address, [127, 0, 0, 2], "idle-5", None);
    assert_eq!(code, 0);
    let Heard::Packet(packet) = idle[5].hear(Duration::from_secs(3)) else { panic!("it is taken over") };
    assert_eq!(packet[..2], [0xE0, 0x8E]);
    // A client that leaves makes room for any other.
    drop(idle.pop());
    gateway.await_status("one has left", Duration::from_secs(5), |status| status["sources"][0]["connections"] == 19);
    assert_eq!(enter(gateway.address, [127, 0, 0, 2], "late", None).1, 0);
    waited
}

/// Changed settings begin no new count: who was there before still counts.
#[test]
fn connections_from_before_a_reload_count() {
    let gateway = with_users("fair-reload", 2, MORE);
    let mut idle = fill(&gateway, [127, 0, 0, 2], Some("m0"));
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(
        gateway.config(),
        config.replace("connects_per_second_max = 10000", "connects_per_second_max = 9999"),
    )
    .expect("written");
    assert!(gateway.command(&["reload", "CONFIG"]).status.success());
    assert_eq!(enter(gateway.address, [127, 0, 0, 2], "again", Some("m0")).1, 0x97);
    assert_eq!(enter(gateway.address, [127, 0, 0, 2], "device", Some("m1")).1, 0);
    must_go(&mut idle[0], "connections_max");
}

pub fn memory_held_by_one_user() -> Duration {
    let gateway = with_users("fair-memory-user", 2, "connects_per_second_max = 10000\n");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("memory = \"32MiB\"\n{config}")).expect("written");
    let mut gateway = gateway;
    gateway.stop();
    gateway.run();
    let (mut device, code) = enter(gateway.address, [127, 0, 0, 3], "device", Some("m1"));
    assert_eq!(code, 0);
    // Large publishes that never end: each holds its buffer.
    let large = publish(true, 1, 1, "plant/a/m0/state", &[], &[b' '; 240_000]);
    let mut hogs = Vec::new();
    let is_short = |gateway: &Gateway| gateway.status()["memory"]["refused"].as_u64() > Some(0);
    for number in 0..200 {
        let (mut hog, code) = enter(gateway.address, [127, 0, 0, 2], &format!("hog-{number}"), Some("m0"));
        if code != 0 || is_short(&gateway) {
            break;
        }
        hog.send(&large[..large.len() - 1]);
        hogs.push(hog);
    }
    assert!(hogs.len() > 50 && is_short(&gateway), "{} connections hold all there is", hogs.len());
    let start = Instant::now();
    let payload = format!(r#"{{"msg_id":"1","note":"{}"}}"#, "x".repeat(100_000));
    let answer = device.publish(true, 1, "plant/a/m1/state", payload.as_bytes());
    assert!(answer.len() == 3 || answer[3] == 0, "{answer:?}");
    let waited = start.elapsed();
    let gone = hogs.iter_mut().filter_map(|hog| match hog.hear(Duration::from_millis(10)) {
        Heard::Nothing => None,
        heard => Some(heard),
    });
    let gone: Vec<_> = gone.collect();
    assert!(!gone.is_empty() && gone.len() < 5, "few have to go: {gone:?}");
    waited
}
