//! Business exceptions: orders, work centers and machines that need attention.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An open exception. The watch stores it, and its events contain it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exception {
    /// Id, the same in each event of the exception.
    pub id: String,
    pub kind: ExceptionKind,
    pub severity: Severity,
    /// Name by which people know the order, work center or machine.
    pub reference: String,
    /// Begin of the condition, RFC 3339.
    pub since: String,
    /// Time at which the watch opened the exception, RFC 3339.
    pub opened: String,
    pub reason: String,
    pub source: String,
    /// The record or machine, such as `mrp.production/40`.
    pub subject: String,
    /// Further fields of the record or machine.
    pub details: Value,
}

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
    Warning,
    Critical,
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
