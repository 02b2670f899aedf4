//! Dead letters, and decisions about them.

use crate::event::Timestamp;
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
