//! One attack on a gateway with 256 MiB, and what becomes of the gateway and of a device that behaves.

use crate::common::births;
use crate::common::cgroup::Cgroup;
use crate::common::client::{Client, Hello, publish};
use crate::common::free_address;
use crate::common::gateway::{Gateway, payload};
use crate::common::pki::Pki;
use crate::common::random::Random;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// `MemoryMax=` of the packaged unit.
pub const LIMIT: u64 = 256 << 20;
/// What the process may take beside what its permits count: caches, journal, and what the allocator keeps.
const BESIDE: u64 = 24 << 20;

/// Where an attack goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Mqtt,
    MqttWithTls,
    Http,
    Monitoring,
}

/// The other doors of a gateway.
#[derive(Clone, Copy)]
pub struct Doors {
    secure: SocketAddr,
    http: SocketAddr,
    monitoring: SocketAddr,
}

/// How long a device may wait for its PUBACK in a run that is alone on the machine (`FOREBAY_SIEGE_SECONDS`). Without
/// optimisation the gateway has a fifth of its speed or less. Beside other tests only a device that is not served is found.
const LATENCY_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });
const LATENCY_MAX_BESIDE_OTHERS: Duration = Duration::from_secs(10);

/// What clients do. Connections come from an address that no device has.
pub struct Attack {
    pub connections: usize,
    pub target: Target,
    /// What each says first: number of the connection, how often it has connected before.
    pub hello: fn(usize, usize) -> Vec<u8>,
    /// Whether CONNACK is awaited.
    pub is_let_in: bool,
    /// What it sends next: number of the connection, how many of these it has sent.
    pub packet: fn(usize, usize) -> Vec<u8>,
    /// How many of these; then it waits for the end, or closes and comes again.
    pub times: usize,
    pub comes_again: bool,
    /// Whether it reads what it is sent.
    pub reads: bool,
    /// Whether the lane of the topics `full/…` has no room.
    pub is_lane_full: bool,
}

/// How long an attack goes on.
fn duration() -> Duration {
    let seconds = std::env::var("FOREBAY_SIEGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// A gateway under the limit, with a listener for each way to speak to it; `listener` are settings of the plain MQTT
/// listener. `None` where there can be no limit.
pub fn gateway(name: &str, rest: &str, listener: &str) -> Option<(Gateway, Doors, Cgroup)> {
    let cgroup = Cgroup::with_memory(LIMIT)?;
    let doors = Doors { secure: free_address(), http: free_address(), monitoring: free_address() };
    let Doors { secure, http, monitoring } = doors;
    let tables = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:1\"\n[lane.bulk]\nbudget = \"8MiB\"\nlinger = \"0s\"\nfull = \"stop-acknowledging\"\n{rest}[[source.mqtt]]\nname = \"secure\"\nlisten = \"{secure}\"\ntls = {{ cert = \"server.pem\", key = \"server.key\", client_ca = \"ca.pem\" }}\n[[source.http]]\nname = \"programs\"\nlisten = \"{http}\"\n[monitoring]\nlisten = \"{monitoring}\"\n"
    );
    let mut gateway = Gateway::prepare(name, &tables);
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let plain = format!("listen = \"{}\"\n", gateway.address);
    assert!(config.contains(&plain), "{config}");
    std::fs::write(gateway.config(), config.replacen(&plain, &format!("{plain}{listener}"), 1)).expect("written");
    std::fs::write(
        gateway.folder.join("contracts/full.toml"),
        "name = \"full\"\nversion = \"1.0.0\"\nowner = \"tests\"\nlane = \"bulk\"\nmatch = { source = \"mqtt\", topic = \"full/{line}/{machine}\" }\nkey = \"{machine}\"\n",
    )
    .expect("written");
    births::add_contract(&gateway.folder);
    std::fs::write(gateway.folder.join("users"), "").expect("written");
    Pki::write(&gateway.folder);
    gateway.through = cgroup.through();
    gateway.as_the_unit_sets_it();
    gateway.run();
    Some((gateway, doors, cgroup))
}

/// Uses up the budget of the lane of `full/…`. From then on the gateway does not read what else comes.
fn fill(gateway: &Gateway) {
    use std::io::Write;
    let client = Client::connect(gateway.address, &Hello { client: "filler", ..Hello::default() }).0;
    let mut stream = client.stream.try_clone().expect("a socket");
    // A disk may be slow for a while: only the gateway says when the lane is full.
    let filling = std::thread::spawn(move || {
        for id in 1..=400 {
            let payload = format!("{{\"n\":\"{}\"}}", Random::with_seed(id.into()).text(60_000));
            if stream.write_all(&publish(true, 1, id, "full/line/filler", &[], payload.as_bytes())).is_err() {
                break;
            }
        }
    });
    gateway.await_status("the lane is full", Duration::from_secs(30), |status| {
        status["problems"].to_string().contains("lane bulk: the budget")
    });
    client.die();
    filling.join().expect("it ends with its connection");
}

/// Memory of a process; `None` once it has ended.
pub fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Runs an attack and judges how the gateway withstands it.
pub fn withstand(name: &str, attack: Attack) {
    let Some((gateway, doors, cgroup)) = gateway(name, "", "") else { return };
    if attack.is_lane_full {
        fill(&gateway);
    }
    let (address, pid) = (gateway.address, gateway.pid());
    let idle = resident(pid).expect("it runs");
    let is_over = Arc::new(AtomicBool::new(false));
    let device = spawn_until(&is_over, move |is_over| device(address, None, is_over));
    let newcomer = spawn_until(&is_over, move |is_over| newcomer(address, is_over));
    let most = spawn_until(&is_over, move |is_over| {
        let mut most = 0;
        while !is_over.load(Ordering::Relaxed) {
            most = most.max(resident(pid).unwrap_or(0));
            std::thread::sleep(Duration::from_millis(5));
        }
        most
    });
    let target = match attack.target {
        Target::Mqtt => address,
        Target::MqttWithTls => doors.secure,
        Target::Http => doors.http,
        Target::Monitoring => doors.monitoring,
    };
    let connects = assault(target, attack, duration());
    is_over.store(true, Ordering::Relaxed);
    let latency = device.join().expect("the device is served");
    let waited = newcomer.join().expect("newcomers are let in");
    let most = most.join().expect("measured");
    let kills = cgroup.kills();
    assert!(kills == 0 && resident(pid).is_some(), "the kernel killed it for memory: {kills}");
    let status = gateway.status();
    let memory = &status["memory"];
    let [peak, permits_max] = ["permits_peak", "permits_max"].map(|name| memory[name].as_u64().unwrap_or(0));
    println!(
        "{name}: {connects} connects, RSS {idle} to {most}, {memory}, device p99 {latency:?}, newcomers at most {waited:?}"
    );
    assert!(most <= permits_max * 3 / 2, "RSS {most}: {memory}");
    assert!(most <= idle + BESIDE + peak * 3 / 2, "RSS {most}, {idle} before: {memory}");
    check_latency(latency);
    assert!(waited <= Duration::from_secs(10), "a device that is not logged in waits: {waited:?}");
}

/// Whether a device that was logged in before was answered soon enough.
pub fn check_latency(latency: Duration) {
    let is_alone = std::env::var_os("FOREBAY_SIEGE_SECONDS").is_some();
    let latency_max = if is_alone { LATENCY_MAX } else { LATENCY_MAX_BESIDE_OTHERS };
    assert!(latency <= latency_max, "a device that is logged in waits: {latency:?}");
}

pub fn spawn_until<T: Send + 'static>(
    is_over: &Arc<AtomicBool>,
    work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let is_over = Arc::clone(is_over);
    std::thread::spawn(move || work(&is_over))
}

