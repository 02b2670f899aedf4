//! Last values and events together: of each topic a subscriber gets every event once, oldest first, and ends with the newest.

use crate::common::client::{Client, Delivery, Heard, Hello, answer, subscribe, unsubscribe};
use crate::common::gateway::{CONTRACT, Gateway, payload};
use crate::common::random::Random;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The time without a delivery that shows that none comes.
const SILENCE: Duration = Duration::from_millis(300);
/// The events of every machine.
const ALL: &str = "test/plant/machine.state/v1/+";

/// The topic of a machine's events, as subscribers see it.
fn events_of(machine: &str) -> String {
    format!("test/plant/machine.state/v1/{machine}")
}

fn device(gateway: &Gateway) -> Client {
    Client::connect(gateway.address, &Hello { client: "device", ..Hello::default() }).0
}

/// Publishes an event of a machine, and returns once it is on the disk.
fn event(device: &mut Client, machine: &str, number: usize) {
    let id = (number % 60_000) as u16 + 1;
    device.publish(true, id, &format!("plant/line1/{machine}/state"), payload(1, number).as_bytes());
}

/// A client of MQTT 5 with a session of an hour that takes `window` publishes at once.
fn keeper(client: &str, window: u8) -> Hello<'_> {
    let properties = vec![0x11, 0, 0, 0x0E, 0x10, 0x21, 0, window];
    Hello { client, is_clean: false, properties, ..Hello::default() }
}

/// Subscribes at QoS 1 with these retain options, and waits for SUBACK.
fn subscribe_to(client: &mut Client, filter: &str, options: u8) {
    client.send(&subscribe(true, 9, &[], &[(filter, 1 | options)]));
    assert_eq!(client.receive(), Some(vec![0x90, 0, 9, 0, 1]), "{filter}");
}

/// The next packet, which is a PUBLISH.
fn unanswered(client: &mut Client) -> Delivery {
    Delivery::read(true, &client.receive().expect("a delivery"))
}

/// A delivery: machine, number, and whether it is a last value.
fn said(delivery: &Delivery) -> (String, u64, bool) {
    let machine = delivery.topic.rsplit('/').next().expect("a level").to_owned();
    let event: serde_json::Value = serde_json::from_slice(&delivery.payload).expect("an event");
    (machine, event["data"]["seq"].as_u64().expect("a number"), delivery.retain)
}

/// The next deliveries, which are acknowledged, are these, and nothing comes behind them.
fn assert_told(client: &mut Client, expected: &[(&str, u64, bool)]) {
    let mut found = Vec::new();
    for _ in expected {
        let delivery = unanswered(client);
        client.send(&answer(0x40, delivery.id));
        found.push(said(&delivery));
    }
    let expected: Vec<_> =
        expected.iter().map(|(machine, number, is_last)| ((*machine).to_owned(), *number, *is_last)).collect();
    assert_eq!(found, expected);
    assert_eq!(client.hear(SILENCE), Heard::Nothing, "behind {expected:?}");
}

/// A client of window 1 that has subscribed to machine `a` and holds its first event: nothing else is sent to it until it
/// acknowledges that one.
fn held_back(gateway: &Gateway, device: &mut Client, name: &str) -> (Client, u16) {
    let (mut client, _) = Client::connect(gateway.address, &keeper(name, 1));
    subscribe_to(&mut client, &events_of("a"), 0x20);
    event(device, "a", 1);
    let first = unanswered(&mut client);
    assert_eq!(said(&first), ("a".into(), 1, false));
    (client, first.id)
}

/// A client that returns and subscribes to everything in the same moment: nothing is sent before that.
fn returned(gateway: &Gateway, hello: &Hello<'_>) -> Client {
    let mut client = Client::dial(gateway.address);
    client.send(&[hello.bytes(), subscribe(true, 9, &[], &[(ALL, 1)])].concat());
    let connack = client.receive().expect("CONNACK");
    assert_eq!(connack[..3], [0x20, 1, 0], "its session is there");
    assert_eq!(client.receive(), Some(vec![0x90, 0, 9, 0, 1]));
    client
}

