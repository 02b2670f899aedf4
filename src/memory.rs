//! The memory budget: a limit for the bytes that peers can make the gateway hold.
//!
//! Promise: all permits together never exceed the budget. Each buffer or state that a peer can fill has a permit for
//! its bytes before it is filled, and gives it back when it is dropped.
//! Invariant: taking, growing and giving back a permit is one atomic operation and never waits.
//!
//! The budget is five eighths of the memory limit. The rest is for the gateway without peers (program, the journal's
//! caches, dedupe window, last values) and for the losses of the allocator.
//!
//! At the limit, connections that have not logged in are evicted first ([`Budget::admit`]), then clients of the party
//! that holds most, for one that holds much less ([`Permit::join`], [`Budget::permit_of`]). Otherwise the permit is
//! refused, and the caller refuses or slows down its peer.

mod cgroup;
mod parties;

pub use cgroup::limit as cgroup_limit;
pub use parties::{Eviction, ListenerId};

use crate::api::MemoryUsage;
use crate::origin::Party;
use parties::{Crowded, Evicted, Member, Parties};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The memory limit where neither the configuration nor a cgroup sets one: `MemoryMax=` of the packaged unit.
pub const LIMIT_DEFAULT: u64 = 256 << 20;
/// The smallest memory limit that works: an idle gateway takes 18 MB, and clients need some of the rest.
pub const LIMIT_MIN: u64 = 32 << 20;
/// The share of the limit that permits may take, in eighths. The process stays below 15/16 of its limit while the
/// bytes without permits stay below half of those with one (`tests/hostile` checks that).
const EIGHTHS: u64 = 5;
/// Number of parts into which the total is divided.
const PARTS: usize = 32;
/// Parts that permits of any kind may use. The rest is for connections, so a device can log in while
/// others use all of theirs.
const FOR_ALL: usize = 28;
/// Parts up to which a client may log in without an eviction: 5 MB of 160 MB, some 400 connections without TLS.
/// Beyond it the party that holds most loses a connection.
const FOR_LOGINS: usize = 29;
/// Parts that new connections may use before others are evicted for them. The party of a client is
/// known only after its login.
const FOR_CONNECTIONS: usize = 30;
/// A party that holds less than this part of the total is never evicted for memory (10 MB of 160 MB): bytes of
/// connections that are about to end belong to no party, and no device has to pay for them.
const EVICTABLE: usize = 2;
/// Additional parts of the total that permits may use after an eviction, until the evicted connections have ended.
const AFTER_EVICTION: usize = 2;

/// The memory limit for a gateway whose configuration does not set one: the smallest limit of its cgroup and the
/// parents of it, and at most [`LIMIT_DEFAULT`].
pub fn default_limit() -> u64 {
    cgroup_limit().map_or(LIMIT_DEFAULT, |found| found.min(LIMIT_DEFAULT))
}

/// The permits of one process.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU64,
    /// Bytes that all permits together may hold.
    total: AtomicUsize,
    held: AtomicUsize,
    peak: AtomicUsize,
    refused: AtomicU64,
    /// Connections of clients that have not logged in.
    unauthenticated: Parties,
    /// Connections of clients that have logged in, by [`Permit::join`].
    authenticated: Parties,
    /// The moment of the first bytes of any client.
    began: OnceLock<Instant>,
}

/// The budget has no room for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room in the memory budget for {wanted} bytes: {held} of {total} bytes are held; see the setting memory")]
pub struct OverBudget {
    /// Bytes that the permit needs.
    pub wanted: usize,
    /// Bytes that all permits held at that moment.
    pub held: usize,
    /// Bytes that all permits together may hold.
    pub total: usize,
}

/// The reason why a client that has logged in gets no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJoined {
    /// All connections are taken, and no party has more than this one.
    #[error("connections_max is reached, and nobody has more connections")]
    Crowded,
    /// Memory is short, and no party holds much more than this one.
    #[error(transparent)]
    Memory(#[from] OverBudget),
}

