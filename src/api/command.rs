//! Commands of central that are not final.

use serde::{Deserialize, Serialize};

/// An open command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCommand {
    /// Name by which devices and receipts know the command.
    pub command: String,
    /// `accepted` or `started`.
    pub state: String,
    pub contract: String,
    pub target: String,
    /// Who has asked: the level of the topic.
    pub sender: String,
    /// What is asked for.
    pub r#do: String,
    /// End of the time in which it may begin, RFC 3339.
    pub expires: String,
    /// `source` and `id` of the CloudEvent.
    pub source: String,
    pub id: String,
}
