//! The gateway: wires the parts, starts them journal first, reconfigures them while they run, and stops them
//! sources first.
//!
//! Promise: when [`Gateway::stop`] returns, no acknowledgement is sent any more, and the journal is closed cleanly.

mod component;
mod destinations;
mod helpers;
mod low_priority;
mod part;
mod reload;
mod services;
mod stop_order;
mod supervisor;

use crate::admin::Handles;
use crate::config::Config;
use crate::runtime::spawn_blocking;
use crate::sources::mqtt::Registry;
use component::Component;
use services::Services;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for the disk when the journal closes.
const DISK_WAIT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Gateway {
    registry: Arc<Registry>,
    handles: Arc<Handles>,
    /// Addresses of the listeners after the start; a reload does not change this list.
    pub addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<()>,
    supervisor: JoinHandle<()>,
}

impl Gateway {
    /// Starts everything; returns when the listeners accept connections.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let (services, reloads) = Services::open(&mut config).await?;
        // Everything opens before anything runs, so that an error stops the start: files are read, ports are bound.
        let specs = component::table(&config).into_iter();
        let opened: Vec<_> = specs.map(|spec| spec.open(&services, &config)).collect::<anyhow::Result<_>>()?;
        let running: Vec<_> =
            opened.into_iter().map(|component| component.start(&services)).collect::<anyhow::Result<_>>()?;
        let addresses = running.iter().filter_map(Component::port).collect();
        let (registry, handles) = (Arc::clone(&services.registry), Arc::clone(&services.handles));
        let (stop, stopped) = oneshot::channel();
        let supervisor = Supervisor::new(services, config, running);
        let supervisor = tokio::spawn(supervisor.run(reloads, stopped));
        Ok(Self { registry, handles, addresses, stop, supervisor })
    }

    /// Handles for the admin socket, also used by tests and the signal handler.
    pub fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }

    /// Stops everything: sources, then forwarding, the journal last.
    pub async fn stop(self) {
        let Self { registry, handles, stop, supervisor, .. } = self;
        // The supervisor holds the receiver until it ends; an error means that it has ended already.
        let _ = stop.send(());
        if let Err(error) = supervisor.await {
            tracing::error!(%error, "the supervisor failed; the parts were not stopped in order");
        }
        let journal = Arc::clone(&handles.journal);
        drop(handles);
        // The last commits may block on the disk.
        let closed = spawn_blocking(move || {
            registry.close();
            journal.close(DISK_WAIT_MAX);
        })
        .await;
        if closed.is_err() {
            tracing::error!("could not close the journal cleanly; acknowledged events are on the disk");
        }
    }
}
