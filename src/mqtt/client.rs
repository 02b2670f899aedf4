//! The packets of a link. rumqttc's codec reads and writes them, except PUBLISH and PUBACK of success, which are
//! hand-written for speed: every event passes through them.

use super::Protocol;
use super::packet;
use super::properties::{push_text, push_varint, varint_bytes};
use super::reason::ReasonCode;
use super::rejection::Rejection;
use bytes::{Buf, Bytes, BytesMut};
use rumqttc::mqttbytes as codec;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::{QoS, v5};
use std::borrow::Cow;
use std::time::Duration;
use zeroize::Zeroize;

pub(crate) const PINGREQ: [u8; 2] = [0xC0, 0];
/// DISCONNECT in its shortest form, which is the same in both versions.
pub(crate) const DISCONNECT: [u8; 2] = [0xE0, 0];
/// Largest incoming packet on connections without an inbox: central sends only small packets on them.
const INCOMING_BYTES_MAX: u32 = 64 << 10;

/// Bytes of CONNECT for fixed fields, lengths and properties, without client id, login and will.
const CONNECT_OVERHEAD_BYTES: usize = 256;

/// Limits that the broker announced in CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest number of publishes in flight (Receive Maximum).
    pub receive_maximum: u16,
    /// Largest packet in bytes (Maximum Packet Size).
    pub packet_bytes_max: usize,
    /// Whether the broker retains messages (Retain Available).
    pub has_retain: bool,
    /// Largest number of topic aliases (Topic Alias Maximum).
    pub topic_alias_max: u16,
    /// Session expiry interval in seconds, if the broker changed the requested one.
    pub session_seconds: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            receive_maximum: 65_535,
            packet_bytes_max: 268_435_455,
            has_retain: true,
            topic_alias_max: 0,
            session_seconds: None,
        }
    }
}

/// The will message, which the broker publishes when the connection is lost.
#[derive(Clone, Debug)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
    /// The broker keeps the message for those who subscribe later.
    pub retain: bool,
}

/// Parameters of a persistent session that receives messages.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// Session expiry interval: how long the broker keeps the session while the gateway is disconnected; MQTT 5 only.
    pub expiry: Duration,
    /// Largest number of unacknowledged messages; MQTT 5 only.
    pub receive_maximum: u16,
    /// Largest payload in bytes that is not truncated.
    pub payload_bytes_max: usize,
}

/// How a broker violated the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerFault(pub String);

/// A packet from the broker.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// PUBACK of success for this packet id.
    Acknowledged(u16),
    /// PUBACK with reason code No Matching Subscribers for this packet id.
    NoSubscribers(u16),
    /// PUBACK with an error for this packet id.
    Rejected(u16, Rejection),
    PingResponse,
    Connected {
        limits: Limits,
        keep_alive: Option<Duration>,
        /// Session Present: whether the broker resumed the session.
        is_resumed: bool,
    },
    ConnectRejected(String),
    Disconnected(String),
}

/// Everything of a PUBLISH but its topic and its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// The packet id of QoS 1; 0 stands for QoS 0.
    pub packet_id: u16,
    /// DUP flag: the packet was sent before.
    pub dup: bool,
    /// RETAIN flag: to a broker, retain the message; to a subscriber, the message was retained.
    pub retain: bool,
    /// Subscription identifiers to send, MQTT 5 only.
    pub subscriptions: &'a [u32],
    /// Alias of the topic, MQTT 5 only.
    pub topic_alias: Option<u16>,
    /// Media type of the payload, MQTT 5 only.
    pub content_type: Option<&'a str>,
    /// User properties, MQTT 5 only.
    pub properties: &'a [(Cow<'static, str>, String)],
}

