//! The file format of a contract, and the checks that a file must pass.

use super::check::{Contract, Publisher};
use super::columns::{self, Columns};
use super::json::Pointer;
use super::odoo;
use super::pattern::{Pattern, Template};
use super::properties;
use super::publication::{PUBLICATION_FORMAT, Publication, TOPIC_DEFAULT, TOPIC_PLACEHOLDERS, major_of};
use super::schema::Schema;
use super::terms::{
    Accepts, Classification, DEDUPE, Decode, GatewayNames, Mode, OnViolation, Order, SourceKind, quoted,
};
use crate::event::text;
use crate::setting::{Document, Problem, Span};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    version: String,
    owner: String,
    #[serde(default)]
    purpose: String,
    system_of_record: Option<String>,
    #[serde(default = "standard")]
    lane: String,
    r#match: Match,
    key: Option<String>,
    device: Option<String>,
    publisher: Option<String>,
    id: Option<String>,
    time: Option<String>,
    schema: Option<String>,
    #[serde(default)]
    accepts: Accepts,
    decode: Option<Decode>,
    #[serde(default)]
    on_violation: OnViolation,
    #[serde(default)]
    keep: Vec<String>,
    #[serde(default)]
    mask: Vec<String>,
    dedupe: Option<Span>,
    #[serde(default)]
    retention: Retention,
    #[serde(default)]
    mode: Mode,
    topic: Option<String>,
    #[serde(default)]
    order: Order,
    odoo: Option<odoo::Section>,
    properties: Option<properties::Section>,
    columns: Option<Columns>,
    #[serde(default = "enabled")]
    enabled: bool,
    classification: Option<Classification>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    source: SourceKind,
    name: Option<String>,
    topic: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retention {
    settled: Option<Span>,
    unsettled: Option<Span>,
}

fn enabled() -> bool {
    true
}

fn standard() -> String {
    "standard".into()
}

/// Default retention of settled events, for replay.
const RETENTION_SETTLED: Duration = Duration::from_secs(7 * 86_400);

/// Placeholders that key and device templates always have, before the captures of the topic.
pub(super) const BUILT_IN_NAMES: [&str; 3] = ["client", "user", "topic"];

/// What is wrong in a file, at which key.
struct Mistake {
    key: String,
    message: String,
}

impl Mistake {
    fn at(key: &str) -> impl Fn(String) -> Self + '_ {
        move |message| Self { key: key.to_owned(), message }
    }
}

fn mistake<T>(key: &str, message: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake { key: key.to_owned(), message: message.into() })
}

