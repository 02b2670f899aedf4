//! The heartbeat of a writer thread, for those who supervise it.
//!
//! Promise: neither the writer nor a supervisor ever waits for the other.

use crate::clock;
use crate::service::{Unresponsive, thread_number};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Liveness of one writer thread.
#[derive(Debug)]
pub(super) struct Heartbeat {
    origin: Instant,
    thread: AtomicU32,
    /// Start of the current piece of work in milliseconds since `origin`, plus 1; 0 while the writer waits for work.
    busy_since: AtomicU64,
    is_dead: AtomicBool,
}

/// Held by the writer thread as long as it lives; its drop during a panic marks the writer as dead.
pub(super) struct HeartbeatGuard<'p>(&'p Heartbeat);

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            origin: clock::instant(),
            thread: AtomicU32::new(0),
            busy_since: AtomicU64::new(0),
            is_dead: AtomicBool::new(false),
        }
    }
}

impl Heartbeat {
    /// Declares the calling thread to be the writer.
    pub(super) fn start(&self) -> HeartbeatGuard<'_> {
        self.thread.store(thread_number(), Ordering::Release);
        HeartbeatGuard(self)
    }

    /// Marks the start of a piece of work.
    pub(super) fn set_busy(&self) {
        let millis = clock::instant().duration_since(self.origin).as_millis() as u64;
        self.busy_since.store(millis + 1, Ordering::Release);
    }

    /// Marks the writer as waiting for work or for the next retry.
    pub(super) fn set_idle(&self) {
        self.busy_since.store(0, Ordering::Release);
    }

    /// Returns an error if the writer is dead, or busy with one piece of work for longer than `work_max`.
    pub(super) fn check(&self, lane: &str, work_max: Duration) -> Result<(), Unresponsive> {
        let part = || format!("the writer of lane {lane}");
        if self.is_dead.load(Ordering::Acquire) {
            return Err(Unresponsive::Dead { part: part() });
        }
        let begun = match self.busy_since.load(Ordering::Acquire) {
            0 => return Ok(()),
            millis => self.origin + Duration::from_millis(millis - 1),
        };
        let since = clock::instant().saturating_duration_since(begun);
        match since > work_max {
            true => Err(Unresponsive::Busy { part: part(), thread: self.thread.load(Ordering::Acquire), since }),
            false => Ok(()),
        }
    }
}

impl Drop for HeartbeatGuard<'_> {
    fn drop(&mut self) {
        self.0.set_idle();
        if std::thread::panicking() {
            self.0.is_dead.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_waits_is_alive_and_one_that_works_for_too_long_is_not() {
        let heartbeat = Heartbeat::default();
        let beating = heartbeat.start();
        assert_eq!(heartbeat.check("bulk", Duration::ZERO), Ok(()));
        heartbeat.set_busy();
        assert_eq!(heartbeat.check("bulk", Duration::from_secs(60)), Ok(()), "it has just begun");
        std::thread::sleep(Duration::from_millis(3));
        match heartbeat.check("bulk", Duration::ZERO) {
            Err(Unresponsive::Busy { part, thread, .. }) => {
                assert_eq!((part.as_str(), thread), ("the writer of lane bulk", thread_number()));
            }
            other => panic!("{other:?}"),
        }
        heartbeat.set_idle();
        assert_eq!(heartbeat.check("bulk", Duration::ZERO), Ok(()));
        drop(beating);
        assert_eq!(heartbeat.check("bulk", Duration::ZERO), Ok(()), "an orderly end is none to report");
    }

    #[test]
    fn a_writer_that_panics_is_dead() {
        let heartbeat = std::sync::Arc::new(Heartbeat::default());
        let of_thread = std::sync::Arc::clone(&heartbeat);
        let writer = std::thread::spawn(move || {
            let _beating = of_thread.start();
            panic!("on purpose");
        });
        assert!(writer.join().is_err());
        assert_eq!(
            heartbeat.check("bulk", Duration::from_secs(60)),
            Err(Unresponsive::Dead { part: "the writer of lane bulk".into() })
        );
    }
}
