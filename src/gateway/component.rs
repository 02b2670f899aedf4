//! Components: what the gateway starts, reloads and stops as a whole. Start, reload and stop walk the same table,
//! [`table`].
//!
//! Promise: a component that opens has read its files and bound its ports; it runs only after [`Component::start`].

use super::destinations::DestinationSpec;
use super::helpers::Helper;
use super::part::{Part, PartSpec};
use super::services::Services;
use super::stop_order::StopOrder;
use crate::admin::{LinkHandle, SourceHandle};
use crate::config::Config;
use crate::contract::SourceKind;
use crate::sources::{Change, Source, SourceConfig};
use crate::watch::Board;
use anyhow::Context;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone, PartialEq)]
pub(super) enum ComponentSpec {
    Destination(DestinationSpec),
    Helper(Helper),
    Source(Box<SourceSpec>),
}

/// The components of a configuration, in the order in which they start. Sources start last: when a client
/// connects, every other component runs.
pub(super) fn table(config: &Config) -> Vec<ComponentSpec> {
    let destinations = DestinationSpec::of(config).into_iter().map(ComponentSpec::Destination);
    let helpers = Helper::of(config).into_iter().map(ComponentSpec::Helper);
    let sources = config.sources.iter().map(|source| ComponentSpec::Source(Box::new(SourceSpec::of(source, config))));
    destinations.chain(helpers).chain(sources).collect()
}

#[derive(Clone, PartialEq)]
pub(super) struct SourceSpec {
    config: SourceConfig,
    /// Digest of the files that the settings name.
    files: u64,
    /// Digest of the contracts, if the source depends on them.
    contracts: Option<u64>,
}

impl SourceSpec {
    fn of(source: &SourceConfig, config: &Config) -> Self {
        let settings = source.settings();
        Self {
            files: config.digests.of(&format!("source {}", settings.name())),
            contracts: settings.depends_on_contracts().then(|| config.digests.of("contracts")),
            config: source.clone(),
        }
    }

    fn open(&self, services: &Services, config: &Config) -> anyhow::Result<(Running, Vec<PartSpec>)> {
        let (name, kind) = (self.config.settings().name().to_owned(), self.config.kind());
        let (given, own) = services.of_source(&name, kind, config);
        let stats = Arc::clone(&given.stats);
        let source = self.config.open(given, &own).map_err(anyhow::Error::from_boxed);
        let source = source.with_context(|| format!("source \"{name}\""))?;
        let runs = Arc::clone(&source);
        let part = PartSpec::new(format!("source {name}"), move |shutdown| {
            runs.run(shutdown).map_err(anyhow::Error::from_boxed)
        });
        let devices = (kind == SourceKind::Mqtt).then_some(own.devices);
        let handle = SourceHandle { name, kind, address: source.address(), stats, devices };
        Ok((Running::Source(handle, source), vec![part]))
    }
}

impl fmt::Display for ComponentSpec {
    /// Writes the name of the component, as problems and changes of a reload show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destination(to) => write!(f, "destination {}", to.config.name),
            Self::Helper(helper) => write!(f, "the {}", helper.name()),
            Self::Source(source) => write!(f, "source {}", source.config.settings().name()),
        }
    }
}

impl ComponentSpec {
    /// Whether both are the same component, perhaps with other settings.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Source(one), Self::Source(other)) if one.config.kind() != other.config.kind() => false,
            _ => self.to_string() == other.to_string(),
        }
    }

    pub(super) fn stop_order(&self) -> StopOrder {
        match self {
            Self::Destination(_) => StopOrder::Links,
            Self::Helper(helper) => helper.stop_order(),
            Self::Source(_) => StopOrder::Intake,
        }
    }

    /// Opens the component: reads files and saved state, and binds ports.
    pub(super) fn open(self, services: &Arc<Services>, config: &Config) -> anyhow::Result<Component> {
        let (running, opened) = match &self {
            Self::Destination(to) => {
                let (rotation, links, parts) = to.open(services);
                (Running::Destination(rotation, links), parts)
            }
            Self::Helper(helper) => {
                let (part, board) = helper.open(services)?;
                (Running::Helper(board), vec![part])
            }
            Self::Source(source) => source.open(services, config)?,
        };
        Ok(Component { spec: self, running, opened, parts: Vec::new() })
    }
}

/// A component that is open or runs.
pub(super) struct Component {
    pub spec: ComponentSpec,
    running: Running,
    /// Parts that have not been started yet.
    opened: Vec<PartSpec>,
    parts: Vec<Part>,
}

/// What status and reload need of a component.
enum Running {
    Source(SourceHandle, Arc<dyn Source>),
    /// Makes each link replace its session, so that new credentials take effect.
    Destination(watch::Sender<u64>, Vec<LinkHandle>),
    Helper(Option<Arc<Board>>),
}

impl Component {
    /// Starts the parts of an open component.
    pub(super) fn start(mut self, services: &Services) -> anyhow::Result<Self> {
        for spec in std::mem::take(&mut self.opened) {
            self.parts.push(Part::start(spec, services)?);
        }
        Ok(self)
    }

    /// Checks other settings. Returns what puts them in force, or `None` if the component must be replaced.
    pub(super) fn prepare(&self, new: &ComponentSpec) -> anyhow::Result<Option<Change>> {
        Ok(match (&self.spec, new, &self.running) {
            (_, ComponentSpec::Source(new), Running::Source(_, source)) => {
                source.prepare(new.config.settings()).map_err(anyhow::Error::from_boxed)?
            }
            (ComponentSpec::Destination(old), ComponentSpec::Destination(new), Running::Destination(rotation, _))
                if old.has_same_settings(new) =>
            {
                let rotation = rotation.clone();
                Some(Box::new(move || rotation.send_modify(|number| *number += 1)))
            }
            _ => None,
        })
    }

    /// Puts settings in force while the component runs. Without a change, a source checks again what depends on contracts.
    pub(super) fn apply(&mut self, spec: ComponentSpec, change: Option<Change>) {
        self.spec = spec;
        let is_changed = change.is_some();
        if let Some(change) = change {
            change();
        }
        match &mut self.running {
            Running::Source(handle, source) if is_changed => handle.address = source.address(),
            Running::Source(_, source) => source.check_again(),
            Running::Destination(..) | Running::Helper(_) => {}
        }
    }

    /// Requests the shutdown without waiting for it.
    pub(super) fn begin_stop(&self) {
        self.parts.iter().for_each(Part::begin_stop);
    }

    /// Stops the component and waits for its end.
    pub(super) async fn stop(mut self) {
        self.begin_stop();
        for part in std::mem::take(&mut self.parts) {
            part.stop().await;
        }
        self.close();
    }

    /// Withdraws what the component shows to others.
    pub(super) fn close(&self) {
        if let Running::Source(_, source) = &self.running {
            source.close();
        }
    }

    pub(super) fn port(&self) -> Option<SocketAddr> {
        match &self.running {
            Running::Source(_, source) => source.port(),
            _ => None,
        }
    }

    pub(super) fn source(&self) -> Option<&SourceHandle> {
        match &self.running {
            Running::Source(handle, _) => Some(handle),
            _ => None,
        }
    }

    pub(super) fn links(&self) -> &[LinkHandle] {
        match &self.running {
            Running::Destination(_, links) => links,
            _ => &[],
        }
    }

    pub(super) fn board(&self) -> Option<&Arc<Board>> {
        match &self.running {
            Running::Helper(board) => board.as_ref(),
            _ => None,
        }
    }
}
