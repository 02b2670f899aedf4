//! The memory for requests in progress, shared fairly between callers.
//!
//! Promise: one caller cannot use up the memory, however many bodies it sends and however slowly. A caller without a
//! request in progress waits only for free memory, not behind callers that wait for their own share.
//! Invariant: a caller with requests in progress gets at most twice the memory that stays free. So one caller holds at
//! most two thirds, and some memory is always free.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use tokio::sync::oneshot;

/// Memory of a request without its body.
pub(super) const REQUEST_BYTES: u64 = 4 << 10;
/// A caller's maximum share, as a multiple of the free memory. With 1 a single busy caller could use only half of the
/// memory; with 8 a slow caller would leave a ninth, too little for a batch of another caller.
const SHARE: u64 = 2;

/// The memory of requests in progress.
#[derive(Debug)]
pub(super) struct RequestMemory {
    state: Mutex<Shares>,
}

#[derive(Debug)]
struct Shares {
    free: u64,
    held: HashMap<String, u64>,
    queue: VecDeque<QueuedRequest>,
    next: u64,
}

#[derive(Debug)]
struct QueuedRequest {
    number: u64,
    caller: String,
    bytes: u64,
    sender: oneshot::Sender<()>,
}

/// The memory of one request; dropping it frees the memory.
#[derive(Debug)]
pub(super) struct MemoryShare<'r> {
    room: &'r RequestMemory,
    caller: String,
    bytes: u64,
}

impl RequestMemory {
    pub(super) fn new(bytes: u64) -> Self {
        let state = Shares { free: bytes, held: HashMap::new(), queue: VecDeque::new(), next: 0 };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.state.lock()
    }

    /// Waits for memory. Cancel-safe: dropping the future leaves the queue.
    pub(super) async fn take(&self, caller: &str, bytes: u64) -> MemoryShare<'_> {
        let queued = {
            let mut state = self.lock();
            if state.may_take(caller, bytes) {
                return state.grant(self, caller, bytes);
            }
            let (sender, granted) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.queue.push_back(QueuedRequest { number, caller: caller.to_owned(), bytes, sender });
            QueuePlace { room: self, number, caller, bytes, granted }
        };
        queued.granted().await
    }
}

impl Shares {
    fn may_take(&self, caller: &str, bytes: u64) -> bool {
        let held = self.held.get(caller).copied().unwrap_or(0);
        bytes <= self.free && (held == 0 || held + bytes <= (self.free - bytes) * SHARE)
    }

    fn grant<'r>(&mut self, room: &'r RequestMemory, caller: &str, bytes: u64) -> MemoryShare<'r> {
        self.free -= bytes;
        *self.held.entry(caller.to_owned()).or_default() += bytes;
        MemoryShare { room, caller: caller.to_owned(), bytes }
    }

    fn release(&mut self, caller: &str, bytes: u64) {
        self.free += bytes;
        if let Some(held) = self.held.get_mut(caller) {
            *held -= bytes;
            if *held == 0 {
                self.held.remove(caller);
            }
        }
        // Serve the queue in order of arrival; skip requests whose caller has its full share.
        while let Some(at) = self.queue.iter().position(|queued| self.may_take(&queued.caller, queued.bytes)) {
            let Some(QueuedRequest { caller, bytes, sender, .. }) = self.queue.remove(at) else { return };
            self.free -= bytes;
            *self.held.entry(caller).or_default() += bytes;
            // The receiver exists: a dropped place removes itself from the queue first.
            let _ = sender.send(());
        }
    }
}

/// The place of a request in the queue.
struct QueuePlace<'r, 'c> {
    room: &'r RequestMemory,
    number: u64,
    caller: &'c str,
    bytes: u64,
    granted: oneshot::Receiver<()>,
}

impl<'r> QueuePlace<'r, '_> {
    async fn granted(mut self) -> MemoryShare<'r> {
        // The sender is never dropped before it sends.
        let _ = (&mut self.granted).await;
        let held = MemoryShare { room: self.room, caller: self.caller.to_owned(), bytes: self.bytes };
        self.bytes = 0;
        held
    }
}

impl Drop for QueuePlace<'_, '_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut state = self.room.lock();
        match state.queue.iter().position(|queued| queued.number == self.number) {
            Some(at) => drop(state.queue.remove(at)),
            // The memory was granted just before the future was dropped.
            None => state.release(self.caller, self.bytes),
        }
    }
}

impl Drop for MemoryShare<'_> {
    fn drop(&mut self) {
        self.room.lock().release(&self.caller, self.bytes);
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
        let room = RequestMemory::new(100);
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
        assert!(room.lock().queue.is_empty(), "those that were dropped do not wait");
    }

    #[tokio::test]
    async fn who_waits_gets_room_when_there_is_some_and_what_is_dropped_comes_back() {
        let room = RequestMemory::new(100);
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
