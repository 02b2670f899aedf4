//! Wills (sections 3.1.2.5 to 3.1.2.7, 3.1.3.2 and 3.14.4): a will is published like any message of its
//! client, and so becomes an event of the contract that its topic leads to.

use super::{Bed, PATIENCE, SILENCE};
use crate::common::client::{Client, Heard, Hello, Will, packet};
use std::time::Duration;

super::checks! { will:
    it_is_published_when_its_client_dies, it_is_dropped_at_goodbye, it_is_published_once, none_is_published_unasked,
    any_qos_and_retain_is_taken, silence_is_a_death, being_taken_over_is_a_death, a_fault_is_a_death,
    it_waits_for_its_delay, its_delay_ends_with_the_session, a_reconnect_within_its_delay_drops_it,
    goodbye_with_will_publishes_it, it_is_not_published_for_who_was_not_let_in,
}

/// Connects with a will of these properties, in a session that is kept where `keeps`.
fn connect(bed: &Bed, properties: &[u8], keeps: bool) -> Client {
    let topic = bed.topic();
    let will = Will { topic: &topic, payload: b"gone", qos: 1, properties: properties.to_vec(), ..Will::default() };
    connect_with(bed, will, keeps, 0)
}

fn connect_with(bed: &Bed, will: Will<'_>, keeps: bool, keep_alive: u16) -> Client {
    let id = bed.client("mortal");
    let properties = if keeps { bed.keep() } else { vec![] };
    let hello = Hello { client: &id, will: Some(will), is_clean: !keeps, properties, keep_alive, ..Hello::default() };
    let (client, connack) = bed.connect_with(&hello);
    assert_eq!(connack.code, 0);
    client
}

fn it_is_published_when_its_client_dies(bed: &Bed) {
    let before = bed.accepted();
    connect(bed, &[], false).die();
    bed.await_accepted(before + 1, "the will is an event");
    assert_eq!(bed.gateway.status()["dead"]["total"], 0, "of the contract that its topic leads to");
}

fn it_is_dropped_at_goodbye(bed: &Bed) {
    let before = bed.accepted();
    let client = connect(bed, &[], false);
    bed.leave(client);
    if bed.is_v5 {
        let mut client = connect(bed, &[], false);
        client.send(&packet(0xE0, &[0, 0]));
        assert_eq!(client.hear(PATIENCE), Heard::End);
    }
    std::thread::sleep(SILENCE);
    bed.await_accepted(before, "goodbye is no death");
}

fn it_is_published_once(bed: &Bed) {
    let before = bed.accepted();
    connect(bed, &[], true).die();
    bed.await_accepted(before + 1, "the first death");
    // The same client, without a will now.
    let id = bed.client("mortal");
    let hello = Hello { client: &id, is_clean: false, properties: bed.keep(), ..Hello::default() };
    bed.connect_with(&hello).0.die();
    std::thread::sleep(SILENCE);
    bed.await_accepted(before + 1, "the second death has no will");
}

fn none_is_published_unasked(bed: &Bed) {
    let before = bed.accepted();
    bed.connect("plain").die();
    std::thread::sleep(SILENCE);
    bed.await_accepted(before, "nothing");
}

fn any_qos_and_retain_is_taken(bed: &Bed) {
    let (before, topic) = (bed.accepted(), bed.topic());
    let mut count = 0;
    for qos in 0..=2 {
        for retain in [false, true] {
            let will = Will { topic: &topic, payload: b"gone", qos, retain, ..Will::default() };
            connect_with(bed, will, false, 0).die();
            count += 1;
            bed.await_accepted(before + count, "an event like any other");
        }
    }
}

fn silence_is_a_death(bed: &Bed) {
    let (before, topic) = (bed.accepted(), bed.topic());
    let will = Will { topic: &topic, payload: b"gone", qos: 1, ..Will::default() };
    let mut client = connect_with(bed, will, false, 1);
    bed.assert_ended(&mut client, &[0x8D], "silence");
    bed.await_accepted(before + 1, "the will is an event");
}

fn being_taken_over_is_a_death(bed: &Bed) {
    let before = bed.accepted();
    let mut client = connect(bed, &[], false);
    let second = bed.connect("mortal");
    bed.assert_ended(&mut client, &[0x8E], "taken over");
    bed.await_accepted(before + 1, "the will is an event");
    bed.leave(second);
}

fn a_fault_is_a_death(bed: &Bed) {
    let before = bed.accepted();
    let mut client = connect(bed, &[], false);
    client.send(&[0x00, 0]);
    bed.assert_ended(&mut client, &[0x81, 0x82], "nonsense");
    bed.await_accepted(before + 1, "the will is an event");
}

fn it_waits_for_its_delay(bed: &Bed) {
    let before = bed.accepted();
    connect(bed, &[0x18, 0, 0, 0, 2], true).die();
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(bed.accepted(), before, "not yet");
    bed.await_accepted(before + 1, "after two seconds");
}

fn its_delay_ends_with_the_session(bed: &Bed) {
    let before = bed.accepted();
    connect(bed, &[0x18, 0, 0, 0x0E, 0x10], false).die();
    bed.await_accepted(before + 1, "the session ended with its connection");
}

fn a_reconnect_within_its_delay_drops_it(bed: &Bed) {
    let before = bed.accepted();
    connect(bed, &[0x18, 0, 0, 0, 2], true).die();
    let (client, has_session) = bed.resume("mortal");
    assert!(has_session);
    std::thread::sleep(Duration::from_millis(2500));
    bed.await_accepted(before, "it came back in time");
    bed.leave(client);
}

fn goodbye_with_will_publishes_it(bed: &Bed) {
    let before = bed.accepted();
    let mut client = connect(bed, &[], false);
    client.send(&packet(0xE0, &[4, 0]));
    assert_eq!(client.hear(PATIENCE), Heard::End);
    bed.await_accepted(before + 1, "it asked for it");
}

fn it_is_not_published_for_who_was_not_let_in(bed: &Bed) {
    let (before, topic, id) = (bed.accepted(), bed.topic(), "x".repeat(60_000));
    let will = Will { topic: &topic, payload: b"gone", qos: 1, ..Will::default() };
    let hello = Hello { client: &id, will: Some(will), ..Hello::default() };
    assert_ne!(bed.connect_with(&hello).1.code, 0);
    std::thread::sleep(SILENCE);
    bed.await_accepted(before, "nobody died");
}
