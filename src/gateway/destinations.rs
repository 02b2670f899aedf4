//! The destinations: each has a forwarder with its link per lane, a resend worker, and a status publisher.

use super::part::{PartSpec, Priority};
use super::services::Services;
use crate::admin::{Handles, LinkHandle};
use crate::config::Config;
use crate::contract::GatewayNames;
use crate::forward::meter::Meter;
use crate::forward::overtaken::{self, OrderSpec};
use crate::forward::resend::{Resender, ResenderSpec};
use crate::forward::status::{self, StatusSpec};
use crate::forward::{self, Forwarder, Pressure, Sending};
use crate::journal::{Journal, Lane};
use crate::link::CredentialRotation;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone, PartialEq)]
pub(super) struct DestinationSpec {
    pub config: Arc<forward::Config>,
    around: GatewayNames,
    sending: BTreeMap<String, Sending>,
    /// Digest of the credential files.
    files: u64,
}

/// What the parts of a destination share.
struct Shared<'s> {
    handles: &'s Handles,
    pressure: Arc<Pressure>,
    rotation: CredentialRotation,
    meter: Arc<Meter>,
    /// States of the connections besides those of the lanes.
    again: Arc<forward::Stats>,
    status: Arc<forward::Stats>,
}

impl DestinationSpec {
    /// The destinations of a configuration.
    pub(super) fn of(config: &Config) -> Vec<Self> {
        let spec = |to: &forward::Config| Self {
            config: Arc::new(to.clone()),
            around: config.surroundings.clone(),
            sending: config.sending.clone(),
            files: config.digests.of(&format!("destination {}", to.name)),
        };
        config.destinations.iter().map(spec).collect()
    }

    /// Whether both differ in nothing but the content of credential files, which a new session picks up.
    pub(super) fn has_same_settings(&self, other: &Self) -> bool {
        *self == Self { files: self.files, ..other.clone() }
    }

    /// Creates the parts. Also returns what makes every link replace its session, and the links.
    pub(super) fn open(&self, services: &Services) -> (watch::Sender<u64>, Vec<LinkHandle>, Vec<PartSpec>) {
        let (rotate, changed) = watch::channel(0);
        let lanes = services.handles.journal.lanes();
        let meter = services.handles.meters.of(&self.config.name);
        let budget = self.config.budget.clone().map(|budget| (budget, Arc::clone(&meter)));
        let pressure = Pressure::new(lanes, |lane: &str| self.sending.get(lane), budget);
        let rotation = CredentialRotation::new(changed);
        let (again, status) = <(Arc<forward::Stats>, Arc<forward::Stats>)>::default();
        let shared = Shared { handles: &services.handles, pressure, rotation, meter, again, status };
        let (links, parts): (Vec<_>, Vec<_>) = lanes.iter().map(|lane| self.link(lane, &shared)).unzip();
        let mut parts: Vec<PartSpec> = parts.into_iter().flatten().collect();
        parts.push(self.order(&links, &shared));
        parts.push(self.resender(&shared));
        parts.push(self.status(&shared));
        parts.push(self.meter(&shared));
        (rotate, links, parts)
    }

