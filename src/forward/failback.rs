//! Failback: returns to a broker earlier in the destination's list as soon as it is reachable again.

use crate::clock;
use crate::link::{LinkError, Session, Target, Will};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval between attempts to reach an earlier broker.
const ATTEMPT_EVERY: Duration = Duration::from_secs(15);

/// Tries to connect to an earlier broker of the destination while a session with a later one is open.
pub(super) struct Failback {
    target: Arc<Target>,
    client: String,
    will: Option<Will>,
    broker_index: usize,
    attempt: Option<tokio::task::JoinHandle<Result<Session, LinkError>>>,
    next: Instant,
}

impl Failback {
    /// Begins for a session with the broker at `broker_index` of the list; `will` is registered with the earlier broker.
    pub fn new(target: &Arc<Target>, client: &str, broker_index: usize, will: Option<Will>) -> Self {
        let next = clock::instant() + ATTEMPT_EVERY;
        Self { target: Arc::clone(target), client: client.to_owned(), will, broker_index, attempt: None, next }
    }

    /// Records that the current session is with the broker at `broker_index`.
    pub fn set_broker(&mut self, broker_index: usize) {
        self.broker_index = broker_index;
    }

    /// Waits for a session with an earlier broker; never returns if there is none. Safe to drop half-way.
    pub async fn reconnected(&mut self) -> Box<Session> {
        if self.broker_index == 0 {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep_until(self.next.into()).await;
            let Self { target, client, will, broker_index, .. } = self;
            let attempt = self.attempt.get_or_insert_with(|| {
                let (target, client, will, broker_index) =
                    (Arc::clone(target), client.clone(), will.clone(), *broker_index);
                tokio::spawn(async move { target.connect_before(&client, will.as_ref(), broker_index).await })
            });
            let ended = attempt.await;
            self.attempt = None;
            self.next = clock::instant() + ATTEMPT_EVERY;
            if let Ok(Ok(session)) = ended {
                return Box::new(session);
            }
        }
    }
}

impl Drop for Failback {
    fn drop(&mut self) {
        if let Some(attempt) = &self.attempt {
            attempt.abort();
        }
    }
}
