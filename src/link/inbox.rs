//! The packets of a session that takes messages in: SUBSCRIBE, PUBLISH towards us, PUBACK.
//!
//! Promise: a message is never the reason to end a session. One that is larger than the bound comes
//! cut, and says by how much; what a broker may add to it is passed over.

use super::{Answer, LinkError, Protocol, packet};
use bytes::{Buf, Bytes, BytesMut};
use std::time::Duration;

/// What a session that takes messages in asks of the broker.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// How long the broker keeps what it owes us while we are away; MQTT 5 only.
    pub expiry: Duration,
    /// Messages that may be unacknowledged; MQTT 5 only.
    pub receive_maximum: u16,
    /// The largest payload that is taken whole, in bytes.
    pub payload_bytes_max: usize,
}

/// One subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The topic filter, `$share/{group}/` included.
    pub filter: String,
    /// 0 or 1.
    pub qos: u8,
    /// Whether a subscription that is new brings the messages that the broker retains; MQTT 5 only.
    pub wants_retained: bool,
}

/// A message from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic; what is no UTF-8 in it is replaced.
    pub topic: String,
    /// 0 for QoS 0.
    pub packet_id: u16,
    /// Sent before, perhaps.
    pub is_dup: bool,
    /// It was retained, and comes because the subscription is new.
    pub is_retained: bool,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// The user property `traceparent`.
    pub trace_parent: Option<String>,
    /// The payload, or its beginning.
    pub payload: Bytes,
    /// Bytes of the payload that were left out.
    pub cut: usize,
}

/// What comes over a session that takes messages in.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A message.
    Message(Message),
    /// The answer to SUBSCRIBE: packet id, and a code for each filter.
    Subscribed(u16, Vec<u8>),
    /// The answer to UNSUBSCRIBE.
    Unsubscribed,
    /// Everything else.
    Other(Answer),
}

/// Topic, properties and headers around the largest payload.
const BESIDE_BYTES_MAX: usize = 192 << 10;

/// Reads an inbox; remembers how much of a message that is too large is still to come.
#[derive(Debug)]
pub(super) struct Reader {
    packet_bytes_max: usize,
    skip: usize,
}

impl Reader {
    pub(super) fn new(inbox: &Inbox) -> Self {
        Self { packet_bytes_max: inbox.payload_bytes_max + BESIDE_BYTES_MAX, skip: 0 }
    }

    /// Takes the next whole packet out of `input`, or the beginning of one that is too large.
    pub(super) fn read(&mut self, input: &mut BytesMut, protocol: Protocol) -> Result<Option<Delivery>, LinkError> {
        let skipped = self.skip.min(input.len());
        input.advance(skipped);
        self.skip -= skipped;
        if self.skip > 0 {
            return Ok(None);
        }
        let Some((first, head, length)) = header(input)? else { return Ok(None) };
        if !matches!(first >> 4, 3 | 9 | 11) {
            return Ok(packet::read(input, protocol)?.map(Delivery::Other));
        }
        let taken = length.min(self.packet_bytes_max);
        if input.len() < head + taken {
            // Grows as bytes come: a length that is claimed costs nothing.
            return Ok(None);
        }
        input.advance(head);
        let body = input.split_to(taken).freeze();
        self.skip = length - taken;
        let malformed = || LinkError::Protocol("a packet of type PUBLISH, SUBACK or UNSUBACK ends too early".into());
        match first >> 4 {
            3 => message(first, body, protocol, self.skip).map(Delivery::Message).ok_or_else(malformed),
            9 => suback(&body, protocol).ok_or_else(malformed),
            _ => Ok(Delivery::Unsubscribed),
        }
        .map(Some)
    }
}

/// First byte, bytes of the fixed header, bytes behind it.
fn header(input: &[u8]) -> Result<Option<(u8, usize, usize)>, LinkError> {
    let Some(&first) = input.first() else { return Ok(None) };
    let mut rest = &input[1..];
    match varint(&mut rest) {
        Some(length) => Ok(Some((first, input.len() - rest.len(), length))),
        None if input.len() < 5 => Ok(None),
        None => Err(LinkError::Protocol("the remaining length has more than four bytes".into())),
    }
}

