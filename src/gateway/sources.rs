//! The sources of the gateway, and the watch over what they know.

use super::Ground;
use super::part::{Make, Part, Work};
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

/// The print of a source, and that of what else it depends on.
pub(super) type Print = (config::Digest, config::Digest);

/// A source as the configuration says it.
pub(super) enum Wanted {
    Mqtt(mqtt::Config),
    Http(http::Config),
    Broker(broker::Config),
    Modbus(modbus::Config, modbus::Ready),
    Odoo(odoo::Config),
}

impl Wanted {
    /// Takes the sources out of a configuration, in the order in which they start: those that remember something
    /// of the time before, then those that others connect to.
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

    /// Its print in a configuration.
    pub fn print(&self, config: &Config) -> Print {
        let beside =
            if self.kind() == SourceKind::Odoo { config.digests.of("contracts") } else { config::Digest::default() };
        (config.digests.of(&format!("source {}", self.name())), beside)
    }
}

/// A source with its port or its memory, that does not work yet.
pub(super) struct Opened {
    handle: SourceHandle,
    print: Print,
    engine: Engine,
    addresses: Vec<SocketAddr>,
    make: Make,
}

/// What can change while the source works.
enum Engine {
    Listener(Arc<Listener>),
    Server(Arc<http::Server>),
    /// It is started anew.
    Fixed,
}

/// Settings that are good, and not in force yet.
pub(super) enum Prepared {
    Listener(Box<mqtt::Prepared>),
    Server(Box<http::Prepared>),
}

/// A source that works.
pub(super) struct Source {
    pub handle: SourceHandle,
    pub print: Print,
    pub addresses: Vec<SocketAddr>,
    engine: Engine,
    part: Part,
}

impl Ground {
    /// Opens a source.
    pub fn open_source(
        self: &Arc<Self>,
        wanted: Wanted,
        print: Print,
        contracts: &[Arc<Contract>],
    ) -> anyhow::Result<Opened> {
        let (name, kind) = (wanted.name().to_owned(), wanted.kind());
        let stats = Arc::new(sources::Stats::reporting(Arc::clone(&self.security)));
        let mut handle =
            SourceHandle { name: name.clone(), kind, address: String::new(), stats: Arc::clone(&stats), devices: None };
        let (mut engine, mut addresses) = (Engine::Fixed, Vec::new());
        let ground = Arc::clone(self);
        let what = || format!("source \"{name}\"");
        let make: Make = match wanted {
            Wanted::Mqtt(config) => {
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
                engine = Engine::Listener(Arc::clone(&listener));
                Box::new(move |shutdown| Ok(Box::pin(listener.run(shutdown))))
            }
            Wanted::Http(config) => {
                let server = http::Server::open(config, Arc::clone(&self.ingest), stats, Arc::clone(&self.budget));
                let server = server.with_context(what)?;
                let server = Arc::new(server);
                addresses.push(server.address()?);
                engine = Engine::Server(Arc::clone(&server));
                Box::new(move |shutdown| Ok(Box::pin(server.run(shutdown))))
            }
            Wanted::Broker(config) => {
                let make = move || {
                    let (ingest, notes) = (Arc::clone(&ground.ingest), ground.journal.notes("broker"));
                    let client = ground.client_of_source(&config.name);
                    broker::Source::new(config.clone(), client, ingest, notes, Arc::clone(&stats))
                        .map_err(anyhow::Error::msg)
                };
                let first = make().with_context(what)?;
                handle.address = first.address();
                again(first, make, |source, shutdown| Box::pin(source.run(shutdown)))
            }
            Wanted::Modbus(config, ready) => {
                let make = move || {
                    let ingest = Arc::clone(&ground.ingest);
                    Ok(modbus::Source::new(config.clone(), ready.clone(), ingest, Arc::clone(&stats)))
                };
                let first = make()?;
                handle.address = first.address();
                again(first, make, |source, shutdown| Box::pin(source.run(shutdown)))
            }
            Wanted::Odoo(config) => {
                let contracts = contracts.to_vec();
                let make = move || {
                    let (ingest, notes) = (Arc::clone(&ground.ingest), ground.journal.notes("odoo"));
                    let beside = (Arc::clone(&stats), Arc::clone(&ground.budget));
                    let source = odoo::Source::new(config.clone(), &contracts, ingest, &notes, beside)
                        .map_err(anyhow::Error::msg)?;
                    ground.mirrors.put(&config.name, source.mirrors().to_vec());
                    Ok(source)
                };
                let first = make().with_context(what)?;
                addresses.extend(first.hook_address());
                handle.address = first.address().to_owned();
                again(first, make, |source, shutdown| Box::pin(source.run(shutdown)))
            }
        };
        if let (true, Some(address)) = (handle.address.is_empty(), addresses.first()) {
            handle.address = address.to_string();
        }
        Ok(Opened { handle, print, engine, addresses, make })
    }

