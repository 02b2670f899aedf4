//! Contracts: declared, versioned agreements on the content of the streams.
//!
//! Promise: an event accepted by [`Contract::read`] conforms to its contract; any other comes back with a reason that
//! names the field. A folder of contracts is either loaded completely or rejected completely, with every problem named.
//!
//! Not here: where events come from (`sources`), how rejected events are handled (`ingest`).

mod change;
mod file;
mod json;
pub mod odoo;
mod pattern;
mod publication;
mod schema;

pub use change::incompatibilities;
pub use json::{Pointer, Tree, push_json_string};
pub use publication::{Publication, Renderer, Rendering, STRUCTURED};

use crate::event::{AuthType, Content, Timestamp};
use crate::mqtt::Filter;
use crate::setting::Problem;
use hmac::{Hmac, KeyInit, Mac};
use pattern::{Pattern, Template};
use schema::Schema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Maximum length of a key, in bytes. With the levels around it, a topic stays far below MQTT's 65,535 bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Maximum length of an id from a device, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Names that every event of this gateway carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayNames {
    /// Environment, such as `test` or `production`.
    pub environment: String,
    pub site: String,
    /// Name of the gateway, unique within the site.
    pub gateway: String,
    /// Prefix of every event type.
    pub namespace: String,
}

/// Kind of source that an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// MQTT clients of the gateway's own listener.
    Mqtt,
    /// A broker of the plant, to which the gateway subscribes.
    Broker,
    /// HTTP clients that post to the gateway.
    Http,
    /// Modbus devices that the gateway polls.
    Modbus,
    /// An Odoo server that the gateway polls.
    Odoo,
    /// The gateway's own monitoring of business rules (`watch`).
    Watch,
}

impl std::fmt::Display for SourceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Mqtt => "mqtt",
            Self::Broker => "broker",
            Self::Http => "http",
            Self::Modbus => "modbus",
            Self::Odoo => "odoo",
            Self::Watch => "watch",
        })
    }
}

/// CloudEvents content mode of published events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One JSON object with attributes and payload.
    #[default]
    Structured,
    /// Attributes as MQTT 5 user properties, the payload unchanged.
    Binary,
}

/// Payload formats that a contract accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accepts {
    #[default]
    Json,
    /// JSON; anything else is embedded as base64.
    Any,
    /// Any bytes, embedded as base64 without parsing.
    Bytes,
}

/// Format that the gateway decodes to JSON before the contract reads the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decode {
    /// Sparkplug B, on topics such as `spBv1.0/{group}/{type}/{node}/{device}`.
    SparkplugB,
}

/// Treatment of an event that breaks its contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnViolation {
    /// The gateway keeps it as a dead letter.
    #[default]
    DeadLetter,
    /// The gateway delivers it, marked with the violation.
    Flag,
}

/// Ordering guarantee for the consumers of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Events of one key never overtake each other.
    #[default]
    Key,
    /// No guarantee: events may arrive in any order.
    None,
}

/// A parsed and checked contract.
#[derive(Debug)]
pub struct Contract {
    /// File that the contract was read from.
    pub file: PathBuf,
    /// Purpose of the stream, for people.
    pub purpose: String,
    /// System that owns the facts in the events.
    pub system_of_record: String,
    source: SourceKind,
    source_name: Option<String>,
    pattern: Pattern,
    key: Template,
    /// Whether the contract sets `key`; else a source may provide the key.
    pub has_own_key: bool,
    device: Template,
    publisher: Option<Publisher>,
    id: Option<Pointer>,
    time: Option<Pointer>,
    schema: Option<Schema>,
    accepts: Accepts,
    /// Format that the gateway decodes to JSON, if payloads are not JSON already.
    pub decode: Option<Decode>,
    on_violation: OnViolation,
    keep: Vec<Pointer>,
    mask: Vec<Pointer>,
    /// Requested dedupe window; `None` where the events have no id of their own.
    pub dedupe: Option<Duration>,
    /// Ordering guarantee for the consumers.
    pub order: Order,
    /// Whether the contract is in use. Disabled contracts are checked too.
    pub is_enabled: bool,
    /// Model and fields to read, for contracts of source `odoo`.
    pub odoo: Option<odoo::Section>,
    /// Version of the contract as central sees it.
    pub publication: Publication,
}

/// The topic level that names the publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publisher {
    index: usize,
    /// Name of the capture, or `client` or `user`.
    pub name: String,
    /// Whether the contract sets `publisher`; else the single capture of `key` stands for it.
    pub is_written: bool,
}

