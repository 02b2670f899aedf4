//! What a contract reads of a model of Odoo, and which changes mean something to the business.
//!
//! Promise: a section that passes [`Section::check`] names nothing that it does not read.

use crate::setting::Span;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// `[odoo]` of a contract.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The model, such as `mrp.production`.
    pub model: String,
    /// The fields that are read, and no other: names of persons and prices are read only if they stand here.
    pub fields: Vec<String>,
    /// Those of the fields that lead to another record whose name goes along with its number.
    #[serde(default)]
    pub names: Vec<String>,
    /// Those of the fields that are read though Odoo does not store them: a change of one alone may show late.
    #[serde(default)]
    pub computed: Vec<String>,
    /// The field that people know a record by.
    pub reference: Option<String>,
    /// Which records there are for this contract, as a domain of Odoo. It must not hold what changes in a record's life.
    #[serde(default)]
    pub domain: Vec<Value>,
    /// Which of these the first load takes: mostly those that are still open.
    #[serde(default)]
    pub load: Vec<Value>,
    /// Number of the company, where only one counts.
    pub company: Option<i64>,
    /// How often changes are asked for.
    #[serde(default = "interval")]
    pub interval: Span,
    /// The field that holds the state.
    pub state: Option<String>,
    /// States that are known; others pass with a mark.
    #[serde(default)]
    pub states: Vec<String>,
    /// States that a record seldom leaves.
    #[serde(default)]
    pub last_states: Vec<String>,
    /// The field that has a value once a record has ended, where no state says so.
    pub ended_by: Option<String>,
    /// Values of fields with which a record has ended, whatever its state.
    #[serde(default)]
    pub ended_when: BTreeMap<String, Vec<String>>,
    /// How long ago a record may have been written for the first load to take it. One that nobody has written for
    /// so long is forgotten, though it has not ended; none, for ever.
    pub recent: Option<Span>,
    /// Fields that another system owns, with its name.
    #[serde(default)]
    pub system_of_record: BTreeMap<String, String>,
    /// What changes mean, the most telling first.
    #[serde(default)]
    pub event: Vec<Rule>,
}

fn interval() -> Span {
    Span(Duration::from_secs(5))
}

/// A change that has a name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The name, such as `released`.
    pub name: String,
    /// The field that changes.
    pub field: Option<String>,
    /// To one of these values.
    #[serde(default)]
    pub to: Vec<String>,
    /// From one of these values.
    #[serde(default)]
    pub from: Vec<String>,
    /// How it changes, where values do not say it.
    pub change: Option<Change>,
    /// The field that it rises above.
    pub above: Option<String>,
    /// Only for records where this field has a value.
    pub only: Option<String>,
    /// Only while the record is in one of these states.
    #[serde(default)]
    pub during: Vec<String>,
}

/// How a field changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// In any way.
    Any,
    /// From nothing to a value.
    Set,
    /// From a value to nothing.
    Cleared,
    /// To a larger number.
    Rises,
    /// The record is new.
    Created,
}

/// The shortest interval: Odoo is there for people.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
const RECENT: (Duration, Duration) = (Duration::from_secs(86_400), Duration::from_secs(3650 * 86_400));

impl Section {
    /// Checks values against each other: key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: String| Err((key.to_owned(), message));
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b))
        };
        if !is_word(&self.model) {
            return wrong("model", format!("\"{}\" is no model; expected one such as \"mrp.production\"", self.model));
        }
        if self.fields.is_empty() {
            return wrong("fields", "[] reads nothing; list the fields that events carry".into());
        }
        if let Some(field) = self.fields.iter().find(|field| !is_word(field) || field.contains('.')) {
            return wrong("fields", format!("\"{field}\" is no field; expected one such as \"date_start\""));
        }
        for given in ["id", "write_date", "write_uid", "create_date"] {
            if self.fields.iter().any(|field| field == given) {
                return wrong("fields", format!("\"{given}\" is always read; leave it out"));
            }
        }
        if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&self.interval.0) {
            return wrong("interval", format!("{} is out of bounds; 500ms to 1h are allowed", self.interval));
        }
        if let Some(recent) = self.recent
            && !(RECENT.0..=RECENT.1).contains(&recent.0)
        {
            return wrong("recent", format!("{recent} is out of bounds; 1d to 3650d are allowed"));
        }
        let mut named: Vec<(String, &String)> = Vec::new();
        named.extend(self.names.iter().map(|field| ("names".to_owned(), field)));
        named.extend(self.computed.iter().map(|field| ("computed".to_owned(), field)));
        named.extend(self.reference.iter().map(|field| ("reference".to_owned(), field)));
        named.extend(self.ended_by.iter().map(|field| ("ended_by".to_owned(), field)));
        named.extend(self.ended_when.keys().map(|field| ("ended_when".to_owned(), field)));
        named.extend(self.state.iter().map(|field| ("state".to_owned(), field)));
        named.extend(self.system_of_record.keys().map(|field| ("system_of_record".to_owned(), field)));
        for (index, rule) in self.event.iter().enumerate() {
            let key = |part: &str| format!("event[{index}].{part}");
            rule.check().map_err(|(part, message)| (key(part), message))?;
            named.extend(rule.field.iter().map(|field| (key("field"), field)));
            named.extend(rule.above.iter().map(|field| (key("above"), field)));
            named.extend(rule.only.iter().map(|field| (key("only"), field)));
            if !rule.during.is_empty() && self.state.is_none() {
                return wrong(&key("during"), "needs odoo.state, the field that holds the state".into());
            }
        }
        match named.iter().find(|(_, field)| !self.fields.contains(field)) {
            Some((key, field)) => wrong(key, format!("\"{field}\" is not in odoo.fields; add it there")),
            None => Ok(()),
        }
    }
}

impl Rule {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.name.is_empty() || !self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            return Err(("name", format!("\"{}\" is no name; a-z, 0-9 and \"_\" are allowed", self.name)));
        }
        let says = usize::from(!self.to.is_empty() || !self.from.is_empty())
            + usize::from(self.change.is_some())
            + usize::from(self.above.is_some());
        if says != 1 {
            return Err((
                "name",
                format!("\"{}\" needs one of to (with or without from), change and above", self.name),
            ));
        }
        if self.field.is_none() && self.change != Some(Change::Created) {
            return Err(("field", format!("\"{}\" does not say which field changes", self.name)));
        }
        Ok(())
    }
}
