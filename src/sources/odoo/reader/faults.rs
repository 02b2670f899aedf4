//! The fields and records that Odoo cannot read.

use super::super::model_fields::ModelFields;
use std::collections::{BTreeMap, BTreeSet};

/// Records with such fields that are remembered. Each takes a call a minute while it changes.
pub(super) const RECORDS_MAX: usize = 500;
/// Fields of records that the log names once: some 100 bytes each.
const LOGGED_MAX: usize = 2000;
/// Records with such fields that the status names one by one.
const RECORDS_SHOWN_MAX: usize = 5;

/// What Odoo cannot read.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// By name in Odoo: the fields that can be read of no record.
    pub(super) denied: BTreeMap<String, Denied>,
    /// By record: the fields that cannot be read, with the reason.
    pub(super) records: BTreeMap<i64, BTreeMap<String, String>>,
    /// What the log has named since then.
    logged: BTreeSet<(i64, String)>,
}

#[derive(Debug)]
pub(super) struct Denied {
    pub(super) reason: String,
    /// A record of which it could not be read.
    pub(super) example: Option<i64>,
}

impl Faults {
    /// Whether the log does not name this field of this record yet.
    pub(super) fn is_news(&mut self, id: i64, field: &str) -> bool {
        if self.logged.len() >= LOGGED_MAX {
            self.logged.clear();
        }
        self.logged.insert((id, field.to_owned()))
    }

    /// Names in Odoo of the fields that are left out.
    pub(super) fn denied(&self) -> BTreeSet<&str> {
        self.denied.keys().map(String::as_str).collect()
    }

    /// What is left out or `null`, why, and what to do: one line for each field and record.
    pub(super) fn remarks(&self, fields: &ModelFields, model: &str) -> Vec<String> {
        let label = |name: &str| match fields.of_odoo(name) {
            Some(field) => format!("{} ({})", field.label, field.name),
            None => name.to_owned(),
        };
        let denied =
            self.denied.iter().map(|(field, denied)| format!("field {} is not read: {}", label(field), denied.reason));
        let records = self
            .records
            .iter()
            .take(RECORDS_SHOWN_MAX)
            .flat_map(|(id, faulty)| faulty.iter().map(move |(field, reason)| (id, field, reason)));
        let records = records.map(|(id, field, reason)| {
            format!("{model} {id}: {} is reported as null: {reason}; correct it in Odoo", label(field))
        });
        let more = self.records.len().saturating_sub(RECORDS_SHOWN_MAX);
        let more = (more > 0).then(|| format!("{more} further records of {model} have fields that Odoo cannot read"));
        denied.chain(records).chain(more).collect()
    }
}