/// Fields of an event that its contract has read and accepted.
#[derive(Debug)]
pub struct ParsedEvent<'a> {
    /// Id from the payload; `None` where the gateway creates one.
    pub id: Option<Cow<'a, str>>,
    /// Time from the payload, if there is one.
    pub time: Option<Timestamp>,
    /// Key, for which order is kept.
    pub key: Cow<'a, str>,
    pub content: Content,
    /// Payload to store, after `keep` and `mask`.
    pub payload: Cow<'a, [u8]>,
    /// Violation, where the contract delivers the event in spite of it.
    pub violation: Option<String>,
}

/// An event that breaks its contract.
#[derive(Debug)]
pub struct Violation<'a> {
    /// Reason, starting with the field. Never contains a value of the payload.
    pub reason: String,
    /// Payload to keep, after `keep` and `mask`; the raw bytes if they cannot be parsed.
    pub payload: Cow<'a, [u8]>,
}

impl Contract {
    /// Name of the stream, without its version.
    pub fn stream(&self) -> &str {
        &self.publication.stream
    }

    /// Whether the topic pattern matches a topic.
    pub fn takes(&self, topic: &str) -> bool {
        self.pattern.captures(topic).is_some()
    }

    /// Kind of source that the events come from.
    pub fn source(&self) -> SourceKind {
        self.source
    }

    /// Whether the contract applies to a source of this name.
    pub fn is_for(&self, source: &str) -> bool {
        self.source_name.as_deref().is_none_or(|name| name == source)
    }

    /// Device named by `captures`, for the origin of the event.
    pub fn device<S: AsRef<str>>(&self, captures: &[S]) -> String {
        self.device.fill(captures, None).map_or_else(|_| String::new(), Cow::into_owned)
    }

