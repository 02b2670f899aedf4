//! One lane on its way to one destination: what every part of a forwarder refers to.

use super::config::Config;
use super::stats::Stats;
use crate::journal::{Lane, Outcome};
use std::sync::Arc;

/// Offset, stream and outcome of a settled event.
pub(super) type Settled = (u64, u32, Outcome);

#[derive(Clone, Debug)]
pub(super) struct LaneLink {
    pub lane: Arc<Lane>,
    pub to: Arc<Config>,
    pub stats: Arc<Stats>,
}
