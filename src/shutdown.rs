//! Shutdown: one signal that every task of the gateway can await.
//!
//! Promise: a [`Shutdown`] that has begun never ends, and every waiter sees it, early or late.

use tokio::sync::watch;

/// A handle on which tasks wait for the end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// The side that begins the end; dropping it begins it too.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A connected pair.
pub fn pair() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Begins the shutdown.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Another handle on the same signal.
    pub fn subscribe(&self) -> Shutdown {
        Shutdown(self.0.subscribe())
    }
}

impl Shutdown {
    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns once it has begun. Safe to drop half-way.
    pub async fn begun(&mut self) {
        // An error means that the trigger is gone, which begins the shutdown as well.
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}
