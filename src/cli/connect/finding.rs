//! The findings of a check of the surroundings, step by step.

use serde::Serialize;
use std::time::Duration;

/// Longest wait for one step: a line with more delay is not usable.
pub(super) const STEP_WAIT_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Mark {
    Good,
    /// The step cannot find out.
    Unknown,
    Warning,
    Fault,
}

/// The result of one step.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Finding {
    /// The part that was checked, such as `destination central`.
    pub part: String,
    pub mark: Mark,
    pub text: String,
}

/// The findings about one part.
pub(super) struct Part<'f> {
    pub name: String,
    pub found: &'f mut Vec<Finding>,
}

impl Part<'_> {
    fn add(&mut self, mark: Mark, text: impl Into<String>) {
        self.found.push(Finding { part: self.name.clone(), mark, text: text.into() });
    }

    pub(super) fn good(&mut self, text: impl Into<String>) {
        self.add(Mark::Good, text);
    }

    pub(super) fn unknown(&mut self, text: impl Into<String>) {
        self.add(Mark::Unknown, text);
    }

    pub(super) fn warning(&mut self, text: impl Into<String>) {
        self.add(Mark::Warning, text);
    }

    pub(super) fn fault(&mut self, text: impl Into<String>) {
        self.add(Mark::Fault, text);
    }
}
