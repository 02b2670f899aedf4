//! Events of the gateway itself: `gateway.ledger`, `gateway.loss`, `gateway.clock`.
//!
//! Promise: an event is durable when its append returns.

use super::group_commit::SubmitError;
use super::journal::Journal;
use crate::clock;
use crate::event::{Attribute, Content, Id, Record, Timestamp, push_path_segment};

/// Envelope of an event of the gateway, without its payload.
#[derive(Clone, Copy, Debug)]
pub struct GatewayEvent<'a> {
    pub lane: &'a str,
    pub publication: u32,
    /// Id of the event; a repeat has the same.
    pub id: &'a str,
    /// Reporting part of the gateway: the last segment of the origin.
    pub device: &'a str,
    /// Key of the event: the name of the gateway.
    pub gateway: &'a str,
}

impl Journal {
    /// Stores an event with `data` as its payload; returns when it is durable. Stores nothing if there is no such lane.
    pub async fn append_gateway_event(
        &self,
        event: GatewayEvent<'_>,
        data: &serde_json::Value,
    ) -> Result<(), SubmitError> {
        let Some(lane) = self.lane(event.lane) else { return Ok(()) };
        let mut origin = String::from("gateway/");
        push_path_segment(&mut origin, event.device);
        let payload = serde_json::to_vec(data).unwrap_or_default();
        let record = Record {
            publication: event.publication,
            id: Id::Text(event.id),
            time: Timestamp::from(clock::wall()),
            origin: &origin,
            key: event.gateway,
            content: Content::Json,
            attributes: (!clock::is_trusted()).then_some(Attribute::ClockStatus("untrusted")).into_iter().collect(),
            payload: &payload,
        };
        lane.append(&record).await.map(|_receipt| ())
    }
}
