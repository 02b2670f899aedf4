//! Dead letters, and decisions about them.

use crate::event::{AuthType, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Where an event became a dead letter. Stored dead letters contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LetterStage {
    /// On arrival: no contract matches the event, or it breaks its contract.
    Intake,
    /// On delivery: central refuses the event permanently.
    Central,
}

/// State of a dead letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeadLetterState {
    /// Waits for a decision by an operator.
    #[default]
    Held,
    /// Waits to be sent again.
    Requeued,
    /// Central acknowledged it after a requeue.
    Delivered,
    /// Became an event of its stream after a requeue.
    TakenIn,
    Discarded,
}

impl DeadLetterState {
    /// Name of the state in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Requeued => "requeued",
            Self::Delivered => "delivered",
            Self::TakenIn => "taken in",
            Self::Discarded => "discarded",
        }
    }
}

/// Status of a dead letter, as the journal stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterStatus {
    pub state: DeadLetterState,
    /// Time of the last change of state.
    #[serde(with = "crate::event::as_text")]
    pub at: Timestamp,
    /// Number of attempts since the letter was written.
    pub attempts: u32,
    /// Reason of the last refusal, after a requeue.
    pub reason: String,
    /// Destination, if the letter is requeued for central.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,
}

/// A dead letter in a response.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Letter {
    /// Number of the letter: its offset in the dead-letter log.
    pub id: u64,
    /// Time of the commit, RFC 3339.
    pub recorded: String,
    /// Number of attempts to send the event before it became a dead letter.
    pub attempts: u32,
    /// How `user` was authenticated; `None` if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authtype: Option<AuthType>,
    /// The client that sent the event, as its source identifies it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client: String,
    /// Destination that refused the event, if central did.
    pub destination: String,
    /// Id of the event, if it was stored before, or if its source provided one with the payload.
    pub event_id: String,
    #[serde(with = "crate::event::as_text")]
    pub first_attempt: Timestamp,
    /// Whether an access rule of the source allowed the client the topic, rather than the default rights of its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_by_rule: bool,
    /// Whether the payload is embedded as base64.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_opaque: bool,
    pub key: String,
    #[serde(with = "crate::event::as_text")]
    pub last_attempt: Timestamp,
    /// Source and device, as `{source}/{device}`.
    pub origin: String,
    /// Reason, starting with the field or the reason code.
    pub reason: String,
    /// Sequence of the event; 0 if it was never stored in its stream.
    pub sequence: u64,
    pub stage: LetterStage,
    /// Name of the stream, without version.
    pub stream: String,
    /// Time at which the journal stored the event, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::event::as_text_if_any")]
    pub taken: Option<Timestamp>,
    #[serde(with = "crate::event::as_text")]
    pub time: Timestamp,
    /// Topic on which the event arrived.
    pub topic: String,
    /// Authenticated name of the client, or the name that an anonymous client claimed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Contract version at that time.
    pub version: String,
    pub fate: DeadLetterStatus,
    /// Size of the payload in bytes.
    pub payload_bytes: usize,
    /// The payload of a single letter if it is UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_text: Option<String>,
    /// The payload of a single letter in base64 if it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// Selects dead letters; every set field narrows the selection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LetterFilter {
    /// Numbers of letters; empty for any.
    #[serde(default)]
    pub ids: BTreeSet<u64>,
    /// Selects all letters; required if no other field is set.
    #[serde(default)]
    pub all: bool,
    /// Name of the stream, with or without version.
    pub stream: Option<String>,
    /// Text that the reason contains.
    pub reason: Option<String>,
    /// Destination that refused the event.
    pub destination: Option<String>,
    /// Stage at which the event became a dead letter.
    pub stage: Option<LetterStage>,
    /// Written at or after this moment.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub since: Option<Timestamp>,
    /// Written before this moment; the moment itself is excluded.
    #[serde(default, with = "crate::event::as_text_if_any")]
    pub until: Option<Timestamp>,
    /// Only report what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Result of a requeue, discard or edit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LetterDecision {
    pub matched: u64,
    /// Letters that were changed, or would be in a dry run.
    pub done: u64,
    /// The first refused letters: number and reason.
    pub refused: Vec<(u64, String)>,
    pub refused_count: u64,
    /// Whether this was a dry run.
    pub dry_run: bool,
}

/// Body of `POST /dead/ID/edit`: the corrected payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LetterEdit {
    /// The new payload as text.
    pub payload: String,
    /// Only report what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_read_and_written_in_the_form_of_version_1() {
        let text = concat!(
            r#"{"id":7,"recorded":"2026-11-23T08:00:01.000000Z","attempts":1,"client":"press-4","destination":"central","#,
            r#""event_id":"e-1","first_attempt":"2026-11-23T08:00:00.000000Z","key":"press-4","#,
            r#""last_attempt":"2026-11-23T08:00:00.000000Z","origin":"devices/press-4","reason":"0x99: payload","#,
            r#""sequence":12,"stage":"central","stream":"machine.state","time":"2026-11-23T08:00:00.000000Z","#,
            r#""topic":"plant/press-4/state","version":"1.0.0","fate":{"state":"held","at":"1970-01-01T00:00:00.000000Z","#,
            r#""attempts":0,"reason":""},"payload_bytes":2,"payload_text":"{}"}"#
        );
        let letter: Letter = serde_json::from_str(text).expect("a letter");
        assert_eq!(serde_json::to_string(&letter).expect("JSON"), text);
    }
}
