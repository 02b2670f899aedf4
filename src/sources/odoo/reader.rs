//! The reader of one contract: every call that the gateway makes to the model of the contract.
//!
//! Promise: a record or a field that Odoo cannot read costs only itself (`parts`). What the reader has learnt about the
//! model is learnt again every few minutes, so that a field, a right, a language or a module counts soon after it came
//! or went.
//! Invariant: the reader calls only methods that read, and passes only fields that the contract lists.
//!
//! Not here: what the rows mean (`capture`). `forebay odoo check` tries the same calls through the same reader.

mod absence;
mod existence;
mod faults;
mod linked_records;
mod links;
mod outbox_rows;
mod parts;

use super::model_fields::{ATTRIBUTES, ModelFields, OWN_FIELDS, Row};
use super::outbox;
use crate::clock;
use crate::contract::odoo::{Names, Section, fields_of_domain, resolve_domain};
use crate::event::Timestamp;
use crate::odoo::{Account, Answer, Client, OdooError, Refusal, write_time};
use faults::Faults;
use linked_records::LinkedRecords;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use absence::{Absence, IDS_PER_SEARCH};

/// Rows per page. A slow Odoo reads them within a second, far below its limit of 120 s for a call.
pub(super) const PAGE_ROWS: usize = 200;
/// The language of messages, and of names where no other one is active: every Odoo has it.
const LANGUAGE: &str = "en_US";
/// Shortest time between two looks at the fields because a selection has a value that Odoo did not list.
const DESCRIBE_AGAIN: Duration = Duration::from_secs(10);

/// Reads the records of one contract from one Odoo.
#[derive(Debug)]
pub(super) struct ModelReader {
    client: Arc<Client>,
    section: Section,
    /// Language of the source, if its configuration names one.
    language: Option<String>,
    /// What was learnt; `None` before the first time.
    learnt: Option<Learnt>,
    faults: Faults,
    linked: LinkedRecords,
    /// Model of the outbox, if the contract has hints.
    outbox_model: Option<String>,
    /// Fields of the outbox that this Odoo has; empty without an outbox.
    outbox_fields: Vec<&'static str>,
}

/// What the reader knows about the model and the account.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Learnt {
    /// Name of the model in this Odoo.
    model: String,
    fields: ModelFields,
    /// Names in Odoo of the fields of the contract's domains that exist.
    domain_fields: BTreeSet<String>,
    /// Languages of texts; at least one.
    languages: Vec<String>,
    /// Languages of the contract that are not active in Odoo.
    inactive_languages: Vec<String>,
    companies: BTreeSet<i64>,
    major: u32,
    described_at: Instant,
}

/// A page of rows, in the order of their ids.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) rows: Vec<Row>,
    /// The highest id that belongs to the page; `None` if it is empty.
    pub(super) last: Option<i64>,
    /// Whether there are no further rows.
    pub(super) is_end: bool,
    /// Odoo's clock at the start of the answer: seconds since 1970.
    pub(super) server_seconds: i64,
    /// Time that Odoo took.
    pub(super) took: Duration,
}

impl ModelReader {
    /// A reader of a contract. `gateway` names the outbox.
    pub(super) fn new(client: Arc<Client>, section: Section, language: Option<String>, gateway: &str) -> Self {
        Self {
            outbox_model: (!section.hints.is_empty()).then(|| outbox::model_of(gateway)),
            outbox_fields: Vec::new(),
            client,
            section,
            language,
            learnt: None,
            faults: Faults::default(),
            linked: LinkedRecords::default(),
        }
    }

    /// Whether the model was described.
    pub(super) fn has_learnt(&self) -> bool {
        self.learnt.is_some()
    }

    /// The fields that are read; none before the first [`ModelReader::learn`].
    pub(super) fn fields(&self) -> Option<&ModelFields> {
        self.learnt.as_ref().map(|learnt| &learnt.fields)
    }

    /// Name of the model in this Odoo, or in the contract before the first [`ModelReader::learn`].
    pub(super) fn model(&self) -> &str {
        self.learnt.as_ref().map_or(self.section.model.first(), |learnt| &learnt.model)
    }

    /// What the reader does not read, or reads otherwise than the contract says: one line each, with what to do.
    pub(super) fn remarks(&self) -> Vec<String> {
        let Some(learnt) = &self.learnt else { return Vec::new() };
        let mut remarks = Vec::new();
        if !learnt.fields.missing.is_empty() {
            remarks
                .push(format!("fields not read: {} not available for this account", learnt.fields.missing.join(", ")));
        }
        if !learnt.fields.not_stored.is_empty() {
            remarks.push(format!("fields not read: {} not stored", learnt.fields.not_stored.join(", ")));
        }
        remarks.extend(self.faults());
        remarks
    }

