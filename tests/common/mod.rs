//! What the tests and the benchmark share.

#![allow(dead_code, clippy::unwrap_used, reason = "tests and benchmark use different parts, and may fail")]

pub mod authority;
pub mod births;
pub mod broker;
pub mod centre;
pub mod cgroup;
pub mod client;
pub mod devices;
pub mod fault_disk;
pub mod gateway;
pub mod http;
pub mod leak;
pub mod line;
pub mod loss;
pub mod need;
pub mod pki;
pub mod plant;
pub mod process;
pub mod program;
pub mod proxy;
pub mod random;
pub mod real_proxy;
pub mod scripted;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as SocketName, UnixListener};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A folder on a real disk: the system's temporary folder may be memory.
pub fn scratch() -> PathBuf {
    std::env::var_os("FOREBAY_SCRATCH").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A port that no other test gets while this process runs, and no outgoing connection: those begin at 32768.
///
/// Tests run in parallel, each in its own process, and a broker that is killed and started again needs its port back. An
/// abstract socket named after the port is the reservation; the kernel drops it with the process.
pub fn free_address() -> SocketAddr {
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    loop {
        let port = 10_000 + (uuid::Uuid::new_v4().as_u128() % 22_000) as u16;
        let name = SocketName::from_abstract_name(format!("forebay-test-port-{port}")).expect("a name");
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            RESERVED.lock().expect("lock").push(reservation);
            return address;
        }
    }
}

/// Waits until somebody listens.
pub fn await_port(address: SocketAddr) {
    let start = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connects from an address of its own: all of 127.0.0.0/8 are this machine's.
pub fn dial_from(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// What a process holds in memory, in kB.
pub fn resident_kilobytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("RSS");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Ends a process as an operator would, and as the kernel would if that takes too long.
pub fn end(child: &mut Child) {
    if let Ok(Some(_)) = child.try_wait() {
        return;
    }
    signal(child, "TERM");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(child);
}

/// SIGKILL, at once.
pub fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

pub fn signal(child: &Child, name: &str) {
    let _ = std::process::Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
}

/// A signal to a process that somebody else waits for.
pub fn signal_pid(pid: u32, name: &str) {
    let _ = std::process::Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
}
