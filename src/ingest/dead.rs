//! Dead letters: events that the gateway cannot deliver as they are, kept with the reason.
//!
//! Dead letters have a log of their own, so a faulty device slows no lane. The offset in that log is the number of the
//! letter.

pub mod fates;

use crate::api::LetterStage;
use crate::event::{Attribute, AuthType, Content, Id, Record, Timestamp};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Start of the reason of a letter whose client had no right to publish it.
const DENIED: &str = "rights: ";
/// Part of the reason of a letter whose payload was cut.
const CUT: &str = " bytes long; the largest that is taken has ";

/// Reason of a letter whose client has no right to publish it.
pub fn denied(why: &str) -> String {
    format!("{DENIED}{why}")
}

/// Reason of a letter whose payload is too large and was cut.
pub fn too_large(bytes: u64, bytes_max: u64) -> String {
    format!("payload: is {bytes}{CUT}{bytes_max}")
}

/// A dead letter. The order of the fields is part of the stored format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter<'a> {
    /// Stage at which the event became a dead letter.
    pub stage: LetterStage,
    /// Reason, starting with the field or the reason code.
    pub reason: Cow<'a, str>,
    pub stream: Cow<'a, str>,
    /// Contract version at that time.
    pub version: Cow<'a, str>,
    /// Topic on which the event arrived.
    pub topic: Cow<'a, str>,
    /// `{source}/{device}`.
    pub origin: Cow<'a, str>,
    /// Id of the event, if it was stored before, or if its source provided one with the payload.
    pub event_id: String,
    /// Key of the event, if it was stored before, or if its source provided one with the payload.
    pub key: Cow<'a, str>,
    /// Sequence of the event; 0 if it was never stored in its stream.
    pub sequence: u64,
    pub time: Timestamp,
    /// Time of the first attempt.
    pub first_attempt: Timestamp,
    /// Time of the last attempt.
    pub last_attempt: Timestamp,
    /// Number of attempts to send it.
    pub attempts: u32,
    /// Destination that refused it, if central did.
    pub destination: Cow<'a, str>,
    /// The client that sent it, as its source identifies it.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub client: Cow<'a, str>,
    /// Authenticated name of the client, or the name that an anonymous client claimed.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub user: Cow<'a, str>,
    /// How `user` was authenticated; `None` if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authtype: Option<AuthType>,
    /// Whether an access rule of the source allowed the client the topic, rather than the default rights of its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_by_rule: bool,
    /// When the journal stored the event, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Timestamp>,
    /// Whether the payload is embedded as base64.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_opaque: bool,
    /// Payload, after `keep` and `mask`.
    #[serde(skip)]
    pub payload: Cow<'a, [u8]>,
}

impl DeadLetter<'_> {
    /// Reason why the event of an intake letter can never be handed in with this payload, if there is one.
    pub fn obstacle(&self, payload: &[u8]) -> Option<&'static str> {
        if self.reason.starts_with(DENIED) {
            return Some(
                "its client had no right to publish it; add a rule (acl), then let the client publish it again",
            );
        }
        let is_cut = self.reason.starts_with("payload: ") && self.reason.contains(CUT);
        (is_cut && *payload == *self.payload)
            .then_some("its payload was too large, and only the start of it is kept; edit the payload, or discard it")
    }

    /// Stream id: the stream with its major version.
    pub fn stream_id(&self) -> String {
        format!("{}.v{}", self.stream, self.version.split('.').next().unwrap_or_default())
    }

    /// The stored form: the letter's fields as JSON, since they are few and may grow, before its payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut stored = serde_json::to_vec(self).unwrap_or_default();
        stored.push(b'\n');
        stored.extend_from_slice(&self.payload);
        stored
    }

    /// The record of the letter; `stored` is its encoded form.
    pub fn record<'r>(&'r self, stored: &'r [u8], publication: u32, attributes: Vec<Attribute<'r>>) -> Record<'r> {
        Record {
            publication,
            id: Id::mint(),
            time: self.time,
            origin: &self.origin,
            key: &self.key,
            content: Content::Bytes,
            attributes,
            payload: stored,
        }
    }

    /// Decodes a letter from its record.
    pub fn read(record: &Record<'_>) -> Option<DeadLetter<'static>> {
        let split = record.payload.iter().position(|byte| *byte == b'\n')?;
        let mut letter: DeadLetter<'static> = serde_json::from_slice(&record.payload[..split]).ok()?;
        letter.payload = Cow::Owned(record.payload[split + 1..].to_vec());
        Some(letter)
    }
}