impl Head<'_> {
    /// A PUBLISH with QoS 1, sent for the first time.
    pub fn qos1(packet_id: u16) -> Self {
        Self { packet_id, ..Self::default() }
    }

    /// Bytes of the properties: topic alias (3), content type (3 + text), user properties (5 + texts), subscription identifiers (1 + varint).
    fn property_bytes(&self) -> usize {
        let content_type = self.content_type.map_or(0, |content_type| 3 + content_type.len());
        let user = self.properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum::<usize>();
        let topic_alias = if self.topic_alias.is_some() { 3 } else { 0 };
        topic_alias
            + content_type
            + user
            + self.subscriptions.iter().map(|id| 1 + varint_bytes(*id as usize)).sum::<usize>()
    }
}

pub fn push_publish(out: &mut Vec<u8>, protocol: Protocol, head: &Head<'_>, topic: &[u8], payload: &[u8]) {
    let property_bytes = if protocol == Protocol::V5 { head.property_bytes() } else { 0 };
    let id_bytes = if head.packet_id == 0 { 0 } else { 2 };
    let length_bytes = if protocol == Protocol::V5 { varint_bytes(property_bytes) } else { 0 };
    let remaining = 2 + topic.len() + id_bytes + length_bytes + property_bytes + payload.len();
    out.reserve(remaining + 5);
    out.push(0x30 | u8::from(head.dup) << 3 | u8::from(head.packet_id > 0) << 1 | u8::from(head.retain));
    push_varint(out, remaining);
    push_text(out, topic);
    if head.packet_id > 0 {
        out.extend_from_slice(&head.packet_id.to_be_bytes());
    }
    if protocol == Protocol::V5 {
        push_varint(out, property_bytes);
        if let Some(alias) = head.topic_alias {
            out.push(0x23);
            out.extend_from_slice(&alias.to_be_bytes());
        }
        if let Some(content_type) = head.content_type {
            out.push(0x03);
            push_text(out, content_type.as_bytes());
        }
        for (name, value) in head.properties {
            out.push(0x26);
            push_text(out, name.as_bytes());
            push_text(out, value.as_bytes());
        }
        for id in head.subscriptions {
            out.push(0x0B);
            push_varint(out, *id as usize);
        }
    }
    out.extend_from_slice(payload);
}

/// The content of CONNECT. Without an inbox the session is clean: the journal is the only resend queue.
#[derive(Clone, Copy)]
pub(crate) struct ConnectRequest<'a> {
    pub client: &'a str,
    /// Seconds.
    pub keep_alive: u16,
    pub login: Option<(&'a str, &'a str)>,
    pub will: Option<&'a Will>,
    pub inbox: Option<&'a Inbox>,
}

impl ConnectRequest<'_> {
    pub(crate) fn encode(&self, protocol: Protocol) -> Result<Vec<u8>, BrokerFault> {
        let Self { client, keep_alive, login, will, inbox } = *self;
        // The buffer never grows: a reallocation would leave a copy of the password in freed memory.
        let will_bytes = will.map_or(0, |will| will.topic.len() + will.payload.len());
        let login_bytes = login.map_or(0, |(user, password)| user.len() + password.len());
        let mut out = BytesMut::with_capacity(CONNECT_OVERHEAD_BYTES + client.len() + will_bytes + login_bytes);
        let failed = |error: String| BrokerFault(format!("CONNECT cannot be written: {error}"));
        match protocol {
            Protocol::V5 => {
                let mut properties = v5::ConnectProperties::new();
                match inbox {
                    None => properties.max_packet_size = Some(INCOMING_BYTES_MAX),
                    // No maximum packet size: a broker silently drops larger messages.
                    Some(inbox) => {
                        let seconds = u32::try_from(inbox.expiry.as_secs()).unwrap_or(u32::MAX);
                        properties.session_expiry_interval = Some(seconds);
                        properties.receive_maximum = Some(inbox.receive_maximum);
                    }
                }
                let connect = v5::Connect {
                    keep_alive,
                    client_id: client.to_owned(),
                    clean_start: inbox.is_none(),
                    properties: Some(properties),
                };
                let will = will.map(|will| v5::LastWill {
                    topic: Bytes::from(will.topic.clone().into_bytes()),
                    message: Bytes::from(will.payload.clone()),
                    qos: QoS::AtLeastOnce,
                    retain: will.retain,
                    properties: None,
                });
                let mut login = login.map(|(user, password)| v5::Login::new(user, password));
                let written = connect.write(&will, &login, &mut out);
                login.iter_mut().for_each(|login| login.password.zeroize());
                written.map_err(|error| failed(error.to_string()))?;
            }
            Protocol::V3 => {
                let mut connect = v4::Connect::new(client);
                connect.keep_alive = keep_alive;
                connect.clean_session = inbox.is_none();
                let qos = codec::QoS::AtLeastOnce;
                connect.last_will =
                    will.map(|will| v4::LastWill::new(&will.topic, will.payload.clone(), qos, will.retain));
                if let Some((user, password)) = login {
                    connect.set_login(user, password);
                }
                let written = connect.write(&mut out);
                connect.login.iter_mut().for_each(|login| login.password.zeroize());
                written.map_err(|error| failed(error.to_string()))?;
            }
        }
        let bytes = out.to_vec();
        out.as_mut().zeroize();
        Ok(bytes)
    }
}

