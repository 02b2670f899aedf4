//! The byte budget: what peers can make the gateway hold.
//!
//! Promise: the permits that are held never exceed the budget. Each buffer or state that a peer can fill has a
//! permit for its bytes before it is filled, and gives it back when it is dropped.
//! Invariant: taking, growing and giving back a permit is one atomic operation and never waits.
//!
//! The budget is five eighths of the memory limit. The rest is for what the gateway holds without any peer (the
//! program, the journal's caches, the dedupe window, the last values) and for what the allocator loses between blocks.
//!
//! At the bound, connections that have not logged in are evicted first ([`Budget::admit`]); then a permit is refused, and
//! the caller refuses or slows down whoever needed it.

mod cgroup;
mod strangers;

pub use cgroup::limit as cgroup_limit;
pub use strangers::Eviction;

use strangers::{Strangers, Ticket};

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The memory limit where neither the configuration nor a cgroup sets one: `MemoryMax=` of the packaged unit.
pub const LIMIT_DEFAULT: u64 = 256 << 20;
/// The smallest memory limit that works: an idle gateway takes 18 MB, and clients need some of the rest.
pub const LIMIT_MIN: u64 = 32 << 20;
/// The share of the limit that permits may take, in eighths. While what permits do not cover stays below half of
/// what they cover (`tests/hostile` judges that), the process stays below 15/16 of its limit.
const EIGHTHS: u64 = 5;
/// What permits of any kind may take of the total, in sixteenths. The rest is for connections, so that a device can log
/// in while others hold all that they may: 10 MB of 160 MB, some 800 connections without TLS.
const FOR_ALL: usize = 14;
/// What permits may take once room was made: until the evicted connections are gone, both are held.
const AFTER_EVICTION: usize = 1;
/// What new connections may take, before room is made for them.
const FOR_CONNECTIONS: usize = 15;

/// The memory limit for a gateway whose configuration does not set one: the smallest limit of its cgroup and the
/// parents of it, and at most [`LIMIT_DEFAULT`].
pub fn default_limit() -> u64 {
    cgroup_limit().map_or(LIMIT_DEFAULT, |found| found.min(LIMIT_DEFAULT))
}

/// The permits of one process.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU64,
    /// Bytes that permits may hold at once.
    total: AtomicUsize,
    held: AtomicUsize,
    peak: AtomicUsize,
    refused: AtomicU64,
    strangers: Strangers,
}

/// There is no room in the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room in the memory budget for {wanted} bytes: {held} of {total} bytes are held; see the setting memory")]
pub struct OverBudget {
    /// Bytes that were asked for.
    pub wanted: usize,
    /// Bytes that permits held then.
    pub held: usize,
    /// Bytes that permits may hold.
    pub total: usize,
}

/// What the budget says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// The memory limit of the gateway, in bytes.
    pub limit: u64,
    /// Bytes that permits may hold.
    pub permits_max: usize,
    /// Bytes that permits hold.
    pub permits: usize,
    /// The most bytes that permits have held since the start.
    pub permits_peak: usize,
    /// How often there was no room for a permit since the start.
    pub refused: u64,
    /// Connections that were closed before they had logged in, to make room, since the start.
    #[serde(default)]
    pub evicted: u64,
}

impl Budget {
    /// The budget of a process that may take `limit` bytes of memory.
    pub fn new(limit: u64) -> Arc<Self> {
        let budget = Self {
            limit: AtomicU64::new(0),
            total: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            strangers: Strangers::default(),
        };
        budget.set_limit(limit);
        Arc::new(budget)
    }

