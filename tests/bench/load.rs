//! The load: devices that publish 256-byte JSON whose values do not repeat.

use crate::common::pki::Pki;
use crate::measure::Times;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of every payload.
const PAYLOAD_BYTES: usize = 256;

pub struct Load {
    /// For each device its publishes, ready to be written.
    devices: Vec<Vec<u8>>,
    per_device: usize,
    packet_bytes: usize,
    /// When each event was sent, in nanoseconds of the clock given to `run_at`.
    sent_at: Vec<AtomicU64>,
    sent: AtomicU64,
}

/// xorshift64*: seeded, so that each run has the same payloads.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// One payload: eight fields, exactly `PAYLOAD_BYTES`.
fn payload(random: &mut Random, device: usize, sequence: usize, out: &mut Vec<u8>) {
    use std::io::Write;
    let start = out.len();
    let state = ["running", "idle", "fault", "setup"][(random.next() % 4) as usize];
    write!(
        out,
        r#"{{"msg_id":"{device:02}-{sequence:08}","ts":{}.{:03},"state":"{state}","temperature":{}.{:03},"pressure":{}.{:04},"count":{},"order":"WH/MO/{:05}","trace":""#,
        1_790_000_000 + random.next() % 10_000_000,
        random.next() % 1000,
        random.next() % 200,
        random.next() % 1000,
        random.next() % 100,
        random.next() % 10_000,
        random.next() % 10_000_000,
        random.next() % 100_000,
    )
    .expect("written to memory");
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = 0;
    let mut left = 0;
    while out.len() - start < PAYLOAD_BYTES - 2 {
        if left == 0 {
            (bits, left) = (random.next(), 10);
        }
        out.push(LETTERS[(bits & 63) as usize]);
        bits >>= 6;
        left -= 1;
    }
    out.extend_from_slice(b"\"}");
}

fn topic(device: usize) -> String {
    format!("plant/line1/m{device:02}/state")
}

impl Load {
    pub fn prepare(devices: usize, events: usize, seed: u64) -> Self {
        let per_device = events / devices;
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut packet_bytes = 0;
        let devices: Vec<Vec<u8>> = (0..devices)
            .map(|device| {
                let mut bytes = Vec::with_capacity(per_device * 300);
                for sequence in 0..per_device {
                    let start = bytes.len();
                    let topic = topic(device);
                    let remaining = 2 + topic.len() + 2 + PAYLOAD_BYTES;
                    bytes.extend_from_slice(&[
                        0x32,
                        (remaining & 0x7F) as u8 | 0x80,
                        (remaining >> 7) as u8,
                        0,
                        topic.len() as u8,
                    ]);
                    bytes.extend_from_slice(topic.as_bytes());
                    bytes.extend_from_slice(&((sequence % 65_535 + 1) as u16).to_be_bytes());
                    payload(&mut random, device, sequence, &mut bytes);
                    packet_bytes = bytes.len() - start;
                }
                bytes
            })
            .collect();
        let count = devices.len() * per_device;
        Self {
            devices,
            per_device,
            packet_bytes,
            sent_at: (0..count).map(|_| AtomicU64::new(0)).collect(),
            sent: AtomicU64::new(0),
        }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn sent_at(&self, device: usize, sequence: usize) -> u64 {
        self.sent_at[device * self.per_device + sequence].load(Ordering::Relaxed)
    }

    /// Every device publishes as fast as it is acknowledged, `in_flight` at once. Returns the times
    /// from publish to PUBACK of every tenth.
    pub fn run(&self, to: SocketAddr, in_flight: usize) -> Times {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let times = runtime.block_on(async {
            let devices = (0..self.devices.len()).map(|device| self.device(to, device, in_flight));
            let mut all = Vec::new();
            for times in futures_join(devices.collect()).await {
                all.extend(times);
            }
            all
        });
        Times::new(times)
    }

    async fn device(&self, to: SocketAddr, device: usize, in_flight: usize) -> Vec<f64> {
        let mut stream = connect(to, device).await;
        let bytes = &self.devices[device];
        let (mut sent, mut acked) = (0, 0);
        let mut started = std::collections::VecDeque::new();
        let mut times = Vec::new();
        let mut input = vec![0; 4096];
        let mut partial = 0;
        while acked < self.per_device {
            let until = (acked + in_flight).min(self.per_device);
            if sent < until {
                let now = Instant::now();
                stream.write_all(&bytes[sent * self.packet_bytes..until * self.packet_bytes]).await.expect("sent");
                for _ in sent..until {
                    started.push_back(now);
                }
                sent = until;
            }
            let read = stream.read(&mut input).await.expect("read");
            assert!(read > 0, "the peer closed the connection");
            // Nothing but PUBACKs of four bytes comes.
            partial += read;
            let now = Instant::now();
            for _ in 0..partial / 4 {
                let start: Instant = started.pop_front().expect("sent before");
                if acked % 10 == 0 {
                    times.push((now - start).as_secs_f64() * 1e3);
                }
                acked += 1;
            }
            partial %= 4;
        }
        times
    }

    /// All devices together publish `rate` events a second, whatever is acknowledged.
    pub fn run_at(&self, to: SocketAddr, rate: f64, clock: &Instant) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut streams = Vec::new();
            for device in 0..self.devices.len() {
                let (mut reading, writing) = connect(to, device).await.into_split();
                tokio::spawn(async move {
                    let mut input = vec![0; 4096];
                    while matches!(reading.read(&mut input).await, Ok(read) if read > 0) {}
                });
                streams.push(writing);
            }
            let start = tokio::time::Instant::now();
            for index in 0..self.devices.len() * self.per_device {
                let (device, sequence) = (index % self.devices.len(), index / self.devices.len());
                let due = start + Duration::from_secs_f64(index as f64 / rate);
                // Timers have a grain of a millisecond; what is due within it goes together.
                if due > tokio::time::Instant::now() {
                    tokio::time::sleep_until(due).await;
                }
                self.sent_at[device * self.per_device + sequence]
                    .store(clock.elapsed().as_nanos() as u64, Ordering::Relaxed);
                let at = sequence * self.packet_bytes;
                streams[device].write_all(&self.devices[device][at..at + self.packet_bytes]).await.expect("sent");
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
            // Whoever closes with acknowledgements on the way may have the publishes thrown away.
            tokio::time::sleep(Duration::from_millis(500)).await;
        });
    }

    /// Sends one device's publishes over TLS, as a link would.
    pub fn flood_tls(&self, to: SocketAddr, pki: &Pki, window: usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let stream = TcpStream::connect(to).await.expect("connected");
            stream.set_nodelay(true).expect("set");
            let connector = tokio_rustls::TlsConnector::from(pki.client());
            let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
            let mut stream = connector.connect(name, stream).await.expect("TLS");
            stream.write_all(&hello("centre")).await.expect("sent");
            stream.flush().await.expect("sent");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await.expect("CONNACK");
            let (mut sent, mut acked) = (0, 0);
            let mut input = vec![0; 16384];
            let mut partial = 0;
            while acked < self.per_device {
                let until = (acked + window).min(self.per_device);
                if sent < until {
                    stream
                        .write_all(&self.devices[0][sent * self.packet_bytes..until * self.packet_bytes])
                        .await
                        .expect("sent");
                    stream.flush().await.expect("sent");
                    sent = until;
                }
                partial += stream.read(&mut input).await.expect("read");
                acked += partial / 4;
                partial %= 4;
            }
        });
    }
}

