//! Devices that behave: each publishes in order, remembers what was acknowledged, and after a lost
//! connection comes back and sends the rest again.

use super::gateway::payload;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Devices {
    acknowledged: Arc<Mutex<Vec<(usize, usize)>>>,
    count: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Devices {
    /// `count` devices with up to `in_flight` publishes unacknowledged, each pausing between bursts.
    pub fn start(to: SocketAddr, count: usize, in_flight: usize, pause: Duration) -> Self {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let counter = Arc::new(AtomicUsize::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let (theirs, counted, over) = (Arc::clone(&acknowledged), Arc::clone(&counter), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let mut tasks = Vec::new();
                for device in 0..count {
                    tasks.push(tokio::spawn(live(
                        to,
                        device,
                        in_flight,
                        pause,
                        Arc::clone(&theirs),
                        Arc::clone(&counted),
                        Arc::clone(&over),
                    )));
                }
                for task in tasks {
                    task.await.expect("a device lives");
                }
            });
        });
        Self { acknowledged, count: counter, is_over, thread: Some(thread) }
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends the devices; returns what was acknowledged.
    pub fn stop(mut self) -> Vec<(usize, usize)> {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the devices end");
        }
        self.acknowledged.lock().expect("lock").clone()
    }
}

async fn live(
    to: SocketAddr,
    device: usize,
    in_flight: usize,
    pause: Duration,
    acknowledged: Arc<Mutex<Vec<(usize, usize)>>>,
    count: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
) {
    let mut next = 0;
    let mut open: VecDeque<usize> = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = connect(to, device).await else {
            tokio::time::sleep(Duration::from_millis(3)).await;
            continue;
        };
        let mut is_again = true;
        // Any error means that the gateway is gone for a moment.
        loop {
            let mut bytes = Vec::new();
            if is_again {
                open.iter().for_each(|sequence| push(&mut bytes, device, *sequence, true));
                is_again = false;
            }
            while open.len() < in_flight && !over.load(Ordering::Relaxed) {
                push(&mut bytes, device, next, false);
                open.push_back(next);
                next += 1;
            }
            if open.is_empty() {
                return;
            }
            if stream.write_all(&bytes).await.is_err() {
                break;
            }
            let mut answer = [0; 4];
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await;
            if !matches!(read, Ok(Ok(_))) {
                break;
            }
            let Some(first) = open.pop_front() else { break };
            assert_eq!(answer[0], 0x40, "something else than a PUBACK came");
            assert_eq!(
                u16::from_be_bytes([answer[2], answer[3]]),
                id(first),
                "PUBACKs come in the order of the publishes"
            );
            acknowledged.lock().expect("lock").push((device, first));
            count.fetch_add(1, Ordering::Relaxed);
            if !pause.is_zero() && open.is_empty() {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

fn id(sequence: usize) -> u16 {
    (sequence % 65_535 + 1) as u16
}

fn push(out: &mut Vec<u8>, device: usize, sequence: usize, dup: bool) {
    let topic = format!("plant/line1/m{device:02}/state");
    let payload = payload(device, sequence);
    let remaining = 2 + topic.len() + 2 + payload.len();
    out.push(if dup { 0x3A } else { 0x32 });
    out.extend_from_slice(&[(remaining & 0x7F) as u8 | 0x80, (remaining >> 7) as u8, 0, topic.len() as u8]);
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(&id(sequence).to_be_bytes());
    out.extend_from_slice(payload.as_bytes());
}

async fn connect(to: SocketAddr, device: usize) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let client = format!("device-{device:02}");
    let mut hello =
        vec![0x10, 12 + client.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, client.len() as u8];
    hello.extend_from_slice(client.as_bytes());
    stream.write_all(&hello).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer[3] == 0 { Ok(stream) } else { Err(std::io::Error::other("refused")) }
}
