//! A small blocking MQTT client that can also misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

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
}

impl Default for Hello<'_> {
    fn default() -> Self {
        Self { is_v5: true, client: "tester", is_clean: true, keep_alive: 0, login: None, properties: vec![] }
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
        body.push(u8::from(self.is_clean) << 1 | if self.login.is_some() { 0xC0 } else { 0 });
        body.extend_from_slice(&self.keep_alive.to_be_bytes());
        if self.is_v5 {
            body.push(self.properties.len() as u8);
            body.extend_from_slice(&self.properties);
        }
        body.extend(text(self.client));
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

impl Client {
    pub fn dial(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("connected");
        stream.set_nodelay(true).expect("set");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
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

    /// The next packet, first byte first, without its length; `None` if the other side has closed.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Ok(Some(frame)) = forebay::sources::mqtt::frame(&self.input, usize::MAX) {
                let mut packet = vec![frame.first];
                packet.extend_from_slice(frame.body);
                let length = frame.length;
                self.input.drain(..length);
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