#[test]
fn an_event_behind_a_subscribe_is_sent_once_and_in_order() {
    let gateway = Gateway::start("last-once", "");
    let mut device = device(&gateway);
    event(&mut device, "c", 1);
    let (mut client, first) = held_back(&gateway, &mut device, "holder");
    event(&mut device, "b", 1);
    subscribe_to(&mut client, ALL, 0);
    event(&mut device, "b", 2);
    event(&mut device, "d", 1);
    client.send(&answer(0x40, first));
    // Last values behind the client's feed come at once; the feed sends the rest itself.
    let wanted = [("a", 1, true), ("c", 1, true), ("b", 1, false), ("b", 2, false), ("d", 1, false)];
    assert_told(&mut client, &wanted);
}

#[test]
fn a_repeated_subscribe_waits_for_no_backlog_and_repeats_no_event_of_it() {
    let gateway = Gateway::start("last-repeated", "");
    let mut device = device(&gateway);
    let (mut client, first) = held_back(&gateway, &mut device, "holder");
    subscribe_to(&mut client, &events_of("b"), 0x20);
    event(&mut device, "a", 2);
    event(&mut device, "b", 1);
    subscribe_to(&mut client, &events_of("a"), 0);
    subscribe_to(&mut client, &events_of("b"), 0);
    event(&mut device, "a", 3);
    client.send(&answer(0x40, first));
    assert_told(&mut client, &[("a", 2, false), ("b", 1, false), ("a", 3, false)]);
    // The feed is at its end: each last value is behind it.
    subscribe_to(&mut client, ALL, 0);
    assert_told(&mut client, &[("a", 3, true), ("b", 1, true)]);
}

/// The event and the SUBSCRIBE race, as they do in a plant.
#[test]
fn a_subscribe_beside_a_stream_of_events_is_told_each_once() {
    let gateway = Gateway::start("last-race", "");
    let address = gateway.address;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_over = std::sync::Arc::clone(&stop);
    let mut device = device(&gateway);
    let stream = std::thread::spawn(move || {
        let mut number = 0;
        while !is_over.load(std::sync::atomic::Ordering::Acquire) {
            number += 1;
            event(&mut device, "m", number);
        }
    });
    for round in 0..100 {
        let (mut client, _) = Client::connect(address, &Hello { client: "board", ..Hello::default() });
        client.send(&subscribe(true, 9, &[], &[(ALL, (round % 2) as u8)]));
        assert_eq!(client.receive().expect("SUBACK")[0], 0x90);
        let mut before = 0;
        for _ in 0..20 {
            let delivery = unanswered(&mut client);
            if delivery.qos == 1 {
                client.send(&answer(0x40, delivery.id));
            }
            let (_, number, is_last) = said(&delivery);
            assert!(before == 0 || number == before + 1, "{round}: {number} (last value: {is_last}) after {before}");
            before = number;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Release);
    stream.join().expect("a device");
}

/// Events that are too old are not sent from a backlog, but the last value has no age.
#[test]
fn a_last_value_that_the_backlog_leaves_out_for_its_age_is_told() {
    let mut gateway = Gateway::prepare("last-old", "");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}backlog_age_max = \"1s\"\n")).expect("written");
    gateway.run();
    let mut device = device(&gateway);
    let (mut sleeper, _) = Client::connect(gateway.address, &keeper("sleeper", 9));
    subscribe_to(&mut sleeper, ALL, 0x20);
    sleeper.die();
    event(&mut device, "a", 1);
    event(&mut device, "b", 1);
    event(&mut device, "b", 2);
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(1200));
    event(&mut device, "a", 2);
    assert!(start.elapsed() > Duration::from_secs(1));
    let mut sleeper = returned(&gateway, &keeper("sleeper", 9));
    assert_told(&mut sleeper, &[("b", 2, true), ("a", 2, false)]);
}

