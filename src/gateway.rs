//! The gateway: wires the parts, starts them journal first, changes them while they work, and stops them
//! sources first.
//!
//! Promise: when [`Gateway::stop`] returns, every acknowledgement that was promised has been given
//! or never will be, and the journal is closed cleanly.

mod background;
mod outlets;
mod part;
mod reload;
mod sources;

use crate::admin::{self, Configured, Failures, Handles, Reloading, View};
use crate::clock;
use crate::config::Config;
use crate::contract::Surroundings;
use crate::event::Timestamp;
use crate::forward::again::Replays;
use crate::ingest::Ingest;
use crate::ingest::dead::fates::Fates;
use crate::journal::{Journal, RealDisk, Seal};
use crate::ledger::Ledger;
use crate::local::Local;
use crate::memory::Budget;
use crate::runtime::spawn_blocking;
use crate::security::{Security, Teller};
use crate::sources::mqtt::Registry;
use crate::sources::odoo::Mirrors;
use crate::survival::Survival;
use crate::timekeeper::Timekeeper;
use anyhow::Context;
use arc_swap::ArcSwap;
use background::Background;
use outlets::Outlet;
use part::{Part, Work};
use reload::Works;
use sources::Source;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
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
    /// The addresses the listeners have at the start.
    pub addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<()>,
    works: JoinHandle<()>,
}

/// What all parts stand on, as long as the gateway runs.
struct Ground {
    surroundings: Surroundings,
    journal: Arc<Journal>,
    ingest: Arc<Ingest>,
    local: Arc<Local>,
    registry: Arc<Registry>,
    fates: Arc<Fates>,
    replays: Arc<Replays>,
    mirrors: Mirrors,
    failures: Arc<Failures>,
    /// What peers can make the process hold.
    budget: Arc<Budget>,
    security: Arc<Security>,
    background: Background,
}

/// Waits for the end of a part.
async fn ended(name: &str, part: Part) {
    if !part.ended(DRAIN_WAIT_MAX).await {
        tracing::warn!(part = name, patience = ?DRAIN_WAIT_MAX, "a part did not end in time and is left behind");
    }
}

impl Gateway {
    /// Starts everything; returns when the listeners accept connections.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let seal = Seal { format: 1, environment: config.surroundings.environment.clone() };
        let journal_config = config.journal.clone();
        let started = clock::instant();
        // Opening may repair, which reads from the disk: not on a thread that serves.
        let journal = spawn_blocking(move || Journal::open(&journal_config, &seal, Arc::new(RealDisk))).await??;
        let journal = Arc::new(journal);
        tracing::debug!(took = ?clock::instant().duration_since(started), "journal open");
        let timekeeper = {
            let (journal, around) = (Arc::clone(&journal), config.surroundings.clone());
            spawn_blocking(move || Timekeeper::open(journal, around)).await??
        };
        let problems = reload::objections(&journal, &config);
        if !problems.is_empty() {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            anyhow::bail!("the contracts are refused:\n{}", lines.join("\n"));
        }
        let contracts: Vec<_> = config.contracts.iter().cloned().collect();
        let taken = (std::mem::take(&mut config.contracts), std::mem::take(&mut config.mask_key));
        let budget = Budget::new(config.memory);
        let ingest = Arc::new(Ingest::new(Arc::clone(&journal), taken.0, taken.1, Arc::clone(&budget))?);
        let (fates, replays, local, registry) = {
            let (journal, bytes) = (Arc::clone(&journal), config.last_values);
            spawn_blocking(move || {
                let local = Local::open(Arc::clone(&journal), bytes)?;
                let (fates, replays) = (Fates::open(&journal)?, Replays::open(&journal)?);
                anyhow::Ok((Arc::new(fates), Arc::new(replays), Arc::new(local), Registry::open(journal)?))
            })
            .await??
        };
        journal.set_resolved_check({
            let fates = Arc::clone(&fates);
            Box::new(move |letter| fates.of(letter).state.is_final())
        });
        let ground = Arc::new(Ground {
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
            background: Background::start()?,
        });
        let outlets: Vec<Outlet> = outlets::Wanted::of(&config)
            .into_iter()
            .map(|wanted| ground.start_outlet(wanted))
            .collect::<anyhow::Result<_>>()?;
        let survival = Arc::new(Survival::new(Arc::clone(&journal)));
        let mut beside = {
            let (survival, local) = (Arc::clone(&survival), Arc::clone(&local));
            let keeper = Arc::clone(&timekeeper);
            vec![
                Part::start(
                    "timekeeper".into(),
                    &ground.failures,
                    Box::new(move |shutdown| Ok(Box::pin(Arc::clone(&keeper).run(shutdown)) as Work)),
                )?,
                Part::start(
                    "survival clock".into(),
                    &ground.failures,
                    Box::new(move |shutdown| Ok(Box::pin(Arc::clone(&survival).run(shutdown)) as Work)),
                )?,
                Part::start(
                    "last values".into(),
                    &ground.failures,
                    Box::new(move |shutdown| Ok(Box::pin(Arc::clone(&local).run(shutdown)) as Work)),
                )?,
            ]
        };
        let ledger = ground.start_ledger(config.ledger_period)?;
        beside.push(ground.start_teller()?);

