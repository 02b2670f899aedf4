//! CloudEvents 1.0 as senders write them: in JSON (structured mode), or as a payload with attributes (binary mode).
//!
//! Promise: the attributes of an event that was read are within their limits and what CloudEvents allow; an error names the
//! attribute. HTTP and MQTT follow the same rules.

use super::submission::{EventMetadata, MEDIA_TYPE_BYTES_MAX};
use crate::contract::{ID_BYTES_MAX, KEY_BYTES_MAX};
use crate::event::{Timestamp, text};
use crate::mqtt::properties::PublishProperties;
use base64::Engine;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The longest `type`, in bytes.
const TYPE_BYTES_MAX: usize = 256;
/// The longest `source`, in bytes.
const SOURCE_BYTES_MAX: usize = 1024;
/// Media type of the structured mode.
const STRUCTURED: &str = "application/cloudevents+json";
/// Start of the media types of all formats of CloudEvents.
const ANY: &str = "application/cloudevents";

/// A CloudEvent, with the attributes that the gateway uses.
#[derive(Debug)]
pub struct CloudEvent<'a> {
    pub kind: Cow<'a, str>,
    pub source: Cow<'a, str>,
    pub id: Cow<'a, str>,
    pub time: Option<Timestamp>,
    pub subject: Option<Cow<'a, str>>,
    pub trace_parent: Option<Cow<'a, str>>,
    /// Media type of the data.
    pub content_type: Option<Cow<'a, str>>,
    pub payload: Cow<'a, [u8]>,
}

impl<'a> CloudEvent<'a> {
    /// Reads an event in structured mode. `place` begins each error.
    pub fn structured(place: &str, json: &'a [u8]) -> Result<Self, String> {
        let event = serde_json::from_slice(json).map_err(|error| format!("{place}no CloudEvent: {error}"))?;
        read_structured(place, event)
    }

    /// Reads the event in a publish of MQTT: in structured mode by its content type, in binary mode by the user property
    /// `specversion`. `None` if it is no CloudEvent.
    pub(super) fn of_publish(metadata: &EventMetadata<'a>, payload: &'a [u8]) -> Option<Result<Self, String>> {
        const PLACE: &str = "cloudevent: ";
        let block = metadata.properties?;
        let media_type = metadata.content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case(STRUCTURED) {
            return Some(Self::structured(PLACE, payload));
        }
        if media_type.get(..ANY.len()).is_some_and(|start| start.eq_ignore_ascii_case(ANY)) {
            let reason = format!("{PLACE}of the formats of CloudEvents, {STRUCTURED} is understood over MQTT");
            return Some(Err(reason));
        }
        if block.is_empty() {
            return None;
        }
        let found = PublishProperties::read(block);
        let attribute =
            |name: &str| found.user.iter().find(|(known, _)| *known == name).map(|(_, value)| Cow::Borrowed(*value));
        let specversion = attribute("specversion")?;
        let required = |name: &str| attribute(name).ok_or_else(|| format!("{PLACE}{name}: is missing"));
        let read = || {
            let attributes = Attributes {
                specversion,
                id: required("id")?,
                source: required("source")?,
                kind: required("type")?,
                time: attribute("time"),
                subject: attribute("subject"),
                content_type: metadata.content_type.map(Cow::Borrowed),
                trace_parent: attribute("traceparent"),
            };
            let payload = if payload.is_empty() && metadata.content_type.is_none() { NO_DATA } else { payload.into() };
            attributes.check(PLACE, payload)
        };
        Some(read())
    }

    /// The metadata of the event; `outer` is that of its publish, sent by `client`.
    pub(super) fn metadata<'e>(&'e self, outer: &EventMetadata<'e>, client: &str) -> EventMetadata<'e> {
        EventMetadata {
            trace_parent: self.trace_parent.as_deref().or(outer.trace_parent),
            content_type: self.content_type.as_deref(),
            id: Some(&self.id),
            time: self.time,
            key: self.subject.as_deref(),
            // What differs by `source` and `id` here differs by them at central too.
            part: (self.source != client).then_some(&*self.source),
            ..*outer
        }
    }
}

/// A CloudEvent as JSON. Other attributes are ignored.
#[derive(Deserialize)]
struct Structured<'a> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    time: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    datacontenttype: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    traceparent: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data_base64: Option<Cow<'a, str>>,
}

