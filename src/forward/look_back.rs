//! Looking back: whether an earlier broker of a destination is there again.

use crate::clock;
use crate::link::{LinkError, Session, Target, Will};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A session with another than the first broker looks that often whether an earlier one is back.
const LOOK_BACK_EVERY: Duration = Duration::from_secs(15);

/// Looks for an earlier broker of the destination while a session with a later one lasts.
pub(super) struct LookBack {
    target: Arc<Target>,
    client: String,
    will: Option<Will>,
    place: usize,
    attempt: Option<tokio::task::JoinHandle<Result<Session, LinkError>>>,
    next: Instant,
}

impl LookBack {
    /// For a session with the broker at `place`; `will` is what an earlier one is to say when we vanish.
    pub fn new(target: &Arc<Target>, client: &str, place: usize, will: Option<Will>) -> Self {
        let next = clock::instant() + LOOK_BACK_EVERY;
        Self { target: Arc::clone(target), client: client.to_owned(), will, place, attempt: None, next }
    }

    /// The session is with the broker at `place` now.
    pub fn settle_at(&mut self, place: usize) {
        self.place = place;
    }

    /// Returns a session with an earlier broker; never, where there is none. Safe to drop half-way.
    pub async fn found(&mut self) -> Box<Session> {
        if self.place == 0 {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep_until(self.next.into()).await;
            let Self { target, client, will, place, .. } = self;
            let attempt = self.attempt.get_or_insert_with(|| {
                let (target, client, will, place) = (Arc::clone(target), client.clone(), will.clone(), *place);
                tokio::spawn(async move { target.connect_before(&client, will.as_ref(), place).await })
            });
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
