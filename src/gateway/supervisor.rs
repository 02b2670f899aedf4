//! The supervisor: owns all running components, polls the configuration files, and stops everything in order.

use super::component::Component;
use super::services::Services;
use super::stop_order::StopOrder;
use crate::admin::{Configured, ReloadBy, ReloadOrder, View};
use crate::clock;
use crate::config::{Config, Digests};
use crate::event::Timestamp;
use crate::runtime::{has_spare_descriptors, spawn_blocking};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Interval at which configuration files are polled. A reload starts once two polls in a row see the same state.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// All running components and the configuration in force.
pub(super) struct Supervisor {
    pub services: Arc<Services>,
    pub config: Config,
    /// Digests of the configuration that was read last, in force or refused: its files are polled.
    pub watched: Digests,
    pub configured: Configured,
    pub components: Vec<Component>,
}

impl Supervisor {
    /// Shows the components to the admin socket from now on.
    pub(super) fn new(services: Arc<Services>, config: Config, components: Vec<Component>) -> Self {
        let configured = Configured { at: Timestamp::from(clock::wall()), refused: None };
        let watched = config.digests.clone();
        let supervisor = Self { services, config, watched, configured, components };
        supervisor.publish_view();
        supervisor
    }

    /// Reloads on request and when files change, until `stopped` fires; then stops everything.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<ReloadOrder>, mut stopped: oneshot::Receiver<()>) {
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut in_force = self.stamp().await.unwrap_or_default();
        let mut last = in_force;
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                Some((by, answer)) = requests.recv() => {
                    in_force = self.stamp().await.unwrap_or(in_force);
                    last = in_force;
                    // The requester may have disconnected.
                    let _ = answer.send(self.reload(by).await);
                }
                _ = poll.tick() => {
                    let Some(stamp) = self.stamp().await else { continue };
                    let is_quiet = std::mem::replace(&mut last, stamp) == stamp;
                    if stamp != in_force && is_quiet {
                        tracing::debug!("configuration files have changed; reloading");
                        in_force = stamp;
                        // The result is in log and status.
                        let _ = self.reload(ReloadBy::Files).await;
                    }
                }
            }
        }
        self.stop().await;
    }

    /// The stamp of the configuration files; `None` while file descriptors are used up, when files seem to be missing.
    async fn stamp(&self) -> Option<u64> {
        let digests = self.watched.clone();
        let stamp = spawn_blocking(move || has_spare_descriptors().then(|| digests.stamp()));
        stamp.await.ok().flatten()
    }

    /// Publishes the running components to the admin socket.
    pub(super) fn publish_view(&self) {
        self.services.handles.view.store(Arc::new(View {
            sources: self.components.iter().filter_map(Component::source).cloned().collect(),
            links: self.components.iter().flat_map(Component::links).cloned().collect(),
            board: self.components.iter().find_map(Component::board).cloned(),
            monitoring: self.config.monitoring,
            monitoring_hosts: self.config.monitoring_hosts.clone(),
            certificates: self.config.certificates.clone(),
            revocations: self.config.revocations.clone(),
            configured: Some(self.configured.clone()),
        }));
    }

    /// Stops everything: sources first, the command socket last.
    async fn stop(mut self) {
        for order in StopOrder::ALL {
            let is_due = |component: &mut Component| component.spec.stop_order() == order;
            stop_all(self.components.extract_if(.., is_due).collect()).await;
        }
    }
}

/// Stops components at the same time, and waits for all of them.
pub(super) async fn stop_all(components: Vec<Component>) {
    components.iter().for_each(Component::begin_stop);
    for component in components {
        component.stop().await;
    }
}