/// Removes the next complete packet from `input`.
pub(crate) fn read(input: &mut BytesMut, protocol: Protocol) -> Result<Option<Reply>, BrokerFault> {
    // Nearly every packet is a PUBACK of success in its shortest form.
    if let [0x40, 2, high, low, ..] = input[..] {
        input.advance(4);
        return Ok(Some(Reply::Acknowledged(u16::from_be_bytes([high, low]))));
    }
    if let [0xE0, 0, ..] = input[..] {
        // rumqttc's codec rejects this valid form.
        input.advance(2);
        return Ok(Some(Reply::Disconnected("normal disconnection".into())));
    }
    if input.first().is_some_and(|first| first >> 4 == PUBACK) {
        return read_puback(input);
    }
    match protocol {
        Protocol::V5 => read_v5(input),
        Protocol::V3 => read_v3(input),
    }
}

/// Packet types in the upper half of the first byte.
const CONNACK: u8 = 2;
const PUBACK: u8 = 4;
const DISCONNECT_TYPE: u8 = 14;

/// Reads a PUBACK of either version. The codec rejects reason codes that the standard does not list.
fn read_puback(input: &mut BytesMut) -> Result<Option<Reply>, BrokerFault> {
    let malformed = || BrokerFault("a malformed PUBACK".into());
    let frame = match packet::frame(input, INCOMING_BYTES_MAX as usize) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(fault) => return Err(BrokerFault(fault.text.into())),
    };
    let &[high, low, ref rest @ ..] = frame.body else { return Err(malformed()) };
    let (packet_id, code) = (u16::from_be_bytes([high, low]), rest.first().copied().unwrap_or(0));
    let length = frame.length;
    input.advance(length);
    Ok(Some(match Rejection::of(code) {
        Some(rejection) => Reply::Rejected(packet_id, rejection),
        None if code == ReasonCode::NoMatchingSubscribers.value() => Reply::NoSubscribers(packet_id),
        None => Reply::Acknowledged(packet_id),
    }))
}

/// Returns the reply that stands for a CONNACK or DISCONNECT whose reason code the codec does not know.
fn of_unknown_code(packet: &[u8]) -> Option<Reply> {
    let frame = packet::frame(packet, INCOMING_BYTES_MAX as usize).ok()??;
    match (frame.first >> 4, frame.body) {
        (CONNACK, &[_, code, ..]) if code >= 0x80 => {
            Some(Reply::ConnectRejected(format!("reason code 0x{code:02x}, which the standard does not list for it")))
        }
        (DISCONNECT_TYPE, &[code, ..]) => {
            Some(Reply::Disconnected(format!("reason code 0x{code:02x}, which the standard does not list for it")))
        }
        _ => None,
    }
}

