//! Opens, starts and reconfigures the sources, and starts the watch for business exceptions.

use super::Services;
use super::part::{Part, PartFactory, PartFuture};
use crate::admin::SourceHandle;
use crate::config::{self, Config};
use crate::contract::{Contract, SourceKind};
use crate::shutdown::Shutdown;
use crate::sources::mqtt::{Devices, Listener, Parts};
use crate::sources::{self, broker, http, modbus, mqtt, odoo};
use crate::watch::{Board, Watch};
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;

/// Digests of the settings of a source, and of the contracts where it depends on them.
pub(super) type SourceDigest = (config::Digest, config::Digest);

/// A source as configured.
pub(super) enum SourceSpec {
    Mqtt(mqtt::Config),
    Http(http::Config),
    Broker(broker::Config),
    Modbus(modbus::Config, modbus::Ready),
    Odoo(odoo::Config),
}

impl SourceSpec {
    /// Takes the sources out of a configuration, in their start order: plant brokers, MQTT listeners, HTTP servers,
    /// Modbus buses, Odoo.
    pub fn take(config: &mut Config) -> Vec<Self> {
        let brokers = std::mem::take(&mut config.brokers).into_iter().map(Self::Broker);
        let listeners = std::mem::take(&mut config.listeners).into_iter().map(Self::Mqtt);
        let servers = std::mem::take(&mut config.servers).into_iter().map(Self::Http);
        let buses = std::mem::take(&mut config.buses).into_iter().map(|(bus, ready)| Self::Modbus(bus, ready));
        let odoos = std::mem::take(&mut config.odoos).into_iter().map(Self::Odoo);
        brokers.chain(listeners).chain(servers).chain(buses).chain(odoos).collect()
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Mqtt(config) => &config.name,
            Self::Http(config) => &config.name,
            Self::Broker(config) => &config.name,
            Self::Modbus(config, _) => &config.name,
            Self::Odoo(config) => &config.name,
        }
    }

    pub fn kind(&self) -> SourceKind {
        match self {
            Self::Mqtt(_) => SourceKind::Mqtt,
            Self::Http(_) => SourceKind::Http,
            Self::Broker(_) => SourceKind::Broker,
            Self::Modbus(..) => SourceKind::Modbus,
            Self::Odoo(_) => SourceKind::Odoo,
        }
    }

    /// Returns the digest of this source in a configuration. An Odoo source reads what its contracts name.
    pub fn digest(&self, config: &Config) -> SourceDigest {
        let contracts =
            if self.kind() == SourceKind::Odoo { config.digests.of("contracts") } else { config::Digest::default() };
        (config.digests.of(&format!("source {}", self.name())), contracts)
    }
}

/// A source that has bound its port or read its saved state, but does not run yet.
pub(super) struct OpenedSource {
    handle: SourceHandle,
    digest: SourceDigest,
    reloadable: Reloadable,
    addresses: Vec<SocketAddr>,
    make: PartFactory,
}

/// The running instance that can take other settings without a restart.
enum Reloadable {
    Listener(Arc<Listener>),
    Server(Arc<http::Server>),
    /// Other settings need a restart of the source.
    No,
}

/// Settings that have been checked and are not in force yet.
pub(super) enum PreparedSettings {
    Listener(Box<mqtt::Prepared>),
    Server(Box<http::Prepared>),
}

/// A running source.
pub(super) struct Source {
    pub handle: SourceHandle,
    pub digest: SourceDigest,
    pub addresses: Vec<SocketAddr>,
    reloadable: Reloadable,
    part: Part,
}

impl Services {
    /// Opens a source: binds its port or reads its saved state.
    pub fn open_source(
        self: &Arc<Self>,
        wanted: SourceSpec,
        digest: SourceDigest,
        contracts: &[Arc<Contract>],
    ) -> anyhow::Result<OpenedSource> {
        let (name, kind) = (wanted.name().to_owned(), wanted.kind());
        let stats = Arc::new(sources::Stats::reporting(Arc::clone(&self.security)));
        let mut handle =
            SourceHandle { name: name.clone(), kind, address: String::new(), stats: Arc::clone(&stats), devices: None };
        let (mut reloadable, mut addresses) = (Reloadable::No, Vec::new());
        let services = Arc::clone(self);
        let what = || format!("source \"{name}\"");
        let make: PartFactory = match wanted {
            SourceSpec::Mqtt(config) => {
                let parts = Parts {
                    ingest: Arc::clone(&self.ingest),
                    local: Arc::clone(&self.local),
                    registry: Arc::clone(&self.registry),
                    devices: Arc::new(Devices::new(Arc::clone(&self.budget))),
                    budget: Arc::clone(&self.budget),
                };
                handle.devices = Some(Arc::clone(&parts.devices));
                let listener = Arc::new(Listener::open(config, parts, stats).with_context(what)?);
                addresses.push(listener.address()?);
                reloadable = Reloadable::Listener(Arc::clone(&listener));
                Box::new(move |shutdown| Ok(Box::pin(listener.run(shutdown))))
            }
            SourceSpec::Http(config) => {
                let server = http::Server::open(config, Arc::clone(&self.ingest), stats, Arc::clone(&self.budget));
                let server = server.with_context(what)?;
                let server = Arc::new(server);
                addresses.push(server.address()?);
                reloadable = Reloadable::Server(Arc::clone(&server));
                Box::new(move |shutdown| Ok(Box::pin(server.run(shutdown))))
            }
            SourceSpec::Broker(config) => {
                let make = move || {
                    let (ingest, notes) = (Arc::clone(&services.ingest), services.journal.notes("broker"));
                    let client = services.client_of_source(&config.name);
                    broker::Source::new(config.clone(), client, ingest, notes, Arc::clone(&stats))
                        .map_err(anyhow::Error::msg)
                };
                let first = make().with_context(what)?;
                handle.address = first.address();
                factory(first, make, |source, shutdown| Box::pin(source.run(shutdown)))
            }
            SourceSpec::Modbus(config, ready) => {
                let make = move || {
                    let ingest = Arc::clone(&services.ingest);
                    Ok(modbus::Source::new(config.clone(), ready.clone(), ingest, Arc::clone(&stats)))
                };
                let first = make()?;
                handle.address = first.address();
                factory(first, make, |source, shutdown| Box::pin(source.run(shutdown)))
            }
            SourceSpec::Odoo(config) => {
                let contracts = contracts.to_vec();
                let make = move || {
                    let (ingest, notes) = (Arc::clone(&services.ingest), services.journal.notes("odoo"));
                    let shared = (Arc::clone(&stats), Arc::clone(&services.budget));
                    let source = odoo::Source::new(config.clone(), &contracts, ingest, &notes, shared)
                        .map_err(anyhow::Error::msg)?;
                    services.mirrors.put(&config.name, source.mirrors().to_vec());
                    Ok(source)
                };
                let first = make().with_context(what)?;
                addresses.extend(first.hook_address());
                handle.address = first.address().to_owned();
                factory(first, make, |source, shutdown| Box::pin(source.run(shutdown)))
            }
        };
        if let (true, Some(address)) = (handle.address.is_empty(), addresses.first()) {
            handle.address = address.to_string();
        }
        Ok(OpenedSource { handle, digest, reloadable, addresses, make })
    }