impl Budget {
    /// Creates the budget of a process that may take `limit` bytes of memory.
    pub fn new(limit: u64) -> Arc<Self> {
        let budget = Self {
            limit: AtomicU64::new(0),
            total: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            unauthenticated: Parties::default(),
            authenticated: Parties::default(),
            began: OnceLock::new(),
        };
        budget.set_limit(limit);
        Arc::new(budget)
    }

    /// Sets the memory limit. Existing permits stay; new ones need room under the new limit.
    pub fn set_limit(&self, limit: u64) {
        let total = limit / 8 * EIGHTHS;
        self.limit.store(limit, Ordering::Relaxed);
        self.total.store(usize::try_from(total).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Returns a permit for `bytes`. Connections that have not logged in are evicted for it; 0 bytes always fit.
    pub fn permit(self: &Arc<Self>, bytes: usize) -> Result<Permit, OverBudget> {
        self.take_or_evict(bytes, FOR_ALL, None)?;
        Ok(Permit { budget: Arc::clone(self), bytes, member: None })
    }

    /// Returns a permit for a party. Connections of a party that holds much more are evicted for it, too.
    pub fn permit_of(self: &Arc<Self>, party: &Party, bytes: usize) -> Result<Permit, OverBudget> {
        self.take_or_evict(bytes, FOR_ALL, Some(party))?;
        Ok(Permit { budget: Arc::clone(self), bytes, member: None })
    }

    /// Returns a permit for a connection that has not logged in. Without room, the oldest such connections of the
    /// address that holds most are evicted. `listener` identifies the listener.
    pub fn admit(self: &Arc<Self>, bytes: usize, address: IpAddr, listener: ListenerId) -> Result<Permit, OverBudget> {
        self.take_or_evict(bytes, FOR_CONNECTIONS, None)?;
        let member = Some(self.unauthenticated.enter(bytes, Party::of(None, address), listener));
        Ok(Permit { budget: Arc::clone(self), bytes, member })
    }

    /// Evicts the connection that [`Budget::admit`] would evict first at a listener. Returns `false` without one.
    pub fn evict_at(&self, listener: ListenerId) -> bool {
        self.unauthenticated.evict_at(listener)
    }

    /// Returns whether a listener has connections that have not logged in.
    pub fn has_unauthenticated_at(&self, listener: ListenerId) -> bool {
        self.unauthenticated.are_at(listener)
    }

    /// Returns the bytes that permits may still take without an eviction.
    pub fn room(&self) -> usize {
        self.bound(FOR_ALL).saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// Returns the bytes that all permits together may hold.
    pub fn permits_max(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Returns the state of the budget.
    pub fn usage(&self) -> MemoryUsage {
        MemoryUsage {
            limit: self.limit.load(Ordering::Relaxed),
            permits_max: self.total.load(Ordering::Relaxed),
            permits: self.held.load(Ordering::Relaxed),
            permits_peak: self.peak.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            evicted: self.unauthenticated.evicted(),
        }
    }

    /// Takes `bytes` within `parts` of the total; if these are used up, evicts and takes them within some more.
    fn take_or_evict(&self, bytes: usize, parts: usize, party: Option<&Party>) -> Result<(), OverBudget> {
        if bytes == 0 || self.take(bytes, parts) {
            return Ok(());
        }
        let has_made_room = || party.is_some_and(|party| self.evict_for(party, bytes, bytes, parts) == Evicted::Enough);
        if (self.unauthenticated.evict(bytes) || has_made_room()) && self.take(bytes, parts + AFTER_EVICTION) {
            return Ok(());
        }
        Err(self.refuse(bytes))
    }

    /// Evicts clients for a party that will hold `bytes` more, of which `fresh` are not taken yet.
    fn evict_for(&self, party: &Party, bytes: usize, fresh: usize, parts: usize) -> Evicted {
        let held = self.held.load(Ordering::Relaxed).saturating_add(fresh);
        self.authenticated.evict_for(party, bytes, held.saturating_sub(self.bound(parts)), self.bound(EVICTABLE))
    }

    fn refuse(&self, wanted: usize) -> OverBudget {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let (held, total) = (self.held.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        OverBudget { wanted, held, total }
    }

    fn bound(&self, parts: usize) -> usize {
        self.total.load(Ordering::Relaxed) / PARTS * parts
    }

    fn take(&self, bytes: usize, parts: usize) -> bool {
        let may = self.bound(parts);
        let before = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|sum| *sum <= may)
        });
        if let Ok(before) = before {
            self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        before.is_ok()
    }

    fn parties(&self, member: &Member) -> &Parties {
        if member.is_authenticated { &self.authenticated } else { &self.unauthenticated }
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The right to hold some bytes of memory, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
    /// The connection that holds it, if it came by [`Budget::admit`].
    member: Option<Member>,
}

impl Permit {
    /// Returns a permit for 0 bytes.
    pub fn empty(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0, member: None }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Takes `more` bytes. Without room for all of them nothing changes.
    pub fn grow(&mut self, more: usize) -> Result<(), OverBudget> {
        let party = self.member.as_ref().filter(|member| member.is_authenticated).map(|member| &member.party);
        self.budget.take_or_evict(more, FOR_ALL, party)?;
        self.bytes += more;
        self.note();
        Ok(())
    }

    /// Gives `less` bytes back, or all if it has fewer.
    pub fn shrink(&mut self, less: usize) {
        let less = less.min(self.bytes);
        self.budget.give_back(less);
        self.bytes -= less;
        self.note();
    }

    /// Grows or shrinks to `bytes`. Without room nothing changes.
    pub fn resize(&mut self, bytes: usize) -> Result<(), OverBudget> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.bytes - bytes);
                Ok(())
            }
        }
    }

