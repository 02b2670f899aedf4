//! The compact envelope: the attributes of an event as short user properties, for lines that are paid by the byte.
//!
//! Promise: with its topic, a message has every attribute; a consumer needs no other message to read it. The property `i`
//! or `u` marks the first version of this format.

use super::publication::Publication;
use crate::event::text::safe;
use crate::event::{Id, Record, Timestamp};
use base64::Engine;
use std::borrow::Cow;

/// The topic from which a consumer takes what the properties leave out.
const DEFAULT_TOPIC: &str = "{environment}/{site}/{stream}/v{major}/{key}";

/// What the events of a publication have in common.
#[derive(Debug)]
pub(super) struct Compact {
    /// Name and value of the property for the type: `p` with the namespace alone, if the topic has the rest.
    kind: (&'static str, String),
    /// Source without the device: without the site, if the topic has it.
    source: String,
    /// Bytes of the topic in front of the key, if the topic is the default one.
    before_key: Option<usize>,
}

impl Compact {
    /// `source_prefix` is the source without the device, `kind` the type.
    pub(super) fn new(publication: &Publication, source_prefix: &str, kind: &str) -> Self {
        let around = &publication.surroundings;
        let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let names = [&around.environment, &around.site, &publication.stream];
        if publication.topic != DEFAULT_TOPIC || !names.iter().all(|name| is_plain(name)) {
            return Self { kind: ("y", kind.to_owned()), source: source_prefix.to_owned(), before_key: None };
        }
        let major = publication.major().to_string();
        let before_key = names.iter().map(|name| name.len() + 1).sum::<usize>() + major.len() + 2;
        let source = source_prefix.strip_prefix(&format!("/{}/", around.site)).unwrap_or(source_prefix);
        Self { kind: ("p", around.namespace.clone()), source: source.to_owned(), before_key: Some(before_key) }
    }

    /// Appends the attributes of an event that is sent with this topic.
    pub(super) fn push(
        &self,
        record: &Record<'_>,
        (sequence, recorded): (u64, Timestamp),
        topic: &[u8],
        out: &mut Vec<(Cow<'static, str>, String)>,
    ) {
        out.push(match record.id {
            Id::Text(text) => ("i".into(), safe(text).into_owned()),
            Id::Uuid(bytes) => ("u".into(), base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)),
        });
        out.extend([
            ("s".into(), format!("{}{}", self.source, record.origin)),
            (self.kind.0.into(), self.kind.1.clone()),
            ("t".into(), record.time.0.to_string()),
            ("r".into(), recorded.0.wrapping_sub(record.time.0).to_string()),
            ("n".into(), sequence.to_string()),
        ]);
        let in_topic = self.before_key.and_then(|length| topic.get(length..));
        if in_topic != Some(record.key.as_bytes()) {
            out.push(("k".into(), safe(record.key).into_owned()));
        }
    }
}
