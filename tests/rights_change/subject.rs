//! A client of MQTT 5 that connects again and again, over TCP or TLS.

use crate::common::client::{Hello, Will, subscribe};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a client listens before it may be said that it is told nothing.
const QUIET: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Subject {
    to: SocketAddr,
    hello: Hello<'static>,
    tls: Option<Arc<rustls::ClientConfig>>,
    line: Option<Line>,
}

struct Line {
    stream: Stream,
    input: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

/// What a client hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Event(Vec<u8>),
    End,
    Nothing,
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(out),
            Self::Tls(stream) => stream.read(out),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }
}

impl Line {
    /// The next packet; `None` at the end, an error if nothing came within `patience`.
    fn receive(&mut self, patience: Duration) -> std::io::Result<Option<Vec<u8>>> {
        let start = Instant::now();
        loop {
            if let Ok(Some(frame)) = forebay::mqtt::frame(&self.input, usize::MAX) {
                let packet = [&[frame.first], frame.body].concat();
                let length = frame.length;
                self.input.drain(..length);
                return Ok(Some(packet));
            }
            let wait = patience.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            self.stream.tcp().set_read_timeout(Some(wait))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    return Err(error);
                }
                Err(_) => return Ok(None),
            }
        }
    }
}

impl Subject {
    pub fn new(to: SocketAddr, hello: Hello<'static>, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { to, hello, tls, line: None }
    }

    /// Has something said if it dies, so many seconds later.
    pub fn with_will(mut self, topic: &'static str, delay: u8) -> Self {
        let properties = vec![0x18, 0, 0, 0, delay];
        self.hello.will =
            Some(Will { topic, payload: br#"{"msg_id":"will","state":"fault"}"#, properties, ..Will::default() });
        self
    }

    pub fn has_will(&self) -> bool {
        self.hello.will.is_some()
    }

    /// Connects; the reason code of CONNACK, or `None` where the connection ends without one.
    pub fn connect(&mut self) -> Option<u8> {
        let tcp = TcpStream::connect(self.to).expect("connects");
        tcp.set_read_timeout(Some(PATIENCE)).expect("set");
        let stream = match &self.tls {
            None => Stream::Plain(tcp),
            Some(config) => {
                let name = "localhost".try_into().expect("a name");
                let session = rustls::ClientConnection::new(Arc::clone(config), name).expect("a session");
                Stream::Tls(Box::new(rustls::StreamOwned::new(session, tcp)))
            }
        };
        let mut line = Line { stream, input: Vec::new() };
        line.stream.write(&self.hello.bytes()).ok()?;
        let packet = line.receive(PATIENCE).ok()??;
        assert_eq!(packet[0], 0x20, "{packet:?}");
        self.line = Some(line);
        Some(packet[2])
    }

    pub fn subscribe(&mut self, filter: &str) {
        let line = self.line.as_mut().expect("connected");
        line.stream.write(&subscribe(true, 1, &[], &[(filter, 1)])).expect("sent");
        let packet = line.receive(PATIENCE).expect("SUBACK in time").expect("SUBACK");
        assert_eq!(packet, [0x90, 0, 1, 0, 1]);
    }

    /// Whether it is told an event, is cut off, or neither for a while.
    pub fn hear(&mut self) -> Heard {
        let Some(line) = &mut self.line else { return Heard::End };
        let start = Instant::now();
        while start.elapsed() < QUIET {
            match line.receive(QUIET) {
                Ok(Some(packet)) if packet[0] >> 4 == 3 => return Heard::Event(packet),
                Ok(Some(_)) => {}
                Ok(None) => return Heard::End,
                Err(_) => return Heard::Nothing,
            }
        }
        Heard::Nothing
    }

    /// Dies without a word.
    pub fn die(&mut self) {
        if let Some(line) = self.line.take() {
            let _ = line.stream.tcp().shutdown(Shutdown::Both);
        }
    }
}