/// Retention goes on while a client does not take what it is sent: an event that was left to its feed may be gone by then.
#[test]
fn a_last_value_whose_event_is_gone_from_the_journal_is_told() {
    let mut gateway = Gateway::prepare("last-gone", "\n[lane.bulk]\nbudget = \"8MiB\"\nlinger = \"0s\"\n");
    let contract = CONTRACT.replace("\"critical\"", "\"bulk\"");
    std::fs::write(gateway.folder.join("contracts/state.toml"), contract).expect("written");
    gateway.run();
    let mut device = device(&gateway);
    event(&mut device, "e", 1);
    let (mut client, first) = held_back(&gateway, &mut device, "holder");
    for machine in ["b", "c", "d"] {
        event(&mut device, machine, 1);
    }
    event(&mut device, "b", 2);
    for machine in ["b", "c", "e"] {
        subscribe_to(&mut client, &events_of(machine), 0);
    }
    // This subscription asks for no last values.
    subscribe_to(&mut client, &events_of("d"), 0x20);
    // 24 MB that no compression makes small.
    let mut random = Random::with_seed(1);
    for number in 0..500 {
        let text = random.text(48 << 10);
        let payload = format!(r#"{{"msg_id":"x{number}","seq":{number},"note":"{text}"}}"#);
        device.publish(true, 1, "plant/line1/x/state", payload.as_bytes());
    }
    event(&mut device, "c", 2);
    client.send(&answer(0x40, first));
    assert_told(&mut client, &[("e", 1, true), ("b", 2, true), ("c", 2, false)]);
}

const MACHINES: [&str; 4] = ["m0", "m1", "m2", "m3"];

/// A persistent subscriber, and what it has to be told by what it has heard and asked for.
struct Board {
    name: String,
    window: u8,
    client: Option<Client>,
    filters: Vec<String>,
    /// By machine the newest number that it has heard of.
    heard: BTreeMap<String, u64>,
    /// By machine how many last values it may be told: one for each time that it asked, or was told anew after a return.
    asked: BTreeMap<String, u64>,
    /// By machine the number that it has to hear of in the end.
    owed: BTreeMap<String, u64>,
    unanswered: Vec<u16>,
}

fn is_of(filter: &str, machine: &str) -> bool {
    filter == ALL || filter.ends_with(machine)
}

impl Board {
    fn new(index: u8) -> Self {
        Self {
            name: format!("board-{index}"),
            window: [1, 2, 5, 40][usize::from(index)],
            client: None,
            filters: Vec::new(),
            heard: BTreeMap::new(),
            asked: BTreeMap::new(),
            owed: BTreeMap::new(),
            unanswered: Vec::new(),
        }
    }

    /// Comes back; `again` says whether it subscribes once more in the same moment.
    fn come(&mut self, gateway: &Gateway, again: Option<&BTreeMap<&str, u64>>) {
        let mut client = Client::dial(gateway.address);
        let mut bytes = keeper(&self.name, self.window).bytes();
        for filter in self.filters.clone() {
            self.ask(&filter);
            if let Some(newest) = again {
                bytes.extend(subscribe(true, 9, &[], &[(&filter, 1)]));
                self.ask(&filter);
                self.owe(&filter, newest);
            }
        }
        client.send(&bytes);
        assert_eq!(client.receive().expect("CONNACK")[0], 0x20);
        self.client = Some(client);
        self.unanswered.clear();
        if again.is_some() {
            (0..self.filters.len()).for_each(|_| self.await_answer(0x90));
        }
    }

    fn ask(&mut self, filter: &str) {
        for machine in MACHINES.iter().filter(|machine| is_of(filter, machine)) {
            *self.asked.entry((*machine).to_owned()).or_default() += 1;
        }
    }

    fn owe(&mut self, filter: &str, newest: &BTreeMap<&str, u64>) {
        for (machine, number) in newest.iter().filter(|(machine, _)| is_of(filter, machine)) {
            self.owed.insert((*machine).to_owned(), *number);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.client.as_mut().expect("connected").send(bytes);
    }

    fn subscribe(&mut self, filter: &str, handling: u8, newest: &BTreeMap<&str, u64>) {
        let is_new = !self.filters.iter().any(|known| known == filter);
        if handling == 0 || (handling == 1 && is_new) {
            self.ask(filter);
            self.owe(filter, newest);
        }
        if is_new {
            self.filters.push(filter.to_owned());
        }
        self.send(&subscribe(true, 9, &[], &[(filter, 1 | handling << 4)]));
        self.await_answer(0x90);
    }

    fn unsubscribe(&mut self, filter: &str) {
        self.filters.retain(|known| known != filter);
        self.owed.retain(|machine, _| !is_of(filter, machine));
        self.send(&unsubscribe(true, 9, &[filter]));
        self.await_answer(0xB0);
    }

    fn await_answer(&mut self, first: u8) {
        loop {
            let packet = self.client.as_mut().expect("connected").receive().expect("a packet");
            if packet[0] == first {
                return;
            }
            self.hear(&packet);
        }
    }

    /// Checks a delivery.
    fn hear(&mut self, packet: &[u8]) {
        let delivery = Delivery::read(true, packet);
        self.unanswered.push(delivery.id);
        let (machine, number, is_last) = said(&delivery);
        println!("{} hears {number} of {machine}, last value: {is_last}, again: {}", self.name, delivery.dup);
        let heard = self.heard.entry(machine.clone()).or_default();
        let about = format!("{}: {number} of {machine} after {heard}", self.name);
        if delivery.dup {
            *heard = number.max(*heard);
            return;
        }
        if is_last {
            assert!(number >= *heard, "{about}: the last value is older");
            let asked = self.asked.entry(machine).or_default();
            assert!(*asked > 0, "{about}: a last value that nobody asked for");
            *asked -= 1;
        } else {
            assert!(number > *heard, "{about}: an event comes twice, or late");
        }
        *heard = number;
    }

    /// Hears what comes, and acknowledges it.
    fn listen(&mut self, patience: Duration) {
        loop {
            let answers: Vec<u8> = self.unanswered.drain(..).flat_map(|id| answer(0x40, id)).collect();
            self.send(&answers);
            match self.client.as_mut().expect("connected").hear(patience) {
                Heard::Packet(packet) => self.hear(&packet),
                Heard::Nothing => return,
                Heard::End => panic!("{} is cut off", self.name),
            }
        }
    }

    fn is_content(&self) -> bool {
        self.owed.iter().all(|(machine, number)| self.heard.get(machine) >= Some(number))
    }
}

/// A plant with four machines and four boards, and a seed that says who does what next.
struct Plant {
    gateway: Gateway,
    device: Client,
    boards: Vec<Board>,
    newest: BTreeMap<&'static str, u64>,
    random: Random,
}

impl Plant {
    fn publish(&mut self) {
        let machine = MACHINES[self.random.below(4) as usize];
        let number = self.newest.get(machine).copied().unwrap_or_default() + 1;
        let payload = format!(r#"{{"msg_id":"{machine}-{number}","seq":{number}}}"#);
        self.device.publish(true, 1, &format!("plant/line1/{machine}/state"), payload.as_bytes());
        println!("{machine} says {number}");
        self.newest.insert(machine, number);
        for board in &mut self.boards {
            if board.filters.iter().any(|filter| is_of(filter, machine)) {
                board.owed.insert(machine.to_owned(), number);
            }
        }
    }

    fn come(&mut self, index: usize) {
        let again = (self.random.below(2) == 0).then_some(&self.newest);
        println!("{index} comes, and subscribes again: {}", again.is_some());
        self.boards[index].come(&self.gateway, again);
    }

    fn restart(&mut self) {
        if self.random.below(2) == 0 {
            println!("stop");
            self.gateway.stop();
        } else {
            println!("kill");
            self.gateway.kill();
            // Deliveries to a board are noted at intervals and when it leaves: later ones come once more.
            self.boards.iter_mut().for_each(|board| board.heard.clear());
        }
        self.gateway.run();
        self.device = device(&self.gateway);
        self.boards.iter_mut().for_each(|board| board.client = None);
    }

    fn step(&mut self) {
        let index = self.random.below(4) as usize;
        let action = self.random.below(100);
        if action < 40 {
            return self.publish();
        }
        if action >= 99 {
            return self.restart();
        }
        if self.boards[index].client.is_none() {
            return self.come(index);
        }
        let filter = match self.random.below(6) as usize {
            machine @ 0..4 => events_of(MACHINES[machine]),
            _ => ALL.to_owned(),
        };
        let board = &mut self.boards[index];
        println!("{index} does {action} with {filter}");
        match action {
            40..65 => board.subscribe(&filter, self.random.below(3) as u8, &self.newest),
            65..75 => board.unsubscribe(&filter),
            75..90 => board.listen(Duration::from_millis(10)),
            _ => board.client.take().expect("connected").die(),
        }
    }
}

#[test]
fn whatever_a_subscriber_does_it_hears_of_each_event_once_and_ends_with_the_newest() {
    let gateway = Gateway::start("last-chance", "");
    let device = device(&gateway);
    let boards = (0..4).map(Board::new).collect();
    let mut plant = Plant { gateway, device, boards, newest: BTreeMap::new(), random: Random::seeded() };
    let rounds = std::env::var("FOREBAY_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    for _ in 0..rounds {
        plant.step();
    }
    for index in 0..4 {
        if plant.boards[index].client.is_none() {
            plant.come(index);
        }
        let board = &mut plant.boards[index];
        let start = Instant::now();
        board.listen(SILENCE);
        while !board.is_content() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{}: {:?}, not {:?}",
                board.name,
                board.heard,
                board.owed
            );
            board.listen(SILENCE);
        }
    }
}
