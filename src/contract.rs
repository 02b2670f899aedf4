//! Contracts: the declared, versioned agreements on what the streams carry.
//!
//! Promise: an event that passes [`Contract::read`] is what its contract says; one that does not
//! comes back with a reason that names the field. A folder that loads can serve; one that does
//! not is refused whole, with every problem named.
//!
//! Not here: where raw facts come from (`sources`), what becomes of refused ones (`ingest`).

mod change;
mod file;
mod json;
pub mod odoo;
mod pattern;
mod publication;
mod schema;

pub use change::objections;
pub use json::{Pointer, Tree, push_json_string};
pub use pattern::Pattern;
pub use publication::{Publication, Renderer, Rendering, STRUCTURED};

use crate::event::{AuthType, Content, Timestamp};
use crate::setting::Problem;
use hmac::{Hmac, KeyInit, Mac};
use pattern::Template;
use schema::Schema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The longest key, in bytes: with the levels around it, a topic stays far below MQTT's 65,535.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest id that a device may give, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// What stands around every event of this gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// `test`, `production`, …
    pub environment: String,
    /// The plant.
    pub site: String,
    /// This gateway; unique in the site.
    pub gateway: String,
    /// First part of every event type.
    pub namespace: String,
}

/// The kinds of source an event can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// Devices that publish to the gateway's own listener.
    Mqtt,
    /// A broker of the plant, which the gateway subscribes to.
    Broker,
    /// Programs that post to the gateway over HTTP.
    Http,
    /// Machines that the gateway asks over Modbus.
    Modbus,
    /// An Odoo that the gateway reads.
    Odoo,
    /// The gateway's own watch over the business.
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

/// How the envelope travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Everything in one JSON object.
    #[default]
    Structured,
    /// Attributes as MQTT 5 user properties, the payload as it is.
    Binary,
}

/// Which payloads a contract takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accepts {
    /// JSON only.
    #[default]
    Json,
    /// JSON, and anything else as base64.
    Any,
    /// Everything as base64, unread.
    Bytes,
}

/// What payloads are made into JSON from, before the contract reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decode {
    /// Sparkplug B, on topics such as `spBv1.0/{group}/{type}/{node}/{device}`.
    SparkplugB,
}

/// What becomes of an event that breaks its contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnViolation {
    /// It is held back as a dead letter.
    #[default]
    DeadLetter,
    /// It is delivered, marked with the violation.
    Flag,
}

/// What order means to the consumers of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Events of one key never overtake each other.
    #[default]
    Key,
    /// Nothing: events may arrive in any order.
    None,
}

/// One contract, ready to serve.
#[derive(Debug)]
pub struct Contract {
    /// The file it came from.
    pub file: PathBuf,
    /// What the stream is for.
    pub purpose: String,
    /// The system that owns what the events say.
    pub system_of_record: String,
    source: SourceKind,
    source_name: Option<String>,
    pattern: Pattern,
    key: Template,
    /// Whether it says itself what its key is.
    pub names_key: bool,
    device: Template,
    publisher: Option<Publisher>,
    id: Option<Pointer>,
    time: Option<Pointer>,
    schema: Option<Schema>,
    accepts: Accepts,
    /// What its payloads are made into JSON from, where they are none.
    pub decode: Option<Decode>,
    on_violation: OnViolation,
    keep: Vec<Pointer>,
    mask: Vec<Pointer>,
    /// How long repeats are recognised by their id; `None` where its events have none.
    pub dedupe: Option<Duration>,
    /// What order means to its consumers.
    pub order: Order,
    /// Whether it serves; one that does not is checked all the same.
    pub is_enabled: bool,
    /// What is read of which model, where its events come from Odoo.
    pub odoo: Option<odoo::Section>,
    /// How its events look at central.
    pub publication: Publication,
}

/// The place of a topic that names who publishes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// Its index in the captures.
    index: usize,
    /// What it is called: a capture, `client` or `user`.
    pub name: String,
    /// Whether the contract says so itself; else it is the place that alone forms the key.
    pub is_written: bool,
}

/// What an event says once its contract has read it.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The id the device gave; `None` where the gateway mints one.
    pub id: Option<Cow<'a, str>>,
    /// When it happened, if the device says so.
    pub time: Option<Timestamp>,
    /// What order is kept for.
    pub key: Cow<'a, str>,
    /// What the payload is.
    pub content: Content,
    /// What is stored of the payload.
    pub payload: Cow<'a, [u8]>,
    /// What it breaks, where the contract delivers it all the same.
    pub violation: Option<String>,
}

