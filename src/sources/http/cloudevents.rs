//! Parsing of requests: CloudEvents 1.0 in their three content modes, or a plain payload.
//!
//! Promise: the attributes and payloads of parsed events are within their limits. Otherwise the whole request is
//! refused; the answer names the event and the attribute.

use super::refusal::Refusal;
use crate::event::{Timestamp, text};
use crate::ingest::{Attributes, CloudEvent, MEDIA_TYPE_BYTES_MAX, NO_DATA};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Events in a batch: one kilobyte each in a body of 1 MiB.
const BATCH_EVENTS_MAX: usize = 1000;

/// The content mode of a request, as the HTTP binding of CloudEvents defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentMode {
    /// The body is the payload; there are no attributes.
    Plain,
    /// The body is the payload, the attributes are `ce-` headers.
    Binary,
    /// The body is a CloudEvent.
    Structured,
    /// The body is a list of CloudEvents.
    Batch,
}

/// One parsed event of a request.
#[derive(Debug, Default)]
pub(super) struct ParsedEvent<'a> {
    /// `type` and `source` of a CloudEvent.
    pub(super) cloud: Option<(Cow<'a, str>, Cow<'a, str>)>,
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) time: Option<Timestamp>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) trace_parent: Option<Cow<'a, str>>,
    pub(super) content_type: Option<Cow<'a, str>>,
    pub(super) payload: Cow<'a, [u8]>,
}

impl<'a> From<CloudEvent<'a>> for ParsedEvent<'a> {
    fn from(event: CloudEvent<'a>) -> Self {
        let CloudEvent { kind, source, id, time, subject, trace_parent, content_type, payload } = event;
        Self { cloud: Some((kind, source)), id: Some(id), time, subject, trace_parent, content_type, payload }
    }
}

impl ContentMode {
    /// Determines the mode from the headers.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let written = content_type(headers)?.unwrap_or_default();
        let (kind, parameters) = written.split_once(';').unwrap_or((&written, ""));
        let kind = kind.trim().to_ascii_lowercase();
        let mode = match kind.as_str() {
            "application/cloudevents+json" => Self::Structured,
            "application/cloudevents-batch+json" => Self::Batch,
            _ if kind.starts_with("application/cloudevents") => {
                return Err(unsupported(format!("\"{kind}\" is a format of CloudEvents that is not supported")));
            }
            _ if headers.keys().any(|name| name.as_str().starts_with("ce-")) => Self::Binary,
            _ => Self::Plain,
        };
        if matches!(mode, Self::Structured | Self::Batch)
            && let Some(charset) = charset(parameters)
            && !charset.eq_ignore_ascii_case("utf-8")
        {
            return Err(unsupported(format!("charset \"{charset}\" is not supported; JSON is UTF-8")));
        }
        Ok(mode)
    }
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentCoding {
    Identity,
    Gzip,
}

impl ContentCoding {
    /// Determines the coding from the headers.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = codings.next().map(|coding| coding.as_bytes().trim_ascii().to_ascii_lowercase());
        match (coding.as_deref(), codings.next()) {
            (None | Some(b"identity" | b""), None) => Ok(Self::Identity),
            (Some(b"gzip" | b"x-gzip"), None) => Ok(Self::Gzip),
            _ => {
                let written: Vec<_> = headers.get_all(header::CONTENT_ENCODING).iter().collect();
                let detail = format!(
                    "content-encoding {written:?} is not supported; send the body compressed with gzip, or as it is"
                );
                let refusal = Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unknown content coding", detail);
                Err(refusal.with(header::ACCEPT_ENCODING, "gzip, identity"))
            }
        }
    }
}

fn unsupported(detail: String) -> Refusal {
    let accepted = "application/cloudevents+json, application/cloudevents-batch+json, application/json, */*";
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unknown media type", format!("{detail}; accepted are {accepted}"))
        .with(HeaderName::from_static("accept-post"), accepted)
}

fn charset(parameters: &str) -> Option<&str> {
    let named = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let mut charsets = named.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    charsets.next().map(|(_, value)| value.trim().trim_matches('"'))
}

fn content_type(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, Refusal> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let text = value.to_str().map_err(|_| bad_request("content-type: is no text"))?;
    text::check(text, MEDIA_TYPE_BYTES_MAX).map_err(|bad| bad_request(format!("content-type: {bad}")))?;
    Ok(Some(Cow::Borrowed(text)))
}