    /// Splits off a separate permit for `bytes`, or for all if it has fewer.
    pub fn split(&mut self, bytes: usize) -> Permit {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.note();
        Permit { budget: Arc::clone(&self.budget), bytes, member: None }
    }

    /// Registers the connection for a party after the login. Now only a party that has less evicts it: for memory, or
    /// when more than `connections_max` clients log in (`None`: the client replaces its earlier connection).
    pub fn join(&mut self, party: Party, connections_max: Option<usize>) -> Result<(), NotJoined> {
        let Some(member) = self.member.as_ref().filter(|member| !member.is_authenticated) else { return Ok(()) };
        let budget = &self.budget;
        if budget.held.load(Ordering::Relaxed) > budget.bound(FOR_LOGINS)
            && budget.evict_for(&party, self.bytes, 0, FOR_LOGINS) == Evicted::AskerHoldsMuch
        {
            return Err(NotJoined::Memory(budget.refuse(self.bytes)));
        }
        let joined = budget.authenticated.join(self.bytes, party, member, connections_max);
        let joined = joined.map_err(|Crowded| NotJoined::Crowded)?;
        self.leave();
        self.member = Some(joined);
        Ok(())
    }

    /// Takes the connection out of the table: it has logged in without a party, or is about to end.
    pub fn leave(&self) {
        if let Some(member) = &self.member {
            self.budget.parties(member).leave(member);
        }
    }

