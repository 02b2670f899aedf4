//! The default rules of the kinds of exceptions.

use crate::api::{ExceptionKind, Severity};
use std::time::Duration;

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
