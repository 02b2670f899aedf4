//! The services that all parts share for as long as the gateway runs.

use super::low_priority::LowPriority;
use crate::admin::{self, Handles, ReloadOrder, Reloading, View};
use crate::clock;
use crate::config::Config;
use crate::contract::SourceKind;
use crate::forward::meter::Meters;
use crate::forward::replays::Replays;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::ingest::{Ingest, StoredEvents};
use crate::journal::{Journal, RealDisk, Seal};
use crate::local::Local;
use crate::memory::Budget;
use crate::runtime::spawn_blocking;
use crate::security::Security;
use crate::setting::Problem;
use crate::sources::mqtt::{Devices, Registry};
use crate::sources::odoo::Mirrors;
use crate::sources::{self, KindServices, Stats};
use crate::survival::Survival;
use crate::timekeeper::Timekeeper;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

pub(super) struct Services {
    pub handles: Arc<Handles>,
    pub local: Arc<Local>,
    pub registry: Arc<Registry>,
    pub low_priority: LowPriority,
}

/// Problems of the contracts of a configuration with the versions in force.
pub(super) fn contract_problems(journal: &Journal, config: &Config) -> Vec<Problem> {
    let in_force: Vec<_> = journal.publications().iter().map(|known| known.publication.clone()).collect();
    config.contracts.check_against(&in_force)
}

impl Services {
    /// Opens the journal and everything that is saved in it. Also returns the requests to reload.
    pub(super) async fn open(config: &mut Config) -> anyhow::Result<(Arc<Self>, mpsc::Receiver<ReloadOrder>)> {
        let started = clock::instant();
        let journal = open_journal(config, started).await?;
        let (kept, names) = (Arc::clone(&journal), config.surroundings.clone());
        let timekeeper = spawn_blocking(move || Timekeeper::open(kept, names)).await??;
        let problems = contract_problems(&journal, config);
        if !problems.is_empty() {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            anyhow::bail!("the contracts are not compatible with the versions in force:\n{}", lines.join("\n"));
        }
        let budget = Budget::new(config.memory);
        let (contracts, mask_key) = (config.contracts.clone(), std::mem::take(&mut config.mask_key));
        let ingest = Arc::new(Ingest::new(Arc::clone(&journal), contracts, mask_key, Arc::clone(&budget))?);
        let (kept, bytes) = (Arc::clone(&journal), config.last_values);
        let (fates, replays, meters, local, registry) = spawn_blocking(move || {
            let local = Arc::new(Local::open(Arc::clone(&kept), bytes)?);
            let (fates, replays) = (DeadLetterStatuses::open(&kept)?, Replays::open(&kept)?);
            let meters = Meters::open(&kept)?;
            let registry = Registry::open(StoredEvents::new(kept), Arc::clone(&local))?;
            anyhow::Ok((Arc::new(fates), Arc::new(replays), Arc::new(meters), local, registry))
        })
        .await??;
        let resolved = Arc::clone(&fates);
        journal.set_resolved_check(Box::new(move |letter| resolved.of(letter).state.is_final()));
        let (reloading, reloads) = Reloading::new();
        let handles = Arc::new(Handles {
            surroundings: config.surroundings.clone(),
            started,
            survival: Arc::new(Survival::new(Arc::clone(&journal))),
            journal,
            ingest,
            fates,
            replays,
            meters,
            timekeeper,
            failures: Arc::default(),
            security: Arc::<Security>::default(),
            reloading,
            view: ArcSwap::from_pointee(View::default()),
            monitoring: admin::MonitoringState::default(),
            budget,
            mirrors: Mirrors::default(),
            commands: Arc::default(),
        });
        let low_priority = LowPriority::start()?;
        Ok((Arc::new(Self { handles, local, registry, low_priority }), reloads))
    }

    /// The services of one source, and those that only its kind uses.
    pub(super) fn of_source(&self, name: &str, kind: SourceKind, config: &Config) -> (sources::Services, KindServices) {
        let (handles, names) = (&self.handles, &self.handles.surroundings);
        let own = KindServices {
            registry: Arc::clone(&self.registry),
            devices: Arc::new(Devices::new(Arc::clone(&handles.budget))),
            mirrors: handles.mirrors.clone(),
        };
        let services = sources::Services {
            stats: Arc::new(Stats::reporting(Arc::clone(&handles.security))),
            ingest: Arc::clone(&handles.ingest),
            local: Arc::clone(&self.local),
            budget: Arc::clone(&handles.budget),
            notes: handles.journal.notes(&kind.to_string()),
            client: format!("forebay-{}-{}-{}-source-{name}", names.environment, names.site, names.gateway),
            contracts: config.contracts.clone(),
        };
        (services, own)
    }
}

/// Opens the journal, which may repair files.
async fn open_journal(config: &Config, started: Instant) -> anyhow::Result<Arc<Journal>> {
    let names = &config.surroundings;
    let seal = Seal { format: 1, environment: names.environment.clone(), name: Some(names.gateway.clone()) };
    let settings = config.journal.clone();
    let journal = spawn_blocking(move || Journal::open(&settings, &seal, Arc::new(RealDisk))).await??;
    tracing::debug!(took = ?clock::instant().duration_since(started), "journal open");
    Ok(Arc::new(journal))
}