fn hello(client: &str) -> Vec<u8> {
    let mut bytes =
        vec![0x10, 12 + client.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, client.len() as u8];
    bytes.extend_from_slice(client.as_bytes());
    bytes
}

async fn connect(to: SocketAddr, device: usize) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.expect("connected");
    stream.set_nodelay(true).expect("set");
    stream.write_all(&hello(&format!("device-{device:02}"))).await.expect("sent");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.expect("CONNACK");
    assert_eq!(answer[3], 0, "refused");
    stream
}

/// Runs futures of one kind together on this thread.
async fn futures_join<F: Future<Output = Vec<f64>>>(futures: Vec<F>) -> Vec<Vec<f64>> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<Vec<f64>>> = futures.iter().map(|_| None).collect();
    let wakers: Vec<std::sync::Arc<Flag>> = futures.iter().map(|_| std::sync::Arc::new(Flag::default())).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for index in 0..futures.len() {
            if results[index].is_some() {
                continue;
            }
            if wakers[index].take(context.waker()) {
                let waker = std::task::Waker::from(std::sync::Arc::clone(&wakers[index]));
                let mut own = std::task::Context::from_waker(&waker);
                match futures[index].as_mut().poll(&mut own) {
                    std::task::Poll::Ready(result) => results[index] = Some(result),
                    std::task::Poll::Pending => pending = true,
                }
            } else {
                pending = true;
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// Wakes the whole only for the part that was woken.
struct Flag {
    woken: std::sync::atomic::AtomicBool,
    outer: std::sync::Mutex<Option<std::task::Waker>>,
}

impl Default for Flag {
    fn default() -> Self {
        Self { woken: true.into(), outer: None.into() }
    }
}

impl Flag {
    fn take(&self, outer: &std::task::Waker) -> bool {
        *self.outer.lock().expect("lock") = Some(outer.clone());
        self.woken.swap(false, Ordering::AcqRel)
    }
}

impl std::task::Wake for Flag {
    fn wake(self: std::sync::Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        if let Some(outer) = &*self.outer.lock().expect("lock") {
            outer.wake_by_ref();
        }
    }
}
