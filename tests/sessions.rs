//! Sessions: QoS 2 to the letter, redeliveries, what sleeping and slow subscribers are told.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::client::{Client, Delivery, Heard, Hello, packet, publish, subscribe, text};
use crate::common::gateway::{Gateway, accepted, scratch_folder, sum};
use crate::common::pki::Pki;
use crate::common::random::Random;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

const STATE: &str = "plant/line1/m01/state";
/// Where the gateway's subscribers see the events of `STATE`.
const EVENTS: &str = "test/plant/machine.state/v1/#";

/// A contract without an id: nothing but MQTT itself can tell a repeat.
const NO_ID: &str = r#"
name = "note"
version = "1.0.0"
owner = "tests"
lane = "LANE"
match = { source = "mqtt", topic = "notes/{machine}" }
key = "{machine}"
"#;

/// A gateway with the contract without an id too.
fn gateway(name: &str, lane: &str, rest: &str) -> Gateway {
    let mut gateway = Gateway::prepare(name, rest);
    std::fs::write(gateway.folder.join("contracts/note.toml"), NO_ID.replace("LANE", lane)).expect("written");
    gateway.run();
    gateway
}

fn persistent(client: &str, is_v5: bool, is_clean: bool) -> Hello<'_> {
    // An hour.
    let properties = if is_v5 { vec![0x11, 0, 0, 0x0E, 0x10] } else { vec![] };
    Hello { is_v5, client, is_clean, properties, ..Hello::default() }
}

fn is_present(connack: &[u8]) -> bool {
    connack[1] == 1
}

/// Reads PUBLISH packets until `count` came, and acknowledges those of QoS 1.
fn collect(client: &mut Client, is_v5: bool, count: usize) -> Vec<Delivery> {
    let mut found = Vec::new();
    while found.len() < count {
        let packet = client.receive().expect("a delivery");
        if packet[0] >> 4 != 3 {
            continue;
        }
        let delivery = Delivery::read(is_v5, &packet);
        if delivery.qos == 1 {
            client.send(&[0x40, 2, delivery.id.to_be_bytes()[0], delivery.id.to_be_bytes()[1]]);
        }
        found.push(delivery);
    }
    found
}

fn data(delivery: &Delivery) -> serde_json::Value {
    serde_json::from_slice::<serde_json::Value>(&delivery.payload).expect("an event")["data"].clone()
}

fn number(delivery: &Delivery) -> u64 {
    data(delivery)["seq"].as_u64().expect("a number")
}

fn state(number: usize) -> String {
    crate::common::gateway::payload(1, number)
}

/// Where an exchange stops that is brought to its end.
const TO_THE_END: u64 = 9;

/// A client in the middle of a QoS 2 exchange.
struct Exchanger {
    name: String,
    is_v5: bool,
    has_session: bool,
    number: u64,
    packet_id: u16,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Fresh,
    Published,
    Received,
    Released,
}

impl Exchanger {
    fn new(index: usize) -> Self {
        Self {
            name: format!("exchanger-{index}"),
            is_v5: index.is_multiple_of(2),
            has_session: false,
            number: 0,
            packet_id: 1,
            step: Step::Fresh,
        }
    }

    /// Connects, and goes on to where `stop` says; sends without waiting for the last answer.
    fn go(&mut self, gateway: &Gateway, stop: u64) -> Client {
        let hello = persistent(&self.name, self.is_v5, false);
        let (mut client, connack) = Client::connect(gateway.address, &hello);
        assert_eq!(is_present(&connack), self.has_session, "{}: {connack:?}", self.name);
        self.has_session = true;
        let mut is_again = self.step > Step::Fresh;
        for _ in 0..=stop {
            match self.step {
                Step::Fresh | Step::Published => {
                    self.publish(&mut client, is_again);
                    self.step = Step::Published;
                    if stop == 0 {
                        return client;
                    }
                    self.await_answer(&mut client, 0x50);
                    self.step = Step::Received;
                }
                Step::Received | Step::Released => {
                    client.send(&packet(0x62, &self.packet_id.to_be_bytes()));
                    self.step = Step::Released;
                    if stop == 2 {
                        return client;
                    }
                    self.await_answer(&mut client, 0x70);
                    self.number += 1;
                    self.packet_id = self.packet_id % 3 + 1;
                    self.step = Step::Fresh;
                    if stop == TO_THE_END {
                        return client;
                    }
                }
            }
            is_again = false;
        }
        client
    }

