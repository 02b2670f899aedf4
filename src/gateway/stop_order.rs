//! The order in which components are stopped.

/// When a component is stopped: what takes events in first, what answers the operator last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopOrder {
    Intake,
    Helpers,
    Links,
    CommandSocket,
}

impl StopOrder {
    pub(super) const ALL: [Self; 4] = [Self::Intake, Self::Helpers, Self::Links, Self::CommandSocket];
}
