//! Simulated devices, and a gateway in this process that asks them.

use crate::common::gateway::scratch_folder;
use forebay::config::Config;
use forebay::gateway::Gateway;
use forebay::journal::{Journal, JournalError, ReadResult};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Devices of pymodbus in a process of their own.
pub struct Devices {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    place: Value,
}

impl Devices {
    /// `spec` is what `simulator.py` explains; a port is found where none is given.
    pub fn start(transport: &str, mut spec: Value) -> Self {
        spec["transport"] = transport.into();
        if spec["port"].is_null() {
            spec["port"] = crate::common::free_address().port().into();
        }
        let python = crate::foreign::installed("modbus").join("bin/python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/modbus/simulator.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(spec.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the simulator starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut devices = Self { child, input, output: BufReader::new(output), place: Value::Null };
        devices.place = serde_json::from_str(&devices.line()).expect("its place");
        if let (Some(port), true) = (devices.place["port"].as_u64(), transport != "rtu-tcp") {
            crate::common::await_port(SocketAddr::from(([127, 0, 0, 1], port as u16)));
        }
        devices
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "the simulator ended");
        line
    }

    /// Obeys, and says what it says.
    pub fn tell(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("it reads");
        self.line().trim().to_owned()
    }

    pub fn port(&self) -> u16 {
        self.place["port"].as_u64().expect("a port") as u16
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port()))
    }

    pub fn path(&self) -> &str {
        self.place["path"].as_str().expect("a path")
    }

    /// How many requests a unit has had.
    pub fn asked(&mut self) -> std::collections::BTreeMap<String, u64> {
        serde_json::from_str(&self.tell("asked")).expect("JSON")
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        crate::common::kill(&mut self.child);
    }
}

/// A contract for all groups.
pub const GROUPS: &str = r#"
name = "modbus.group"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "modbus", topic = "{unit}/{group}" }
key = "{topic}"
time = "/ts"
"#;

/// One event as it was journaled.
#[derive(Clone, Debug)]
pub struct Event {
    /// The key: the topic it came on.
    pub topic: String,
    pub origin: String,
    pub data: Value,
}

/// All events of a journal so far, in their order.
pub fn events_of(journal: &Journal) -> Result<Vec<Event>, JournalError> {
    let mut events = Vec::new();
    for lane in journal.lanes() {
        let (mut next, end) = (1, lane.end());
        while next < end {
            match lane.read_at(next)? {
                ReadResult::Block(block) => {
                    events.extend(block.records().map(|record| Event {
                        topic: record.key.to_owned(),
                        origin: record.origin.to_owned(),
                        data: serde_json::from_slice(record.payload).expect("JSON"),
                    }));
                    next = block.end();
                }
                ReadResult::Lost { to } => next = to,
            }
        }
    }
    Ok(events)
}

/// A gateway in this process.
pub struct Plant {
    runtime: Runtime,
    gateway: Option<Gateway>,
    folder: tempfile::TempDir,
}

impl Plant {
    /// `sources` are tables of the configuration, `tables` device tables by their names.
    pub fn start(sources: &str, tables: &[(&str, &str)]) -> Self {
        Self::start_with(sources, tables, &[("groups", GROUPS)])
    }

    pub fn start_with(sources: &str, tables: &[(&str, &str)], contracts: &[(&str, &str)]) -> Self {
        let folder = scratch_folder("modbus");
        prepare(folder.path(), sources, tables, contracts);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let mut plant = Self { runtime: runtime.expect("runtime"), gateway: None, folder };
        plant.run();
        plant
    }

    pub fn run(&mut self) {
        let config = Config::load(&self.folder.path().join("forebay.toml")).expect("a good configuration");
        self.gateway = Some(self.runtime.block_on(Gateway::start(config)).expect("it starts"));
    }

    pub fn stop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            self.runtime.block_on(gateway.stop());
        }
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("it runs")
    }

    /// All events so far, in their order.
    pub fn events(&self) -> Vec<Event> {
        events_of(&self.gateway().handles().journal).expect("readable")
    }

    /// Events of a topic.
    pub fn of(&self, topic: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event.topic == topic).map(|event| event.data).collect()
    }

    /// Waits until an event of a topic is what is wanted.
    pub fn await_event(&self, topic: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.await_nth(topic, what, 0, wanted)
    }

    /// The same behind the first `after` events of the topic.
    pub fn await_nth(&self, topic: &str, what: &str, after: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let events = self.of(topic);
            if let Some(found) = events.iter().skip(after).find(|event| wanted(event)) {
                return found.clone();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {events:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn status(&self) -> Value {
        serde_json::to_value(self.gateway().handles().status()).expect("JSON")
    }

    /// What `forebay devices` prints.
    pub fn print_devices(&self) -> String {
        self.command(&["devices"])
    }

    /// The same as JSON.
    pub fn devices(&self) -> Vec<Value> {
        serde_json::from_str(&self.command(&["devices", "--json"])).expect("JSON")
    }

    fn command(&self, arguments: &[&str]) -> String {
        let config = self.folder.path().join("forebay.toml");
        let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(arguments)
            .arg("--config")
            .arg(config)
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Dead letters so far.
    pub fn dead(&self) -> u64 {
        self.status()["dead"]["total"].as_u64().expect("a number")
    }

    pub fn await_problem(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let status = self.status();
            let problem = status["sources"][1]["problem"].as_str().unwrap_or_default().to_owned();
            if wanted(&problem) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {problem}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes configuration, contracts and device tables.
pub fn prepare(folder: &Path, sources: &str, tables: &[(&str, &str)], contracts: &[(&str, &str)]) {
    for inner in ["contracts", "devices"] {
        std::fs::create_dir_all(folder.join(inner)).expect("folder");
    }
    let config = format!(
        "environment = \"test\"\nsite = \"plant\"\nname = \"gw\"\ndata_dir = \"data\"\n[[source.mqtt]]\nname = \"m\"\nlisten = \"127.0.0.1:0\"\n{sources}"
    );
    std::fs::write(folder.join("forebay.toml"), config).expect("written");
    for (place, files) in [("contracts", contracts), ("devices", tables)] {
        for (name, text) in files {
            std::fs::write(folder.join(place).join(format!("{name}.toml")), text).expect("written");
        }
    }
}

/// Two points a register apart, in groups of their own, that are asked for in the same words.
pub const TWINS: &str = r#"
[group.a]
interval = "50ms"
report = "always"
[group.b]
interval = "50ms"
report = "always"
[[point]]
name = "value"
group = "a"
address = 0
[[point]]
name = "value_b"
group = "b"
address = 10
"#;

/// Registers for those: 111 and 222.
pub fn twins() -> Value {
    let mut holding = vec![0; 20];
    (holding[0], holding[10]) = (111, 222);
    json!({"units": [1], "holding": holding})
}
