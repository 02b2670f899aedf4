//! The packets of a session that receives messages: SUBSCRIBE, incoming PUBLISH, PUBACK.
//!
//! Promise: a message never ends the session. A payload above the limit is truncated, and the message says by how many
//! bytes; unknown properties are ignored.

use super::Protocol;
use super::client::{self, BrokerFault, Inbox, Reply};
use super::packet::remaining_length;
use super::properties::{Reader, push_text, push_varint};
use super::reason::Fault;
use bytes::{Buf, Bytes, BytesMut};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The topic filter, with its prefix `$share/{group}/` if it is shared.
    pub filter: String,
    /// Quality of service, 0 or 1.
    pub qos: u8,
    /// Whether the broker sends retained messages for a new subscription; MQTT 5 only.
    pub wants_retained: bool,
}

/// A message from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic; invalid UTF-8 is replaced.
    pub topic: String,
    /// Packet id of QoS 1; 0 for QoS 0.
    pub packet_id: u16,
    /// DUP flag: the broker may have sent the message before.
    pub is_dup: bool,
    /// RETAIN flag: a retained message, sent for a new subscription.
    pub is_retained: bool,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// The user property `traceparent`.
    pub trace_parent: Option<String>,
    /// The block of properties of MQTT 5, without its length.
    pub properties: Bytes,
    pub payload: Bytes,
    /// Number of truncated bytes of the payload.
    pub truncated: usize,
}

/// A packet of a session that receives messages.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    Message(Message),
    /// SUBACK: packet id, and a reason code for each filter.
    Subscribed(u16, Vec<u8>),
    Unsubscribed,
    Other(Reply),
}

/// Bytes allowed for topic, properties and headers in addition to the largest payload.
const OVERHEAD_BYTES_MAX: usize = 192 << 10;

/// Parses incoming packets; tracks how many bytes of a truncated message are still to be discarded.
#[derive(Debug)]
pub(crate) struct Parser {
    packet_bytes_max: usize,
    discard: usize,
}

impl Parser {
    pub(crate) fn new(inbox: &Inbox) -> Self {
        Self { packet_bytes_max: inbox.payload_bytes_max + OVERHEAD_BYTES_MAX, discard: 0 }
    }

    /// Removes the next complete packet from `input`, or the beginning of one that is too large.
    pub(crate) fn next(&mut self, input: &mut BytesMut, protocol: Protocol) -> Result<Option<Delivery>, BrokerFault> {
        let discarded = self.discard.min(input.len());
        input.advance(discarded);
        self.discard -= discarded;
        if self.discard > 0 {
            return Ok(None);
        }
        let header = remaining_length(input).map_err(|fault| BrokerFault(fault.text.into()))?;
        let Some((head, length)) = header else { return Ok(None) };
        let first = input[0];
        if !matches!(first >> 4, 3 | 9 | 11) {
            return Ok(client::read(input, protocol)?.map(Delivery::Other));
        }
        let kept = length.min(self.packet_bytes_max);
        if input.len() < head + kept {
            // The buffer grows only with received bytes: a claimed length allocates nothing.
            return Ok(None);
        }
        input.advance(head);
        let body = input.split_to(kept).freeze();
        self.discard = length - kept;
        let delivery = match first >> 4 {
            3 => read_message(first, &body, protocol, self.discard).map(Delivery::Message),
            9 => read_suback(&body, protocol),
            _ => Ok(Delivery::Unsubscribed),
        };
        let early = |_| BrokerFault("a packet of type PUBLISH, SUBACK or UNSUBACK ends too early".into());
        delivery.map(Some).map_err(early)
    }
}

fn read_message(first: u8, body: &Bytes, protocol: Protocol, truncated: usize) -> Result<Message, Fault> {
    let mut rest = Reader(body);
    let topic = String::from_utf8_lossy(rest.bytes()?).into_owned();
    // The gateway never subscribes with QoS 2; it treats such a message like QoS 1.
    let packet_id = if first & 6 > 0 { rest.u16()? } else { 0 };
    let (mut content_type, mut trace_parent) = (None, None);
    let mut block = Bytes::new();
    if protocol == Protocol::V5 {
        let length = rest.varint()?;
        let mut properties = Reader(rest.take(length)?);
        block = body.slice_ref(properties.0);
        while let Ok(id) = properties.u8() {
            match id {
                0x03 => content_type = short_text(properties.bytes()?, 256),
                0x26 => {
                    let (name, value) = (properties.bytes()?, properties.bytes()?);
                    if name == b"traceparent" {
                        trace_parent = short_text(value, 128);
                    }
                }
                0x08 | 0x09 => drop(properties.bytes()?),
                0x01 => drop(properties.take(1)?),
                0x02 => drop(properties.take(4)?),
                0x0B => drop(properties.varint()?),
                // The gateway allows no topic alias and knows no other property, so its length is unknown.
                _ => break,
            }
        }
    }
    let payload = body.slice(body.len() - rest.0.len()..);
    let (is_dup, is_retained) = (first & 8 > 0, first & 1 > 0);
    Ok(Message {
        topic,
        packet_id,
        is_dup,
        is_retained,
        content_type,
        trace_parent,
        properties: block,
        payload,
        truncated,
    })
}