fn read_structured<'a>(place: &str, event: Structured<'a>) -> Result<CloudEvent<'a>, String> {
    let is_json = event.datacontenttype.as_deref().is_none_or(is_json);
    let payload = match (event.data, event.data_base64) {
        (Some(_), Some(_)) => {
            return Err(format!("{place}data and data_base64: only one of them is allowed"));
        }
        (None, Some(text)) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_bytes());
            Cow::Owned(bytes.map_err(|_| format!("{place}data_base64: is no base64"))?)
        }
        // Data of a media type other than JSON may be a JSON string that contains the text.
        (Some(data), None) if !is_json && data.get().starts_with('"') => {
            let text: Cow<'a, str> =
                serde_json::from_str(data.get()).map_err(|_| format!("{place}data: is no JSON string"))?;
            Cow::Owned(text.into_owned().into_bytes())
        }
        (Some(data), None) => Cow::Borrowed(data.get().as_bytes()),
        (None, None) => NO_DATA,
    };
    let attributes = Attributes {
        specversion: event.specversion,
        id: event.id,
        source: event.source,
        kind: event.r#type,
        time: event.time,
        subject: event.subject,
        content_type: event.datacontenttype,
        trace_parent: event.traceparent,
    };
    attributes.check(place, payload)
}

/// The payload of a CloudEvent without data, for contracts that require JSON.
pub const NO_DATA: Cow<'static, [u8]> = Cow::Borrowed(b"null");

fn is_json(media_type: &str) -> bool {
    let kind = media_type.split(';').next().unwrap_or("").trim();
    let subtype = kind.split_once('/').map_or("", |(_, subtype)| subtype).to_ascii_lowercase();
    subtype == "json" || subtype.ends_with("+json")
}

/// The attributes of a CloudEvent that the gateway uses, before their checks.
pub struct Attributes<'a> {
    pub specversion: Cow<'a, str>,
    pub id: Cow<'a, str>,
    pub source: Cow<'a, str>,
    pub kind: Cow<'a, str>,
    pub time: Option<Cow<'a, str>>,
    pub subject: Option<Cow<'a, str>>,
    pub content_type: Option<Cow<'a, str>>,
    pub trace_parent: Option<Cow<'a, str>>,
}

impl<'a> Attributes<'a> {
    pub fn check(self, place: &str, payload: Cow<'a, [u8]>) -> Result<CloudEvent<'a>, String> {
        if self.specversion != "1.0" {
            let written = self.specversion.escape_debug();
            return Err(format!("{place}specversion: \"{written:.20}\" is not supported; expected \"1.0\""));
        }
        let time = self.time.map(|text| {
            Timestamp::parse(&text)
                .ok_or_else(|| format!("{place}time: is no time; expected RFC 3339 such as 2026-11-23T08:00:00Z"))
        });
        let optional = |name, value: Option<Cow<'a, str>>, bytes_max| {
            value.map(|value| checked(place, name, value, bytes_max)).transpose()
        };
        Ok(CloudEvent {
            kind: checked(place, "type", self.kind, TYPE_BYTES_MAX)?,
            source: checked(place, "source", self.source, SOURCE_BYTES_MAX)?,
            id: checked(place, "id", self.id, ID_BYTES_MAX)?,
            time: time.transpose()?,
            subject: optional("subject", self.subject, KEY_BYTES_MAX)?,
            trace_parent: optional("traceparent", self.trace_parent, 128)?,
            content_type: optional("datacontenttype", self.content_type, MEDIA_TYPE_BYTES_MAX)?,
            payload,
        })
    }
}

/// Checks an attribute as CloudEvents require.
fn checked<'a>(place: &str, name: &str, text: Cow<'a, str>, bytes_max: usize) -> Result<Cow<'a, str>, String> {
    match text::check(&text, bytes_max) {
        Ok(()) => Ok(text),
        Err(bad) => Err(format!("{place}{name}: {bad}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_publish_is_read_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..100), block in proptest::collection::vec(any::<u8>(), 0..100), kind in ".{0,40}") {
            for content_type in [kind.as_str(), STRUCTURED] {
                let metadata = EventMetadata { content_type: Some(content_type), properties: Some(&block), ..EventMetadata::default() };
                let _ = CloudEvent::of_publish(&metadata, &payload);
            }
        }
    }
}
