//! A small blocking HTTP client that can also misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub struct Client {
    pub stream: TcpStream,
    input: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(&prefix))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// The bytes of a POST with a length.
pub fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    out
}

impl Client {
    pub fn dial(to: SocketAddr) -> Self {
        Self::try_dial(to).expect("connected")
    }

    pub fn try_dial(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// What comes next; an error if the other side has closed.
    pub fn receive(&mut self) -> std::io::Result<Answer> {
        let end = self.read_until(|input| input.windows(4).position(|four| four == b"\r\n\r\n"))?;
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4);
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let mut answer = Answer { status, head, body: String::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        self.read_until(|input| (input.len() >= length).then_some(length))?;
        answer.body = String::from_utf8_lossy(&self.input[..length]).into_owned();
        self.input.drain(..length);
        Ok(answer)
    }

    fn read_until(&mut self, found: impl Fn(&[u8]) -> Option<usize>) -> std::io::Result<usize> {
        loop {
            if let Some(place) = found(&self.input) {
                return Ok(place);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => self.input.extend_from_slice(&buffer[..read]),
            }
        }
    }

    pub fn try_post(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        self.stream.write_all(&post(path, headers, body))?;
        self.receive()
    }

    pub fn post(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_post(path, headers, body).expect("an answer")
    }

    /// Whether the other side closes, with nothing more to say.
    pub fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 16];
        match self.stream.read(&mut buffer) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
