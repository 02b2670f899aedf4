//! A centre over a plain socket that decides on each publish as the test says: any reason code, late, in pieces, or with
//! an end of the connection. It remembers every publish with its bytes, and what became of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One publish as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Number of its connection, in the order in which they were opened.
    pub connection: usize,
    pub topic: String,
    /// One event, or those of a batch: key and sequence.
    pub events: Vec<(String, u64)>,
    /// Bytes of the packet.
    pub bytes: usize,
    pub at: Instant,
    /// When the answer was sent, and which; `None` while there is none.
    pub answered: Option<(Instant, u8)>,
}

impl Seen {
    pub fn is_own(&self) -> bool {
        self.topic.contains("/gateway.")
    }

    pub fn is_accepted(&self) -> bool {
        self.answered.is_some_and(|(_, code)| code < 0x80)
    }

    pub fn is_refused(&self) -> bool {
        self.answered.is_some_and(|(_, code)| code >= 0x80)
    }
}

/// What becomes of a publish.
#[derive(Clone, Debug)]
pub enum Do {
    Answer(u8),
    Late(u8, Duration),
    /// Ends the connection; earlier answers are sent first.
    Close,
    /// Answers with these bytes.
    Raw(Vec<u8>),
    Nothing,
}

pub type Judge = Box<dyn FnMut(&Seen) -> Do + Send>;

pub struct Scripted {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    bodies: Arc<Mutex<Vec<serde_json::Value>>>,
    is_over: Arc<AtomicBool>,
}

struct Shared {
    refuse_wills: Option<u8>,
    connack: Vec<u8>,
    judge: Mutex<Judge>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Events of the gateway itself.
    bodies: Arc<Mutex<Vec<serde_json::Value>>>,
    is_over: Arc<AtomicBool>,
    connections: AtomicUsize,
}

impl Scripted {
    /// Accepts the gateway's own events, and asks `judge` about all others. `connack` has the properties of CONNACK.
    pub fn start(connack: Vec<u8>, judge: impl FnMut(&Seen) -> Do + Send + 'static) -> Self {
        Self::refusing_wills(None, connack, judge)
    }

    /// The same, and refuses clients with a will, as the status connection has one, with this code.
    pub fn refusing_wills(code: Option<u8>, connack: Vec<u8>, judge: impl FnMut(&Seen) -> Do + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let address = listener.local_addr().expect("address");
        let (seen, bodies, is_over) = <(Arc<Mutex<Vec<Seen>>>, Arc<Mutex<Vec<_>>>, Arc<AtomicBool>)>::default();
        let shared = Arc::new(Shared {
            refuse_wills: code,
            connack,
            judge: Mutex::new(Box::new(judge)),
            seen: Arc::clone(&seen),
            bodies: Arc::clone(&bodies),
            is_over: Arc::clone(&is_over),
            connections: AtomicUsize::new(0),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&shared);
                // However it ends.
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        Self { address, seen, bodies, is_over }
    }

    /// The lines of a destination that leads here.
    pub fn destination(&self, name: &str) -> String {
        format!("\n[[destination]]\nname = \"{name}\"\nurl = \"mqtt://{}\"\n", self.address)
    }

    /// Publishes of the plant, without the gateway's own.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("lock").iter().filter(|seen| !seen.is_own()).cloned().collect()
    }

