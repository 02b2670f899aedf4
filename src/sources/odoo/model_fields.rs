//! The fields of a model: which of the contract's fields this Odoo has, and how their values are converted.
//!
//! Promise: a row contains the contract's fields that the account may read and that Odoo stores, in one form for every
//! version of Odoo: an empty value is `null`, times are RFC 3339.

use crate::contract::odoo::Section;
use crate::odoo::read_time;
use serde_json::{Map, Value, json};

/// The fields of a contract that this Odoo has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFields {
    fields: Vec<(String, FieldType)>,
    /// Fields that do not exist in this version or are not readable for this account.
    pub missing: Vec<String>,
    /// Fields that Odoo computes at each read: it records no write when they change.
    pub not_stored: Vec<String>,
    /// Whether the names of linked records are read too.
    pub has_names: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldType {
    Boolean,
    Time,
    Link { named: bool },
    Other,
}

/// One record as read from Odoo.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: i64,
    /// Start of the transaction that last wrote it: seconds since 1970.
    pub write_date: i64,
    /// Time of creation: seconds since 1970.
    pub create_date: i64,
    /// Id of the user who last wrote it.
    pub write_uid: i64,
    pub record: Map<String, Value>,
}

impl ModelFields {
    /// Matches the fields of a contract with the result of `fields_get`.
    pub fn resolve(section: &Section, described: &Value) -> Self {
        let mut fields = Self::default();
        for field in &section.fields {
            let Some(about) = described.get(field) else {
                fields.missing.push(field.clone());
                continue;
            };
            if about.get("store") == Some(&Value::Bool(false)) && !section.computed.contains(field) {
                fields.not_stored.push(field.clone());
                continue;
            }
            let named = section.names.contains(field);
            let field_type = match about.get("type").and_then(Value::as_str) {
                Some("boolean") => FieldType::Boolean,
                Some("datetime") => FieldType::Time,
                Some("many2one") => {
                    fields.has_names |= named;
                    FieldType::Link { named }
                }
                _ => FieldType::Other,
            };
            fields.fields.push((field.clone(), field_type));
        }
        fields
    }

    /// Whether none of the fields can be read.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The names of the fields to read, including those that the capture needs itself.
    pub fn names(&self) -> Value {
        let own = self.fields.iter().map(|(field, _)| field.as_str());
        json!(own.chain(["write_date", "write_uid", "create_date"]).collect::<Vec<_>>())
    }

    /// Converts a record of an answer; `None` if it has no id.
    pub fn row(&self, given: &Value) -> Option<Row> {
        let time = |field: &str| {
            let at = given.get(field).and_then(Value::as_str).and_then(read_time)?;
            Some(at.0.div_euclid(1_000_000))
        };
        let mut record = Map::new();
        for (field, field_type) in &self.fields {
            let value = given.get(field).map_or(Value::Null, |value| convert(value, *field_type));
            record.insert(field.clone(), value);
        }
        Some(Row {
            id: given.get("id")?.as_i64()?,
            write_date: time("write_date").or_else(|| time("create_date")).unwrap_or(0),
            create_date: time("create_date").unwrap_or(0),
            write_uid: given.get("write_uid").and_then(linked_id).unwrap_or(0),
            record,
        })
    }
}

/// The id that a link refers to, in each form that Odoo uses: `9`, `[9, "name"]`, `{"id": 9, …}`.
pub fn linked_id(link: &Value) -> Option<i64> {
    match link {
        Value::Number(number) => number.as_i64(),
        Value::Array(pair) => pair.first()?.as_i64(),
        Value::Object(members) => members.get("id")?.as_i64(),
        _ => None,
    }
}

/// A value without the name of a linked record. Two values are equal if they are equal in this form.
pub fn bare(value: &Value) -> Value {
    match (value, linked_id(value)) {
        (Value::Object(_), Some(number)) => number.into(),
        _ => value.clone(),
    }
}

fn convert(value: &Value, field_type: FieldType) -> Value {
    match (field_type, value) {
        (FieldType::Boolean, _) => value.clone(),
        // Odoo writes an empty value of any type as `false`.
        (_, Value::Bool(false)) => Value::Null,
        (FieldType::Time, Value::String(text)) => match read_time(text) {
            Some(at) => at.to_string().replace(".000000Z", "Z").into(),
            None => value.clone(),
        },
        (FieldType::Link { named: true }, Value::Array(pair)) => json!({"id": pair.first(), "name": pair.get(1)}),
        (FieldType::Link { .. }, link) => linked_id(link).map_or_else(|| link.clone(), Value::from),
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_the_same_with_and_without_names_but_for_the_names() {
        let section: Section = toml::from_str(
            r#"
            model = "mrp.workorder"
            fields = ["name", "production_id", "workcenter_id", "date_start", "is_user_working", "qty_remaining", "gone"]
            names = ["production_id"]
            "#,
        )
        .expect("a section");
        let described = json!({
            "name": {"type": "char", "store": true}, "production_id": {"type": "many2one", "store": true},
            "workcenter_id": {"type": "many2one", "store": true}, "date_start": {"type": "datetime", "store": true},
            "is_user_working": {"type": "boolean", "store": true}, "qty_remaining": {"type": "float", "store": false},
        });
        let fields = ModelFields::resolve(&section, &described);
        assert_eq!(
            (&fields.missing[..], &fields.not_stored[..]),
            (&["gone".into()][..], &["qty_remaining".into()][..])
        );
        let row = fields.row(&json!({
            "id": 3, "name": false, "production_id": [40, "WH/MO/00039"], "workcenter_id": [2, "Sawing"],
            "date_start": "2026-11-23 03:18:40", "is_user_working": false, "write_date": "2026-11-23 03:18:41",
            "create_date": "2026-11-23 03:18:00", "write_uid": [5, "Plant gateway"],
        }));
        let row = row.expect("a row");
        assert_eq!(
            Value::Object(row.record.clone()),
            json!({
                "name": null, "production_id": {"id": 40, "name": "WH/MO/00039"}, "workcenter_id": 2,
                "date_start": "2026-11-23T03:18:40Z", "is_user_working": false,
            })
        );
        assert_eq!((row.write_uid, row.write_date - row.create_date), (5, 41));
        assert_eq!(bare(&row.record["production_id"]), json!(40));
    }
}
