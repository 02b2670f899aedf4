//! What clients may leave behind is bounded: sessions of a name and in all, their bytes on the disk, what they write,
//! and what they take of the memory while they sleep.

use crate::common::client::{Client, Hello, publish, subscribe, unsubscribe};
use crate::common::gateway::{Gateway, accepted, payload};
use crate::common::process::{resident, written};
use forebay::sources::mqtt::put_user;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const EVENTS: &str = "test/plant/machine.state/v1/#";
const HOUR: [u8; 5] = [0x11, 0, 0, 0x0E, 0x10];
/// No room for it, or not any more.
const QUOTA: u8 = 0x97;

fn persistent(client: &str) -> Hello<'_> {
    Hello { client, is_clean: false, properties: HOUR.to_vec(), ..Hello::default() }
}

/// A gateway whose listener has these settings too.
fn gateway(name: &str, settings: &str) -> Gateway {
    let mut gateway = Gateway::prepare(name, "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}{settings}\n")).expect("written");
    gateway.as_the_unit_sets_it();
    gateway.run();
    gateway
}

/// Subscribes and reads the reason codes of SUBACK.
fn subscribed(client: &mut Client, filters: &[(&str, u8)]) -> Vec<u8> {
    client.send(&subscribe(true, 1, &[], filters));
    loop {
        let packet = client.receive().expect("SUBACK");
        if packet[0] == 0x90 {
            return packet[4..].to_vec();
        }
    }
}

fn state_file(gateway: &Gateway) -> u64 {
    std::fs::metadata(gateway.folder.join("data/journal/state.redb")).expect("the state").len()
}

#[test]
fn one_name_cannot_take_the_sessions_of_all() {
    let gateway = Gateway::prepare("share", "");
    let passwords = gateway.folder.join("passwd");
    for user in ["lowuser", "press-4"] {
        put_user(&passwords, user, b"long enough").expect("written");
    }
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}passwords = \"passwd\"\nsessions_max = 100\n")).expect("written");
    let mut gateway = gateway;
    gateway.run();
    fn hello<'a>(user: &'a str, client: &'a str) -> Hello<'a> {
        Hello { login: Some((user, "long enough")), ..persistent(client) }
    }
    let mut codes = Vec::new();
    for number in 0..110 {
        // The id of the device is among them.
        let client = if number == 0 { "press-4".to_owned() } else { format!("taken-{number}") };
        codes.push(Client::connect(gateway.address, &hello("lowuser", &client)).1[2]);
    }
    let (mut press, connack) = Client::connect(gateway.address, &hello("press-4", "press-4"));
    assert_eq!((connack[1], connack[2]), (0, 0), "the device has its own id, and there is a session for it");
    assert_eq!(subscribed(&mut press, &[("test/plant/machine.state/v1/press-4", 1)]), [1]);
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 64, "{codes:?}");
    assert!(codes[64..].iter().all(|code| *code == QUOTA), "{codes:?}");
    assert!(gateway.log().contains("sessions_per_name_max"), "{}", gateway.log());
}

#[test]
fn what_a_session_takes_on_the_disk_is_bounded_and_comes_back() {
    let mut gateway = gateway("bytes", "");
    let long = "t".repeat(1000);
    let mut granted = 0;
    for client in 0..40 {
        let (mut client, connack) = Client::connect(gateway.address, &persistent(&format!("client-{client}")));
        if connack[2] != 0 {
            assert_eq!(connack[2], QUOTA);
            continue;
        }
        for part in 0..20 {
            let filters: Vec<_> = (0..5).map(|number| (format!("{part}/{number}/{long}"), 1)).collect();
            let filters: Vec<_> = filters.iter().map(|(filter, options)| (filter.as_str(), *options)).collect();
            let codes = subscribed(&mut client, &filters);
            assert!(codes.iter().all(|code| [1, QUOTA].contains(code)), "{codes:?}");
            granted += codes.iter().filter(|code| **code == 1).count();
        }
    }
    assert!((500..1100).contains(&granted), "a megabyte of filters for one address: {granted}");
    let grown = state_file(&gateway);
    assert!(grown < 16 << 20, "{grown}");
    // They leave for good.
    for client in 0..40 {
        let name = format!("client-{client}");
        let (_, connack) = Client::connect(gateway.address, &Hello { client: &name, ..Hello::default() });
        assert_eq!(connack[2], 0);
    }
    gateway.stop();
    gateway.run();
    let now = state_file(&gateway);
    assert!(now < 4 << 20, "the state gives its room back at a start: {grown} bytes, then {now}");
    let (mut client, _) = Client::connect(gateway.address, &persistent("client-0"));
    assert_eq!(subscribed(&mut client, &[(&format!("1/{long}"), 1)]), [1], "what was given back can be had again");
}

