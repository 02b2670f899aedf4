//! A small blocking MQTT client that can also misbehave.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub struct Client {
    pub stream: TcpStream,
    input: Vec<u8>,
}

/// What CONNECT says.
#[derive(Clone, Debug)]
pub struct Hello<'a> {
    pub is_v5: bool,
    pub client: &'a str,
    pub is_clean: bool,
    pub keep_alive: u16,
    pub login: Option<(&'a str, &'a str)>,
    pub properties: Vec<u8>,
    pub will: Option<Will<'a>>,
}

/// What is to be published when the client dies.
#[derive(Clone, Debug, Default)]
pub struct Will<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: u8,
    pub retain: bool,
    /// Only count in MQTT 5.
    pub properties: Vec<u8>,
}

impl Default for Hello<'_> {
    fn default() -> Self {
        Self {
            is_v5: true,
            client: "tester",
            is_clean: true,
            keep_alive: 0,
            login: None,
            properties: vec![],
            will: None,
        }
    }
}

pub fn text(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let byte = (rest & 0x7F) as u8;
        rest >>= 7;
        out.push(if rest > 0 { byte | 0x80 } else { byte });
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

impl Hello<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = text("MQTT");
        body.push(if self.is_v5 { 5 } else { 4 });
        let will = self.will.as_ref().map_or(0, |will| 4 | will.qos << 3 | u8::from(will.retain) << 5);
        body.push(u8::from(self.is_clean) << 1 | if self.login.is_some() { 0xC0 } else { 0 } | will);
        body.extend_from_slice(&self.keep_alive.to_be_bytes());
        if self.is_v5 {
            body.push(self.properties.len() as u8);
            body.extend_from_slice(&self.properties);
        }
        body.extend(text(self.client));
        if let Some(will) = &self.will {
            if self.is_v5 {
                body.push(will.properties.len() as u8);
                body.extend_from_slice(&will.properties);
            }
            body.extend(text(will.topic));
            body.extend_from_slice(&(will.payload.len() as u16).to_be_bytes());
            body.extend_from_slice(will.payload);
        }
        if let Some((user, password)) = self.login {
            body.extend(text(user));
            body.extend(text(password));
        }
        packet(0x10, &body)
    }
}

/// A PUBLISH; `properties` only count in MQTT 5.
pub fn publish(is_v5: bool, qos: u8, id: u16, topic: &str, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    if is_v5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.extend_from_slice(payload);
    packet(0x30 | qos << 1, &body)
}

/// A SUBSCRIBE of filters with their options.
pub fn subscribe(is_v5: bool, id: u16, properties: &[u8], filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if is_v5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    for (filter, options) in filters {
        body.extend(text(filter));
        body.push(*options);
    }
    packet(0x82, &body)
}

pub fn unsubscribe(is_v5: bool, id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if is_v5 {
        body.push(0);
    }
    filters.iter().for_each(|filter| body.extend(text(filter)));
    packet(0xA2, &body)
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (first byte 0x40, 0x50, 0x62, 0x70) that says success.
pub fn answer(first: u8, id: u16) -> Vec<u8> {
    packet(first, &id.to_be_bytes())
}

/// Identifier and value of each property of MQTT 5 in `bytes`, which start with their length;
/// and how many bytes that was.
pub fn properties(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, usize) {
    let varint = |bytes: &[u8]| {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a whole integer") + 1;
        let value = bytes[..length].iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7F));
        (value, length)
    };
    let text_length = |bytes: &[u8]| 2 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let (length, start) = varint(bytes);
    let mut rest = &bytes[start..start + length];
    let mut found = Vec::new();
    while let [id, tail @ ..] = rest {
        let length = match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => 1,
            0x13 | 0x21..=0x23 => 2,
            0x02 | 0x11 | 0x18 | 0x27 => 4,
            0x0B => varint(tail).1,
            0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => text_length(tail),
            0x26 => text_length(tail) + text_length(&tail[text_length(tail)..]),
            _ => panic!("property {id:#x} does not exist"),
        };
        found.push((*id, tail[..length].to_vec()));
        rest = &tail[length..];
    }
    (found, start + length)
}

