//! A real Mosquitto as the centre, and somebody who subscribes there.

use super::pki::Pki;
use super::{await_port, end, free_address, kill};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub struct Mosquitto {
    pub tls: SocketAddr,
    pub plain: SocketAddr,
    /// Port for WebSockets over TLS.
    pub websocket: SocketAddr,
    config: PathBuf,
    child: Option<Child>,
}

impl Mosquitto {
    /// A broker with TLS and client certificates on one port, and plain TCP on another.
    pub fn start(folder: &Path, pki: &Pki) -> Self {
        let (tls, plain, websocket) = (free_address(), free_address(), free_address());
        let config = folder.join("mosquitto.conf");
        let text = format!(
            "per_listener_settings false\nallow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\nlog_type error\n\
             listener {} 127.0.0.1\nlistener {} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
            plain.port(),
            tls.port(),
            pki.ca.display(),
            pki.server_cert.display(),
            pki.server_key.display(),
        );
        let text = format!(
            "{text}listener {} 127.0.0.1\nprotocol websockets\ncertfile {}\nkeyfile {}\n",
            websocket.port(),
            pki.server_cert.display(),
            pki.server_key.display(),
        );
        std::fs::write(&config, text).expect("written");
        let mut broker = Self { tls, plain, websocket, config, child: None };
        broker.run();
        broker
    }

    pub fn run(&mut self) {
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(&self.config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto starts; apt-get install mosquitto");
        let child = self.child.insert(child);
        await_port(self.plain);
        assert!(child.try_wait().expect("waited").is_none(), "Mosquitto ended, and somebody else has its port");
    }

    /// Has it read its certificates anew.
    pub fn reload(&self) {
        let pid = self.child.as_ref().expect("runs").id();
        Command::new("kill").args(["-HUP", &pid.to_string()]).status().expect("signalled");
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(&mut child);
        }
    }

    /// The destination that leads here, or to `port` in front of it.
    pub fn destination(&self, pki: &Pki, port: u16) -> String {
        Self::destination_at(pki, &format!("mqtts://localhost:{port}"))
    }

    /// A destination with this URL.
    pub fn destination_at(pki: &Pki, url: &str) -> String {
        format!(
            "\n[[destination]]\nname = \"central\"\nurl = \"{url}\"\nrequire_subscriber = true\ntls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}\n",
            pki.ca.display(),
            pki.client_cert.display(),
            pki.client_key.display(),
        )
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }
}

/// One event as it arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub topic: String,
    pub payload: Vec<u8>,
}

impl Arrived {
    pub fn event(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).expect("a CloudEvent")
    }
}

/// Subscribes at a broker with QoS 0, and again whenever it comes back. Mosquitto writes to such
/// a subscriber before it acknowledges the publisher, so that its death loses nothing it had acknowledged.
pub struct Collector {
    arrived: Arc<Mutex<Vec<Arrived>>>,
    is_over: Arc<AtomicBool>,
    is_subscribed: Arc<AtomicBool>,
}

impl Collector {
    pub fn start(broker: SocketAddr, filter: &str) -> Self {
        let arrived: Arc<Mutex<Vec<Arrived>>> = Arc::default();
        let theirs = Arc::clone(&arrived);
        Self::handing_to(broker, filter, arrived, move |found| theirs.lock().expect("lock").extend(found))
    }

    /// Hands what arrives to `each`, and keeps nothing.
    pub fn each(broker: SocketAddr, filter: &str, each: impl FnMut(Vec<Arrived>) + Send + 'static) -> Self {
        Self::handing_to(broker, filter, Arc::default(), each)
    }

    fn handing_to(
        broker: SocketAddr,
        filter: &str,
        arrived: Arc<Mutex<Vec<Arrived>>>,
        mut each: impl FnMut(Vec<Arrived>) + Send + 'static,
    ) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let is_subscribed = Arc::new(AtomicBool::new(false));
        let (over, subscribed, filter) = (Arc::clone(&is_over), Arc::clone(&is_subscribed), filter.to_owned());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                // A broker that is gone comes back.
                let _ = collect(broker, &filter, &mut each, &over, &subscribed);
                subscribed.store(false, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let collector = Self { arrived, is_over, is_subscribed };
        let start = Instant::now();
        while !collector.is_subscribed.load(Ordering::Relaxed) {
            assert!(start.elapsed() < Duration::from_secs(10), "the collector cannot subscribe");
            std::thread::sleep(Duration::from_millis(2));
        }
        collector
    }

