//! CONNECT and CONNACK, in MQTT 3.1.1 and 5.

use super::Protocol;
use super::packet::{Frame, is_trace_parent, remaining_length};
use super::properties::{Property, Reader, properties, push_text, push_varint};
use super::reason::{ConnectReturnCode, Fault, ReasonCode};
use super::topic::{check_response_topic, check_topic};
use std::time::Duration;

/// The session expiry interval that means never (MQTT 5, section 3.1.2.11.2).
pub(crate) const NEVER_EXPIRES: u32 = u32::MAX;
const UNSUPPORTED: [u8; 4] = [0x20, 2, 0, ConnectReturnCode::UnacceptableProtocolVersion.value()];

/// The content of CONNECT, in either version.
#[derive(Debug)]
pub(crate) struct Connect {
    /// Client id; empty if the gateway has to assign one.
    pub client: String,
    /// Clean Session, or Clean Start: an earlier session is discarded.
    pub is_clean: bool,
    pub user: Option<String>,
    pub password: Option<Vec<u8>>,
    /// Keep-alive in seconds; 0 for none.
    pub keep_alive: u16,
    pub protocol: Protocol,
    /// Session expiry interval in seconds.
    pub expiry: u32,
    pub will: Option<WillMessage>,
    pub receive_maximum: u16,
    /// The client's Maximum Packet Size.
    pub packet_bytes_max: usize,
}

/// The will message of CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WillMessage {
    pub topic: String,
    pub payload: Vec<u8>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    pub trace_parent: Option<String>,
    pub delay: Duration,
}

