//! Shared subscriptions over everything that happens to their members: each event goes to one of them, once.

use crate::common::client::{Client, Delivery, Heard, Hello, answer, subscribe};
use crate::common::gateway::{Gateway, payload};
use std::time::Duration;

const SHARED: &str = "$share/boards/test/plant/machine.state/v1/#";
const QUIET: Duration = Duration::from_millis(500);

fn member(gateway: &Gateway, client: &str) -> Client {
    // An hour.
    let hello = Hello { client, is_clean: false, properties: vec![0x11, 0, 0, 0x0E, 0x10], ..Hello::default() };
    let (mut member, connack) = Client::connect(gateway.address, &hello);
    assert_eq!(connack[2], 0);
    if connack[1] == 0 {
        member.send(&subscribe(true, 1, &[], &[(SHARED, 1)]));
        assert_eq!(member.receive(), Some(vec![0x90, 0, 1, 0, 1]));
    }
    member
}

fn published(gateway: &Gateway, numbers: std::ops::Range<usize>) {
    let (mut device, _) = Client::connect(gateway.address, &Hello { client: "device", ..Hello::default() });
    for number in numbers {
        device.publish(true, 1, "plant/line1/m01/state", payload(1, number).as_bytes());
    }
}

/// Everything that comes until it is quiet; the first `acknowledge` of it are acknowledged.
fn taken(member: &mut Client, acknowledge: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Heard::Packet(packet) = member.hear(QUIET) {
        let delivery = Delivery::read(true, &packet);
        if numbers.len() < acknowledge {
            member.send(&answer(0x40, delivery.id));
        }
        let event: serde_json::Value = serde_json::from_slice(&delivery.payload).expect("an event");
        numbers.push(event["data"]["seq"].as_u64().expect("a number"));
    }
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_group_whose_members_all_slept_goes_on_where_it_was_with_whoever_returns() {
    let mut gateway = Gateway::start("group-asleep", "");
    member(&gateway, "one").die();
    member(&gateway, "two").die();
    published(&gateway, 0..20);
    let mut one = member(&gateway, "one");
    // It acknowledges half of them: the others are for somebody else.
    assert_eq!(taken(&mut one, 10), (0..20).collect::<Vec<_>>());
    one.die();
    let mut two = member(&gateway, "two");
    assert_eq!(taken(&mut two, 100), (10..20).collect::<Vec<_>>(), "what the other had acknowledged is not told again");
    two.die();
    published(&gateway, 20..30);
    gateway.stop();
    gateway.run();
    let mut one = member(&gateway, "one");
    assert_eq!(taken(&mut one, 100), (20..30).collect::<Vec<_>>(), "nor after a restart");
}

#[test]
fn what_a_group_was_promised_outlives_a_kill() {
    let mut gateway = Gateway::start("group-kill", "");
    // Killed as soon as it is subscribed: the group begins there.
    let one = member(&gateway, "one");
    gateway.kill();
    drop(one);
    gateway.run();
    published(&gateway, 0..10);
    assert_eq!(taken(&mut member(&gateway, "one"), 100), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_reload_does_not_make_two_groups_of_one() {
    let gateway = Gateway::start("group-reload", "");
    let mut one = member(&gateway, "one");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}connections_max = 500\n")).expect("written");
    let output = gateway.command(&["reload", "CONFIG"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut two = member(&gateway, "two");
    published(&gateway, 0..40);
    let mut all = taken(&mut one, 100);
    all.extend(taken(&mut two, 100));
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<_>>(), "each event goes to one of them");
}