    /// Notes the moment of the client's newest packet.
    pub fn heard(&self, now: Instant) {
        if let Some(member) = &self.member {
            let since = now.saturating_duration_since(*self.budget.began.get_or_init(|| now));
            member.signals.set_heard(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        }
    }

    /// Returns the signal of an eviction of the connection.
    pub fn eviction(&self) -> Eviction {
        Eviction::of(self.member.as_ref())
    }

    fn note(&self) {
        if let Some(member) = &self.member {
            self.budget.parties(member).resize(member, self.bytes);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(member) = &self.member {
            self.budget.parties(member).gone(member);
        }
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

    /// A client that logs in under a proven name and holds so many bytes.
    fn join(budget: &Arc<Budget>, listener: ListenerId, name: &str, bytes: usize) -> Result<Permit, NotJoined> {
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut permit = budget.admit(bytes, address, listener).expect("room");
        permit.join(Party::of(Some(name), address), None).map(|()| permit)
    }

    #[tokio::test]
    async fn who_holds_most_makes_room_for_who_holds_much_less_largest_connection_first() {
        let (budget, listener, address) = (small(), ListenerId::new(), IpAddr::from([10, 0, 0, 1]));
        let join = |name: &str, bytes| join(&budget, listener, name, bytes);
        let joined = |name: &str, bytes| join(name, bytes).expect("room");
        let (mut large, small, mut other) = (joined("a", 800), joined("a", 400), joined("b", 100));
        assert!(large.grow(200).is_err(), "nobody holds more than a");
        other.grow(140).expect("room is made");
        assert!(is_evicted(&large).await && large.eviction().is_for_memory() && !is_evicted(&small).await);
        assert!(other.grow(60).is_ok(), "what leaves is enough for this too");
        assert!(!is_evicted(&small).await);
        drop(large);
        assert!(other.grow(800).is_err(), "b would hold more than a");
        other.grow(600).expect("room");
        let late = joined("c", 150);
        assert_eq!(join("b", 10).err().map(|error| matches!(error, NotJoined::Memory(_))), Some(true));
        assert!(!is_evicted(&other).await && !is_evicted(&small).await, "nobody goes for who holds most");
        let last = joined("d", 20);
        assert!(is_evicted(&other).await && !is_evicted(&small).await && !is_evicted(&late).await);
        assert!(budget.permit(30).is_err() && budget.permit_of(&Party::of(None, address), 30).is_ok());
        drop((other, late, last, small));
        assert_eq!(budget.usage().permits, 0);
    }

    #[tokio::test]
    async fn nobody_who_holds_little_goes_for_memory_that_no_client_holds() {
        let (budget, listener, address) = (small(), ListenerId::new(), IpAddr::from([10, 0, 0, 1]));
        let join = |name: &str, bytes| join(&budget, listener, name, bytes);
        let device = join("device", 20).expect("room");
        let others = budget.permit(budget.room()).expect("room");
        assert!(budget.permit_of(&Party::of(Some("greedy"), address), 1).is_err());
        let late: Vec<_> = (0..5).map(|_| join("late", 20).expect("a client that comes later is admitted")).collect();
        assert!(!is_evicted(&device).await && !is_evicted(&late[0]).await);
        drop((others, device, late));
    }

    async fn is_evicted(permit: &Permit) -> bool {
        tokio::time::timeout(Duration::from_millis(1), permit.eviction().begun()).await.is_ok()
    }

    #[tokio::test]
    async fn connections_that_have_not_logged_in_make_room_oldest_first_of_the_address_that_holds_most() {
        let (budget, listener) = (small(), ListenerId::new());
        let at = |last: u8, bytes| budget.admit(bytes, IpAddr::from([10, 0, 0, last]), listener);
        let quiet = at(1, 100).expect("room");
        let logged_in = at(2, 400).expect("room");
        logged_in.leave();
        let (older, newer) = (at(3, 300).expect("room"), at(3, 300).expect("room"));
        let mut device = at(4, 200).expect("room");
        device.leave();
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
        let (budget, one, other) = (small(), ListenerId::new(), ListenerId::new());
        let address = IpAddr::from([10, 0, 0, 1]);
        let first = budget.admit(1, address, one).expect("room");
        let second = budget.admit(100, address, other).expect("room");
        assert!(budget.evict_at(one) && is_evicted(&first).await && !is_evicted(&second).await);
        assert!(!budget.evict_at(one), "there is none left");
    }
}
