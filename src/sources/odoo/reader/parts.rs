//! A page that Odoo cannot answer as a whole: one record or one field makes it fail.
//!
//! Promise: every record and field that Odoo can read is read. A field of one record that it cannot read is `null`, with
//! the reason. A field that it can read of no record, such as one without a right, is left out, with the reason.
//! Invariant: the number of calls for a page is bounded. Past it, the rest of a field is left out.

use super::super::model_fields::Row;
use super::faults::{Denied, RECORDS_MAX};
use super::{ModelReader, PAGE_ROWS, RawPage, ids, server_seconds, written_since};
use crate::odoo::OdooError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Calls for one page: enough for four fields of three records each in a page of 200.
const CALLS_MAX: usize = 200;
/// Single records of which a field is tried before it counts as one that cannot be read at all.
const SAMPLES: usize = 3;
/// The rows of a page while its parts are read.
struct Parts {
    /// By id: the fields that were read.
    rows: BTreeMap<i64, Map<String, Value>>,
    calls: usize,
    took: Duration,
}

impl Parts {
    fn merge(&mut self, answer: &Value) {
        for given in answer.as_array().into_iter().flatten().filter_map(Value::as_object) {
            let Some(row) = given.get("id").and_then(Value::as_i64).and_then(|id| self.rows.get_mut(&id)) else {
                continue;
            };
            row.extend(given.iter().map(|(field, value)| (field.clone(), value.clone())));
        }
    }
}

/// What a field that cannot be read of a whole page turned out to be.
enum Verdict {
    /// These records have a value that Odoo cannot read.
    Records(Vec<(i64, String)>),
    /// No record can be read.
    Denied(String),
}

impl ModelReader {
    /// Reads the records of a domain whose page failed, with everything that Odoo can read. `whole` is the error of the
    /// page; it is returned if no part fails, or if the records themselves cannot be found.
    pub(super) async fn read_in_parts(&mut self, domain: &[Value], whole: OdooError) -> Result<RawPage, OdooError> {
        let arguments = json!({"domain": domain, "order": "id", "limit": PAGE_ROWS});
        let answer = self.call("search", None, arguments).await?;
        let found = ids(&answer);
        let empty_row = |id: &i64| (*id, Map::from_iter([("id".to_owned(), json!(id))]));
        let mut parts = Parts { rows: found.iter().map(empty_row).collect(), calls: 0, took: answer.took };
        let failing = self.read_good_fields(&found, &mut parts).await?;
        let is_nothing_read = failing.len() >= self.field_names().len();
        if is_nothing_read || failing.is_empty() && found.is_empty() {
            return Err(whole);
        }
        for (field, error) in failing {
            match self.judge(&field, &error, &found, &mut parts).await? {
                Verdict::Records(faulty) => {
                    for (id, reason) in faulty {
                        self.note_faulty(id, &field, &reason);
                        let given = json!({"\u{0}impossible": reason});
                        if let Some(row) = parts.rows.get_mut(&id) {
                            row.insert(field.clone(), given);
                        }
                    }
                }
                Verdict::Denied(reason) => {
                    parts.rows.values_mut().for_each(|row| drop(row.remove(&field)));
                    tracing::warn!(
                        model = self.model(),
                        field,
                        reason,
                        "a field cannot be read; the other fields are read, will retry in minutes"
                    );
                    self.faults.denied.insert(field, Denied { reason, example: found.first().copied() });
                }
            }
        }
        let rows = parts.rows.into_values().map(Value::Object).collect();
        Ok(RawPage { rows, server_seconds: server_seconds(&answer), took: parts.took })
    }

