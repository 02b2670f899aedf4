//! Shutdown: one signal that every task of the gateway can await, and the sign of life it gives by that.
//!
//! Promise: a [`Shutdown`] that has begun never ends, and every waiter sees it, early or late.
//! A part that awaits its shutdown beside everything else it waits for is alive, however long a peer
//! takes; one that does not come back to it is stuck, and its [`Pulse`] stops.

use crate::clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A handle on which tasks wait for the end.
#[derive(Debug)]
pub struct Shutdown {
    signal: watch::Receiver<bool>,
    pulse: Option<Arc<Pulse>>,
}

impl Clone for Shutdown {
    /// The same signal. The pulse stays with the part that it was given to.
    fn clone(&self) -> Self {
        Self { signal: self.signal.clone(), pulse: None }
    }
}

/// The side that begins the end; dropping it begins it too.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A connected pair.
pub fn pair() -> (Trigger, Shutdown) {
    let (sender, signal) = watch::channel(false);
    (Trigger(sender), Shutdown { signal, pulse: None })
}

impl Trigger {
    /// Begins the shutdown.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Another handle on the same signal.
    pub fn subscribe(&self) -> Shutdown {
        Shutdown { signal: self.0.subscribe(), pulse: None }
    }
}

impl Shutdown {
    /// The same signal with a pulse: it beats as long as whoever holds the handle awaits [`Shutdown::begun`],
    /// and has stopped when that is `limit` ago.
    pub fn with_pulse(&self, limit: Duration) -> (Self, Arc<Pulse>) {
        let pulse = Arc::new(Pulse { since: clock::instant(), beat: AtomicU64::new(0), limit });
        (Self { signal: self.signal.clone(), pulse: Some(Arc::clone(&pulse)) }, pulse)
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        *self.signal.borrow() || self.signal.has_changed().is_err()
    }

    /// Returns once it has begun. Safe to drop half-way.
    pub async fn begun(&mut self) {
        let Self { signal, pulse } = self;
        let Some(pulse) = pulse else {
            // An error means that the trigger is gone, which begins the shutdown as well.
            let _ = signal.wait_for(|begun| *begun).await;
            return;
        };
        pulse.beat();
        loop {
            tokio::select! {
                biased;
                _ = signal.wait_for(|begun| *begun) => return,
                () = tokio::time::sleep(pulse.limit / 4) => pulse.beat(),
            }
        }
    }
}

/// Says when a part last came back to await its shutdown.
#[derive(Debug)]
pub struct Pulse {
    since: Instant,
    /// Milliseconds after `since`.
    beat: AtomicU64,
    limit: Duration,
}

impl Pulse {
    fn beat(&self) {
        let millis = u64::try_from(clock::instant().duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.beat.store(millis, Ordering::Relaxed);
    }

    /// How long ago the last beat was.
    pub fn silence(&self) -> Duration {
        clock::instant()
            .duration_since(self.since)
            .saturating_sub(Duration::from_millis(self.beat.load(Ordering::Relaxed)))
    }

    /// Returns once there has been no beat for its limit. Safe to drop half-way.
    pub async fn stopped(&self) {
        while let Some(left) = self.limit.checked_sub(self.silence()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_awaits_a_peer_is_alive_and_one_that_forgets_its_shutdown_is_stuck() {
        let (_trigger, shutdown) = pair();
        let limit = Duration::from_millis(400);
        let (mut alive, pulse) = shutdown.with_pulse(limit);
        let waiting = tokio::spawn(async move {
            tokio::select! {
                () = alive.begun() => {}
                () = std::future::pending() => {}
            }
        });
        assert!(tokio::time::timeout(limit * 4, pulse.stopped()).await.is_err(), "it awaits a peer");
        waiting.abort();
        pulse.stopped().await;
        assert!(pulse.silence() >= limit);
    }
}