    fn publish(&self, client: &mut Client, is_again: bool) {
        let payload = format!(r#"{{"client":"{}","n":{}}}"#, self.name, self.number);
        let mut bytes =
            publish(self.is_v5, 2, self.packet_id, &format!("notes/{}", self.name), &[], payload.as_bytes());
        bytes[0] |= u8::from(is_again) << 3;
        client.send(&bytes);
    }

    fn await_answer(&self, client: &mut Client, first: u8) {
        let answer = client.receive().expect("an answer");
        assert_eq!((answer[0], &answer[1..3]), (first, &self.packet_id.to_be_bytes()[..]), "{}: {answer:?}", self.name);
    }
}

/// Kills at a random step of the exchanges of four clients, again and again.
fn qos_2_through_kills(rounds: u32) {
    let folder = scratch_folder("exact-centre");
    let broker = Mosquitto::start(folder.path(), &Pki::write(folder.path()));
    let collector = Collector::start(broker.plain, "test/plant/note/#");
    let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n", broker.plain);
    let mut gateway = gateway("exact", "critical", &destination);
    let mut exchangers: Vec<_> = (0..4).map(Exchanger::new).collect();
    let mut random = Random::seeded();
    for _ in 0..rounds {
        // They live until the kill.
        let clients: Vec<_> = exchangers.iter_mut().map(|one| one.go(&gateway, random.below(4))).collect();
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        gateway.kill();
        drop(clients);
        gateway.run();
    }
    for one in &mut exchangers {
        while one.step != Step::Fresh {
            drop(one.go(&gateway, TO_THE_END));
        }
    }
    let total: u64 = exchangers.iter().map(|one| one.number).sum();
    gateway.await_status("all is delivered", Duration::from_secs(30), |status| sum(status, "queued") == 0);
    std::thread::sleep(Duration::from_millis(300));
    // The link may repeat itself: what has the same sequence of the stream is the same event.
    let mut events: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for event in collector.arrived().iter().map(|arrived| arrived.event()) {
        let what =
            (event["data"]["client"].as_str().expect("text").to_owned(), event["data"]["n"].as_u64().expect("n"));
        events.insert(event["sequence"].as_str().expect("a sequence").to_owned(), what);
    }
    let mut times: HashMap<(String, u64), usize> = HashMap::new();
    for what in events.values() {
        *times.entry(what.clone()).or_default() += 1;
    }
    for one in &exchangers {
        for number in 0..one.number {
            assert_eq!(times.get(&(one.name.clone(), number)), Some(&1), "{} {number}", one.name);
        }
    }
    assert_eq!(times.len() as u64, total);
    println!("{rounds} kills, {total} exchanges, each one event");
}

#[test]
fn qos_2_is_exactly_once_through_kills_at_every_step() {
    let rounds = std::env::var("FOREBAY_ROUNDS").ok().and_then(|text| text.parse().ok());
    qos_2_through_kills(rounds.unwrap_or(100));
}

#[test]
fn a_qos_2_id_that_its_client_forgot_begins_anew() {
    let mut gateway = gateway("forgot", "critical", "");
    let hello = persistent("forgetful", true, false);
    let (mut client, _) = Client::connect(gateway.address, &hello);
    client.send(&publish(true, 2, 7, "notes/m", &[], b"{\"n\":1}"));
    assert_eq!(client.receive(), Some(vec![0x50, 0, 7]));
    gateway.kill();
    gateway.run();
    // DUP = 0: another message, under an id that is still held.
    let (mut client, connack) = Client::connect(gateway.address, &hello);
    assert!(is_present(&connack));
    client.send(&publish(true, 2, 7, "notes/m", &[], b"{\"n\":2}"));
    assert_eq!(client.receive(), Some(vec![0x50, 0, 7]));
    // Once more on the same connection is a repeat, marked as one or not.
    client.send(&publish(true, 2, 7, "notes/m", &[], b"{\"n\":2}"));
    assert_eq!(client.receive(), Some(vec![0x50, 0, 7]));
    client.send(&packet(0x62, &[0, 7]));
    assert_eq!(client.receive(), Some(vec![0x70, 0, 7]));
    gateway.await_status("two events", Duration::from_secs(5), |status| accepted(status) == 2);
}

#[test]
fn a_redelivery_that_was_not_answered_is_no_second_event() {
    // The bulk lane commits at most every quarter of a second: the second publish has to wait.
    let gateway = gateway("redelivery", "bulk", "");
    for is_v5 in [true, false] {
        let before = accepted(&gateway.status());
        let hello = Hello { is_v5, client: "again", ..Hello::default() };
        let (mut client, _) = Client::connect(gateway.address, &hello);
        client.publish(is_v5, 1, "notes/m", b"{\"n\":1}");
        let second = publish(is_v5, 1, 2, "notes/m", &[], b"{\"n\":2}");
        client.send(&second);
        std::thread::sleep(Duration::from_millis(20));
        client.die();
        let (mut client, _) = Client::connect(gateway.address, &hello);
        let mut again = second.clone();
        again[0] |= 8;
        client.send(&again);
        let answer = client.receive().expect("an answer");
        assert_eq!((answer[0], answer[2]), (0x40, 2));
        // Another payload under the same id, and the same one not marked as a repeat, are new.
        let mut other = publish(is_v5, 1, 2, "notes/m", &[], b"{\"n\":3}");
        other[0] |= 8;
        client.send(&other);
        client.send(&second);
        client.send(&again);
        for _ in 0..3 {
            assert_eq!(client.receive().expect("an answer")[0], 0x40);
        }
        let status = gateway.status();
        assert_eq!(accepted(&status) - before, 5, "in doubt it is a new event: {status:#}");
    }
    assert_eq!(gateway.status()["sources"][0]["redelivered"], 2);
}

#[test]
fn whoever_takes_over_gets_what_the_other_was_promised() {
    let gateway = gateway("takeover", "bulk", "");
    let hello = Hello { client: "twice", ..Hello::default() };
    let (mut first, _) = Client::connect(gateway.address, &hello);
    first.publish(true, 1, "notes/m", b"{\"n\":1}");
    let publish = publish(true, 1, 2, "notes/m", &[], b"{\"n\":2}");
    first.send(&publish);
    std::thread::sleep(Duration::from_millis(20));
    let (mut second, _) = Client::connect(gateway.address, &hello);
    assert_eq!(first.disconnect_code(), 0x8E);
    let mut again = publish;
    again[0] |= 8;
    second.send(&again);
    assert_eq!(second.receive().expect("an answer")[0], 0x40);
    let status = gateway.status();
    assert_eq!((accepted(&status), &status["sources"][0]["redelivered"]), (2, &1.into()), "{status:#}");
}

#[test]
fn subscribers_see_the_plant_with_the_wan_down_and_the_last_values_after_a_kill() {
    let dead = "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:1\"\n";
    let mut gateway = Gateway::start("board", dead);
    let (mut board, _) = Client::connect(gateway.address, &Hello { client: "board", ..Hello::default() });
    board.send(&subscribe(true, 1, &[], &[(EVENTS, 1)]));
    assert_eq!(board.receive().expect("SUBACK")[0], 0x90);
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=5u16 {
        for machine in 1..=3 {
            device.publish(
                true,
                number,
                &format!("plant/line1/m{machine}/state"),
                state(machine * 100 + usize::from(number)).as_bytes(),
            );
        }
    }
    let seen = collect(&mut board, true, 15);
    assert!(seen.iter().all(|delivery| !delivery.retain && delivery.qos == 1));
    let of_second: Vec<_> = seen.iter().filter(|one| one.topic.ends_with("/m2")).map(number).collect();
    assert_eq!(of_second, [201, 202, 203, 204, 205], "in order");
    gateway.kill();
    gateway.run();
    let (mut late, _) = Client::connect(gateway.address, &Hello { client: "late", ..Hello::default() });
    // The last values follow the journal: they may be there a moment after the start.
    let start = Instant::now();
    loop {
        late.send(&subscribe(true, 1, &[], &[(EVENTS, 1)]));
        let mut last = BTreeMap::new();
        while let Heard::Packet(packet) = late.hear(Duration::from_millis(200)) {
            if packet[0] >> 4 == 3 {
                let delivery = Delivery::read(true, &packet);
                late.send(&[0x40, 2, delivery.id.to_be_bytes()[0], delivery.id.to_be_bytes()[1]]);
                if delivery.retain {
                    last.insert(delivery.topic.clone(), number(&delivery));
                }
            }
        }
        if last.values().copied().eq([105, 205, 305]) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{last:?}");
    }
}

#[test]
fn a_sleeping_subscriber_is_told_in_order_what_it_missed_also_after_a_kill() {
    let mut gateway = Gateway::start("asleep", "");
    for is_v5 in [true, false] {
        let name = if is_v5 { "sleeper-5" } else { "sleeper-3" };
        let hello = persistent(name, is_v5, false);
        let (mut sleeper, connack) = Client::connect(gateway.address, &hello);
        assert!(!is_present(&connack));
        sleeper.send(&subscribe(is_v5, 1, &[], &[(EVENTS, 1)]));
        assert_eq!(sleeper.receive().expect("SUBACK")[0], 0x90);
        sleeper.die();
        let base = if is_v5 { 1000 } else { 2000 };
        let (mut device, _) = Client::connect(gateway.address, &Hello::default());
        for number in 1..=50u16 {
            device.publish(true, number, STATE, state(base + usize::from(number)).as_bytes());
        }
        gateway.kill();
        gateway.run();
        let (mut sleeper, connack) = Client::connect(gateway.address, &hello);
        assert!(is_present(&connack));
        let fresh = |found: Vec<Delivery>| -> Vec<u64> { found.iter().filter(|one| !one.retain).map(number).collect() };
        // Twenty of them, then it dies without having acknowledged the last five.
        let mut got = Vec::new();
        while got.len() < 20 {
            let delivery = Delivery::read(is_v5, &sleeper.receive().expect("a delivery"));
            if delivery.retain {
                continue;
            }
            if got.len() < 15 {
                sleeper.send(&[0x40, 2, delivery.id.to_be_bytes()[0], delivery.id.to_be_bytes()[1]]);
            }
            got.push(number(&delivery));
        }
        let from = base as u64;
        assert_eq!(got, (from + 1..=from + 20).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(100));
        sleeper.die();
        let (mut sleeper, connack) = Client::connect(gateway.address, &hello);
        assert!(is_present(&connack));
        let again = collect(&mut sleeper, is_v5, 35);
        assert!(again.iter().take(5).all(|delivery| delivery.dup), "those in flight come again, marked");
        assert_eq!(fresh(again), (from + 16..=from + 50).collect::<Vec<_>>());
        assert_eq!(sleeper.hear(Duration::from_millis(300)), Heard::Nothing);
    }
}

/// Clients of MQTT 3.1.1 subscribe again whenever they connect, often in the same moment.
#[test]
fn a_sleeper_that_subscribes_again_is_told_what_it_missed_once_and_in_order() {
    let gateway = Gateway::start("again", "");
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    for is_v5 in [true, false] {
        let name = if is_v5 { "sleeper-5" } else { "sleeper-3" };
        let hello = persistent(name, is_v5, false);
        let subscribe = subscribe(is_v5, 1, &[], &[(EVENTS, 1)]);
        for round in 0..20 {
            // The first time there is no subscription yet.
            let mut sleeper = Client::dial(gateway.address);
            sleeper.send(&[hello.bytes(), subscribe.clone()].concat());
            let missed = if round == 0 { 0 } else { 10 };
            let base = 1000 * round + if is_v5 { 100 } else { 200 };
            let found = collect(&mut sleeper, is_v5, missed);
            let numbers: Vec<u64> = found.iter().map(number).collect();
            let wanted = (1..=missed as u64).map(|number| base as u64 - 1000 + number);
            assert_eq!(numbers, wanted.collect::<Vec<_>>(), "MQTT 5: {is_v5}, round {round}");
            assert!(found.iter().all(|delivery| !delivery.retain), "the events themselves");
            // The newest of them is the last value too. The first time there may be one from before.
            while let Heard::Packet(packet) = sleeper.hear(Duration::from_millis(50)) {
                assert_eq!(round, 0, "MQTT 5: {is_v5}: {packet:?}");
            }
            sleeper.die();
            for number in 1..=10u16 {
                device.publish(true, number, STATE, state(base + usize::from(number)).as_bytes());
            }
        }
    }
}

#[test]
fn what_a_sleeper_is_owed_is_bounded_and_what_is_cut_is_counted() {
    let told = |limit: &str| {
        let mut gateway = Gateway::prepare("owed", "");
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        std::fs::write(gateway.config(), format!("{config}{limit}\n")).expect("written");
        gateway.run();
        let hello = persistent("sleeper", true, false);
        let (mut sleeper, _) = Client::connect(gateway.address, &hello);
        sleeper.send(&subscribe(true, 1, &[], &[(EVENTS, 1)]));
        assert_eq!(sleeper.receive().expect("SUBACK")[0], 0x90);
        sleeper.die();
        let (mut device, _) = Client::connect(gateway.address, &Hello::default());
        for number in 1..=500u16 {
            device.publish(true, number, STATE, state(number.into()).as_bytes());
        }
        let (mut sleeper, _) = Client::connect(gateway.address, &hello);
        let mut numbers = Vec::new();
        while numbers.last() != Some(&500) {
            numbers.extend(collect(&mut sleeper, true, 1).iter().map(number));
        }
        let cut = gateway.status()["sources"][0]["cut"].as_u64().expect("a number");
        assert_eq!(numbers, (cut + 1..=500).collect::<Vec<_>>(), "the newest, and the others are counted");
        cut
    };
    assert_eq!(told("backlog_events_max = 100"), 400);
    // Each event has a commit of its own here, of one page and more.
    let cut = told("backlog_bytes_max = \"1MiB\"");
    assert!((200..450).contains(&cut), "{cut}");
    assert_eq!(told("backlog_bytes_max = \"1GiB\""), 0);
}

#[test]
fn a_subscriber_that_does_not_keep_up_is_cut_off_with_a_reason_and_harms_nobody() {
    let gateway = Gateway::prepare("slow", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}backlog_events_max = 500\n")).expect("written");
    let mut gateway = gateway;
    gateway.run();
    let (mut slow, _) = Client::connect(gateway.address, &Hello { client: "slow", ..Hello::default() });
    slow.send(&subscribe(true, 1, &[], &[(EVENTS, 1)]));
    assert_eq!(slow.receive().expect("SUBACK")[0], 0x90);
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=3000u16 {
        device.publish(true, number, STATE, state(number.into()).as_bytes());
    }
    // It reads, but acknowledges nothing.
    let mut count = 0;
    let code = loop {
        let packet = slow.receive().expect("a packet");
        match packet[0] >> 4 {
            3 => count += 1,
            _ => break packet[1],
        }
    };
    assert_eq!((count, code), (256, 0x97), "in flight at most, then quota exceeded");
    device.publish(true, 3001, STATE, state(3001).as_bytes());
}

#[test]
fn a_group_hands_each_event_to_one_member_and_a_dead_one_s_to_the_others() {
    let gateway = Gateway::start("group", "");
    let join = |name: &'static str| {
        let (mut member, _) = Client::connect(gateway.address, &Hello { client: name, ..Hello::default() });
        member.send(&subscribe(true, 1, &[], &[(&format!("$share/boards/{EVENTS}"), 1)]));
        assert_eq!(member.receive(), Some(vec![0x90, 0, 1, 0, 1]));
        member
    };
    let (mut one, mut two) = (join("one"), join("two"));
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=100u16 {
        device.publish(true, number, STATE, state(number.into()).as_bytes());
    }
    // The first acknowledges nothing and dies; the second gets everything else, and then that too.
    let mut held = 0;
    while let Heard::Packet(_) = one.hear(Duration::from_millis(500)) {
        held += 1;
    }
    one.die();
    let mut numbers: Vec<u64> = collect(&mut two, true, 100).iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=100).collect::<Vec<_>>(), "{held} were with the other");
    assert!(held > 0, "both were served");
}

