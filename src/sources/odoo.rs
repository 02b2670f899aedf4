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
mod captures;
mod change_event;
mod check;
mod config;
mod context;
mod health;
mod hints;
mod hook;
mod known_records;
mod mirror;
mod model_fields;
mod outbox;
mod outbox_feed;
mod position;
mod reader;
mod reconciliation;
mod rights;
mod sections;
mod source;

pub use automation::{Plan, install, plan, remove, steps};
pub use check::{Finding, Report, check};
pub use config::Config;
pub use hook::{Config as HookConfig, Hook, HookError};
pub use mirror::{Mirror, Mirrors};
pub use rights::{Rights, rights};

use serde_json::Value;

/// Id of the record that a link refers to.
pub fn linked(value: &Value) -> Option<i64> {
    model_fields::linked_id(value)
}
