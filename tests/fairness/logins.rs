//! Logins: who is checked next, and what checking leaves behind.

use crate::common::client::{Client, Heard, Hello};
use crate::common::gateway::Gateway;
use crate::common::{dial_from, resident_kilobytes};
use forebay::sources::mqtt::put_user;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const PASSWORD: &str = "correct horse";

/// A gateway with so many users, `m0`, `m1`, …, of one password.
pub fn with_users(name: &str, users: usize, more: &str) -> Gateway {
    let mut gateway = Gateway::prepare(name, "");
    let file = gateway.folder.join("passwd");
    put_user(&file, "m", PASSWORD.as_bytes()).expect("written");
    let line = std::fs::read_to_string(&file).expect("read");
    // One hash for all: making 500 would take longer than the test.
    let lines: String = (0..users).map(|user| format!("m{user}{}", line.trim_start_matches('m'))).collect();
    std::fs::write(&file, lines).expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}passwords = \"passwd\"\n{more}")).expect("written");
    gateway.run();
    gateway
}

fn hello<'a>(user: &'a str, password: &'a str) -> Hello<'a> {
    Hello { client: user, login: Some((user, password)), ..Hello::default() }
}

/// Logs in from an address; the reason code.
fn log_in(gateway: &Gateway, from: [u8; 4], user: &str, password: &str) -> (Client, u8) {
    let mut client = Client::dial_from(from, gateway.address);
    client.send(&hello(user, password).bytes());
    let connack = client.receive().expect("a CONNACK");
    (client, connack[2])
}

