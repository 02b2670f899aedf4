//! Rendering: an event as central gets it, in structured or binary mode of CloudEvents.
//!
//! Promise: [`Renderer::render`] is a pure function of the stored record, its sequence and its recorded time; an event
//! has the same bytes on every copy and after every upgrade.

use super::compact::Compact;
use super::json::push_json_string;
use super::publication::{Publication, TopicPart, push_topic_levels, topic_parts};
use super::terms::{Classification, Mode};
use crate::event::text::safe;
use crate::event::{Attribute, Content, Id, Record, Timestamp};
use base64::Engine;
use std::borrow::Cow;

/// Start of a structured-mode event.
const ENVELOPE: &[u8] = br#"{"specversion":"1.0","type":"#;

/// Renderer of the events of a publication.
#[derive(Debug)]
pub struct Renderer {
    mode: Mode,
    /// `{"specversion":"1.0","type":"…","source":"/site/gateway/`, with `dataclassification` before the source.
    head: Vec<u8>,
    source_prefix: String,
    kind: String,
    classification: Option<Classification>,
    topic: Vec<TopicPart>,
    compact: Compact,
    stream_id: String,
}

/// A rendered event; reused from event to event.
#[derive(Debug, Default)]
pub struct Rendering {
    /// Whether the receiver takes user properties; without them, binary mode falls back to structured mode.
    pub takes_properties: bool,
    /// Whether the attributes become short user properties, whatever mode the contract names.
    pub is_compact: bool,
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    /// Media type of the payload; empty for JSON in the compact envelope.
    pub content_type: &'static str,
    /// Media type from the event itself (binary mode).
    pub content_type_own: Option<String>,
    pub properties: Vec<(Cow<'static, str>, String)>,
}

/// Media type of a structured-mode event.
pub const STRUCTURED: &str = "application/cloudevents+json";

impl Renderer {
    /// Creates the renderer of a publication.
    pub fn new(publication: &Publication) -> Self {
        let around = &publication.surroundings;
        let kind = safe(&format!("{}.{}", around.namespace, publication.stream_id())).into_owned();
        let mut source_prefix = String::from("/");
        crate::event::push_path_segment(&mut source_prefix, &around.site);
        source_prefix.push('/');
        crate::event::push_path_segment(&mut source_prefix, &around.gateway);
        source_prefix.push('/');
        let mut head = ENVELOPE.to_vec();
        push_json_string(&mut head, &kind);
        if let Some(classification) = publication.classification {
            head.extend_from_slice(br#","dataclassification":"#);
            push_json_string(&mut head, classification.word());
        }
        head.extend_from_slice(br#","source":""#);
        head.extend_from_slice(source_prefix.as_bytes());
        Self {
            mode: publication.mode,
            compact: Compact::new(publication, &source_prefix, &kind),
            head,
            source_prefix,
            kind,
            classification: publication.classification,
            topic: topic_parts(publication),
            stream_id: publication.stream_id(),
        }
    }

    /// Identity of the stream: `machine.state.v1`.
    pub fn stream_id(&self) -> &str {
        &self.stream_id
    }

    /// Renders an event into `out`, replacing its content.
    pub fn render(&self, record: &Record<'_>, sequence: u64, recorded: Timestamp, out: &mut Rendering) {
        out.topic.clear();
        self.push_topic(record, &mut out.topic);
        out.payload.clear();
        out.properties.clear();
        out.content_type_own = None;
        if out.is_compact && out.takes_properties {
            self.render_compact(record, (sequence, recorded), out);
        } else if self.mode == Mode::Binary && out.takes_properties {
            self.render_binary(record, sequence, recorded, out);
        } else {
            self.render_structured(record, sequence, recorded, &mut out.payload);
            out.content_type = STRUCTURED;
        }
    }

    /// Appends the topic of an event.
    pub fn push_topic(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        for part in &self.topic {
            match part {
                TopicPart::Text(text) => out.extend_from_slice(text.as_bytes()),
                TopicPart::Key => push_topic_levels(out, record.key),
                TopicPart::Device => {
                    let device = record.origin.split_once('/').map_or("", |(_, device)| device);
                    push_topic_levels(out, device);
                }
            }
        }
    }

    /// Appends the topic of a batch: the topic of an event without the levels of its key.
    pub fn push_batch_topic(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        let mut topic = Vec::new();
        for part in &self.topic {
            match part {
                TopicPart::Text(text) => topic.extend_from_slice(text.as_bytes()),
                TopicPart::Key => {}
                TopicPart::Device => {
                    let device = record.origin.split_once('/').map_or("", |(_, device)| device);
                    push_topic_levels(&mut topic, device);
                }
            }
        }
        let levels = topic.split(|byte| *byte == b'/').filter(|level| !level.is_empty());
        for (index, level) in levels.enumerate() {
            if index > 0 {
                out.push(b'/');
            }
            out.extend_from_slice(level);
        }
    }

    /// Appends the event in structured mode, as one JSON object.
    pub fn render_structured(&self, record: &Record<'_>, sequence: u64, recorded: Timestamp, out: &mut Vec<u8>) {
        out.reserve(self.head.len() + record.payload.len() + record.key.len() + record.origin.len() + 260);
        out.extend_from_slice(&self.head);
        out.extend_from_slice(record.origin.as_bytes());
        out.extend_from_slice(br#"","id":"#);
        push_id(out, record);
        out.extend_from_slice(br#","time":""#);
        record.time.write_rfc3339(out);
        out.push(b'"');
        // CloudEvents 1.0: a subject is not empty.
        if !record.key.is_empty() {
            out.extend_from_slice(br#","subject":"#);
            push_json_string(out, &safe(record.key));
        }
        out.extend_from_slice(br#","recordedtime":""#);
        recorded.write_rfc3339(out);
        out.extend_from_slice(br#"","sequence":""#);
        push_sequence(out, sequence);
        out.push(b'"');
        for attribute in &record.attributes {
            extensions(attribute, |name, text| {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"\":");
                push_json_string(out, &safe(text));
            });
        }
        match record.content {
            Content::Json => {
                out.extend_from_slice(br#","datacontenttype":"application/json","data":"#);
                out.extend_from_slice(record.payload);
            }
            Content::Bytes => {
                out.extend_from_slice(br#","datacontenttype":"#);
                push_json_string(out, &safe(media_type(record)));
                out.extend_from_slice(br#","data_base64":""#);
                let start = out.len();
                let encoded = base64::encoded_len(record.payload.len(), true).unwrap_or(0);
                out.resize(start + encoded, 0);
                // The buffer has exactly the encoded length, so this cannot fail.
                let _ = base64::engine::general_purpose::STANDARD.encode_slice(record.payload, &mut out[start..]);
                out.push(b'"');
            }
        }
        out.push(b'}');
    }

    fn render_binary(&self, record: &Record<'_>, sequence: u64, recorded: Timestamp, out: &mut Rendering) {
        out.payload.extend_from_slice(record.payload);
        match record.content {
            Content::Json => out.content_type = "application/json",
            Content::Bytes => {
                out.content_type = "application/octet-stream";
                out.content_type_own = Some(safe(media_type(record)).into_owned());
            }
        }
        let mut digits = Vec::with_capacity(20);
        push_sequence(&mut digits, sequence);
        out.properties.extend([
            ("specversion".into(), "1.0".to_owned()),
            ("id".into(), safe(&record.id.to_string()).into_owned()),
            ("source".into(), format!("{}{}", self.source_prefix, record.origin)),
            ("type".into(), self.kind.clone()),
            ("time".into(), record.time.to_string()),
        ]);
        if !record.key.is_empty() {
            out.properties.push(("subject".into(), safe(record.key).into_owned()));
        }
        out.properties.extend([
            ("recordedtime".into(), recorded.to_string()),
            ("sequence".into(), String::from_utf8_lossy(&digits).into_owned()),
        ]);
        self.push_classification(&mut out.properties);
        push_extensions(record, &mut out.properties);
    }

    fn push_classification(&self, properties: &mut Vec<(Cow<'static, str>, String)>) {
        properties.extend(self.classification.map(|one| ("dataclassification".into(), one.word().to_owned())));
    }

    fn render_compact(&self, record: &Record<'_>, numbered: (u64, Timestamp), out: &mut Rendering) {
        out.payload.extend_from_slice(record.payload);
        out.content_type = "";
        if record.content == Content::Bytes {
            out.content_type_own = Some(safe(media_type(record)).into_owned());
        }
        self.compact.push(record, numbered, &out.topic, &mut out.properties);
        self.push_classification(&mut out.properties);
        push_extensions(record, &mut out.properties);
    }
}

fn media_type<'a>(record: &Record<'a>) -> &'a str {
    record
        .attribute(|attribute| match attribute {
            Attribute::ContentType(text) if !text.is_empty() => Some(*text),
            _ => None,
        })
        .unwrap_or("application/octet-stream")
}

/// Appends the extension attributes of an event as properties.
fn push_extensions(record: &Record<'_>, out: &mut Vec<(Cow<'static, str>, String)>) {
    for attribute in &record.attributes {
        extensions(attribute, |name, text| out.push((Cow::Owned(name.to_owned()), safe(text).into_owned())));
    }
}

/// Calls `each` with the extension attributes of the envelope for an attribute of the record.
fn extensions(attribute: &Attribute<'_>, mut each: impl FnMut(&str, &str)) {
    match attribute {
        Attribute::TraceParent(text) => each("traceparent", text),
        Attribute::OriginalId(text) => each("originalid", text),
        Attribute::Violation(text) => each("violation", text),
        Attribute::ClockStatus(text) => each("clockstatus", text),
        Attribute::Auth { kind, name } => {
            each("authtype", kind.as_str());
            each("authid", name);
        }
        Attribute::Expires(at) => each("expirytime", &at.to_string()),
        Attribute::ResponseTopic(topic) => each("responsetopic", topic),
        Attribute::CorrelationData(data) => {
            each("correlationdata", &base64::engine::general_purpose::STANDARD.encode(data));
        }
        Attribute::UserProperty { name, value } => each(name, value),
        Attribute::ContentType(_) | Attribute::Exchange { .. } | Attribute::Properties(_) => {}
    }
}

fn push_id(out: &mut Vec<u8>, record: &Record<'_>) {
    match record.id {
        Id::Text(text) => push_json_string(out, &safe(text)),
        Id::Uuid(bytes) => {
            let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
            let text = uuid::Uuid::from_bytes(bytes).hyphenated().encode_lower(&mut text);
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
        }
    }
}

/// Appends a sequence with twenty digits, enough for every 64-bit number, so sequences sort as text.
fn push_sequence(out: &mut Vec<u8>, sequence: u64) {
    let mut digits = [b'0'; 20];
    let mut rest = sequence;
    for digit in digits.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits);
}

#[cfg(test)]
mod tests {
    use super::super::publication::tests::publication;
    use super::*;
    use crate::event::AuthType;
    use proptest::prelude::*;
    use serde_json::Value;

    fn record(payload: &[u8], content: Content) -> Record<'_> {
        Record {
            publication: 1,
            id: Id::Text("m-1\"x"),
            time: Timestamp(1_764_000_000_000_001),
            origin: "shopfloor/press%204",
            key: "line/1",
            content,
            attributes: vec![],
            payload,
        }
    }

    /// The golden envelope: these bytes must never change, since copies of an event are compared.
    #[test]
    fn the_structured_envelope_is_the_golden_one() {
        let mut out = Rendering { takes_properties: true, ..Rendering::default() };
        let renderer = Renderer::new(&publication(Mode::Structured));
        renderer.render(&record(br#"{"state":"idle"}"#, Content::Json), 42, Timestamp(1_764_000_001_000_000), &mut out);
        assert_eq!(String::from_utf8_lossy(&out.topic), "test/plant-01/machine.state/v1/line/1");
        assert_eq!(
            String::from_utf8_lossy(&out.payload),
            r#"{"specversion":"1.0","type":"com.example.mfg.machine.state.v1","source":"/plant-01/gw-01/shopfloor/press%204","id":"m-1\"x","time":"2025-11-24T16:00:00.000001Z","subject":"line/1","recordedtime":"2025-11-24T16:00:01.000000Z","sequence":"00000000000000000042","datacontenttype":"application/json","data":{"state":"idle"}}"#
        );
        assert!(serde_json::from_slice::<Value>(&out.payload).is_ok());
        renderer.render(&record(&[0, 255, 1], Content::Bytes), 42, Timestamp(0), &mut out);
        let text = String::from_utf8_lossy(&out.payload).into_owned();
        assert!(text.ends_with(r#""datacontenttype":"application/octet-stream","data_base64":"AP8B"}"#), "{text}");
    }

    proptest! {
        /// Any key, id and attribute in any mode: the attributes are what CloudEvents allow, and the topic is what brokers take.
        #[test]
        fn every_text_is_safe_wherever_it_travels(key in ".{0,20}", id in ".{1,20}", other in ".{1,20}", odd in prop_oneof![
            Just(""), Just("\u{0}"), Just("\u{1}"), Just("\u{7f}"), Just("\u{9f}"), Just("\u{fffe}"), Just("\u{fdd0}"), Just("/"), Just("+#")
        ]) {
            let (key, id, other) = (format!("{key}{odd}"), format!("{odd}{id}"), format!("{other}{odd}"));
            let mut record = record(b"\xff", Content::Bytes);
            (record.key, record.id) = (&key, Id::Text(&id));
            record.attributes = vec![
                Attribute::OriginalId(&other), Attribute::Violation(&other), Attribute::TraceParent(&other),
                Attribute::ContentType(&other), Attribute::Auth { kind: AuthType::User, name: &other },
            ];
            let is_good = |text: &str| !text.is_empty() && !text.contains(crate::event::text::is_unsafe);
            for (mode, is_compact) in [(Mode::Structured, false), (Mode::Binary, false), (Mode::Structured, true)] {
                let mut out = Rendering { takes_properties: true, is_compact, ..Rendering::default() };
                Renderer::new(&publication(mode)).render(&record, 7, Timestamp(0), &mut out);
                let topic = std::str::from_utf8(&out.topic).expect("UTF-8");
                prop_assert!(is_good(topic) && !topic.contains(['+', '#']) && !topic.split('/').any(str::is_empty), "{topic:?}");
                if mode == Mode::Structured && !is_compact {
                    let event: Value = serde_json::from_slice(&out.payload).expect("JSON");
                    let attributes = event.as_object().expect("an object");
                    prop_assert_eq!(attributes.contains_key("subject"), !key.is_empty());
                    prop_assert!(attributes.values().all(|value| is_good(value.as_str().expect("text"))), "{}", event);
                } else {
                    // An empty `k` says that there is no subject.
                    let is_no_key = |name: &str, text: &str| name == "k" && text.is_empty() && key.is_empty();
                    let mut properties = out.properties.iter();
                    prop_assert!(properties.all(|(name, text)| is_good(text) || is_no_key(name, text)), "{:?}", out.properties);
                    prop_assert!(is_good(out.content_type_own.as_deref().expect("a media type")));
                }
            }
        }
    }

    #[test]
    fn binary_mode_carries_the_attributes_as_properties() {
        let mut out = Rendering { takes_properties: true, ..Rendering::default() };
        let renderer = Renderer::new(&publication(Mode::Binary));
        renderer.render(&record(b"{}", Content::Json), 7, Timestamp(0), &mut out);
        assert_eq!(out.payload, b"{}");
        assert_eq!(out.content_type, "application/json");
        assert!(out.properties.contains(&("sequence".into(), "00000000000000000007".to_owned())));
        out.takes_properties = false;
        renderer.render(&record(b"{}", Content::Json), 7, Timestamp(0), &mut out);
        assert_eq!(out.content_type, STRUCTURED);
        assert!(out.properties.is_empty());
    }

    /// The compact form, and what a consumer makes of it with the topic.
    #[test]
    fn the_compact_envelope_is_short_and_complete() {
        let mut out = Rendering { takes_properties: true, is_compact: true, ..Rendering::default() };
        let renderer = Renderer::new(&publication(Mode::Structured));
        let rendered = |record: &Record<'_>, out: &mut Rendering| -> Vec<String> {
            renderer.render(record, 42, Timestamp(1_764_000_001_000_000), out);
            out.properties.iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        let mut one = record(br#"{"state":"idle"}"#, Content::Json);
        let common = ["s=gw-01/shopfloor/press%204", "p=com.example.mfg", "t=1764000000000001", "r=999999", "n=42"];
        let wanted = |id: &'static str| [&[id], common.as_slice()].concat();
        assert_eq!(rendered(&one, &mut out), wanted("i=m-1\"x"), "the topic has the key");
        assert_eq!((out.payload.as_slice(), out.content_type), (br#"{"state":"idle"}"#.as_slice(), ""));
        one.id = Id::Uuid([0xFB; 16]);
        assert_eq!(rendered(&one, &mut out)[0], "u=-_v7-_v7-_v7-_v7-_v7-w");
        one.key = "line+1";
        assert!(rendered(&one, &mut out).contains(&"k=line+1".to_owned()), "the topic has it escaped");
        out.takes_properties = false;
        renderer.render(&one, 42, Timestamp(0), &mut out);
        assert_eq!(out.content_type, STRUCTURED, "without properties there is no compact form");
    }

    #[test]
    fn who_handed_an_event_in_travels_in_both_modes() {
        let mut out = Rendering { takes_properties: true, ..Rendering::default() };
        let mut record = record(b"{}", Content::Json);
        record.attributes = vec![Attribute::Auth { kind: AuthType::ServiceAccount, name: "line \"1\"" }];
        Renderer::new(&publication(Mode::Structured)).render(&record, 7, Timestamp(0), &mut out);
        let text = String::from_utf8_lossy(&out.payload).into_owned();
        assert!(text.contains(r#","authtype":"service_account","authid":"line \"1\"","#), "{text}");
        Renderer::new(&publication(Mode::Binary)).render(&record, 7, Timestamp(0), &mut out);
        for pair in [("authtype", "service_account"), ("authid", "line \"1\"")] {
            assert!(out.properties.contains(&(pair.0.into(), pair.1.to_owned())), "{:?}", out.properties);
        }
    }
}