    /// Topic level that must equal the publisher's authenticated name; `None` if the contract names none.
    pub fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_ref()
    }

    /// Authenticated name that `captures` require of the publisher.
    pub fn publisher_in<'c>(&self, captures: &'c [String]) -> Option<&'c str> {
        captures.get(self.publisher.as_ref()?.index).map(String::as_str)
    }

    /// Topic filter of the topics to which a client with this authenticated name may publish under the contract.
    pub fn filter_of_publisher(&self, name: &str) -> Option<String> {
        Some(self.pattern.filter(Some((&self.publisher.as_ref()?.name, name))))
    }

    /// Whether a topic exists that both the contract and `filter` match.
    pub fn overlaps(&self, filter: &Filter) -> bool {
        self.pattern.overlaps(filter)
    }

    /// Topic filter of all matching topics.
    pub fn filter(&self) -> String {
        self.pattern.filter(None)
    }

    /// Parses a payload, checks it and applies `keep` and `mask`. `mask_key` keys the hash of masked fields.
    pub fn read<'a>(
        &self,
        captures: &'a [String],
        payload: &'a [u8],
        mask_key: &[u8],
    ) -> Result<ParsedEvent<'a>, Violation<'a>> {
        if self.accepts == Accepts::Bytes {
            return self.read_opaque(captures, payload);
        }
        let tree = match Tree::parse(payload) {
            Ok(tree) => tree,
            Err(_) if self.accepts == Accepts::Any => return self.read_opaque(captures, payload),
            Err(_) if payload.is_empty() => {
                return Err(Violation { reason: "payload: is empty".into(), payload: Cow::Borrowed(payload) });
            }
            Err(error) => {
                let reason = format!("payload: is no JSON at column {}", error.column());
                return Err(Violation { reason, payload: Cow::Borrowed(payload) });
            }
        };
        match self.check_fields(captures, &tree) {
            Ok((id, time, key, violation)) => Ok(ParsedEvent {
                id: id.map(|id| Cow::Owned(id.into_owned())),
                time,
                key,
                content: Content::Json,
                payload: self.minimise(tree, payload, mask_key),
                violation,
            }),
            Err(reason) => Err(Violation { reason, payload: self.minimise(tree, payload, mask_key) }),
        }
    }

    /// Checks a payload against the schema only.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), String> {
        if self.accepts != Accepts::Json {
            return Ok(());
        }
        let tree = Tree::parse(payload).map_err(|error| format!("payload: is no JSON at column {}", error.column()))?;
        self.schema.as_ref().map_or(Ok(()), |schema| schema.check(&tree))
    }

    fn read_opaque<'a>(&self, captures: &'a [String], payload: &'a [u8]) -> Result<ParsedEvent<'a>, Violation<'a>> {
        let key = self.key.fill(captures, None).map_err(|unfilled| unfilled.to_string()).and_then(check_key_length);
        match key {
            Ok(key) => Ok(ParsedEvent {
                id: None,
                time: None,
                key,
                content: Content::Bytes,
                payload: Cow::Borrowed(payload),
                violation: None,
            }),
            Err(reason) => Err(Violation { reason, payload: Cow::Borrowed(payload) }),
        }
    }

    #[expect(clippy::type_complexity, reason = "the four fields of one event, used once")]
    fn check_fields<'c, 't>(
        &self,
        captures: &'c [String],
        tree: &'t Tree<'t>,
    ) -> Result<(Option<Cow<'t, str>>, Option<Timestamp>, Cow<'c, str>, Option<String>), String> {
        let mut violation = None;
        // The key is never optional: without it no order can be kept.
        let key =
            self.key.fill(captures, Some(tree)).map_err(|unfilled| unfilled.to_string()).and_then(check_key_length)?;
        let mut broken = |reason: String| match self.on_violation {
            OnViolation::DeadLetter => Err(reason),
            OnViolation::Flag => {
                violation.get_or_insert(reason);
                Ok(())
            }
        };
        if let Some(reason) = self.schema.as_ref().and_then(|schema| schema.check(tree).err()) {
            broken(reason)?;
        }
        let mut id = None;
        if let Some(pointer) = &self.id {
            match tree.at(pointer).and_then(Tree::scalar) {
                Some(text) if !text.is_empty() && text.len() <= ID_BYTES_MAX => id = Some(text),
                Some(text) => {
                    broken(format!("{pointer}: is {} bytes long; an id has 1 to {ID_BYTES_MAX}", text.len()))?
                }
                None => broken(format!("{pointer}: is missing, or is neither text nor number"))?,
            }
        }
        let mut time = None;
        if let Some(pointer) = &self.time {
            time = match tree.at(pointer) {
                Some(Tree::Text(text)) => Timestamp::parse(text),
                Some(Tree::Number(number)) => number.as_f64().and_then(Timestamp::from_epoch_number),
                _ => None,
            };
            if time.is_none() {
                broken(format!(
                    "{pointer}: is no time; expected RFC 3339 such as 2026-11-23T08:00:00Z, or a number since 1970"
                ))?;
            }
        }
        Ok((id, time, key, violation))
    }

    /// Applies `keep` and `mask` to a payload.
    fn minimise<'a>(&self, tree: Tree<'a>, payload: &'a [u8], mask_key: &[u8]) -> Cow<'a, [u8]> {
        if self.keep.is_empty() && self.mask.is_empty() {
            return Cow::Borrowed(payload);
        }
        let mut tree = if self.keep.is_empty() { tree } else { tree.keep(&self.keep) };
        for pointer in &self.mask {
            // A requeued dead letter is masked already.
            tree.replace(pointer, |value| match value {
                Tree::Text(text) if is_masked(text) => Tree::Text(text.clone()),
                value => Tree::Text(masked(value, mask_key).into()),
            });
        }
        let mut out = Vec::with_capacity(payload.len());
        tree.write(&mut out);
        Cow::Owned(out)
    }
}

