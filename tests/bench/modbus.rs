//! 2,000 points on 20 Modbus/TCP devices, once a second, every value new each time.
//!
//! All devices are due at the same moments: one moment at which the machine is busy elsewhere counts 20
//! times, and only some hundred moments tell a percentile.

use crate::common::kill;
use crate::measure::{Process, Times};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const DEVICES: usize = 20;
const POINTS: usize = 100;

/// When each device was asked.
type Asked = Arc<Mutex<Vec<Instant>>>;

pub fn polled(seconds: u64, folder: &Path) {
    let seconds = seconds.max(5);
    let devices: Vec<(SocketAddr, Asked)> = (0..DEVICES).map(|_| device()).collect();
    let folder = folder.join("modbus");
    let addresses: Vec<_> = devices.iter().map(|(address, _)| *address).collect();
    prepare(&folder, &addresses);
    let log = std::fs::File::create(folder.join("log")).expect("log");
    let mut gateway = Command::new(crate::peers::program())
        .args(["run", "--config"])
        .arg(folder.join("forebay.toml"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the gateway starts");
    let start = Instant::now();
    while devices.iter().any(|(_, asked)| asked.lock().expect("lock").len() < 3) {
        assert!(start.elapsed() < Duration::from_secs(20), "a device is not asked");
        std::thread::sleep(Duration::from_millis(10));
    }
    for (_, asked) in &devices {
        asked.lock().expect("lock").clear();
    }
    let before = Process::read(gateway.id());
    std::thread::sleep(Duration::from_secs(seconds));
    let after = Process::read(gateway.id());
    let told = accepted(&folder);
    let mut off = Vec::new();
    let mut requests = 0;
    for (_, asked) in &devices {
        let asked = asked.lock().expect("lock");
        requests += asked.len();
        off.extend(off_the_beat(&asked));
    }
    kill(&mut gateway);
    let wanted = DEVICES * seconds as usize;
    assert!(requests.abs_diff(wanted) <= DEVICES, "{requests} requests where {wanted} were due");
    assert!(told as usize + DEVICES >= wanted, "{told} events where every reading makes one");
    let off = Times::new(off);
    println!("\nModbus: {} points on {DEVICES} TCP devices, once a second, every value new", DEVICES * POINTS);
    println!(
        "  a request is off its beat by p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms; {:.2} % of a core, RSS {:.1} MB",
        off.quantile(0.5),
        off.quantile(0.99),
        off.quantile(1.0),
        (after.cpu - before.cpu) / seconds as f64 * 100.0,
        after.rss_mb
    );
}

/// Events that the gateway has taken.
fn accepted(folder: &Path) -> u64 {
    let status = Command::new(crate::peers::program())
        .args(["status", "--json", "--config"])
        .arg(folder.join("forebay.toml"))
        .output()
        .expect("the program runs");
    crate::common::gateway::accepted(&serde_json::from_slice(&status.stdout).expect("JSON"))
}

/// How far each request is from a beat of one second, in milliseconds: the beat that fits most.
fn off_the_beat(asked: &[Instant]) -> Vec<f64> {
    let Some(first) = asked.first() else { return Vec::new() };
    let mut phases: Vec<f64> = asked
        .iter()
        .enumerate()
        .map(|(beat, at)| at.duration_since(*first).as_secs_f64() * 1e3 - beat as f64 * 1e3)
        .collect();
    let mut sorted = phases.clone();
    let middle = crate::measure::median(&mut sorted);
    phases.iter_mut().for_each(|phase| *phase = (*phase - middle).abs());
    phases
}

/// A device whose registers are new with each request.
fn device() -> (SocketAddr, Asked) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (address, asked) = (socket.local_addr().expect("address"), Asked::default());
    let theirs = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in socket.incoming().flatten() {
            let _ = serve(stream, &theirs);
        }
    });
    (address, asked)
}

fn serve(mut stream: TcpStream, asked: &Asked) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut count = 0u16;
    let mut request = [0; 12];
    loop {
        stream.read_exact(&mut request)?;
        asked.lock().expect("lock").push(Instant::now());
        count += 1;
        let registers = u16::from_be_bytes([request[10], request[11]]);
        let mut answer = request[..4].to_vec();
        answer.extend_from_slice(&(3 + registers * 2).to_be_bytes());
        answer.extend_from_slice(&[request[6], request[7], (registers * 2) as u8]);
        for register in 0..registers {
            answer.extend_from_slice(&(count.wrapping_mul(31).wrapping_add(register)).to_be_bytes());
        }
        stream.write_all(&answer)?;
    }
}

fn prepare(folder: &Path, devices: &[SocketAddr]) {
    for inner in ["contracts", "devices"] {
        std::fs::create_dir_all(folder.join(inner)).expect("folder");
    }
    let mut table = String::from("[group.process]\ninterval = \"1s\"\n");
    for point in 0..POINTS {
        table += &format!("[[point]]\nname = \"value_{point}\"\naddress = {point}\nscale = 0.1\n");
    }
    std::fs::write(folder.join("devices/machine.toml"), table).expect("written");
    let contract = "name = \"machine.reading\"\nversion = \"1.0.0\"\nowner = \"bench\"\nmatch = { source = \"modbus\", topic = \"{machine}/{group}\" }\nkey = \"{machine}\"\ntime = \"/ts\"\n";
    std::fs::write(folder.join("contracts/reading.toml"), contract).expect("written");
    let mut config = String::from("environment = \"bench\"\nsite = \"plant\"\nname = \"gw\"\ndata_dir = \"data\"\n");
    for (index, address) in devices.iter().enumerate() {
        config += &format!(
            "[[source.modbus]]\nname = \"bus-{index}\"\nurl = \"tcp://{address}\"\nunit = [{{ name = \"machine-{index}\", device = \"machine\" }}]\n"
        );
    }
    std::fs::write(folder.join("forebay.toml"), config).expect("written");
}
