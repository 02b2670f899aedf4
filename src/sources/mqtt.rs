//! The MQTT listener: devices connect and publish, with MQTT 3.1.1 and 5 on one port.
//!
//! Promise: a PUBACK is sent only with a receipt, in the order in which the publishes arrived.
//! Invariants:
//! - no client can stop another client or the process, or make memory grow without bound;
//! - beyond a limit the socket is not read; only QoS 0 is dropped, and that is counted.
//!
//! Not here: what an event means (`ingest`, `contract`).

mod accept_queue;
mod acl;
mod config;
mod connection;
mod connection_memory;
mod devices;
mod faults;
mod grants;
mod inbound;
mod login;
mod outbound;
mod refused_clients;
mod registry;
mod shared_subscription;
mod source;
mod state;
mod stored_will;
mod will;

pub use acl::Rule;
pub use config::Config;
pub use devices::Devices;
pub use grants::{Grant, Grants};
pub use login::{Users, put_user, remove_user};
pub use registry::Registry;
pub use state::{CannotListen, Parts};

use crate::clock;
use crate::memory::ListenerId;
use crate::shutdown::Shutdown;
use crate::sources::socket::ListenSocket;
use crate::sources::{Refusal, Stats};
use accept_queue::AcceptQueue;
use login::Queue;
use state::{Attempt, KeptOnReload, ListenerState, Setup};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Interval of the search for due wills and ended revocation lists.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// Connections beyond `connections_max` that have not logged in: a client is only known after its login. The check of
/// a password takes a tenth of a second on a small processor, so a few at a time are enough.
const UNAUTHENTICATED_MAX: usize = 64;
/// Connections that are refused with CONNACK at the same time because there is no memory; more
/// are closed without an answer.
const REFUSALS_MAX: usize = 16;
/// Wills that are published at the same time: each may take 64 kB of memory until it is on the disk.
const WILLS_DUE_MAX: usize = 128;

/// A listener with an open port.
#[derive(Debug)]
pub struct Listener {
    listener: ListenSocket<ListenerState>,
    parts: Parts,
    stats: Arc<Stats>,
    kept: KeptOnReload,
}

impl Listener {
    /// Opens the port; [`Listener::listen`] accepts connections.
    pub fn open(config: Config, parts: Parts, stats: Arc<Stats>) -> Result<Self, CannotListen> {
        let kept = KeptOnReload { logins: Arc::new(Queue::new()), listener_id: ListenerId::new() };
        let shared = ListenerState::new(config, &parts, &stats, &kept)?;
        let listen = shared.config.listen;
        Ok(Self { listener: ListenSocket::open(shared, listen)?, parts, stats, kept })
    }

    /// Accepts connections until the shutdown, then waits for outstanding acknowledgements.
    fn listen(&self, shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        let newest = self.listener.follow();
        let listener = self.listener.clone();
        async move { Acceptor::new(listener, newest, shutdown).run().await }
    }
}

/// The running listener: its queue of new connections, and its tasks.
struct Acceptor {
    listener: ListenSocket<ListenerState>,
    newest: watch::Receiver<Setup>,
    setup: Setup,
    queue: AcceptQueue<TcpStream>,
    sessions: JoinSet<()>,
    wills: JoinSet<()>,
    refusals: JoinSet<()>,
    /// Number of revocation lists that have ended.
    ended_lists: usize,
    shutdown: Shutdown,
}

impl Acceptor {
    fn new(listener: ListenSocket<ListenerState>, mut newest: watch::Receiver<Setup>, shutdown: Shutdown) -> Self {
        let setup = newest.borrow_and_update().clone();
        Self {
            listener,
            newest,
            queue: AcceptQueue::new(setup.shared.config.connects_per_second_max),
            sessions: JoinSet::new(),
            wills: JoinSet::new(),
            refusals: JoinSet::new(),
            ended_lists: setup.shared.ended_lists(),
            setup,
            shutdown,
        }
    }