/// An event that is not what its contract says.
#[derive(Debug)]
pub struct Violation<'a> {
    /// What is wrong, starting with the field. Never holds a value of the payload.
    pub reason: String,
    /// What may be kept of the payload, after `keep` and `mask`; the raw bytes where it does not parse.
    pub payload: Cow<'a, [u8]>,
}

impl Contract {
    /// The name of the stream.
    pub fn stream(&self) -> &str {
        &self.publication.stream
    }

    /// Whether a topic is one of its own.
    pub fn takes(&self, topic: &str) -> bool {
        self.pattern.captures(topic).is_some()
    }

    /// The kind of source its events come from.
    pub fn source(&self) -> SourceKind {
        self.source
    }

    /// Whether events of a source of this name count.
    pub fn is_for(&self, source: &str) -> bool {
        self.source_name.as_deref().is_none_or(|name| name == source)
    }

    /// The device that `captures` name, for the event's source.
    pub fn device<S: AsRef<str>>(&self, captures: &[S]) -> String {
        self.device.fill(captures, None).map_or_else(|_| String::new(), Cow::into_owned)
    }

    /// Which place of its topics has to be the proven name of whoever publishes; `None` if the contract names none.
    pub fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_ref()
    }

    /// The name that `captures` say the publisher has to have proven.
    pub fn publisher_in<'c>(&self, captures: &'c [String]) -> Option<&'c str> {
        captures.get(self.publisher.as_ref()?.index).map(String::as_str)
    }

    /// The topic filter of what somebody with this proven name may publish because of the contract.
    pub fn filter_of_publisher(&self, name: &str) -> Option<String> {
        Some(self.pattern.filter(Some((&self.publisher.as_ref()?.name, name))))
    }

    /// Whether some topic that it takes matches a pattern.
    pub fn overlaps(&self, pattern: &Pattern) -> bool {
        self.pattern.overlaps(pattern)
    }

    /// The topic filter of all that it takes.
    pub fn filter(&self) -> String {
        self.pattern.filter(None)
    }

    /// Reads a payload after the contract. `mask_key` is what masked fields are hashed with.
    pub fn read<'a>(
        &self,
        captures: &'a [String],
        payload: &'a [u8],
        mask_key: &[u8],
    ) -> Result<Reading<'a>, Violation<'a>> {
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
        match self.examine(captures, &tree) {
            Ok((id, time, key, violation)) => Ok(Reading {
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

    /// Checks a payload against the schema alone.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), String> {
        if self.accepts != Accepts::Json {
            return Ok(());
        }
        let tree = Tree::parse(payload).map_err(|error| format!("payload: is no JSON at column {}", error.column()))?;
        self.schema.as_ref().map_or(Ok(()), |schema| schema.check(&tree))
    }

    fn read_opaque<'a>(&self, captures: &'a [String], payload: &'a [u8]) -> Result<Reading<'a>, Violation<'a>> {
        let key = self.key.fill(captures, None).map_err(|unfilled| unfilled.to_string()).and_then(bounded_key);
        match key {
            Ok(key) => Ok(Reading {
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

    #[allow(clippy::type_complexity)]
    fn examine<'c, 't>(
        &self,
        captures: &'c [String],
        tree: &'t Tree<'t>,
    ) -> Result<(Option<Cow<'t, str>>, Option<Timestamp>, Cow<'c, str>, Option<String>), String> {
        let mut violation = None;
        // Without a key there is no order to keep, so that a key is never optional.
        let key = self.key.fill(captures, Some(tree)).map_err(|unfilled| unfilled.to_string()).and_then(bounded_key)?;
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

    /// What `keep` and `mask` leave of a payload.
    fn minimise<'a>(&self, tree: Tree<'a>, payload: &'a [u8], mask_key: &[u8]) -> Cow<'a, [u8]> {
        if self.keep.is_empty() && self.mask.is_empty() {
            return Cow::Borrowed(payload);
        }
        let mut tree = if self.keep.is_empty() { tree } else { tree.keep(&self.keep) };
        for pointer in &self.mask {
            // What is taken in again after it was a dead letter is masked already.
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

fn bounded_key(key: Cow<'_, str>) -> Result<Cow<'_, str>, String> {
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

/// What a masked value begins with.
const MASKED: &str = "hmac-sha256:";

/// `hmac-sha256:` and the first 16 bytes of the keyed hash of the value's JSON text.
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

/// All contracts in force.
#[derive(Debug, Default)]
pub struct Contracts {
    list: Vec<Arc<Contract>>,
}

/// Who hands in events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender<'a> {
    /// `{client}`: the client as its source knows it. Of an MQTT client it is a claim.
    pub client: &'a str,
    /// `{user}`: the name that the sender proved, or what an anonymous client says it is called.
    pub user: &'a str,
    /// How `user` was proven; `None` if nobody has checked it.
    pub proven_by: Option<AuthType>,
}

/// What a topic says about an event before its payload is read.
#[derive(Debug)]
pub struct Matched {
    /// The contract that counts.
    pub contract: Arc<Contract>,
    /// Client, user and topic, then the captures of the topic.
    pub captures: Vec<String>,
}

impl Contracts {
    /// Loads every `*.toml` of a folder and of the folders in it. Each problem names file, line and key.
    pub fn load(
        folder: &Path,
        surroundings: &Surroundings,
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
                Ok(contract) => match list.iter().find_map(|other| clash(other, &contract)) {
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
        // The narrowest pattern that matches counts, so that a search may stop at the first.
        let width = |contract: &Contract| (contract.source_name.is_none(), Reverse(contract.pattern.narrowness()));
        list.sort_by_key(|contract| width(contract));
        Ok((Self { list }, warnings))
    }

    /// Every contract.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Contract>> {
        self.list.iter()
    }

    /// What stands against these contracts while the publications `in_force` are, those that came last
    /// at the end: changes that break consumers, and versions that were taken for other content.
    pub fn check_against(&self, in_force: &[Publication]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for contract in &self.list {
            let next = &contract.publication;
            let current = in_force.iter().rev().find(|known| known.stream_id() == next.stream_id());
            let found = current.map(|current| objections(current, next)).unwrap_or_default();
            problems.extend(found.into_iter().map(|message| Problem {
                file: contract.file.clone(),
                line: 0,
                key: String::new(),
                message,
            }));
        }
        problems
    }

    /// Topic filters for the events of one key and the commands to one target of that name, at central and on the gateway.
    pub fn filters_of_key(&self, name: &str) -> Vec<String> {
        let publications = || self.list.iter().map(|contract| &contract.publication);
        let events = publications().filter_map(|publication| publication.filter_of_key(name));
        let commands = publications().map(|publication| publication.filter_of_commands(name));
        let mut filters: Vec<_> = events.chain(commands).collect();
        filters.sort();
        filters.dedup();
        filters
    }

    /// The contract that counts for a topic of a source.
    pub fn find(&self, kind: SourceKind, source: &str, topic: &str, sender: Sender<'_>) -> Option<Matched> {
        self.list.iter().find_map(|contract| {
            let fits = contract.source == kind && contract.source_name.as_deref().is_none_or(|name| name == source);
            let captures = if fits { contract.pattern.captures(topic)? } else { return None };
            Some(Matched {
                contract: Arc::clone(contract),
                captures: [sender.client, sender.user, topic].into_iter().chain(captures).map(str::to_owned).collect(),
            })
        })
    }
}

/// What a folder of contracts holds, and the folders in it: sets that belong together.
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

/// Why two contracts cannot both serve, and what to do about it.
fn clash(a: &Contract, b: &Contract) -> Option<String> {
    let other = a.file.display();
    if a.publication == b.publication && a.pattern.overlaps(&b.pattern) {
        return Some(format!("says the same as {other}; remove one of the two"));
    }
    if a.publication.stream_id() == b.publication.stream_id() {
        let stream = a.publication.stream_id();
        return Some(format!(
            "declares stream \"{stream}\", as does {other}; give one of them another name, or remove it"
        ));
    }
    let same_source = a.source == b.source && a.source_name == b.source_name;
    (same_source && a.pattern.narrowness() == b.pattern.narrowness() && a.pattern.overlaps(&b.pattern))
        .then(|| format!("matches some topics just as narrowly as {other}; make one of them narrower"))
}
