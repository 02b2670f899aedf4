//! The kinds of sources. A new kind is a folder next to this file, and a line in the list below.

use super::mqtt::{Devices, Registry};
use super::odoo::Mirrors;
use super::source::{Services, Settings, Source, SourceError};
use super::{broker, folder, http, modbus, mqtt, odoo};
use crate::contract::SourceKind;
use serde::Deserialize;
use std::sync::Arc;

/// What the gateway gives to some kinds of sources alone.
#[derive(Clone, Debug)]
pub struct KindServices {
    /// MQTT connections and sessions, of all listeners.
    pub registry: Arc<Registry>,
    /// The MQTT clients of this source.
    pub devices: Arc<Devices>,
    /// Where Odoo sources show their known records.
    pub mirrors: Mirrors,
}

/// Declares the kinds of sources: the variant in [`SourceConfig`] and [`SourceKind`], the module, which is also the name
/// of the table in the configuration, and which fields of [`KindServices`] the kind uses.
macro_rules! sources {
    ($($kind:ident = $module:ident($($service:ident),*),)*) => {
        /// The settings of one source.
        #[derive(Clone, Debug, PartialEq)]
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

            /// Opens the source: reads its files and saved state, and binds its port.
            pub fn open(&self, services: Services, own: &KindServices) -> Result<Arc<dyn Source>, SourceError> {
                match self {
                    $(Self::$kind(config) => config.open(services $(, own.$service.clone())*),)*
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
    Mqtt = mqtt(registry, devices),
    Http = http(),
    Broker = broker(),
    Modbus = modbus(),
    Odoo = odoo(mirrors),
    Folder = folder(),
}

/// All sources of a configuration file, each with its key, such as `source.mqtt[0]`.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "Tables")]
pub struct SourceTables(pub Vec<(String, SourceConfig)>);