#[test]
fn a_gateway_that_stops_or_dies_speaks_no_wills() {
    let mut gateway = gateway("wills", "critical", "");
    let will = || crate::common::client::Will { topic: "notes/m", payload: b"{\"dead\":true}", ..Default::default() };
    for (round, is_killed) in [true, false].into_iter().enumerate() {
        let name = format!("mortal-{round}");
        let (client, _) =
            Client::connect(gateway.address, &Hello { client: &name, will: Some(will()), ..Hello::default() });
        if is_killed {
            gateway.kill();
        } else {
            gateway.stop();
        }
        gateway.run();
        drop(client);
    }
    assert_eq!(accepted(&gateway.status()), 0);
    // But of a device that dies, one.
    let (client, _) = Client::connect(gateway.address, &Hello { will: Some(will()), ..Hello::default() });
    client.die();
    gateway.await_status("its will is an event", Duration::from_secs(5), |status| accepted(status) == 1);
}

#[test]
fn a_client_id_and_its_session_belong_to_the_name_that_proved_itself() {
    let gateway = Gateway::prepare("owners", "");
    let passwords = gateway.folder.join("passwd");
    for user in ["press", "robot"] {
        forebay::sources::mqtt::put_user(&passwords, user, b"long enough").expect("written");
    }
    let acl = r#"passwords = "passwd"
default_rights = false
[[source.mqtt.acl]]
who = "press"
publish = ["plant/+/{user}/#"]
subscribe = ["test/plant/machine.state/v1/{user}"]
"#;
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}{acl}")).expect("written");
    let mut gateway = gateway;
    gateway.run();
    let as_user =
        |user: &'static str| Hello { login: Some((user, "long enough")), ..persistent("shared", true, false) };
    let (mut press, connack) = Client::connect(gateway.address, &as_user("press"));
    assert_eq!(connack[2], 0);
    press.publish(true, 1, "plant/line1/press/state", state(1).as_bytes());
    press.send(&publish(true, 1, 2, STATE, &[], state(2).as_bytes()));
    assert_eq!(press.receive(), Some(vec![0x40, 0, 2, 0x87]), "not authorised");
    press.send(&subscribe(true, 3, &[], &[("test/plant/machine.state/v1/press", 1), ("test/#", 1), ("#", 0)]));
    assert_eq!(press.receive(), Some(vec![0x90, 0, 3, 0, 1, 0x87, 0x87]));
    // The same client id of another name is another client, while this one is connected and when it is not.
    let (robot, connack) = Client::connect(gateway.address, &as_user("robot"));
    assert_eq!((connack[1], connack[2]), (0, 0), "a session of its own");
    press.send(&publish(true, 1, 4, "plant/line1/press/state", &[], state(3).as_bytes()));
    while press.receive().expect("still connected")[0] != 0x40 {}
    press.die();
    robot.die();
    for user in ["press", "robot"] {
        let (client, connack) = Client::connect(gateway.address, &as_user(user));
        assert_eq!((connack[1], connack[2]), (1, 0), "{user} finds its own");
        client.die();
    }
    // Nobody else has rules: nobody else may publish anything. 3.1.1 has no reason codes: the event is kept as a dead letter.
    let robot = Hello { is_v5: false, client: "other", login: Some(("robot", "long enough")), ..Hello::default() };
    let (mut robot, _) = Client::connect(gateway.address, &robot);
    robot.publish(false, 1, "plant/line1/robot/state", state(3).as_bytes());
    let status = gateway.status();
    assert_eq!((accepted(&status), &status["dead"]["total"]), (2, &1.into()), "{status:#}");
    assert!(gateway.log().contains("no rule (acl) lets") && !gateway.log().contains("running"), "{}", gateway.log());
}