fn bad_request(detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "the request holds no event that can be read", detail.into())
}

/// Reads the events of a request. `payload_bytes_max` bounds the payload of each.
pub(super) fn events<'a>(
    mode: ContentMode,
    headers: &'a HeaderMap,
    body: &'a [u8],
    payload_bytes_max: u64,
) -> Result<Vec<ParsedEvent<'a>>, Refusal> {
    let events = match mode {
        ContentMode::Plain if body.is_empty() => {
            return Err(bad_request("the body is empty; it must be the payload of the event"));
        }
        ContentMode::Plain => vec![ParsedEvent {
            trace_parent: trace_parent(headers),
            content_type: content_type(headers)?,
            payload: Cow::Borrowed(body),
            ..ParsedEvent::default()
        }],
        ContentMode::Binary => vec![binary(headers, body)?],
        ContentMode::Structured => vec![structured("", body)?],
        ContentMode::Batch => batch(body)?,
    };
    for (index, event) in events.iter().enumerate() {
        if event.payload.len() as u64 > payload_bytes_max {
            let place = if mode == ContentMode::Batch { format!("event {index}: ") } else { String::new() };
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "a payload is larger than payload_max",
                format!("{place}the payload has {} bytes; at most {payload_bytes_max} are taken", event.payload.len()),
            ));
        }
    }
    Ok(events)
}

/// The W3C trace context in the headers.
fn trace_parent(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    (text.len() <= 128).then_some(Cow::Borrowed(text))
}

/// The events of a batch, at most [`BATCH_EVENTS_MAX`], and their total number.
struct Items<'a> {
    list: Vec<&'a RawValue>,
    total: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of CloudEvents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while list.len() < BATCH_EVENTS_MAX {
                    match items.next_element()? {
                        Some(item) => list.push(item),
                        None => return Ok(Items { total: list.len(), list }),
                    }
                }
                let mut total = list.len();
                while items.next_element::<IgnoredAny>()?.is_some() {
                    total += 1;
                }
                Ok(Items { list, total })
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

fn batch(body: &[u8]) -> Result<Vec<ParsedEvent<'_>>, Refusal> {
    let items: Items<'_> = serde_json::from_slice(body).map_err(|error| bad_request(format!("no batch: {error}")))?;
    if items.total > BATCH_EVENTS_MAX {
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too many events in a batch",
            format!("the batch has {} events; at most {BATCH_EVENTS_MAX} are taken", items.total),
        ));
    }
    items
        .list
        .into_iter()
        .enumerate()
        .map(|(index, item)| structured(&format!("event {index}: "), item.get().as_bytes()))
        .collect()
}

fn binary<'a>(headers: &'a HeaderMap, body: &'a [u8]) -> Result<ParsedEvent<'a>, Refusal> {
    let attribute = |name: &'static str| {
        let mut values = headers.get_all(name).iter();
        let value = values.next().map(|value| unquoted(name, value.as_bytes())).transpose()?;
        if values.next().is_some() {
            return Err(bad_request(format!("{name}: is given twice; an attribute has one value")));
        }
        Ok(value)
    };
    let required = |name| attribute(name)?.ok_or_else(|| bad_request(format!("{name}: is missing")));
    let content_type = content_type(headers)?;
    let payload = match (body, &content_type) {
        ([], None) => NO_DATA,
        _ => Cow::Borrowed(body),
    };
    let attributes = Attributes {
        specversion: required("ce-specversion")?,
        id: required("ce-id")?,
        source: required("ce-source")?,
        kind: required("ce-type")?,
        time: attribute("ce-time")?,
        subject: attribute("ce-subject")?,
        content_type,
        trace_parent: attribute("ce-traceparent")?.or_else(|| trace_parent(headers)),
    };
    attributes.check("ce-", payload).map(ParsedEvent::from).map_err(bad_request)
}

fn structured<'a>(place: &str, text: &'a [u8]) -> Result<ParsedEvent<'a>, Refusal> {
    CloudEvent::structured(place, text).map(ParsedEvent::from).map_err(bad_request)
}

