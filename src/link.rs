//! The link: one MQTT session with a central broker.
//!
//! Promise: what is written leaves in few writes, what central says is read in batches, and a
//! connection that is dead is found out within seconds, whether it refuses, hangs or vanishes.
//! Invariant: no session state survives a connection; the journal is the only resend queue.
//!
//! The packets are those of rumqttc's codec; the driver around it is our own, because rumqttc's
//! event loop flushes once a publish and tops out at a fifth of this.
//!
//! Not here: which events to send, and what an answer means for them (`forward`).

mod dial;
mod packet;

pub use packet::{Answer, Refusal, push_publish};

use crate::clock;
use crate::setting::Span;
use crate::tls::{self, ClientFiles, TlsError};
use bytes::BytesMut;
use serde::Deserialize;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How to reach a central broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS.
    pub url: String,
    /// Certificates.
    pub tls: ClientFiles,
    /// Version of MQTT.
    pub protocol: Protocol,
    /// User name.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// How long the line may be silent before it is probed.
    pub keep_alive: Duration,
    /// How long an event may stay unanswered while the line is alive.
    pub answer_wait_max: Duration,
}

/// Version of MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V3,
}

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub is_tls: bool,
}

impl Address {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{url}\" is no broker; expected \"mqtts://host:8883\", or \"mqtt://host:1883\" without TLS");
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let is_tls = match scheme {
            "mqtts" => true,
            "mqtt" => false,
            _ => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (rest, if is_tls { 8883 } else { 1883 }),
        };
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, is_tls })
    }
}

/// A message that the broker publishes for us when we vanish.
#[derive(Clone, Debug)]
pub struct Will {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
}

/// A broker, ready to be connected to any number of times.
#[derive(Debug)]
pub struct Target {
    config: Config,
    address: Address,
}

/// Why there is no session, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Certificates or keys of our own.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password file.
    #[error("{file}: cannot be read: {error}", file = file.display())]
    Password {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// The name does not resolve.
    #[error("{host} does not resolve: {error}")]
    Name {
        /// The host name.
        host: String,
        /// What the resolver says.
        error: io::Error,
    },
    /// Nothing answers.
    #[error("{address} does not answer: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// Why.
        reason: String,
    },
    /// The TLS handshake failed.
    #[error("TLS with {host}: {error}")]
    Handshake {
        /// The host name.
        host: String,
        /// What does not fit.
        error: io::Error,
    },
    /// The broker does not let us in.
    #[error("the broker refuses the connection: {0}")]
    Refused(String),
    /// The broker said goodbye.
    #[error("the broker ended the connection: {0}")]
    Ended(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// The line is silent.
    #[error("nothing came for {} although it was asked for", Span(*.0))]
    Silent(Duration),
    /// The line is alive, but nothing is acknowledged.
    #[error("no acknowledgement came for {}", Span(*.0))]
    Stuck(Duration),
    /// What came is no MQTT.
    #[error("the broker broke the protocol: {0}")]
    Protocol(String),
}

impl LinkError {
    /// Whether the peer ended a session that was alive, as it does for an event it cannot stand.
    pub fn is_by_peer(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Broken(_))
    }
}

impl Target {
    /// A broker; checks the URL.
    pub fn new(config: Config) -> Result<Self, String> {
        let address = Address::parse(&config.url)?;
        Ok(Self { config, address })
    }

    /// Host and port, for people.
    pub fn name(&self) -> String {
        format!("{}:{}", self.address.host, self.address.port)
    }

