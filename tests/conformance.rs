//! Every normative statement of MQTT 3.1.1 and 5, with the check that shows it or the reason why it
//! is out of scope: `conformance/mqtt-3.1.1.md` and `conformance/mqtt-5.0.md` are the tables, the
//! modules below hold the checks that the tables name.
//!
//! A check is a function that talks to a gateway with a client of its own and panics where the
//! statement does not hold. Those of one module and one version share a gateway and run in turn.

mod awaits;
mod connect;
mod publish;
mod session;
mod subscribe;
mod will;
mod wire;

use crate::common::client::{Client, Delivery, Heard, Hello, answer, properties, publish, subscribe};
use crate::common::gateway::{Gateway, accepted};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Which standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V3,
    V5,
}

use Version::{V3, V5};

type Check = (&'static str, fn(&Bed));

/// A list of checks with their names as the tables write them.
macro_rules! checks {
    ($module:ident: $($name:ident),+ $(,)?) => {
        /// The checks of this module.
        pub const CHECKS: &[(&str, fn(&super::Bed))] =
            &[$((concat!(stringify!($module), "::", stringify!($name)), $name)),+];
    };
}
use checks;

const MODULES: [(&str, &[Check]); 6] = [
    ("wire", wire::CHECKS),
    ("connect", connect::CHECKS),
    ("publish", publish::CHECKS),
    ("subscribe", subscribe::CHECKS),
    ("session", session::CHECKS),
    ("will", will::CHECKS),
];

/// A row of a table.
struct Row<'t> {
    /// Without "MQTT-".
    number: &'t str,
    checks: Vec<&'t str>,
    reason: &'t str,
}

impl Version {
    fn table(self) -> Vec<Row<'static>> {
        let text = match self {
            V3 => include_str!("conformance/mqtt-3.1.1.md"),
            V5 => include_str!("conformance/mqtt-5.0.md"),
        };
        let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
        rows.filter(|row| row.starts_with(|first: char| first.is_ascii_digit()))
            .map(|row| {
                let cells: Vec<_> = row.split(" | ").collect();
                let [number, says, answer] = cells[..] else { panic!("\"{row}\" has {} cells", cells.len()) };
                assert!(!says.trim().is_empty(), "{number} says nothing");
                let quoted = answer.split('`').skip(1).step_by(2);
                let checks = quoted.filter(|name| name.contains("::")).collect();
                Row { number, checks, reason: answer }
            })
            .collect()
    }
}

/// How many statements each section has: appendix B of the standards.
const SECTIONS_3: &str = "1.5.3:3 2.2.2:2 2.3.1:7 3.1.0:2 3.1.2:24 3.1.3:11 3.1.4:5 3.2.0:1 3.2.2:6 3.3.1:12 3.3.2:3 \
    3.3.4:1 3.3.5:2 3.6.1:1 3.8.1:1 3.8.3:4 3.8.4:6 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.12.4:1 3.14.1:1 3.14.4:3 \
    4.1.0:2 4.3.1:1 4.3.2:2 4.3.3:2 4.4.0:1 4.5.0:2 4.6.0:6 4.7.1:3 4.7.2:1 4.7.3:4 4.8.0:2 6.0.0:4 7.0.0:2 7.1.1:1 \
    7.1.2:1";
const SECTIONS_5: &str = "1.5.4:3 1.5.5:1 1.5.7:1 2.1.3:1 2.2.1:6 2.2.2:1 3.1.0:2 3.1.2:30 3.1.3:12 3.1.4:6 3.2.0:2 \
    3.2.2:22 3.3.1:13 3.3.2:20 3.3.4:10 3.4.2:3 3.5.2:3 3.6.1:1 3.6.2:3 3.7.2:3 3.8.1:1 3.8.3:5 3.8.4:8 3.9.2:2 3.9.3:2 \
    3.10.1:1 3.10.3:2 3.10.4:6 3.11.2:2 3.11.3:2 3.12.4:1 3.14.0:1 3.14.1:1 3.14.2:4 3.14.4:3 3.15.1:1 3.15.2:3 4.1.0:2 \
    4.2.0:1 4.3.1:1 4.3.2:5 4.3.3:13 4.4.0:2 4.5.0:2 4.6.0:6 4.7.0:1 4.7.1:2 4.7.2:1 4.7.3:4 4.8.2:6 4.9.0:3 4.12.0:7 \
    4.12.1:2 4.13.1:1 4.13.2:1 6.0.0:4";