        // Before anything works: what a source remembers is on the disk, and every port is there.
        let mut opened = Vec::new();
        for wanted in sources::Wanted::take(&mut config) {
            let print = wanted.print(&config);
            opened.push(ground.open_source(wanted, print, &contracts)?);
        }
        let watch = config.watch.clone().map(|watch| ground.start_watch(watch)).transpose()?;
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
            failures: Arc::clone(&ground.failures),
            security: Arc::clone(&ground.security),
            reloading,
            view: ArcSwap::from_pointee(View::default()),
            monitoring: admin::MonitoringState::default(),
            budget: Arc::clone(&ground.budget),
        });
        let monitored = Arc::clone(&handles);
        beside.push(Part::start(
            "monitoring".into(),
            &ground.failures,
            Box::new(move |shutdown| Ok(Box::pin(admin::monitor(Arc::clone(&monitored), shutdown)) as Work)),
        )?);
        let socket =
            admin::listen(&config.socket).with_context(|| format!("the command socket {}", config.socket.display()))?;
        let mut first = Some(socket);
        let (path, served) = (config.socket.clone(), Arc::clone(&handles));
        let side = Part::start(
            "command socket".into(),
            &ground.failures,
            Box::new(move |shutdown| {
                let socket = first.take().map_or_else(|| admin::listen(&path), Ok)?;
                Ok(Box::pin(admin::serve(socket, Arc::clone(&served), shutdown)) as Work)
            }),
        )?;
        // Last, so that whoever connects finds everything else there.
        let sources: Vec<Source> =
            opened.into_iter().map(|opened| ground.start_source(opened)).collect::<anyhow::Result<_>>()?;
        let addresses = sources.iter().flat_map(|source| source.addresses.clone()).collect();
        let configured = Configured { at: Timestamp::from(clock::wall()), refused: None };
        let works = Works {
            ground,
            handles: Arc::clone(&handles),
            watched: config.digests.clone(),
            config,
            contracts,
            configured,
            sources,
            outlets,
            watch,
            ledger,
            beside,
            side,
        };
        works.show();
        let (stop, stopped) = oneshot::channel();
        let works = tokio::spawn(works.run(reloads, stopped));
        Ok(Self { journal, handles, addresses, registry, stop, works })
    }

    /// What there is to see of the gateway.
    pub fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }

    /// Stops everything: sources, then forwarding, the journal last.
    pub async fn stop(self) {
        let Self { journal, registry, handles, stop, works, .. } = self;
        // It awaits this order as long as it lives.
        let _ = stop.send(());
        if let Err(error) = works.await {
            tracing::error!(%error, "the parts were not stopped in order");
        }
        drop(handles);
        // The last commits may take the disk a while.
        let closed = spawn_blocking(move || {
            registry.close();
            journal.close(DISK_WAIT_MAX);
        })
        .await;
        if closed.is_err() {
            tracing::error!("closing the journal failed; what was acknowledged is on the disk");
        }
    }
}

impl Ground {
    fn start_teller(&self) -> anyhow::Result<Part> {
        let (security, journal) = (Arc::clone(&self.security), Arc::clone(&self.journal));
        let around = self.surroundings.clone();
        let make = move |shutdown| {
            let teller = Teller::open(Arc::clone(&security), Arc::clone(&journal), &around)?;
            Ok(Box::pin(teller.run(shutdown)) as Work)
        };
        Part::start("security events".into(), &self.failures, Box::new(make))
    }

    fn start_ledger(&self, every: Duration) -> anyhow::Result<Part> {
        let (journal, fates) = (Arc::clone(&self.journal), Arc::clone(&self.fates));
        let around = self.surroundings.clone();
        let make = move |shutdown| {
            let ledger = Ledger::open(Arc::clone(&journal), Arc::clone(&fates), around.clone(), every)?;
            Ok(Box::pin(ledger.run(shutdown)) as Work)
        };
        Part::start("ledger".into(), &self.failures, Box::new(make))
    }
}
