//! The demo: simulated devices, the real gateway with a real journal, a central broker, and a WAN that can be cut.
//!
//! Promise: the gateway is the same as with `forebay run`; only its surroundings are simulated. The demo writes only to
//! its own folder.

mod central;
mod device;
mod first_event;
mod machine;
mod wan;

pub use first_event::{FirstEvent, free_port, show_first_event};

use crate::admin::Handles;
use crate::api::Status;
use crate::clock;
use crate::config::Config;
use crate::contract::GatewayNames;
use crate::event::Timestamp;
use crate::gateway::Gateway;
use crate::runtime::spawn_blocking;
use crate::setting::{grouped, rough};
use crate::shutdown;
use crate::telemetry::Snapshot;
use anyhow::{Context, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Prints a line. A closed standard output is not an error; the demo then ends at the next live line.
macro_rules! say {
    ($($part:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

#[derive(Debug)]
pub struct Plan {
    /// Folder for all files of the demo.
    pub folder: PathBuf,
    /// Length of a single WAN outage; `None` for no planned outage.
    pub outage: Option<Duration>,
    /// Time after which the demo ends; `None` to run until interrupted.
    pub run_for: Option<Duration>,
    /// Events per second of all devices together.
    pub rate: u32,
}

const DEVICES: u32 = 10;
/// Time before a planned outage, to show normal operation first.
const OUTAGE_AFTER: Duration = Duration::from_secs(10);
/// Longest wait for the backlog at the end, if the WAN is up.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);

/// The ready-made contracts of `config/contracts`.
pub(crate) const CONTRACTS: [(&str, &str); 13] = [
    ("machine-state.toml", include_str!("../config/contracts/machine-state.toml")),
    ("machine-count.toml", include_str!("../config/contracts/machine-count.toml")),
    ("machine-alarm.toml", include_str!("../config/contracts/machine-alarm.toml")),
    ("quality-result.toml", include_str!("../config/contracts/quality-result.toml")),
    ("energy-meter.toml", include_str!("../config/contracts/energy-meter.toml")),
    ("machine-reading.toml", include_str!("../config/contracts/machine-reading.toml")),
    ("energy-reading.toml", include_str!("../config/contracts/energy-reading.toml")),
    ("schemas/modbus-reading.v1.json", include_str!("../config/contracts/schemas/modbus-reading.v1.json")),
    ("schemas/machine-state.v1.json", include_str!("../config/contracts/schemas/machine-state.v1.json")),
    ("schemas/machine-count.v1.json", include_str!("../config/contracts/schemas/machine-count.v1.json")),
    ("schemas/machine-alarm.v1.json", include_str!("../config/contracts/schemas/machine-alarm.v1.json")),
    ("schemas/quality-result.v1.json", include_str!("../config/contracts/schemas/quality-result.v1.json")),
    ("schemas/energy-meter.v1.json", include_str!("../config/contracts/schemas/energy-meter.v1.json")),
];

/// The device tables of the two Modbus machines, from `config/devices`.
const DEVICE_TABLES: [(&str, &str); 2] = [
    ("eastron-sdm630.toml", include_str!("../config/devices/eastron-sdm630.toml")),
    ("machine-plc.toml", include_str!("../config/devices/machine-plc.toml")),
];

/// Runs the demo until its planned end or an interrupt, then prints the balance.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = prepare_folder(&plan.folder)?;
    let central = central::start(&folder).await.context("cannot start the simulated central broker")?;
    let wan = wan::Wan::start(central.address).await?;
    let machines = machine::start().await.context("cannot start the simulated Modbus machines")?;
    write_config(&folder, wan.address.port(), &machines)?;
    let config = Config::load(&folder.join("forebay.toml")).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })?;
    let surroundings = config.surroundings.clone();
    let gateway = Gateway::start(config).await?;
    let listening = *gateway.addresses.first().context("the gateway has a listener")?;
    let (stop_devices, devices_stop) = shutdown::pair();
    let mut devices = tokio::task::JoinSet::new();
    for index in 0..DEVICES {
        devices.spawn(device::run_device(index, DEVICES, plan.rate, listening, devices_stop.clone()));
    }
    print_introduction(&plan, &folder, &surroundings, listening.port(), central.address.port());

    let screen = Screen { is_live: std::io::stdout().is_terminal() };
    let (keys, _raw) = watch_keys();
    let started = clock::instant();
    let mut monitor = Monitor::new(Arc::clone(gateway.handles()), wan, keys);
    let planned = plan.outage.map(|length| (started + OUTAGE_AFTER, started + OUTAGE_AFTER + length));
    let until = plan.run_for.map(|length| started + length);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = monitor.run(&screen, planned, until) => {}
    }
    screen.done();
    stop_devices.begin();
    while devices.join_next().await.is_some() {}
    monitor.drain().await;
    print_balance(&monitor.handles.status(), central.received());
    drop(monitor);
    gateway.stop().await;
    say!(
        "All files are in {}. Start again to continue with this journal, or remove the folder first to begin a new one.",
        folder.display()
    );
    Ok(())
}