#[test]
fn each_statement_of_both_standards_stands_once_and_has_its_check_or_a_reason() {
    let known: BTreeSet<&str> = MODULES.iter().flat_map(|(_, checks)| checks.iter().map(|(name, _)| *name)).collect();
    assert_eq!(known.len(), MODULES.iter().map(|(_, checks)| checks.len()).sum::<usize>(), "a check is listed twice");
    let mut used = BTreeSet::new();
    for (version, sections, total) in [(V3, SECTIONS_3, 141), (V5, SECTIONS_5, 251)] {
        let mut numbers = BTreeMap::new();
        for row in version.table() {
            *numbers.entry(row.number).or_insert(0) += 1;
            let has_reason = row.reason.split_once(": ").is_some_and(|(kind, why)| {
                ["client's duty", "no such feature", "implied", "deviates"].contains(&kind) && !why.trim().is_empty()
            });
            assert!(
                !row.checks.is_empty() || has_reason,
                "{version:?} {}: \"{}\" is no answer",
                row.number,
                row.reason
            );
            for check in &row.checks {
                assert!(known.contains(check), "{version:?} {}: there is no check {check}", row.number);
                used.insert(*check);
            }
        }
        let mut expected = BTreeSet::new();
        for section in sections.split_whitespace() {
            let (section, count) = section.split_once(':').expect("section:count");
            // 2.2.1-1 of MQTT 5 was withdrawn before the standard.
            let first = if version == V5 && section == "2.2.1" { 2 } else { 1 };
            expected
                .extend((first..=count.parse::<u32>().expect("a count")).map(|number| format!("{section}-{number}")));
        }
        assert_eq!(expected.len(), total, "{version:?}");
        let found: BTreeSet<_> = numbers.keys().map(|number| (*number).to_owned()).collect();
        assert_eq!(expected.difference(&found).collect::<Vec<_>>(), Vec::<&String>::new(), "{version:?}: missing");
        assert_eq!(found.difference(&expected).collect::<Vec<_>>(), Vec::<&String>::new(), "{version:?}: unknown");
        assert!(numbers.values().all(|count| *count == 1), "{version:?}: twice: {numbers:?}");
    }
    assert_eq!(known.difference(&used).collect::<Vec<_>>(), Vec::<&&str>::new(), "checks that no table names");
    for (_, check) in awaits::FEATURES.iter().chain(awaits::FAULTS) {
        assert!(used.contains(check), "awaits.rs names {check}, which does not exist");
    }
}

/// Runs the checks of a module that the table of a version names, all of them, and tells which failed.
fn run(version: Version, module: &str) {
    let table = version.table();
    let (_, checks) = MODULES.iter().find(|(name, _)| *name == module).expect("a module");
    let bed = Bed::new(version, module);
    let mut problems = Vec::new();
    for (name, check) in *checks {
        let statements: Vec<_> = table.iter().filter(|row| row.checks.contains(name)).map(|row| row.number).collect();
        if statements.is_empty() {
            continue;
        }
        eprintln!("-- {name} ({version:?} {})", statements.join(" "));
        let mut awaited = awaits::FEATURES.iter().chain(awaits::FAULTS);
        let is_awaited = awaited.any(|(versions, awaited)| awaited == name && versions.contains(&version));
        bed.key.set(name);
        bed.patience.set(if is_awaited { SILENCE } else { PATIENCE });
        let has_passed = catch_unwind(AssertUnwindSafe(|| check(&bed))).is_ok();
        match (has_passed, is_awaited) {
            (true, true) => problems.push(format!("{name} passes: take it out of awaits.rs")),
            (false, false) => problems.push(format!("{name} fails: MQTT-{}", statements.join(" MQTT-"))),
            _ => {}
        }
    }
    assert!(problems.is_empty(), "{version:?}:\n{}", problems.join("\n"));
}

