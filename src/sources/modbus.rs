//! The Modbus source: polls devices and reports changes of their values as events (report by exception).
//!
//! Promise: the source read each value of an event from the device that the event names, at the time that the event
//! states. The source reports a change again if the journal did not accept it. Events of a device that does not answer
//! have the quality `stale`, then `bad`. Such a device delays the others on its bus by no more than its own timeouts,
//! and is asked ever more rarely.
//! Invariants:
//! - one task owns a bus and has one request outstanding at a time;
//! - nothing here waits for the journal: changes for which there is no room are collected, within bounds;
//! - the source writes only points and values that a rule allows.
//!
//! The topic of an event is `{unit}/{group}`. A point has separate events if a contract matches
//! `{unit}/{group}/{point}` and does not match the shorter topic.
//!
//! How a poll becomes events: `plan` → `bus` → `transport` → `reading` (with `value`) → `change_detector` (with `counter`)
//! → `payload`.
//!
//! Not here: the meaning of an event (`ingest`, `contract`).

pub mod address;
pub mod blocks;
mod bus;
pub mod change_detector;
mod config;
mod counter;
pub mod import;
mod payload;
pub mod plan;
pub mod plausible;
pub mod reading;
mod source;
pub mod table;
pub mod transport;
pub mod value;
pub mod write;

pub use bus::Bus;
pub use config::{Config, Ready, Unit};
pub use write::WriteRule;
