//! Odoo as a source: what changes in its models becomes events of the business.
//!
//! Promise: nothing that stands in Odoo for longer than an interval is missed, through crashes of the
//! gateway, restarts of Odoo and slow transactions; what keeps a model from being read stands in the
//! status with the reason and since when, and the other models and sources go on.
//! Invariants:
//! - only fields that a contract lists are read, and only by reading calls;
//! - at most one call of each contract at a time, and two of all.
//!
//! Each contract with `match.source = "odoo"` has a capture of its own (`capture`), which compares
//! what it reads with what is known (`known`), names the changes (`meaning`) and hands them in.
//!
//! Not here: how Odoo is called (`odoo`), what is wrong in the business (`watch`).

mod automation;
mod capture;
mod check;
mod health;
mod hints;
mod hook;
mod known;
mod meaning;
mod place;
mod shape;

pub use automation::{Plan, install, plans, remove, steps};
pub use check::{Finding, check};
pub use hook::{CannotHear, Config as HookConfig, Hook};

use crate::contract::odoo::Section;
use crate::contract::{Contract, Contracts, SourceKind};
use crate::event::Timestamp;
use crate::ingest::Ingest;
use crate::journal::Notes;
use crate::memory::Budget;
use crate::odoo::{self, Client};
use crate::setting::{Bytes, Span};
use crate::shutdown::Shutdown;
use crate::sources::Stats;
use crate::tls::ClientFiles;
use capture::Capture;
use health::Health;
use hints::Hints;
use known::Known;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// An Odoo as the configuration says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// `https://host`, or `http://host:8069` without TLS.
    pub url: String,
    /// Name of the database.
    pub database: String,
    /// File that holds the API key of the account.
    pub key_file: PathBuf,
    /// Login of the account; needed over `/jsonrpc` only, as for 14 to 18.
    pub user: Option<String>,
    /// Certificates.
    #[serde(default)]
    pub tls: ClientFiles,
    /// Whether the key of an administrator is taken, which may do far more than read.
    #[serde(default)]
    pub administrator: bool,
    /// How long transactions of Odoo may take without a change being found late.
    #[serde(default = "overlap")]
    pub overlap: Span,
    /// How often everything written since the last time is compared once more.
    #[serde(default = "sweep")]
    pub sweep: Span,
    /// How often known records are looked for that are gone.
    #[serde(default = "deletions")]
    pub deletions: Span,
    /// How long records in a last state are remembered.
    #[serde(default = "forget")]
    pub forget: Span,
    /// Memory for what is known of records, over all contracts. Past it, further ones are told without what they
    /// were before.
    #[serde(default = "records_memory")]
    pub records_memory: Bytes,
    /// Where Odoo may hint at changes.
    pub hook: Option<hook::Config>,
}

/// Longer than most crons, and twice the 120 s after which Odoo ends a call.
fn overlap() -> Span {
    Span(Duration::from_secs(300))
}
fn sweep() -> Span {
    Span(Duration::from_secs(86_400))
}
fn deletions() -> Span {
    Span(Duration::from_secs(300))
}
fn forget() -> Span {
    Span(Duration::from_secs(30 * 86_400))
}
/// Some hundred thousand records, and half of what the unit allows.
fn records_memory() -> Bytes {
    Bytes(96 << 20)
}
const RECORDS_MEMORY: (u64, u64) = (1 << 20, 4 << 30);

/// What is said of a key that may do too much.
const ADMINISTRATOR: &str = "the key belongs to an administrator, which is far more than reading needs; use an account with read access only, or set administrator = true";

impl Config {
    /// Checks values: key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        odoo::check_url(&self.url).map_err(|message| ("url", message))?;
        let is_name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !is_name(&self.database) {
            return Err(("database", format!("\"{}\" is no name of a database", self.database.escape_debug())));
        }
        let bounds = [
            ("overlap", self.overlap, 30, 86_400),
            ("sweep", self.sweep, 3600, 7 * 86_400),
            ("deletions", self.deletions, 1, 86_400),
            ("forget", self.forget, 3600, 3650 * 86_400),
        ];
        for (key, value, min, max) in bounds {
            let (min, max) = (Duration::from_secs(min), Duration::from_secs(max));
            if !(min..=max).contains(&value.0) {
                return Err((key, format!("{value} is out of bounds; {} to {} are allowed", Span(min), Span(max))));
            }
        }
        if !(RECORDS_MEMORY.0..=RECORDS_MEMORY.1).contains(&self.records_memory.0) {
            let (least, most) = (Bytes(RECORDS_MEMORY.0), Bytes(RECORDS_MEMORY.1));
            let message = format!("{} is out of bounds; {least} to {most} are allowed", self.records_memory);
            return Err(("records_memory", message));
        }
        self.hook.as_ref().map_or(Ok(()), hook::Config::check)
    }

    /// A client that has not called yet.
    pub fn client(&self) -> Result<Client, String> {
        Client::new(odoo::Config {
            url: self.url.clone(),
            database: self.database.clone(),
            key_file: self.key_file.clone(),
            user: self.user.clone(),
            tls: self.tls.clone(),
        })
    }
}

