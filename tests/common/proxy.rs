//! A WAN that can be cut: a TCP proxy on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    delay: Arc<std::sync::atomic::AtomicU64>,
    carried: Arc<std::sync::atomic::AtomicU64>,
}

impl Proxy {
    pub fn start(to: SocketAddr) -> Self {
        let (state, seen) = watch::channel(Cut::Not);
        let delay = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let carried = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (sender, receiver) = std::sync::mpsc::channel();
        let theirs = (Arc::clone(&delay), Arc::clone(&carried));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async move {
                let first = TcpListener::bind("127.0.0.1:0").await.expect("port");
                let address = first.local_addr().expect("address");
                sender.send(address).expect("awaited");
                accept(first, address, to, seen, theirs).await;
            });
        });
        Self { address: receiver.recv().expect("started"), state, delay, carried }
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
        self.carried.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Holds every piece back for so long, in each direction.
    pub fn delay(&self, by: Duration) {
        self.delay.store(by.as_millis() as u64, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The delay in milliseconds, and the bytes carried.
type Counters = (Arc<std::sync::atomic::AtomicU64>, Arc<std::sync::atomic::AtomicU64>);

async fn accept(
    first: TcpListener,
    address: SocketAddr,
    to: SocketAddr,
    mut seen: watch::Receiver<Cut>,
    counters: Counters,
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
                tokio::spawn(carry(stream, to, seen.clone(), counters.clone()));
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

async fn carry(near: TcpStream, to: SocketAddr, mut seen: watch::Receiver<Cut>, counters: Counters) {
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
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let up = tokio::spawn(copy(near_read, far_write, seen.clone(), counters.clone()));
    let down = tokio::spawn(copy(far_read, near_write, seen.clone(), counters));
    let _ = tokio::join!(up, down);
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut seen: watch::Receiver<Cut>,
    (delay, carried): Counters,
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
                carried.fetch_add(read as u64, std::sync::atomic::Ordering::Relaxed);
                let wait = delay.load(std::sync::atomic::Ordering::Relaxed);
                if wait > 0 {
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}
