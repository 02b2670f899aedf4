//! What many subscriptions of some cost the events of all.

use crate::common::client::{Client, Hello, subscribe};
use crate::common::gateway::{Gateway, payload};
use std::time::{Duration, Instant};

/// Connections, and shared subscriptions of each, of a group of its own.
const CONNECTIONS: usize = 80;
const GROUPS: usize = 64;
const EVENTS: u16 = 200;

/// Processor time that a process has used.
fn used(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|field| fields[*field].parse::<u64>().expect("a number")).sum();
    // Ticks of the kernel's interface to programs: 100 a second on Linux.
    Duration::from_millis(ticks * 10)
}

/// Publishes one after another; processor time of the gateway for each.
fn cost_of_an_event(gateway: &Gateway, client: &str) -> Duration {
    let (mut device, _) = Client::connect(gateway.address, &Hello { client, ..Hello::default() });
    let before = used(gateway.pid());
    for id in 1..=EVENTS {
        let event = format!("{client}-{id}");
        device.publish(true, id, "plant/a/m1/state", payload(1, 1).replace("01-00000001", &event).as_bytes());
    }
    (used(gateway.pid()) - before) / u32::from(EVENTS)
}

/// Subscribes to the filter of each group, and sees all of them granted.
fn subscribe_to_groups(client: &mut Client, filter: impl Fn(usize) -> String) {
    let filters: Vec<_> = (0..GROUPS).map(filter).collect();
    let filters: Vec<_> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
    client.send(&subscribe(true, 1, &[], &filters));
    let suback = client.receive().expect("a SUBACK");
    assert!(suback[4..].iter().all(|code| *code == 1), "{suback:?}");
}

/// What an event costs more with groups whose filters do not match it.
pub fn groups_of_others() -> Duration {
    let gateway = Gateway::start("fair-groups", "");
    let without = cost_of_an_event(&gateway, "before");
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let name = format!("subscriber-{number}");
            let (mut client, _) = Client::connect(gateway.address, &Hello { client: &name, ..Hello::default() });
            subscribe_to_groups(&mut client, |group| format!("$share/g{group}/plant/{number}/{group}/+/state"));
            client
        })
        .collect();
    let with = cost_of_an_event(&gateway, "after");
    println!("{without:?} for each event without, {with:?} with {} groups", CONNECTIONS * GROUPS);
    drop(connections);
    with.saturating_sub(without)
}

/// How long a device waits for its acknowledgement beside groups that each get all of its events, and whose members
/// take some and then nothing any more.
pub fn groups_that_match() -> Duration {
    let gateway = Gateway::start("fair-matching", "");
    let members: Vec<_> = (0..20)
        .map(|number| {
            let name = format!("member-{number}");
            let (mut client, _) = Client::connect(gateway.address, &Hello { client: &name, ..Hello::default() });
            subscribe_to_groups(&mut client, |group| format!("$share/m{number}-{group}/#"));
            client
        })
        .collect();
    let (mut device, _) = Client::connect(gateway.address, &Hello { client: "device", ..Hello::default() });
    let mut longest = Duration::ZERO;
    for id in 1..=300 {
        let event = payload(1, usize::from(id));
        let start = Instant::now();
        device.publish(true, id, "plant/a/m1/state", event.as_bytes());
        longest = longest.max(start.elapsed());
        // Some 70 events a second, as of 50 machines.
        std::thread::sleep(Duration::from_millis(14));
    }
    drop(members);
    longest
}