macro_rules! chapters {
    ($($test:ident: $version:ident $module:literal),+ $(,)?) => {
        $(#[test] fn $test() { run($version, $module); })+

        #[test]
        fn all_checks_are_run() {
            let run: BTreeSet<_> = [$(($version, $module)),+].into();
            let all = MODULES.iter().flat_map(|(module, _)| [(V3, *module), (V5, *module)]);
            assert_eq!(run, all.collect());
        }
    };
}

chapters! {
    mqtt_3_1_1_wire: V3 "wire",
    mqtt_3_1_1_connect: V3 "connect",
    mqtt_3_1_1_publish: V3 "publish",
    mqtt_3_1_1_subscribe: V3 "subscribe",
    mqtt_3_1_1_session: V3 "session",
    mqtt_3_1_1_will: V3 "will",
    mqtt_5_wire: V5 "wire",
    mqtt_5_connect: V5 "connect",
    mqtt_5_publish: V5 "publish",
    mqtt_5_subscribe: V5 "subscribe",
    mqtt_5_session: V5 "session",
    mqtt_5_will: V5 "will",
}

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing has to come where nothing may come.
const SILENCE: Duration = Duration::from_millis(300);

/// Whatever a check publishes becomes one event under the check's own key.
const CONTRACT: &str = r#"
name = "conform.any"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "conform/{machine}/#" }
key = "{machine}"
accepts = "any"
"#;

/// A gateway and what a check needs to talk to it.
struct Bed {
    gateway: Gateway,
    is_v5: bool,
    /// Name of the check that runs.
    key: Cell<&'static str>,
    /// How long events are awaited.
    patience: Cell<Duration>,
}

/// What CONNACK says.
struct Connack {
    has_session: bool,
    code: u8,
    properties: Vec<(u8, Vec<u8>)>,
}

impl Connack {
    fn number(&self, property: u8) -> Option<u32> {
        let value = &self.properties.iter().find(|(id, _)| *id == property)?.1;
        Some(value.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }
}

impl Bed {
    fn new(version: Version, module: &str) -> Self {
        let mut gateway = Gateway::prepare(&format!("conform-{module}"), "");
        std::fs::write(gateway.folder.join("contracts/any.toml"), CONTRACT).expect("written");
        gateway.run();
        Self { gateway, is_v5: version == V5, key: Cell::new(""), patience: Cell::new(PATIENCE) }
    }

    /// A client id of the running check.
    fn client(&self, who: &str) -> String {
        format!("{}-{who}", self.key.get().replace("::", "-"))
    }

    /// The key of the running check's events.
    fn event_key(&self) -> String {
        self.key.get().replace("::", "-")
    }

    /// A topic that the running check publishes on.
    fn topic(&self) -> String {
        format!("conform/{}/x", self.event_key())
    }

    /// Where subscribers get the events of the running check.
    fn event_topic(&self) -> String {
        format!("test/plant/conform.any/v1/{}", self.event_key())
    }

    fn publish(&self, qos: u8, id: u16, payload: &str) -> Vec<u8> {
        publish(self.is_v5, qos, id, &self.topic(), &[], payload.as_bytes())
    }

    /// Properties of a CONNECT that keep a session, where they are needed.
    fn keep(&self) -> Vec<u8> {
        if self.is_v5 { vec![0x11, 0, 0, 0x0E, 0x10] } else { vec![] }
    }

    fn connect_with(&self, hello: &Hello<'_>) -> (Client, Connack) {
        let (client, packet) = Client::connect(self.gateway.address, &Hello { is_v5: self.is_v5, ..hello.clone() });
        assert_eq!(packet[1] & 0xFE, 0, "reserved flags of CONNACK");
        let properties = if self.is_v5 { properties(&packet[3..]).0 } else { vec![] };
        (client, Connack { has_session: packet[1] == 1, code: packet[2], properties })
    }

    /// A client that is let in, with a clean session.
    fn connect(&self, who: &str) -> Client {
        let (client, connack) = self.connect_with(&Hello { client: &self.client(who), ..Hello::default() });
        assert_eq!((connack.has_session, connack.code), (false, 0));
        client
    }

    /// A client that is let in, with a session that is kept; and whether it was there.
    fn resume(&self, who: &str) -> (Client, bool) {
        let hello = Hello { client: &self.client(who), is_clean: false, properties: self.keep(), ..Hello::default() };
        let (client, connack) = self.connect_with(&hello);
        assert_eq!(connack.code, 0);
        (client, connack.has_session)
    }

    /// Goodbye, and the end of the connection.
    fn leave(&self, mut client: Client) {
        client.send(&[0xE0, 0]);
        assert_eq!(client.hear(PATIENCE), Heard::End);
    }

