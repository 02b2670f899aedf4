//! What a service manager is told by the real program, over a real socket.

use crate::common::client::{Client, Heard, Hello, publish};
use crate::common::gateway::{Gateway, payload};
use crate::common::need;
use crate::common::signal_pid;
use crate::power_cut_real::Card;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

/// A gateway with a service manager that hears it.
struct Managed {
    gateway: Gateway,
    manager: UnixDatagram,
}

impl Managed {
    fn prepare(name: &str, rest: &str, watchdog: Duration) -> Self {
        let mut gateway = Gateway::prepare(name, rest);
        let socket = gateway.folder.join("notify");
        let manager = UnixDatagram::bind(&socket).expect("bound");
        manager.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        gateway.environment = vec![
            ("NOTIFY_SOCKET".into(), socket.display().to_string()),
            ("WATCHDOG_USEC".into(), watchdog.as_micros().to_string()),
        ];
        Self { gateway, manager }
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.manager.recv(&mut bytes).expect("the manager is told something in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// What it is told up to a message that begins like this.
    fn await_message(&self, start: &str) -> (String, Vec<String>) {
        let mut before = Vec::new();
        loop {
            let message = self.hear();
            if message.starts_with(start) {
                return (message, before);
            }
            assert!(before.len() < 1000, "{start} does not come: {before:?}");
            before.push(message);
        }
    }
}

#[test]
fn the_manager_hears_of_start_state_life_reload_and_end() {
    let mut managed = Managed::prepare("service", "", Duration::from_millis(400));
    managed.gateway.spawn();
    assert_eq!(managed.hear(), "READY=1", "the first that it is told");
    // The one that it is meant for may rely on it at once.
    TcpStream::connect(managed.gateway.address).expect("the listener is open when the manager is told so");
    managed.await_message("WATCHDOG=1");
    let (status, _) = managed.await_message("STATUS=");
    assert_eq!(status, "STATUS=0 events accepted, 0 queued; no destination is configured");

    let (mut device, _) = Client::connect(managed.gateway.address, &Hello::default());
    device.publish(true, 1, "plant/a/m1/state", payload(1, 1).as_bytes());
    let (status, _) = managed.await_message("STATUS=");
    assert!(status.starts_with("STATUS=1 events accepted"), "{status}");

    signal_pid(managed.gateway.pid(), "HUP");
    managed.await_message("RELOADING=1\nMONOTONIC_USEC=");
    managed.await_message("READY=1");
    managed.await_message("WATCHDOG=1");
    managed.gateway.stop();
    let (_, before) = managed.await_message("STOPPING=1");
    assert!(before.iter().all(|message| !message.starts_with("READY")), "{before:?}");
}

#[test]
fn a_start_that_fails_says_why() {
    let mut managed = Managed::prepare("service-bad", "", Duration::ZERO);
    let config = managed.gateway.config();
    let text = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, text.replace("site = \"plant\"", "sight = \"plant\"")).expect("written");
    managed.gateway.spawn();
    let status = managed.hear();
    assert!(status.starts_with("STATUS=") && status.contains("forebay.toml:") && status.contains("sight"), "{status}");
    assert_eq!(managed.gateway.await_exit(), Some(1));
}

#[test]
fn a_gateway_with_an_empty_journal_is_ready_at_once() {
    // The best of some: other tests want the machine too. Without optimisation it may take longer.
    let allowed = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 300 });
    let took = (0..5).map(|round| {
        let mut managed = Managed::prepare(&format!("service-ready-{round}"), "", Duration::ZERO);
        let start = Instant::now();
        managed.gateway.spawn();
        managed.await_message("READY=1");
        start.elapsed()
    });
    let best = took.min().expect("five rounds");
    println!("ready after {best:?}");
    assert!(best < allowed, "{best:?}");
}

#[test]
fn a_process_that_is_stopped_does_not_feed_the_watchdog() {
    let mut managed = Managed::prepare("service-stopped", "", Duration::from_millis(200));
    managed.gateway.spawn();
    managed.await_message("WATCHDOG=1");
    signal_pid(managed.gateway.pid(), "STOP");
    // What was on its way when it was stopped.
    managed.manager.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
    while managed.manager.recv(&mut [0; 4096]).is_ok() {}
    assert!(managed.manager.recv(&mut [0; 4096]).is_err(), "silence");
    managed.manager.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    signal_pid(managed.gateway.pid(), "CONT");
    managed.await_message("WATCHDOG=1");
}

/// A file system that is frozen as long as this lives: who writes to it waits, and cannot be ended.
struct Frozen<'c>(&'c Card);

impl<'c> Frozen<'c> {
    fn new(card: &'c Card) -> Self {
        let frozen = Command::new("fsfreeze").arg("-f").arg(&card.mount).status().expect("fsfreeze");
        assert!(frozen.success());
        Self(card)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0.mount).status();
    }
}

#[test]
fn a_disk_that_hangs_is_reported_and_the_gateway_is_left_alive() {
    if !need::root("a file system of its own") {
        return;
    }
    let mut managed = Managed::prepare("service-frozen", "", Duration::from_millis(400));
    let card = Card::make(&managed.gateway.folder);
    let config = managed.gateway.config();
    let text = std::fs::read_to_string(&config).expect("read");
    let data = format!("data_dir = \"{}\"\nsocket = \"socket\"", card.mount.join("data").display());
    std::fs::write(&config, text.replace("data_dir = \"data\"", &data)).expect("written");
    managed.gateway.spawn();
    managed.await_message("READY=1");
    let (mut device, _) = Client::connect(managed.gateway.address, &Hello::default());
    device.publish(true, 1, "plant/a/m1/state", payload(1, 1).as_bytes());

    let frozen = Frozen::new(&card);
    device.send(&publish(true, 1, 2, "plant/a/m1/state", &[], payload(1, 2).as_bytes()));
    let (status, _) = managed.await_message("STATUS=the writer of lane critical waits for the disk");
    assert!(status.contains("does not respond"), "{status}");
    // Twice the watchdog's time and more, while nothing reaches the disk.
    for _ in 0..8 {
        managed.await_message("WATCHDOG=1");
    }
    assert!(matches!(device.hear(Duration::from_millis(50)), Heard::Nothing), "nothing is acknowledged meanwhile");
    drop(frozen);
    assert_eq!(device.receive().expect("the PUBACK")[0], 0x40, "it goes on by itself");
    managed.await_message("STATUS=2 events accepted");
    managed.gateway.stop();
}
