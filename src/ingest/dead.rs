//! Dead letters: events the gateway holds but cannot deliver as they are, with the reason.
//!
//! They live in a log of their own, so that one bad device slows no lane. The offset in that log
//! is the number of the letter.

pub mod fates;

use crate::event::{Attribute, AuthType, Content, Id, Record, Timestamp};
use crate::journal::{Lane, NotTaken, Receipt, Ticket, Waiter};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Where an event became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// On the way in: it matches no contract, or breaks one.
    Intake,
    /// On the way out: central refuses it for ever.
    Central,
}

/// A dead letter. The order of the fields is part of the stored format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter<'a> {
    /// Where it happened.
    pub stage: Stage,
    /// Why, starting with the field or the reason code.
    pub reason: Cow<'a, str>,
    /// The stream it was meant for.
    pub stream: Cow<'a, str>,
    /// The contract version that was in force.
    pub version: Cow<'a, str>,
    /// The topic it came on.
    pub topic: Cow<'a, str>,
    /// `{source}/{device}`.
    pub origin: Cow<'a, str>,
    /// The event's id: if it had become an event, or if its source gave it one beside the payload.
    pub event_id: String,
    /// The event's key: if it had become an event, or if its source gave it one beside the payload.
    pub key: Cow<'a, str>,
    /// The event's sequence; 0 if it had not become an event.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// When it was first tried.
    pub first_attempt: Timestamp,
    /// When it was last tried.
    pub last_attempt: Timestamp,
    /// How often it was sent.
    pub attempts: u32,
    /// Who refused it, if central did.
    pub destination: Cow<'a, str>,
    /// Who sent it: the client as its source knows it.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub client: Cow<'a, str>,
    /// The name that the client proved, or what an anonymous client said it is called.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub user: Cow<'a, str>,
    /// How `user` was proven; `None` if nobody has checked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authtype: Option<AuthType>,
    /// Whether a rule of its source allowed the client the topic, rather than the default rights of its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_by_rule: bool,
    /// When the journal took the event, if it had become one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Timestamp>,
    /// Whether the payload travels as base64.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_opaque: bool,
    /// What the device said, after `keep` and `mask`.
    #[serde(skip)]
    pub payload: Cow<'a, [u8]>,
}

impl DeadLetter<'_> {
    /// The stream with its major version.
    pub fn stream_id(&self) -> String {
        format!("{}.v{}", self.stream, self.version.split('.').next().unwrap_or_default())
    }

    /// Hands the letter to its log.
    pub fn submit(
        &self,
        lane: &Lane,
        publication: u32,
        attributes: Vec<Attribute<'_>>,
        waiter: &mut Waiter,
    ) -> Result<Ticket, NotTaken> {
        self.with_record(publication, attributes, |record| lane.submit(record, None, waiter))
    }

    /// Hands the letter to its log and waits until it is on the disk.
    pub async fn append(&self, lane: &Lane, publication: u32) -> Result<Receipt, NotTaken> {
        let mut waiter = Waiter::default();
        let ticket = loop {
            match self.submit(lane, publication, Vec::new(), &mut waiter) {
                Ok(ticket) => break ticket,
                Err(NotTaken::NoRoom) => lane.room().await,
                Err(NotTaken::Closed) => return Err(NotTaken::Closed),
            }
        };
        lane.await_receipt(ticket, &waiter).await
    }

    fn with_record<T>(
        &self,
        publication: u32,
        attributes: Vec<Attribute<'_>>,
        then: impl FnOnce(&Record<'_>) -> T,
    ) -> T {
        // The letter's own fields go before its payload, as JSON: they are few and may grow.
        let mut stored = serde_json::to_vec(self).unwrap_or_default();
        stored.push(b'\n');
        stored.extend_from_slice(&self.payload);
        then(&Record {
            publication,
            id: Id::mint(),
            time: self.time,
            origin: &self.origin,
            key: &self.key,
            content: Content::Bytes,
            attributes,
            payload: &stored,
        })
    }

    /// Reads a letter from its record.
    pub fn read(record: &Record<'_>) -> Option<DeadLetter<'static>> {
        let split = record.payload.iter().position(|byte| *byte == b'\n')?;
        let mut letter: DeadLetter<'static> = serde_json::from_slice(&record.payload[..split]).ok()?;
        letter.payload = Cow::Owned(record.payload[split + 1..].to_vec());
        Some(letter)
    }
}
