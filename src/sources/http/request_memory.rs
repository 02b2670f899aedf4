//! The memory for requests in hand, and how callers share it.
//!
//! Promise: one caller, however many bodies it sends however slowly, leaves room for others; a caller that has nothing
//! in hand waits only for room, not behind callers that wait for their own.
//! Invariant: a caller that has something in hand gets no more than twice what would still be free, so that one has at
//! most two thirds, two have three quarters, and there is always something left.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use tokio::sync::oneshot;

/// What a caller may hold of what is free. With 1 a single busy caller could use half of the memory only, with 8 one
/// that is slow leaves a ninth: too little for a batch of another.
const SHARE: u64 = 2;

/// Bytes of requests in hand.
#[derive(Debug)]
pub(super) struct Room {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: u64,
    held: HashMap<String, u64>,
    waiting: VecDeque<Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    caller: String,
    bytes: u64,
    granted: oneshot::Sender<()>,
}

/// Room that a request has; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Held<'r> {
    room: &'r Room,
    caller: String,
    bytes: u64,
}

impl Room {
    pub(super) fn new(bytes: u64) -> Self {
        let state = State { free: bytes, held: HashMap::new(), waiting: VecDeque::new(), next: 0 };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for room. Whoever drops this half-way does not wait any more.
    pub(super) async fn take(&self, caller: &str, bytes: u64) -> Held<'_> {
        let waiting = {
            let mut state = self.lock();
            if state.may(caller, bytes) {
                return state.give(self, caller, bytes);
            }
            let (granted, called) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.waiting.push_back(Waiting { number, caller: caller.to_owned(), bytes, granted });
            Place { room: self, number, caller, bytes, called }
        };
        waiting.called().await
    }
}

impl State {
    fn may(&self, caller: &str, bytes: u64) -> bool {
        let held = self.held.get(caller).copied().unwrap_or(0);
        bytes <= self.free && (held == 0 || held + bytes <= (self.free - bytes) * SHARE)
    }

    fn give<'r>(&mut self, room: &'r Room, caller: &str, bytes: u64) -> Held<'r> {
        self.free -= bytes;
        *self.held.entry(caller.to_owned()).or_default() += bytes;
        Held { room, caller: caller.to_owned(), bytes }
    }

    fn give_back(&mut self, caller: &str, bytes: u64) {
        self.free += bytes;
        if let Some(held) = self.held.get_mut(caller) {
            *held -= bytes;
            if *held == 0 {
                self.held.remove(caller);
            }
        }
        // The first that may, in the order of their arrival, and so on: those whose caller has its share are passed over.
        while let Some(at) = self.waiting.iter().position(|waiting| self.may(&waiting.caller, waiting.bytes)) {
            let Some(Waiting { caller, bytes, granted, .. }) = self.waiting.remove(at) else { return };
            self.free -= bytes;
            *self.held.entry(caller).or_default() += bytes;
            // Its place takes itself out before it goes, so that it is there to hear it.
            let _ = granted.send(());
        }
    }
}

/// A place among those that wait.
struct Place<'r, 'c> {
    room: &'r Room,
    number: u64,
    caller: &'c str,
    bytes: u64,
    called: oneshot::Receiver<()>,
}

impl<'r> Place<'r, '_> {
    async fn called(mut self) -> Held<'r> {
        // The sender is dropped with a word only.
        let _ = (&mut self.called).await;
        let held = Held { room: self.room, caller: self.caller.to_owned(), bytes: self.bytes };
        self.bytes = 0;
        held
    }
}

impl Drop for Place<'_, '_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut state = self.room.lock();
        match state.waiting.iter().position(|waiting| waiting.number == self.number) {
            Some(at) => drop(state.waiting.remove(at)),
            // It had been given room, and went at that moment.
            None => state.give_back(self.caller, self.bytes),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.room.lock().give_back(&self.caller, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn one_caller_leaves_room_for_others_and_nobody_waits_behind_it() {
        let room = Room::new(100);
        let mut context = Context::from_waker(Waker::noop());
        let mut take = |caller: &'static str| match pin!(room.take(caller, 10)).poll(&mut context) {
            Poll::Ready(held) => Some(held),
            Poll::Pending => None,
        };
        let mut held: Vec<_> = std::iter::from_fn(|| take("slow")).collect();
        assert_eq!(held.len(), 6, "two thirds");
        let other = take("other").expect("room");
        let third = take("third").expect("room");
        assert!(take("slow").is_none());
        held.pop();
        drop((other, third));
        assert_eq!(room.lock().free, 50);
        assert!(room.lock().waiting.is_empty(), "those that were dropped do not wait");
    }

    #[tokio::test]
    async fn who_waits_gets_room_when_there_is_some_and_what_is_dropped_comes_back() {
        let room = Room::new(100);
        let first = room.take("a", 90).await;
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut gone = pin!(room.take("b", 50));
            let mut next = pin!(room.take("c", 60));
            assert!(gone.as_mut().poll(&mut context).is_pending() && next.as_mut().poll(&mut context).is_pending());
            drop(first);
            assert_eq!(room.lock().free, 50, "the first in the row has it");
        }
        assert_eq!(room.lock().free, 100);
        assert!(room.lock().held.is_empty());
    }
}
