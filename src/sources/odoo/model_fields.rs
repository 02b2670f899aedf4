//! The fields of a model: which of the contract's fields this Odoo has, and how their values are converted.
//!
//! Promise: a row contains the contract's fields that the account may read and that Odoo stores, in one form for every
//! version of Odoo: under the first name of the contract, an empty value as `null`, times in RFC 3339. A value that is
//! impossible costs only itself: it is `null`, and the row names it.

use crate::contract::odoo::{Names, Section};
use crate::odoo::{impossible, read_time};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The fields of a contract that this Odoo has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelFields {
    fields: Vec<Field>,
    /// Fields that do not exist in this version or are not readable for this account, and that are not optional.
    pub missing: Vec<String>,
    /// Fields that Odoo computes at each read: it records no write when they change.
    pub not_stored: Vec<String>,
    /// Whether the names of linked records are read too.
    pub has_names: bool,
}

/// A field that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Its name in events: the first one of the contract.
    pub name: String,
    /// Its name in this Odoo.
    pub odoo_name: String,
    /// What people call it in Odoo.
    pub label: String,
    /// Model of the linked records, if it is a link.
    pub relation: Option<String>,
    /// Whether its text depends on the language.
    pub is_translated: bool,
    kind: FieldKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FieldKind {
    Boolean,
    Number,
    Time,
    Date,
    /// One of these values; any value if there are none.
    Selection(BTreeSet<String>),
    Link {
        named: bool,
    },
    Other,
}

/// One record as read from Odoo.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub id: i64,
    /// Start of the transaction that last wrote it: seconds since 1970; 0 if Odoo does not know it.
    pub write_date: i64,
    /// Time of creation: seconds since 1970; 0 if Odoo does not know it.
    pub create_date: i64,
    /// Id of the user who last wrote it.
    pub write_uid: i64,
    pub record: Map<String, Value>,
    /// By field: what Odoo has there instead of a value, or why it cannot read it. The field is `null` in the record.
    pub invalid: BTreeMap<String, String>,
}

/// Attributes of fields that the gateway asks for.
pub(crate) const ATTRIBUTES: [&str; 6] = ["type", "store", "string", "selection", "relation", "translate"];
/// The fields that every record has, which the capture needs itself.
pub(crate) const OWN_FIELDS: [&str; 3] = ["write_date", "write_uid", "create_date"];
/// Length to which an impossible value is cut.
const SHOWN_CHARS_MAX: usize = 60;

impl ModelFields {
    /// Matches the fields of a contract with the result of `fields_get`.
    pub(crate) fn resolve(section: &Section, described: &Value) -> Self {
        let mut fields = Self::default();
        for names in &section.fields {
            let Some((odoo_name, about)) = found(names, described) else {
                if !names.is_optional {
                    fields.missing.push(names.first().to_owned());
                }
                continue;
            };
            let name = names.first();
            if about.get("store") == Some(&Value::Bool(false)) && !section.computed.iter().any(|one| one == name) {
                fields.not_stored.push(name.to_owned());
                continue;
            }
            let named = section.names.iter().any(|one| one == name);
            // Events mark a state that the contract does not list; that mark needs the state.
            let is_state = section.state.as_deref() == Some(name);
            let field = Field::new(name, odoo_name, about, named, is_state);
            fields.has_names |= matches!(field.kind, FieldKind::Link { named: true });
            fields.fields.push(field);
        }
        fields
    }

    /// Whether none of the fields can be read.
    pub(crate) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The fields that are read.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter()
    }

    /// The field of this name in Odoo.
    pub(crate) fn of_odoo(&self, odoo_name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.odoo_name == odoo_name)
    }

    /// Converts a record of an answer; `None` if it has no id. A field that the answer lacks is absent from the row.
    pub(crate) fn row(&self, given: &Value) -> Option<Row> {
        let time = |field: &str| {
            let at = given.get(field).and_then(Value::as_str).and_then(read_time)?;
            Some(at.0.div_euclid(1_000_000))
        };
        let mut row = Row {
            id: given.get("id")?.as_i64()?,
            write_date: time("write_date").or_else(|| time("create_date")).unwrap_or(0),
            create_date: time("create_date").unwrap_or(0),
            write_uid: given.get("write_uid").and_then(linked_id).unwrap_or(0),
            ..Row::default()
        };
        for field in &self.fields {
            let Some(value) = given.get(&field.odoo_name) else { continue };
            let value = field.convert(value).unwrap_or_else(|what| {
                row.invalid.insert(field.name.clone(), what);
                Value::Null
            });
            row.record.insert(field.name.clone(), value);
        }
        Some(row)
    }

    /// Adds the texts of a record in a further language, as `field@language`.
    pub(crate) fn translate(&self, row: &mut Row, given: &Value, language: &str) {
        for field in &self.fields {
            let Some(value) = given.get(&field.odoo_name) else { continue };
            let Ok(value) = field.convert(value) else { continue };
            if field.is_translated {
                row.record.insert(format!("{}@{language}", field.name), value);
            } else if let (Some(name), Some(Value::Object(link))) = (value.get("name"), row.record.get_mut(&field.name))
            {
                link.insert(format!("name@{language}"), name.clone());
            }
        }
    }

    /// Names in Odoo of the fields whose texts depend on the language, names of links included.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let is_text = |field: &&Field| field.is_translated || matches!(field.kind, FieldKind::Link { named: true });
        self.fields.iter().filter(is_text).map(|field| field.odoo_name.as_str())
    }
}