fn read_v5(input: &mut BytesMut) -> Result<Option<Reply>, BrokerFault> {
    use rumqttc::v5::mqttbytes::Error;
    let unknown_code = input.first().is_some_and(|first| [CONNACK, DISCONNECT_TYPE].contains(&(first >> 4)));
    let unknown_code = if unknown_code { of_unknown_code(input) } else { None };
    let packet = match v5::Packet::read(input, Some(INCOMING_BYTES_MAX)) {
        Ok(packet) => packet,
        Err(Error::InsufficientBytes(_)) => return Ok(None),
        Err(error) => return unknown_code.map(Some).ok_or_else(|| BrokerFault(error.to_string())),
    };
    Ok(Some(match packet {
        v5::Packet::PingResp(_) => Reply::PingResponse,
        v5::Packet::ConnAck(ack) if ack.code == v5::ConnectReturnCode::Success => {
            let mut limits = Limits::default();
            let mut keep_alive = None;
            if let Some(properties) = ack.properties {
                limits.receive_maximum = properties.receive_max.unwrap_or(limits.receive_maximum).max(1);
                limits.packet_bytes_max =
                    properties.max_packet_size.map_or(limits.packet_bytes_max, |max| max as usize);
                limits.has_retain = properties.retain_available != Some(0);
                limits.topic_alias_max = properties.topic_alias_max.unwrap_or(0);
                limits.session_seconds = properties.session_expiry_interval;
                keep_alive = properties.server_keep_alive.filter(|s| *s > 0).map(|s| Duration::from_secs(s.into()));
                if properties.max_qos == Some(0) {
                    return Ok(Some(Reply::ConnectRejected(
                        "it supports QoS 0 only, which guarantees no delivery".into(),
                    )));
                }
            }
            Reply::Connected { limits, keep_alive, is_resumed: ack.session_present }
        }
        v5::Packet::ConnAck(ack) => {
            let text = ack.properties.and_then(|properties| properties.reason_string);
            Reply::ConnectRejected(with_text(format!("{:?}", ack.code), text))
        }
        v5::Packet::Disconnect(packet) => {
            let text = packet.properties.and_then(|properties| properties.reason_string);
            let code = match packet.reason_code {
                v5::DisconnectReasonCode::SessionTakenOver => TAKEN_OVER.to_owned(),
                code => format!("{code:?}"),
            };
            Reply::Disconnected(with_text(code, text))
        }
        _ => return Err(BrokerFault("an unexpected packet".into())),
    }))
}

/// Text of a DISCONNECT with [`ReasonCode::SessionTakenOver`].
pub(crate) const TAKEN_OVER: &str = "session taken over";
/// The start of the reason if the broker retains no messages and the client has a will that it would have to retain.
pub(crate) const NO_RETAIN: &str = "RetainNotSupported";

fn with_text(code: String, text: Option<String>) -> String {
    match text {
        Some(text) => format!("{code} ({text})"),
        None => code,
    }
}