/// Creates the folder with contracts, device tables and certificates.
fn prepare_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    for inner in ["contracts/schemas", "devices"] {
        std::fs::create_dir_all(folder.join(inner))
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    let folder = folder.canonicalize()?;
    for (name, text) in CONTRACTS {
        std::fs::write(folder.join("contracts").join(name), text)?;
    }
    for (name, text) in DEVICE_TABLES {
        std::fs::write(folder.join("devices").join(name), text)?;
    }
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name.push(DnType::CommonName, "Forebay demo authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    std::fs::write(folder.join("ca.pem"), authority.pem())?;
    std::fs::write(folder.join("central.pem"), certificate.pem())?;
    write_key(&folder.join("central.key"), &key.serialize_pem())?;
    Ok(folder)
}

/// Writes a private key that only this user can read. An earlier demo may have left one with another mode.
fn write_key(path: &Path, pem: &str) -> anyhow::Result<()> {
    let options = || std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = match options() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            options()
        }
        opened => opened,
    };
    Ok(file?.write_all(pem.as_bytes())?)
}

fn write_config(folder: &Path, central: u16, machines: &machine::Machines) -> anyhow::Result<()> {
    let machine::Machines { meter, press, .. } = machines;
    let config = format!(
        r#"# Written by `forebay demo`.
environment = "demo"
site = "plant-01"
name = "gw-demo"
namespace = "com.example.mfg"
data_dir = "data"

[[source.mqtt]]
name = "shopfloor"
listen = "127.0.0.1:0"

[[source.modbus]]
name = "meters"
url = "tcp://{meter}"
unit = [{{ name = "meter-1", unit = 1, device = "eastron-sdm630" }}]

[[source.modbus]]
name = "presses"
url = "tcp://{press}"
unit = [{{ name = "press-4", unit = 1, device = "machine-plc" }}]

[[destination]]
name = "central"
url = "mqtts://127.0.0.1:{central}"
tls = {{ ca = "ca.pem" }}

# Each device publishes to several lanes on one connection, and MQTT acknowledges in order: with the
# default linger of the bulk lane (250 ms) every lane would look slow.
[lane.bulk]
linger = "10ms"
[lane.standard]
linger = "10ms"
"#
    );
    std::fs::write(folder.join("forebay.toml"), config)?;
    Ok(())
}

fn print_introduction(plan: &Plan, folder: &Path, surroundings: &GatewayNames, listening: u16, central: u16) {
    let shown = folder.display();
    say!(
        "Forebay demo: {DEVICES} devices publish {} events a second to the gateway on port {listening}, which also",
        plan.rate
    );
    say!("polls an energy meter and a press over Modbus and reports their changes. The gateway stores the events");
    say!("in {shown}/data and delivers them over TLS to a central broker on port {central}.\n");
    say!("Inspect it from another terminal:");
    say!(
        "  mosquitto_sub --cafile {shown}/ca.pem -h 127.0.0.1 -p {central} -v -t '{}/{}/#'",
        surroundings.environment,
        surroundings.site
    );
    let program = program();
    for command in ["status", "tail", "dead list"] {
        say!("  {program} {command} --config {shown}/forebay.toml");
    }
    say!("Some messages break their contract: they are in the list of dead letters.\n");
    let can_type = std::io::stdin().is_terminal();
    say!(
        "{}Press Ctrl-C to stop and show the balance.\n",
        if can_type { "Press w to cut the WAN, and again to restore it. " } else { "" }
    );
}