/// The field that this Odoo has of a contract's names, with its description.
fn found<'a>(names: &'a Names, described: &'a Value) -> Option<(&'a str, &'a Value)> {
    let name = names.resolve(|name| described.get(name).is_some())?;
    Some((name, described.get(name)?))
}

impl Field {
    /// Makes a field from its description. A link is read with its display name if it is `named`.
    pub(crate) fn new(name: &str, odoo_name: &str, about: &Value, named: bool, is_state: bool) -> Self {
        let text = |attribute: &str| about.get(attribute).and_then(Value::as_str);
        let kind = match text("type") {
            Some("boolean") => FieldKind::Boolean,
            Some("integer" | "float" | "monetary") => FieldKind::Number,
            Some("datetime") => FieldKind::Time,
            Some("date") => FieldKind::Date,
            Some("selection") if !is_state => {
                let pairs = about.get("selection").and_then(Value::as_array).into_iter().flatten();
                FieldKind::Selection(pairs.filter_map(|pair| pair[0].as_str()).map(str::to_owned).collect())
            }
            Some("many2one") => FieldKind::Link { named },
            _ => FieldKind::Other,
        };
        Self {
            name: name.to_owned(),
            odoo_name: odoo_name.to_owned(),
            label: text("string").unwrap_or(odoo_name).to_owned(),
            relation: text("relation").map(str::to_owned),
            is_translated: about.get("translate") == Some(&Value::Bool(true)),
            kind,
        }
    }

    /// Converts a value. The error says what is there instead of one.
    pub(crate) fn convert(&self, value: &Value) -> Result<Value, String> {
        if let Some(what) = impossible_within(value) {
            return Err(what.to_owned());
        }
        let wrong = || Err(shown(value));
        Ok(match (&self.kind, value) {
            // One lot up to 18, several from 19 on: a list in every version.
            (FieldKind::Link { .. }, link) if self.name.ends_with("_ids") => linked_id(link).into_iter().collect(),
            (FieldKind::Boolean, _) => value.clone(),
            // Odoo writes an empty value of any other type as `false`.
            (_, Value::Bool(false)) => Value::Null,
            (FieldKind::Number, Value::Number(_) | Value::Null) => value.clone(),
            (FieldKind::Number, _) => return wrong(),
            (FieldKind::Time, Value::String(text)) => match read_time(text) {
                Some(at) => at.to_string().replace(".000000Z", "Z").into(),
                None => return wrong(),
            },
            (FieldKind::Date, Value::String(text)) => match text.parse::<jiff::civil::Date>() {
                Ok(date) if date.to_string() == *text => value.clone(),
                _ => return wrong(),
            },
            (FieldKind::Selection(values), Value::String(text)) if !values.is_empty() && !values.contains(text) => {
                return Err(format!("{} is none of the values that Odoo lists", shown(value)));
            }
            (FieldKind::Link { named: true }, Value::Array(pair)) => json!({"id": pair.first(), "name": pair.get(1)}),
            (FieldKind::Link { .. }, link) => linked_id(link).map_or_else(|| link.clone(), Value::from),
            _ => value.clone(),
        })
    }

