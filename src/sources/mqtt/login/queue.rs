//! The login queue: passwords are checked one at a time, addresses take turns, and failures slow down.
//!
//! Promise: a client whose address has not failed does not wait behind a flood of logins from another address. No
//! name or address is locked out for ever. Dropping a login leaves the queue.
//! Invariants:
//! - one login is checked at a time, since each takes 7 MiB and a core;
//! - the memory of addresses and names is bounded, and names are kept as keyed hashes only;
//! - existing and unknown names are treated alike.
//!
//! Three kinds of failure slow down:
//! - **an address that failed often** gets one check per second and few places in the queue (against trying out
//!   passwords or names);
//! - **a name at an address** that failed several times pauses, each time longer (a device with an old password,
//!   which then costs other devices behind the same router nothing);
//! - **a name that failed from many addresses** pauses longer at each address that fails. The guesses per hour then
//!   follow the number of addresses, and the device itself, at another address, has its turn like any other.

use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::origin::Origin;
use crate::rate::{CALLERS_MAX, Rates};
use parking_lot::{Mutex, MutexGuard};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Failed logins of an address that are checked without delay: a row of devices with an old password behind one router.
const BURST: Duration = Duration::from_secs(20);
/// Checks per second of an address beyond those: some hundredth of a core.
const CHECKS_PER_SECOND: f64 = 1.0;
/// Logins of a slowed address that may wait; the next one is refused. At one check per second they are done
/// before `connect_wait_max` is over, about.
const SLOWED_PLACES: usize = 8;
/// Failures of a name at an address before it pauses: a person who mistypes a password tries again.
const FREE_TRIES: u32 = 2;
/// The pauses of a name at an address.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), Jitter::None);
/// Failures of a name from all addresses after which each address that fails pauses longer: many
/// devices may share a user.
const FREE_TRIES_OF_NAME: u32 = 10;
/// The pauses then, up to two minutes: 700 guesses per day and address, and a device whose password was
/// corrected reconnects within two minutes.
const TRIED_PAUSES: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(120), Jitter::None);
/// A failure is forgotten after this time without another one.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// A login that would have to wait longer is refused at once: a connection costs more than a place in a queue.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// One of this many checks goes to the address that has waited longest among those that failed.
const TURN_OF_FAILED: u32 = 4;

/// The queue of one listener.
#[derive(Debug)]
pub(in crate::sources::mqtt) struct Queue {
    state: Mutex<QueueState>,
    names: RandomState,
}

/// A login is refused for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sources::mqtt) struct Slowed {
    /// The time until the next try.
    pub wait: Duration,
}

#[derive(Debug)]
struct QueueState {
    is_checking: bool,
    places: u64,
    checks: u32,
    /// Waiting logins by address, in the order of their arrival.
    waiting: HashMap<Origin, VecDeque<WaitingLogin>>,
    /// Addresses with waiting logins, in the order of their turns: those that never failed, and those that did.
    clean: VecDeque<Origin>,
    failed: VecDeque<Origin>,
    failures: Failures,
}

#[derive(Debug)]
struct WaitingLogin {
    place: u64,
    name: u64,
    called: oneshot::Sender<Result<(), Slowed>>,
}

#[derive(Debug)]
struct Failures {
    addresses: Rates<Origin>,
    pairs: FailureTable<(Origin, u64)>,
    names: FailureTable<u64>,
}

#[derive(Debug)]
struct FailureTable<K>(HashMap<K, Failed>);

#[derive(Clone, Copy, Debug)]
struct Failed {
    times: u32,
    pauses_until: Instant,
    forgotten_at: Instant,
}

impl<K: Eq + Hash + Copy> FailureTable<K> {
    fn pause(&self, key: &K, now: Instant) -> Duration {
        self.0.get(key).map_or(Duration::ZERO, |failed| failed.pauses_until.saturating_duration_since(now))
    }

    fn times(&self, key: &K, now: Instant) -> u32 {
        self.0.get(key).filter(|failed| failed.forgotten_at > now).map_or(0, |failed| failed.times)
    }

    /// Counts a failure. After `free` failures the key pauses.
    fn failed(&mut self, key: K, free: u32, pauses: Backoff, now: Instant) {
        let times = self.times(&key, now).saturating_add(1);
        if !self.0.contains_key(&key) && self.0.len() >= CALLERS_MAX {
            self.make_room(now);
        }
        let earlier = times.checked_sub(free + 1);
        let pause = earlier.map_or(Duration::ZERO, |earlier| pauses.pause(earlier));
        let (pauses_until, forgotten_at) = (now + pause, now + FORGET_AFTER);
        self.0.insert(key, Failed { times, pauses_until, forgotten_at });
    }

