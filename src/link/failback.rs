//! Failback: returns to a broker earlier in the list as soon as it is reachable again.

use super::error::LinkError;
use super::session::{ConnectAs, Session};
use super::target::Target;
use crate::clock;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval between attempts to reach an earlier broker.
const ATTEMPT_EVERY: Duration = Duration::from_secs(15);

/// Tries to connect to an earlier broker while a session with a later one is open.
pub(super) struct Failback {
    target: Arc<Target>,
    connect_as: ConnectAs,
    broker_index: usize,
    attempt: Option<tokio::task::JoinHandle<Result<Session, LinkError>>>,
    next: Instant,
}

impl Failback {
    /// Begins for a session with the broker at `broker_index` of the list.
    pub(super) fn new(target: &Arc<Target>, connect_as: &ConnectAs, broker_index: usize) -> Self {
        let (target, connect_as) = (Arc::clone(target), connect_as.clone());
        Self { target, connect_as, broker_index, attempt: None, next: clock::instant() + ATTEMPT_EVERY }
    }

    /// Waits for a session with an earlier broker; never returns if there is none. Safe to drop half-way.
    pub(super) async fn reconnected(&mut self) -> Box<Session> {
        if self.broker_index == 0 {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep_until(self.next.into()).await;
            let Self { target, connect_as, broker_index, .. } = self;
            let attempt = self.attempt.get_or_insert_with(|| {
                let (target, connect_as, broker_index) = (Arc::clone(target), connect_as.clone(), *broker_index);
                tokio::spawn(async move { target.connect_before(&connect_as, broker_index).await })
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
