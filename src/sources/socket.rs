//! Sockets that sources listen on.

use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}{hint}")]
pub struct CannotBind {
    address: SocketAddr,
    error: std::io::Error,
    hint: &'static str,
}

/// A listening socket. `SO_REUSEADDR` lets a restarted gateway have its port back at once.
pub fn listen(address: SocketAddr) -> Result<TcpListener, CannotBind> {
    bind(address).map_err(|error| CannotBind {
        address,
        hint: match error.kind() {
            std::io::ErrorKind::AddrInUse => "; another program has the port, perhaps another Forebay or a broker",
            std::io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
            _ => "",
        },
        error,
    })
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if let Err(error) = socket.bind(&address.into()) {
        if error.kind() != std::io::ErrorKind::AddrNotAvailable {
            return Err(error);
        }
        // A box starts before its network is there; collecting on its other addresses does not wait for that.
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.bind(&address.into())?;
        tracing::warn!(%address, "this machine has no such address yet; it is listened on as soon as it has");
    }
    // Connections inherit it, so that those in the accept queue are bounded too.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// A port, and what its connections share: both can be replaced while connections last.
#[derive(Debug)]
pub struct Door<S>(watch::Sender<Arc<Setup<S>>>);

impl<S> Clone for Door<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What may be put in force behind a door.
#[derive(Debug)]
pub struct Prepared<S>(Arc<Setup<S>>);

/// What is in force behind a door.
#[derive(Debug)]
pub struct Setup<S> {
    /// What connections that come in from now on share.
    pub shared: Arc<S>,
    /// The address that was asked for.
    listen: SocketAddr,
    socket: Mutex<Option<Arc<TcpListener>>>,
}

impl<S> Door<S> {
    /// A door at this address.
    pub fn open(shared: S, listen: SocketAddr) -> Result<Self, CannotBind> {
        let socket = Arc::new(self::listen(listen)?);
        Ok(Self(watch::channel(Setup::new(shared, listen, Some(socket))).0))
    }

    /// Follows what is in force.
    pub fn follow(&self) -> watch::Receiver<Arc<Setup<S>>> {
        self.0.subscribe()
    }

    /// Readies something else, at the same address or at another, whose port is taken then; nothing changes yet.
    pub fn prepare(&self, shared: S, listen: SocketAddr) -> Result<Prepared<S>, CannotBind> {
        let (old, socket) = {
            let setup = self.0.borrow();
            (setup.listen, setup.socket())
        };
        let socket = if old == listen { socket } else { Some(Arc::new(self::listen(listen)?)) };
        Ok(Prepared(Setup::new(shared, listen, socket)))
    }

    /// Puts it in force. Connections last.
    pub fn put_in_force(&self, Prepared(setup): Prepared<S>) {
        self.0.send_replace(setup);
    }

    /// Says once more what is in force, to everybody who follows it.
    pub fn announce(&self) {
        self.0.send_modify(|_| ());
    }

    /// The address it really has.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        match self.0.borrow().socket() {
            Some(socket) => socket.local_addr(),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }
}

impl<S> Setup<S> {
    fn new(shared: S, listen: SocketAddr, socket: Option<Arc<TcpListener>>) -> Arc<Self> {
        Arc::new(Self { shared: Arc::new(shared), listen, socket: Mutex::new(socket) })
    }

    fn socket(&self) -> Option<Arc<TcpListener>> {
        self.socket.lock().clone()
    }

    /// The next connection; none any more once the port is closed. Safe to drop half-way.
    pub async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        match self.socket() {
            Some(socket) => socket.accept().await,
            None => std::future::pending().await,
        }
    }

    /// Closes the port; connections last.
    pub fn close(&self) {
        *self.socket.lock() = None;
    }
}

/// What the kernel buffers of a connection in each direction. It doubles this for its own needs, and without a bound lets
/// a client that does not read make it hold 4 MB, which the control group counts.
pub const BUFFER_BYTES: usize = 64 << 10;

/// Ends connections of peers that are gone within some two minutes, and of peers that live but
/// read nothing of what was written within `unread_max`. Bounds what the kernel buffers.
pub fn tune(stream: &TcpStream, unread_max: Duration) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20))
        .with_retries(3);
    // None is needed for correctness.
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    let _ = socket.set_tcp_user_timeout(Some(unread_max));
}

/// Whether an address is this machine's own, also where IPv4 is written as IPv6.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