    /// Whether the value is refused because Odoo does not list it: it may have been added a moment ago.
    pub(crate) fn is_unlisted(&self, value: &Value) -> bool {
        match (&self.kind, value) {
            (FieldKind::Selection(values), Value::String(text)) => !values.is_empty() && !values.contains(text),
            _ => false,
        }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What stands for an impossible value somewhere within a value.
fn impossible_within(value: &Value) -> Option<&str> {
    match value {
        Value::Object(members) => impossible(value).or_else(|| members.values().find_map(impossible_within)),
        Value::Array(items) => items.iter().find_map(impossible_within),
        _ => None,
    }
}

/// The id that a link refers to, in each form that Odoo uses: `9`, `[9, "name"]`, `{"id": 9, …}`.
pub(crate) fn linked_id(link: &Value) -> Option<i64> {
    match link {
        Value::Number(number) => number.as_i64(),
        Value::Array(pair) => pair.first()?.as_i64(),
        Value::Object(members) => members.get("id")?.as_i64(),
        _ => None,
    }
}

/// A value without what it says of a linked record. Two values are equal if they are equal in this form.
pub(crate) fn bare(value: &Value) -> Value {
    match (value, linked_id(value)) {
        (Value::Object(_), Some(number)) => number.into(),
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> Section {
        toml::from_str(&format!("model = \"mrp.workorder\"\n{text}")).expect("a section")
    }

    #[test]
    fn a_record_reads_the_same_with_and_without_names_but_for_the_names() {
        let section = section(
            r#"
            fields = ["name", "production_id", "workcenter_id", "date_start", "is_user_working", "qty_remaining", "gone", "hidden?"]
            names = ["production_id"]
            "#,
        );
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

    #[test]
    fn a_field_has_the_first_name_of_the_contract_whatever_odoo_calls_it() {
        let section = section("fields = [\"date_start|date_planned_start\", \"quantity|quantity_done\"]");
        let of = |described: Value, given: Value| {
            ModelFields::resolve(&section, &described).row(&given).expect("a row").record
        };
        let time = json!({"type": "datetime"});
        let old = of(
            json!({"date_start": time, "date_planned_start": time, "quantity_done": {"type": "float"}}),
            json!({"id": 1, "date_planned_start": "2026-11-24 06:00:00", "quantity_done": 2.0}),
        );
        let new = of(
            json!({"date_start": time, "quantity": {"type": "float"}}),
            json!({"id": 1, "date_start": "2026-11-24 06:00:00", "quantity": 2.0}),
        );
        assert_eq!(old, new);
        assert_eq!(Value::Object(new), json!({"date_start": "2026-11-24T06:00:00Z", "quantity": 2.0}));
    }

    #[test]
    fn an_impossible_value_of_any_type_costs_only_itself() {
        let section = section(
            "fields = [\"qty\", \"at\", \"day\", \"priority\", \"state\", \"tags\", \"good\"]\nstate = \"state\"",
        );
        let described = json!({
            "qty": {"type": "float"}, "at": {"type": "datetime"}, "day": {"type": "date"}, "good": {"type": "float"},
            "priority": {"type": "selection", "selection": [["0", "Normal"], ["1", "Urgent"]]},
            "state": {"type": "selection", "selection": [["draft", "Draft"]]}, "tags": {"type": "many2many"},
        });
        let fields = ModelFields::resolve(&section, &described);
        let of = |field: &str, value: Value| {
            let row = fields.row(&json!({"id": 1, field: value, "good": 1.5})).expect("a row");
            assert_eq!(row.record["good"], 1.5);
            assert_eq!(row.record[field].is_null(), row.invalid.contains_key(field), "{row:?}");
            row.invalid.get(field).cloned()
        };
        let marker = json!({"\u{0}impossible": "NaN"});
        assert_eq!(of("qty", marker.clone()), Some("NaN".into()));
        assert_eq!(of("tags", json!([1, marker])), Some("NaN".into()));
        assert_eq!(of("qty", json!("many")), Some("\"many\"".into()));
        for date in ["0000-00-00 00:00:00", "2026-02-30 10:00:00", "1-01-01 00:00:00", "2026-11-23", "infinity"] {
            assert_eq!(of("at", json!(date)), Some(format!("\"{date}\"")));
        }
        for date in ["2026-02-30", "99999-01-01", "1-01-01", "2026-11-23 10:00:00", ""] {
            assert_eq!(of("day", json!(date)), Some(format!("\"{date}\"")));
        }
        assert_eq!(of("priority", json!("9")), Some("\"9\" is none of the values that Odoo lists".into()));
        for (field, value) in [
            ("at", json!("2026-11-23 03:18:40")),
            ("day", json!("2026-11-23")),
            ("priority", json!("1")),
            ("state", json!("unheard_of")),
            ("tags", json!([1, 2])),
            ("qty", json!(-0.5)),
        ] {
            assert_eq!(of(field, value), None, "{field}");
        }
    }

    #[test]
    fn further_languages_have_names_of_their_own() {
        let section = section("fields = [\"name\", \"code\", \"product_id\"]\nnames = [\"product_id\"]");
        let described = json!({
            "name": {"type": "char", "translate": true}, "code": {"type": "char", "translate": false},
            "product_id": {"type": "many2one", "relation": "product.product"},
        });
        let fields = ModelFields::resolve(&section, &described);
        assert_eq!(fields.texts().collect::<Vec<_>>(), ["name", "product_id"]);
        let mut row =
            fields.row(&json!({"id": 1, "name": "Säge", "code": "S", "product_id": [9, "Ventil"]})).expect("a row");
        fields.translate(&mut row, &json!({"id": 1, "name": "Saw", "product_id": [9, "Valve"]}), "en_US");
        assert_eq!(
            Value::Object(row.record),
            json!({
                "name": "Säge", "name@en_US": "Saw", "code": "S",
                "product_id": {"id": 9, "name": "Ventil", "name@en_US": "Valve"},
            })
        );
    }
}
