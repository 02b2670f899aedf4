//! Shutdown: one signal that every task of the gateway awaits, and the heartbeat of a task that does.
//!
//! Promise: a [`Shutdown`] that has begun never ends, and every waiter sees it, early or late. A part that awaits its
//! shutdown together with its other work is alive, however long a peer takes; a part that stops awaiting it is stuck,
//! and its [`Pulse`] stops.

use crate::clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Handle on which tasks await the shutdown.
#[derive(Debug)]
pub struct Shutdown {
    signal: watch::Receiver<bool>,
    pulse: Option<Arc<Pulse>>,
}

impl Clone for Shutdown {
    /// Clones the signal. The pulse stays with the original part.
    fn clone(&self) -> Self {
        Self { signal: self.signal.clone(), pulse: None }
    }
}

/// Begins the shutdown, also when dropped.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

pub fn pair() -> (Trigger, Shutdown) {
    let (sender, signal) = watch::channel(false);
    (Trigger(sender), Shutdown { signal, pulse: None })
}

impl Trigger {
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Returns another handle on the same signal.
    pub fn subscribe(&self) -> Shutdown {
        Shutdown { signal: self.0.subscribe(), pulse: None }
    }
}

impl Shutdown {
    /// Returns the same signal with a pulse, which beats while the holder awaits [`Shutdown::begun`]. The pulse has
    /// stopped when its last beat is `limit` ago.
    pub fn with_pulse(&self, limit: Duration) -> (Self, Arc<Pulse>) {
        let pulse = Arc::new(Pulse { since: clock::instant(), beat: AtomicU64::new(0), limit });
        (Self { signal: self.signal.clone(), pulse: Some(Arc::clone(&pulse)) }, pulse)
    }

    pub fn has_begun(&self) -> bool {
        *self.signal.borrow() || self.signal.has_changed().is_err()
    }

    /// Waits until the shutdown has begun. Cancel safe.
    pub async fn begun(&mut self) {
        let Self { signal, pulse } = self;
        let Some(pulse) = pulse else {
            // An error means that the trigger was dropped, which begins the shutdown too.
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

/// Heartbeat of a part: the time at which it last awaited its shutdown.
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

    /// Time since the last beat.
    pub fn silence(&self) -> Duration {
        clock::instant()
            .duration_since(self.since)
            .saturating_sub(Duration::from_millis(self.beat.load(Ordering::Relaxed)))
    }

    /// Waits until there has been no beat for the limit. Cancel safe.
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
