//! Looking back: whether an earlier broker of a destination is there again.

use crate::clock;
use crate::link::{LinkError, Session, Target};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A session with another than the first broker looks that often whether an earlier one is back.
const LOOK_BACK_EVERY: Duration = Duration::from_secs(15);

/// Looks for an earlier broker of the destination while a session with a later one lasts.
pub(super) struct LookBack {
    target: Arc<Target>,
    client: String,
    place: usize,
    attempt: Option<tokio::task::JoinHandle<Result<Session, LinkError>>>,
    next: Instant,
}

impl LookBack {
    pub fn new(target: &Arc<Target>, client: &str, place: usize) -> Self {
        let next = clock::instant() + LOOK_BACK_EVERY;
        Self { target: Arc::clone(target), client: client.to_owned(), place, attempt: None, next }
    }

    /// Returns a session with an earlier broker; never, where there is none. Safe to drop half-way.
    pub async fn found(&mut self) -> Box<Session> {
        if self.place == 0 {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep_until(self.next.into()).await;
            let (target, client, place) = (Arc::clone(&self.target), self.client.clone(), self.place);
            let attempt = self
                .attempt
                .get_or_insert_with(|| tokio::spawn(async move { target.connect_before(&client, place).await }));
            let ended = attempt.await;
            self.attempt = None;
            self.next = clock::instant() + LOOK_BACK_EVERY;
            if let Ok(Ok(session)) = ended {
                return Box::new(session);
            }
        }
    }
}

impl Drop for LookBack {
    fn drop(&mut self) {
        if let Some(attempt) = &self.attempt {
            attempt.abort();
        }
    }
}
