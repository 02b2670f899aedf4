//! The linked records that were read lately.
//!
//! Invariant: the memory is bounded.

use super::super::model_fields::Field;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Linked records that are remembered for one link: some 200 bytes each.
pub(super) const RECORDS_MAX: usize = 2000;

/// The linked records that were read lately, by link.
#[derive(Debug, Default)]
pub(super) struct LinkedRecords {
    pub(super) links: BTreeMap<String, Link>,
}

#[derive(Debug, Default)]
pub(super) struct Link {
    /// The fields that the linked model has; `None` before the model was described.
    pub(super) fields: Option<Vec<Field>>,
    pub(super) records: HashMap<i64, Map<String, Value>>,
    pub(super) read_at: Option<Instant>,
    /// Why the linked model cannot be read.
    pub(super) problem: Option<String>,
}

impl LinkedRecords {
    /// Forgets what was learnt about the linked models.
    pub(super) fn expire(&mut self) {
        self.links.clear();
    }

    /// Why fields of linked records are not included.
    pub(super) fn remarks(&self) -> Vec<String> {
        let with_problem = self.links.iter().filter_map(|(link, about)| Some((link, about.problem.as_ref()?)));
        with_problem.map(|(link, problem)| format!("fields linked by {link} are not read: {problem}")).collect()
    }
}