/// The command that starts this program: its name if the shell finds it, else its path.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else { return "forebay".into() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_own = |folder: PathBuf| folder.join("forebay").canonicalize().is_ok_and(|found| found == own);
    if std::env::split_paths(&path).any(is_own) { "forebay".into() } else { own.display().to_string() }
}

/// Reads the pressed keys; dropping the second value restores the terminal.
fn watch_keys() -> (mpsc::Receiver<u8>, Option<RawTerminal>) {
    let (sender, receiver) = mpsc::channel(8);
    if !std::io::stdin().is_terminal() {
        return (receiver, None);
    }
    let raw = RawTerminal::new();
    // The thread ends with the process: a read of the terminal cannot be interrupted.
    std::thread::spawn(move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) {
            if sender.blocking_send(byte[0]).is_err() {
                return;
            }
        }
    });
    (receiver, raw)
}

/// The terminal in raw mode, which delivers each key at once; dropping it restores the previous mode.
struct RawTerminal(rustix::termios::Termios);

impl RawTerminal {
    fn new() -> Option<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Fails only if the terminal is gone.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, &self.0);
    }
}

struct Screen {
    is_live: bool,
}

impl Screen {
    /// Shows the live line; returns `false` if the standard output is closed.
    fn line(&self, line: &str) -> bool {
        let mut out = std::io::stdout().lock();
        let written =
            if self.is_live { write!(out, "\r\x1b[2K{}", fitted(line, columns())) } else { writeln!(out, "{line}") };
        written.and_then(|()| out.flush()).is_ok()
    }

    fn done(&self) {
        if self.is_live {
            say!("\n");
        }
    }
}

/// The width of the terminal; `None` if it does not tell.
fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// The line for a terminal of this width, with the keys if there is room. A line that wraps would scroll: only its last
/// row is cleared. Blanks go first, then the end.
fn fitted(line: &str, columns: Option<usize>) -> String {
    const KEYS: &str = "  [w] WAN  [q] stop";
    let Some(room) = columns.map(|columns| columns.saturating_sub(1)) else { return line.to_owned() };
    let length = |text: &str| text.chars().count();
    let narrow = || {
        let words = line.replace("accepted", "in").replace("delivered", "out").replace("p99 to ack", "ack");
        let parts: Vec<String> =
            words.split("  ").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        parts.join(" ")
    };
    let mut text = if length(line) <= room { line.to_owned() } else { narrow() };
    if length(&text) + length(KEYS) <= room {
        text.push_str(KEYS);
    }
    text.chars().take(room).collect()
}

struct Monitor {
    handles: Arc<Handles>,
    wan: wan::Wan,
    keys: mpsc::Receiver<u8>,
    acks: Snapshot,
}

impl Monitor {
    fn new(handles: Arc<Handles>, wan: wan::Wan, keys: mpsc::Receiver<u8>) -> Self {
        Self { handles, wan, keys, acks: Snapshot::default() }
    }

