//! The producer: how one connection or source hands its events in and gets their receipts.
//!
//! Promise: [`Producer::deliver`] returns a receipt for each event, or the journal is closed.
//! Invariant: a batch of the journal wakes its producer once, however many of its events are in it.

use super::Ingest;
use super::route::Route;
use super::submission::{Accepted, Closed, Submission, Submitted};
use crate::contract::{Sender, SourceKind};
use crate::journal::{SubmitError, Waiter, WaiterHandle};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a cached route, without its topic and its own bytes: the map entry and the counts.
const CACHED_ROUTE_BYTES: usize = 128;
/// Interval at which a producer that waits for receipts checks whether the journal is closed: a journal that closes
/// after a failed commit wakes nobody.
const CLOSED_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Hands the events of one connection or source in. It caches routes by topic, so all of them are of one sender.
#[derive(Debug)]
pub struct Producer {
    ingest: Arc<Ingest>,
    waiter: Waiter,
    routes: HashMap<String, Arc<Route>>,
    /// Maximum number of cached routes.
    routes_max: usize,
    routes_bytes: usize,
}

impl Producer {
    /// Creates a producer that caches no routes.
    pub fn new(ingest: Arc<Ingest>) -> Self {
        Self::continued(ingest, Waiter::default(), 0)
    }

    /// Creates a producer that caches up to `routes_max` routes.
    pub fn with_cache(ingest: Arc<Ingest>, routes_max: usize) -> Self {
        Self::continued(ingest, Waiter::default(), routes_max)
    }

    /// Creates a producer that is also woken for the events that `waiter` was given for.
    pub fn continued(ingest: Arc<Ingest>, waiter: Waiter, routes_max: usize) -> Self {
        Self { ingest, waiter, routes: HashMap::new(), routes_max, routes_bytes: 0 }
    }

    /// Takes the waiter out, for the producer of the next connection.
    pub fn take_waiter(&mut self) -> Waiter {
        std::mem::take(&mut self.waiter)
    }

    /// Submits an event without waiting. The source may acknowledge it once [`Ingest::receipt`] has its receipt.
    pub fn submit(&mut self, submission: &Submission<'_>) -> Result<Submitted, SubmitError> {
        self.ingest.accept(submission, &mut self.waiter)
    }

    /// Submits an event as soon as its lane has room.
    pub async fn submit_when_room(&mut self, submission: &Submission<'_>) -> Result<Submitted, Closed> {
        loop {
            match self.submit(submission) {
                Ok(submitted) => return Ok(submitted),
                Err(SubmitError::Closed) => return Err(Closed),
                Err(SubmitError::NoRoom) => self.ingest.room(submission.route).await,
            }
        }
    }

    /// Submits events in order and waits for the receipt of each.
    pub async fn deliver(&mut self, submissions: &[Submission<'_>]) -> Result<Vec<Accepted>, Closed> {
        let mut submitted = Vec::with_capacity(submissions.len());
        for submission in submissions {
            submitted.push(self.submit_when_room(submission).await?);
        }
        self.receipts(&submitted).await
    }

    /// Waits for the receipts of events that this producer has submitted. Cancel safe.
    pub async fn receipts(&self, submitted: &[Submitted]) -> Result<Vec<Accepted>, Closed> {
        let mut accepted = Vec::with_capacity(submitted.len());
        for event in submitted {
            let receipt = loop {
                match self.ingest.receipt(event) {
                    Some(receipt) => break receipt,
                    None if self.ingest.is_closed() => return Err(Closed),
                    None => {}
                }
                let _ = tokio::time::timeout(CLOSED_CHECK_INTERVAL, self.waiter.woken()).await;
            };
            accepted.push(Accepted { receipt, is_dead: event.is_dead() });
        }
        Ok(accepted)
    }

    /// Waits until an event of this producer may have its receipt. Cancel safe.
    pub async fn woken(&self) {
        self.waiter.woken().await;
    }

    /// A handle to wait on while the producer itself is borrowed.
    pub fn bell(&self) -> WaiterHandle {
        self.waiter.bell()
    }

    /// The route of a topic, from the cache while the contracts have not changed.
    pub fn route(&mut self, kind: SourceKind, source: &str, topic: &str, sender: Sender<'_>) -> Arc<Route> {
        if let Some(route) = self.cached_route(topic) {
            return route;
        }
        let route = Arc::new(self.ingest.route(kind, source, topic, sender));
        if !self.has_room_in_cache(topic) {
            self.clear_routes();
        }
        self.cache(Arc::clone(&route));
        route
    }

    /// The cached route of a topic, if the contracts have not changed since.
    pub fn cached_route(&self, topic: &str) -> Option<Arc<Route>> {
        self.routes.get(topic).filter(|route| self.ingest.is_current(route)).map(Arc::clone)
    }

    /// Whether the route of a topic can be cached; else [`Producer::clear_routes`] makes room.
    pub fn has_room_in_cache(&self, topic: &str) -> bool {
        self.routes.len() < self.routes_max && !self.routes.contains_key(topic)
    }

    /// Bytes that a route takes in the cache.
    pub fn cached_bytes(route: &Route) -> usize {
        CACHED_ROUTE_BYTES + route.topic().len() + route.bytes()
    }

    /// Caches a route of its topic.
    pub fn cache(&mut self, route: Arc<Route>) {
        self.routes_bytes += Self::cached_bytes(&route);
        self.routes.insert(route.topic().to_owned(), route);
    }

    /// Empties the cache; returns the bytes that it took.
    pub fn clear_routes(&mut self) -> usize {
        self.routes.clear();
        std::mem::take(&mut self.routes_bytes)
    }
}