/// Reads and checks a contract file. Problems that do not prevent its use go to `warnings`.
pub(super) fn load(
    file: &Path,
    surroundings: &GatewayNames,
    lanes: &[String],
    has_mask_key: bool,
    warnings: &mut Vec<Problem>,
) -> Result<Contract, Problem> {
    let document = Document::read(file)?;
    let raw: File = document.parse()?;
    let problem = |Mistake { key, message }: Mistake| document.problem(&key, message);

    check_names(&raw, lanes).map_err(problem)?;
    let pattern = raw.pattern().map_err(problem)?;
    check_odoo(&raw).map_err(problem)?;
    check_properties(&raw).map_err(problem)?;
    check_columns(&raw).map_err(problem)?;
    let templates = Templates::parse(&raw, &pattern).map_err(problem)?;
    let fields = Fields::parse(&raw, has_mask_key).map_err(problem)?;
    check_format(&raw, &fields, &templates.key).map_err(problem)?;
    // CloudEvents and rows of files bring their own id, and events that the gateway polls or computes get one.
    let brings_ids = matches!(raw.r#match.source, SourceKind::Http | SourceKind::Folder);
    let has_ids = fields.id.is_some() || raw.is_own() || brings_ids;
    if raw.dedupe.is_some() && !has_ids {
        return Err(document.problem("dedupe", "recognises repeats by the id; set id to the JSON pointer of one"));
    }
    let schema = raw.schema.as_deref().map(|name| load_schema(&document, name)).transpose()?;
    let topic = raw.topic.clone().unwrap_or_else(|| TOPIC_DEFAULT.into());
    check_topic(&topic).map_err(Mistake::at("topic")).map_err(problem)?;
    // Of the placeholders of a topic, only the device differs between events of one key.
    if raw.order != Order::None && topic.contains("{device}") {
        let message =
            format!("\"{topic}\" spreads the events of one key over several topics; order is kept on one topic only");
        warnings.push(document.problem("topic", message));
    }
    let (schema_value, schema) = schema.unzip();
    let publication = Publication { topic, schema: schema_value, ..raw.publication(surroundings, templates.key_text) };
    let is_odoo = raw.r#match.source == SourceKind::Odoo;
    Ok(Contract {
        file: file.to_owned(),
        purpose: raw.purpose,
        system_of_record: raw
            .system_of_record
            .unwrap_or_else(|| (if is_odoo { "odoo" } else { "shop-floor" }).to_owned()),
        source: raw.r#match.source,
        source_name: raw.r#match.name,
        pattern,
        key: templates.key,
        has_own_key: raw.key.is_some(),
        device: templates.device,
        publisher: templates.publisher,
        dedupe: has_ids.then(|| raw.dedupe.map_or(DEDUPE, |span| span.0)),
        id: fields.id,
        time: fields.time,
        schema,
        accepts: raw.accepts,
        decode: raw.decode,
        on_violation: raw.on_violation,
        keep: fields.keep,
        mask: fields.mask,
        order: raw.order,
        is_enabled: raw.enabled,
        odoo: raw.odoo,
        properties: raw.properties.unwrap_or_default(),
        columns: raw.columns,
        publication,
    })
}

impl File {
    /// Whether the gateway polls or computes the events itself. They have no topic: the stream name stands for it.
    fn is_own(&self) -> bool {
        matches!(self.r#match.source, SourceKind::Odoo | SourceKind::Watch)
    }

    fn pattern(&self) -> Result<Pattern, Mistake> {
        match (&self.r#match.topic, self.is_own()) {
            (Some(topic), false) => Pattern::parse(topic).map_err(Mistake::at("match.topic")),
            (None, true) => Pattern::parse(&self.name).map_err(Mistake::at("name")),
            (Some(topic), true) => {
                let source = self.r#match.source;
                mistake("match.topic", format!("\"{topic}\" has no meaning for source \"{source}\"; leave it out"))
            }
            (None, false) => mistake("match.topic", "is missing; \"#\" matches every topic"),
        }
    }

    /// The publication, with the default topic and without its schema.
    fn publication(&self, surroundings: &GatewayNames, key: String) -> Publication {
        Publication {
            format: PUBLICATION_FORMAT,
            stream: self.name.clone(),
            version: self.version.clone(),
            surroundings: surroundings.clone(),
            mode: self.mode,
            topic: TOPIC_DEFAULT.into(),
            lane: self.lane.clone(),
            retention_settled: self.retention.settled.map_or(RETENTION_SETTLED, |span| span.0).as_secs(),
            retention_unsettled: self.retention.unsettled.map(|span| span.0.as_secs()),
            schema: None,
            keep: self.keep.clone(),
            mask: self.mask.clone(),
            key,
            owner: self.owner.clone(),
            classification: self.classification,
        }
    }
}

fn check_names(raw: &File, lanes: &[String]) -> Result<(), Mistake> {
    check_stream_name(&raw.name).map_err(Mistake::at("name"))?;
    check_version(&raw.version).map_err(Mistake::at("version"))?;
    if lanes.contains(&raw.lane) {
        return Ok(());
    }
    mistake("lane", format!("\"{}\" is no lane; there are {}", raw.lane, quoted(lanes)))
}

/// The templates that are filled from the topic of an event.
struct Templates {
    device: Template,
    key: Template,
    key_text: String,
    publisher: Option<Publisher>,
}

impl Templates {
    fn parse(raw: &File, pattern: &Pattern) -> Result<Self, Mistake> {
        let names: Vec<String> =
            BUILT_IN_NAMES.iter().map(|name| (*name).to_owned()).chain(pattern.names().cloned()).collect();
        let device = raw.device.as_deref().unwrap_or("{client}");
        let device = Template::parse(device, &names).map_err(Mistake::at("device"))?;
        if device.needs_payload() {
            return mistake("device", "takes captures of the topic, not values of the payload");
        }
        let key_text = raw.key.clone().or(raw.device.clone()).unwrap_or_else(|| "{client}".into());
        let key = Template::parse(&key_text, &names).map_err(Mistake::at("key"))?;
        let publisher = publisher(raw, &names, &key).map_err(Mistake::at("publisher"))?;
        Ok(Self { device, key, key_text, publisher })
    }
}

/// The payload fields that a contract names.
struct Fields {
    id: Option<Pointer>,
    time: Option<Pointer>,
    keep: Vec<Pointer>,
    mask: Vec<Pointer>,
}

impl Fields {
    fn parse(raw: &File, has_mask_key: bool) -> Result<Self, Mistake> {
        let pointer = |key: &str, text: &str| Pointer::parse(text).map_err(Mistake::at(key));
        let pointers = |key: &str, texts: &[String]| -> Result<Vec<Pointer>, Mistake> {
            texts.iter().enumerate().map(|(i, text)| pointer(&format!("{key}[{i}]"), text)).collect()
        };
        let id = raw.id.as_deref().map(|text| pointer("id", text)).transpose()?;
        let time = raw.time.as_deref().map(|text| pointer("time", text)).transpose()?;
        let keep = pointers("keep", &raw.keep)?;
        let mask = pointers("mask", &raw.mask)?;
        if !mask.is_empty() && !has_mask_key {
            return mistake("mask", "needs a key to hash with; set mask_key to a file in the configuration");
        }
        let is_dropped = |field: &Pointer| !keep.is_empty() && !keep.iter().any(|kept| kept.meets(field));
        if let Some(dropped) = mask.iter().position(is_dropped) {
            let field = &raw.mask[dropped];
            let message = format!(
                "\"{field}\" is not in keep and would be dropped before masking; add it to keep, or remove it from mask"
            );
            return mistake(&format!("mask[{dropped}]"), message);
        }
        Ok(Self { id, time, keep, mask })
    }
}

/// Checks that what the contract reads from payloads is possible in the formats that it accepts.
fn check_format(raw: &File, fields: &Fields, key: &Template) -> Result<(), Mistake> {
    let needs_json = fields.id.is_some()
        || fields.time.is_some()
        || !fields.keep.is_empty()
        || !fields.mask.is_empty()
        || raw.schema.is_some()
        || key.needs_payload();
    if raw.accepts == Accepts::Bytes && needs_json {
        return mistake(
            "accepts",
            "\"bytes\" takes payloads as they are; id, time, key from the payload, schema, keep and mask need \"json\"",
        );
    }
    if raw.decode.is_some() && raw.accepts != Accepts::Json {
        return mistake("accepts", "decode makes JSON of every payload; leave accepts out, or set it to \"json\"");
    }
    Ok(())
}

/// Returns the topic level that names the publisher: the one that the contract sets, or else
/// the single capture of `key`.
fn publisher(raw: &File, names: &[String], key: &Template) -> Result<Option<Publisher>, String> {
    let source = raw.r#match.source;
    if !matches!(source, SourceKind::Mqtt | SourceKind::Http) {
        return match raw.publisher {
            None => Ok(None),
            Some(_) => {
                Err(format!("has no meaning for source \"{source}\", whose events name no client; leave it out"))
            }
        };
    }
    let capture = match &raw.publisher {
        None => key.sole_capture().filter(|index| names[*index] != "topic"),
        Some(text) => {
            let capture = Template::parse(text, names)?.sole_capture().filter(|index| names[*index] != "topic");
            let levels: Vec<_> =
                names.iter().filter(|name| *name != "topic").map(|name| format!("{{{name}}}")).collect();
            let one_level = || format!("\"{text}\" is not one level of the topic; expected one of {}", quoted(&levels));
            Some(capture.ok_or_else(one_level)?)
        }
    };
    Ok(capture.map(|index| Publisher { index, name: names[index].clone(), is_written: raw.publisher.is_some() }))
}

/// Checks that `[odoo]` is present exactly for source `odoo`, and its content.
fn check_odoo(raw: &File) -> Result<(), Mistake> {
    let Some(section) = &raw.odoo else {
        return match raw.r#match.source {
            SourceKind::Odoo => mistake("odoo", "is missing; it says which model and fields are read"),
            _ => Ok(()),
        };
    };
    if raw.r#match.source != SourceKind::Odoo {
        return mistake("odoo", "has a meaning for match.source = \"odoo\" only");
    }
    for (key, is_there) in [
        ("keep", !raw.keep.is_empty()),
        ("mask", !raw.mask.is_empty()),
        ("id", raw.id.is_some()),
        ("time", raw.time.is_some()),
        ("key", raw.key.is_some()),
        ("decode", raw.decode.is_some()),
    ] {
        if is_there {
            return mistake(
                key,
                "is given by the source: only odoo.fields are read, ids and times come from the record, and order is kept by its number; leave it out",
            );
        }
    }
    section.check().map_err(|(key, message)| Mistake { key: format!("odoo.{key}"), message })
}

