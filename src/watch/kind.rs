//! The kinds of exception, and how bad each is where the configuration does not say.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The kinds of exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An order was to start and is still a draft.
    OrderNotReleased,
    /// An order was released, was to start and has not.
    OrderNotStarted,
    /// An order waits for components.
    WaitingForMaterial,
    /// An order is past its due date, or is planned to be.
    OrderLate,
    /// An order is done and not closed.
    OrderNotClosed,
    /// A work order takes longer than was expected.
    WorkOrderOverTime,
    /// A work center is blocked.
    WorkCenterBlocked,
    /// A machine runs, and no work order is in progress at its work center.
    MachineWithoutOrder,
    /// A work order is in progress, and its machine does not run.
    OrderWithoutMachine,
}

/// How bad an exception is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Somebody should look today.
    Warning,
    /// Somebody should look now.
    Critical,
}

impl Kind {
    /// How long it has to last, and how bad it is, where the configuration does not say.
    pub(super) fn defaults(self) -> (Duration, Severity) {
        let minutes = |count: u64| Duration::from_secs(count * 60);
        match self {
            Self::OrderNotReleased => (Duration::ZERO, Severity::Warning),
            Self::OrderNotStarted => (minutes(15), Severity::Warning),
            Self::WaitingForMaterial => (Duration::ZERO, Severity::Warning),
            Self::OrderLate => (Duration::ZERO, Severity::Critical),
            Self::OrderNotClosed => (minutes(60), Severity::Info),
            Self::WorkOrderOverTime => (Duration::ZERO, Severity::Warning),
            Self::WorkCenterBlocked => (Duration::ZERO, Severity::Critical),
            Self::MachineWithoutOrder | Self::OrderWithoutMachine => (minutes(10), Severity::Warning),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = serde_json::to_value(self).unwrap_or_default();
        f.pad(name.as_str().unwrap_or_default())
    }
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}