    /// Connects: fresh look-up, TCP, TLS, CONNECT. Certificates and password are read anew each
    /// time, so that a rotation needs no restart. Safe to drop half-way.
    pub async fn connect(&self, client: &str, will: Option<&Will>) -> Result<Session, LinkError> {
        let tls = self.address.is_tls.then(|| tls::client(&self.config.tls)).transpose()?;
        let password = match &self.config.password_file {
            None => None,
            Some(file) => {
                let text =
                    std::fs::read_to_string(file).map_err(|error| LinkError::Password { file: file.clone(), error })?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        };
        let tcp = dial::connect(&self.address).await?;
        let stream = match tls {
            None => Stream::Plain(tcp),
            Some(config) => Stream::Tls(Box::new(dial::handshake(&self.address, &self.config.tls, config, tcp).await?)),
        };
        let now = clock::instant();
        let mut session = Session {
            stream,
            protocol: self.config.protocol,
            limits: Limits::default(),
            input: BytesMut::new(),
            keep_alive: self.config.keep_alive,
            answer_wait_max: self.config.answer_wait_max,
            heard_at: now,
            answered_at: now,
            asked_at: None,
        };
        let login = self.config.user.as_deref().map(|user| (user, password.as_deref().unwrap_or_default()));
        session.hello(client, login, will).await?;
        Ok(session)
    }
}

/// What the broker allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Publishes in flight.
    pub receive_maximum: u16,
    /// Bytes of a packet.
    pub packet_bytes_max: usize,
    /// Whether messages may be retained.
    pub has_retain: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { receive_maximum: 65_535, packet_bytes_max: 268_435_455, has_retain: true }
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An open session.
pub struct Session {
    stream: Stream,
    protocol: Protocol,
    limits: Limits,
    input: BytesMut,
    keep_alive: Duration,
    answer_wait_max: Duration,
    heard_at: Instant,
    answered_at: Instant,
    /// When the broker was asked for a sign of life that has not come.
    asked_at: Option<Instant>,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub struct Output {
    /// The bytes.
    pub bytes: Vec<u8>,
    written: usize,
}

impl Output {
    /// Bytes that are not yet written.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }
}

/// How much a read may bring.
const READ_BYTES: usize = 16 << 10;
/// A connection with events in flight that is silent this long is asked for a sign of life.
const PROBE_AFTER: Duration = Duration::from_secs(2);
/// How long that sign may take. A line whose round trip is longer carries nothing anyway.
const SIGN_WAIT_MAX: Duration = Duration::from_secs(4);

impl Session {
    /// What the broker allows.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Version of MQTT.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Writes what waits and reads what is there; returns when there was something to read or
    /// everything is written. Safe to drop half-way: what is written is remembered in `output`.
    pub async fn exchange(&mut self, output: &mut Output) -> Result<(), LinkError> {
        let had_output = output.waiting() > 0;
        let moved = poll_fn(|context| self.poll_exchange(context, output, had_output)).await;
        match moved {
            Ok(0) => Ok(()),
            Ok(_) => {
                self.heard_at = clock::instant();
                self.asked_at = None;
                Ok(())
            }
            Err(error) => Err(LinkError::Broken(error)),
        }
    }

    fn poll_exchange(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Output,
        had_output: bool,
    ) -> Poll<io::Result<usize>> {
        let is_written = self.poll_write(context, output)?;
        self.input.reserve(READ_BYTES);
        let before = self.input.len();
        self.input.resize(before + READ_BYTES, 0);
        let mut buffer = ReadBuf::new(&mut self.input[before..]);
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, &mut buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, &mut buffer),
        };
        let read = buffer.filled().len();
        self.input.truncate(before + read);
        match polled {
            Poll::Ready(Ok(())) if read == 0 => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the broker")))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(read)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if had_output && is_written => Poll::Ready(Ok(0)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, output: &mut Output) -> io::Result<bool> {
        while output.waiting() > 0 {
            let waiting = &output.bytes[output.written..];
            let polled = match &mut self.stream {
                Stream::Plain(stream) => Pin::new(stream).poll_write(context, waiting),
                Stream::Tls(stream) => Pin::new(stream).poll_write(context, waiting),
            };
            match polled {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => output.written += written,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
        }
        output.bytes.clear();
        output.written = 0;
        let flushed = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        };
        match flushed {
            Poll::Ready(result) => result.map(|()| true),
            Poll::Pending => Ok(false),
        }
    }

    /// The next packet that has arrived whole.
    pub fn answer(&mut self) -> Result<Option<Answer>, LinkError> {
        let answer = packet::read(&mut self.input, self.protocol)?;
        if matches!(answer, Some(Answer::Taken(_) | Answer::Unheard(_) | Answer::Refused(..))) {
            self.answered_at = clock::instant();
        }
        Ok(answer)
    }