#[test]
fn the_picture_of_each_device_says_what_an_engineer_asks() {
    let contract = crate::common::gateway::CONTRACT.replace("key = ", "time = \"/ts\"\nkey = ");
    let mut gateway = Gateway::prepare("devices", "");
    std::fs::write(gateway.folder.join("contracts/state.toml"), contract).expect("written");
    gateway.run();
    let (mut odd, _) = Client::connect(gateway.address, &Hello { client: "odd", ..Hello::default() });
    let now = forebay::event::Timestamp::from(std::time::SystemTime::now());
    let ahead = forebay::event::Timestamp(now.0 + 3_600_000_000);
    let good = format!(r#"{{"msg_id":"1","state":"idle","ts":"{ahead}"}}"#);
    odd.publish(true, 1, STATE, good.as_bytes());
    odd.publish(true, 2, STATE, good.as_bytes());
    odd.publish(true, 3, STATE, b"nonsense");
    odd.publish(true, 4, "somewhere", b"{}");
    odd.send(&packet(0x82, &[&[0, 9, 0][..], &text("$share/x"), &[1]].concat()));
    odd.receive();
    let (gone, _) = Client::connect(gateway.address, &Hello { is_v5: false, client: "gone", ..Hello::default() });
    gone.die();
    let start = Instant::now();
    let devices = loop {
        let output = gateway.command(&["devices", "--json", "CONFIG"]);
        let devices: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        if devices[0]["connected_since"].is_null() && devices[1]["duplicates"] == 1 {
            break devices;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{devices:#}");
    };
    assert_eq!((&devices[0]["client"], &devices[0]["version"]), (&"gone".into(), &"3.1.1".into()));
    let odd = &devices[1];
    assert_eq!((&odd["client"], &odd["received"], &odd["dead"]), (&"odd".into(), &4.into(), &2.into()), "{odd:#}");
    assert!(odd["connected_since"].is_string() && odd["last_event"].is_string() && odd["rate"].as_f64() > Some(0.0));
    assert!((odd["clock_offset"].as_f64().expect("an offset") - 3600.0).abs() < 60.0, "{odd:#}");
    let table = gateway.command(&["devices", "CONFIG"]);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(
        table.contains("odd") && table.lines().any(|line| line.contains("+1h 0m") || line.contains("+59m 59s")),
        "{table}"
    );
}
