//! Threads for what yields: the forwarders of bulk lanes, and what is sent again.
//!
//! Promise: a backlog that drains takes all the processor it can get, and nothing from what is live: the
//! scheduler lets everything else go first.

use anyhow::Context;
use tokio::runtime::{Handle, Runtime};

/// A runtime whose threads are nicer than the others.
#[derive(Debug)]
pub(super) struct Background(Option<Runtime>);

/// How much nicer they are than the others: they get a tenth of a processor that is wanted by both.
const NICER: i32 = 10;

impl Background {
    pub fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("background")
            // On Linux it is the thread that becomes nicer. Where that is forbidden, it works like any other.
            .on_thread_start(|| _ = rustix::process::nice(NICER))
            .enable_all()
            .build()
            .context("cannot start the threads for what yields")?;
        Ok(Self(Some(runtime)))
    }

    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Not awaited: its parts have ended before, or are left behind.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
