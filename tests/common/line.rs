//! A line with a rate, a delay and loss: this machine at one end, a network namespace at the other.
//!
//! Two TUN devices carry the packets to this process, which forwards them when their time has come. It needs no help of
//! the kernel (`netem`). Beside it runs a fast way, for those who watch the other end.

use super::need::Need;
use super::random::Random;
use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What a line carries.
#[derive(Clone, Copy, Debug)]
pub struct LineSpec {
    pub kbit_per_second: f64,
    /// One way.
    pub delay: Duration,
    pub loss_percent: u64,
}

impl LineSpec {
    /// Time for so many bytes.
    pub fn seconds(&self, bytes: f64) -> f64 {
        bytes * 8.0 / (self.kbit_per_second * 1000.0)
    }
}

/// Largest packet.
const MTU: usize = 1400;
/// A queue of more than this drops what comes, as routers do.
const QUEUE_MAX: Duration = Duration::from_secs(2);

/// Packets with the times at which they arrive.
type Queue = (Mutex<VecDeque<(Instant, Vec<u8>)>>, Condvar);

pub struct SlowLine {
    namespace: String,
    /// Address of the far end over the line.
    pub far: Ipv4Addr,
    /// Address of the far end over the fast way.
    pub fast: Ipv4Addr,
    /// Bytes of packets that went up, and down.
    carried: [Arc<AtomicU64>; 2],
    /// The DSCPs of packets that went up.
    marks: Arc<Mutex<BTreeSet<u8>>>,
    is_over: Arc<AtomicBool>,
    children: Vec<Child>,
}