    /// Returns the link of a lane, and a part for each of its connections.
    fn link(&self, lane: &Arc<Lane>, shared: &Shared<'_>) -> (LinkHandle, Vec<PartSpec>) {
        let sending = Arc::new(self.sending.get(&lane.name).cloned().unwrap_or_default());
        let (destination, hours) = (self.config.name.clone(), sending.hours.clone());
        let stats = Arc::new(forward::Stats::of(sending.connections.max(1)));
        let line = Arc::clone(shared.pressure.line());
        let others = [("again", Arc::clone(&shared.again)), ("status", Arc::clone(&shared.status))];
        let handle = LinkHandle { lane: Arc::clone(lane), destination, stats, hours, line, others };
        let traffic = shared.meter.traffic(&lane.name);
        let parts = sending.connections().map(|connection| {
            let name = connection.name(&lane.name);
            let spec = forward::ForwarderSpec {
                config: Arc::clone(&self.config),
                sending: Arc::clone(&sending),
                pressure: Arc::clone(&shared.pressure),
                client: self.config.client_ids().of(&name, &self.around),
                connection,
                rotation: shared.rotation.clone(),
                traffic: Arc::clone(&traffic),
            };
            let (dead, link) = (Arc::clone(shared.handles.journal.dead()), handle.clone());
            let part = PartSpec::new(format!("link {}/{name}", self.config.name), move |shutdown| {
                let forwarder = Forwarder::new(spec.clone(), &link.lane, &dead, Arc::clone(&link.stats));
                Ok(Box::pin(forwarder.map_err(anyhow::Error::msg)?.run(shutdown)))
            });
            part.with_priority(if sending.yielding.is_some() { Priority::Low } else { Priority::Normal })
        });
        let parts = parts.collect();
        (handle, parts)
    }

    fn resender(&self, shared: &Shared<'_>) -> PartSpec {
        let spec = ResenderSpec {
            config: Arc::clone(&self.config),
            client: self.config.client_ids().of("again", &self.around),
            journal: Arc::clone(&shared.handles.journal),
            fates: Arc::clone(&shared.handles.fates),
            replays: Arc::clone(&shared.handles.replays),
            pressure: Arc::clone(&shared.pressure),
            rotation: shared.rotation.clone(),
            traffic: shared.meter.traffic("again"),
            stats: Arc::clone(&shared.again),
        };
        let part = PartSpec::new(format!("link {}/again", self.config.name), move |shutdown| {
            let resender = Resender::new(spec.clone()).map_err(anyhow::Error::msg)?;
            Ok(Box::pin(resender.run(shutdown)))
        });
        part.with_priority(Priority::Low)
    }

    fn order(&self, links: &[LinkHandle], shared: &Shared<'_>) -> PartSpec {
        let spec = OrderSpec {
            journal: Arc::clone(&shared.handles.journal),
            around: shared.handles.surroundings.clone(),
            destination: self.config.name.clone(),
            links: links.iter().map(|link| (link.lane.name.clone(), Arc::clone(&link.stats))).collect(),
        };
        PartSpec::new(format!("order {}", self.config.name), move |shutdown| {
            Ok(Box::pin(overtaken::run(spec.clone(), shutdown)))
        })
    }

    fn meter(&self, shared: &Shared<'_>) -> PartSpec {
        let (meter, budget) = (Arc::clone(&shared.meter), self.config.budget.clone());
        let run = move |shutdown| Ok(Box::pin(Arc::clone(&meter).run(budget.clone(), shutdown)) as _);
        PartSpec::new(format!("meter {}", self.config.name), run)
    }

    fn status(&self, shared: &Shared<'_>) -> PartSpec {
        let spec = StatusSpec {
            config: Arc::clone(&self.config),
            client: self.config.client_ids().of("status", &self.around),
            around: shared.handles.surroundings.clone(),
            report: journal_report(&shared.handles.journal),
            rotation: shared.rotation.clone(),
            traffic: shared.meter.traffic("status"),
            stats: Arc::clone(&shared.status),
        };
        PartSpec::new(format!("link {}/status", self.config.name), move |shutdown| {
            Ok(Box::pin(status::run(spec.clone(), shutdown)))
        })
    }
}

/// The journal figures that the heartbeat of a destination contains.
fn journal_report(journal: &Arc<Journal>) -> status::Report {
    let journal = Arc::clone(journal);
    Arc::new(move || {
        let lanes = journal.lanes().iter().map(|lane| lane.status());
        let (mut queued, mut accepted) = (0, 0);
        for lane in lanes {
            accepted += lane.accepted;
            queued += lane.destinations.iter().map(|to| to.queued).max().unwrap_or(0);
        }
        format!(r#""accepted":{accepted},"queued":{queued}"#)
    })
}
