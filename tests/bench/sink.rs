//! The centre: takes publishes over TLS with client certificates, acknowledges them, and checks
//! that each device's come in order.

use crate::common::pki::Pki;
use crate::load::Load;
use crate::measure::Times;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    count: AtomicU64,
    /// Repeats and late ones included.
    count_all: AtomicU64,
    links: AtomicU64,
    is_reordered: AtomicBool,
    is_lost: AtomicBool,
    clock: Instant,
    /// Device, sequence, arrival in nanoseconds.
    arrivals: Mutex<Vec<(u32, u32, u64)>>,
    /// Next sequence of each device.
    next: Vec<AtomicU64>,
}

impl Sink {
    /// `devices` is how many are checked; 0 for a sink that only counts.
    pub fn start(pki: &Pki, devices: usize) -> Self {
        let shared = Arc::new(Shared {
            count: AtomicU64::new(0),
            count_all: AtomicU64::new(0),
            links: AtomicU64::new(0),
            is_reordered: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            clock: Instant::now(),
            arrivals: Mutex::new(Vec::with_capacity(1 << 20)),
            next: (0..devices).map(|_| AtomicU64::new(0)).collect(),
        });
        let acceptor = tokio_rustls::TlsAcceptor::from(pki.server());
        let (sender, receiver) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
                sender.send(listener.local_addr().expect("address")).expect("awaited");
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).expect("set");
                    let (acceptor, shared) = (acceptor.clone(), Arc::clone(&theirs));
                    // A thread for each, as a broker of many cores has: one lane's flood must not delay another here.
                    let stream = stream.into_std().expect("a socket");
                    std::thread::spawn(move || {
                        let runtime =
                            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                        runtime.block_on(async move {
                            let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
                            if let Ok(stream) = acceptor.accept(stream).await {
                                // A connection that ends is the sender's affair.
                                let _ = serve(stream, &shared).await;
                            }
                        })
                    });
                }
            });
        });
        Self { address: receiver.recv().expect("started"), shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn clock(&self) -> Instant {
        self.shared.clock
    }

    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// How many events have arrived, repeats and those out of their order included.
    pub fn count_all(&self) -> u64 {
        self.shared.count_all.load(Ordering::Relaxed)
    }

    /// How many events of these devices have arrived.
    pub fn count_of(&self, devices: std::ops::Range<usize>) -> u64 {
        self.shared.next[devices].iter().map(|next| next.load(Ordering::Relaxed)).sum()
    }

    pub fn await_link(&self) {
        let start = Instant::now();
        while self.shared.links.load(Ordering::Relaxed) == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "no link came up");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Waits until so many different events have arrived.
    pub fn await_events(&self, events: u64, patience: Duration) {
        let start = Instant::now();
        while self.count() < events {
            assert!(start.elapsed() < patience, "{} of {events} arrived", self.count());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn check_order(&self) {
        assert!(!self.shared.is_reordered.load(Ordering::Relaxed), "events of one device came in another order");
        assert!(!self.shared.is_lost.load(Ordering::Relaxed), "events of one device are missing");
    }

    /// When each event of a device arrived first: sequence, nanoseconds of the clock.
    pub fn arrivals_of(&self, device: u32) -> Vec<(u32, u64)> {
        let arrivals = self.shared.arrivals.lock().expect("lock");
        arrivals.iter().filter(|arrival| arrival.0 == device).map(|arrival| (arrival.1, arrival.2)).collect()
    }

    /// Times from sending to arrival.
    pub fn latency(&self, load: &Load) -> Times {
        let arrivals = self.shared.arrivals.lock().expect("lock");
        let times = arrivals.iter().map(|(device, sequence, at)| {
            (*at as f64 - load.sent_at(*device as usize, *sequence as usize) as f64) / 1e6
        });
        Times::new(times.collect())
    }
}

async fn serve<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut stream: S,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut input: Vec<u8> = Vec::with_capacity(256 << 10);
    let mut output = Vec::new();
    let mut is_v5 = false;
    let mut arrivals = Vec::new();
    loop {
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let now = shared.clock.elapsed().as_nanos() as u64;
        let mut at = 0;
        let (mut count, mut count_all) = (0, 0);
        while let Some((first, body, length)) = frame(&input[at..]) {
            match first >> 4 {
                1 => {
                    is_v5 = body[6] == 5;
                    if is_v5 {
                        // Receive Maximum 65,535 is the default.
                        output.extend_from_slice(&[0x20, 3, 0, 0, 0]);
                    } else {
                        output.extend_from_slice(&[0x20, 2, 0, 0]);
                    }
                    shared.links.fetch_add(1, Ordering::Relaxed);
                }
                3 => {
                    let topic_length = usize::from(u16::from_be_bytes([body[0], body[1]]));
                    if first & 6 != 0 {
                        output.extend_from_slice(&[0x40, 2, body[2 + topic_length], body[3 + topic_length]]);
                    }
                    // One event, or those of a batch.
                    for (device, sequence) in identities(&body[4 + topic_length..]) {
                        count_all += 1;
                        count += u64::from(shared.note(device, sequence));
                        if !shared.next.is_empty() {
                            arrivals.push((device, sequence, now));
                        }
                    }
                }
                8 => output.extend_from_slice(if is_v5 { &[0x90, 4, 0, 0, 0, 1] } else { &[0x90, 3, 0, 0, 1] }),
                12 => output.extend_from_slice(&[0xD0, 0]),
                14 => return Ok(()),
                _ => {}
            }
            if first >> 4 == 8 {
                let end = output.len();
                output[end - if is_v5 { 4 } else { 3 }] = body[0];
                output[end - if is_v5 { 3 } else { 2 }] = body[1];
            }
            at += length;
        }
        input.drain(..at);
        shared.count.fetch_add(count, Ordering::Relaxed);
        shared.count_all.fetch_add(count_all, Ordering::Relaxed);
        if !arrivals.is_empty() && arrivals.len() < 10_000 {
            shared.arrivals.lock().expect("lock").append(&mut arrivals);
        }
        arrivals.clear();
        stream.write_all(&output).await?;
        stream.flush().await?;
        output.clear();
    }
}

impl Shared {
    /// Whether the event is new.
    fn note(&self, device: u32, sequence: u32) -> bool {
        let Some(next) = self.next.get(device as usize) else { return self.next.is_empty() };
        let expected = next.load(Ordering::Relaxed);
        let sequence = u64::from(sequence);
        if sequence > expected {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        if sequence >= expected {
            next.store(sequence + 1, Ordering::Relaxed);
        }
        // One that comes again after a lost answer is below; a first one never is.
        sequence >= expected
    }
}

fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let mut remaining = 0;
    for place in 0..4 {
        let byte = *bytes.get(1 + place)?;
        remaining |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            let from = 2 + place;
            return Some((bytes[0], bytes.get(from..from + remaining)?, from + remaining));
        }
    }
    None
}

/// Device and sequence from each `"msg_id":"07-00000123"`, wherever in the payload it stands.
fn identities(payload: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    const MARK: &[u8] = b"\"msg_id\":\"";
    let digits =
        |range: &[u8]| range.iter().try_fold(0u32, |sum, digit| Some(sum * 10 + u32::from(digit.checked_sub(b'0')?)));
    memchr::memmem::find_iter(payload, MARK).filter_map(move |at| {
        let at = at + MARK.len();
        Some((digits(payload.get(at..at + 2)?)?, digits(payload.get(at + 3..at + 11)?)?))
    })
}