fn read_v3(input: &mut BytesMut) -> Result<Option<Reply>, BrokerFault> {
    let packet = match v4::Packet::read(input, INCOMING_BYTES_MAX as usize) {
        Ok(packet) => packet,
        Err(codec::Error::InsufficientBytes(_)) => return Ok(None),
        Err(error) => return Err(BrokerFault(error.to_string())),
    };
    Ok(Some(match packet {
        v4::Packet::PingResp => Reply::PingResponse,
        v4::Packet::ConnAck(ack) if ack.code == v4::ConnectReturnCode::Success => {
            Reply::Connected { limits: Limits::default(), keep_alive: None, is_resumed: ack.session_present }
        }
        v4::Packet::ConnAck(ack) => Reply::ConnectRejected(format!("{:?}", ack.code)),
        _ => return Err(BrokerFault("an unexpected packet".into())),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_reason_code_is_a_protocol_error() {
        for code in 0..=u8::MAX {
            // In pieces, with and without properties, and with an answer behind it.
            for more in [&[][..], &[0], &[9, 31, 0, 6, b'r', b'e', b'a', b's', b'o', b'n']] {
                let mut packet = vec![0x40, 3 + more.len() as u8, 0x12, 0x34, code];
                packet.extend_from_slice(more);
                packet.extend_from_slice(&[0x40, 2, 0, 7]);
                for protocol in [Protocol::V5, Protocol::V3] {
                    let mut input = BytesMut::new();
                    for byte in &packet[..packet.len() - 4] {
                        assert_eq!(read(&mut input, protocol), Ok(None), "0x{code:02x}");
                        input.extend_from_slice(&[*byte]);
                    }
                    input.extend_from_slice(&packet[packet.len() - 4..]);
                    let expected = match Rejection::of(code) {
                        Some(rejection) => Reply::Rejected(0x1234, rejection),
                        None if code == 0x10 => Reply::NoSubscribers(0x1234),
                        None => Reply::Acknowledged(0x1234),
                    };
                    assert_eq!(read(&mut input, protocol), Ok(Some(expected)), "0x{code:02x}");
                    assert_eq!(read(&mut input, protocol), Ok(Some(Reply::Acknowledged(7))), "0x{code:02x}");
                }
            }
            let ended = read(&mut BytesMut::from(&[0xE0, 2, code, 0][..]), Protocol::V5);
            assert!(matches!(ended, Ok(Some(Reply::Disconnected(_)))), "0x{code:02x}: {ended:?}");
            let refused = read(&mut BytesMut::from(&[0x20, 3, 0, code, 0][..]), Protocol::V5);
            assert!(code < 0x80 || matches!(refused, Ok(Some(Reply::ConnectRejected(_)))), "0x{code:02x}: {refused:?}");
        }
    }

    /// A reply that stayed in the input would be read for ever.
    #[test]
    fn each_packet_is_taken_from_the_input() {
        for first in 0..=u8::MAX {
            for body in [&[][..], &[0], &[0, 0], &[0, 0x80, 0], &[0, 7, 0x87, 0]] {
                for protocol in [Protocol::V5, Protocol::V3] {
                    let packet = [&[first, body.len() as u8], body].concat();
                    let mut input = BytesMut::from(&packet[..]);
                    let reply = read(&mut input, protocol);
                    assert!(!matches!(reply, Ok(Some(_))) || input.is_empty(), "{packet:02x?}: {reply:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            for protocol in [Protocol::V5, Protocol::V3] {
                let mut input = BytesMut::from(&bytes[..]);
                let mut before = input.len();
                while let Ok(Some(reply)) = read(&mut input, protocol) {
                    prop_assert!(input.len() < before, "{reply:?} takes no byte");
                    before = input.len();
                }
            }
        }

        #[test]
        fn a_publish_is_what_the_codec_reads(topic in "[a-z/]{1,40}", payload in proptest::collection::vec(any::<u8>(), 0..400), id in 1u16.., retain: bool) {
            let mut out = Vec::new();
            push_publish(&mut out, Protocol::V5, &Head { packet_id: id, retain, content_type: Some("text/x"), properties: &[("id".into(), "7".into())], ..Head::default() }, topic.as_bytes(), &payload);
            let packet = v5::Packet::read(&mut BytesMut::from(&out[..]), None);
            let Ok(v5::Packet::Publish(read)) = packet else { panic!("{packet:?}") };
            prop_assert_eq!(&read.topic[..], topic.as_bytes());
            prop_assert_eq!(&read.payload[..], &payload[..]);
            prop_assert_eq!((read.pkid, read.retain), (id, retain));
            let properties = read.properties.expect("properties");
            prop_assert_eq!(properties.content_type.as_deref(), Some("text/x"));
            prop_assert_eq!(properties.user_properties, vec![("id".to_owned(), "7".to_owned())]);

            let mut out = Vec::new();
            push_publish(&mut out, Protocol::V3, &Head { packet_id: id, retain, content_type: Some("text/x"), ..Head::default() }, topic.as_bytes(), &payload);
            let packet = v4::Packet::read(&mut BytesMut::from(&out[..]), 1 << 20);
            let Ok(v4::Packet::Publish(read)) = packet else { panic!("{packet:?}") };
            prop_assert_eq!((read.topic.as_bytes(), &read.payload[..], read.pkid), (topic.as_bytes(), &payload[..], id));
        }
    }
}
