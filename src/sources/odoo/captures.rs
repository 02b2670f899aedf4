//! All captures of one Odoo source, and the hook that hints come in through.
//!
//! Invariant: a capture that panics ends the source, because the source is incomplete without it.

use super::capture::Capture;
use super::config::Config;
use super::context::CaptureContext;
use super::health::Health;
use super::hints::Hints;
use super::hook::{HintedContract, HintedModels, Hook};
use super::mirror::Mirror;
use super::outbox;
use super::sections::sections;
use crate::contract::Contracts;
use crate::ingest::{Ingest, Notes};
use crate::memory::Budget;
use crate::shutdown::Shutdown;
use crate::sources::Stats;
use std::sync::Arc;
use tokio::task::JoinSet;

/// The captures of one Odoo, with its hook.
pub(super) struct Captures {
    captures: Vec<Capture>,
    mirrors: Vec<Arc<Mirror>>,
    hook: Option<Hook>,
}

impl Captures {
    /// Creates the captures; they call Odoo once they run. `notes` stores the state of Odoo sources across restarts.
    /// Binds the port of the hook, if one is configured.
    pub(super) fn new(
        config: Config,
        contracts: &Contracts,
        ingest: Arc<Ingest>,
        notes: &Notes,
        (stats, budget): (Arc<Stats>, Arc<Budget>),
    ) -> Result<Self, String> {
        let client = Arc::new(config.client()?);
        let hook = config.hook.clone();
        let name = config.name.clone();
        let ours: Vec<_> = sections(contracts, &name).collect();
        let health = Health::new(&config.name, ours.len(), Arc::clone(&stats));
        let shared = Arc::new(CaptureContext::new(config, client, ingest, (stats, health)));
        let mut captures = Vec::new();
        let mut mirrors = Vec::new();
        let mut hinted = Vec::new();
        let mut outbox = None;
        let pool = Arc::default();
        for (contract, section) in ours {
            let mirror = Arc::new(Mirror::new(&shared.config, contract, section.model.first(), Arc::clone(&pool)));
            let hints = Arc::new(Hints::default());
            let gateway = &contract.publication.surroundings.gateway;
            let models: Vec<String> = section.model.all().map(str::to_owned).collect();
            if !section.hints.is_empty() {
                shared.feed.add(models.clone(), Arc::clone(&hints));
                outbox = Some(outbox::model_of(gateway));
            }
            hinted.push(HintedContract { models, hints: Arc::clone(&hints) });
            mirrors.push(Arc::clone(&mirror));
            captures.extend(Capture::new(Arc::clone(&shared), Arc::clone(contract), mirror, hints, notes.clone()));
        }
        let hook = hook
            .map(|hook| {
                Hook::open(
                    hook,
                    HintedModels { contracts: hinted, outbox, feed: Arc::clone(&shared.feed) },
                    (Arc::clone(&shared.stats), budget),
                    &shared.config.name,
                )
            })
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Self { captures, mirrors, hook })
    }

    /// The address of the hook; `None` without a hook.
    pub(super) fn hook_address(&self) -> Option<std::net::SocketAddr> {
        self.hook.as_ref().and_then(|hook| hook.address().ok())
    }

    /// The mirrors of the source's contracts.
    pub(super) fn mirrors(&self) -> &[Arc<Mirror>] {
        &self.mirrors
    }

    /// Reads until the shutdown. Panics when a capture panics, because the source is incomplete without it.
    pub(super) async fn run(self, mut shutdown: Shutdown) {
        let mut tasks = JoinSet::new();
        if let Some(hook) = self.hook {
            tasks.spawn(hook.run(shutdown.clone()));
        }
        for capture in self.captures {
            tasks.spawn(capture.run(shutdown.clone()));
        }
        loop {
            let ended = tokio::select! {
                ended = tasks.join_next() => ended,
                () = shutdown.begun(), if !shutdown.has_begun() => continue,
            };
            match ended {
                Some(Ok(())) => {}
                Some(Err(error)) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => tracing::error!(%error, "a capture of Odoo was cancelled"),
                },
                None if shutdown.has_begun() => return,
                // No contract reads from this Odoo.
                None => shutdown.begun().await,
            }
        }
    }
}
