//! The known records of Odoo contracts, as readers in other modules see them.

use super::config::Config;
use super::known_records::{KnownRecords, Pool};
use crate::contract::Contract;
use crate::event::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

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
    /// Whether the operator has asked for another load that has not begun.
    is_load_requested: AtomicBool,
    load_requested: Notify,
}

impl Mirror {
    /// The mirror of a contract before its first load. The memory of its records counts in `pool`.
    pub(super) fn new(config: &Config, contract: &Contract, model: &str, pool: Pool) -> Self {
        Self {
            source: config.name.clone(),
            database: config.database.clone(),
            stream: contract.stream().to_owned(),
            model: model.to_owned(),
            known: Mutex::new(KnownRecords::new(pool)),
            read_at: Mutex::default(),
            is_complete: AtomicBool::new(false),
            is_load_requested: AtomicBool::new(false),
            load_requested: Notify::new(),
        }
    }

    pub(super) fn known(&self) -> MutexGuard<'_, KnownRecords> {
        self.known.lock()
    }

    /// Whether the first load is complete: the records are all records of the contract.
    pub fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    pub(super) fn complete(&self) {
        self.is_complete.store(true, Ordering::Release);
    }

    /// Requests that all records are loaded and reported again.
    pub fn request_load(&self) {
        self.is_load_requested.store(true, Ordering::Release);
        self.load_requested.notify_one();
    }

    /// Waits until a load is requested. Cancel safe.
    pub(super) async fn load_requested(&self) {
        while !self.is_load_requested.load(Ordering::Acquire) {
            self.load_requested.notified().await;
        }
    }

    pub(super) fn take_load_request(&self) -> bool {
        self.is_load_requested.swap(false, Ordering::AcqRel)
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// The stream of the events of these records.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    /// Number of known records.
    pub fn records(&self) -> usize {
        self.known().len()
    }

    /// Time of the last complete poll; `None` before the first one since the start.
    pub fn last_read(&self) -> Option<Timestamp> {
        *self.read_at.lock()
    }

    pub(super) fn read_at(&self, at: Timestamp) {
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
