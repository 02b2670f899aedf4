//! Listening sockets of sources, with settings that can be replaced while connections stay open.

use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Why a socket cannot be bound to an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}{hint}")]
pub struct CannotBind {
    address: SocketAddr,
    error: std::io::Error,
    hint: &'static str,
}

/// Opens a listening socket. With `SO_REUSEADDR` a restarted gateway gets its port back at once.
pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, CannotBind> {
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
        // A machine may start before its network is up; sources at its other addresses must not wait for that.
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.bind(&address.into())?;
        tracing::warn!(%address, "this machine does not have the address yet; clients can connect as soon as it has");
    }
    // Connections inherit the size, so connections in the accept queue are bounded too.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// The ports that sources of this process have open.
static OPEN: Mutex<Vec<(SocketAddr, Weak<TcpListener>)>> = Mutex::new(Vec::new());

/// Opens a listening socket. If another source of this process has the port, both have it until that source gives it
/// away: so sources exchange ports in one reload. The configuration gives a port to one source only.
fn open(address: SocketAddr) -> Result<Arc<TcpListener>, CannotBind> {
    let mut known = OPEN.lock();
    known.retain(|(_, socket)| socket.strong_count() > 0);
    let socket = match listen(address) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            let own = known.iter().find(|(of, _)| *of == address);
            return own.and_then(|(_, socket)| socket.upgrade()).ok_or(error);
        }
    };
    if address.port() != 0 {
        known.push((address, Arc::downgrade(&socket)));
    }
    Ok(socket)
}

/// A bound port, and the context that its connections share. Both can be replaced while connections stay open.
#[derive(Debug)]
pub(super) struct ListenSocket<S>(watch::Sender<Arc<Setup<S>>>);

impl<S> Clone for ListenSocket<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The port and context in force.
#[derive(Debug)]
pub(super) struct Setup<S> {
    /// The context of new connections.
    pub shared: Arc<S>,
    listen: SocketAddr,
    socket: Mutex<Option<Arc<TcpListener>>>,
}

impl<S> ListenSocket<S> {
    pub(super) fn open(shared: S, listen: SocketAddr) -> Result<Self, CannotBind> {
        let socket = self::open(listen)?;
        Ok(Self(watch::channel(Setup::new(shared, listen, Some(socket))).0))
    }

    /// Subscribes to changes of the port and context in force.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<Setup<S>>> {
        self.0.subscribe()
    }

    /// Prepares another context, at the same address or at another one, which is bound here. The returned function puts
    /// both in force; connections stay open.
    pub(super) fn prepare(&self, shared: S, listen: SocketAddr) -> Result<impl FnOnce() + use<S>, CannotBind> {
        let (old, socket) = {
            let setup = self.0.borrow();
            (setup.listen, setup.socket())
        };
        let socket = if old == listen { socket } else { Some(self::open(listen)?) };
        let (setup, in_force) = (Setup::new(shared, listen, socket), self.0.clone());
        Ok(move || drop(in_force.send_replace(setup)))
    }

    /// Notifies all subscribers again, without a change.
    pub(super) fn announce(&self) {
        self.0.send_modify(|_| ());
    }

    pub(super) fn address(&self) -> std::io::Result<SocketAddr> {
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

    /// Accepts the next connection; never returns after the port is closed. Cancel-safe.
    pub(super) async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        match self.socket() {
            Some(socket) => socket.accept().await,
            None => std::future::pending().await,
        }
    }

    /// Closes the port. Connections stay open.
    pub(super) fn close(&self) {
        *self.socket.lock() = None;
    }
}

/// Size of the kernel's buffer of a connection in each direction. The kernel doubles it for its own needs. Without this
/// bound, a client that does not read can fill 4 MB of kernel memory, which the control group counts.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// Sets the options of a connection: it ends within some two minutes after the peer is gone, and when a live peer reads
/// nothing within `unread_max`. Also bounds the kernel's buffers.
pub(super) fn tune(stream: &TcpStream, unread_max: Duration) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20))
        .with_retries(3);
    // Failures are ignored: no option is needed for correctness.
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    let _ = socket.set_tcp_user_timeout(Some(unread_max));
}

/// Whether an address is a loopback address, also as an IPv4-mapped IPv6 address.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
