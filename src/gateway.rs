//! The gateway: wires the parts, starts them journal first, reconfigures them while they run, and stops them
//! sources first.
//!
//! Promise: when [`Gateway::stop`] returns, no acknowledgement is sent any more, and the journal is closed cleanly.

mod destinations;
mod low_priority;
mod part;
mod reload;
mod sources;

use crate::admin::{self, Configured, Failures, Handles, Reloading, View};
use crate::clock;
use crate::config::Config;
use crate::contract::GatewayNames;
use crate::event::Timestamp;
use crate::forward::again::Replays;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::ingest::{Ingest, StoredEvents};
use crate::journal::{Journal, RealDisk, Seal};
use crate::ledger::Ledger;
use crate::local::Local;
use crate::memory::Budget;
use crate::runtime::spawn_blocking;
use crate::security::{Security, SecurityReporter};
use crate::sources::mqtt::Registry;
use crate::sources::odoo::Mirrors;
use crate::survival::Survival;
use crate::timekeeper::Timekeeper;
use anyhow::Context;
use arc_swap::ArcSwap;
use destinations::{Destination, DestinationSpec};
use low_priority::LowPriority;
use part::{Part, PartFuture};
use reload::Supervisor;
use sources::{Source, SourceSpec};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait at shutdown for a part, such as a listener that sends the acknowledgements in flight.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(8);
/// Longest wait for the disk when the journal closes.
const DISK_WAIT_MAX: Duration = Duration::from_secs(5);

/// The running gateway.
#[derive(Debug)]
pub struct Gateway {
    journal: Arc<Journal>,
    registry: Arc<Registry>,
    handles: Arc<Handles>,
    /// Addresses of the listeners after the start; a reload does not change this list.
    pub addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<()>,
    supervisor: JoinHandle<()>,
}

/// The services that all parts share for as long as the gateway runs.
struct Services {
    surroundings: GatewayNames,
    journal: Arc<Journal>,
    ingest: Arc<Ingest>,
    local: Arc<Local>,
    registry: Arc<Registry>,
    fates: Arc<DeadLetterStatuses>,
    replays: Arc<Replays>,
    mirrors: Mirrors,
    failures: Arc<Failures>,
    /// Budget of the memory that peers can make the process hold.
    budget: Arc<Budget>,
    security: Arc<Security>,
    low_priority: LowPriority,
}

/// Stops a part and waits for its end, at most [`DRAIN_WAIT_MAX`].
async fn stop_part(name: &str, part: Part) {
    if !part.stop(DRAIN_WAIT_MAX).await {
        tracing::warn!(part = name, patience = ?DRAIN_WAIT_MAX, "the part did not end in time; the gateway stops without it");
    }
}

impl Gateway {
    /// Starts everything; returns when the listeners accept connections.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let seal = Seal { format: 1, environment: config.surroundings.environment.clone() };
        let journal_config = config.journal.clone();
        let started = clock::instant();
        // Opening may repair files, which blocks on the disk.
        let journal = spawn_blocking(move || Journal::open(&journal_config, &seal, Arc::new(RealDisk))).await??;
        let journal = Arc::new(journal);
        tracing::debug!(took = ?clock::instant().duration_since(started), "journal open");
        let timekeeper = {
            let (journal, around) = (Arc::clone(&journal), config.surroundings.clone());
            spawn_blocking(move || Timekeeper::open(journal, around)).await??
        };
        let problems = reload::contract_problems(&journal, &config);
        if !problems.is_empty() {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            anyhow::bail!("the contracts are not compatible with the versions in force:\n{}", lines.join("\n"));
        }
        let contracts: Vec<_> = config.contracts.iter().cloned().collect();
        let (for_ingest, mask_key) = (std::mem::take(&mut config.contracts), std::mem::take(&mut config.mask_key));
        let budget = Budget::new(config.memory);
        let ingest = Arc::new(Ingest::new(Arc::clone(&journal), for_ingest, mask_key, Arc::clone(&budget))?);
        let (fates, replays, local, registry) = {
            let (journal, bytes) = (Arc::clone(&journal), config.last_values);
            spawn_blocking(move || {
                let local = Arc::new(Local::open(Arc::clone(&journal), bytes)?);
                let (fates, replays) = (DeadLetterStatuses::open(&journal)?, Replays::open(&journal)?);
                let registry = Registry::open(StoredEvents::new(journal), Arc::clone(&local))?;
                anyhow::Ok((Arc::new(fates), Arc::new(replays), local, registry))
            })
            .await??
        };
        journal.set_resolved_check({
            let fates = Arc::clone(&fates);
            Box::new(move |letter| fates.of(letter).state.is_final())
        });
        let services = Arc::new(Services {
            surroundings: config.surroundings.clone(),
            journal: Arc::clone(&journal),
            ingest: Arc::clone(&ingest),
            local: Arc::clone(&local),
            registry: Arc::clone(&registry),
            fates: Arc::clone(&fates),
            replays: Arc::clone(&replays),
            mirrors: Mirrors::default(),
            failures: Arc::default(),
            budget,
            security: Arc::default(),
            low_priority: LowPriority::start()?,
        });
        let destinations: Vec<Destination> = DestinationSpec::of(&config)
            .into_iter()
            .map(|wanted| services.start_destination(wanted))
            .collect::<anyhow::Result<_>>()?;
        let survival = Arc::new(Survival::new(Arc::clone(&journal)));
        let mut helpers = {
            let (survival, local) = (Arc::clone(&survival), Arc::clone(&local));
            let keeper = Arc::clone(&timekeeper);
            vec![
                Part::start(
                    "timekeeper".into(),
                    &services.failures,
                    Box::new(move |shutdown| Ok(Box::pin(Arc::clone(&keeper).run(shutdown)) as PartFuture)),
                )?,
                Part::start(
                    "survival clock".into(),
                    &services.failures,
                    Box::new(move |shutdown| Ok(Box::pin(Arc::clone(&survival).run(shutdown)) as PartFuture)),
                )?,
                Part::start(
                    "last values".into(),
                    &services.failures,
                    Box::new(move |shutdown| Ok(Box::pin(Arc::clone(&local).run(shutdown)) as PartFuture)),
                )?,
            ]
        };
        let ledger = services.start_ledger(config.ledger_period)?;
        helpers.push(services.start_teller()?);