    /// Removes the key that failed least, so that a crowd of new keys cannot displace one that failed often.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, failed| failed.forgotten_at > now);
        if self.0.len() >= CALLERS_MAX {
            let least = self.0.iter().min_by_key(|(_, failed)| (failed.times, failed.forgotten_at));
            if let Some(least) = least.map(|(key, _)| *key) {
                self.0.remove(&least);
            }
        }
    }
}

impl Failures {
    fn new() -> Self {
        Self {
            addresses: Rates::new(CHECKS_PER_SECOND, BURST),
            pairs: FailureTable(HashMap::new()),
            names: FailureTable(HashMap::new()),
        }
    }

    /// Returns the time that a login has to wait because of earlier failures.
    fn wait(&self, origin: Origin, name: u64, now: Instant) -> Duration {
        self.addresses.check(&origin, now).err().unwrap_or_default().max(self.pairs.pause(&(origin, name), now))
    }

    fn failed(&mut self, origin: Origin, name: u64, now: Instant) {
        self.addresses.charge(&origin, 1, now);
        let is_tried = self.names.times(&name, now) >= FREE_TRIES_OF_NAME;
        let (free, pauses) = if is_tried { (0, TRIED_PAUSES) } else { (FREE_TRIES, PAUSES) };
        self.pairs.failed((origin, name), free, pauses, now);
        self.names.failed(name, u32::MAX - 1, PAUSES, now);
    }
}

impl Queue {
    pub(in crate::sources::mqtt) fn new() -> Self {
        let state = QueueState {
            is_checking: false,
            places: 0,
            checks: 0,
            waiting: HashMap::new(),
            clean: VecDeque::new(),
            failed: VecDeque::new(),
            failures: Failures::new(),
        };
        Self { state: Mutex::new(state), names: RandomState::new() }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    /// Waits for the turn of a login. Dropping the future leaves the queue.
    pub(in crate::sources::mqtt) async fn turn(&self, origin: Origin, name: &str) -> Result<Turn<'_>, Slowed> {
        let name = self.names.hash_one(name);
        let mut place = self.enqueue(origin, name)?;
        loop {
            let wait = {
                let (mut state, now) = (self.lock(), clock::instant());
                state.call_next(now);
                state.failures.wait(origin, name, now)
            };
            // The login that is being checked calls the next one; only the end of a pause needs a timer.
            let pause = async {
                if wait.is_zero() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(wait).await;
            };
            tokio::select! {
                called = &mut place.called => {
                    place.has_ended = true;
                    // The sender is never dropped without a message.
                    called.unwrap_or(Err(Slowed { wait }))?;
                    return Ok(Turn { queue: self, origin, name, has_ended: false });
                }
                () = pause => {}
            }
        }
    }

    fn enqueue(&self, origin: Origin, name: u64) -> Result<QueuePlace<'_>, Slowed> {
        let (mut state, now) = (self.lock(), clock::instant());
        let pause = state.failures.pairs.pause(&(origin, name), now);
        if pause > WAIT_MAX {
            return Err(Slowed { wait: pause });
        }
        if let Err(wait) = state.failures.addresses.check(&origin, now) {
            let waiting = state.waiting.get(&origin).map_or(0, VecDeque::len);
            if waiting >= SLOWED_PLACES {
                return Err(Slowed { wait: wait + Duration::from_secs(waiting as u64) });
            }
        }
        let (call, called) = oneshot::channel();
        let number = state.places;
        state.places += 1;
        let is_new = !state.waiting.contains_key(&origin);
        state.waiting.entry(origin).or_default().push_back(WaitingLogin { place: number, name, called: call });
        if is_new {
            let is_clean = state.failures.addresses.is_clear(&origin, now);
            if is_clean { state.clean.push_back(origin) } else { state.failed.push_back(origin) }
        }
        Ok(QueuePlace { queue: self, origin, number, called, has_ended: false })
    }
}

impl QueueState {
    /// Calls the next login if none is being checked.
    fn call_next(&mut self, now: Instant) {
        while !self.is_checking {
            let is_turn_of_failed = self.checks % TURN_OF_FAILED == TURN_OF_FAILED - 1;
            let found = match is_turn_of_failed {
                true => self.find(false, now).or_else(|| self.find(true, now)),
                false => self.find(true, now).or_else(|| self.find(false, now)),
            };
            let Some(waiting) = found else { return };
            self.checks = self.checks.wrapping_add(1);
            // A login that leaves removes its place first, so the receiver exists.
            self.is_checking = waiting.called.send(Ok(())).is_ok();
        }
    }