/// Decodes a header value of the HTTP binding of CloudEvents: optional quotes, then percent-encoding.
fn unquoted<'a>(name: &str, value: &'a [u8]) -> Result<Cow<'a, str>, Refusal> {
    let bare: Cow<'a, [u8]> = match value {
        [b'"', inner @ .., b'"'] if inner.contains(&b'\\') => {
            let mut out = Vec::with_capacity(inner.len());
            let mut bytes = inner.iter();
            while let Some(byte) = bytes.next() {
                out.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
            }
            Cow::Owned(out)
        }
        [b'"', inner @ .., b'"'] => Cow::Borrowed(inner),
        _ => Cow::Borrowed(value),
    };
    let decoded = match bare {
        Cow::Borrowed(bytes) => percent_encoding::percent_decode(bytes).into(),
        Cow::Owned(bytes) => Cow::Owned(percent_encoding::percent_decode(&bytes).collect()),
    };
    let is_text = || bad_request(format!("{name}: is no UTF-8"));
    match decoded {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| is_text()),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| is_text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODES: [ContentMode; 4] =
        [ContentMode::Plain, ContentMode::Binary, ContentMode::Structured, ContentMode::Batch];
    const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","time":"2026-11-23T08:00:00Z","data":{"a":[1,"\u00e9"]},"data_base64":null}"#;

    fn headers(list: &[(&'static str, &[u8])]) -> HeaderMap {
        let value = |bytes: &[u8]| hyper::header::HeaderValue::from_bytes(bytes).expect("a header value");
        list.iter().map(|(name, bytes)| (HeaderName::from_static(name), value(bytes))).collect()
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..300), value in "[ -~\u{80}-\u{ff}]{0,40}") {
            let value = value.as_bytes();
            let map = headers(&[("ce-specversion", b"1.0"), ("ce-id", value), ("ce-source", value), ("ce-type", value), ("content-type", value)]);
            for mode in MODES {
                let _ = events(mode, &map, &body, 100);
            }
            let _ = ContentMode::of(&map);
        }

        #[test]
        fn an_event_with_a_few_bytes_changed_is_read_or_refused(changes in proptest::collection::vec((0..EVENT.len(), any::<u8>()), 1..4)) {
            let mut body = EVENT.as_bytes().to_vec();
            for (place, byte) in changes {
                body[place] = byte;
            }
            let _ = events(ContentMode::Structured, &HeaderMap::new(), &body, 1000);
            let batch = [b"[".as_slice(), &body, b",", EVENT.as_bytes(), b"]"].concat();
            let _ = events(ContentMode::Batch, &HeaderMap::new(), &batch, 1000);
        }
    }

    #[test]
    fn headers_are_unquoted_and_decoded() {
        let check = |written: &[u8], expected: &str| {
            let map =
                headers(&[("ce-specversion", b"1.0"), ("ce-id", written), ("ce-source", b"s"), ("ce-type", b"t")]);
            let found = events(ContentMode::Binary, &map, b"", 100).expect("an event");
            assert_eq!(found[0].id.as_deref(), Some(expected));
        };
        check(b"plain", "plain");
        check(b"a%20b%C3%BC", "a bü");
        check(b"\"a%20b\"", "a b");
        check(br#""say \"hi\"""#, "say \"hi\"");
        check("ü".as_bytes(), "ü");
        check(b"100%", "100%");
        check(b"\"", "\"");
    }

    #[test]
    fn data_is_what_the_media_type_says_it_is() {
        let check = |rest: &str, expected: &[u8]| {
            let body = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t"{rest}}}"#);
            let none = HeaderMap::new();
            let found = events(ContentMode::Structured, &none, body.as_bytes(), 100).expect("an event");
            assert_eq!(found[0].payload, expected, "{rest}");
        };
        check("", b"null");
        check(r#","data":null"#, b"null");
        check(r#","data": { "a" : 1.50 } "#, br#"{ "a" : 1.50 }"#);
        check(r#","data":"x""#, br#""x""#);
        check(r#","datacontenttype":"application/json; charset=utf-8","data":"x""#, br#""x""#);
        check(r#","datacontenttype":"application/vnd.x+json","data":"x""#, br#""x""#);
        check(r#","datacontenttype":"text/plain","data":"a\nb""#, b"a\nb");
        check(r#","datacontenttype":"text/plain","data":5"#, b"5");
        check(r#","data_base64":"AP8=""#, &[0, 255]);
    }
}