    /// Updates the live line and handles keys and the planned outage, until the end of the demo.
    async fn run(&mut self, screen: &Screen, mut planned: Option<(Instant, Instant)>, until: Option<Instant>) {
        let mut tick = tokio::time::interval(Duration::from_millis(if screen.is_live { 250 } else { 1000 }));
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Some(key) = self.keys.recv() => match key {
                    b'w' | b'W' | b' ' => self.wan.cut(!self.wan.is_cut()),
                    b'q' | b'Q' => return,
                    _ => {}
                },
            }
            let now = clock::instant();
            if let Some((from, to)) = planned {
                if now >= to {
                    self.wan.cut(false);
                    planned = None;
                } else if now >= from {
                    self.wan.cut(true);
                }
            }
            if until.is_some_and(|until| now >= until) {
                return;
            }
            let handles = Arc::clone(&self.handles);
            let Ok(status) = spawn_blocking(move || handles.status()).await else { return };
            if !screen.line(&self.live_line(&status)) {
                return;
            }
        }
    }

    fn live_line(&mut self, status: &Status) -> String {
        let sums = Sums::of(status);
        let acks =
            self.handles.view.load().sources.first().map(|source| source.stats.ack.snapshot()).unwrap_or_default();
        let p99 = acks.since(&self.acks).quantile(0.99);
        self.acks = acks;
        let oldest =
            status.lanes.iter().flat_map(|lane| &lane.destinations).filter_map(|to| to.oldest.as_deref()).min();
        let links = &status.links;
        let up = links.iter().filter(|link| link.is_up).count();
        let link = match (self.wan.is_cut(), up) {
            (true, _) => "WAN CUT".to_owned(),
            (false, up) if up == links.len() => "link up".to_owned(),
            (false, up) => {
                let reason = links.iter().find_map(|link| link.reason.as_deref().filter(|_| !link.is_up));
                format!("link {up}/{}: {}", links.len(), reason.unwrap_or("connecting"))
            }
        };
        format!(
            "accepted {:>9}  delivered {:>9}  queued {:>7}  oldest {:>6}  p99 to ack {:>4.1} ms  {link}",
            grouped(sums.accepted),
            grouped(sums.delivered),
            grouped(sums.queued),
            oldest
                .and_then(Timestamp::parse)
                .map_or_else(|| "-".to_owned(), |at| rough(Timestamp::from(clock::wall()).since(at))),
            p99.as_secs_f64() * 1e3,
        )
    }

    /// Waits until the backlog is delivered, if the WAN is up.
    async fn drain(&mut self) {
        if self.wan.is_cut() {
            return;
        }
        let deadline = clock::instant() + DRAIN_WAIT_MAX;
        while Sums::of(&self.handles.status()).queued > 0 && clock::instant() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Sums {
    accepted: u64,
    delivered: u64,
    queued: u64,
    dead: u64,
    /// Events that were shed, expired or discarded, or that were in a damaged file.
    lost: u64,
}

impl Sums {
    fn of(status: &Status) -> Self {
        let mut sums = Self::default();
        for lane in &status.lanes {
            sums.accepted += lane.accepted;
            for to in &lane.destinations {
                sums.delivered += to.delivered;
                sums.queued += to.queued;
                sums.dead += to.dead;
                sums.lost += to.expired + to.shed + to.discarded + to.set_aside;
            }
        }
        sums
    }
}

fn print_balance(status: &Status, received: u64) {
    let sums = Sums::of(status);
    let on_arrival = status.dead.total - sums.dead;
    let out = sums.delivered + sums.queued + sums.dead + sums.lost;
    say!("Balance of this journal since its creation:\n");
    say!("  {:>12}  events accepted", grouped(sums.accepted));
    say!("  {:>12}  delivered", grouped(sums.delivered));
    say!(
        "  {:>12}  queued{}",
        grouped(sums.queued),
        if sums.queued > 0 { ": stored in the journal, will be delivered after the next start" } else { "" }
    );
    say!("  {:>12}  dead letters of central", grouped(sums.dead));
    if sums.lost > 0 {
        say!("  {:>12}  lost or discarded; see `forebay audit`", grouped(sums.lost));
    }
    say!(
        "  {:>12}  {}\n",
        grouped(sums.accepted.abs_diff(out)),
        if sums.accepted == out { "missing: it balances" } else { "DIFFERENCE: it does not balance" }
    );
    say!("  {:>12}  messages were rejected on arrival and kept as dead letters, with the reason", grouped(on_arrival));
    say!("  {:>12}  publishes received by central in this run, repeats included\n", grouped(received));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of 99 characters wrapped on 80 columns and scrolled four times a second.
    #[test]
    fn the_live_line_never_wraps() {
        let line = "accepted 1,234,567  delivered 1,234,567  queued  12,345  oldest 1h 12m  p99 to ack  1.2 ms  link 0/3: connection refused";
        for columns in [20, 80, 100, 120, 200] {
            let text = fitted(line, Some(columns));
            assert!(text.chars().count() < columns, "{columns}: {text}");
        }
        assert!(fitted(line, Some(200)).ends_with("[q] stop") && fitted(line, Some(80)).contains("out 1,234,567"));
    }
}
