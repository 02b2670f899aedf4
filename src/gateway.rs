//! The gateway: wires the parts, starts them journal first, and stops them sources first.
//!
//! Promise: when [`Gateway::stop`] returns, every acknowledgement that was promised has been given
//! or never will be, and the journal is closed cleanly.

use crate::admin::{self, Handles, LinkHandle, SourceHandle};
use crate::clock;
use crate::config::Config;
use crate::contract::{SourceKind, Surroundings};
use crate::forward::again::{self, Again, Replays};
use crate::forward::{self, Forwarder, Pressure, status};
use crate::ingest::Ingest;
use crate::ingest::dead::fates::Fates;
use crate::journal::{Journal, RealDisk, Seal};
use crate::ledger::Ledger;
use crate::local::Local;
use crate::shutdown::{self, Trigger};
use crate::sources;
use crate::sources::http::Server;
use crate::sources::mqtt::{Devices, Listener, Parts, Registry};
use crate::sources::{broker, modbus, odoo};
use crate::survival::Survival;
use crate::timekeeper::Timekeeper;
use crate::watch::Watch;
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long the listeners may take to give the acknowledgements in flight.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(8);
/// How long a disk may take at the end.
const DISK_WAIT_MAX: Duration = Duration::from_secs(5);

/// The running gateway.
#[derive(Debug)]
pub struct Gateway {
    journal: Arc<Journal>,
    registry: Arc<Registry>,
    handles: Arc<Handles>,
    /// The addresses the listeners really have.
    pub addresses: Vec<SocketAddr>,
    stages: Vec<Stage>,
}

/// Parts that stop together; the stages stop one after the other.
#[derive(Debug)]
struct Stage {
    trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

impl Stage {
    fn new() -> Self {
        Self { trigger: shutdown::pair().0, tasks: Vec::new() }
    }

    async fn stop(self, patience: Duration) {
        self.trigger.begin();
        let all = async {
            for task in self.tasks {
                if let Err(error) = task.await
                    && error.is_panic()
                {
                    tracing::error!(%error, "a part panicked");
                }
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!(?patience, "a part did not end in time and is left behind");
        }
    }
}

impl Gateway {
    /// Starts everything; returns when the listeners accept connections.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let seal = Seal { format: 1, environment: config.surroundings.environment.clone() };
        let journal_config = config.journal.clone();
        let started = clock::instant();
        // Opening may repair, which reads from the disk: not on a thread that serves.
        let journal =
            tokio::task::spawn_blocking(move || Journal::open(&journal_config, &seal, Arc::new(RealDisk))).await??;
        let journal = Arc::new(journal);
        tracing::debug!(took = ?clock::instant().duration_since(started), "journal open");
        let timekeeper = {
            let (journal, around) = (Arc::clone(&journal), config.surroundings.clone());
            tokio::task::spawn_blocking(move || Timekeeper::open(journal, around)).await??
        };
        let in_force: Vec<_> = journal.publications().iter().map(|known| known.publication.clone()).collect();
        let problems = config.contracts.check_against(&in_force);
        if !problems.is_empty() {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            anyhow::bail!("the contracts are refused:\n{}", lines.join("\n"));
        }
        let contracts: Vec<_> = config.contracts.iter().cloned().collect();
        let ingest = Arc::new(Ingest::new(Arc::clone(&journal), config.contracts, config.mask_key)?);

        let (fates, replays) = {
            let journal = Arc::clone(&journal);
            tokio::task::spawn_blocking(move || anyhow::Ok((Fates::open(&journal)?, Replays::open(&journal)?)))
                .await??
        };
        let (fates, replays) = (Arc::new(fates), Arc::new(replays));
        journal.tell_resolved({
            let fates = Arc::clone(&fates);
            Box::new(move |letter| fates.of(letter).state.is_final())
        });

