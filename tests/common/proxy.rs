//! A WAN that can be cut: a TCP proxy on loopback.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the WAN is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It carries everything.
    Not,
    /// Connections end and new ones are refused.
    Refuse,
    /// Bytes stay where they are, and connections that are new get no answer.
    Silent,
}

pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<Cut>,
    line: Arc<Line>,
}

/// The line of all connections.
#[derive(Default)]
struct Line {
    delay_ms: AtomicU64,
    carried: AtomicU64,
    /// Connections since the start.
    connections: AtomicU64,
    /// Bytes per second in each direction; 0 for no limit.
    rate: AtomicU64,
    /// When the line is idle again, up and down.
    idle_at: [Mutex<Option<Instant>>; 2],
}

impl Line {
    /// Time until the line has carried so many bytes, behind those before them.
    fn carry(&self, bytes: usize, direction: usize) -> Duration {
        self.carried.fetch_add(bytes as u64, Ordering::Relaxed);
        let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed));
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return delay;
        }
        let now = Instant::now();
        let mut idle_at = self.idle_at[direction].lock().expect("lock");
        let done = idle_at.map_or(now, |at| at.max(now)) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *idle_at = Some(done);
        delay + done.duration_since(now)
    }
}

impl Proxy {
    pub fn start(to: SocketAddr) -> Self {
        let (state, seen) = watch::channel(Cut::Not);
        let line = Arc::new(Line::default());
        let (sender, receiver) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&line);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async move {
                let first = TcpListener::bind("127.0.0.1:0").await.expect("port");
                let address = first.local_addr().expect("address");
                sender.send(address).expect("awaited");
                accept(first, address, to, seen, theirs).await;
            });
        });
        Self { address: receiver.recv().expect("started"), state, line }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn cut(&self, how: Cut) {
        self.state.send_replace(how);
    }

    pub fn restore(&self) {
        self.state.send_replace(Cut::Not);
    }

    /// Bytes that it has carried, in both directions.
    pub fn carried(&self) -> u64 {
        self.line.carried.load(Ordering::Relaxed)
    }

    /// Holds every piece back for so long, in each direction.
    pub fn delay(&self, by: Duration) {
        self.line.delay_ms.store(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// Carries so many bytes per second in each direction, over all connections. What it has read stands in its buffers.
    pub fn slow_down(&self, bytes_per_second: u64) {
        self.line.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Connections that it has carried.
    pub fn connections(&self) -> u64 {
        self.line.connections.load(Ordering::Relaxed)
    }
}

async fn accept(
    first: TcpListener,
    address: SocketAddr,
    to: SocketAddr,
    mut seen: watch::Receiver<Cut>,
    line: Arc<Line>,
) {
    let mut listener = Some(first);
    loop {
        let state = *seen.borrow_and_update();
        if state == Cut::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = rebind(address).await;
        }
        let accepting = async {
            match &listener {
                // A silent WAN leaves the SYN in the kernel's queue, which answers it; the bytes go nowhere.
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = seen.changed() => if changed.is_err() {
                return;
            },
            accepted = accepting => if let Ok((stream, _)) = accepted {
                tokio::spawn(carry(stream, to, seen.clone(), Arc::clone(&line)));
            },
        }
    }
}

async fn rebind(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..200 {
        let socket = tokio::net::TcpSocket::new_v4().ok()?;
        socket.set_reuseaddr(true).ok()?;
        if socket.bind(address).is_ok() {
            return socket.listen(64).ok();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    None
}

async fn carry(near: TcpStream, to: SocketAddr, mut seen: watch::Receiver<Cut>, line: Arc<Line>) {
    // A connection that began in silence stays silent: its first packets are lost.
    if *seen.borrow_and_update() == Cut::Silent {
        while *seen.borrow_and_update() == Cut::Silent {
            if seen.changed().await.is_err() {
                return;
            }
        }
        return;
    }
    let Ok(far) = TcpStream::connect(to).await else { return };
    line.connections.fetch_add(1, Ordering::Relaxed);
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let up = tokio::spawn(copy((near_read, far_write), 0, seen.clone(), Arc::clone(&line)));
    let down = tokio::spawn(copy((far_read, near_write), 1, seen.clone(), line));
    let _ = tokio::join!(up, down);
}

async fn copy(
    (mut from, mut to): (OwnedReadHalf, OwnedWriteHalf),
    direction: usize,
    mut seen: watch::Receiver<Cut>,
    line: Arc<Line>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let state = *seen.borrow_and_update();
        match state {
            Cut::Refuse => return,
            Cut::Silent => {
                if seen.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Cut::Not => {}
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() {
                return;
            },
            read = from.read(&mut buffer) => {
                let Ok(read) = read else { return };
                if read == 0 {
                    return;
                }
                let wait = line.carry(read, direction);
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}