/// What the captures of one Odoo share.
#[derive(Debug)]
struct Shared {
    config: Config,
    client: Client,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    health: Health,
}

/// The records of one contract as the gateway knows them.
#[derive(Debug)]
pub struct Mirror {
    source: String,
    database: String,
    stream: String,
    model: String,
    known: Mutex<Known>,
    read_at: Mutex<Option<Timestamp>>,
    is_complete: AtomicBool,
}

impl Mirror {
    /// Whether the records are all that count: the first load has been complete once.
    pub fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    fn complete(&self) {
        self.is_complete.store(true, Ordering::Release);
    }

    /// Name of the source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The stream that tells of these records.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Their model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// When Odoo was last read completely; `None` if it was not since the start.
    pub fn last_read(&self) -> Option<Timestamp> {
        *self.read_at.lock()
    }

    fn read_at(&self, at: Timestamp) {
        *self.read_at.lock() = Some(at);
    }

    /// Shows every record: its number, when it was written (seconds since 1970), and its fields.
    pub fn each(&self, see: impl FnMut(i64, i64, Map<String, Value>)) {
        self.known().each(see);
    }
}

/// What is known of every Odoo, by source.
#[derive(Clone, Debug, Default)]
pub struct Mirrors(Arc<Mutex<BTreeMap<String, Vec<Arc<Mirror>>>>>);

impl Mirrors {
    /// Puts what a source knows in the place of what was known of it.
    pub fn put(&self, source: &str, mirrors: Vec<Arc<Mirror>>) {
        self.0.lock().insert(source.to_owned(), mirrors);
    }

    /// Forgets a source.
    pub fn remove(&self, source: &str) {
        self.0.lock().remove(source);
    }

    /// What is known of all.
    pub fn all(&self) -> Vec<Arc<Mirror>> {
        self.0.lock().values().flatten().cloned().collect()
    }
}

/// Number of the record that a link leads to.
pub fn linked(value: &Value) -> Option<i64> {
    shape::number_of(value)
}

/// The contracts that an Odoo of this name serves, with their sections.
fn sections<'a>(contracts: &'a Contracts, source: &'a str) -> impl Iterator<Item = (&'a Arc<Contract>, &'a Section)> {
    contracts
        .iter()
        .filter(move |contract| contract.source() == SourceKind::Odoo && contract.is_for(source))
        .filter_map(|contract| Some((contract, contract.odoo.as_ref()?)))
}

/// One Odoo that is read.
pub struct Source {
    captures: Vec<Capture>,
    mirrors: Vec<Arc<Mirror>>,
    hook: Option<Hook>,
    address: String,
}

impl Source {
    /// A source that calls once it runs. `notes` are what Odoo sources remember over a restart.
    /// Takes the port of the hook, where there is one.
    pub fn new(
        config: Config,
        contracts: &[Arc<Contract>],
        ingest: Arc<Ingest>,
        notes: &Notes,
        (stats, budget): (Arc<Stats>, Arc<Budget>),
    ) -> Result<Self, String> {
        let client = config.client()?;
        let address = config.url.clone();
        let hook = config.hook.clone();
        let ours: Vec<_> = contracts
            .iter()
            .filter(|contract| contract.source() == SourceKind::Odoo && contract.is_for(&config.name))
            .filter_map(|contract| Some((contract, contract.odoo.clone()?)))
            .collect();
        let health = Health::new(&config.name, ours.len(), Arc::clone(&stats));
        let shared = Arc::new(Shared { config, client, ingest, stats, health });
        let mut captures = Vec::new();
        let mut mirrors = Vec::new();
        let mut hinted = Vec::new();
        let pool = Arc::default();
        for (contract, section) in ours {
            let mirror = Arc::new(Mirror {
                source: shared.config.name.clone(),
                database: shared.config.database.clone(),
                stream: contract.stream().to_owned(),
                model: section.model.clone(),
                known: Mutex::new(Known::new(Arc::clone(&pool))),
                read_at: Mutex::default(),
                is_complete: AtomicBool::new(false),
            });
            let hints = Arc::new(Hints::default());
            hinted.push((section.model.clone(), Arc::clone(&hints)));
            mirrors.push(Arc::clone(&mirror));
            captures.push(Capture::new(
                Arc::clone(&shared),
                Arc::clone(contract),
                section,
                mirror,
                hints,
                notes.clone(),
            ));
        }
        let hook = hook
            .map(|hook| Hook::open(hook, hinted, (Arc::clone(&shared.stats), budget), &shared.config.name))
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Self { captures, mirrors, hook, address })
    }

    /// Where Odoo is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where hints are taken, if they are.
    pub fn hook_address(&self) -> Option<std::net::SocketAddr> {
        self.hook.as_ref().and_then(|hook| hook.address().ok())
    }

    /// What is known of Odoo's records.
    pub fn mirrors(&self) -> &[Arc<Mirror>] {
        &self.mirrors
    }

    /// Reads until the shutdown. Panics when a capture does: without it the source is not whole.
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
                // There is no contract to read for.
                None => shutdown.begun().await,
            }
        }
    }
}