    /// Sets another memory limit. Permits that are held stay; new ones wait for room under the new limit.
    pub fn set_limit(&self, limit: u64) {
        let total = limit / 8 * EIGHTHS;
        self.limit.store(limit, Ordering::Relaxed);
        self.total.store(usize::try_from(total).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// A permit for `bytes`; 0 bytes always have room. Connections that have not logged in make room for it.
    pub fn permit(self: &Arc<Self>, bytes: usize) -> Result<Permit, OverBudget> {
        self.take_or_evict(bytes, FOR_ALL)?;
        Ok(Permit { budget: Arc::clone(self), bytes, ticket: None })
    }

    /// A permit for a connection that has not logged in yet. Where there is no room for it, the oldest such connection
    /// of the address that holds most is evicted, and so are more until there is. `door` tells listeners apart.
    pub fn admit(self: &Arc<Self>, bytes: usize, address: IpAddr, door: Door) -> Result<Permit, OverBudget> {
        self.take_or_evict(bytes, FOR_CONNECTIONS)?;
        let ticket = Some(self.strangers.enter(bytes, address, door));
        Ok(Permit { budget: Arc::clone(self), bytes, ticket })
    }

    /// Evicts the connection of a listener that has not logged in and that [`Budget::admit`] would evict first;
    /// `false` if there is none.
    pub fn evict_at(&self, door: Door) -> bool {
        self.strangers.evict_at(door)
    }

    /// Whether a listener has connections that have not logged in.
    pub fn has_strangers_at(&self, door: Door) -> bool {
        self.strangers.are_at(door)
    }

    /// Bytes that permits may still take without an eviction.
    pub fn room(&self) -> usize {
        let may = self.total.load(Ordering::Relaxed) / 16 * FOR_ALL;
        may.saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// How the budget stands.
    pub fn usage(&self) -> Usage {
        Usage {
            limit: self.limit.load(Ordering::Relaxed),
            permits_max: self.total.load(Ordering::Relaxed),
            permits: self.held.load(Ordering::Relaxed),
            permits_peak: self.peak.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            evicted: self.strangers.evicted(),
        }
    }

    /// Takes `bytes` of so many sixteenths of the total; if they are used up, evicts and takes them of one more.
    fn take_or_evict(&self, bytes: usize, sixteenths: usize) -> Result<(), OverBudget> {
        if bytes == 0 || self.take(bytes, sixteenths) {
            return Ok(());
        }
        if self.strangers.evict(bytes) && self.take(bytes, sixteenths + AFTER_EVICTION) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        let (held, total) = (self.held.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        Err(OverBudget { wanted: bytes, held, total })
    }

    fn take(&self, bytes: usize, sixteenths: usize) -> bool {
        let may = self.total.load(Ordering::Relaxed) / 16 * sixteenths;
        let before = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|sum| *sum <= may)
        });
        if let Ok(before) = before {
            self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        before.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A listener, as the budget tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door(u64);

impl Door {
    /// A listener that is none of those before.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for Door {
    fn default() -> Self {
        Self::new()
    }
}

/// The right to hold some bytes, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
    /// Of a connection that was admitted before it had logged in.
    ticket: Option<Ticket>,
}

impl Permit {
    /// Bytes that may be held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The budget that it is a part of.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Takes `more` bytes; nothing changes where there is no room for all of them.
    pub fn grow(&mut self, more: usize) -> Result<(), OverBudget> {
        self.budget.take_or_evict(more, FOR_ALL)?;
        self.bytes += more;
        self.note();
        Ok(())
    }

    /// Gives `less` bytes back, or all where it has fewer.
    pub fn shrink(&mut self, less: usize) {
        let less = less.min(self.bytes);
        self.budget.give_back(less);
        self.bytes -= less;
        self.note();
    }

    /// Grows or shrinks to `bytes`; nothing changes where there is no room.
    pub fn resize(&mut self, bytes: usize) -> Result<(), OverBudget> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.bytes - bytes);
                Ok(())
            }
        }
    }

    /// Splits off a permit of its own for `bytes`, or for all where it has fewer.
    pub fn split(&mut self, bytes: usize) -> Permit {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.note();
        Permit { budget: Arc::clone(&self.budget), bytes, ticket: None }
    }

    /// The connection has logged in: it is not evicted any more.
    pub fn log_in(&self) {
        if let Some(ticket) = &self.ticket {
            self.budget.strangers.leave(ticket);
        }
    }

    /// Resolves when the connection is evicted.
    pub fn eviction(&self) -> Eviction {
        Eviction::of(self.ticket.as_ref())
    }

    fn note(&self) {
        if let Some(ticket) = &self.ticket {
            self.budget.strangers.resize(ticket, self.bytes);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.log_in();
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Permits may take 1,600 bytes of it in all, 1,400 without an eviction.
    fn small() -> Arc<Budget> {
        Budget::new(2560)
    }

    #[test]
    fn permits_never_exceed_five_eighths_of_the_limit() {
        let budget = small();
        assert_eq!((budget.usage().permits_max, budget.room()), (1600, 1400));
        let mut first = budget.permit(1000).expect("room");
        let second = budget.permit(400).expect("room");
        assert_eq!(budget.permit(1).expect_err("none"), OverBudget { wanted: 1, held: 1400, total: 1600 });
        assert!(first.grow(1).is_err() && first.bytes() == 1000);
        assert!(budget.permit(0).is_ok(), "nothing always has room");
        assert!(budget.permit(usize::MAX).is_err(), "a sum that overflows is refused");
        drop(second);
        first.grow(300).expect("room");
        first.resize(100).expect("smaller");
        let part = first.split(40);
        assert_eq!((first.bytes(), part.bytes(), budget.usage().permits), (60, 40, 100));
        first.shrink(1000);
        drop((first, part));
        let usage = budget.usage();
        assert_eq!((usage.permits, usage.permits_peak, usage.refused), (0, 1400, 3));
    }

    #[test]
    fn another_limit_counts_for_the_next_permit() {
        let budget = small();
        let held = budget.permit(1400).expect("room");
        budget.set_limit(1280);
        assert!(budget.permit(1).is_err() && budget.room() == 0);
        drop(held);
        assert!(budget.permit(700).is_ok() && budget.permit(701).is_err());
    }

    #[test]
    fn permits_of_many_threads_add_up() {
        let budget = Budget::new(8 << 20);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 1..2000 {
                        let mut permit = budget.permit(round).expect("room");
                        permit.grow(round).expect("room");
                        permit.shrink(round / 2);
                    }
                });
            }
        });
        assert_eq!(budget.usage().permits, 0);
    }

    async fn is_evicted(permit: &Permit) -> bool {
        tokio::time::timeout(Duration::from_millis(1), permit.eviction().begun()).await.is_ok()
    }

    #[tokio::test]
    async fn connections_that_have_not_logged_in_make_room_oldest_first_of_the_address_that_holds_most() {
        let (budget, door) = (small(), Door::new());
        let at = |last: u8, bytes| budget.admit(bytes, IpAddr::from([10, 0, 0, last]), door);
        let quiet = at(1, 100).expect("room");
        let logged_in = at(2, 400).expect("room");
        logged_in.log_in();
        let (older, newer) = (at(3, 300).expect("room"), at(3, 300).expect("room"));
        let mut device = at(4, 200).expect("room");
        device.log_in();
        device.grow(200).expect("room is made");
        assert!(is_evicted(&older).await);
        assert!(!is_evicted(&newer).await && !is_evicted(&quiet).await && !is_evicted(&logged_in).await);
        assert_eq!(budget.usage().permits, 1500, "the evicted one holds its bytes until it is gone");
        assert!(device.grow(200).is_err(), "nothing exceeds the budget meanwhile");
        drop((older, newer));
        device.grow(200).expect("room");
        drop(quiet);
        assert_eq!((budget.usage().evicted, budget.usage().refused), (2, 1));
        assert!(device.grow(1400).is_err(), "who has logged in is not evicted");
    }

    #[tokio::test]
    async fn a_listener_makes_room_among_its_own_connections() {
        let (budget, one, other) = (small(), Door::new(), Door::new());
        let address = IpAddr::from([10, 0, 0, 1]);
        let first = budget.admit(1, address, one).expect("room");
        let second = budget.admit(100, address, other).expect("room");
        assert!(budget.evict_at(one) && is_evicted(&first).await && !is_evicted(&second).await);
        assert!(!budget.evict_at(one), "there is none left");
    }
}