    /// The same without the fields that are missing or not stored.
    pub(super) fn faults(&self) -> Vec<String> {
        let Some(learnt) = &self.learnt else { return Vec::new() };
        let mut remarks = Vec::new();
        for language in &learnt.inactive_languages {
            remarks.push(format!(
                "language {language} is not active in Odoo: names are in {}; activate it under Settings, Translations, Languages",
                learnt.languages[0]
            ));
        }
        remarks.extend(self.faults.remarks(&learnt.fields, &learnt.model));
        remarks.extend(self.linked.remarks());
        remarks
    }

    /// Learns which fields, languages and companies there are, and tries again what could not be read. Returns what has
    /// changed since the last time.
    pub(super) async fn learn(&mut self, account: &Account) -> Result<Vec<String>, OdooError> {
        let session = self.client.session().await?;
        let (model, described) = self.describe().await?;
        let fields = ModelFields::resolve(&self.section, &described);
        if fields.is_empty() {
            // To an account without the right on a model, Odoo describes no field of it.
            self.call_of(&model, "search_count", None, json!({"domain": [["id", "=", 0]]})).await?;
            return Err(OdooError::Refused {
                why: Refusal::Access,
                name: String::new(),
                message: format!("{model}: none of the fields in odoo.fields is there for this account"),
            });
        }
        let (languages, inactive_languages) = self.languages(account);
        let domain_fields = described.as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect();
        let now = Learnt {
            model,
            fields,
            domain_fields,
            languages,
            inactive_languages,
            companies: account.companies.clone(),
            major: session.version,
            described_at: clock::instant(),
        };
        let before = self.learnt.replace(now);
        self.linked.expire();
        self.learn_outbox().await?;
        let mut changes = self.retry_denied().await?;
        if let (Some(before), Some(now)) = (&before, &self.learnt) {
            changes.extend(now.changes(before));
        }
        Ok(changes)
    }

    /// Number of fields and records that cannot be read.
    pub(super) fn fault_count(&self) -> usize {
        self.faults.denied.len() + self.faults.records.len()
    }

    /// Digest of the fields, languages and companies that rows are read with.
    pub(super) fn digest(&self) -> u64 {
        let Some(learnt) = &self.learnt else { return 0 };
        let denied = self.faults.denied();
        let fields: Vec<&str> = learnt.fields.iter().map(|field| field.odoo_name.as_str()).collect();
        let read: Vec<&&str> = fields.iter().filter(|field| !denied.contains(**field)).collect();
        let text = format!("{:?} {:?} {:?} {}", read, learnt.languages, learnt.companies, learnt.model);
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }

    /// Companies whose records the account sees; empty if that is not known.
    pub(super) fn companies(&self) -> BTreeSet<i64> {
        self.learnt.as_ref().map(|learnt| learnt.companies.clone()).unwrap_or_default()
    }

