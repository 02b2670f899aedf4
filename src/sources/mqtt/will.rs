//! Wills: the message that a client leaves in CONNECT for the case that it ends without DISCONNECT.
//!
//! Promise: a will becomes an event only under the rights that are in force at that moment. A will that waits for its
//! delay is stored with its client's identity and checked when it is due, also after a restart.

use super::registry::DueWill;
use super::state::{Attempt, ListenerState};
use super::stored_will::{StoredWill, Will};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Closed, EventMetadata, Ingest, Producer, Submission, Submitted};
use crate::memory::Permit;
use crate::mqtt::connect::WillMessage;
use crate::shutdown::Shutdown;
use std::sync::Arc;

/// Largest stored will: a payload and a topic of 64 KiB each, and certificates of the same size.
const WILL_BYTES_MAX: usize = 192 << 10;

impl StoredWill {
    /// Returns the will if its client would be accepted now and may publish to the topic;
    /// counts it as dropped otherwise.
    fn checked(self, shared: &ListenerState, permit: Permit) -> Option<Will> {
        let identity = self.identity();
        let checked = shared.check_access(&identity, self.peer).map_err(str::to_owned);
        let checked = checked.and_then(|rights| match shared.route(&self.topic, &self.client, &rights) {
            (route, None) => Ok(route),
            (_, Some(why)) => Err(why),
        });
        match checked {
            Ok(route) => {
                let delay = self.delay();
                let Self { topic, payload, content_type, trace_parent, .. } = self;
                let message = WillMessage { topic, payload, content_type, trace_parent, delay };
                Some(Will { route: Arc::new(route), delay, message, permit })
            }
            Err(why) => {
                let attempt = Attempt { sender: identity.sender(&self.client), what: &self.topic };
                shared.count_dropped(self.peer, attempt, &why);
                None
            }
        }
    }
}

/// Publishes a due will under the current configuration, or drops it.
pub(super) async fn publish_due(due: DueWill, shared: Arc<ListenerState>, mut shutdown: Shutdown) {
    let registry = &shared.registry;
    // Twice: the stored form and the message.
    let Ok(mut permit) = shared.budget.permit(2 * WILL_BYTES_MAX) else { return registry.retry_will(&due) };
    let stored = match registry.read_will(&due).await {
        Ok(stored) => {
            let bytes = 2 * stored.as_ref().map_or(0, Vec::len) + size_of::<Will>();
            permit.shrink(permit.bytes().saturating_sub(bytes));
            stored.and_then(|bytes| StoredWill::read(&bytes))
        }
        Err(error) => {
            tracing::error!(%error, "could not read a will that is due, will retry");
            return registry.retry_will(&due);
        }
    };
    if let Some(will) = stored.and_then(|stored| stored.checked(&shared, permit)) {
        let mut producer = Producer::new(Arc::clone(&shared.ingest));
        let submitted = tokio::select! {
            submitted = will.submit(&mut producer) => submitted,
            () = shutdown.begun() => Err(Closed),
        };
        // On a shutdown the will stays on the disk and is due again after the next start.
        let Ok(submitted) = submitted else { return };
        if producer.receipts(&[submitted]).await.is_err() {
            return;
        }
    }
    registry.finish_will(&due);
}

impl Will {
    /// Publishes the will. Returns when its lane has accepted the event, or when the journal is closed.
    pub async fn publish(&self, ingest: &Arc<Ingest>) {
        let _ = self.submit(&mut Producer::new(Arc::clone(ingest))).await;
    }

    async fn submit(&self, producer: &mut Producer) -> Result<Submitted, Closed> {
        let message = &self.message;
        let metadata = EventMetadata {
            trace_parent: message.trace_parent.as_deref(),
            content_type: message.content_type.as_deref(),
            properties: Some(&[]),
            ..EventMetadata::default()
        };
        let arrived = Timestamp::from(clock::wall());
        let submission = Submission { metadata, ..Submission::new(&self.route, &message.payload, arrived) };
        producer.submit_when_room(&submission).await
    }
}
