//! The real program, as a process of its own.

use super::{await_port, end, free_address, kill, scratch};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A gateway in a folder of its own.
pub struct Gateway {
    pub folder: PathBuf,
    pub address: SocketAddr,
    /// Variables that the process gets.
    pub environment: Vec<(String, String)>,
    /// A program with its arguments that starts the gateway in its own place, such as `unshare --user`.
    pub through: Vec<String>,
    child: Option<Child>,
    _owned: Option<tempfile::TempDir>,
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay");

/// A contract with id, time, key and schema for `plant/{line}/{machine}/state`.
pub const CONTRACT: &str = r#"
name = "machine.state"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "plant/{line}/{machine}/state" }
key = "{machine}"
id = "/msg_id"
schema = "state.json"
"#;

/// Lanes that fit any disk, for tests in which nothing may be warned of.
pub const SMALL_BUDGETS: &str = r#"
[lane.critical]
budget = "64MiB"
[lane.standard]
budget = "64MiB"
[lane.bulk]
budget = "64MiB"
[dead]
budget = "64MiB"
"#;

pub const SCHEMA: &str = r#"{"type":"object","required":["msg_id"],"properties":{"msg_id":{"type":"string"},"seq":{"type":"integer"},"state":{"enum":["running","idle","fault"]}}}"#;

/// A payload of that contract.
pub fn payload(device: usize, sequence: usize) -> String {
    format!(
        r#"{{"msg_id":"{device:02}-{sequence:08}","seq":{sequence},"state":"running","note":"some text that makes it longer"}}"#
    )
}

/// A copy of the program that any user may run: the folder of this clone may be closed to others.
pub fn program_for_everybody(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let program = folder.join("forebay");
    std::fs::copy(PROGRAM, &program).expect("copied");
    program
}

pub fn scratch_folder(name: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix(&format!("forebay-{name}-")).tempdir_in(scratch()).expect("temporary folder")
}

impl Gateway {
    /// Writes configuration and contract, and starts nothing. `rest` is added to the configuration.
    pub fn prepare(name: &str, rest: &str) -> Self {
        let owned = scratch_folder(name);
        let mut gateway = Self::prepare_in(owned.path(), rest);
        gateway._owned = Some(owned);
        gateway
    }

    pub fn prepare_in(folder: &Path, rest: &str) -> Self {
        let address = free_address();
        std::fs::create_dir_all(folder.join("contracts")).expect("folder");
        std::fs::write(folder.join("contracts/state.toml"), CONTRACT).expect("written");
        std::fs::write(folder.join("contracts/state.json"), SCHEMA).expect("written");
        let config = format!(
            "environment = \"test\"\nsite = \"plant\"\nname = \"gw\"\ndata_dir = \"data\"\n{}\n[[source.mqtt]]\nname = \"devices\"\nlisten = \"{address}\"\n{}",
            rest.split_once("\n[").map_or(rest, |(top, _)| top),
            rest.split_once("\n[").map_or(String::new(), |(_, tables)| format!("[{tables}")),
        );
        std::fs::write(folder.join("forebay.toml"), config).expect("written");
        Self {
            folder: folder.to_owned(),
            address,
            environment: Vec::new(),
            through: Vec::new(),
            child: None,
            _owned: None,
        }
    }

    /// Has the process run with the environment that the packaged unit sets.
    pub fn as_the_unit_sets_it(&mut self) {
        let unit = include_str!("../../systemd/forebay.service");
        let set = unit.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('='));
        self.environment.extend(set.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    pub fn start(name: &str, rest: &str) -> Self {
        let mut gateway = Self::prepare(name, rest);
        gateway.run();
        gateway
    }

    /// Starts the process and waits until every source listens.
    pub fn run(&mut self) {
        let before = self.log().len();
        self.spawn();
        // The first of the ports says nothing of the others.
        await_port(self.address);
        let start = Instant::now();
        while !self.log()[before..].contains("listening") {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log")).expect("log");
        let mut words = self.through.iter().map(String::as_str).chain([PROGRAM]);
        let child = Command::new(words.next().unwrap_or(PROGRAM))
            .args(words)
            .envs(self.environment.iter().cloned())
            .args(["run", "--config"])
            .arg(self.config())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the gateway starts");
        self.child = Some(child);
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("forebay.toml")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Power off for the process: SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(&mut child);
        }
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }

    /// Exit code of a process that ends by itself.
    pub fn await_exit(&mut self) -> Option<i32> {
        self.child.take().and_then(|mut child| child.wait().ok()?.code())
    }

    /// Runs the program with other arguments; `CONFIG` stands for `--config` and the file.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        for argument in arguments {
            if *argument == "CONFIG" {
                command.arg("--config").arg(self.config());
            } else {
                command.arg(argument);
            }
        }
        command.output().expect("the program runs")
    }

    pub fn status(&self) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let output = self.command(&["status", "--json", "CONFIG"]);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            // A listener may be there a moment before the socket is.
            if error.contains("there is no such socket") && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            return serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|wrong| panic!("{wrong}: {}{error}", String::from_utf8_lossy(&output.stdout)));
        }
    }

    /// Waits until the status says what `wanted` wants.
    pub fn await_status(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < patience, "{what}: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of the gateway:\n{}", self.log());
        }
    }
}

/// Sum of a number over all lanes and destinations of a status.
pub fn sum(status: &serde_json::Value, field: &str) -> u64 {
    let lanes = status["lanes"].as_array().into_iter().flatten();
    lanes
        .flat_map(|lane| lane["destinations"].as_array().into_iter().flatten())
        .map(|to| to[field].as_u64().unwrap_or(0))
        .sum()
}

/// Events that the plant's streams have taken; the gateway's own are its own matter.
pub fn accepted(status: &serde_json::Value) -> u64 {
    let lanes = status["lanes"].as_array().into_iter().flatten();
    let streams = lanes.flat_map(|lane| lane["streams"].as_array().into_iter().flatten());
    let of_plant = streams.filter(|row| row[0].as_str().is_some_and(|stream| !stream.starts_with("gateway.")));
    of_plant.map(|row| row[1].as_u64().unwrap_or(0)).sum()
}
