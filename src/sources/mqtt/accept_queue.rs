//! The accept queue: accepted connections that wait to be served, and the limit of connections served per second.
//!
//! Promise: an address that connects without end delays itself. Connections of another address wait for at most one
//! turn of each waiting address, and are never refused as long as one of this address can be.
//! Invariants: at most [`WAITING_MAX`] connections wait; the kernel's accept queue is emptied as long as fewer than
//! [`ACCEPTED_TIMES`] times `connects_per_second_max` arrive per second, so no SYN is dropped.

use crate::origin::Origin;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Most connections that wait: each takes a file descriptor and kernel buffers. As many as are served
/// in a second by default.
const WAITING_MAX: usize = 512;
/// Accepted connections per served one: accepting and closing a connection takes some 20 µs, a
/// tenth of a plain CONNECT.
const ACCEPTED_TIMES: u32 = 10;

/// Accepted connections that are not served yet, by address. Addresses take turns; within an address
/// the oldest connection is first.
#[derive(Debug)]
pub(super) struct AcceptQueue<S> {
    waiting: HashMap<Origin, VecDeque<(S, SocketAddr)>>,
    /// Addresses with a waiting connection, the next one first.
    turns: VecDeque<Origin>,
    count: usize,
    begins: Rate,
    accepts: Rate,
}

impl<S> AcceptQueue<S> {
    /// Creates a queue that releases at most `per_second` connections per second.
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            count: 0,
            begins: Rate::new(per_second),
            accepts: Rate::new(per_second.saturating_mul(ACCEPTED_TIMES)),
        }
    }

    /// Changes the number of connections per second.
    pub(super) fn set_rate(&mut self, per_second: u32) {
        self.begins = Rate::new(per_second);
        self.accepts = Rate::new(per_second.saturating_mul(ACCEPTED_TIMES));
    }

    /// Returns the time until the next connection may be accepted.
    pub(super) fn accept_wait(&self, now: Instant) -> Duration {
        self.accepts.wait(now)
    }

    /// Returns the time until the next connection may be served; `None` if no connection waits.
    pub(super) fn begin_wait(&self, now: Instant) -> Option<Duration> {
        (self.count > 0).then(|| self.begins.wait(now))
    }

    /// Adds an accepted connection. If there are too many, returns the one to close: the oldest of
    /// the address that has most.
    pub(super) fn add(&mut self, connection: S, peer: SocketAddr, now: Instant) -> Option<(S, SocketAddr)> {
        self.accepts.pass(now);
        let origin = Origin::of(peer.ip());
        let own = self.waiting.entry(origin).or_default();
        if own.is_empty() {
            self.turns.push_back(origin);
        }
        own.push_back((connection, peer));
        self.count += 1;
        if self.count <= WAITING_MAX {
            return None;
        }
        let largest = self.waiting.iter().max_by_key(|(_, waiting)| waiting.len()).map(|(address, _)| *address)?;
        self.take(largest)
    }

    /// Returns the connection to serve next.
    pub(super) fn next(&mut self, now: Instant) -> Option<(S, SocketAddr)> {
        let address = *self.turns.front()?;
        let next = self.take(address)?;
        self.begins.pass(now);
        // An address with more connections goes to the end.
        if self.turns.front() == Some(&address) {
            self.turns.rotate_left(1);
        }
        Some(next)
    }

    fn take(&mut self, address: Origin) -> Option<(S, SocketAddr)> {
        let own = self.waiting.get_mut(&address)?;
        let taken = own.pop_front()?;
        self.count -= 1;
        if own.is_empty() {
            self.waiting.remove(&address);
            self.turns.retain(|known| *known != address);
        }
        Some(taken)
    }
}

#[derive(Debug)]
struct Rate {
    per_second: u32,
    second: Option<Instant>,
    passed: u32,
}

impl Rate {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn peer(address: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, address], port))
    }

    #[test]
    fn an_address_that_connects_without_end_delays_itself_alone() {
        let mut queue = AcceptQueue::new(500);
        let now = Instant::now();
        let mut closed = Vec::new();
        for port in 0..2000 {
            closed.extend(queue.add(port, peer(1, port), now));
        }
        assert_eq!(closed.len(), 2000 - WAITING_MAX);
        assert!(closed.is_sorted() && closed[0].0 == 0, "the oldest are closed");
        for device in 2..5 {
            for port in 0..2 {
                assert_eq!(queue.add(port, peer(device, port), now).map(|(_, peer)| peer.ip()), Some(peer(1, 0).ip()));
            }
        }
        let order: Vec<(u16, IpAddr)> =
            (0..8).filter_map(|_| queue.next(now)).map(|(port, peer)| (port, peer.ip())).collect();
        let of_devices: Vec<_> = order.iter().filter(|(_, address)| *address != peer(1, 0).ip()).collect();
        assert_eq!(of_devices.len(), 6, "two turns serve every device: {order:?}");
        assert!(
            of_devices[..3].iter().all(|(port, _)| *port == 0) && of_devices[3..].iter().all(|(port, _)| *port == 1)
        );
    }

    #[test]
    fn so_many_begin_per_second_and_all_of_them_in_the_end() {
        let mut queue = AcceptQueue::new(10);
        let start = Instant::now();
        for port in 0..25 {
            assert!(queue.add(port, peer(1, port), start).is_none());
        }
        let mut seen = Vec::new();
        for second in 0..3 {
            let now = start + Duration::from_secs(second);
            while queue.begin_wait(now) == Some(Duration::ZERO) {
                seen.extend(queue.next(now).map(|(port, _)| port));
            }
            assert_eq!(seen.len(), [10, 20, 25][second as usize]);
        }
        assert!(seen.is_sorted() && queue.begin_wait(start).is_none() && queue.turns.is_empty());
        assert!(queue.next(start).is_none());
        assert!(queue.accept_wait(start).is_zero());
        for port in 0..100 {
            queue.add(port, peer(2, port), start);
        }
        assert!(!queue.accept_wait(start).is_zero(), "accepting is bounded too");
    }
}
