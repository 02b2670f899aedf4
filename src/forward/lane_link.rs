//! One lane on its way to one destination: what every part of a forwarder refers to.

use super::config::Config;
use super::keys::Connection;
use super::stats::{LinkState, Stats};
use crate::journal::{Lane, Outcome};
use crate::link::LinkError;
use std::sync::Arc;

/// Offset, stream and outcome of a settled event.
pub(super) type Settled = (u64, u32, Outcome);

#[derive(Clone, Debug)]
pub(super) struct LaneLink {
    pub lane: Arc<Lane>,
    pub to: Arc<Config>,
    pub connection: Connection,
    /// All connections of the lane count here.
    pub stats: Arc<Stats>,
}

impl LaneLink {
    /// Changes the state of this connection.
    pub(super) fn set(&self, change: impl FnOnce(&mut LinkState)) {
        self.stats.set_of(self.connection.number, change);
    }

    /// Records why there is no session; returns whether that is new.
    pub(super) fn set_down(&self, error: &LinkError, reason: String) -> bool {
        self.stats.set_down_of(self.connection.number, error, reason)
    }

    /// Records whether there is a session; returns whether that is new.
    pub(super) fn set_up(&self, is_up: bool, reason: Option<String>) -> bool {
        self.stats.set_up_of(self.connection.number, is_up, reason)
    }
}
