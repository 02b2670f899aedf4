//! A publication: one version of a contract as central sees it.

use super::terms::{Classification, GatewayNames, Mode};
use crate::event::text;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything needed to render an event, except the event itself. The journal keeps it as long as
/// stored events refer to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    pub format: u32,
    /// Name of the stream, without its version.
    pub stream: String,
    /// Version of the contract, `major.minor.patch`.
    pub version: String,
    /// Environment, site, gateway and namespace at that time.
    pub surroundings: GatewayNames,
    pub mode: Mode,
    pub topic: String,
    pub lane: String,
    /// Retention of settled events, in seconds.
    pub retention_settled: u64,
    /// Maximum time that an event may wait for central, in seconds; `None` for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_unsettled: Option<u64>,
    /// The schema, for consumers and for the comparison with the next version.
    pub schema: Option<Value>,
    /// Payload fields to keep; empty for all.
    pub keep: Vec<String>,
    pub mask: Vec<String>,
    pub key: String,
    pub owner: String,
    /// Value of the CloudEvents attribute `dataclassification`; `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
}

/// Format version that this version of Forebay writes.
pub(super) const PUBLICATION_FORMAT: u32 = 1;

impl Publication {
    /// Publication of a stream about the gateway itself, `gateway.…`, with the gateway as key.
    pub fn own(stream: &str, surroundings: &GatewayNames, lane: &str) -> Self {
        Self {
            format: PUBLICATION_FORMAT,
            stream: stream.to_owned(),
            version: "1.0.0".to_owned(),
            surroundings: surroundings.clone(),
            mode: Mode::Structured,
            topic: TOPIC_DEFAULT.to_owned(),
            lane: lane.to_owned(),
            retention_settled: 7 * 86_400,
            retention_unsettled: None,
            schema: None,
            keep: Vec::new(),
            mask: Vec::new(),
            key: "{gateway}".to_owned(),
            owner: "forebay".to_owned(),
            classification: None,
        }
    }

    /// Whether the stream is about the gateway itself.
    pub fn is_own(&self) -> bool {
        self.stream.starts_with("gateway.")
    }

    /// Major version: the first number of the version.
    pub fn major(&self) -> u64 {
        major_of(&self.version)
    }

    /// Identity of the stream: `machine.state.v1`.
    pub fn stream_id(&self) -> String {
        format!("{}.v{}", self.stream, self.major())
    }

    /// Topic filter for the events of a key. With the default topic it covers every stream. `None` if no filter
    /// separates the events of that key from others.
    pub fn filter_of_key(&self, key: &str) -> Option<String> {
        if self.topic == TOPIC_DEFAULT {
            return Some(format!("{}/+/+/{}", self.prefix(), escaped(key)));
        }
        let mut filter = String::new();
        let mut has_key = false;
        for part in topic_parts(self) {
            match part {
                TopicPart::Text(text) => filter.push_str(&text),
                TopicPart::Key => {
                    has_key = true;
                    filter.push_str(&escaped(key));
                }
                TopicPart::Device => filter.push('+'),
            }
        }
        let is_filter = filter.split('/').all(|level| level == "+" || !level.contains('+'));
        (has_key && is_filter).then_some(filter)
    }

    /// Topic filter for the commands to a target of this gateway.
    pub fn filter_of_commands(&self, target: &str) -> String {
        format!("{}/command/{}/+/+/+/{}", self.prefix(), escaped(&self.surroundings.gateway), escaped(target))
    }

    /// Prefix of topics at central: environment and site.
    fn prefix(&self) -> String {
        format!("{}/{}", escaped(&self.surroundings.environment), escaped(&self.surroundings.site))
    }
}

