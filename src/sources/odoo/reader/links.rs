//! Fields of linked records that a contract includes with a link: the code of a product, the reference of a customer.
//!
//! Promise: a right that is missing on a linked model costs these fields alone.
//! Invariant: the memory is bounded, and what is remembered is younger than [`AGE_MAX`].

use super::super::model_fields::{ATTRIBUTES, Field, Row, linked_id};
use super::linked_records::{Link, RECORDS_MAX};
use super::{LANGUAGE, ModelReader};
use crate::clock;
use crate::contract::odoo::Names;
use crate::odoo::OdooError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Age up to which the fields of a linked record are used again: the changes of one order follow within seconds.
const AGE_MAX: Duration = Duration::from_secs(30);
impl ModelReader {
    /// Adds the fields of linked records to rows.
    pub(in super::super) async fn add_linked(&mut self, rows: &mut [Row]) -> Result<(), OdooError> {
        let wanted: Vec<(String, Vec<Names>)> =
            self.section.linked.iter().map(|(link, names)| (link.clone(), names.clone())).collect();
        for (link, names) in wanted {
            let Some(relation) = self.relation(&link) else { continue };
            let linked: BTreeSet<i64> =
                rows.iter().filter_map(|row| row.record.get(&link)).filter_map(linked_id).collect();
            if linked.is_empty() {
                continue;
            }
            let mut about = self.linked.links.remove(&link).unwrap_or_default();
            let read = self.read_linked(&relation, &names, &linked, &mut about).await;
            for row in rows.iter_mut() {
                add(row, &link, &about.records);
            }
            self.linked.links.insert(link, about);
            read?;
        }
        Ok(())
    }

    /// Model of the records that a link leads to.
    fn relation(&self, link: &str) -> Option<String> {
        self.fields()?.iter().find(|field| field.name == link)?.relation.clone()
    }

    /// Reads the linked records that are not known.
    async fn read_linked(
        &self,
        relation: &str,
        names: &[Names],
        linked: &BTreeSet<i64>,
        about: &mut Link,
    ) -> Result<(), OdooError> {
        if about.problem.is_some() {
            return Ok(());
        }
        let now = clock::instant();
        if about.read_at.is_none_or(|at| now.duration_since(at) > AGE_MAX) || about.records.len() > RECORDS_MAX {
            about.records.clear();
            about.read_at = Some(now);
        }
        let unknown: Vec<i64> = linked.iter().copied().filter(|id| !about.records.contains_key(id)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        match self.read_unknown(relation, names, &unknown, about).await {
            Err(error) if error.may_be_partial() => {
                about.problem = Some(error.to_string());
                Ok(())
            }
            read => read,
        }
    }

    async fn read_unknown(
        &self,
        relation: &str,
        names: &[Names],
        unknown: &[i64],
        about: &mut Link,
    ) -> Result<(), OdooError> {
        if about.fields.is_none() {
            let all: BTreeSet<&str> = names.iter().flat_map(Names::all).collect();
            let arguments = json!({"allfields": all, "attributes": ATTRIBUTES, "context": {"lang": LANGUAGE}});
            let described = self.call_of(relation, "fields_get", None, arguments).await?.value;
            let field = |names: &Names| {
                let name = names.resolve(|name| described.get(name).is_some())?;
                Some(Field::new(names.first(), name, &described[name], false, false))
            };
            about.fields = Some(names.iter().filter_map(field).collect());
        }
        let fields = about.fields.as_deref().unwrap_or_default();
        if fields.is_empty() {
            return Ok(());
        }
        let odoo_names: Vec<&str> = fields.iter().map(|field| field.odoo_name.as_str()).collect();
        let mut arguments = json!({"fields": odoo_names, "load": Value::Null});
        arguments["context"] = self.context(self.main_language());
        let answer = self.call_of(relation, "read", Some(unknown), arguments).await?;
        for given in answer.value.as_array().into_iter().flatten() {
            let Some(id) = given.get("id").and_then(Value::as_i64) else { continue };
            let member = |field: &Field| Some((field.name.clone(), field.convert(given.get(&field.odoo_name)?).ok()?));
            about.records.insert(id, fields.iter().filter_map(member).collect());
        }
        Ok(())
    }
}

/// Makes an object of a link, with its number, its name if it has one, and the fields of the linked record.
fn add(row: &mut Row, link: &str, records: &HashMap<i64, Map<String, Value>>) {
    let Some(value) = row.record.get_mut(link) else { return };
    let Some((id, fields)) = linked_id(value).and_then(|id| Some((id, records.get(&id)?))) else { return };
    if !value.is_object() {
        *value = json!({"id": id});
    }
    if let Value::Object(members) = value {
        members.extend(fields.iter().map(|(field, value)| (field.clone(), value.clone())));
    }
}