impl SlowLine {
    /// `number` tells the lines of one test apart. `None` where the test cannot run, which is then reported.
    pub fn start(folder: &Path, number: u8, spec: LineSpec) -> Option<Self> {
        let is_here = super::need::is_root()
            && Path::new("/dev/net/tun").exists()
            && Command::new("socat").arg("-V").output().is_ok();
        if !Need::Tun.is_met(is_here, "a line of its own needs root, /dev/net/tun and socat") {
            return None;
        }
        let process = std::process::id();
        let half = number * 2;
        let net = free_net((process % 150) as u8 + 100, half);
        let at = |part: u8, host: u8| Ipv4Addr::new(10, net, half + part, host);
        let namespace = format!("fb{}n{number}", process % 100_000);
        ip(&format!("netns add {namespace}"));
        let mut line = Self {
            far: at(0, 2),
            fast: at(1, 2),
            carried: Default::default(),
            marks: Arc::default(),
            is_over: Arc::default(),
            children: Vec::new(),
            namespace,
        };
        let name = &line.namespace;
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("link add {name}v type veth peer name {name}w netns {name}"));
        ip(&format!("addr add {}/24 dev {name}v", at(1, 1)));
        ip(&format!("link set {name}v up"));
        ip(&format!("-n {name} addr add {}/24 dev {name}w", line.fast));
        ip(&format!("-n {name} link set {name}w up"));
        let ends = ["near", "far"].map(|end| UnixDatagram::bind(folder.join(format!("{number}{end}"))).expect("bound"));
        let (near, far) = (at(0, 1), line.far);
        line.tun(folder, number, ("near", near), &[]);
        let inside = ["ip", "netns", "exec", &line.namespace.clone()].map(str::to_owned);
        line.tun(folder, number, ("far", far), &inside);
        let [near, far] = ends.map(Arc::new);
        let device = |end: &str| folder.join(format!("{number}{end}-tun"));
        line.forward(0, (&near, &far), device("far"), spec);
        line.forward(1, (&far, &near), device("near"), spec);
        Some(line)
    }

    /// The words in front of a command that runs at the far end.
    pub fn inside(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace].map(str::to_owned).into()
    }

    /// Bytes of packets that went up: headers are in them, and what was lost.
    pub fn carried_up(&self) -> u64 {
        self.carried[0].load(Ordering::Relaxed)
    }

    /// The DSCPs of the packets of IPv4 that went up.
    pub fn marks(&self) -> BTreeSet<u8> {
        self.marks.lock().expect("lock").clone()
    }

    /// Bytes of packets in both directions.
    pub fn carried(&self) -> u64 {
        self.carried.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }

    /// Makes a TUN device whose packets are datagrams of a Unix socket.
    fn tun(&mut self, folder: &Path, number: u8, (end, address): (&str, Ipv4Addr), through: &[String]) {
        let device = format!("{}{}", self.namespace, &end[..1]);
        let tun = format!("TUN:{address}/24,tun-name={device},iff-no-pi,iff-up");
        let socket = folder.join(format!("{number}{end}"));
        let bound = folder.join(format!("{number}{end}-tun"));
        let unix = format!("UNIX-SENDTO:{},bind={}", socket.display(), bound.display());
        let program = ["socat".to_owned(), "-b65536".to_owned(), tun, unix];
        let mut words = through.iter().chain(&program);
        let child = Command::new(words.next().expect("a word")).args(words).stderr(Stdio::null()).spawn();
        self.children.push(child.expect("socat starts"));
        let start = Instant::now();
        let inside = if through.is_empty() { String::new() } else { format!("-n {} ", self.namespace) };
        while !is_done(&format!("{inside}link set {device} mtu {MTU} up")) {
            assert!(start.elapsed() < Duration::from_secs(10), "no device {device}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Carries packets in one direction.
    fn forward(
        &self,
        direction: usize,
        (from, to): (&Arc<UnixDatagram>, &Arc<UnixDatagram>),
        device: std::path::PathBuf,
        spec: LineSpec,
    ) {
        let queue = Arc::<Queue>::default();
        let (carried, over) = (Arc::clone(&self.carried[direction]), Arc::clone(&self.is_over));
        let marks = (direction == 0).then(|| Arc::clone(&self.marks));
        let (from, to, theirs) = (Arc::clone(from), Arc::clone(to), Arc::clone(&queue));
        from.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        let mut random = Random::seeded();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 4096];
            let mut idle_at = Instant::now();
            while !over.load(Ordering::Relaxed) {
                let Ok(bytes) = from.recv(&mut buffer) else { continue };
                if let (Some(marks), 0x45) = (&marks, buffer[0]) {
                    marks.lock().expect("lock").insert(buffer[1] >> 2);
                }
                let now = Instant::now();
                idle_at = idle_at.max(now);
                if idle_at - now > QUEUE_MAX {
                    continue;
                }
                carried.fetch_add(bytes as u64, Ordering::Relaxed);
                idle_at += Duration::from_secs_f64(spec.seconds(bytes as f64));
                if random.below(100) >= spec.loss_percent {
                    queue.0.lock().expect("lock").push_back((idle_at + spec.delay, buffer[..bytes].to_vec()));
                    queue.1.notify_one();
                }
            }
        });
        let over = Arc::clone(&self.is_over);
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let packet = {
                    let waiting = theirs.0.lock().expect("lock");
                    let (mut waiting, _) = theirs
                        .1
                        .wait_timeout_while(waiting, Duration::from_millis(100), |waiting| waiting.is_empty())
                        .expect("lock");
                    waiting.pop_front()
                };
                if let Some((due, packet)) = packet {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    // A device whose queue is full loses it.
                    let _ = to.send_to(&packet, &device);
                }
            }
        });
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        is_done(&format!("link del {}v", self.namespace));
        is_done(&format!("netns del {}", self.namespace));
    }
}

/// Returns the first second byte of an address, from `first` on, that no interface has: another test may have the same
/// number, and one that was killed leaves its interfaces behind.
fn free_net(first: u8, half: u8) -> u8 {
    let shown = Command::new("ip").args(["-o", "-4", "addr"]).output().expect("ip runs; apt-get install iproute2");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let is_free = |net: &u8| [half, half + 1].iter().all(|part| !shown.contains(&format!("inet 10.{net}.{part}.")));
    (first..=u8::MAX).chain(100..first).find(is_free).expect("a free network")
}

fn is_done(arguments: &str) -> bool {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs; apt-get install iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
