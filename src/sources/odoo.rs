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
mod health;
mod hints;
mod hook;
mod known_records;
mod model_fields;
mod position;

pub use automation::{Plan, install, plans, remove, steps};
pub use check::{Finding, check};
pub use hook::{Config as HookConfig, Hook, HookError};

use crate::contract::odoo::Section;
use crate::contract::{Contract, Contracts, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{Ingest, Notes};
use crate::memory::Budget;
use crate::odoo::{self, Client};
use crate::setting::{Bytes, Span};
use crate::shutdown::Shutdown;
use crate::sources::Stats;
use crate::tls::ClientFiles;
use capture::Capture;
use health::Health;
use hints::Hints;
use known_records::KnownRecords;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// The configuration of an Odoo source.
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
    /// Whether the key of an administrator is accepted. Such a key may do far more than read.
    #[serde(default)]
    pub administrator: bool,
    /// Longest duration of an Odoo transaction whose changes every poll window still covers.
    #[serde(default = "overlap")]
    pub overlap: Span,
    /// Interval of sweeps. A sweep compares every record written since the last sweep once more.
    #[serde(default = "sweep")]
    pub sweep: Span,
    /// Interval of checks for deleted records.
    #[serde(default = "deletions")]
    pub deletions: Span,
    /// How long records in a final state are remembered.
    #[serde(default = "forget")]
    pub forget: Span,
    /// Memory for known records, over all contracts. Past it, events of further records carry no earlier values.
    #[serde(default = "records_memory")]
    pub records_memory: Bytes,
    /// Endpoint for hints of Odoo about changes.
    pub hook: Option<hook::Config>,
}

/// Longer than most scheduled jobs, and more than twice the 120 s after which Odoo ends a call.
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
/// Room for some hundred thousand records; half of the memory that the systemd unit allows.
fn records_memory() -> Bytes {
    Bytes(96 << 20)
}
const RECORDS_MEMORY: (u64, u64) = (1 << 20, 4 << 30);

/// The error for a key that grants too much.
const ADMINISTRATOR: &str = "the key belongs to an administrator, which is far more than reading needs; use an account with read access only, or set administrator = true";

impl Config {
    /// Checks the values. The error is the key and the reason.
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

    /// Returns a client; it connects at its first call.
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

/// The context that the captures of one Odoo share.
#[derive(Debug)]
struct CaptureContext {
    config: Config,
    client: Client,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    health: Health,
}

/// The known records of one contract, shared with the readers of other modules.
#[derive(Debug)]
pub struct Mirror {
    source: String,
    database: String,
    stream: String,
    model: String,
    known: Mutex<KnownRecords>,
    read_at: Mutex<Option<Timestamp>>,
    is_complete: AtomicBool,
}

impl Mirror {
    /// Whether the first load is complete: the records are all records of the contract.
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

    /// The stream of the events of these records.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The Odoo model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Time of the last complete poll; `None` before the first one since the start.
    pub fn last_read(&self) -> Option<Timestamp> {
        *self.read_at.lock()
    }

    fn read_at(&self, at: Timestamp) {
        *self.read_at.lock() = Some(at);
    }

    /// Calls `see` for every record with its id, the time of its last write (seconds since 1970) and its fields.
    pub fn each(&self, see: impl FnMut(i64, i64, Map<String, Value>)) {
        self.known().each(see);
    }
}

/// The mirrors of every Odoo, by source.
#[derive(Clone, Debug, Default)]
pub struct Mirrors(Arc<Mutex<BTreeMap<String, Vec<Arc<Mirror>>>>>);

impl Mirrors {
    /// Replaces the mirrors of a source.
    pub fn put(&self, source: &str, mirrors: Vec<Arc<Mirror>>) {
        self.0.lock().insert(source.to_owned(), mirrors);
    }

    /// Removes the mirrors of a source.
    pub fn remove(&self, source: &str) {
        self.0.lock().remove(source);
    }

    /// Returns the mirrors of all sources.
    pub fn all(&self) -> Vec<Arc<Mirror>> {
        self.0.lock().values().flatten().cloned().collect()
    }
}

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

/// A source that reads one Odoo.
pub struct Source {
    captures: Vec<Capture>,
    mirrors: Vec<Arc<Mirror>>,
    hook: Option<Hook>,
    address: String,
}

impl Source {
    /// Creates a source; it calls Odoo once it runs. `notes` stores the state of Odoo sources across restarts.
    /// Binds the port of the hook, if one is configured.
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
        let shared = Arc::new(CaptureContext { config, client, ingest, stats, health });
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
                known: Mutex::new(KnownRecords::new(Arc::clone(&pool))),
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

    /// The URL of Odoo.
    pub fn address(&self) -> &str {
        &self.address
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