impl WillMessage {
    /// Reads the will of CONNECT.
    pub fn read(rest: &mut Reader<'_>, protocol: Protocol) -> Result<Self, Fault> {
        let (mut delay, mut content_type, mut trace_parent) = (Duration::ZERO, None, None);
        if protocol == Protocol::V5 {
            properties(rest, &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18], |id, value| {
                match (id, value) {
                    (0x18, value) => delay = Duration::from_secs(value.number().into()),
                    (0x03, value) => content_type = Some(value.text().to_owned()),
                    (0x08, value) => check_response_topic(value.text())?,
                    (_, Property::Pair(name, value)) if is_trace_parent(name, value) => {
                        trace_parent = Some(value.to_owned());
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        let topic = rest.text()?;
        check_topic(topic)?;
        Ok(Self { topic: topic.to_owned(), payload: rest.bytes()?.to_vec(), content_type, trace_parent, delay })
    }
}

/// The answer to a refused CONNECT, and the reason for the log.
pub(crate) type Rejection = (Vec<u8>, &'static str);

/// Names of the protocol, with which the body of CONNECT begins.
const NAMES: [&[u8]; 2] = [b"\0\x04MQTT", b"\0\x06MQIsdp"];

/// Returns the bytes after the fixed header, as far as they have arrived.
fn body(bytes: &[u8]) -> &[u8] {
    let header = remaining_length(bytes).ok().flatten();
    header.and_then(|(header, _)| bytes.get(header..)).unwrap_or_default()
}

/// Checks the first bytes of a connection. A client that speaks another protocol is refused before CONNECT is complete.
pub(crate) fn check_protocol(bytes: &[u8]) -> Result<(), Rejection> {
    if bytes.first().is_some_and(|first| *first != 0x10) {
        return Err((Vec::new(), "the first packet is not CONNECT"));
    }
    let body = body(bytes);
    let fits = |name: &[u8]| body.iter().zip(name).all(|(given, wanted)| given == wanted);
    if NAMES.iter().any(|name| fits(name)) {
        Ok(())
    } else {
        Err((Vec::new(), "CONNECT of another protocol than MQTT"))
    }
}

/// Returns the answer for a client that is refused before its CONNECT is complete; empty as long
/// as its version is unknown.
pub(crate) fn refuse_early(bytes: &[u8], code: ReasonCode) -> Vec<u8> {
    match body(bytes) {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => vec![0x20, 2, 0, ConnectReturnCode::ServerUnavailable.value()],
        [0, 4, b'M', b'Q', b'T', b'T', level, ..] if *level >= 5 => refuse(code),
        _ => Vec::new(),
    }
}

impl Connect {
    /// Parses CONNECT. The error is the answer for the client, and the reason for the log.
    pub(crate) fn read(frame: &Frame<'_>) -> Result<Self, Rejection> {
        if frame.first != 0x10 {
            return Err((Vec::new(), "the first packet is not CONNECT"));
        }
        let level = match frame.body {
            [0, 4, b'M', b'Q', b'T', b'T', level, ..] => *level,
            [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
                return Err((UNSUPPORTED.to_vec(), "MQTT 3.1 is not supported; 3.1.1 and 5 are"));
            }
            _ => return Err((Vec::new(), "CONNECT of another protocol than MQTT")),
        };
        let rest = Reader(&frame.body[7..]);
        match level {
            // MQTT 3.1.1 has no code for a malformed CONNECT: the connection is closed.
            4 => Self::read_rest(rest, Protocol::V3).map_err(|fault| (Vec::new(), fault.text)),
            5 => Self::read_rest(rest, Protocol::V5).map_err(|fault| (refuse(fault.code), fault.text)),
            // A client of a later version understands the answer of MQTT 5, one of an earlier version that of 3.1.1.
            6.. => Err((refuse(ReasonCode::UnsupportedProtocolVersion), "an unknown version of MQTT")),
            _ => Err((UNSUPPORTED.to_vec(), "an unknown version of MQTT")),
        }
    }

    /// Parses the bytes after the protocol level (section 3.1 of both versions).
    fn read_rest(mut rest: Reader<'_>, protocol: Protocol) -> Result<Self, Fault> {
        let flags = rest.u8()?;
        let has = |flag: u8| flags & flag != 0;
        let (has_will, has_user, has_password) = (has(0x04), has(0x80), has(0x40));
        if has(0x01) {
            return Err(Fault::malformed("the reserved flag of CONNECT is set"));
        }
        if (flags >> 3 & 3) == 3 || (!has_will && flags & 0x38 != 0) {
            return Err(Fault::malformed("CONNECT has invalid flags of the will"));
        }
        if protocol == Protocol::V3 && has_password && !has_user {
            return Err(Fault::malformed("CONNECT has a password and no user name"));
        }
        let mut connect = Self {
            client: String::new(),
            is_clean: has(0x02),
            user: None,
            password: None,
            keep_alive: rest.u16()?,
            protocol,
            expiry: if protocol == Protocol::V3 && !has(0x02) { NEVER_EXPIRES } else { 0 },
            will: None,
            receive_maximum: u16::MAX,
            packet_bytes_max: usize::MAX,
        };
        if protocol == Protocol::V5 {
            connect.read_properties(&mut rest)?;
        }
        connect.client = rest.text()?.to_owned();
        if has_will {
            connect.will = Some(WillMessage::read(&mut rest, protocol)?);
        }
        if has_user {
            connect.user = Some(rest.text()?.to_owned());
        }
        if has_password {
            connect.password = Some(rest.bytes()?.to_vec());
        }
        rest.end()?;
        Ok(connect)
    }

    fn read_properties(&mut self, rest: &mut Reader<'_>) -> Result<(), Fault> {
        let mut has_method = false;
        let mut has_data = false;
        properties(rest, &[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x27], |id, value| {
            match id {
                0x11 => self.expiry = value.number(),
                0x15 => has_method = true,
                0x16 => has_data = true,
                0x21 => self.receive_maximum = u16::try_from(value.number()).unwrap_or(u16::MAX),
                0x27 => self.packet_bytes_max = value.number() as usize,
                _ => {}
            }
            Ok(())
        })?;
        match (has_method, has_data) {
            (true, _) => Err(Fault {
                code: ReasonCode::BadAuthenticationMethod,
                text: "enhanced authentication is not supported",
            }),
            (false, true) => Err(Fault::protocol("authentication data without a method")),
            _ => Ok(()),
        }
    }
}

/// Returns the shortest CONNACK of MQTT 5 that refuses.
fn refuse(code: ReasonCode) -> Vec<u8> {
    vec![0x20, 3, 0, code.value(), 0]
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Connack<'a> {
    /// [`ReasonCode::Success`], or the reason of the refusal.
    pub code: ReasonCode,
    /// Session Present: the client had a session.
    pub is_present: bool,
    pub receive_maximum: u16,
    pub packet_bytes_max: usize,
    pub aliases_max: u16,
    /// Assigned Client Identifier, if the gateway chose one.
    pub assigned: Option<&'a str>,
    /// Session expiry interval, if it differs from that of CONNECT.
    pub expiry: Option<u32>,
}

impl Connack<'_> {
    /// Appends CONNACK in the version of the client.
    pub(crate) fn push(&self, out: &mut Vec<u8>, protocol: Protocol) {
        if protocol == Protocol::V3 {
            let code = ConnectReturnCode::from(self.code);
            let is_present = self.is_present && code == ConnectReturnCode::Accepted;
            return out.extend_from_slice(&[0x20, 2, u8::from(is_present), code.value()]);
        }
        if self.code != ReasonCode::Success {
            return out.extend(refuse(self.code));
        }
        let mut properties = vec![0x21];
        properties.extend_from_slice(&self.receive_maximum.to_be_bytes());
        properties.push(0x27);
        properties.extend_from_slice(&u32::try_from(self.packet_bytes_max).unwrap_or(u32::MAX).to_be_bytes());
        properties.push(0x22);
        properties.extend_from_slice(&self.aliases_max.to_be_bytes());
        if let Some(expiry) = self.expiry {
            properties.push(0x11);
            properties.extend_from_slice(&expiry.to_be_bytes());
        }
        if let Some(client) = self.assigned {
            properties.push(0x12);
            push_text(&mut properties, client.as_bytes());
        }
        out.push(0x20);
        // Flags, code, and the length of the properties, which is below 128 and takes one byte.
        push_varint(out, 3 + properties.len());
        out.extend_from_slice(&[u8::from(self.is_present), ReasonCode::Success.value()]);
        push_varint(out, properties.len());
        out.extend_from_slice(&properties);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_speaks_something_else_is_known_by_its_first_bytes() {
        for good in [&b""[..], b"\x10", b"\x10\xF0", b"\x10\xF0\x80\x01\0\x04MQT", b"\x10\x0c\0\x06MQIs"] {
            assert_eq!(check_protocol(good), Ok(()), "{good:?}");
        }
        for bad in [&b"\x30"[..], b"GET / HTTP/1.1", b"\x16\x03\x01", b"\x10\x0c\0\x04HTTP", b"\x10\x0c\0\x05"] {
            assert!(check_protocol(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_refusal_before_connect_is_whole_is_in_the_version_of_the_client() {
        const TOO_LARGE: ReasonCode = ReasonCode::PacketTooLarge;
        assert_eq!(refuse_early(b"\x10\xF0\xE6\x17\0\x04MQTT\x05\x02", TOO_LARGE), [0x20, 3, 0, 0x95, 0]);
        assert_eq!(refuse_early(b"\x10\xF0\xE6\x17\0\x04MQTT\x04\x02", TOO_LARGE), [0x20, 2, 0, 3]);
        assert!(refuse_early(b"\x10\xF0\xE6\x17\0\x04MQ", TOO_LARGE).is_empty());
    }
}