        let mut outward = Stage::new();
        let mut links = Vec::new();
        let around = &config.surroundings;
        let clients = client_ids(around, &config.destinations);
        for (destination, client) in config.destinations.into_iter().zip(clients) {
            let destination = Arc::new(destination);
            let pressure = Pressure::new(journal.lanes());
            for lane in journal.lanes() {
                let stats = Arc::new(forward::Stats::default());
                let place = forward::Place {
                    config: Arc::clone(&destination),
                    sending: Arc::new(config.sending.get(&lane.name).cloned().unwrap_or_default()),
                    pressure: Arc::clone(&pressure),
                    client: format!("{client}-{}", lane.name),
                };
                let forwarder =
                    Forwarder::new(place, lane, journal.dead(), Arc::clone(&stats)).map_err(anyhow::Error::msg)?;
                outward.tasks.push(tokio::spawn(forwarder.run(outward.trigger.subscribe())));
                links.push(LinkHandle { lane: Arc::clone(lane), destination: destination.name.clone(), stats });
            }
            let again = Again::new(again::Parts {
                config: Arc::clone(&destination),
                client: format!("{client}-again"),
                journal: Arc::clone(&journal),
                fates: Arc::clone(&fates),
                replays: Arc::clone(&replays),
                pressure,
            });
            let again = again.map_err(anyhow::Error::msg)?;
            outward.tasks.push(tokio::spawn(again.run(outward.trigger.subscribe())));
            let report = report(&journal);
            let task = status::run(
                destination,
                format!("{client}-status"),
                config.surroundings.clone(),
                report,
                outward.trigger.subscribe(),
            );
            outward.tasks.push(tokio::spawn(task));
        }

        let (local, registry) = {
            let (journal, bytes) = (Arc::clone(&journal), config.last_values);
            tokio::task::spawn_blocking(move || {
                anyhow::Ok((Local::open(Arc::clone(&journal), bytes)?, Registry::open(journal)?))
            })
            .await??
        };
        let local = Arc::new(local);
        let mut beside = Stage::new();
        let ledger = {
            let (journal, fates) = (Arc::clone(&journal), Arc::clone(&fates));
            let (around, every) = (config.surroundings.clone(), config.ledger_period);
            tokio::task::spawn_blocking(move || Ledger::open(journal, fates, around, every)).await??
        };
        beside.tasks.push(tokio::spawn(ledger.run(beside.trigger.subscribe())));
        beside.tasks.push(tokio::spawn(Arc::clone(&timekeeper).run(beside.trigger.subscribe())));
        let survival = Arc::new(Survival::new(Arc::clone(&journal)));
        beside.tasks.push(tokio::spawn(Arc::clone(&survival).run(beside.trigger.subscribe())));
        beside.tasks.push(tokio::spawn(Arc::clone(&local).run(beside.trigger.subscribe())));