    /// Takes the first login that may be checked now, of addresses that never failed or of those that did. Its
    /// address moves to the end of the turns.
    fn find(&mut self, is_clean: bool, now: Instant) -> Option<WaitingLogin> {
        let turns = if is_clean { &self.clean } else { &self.failed };
        let may = |origin: Origin, waiting: &WaitingLogin| self.failures.wait(origin, waiting.name, now).is_zero();
        let (turn, at) = turns.iter().enumerate().find_map(|(turn, origin)| {
            let waiting_here = self.waiting.get(origin)?;
            Some((turn, waiting_here.iter().position(|waiting| may(*origin, waiting))?))
        })?;
        let turns = if is_clean { &mut self.clean } else { &mut self.failed };
        let origin = turns.remove(turn)?;
        let waiting_here = self.waiting.get_mut(&origin)?;
        let waiting = waiting_here.remove(at);
        if waiting_here.is_empty() {
            self.waiting.remove(&origin);
        } else {
            turns.push_back(origin);
        }
        waiting
    }

    fn leave(&mut self, origin: Origin, place: u64) {
        let Some(waiting_here) = self.waiting.get_mut(&origin) else { return };
        waiting_here.retain(|waiting| waiting.place != place);
        if waiting_here.is_empty() {
            self.waiting.remove(&origin);
            self.clean.retain(|known| *known != origin);
            self.failed.retain(|known| *known != origin);
        }
    }

    fn note_failure(&mut self, origin: Origin, name: u64, now: Instant) {
        self.failures.failed(origin, name, now);
        let Some(waiting_here) = self.waiting.get_mut(&origin) else { return };
        // Waiting logins that would be refused now are refused.
        let pause = self.failures.pairs.pause(&(origin, name), now);
        let slowed = self.failures.addresses.check(&origin, now).err();
        let mut kept = VecDeque::new();
        for waiting in waiting_here.drain(..) {
            let is_paused = waiting.name == name && pause > WAIT_MAX;
            if is_paused || (slowed.is_some() && kept.len() >= SLOWED_PLACES) {
                // The login may leave at this moment.
                let _ = waiting.called.send(Err(Slowed { wait: slowed.unwrap_or(pause).max(pause) }));
            } else {
                kept.push_back(waiting);
            }
        }
        let is_empty = kept.is_empty();
        *waiting_here = kept;
        self.clean.retain(|known| *known != origin);
        self.failed.retain(|known| *known != origin);
        if is_empty {
            self.waiting.remove(&origin);
        } else {
            self.failed.push_back(origin);
        }
    }
}

/// A place in the queue. Dropping it leaves the queue, or passes the turn on.
struct QueuePlace<'q> {
    queue: &'q Queue,
    origin: Origin,
    number: u64,
    called: oneshot::Receiver<Result<(), Slowed>>,
    /// The turn has come; [`Turn`] passes it on.
    has_ended: bool,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut state = self.queue.lock();
        let is_waiting = state
            .waiting
            .get(&self.origin)
            .is_some_and(|waiting_here| waiting_here.iter().any(|waiting| waiting.place == self.number));
        if is_waiting {
            state.leave(self.origin, self.number);
        } else if matches!(self.called.try_recv(), Ok(Ok(()))) {
            // It was called and dropped at the same moment.
            state.is_checking = false;
            state.call_next(clock::instant());
        }
    }
}

/// The turn of a login. No other login is checked as long as it lives.
#[derive(Debug)]
pub(in crate::sources::mqtt) struct Turn<'q> {
    queue: &'q Queue,
    origin: Origin,
    name: u64,
    has_ended: bool,
}

