//! The kinds of exceptions, with their default rules.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The kind of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExceptionKind {
    /// An order is past its planned start and still a draft.
    OrderNotReleased,
    /// A released order is past its planned start and has not started.
    OrderNotStarted,
    /// An order waits for components.
    WaitingForMaterial,
    /// An order is past its due date, or is planned to end after it.
    OrderLate,
    /// An order is done and not closed.
    OrderNotClosed,
    /// A work order takes longer than expected.
    WorkOrderOverTime,
    /// A work center is blocked.
    WorkCenterBlocked,
    /// A machine runs, and no work order is in progress at its work center.
    MachineWithoutOrder,
    /// A work order is in progress, and its machine does not run.
    OrderWithoutMachine,
}

/// The severity of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// For information; no action is needed.
    Info,
    /// Somebody should act today.
    Warning,
    /// Somebody should act now.
    Critical,
}

impl ExceptionKind {
    /// The default duration of the condition before the exception opens, and the default severity.
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

impl std::fmt::Display for ExceptionKind {
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