/// A PUBLISH that came from the server.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub dup: bool,
    pub qos: u8,
    pub retain: bool,
    pub topic: String,
    /// 0 for QoS 0.
    pub id: u16,
    pub properties: Vec<(u8, Vec<u8>)>,
    pub payload: Vec<u8>,
}

impl Delivery {
    /// Reads what [`Client::receive`] returned.
    pub fn read(is_v5: bool, packet: &[u8]) -> Self {
        let (first, rest) = packet.split_first().expect("a packet");
        assert_eq!(first >> 4, 3, "a PUBLISH, not {packet:?}");
        let qos = first >> 1 & 3;
        let (topic, rest) = rest[2..].split_at(usize::from(u16::from_be_bytes([rest[0], rest[1]])));
        let (id, rest) = rest.split_at(if qos > 0 { 2 } else { 0 });
        let (properties, skip) = if is_v5 { properties(rest) } else { (vec![], 0) };
        Self {
            dup: first & 8 != 0,
            qos,
            retain: first & 1 != 0,
            topic: String::from_utf8(topic.to_vec()).expect("UTF-8"),
            id: id.try_into().map_or(0, u16::from_be_bytes),
            properties,
            payload: rest[skip..].to_vec(),
        }
    }
}

/// What a client hears within its patience.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Packet(Vec<u8>),
    End,
    Nothing,
}

impl Client {
    pub fn dial(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("connected");
        stream.set_nodelay(true).expect("set");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        Self { stream, input: Vec::new() }
    }

    /// Connects from an address of its own: all of 127.0.0.0/8 are this machine's.
    pub fn dial_from(from: [u8; 4], to: SocketAddr) -> Self {
        Self::over(super::dial_from(from, to).expect("connected"))
    }

    /// The other side of a connection: what a broker sees.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("set");
        Self { stream, input: Vec::new() }
    }

    /// Connects; returns the CONNACK too.
    pub fn connect(to: SocketAddr, hello: &Hello<'_>) -> (Self, Vec<u8>) {
        let mut client = Self::dial(to);
        client.send(&hello.bytes());
        let connack = client.receive().expect("a CONNACK");
        assert_eq!(connack[0], 0x20, "the first packet is CONNACK");
        (client, connack)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// A whole packet that has arrived.
    fn arrived(&mut self) -> Option<Vec<u8>> {
        let frame = forebay::mqtt::frame(&self.input, usize::MAX).ok()??;
        let mut packet = vec![frame.first];
        packet.extend_from_slice(frame.body);
        let length = frame.length;
        self.input.drain(..length);
        Some(packet)
    }

    /// The next packet, first byte first, without its length; `None` if the other side has closed.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(packet) = self.arrived() {
                return Some(packet);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// The next packet, the end of the connection, or neither within `patience`.
    pub fn hear(&mut self, patience: Duration) -> Heard {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.arrived() {
                return Heard::Packet(packet);
            }
            let wait = patience.saturating_sub(start.elapsed());
            if wait.is_zero() {
                return Heard::Nothing;
            }
            self.stream.set_read_timeout(Some(wait)).expect("set");
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer);
            self.stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
            match read {
                Ok(0) => return Heard::End,
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(_) => return Heard::End,
            }
        }
    }

    /// Dies without a word.
    pub fn die(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Publishes with QoS 1 and waits for the PUBACK.
    pub fn publish(&mut self, is_v5: bool, id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
        self.send(&publish(is_v5, 1, id, topic, &[], payload));
        let answer = self.receive().expect("a PUBACK");
        assert_eq!((answer[0], u16::from_be_bytes([answer[1], answer[2]])), (0x40, id), "{answer:?}");
        answer
    }

    /// The reason code of the DISCONNECT that must come, and that the connection ends behind it.
    pub fn disconnect_code(&mut self) -> u8 {
        let packet = self.receive().expect("a DISCONNECT");
        assert_eq!(packet[0], 0xE0, "{packet:?}");
        assert!(self.receive().is_none(), "the connection ends");
        packet[1]
    }
}