fn check_key_length(key: Cow<'_, str>) -> Result<Cow<'_, str>, String> {
    if key.len() <= KEY_BYTES_MAX {
        Ok(key)
    } else {
        Err(format!("key: is {} bytes long; at most {KEY_BYTES_MAX} are allowed", key.len()))
    }
}

fn is_masked(text: &str) -> bool {
    let hash = text.strip_prefix(MASKED).unwrap_or_default();
    hash.len() == 32 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Prefix of a masked value.
const MASKED: &str = "hmac-sha256:";

/// Returns `hmac-sha256:` and the first 16 bytes of the keyed hash of the value's JSON text.
fn masked(value: &Tree<'_>, key: &[u8]) -> String {
    let mut text = Vec::new();
    value.write(&mut text);
    let mut out = String::from(MASKED);
    if let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(key) {
        mac.update(&text);
        for byte in mac.finalize().into_bytes().iter().take(16) {
            out.push_str(&format!("{byte:02x}"));
        }
    }
    out
}

#[derive(Clone, Debug, Default)]
pub struct Contracts {
    list: Vec<Arc<Contract>>,
}

/// The client that submits an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender<'a> {
    /// `{client}`: the client as its source identifies it. The client id of an MQTT client is not authenticated.
    pub client: &'a str,
    /// `{user}`: the authenticated name, or the name that an anonymous client claims.
    pub user: &'a str,
    /// How `user` was authenticated; `None` if it was not.
    pub proven_by: Option<AuthType>,
}

/// Contract and captures that follow from a topic.
#[derive(Debug)]
pub struct TopicMatch {
    pub contract: Arc<Contract>,
    /// Client, user and topic, followed by the captures of the topic pattern.
    pub captures: Vec<String>,
}

impl Contracts {
    /// Loads every `*.toml` of a folder and its direct subfolders. Each problem names file, line and key.
    pub fn load(
        folder: &Path,
        surroundings: &GatewayNames,
        lanes: &[String],
        has_mask_key: bool,
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let unreadable = |error: std::io::Error| {
            vec![Problem {
                file: folder.to_owned(),
                line: 0,
                key: String::new(),
                message: format!("the folder of contracts cannot be read: {error}"),
            }]
        };
        let mut files = Vec::new();
        let mut warnings = Vec::new();
        for path in paths(folder).map_err(unreadable)? {
            let ending = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            } else if ending.is_some_and(|ending| matches!(ending.as_str(), "toml" | "tml" | "yaml" | "yml")) {
                warnings.push(Problem {
                    file: path,
                    line: 0,
                    key: String::new(),
                    message: "is not read; the name of a contract ends in \".toml\"".into(),
                });
            }
        }
        files.sort();
        let mut problems = Vec::new();
        let mut list: Vec<Arc<Contract>> = Vec::new();
        for file in &files {
            match file::load(file, surroundings, lanes, has_mask_key, &mut warnings) {
                Ok(contract) if !contract.is_enabled => {}
                Ok(contract) => match list.iter().find_map(|other| conflict(other, &contract)) {
                    Some(message) => {
                        problems.push(Problem { file: file.clone(), line: 0, key: "match".into(), message })
                    }
                    None => list.push(Arc::new(contract)),
                },
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        // The most specific pattern comes first, so a search stops at the first match.
        let width = |contract: &Contract| (contract.source_name.is_none(), Reverse(contract.pattern.specificity()));
        list.sort_by_key(|contract| width(contract));
        Ok((Self { list }, warnings))
    }

    /// Iterates over all enabled contracts, the most specific first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Contract>> {
        self.list.iter()
    }

    /// Checks the contracts against the publications `in_force`, oldest first: finds changes that break consumers, and
    /// versions that were used for other content.
    pub fn check_against(&self, in_force: &[Publication]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for contract in &self.list {
            let next = &contract.publication;
            let current = in_force.iter().rev().find(|known| known.stream_id() == next.stream_id());
            let found = current.map(|current| incompatibilities(current, next)).unwrap_or_default();
            problems.extend(found.into_iter().map(|message| Problem {
                file: contract.file.clone(),
                line: 0,
                key: String::new(),
                message,
            }));
        }
        problems
    }

    /// Topic filters for the events of a key and the commands to the target of the same name, at
    /// central and on the gateway.
    pub fn filters_of_key(&self, name: &str) -> Vec<String> {
        let publications = || self.list.iter().map(|contract| &contract.publication);
        let events = publications().filter_map(|publication| publication.filter_of_key(name));
        let commands = publications().map(|publication| publication.filter_of_commands(name));
        let mut filters: Vec<_> = events.chain(commands).collect();
        filters.sort();
        filters.dedup();
        filters
    }

    /// Finds the contract for a topic of a source.
    pub fn find(&self, kind: SourceKind, source: &str, topic: &str, sender: Sender<'_>) -> Option<TopicMatch> {
        self.list.iter().find_map(|contract| {
            let fits = contract.source == kind && contract.source_name.as_deref().is_none_or(|name| name == source);
            let captures = if fits { contract.pattern.captures(topic)? } else { return None };
            Some(TopicMatch {
                contract: Arc::clone(contract),
                captures: [sender.client, sender.user, topic].into_iter().chain(captures).map(str::to_owned).collect(),
            })
        })
    }
}

/// Lists the files of a folder of contracts and of its direct subfolders.
fn paths(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                found.push(entry?.path());
            }
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Reason why two contracts cannot both be in use, and the remedy.
fn conflict(a: &Contract, b: &Contract) -> Option<String> {
    let other = a.file.display();
    if a.publication == b.publication && a.pattern.overlaps(b.pattern.unnamed()) {
        return Some(format!("duplicates {other}; remove one of the two"));
    }
    if a.publication.stream_id() == b.publication.stream_id() {
        let stream = a.publication.stream_id();
        return Some(format!(
            "declares stream \"{stream}\", as does {other}; give one of them another name, or remove it"
        ));
    }
    let same_source = a.source == b.source && a.source_name == b.source_name;
    (same_source && a.pattern.specificity() == b.pattern.specificity() && a.pattern.overlaps(b.pattern.unnamed()))
        .then(|| format!("matches some topics just as narrowly as {other}; make one of the patterns narrower"))
}