    pub fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().expect("lock").clone()
    }

    pub fn count(&self) -> usize {
        self.arrived.lock().expect("lock").len()
    }

    pub fn await_count(&self, count: usize, patience: Duration) -> Vec<Arrived> {
        let start = Instant::now();
        while self.count() < count {
            assert!(start.elapsed() < patience, "{} of {count} arrived", self.count());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.arrived()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn collect(
    broker: SocketAddr,
    filter: &str,
    each: &mut impl FnMut(Vec<Arrived>),
    over: &AtomicBool,
    subscribed: &AtomicBool,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut hello = vec![0x10, 21, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 9];
    // Collectors of one broker must not take each other's session over.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    hello.extend_from_slice(format!("c{:08}", NUMBER.fetch_add(1, Ordering::Relaxed)).as_bytes());
    stream.write_all(&hello)?;
    let mut subscribe = vec![0x82, 5 + filter.len() as u8, 0, 1, 0, filter.len() as u8];
    subscribe.extend_from_slice(filter.as_bytes());
    subscribe.push(0);
    stream.write_all(&subscribe)?;
    let mut input = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => input.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => return Err(error),
        }
        let mut at = 0;
        let mut found = Vec::new();
        while let Ok(Some(frame)) = forebay::mqtt::frame(&input[at..], usize::MAX) {
            match frame.first >> 4 {
                9 => subscribed.store(true, Ordering::Relaxed),
                3 => {
                    let publish = forebay::mqtt::publish(frame.first, frame.body, false).expect("a publish");
                    found.push(Arrived { topic: publish.topic.to_owned(), payload: publish.payload.to_vec() });
                }
                _ => {}
            }
            at += frame.length;
        }
        input.drain(..at);
        if !found.is_empty() {
            each(std::mem::take(&mut found));
        }
    }
    Ok(())
}

/// What must hold of everything that arrived: every acknowledged event is there, each device's
/// events in order, and what came twice has the same source and id.
pub fn check_arrivals(arrived: &[Arrived], acknowledged: &[(usize, usize)]) {
    check_arrivals_but(arrived, &[], acknowledged);
}

/// The same; arrivals `in_doubt` came from a disk that had lost its power already, so that their sequences may have been
/// given again.
pub fn check_arrivals_but(arrived: &[Arrived], in_doubt: &[Range<usize>], acknowledged: &[(usize, usize)]) {
    let mut first_place: HashMap<(usize, usize), (String, String)> = HashMap::new();
    let mut last: HashMap<usize, usize> = HashMap::new();
    let mut sequences: HashMap<u64, (String, String)> = HashMap::new();
    let mut repeats = 0;
    for (index, event) in arrived.iter().map(Arrived::event).enumerate() {
        let id = event["id"].as_str().expect("an id").to_owned();
        let source = event["source"].as_str().expect("a source").to_owned();
        let message = event["data"]["msg_id"].as_str().expect("a message id");
        let (device, number) = message.split_once('-').expect("device and number");
        let place: (usize, usize) = (device.parse().expect("a number"), number.parse().expect("a number"));
        let sequence: u64 = event["sequence"].as_str().expect("a sequence").parse().expect("a number");
        if !in_doubt.iter().any(|range| range.contains(&index)) {
            let known = sequences.entry(sequence).or_insert_with(|| (source.clone(), id.clone()));
            assert_eq!(*known, (source.clone(), id.clone()), "sequence {sequence} was given twice");
        }
        match first_place.get(&place) {
            Some(before) => {
                repeats += 1;
                assert_eq!(*before, (source, id), "a copy of {place:?} has another identity");
            }
            None => {
                let last = last.entry(place.0).or_insert(0);
                assert!(place.1 >= *last, "device {} was at {last} when {} came for the first time", place.0, place.1);
                *last = place.1;
                first_place.insert(place, (source, id));
            }
        }
    }
    let missing: Vec<_> = acknowledged.iter().filter(|place| !first_place.contains_key(place)).take(5).collect();
    let newest = sequences.keys().max().copied().unwrap_or(0);
    let gaps: Vec<u64> = (1..=newest).filter(|sequence| !sequences.contains_key(sequence)).collect();
    assert!(
        missing.is_empty(),
        "acknowledged and never delivered: {missing:?} …; {} sequences up to {newest} did not arrive, from {:?} to {:?}",
        gaps.len(),
        gaps.first(),
        gaps.last()
    );
    println!("{} acknowledged, {} arrived, {repeats} of them repeats", acknowledged.len(), arrived.len());
}

/// What was acknowledged and never arrived.
pub fn missing(arrived: &[Arrived], acknowledged: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let there: std::collections::HashSet<String> =
        arrived.iter().map(|event| event.event()["data"]["msg_id"].as_str().unwrap_or_default().to_owned()).collect();
    acknowledged
        .iter()
        .filter(|(device, number)| !there.contains(&format!("{device:02}-{number:08}")))
        .copied()
        .collect()
}