/// Logs in as a device that tries again until it is let in; how long that took.
fn log_in_at_last(gateway: &Gateway, from: [u8; 4], user: &str) -> Duration {
    let start = Instant::now();
    loop {
        let mut client = Client::dial_from(from, gateway.address);
        client.send(&hello(user, PASSWORD).bytes());
        if let Heard::Packet(connack) = client.hear(Duration::from_secs(10))
            && connack[2] == 0
        {
            return start.elapsed();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{user} is never let in");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Wrong logins that go on, and stay connected for some seconds each.
struct Flood {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
}

impl Flood {
    fn begin(gateway: &Gateway, addresses: Vec<[u8; 4]>, per_second: usize, user: Option<&'static str>) -> Self {
        let (is_over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count, to) = (Arc::clone(&is_over), Arc::clone(&sent), gateway.address);
        std::thread::spawn(move || {
            let start = Instant::now();
            let mut kept: std::collections::VecDeque<TcpStream> = std::collections::VecDeque::new();
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let due = Duration::from_secs(1) * number as u32 / per_second as u32;
                std::thread::sleep(due.saturating_sub(start.elapsed()));
                let name = user.map_or_else(|| format!("x{number}"), str::to_owned);
                let id = format!("flood-{number}");
                let login = Hello { client: &id, login: Some((&name, "wrong")), ..Hello::default() };
                // Refused at the door is refused too.
                if let Ok(mut stream) = dial_from(addresses[number % addresses.len()], to)
                    && stream.write_all(&login.bytes()).is_ok()
                {
                    kept.push_back(stream);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                while kept.len() > 3000 {
                    kept.pop_front();
                }
            }
        });
        Self { is_over, sent }
    }

    fn await_sent(&self, count: usize) {
        let start = Instant::now();
        while self.sent.load(Ordering::Relaxed) < count {
            assert!(start.elapsed() < Duration::from_secs(30), "the flood does not come");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

pub fn flood_from_one_address() -> Duration {
    let gateway = with_users("fair-flood", 3, "");
    let flood = Flood::begin(&gateway, vec![[127, 0, 0, 2]], 300, None);
    flood.await_sent(600);
    let waits = [3, 4, 5].map(|address| log_in_at_last(&gateway, [127, 0, 0, address], "m1"));
    let second = log_in_at_last(&gateway, [127, 0, 0, 6], "m2");
    flood.await_sent(1200);
    waits.into_iter().chain([second]).max().expect("some")
}

pub fn flood_on_one_name() -> Duration {
    let gateway = with_users("fair-name", 2, "");
    let crowd = (1..=40).map(|last| [127, 0, 1, last]).collect();
    let flood = Flood::begin(&gateway, crowd, 100, Some("m1"));
    flood.await_sent(200);
    log_in_at_last(&gateway, [127, 0, 0, 3], "m1")
}

pub fn old_password_behind_the_same_router() -> Duration {
    let gateway = with_users("fair-router", 60, "");
    let router = [127, 0, 0, 9];
    for _ in 0..8 {
        log_in(&gateway, router, "m0", "old password");
    }
    let (_, code) = log_in(&gateway, router, "m0", "old password");
    assert_eq!(code, 0x9F, "it is slowed down, and told so");
    let start = Instant::now();
    for user in 1..60 {
        let (_, code) = log_in(&gateway, router, &format!("m{user}"), PASSWORD);
        assert_eq!(code, 0, "m{user}");
    }
    start.elapsed()
}

pub fn stop_during_a_flood() -> Duration {
    let mut gateway = with_users("fair-stop", 1, "");
    let crowd = (1..=20).map(|last| [127, 0, 2, last]).collect();
    let flood = Flood::begin(&gateway, crowd, 300, None);
    flood.await_sent(600);
    let start = Instant::now();
    gateway.stop();
    assert!(!gateway.log().contains("did not end in time"), "{}", gateway.log());
    start.elapsed()
}

/// Each login once cost 4 to 6 MB that never came back: its block of memory came from the heap, and the session that it
/// let in landed behind it. A plant of fifty devices did not come up under the limit of the packaged unit.
#[test]
fn logins_leave_no_memory_behind() {
    let gateway = with_users("fair-memory", 200, "");
    let (warm, _) = log_in(&gateway, [127, 0, 0, 2], "m0", PASSWORD);
    let before = resident_kilobytes(gateway.pid());
    let mut devices = vec![warm];
    // One after another, from addresses of their own; then all the others at once.
    for user in 1..60 {
        let (device, code) = log_in(&gateway, [127, 0, 3, user as u8], &format!("m{user}"), PASSWORD);
        assert_eq!(code, 0);
        devices.push(device);
    }
    let one_by_one = resident_kilobytes(gateway.pid());
    let more: Vec<_> = (60..200)
        .map(|user| {
            let name = format!("m{user}");
            let mut device = Client::dial_from([127, 0, 4, (user - 60) as u8 + 1], gateway.address);
            device.send(&hello(&name, PASSWORD).bytes());
            // A hash takes its time without optimisation, beside other tests.
            device.stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
            device
        })
        .collect();
    for mut device in more {
        assert_eq!(device.receive().expect("a CONNACK")[2], 0);
        devices.push(device);
    }
    let at_once = resident_kilobytes(gateway.pid());
    for wrong in 0..150 {
        let mut client = Client::dial_from([127, 0, 5, wrong + 1], gateway.address);
        client.send(&hello(&format!("x{wrong}"), "wrong").bytes());
        assert_eq!(client.receive().expect("a CONNACK")[2], 0x86);
    }
    let wrong = resident_kilobytes(gateway.pid());
    println!("{before} kB after one login, {one_by_one} after 60, {at_once} after 200, {wrong} after 150 wrong ones");
    assert!(wrong.max(at_once) < before + 12_000, "{before} kB before, {at_once} and {wrong} after");
}

#[test]
fn who_leaves_the_queue_is_not_checked_any_more() {
    let gateway = with_users("fair-left", 1, "");
    for number in 0..400 {
        let id = format!("gone-{number}");
        let login = Hello { client: &id, login: Some((&id, "wrong")), ..Hello::default() };
        let mut stream = dial_from([127, 0, 6, (number % 250) as u8 + 1], gateway.address).expect("connected");
        stream.write_all(&login.bytes()).expect("sent");
    }
    let start = Instant::now();
    let (_, code) = log_in(&gateway, [127, 0, 0, 3], "m0", PASSWORD);
    assert_eq!(code, 0);
    println!("let in after {:?}", start.elapsed());
    gateway.await_status("they are gone", Duration::from_secs(5), |status| status["sources"][0]["connections"] == 0);
}
