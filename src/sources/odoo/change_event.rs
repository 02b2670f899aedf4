//! The change event: the names that a contract gives to the change of a record, and the payload of its event.

use super::model_fields::{Row, bare};
use crate::contract::odoo::{Change, OnInvalid, Rule, Section};
use crate::event::Timestamp;
use crate::odoo::write_time;
use serde_json::{Map, Value, json};

/// How a row came to be read, as far as it matters for the name of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// The first load of the contract read it.
    FirstLoad,
    /// The operator asked for another first load: every record is reported once more.
    Again,
    /// The record was created after the first load began.
    New,
    /// The record is older; it may have been written.
    Written,
    /// The record is older, and the account could not see it before.
    Visible,
}

/// A change of a field: its name, its earlier value and its new value.
pub(crate) type FieldChange = (String, Value, Value);

/// The difference between a row and the known record.
#[derive(Debug)]
pub(crate) struct Difference<'a> {
    /// How the row came to be read.
    pub occasion: Occasion,
    /// The known fields; `None` if the record was not known.
    pub old: Option<&'a Map<String, Value>>,
    /// The fields that differ.
    pub changed: Vec<FieldChange>,
    /// Fields that have a value and were never reported.
    pub learned: Vec<String>,
}

impl Difference<'_> {
    /// The difference to a record that was not known.
    pub(crate) fn unknown(occasion: Occasion) -> Self {
        Self { occasion, old: None, changed: Vec::new(), learned: Vec::new() }
    }
}