    /// Lets a source work.
    pub fn start_source(&self, opened: Opened) -> anyhow::Result<Source> {
        let Opened { handle, print, engine, addresses, make } = opened;
        let part = Part::start(format!("source {}", handle.name), &self.failures, make)?;
        Ok(Source { handle, print, addresses, engine, part })
    }

    fn client_of_source(&self, name: &str) -> String {
        let around = &self.surroundings;
        format!("forebay-{}-{}-{}-source-{name}", around.environment, around.site, around.gateway)
    }

    /// Starts the watch.
    pub fn start_watch(&self, config: crate::watch::Config) -> anyhow::Result<(Part, Arc<Board>)> {
        let (ingest, local) = (Arc::clone(&self.ingest), Arc::clone(&self.local));
        let (notes, mirrors) = (self.journal.notes("watch"), self.mirrors.clone());
        let make = move || {
            let (ingest, local) = (Arc::clone(&ingest), Arc::clone(&local));
            Ok(Watch::open(config.clone(), mirrors.clone(), ingest, local, notes.clone())?)
        };
        let first = make()?;
        let board = first.board();
        // A watch that is started anew shows its own board.
        let shown = Arc::clone(&board);
        let make = move || make().map(|watch: Watch| watch.shown_on(Arc::clone(&shown)));
        let part = Part::start(
            "watch".into(),
            &self.failures,
            again(first, make, |watch, shutdown| Box::pin(watch.run(shutdown))),
        )?;
        Ok((part, board))
    }
}

/// Makes of a part that is ready now, and of one that can be made anew.
fn again<T: Send + 'static>(
    first: T,
    make: impl Fn() -> anyhow::Result<T> + Send + 'static,
    run: impl Fn(T, Shutdown) -> Work + Send + 'static,
) -> Make {
    let mut first = Some(first);
    Box::new(move |shutdown| {
        let ready = first.take().map_or_else(&make, Ok)?;
        Ok(run(ready, shutdown))
    })
}

impl Source {
    /// Readies other settings, where the source can take them up while it works; `None` where it cannot.
    pub fn prepare(&self, wanted: &Wanted) -> anyhow::Result<Option<Prepared>> {
        Ok(match (&self.engine, wanted) {
            (Engine::Listener(listener), Wanted::Mqtt(config)) => {
                Some(Prepared::Listener(Box::new(listener.prepare(config.clone())?)))
            }
            (Engine::Server(server), Wanted::Http(config)) => {
                Some(Prepared::Server(Box::new(server.prepare(config.clone())?)))
            }
            _ => None,
        })
    }

    /// Judges the rights of its clients again: they may have changed with the contracts.
    pub fn judge_again(&self) {
        if let Engine::Listener(listener) = &self.engine {
            listener.judge_again();
        }
    }

    /// Puts settings in force that [`Source::prepare`] has made.
    pub fn put_in_force(&mut self, prepared: Prepared, print: Print) {
        let address = match (&self.engine, prepared) {
            (Engine::Listener(listener), Prepared::Listener(prepared)) => {
                listener.put_in_force(*prepared);
                listener.address()
            }
            (Engine::Server(server), Prepared::Server(prepared)) => {
                server.put_in_force(*prepared);
                server.address()
            }
            _ => return,
        };
        if let Ok(address) = address {
            self.addresses = vec![address];
            self.handle.address = address.to_string();
        }
        self.print = print;
    }

    /// Begins its end.
    pub fn begin_stop(&self) {
        self.part.begin_stop();
    }

    /// Waits for its end.
    pub async fn ended(self) {
        super::ended(&self.handle.name, self.part).await;
    }
}
