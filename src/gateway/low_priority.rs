//! A low-priority runtime for forwarders of bulk lanes and for resend workers.
//!
//! Promise: a draining backlog uses idle processor time. When cores are contended, the kernel gives them to live
//! traffic first.

use anyhow::Context;
use tokio::runtime::{Handle, Runtime};

/// A runtime whose threads have a higher nice value than the others.
#[derive(Debug)]
pub(super) struct LowPriority(Option<Runtime>);

/// Nice value added to these threads: about 10 % of a contended core.
const NICE_LEVEL: i32 = 10;

impl LowPriority {
    pub(super) fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("background")
            // On Linux nice(2) applies to the calling thread. If it is forbidden, the thread keeps normal priority.
            .on_thread_start(|| _ = rustix::process::nice(NICE_LEVEL))
            .enable_all()
            .build()
            .context("cannot start the low-priority runtime")?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for LowPriority {
    fn drop(&mut self) {
        // Not awaited: its parts ended before, or did not end in time.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