/// Returns the fields that differ, with their old and new values. Ignores fields that only one side has.
pub(crate) fn changes(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<FieldChange> {
    let both = new.iter().filter_map(|(field, new)| Some((field, old.get(field)?, new)));
    both.filter(|(_, old, new)| bare(old) != bare(new))
        .map(|(field, old, new)| (field.clone(), old.clone(), new.clone()))
        .collect()
}

/// Returns the names of a change, in the order of the contract's rules; the first one names the event.
pub(crate) fn names(
    section: &Section,
    occasion: Occasion,
    old: Option<&Map<String, Value>>,
    new: &Map<String, Value>,
) -> Vec<String> {
    let mut names: Vec<String> = match occasion {
        Occasion::FirstLoad | Occasion::Again => return vec!["loaded".into()],
        Occasion::Visible => vec!["visible".into()],
        Occasion::New | Occasion::Written => Vec::new(),
    };
    for rule in &section.event {
        let state = section.state.as_ref().and_then(|field| new.get(field)).map(word);
        let is_during = rule.during.is_empty() || state.is_some_and(|state| rule.during.contains(&state));
        if is_during && applies(rule, occasion, old, new) && !names.contains(&rule.name) {
            names.push(rule.name.clone());
        }
    }
    let is_new = occasion == Occasion::New && old.is_none();
    if is_new && !section.event.iter().any(|rule| rule.change == Some(Change::Created)) {
        names.push("created".into());
    }
    if names.is_empty() {
        names.push("changed".into());
    }
    names
}

fn applies(rule: &Rule, occasion: Occasion, old: Option<&Map<String, Value>>, new: &Map<String, Value>) -> bool {
    if rule.only.as_ref().is_some_and(|field| !has_value(new.get(field))) {
        return false;
    }
    if rule.change == Some(Change::Created) {
        return occasion == Occasion::New && old.is_none();
    }
    let Some(field) = &rule.field else { return false };
    let Some(now) = new.get(field) else { return false };
    let before = old.and_then(|old| old.get(field));
    // Without a known earlier value there is no change, unless the record is new.
    if before.is_none() && occasion != Occasion::New {
        return false;
    }
    let differs = before.is_none_or(|before| bare(before) != bare(now));
    if let Some(other) = &rule.above {
        let is_above = |record: &Map<String, Value>| match (number(record.get(field)), number(record.get(other))) {
            (Some(one), Some(two)) => one > two && two > 0.0,
            _ => false,
        };
        return is_above(new) && !old.is_some_and(is_above);
    }
    if !differs {
        return false;
    }
    match rule.change {
        Some(Change::Any) => before.is_some(),
        Some(Change::Set) => has_value(Some(now)) && !has_value(before),
        Some(Change::Cleared) => !has_value(Some(now)) && has_value(before),
        Some(Change::Rises) => number(Some(now)) > number(before).or(Some(0.0)),
        Some(Change::Created) => false,
        None => {
            // A new record has no earlier value; it satisfies every `from`.
            let is_from = rule.from.is_empty() || before.is_none_or(|before| rule.from.contains(&word(before)));
            is_from && (rule.to.is_empty() || rule.to.contains(&word(now)))
        }
    }
}

fn number(value: Option<&Value>) -> Option<f64> {
    value.and_then(Value::as_f64)
}

fn has_value(value: Option<&Value>) -> bool {
    !matches!(value, None | Some(Value::Null | Value::Bool(false)))
}

/// A value in the notation of the contract's rules.
fn word(value: &Value) -> String {
    match bare(value) {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The context of a payload: everything besides the record itself.
pub(crate) struct EventContext<'a> {
    /// System of record of the contract.
    pub system_of_record: &'a str,
    pub section: &'a Section,
    /// User id of the gateway's own account.
    pub own_id: i64,
}

impl EventContext<'_> {
    /// The payload for a record that exists.
    pub(crate) fn written(&self, row: &Row, difference: &Difference<'_>) -> Value {
        let names = names(self.section, difference.occasion, difference.old, &row.record);
        let mut payload = self.common(row.id, &names, &row.record);
        let entry = |(field, old, new): &FieldChange| {
            let mut entry = json!({"from": old, "to": new});
            if let Some(owner) = self.section.system_of_record.get(field) {
                entry["system_of_record"] = owner.as_str().into();
            }
            (field.clone(), entry)
        };
        payload["changed"] = Value::Object(difference.changed.iter().map(entry).collect());
        payload["write_date"] = rfc3339(row.write_date);
        if !difference.learned.is_empty() {
            payload["learned"] = json!(difference.learned);
        }
        if !row.invalid.is_empty() {
            payload["invalid"] = json!(row.invalid);
        }
        if row.write_uid == self.own_id && self.own_id > 0 {
            payload["echo"] = true.into();
        }
        payload["record"] = Value::Object(row.record.clone());
        payload
    }

    /// Why the contract refuses the event of a row, starting with the field.
    pub(crate) fn refusal(&self, row: &Row) -> Option<String> {
        let (field, what) = row.invalid.first_key_value()?;
        (self.section.on_invalid == OnInvalid::DeadLetter)
            .then(|| format!("record.{field}: {what} cannot be reported; correct it in Odoo"))
    }

    /// The payload for a record that is deleted or hidden: its last known fields.
    pub(crate) fn gone(&self, id: i64, write_date: i64, record: &Map<String, Value>, name: &str) -> Value {
        let mut payload = self.common(id, &[name.to_owned()], record);
        payload["changed"] = json!({});
        payload["write_date"] = rfc3339(write_date);
        payload["record"] = Value::Object(record.clone());
        payload
    }

    fn common(&self, id: i64, names: &[String], record: &Map<String, Value>) -> Value {
        let mut payload = json!({
            "event": names.first(), "events": names, "model": self.section.model.first(), "id": id,
            "system_of_record": self.system_of_record,
        });
        if let Some(reference) = self.section.reference.as_ref().and_then(|field| record.get(field)) {
            let name = reference.get("name").unwrap_or(reference);
            payload["reference"] = name.clone();
        }
        if let Some(field) = &self.section.state {
            let state = record.get(field).cloned().unwrap_or_default();
            let is_known = self.section.states.is_empty() || self.section.states.contains(&word(&state));
            payload["state"] = state;
            if !is_known {
                payload["unknown_state"] = true.into();
            }
            if let Some(owner) = self.section.system_of_record.get(field) {
                payload["system_of_record"] = owner.as_str().into();
            }
        }
        if !self.section.system_of_record.is_empty() {
            payload["owned_elsewhere"] = json!(self.section.system_of_record);
        }
        payload
    }
}

fn rfc3339(seconds: i64) -> Value {
    let text = write_time(Timestamp(seconds.saturating_mul(1_000_000)));
    format!("{}Z", text.replace(' ', "T")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        toml::from_str(
            r#"
            model = "mrp.production"
            state = "state"
            fields = ["state", "product_qty", "date_start", "qty_producing", "date_end", "duration", "expected", "raw", "active"]
            [[event]]
            name = "done"
            field = "state"
            to = ["done"]
            [[event]]
            name = "released"
            field = "state"
            from = ["draft"]
            to = ["confirmed"]
            [[event]]
            name = "quantity_changed"
            field = "product_qty"
            change = "any"
            [[event]]
            name = "progressed"
            field = "qty_producing"
            change = "rises"
            [[event]]
            name = "ended"
            field = "date_end"
            change = "set"
            [[event]]
            name = "overrun"
            field = "duration"
            above = "expected"
            [[event]]
            name = "paused"
            field = "duration"
            change = "rises"
            during = ["progress"]
            [[event]]
            name = "consumed"
            field = "state"
            to = ["done"]
            only = "raw"
            [[event]]
            name = "archived"
            field = "active"
            to = ["false"]
            "#,
        )
        .expect("a section")
    }

    fn check(old: Value, new: Value, expected: &[&str]) {
        let (old, new) = (old.as_object().cloned(), new.as_object().cloned().expect("an object"));
        let occasion = if old.is_some() { Occasion::Written } else { Occasion::New };
        assert_eq!(names(&section(), occasion, old.as_ref(), &new), expected, "{old:?} → {new:?}");
    }

    #[test]
    fn changes_get_the_names_that_the_contract_gives_them() {
        section().check().expect("a good section");
        check(json!({"state": "draft"}), json!({"state": "confirmed"}), &["released"]);
        check(json!({"state": "progress"}), json!({"state": "confirmed"}), &["changed"]);
        check(json!({"state": "draft"}), json!({"state": "a_new_one"}), &["changed"]);
        check(json!({"state": "x", "raw": null}), json!({"state": "done", "raw": null}), &["done"]);
        check(json!({"state": "x", "raw": 4}), json!({"state": "done", "raw": 4}), &["done", "consumed"]);
        check(
            json!({"product_qty": 3, "state": "draft"}),
            json!({"product_qty": 4, "state": "confirmed"}),
            &["released", "quantity_changed"],
        );
        check(json!({"qty_producing": 1.0}), json!({"qty_producing": 2.5}), &["progressed"]);
        check(json!({"qty_producing": 2.5}), json!({"qty_producing": 0.0}), &["changed"]);
        check(json!({"date_end": null}), json!({"date_end": "2026-11-23T03:18:40Z"}), &["ended"]);
        check(json!({"duration": 4.0, "expected": 5.0}), json!({"duration": 5.5, "expected": 5.0}), &["overrun"]);
        check(json!({"duration": 6.0, "expected": 5.0}), json!({"duration": 7.5, "expected": 5.0}), &["changed"]);
        check(
            json!({"duration": 1.0, "state": "progress"}),
            json!({"duration": 2.0, "state": "progress"}),
            &["paused"],
        );
        check(json!({"duration": 1.0, "state": "progress"}), json!({"duration": 2.0, "state": "done"}), &["done"]);
        check(json!({"active": true}), json!({"active": false}), &["archived"]);
        check(Value::Null, json!({"state": "draft"}), &["created"]);
        check(Value::Null, json!({"state": "done"}), &["done", "created"]);
        let new = json!({"state": "done"});
        let new = new.as_object().expect("an object");
        assert_eq!(names(&section(), Occasion::Written, None, new), ["changed"], "what it was before is not known");
        assert_eq!(names(&section(), Occasion::FirstLoad, None, new), ["loaded"]);
    }
}
