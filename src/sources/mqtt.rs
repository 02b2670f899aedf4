//! The MQTT listener: devices connect and publish, MQTT 3.1.1 and 5 on one port.
//!
//! Promise: a PUBACK leaves only with a receipt, in the order in which the publishes arrived.
//! Invariants:
//! - nothing a client sends stops another client, the process, or grows memory without bound;
//! - over a limit the socket is not read; nothing is dropped but QoS 0, and that is counted.
//!
//! Not here: what an event means (`ingest`, `contract`).

mod login;
mod session;
mod wire;

pub use login::{BadUsers, Users, put_user};
pub use wire::{Fault, Frame, Publish, frame, publish};

use crate::clock;
use crate::ingest::Ingest;
use crate::setting::{Bytes, Span};
use crate::shutdown::Shutdown;
use crate::telemetry::{Counter, Gauge, Histogram, Limiter};
use crate::tls::{self, ServerFiles, TlsError};
use serde::Deserialize;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A listener as the configuration says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Certificates; without them the listener speaks plain TCP.
    pub tls: Option<ServerFiles>,
    /// File of users and password hashes.
    pub passwords: Option<PathBuf>,
    /// Whether clients without user name and certificate are let in. By default only on loopback.
    pub anonymous: Option<bool>,
    /// Connections at once.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// New connections a second.
    #[serde(default = "connects_per_second_max")]
    pub connects_per_second_max: u32,
    /// How long a client may take from connecting to CONNECT.
    #[serde(default = "connect_wait_max")]
    pub connect_wait_max: Span,
    /// The largest payload.
    #[serde(default = "payload_max")]
    pub payload_max: Bytes,
    /// Publishes that a client may have unacknowledged (Receive Maximum of MQTT 5).
    #[serde(default = "receive_maximum")]
    pub receive_maximum: u16,
    /// Bytes that a connection may have waiting for the disk.
    #[serde(default = "waiting_max")]
    pub waiting_max: Bytes,
}

fn connections_max() -> usize {
    10_000
}
fn connects_per_second_max() -> u32 {
    500
}
fn connect_wait_max() -> Span {
    Span(Duration::from_secs(10))
}
fn payload_max() -> Bytes {
    Bytes(256 << 10)
}
fn receive_maximum() -> u16 {
    256
}
fn waiting_max() -> Bytes {
    Bytes(1 << 20)
}

/// The largest payload that may be allowed.
pub const PAYLOAD_BYTES_MAX: u64 = 8 << 20;
/// Topic, properties and headers around the largest payload.
const PACKET_BYTES_BESIDE: usize = 128 << 10;