/// Escapes a text as topic levels.
pub(super) fn escaped(text: &str) -> String {
    let mut out = Vec::new();
    push_topic_levels(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}

/// Returns the first number of a version such as `1.2.0`.
pub(super) fn major_of(version: &str) -> u64 {
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

/// A part of a topic template at central.
#[derive(Debug)]
pub(super) enum TopicPart {
    Text(String),
    Key,
    Device,
}

/// Appends a key as topic levels. `/` separates levels; wildcards, characters that are not safe and `%` are
/// percent-encoded; an empty level becomes `%_`, since some brokers reject empty levels.
pub(super) fn push_topic_levels(out: &mut Vec<u8>, key: &str) {
    for (index, level) in key.split('/').enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        if level.is_empty() {
            out.extend_from_slice(b"%_");
        }
        for character in level.chars() {
            if matches!(character, '+' | '#' | '%') || text::is_unsafe(character) {
                let mut escaped = String::new();
                text::push_escaped(&mut escaped, character);
                out.extend_from_slice(escaped.as_bytes());
            } else {
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
}

/// Placeholders of a topic template at central.
pub(super) const TOPIC_PLACEHOLDERS: [&str; 7] = ["environment", "site", "gateway", "stream", "major", "key", "device"];

pub(super) const TOPIC_DEFAULT: &str = "{environment}/{site}/{stream}/v{major}/{key}";

/// Parses a topic template. Unknown placeholders stay as they are (`check_topic` rejects them earlier).
pub(super) fn topic_parts(publication: &Publication) -> Vec<TopicPart> {
    let around = &publication.surroundings;
    let mut parts: Vec<TopicPart> = Vec::new();
    let push_text = |parts: &mut Vec<TopicPart>, text: &str| match parts.last_mut() {
        Some(TopicPart::Text(last)) => last.push_str(text),
        _ => parts.push(TopicPart::Text(text.to_owned())),
    };
    let mut rest = publication.topic.as_str();
    while let Some(open) = rest.find('{') {
        push_text(&mut parts, &rest[..open]);
        let close = rest[open..].find('}').map_or(rest.len(), |length| open + length);
        match &rest[open + 1..close] {
            "environment" => push_text(&mut parts, &escaped(&around.environment)),
            "site" => push_text(&mut parts, &escaped(&around.site)),
            "gateway" => push_text(&mut parts, &escaped(&around.gateway)),
            "stream" => push_text(&mut parts, &escaped(&publication.stream)),
            "major" => push_text(&mut parts, &publication.major().to_string()),
            "key" => parts.push(TopicPart::Key),
            "device" => parts.push(TopicPart::Device),
            other => push_text(&mut parts, other),
        }
        rest = rest.get(close + 1..).unwrap_or("");
    }
    push_text(&mut parts, rest);
    parts
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::contract) fn publication(mode: Mode) -> Publication {
        Publication {
            format: PUBLICATION_FORMAT,
            stream: "machine.state".into(),
            version: "1.2.0".into(),
            surroundings: GatewayNames {
                environment: "test".into(),
                site: "plant-01".into(),
                gateway: "gw-01".into(),
                namespace: "com.example.mfg".into(),
            },
            mode,
            topic: TOPIC_DEFAULT.into(),
            lane: "critical".into(),
            retention_settled: 60,
            retention_unsettled: None,
            schema: None,
            keep: vec![],
            mask: vec![],
            key: "{machine}".into(),
            owner: "production".into(),
            classification: None,
        }
    }

    #[test]
    fn the_filter_of_a_key_takes_its_events_and_no_others() {
        let filter = |topic: &str, key: &str| {
            Publication { topic: topic.into(), ..publication(Mode::Structured) }.filter_of_key(key)
        };
        assert_eq!(filter(TOPIC_DEFAULT, "press-4").as_deref(), Some("test/plant-01/+/+/press-4"));
        assert_eq!(filter(TOPIC_DEFAULT, "a+b").as_deref(), Some("test/plant-01/+/+/a%2Bb"), "no wildcard of its own");
        assert_eq!(filter("{environment}/x/{key}/{device}", "press-4").as_deref(), Some("test/x/press-4/+"));
        assert_eq!(filter("{environment}/x/{device}", "press-4"), None, "the key is not in it");
        assert_eq!(filter("{environment}/x/d-{device}/{key}", "press-4"), None, "no filter for a part of a level");
        assert_eq!(
            publication(Mode::Structured).filter_of_commands("press-4"),
            "test/plant-01/command/gw-01/+/+/+/press-4"
        );
    }

    #[test]
    fn a_key_never_becomes_a_wildcard_or_an_empty_level() {
        let mut out = Vec::new();
        push_topic_levels(&mut out, "a//+#\u{1}%ü/\u{fffe}/");
        assert_eq!(String::from_utf8_lossy(&out), "a/%_/%2B%23%01%25ü/%EF%BF%BE/%_");
    }
}