/// Returns ASCII text of at most `bytes_max` bytes, otherwise `None`.
fn short_text(bytes: &[u8], bytes_max: usize) -> Option<String> {
    let is_short = bytes.len() <= bytes_max && bytes.is_ascii();
    is_short.then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn read_suback(body: &[u8], protocol: Protocol) -> Result<Delivery, Fault> {
    let mut rest = Reader(body);
    let packet_id = rest.u16()?;
    if protocol == Protocol::V5 {
        let length = rest.varint()?;
        rest.take(length)?;
    }
    Ok(Delivery::Subscribed(packet_id, rest.0.to_vec()))
}

fn push_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    push_varint(out, body.len());
    out.extend_from_slice(body);
}

/// Appends a SUBSCRIBE packet for all `subscriptions`.
pub fn push_subscribe(out: &mut Vec<u8>, protocol: Protocol, packet_id: u16, subscriptions: &[Subscription]) {
    let mut body = packet_id.to_be_bytes().to_vec();
    if protocol == Protocol::V5 {
        body.push(0);
    }
    for subscription in subscriptions {
        push_text(&mut body, subscription.filter.as_bytes());
        let mut options = subscription.qos;
        if protocol == Protocol::V5 {
            let is_shared = subscription.filter.starts_with("$share/");
            // No Local is a protocol error on a shared subscription (MQTT 5, 3.8.3.1).
            options |= if is_shared { 0 } else { 0x04 };
            // Retain Handling: 1, retained messages for a new subscription; 2, none.
            options |= if subscription.wants_retained { 0x10 } else { 0x20 };
        }
        body.push(options);
    }
    push_packet(out, 0x82, &body);
}

/// Appends an UNSUBSCRIBE packet for all `filters`.
pub fn push_unsubscribe(out: &mut Vec<u8>, protocol: Protocol, packet_id: u16, filters: &[String]) {
    let mut body = packet_id.to_be_bytes().to_vec();
    if protocol == Protocol::V5 {
        body.push(0);
    }
    filters.iter().for_each(|filter| push_text(&mut body, filter.as_bytes()));
    push_packet(out, 0xA2, &body);
}

#[cfg(test)]
mod tests {
    use super::super::client::{Head, push_publish};
    use super::*;
    use proptest::prelude::*;
    use rumqttc::v5::mqttbytes::{QoS, v5};
    use std::time::Duration;

    fn parser(payload_bytes_max: usize) -> Parser {
        Parser::new(&Inbox { expiry: Duration::ZERO, receive_maximum: 1, payload_bytes_max })
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100), first in 0x30u8..0x3F) {
            for protocol in [Protocol::V5, Protocol::V3] {
                for bytes in [bytes.clone(), [&[first][..], &bytes].concat()] {
                    let mut input = BytesMut::from(&bytes[..]);
                    let mut parser = parser(10);
                    let mut before = input.len();
                    while let Ok(Some(delivery)) = parser.next(&mut input, protocol) {
                        prop_assert!(input.len() < before, "{delivery:?} takes no byte");
                        before = input.len();
                    }
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
            let mut parser = parser(1 << 20);
            let split = split.min(whole.len() - 1);
            let mut input = BytesMut::from(&whole[..split]);
            prop_assert_eq!(parser.next(&mut input, Protocol::V5).expect("no error"), None);
            input.extend_from_slice(&whole[split..]);
            let Ok(Some(Delivery::Message(read))) = parser.next(&mut input, Protocol::V5) else { panic!("no message") };
            prop_assert_eq!((&read.topic, &read.payload[..], read.packet_id), (&topic, &payload[..], id));
            prop_assert_eq!((read.content_type.as_deref(), read.trace_parent.as_deref()), (Some("text/x"), Some("00-a-b-01")));
        }
    }

    #[test]
    fn a_message_that_is_too_large_comes_cut_and_the_next_one_whole() {
        let mut bytes = Vec::new();
        let large = vec![7; 500_000];
        push_publish(&mut bytes, Protocol::V3, &Head::default(), b"large", &large);
        push_publish(&mut bytes, Protocol::V3, &Head::default(), b"next", b"small");
        let mut parser = parser(1000);
        let mut input = BytesMut::new();
        let mut found = Vec::new();
        for piece in bytes.chunks(10_000) {
            input.extend_from_slice(piece);
            while let Some(Delivery::Message(message)) = parser.next(&mut input, Protocol::V3).expect("no error") {
                found.push((message.topic, message.payload.len() + message.truncated, message.truncated > 0));
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
        let filters: Vec<_> =
            read.filters.iter().map(|f| (f.path.as_str(), f.nolocal, f.retain_forward_rule.clone())).collect();
        assert_eq!(filters[0], ("a/#", true, v5::RetainForwardRule::Never));
        assert_eq!(filters[1], ("$share/g/a", false, v5::RetainForwardRule::OnNewSubscribe));
        let mut out = Vec::new();
        push_subscribe(&mut out, Protocol::V3, 9, &[plain]);
        assert_eq!(out, [&[0x82, 8, 0, 9, 0, 3][..], b"a/#", &[1]].concat());
    }
}