fn varint(rest: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for place in 0..4 {
        let byte = *rest.get(place)?;
        value |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            *rest = &rest[place + 1..];
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u16> {
    take(rest, 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(rest)?;
    take(rest, length.into())
}

fn message(first: u8, body: Bytes, protocol: Protocol, cut: usize) -> Option<Message> {
    let mut rest = &body[..];
    let topic = String::from_utf8_lossy(text(&mut rest)?).into_owned();
    // QoS 2 is never subscribed to; a broker that sends it all the same is answered like QoS 1.
    let packet_id = if first & 6 > 0 { number(&mut rest)? } else { 0 };
    let mut found = Message {
        topic,
        packet_id,
        is_dup: first & 8 > 0,
        is_retained: first & 1 > 0,
        content_type: None,
        trace_parent: None,
        payload: Bytes::new(),
        cut,
    };
    if protocol == Protocol::V5 {
        let length = varint(&mut rest)?;
        let mut properties = take(&mut rest, length)?;
        while let Some((&id, tail)) = properties.split_first() {
            properties = tail;
            match id {
                0x03 => found.content_type = short_text(text(&mut properties)?, 256),
                0x26 => {
                    let (name, value) = (text(&mut properties)?, text(&mut properties)?);
                    if name == b"traceparent" {
                        found.trace_parent = short_text(value, 55);
                    }
                }
                0x08 | 0x09 => drop(text(&mut properties)?),
                0x01 => drop(take(&mut properties, 1)?),
                0x02 => drop(take(&mut properties, 4)?),
                0x0B => drop(varint(&mut properties)?),
                // We allow no topic alias, and know no other property: its length cannot be told.
                _ => break,
            }
        }
    }
    found.payload = body.slice(body.len() - rest.len()..);
    Some(found)
}

/// Plain text of at most `bytes_max`; anything else is of no use to anybody.
fn short_text(bytes: &[u8], bytes_max: usize) -> Option<String> {
    let is_short = bytes.len() <= bytes_max && bytes.is_ascii();
    is_short.then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn suback(body: &[u8], protocol: Protocol) -> Option<Delivery> {
    let mut rest = body;
    let packet_id = number(&mut rest)?;
    if protocol == Protocol::V5 {
        let length = varint(&mut rest)?;
        take(&mut rest, length)?;
    }
    Some(Delivery::Subscribed(packet_id, rest.to_vec()))
}

fn push_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    packet::push_varint(out, body.len());
    out.extend_from_slice(body);
}

/// Appends a SUBSCRIBE.
pub fn push_subscribe(out: &mut Vec<u8>, protocol: Protocol, packet_id: u16, subscriptions: &[Subscription]) {
    let mut body = packet_id.to_be_bytes().to_vec();
    if protocol == Protocol::V5 {
        body.push(0);
    }
    for subscription in subscriptions {
        packet::push_text(&mut body, subscription.filter.as_bytes());
        let mut options = subscription.qos;
        if protocol == Protocol::V5 {
            let is_shared = subscription.filter.starts_with("$share/");
            // No Local is a protocol error on a shared subscription (MQTT 5, 3.8.3.1).
            options |= if is_shared { 0 } else { 0x04 };
            // Retain handling: those of a new subscription, or none.
            options |= if subscription.wants_retained { 0x10 } else { 0x20 };
        }
        body.push(options);
    }
    push_packet(out, 0x82, &body);
}

/// Appends an UNSUBSCRIBE.
pub fn push_unsubscribe(out: &mut Vec<u8>, protocol: Protocol, packet_id: u16, filters: &[String]) {
    let mut body = packet_id.to_be_bytes().to_vec();
    if protocol == Protocol::V5 {
        body.push(0);
    }
    filters.iter().for_each(|filter| packet::push_text(&mut body, filter.as_bytes()));
    push_packet(out, 0xA2, &body);
}

/// Appends a PUBACK of success; the shortest form is the same in both versions.
pub fn push_puback(out: &mut Vec<u8>, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[0x40, 2, high, low]);
}

/// Appends a PUBLISH with QoS 0, which nobody acknowledges.
pub fn push_unacknowledged(out: &mut Vec<u8>, protocol: Protocol, topic: &str, payload: &[u8]) {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 3);
    packet::push_text(&mut body, topic.as_bytes());
    if protocol == Protocol::V5 {
        body.push(0);
    }
    body.extend_from_slice(payload);
    push_packet(out, 0x30, &body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rumqttc::v5::mqttbytes::{QoS, v5};

    fn reader(payload_bytes_max: usize) -> Reader {
        Reader::new(&Inbox { expiry: Duration::ZERO, receive_maximum: 1, payload_bytes_max })
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100), first in 0x30u8..0x3F) {
            for protocol in [Protocol::V5, Protocol::V3] {
                for bytes in [bytes.clone(), [&[first][..], &bytes].concat()] {
                    let mut input = BytesMut::from(&bytes[..]);
                    let mut reader = reader(10);
                    while let Ok(Some(_)) = reader.read(&mut input, protocol) {}
                }
            }
        }

        #[test]
        fn what_the_codec_writes_is_read(topic in "[a-zü/]{1,40}", payload in proptest::collection::vec(any::<u8>(), 0..400), id in 1u16.., split in 0usize..400) {
            let mut publish = v5::Publish::new(&topic, QoS::AtLeastOnce, payload.clone(), Some(v5::PublishProperties {
                payload_format_indicator: Some(1),
                message_expiry_interval: Some(7),
                response_topic: Some("a/b".into()),
                correlation_data: Some(bytes::Bytes::from_static(b"xy")),
                user_properties: vec![("traceparent".into(), "00-a-b-01".into())],
                subscription_identifiers: vec![300],
                content_type: Some("text/x".into()),
                ..Default::default()
            }));
            publish.pkid = id;
            let mut whole = BytesMut::new();
            publish.write(&mut whole).expect("written");
            let mut reader = reader(1 << 20);
            let split = split.min(whole.len() - 1);
            let mut input = BytesMut::from(&whole[..split]);
            prop_assert_eq!(reader.read(&mut input, Protocol::V5).expect("no error"), None);
            input.extend_from_slice(&whole[split..]);
            let Ok(Some(Delivery::Message(read))) = reader.read(&mut input, Protocol::V5) else { panic!("no message") };
            prop_assert_eq!((&read.topic, &read.payload[..], read.packet_id), (&topic, &payload[..], id));
            prop_assert_eq!((read.content_type.as_deref(), read.trace_parent.as_deref()), (Some("text/x"), Some("00-a-b-01")));
        }
    }

    #[test]
    fn a_message_that_is_too_large_comes_cut_and_the_next_one_whole() {
        let mut bytes = Vec::new();
        let large = vec![7; 500_000];
        push_unacknowledged(&mut bytes, Protocol::V3, "large", &large);
        push_unacknowledged(&mut bytes, Protocol::V3, "next", b"small");
        let mut reader = reader(1000);
        let mut input = BytesMut::new();
        let mut found = Vec::new();
        for piece in bytes.chunks(10_000) {
            input.extend_from_slice(piece);
            while let Some(Delivery::Message(message)) = reader.read(&mut input, Protocol::V3).expect("no error") {
                found.push((message.topic, message.payload.len() + message.cut, message.cut > 0));
            }
            assert!(input.len() < 250_000, "memory is bounded");
        }
        assert_eq!(found, [("large".to_owned(), 500_000, true), ("next".to_owned(), 5, false)]);
    }

    #[test]
    fn subscribe_asks_for_what_it_means() {
        let plain = Subscription { filter: "a/#".into(), qos: 1, wants_retained: false };
        let shared = Subscription { filter: "$share/g/a".into(), qos: 1, wants_retained: true };
        let mut out = Vec::new();
        push_subscribe(&mut out, Protocol::V5, 9, &[plain.clone(), shared]);
        let packet = v5::Packet::read(&mut BytesMut::from(&out[..]), None);
        let Ok(v5::Packet::Subscribe(read)) = packet else { panic!("{packet:?}") };
        let asked: Vec<_> =
            read.filters.iter().map(|f| (f.path.as_str(), f.nolocal, f.retain_forward_rule.clone())).collect();
        assert_eq!(asked[0], ("a/#", true, v5::RetainForwardRule::Never));
        assert_eq!(asked[1], ("$share/g/a", false, v5::RetainForwardRule::OnNewSubscribe));
        let mut out = Vec::new();
        push_subscribe(&mut out, Protocol::V3, 9, &[plain]);
        assert_eq!(out, [&[0x82, 8, 0, 9, 0, 3][..], b"a/#", &[1]].concat());
    }
}
