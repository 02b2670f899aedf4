//! What goes out: for each destination a forwarder and a link a lane, what is sent again, and the status.

use super::Ground;
use super::part::{Part, Work};
use crate::admin::LinkHandle;
use crate::config::{Config, Digest};
use crate::contract::Surroundings;
use crate::forward::again::{self, Resender};
use crate::forward::{self, CredentialRotation, Forwarder, Pressure, Sending, status};
use crate::journal::Journal;
use crate::shutdown::Shutdown;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// A destination as the configuration says it.
pub(super) struct Wanted {
    pub config: Arc<forward::Config>,
    client: String,
    sending: BTreeMap<String, Sending>,
    print: Digest,
}

impl Wanted {
    /// The destinations of a configuration.
    pub fn of(config: &Config) -> Vec<Self> {
        let clients = client_ids(&config.surroundings, &config.destinations);
        let wanted = |(to, client): (&forward::Config, String)| Self {
            config: Arc::new(to.clone()),
            client,
            sending: config.sending.clone(),
            print: config.digests.of(&format!("destination {}", to.name)),
        };
        config.destinations.iter().zip(clients).map(wanted).collect()
    }

    /// Whether another session suffices to get from one to the other.
    fn is_like(&self, other: &Self) -> bool {
        let sending = |wanted: &Self| format!("{:?}", wanted.sending);
        self.print.settings == other.print.settings && self.client == other.client && sending(self) == sending(other)
    }
}

/// A destination that is served.
pub(super) struct Outlet {
    wanted: Wanted,
    renewals: watch::Sender<u64>,
    parts: Vec<Part>,
    pub links: Vec<LinkHandle>,
}

/// What becomes of an outlet under another configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// New certificates or passwords: another session takes the place of each.
    Renew,
    /// It is started anew.
    Replace,
}

impl Outlet {
    pub fn name(&self) -> &str {
        &self.wanted.config.name
    }

    pub fn change(&self, wanted: &Wanted) -> Change {
        match self.wanted.is_like(wanted) {
            true if self.wanted.print == wanted.print => Change::Nothing,
            true => Change::Renew,
            false => Change::Replace,
        }
    }

    /// Has every session of the destination renewed, one after the other in effect.
    pub fn renew(&mut self, wanted: Wanted) {
        self.wanted = wanted;
        self.renewals.send_modify(|number| *number += 1);
    }

    pub fn begin_stop(&self) {
        self.parts.iter().for_each(Part::begin_stop);
    }

    pub async fn ended(self) {
        self.begin_stop();
        for part in self.parts {
            super::ended(&self.wanted.config.name, part).await;
        }
    }
}

impl Ground {
    /// Starts what a destination needs.
    pub fn start_outlet(&self, wanted: Wanted) -> anyhow::Result<Outlet> {
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
            let on = if sending.yielding.is_some() { self.background.handle() } else { Handle::current() };
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
                Ok(Box::pin(forwarder.map_err(anyhow::Error::msg)?.run(shutdown)) as Work)
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
            Ok(Box::pin(again.run(shutdown)) as Work)
        };
        let name = format!("link {}/again", config.name);
        parts.push(Part::start_on(self.background.handle(), name, &self.failures, Box::new(make))?);
        let (to, client) = (Arc::clone(config), format!("{client}-status"));
        let (around, report) = (self.surroundings.clone(), report(&self.journal));
        let make = move |shutdown: Shutdown| {
            let (to, client, around) = (Arc::clone(&to), client.clone(), around.clone());
            Ok(Box::pin(status::run(to, client, around, Arc::clone(&report), renewal.clone(), shutdown)) as Work)
        };
        parts.push(Part::start(format!("link {}/status", config.name), &self.failures, Box::new(make))?);
        Ok(Outlet { wanted, renewals, parts, links })
    }
}

/// The MQTT client ids of destinations, without the lane. Those that share a broker with one before are told
/// apart by their names.
fn client_ids(around: &Surroundings, destinations: &[forward::Config]) -> Vec<String> {
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

/// What a heartbeat says of the journal.
fn report(journal: &Arc<Journal>) -> status::Report {
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