    /// Starts an opened source.
    pub fn start_source(&self, opened: OpenedSource) -> anyhow::Result<Source> {
        let OpenedSource { handle, digest, reloadable, addresses, make } = opened;
        let part = Part::start(format!("source {}", handle.name), &self.failures, make)?;
        Ok(Source { handle, digest, addresses, reloadable, part })
    }

    fn client_of_source(&self, name: &str) -> String {
        let around = &self.surroundings;
        format!("forebay-{}-{}-{}-source-{name}", around.environment, around.site, around.gateway)
    }

    /// Starts the watch; its board outlives restarts of the part.
    pub fn start_watch(&self, config: crate::watch::Config) -> anyhow::Result<(Part, Arc<Board>)> {
        let (ingest, local) = (Arc::clone(&self.ingest), Arc::clone(&self.local));
        let (notes, mirrors) = (self.journal.notes("watch"), self.mirrors.clone());
        let make = move || {
            let (ingest, local) = (Arc::clone(&ingest), Arc::clone(&local));
            Ok(Watch::open(config.clone(), mirrors.clone(), ingest, local, notes.clone())?)
        };
        let first = make()?;
        let board = first.board();
        // After a restart the new watch publishes to the same board.
        let shown = Arc::clone(&board);
        let make = move || make().map(|watch: Watch| watch.shown_on(Arc::clone(&shown)));
        let part = Part::start(
            "watch".into(),
            &self.failures,
            factory(first, make, |watch, shutdown| Box::pin(watch.run(shutdown))),
        )?;
        Ok((part, board))
    }
}

/// Returns a factory whose first call uses `first` and whose later calls use `make`.
fn factory<T: Send + 'static>(
    first: T,
    make: impl Fn() -> anyhow::Result<T> + Send + 'static,
    run: impl Fn(T, Shutdown) -> PartFuture + Send + 'static,
) -> PartFactory {
    let mut first = Some(first);
    Box::new(move |shutdown| {
        let ready = first.take().map_or_else(&make, Ok)?;
        Ok(run(ready, shutdown))
    })
}

impl Source {
    /// Checks other settings for this source; `None` if it can take them only with a restart.
    pub fn prepare(&self, wanted: &SourceSpec) -> anyhow::Result<Option<PreparedSettings>> {
        Ok(match (&self.reloadable, wanted) {
            (Reloadable::Listener(listener), SourceSpec::Mqtt(config)) => {
                Some(PreparedSettings::Listener(Box::new(listener.prepare(config.clone())?)))
            }
            (Reloadable::Server(server), SourceSpec::Http(config)) => {
                Some(PreparedSettings::Server(Box::new(server.prepare(config.clone())?)))
            }
            _ => None,
        })
    }

    /// Evaluates the rights of connected clients again: they may have changed with the contracts.
    pub fn judge_again(&self) {
        if let Reloadable::Listener(listener) = &self.reloadable {
            listener.judge_again();
        }
    }

    /// Applies settings that [`Source::prepare`] has checked.
    pub fn apply(&mut self, prepared: PreparedSettings, digest: SourceDigest) {
        let address = match (&self.reloadable, prepared) {
            (Reloadable::Listener(listener), PreparedSettings::Listener(prepared)) => {
                listener.apply(*prepared);
                listener.address()
            }
            (Reloadable::Server(server), PreparedSettings::Server(prepared)) => {
                server.apply(*prepared);
                server.address()
            }
            _ => return,
        };
        if let Ok(address) = address {
            self.addresses = vec![address];
            self.handle.address = address.to_string();
        }
        self.digest = digest;
    }

    /// Requests the shutdown without waiting for it.
    pub fn begin_stop(&self) {
        self.part.begin_stop();
    }

    /// Stops the source and waits for its end.
    pub async fn stop(self) {
        super::stop_part(&self.handle.name, self.part).await;
    }
}
