//! The shape of a model here: which of the wanted fields there are, and how their values read.
//!
//! Promise: a record has the wanted fields that the account may read and that Odoo stores, in
//! one form for every version: no value is `null`, times are RFC 3339.

use crate::contract::odoo::Section;
use crate::odoo::read_time;
use serde_json::{Map, Value, json};

/// The fields of a contract, as this Odoo has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    fields: Vec<(String, Kind)>,
    /// Wanted, and not there: another version, or not for this account.
    pub missing: Vec<String>,
    /// Wanted, and computed anew at each reading, so that a change of it shows nowhere.
    pub not_stored: Vec<String>,
    /// Whether names of other records are read along.
    pub has_names: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Boolean,
    Time,
    Link { named: bool },
    Other,
}

/// One record as it was read.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its number.
    pub id: i64,
    /// When the transaction that wrote it began: seconds since 1970.
    pub write_date: i64,
    /// When it was made: seconds since 1970.
    pub create_date: i64,
    /// Who wrote it.
    pub write_uid: i64,
    /// The fields.
    pub record: Map<String, Value>,
}

impl Shape {
    /// Fits a section to what `fields_get` says.
    pub fn fit(section: &Section, described: &Value) -> Self {
        let mut shape = Self::default();
        for field in &section.fields {
            let Some(about) = described.get(field) else {
                shape.missing.push(field.clone());
                continue;
            };
            if about.get("store") == Some(&Value::Bool(false)) && !section.computed.contains(field) {
                shape.not_stored.push(field.clone());
                continue;
            }
            let named = section.names.contains(field);
            let kind = match about.get("type").and_then(Value::as_str) {
                Some("boolean") => Kind::Boolean,
                Some("datetime") => Kind::Time,
                Some("many2one") => {
                    shape.has_names |= named;
                    Kind::Link { named }
                }
                _ => Kind::Other,
            };
            shape.fields.push((field.clone(), kind));
        }
        shape
    }

    /// Whether nothing of what is wanted can be read.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The fields to ask for.
    pub fn wanted(&self) -> Value {
        let own = self.fields.iter().map(|(field, _)| field.as_str());
        json!(own.chain(["write_date", "write_uid", "create_date"]).collect::<Vec<_>>())
    }

    /// Reads an answer's record; `None` if it is none.
    pub fn row(&self, given: &Value) -> Option<Row> {
        let time = |field: &str| {
            let at = given.get(field).and_then(Value::as_str).and_then(read_time)?;
            Some(at.0.div_euclid(1_000_000))
        };
        let mut record = Map::new();
        for (field, kind) in &self.fields {
            let value = given.get(field).map_or(Value::Null, |value| read(value, *kind));
            record.insert(field.clone(), value);
        }
        Some(Row {
            id: given.get("id")?.as_i64()?,
            write_date: time("write_date").or_else(|| time("create_date")).unwrap_or(0),
            create_date: time("create_date").unwrap_or(0),
            write_uid: given.get("write_uid").and_then(number_of).unwrap_or(0),
            record,
        })
    }
}

/// The number of a link, in each form it comes in: `9`, `[9, "name"]`, `{"id": 9, …}`.
pub fn number_of(link: &Value) -> Option<i64> {
    match link {
        Value::Number(number) => number.as_i64(),
        Value::Array(pair) => pair.first()?.as_i64(),
        Value::Object(members) => members.get("id")?.as_i64(),
        _ => None,
    }
}

/// A value without the names of other records: two values are the same if they are without.
pub fn bare(value: &Value) -> Value {
    match (value, number_of(value)) {
        (Value::Object(_), Some(number)) => number.into(),
        _ => value.clone(),
    }
}

fn read(value: &Value, kind: Kind) -> Value {
    match (kind, value) {
        (Kind::Boolean, _) => value.clone(),
        // Odoo says `false` for nothing, whatever the type.
        (_, Value::Bool(false)) => Value::Null,
        (Kind::Time, Value::String(text)) => match read_time(text) {
            Some(at) => at.to_string().replace(".000000Z", "Z").into(),
            None => value.clone(),
        },
        (Kind::Link { named: true }, Value::Array(pair)) => json!({"id": pair.first(), "name": pair.get(1)}),
        (Kind::Link { .. }, link) => number_of(link).map_or_else(|| link.clone(), Value::from),
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
        let shape = Shape::fit(&section, &described);
        assert_eq!((&shape.missing[..], &shape.not_stored[..]), (&["gone".into()][..], &["qty_remaining".into()][..]));
        let row = shape.row(&json!({
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
