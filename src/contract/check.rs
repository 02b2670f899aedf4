//! Checks an event against its contract, and applies `keep` and `mask` to its payload.
//!
//! Promise: a reason against an event contains no value of its payload.

use super::columns::Columns;
use super::json::{Pointer, Tree};
use super::odoo;
use super::pattern::{Pattern, Template};
use super::properties;
use super::publication::Publication;
use super::schema::Schema;
use super::terms::{Accepts, DEDUPE, Decode, ID_BYTES_MAX, KEY_BYTES_MAX, OnViolation, Order, SourceKind};
use crate::event::{Attribute, Content, Timestamp};
use crate::mqtt::Filter;
use crate::mqtt::properties::PublishProperties;
use hmac::{Hmac, KeyInit, Mac};
use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

/// A parsed and checked contract.
#[derive(Debug)]
pub struct Contract {
    /// File that the contract was read from.
    pub file: PathBuf,
    /// Purpose of the stream, for people.
    pub purpose: String,
    /// System that owns the facts in the events.
    pub system_of_record: String,
    pub(super) source: SourceKind,
    pub(super) source_name: Option<String>,
    pub(super) pattern: Pattern,
    pub(super) key: Template,
    /// Whether the contract sets `key`; else a source may provide the key.
    pub has_own_key: bool,
    pub(super) device: Template,
    pub(super) publisher: Option<Publisher>,
    pub(super) id: Option<Pointer>,
    pub(super) time: Option<Pointer>,
    pub(super) schema: Option<Schema>,
    pub(super) accepts: Accepts,
    /// Format that the gateway decodes to JSON, if payloads are not JSON already.
    pub decode: Option<Decode>,
    pub(super) on_violation: OnViolation,
    pub(super) keep: Vec<Pointer>,
    pub(super) mask: Vec<Pointer>,
    /// Requested dedupe window; `None` where the events have no id of their own.
    pub dedupe: Option<Duration>,
    /// Ordering guarantee for the consumers.
    pub order: Order,
    /// Whether the contract is in use. Disabled contracts are checked too.
    pub is_enabled: bool,
    /// Model and fields to read, for contracts of source `odoo`.
    pub odoo: Option<odoo::Section>,
    pub(super) properties: properties::Section,
    /// Columns of files, for contracts of source `folder`.
    pub columns: Option<Columns>,
    /// Version of the contract as central sees it.
    pub publication: Publication,
}

/// The topic level that names the publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publisher {
    pub(super) index: usize,
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

    /// Attributes that the event keeps of the properties of its publish. The error is the reason of a dead letter.
    pub fn kept_properties<'p>(
        &'p self,
        found: &PublishProperties<'p>,
        arrived: Timestamp,
    ) -> Result<Vec<Attribute<'p>>, String> {
        self.properties.attributes(found, arrived)
    }

    /// Dedupe window of an event: also of one that brings an id which the contract does not name.
    pub fn dedupe_of(&self, has_id: bool) -> Option<Duration> {
        self.dedupe.or(has_id.then_some(DEDUPE))
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
                let reason = format!("payload: {error}");
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

    /// Applies `keep` and `mask` to a payload, if it can be parsed.
    pub fn minimised<'a>(&self, payload: &'a [u8], mask_key: &[u8]) -> Cow<'a, [u8]> {
        Tree::parse(payload).map_or(Cow::Borrowed(payload), |tree| self.minimise(tree, payload, mask_key))
    }

    /// Checks a payload against the schema only.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), String> {
        if self.accepts != Accepts::Json {
            return Ok(());
        }
        let tree = Tree::parse(payload).map_err(|error| format!("payload: {error}"))?;
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
                Some(Tree::Number(number)) => match number.integer() {
                    Some(integer) => Timestamp::from_epoch_integer(integer),
                    None => number.value().as_f64().and_then(Timestamp::from_epoch_number),
                },
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