    /// Events of one of the gateway's own streams.
    pub fn own(&self, stream: &str) -> Vec<serde_json::Value> {
        let kind = format!("gateway.{stream}.v1");
        let is_meant = |event: &&serde_json::Value| event["type"].as_str().is_some_and(|text| text.ends_with(&kind));
        self.bodies.lock().expect("lock").iter().filter(is_meant).cloned().collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// A code about retained messages refuses only a will that is to be retained.
fn is_refused_will(flags: u8, code: Option<u8>) -> bool {
    const RETAIN_NOT_SUPPORTED: u8 = 0x9A;
    let meant = if code == Some(RETAIN_NOT_SUPPORTED) { 0x24 } else { 0x04 };
    code.is_some() && flags & meant == meant
}

/// An answer on its way, and the publish that it is about.
struct Pending {
    due: Instant,
    bytes: Vec<u8>,
    answers: Option<(usize, u8)>,
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(2)))?;
    let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
    let (mut input, mut buffer, mut pending) = (Vec::new(), vec![0; 64 << 10], Vec::new());
    while !shared.is_over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => input.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        let mut at = 0;
        let mut is_closing = false;
        while let Ok(Some(frame)) = forebay::mqtt::frame(&input[at..], usize::MAX) {
            at += frame.length;
            match frame.first >> 4 {
                1 if is_refused_will(frame.body[7], shared.refuse_wills) => {
                    return stream.write_all(&[0x20, 3, 0, shared.refuse_wills.unwrap_or(0), 0]);
                }
                1 => {
                    let mut answer = vec![0x20, 3 + shared.connack.len() as u8, 0, 0, shared.connack.len() as u8];
                    answer.extend_from_slice(&shared.connack);
                    stream.write_all(&answer)?;
                }
                3 if !is_closing => is_closing = take(shared, connection, &frame, &mut pending),
                12 => stream.write_all(&[0xD0, 0])?,
                14 => return Ok(()),
                _ => {}
            }
        }
        input.drain(..at);
        let now = Instant::now();
        pending.sort_by_key(|one: &Pending| one.due);
        let count = if is_closing { pending.len() } else { pending.partition_point(|one| one.due <= now) };
        answer(&mut stream, shared, pending.drain(..count).collect())?;
        if is_closing {
            return Ok(());
        }
    }
    Ok(())
}

/// Writes answers; every third write is cut in two.
fn answer(stream: &mut TcpStream, shared: &Shared, due: Vec<Pending>) -> std::io::Result<()> {
    if due.is_empty() {
        return Ok(());
    }
    let bytes: Vec<u8> = due.iter().flat_map(|one| one.bytes.iter().copied()).collect();
    {
        // Noted first: the answer may be read before this thread runs again.
        let (mut seen, now) = (shared.seen.lock().expect("lock"), Instant::now());
        for (index, code) in due.iter().filter_map(|one| one.answers) {
            seen[index].answered = Some((now, code));
        }
    }
    let cut = if bytes.len().is_multiple_of(3) { bytes.len() / 2 } else { bytes.len() };
    stream.write_all(&bytes[..cut])?;
    if cut < bytes.len() {
        std::thread::sleep(Duration::from_millis(1));
        stream.write_all(&bytes[cut..])?;
    }
    Ok(())
}

/// Takes a publish; returns whether the connection ends.
fn take(shared: &Shared, connection: usize, frame: &forebay::mqtt::Frame<'_>, pending: &mut Vec<Pending>) -> bool {
    let publish = forebay::mqtt::publish(frame.first, frame.body, true).expect("a publish");
    let packed = publish.content_type.is_some_and(|kind| kind.ends_with("+zstd"));
    let payload = match packed {
        true => zstd::stream::decode_all(publish.payload).expect("zstd"),
        false => publish.payload.to_vec(),
    };
    let body: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
    let events: Vec<&serde_json::Value> = body.as_array().map_or(vec![&body], |events| events.iter().collect());
    let place = |event: &&serde_json::Value| {
        let sequence = event["sequence"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        (event["subject"].as_str().unwrap_or_default().to_owned(), sequence)
    };
    let seen = Seen {
        connection,
        topic: publish.topic.to_owned(),
        events: events.iter().map(place).collect(),
        bytes: frame.length,
        at: Instant::now(),
        answered: None,
    };
    let what = match seen.is_own() {
        true => Do::Answer(0),
        false => (shared.judge.lock().expect("lock"))(&seen),
    };
    if seen.is_own() {
        shared.bodies.lock().expect("lock").extend(events.into_iter().cloned());
    }
    let index = {
        let mut all = shared.seen.lock().expect("lock");
        all.push(seen);
        all.len() - 1
    };
    let [high, low] = publish.packet_id.to_be_bytes();
    let (code, delay) = match what {
        _ if publish.packet_id == 0 => return false,
        Do::Answer(code) => (code, Duration::ZERO),
        Do::Late(code, delay) => (code, delay),
        Do::Raw(bytes) => {
            pending.push(Pending { due: Instant::now(), bytes, answers: None });
            return false;
        }
        Do::Nothing => return false,
        Do::Close => return true,
    };
    let bytes = if code == 0 { vec![0x40, 2, high, low] } else { vec![0x40, 3, high, low, code] };
    pending.push(Pending { due: Instant::now() + delay, bytes, answers: Some((index, code)) });
    false
}