        // Open every source before any of them runs, so that an error stops the start: saved state is read, ports are bound.
        let mut opened = Vec::new();
        for wanted in SourceSpec::take(&mut config) {
            let digest = wanted.digest(&config);
            opened.push(services.open_source(wanted, digest, &contracts)?);
        }
        let watch = config.watch.clone().map(|watch| services.start_watch(watch)).transpose()?;
        let (reloading, reloads) = Reloading::new();
        let handles = Arc::new(Handles {
            surroundings: config.surroundings.clone(),
            started,
            journal: Arc::clone(&journal),
            ingest,
            survival,
            fates,
            replays,
            timekeeper,
            failures: Arc::clone(&services.failures),
            security: Arc::clone(&services.security),
            reloading,
            view: ArcSwap::from_pointee(View::default()),
            monitoring: admin::MonitoringState::default(),
            budget: Arc::clone(&services.budget),
        });
        let monitored = Arc::clone(&handles);
        helpers.push(Part::start(
            "monitoring".into(),
            &services.failures,
            Box::new(move |shutdown| Ok(Box::pin(admin::monitor(Arc::clone(&monitored), shutdown)) as PartFuture)),
        )?);
        let socket =
            admin::listen(&config.socket).with_context(|| format!("the command socket {}", config.socket.display()))?;
        let mut first = Some(socket);
        let (path, served) = (config.socket.clone(), Arc::clone(&handles));
        let command_socket = Part::start(
            "command socket".into(),
            &services.failures,
            Box::new(move |shutdown| {
                let socket = first.take().map_or_else(|| admin::listen(&path), Ok)?;
                Ok(Box::pin(admin::serve(socket, Arc::clone(&served), shutdown)) as PartFuture)
            }),
        )?;
        // Sources start last: when a client connects, every other part runs.
        let sources: Vec<Source> =
            opened.into_iter().map(|opened| services.start_source(opened)).collect::<anyhow::Result<_>>()?;
        let addresses = sources.iter().flat_map(|source| source.addresses.clone()).collect();
        let configured = Configured { at: Timestamp::from(clock::wall()), refused: None };
        let supervisor = Supervisor {
            services,
            handles: Arc::clone(&handles),
            watched: config.digests.clone(),
            config,
            contracts,
            configured,
            sources,
            destinations,
            watch,
            ledger,
            helpers,
            command_socket,
        };
        supervisor.publish_view();
        let (stop, stopped) = oneshot::channel();
        let supervisor = tokio::spawn(supervisor.run(reloads, stopped));
        Ok(Self { journal, handles, addresses, registry, stop, supervisor })
    }

    /// Handles for the admin socket, also used by tests and the signal handler.
    pub fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }

    /// Stops everything: sources, then forwarding, the journal last.
    pub async fn stop(self) {
        let Self { journal, registry, handles, stop, supervisor, .. } = self;
        // The supervisor holds the receiver until it ends; an error means that it has ended already.
        let _ = stop.send(());
        if let Err(error) = supervisor.await {
            tracing::error!(%error, "the supervisor failed; the parts were not stopped in order");
        }
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

impl Services {
    fn start_teller(&self) -> anyhow::Result<Part> {
        let (security, journal) = (Arc::clone(&self.security), Arc::clone(&self.journal));
        let around = self.surroundings.clone();
        let make = move |shutdown| {
            let teller = SecurityReporter::open(Arc::clone(&security), Arc::clone(&journal), &around)?;
            Ok(Box::pin(teller.run(shutdown)) as PartFuture)
        };
        Part::start("security events".into(), &self.failures, Box::new(make))
    }

    fn start_ledger(&self, every: Duration) -> anyhow::Result<Part> {
        let (journal, fates) = (Arc::clone(&self.journal), Arc::clone(&self.fates));
        let around = self.surroundings.clone();
        let make = move |shutdown| {
            let ledger = Ledger::open(Arc::clone(&journal), Arc::clone(&fates), around.clone(), every)?;
            Ok(Box::pin(ledger.run(shutdown)) as PartFuture)
        };
        Part::start("ledger".into(), &self.failures, Box::new(make))
    }
}