/// Checks `[properties]`, which only publishes have.
fn check_properties(raw: &File) -> Result<(), Mistake> {
    let Some(section) = &raw.properties else { return Ok(()) };
    let source = raw.r#match.source;
    if !matches!(source, SourceKind::Mqtt | SourceKind::Broker) {
        return mistake(
            "properties",
            format!("has no meaning for source \"{source}\", whose events are no publishes of MQTT"),
        );
    }
    section.check().map_err(|(key, message)| Mistake { key: format!("properties.{key}"), message })
}

/// Checks that `[columns]` is for source `folder`, and its content.
fn check_columns(raw: &File) -> Result<(), Mistake> {
    let Some(found) = &raw.columns else { return Ok(()) };
    if raw.r#match.source != SourceKind::Folder {
        return mistake("columns", "has a meaning for match.source = \"folder\" only");
    }
    if found.is_empty() {
        return mistake("columns", "makes events without fields; name columns, or leave it out for all of them");
    }
    columns::check(found).map_err(|(key, message)| Mistake { key, message })
}

pub(super) fn load_schema(document: &Document, name: &str) -> Result<(serde_json::Value, Schema), Problem> {
    let wrong = |message: String| document.problem("schema", message);
    let path = document.file().parent().unwrap_or(Path::new(".")).join(name);
    let content =
        std::fs::read(&path).map_err(|error| wrong(format!("{}: cannot be read: {error}", path.display())))?;
    let value: serde_json::Value = serde_json::from_slice(text::without_byte_order_mark(&content))
        .map_err(|error| wrong(format!("{}: is no JSON: {error}", path.display())))?;
    let schema = Schema::compile(&value)
        .map_err(|error| wrong(format!("{}: is no JSON Schema 2020-12: {error}", path.display())))?;
    Ok((value, schema))
}

