//! Events of the gateway's own: `gateway.ledger`, `gateway.loss`, `gateway.clock`.

use super::{Journal, NotTaken};
use crate::clock;
use crate::event::{Attribute, Content, Id, Record, Timestamp, push_path_segment};

/// What an event of the gateway's own is; what it says comes beside.
#[derive(Clone, Copy, Debug)]
pub struct OwnEvent<'a> {
    /// Its lane.
    pub lane: &'a str,
    /// Its publication.
    pub publication: u32,
    /// Its id: a repeat has the same.
    pub id: &'a str,
    /// Who says it; the last part of its source.
    pub device: &'a str,
    /// Its key: the name of the gateway.
    pub gateway: &'a str,
}

impl Journal {
    /// Takes an event into its stream; returns when it is on the disk. Nothing is taken where there is no such lane.
    pub async fn append_own(&self, event: OwnEvent<'_>, data: &serde_json::Value) -> Result<(), NotTaken> {
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