    async fn run(mut self) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = clock::instant();
            let (accept_wait, begin_wait) = (self.queue.accept_wait(now), self.queue.begin_wait(now));
            let has_room = self.has_room();
            if has_room
                && begin_wait == Some(Duration::ZERO)
                && let Some((stream, peer)) = self.queue.next(now)
            {
                self.begin(stream, peer);
                continue;
            }
            let wait = begin_wait
                .filter(|_| has_room)
                .into_iter()
                .chain((!accept_wait.is_zero()).then_some(accept_wait))
                .min();
            tokio::select! {
                () = self.shutdown.begun() => break,
                changed = self.newest.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.setup = self.newest.borrow_and_update().clone();
                    self.queue.set_rate(self.setup.shared.config.connects_per_second_max);
                }
                // Ended tasks are taken out, so that the set does not grow.
                Some(_) = self.sessions.join_next() => {}
                Some(_) = self.refusals.join_next() => {}
                Some(_) = self.wills.join_next() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                _ = sweep.tick() => self.sweep(),
                accepted = self.setup.accept(), if accept_wait.is_zero() => self.enqueue(accepted, now).await,
            }
        }
        self.setup.close();
        let Self { setup, mut sessions, mut wills, .. } = self;
        drop(setup);
        while sessions.join_next().await.is_some() {}
        while wills.join_next().await.is_some() {}
    }

    fn is_full(&self) -> bool {
        self.sessions.len() >= self.setup.shared.config.connections_max.saturating_add(UNAUTHENTICATED_MAX)
    }

    /// Returns whether another connection may begin. At the limit connections wait in the accept queue, and then
    /// in that of the kernel.
    fn has_room(&self) -> bool {
        let shared = &self.setup.shared;
        !self.is_full() || shared.budget.has_unauthenticated_at(shared.kept.listener_id)
    }

    /// Starts the task of a connection; at the limit another one that has not logged in ends.
    fn begin(&mut self, stream: TcpStream, peer: SocketAddr) {
        let shared = &self.setup.shared;
        if self.is_full() {
            shared.budget.evict_at(shared.kept.listener_id);
        }
        let Some(permit) = shared.admit(peer) else {
            if self.refusals.len() < REFUSALS_MAX && shared.tls.is_none() {
                self.refusals.spawn(connection::refuse_no_memory(stream));
            }
            return;
        };
        let accepted = connection::Accepted { stream, peer, permit };
        self.sessions.spawn(session_task(accepted, Arc::clone(shared), self.newest.clone(), self.shutdown.clone()));
    }

    /// Queues a connection that the kernel has accepted.
    async fn enqueue(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>, now: Instant) {
        let shared = &self.setup.shared;
        let refuse = |peer, reason, why: &str| shared.refuse(peer, Attempt::default(), reason, why);
        match accepted {
            Ok((stream, peer)) => {
                if let Some((closed, peer)) = self.queue.add(stream, peer, now) {
                    drop(closed);
                    refuse(peer, Refusal::Limit, "too many connections wait, most of them from this address");
                }
            }
            Err(error) => {
                // Out of file descriptors, mostly: a pause lets some connections end.
                refuse(shared.config.listen, Refusal::Connection, &format!("cannot accept: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Publishes due wills, and notices revocation lists that end: at their time, without any change of files.
    fn sweep(&mut self) {
        let shared = &self.setup.shared;
        let ended = shared.ended_lists();
        if std::mem::replace(&mut self.ended_lists, ended) < ended {
            tracing::error!(source = %shared.config.name, ended, "a revocation list (tls.crl) has ended; clients of its authority are refused until it is replaced by a newer one");
            self.listener.announce();
        }
        let room = WILLS_DUE_MAX.saturating_sub(self.wills.len());
        for due in shared.registry.due_wills(clock::instant(), &shared.config.name, room) {
            self.wills.spawn(will::publish_due(due, Arc::clone(shared), self.shutdown.clone()));
        }
    }
}

/// The future of a connection task. It is boxed: tokio keeps a future of up to 16 kB in the task itself, which it
/// aligns to 128 bytes, and glibc seldom reuses a piece with that alignment for the next task. Unboxed, 90,000 short
/// connections grew the heap to 30 MB, boxed to 15 MB, with the same bytes in use.
fn session_task(
    accepted: connection::Accepted,
    shared: Arc<ListenerState>,
    newest: watch::Receiver<Setup>,
    shutdown: Shutdown,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    match shared.tls.clone() {
        None => Box::pin(connection::serve(accepted, shared, newest, shutdown)),
        Some(tls) => Box::pin(connection::serve_tls(accepted, tls.into(), shared, newest, shutdown)),
    }
}
