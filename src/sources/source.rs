//! What every source has in common: settings that check themselves, and a life from open to close. Here stands the list
//! of sources.
//!
//! Promise: a source that opens has bound its port and read its files, so nothing of that can fail once it runs.
//! Settings that a source cannot take while it runs are refused by [`Source::prepare`] before anything changes.

use super::mqtt::{Devices, Registry};
use super::odoo::Mirrors;
use super::stats::Stats;
use super::{broker, http, modbus, mqtt, odoo};
use crate::contract::{Contracts, SourceKind};
use crate::ingest::{Ingest, Notes};
use crate::local::Local;
use crate::memory::Budget;
use crate::setting::Findings;
use crate::shutdown::Shutdown;
use crate::tls::NamedFile;
use parking_lot::Mutex;
use serde::Deserialize;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

/// Declares the kinds of sources: the variant in [`SourceConfig`] and [`SourceKind`], and the module, which is also the
/// name of the table in the configuration.
macro_rules! sources {
    ($($kind:ident = $module:ident,)*) => {
        /// The settings of one source.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum SourceConfig {
            $($kind($module::Config),)*
        }

        /// The tables `[[source.…]]` of a configuration file.
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Tables {
            $(#[serde(default)] $module: Vec<$module::Config>,)*
        }

        impl From<Tables> for SourceTables {
            fn from(tables: Tables) -> Self {
                let mut found = Vec::new();
                $(for (index, config) in tables.$module.into_iter().enumerate() {
                    let key = format!(concat!("source.", stringify!($module), "[{}]"), index);
                    found.push((key, SourceConfig::$kind(config)));
                })*
                Self(found)
            }
        }

        impl SourceConfig {
            /// The kind, as contracts name it.
            pub fn kind(&self) -> SourceKind {
                match self {
                    $(Self::$kind(_) => SourceKind::$kind,)*
                }
            }

            /// What all kinds have in common.
            pub fn settings(&self) -> &dyn Settings {
                match self {
                    $(Self::$kind(config) => config,)*
                }
            }

            /// Like [`SourceConfig::settings`], to be changed.
            pub fn settings_mut(&mut self) -> &mut dyn Settings {
                match self {
                    $(Self::$kind(config) => config,)*
                }
            }
        }
    };
}

sources! {
    Mqtt = mqtt,
    Http = http,
    Broker = broker,
    Modbus = modbus,
    Odoo = odoo,
}

/// All sources of a configuration file, each with its key, such as `source.mqtt[0]`.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "Tables")]
pub struct SourceTables(pub Vec<(String, SourceConfig)>);

/// Why a source cannot be opened or changed.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;
/// The work of a source until its shutdown.
pub type SourceFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Puts checked settings in force.
pub type Change = Box<dyn FnOnce() + Send>;

/// Something that only one source can have, such as a port.
#[derive(Debug)]
pub struct Claim {
    /// Key of the setting.
    pub key: &'static str,
    /// What is claimed; equal for sources that collide.
    pub what: String,
    /// The problem of a source that claims what another has.
    pub taken: String,
}

impl Claim {
    /// A port to listen on; none if the system chooses it.
    pub(super) fn port(key: &'static str, listen: SocketAddr, owner: &str) -> Option<Self> {
        let taken = format!("{listen} is taken by {owner}");
        (listen.port() != 0).then(|| Self { key, what: format!("port {listen}"), taken })
    }
}

/// The settings of a source.
pub trait Settings {
    /// Name of the source; part of every event's source.
    fn name(&self) -> &str;
    /// Lists the files that the settings name.
    fn files(&mut self) -> Vec<NamedFile<'_>>;
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
    /// Opens the source: reads its files and saved state, and binds its port.
    fn open(&self, services: Services) -> Result<Arc<dyn Source>, SourceError>;
}

/// What the gateway gives to a source.
#[derive(Clone, Debug)]
pub struct Services {
    /// Counters and status of the source.
    pub stats: Arc<Stats>,
    /// Takes the events.
    pub ingest: Arc<Ingest>,
    /// Events and last values for subscribers.
    pub local: Arc<Local>,
    /// MQTT connections and sessions.
    pub registry: Arc<Registry>,
    /// Where Odoo sources show their known records.
    pub mirrors: Mirrors,
    /// Bounds the memory that peers occupy.
    pub budget: Arc<Budget>,
    /// Values that sources of this kind save across restarts.
    pub notes: Notes,
    /// Client id at brokers; unique to gateway and source.
    pub client: String,
    /// The contracts in force.
    pub contracts: Contracts,
}

/// An open source.
pub trait Source: Send + Sync {
    /// Runs until the shutdown. Called again after a failure.
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError>;
    /// The server that it reads, or the address that it listens on.
    fn address(&self) -> String;
    /// The bound port.
    fn port(&self) -> Option<SocketAddr> {
        None
    }
    /// The devices that have connected, if the source knows them.
    fn devices(&self) -> Option<Arc<Devices>> {
        None
    }
    /// Checks other settings of the same kind, reads their files and binds their port. Returns `None` if the source can
    /// take them only with a restart. Nothing changes until the returned function is called.
    fn prepare(&self, _config: &SourceConfig) -> Result<Option<Change>, SourceError> {
        Ok(None)
    }
    /// Checks what depends on contracts again: they may have changed.
    fn check_again(&self) {}
    /// Withdraws what the source shows to other parts. Called after its end, or if it is opened but not started.
    fn close(&self) {}
}

/// State that one run uses up. The first one is made when the source is opened, so that its errors stop the start; each
/// restart makes another one.
pub(super) struct PerRun<T> {
    first: Mutex<Option<T>>,
    make: Box<dyn Fn() -> Result<T, SourceError> + Send + Sync>,
}

impl<T> PerRun<T> {
    /// Keeps the state for the first run, and how it is made for the others.
    pub fn new(first: T, make: impl Fn() -> Result<T, SourceError> + Send + Sync + 'static) -> Self {
        Self { first: Mutex::new(Some(first)), make: Box::new(make) }
    }

    /// Returns the state for a run.
    pub fn take(&self) -> Result<T, SourceError> {
        let first = self.first.lock().take();
        first.map_or_else(&self.make, Ok)
    }
}
