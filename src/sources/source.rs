//! What every source has in common: settings that check themselves, and a life from open to close.
//!
//! Promise: a source that opens has bound its port and read its files, so nothing of that can fail once it runs.
//! Settings that a source cannot take while it runs are refused by [`Source::prepare`] before anything changes.

use super::stats::Stats;
use crate::contract::Contracts;
use crate::ingest::{Ingest, Notes};
use crate::local::Local;
use crate::memory::Budget;
use crate::setting::Findings;
use crate::shutdown::Shutdown;
use crate::tls::NamedFile;
use parking_lot::Mutex;
use std::any::Any;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

/// Why a source cannot be opened or changed.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;
/// The work of a source until its shutdown.
pub type SourceFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Puts checked settings in force.
pub type Change = Box<dyn FnOnce() + Send>;

/// Something that only one source can have, such as a port.
#[derive(Debug)]
pub struct Claim {
    pub key: &'static str,
    /// What is claimed; equal for sources that collide.
    pub what: String,
    /// The problem of a source that claims what another has.
    pub taken: String,
    /// Whether two sources may have it, though they rarely should: then `taken` is a warning.
    pub is_shareable: bool,
}

impl Claim {
    /// A port to listen on; none if the system chooses it.
    pub(super) fn port(key: &'static str, listen: SocketAddr, owner: &str) -> Option<Self> {
        let taken = format!("{listen} is taken by {owner}");
        (listen.port() != 0).then(|| Self { key, what: format!("port {listen}"), taken, is_shareable: false })
    }
}

/// The settings of a source. Each kind also has a method `open`, which `kinds` calls with what the kind needs.
pub trait Settings: Any {
    /// Name of the source; part of every event's source.
    fn name(&self) -> &str;
    /// Lists the files that the settings name.
    fn files(&mut self) -> Vec<NamedFile<'_>>;
    /// Lists the folders with data that the settings name. Their content is no part of the settings.
    fn folders(&mut self) -> Vec<&mut PathBuf> {
        Vec::new()
    }
    /// Lists what no other source can have.
    fn claims(&self) -> Vec<Claim> {
        Vec::new()
    }
    /// Checks the settings, and reads the files that they name.
    fn check(&mut self, found: &mut Findings<'_>);
    /// Warns about contracts that do not fit the settings.
    fn check_contracts(&self, _contracts: &Contracts, _found: &mut Findings<'_>) {}
    /// Whether the source must be restarted when a contract changes.
    fn depends_on_contracts(&self) -> bool {
        false
    }
}

/// What the gateway gives to a source.
#[derive(Clone, Debug)]
pub struct Services {
    /// Counters and status of the source.
    pub stats: Arc<Stats>,
    pub ingest: Arc<Ingest>,
    /// Events and last values for subscribers.
    pub local: Arc<Local>,
    /// Bounds the memory that peers occupy.
    pub budget: Arc<Budget>,
    /// Values that sources of this kind save across restarts.
    pub notes: Notes,
    /// Client id at brokers; unique to gateway and source.
    pub client: String,
    pub contracts: Contracts,
}

pub trait Source: Send + Sync {
    /// Runs until the shutdown. Called again after a failure.
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError>;
    /// The server that it reads, or the address that it listens on.
    fn address(&self) -> String;
    fn port(&self) -> Option<SocketAddr> {
        None
    }
    /// Checks other settings of the same kind, reads their files and binds their port. Returns `None` if the source can
    /// take them only with a restart. Nothing changes until the returned function is called.
    fn prepare(&self, _settings: &dyn Settings) -> Result<Option<Change>, SourceError> {
        Ok(None)
    }
    /// Checks what depends on contracts again: they may have changed.
    fn check_again(&self) {}
    /// Withdraws what the source shows to other parts. Called after its end, or if it is opened but not started.
    fn close(&self) {}
}

/// State that one run uses up. The first one is made when the source is opened, so that its errors stop the start;
/// each restart makes another one.
pub(super) struct PerRun<T> {
    first: Mutex<Option<T>>,
    make: Box<dyn Fn() -> Result<T, SourceError> + Send + Sync>,
}

impl<T> PerRun<T> {
    /// Keeps the state for the first run, and how it is made for the others.
    pub(super) fn new(first: T, make: impl Fn() -> Result<T, SourceError> + Send + Sync + 'static) -> Self {
        Self { first: Mutex::new(Some(first)), make: Box::new(make) }
    }

    /// Returns the state for a run.
    pub(super) fn take(&self) -> Result<T, SourceError> {
        let first = self.first.lock().take();
        first.map_or_else(&self.make, Ok)
    }
}
