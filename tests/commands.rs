//! Commands of central: from a real Mosquitto to a device at the listener, and receipts back.

use crate::common::broker::Collector;
use crate::common::client::{Client, Delivery, Heard, Hello, answer, publish, subscribe};
use crate::common::gateway::{Gateway, scratch_folder};
use crate::common::plant::PlantBroker;
use crate::common::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

const LONG: Duration = Duration::from_secs(60);
const TOPIC: &str = "test/plant/command/gw/planner/press.setpoint/v1/press-4";

const CONTRACT: &str = r#"
kind = "command"
name = "press.setpoint"
version = "1.0.0"
owner = "tests"
enabled = true
from = ["planner"]
targets = ["press-*"]
actions = ["set"]
schema = "setpoint.json"
expires_max = "1h"
queue = 200
adapter = "device"
confirm = { stream = "device.answer", within = "2s" }
"#;

const SCHEMA: &str = r#"{"type":"object","required":["pressure"],"properties":{"pressure":{"type":"number","maximum":200}},"additionalProperties":false}"#;

const ANSWER: &str = r#"
name = "device.answer"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "plant/{machine}/answer" }
key = "{machine}"
id = "/command"
"#;

/// A plant whose central broker sends commands.
struct Plant {
    gateway: Gateway,
    central: PlantBroker,
    receipts: Collector,
    _folder: tempfile::TempDir,
}

impl Plant {
    fn prepare(name: &str) -> Self {
        let folder = scratch_folder(name);
        let central = PlantBroker::start(folder.path(), "");
        let receipts = Collector::start(central.plain, "test/plant/command.receipt/#");
        let destination =
            format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\ncommands = true\n", central.plain);
        let gateway = Gateway::prepare(name, &destination);
        let contracts = gateway.folder.join("contracts");
        for (file, text) in [("setpoint.toml", CONTRACT), ("setpoint.json", SCHEMA), ("answer.toml", ANSWER)] {
            std::fs::write(contracts.join(file), text).expect("written");
        }
        Self { gateway, central, receipts, _folder: folder }
    }

    fn start(name: &str) -> Self {
        let mut plant = Self::prepare(name);
        plant.gateway.run();
        plant.await_subscribed();
        plant
    }

    /// Waits until central's broker keeps the commands of the gateway.
    fn await_subscribed(&self) {
        self.gateway.await_status("it is subscribed", LONG, |status| {
            let problems = status["problems"].as_array().expect("problems");
            !problems.iter().any(|problem| problem.as_str().is_some_and(|problem| problem.starts_with("commands")))
        });
    }

    fn planner(&self) -> Client {
        Client::connect(self.central.plain, &Hello { is_v5: false, client: "planner", ..Hello::default() }).0
    }

    /// The states of each command in the order of their numbers; copies count once.
    fn states(&self) -> BTreeMap<String, Vec<String>> {
        let mut found: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
        for arrived in self.receipts.arrived() {
            let data = arrived.event()["data"].clone();
            let number = data["n"].as_u64().expect("a number");
            let reason = data["reason"].as_str().map(|reason| format!("/{reason}")).unwrap_or_default();
            let state = format!("{}{reason}", data["state"].as_str().expect("a state"));
            let known = found.entry(data["id"].as_str().unwrap_or("?").to_owned()).or_default();
            if let Some(before) = known.insert(number, state.clone()) {
                assert_eq!(before, state, "two receipts of one number: {data}");
            }
        }
        found.into_iter().map(|(id, states)| (id, states.into_values().collect())).collect()
    }

