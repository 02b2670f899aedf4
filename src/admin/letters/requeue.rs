//! Hands the event of a dead letter in again.
//!
//! Promise: a letter that still breaks its contract, or whose client may not publish it any more, is refused.

use super::selection::StoredLetter;
use crate::admin::handles::Handles;
use crate::clock;
use crate::contract::{Sender, SourceKind};
use crate::event::{Attribute, Content, Id, Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::ingest::{Closed, EventMetadata, Producer, Publishing, Route, Submission};
use std::sync::Arc;

impl Handles {
    fn source_kind(&self, source: &str) -> Option<SourceKind> {
        let view = self.view.load();
        let found = view.sources.iter().find(|known| known.name == source).map(|known| known.kind);
        found.or_else(|| (source == "watch").then_some(SourceKind::Watch))
    }

    /// Submits the event of an intake letter to ingest again, with this payload.
    pub(super) async fn take_in(&self, found: &StoredLetter, payload: &[u8], is_dry_run: bool) -> Result<(), String> {
        let letter = &found.letter;
        if let Some(obstacle) = letter.obstacle(payload) {
            return Err(obstacle.into());
        }
        let plain = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
        let mut parts = letter.origin.split('/').map(plain);
        let (source, device, beneath) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let kind = self
            .source_kind(&source)
            .ok_or_else(|| format!("its source \"{source}\" is not in the configuration any more"))?;
        // Letters of older versions have no sender.
        let client = if letter.client.is_empty() { device.as_deref().unwrap_or_default() } else { &letter.client };
        let sender = Sender { client, user: &letter.user, proven_by: letter.authtype };
        let mut route = self.ingest.route(kind, &source, &letter.topic, sender);
        if letter.is_by_rule {
            route = route.allowed_by_rule();
        }
        if let Some(objection) = foreign_publisher(letter, kind, &route) {
            return Err(objection);
        }
        if let Some(part) = beneath {
            route = route.with_part(&part);
        }
        let is_publish = matches!(kind, SourceKind::Mqtt | SourceKind::Broker);
        let properties = is_publish.then_some(&*found.properties);
        let metadata = EventMetadata { properties, ..found.metadata() };
        let arrived = Timestamp::from(clock::wall());
        let submission = Submission { metadata, ..Submission::new(&route, payload, arrived) };
        if let Some(violation) = self.ingest.requeue_obstacle(&submission) {
            return Err(format!("it still breaks its contract: {violation}"));
        }
        if is_dry_run {
            return Ok(());
        }
        let delivered = Producer::new(Arc::clone(&self.ingest)).deliver(&[submission]).await;
        delivered.map(drop).map_err(|Closed| "the gateway is shutting down".to_owned())
    }

    /// Appends a corrected copy of an event that central refused: a new event that names the original id.
    pub(super) async fn send_edited(
        &self,
        found: &StoredLetter,
        payload: &[u8],
        is_dry_run: bool,
    ) -> Result<(), String> {
        let letter = &found.letter;
        let stream = letter.stream_id();
        self.ingest
            .check_payload(&stream, payload)
            .map_err(|violation| format!("it breaks its contract: {violation}"))?;
        let known = self.journal.published(found.publication).ok_or("the contract of this event is lost")?;
        let lane = self.journal.lane(&known.publication.lane).ok_or("its lane is not there any more")?;
        if is_dry_run {
            return Ok(());
        }
        let event = Record {
            publication: found.publication,
            id: Id::mint(),
            time: letter.time,
            origin: &letter.origin,
            key: &letter.key,
            content: if letter.is_opaque { Content::Bytes } else { Content::Json },
            attributes: vec![Attribute::OriginalId(&letter.event_id)],
            payload,
        };
        lane.append(&event).await.map(|_receipt| ()).map_err(|_| "the gateway is shutting down".to_owned())
    }
}

/// Returns why a letter must not be requeued whose client had the right to publish only by its own name: the contract
/// that matches the topic now may name another publisher.
fn foreign_publisher(letter: &DeadLetter<'_>, kind: SourceKind, route: &Route) -> Option<String> {
    if letter.authtype.is_none() || letter.is_by_rule {
        return None;
    }
    let user = &letter.user;
    if kind == SourceKind::Http && !route.requires_other_publisher(user) {
        return None;
    }
    match route.publishing() {
        Publishing::Unmatched => None,
        Publishing::By { name, .. } if name == user => None,
        Publishing::By { stream, name } => Some(format!(
            "by the contract of stream \"{stream}\" its topic belongs to \"{name}\", but \"{user}\" published it; add a rule (acl) that allows this, then let the client publish it again"
        )),
        Publishing::ByNobody { stream } => Some(format!(
            "the contract of stream \"{stream}\" names no publisher; add a rule (acl) that allows \"{user}\" the topic, then let the client publish it again"
        )),
    }
}