#[test]
fn a_small_subscribe_writes_little_however_much_the_session_holds() {
    let gateway = gateway("wear", "");
    let (mut client, _) = Client::connect(gateway.address, &persistent("collector"));
    let long = "t".repeat(1000);
    let mut cost = Vec::new();
    for number in 0..60 {
        let before = written(gateway.pid());
        assert_eq!(subscribed(&mut client, &[("a/small/one", number as u8 & 1)]), [number as u8 & 1]);
        cost.push(written(gateway.pid()) - before);
        assert_eq!(subscribed(&mut client, &[(&format!("{number}/{long}"), 1)]), [1]);
    }
    let (mut first, mut last) = (cost[..10].to_vec(), cost[50..].to_vec());
    first.sort_unstable();
    last.sort_unstable();
    println!("bytes written for a small SUBSCRIBE: {} at first, {} with 60 long filters", first[5], last[5]);
    assert!(last[5] < first[5] + (32 << 10), "{cost:?}");
}

#[test]
fn a_client_that_releases_nothing_is_cut_off_and_loses_nothing_that_was_received() {
    for is_v5 in [true, false] {
        let gateway = gateway("exchanges", "exchanges_max = 300\n");
        let properties = if is_v5 { HOUR.to_vec() } else { vec![] };
        let hello = Hello { is_v5, properties, ..persistent("hoarder") };
        let (mut client, _) = Client::connect(gateway.address, &hello);
        let mut received = 0;
        for id in 1..=301_u16 {
            client.send(&publish(is_v5, 2, id, "plant/line1/m01/state", &[], payload(1, id.into()).as_bytes()));
            match client.receive() {
                Some(packet) if packet[0] == 0x50 => received += 1,
                Some(packet) => assert_eq!((packet[0], packet[1]), (0xE0, 0x93), "Receive Maximum exceeded"),
                None => break,
            }
        }
        assert_eq!(received, 300);
        // It goes on where it was, and ends what it had begun.
        let (mut client, connack) = Client::connect(gateway.address, &hello);
        assert_eq!(connack[1], 1);
        for id in 1..=300_u16 {
            client.send(&crate::common::client::answer(0x62, id));
            assert_eq!(client.receive().expect("PUBCOMP")[0], 0x70);
        }
        client.send(&publish(is_v5, 2, 301, "plant/line1/m01/state", &[], payload(1, 301).as_bytes()));
        assert_eq!(client.receive().expect("PUBREC")[0], 0x50);
        assert_eq!(accepted(&gateway.status()), 301);
    }
}