pub(super) fn check_stream_name(name: &str) -> Result<(), String> {
    let good_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
    };
    if name.starts_with("command.") {
        return Err(format!("\"{name}\" is taken: streams that start with \"command.\" are those of commands"));
    }
    if name.starts_with("gateway.") {
        return Err(format!("\"{name}\" is taken: streams that start with \"gateway.\" are the gateway's own"));
    }
    if name.len() <= 100 && name.split('.').all(good_word) {
        Ok(())
    } else {
        Err(format!(
            "\"{name}\" is no stream name; expected words of a-z, 0-9, \"_\" and \"-\" joined by \".\", such as \"machine.state\""
        ))
    }
}

pub(super) fn check_version(version: &str) -> Result<(), String> {
    let numbers: Vec<_> = version.split('.').map(str::parse::<u32>).collect();
    if numbers.len() == 3 && numbers.iter().all(Result::is_ok) && major_of(version) > 0 {
        Ok(())
    } else {
        Err(format!("\"{version}\" is no version; expected three numbers such as \"1.2.0\", the first at least 1"))
    }
}

fn check_topic(topic: &str) -> Result<(), String> {
    let names: Vec<String> = TOPIC_PLACEHOLDERS.iter().map(|name| (*name).to_owned()).collect();
    let template = Template::parse(topic, &names)?;
    if template.needs_payload() {
        return Err(format!("\"{topic}\" takes {}, not values of the payload", quoted(&names)));
    }
    let bare = topic.replace(['{', '}'], "");
    if topic.is_empty()
        || bare.contains(['+', '#'])
        || bare.contains(text::is_unsafe)
        || topic.split('/').any(str::is_empty)
        || topic.starts_with('$')
    {
        return Err(format!(
            "\"{topic}\" is no topic; wildcards, empty levels, control characters and a leading \"$\" are not allowed"
        ));
    }
    if !topic.contains("{environment}") {
        return Err(format!(
            "\"{topic}\" is the same in every environment; it needs \"{{environment}}\" to keep the topics of environments apart"
        ));
    }
    Ok(())
}