/// A device that is logged in before the attack: the 99th percentile of the time to its PUBACK.
pub fn device(address: SocketAddr, login: Option<(&str, &str)>, is_over: &AtomicBool) -> Duration {
    let mut client = Client::connect(address, &Hello { client: "device", login, ..Hello::default() }).0;
    let mut took = Vec::new();
    while !is_over.load(Ordering::Relaxed) || took.is_empty() {
        let sent = Instant::now();
        client.publish(true, 1, "plant/line-1/device/state", payload(1, took.len()).as_bytes());
        took.push(sent.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    took.sort();
    took[(took.len() * 99 / 100).min(took.len() - 1)]
}

/// Devices that come while the attack goes on: the longest time until one has logged in and got a PUBACK.
fn newcomer(address: SocketAddr, is_over: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    let mut count = 0;
    while !is_over.load(Ordering::Relaxed) || count == 0 {
        let began = Instant::now();
        while !comes_in(address, count) {
            assert!(began.elapsed() < Duration::from_secs(30), "nobody gets in");
            std::thread::sleep(Duration::from_millis(50));
        }
        longest = longest.max(began.elapsed());
        count += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    longest
}

/// One attempt, as devices make it.
fn comes_in(address: SocketAddr, count: usize) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(10)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut bytes = Hello { is_v5: false, client: "newcomer", ..Hello::default() }.bytes();
    bytes.extend(publish(false, 1, 1, "plant/line-1/newcomer/state", &[], payload(2, count).as_bytes()));
    let mut answer = [0; 8];
    stream.write_all(&bytes).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == [0x20, 2, 0, 0, 0x40, 2, 0, 1]
}

/// Lets the clients of an attack loose; how often they have connected.
fn assault(target: SocketAddr, attack: Attack, lasts: Duration) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let (attack, connects) = (Arc::new(attack), Arc::new(AtomicU64::new(0)));
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + lasts;
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..attack.connections {
            let (attack, connects) = (Arc::clone(&attack), Arc::clone(&connects));
            clients.spawn(async move {
                for round in 0.. {
                    connects.fetch_add(1, Ordering::Relaxed);
                    // An end is what the attack is for: it comes again.
                    let _ = one_connection(target, &attack, number, round).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        tokio::time::sleep_until(deadline).await;
        clients.shutdown().await;
    });
    connects.load(Ordering::Relaxed)
}

async fn one_connection(target: SocketAddr, attack: &Attack, number: usize, round: usize) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0)))?;
    let mut stream: TcpStream = socket.connect(target).await?;
    stream.write_all(&(attack.hello)(number, round)).await?;
    let mut scrap = [0; 4096];
    if attack.is_let_in {
        // The start of CONNACK: 3.1.1 has no more, and the rest of 5 is read or is not.
        stream.read_exact(&mut scrap[..4]).await?;
    }
    let (mut reader, mut writer) = stream.split();
    let reads = attack.reads;
    let reading = async {
        while reads && reader.read(&mut scrap).await.is_ok_and(|read| read > 0) {}
        if !reads {
            std::future::pending::<()>().await;
        }
    };
    let writing = async {
        for count in 0..attack.times {
            writer.write_all(&(attack.packet)(number, round * attack.times + count)).await?;
        }
        if !attack.comes_again {
            std::future::pending::<()>().await;
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        () = reading => Ok(()),
        written = writing => written,
    }
}