#[test]
fn no_session_is_promised_where_the_disk_is_at_its_reserve() {
    let mut gateway = Gateway::prepare("reserve", "disk_reserve = \"1MiB\"\n");
    gateway.run();
    let (mut asleep, connack) = Client::connect(gateway.address, &persistent("asleep"));
    assert_eq!(connack[2], 0);
    assert_eq!(subscribed(&mut asleep, &[(EVENTS, 1)]), [1]);
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let disk = rustix::fs::statvfs(&gateway.folder).expect("a file system");
    let all_but_a_hundredth = disk.f_blocks * disk.f_frsize / 100 * 99;
    assert!(disk.f_bavail * disk.f_frsize < all_but_a_hundredth, "there is something on the disk");
    let reserve = config.replace("\"1MiB\"", &format!("\"{all_but_a_hundredth}B\""));
    std::fs::write(gateway.config(), reserve).expect("written");
    let output = gateway.command(&["reload", "CONFIG"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(Client::connect(gateway.address, &persistent("late")).1[2], QUOTA);
    assert_eq!(subscribed(&mut asleep, &[(EVENTS, 0), ("test/other", 1)]), [0, QUOTA], "what is there may change");
    // Without a session to keep, clients are let in as ever; so are those whose session is there.
    assert_eq!(Client::connect(gateway.address, &Hello { client: "late", ..Hello::default() }).1[2], 0);
    asleep.die();
    let (mut asleep, connack) = Client::connect(gateway.address, &persistent("asleep"));
    assert_eq!((connack[1], connack[2]), (1, 0));
    asleep.send(&unsubscribe(true, 2, &[EVENTS]));
    assert_eq!(asleep.receive(), Some(vec![0xB0, 0, 2, 0, 0]));
}

/// Publishes so many events a second until it is told to stop.
fn plant(to: SocketAddr, a_second: usize, over: Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let (mut device, _) = Client::connect(to, &Hello { client: "plant", ..Hello::default() });
        let start = Instant::now();
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            let mut bytes = Vec::new();
            for machine in 0..20 {
                number += 1;
                let topic = format!("plant/line1/m{machine:02}/state");
                bytes.extend(publish(
                    true,
                    1,
                    (number % 60_000 + 1) as u16,
                    &topic,
                    &[],
                    payload(machine, number).as_bytes(),
                ));
            }
            device.send(&bytes);
            (0..20).for_each(|_| drop(device.receive()));
            let due = Duration::from_secs_f64(number as f64 / a_second as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        number
    })
}

/// Lets sessions `range` come, subscribe if they are new, take what there is, and go.
fn come_and_go(to: SocketAddr, range: std::ops::Range<usize>, is_new: bool) {
    for number in range {
        let name = format!("sleeper-{number:05}");
        let (mut client, connack) = Client::connect(to, &persistent(&name));
        assert_eq!((connack[1] == 1, connack[2]), (!is_new, 0), "{name}");
        if is_new {
            assert_eq!(subscribed(&mut client, &[("test/plant/machine.state/v1/m01", 1)]), [1]);
        } else if let Some(packet) = client.receive() {
            client.send(&crate::common::client::answer(0x40, crate::common::client::Delivery::read(true, &packet).id));
        }
        client.die();
    }
}

/// As many as `FOREBAY_SLEEPERS` says, for as many minutes as `FOREBAY_SLEEP_MINUTES`: `tests/run --long` has 10,000
/// for ten minutes. A gateway beside it takes the same events and has no sleepers: what events take is not theirs.
#[test]
fn sleeping_sessions_take_some_hundred_bytes_each() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let sleepers = number("FOREBAY_SLEEPERS").unwrap_or(1500);
    let minutes = number("FOREBAY_SLEEP_MINUTES").unwrap_or(0);
    let a_second = if minutes > 0 { 2000 } else { 500 };
    let settings = "sessions_per_name_max = 20000\nsessions_bytes_per_name_max = \"32MiB\"\n";
    let (alone, gateway) = (gateway("no-sleepers", settings), gateway("sleepers", settings));
    let over = Arc::new(AtomicBool::new(false));
    let plants = [&alone, &gateway].map(|one| plant(one.address, a_second, Arc::clone(&over)));
    let all = |to: SocketAddr, range: std::ops::Range<usize>, is_new: bool| {
        let share = range.len().div_ceil(8).max(1);
        std::thread::scope(|scope| {
            for start in range.clone().step_by(share) {
                let own = start..(start + share).min(range.end);
                scope.spawn(move || come_and_go(to, own, is_new));
            }
        });
    };
    // What the first ones cost is not theirs: threads, caches, the journal.
    for one in [&alone, &gateway] {
        all(one.address, 0..100, true);
        all(one.address, 0..100, false);
    }
    let difference = || resident(gateway.pid()).0.cast_signed() - resident(alone.pid()).0.cast_signed();
    let (start, before) = (Instant::now(), difference());
    all(gateway.address, 100..sleepers, true);
    let mut readings = Vec::new();
    loop {
        all(gateway.address, 0..sleepers, false);
        readings.push(difference() - before);
        if start.elapsed() >= Duration::from_secs(60 * minutes as u64) {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    let events = plants.map(|plant| plant.join().expect("a plant"));
    let last = *readings.last().expect("a reading");
    println!("{sleepers} sleeping sessions take {last} bytes beside {events:?} events; readings: {readings:?}");
    assert!(last < 20 << 20, "{readings:?}");
    assert!(minutes > 0 || last / (sleepers as i64) < 6000, "{last} bytes for {sleepers}");
    assert!(last < readings[readings.len() / 2] + (4 << 20), "flat at the end: {readings:?}");
}

#[test]
fn the_settings_are_checked_against_each_other() {
    let check = |settings: &str| {
        let gateway = Gateway::prepare("checked", "");
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        std::fs::write(gateway.config(), format!("{config}{settings}\n")).expect("written");
        let output = gateway.command(&["check", "CONFIG"]);
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for (settings, named) in [
        ("sessions_bytes_max = \"1MiB\"\nsessions_bytes_per_name_max = \"2MiB\"", "sessions_bytes_per_name_max"),
        ("exchanges_max = 0", "exchanges_max"),
        ("exchanges_max = 70000", "exchanges_max"),
    ] {
        let (is_good, text) = check(settings);
        assert!(!is_good && text.contains(named), "{settings}: {text}");
    }
    assert!(check("sessions_per_name_max = 1\nsubscriptions_max = 1\nexchanges_max = 65535").0);
}
