//! The Odoo source: change data capture by polling. Changes of records become events of the business.
//!
//! Promise: the source misses no value that stays in Odoo for longer than one interval, despite crashes of the
//! gateway, restarts of Odoo and slow transactions. If a model cannot be read, the status shows the reason and since
//! when; the other models and sources continue.
//! Invariants:
//! - the source reads only fields that a contract lists, and calls only methods that read;
//! - at most one call at a time per contract, and two over all contracts.
//!
//! Each contract with `match.source = "odoo"` has its own capture (`capture`). The capture compares the rows that it
//! reads with the known records (`known_records`), makes change events (`change_event`) and hands them in. Its place
//! in the stream of changes is a saved position (`position`).
//!
//! Not here: the protocol of Odoo (`odoo`), the exceptions of the business (`watch`).

mod automation;
mod capture;
mod change_event;
mod check;
mod config;
mod health;
mod hints;
mod hook;
mod known_records;
mod mirror;
mod model_fields;
mod position;
mod source;

pub use automation::{Plan, install, plans, remove, steps};
pub use check::{Finding, check};
pub use config::Config;
pub use hook::{Config as HookConfig, Hook, HookError};
pub use mirror::{Mirror, Mirrors};

use crate::contract::odoo::Section;
use crate::contract::{Contract, Contracts, SourceKind};
use crate::ingest::{Ingest, Notes};
use crate::memory::Budget;
use crate::shutdown::Shutdown;
use crate::sources::Stats;
use capture::{Capture, CaptureContext};
use health::Health;
use serde_json::Value;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Id of the record that a link refers to.
pub fn linked(value: &Value) -> Option<i64> {
    model_fields::linked_id(value)
}

/// The contracts of an Odoo source, with their `odoo` sections.
fn sections<'a>(contracts: &'a Contracts, source: &'a str) -> impl Iterator<Item = (&'a Arc<Contract>, &'a Section)> {
    contracts
        .iter()
        .filter(move |contract| contract.source() == SourceKind::Odoo && contract.is_for(source))
        .filter_map(|contract| Some((contract, contract.odoo.as_ref()?)))
}

pub struct Reader {
    captures: Vec<Capture>,
    mirrors: Vec<Arc<Mirror>>,
    hook: Option<Hook>,
}

impl Reader {
    /// Creates a reader; it calls Odoo once it runs. `notes` stores the state of Odoo sources across restarts.
    /// Binds the port of the hook, if one is configured.
    pub fn new(
        config: Config,
        contracts: &Contracts,
        ingest: Arc<Ingest>,
        notes: &Notes,
        (stats, budget): (Arc<Stats>, Arc<Budget>),
    ) -> Result<Self, String> {
        let client = config.client()?;
        let hook = config.hook.clone();
        let name = config.name.clone();
        let ours: Vec<_> = sections(contracts, &name).collect();
        let health = Health::new(&config.name, ours.len(), Arc::clone(&stats));
        let shared = Arc::new(CaptureContext { config, client, ingest, stats, health });
        let mut captures = Vec::new();
        let mut mirrors = Vec::new();
        let mut hinted = Vec::new();
        let pool = Arc::default();
        for (contract, section) in ours {
            let section = section.clone();
            let capture =
                Capture::new(Arc::clone(&shared), Arc::clone(contract), section, Arc::clone(&pool), notes.clone());
            hinted.push(capture.hinted());
            mirrors.push(capture.mirror());
            captures.push(capture);
        }
        let hook = hook
            .map(|hook| Hook::open(hook, hinted, (Arc::clone(&shared.stats), budget), &shared.config.name))
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Self { captures, mirrors, hook })
    }

    /// The address of the hook; `None` without a hook.
    pub fn hook_address(&self) -> Option<std::net::SocketAddr> {
        self.hook.as_ref().and_then(|hook| hook.address().ok())
    }

    /// The mirrors of the source's contracts.
    pub fn mirrors(&self) -> &[Arc<Mirror>] {
        &self.mirrors
    }

    /// Reads until the shutdown. Panics when a capture panics, because the source is incomplete without it.
    pub async fn run(self, mut shutdown: Shutdown) {
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