        // Before a port is open: what a source remembers is on the disk.
        let (mut brokers, mut broker_handles) = (Vec::new(), Vec::new());
        for broker in config.brokers {
            let stats = Arc::new(sources::Stats::default());
            let name = broker.name.clone();
            let around = &config.surroundings;
            let client = format!("forebay-{}-{}-{}-source-{name}", around.environment, around.site, around.gateway);
            let notes = journal.notes("broker");
            let source = broker::Source::new(broker, client, Arc::clone(&ingest), notes, Arc::clone(&stats))
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("source \"{name}\""))?;
            broker_handles.push(SourceHandle {
                name,
                kind: SourceKind::Broker,
                address: source.address(),
                stats,
                devices: None,
            });
            brokers.push(source);
        }
        let mut inward = Stage::new();
        let mut sources = Vec::new();
        let mut addresses = Vec::new();
        let mut listeners = Vec::new();
        for listener in config.listeners {
            let stats = Arc::new(sources::Stats::default());
            let name = listener.name.clone();
            let parts = Parts {
                ingest: Arc::clone(&ingest),
                local: Arc::clone(&local),
                registry: Arc::clone(&registry),
                devices: Arc::new(Devices::default()),
            };
            let devices = Arc::clone(&parts.devices);
            let listener =
                Listener::open(listener, parts, Arc::clone(&stats)).with_context(|| format!("source \"{name}\""))?;
            let address = listener.address()?;
            addresses.push(address);
            sources.push(SourceHandle {
                name,
                kind: SourceKind::Mqtt,
                address: address.to_string(),
                stats,
                devices: Some(devices),
            });
            listeners.push(listener);
        }
        let mut servers = Vec::new();
        for server in config.servers {
            let stats = Arc::new(sources::Stats::default());
            let name = server.name.clone();
            let server = Server::open(server, Arc::clone(&ingest), Arc::clone(&stats))
                .with_context(|| format!("source \"{name}\""))?;
            let address = server.address()?;
            addresses.push(address);
            sources.push(SourceHandle {
                name,
                kind: SourceKind::Http,
                address: address.to_string(),
                stats,
                devices: None,
            });
            servers.push(server);
        }
        sources.extend(broker_handles);
        let mut buses = Vec::new();
        for (bus, ready) in config.buses {
            let stats = Arc::new(sources::Stats::default());
            let name = bus.name.clone();
            let source = modbus::Source::new(bus, ready, Arc::clone(&ingest), Arc::clone(&stats));
            let address = source.address();
            sources.push(SourceHandle { name, kind: SourceKind::Modbus, address, stats, devices: None });
            buses.push(source);
        }
        let mut odoos = Vec::new();
        for odoo in config.odoos {
            let stats = Arc::new(sources::Stats::default());
            let name = odoo.name.clone();
            let notes = journal.notes("odoo");
            let source = odoo::Source::new(odoo, &contracts, Arc::clone(&ingest), &notes, Arc::clone(&stats))
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("source \"{name}\""))?;
            addresses.extend(source.hook_address());
            sources.push(SourceHandle {
                name,
                kind: SourceKind::Odoo,
                address: source.address().to_owned(),
                stats,
                devices: None,
            });
            odoos.push(source);
        }
        let watch = match config.watch {
            None => None,
            Some(config) => {
                let mirrors = odoos.iter().flat_map(|odoo| odoo.mirrors().to_vec()).collect();
                let (ingest, local, notes) = (Arc::clone(&ingest), Arc::clone(&local), journal.notes("watch"));
                let opening = move || Watch::open(config, mirrors, ingest, local, notes);
                Some(tokio::task::spawn_blocking(opening).await??)
            }
        };
        let handles = Arc::new(Handles {
            surroundings: config.surroundings,
            started,
            journal: Arc::clone(&journal),
            ingest,
            sources,
            links,
            survival,
            fates,
            replays,
            timekeeper,
            board: watch.as_ref().map(Watch::board),
        });
        let mut side = Stage::new();
        let socket =
            admin::listen(&config.socket).with_context(|| format!("the command socket {}", config.socket.display()))?;
        side.tasks.push(tokio::spawn(admin::serve(socket, Arc::clone(&handles), side.trigger.subscribe())));
        // Last, so that whoever connects finds everything else there.
        for listener in listeners {
            inward.tasks.push(tokio::spawn(listener.run(inward.trigger.subscribe())));
        }
        for broker in brokers {
            inward.tasks.push(tokio::spawn(broker.run(inward.trigger.subscribe())));
        }
        for bus in buses {
            inward.tasks.push(tokio::spawn(bus.run(inward.trigger.subscribe())));
        }
        if let Some(watch) = watch {
            inward.tasks.push(tokio::spawn(watch.run(inward.trigger.subscribe())));
        }
        for odoo in odoos {
            inward.tasks.push(tokio::spawn(odoo.run(inward.trigger.subscribe())));
        }
        for server in servers {
            inward.tasks.push(tokio::spawn(server.run(inward.trigger.subscribe())));
        }
        Ok(Self { journal, handles, addresses, registry, stages: vec![inward, beside, outward, side] })
    }

    /// What there is to see of the gateway.
    pub fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }

    /// Stops everything: sources, then forwarding, the journal last.
    pub async fn stop(self) {
        let Self { journal, registry, handles, stages, .. } = self;
        for stage in stages {
            stage.stop(DRAIN_WAIT_MAX).await;
        }
        drop(handles);
        // The last commits may take the disk a while.
        let closed = tokio::task::spawn_blocking(move || {
            registry.close();
            journal.close(DISK_WAIT_MAX);
        })
        .await;
        if closed.is_err() {
            tracing::error!("closing the journal failed; what was acknowledged is on the disk");
        }
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
