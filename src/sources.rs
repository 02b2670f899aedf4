//! Sources: the parts that take events in, by MQTT, HTTP, a plant broker, Modbus, Odoo and files.
//!
//! Promise: a source acknowledges an event only with a receipt of the journal.
//!
//! A new kind of source is a folder here with its settings and its life, and a line in `kinds`. Contracts name it by a
//! word of their own (`contract::SourceKind`).

pub mod broker;
pub mod folder;
mod handshake;
pub mod http;
mod identity;
mod kinds;
pub mod modbus;
pub mod mqtt;
pub mod odoo;
mod secrets;
mod socket;
mod source;
mod stats;
mod units;

pub use kinds::{KindServices, SourceConfig, SourceTables};
pub use source::{Change, Claim, Services, Settings, Source, SourceError, SourceFuture};
pub use stats::{OpenConnection, Refusal, Stats};
pub use units::{PointState, UnitHealth, Units};

/// Upper limit of the settings for the largest payload.
pub const PAYLOAD_BYTES_MAX: u64 = 8 << 20;
