//! The demo.

use std::path::PathBuf;
use std::time::Duration;

/// What the demo is to do.
#[derive(Debug)]
pub struct Plan {
    /// Folder for everything it writes.
    pub folder: PathBuf,
    /// Cut the WAN once for this long.
    pub outage: Option<Duration>,
    /// End after this long.
    pub run_for: Option<Duration>,
    /// Events a second, over all devices.
    pub rate: u32,
}

/// Runs the demo until it is interrupted.
pub async fn run(_plan: Plan) -> anyhow::Result<()> {
    Ok(())
}