impl Turn<'_> {
    /// Ends the turn with the result of the check.
    pub(in crate::sources::mqtt) fn end(mut self, is_right: bool) {
        self.has_ended = true;
        let (mut state, now) = (self.queue.lock(), clock::instant());
        if is_right {
            state.failures.pairs.0.remove(&(self.origin, self.name));
        } else {
            state.note_failure(self.origin, self.name, now);
        }
        state.is_checking = false;
        state.call_next(now);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let mut state = self.queue.lock();
            state.is_checking = false;
            state.call_next(clock::instant());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn origin(last: u8) -> Origin {
        Origin::of([127, 0, 0, last].into())
    }

    /// Whether it is a login's turn by now.
    fn poll<'q>(
        turn: &mut Pin<&mut impl Future<Output = Result<Turn<'q>, Slowed>>>,
    ) -> Option<Result<Turn<'q>, Slowed>> {
        match turn.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn turns_go_round_the_addresses_and_whoever_leaves_is_not_waited_for() {
        let queue = Queue::new();
        let at_it = queue.turn(origin(1), "a").await.expect("its turn");
        let mut second = pin!(queue.turn(origin(1), "b"));
        let mut third = pin!(queue.turn(origin(1), "c"));
        let mut other = pin!(queue.turn(origin(2), "d"));
        assert!(poll(&mut second).is_none() && poll(&mut third).is_none() && poll(&mut other).is_none());
        at_it.end(true);
        let at_it = poll(&mut second).expect("the first of its row").expect("its turn");
        assert!(poll(&mut third).is_none() && poll(&mut other).is_none());
        at_it.end(true);
        assert!(poll(&mut third).is_none(), "another address is next");
        let at_it = poll(&mut other).expect("its turn").expect("its turn");
        {
            let mut gone = pin!(queue.turn(origin(3), "e"));
            assert!(poll(&mut gone).is_none());
        }
        drop(at_it);
        drop(poll(&mut third).expect("its turn"));
        let state = queue.lock();
        assert!(state.waiting.is_empty() && state.clean.is_empty() && state.failed.is_empty() && !state.is_checking);
    }

    #[tokio::test]
    async fn one_that_was_called_and_left_passes_its_turn_on() {
        let queue = Queue::new();
        let at_it = queue.turn(origin(1), "a").await.expect("its turn");
        let mut next = pin!(queue.turn(origin(2), "b"));
        {
            let mut gone = pin!(queue.turn(origin(1), "c"));
            assert!(poll(&mut gone).is_none() && poll(&mut next).is_none());
            at_it.end(true);
        }
        assert!(matches!(poll(&mut next), Some(Ok(_))));
    }

    #[tokio::test]
    async fn what_fails_is_slowed_and_nobody_else_is() {
        let queue = Queue::new();
        for number in 0..=20 {
            queue.turn(origin(1), &number.to_string()).await.expect("within the burst").end(false);
        }
        let waiting: Vec<_> = (0..SLOWED_PLACES).map(|_| Box::pin(queue.turn(origin(1), "more"))).collect();
        let mut waiting: Vec<_> = waiting;
        for turn in &mut waiting {
            assert!(poll(&mut turn.as_mut()).is_none(), "at most one a second");
        }
        let refused = queue.turn(origin(1), "another").await.expect_err("its address has no place left");
        assert!(refused.wait > Duration::from_secs(8), "{refused:?}");
        queue.turn(origin(2), "0").await.expect("another address").end(false);
        // A name pauses at its address, and not elsewhere.
        for _ in 0..2 {
            queue.turn(origin(2), "0").await.expect("a free try").end(false);
        }
        queue.lock().note_failure(origin(2), 0, clock::instant());
        queue.turn(origin(3), "0").await.expect("the same name at another address").end(true);
    }

    #[tokio::test]
    async fn a_name_that_many_addresses_try_pauses_where_it_failed_and_nowhere_else() {
        let queue = Queue::new();
        for address in 0..50 {
            queue.turn(origin(address), "press").await.expect("its first try").end(false);
        }
        let slowed = queue.turn(origin(40), "press").await.expect_err("one try each");
        assert!(slowed.wait > Duration::from_secs(9), "{slowed:?}");
        queue.turn(origin(200), "press").await.expect("the device itself").end(true);
    }

    #[tokio::test]
    async fn those_that_wait_behind_a_failure_are_refused_with_it() {
        let queue = Queue::new();
        for _ in 0..3 {
            queue.turn(origin(1), "a").await.expect("a try").end(false);
            queue.lock().failures.pairs.0.clear();
        }
        for _ in 0..4 {
            queue.lock().failures.failed(origin(2), queue.names.hash_one("a"), clock::instant());
        }
        queue.lock().failures.pairs.0.clear();
        let at_it = queue.turn(origin(2), "a").await.expect("its turn");
        let mut same = pin!(queue.turn(origin(2), "a"));
        let mut other = pin!(queue.turn(origin(2), "b"));
        assert!(poll(&mut same).is_none() && poll(&mut other).is_none());
        for _ in 0..4 {
            queue.lock().failures.failed(origin(2), queue.names.hash_one("a"), clock::instant());
        }
        at_it.end(false);
        assert!(matches!(poll(&mut same), Some(Err(_))), "its name pauses");
        assert!(matches!(poll(&mut other), Some(Ok(_))), "another name does not");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut table, now) = (FailureTable(HashMap::new()), clock::instant());
        let mut fail = |key, now| table.failed(key, 0, PAUSES, now);
        (0..3).for_each(|_| fail(u64::MAX, now));
        (0..2 * CALLERS_MAX as u64).for_each(|key| fail(key, now));
        fail(7, now);
        assert!(table.0.len() <= CALLERS_MAX);
        assert_eq!(table.pause(&u64::MAX, now), Duration::from_secs(4), "what failed most is remembered");
        let later = now + FORGET_AFTER;
        table.failed(u64::MAX, 0, PAUSES, later);
        assert_eq!(table.pause(&u64::MAX, later), Duration::from_secs(1), "and forgotten in the end");
    }
}
