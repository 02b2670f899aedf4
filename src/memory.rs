//! The byte budget: what peers can make the gateway hold.
//!
//! Promise: the permits that are held never exceed the budget. Each buffer or state that a peer can fill has a
//! permit for its bytes before it is filled, and gives it back when it is dropped.
//! Invariant: taking, growing and giving back a permit is one atomic operation and never waits.
//!
//! The budget is five eighths of the memory limit. The rest is for what the gateway holds without any peer (the
//! program, the journal's caches, the dedupe window, the last values) and for what the allocator loses between blocks.
//!
//! Not here: who loses its permit when the budget is used up (the sources decide that).

mod cgroup;

pub use cgroup::limit as cgroup_limit;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The memory limit where neither the configuration nor a cgroup sets one: `MemoryMax=` of the packaged unit.
pub const LIMIT_DEFAULT: u64 = 256 << 20;
/// The smallest memory limit that works: an idle gateway takes 18 MB, and clients need some of the rest.
pub const LIMIT_MIN: u64 = 32 << 20;
/// The share of the limit that permits may take, in eighths. Measured: what permits do not cover stays below half of
/// what they cover, so that the process stays below 15/16 of its limit.
const EIGHTHS: u64 = 5;

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

    /// A permit for `bytes`; 0 bytes always have room.
    pub fn permit(self: &Arc<Self>, bytes: usize) -> Result<Permit, OverBudget> {
        self.take(bytes)?;
        Ok(Permit { budget: Arc::clone(self), bytes })
    }

    /// Bytes that permits may still take.
    pub fn room(&self) -> usize {
        self.total.load(Ordering::Relaxed).saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// How the budget stands.
    pub fn usage(&self) -> Usage {
        Usage {
            limit: self.limit.load(Ordering::Relaxed),
            permits_max: self.total.load(Ordering::Relaxed),
            permits: self.held.load(Ordering::Relaxed),
            permits_peak: self.peak.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn take(&self, bytes: usize) -> Result<(), OverBudget> {
        if bytes == 0 {
            return Ok(());
        }
        let total = self.total.load(Ordering::Relaxed);
        let before = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|sum| *sum <= total)
        });
        match before {
            Ok(before) => {
                self.peak.fetch_max(before + bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(held) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(OverBudget { wanted: bytes, held, total })
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The right to hold some bytes, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
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
        self.budget.take(more)?;
        self.bytes += more;
        Ok(())
    }

    /// Gives `less` bytes back, or all where it has fewer.
    pub fn shrink(&mut self, less: usize) {
        let less = less.min(self.bytes);
        self.budget.give_back(less);
        self.bytes -= less;
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
        Permit { budget: Arc::clone(&self.budget), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_never_exceed_five_eighths_of_the_limit() {
        let budget = Budget::new(8000);
        assert_eq!((budget.usage().permits_max, budget.room()), (5000, 5000));
        let mut first = budget.permit(3000).expect("room");
        let second = budget.permit(2000).expect("room");
        assert_eq!(budget.permit(1).expect_err("none"), OverBudget { wanted: 1, held: 5000, total: 5000 });
        assert!(first.grow(1).is_err() && first.bytes() == 3000);
        assert!(budget.permit(0).is_ok(), "nothing always has room");
        assert!(budget.permit(usize::MAX).is_err(), "a sum that overflows is refused");
        drop(second);
        first.grow(1500).expect("room");
        first.resize(100).expect("smaller");
        let part = first.split(40);
        assert_eq!((first.bytes(), part.bytes(), budget.usage().permits), (60, 40, 100));
        first.shrink(1000);
        drop((first, part));
        let usage = budget.usage();
        assert_eq!((usage.permits, usage.permits_peak, usage.refused), (0, 5000, 3));
    }

    #[test]
    fn another_limit_counts_for_the_next_permit() {
        let budget = Budget::new(8000);
        let held = budget.permit(5000).expect("room");
        budget.set_limit(1600);
        assert!(budget.permit(1).is_err() && budget.room() == 0);
        drop(held);
        assert!(budget.permit(1000).is_ok() && budget.permit(1001).is_err());
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
}