    /// Subscribes; returns the codes.
    fn subscribe(&self, client: &mut Client, filters: &[(&str, u8)]) -> Vec<u8> {
        client.send(&subscribe(self.is_v5, 9, &[], filters));
        let Heard::Packet(suback) = client.hear(PATIENCE) else { panic!("no SUBACK") };
        assert_eq!(suback[..3], [0x90, 0, 9], "{suback:?}");
        if self.is_v5 { suback[3 + properties(&suback[3..]).1..].to_vec() } else { suback[3..].to_vec() }
    }

    /// A client that gets the running check's events at `qos`.
    fn subscriber(&self, who: &str, qos: u8) -> Client {
        let mut client = self.connect(who);
        assert_eq!(self.subscribe(&mut client, &[(&self.event_topic(), qos)]), [qos]);
        client
    }

    /// Publishes at QoS 1 and waits for the PUBACK.
    fn event(&self, client: &mut Client, payload: &str) {
        client.send(&self.publish(1, 77, payload));
        assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0x40, 0, 77]), "a PUBACK");
    }

    /// The next packet, which is a PUBLISH; a PUBACK answers it where one is due.
    fn delivery(&self, client: &mut Client) -> Delivery {
        let delivery = self.unanswered(client);
        if delivery.qos == 1 {
            client.send(&answer(0x40, delivery.id));
        }
        delivery
    }

    /// The next packet, which is a PUBLISH.
    fn unanswered(&self, client: &mut Client) -> Delivery {
        match client.hear(PATIENCE) {
            Heard::Packet(packet) => Delivery::read(self.is_v5, &packet),
            other => panic!("a PUBLISH is due, not {other:?}"),
        }
    }

    /// The payload that a delivered event was published with.
    fn data(delivery: &Delivery) -> serde_json::Value {
        let event: serde_json::Value = serde_json::from_slice(&delivery.payload).expect("a CloudEvent in JSON");
        event["data"].clone()
    }

    /// Nothing comes, and the connection lives.
    fn assert_silent(&self, client: &mut Client) {
        assert_eq!(client.hear(SILENCE), Heard::Nothing);
        self.assert_alive(client);
    }

    /// The next packet is the answer to a PINGREQ.
    fn assert_alive(&self, client: &mut Client) {
        client.send(&[0xC0, 0]);
        assert_eq!(client.hear(PATIENCE), Heard::Packet(vec![0xD0]));
    }

    /// A new client that sends `bytes` is cut off; MQTT 5 says why, with one of `codes`.
    fn assert_cut_off(&self, bytes: &[u8], codes: &[u8], what: &str) {
        let mut client = self.connect("faulty");
        client.send(bytes);
        self.assert_ended(&mut client, codes, what);
    }

    /// The connection ends; MQTT 5 says why, with one of `codes`.
    fn assert_ended(&self, client: &mut Client, codes: &[u8], what: &str) {
        match client.hear(PATIENCE) {
            Heard::End => assert!(!self.is_v5, "{what}: MQTT 5 says why a connection ends"),
            Heard::Packet(packet) => {
                assert!(self.is_v5 && packet[0] == 0xE0, "{what}: {packet:?}");
                assert!(codes.contains(&packet[1]), "{what}: {:#x} is none of {codes:x?}", packet[1]);
                assert_eq!(client.hear(PATIENCE), Heard::End, "{what}");
            }
            Heard::Nothing => panic!("{what}: the connection stays"),
        }
    }

    /// A connection that starts with `bytes` ends; returns the code of the CONNACK, if there is one.
    fn refusal(&self, bytes: &[u8], what: &str) -> Option<u8> {
        let mut client = Client::dial(self.gateway.address);
        client.send(bytes);
        match client.hear(PATIENCE) {
            Heard::End => None,
            Heard::Packet(packet) => {
                assert_eq!(packet[..2], [0x20, 0], "{what}: a CONNACK without a session, not {packet:?}");
                assert_ne!(packet[2], 0, "{what} is let in");
                assert_eq!(client.hear(PATIENCE), Heard::End, "{what}");
                Some(packet[2])
            }
            Heard::Nothing => panic!("{what}: the connection stays"),
        }
    }

    /// Events that the gateway has accepted since it started.
    fn accepted(&self) -> u64 {
        accepted(&self.gateway.status())
    }

    /// Waits until so many events are accepted, and sees that it stays at that.
    fn await_accepted(&self, count: u64, what: &str) {
        let start = Instant::now();
        while self.accepted() < count && start.elapsed() < self.patience.get() {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(SILENCE / 3);
        assert_eq!(self.accepted(), count, "{what}");
    }
}