impl Config {
    /// Checks values against each other: key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.payload_max.0 == 0 || self.payload_max.0 > PAYLOAD_BYTES_MAX {
            return Err((
                "payload_max",
                format!("{} is out of bounds; 1 byte to {} are allowed", self.payload_max, Bytes(PAYLOAD_BYTES_MAX)),
            ));
        }
        if self.receive_maximum == 0 {
            return Err(("receive_maximum", "0 is not allowed; 1 to 65535 are".into()));
        }
        if self.connections_max == 0 || self.connects_per_second_max == 0 {
            return Err(("connections_max", "connections_max and connects_per_second_max are at least 1".into()));
        }
        Ok(())
    }

    /// Whether somebody without user name and certificate is let in.
    fn lets_in_anonymous(&self) -> bool {
        self.anonymous.unwrap_or_else(|| is_loopback(self.listen.ip()) && self.passwords.is_none())
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// What a listener counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections that were accepted.
    pub connects: Counter,
    /// Connections that were refused or ended for a fault.
    pub refused: Counter,
    /// Publishes that arrived.
    pub received: Counter,
    /// QoS 0 publishes that found no room.
    pub dropped: Counter,
    /// From arrival to acknowledgement.
    pub ack: Histogram,
}

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum CannotListen {
    /// The address is taken or not there.
    #[error("cannot listen on {address}: {error}{hint}")]
    Address {
        /// Address and port.
        address: SocketAddr,
        /// What the operating system says.
        error: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password file.
    #[error(transparent)]
    Users(#[from] BadUsers),
}

/// A listener that has its port.
pub struct Listener {
    socket: TcpListener,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
}

/// What the connections of a listener share.
#[derive(Debug)]
struct Shared {
    config: Config,
    packet_bytes_max: usize,
    ingest: Arc<Ingest>,
    users: Option<Users>,
    /// One hash at a time: each takes 7 MiB and a core.
    hashing: Semaphore,
    stats: Arc<Stats>,
    refusals: Limiter,
    /// Who is connected under which client id, and how to end that.
    clients: Mutex<HashMap<String, Arc<Seat>>>,
}

/// The place of a connected client.
#[derive(Debug, Default)]
struct Seat {
    taken_over: Notify,
}

impl Shared {
    /// Takes the place of a client id; whoever had it is told.
    fn sit(&self, client: &str) -> Arc<Seat> {
        let seat = Arc::new(Seat::default());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = clients.insert(client.to_owned(), Arc::clone(&seat)) {
            previous.taken_over.notify_one();
        }
        seat
    }

    fn leave(&self, client: &str, seat: &Arc<Seat>) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.get(client).is_some_and(|current| Arc::ptr_eq(current, seat)) {
            clients.remove(client);
        }
    }

    /// Counts a refusal, and logs one in a while.
    fn refuse(&self, peer: SocketAddr, client: &str, why: &str) {
        self.stats.refused.add(1);
        if let Some(held_back) = self.refusals.allow(clock::instant()) {
            tracing::warn!(source = %self.config.name, %peer, client, held_back, "client refused: {why}");
        }
    }
}

impl Listener {
    /// Takes the port; connections are accepted by [`Listener::run`].
    pub fn open(config: Config, ingest: Arc<Ingest>, stats: Arc<Stats>) -> Result<Self, CannotListen> {
        let tls = config.tls.as_ref().map(tls::server).transpose()?.map(TlsAcceptor::from);
        let users = config.passwords.as_deref().map(Users::load).transpose()?;
        let socket = listen(config.listen).map_err(|error| CannotListen::Address {
            address: config.listen,
            hint: match error.kind() {
                std::io::ErrorKind::AddrInUse => "; another program has the port, perhaps another Forebay or a broker",
                std::io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
                std::io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
                _ => "",
            },
            error,
        })?;
        let shared = Shared {
            packet_bytes_max: usize::try_from(config.payload_max.0).unwrap_or(usize::MAX) + PACKET_BYTES_BESIDE,
            config,
            ingest,
            users,
            hashing: Semaphore::new(1),
            stats,
            refusals: Limiter::new(Duration::from_secs(10)),
            clients: Mutex::new(HashMap::new()),
        };
        Ok(Self { socket, shared: Arc::new(shared), tls })
    }

    /// The address it really has; of use where the configuration says port 0.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until the shutdown, then waits for acknowledgements in flight.
    pub async fn run(self, mut shutdown: Shutdown) {
        let Self { socket, shared, tls } = self;
        let mut sessions = JoinSet::new();
        let mut gate = Gate::new(shared.config.connects_per_second_max);
        loop {
            let wait = gate.wait(clock::instant());
            let has_room = sessions.len() < shared.config.connections_max;
            tokio::select! {
                () = shutdown.begun() => break,
                // The ended are taken out, so that the set does not grow.
                Some(_) = sessions.join_next() => {}
                () = tokio::time::sleep(wait), if !wait.is_zero() => {}
                // At a limit nothing is accepted: the kernel holds new connections back.
                accepted = socket.accept(), if wait.is_zero() && has_room => match accepted {
                    Ok((stream, peer)) => {
                        gate.pass(clock::instant());
                        let session = session::serve(stream, peer, tls.clone(), Arc::clone(&shared), shutdown.clone());
                        sessions.spawn(session);
                    }
                    Err(error) => {
                        // Out of descriptors, mostly: a pause lets some connections end.
                        shared.refuse(shared.config.listen, "", &format!("cannot accept: {error}"));
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(socket);
        while sessions.join_next().await.is_some() {}
    }
}

/// A listening socket. `SO_REUSEADDR` lets a restarted gateway have its port back at once.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Half-open connections of devices that lost power are found by TCP within some two minutes,
/// also where the client asked for no keep-alive.
fn tune(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20))
        .with_retries(3);
    // Neither is needed for correctness.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Lets so many connections through in each second.
#[derive(Debug)]
struct Gate {
    per_second: u32,
    second: Option<Instant>,
    passed: u32,
}

impl Gate {
    fn new(per_second: u32) -> Self {
        Self { per_second, second: None, passed: 0 }
    }

    fn wait(&self, now: Instant) -> Duration {
        match self.second {
            Some(start) if self.passed >= self.per_second => {
                (start + Duration::from_secs(1)).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        }
    }

    fn pass(&mut self, now: Instant) {
        if self.second.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.passed = 0;
        }
        self.passed += 1;
    }
}
