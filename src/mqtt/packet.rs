//! The wire format of MQTT: frames, and all packets except CONNECT and CONNACK.
//!
//! Promise: any bytes are parsed, refused with a reason, or reported as incomplete; nothing is copied.

use super::properties::{Property, Reader, properties, push_varint};
use super::reason::{Fault, ReasonCode};
use super::topic::{check_response_topic, check_wildcards};

/// One packet in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The first byte: type and flags.
    pub first: u8,
    /// The bytes after the fixed header.
    pub body: &'a [u8],
    /// Length of the whole packet.
    pub length: usize,
}

/// Reads the fixed header at the start of `bytes`: its length, and that of the rest of the packet. Returns
/// `None` if it is incomplete.
#[inline]
pub(crate) fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let mut remaining = 0usize;
    for place in 0..4 {
        let Some(&byte) = bytes.get(1 + place) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((2 + place, remaining)));
        }
    }
    Err(Fault::malformed("the remaining length has more than four bytes"))
}

/// Finds the packet at the start of `bytes`. Returns `None` if it is incomplete. A packet longer than `length_max` is
/// refused as soon as its length is known.
#[inline]
pub fn frame(bytes: &[u8], length_max: usize) -> Result<Option<Frame<'_>>, Fault> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let Some((header, remaining)) = remaining_length(bytes)? else { return Ok(None) };
    let length = header + remaining;
    if length > length_max {
        return Err(Fault {
            code: ReasonCode::PacketTooLarge,
            text: "the packet is larger than the maximum packet size",
        });
    }
    Ok(bytes.get(header..length).map(|body| Frame { first, body, length }))
}

/// Returns the length of the packet at the start of `bytes`, once its fixed header is complete.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    let (header, remaining) = remaining_length(bytes).ok()??;
    Some(header + remaining)
}

/// A PUBLISH that borrows from its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    pub dup: bool,
    /// 0 to 2.
    pub qos: u8,
    pub retain: bool,
    /// The topic; empty if an alias stands for it.
    pub topic: &'a str,
    /// 0 for QoS 0.
    pub packet_id: u16,
    pub alias: Option<u16>,
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
    /// The user property `traceparent`.
    pub trace_parent: Option<&'a str>,
    /// The block of properties, without its length.
    pub properties: &'a [u8],
    pub payload: &'a [u8],
}

/// Parses PUBLISH (MQTT 3.1.1 and 5, section 3.3).
#[inline]
pub fn publish<'a>(first: u8, body: &'a [u8], is_v5: bool) -> Result<Publish<'a>, Fault> {
    let mut rest = Reader(body);
    let qos = (first >> 1) & 3;
    let dup = first & 8 != 0;
    if qos == 3 {
        return Err(Fault::malformed("QoS 3 does not exist"));
    }
    if dup && qos == 0 {
        return Err(Fault::malformed("a QoS 0 publish cannot be a duplicate"));
    }
    let topic = rest.text()?;
    check_wildcards(topic)?;
    let packet_id = if qos > 0 { rest.packet_id()? } else { 0 };
    let mut found = Publish {
        dup,
        qos,
        retain: first & 1 != 0,
        topic,
        packet_id,
        alias: None,
        content_type: None,
        trace_parent: None,
        properties: &[],
        payload: &[],
    };
    if is_v5 {
        let mut block = rest;
        let length = block.varint()?;
        found.properties = block.take(length)?;
        properties(&mut rest, &PUBLISH_MAY, |id, value| {
            match (id, value) {
                (0x03, Property::Text(kind)) => found.content_type = Some(kind),
                (0x08, Property::Text(topic)) => check_response_topic(topic)?,
                (0x0B, _) => return Err(Fault::protocol("a client cannot send a subscription identifier")),
                (0x23, Property::Number(alias)) => found.alias = u16::try_from(alias).ok(),
                (_, Property::Pair(name, value)) if is_trace_parent(name, value) => found.trace_parent = Some(value),
                _ => {}
            }
            Ok(())
        })?;
    }
    if topic.is_empty() && found.alias.is_none() {
        return Err(if is_v5 {
            Fault::protocol("the topic name is empty and there is no topic alias")
        } else {
            Fault { code: ReasonCode::TopicNameInvalid, text: "the topic name is empty" }
        });
    }
    found.payload = rest.0;
    Ok(found)
}

/// Returns whether a user property is a usable W3C trace context.
pub(crate) fn is_trace_parent(name: &str, value: &str) -> bool {
    name == "traceparent" && value.len() <= 128 && value.is_ascii()
}

