//! Whether a lane accepts events.

use crate::journal::store::error::JournalError;

/// Whether a lane accepts events, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    Good,
    /// Budget or disk is used up; the gateway acknowledges nothing until there is room.
    Full(String),
    /// The disk fails; the gateway acknowledges nothing until a commit succeeds.
    Failed(String),
}

impl Condition {
    pub(super) fn of(error: &JournalError) -> Self {
        match error {
            JournalError::Io { error, .. } if error.raw_os_error() == Some(28) => {
                Self::Full(format!("the disk is full ({error})"))
            }
            other => Self::Failed(other.to_string()),
        }
    }
}
