//! A start on the largest state that clients can leave, under the memory limit of the shipped unit.

use crate::common::births;
use crate::common::cgroup::Cgroup;
use crate::common::client::{Client, Hello, publish, subscribe};
use crate::common::gateway::{Gateway, payload};
use crate::common::process::resident;
use std::time::{Duration, Instant};

/// `MemoryMax` of the shipped unit.
const LIMIT: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Filters of a session that take as much as they may: of 65,000 bytes where that is allowed, else of a thousand.
fn fill(client: &mut Client, name: &str) -> usize {
    let mut granted = 0;
    for length in [65_000, 1_000] {
        let long = "t".repeat(length);
        for number in 0..70 {
            let filter = format!("{name}/{number}/{long}");
            client.send(&subscribe(true, 1, &[], &[(&filter, 1)]));
            match client.receive() {
                Some(packet) if packet[0] == 0x90 && packet[4] == 1 => granted += 1,
                Some(packet) if packet[0] == 0x90 => break,
                // A filter that is too long may end the connection.
                _ => return granted,
            }
        }
    }
    granted
}

fn hello(client: &str) -> Hello<'_> {
    // Never ends.
    let properties = vec![0x11, 0xFF, 0xFF, 0xFF, 0xFF];
    Hello { client, is_clean: false, properties, ..Hello::default() }
}

/// Starts under the limit; how long that took and what it took at most.
fn start(gateway: &mut Gateway, limit: &Cgroup) -> (Duration, u64) {
    gateway.through = limit.through();
    let began = Instant::now();
    gateway.spawn();
    let mut peak = 0;
    while std::net::TcpStream::connect(gateway.address).is_err() {
        peak = resident(gateway.pid()).1.max(peak);
        assert_eq!(limit.kills(), 0, "killed for its memory before it was ready: {} bytes at least", peak);
        assert!(began.elapsed() < PATIENCE, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    (began.elapsed(), resident(gateway.pid()).1)
}

#[test]
fn a_start_under_the_unit_s_limit_outlives_what_one_address_can_leave() {
    let Some(limit) = Cgroup::with_memory(LIMIT) else { return };
    let mut gateway = Gateway::start("one-address", "");
    for number in 0..24 {
        let name = format!("filler-{number}");
        for _ in 0..2 {
            // The second time after a filter that ended the connection.
            let (mut client, connack) = Client::connect(gateway.address, &hello(&name));
            if connack[2] == 0 {
                fill(&mut client, &name);
            }
        }
    }
    gateway.kill();
    let size = std::fs::metadata(gateway.folder.join("data/journal/state.redb")).expect("the state").len();
    let (took, peak) = start(&mut gateway, &limit);
    println!("{size} bytes of state: ready after {took:?}, {peak} bytes of memory at most");
    assert!(peak < 100 << 20, "{peak}");
}

#[test]
fn a_start_under_the_unit_s_limit_outlives_what_all_clients_can_leave() {
    let Some(limit) = Cgroup::with_memory(LIMIT) else { return };
    let settings = "sessions_per_name_max = 20000\nsessions_bytes_per_name_max = \"32MiB\"\n";
    let mut gateway = Gateway::prepare("all-clients", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}{settings}")).expect("written");
    gateway.run();
    let address = gateway.address;
    // Sessions with open exchanges, sessions with wills that wait, then as many filters as fit.
    for number in 0..50 {
        let name = format!("exchanger-{number}");
        let will = crate::common::client::Will {
            topic: "plant/line1/m01/state",
            payload: &[b'w'; 60_000],
            properties: vec![0x18, 0, 1, 0, 0],
            ..Default::default()
        };
        let (mut client, connack) = Client::connect(address, &Hello { will: Some(will), ..hello(&name) });
        assert_eq!(connack[2], 0);
        for id in 1..=250_u16 {
            client.send(&publish(
                true,
                2,
                id * 200,
                "plant/line1/m01/state",
                &[],
                payload(number, id.into()).as_bytes(),
            ));
        }
        (0..250).for_each(|_| assert_eq!(client.receive().expect("PUBREC")[0], 0x50));
        client.die();
    }
    let fill = |part: usize| {
        let mut sessions = 0;
        for number in 0.. {
            let name = format!("filler-{part}-{number}");
            let (mut client, connack) = Client::connect(address, &hello(&name));
            if connack[2] != 0 || fill(&mut client, &name) == 0 {
                return sessions;
            }
            sessions += 1;
            assert!(sessions < 5000, "there is a bound");
        }
        sessions
    };
    let sessions: usize = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..8).map(|part| scope.spawn(move || fill(part))).collect();
        parts.into_iter().map(|part| part.join().expect("filled")).sum()
    });
    gateway.kill();
    let size = std::fs::metadata(gateway.folder.join("data/journal/state.redb")).expect("the state").len();
    let (took, peak) = start(&mut gateway, &limit);
    println!("{sessions} full sessions, {size} bytes of state: ready after {took:?}, {peak} bytes of memory at most");
    assert!(sessions > 0 && size < 200 << 20, "{sessions} sessions, {size} bytes");
    assert!(peak < 100 << 20, "{peak}");
    // And it serves.
    let (mut client, connack) = Client::connect(address, &hello("exchanger-0"));
    assert_eq!((connack[1], connack[2]), (1, 0));
    client.send(&crate::common::client::answer(0x62, 200));
    assert_eq!(client.receive().map(|packet| packet[0]), Some(0x70));
    assert_eq!(limit.kills(), 0);
}

#[test]
fn a_start_under_the_unit_s_limit_outlives_what_sparkplug_births_can_leave() {
    let Some(limit) = Cgroup::with_memory(LIMIT) else { return };
    let mut gateway = Gateway::prepare("births", "");
    births::add_contract(&gateway.folder);
    gateway.run();
    let address = gateway.address;
    // As many bytes in names as a birth may have, and names as long as they can be; 200 MB in all.
    let fill = |part: usize| {
        let (mut client, _) = Client::connect(address, &hello(&format!("edge-{part}")));
        let payloads = [births::birth(240, 1000, part), births::birth(1, 250_000, part)];
        for number in 0..200 {
            let topic = format!("spBv1.0/g-{part}/NBIRTH/n-{number}");
            client.send(&publish(true, 1, number as u16 + 1, &topic, &[], &payloads[number % 2]));
            assert_eq!(client.receive().map(|packet| packet[0]), Some(0x40), "birth {number}");
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|part| drop(scope.spawn(move || fill(part)))));
    gateway.kill();
    let size = std::fs::metadata(gateway.folder.join("data/journal/state.redb")).expect("the state").len();
    let (took, peak) = start(&mut gateway, &limit);
    println!("{size} bytes of state: ready after {took:?}, {peak} bytes of memory at most");
    assert!(size < 128 << 20, "{size}");
    assert!(peak < 128 << 20, "{peak}");
    assert_eq!(limit.kills(), 0);
}
