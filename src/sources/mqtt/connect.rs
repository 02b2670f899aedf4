//! CONNECT and CONNACK, in MQTT 3.1.1 and 5.

use super::ListenerState;
use super::fields::{Reader, properties};
use super::reason::{ConnectReturnCode, ReasonCode};
use super::registry::NEVER;
use super::will::WillMessage;
use super::wire::{Fault, Frame};
use crate::link::{Protocol, push_varint};

/// Highest topic alias that a client of MQTT 5 may set.
pub const ALIASES_MAX: u16 = 64;
/// The largest CONNECT: a will of 64 KiB, and 8 KiB for the rest, which includes tokens as passwords. It is read
/// before the client has logged in, so the limit is lower than that of other packets.
pub const CONNECT_BYTES_MAX: usize = 72 << 10;
/// The longest user name, the same as for client ids: each connection, session and device keeps it.
const USER_BYTES_MAX: usize = 256;
const UNSUPPORTED: [u8; 4] = [0x20, 2, 0, ConnectReturnCode::UnacceptableProtocolVersion.value()];

/// The content of CONNECT, in either version.
#[derive(Debug)]
pub struct Connect {
    /// Client id; empty if the gateway has to assign one.
    pub client: String,
    /// Clean Session, or Clean Start: an earlier session is discarded.
    pub is_clean: bool,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Vec<u8>>,
    /// Keep-alive in seconds; 0 for none.
    pub keep_alive: u16,
    /// Version of MQTT.
    pub protocol: Protocol,
    /// Session expiry interval in seconds.
    pub expiry: u32,
    /// The will.
    pub will: Option<WillMessage>,
    /// The client's Receive Maximum.
    pub receive_maximum: u16,
    /// The client's Maximum Packet Size.
    pub packet_bytes_max: usize,
}

/// The answer to a refused CONNECT, and the reason for the log.
pub type Rejection = (Vec<u8>, &'static str);

/// Names of the protocol, with which the body of CONNECT begins.
const NAMES: [&[u8]; 2] = [b"\0\x04MQTT", b"\0\x06MQIsdp"];

/// Returns the bytes after the fixed header, as far as they have arrived.
fn body(bytes: &[u8]) -> &[u8] {
    let header = bytes.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0);
    header.and_then(|last| bytes.get(2 + last..)).unwrap_or_default()
}

/// Checks the first bytes of a connection. A client that speaks another protocol is refused before CONNECT is
/// complete.
pub fn check_protocol(bytes: &[u8]) -> Result<(), Rejection> {
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

/// Returns the answer for a client that is refused before its CONNECT is complete; empty as long as its version is
/// unknown.
pub fn refuse_early(bytes: &[u8], code: ReasonCode) -> Vec<u8> {
    match body(bytes) {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => vec![0x20, 2, 0, ConnectReturnCode::ServerUnavailable.value()],
        [0, 4, b'M', b'Q', b'T', b'T', level, ..] if *level >= 5 => refuse(code),
        _ => Vec::new(),
    }
}

impl Connect {
    /// Checks the length of the names. The error is a code for CONNACK, and the reason for the log.
    pub fn check(&self, topic_max: usize) -> Result<(), (ReasonCode, &'static str)> {
        if self.user.as_ref().is_some_and(|user| user.len() > USER_BYTES_MAX) {
            return Err((ReasonCode::BadUserNameOrPassword, "the user name is longer than 256 bytes"));
        }
        if self.will.as_ref().is_some_and(|will| will.topic.len() > topic_max) {
            return Err((ReasonCode::TopicNameInvalid, "the topic of the will is longer than topic_max"));
        }
        Ok(())
    }

    /// Parses CONNECT. The error is the answer for the client, and the reason for the log.
    pub fn read(frame: &Frame<'_>) -> Result<Self, Rejection> {
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
            expiry: if protocol == Protocol::V3 && !has(0x02) { NEVER } else { 0 },
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

/// The content of CONNACK.
#[derive(Clone, Copy, Debug)]
pub struct Connack<'a> {
    /// [`ReasonCode::Success`], or the reason of the refusal.
    pub code: ReasonCode,
    /// Session Present: the client had a session.
    pub is_present: bool,
    /// Assigned Client Identifier, if the gateway chose one.
    pub assigned: Option<&'a str>,
    /// Session expiry interval, if it differs from that of CONNECT.
    pub expiry: Option<u32>,
}

/// Builds CONNACK in the version of the client.
pub(super) fn connack(protocol: Protocol, shared: &ListenerState, connack: &Connack<'_>) -> Vec<u8> {
    if protocol == Protocol::V3 {
        let code = ConnectReturnCode::from(connack.code);
        let is_present = connack.is_present && code == ConnectReturnCode::Accepted;
        return vec![0x20, 2, u8::from(is_present), code.value()];
    }
    if connack.code != ReasonCode::Success {
        return refuse(connack.code);
    }
    let mut properties = vec![0x21];
    properties.extend_from_slice(&shared.config.receive_maximum.to_be_bytes());
    properties.push(0x27);
    properties.extend_from_slice(&u32::try_from(shared.packet_bytes_max).unwrap_or(u32::MAX).to_be_bytes());
    properties.push(0x22);
    properties.extend_from_slice(&ALIASES_MAX.to_be_bytes());
    if let Some(expiry) = connack.expiry {
        properties.push(0x11);
        properties.extend_from_slice(&expiry.to_be_bytes());
    }
    if let Some(client) = connack.assigned {
        properties.push(0x12);
        properties.extend_from_slice(&u16::try_from(client.len()).unwrap_or(0).to_be_bytes());
        properties.extend_from_slice(client.as_bytes());
    }
    let mut out = vec![0x20];
    // Flags, code, and the length of the properties, which is below 128 and takes one byte.
    push_varint(&mut out, 3 + properties.len());
    out.extend_from_slice(&[u8::from(connack.is_present), ReasonCode::Success.value()]);
    push_varint(&mut out, properties.len());
    out.extend_from_slice(&properties);
    out
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