    /// Reads the fields that can be read of all these records; returns the others with their errors.
    async fn read_good_fields(&self, found: &[i64], parts: &mut Parts) -> Result<Vec<(String, OdooError)>, OdooError> {
        let fields = self.field_names();
        let mut failing = Vec::new();
        let mut stack = vec![&fields[..]];
        while let Some(some) = stack.pop() {
            match (self.read_part(found, some, parts).await, some) {
                (Ok(()), _) => {}
                (Err(error), [field]) if error.may_be_partial() => failing.push((field.clone(), error)),
                (Err(error), _) if error.may_be_partial() => {
                    let (left, right) = some.split_at(some.len() / 2);
                    stack.extend([right, left]);
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(failing)
    }

    async fn read_part(&self, some: &[i64], fields: &[String], parts: &mut Parts) -> Result<(), OdooError> {
        parts.calls += 1;
        let domain = [json!(["id", "in", some])];
        let answer = self.read_rows(&domain, fields, PAGE_ROWS).await?;
        parts.took += answer.took;
        parts.merge(&answer.value);
        Ok(())
    }

    /// Finds out whether a field cannot be read of some records, or of none.
    async fn judge(
        &self,
        field: &String,
        error: &OdooError,
        found: &[i64],
        parts: &mut Parts,
    ) -> Result<Verdict, OdooError> {
        let one = std::slice::from_ref(field);
        let denied = || Ok(Verdict::Denied(error.to_string()));
        // Records at both ends and in the middle, and others if there are few.
        let mut samples: BTreeSet<i64> = [0, found.len() / 2, found.len().saturating_sub(1)]
            .into_iter()
            .filter_map(|index| found.get(index).copied())
            .collect();
        if samples.len() < SAMPLES {
            let others = vec![json!(["id", "not in", found])];
            samples.extend(self.search(others, SAMPLES - samples.len()).await?);
        }
        let mut is_readable = false;
        for id in &samples {
            match self.read_part(&[*id], one, parts).await {
                Ok(()) => {
                    is_readable = true;
                    break;
                }
                Err(error) if error.may_be_partial() => {}
                Err(error) => return Err(error),
            }
        }
        // With a single record in the whole model that cannot be known; a missing right concerns the field.
        let is_alone = samples.len() == 1 && !error.is_access();
        if !is_readable && !is_alone {
            return denied();
        }
        let mut faulty = Vec::new();
        let mut stack = vec![found];
        while let Some(some) = stack.pop() {
            if parts.calls >= CALLS_MAX {
                return denied();
            }
            match (self.read_part(some, one, parts).await, some) {
                (Ok(()), _) => {}
                (Err(error), [id]) if error.may_be_partial() => faulty.push((*id, error.to_string())),
                (Err(error), _) if error.may_be_partial() => {
                    let (left, right) = some.split_at(some.len() / 2);
                    stack.extend([right, left]);
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(Verdict::Records(faulty))
    }

    fn note_faulty(&mut self, id: i64, field: &str, reason: &str) {
        let records = &mut self.faults.records;
        if records.len() < RECORDS_MAX || records.contains_key(&id) {
            records.entry(id).or_default().insert(field.to_owned(), reason.to_owned());
        }
        if self.faults.is_news(id, field) {
            tracing::warn!(
                model = self.model(),
                id,
                field,
                reason,
                "a field of a record cannot be read: it is reported as null, the other fields as they are; correct it in Odoo"
            );
        }
    }

    /// The records that pages leave out, because Odoo cannot read all of their fields.
    pub(in super::super) fn faulty(&self) -> Vec<i64> {
        self.faults.records.keys().copied().collect()
    }

    /// Reads the records that pages leave out and that were written since a time. One that Odoo can read again is in
    /// pages again.
    pub(in super::super) async fn faulty_rows(&mut self, since: i64) -> Result<Vec<Row>, OdooError> {
        let faulty = self.faulty();
        if faulty.is_empty() {
            return Ok(Vec::new());
        }
        let condition = vec![json!(["id", "in", faulty]), written_since(since)];
        let written = self.search(condition, faulty.len()).await?;
        let mut rows = Vec::new();
        for id in written {
            let domain = [json!(["id", "=", id])];
            self.faults.records.remove(&id);
            let mut page = match self.read_rows(&domain, &self.field_names(), 1).await {
                Ok(answer) => RawPage::from(&answer),
                Err(error) if error.may_be_partial() => self.read_in_parts(&domain, error).await?,
                Err(error) => return Err(error),
            };
            rows.extend(self.rows(&mut page).await?);
        }
        Ok(rows)
    }

    /// Tries again to read the fields that are left out; returns what has changed.
    pub(super) async fn retry_denied(&mut self) -> Result<Vec<String>, OdooError> {
        let mut changes = Vec::new();
        let denied: Vec<(String, Option<i64>)> =
            self.faults.denied.iter().map(|(field, denied)| (field.clone(), denied.example)).collect();
        for (field, example) in denied {
            let is_there = self.fields().is_some_and(|fields| fields.of_odoo(&field).is_some());
            let domain = example.map(|id| json!(["id", "=", id]));
            let domain: Vec<Value> = domain.into_iter().collect();
            let read = match is_there {
                true => self.read_rows(&domain, std::slice::from_ref(&field), 1).await.map(drop),
                // Without the field there is nothing to try; it is missing.
                false => Ok(()),
            };
            match read {
                Ok(()) => {
                    self.faults.denied.remove(&field);
                    if is_there {
                        changes.push(format!("field {field} can be read"));
                    }
                }
                Err(error) if error.may_be_partial() => {
                    let reason = error.to_string();
                    if let Some(denied) = self.faults.denied.get_mut(&field) {
                        denied.reason = reason;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(changes)
    }
}
