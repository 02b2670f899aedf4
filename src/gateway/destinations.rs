//! The destinations: each has a forwarder with its link per lane, a resend worker, and a status publisher.

use super::Services;
use super::part::{Part, PartFuture};
use crate::admin::LinkHandle;
use crate::config::{Config, Digest};
use crate::contract::GatewayNames;
use crate::forward::again::{self, Resender};
use crate::forward::{self, CredentialRotation, Forwarder, Pressure, Sending, status};
use crate::journal::Journal;
use crate::shutdown::Shutdown;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// A destination as configured.
pub(super) struct DestinationSpec {
    pub config: Arc<forward::Config>,
    client: String,
    sending: BTreeMap<String, Sending>,
    digest: Digest,
}

impl DestinationSpec {
    /// The destinations of a configuration.
    pub fn of(config: &Config) -> Vec<Self> {
        let clients = client_ids(&config.surroundings, &config.destinations);
        let wanted = |(to, client): (&forward::Config, String)| Self {
            config: Arc::new(to.clone()),
            client,
            sending: config.sending.clone(),
            digest: config.digests.of(&format!("destination {}", to.name)),
        };
        config.destinations.iter().zip(clients).map(wanted).collect()
    }

    /// Whether both differ in nothing but the content of credential files, which a new session picks up.
    fn has_same_settings(&self, other: &Self) -> bool {
        let sending = |wanted: &Self| format!("{:?}", wanted.sending);
        self.digest.settings == other.digest.settings && self.client == other.client && sending(self) == sending(other)
    }
}

/// A destination with its running parts.
pub(super) struct Destination {
    wanted: DestinationSpec,
    renewals: watch::Sender<u64>,
    parts: Vec<Part>,
    pub links: Vec<LinkHandle>,
}

/// How another configuration affects a running destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DestinationChange {
    /// Nothing to do.
    Unchanged,
    /// Certificates or passwords have changed: each link replaces its session.
    NewCredentials,
    /// Settings have changed: the destination is stopped and started.
    Replace,
}

impl Destination {
    pub fn name(&self) -> &str {
        &self.wanted.config.name
    }

    pub fn change(&self, wanted: &DestinationSpec) -> DestinationChange {
        match self.wanted.has_same_settings(wanted) {
            true if self.wanted.digest == wanted.digest => DestinationChange::Unchanged,
            true => DestinationChange::NewCredentials,
            false => DestinationChange::Replace,
        }
    }

    /// Makes every link of the destination replace its session, so that new credentials take effect.
    pub fn rotate_credentials(&mut self, wanted: DestinationSpec) {
        self.wanted = wanted;
        self.renewals.send_modify(|number| *number += 1);
    }

    pub fn begin_stop(&self) {
        self.parts.iter().for_each(Part::begin_stop);
    }

    pub async fn stop(self) {
        self.begin_stop();
        for part in self.parts {
            super::stop_part(&self.wanted.config.name, part).await;
        }
    }
}

impl Services {
    /// Starts the parts of a destination.
    pub fn start_destination(&self, wanted: DestinationSpec) -> anyhow::Result<Destination> {
        let (renewals, changed) = watch::channel(0);
        let renewal = CredentialRotation::new(changed);
        let pressure = Pressure::new(self.journal.lanes(), |lane| wanted.sending.get(lane)?.hours.clone());
        let (config, client) = (&wanted.config, &wanted.client);
        let mut parts = Vec::new();
        let mut links = Vec::new();
        for lane in self.journal.lanes() {
            let stats = Arc::new(forward::Stats::default());
            let handle = LinkHandle { lane: Arc::clone(lane), destination: config.name.clone(), stats };
            let sending = wanted.sending.get(&lane.name).cloned().unwrap_or_default();
            let on = if sending.yielding.is_some() { self.low_priority.handle() } else { Handle::current() };
            let place = forward::ForwarderSpec {
                config: Arc::clone(config),
                sending: Arc::new(sending),
                pressure: Arc::clone(&pressure),
                client: format!("{client}-{}", lane.name),
                rotation: renewal.clone(),
            };
            let (dead, link) = (Arc::clone(self.journal.dead()), handle.clone());
            let make = move |shutdown: Shutdown| {
                let forwarder = Forwarder::new(place.clone(), &link.lane, &dead, Arc::clone(&link.stats));
                Ok(Box::pin(forwarder.map_err(anyhow::Error::msg)?.run(shutdown)) as PartFuture)
            };
            let name = format!("link {}/{}", config.name, lane.name);
            parts.push(Part::start_on(on, name, &self.failures, Box::new(make))?);
            links.push(handle);
        }
        let again = again::ResenderSpec {
            config: Arc::clone(config),
            client: format!("{client}-again"),
            journal: Arc::clone(&self.journal),
            fates: Arc::clone(&self.fates),
            replays: Arc::clone(&self.replays),
            pressure,
            rotation: renewal.clone(),
        };
        let make = move |shutdown: Shutdown| {
            let again = Resender::new(again.clone()).map_err(anyhow::Error::msg)?;
            Ok(Box::pin(again.run(shutdown)) as PartFuture)
        };
        let name = format!("link {}/again", config.name);
        parts.push(Part::start_on(self.low_priority.handle(), name, &self.failures, Box::new(make))?);
        let (to, client) = (Arc::clone(config), format!("{client}-status"));
        let (around, report) = (self.surroundings.clone(), journal_report(&self.journal));
        let make = move |shutdown: Shutdown| {
            let (to, client, around) = (Arc::clone(&to), client.clone(), around.clone());
            Ok(Box::pin(status::run(to, client, around, Arc::clone(&report), renewal.clone(), shutdown)) as PartFuture)
        };
        parts.push(Part::start(format!("link {}/status", config.name), &self.failures, Box::new(make))?);
        Ok(Destination { wanted, renewals, parts, links })
    }
}

/// The MQTT client ids of destinations, without the lane. A destination that shares a broker with an earlier one
/// gets its name as a suffix.
fn client_ids(around: &GatewayNames, destinations: &[forward::Config]) -> Vec<String> {
    let base = format!("forebay-{}-{}-{}", around.environment, around.site, around.gateway);
    let shares = |index: usize| {
        let to: &forward::Config = &destinations[index];
        destinations[..index].iter().any(|other| other.url.0.iter().any(|url| to.url.0.contains(url)))
    };
    let id = |(index, to): (usize, &forward::Config)| {
        if shares(index) { format!("{base}-{}", to.name) } else { base.clone() }
    };
    destinations.iter().enumerate().map(id).collect()
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