/// Properties that PUBLISH may have.
const PUBLISH_MAY: [u8; 7] = [0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23];

pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const PUBREC: u8 = 0x50;
pub(crate) const PUBCOMP: u8 = 0x70;

/// Appends an acknowledgement of success, in the shortest form of both versions.
pub(crate) fn push_ack(out: &mut Vec<u8>, kind: u8, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[kind, 2, high, low]);
}

/// Appends a SUBACK with one code per filter.
pub(crate) fn push_suback(out: &mut Vec<u8>, packet_id: u16, is_v5: bool, codes: &[u8]) {
    push_codes(out, 0x90, packet_id, is_v5, codes);
}

/// Appends an UNSUBACK; in MQTT 5 with one code per filter.
pub(crate) fn push_unsuback(out: &mut Vec<u8>, packet_id: u16, is_v5: bool, codes: &[u8]) {
    push_codes(out, 0xB0, packet_id, is_v5, if is_v5 { codes } else { &[] });
}

fn push_codes(out: &mut Vec<u8>, first: u8, packet_id: u16, is_v5: bool, codes: &[u8]) {
    out.push(first);
    push_varint(out, 2 + usize::from(is_v5) + codes.len());
    out.extend_from_slice(&packet_id.to_be_bytes());
    if is_v5 {
        // No properties.
        out.push(0);
    }
    out.extend_from_slice(codes);
}

/// Appends an acknowledgement of MQTT 5 with a reason code.
pub(crate) fn push_ack_with(out: &mut Vec<u8>, kind: u8, packet_id: u16, code: ReasonCode) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[kind, 3, high, low, code.value()]);
}

/// Parses PUBACK to PUBCOMP: packet id and reason code.
pub(crate) fn ack(body: &[u8], is_v5: bool) -> Result<(u16, u8), Fault> {
    let mut rest = Reader(body);
    let packet_id = rest.packet_id()?;
    let mut code = 0;
    if is_v5 && !rest.0.is_empty() {
        code = rest.u8()?;
        if !rest.0.is_empty() {
            properties(&mut rest, &[0x1F], |_, _| Ok(()))?;
        }
    }
    rest.end()?;
    Ok((packet_id, code))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestedSubscription<'a> {
    /// The filter as the client wrote it.
    pub filter: &'a str,
    /// 0 to 2.
    pub qos: u8,
    /// The No Local flag: the client's own publishes are not sent to it.
    pub no_local: bool,
    /// 0: last values always; 1: only if the subscription is new; 2: none.
    pub retain_handling: u8,
}

/// Parses SUBSCRIBE: packet id, subscription identifier, filters.
pub(crate) fn subscribe(body: &[u8], is_v5: bool) -> Result<(u16, Option<u32>, Vec<RequestedSubscription<'_>>), Fault> {
    let mut rest = Reader(body);
    let packet_id = rest.packet_id()?;
    let mut id = None;
    if is_v5 {
        properties(&mut rest, &[0x0B], |_, value| {
            if let Property::Number(number) = value {
                id = Some(number);
            }
            Ok(())
        })?;
    }
    let mut requested = Vec::new();
    while !rest.0.is_empty() {
        let filter = rest.text()?;
        let options = rest.u8()?;
        let (qos, retain_handling) = (options & 3, options >> 4 & 3);
        let reserved = if is_v5 { options & 0xC0 } else { options & 0xFC };
        if reserved != 0 || qos == 3 || retain_handling == 3 {
            return Err(Fault::malformed("a subscription has invalid options"));
        }
        requested.push(RequestedSubscription { filter, qos, no_local: options & 4 != 0, retain_handling });
    }
    if requested.is_empty() {
        return Err(Fault::protocol("SUBSCRIBE without a filter"));
    }
    Ok((packet_id, id, requested))
}

/// Parses UNSUBSCRIBE: packet id and filters.
pub(crate) fn unsubscribe(body: &[u8], is_v5: bool) -> Result<(u16, Vec<&str>), Fault> {
    let mut rest = Reader(body);
    let packet_id = rest.packet_id()?;
    if is_v5 {
        properties(&mut rest, &[], |_, _| Ok(()))?;
    }
    let mut filters = Vec::new();
    while !rest.0.is_empty() {
        filters.push(rest.text()?);
    }
    if filters.is_empty() {
        return Err(Fault::protocol("UNSUBSCRIBE without a filter"));
    }
    Ok((packet_id, filters))
}

