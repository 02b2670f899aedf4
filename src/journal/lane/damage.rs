//! What is wrong with a file of a lane.

use std::fmt::{Display, Formatter, Result};
use std::path::PathBuf;

/// A file whose events cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// It is renamed, and the journal continues without it.
    Quarantined(PathBuf),
    /// It is damaged and still in its place; the reason names it.
    Unreadable(String),
}

impl Damage {
    /// Whether the file is in quarantine.
    pub(crate) fn is_quarantined(&self) -> bool {
        matches!(self, Self::Quarantined(_))
    }
}

impl Display for Damage {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Quarantined(file) => write!(f, "{} is set aside", file.display()),
            Self::Unreadable(reason) => f.write_str(reason),
        }
    }
}