    /// Looks after the line: asks for a sign of life where one is due, and says when to look
    /// again. An error means that the line is dead.
    pub fn watch(&mut self, has_in_flight: bool, output: &mut Output) -> Result<Duration, LinkError> {
        let now = clock::instant();
        if !has_in_flight {
            self.answered_at = now;
        }
        let stuck = now.duration_since(self.answered_at);
        if stuck >= self.answer_wait_max {
            return Err(LinkError::Stuck(stuck));
        }
        if let Some(asked) = self.asked_at {
            let waited = now.duration_since(asked);
            if waited >= SIGN_WAIT_MAX {
                return Err(LinkError::Silent(now.duration_since(self.heard_at)));
            }
            return Ok(SIGN_WAIT_MAX - waited);
        }
        let probe_after = if has_in_flight { PROBE_AFTER.min(self.keep_alive) } else { self.keep_alive };
        let silent = now.duration_since(self.heard_at);
        if silent >= probe_after {
            output.bytes.extend_from_slice(&packet::PINGREQ);
            self.asked_at = Some(now);
            return Ok(SIGN_WAIT_MAX);
        }
        Ok(probe_after - silent)
    }

    /// Asks for a sign of life now.
    pub fn ask(&mut self, output: &mut Output) {
        output.bytes.extend_from_slice(&packet::PINGREQ);
        self.asked_at = Some(clock::instant());
    }

    /// Whether a sign of life is awaited.
    pub fn is_asked(&self) -> bool {
        self.asked_at.is_some()
    }

    /// Says goodbye, so that no will is published, and closes.
    pub async fn close(mut self) {
        let mut output = Output { bytes: packet::DISCONNECT.to_vec(), written: 0 };
        let goodbye = async {
            poll_fn(|context| match self.poll_write(context, &mut output) {
                Ok(true) | Err(_) => Poll::Ready(()),
                Ok(false) => Poll::Pending,
            })
            .await;
            poll_fn(|context| {
                // The broker may have closed already.
                let _ = ready!(match &mut self.stream {
                    Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
                    Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
                });
                Poll::Ready(())
            })
            .await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }

    async fn hello(&mut self, client: &str, login: Option<(&str, &str)>, will: Option<&Will>) -> Result<(), LinkError> {
        let keep_alive = u16::try_from(self.keep_alive.as_secs()).unwrap_or(u16::MAX).max(5);
        let bytes = packet::connect(self.protocol, client, keep_alive, login, will)?;
        let mut output = Output { bytes, written: 0 };
        let deadline = tokio::time::sleep(dial::HANDSHAKE_WAIT_MAX);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => {
                    return Err(LinkError::Silent(dial::HANDSHAKE_WAIT_MAX));
                }
                moved = self.exchange(&mut output) => moved?,
            }
            match self.answer()? {
                None => {}
                Some(Answer::Connected { limits, keep_alive }) => {
                    self.limits = limits;
                    if let Some(wanted) = keep_alive {
                        self.keep_alive = self.keep_alive.min(wanted);
                    }
                    self.answered_at = clock::instant();
                    return Ok(());
                }
                Some(Answer::NotConnected(reason)) => return Err(LinkError::Refused(reason)),
                Some(Answer::Goodbye(reason)) => return Err(LinkError::Ended(reason)),
                Some(_) => return Err(LinkError::Protocol("the first packet is not CONNACK".into())),
            }
        }
    }
}

/// Where the shared TLS configuration comes from.
type TlsConfig = Arc<rustls::ClientConfig>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused_with_an_example() {
        let check = |url: &str, host: &str, port: u16, is_tls: bool| {
            assert_eq!(Address::parse(url), Ok(Address { host: host.into(), port, is_tls }), "{url}");
        };
        check("mqtts://central.example.com:8884", "central.example.com", 8884, true);
        check("mqtt://10.0.0.1", "10.0.0.1", 1883, false);
        check("mqtts://[::1]:8883/", "::1", 8883, true);
        check("mqtts://[::1]", "::1", 8883, true);
        for wrong in ["central:8883", "http://x", "mqtts://", "mqtts://a:b", "mqtts://user@host"] {
            let error = Address::parse(wrong).expect_err(wrong);
            assert!(error.contains(wrong) && error.contains("mqtts://host:8883"), "{error}");
        }
    }
}