/// Parses DISCONNECT: reason code, and the session expiry interval if there is one.
pub(crate) fn disconnect(body: &[u8], is_v5: bool) -> Result<(u8, Option<u32>), Fault> {
    let mut rest = Reader(body);
    let (mut code, mut expiry) = (0, None);
    if is_v5 && !rest.0.is_empty() {
        code = rest.u8()?;
        if !rest.0.is_empty() {
            properties(&mut rest, &[0x11, 0x1F], |id, value| {
                if id == 0x11 {
                    expiry = Some(value.number());
                }
                Ok(())
            })?;
        }
    }
    rest.end()?;
    Ok((code, expiry))
}

/// Appends a DISCONNECT of MQTT 5 with the reason code, and with the reason string if the client's
/// Maximum Packet Size allows it.
pub(crate) fn push_disconnect(out: &mut Vec<u8>, fault: Fault, packet_bytes_max: usize) {
    let text = fault.text.as_bytes();
    // The texts are constants and short: each length fits one byte.
    debug_assert!(text.len() < 100);
    if text.len() + 7 > packet_bytes_max {
        out.extend_from_slice(&[0xE0, 1, fault.code.value()]);
        return;
    }
    let length = text.len() as u8;
    out.extend_from_slice(&[0xE0, length + 5, fault.code.value(), length + 3, 0x1F, 0, length]);
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_v5: bool) {
            if let Ok(Some(found)) = frame(&bytes, 1 << 20) {
                let _ = publish(found.first, found.body, is_v5);
                let _ = ack(found.body, is_v5);
                let _ = subscribe(found.body, is_v5);
                let _ = unsubscribe(found.body, is_v5);
                let _ = disconnect(found.body, is_v5);
            }
        }
    }

    fn packet(first: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first, body.len() as u8];
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_publish_is_taken_apart() {
        let bytes = packet(0x3B, b"\x00\x03a/b\x00\x07\x00hello");
        let found = frame(&bytes, 100).expect("fits").expect("whole");
        let publish = publish(found.first, found.body, true).expect("valid");
        assert_eq!((publish.topic, publish.packet_id, publish.payload), ("a/b", 7, &b"hello"[..]));
        assert!(publish.dup && publish.retain && publish.qos == 1);
    }

    #[test]
    fn a_frame_is_awaited_but_never_beyond_the_maximum() {
        let bytes = packet(0x30, &[0; 50]);
        assert_eq!(frame(&bytes[..20], 100), Ok(None));
        assert_eq!(frame(&bytes[..2], 51).map_err(|fault| fault.code), Err(ReasonCode::PacketTooLarge));
        assert!(frame(&[0x30, 0x80, 0x80, 0x80, 0x80, 1], 100).is_err());
        assert_eq!((length(&bytes[..2]), length(&[0x30, 0x80]), length(&[0x30])), (Some(52), None, None));
        assert_eq!(length(&[0x30, 0x80, 0x80, 0x80, 0x80, 1]), None);
    }

    #[test]
    fn what_the_specification_forbids_is_refused_with_its_code() {
        let code = |first: u8, body: &[u8]| publish(first, body, true).err().map(|fault| fault.code.value());
        assert_eq!(code(0x36, b"\x00\x01a\x00\x01\x00"), Some(0x81), "QoS 3");
        assert_eq!(code(0x38, b"\x00\x01a\x00"), Some(0x81), "DUP at QoS 0");
        assert_eq!(code(0x32, b"\x00\x01a\x00\x00\x00"), Some(0x82), "packet id 0");
        assert_eq!(code(0x30, b"\x00\x03a/#\x00"), Some(0x90), "wildcard");
        assert_eq!(code(0x30, b"\x00\x00\x00"), Some(0x82), "empty topic without alias");
        assert_eq!(code(0x30, b"\x00\x01a\x03\x23\x00\x00"), Some(0x94), "alias 0");
        assert_eq!(code(0x30, b"\x00\x01a\x06\x23\x00\x01\x23\x00\x01"), Some(0x82), "alias twice");
        assert_eq!(code(0x30, b"\x00\x01a\x02\x0B\x01"), Some(0x82), "subscription identifier");
        assert_eq!(code(0x30, b"\x00\x01\xff\x00"), Some(0x81), "no UTF-8");
    }

    #[test]
    fn a_disconnect_says_why() {
        let mut out = Vec::new();
        push_disconnect(&mut out, Fault::protocol("x"), usize::MAX);
        assert_eq!(out, [0xE0, 6, 0x82, 4, 0x1F, 0, 1, b'x']);
    }
}