    /// The model that this Odoo has, and the description of the contract's fields.
    async fn describe(&self) -> Result<(String, Value), OdooError> {
        let in_domains = fields_of_domain(&self.section.domain).chain(fields_of_domain(&self.section.load));
        let mut names: BTreeSet<String> = self.section.fields.iter().flat_map(Names::all).map(str::to_owned).collect();
        for field in in_domains {
            names.extend(field.all().filter_map(|name| name.split('.').next()).map(str::to_owned));
        }
        let mut unknown = None;
        for model in self.section.model.all() {
            let arguments = json!({"allfields": names, "attributes": ATTRIBUTES, "context": {"lang": LANGUAGE}});
            match self.call_of(model, "fields_get", None, arguments).await {
                Ok(answer) => return Ok((model.to_owned(), answer.value)),
                Err(error @ OdooError::Refused { why: Refusal::UnknownModel, .. }) => {
                    unknown.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(unknown.unwrap_or_else(|| OdooError::NotOdoo("the contract names no model".into())))
    }

    /// The languages of texts, and those that are not active.
    fn languages(&self, account: &Account) -> (Vec<String>, Vec<String>) {
        let wanted: Vec<String> = match self.section.languages.is_empty() {
            false => self.section.languages.clone(),
            true => self.language.clone().or(account.language.clone()).into_iter().collect(),
        };
        let is_active = |language: &String| account.languages.is_empty() || account.languages.contains(language);
        let (mut active, inactive): (Vec<String>, Vec<String>) = wanted.into_iter().partition(is_active);
        if active.is_empty() {
            active.push(LANGUAGE.to_owned());
        }
        (active, inactive)
    }

    /// Counts the records that match a condition.
    pub(super) async fn count(&self, condition: Vec<Value>) -> Result<u64, OdooError> {
        let answer = self.call("search_count", None, json!({"domain": self.domain(condition)})).await?;
        Ok(answer.value.as_u64().unwrap_or(0))
    }

    /// Odoo's clock: seconds since 1970.
    pub(super) async fn server_seconds(&self) -> Result<i64, OdooError> {
        let answer = self.call("search_count", None, json!({"domain": [["id", "=", 0]]})).await?;
        Ok(server_seconds(&answer))
    }

    /// The ids of the records that match a condition, in ascending order.
    pub(super) async fn search(&self, condition: Vec<Value>, limit: usize) -> Result<Vec<i64>, OdooError> {
        let arguments = json!({"domain": self.domain(condition), "order": "id", "limit": limit});
        Ok(ids(&self.call("search", None, arguments).await?))
    }

    /// Conditions for the records of the first load, and of a comparison: the contract's `load`, and the age limit.
    pub(super) fn load_conditions(&self, written_after: Option<i64>) -> Vec<Value> {
        let mut conditions = self.resolve(&self.section.load);
        conditions.extend(written_after.map(written_since));
        conditions
    }

    /// Reads a page of rows. Leaves out the records that Odoo cannot read as a whole ([`ModelReader::faulty`]).
    pub(super) async fn page(&mut self, condition: Vec<Value>) -> Result<Page, OdooError> {
        let mut condition = condition;
        let faulty = self.faulty();
        if !faulty.is_empty() {
            condition.push(json!(["id", "not in", faulty]));
        }
        let domain = self.domain(condition);
        let mut page = match self.read_rows(&domain, &self.field_names(), PAGE_ROWS).await {
            Ok(answer) => RawPage::from(&answer),
            Err(error) if error.may_be_partial() => self.read_in_parts(&domain, error).await?,
            Err(error) => return Err(error),
        };
        self.learn_unlisted(&page.rows).await?;
        let rows = self.rows(&mut page).await?;
        let last = rows.last().map(|row| row.id);
        let is_end = page.rows.len() < PAGE_ROWS;
        Ok(Page { rows, last, is_end, server_seconds: page.server_seconds, took: page.took })
    }

    /// Converts the rows of an answer, and reads their texts in further languages.
    async fn rows(&self, page: &mut RawPage) -> Result<Vec<Row>, OdooError> {
        let Some(learnt) = &self.learnt else { return Ok(Vec::new()) };
        let mut rows: Vec<Row> = page.rows.iter().filter_map(|given| learnt.fields.row(given)).collect();
        let denied = self.faults.denied();
        let texts: Vec<&str> = learnt.fields.texts().filter(|field| !denied.contains(*field)).collect();
        if rows.is_empty() || texts.is_empty() {
            return Ok(rows);
        }
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        for language in learnt.languages.iter().skip(1) {
            let mut arguments = json!({"fields": texts});
            arguments["context"] = self.context(language);
            match self.call("read", Some(&ids), arguments).await {
                Ok(answer) => {
                    page.took += answer.took;
                    for given in answer.value.as_array().into_iter().flatten() {
                        let id = given.get("id").and_then(Value::as_i64);
                        if let Some(row) = rows.iter_mut().find(|row| Some(row.id) == id) {
                            learnt.fields.translate(row, given, language);
                        }
                    }
                }
                // The texts in the first language are there; a record may have vanished meanwhile.
                Err(error) if error.may_be_partial() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rows)
    }

    /// Looks at the fields again if a selection has a value that Odoo did not list: a module may have added it.
    async fn learn_unlisted(&mut self, rows: &[Value]) -> Result<(), OdooError> {
        let Some(learnt) = &self.learnt else { return Ok(()) };
        let is_unlisted = |given: &Value| {
            learnt.fields.iter().any(|field| given.get(&field.odoo_name).is_some_and(|value| field.is_unlisted(value)))
        };
        let is_due = clock::instant().duration_since(learnt.described_at) >= DESCRIBE_AGAIN;
        if !is_due || !rows.iter().any(is_unlisted) {
            return Ok(());
        }
        let (_, described) = self.describe().await?;
        if let Some(learnt) = &mut self.learnt {
            learnt.fields = ModelFields::resolve(&self.section, &described);
            learnt.described_at = clock::instant();
        }
        Ok(())
    }

    /// Names in Odoo of the fields to read.
    fn field_names(&self) -> Vec<String> {
        let denied = self.faults.denied();
        let of_contract = self.fields().into_iter().flat_map(ModelFields::iter).map(|field| field.odoo_name.as_str());
        of_contract.chain(OWN_FIELDS).filter(|field| !denied.contains(*field)).map(str::to_owned).collect()
    }

    /// Reads fields of the records of a domain, in ascending order of their ids.
    async fn read_rows(&self, domain: &[Value], fields: &[String], limit: usize) -> Result<Answer, OdooError> {
        let mut arguments = json!({"domain": domain, "fields": fields, "order": "id", "limit": limit});
        arguments["context"] = self.context(self.main_language());
        // Without `load: null` Odoo also reads the name behind every link. Versions before 15 do not know it.
        let has_names = self.fields().is_some_and(|fields| fields.has_names);
        if !has_names && self.learnt.as_ref().is_some_and(|learnt| learnt.major >= VERSION_LOAD) {
            arguments["load"] = Value::Null;
        }
        self.call("search_read", None, arguments).await
    }

    fn main_language(&self) -> &str {
        self.learnt.as_ref().and_then(|learnt| learnt.languages.first()).map_or(LANGUAGE, String::as_str)
    }

    /// The contract's records that match a condition.
    fn domain(&self, condition: Vec<Value>) -> Vec<Value> {
        let mut domain = self.resolve(&self.section.domain);
        // A record without a company belongs to every company.
        domain.extend(self.section.company.map(|company| json!(["company_id", "in", [company, false]])));
        domain.extend(condition);
        domain
    }

    fn resolve(&self, domain: &[Value]) -> Vec<Value> {
        let there = self.learnt.as_ref().map(|learnt| &learnt.domain_fields);
        resolve_domain(domain, |field| there.is_some_and(|there| there.contains(field)))
    }

    /// Includes archived records.
    fn context(&self, language: &str) -> Value {
        let mut context = json!({"active_test": false, "lang": language});
        if let Some(company) = self.section.company {
            context["allowed_company_ids"] = json!([company]);
        }
        context
    }

    async fn call(&self, method: &str, ids: Option<&[i64]>, arguments: Value) -> Result<Answer, OdooError> {
        self.call_of(self.model(), method, ids, arguments).await
    }

    async fn call_of(
        &self,
        model: &str,
        method: &str,
        ids: Option<&[i64]>,
        arguments: Value,
    ) -> Result<Answer, OdooError> {
        let Value::Object(mut arguments) = arguments else { unreachable!("arguments are passed by name") };
        arguments.entry("context").or_insert_with(|| self.context(LANGUAGE));
        self.client.call(model, method, ids, arguments).await
    }
}

/// The first version whose `search_read` takes `load`.
const VERSION_LOAD: u32 = 15;

impl Learnt {
    /// What has changed since `before`.
    fn changes(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let names =
            |learnt: &Self| -> BTreeSet<String> { learnt.fields.iter().map(|field| field.name.clone()).collect() };
        let (old, new) = (names(before), names(self));
        changes.extend(new.difference(&old).map(|field| format!("field {field} can be read")));
        changes.extend(old.difference(&new).map(|field| format!("field {field} cannot be read any more")));
        if self.languages != before.languages {
            changes.push(format!("names are read in {}", self.languages.join(", ")));
        }
        if self.companies != before.companies {
            changes.push("the account sees other companies".to_owned());
        }
        if self.model != before.model {
            changes.push(format!("the model is {}", self.model));
        }
        changes
    }
}

/// The rows of a page as Odoo gave them.
#[derive(Debug)]
struct RawPage {
    rows: Vec<Value>,
    server_seconds: i64,
    took: Duration,
}

impl From<&Answer> for RawPage {
    fn from(answer: &Answer) -> Self {
        let rows = answer.value.as_array().cloned().unwrap_or_default();
        Self { rows, server_seconds: server_seconds(answer), took: answer.took }
    }
}

/// The condition that a record was written at or after a time, in seconds since 1970.
pub(super) fn written_since(seconds: i64) -> Value {
    json!(["write_date", ">=", write_time(Timestamp(seconds.saturating_mul(1_000_000)))])
}

fn ids(answer: &Answer) -> Vec<i64> {
    answer.value.as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

/// The server's clock at the start of its answer, in seconds since 1970, minus one because its header has whole seconds.
fn server_seconds(answer: &Answer) -> i64 {
    let at = answer.server_time.unwrap_or_else(|| Timestamp::from(clock::wall()));
    at.before(answer.took).0.div_euclid(1_000_000) - 1
}
