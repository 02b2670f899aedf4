//! The `[odoo]` section of a contract: the fields to read from a model of Odoo, and the changes that are business
//! events.
//!
//! Promise: a section that passes [`Section::check`] refers only to fields that it reads.

mod names;

pub use names::{Names, fields_of_domain, resolve_domain};

use crate::setting::Span;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// `[odoo]` of a contract.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The model, such as `mrp.production`; of several, the first one that this Odoo has.
    pub model: Names,
    /// Fields that the gateway reads. Personal names and prices are read only if they are listed here. The other keys
    /// use the first name of each.
    pub fields: Vec<Names>,
    /// Relational fields whose display name is included with the record number.
    #[serde(default)]
    pub names: Vec<String>,
    /// By relational field: fields of the linked record that are included with its number, as they are at the time of
    /// the event. A change of them alone is no change of this record.
    #[serde(default)]
    pub linked: BTreeMap<String, Vec<Names>>,
    /// Languages of names and other translated texts, such as `de_DE`. Texts in the first one have the name of their
    /// field, those in further ones are `name@fr_FR`. Empty: the language of the source.
    #[serde(default)]
    pub languages: Vec<String>,
    /// What becomes of a record with a value that is impossible, or that Odoo cannot read.
    #[serde(default)]
    pub on_invalid: OnInvalid,
    /// Fields that the gateway reads although Odoo does not store them. A change of such a field alone may be detected
    /// late.
    #[serde(default)]
    pub computed: Vec<String>,
    /// Field with the name by which people know a record.
    pub reference: Option<String>,
    /// Records of this contract, as an Odoo domain. It must not refer to values that change during the life of a
    /// record.
    #[serde(default)]
    pub domain: Vec<Value>,
    /// Records of the first load, as an Odoo domain: mostly those that are still open.
    #[serde(default)]
    pub load: Vec<Value>,
    /// Fields whose change Odoo notes in the outbox, if automation rules are installed.
    #[serde(default)]
    pub hints: Vec<String>,
    /// Number of the company, to restrict the records to one company.
    pub company: Option<i64>,
    /// Polling interval.
    #[serde(default = "interval")]
    pub interval: Span,
    /// Field with the state.
    pub state: Option<String>,
    /// Known states. Events with other states are delivered with a mark.
    #[serde(default)]
    pub states: Vec<String>,
    /// States that a record rarely leaves.
    #[serde(default)]
    pub last_states: Vec<String>,
    /// Field that gets a value when a record has ended, for models without such a state.
    pub ended_by: Option<String>,
    /// Field values that end a record, whatever its state.
    #[serde(default)]
    pub ended_when: BTreeMap<String, Vec<String>>,
    /// Maximum time since the last write of a record, for the first load. The gateway drops records that nobody has
    /// written for this long, even if they have not ended. Unset: no limit.
    pub recent: Option<Span>,
    /// Fields that another system owns, with the name of that system.
    #[serde(default)]
    pub system_of_record: BTreeMap<String, String>,
    /// Rules that name changes, the most significant first.
    #[serde(default)]
    pub event: Vec<Rule>,
}

/// What becomes of a record with a value that is impossible, or that Odoo cannot read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnInvalid {
    /// The value is `null`, and `invalid` of the event names it.
    #[default]
    Null,
    /// The event is a dead letter.
    DeadLetter,
}

fn interval() -> Span {
    Span(Duration::from_secs(5))
}

/// A rule that names a change.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the change, such as `released`.
    pub name: String,
    /// Changed field.
    pub field: Option<String>,
    /// New values for which the rule applies.
    #[serde(default)]
    pub to: Vec<String>,
    /// Previous values for which the rule applies.
    #[serde(default)]
    pub from: Vec<String>,
    /// Type of change, for rules without values.
    pub change: Option<Change>,
    /// Field whose value the changed field must exceed.
    pub above: Option<String>,
    /// Applies the rule only to records where this field has a value.
    pub only: Option<String>,
    /// Applies the rule only while the record is in one of these states.
    #[serde(default)]
    pub during: Vec<String>,
}

/// Type of change of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Any change.
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

/// Minimum interval: people work with the same Odoo.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
const RECENT: (Duration, Duration) = (Duration::from_secs(86_400), Duration::from_secs(3650 * 86_400));

impl Section {
    /// Checks the values against each other. The error holds key and message.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: String| Err((key.to_owned(), message));
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b))
        };
        if let Some(model) = self.model.all().find(|model| !is_word(model)) {
            return wrong("model", format!("\"{model}\" is no model; expected one such as \"mrp.production\""));
        }
        if self.fields.is_empty() {
            return wrong("fields", "[] reads nothing; list the fields that events carry".into());
        }
        let is_field = |field: &str| is_word(field) && !field.contains('.');
        let linked = self.linked.values().flatten();
        if let Some(field) = self.fields.iter().chain(linked).flat_map(Names::all).find(|field| !is_field(field)) {
            return wrong("fields", format!("\"{field}\" is no field; expected one such as \"date_start\""));
        }
        for given in ["id", "write_date", "write_uid", "create_date"] {
            if self.fields.iter().flat_map(Names::all).any(|field| field == given) {
                return wrong("fields", format!("\"{given}\" is always read; leave it out"));
            }
        }
        let mut seen = BTreeSet::new();
        if let Some(field) = self.fields.iter().map(Names::first).find(|field| !seen.insert(*field)) {
            return wrong("fields", format!("\"{field}\" stands there twice; remove one"));
        }
        if let Some(language) = self.languages.iter().find(|language| !is_language(language)) {
            return wrong("languages", format!("\"{language}\" is no language; expected one such as \"de_DE\""));
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
        named.extend(self.hints.iter().map(|field| ("hints".to_owned(), field)));
        named.extend(self.linked.keys().map(|field| ("linked".to_owned(), field)));
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
        match named.iter().find(|(_, field)| !self.fields.iter().any(|read| read.first() == *field)) {
            Some((key, field)) => wrong(key, format!("\"{field}\" is not in odoo.fields; add it there")),
            None => Ok(()),
        }
    }
}

/// Whether a text can be the code of a language in Odoo: `de_DE`, `es_419`, `sr@latin`.
pub fn is_language(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'@';
    (2..=LANGUAGE_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_letter)
}

/// The longest code that Odoo ships, `ca_ES@valencia`, has 14.
const LANGUAGE_BYTES_MAX: usize = 16;

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