    /// Waits until the command has this last state.
    fn await_state(&self, id: &str, expected: &[&str]) {
        let start = Instant::now();
        while self.states().get(id).is_none_or(|states| states != expected) {
            assert!(start.elapsed() < LONG, "{id}: {:?}, not {expected:?}\n{}", self.states(), self.gateway.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A time as text, from now.
fn in_seconds(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros() as i64;
    forebay::event::Timestamp(now + seconds * 1_000_000).to_string()
}

fn command(id: &str, seconds: i64) -> Value {
    json!({
        "specversion": "1.0", "type": "com.example.command.press.setpoint.v1", "source": "/planner", "id": id,
        "expirytime": in_seconds(seconds), "correlationid": "order-7", "data": {"do": "set", "with": {"pressure": 120}},
    })
}

/// A device that does each command once, and answers each.
struct Device {
    is_over: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<String>>>,
    deliveries: Arc<Mutex<Vec<Value>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Device {
    /// Returns once the gateway has acknowledged the subscription: what comes before it is for nobody.
    fn start(to: SocketAddr) -> Self {
        let (subscribed, is_subscribed) = std::sync::mpsc::channel();
        let is_over = Arc::<AtomicBool>::default();
        let (done, deliveries) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<Value>>>::default());
        let (over, did, got) = (Arc::clone(&is_over), Arc::clone(&done), Arc::clone(&deliveries));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let session = || serve(to, &over, (&did, &got), &subscribed);
                // A gateway that is killed ends the connection in the middle of anything.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(session));
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        is_subscribed.recv_timeout(LONG).expect("the device is subscribed");
        Self { is_over, done, deliveries, thread: Some(thread) }
    }

    fn stop(mut self) -> (Vec<String>, Vec<Value>) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().expect("runs").join().expect("ends");
        (self.done.lock().expect("lock").clone(), self.deliveries.lock().expect("lock").clone())
    }
}

fn serve(
    to: SocketAddr,
    over: &AtomicBool,
    (did, got): (&Mutex<Vec<String>>, &Mutex<Vec<Value>>),
    subscribed: &std::sync::mpsc::Sender<()>,
) {
    if TcpStream::connect(to).is_err() {
        return;
    }
    let hello = Hello { is_v5: false, client: "press-4", is_clean: false, ..Hello::default() };
    let mut client = Client::connect(to, &hello).0;
    client.send(&subscribe(false, 1, &[], &[("test/plant/command/gw/+/+/+/press-4", 1)]));
    let mut packet_id = 1;
    while !over.load(Ordering::Relaxed) {
        match client.hear(Duration::from_millis(50)) {
            Heard::Packet(packet) if packet[0] >> 4 == 3 => {
                let delivery = Delivery::read(false, &packet);
                let event: Value = serde_json::from_slice(&delivery.payload).expect("JSON");
                let name = event["data"]["command"].as_str().expect("a name").to_owned();
                got.lock().expect("lock").push(event);
                let mut did = did.lock().expect("lock");
                if !did.contains(&name) {
                    did.push(name.clone());
                }
                drop(did);
                packet_id = packet_id % 1000 + 1;
                let confirmation = json!({"command": name, "result": "done"}).to_string();
                client.send(&publish(false, 1, packet_id, "plant/press-4/answer", &[], confirmation.as_bytes()));
                client.send(&answer(0x40, delivery.id));
            }
            // Nobody waits for it after the first time.
            Heard::Packet(packet) if packet[0] == 0x90 => drop(subscribed.send(())),
            Heard::Packet(_) | Heard::Nothing => {}
            Heard::End => return,
        }
    }
}

#[test]
fn a_command_reaches_its_device_once_and_receipts_tell_what_became_of_it() {
    let plant = Plant::start("commands-once");
    let device = Device::start(plant.gateway.address);
    let mut planner = plant.planner();
    let first = command("c1", 60).to_string();
    planner.publish(false, 1, TOPIC, first.as_bytes());
    plant.await_state("c1", &["accepted", "started", "done"]);
    // Copies of it, and then another one, so that the copies have been handled.
    for copy in 2..4 {
        planner.publish(false, copy, TOPIC, first.as_bytes());
    }
    planner.publish(false, 4, TOPIC, command("c2", 60).to_string().as_bytes());
    plant.await_state("c2", &["accepted", "started", "done"]);
    plant.await_state("c1", &["accepted", "started", "done"]);
    let receipts = plant.receipts.arrived();
    let of_first = receipts.iter().filter(|arrived| arrived.event()["data"]["id"] == "c1").count();
    assert_eq!(of_first, 3, "a copy has no receipt of its own");
    let event = receipts[0].event();
    assert_eq!(event["type"], "com.example.command.receipt.v1");
    assert_eq!(receipts[0].topic, "test/plant/command.receipt/v1/press-4");
    assert_eq!(
        (&event["data"]["correlationid"], &event["data"]["contract"]),
        (&json!("order-7"), &json!("press.setpoint"))
    );
    let (done, deliveries) = device.stop();
    assert_eq!((done.len(), deliveries.len()), (2, 2));
    assert_eq!(deliveries[0]["type"], "com.example.command.press.setpoint.v1");
    assert_eq!(deliveries[0]["data"]["with"], json!({"pressure": 120}));
    assert_eq!(deliveries[0]["data"]["sender"], "planner");
}

#[test]
fn a_command_that_may_not_be_is_refused_with_a_reason_and_reaches_no_device() {
    let plant = Plant::start("commands-refused");
    let device = Device::start(plant.gateway.address);
    let mut planner = plant.planner();
    let other = |place: &str, by: &str| TOPIC.replace(place, by);
    let changed = |id: &str, pointer: &str, value: Value| {
        let mut command = command(id, 60);
        *command.pointer_mut(pointer).expect("there") = value;
        command
    };
    let mut conditional = command("if", 60);
    conditional["data"]["if"] = json!({"pressure": 1});
    let cases: [(String, Value, &str); 11] = [
        (other("planner", "intruder"), command("sender", 60), "refused/not-allowed"),
        (other("press-4", "oven"), command("target", 60), "refused/unknown-target"),
        (TOPIC.into(), changed("do", "/data/do", json!("explode")), "refused/not-allowed"),
        (TOPIC.into(), changed("range", "/data/with/pressure", json!(201)), "refused/schema"),
        (TOPIC.into(), changed("type", "/type", json!("com.example.other.v1")), "refused/schema"),
        (TOPIC.into(), changed("expiry", "/expirytime", json!("soon")), "refused/schema"),
        (TOPIC.into(), changed("own", "/source", json!("/plant/gw/devices/press-4")), "refused/not-allowed"),
        (
            other("v1", "v2"),
            changed("major", "/type", json!("com.example.command.press.setpoint.v2")),
            "refused/not-allowed",
        ),
        (TOPIC.into(), command("late", -1), "expired/expired"),
        (TOPIC.into(), command("far", 7200), "refused/range"),
        (TOPIC.into(), conditional, "refused/precondition"),
    ];
    for (index, (topic, command, _)) in cases.iter().enumerate() {
        planner.publish(false, index as u16 + 1, topic, command.to_string().as_bytes());
    }
    for (_, command, expected) in &cases {
        plant.await_state(command["id"].as_str().expect("an id"), &[expected]);
    }
    planner.publish(false, 50, TOPIC, b"no JSON");
    plant.await_state("?", &["refused/schema"]);
    // An id with another payload: the first command is not touched.
    planner.publish(false, 51, TOPIC, command("twice", 60).to_string().as_bytes());
    plant.await_state("twice", &["accepted", "started", "done"]);
    let before = plant.receipts.count();
    planner.publish(false, 52, TOPIC, changed("twice", "/data/with/pressure", json!(7)).to_string().as_bytes());
    let receipts = plant.receipts.await_count(before + 1, LONG);
    assert_eq!(receipts[before].event()["data"]["reason"], "id-reused", "{:?}", receipts[before].event());
    plant.await_state("twice", &["refused/id-reused", "accepted", "started", "done"]);
    let mut dry = command("dry", 60);
    dry["data"]["dry_run"] = json!(true);
    planner.publish(false, 53, TOPIC, dry.to_string().as_bytes());
    plant.await_state("dry", &["accepted", "done"]);
    let (done, _) = device.stop();
    assert_eq!(done.len(), 1, "only the command that was allowed");
}

#[test]
fn a_retained_command_is_refused_and_an_unconfirmed_one_becomes_unknown() {
    let mut plant = Plant::prepare("commands-retained");
    let mut planner = plant.planner();
    let mut retained = publish(false, 1, 1, TOPIC, &[], command("kept", 60).to_string().as_bytes());
    retained[0] |= 1;
    planner.send(&retained);
    assert_eq!(planner.receive().expect("a PUBACK")[0], 0x40);
    plant.gateway.run();
    plant.await_subscribed();
    plant.await_state("kept", &["refused/retained"]);
    // No device takes it, and it ends two seconds after its expirytime.
    planner.publish(false, 2, TOPIC, command("silent", 1).to_string().as_bytes());
    planner.publish(false, 3, TOPIC, command("behind", 1).to_string().as_bytes());
    plant.await_state("behind", &["accepted", "expired/expired"]);
    plant.await_state("silent", &["accepted", "started", "unknown/not-confirmed"]);
    // A device that comes later gets none of them.
    let device = Device::start(plant.gateway.address);
    planner.publish(false, 4, TOPIC, command("after", 60).to_string().as_bytes());
    std::thread::sleep(Duration::from_millis(1500));
    planner.publish(false, 5, TOPIC, command("after", 60).to_string().as_bytes());
    let (_, deliveries) = device.stop();
    let silent = deliveries.iter().filter(|event| event["data"]["id"] != "after").count();
    assert_eq!(silent, 0, "{deliveries:?}");
}

#[test]
fn commands_survive_kills_between_any_steps_in_order_and_with_one_end_each() {
    const COUNT: usize = 60;
    let mut random = Random::seeded();
    let mut plant = Plant::start("commands-kills");
    let device = Device::start(plant.gateway.address);
    let mut planner = plant.planner();
    let mut sent = Vec::new();
    for round in 0..COUNT {
        let id = format!("c{round:03}");
        let text = command(&id, 300).to_string();
        // Three copies of each.
        for copy in 0..3 {
            planner.publish(false, (round * 3 + copy + 1) as u16, TOPIC, text.as_bytes());
        }
        sent.push(id);
        if round % 3 == 0 {
            std::thread::sleep(Duration::from_millis(random.below(120)));
            plant.gateway.kill();
            plant.gateway.run();
        }
    }
    for id in &sent {
        plant.await_state(id, &["accepted", "started", "done"]);
    }
    let (done, deliveries) = device.stop();
    assert_eq!(done.len(), COUNT, "each command was done, and no other");
    let mut firsts: Vec<&str> = Vec::new();
    for event in &deliveries {
        let id = event["data"]["id"].as_str().expect("an id");
        if !firsts.contains(&id) {
            firsts.push(id);
        }
    }
    assert_eq!(firsts, sent, "the device received them in order");
    // In order for central as well, first deliveries of each.
    let mut seen: Vec<(String, u64)> = Vec::new();
    for arrived in plant.receipts.arrived() {
        let data = arrived.event()["data"].clone();
        let receipt = (data["id"].as_str().expect("an id").to_owned(), data["n"].as_u64().expect("a number"));
        if !seen.contains(&receipt) {
            let before = seen.iter().filter(|(id, _)| *id == receipt.0).map(|(_, n)| *n).max().unwrap_or(0);
            assert_eq!(receipt.1, before + 1, "receipts of {} are in order", receipt.0);
            seen.push(receipt);
        }
    }
    assert_eq!(seen.len(), COUNT * 3);
}

#[test]
fn faulty_contracts_of_commands_and_their_absence_are_reported() {
    let plant = Plant::prepare("commands-check");
    let check = |contract: &str| {
        std::fs::write(plant.gateway.folder.join("contracts/setpoint.toml"), contract).expect("written");
        let output = plant.gateway.command(&["check", "CONFIG"]);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(!check(CONTRACT).contains("setpoint"), "{}", check(CONTRACT));
    for (before, after, said) in [
        ("\"device.answer\"", "\"device.reply\"", "no stream of an enabled contract"),
        ("[\"planner\"]", "[]", "is empty and allows no command"),
        ("enabled = true\n", "", "no contract of commands is enabled"),
        ("queue = 200", "queue = 0", "queue"),
        ("owner", "ownr", "ownr"),
    ] {
        let output = check(&CONTRACT.replace(before, after));
        assert!(output.contains(said), "{after}: {output}");
    }
}

#[test]
fn open_commands_are_listed_and_a_reload_without_their_contract_refuses_what_has_not_begun() {
    let plant = Plant::start("commands-reload");
    let mut planner = plant.planner();
    for (number, id) in [(1, "first"), (2, "second")] {
        planner.publish(false, number, TOPIC, command(id, 600).to_string().as_bytes());
    }
    plant.await_state("first", &["accepted", "started"]);
    plant.await_state("second", &["accepted"]);
    let output = plant.gateway.command(&["command", "list", "--json", "CONFIG"]);
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let brief: Vec<_> = listed.as_array().expect("a list").iter().map(|one| (&one["id"], &one["state"])).collect();
    assert_eq!(brief, [(&json!("first"), &json!("started")), (&json!("second"), &json!("accepted"))]);
    // Presses may not be commanded any more; the first command has reached one and may still be confirmed.
    let other = CONTRACT.replace("press-*", "oven");
    std::fs::write(plant.gateway.folder.join("contracts/setpoint.toml"), other).expect("written");
    let reloaded = plant.gateway.command(&["reload", "CONFIG"]);
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    plant.await_subscribed();
    let name = listed[0]["command"].as_str().expect("a name");
    let hello = Hello { is_v5: false, client: "press-4", ..Hello::default() };
    let mut press = Client::connect(plant.gateway.address, &hello).0;
    let confirmation = json!({"command": name, "result": "failed", "text": "no oil"}).to_string();
    press.publish(false, 1, "plant/press-5/answer", confirmation.as_bytes());
    press.publish(false, 2, "plant/press-4/answer", confirmation.as_bytes());
    plant.await_state("first", &["accepted", "started", "failed/device"]);
    plant.await_state("second", &["accepted", "refused/unknown-target"]);
    assert!(plant.gateway.command(&["command", "list", "CONFIG"]).stdout.starts_with(b"no open commands"));
}

#[test]
fn a_gateway_that_has_lost_its_state_refuses_what_may_be_an_old_command() {
    let mut plant = Plant::start("commands-lost");
    let device = Device::start(plant.gateway.address);
    let mut planner = plant.planner();
    let old = command("old", 600).to_string();
    planner.publish(false, 1, TOPIC, old.as_bytes());
    plant.await_state("old", &["accepted", "started", "done"]);
    plant.gateway.stop();
    std::fs::remove_file(plant.gateway.folder.join("data/journal/state.redb")).expect("removed");
    plant.gateway.run();
    plant.await_subscribed();
    planner.publish(false, 2, TOPIC, old.as_bytes());
    let start = Instant::now();
    let is_refused = |event: Value| event["data"]["reason"] == "memory-lost";
    while !plant.receipts.arrived().iter().any(|arrived| is_refused(arrived.event())) {
        assert!(start.elapsed() < LONG, "{}", plant.gateway.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(device.stop().0.len(), 1, "it was not executed again");
}
