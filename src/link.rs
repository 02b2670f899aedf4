//! The link: one MQTT session with a broker, central or the plant's.
//!
//! Promise: what is written leaves in few writes, what the broker says is read in batches, and a
//! connection that is dead is found out within seconds, whether it refuses, hangs or vanishes.
//! Invariants:
//! - no state of what we send survives a connection; the journal is the only resend queue;
//! - what a broker owes us is its own persistent session, opened with an [`Inbox`].
//!
//! The packets are those of rumqttc's codec; the driver around it is our own, because rumqttc's
//! event loop flushes once a publish and tops out at a fifth of this.
//!
//! Not here: which events to send, and what an answer means for them (`forward`).

mod address;
mod dial;
mod error;
mod inbox;
mod packet;
mod pause;

pub use address::Address;
pub use error::LinkError;
pub use inbox::{
    Delivery, Inbox, Message, Subscription, push_puback, push_subscribe, push_unacknowledged, push_unsubscribe,
};
pub use packet::{Answer, Head, Refusal, push_publish, push_varint};
#[cfg(test)]
pub(crate) use pause::seeded;
pub use pause::{RECONNECT_EARLY, RECONNECT_MAX, jitter, reconnect_wait};

use crate::clock;
use crate::secret::Secret;
use crate::tls::{self, ClientFiles};
use bytes::BytesMut;
use parking_lot::Mutex;
use serde::Deserialize;
use std::future::{Future, poll_fn};
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use zeroize::{Zeroize, Zeroizing};

/// How to reach a central broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS; several are tried in order.
    pub urls: Vec<String>,
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
    addresses: Vec<Address>,
    /// What the certificates made when they were last good.
    tls: Mutex<Option<TlsConfig>>,
}

/// How long a broker may take to let us in where there is another one to try.
const BROKER_WAIT_MAX: Duration = Duration::from_secs(5);

impl Target {
    /// A broker under one address or several; checks the URLs.
    pub fn new(config: Config) -> Result<Self, String> {
        let addresses = config.urls.iter().map(|url| Address::parse(url)).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err("there is no URL; expected \"mqtts://host:8883\"".into());
        }
        Ok(Self { config, addresses, tls: Mutex::default() })
    }

    /// Host and port of the first address, for people.
    pub fn name(&self) -> String {
        self.addresses.first().map(ToString::to_string).unwrap_or_default()
    }

    /// Connects: fresh look-up, TCP, TLS, CONNECT. Certificates and password are read anew each
    /// time, so that a rotation needs no restart; while the certificates cannot be read, those before
    /// serve on. Safe to drop half-way.
    pub async fn connect(&self, client: &str, will: Option<&Will>) -> Result<Session, LinkError> {
        self.open(client, will, None, self.addresses.len()).await
    }

    /// Connects to one of the addresses before `place`, in their order. Safe to drop half-way.
    pub async fn connect_before(&self, client: &str, will: Option<&Will>, place: usize) -> Result<Session, LinkError> {
        self.open(client, will, None, place).await
    }

    /// Connects like [`Target::connect`], and takes up the session in which the broker keeps what
    /// it owes this client id. Safe to drop half-way.
    pub async fn connect_inbox(&self, client: &str, inbox: &Inbox) -> Result<Session, LinkError> {
        self.open(client, None, Some(inbox), self.addresses.len()).await
    }

    /// Connects to the first of the addresses before `places` that lets us in.
    async fn open(
        &self,
        client: &str,
        will: Option<&Will>,
        inbox: Option<&Inbox>,
        places: usize,
    ) -> Result<Session, LinkError> {
        let addresses = &self.addresses[..places.min(self.addresses.len())];
        if let [address] = addresses {
            return self.open_at(address, 0, client, will, inbox).await;
        }
        let mut refusals = Vec::new();
        for (place, address) in addresses.iter().enumerate() {
            let attempt = self.open_at(address, place, client, will, inbox);
            match tokio::time::timeout(BROKER_WAIT_MAX, attempt).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => refusals.push(error.to_string()),
                Err(_) => refusals.push(format!("{address} does not answer")),
            }
        }
        Err(LinkError::None(refusals.join("; ")))
    }

    fn tls(&self) -> Result<TlsConfig, LinkError> {
        let mut known = self.tls.lock();
        match (tls::client(&self.config.tls), &*known) {
            (Ok(tls), _) => Ok(Arc::clone(known.insert(tls))),
            (Err(error), Some(before)) => {
                tracing::warn!(broker = %self.name(), %error, "the certificates cannot be used; those before serve on");
                Ok(Arc::clone(before))
            }
            (Err(error), None) => Err(error.into()),
        }
    }

    async fn open_at(
        &self,
        address: &Address,
        place: usize,
        client: &str,
        will: Option<&Will>,
        inbox: Option<&Inbox>,
    ) -> Result<Session, LinkError> {
        let tls = address.is_tls.then(|| self.tls()).transpose()?;
        let password = match &self.config.password_file {
            None => None,
            Some(file) => Some(Secret::read(file)?),
        };
        #[cfg(test)]
        let in_memory = memory::connect(address);
        #[cfg(not(test))]
        let in_memory: Option<io::Result<Stream>> = None;
        let stream = match (in_memory, tls) {
            (Some(stream), _) => stream.map_err(LinkError::Broken)?,
            (None, None) => Stream::Plain(dial::connect(address).await?),
            (None, Some(config)) => {
                let tcp = dial::connect(address).await?;
                Stream::Tls(Box::new(dial::handshake(address, &self.config.tls, config, tcp).await?))
            }
        };
        let now = clock::instant();
        let mut session = Session {
            stream,
            broker: address.to_string(),
            place,
            protocol: self.config.protocol,
            limits: Limits::default(),
            input: BytesMut::new(),
            keep_alive: self.config.keep_alive,
            answer_wait_max: self.config.answer_wait_max,
            heard_at: now,
            spoke_at: now,
            answered_at: now,
            asked_at: None,
            inbox: inbox.map(inbox::Reader::new),
            is_resumed: false,
        };
        let password = password.as_ref().and_then(Secret::line).unwrap_or_default();
        let login = self.config.user.as_deref().map(|user| (user, password));
        session.hello(client, login, will, inbox).await?;
        Ok(session)
    }
}

/// What the broker allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Publishes in flight.
    pub receive_maximum: u16,
    /// Bytes of a packet.
    pub packet_bytes_max: usize,
    /// Whether messages may be retained.
    pub has_retain: bool,
    /// How long it keeps our session, where that is not what we asked for, in seconds.
    pub session_seconds: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { receive_maximum: 65_535, packet_bytes_max: 268_435_455, has_retain: true, session_seconds: None }
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// The other end is in the same process.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// Links without a network, for a simulation in one thread.
#[cfg(test)]
pub(crate) mod memory {
    use super::{Stream, address::Address};
    use std::cell::RefCell;
    use std::io;
    use tokio::io::DuplexStream;

    /// Answers a connection to a host and port.
    type Network = Box<dyn Fn(&str) -> io::Result<DuplexStream>>;

    thread_local! {
        static NETWORK: RefCell<Option<Network>> = const { RefCell::new(None) };
    }

    /// From now on the links of this thread go to `network`.
    pub(crate) fn begin(network: Network) {
        NETWORK.set(Some(network));
    }

    pub(super) fn connect(address: &Address) -> Option<io::Result<Stream>> {
        NETWORK.with_borrow(|network| Some(network.as_ref()?(&address.to_string()).map(Stream::Memory)))
    }
}

/// An open session.
pub struct Session {
    stream: Stream,
    broker: String,
    place: usize,
    protocol: Protocol,
    limits: Limits,
    input: BytesMut,
    keep_alive: Duration,
    answer_wait_max: Duration,
    heard_at: Instant,
    spoke_at: Instant,
    answered_at: Instant,
    /// When the broker was asked for a sign of life that has not come.
    asked_at: Option<Instant>,
    /// How messages are read, where the session takes them in.
    inbox: Option<inbox::Reader>,
    is_resumed: bool,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub struct Output {
    /// The bytes.
    pub bytes: Vec<u8>,
    written: usize,
}

impl Zeroize for Output {
    fn zeroize(&mut self) {
        self.bytes.zeroize();
    }
}

impl Output {
    /// Bytes that are not yet written.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// How far [`Output::bytes`] is written; both begin anew once all is.
    pub fn written(&self) -> usize {
        self.written
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

    /// Host and port of the broker, for people.
    pub fn broker(&self) -> &str {
        &self.broker
    }

    /// Which of the target's addresses it is with; 0 is the first.
    pub fn place(&self) -> usize {
        self.place
    }

    /// Version of MQTT.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the broker remembers the session, with its subscriptions and what it owes us.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
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
        let polled = match &mut self.stream {
            // Dropping the future of a read that is not ready loses nothing.
            Stream::Plain(stream) => pin!(stream.read_buf(&mut self.input)).poll(context),
            Stream::Tls(stream) => pin!(stream.read_buf(&mut self.input)).poll(context),
            #[cfg(test)]
            Stream::Memory(stream) => pin!(stream.read_buf(&mut self.input)).poll(context),
        };
        match polled {
            Poll::Ready(Ok(0)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the broker")))
            }
            Poll::Ready(read) => Poll::Ready(read),
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
                #[cfg(test)]
                Stream::Memory(stream) => Pin::new(stream).poll_write(context, waiting),
            };
            match polled {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => output.written += written,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
        }
        if !output.bytes.is_empty() {
            self.spoke_at = clock::instant();
        }
        output.bytes.clear();
        output.written = 0;
        let flushed = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            #[cfg(test)]
            Stream::Memory(stream) => Pin::new(stream).poll_flush(context),
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

    /// The next delivery that has arrived whole, over a session with an [`Inbox`].
    pub fn delivery(&mut self) -> Result<Option<Delivery>, LinkError> {
        match &mut self.inbox {
            Some(inbox) => inbox.read(&mut self.input, self.protocol),
            None => Ok(self.answer()?.map(Delivery::Other)),
        }
    }

    /// Writes what waits, and reads nothing: the broker is slowed down. Safe to drop half-way.
    pub async fn write(&mut self, output: &mut Output) -> Result<(), LinkError> {
        poll_fn(|context| match self.poll_write(context, output) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(LinkError::Broken(error))),
        })
        .await
    }

    /// Looks after the line while nothing is read: the broker hears of us, and its silence, which
    /// is ours, is not counted. Says when to look again.
    pub fn watch_unread(&mut self, output: &mut Output) -> Duration {
        let now = clock::instant();
        self.heard_at = now;
        self.answered_at = now;
        self.asked_at = None;
        let unspoken = now.duration_since(self.spoke_at);
        if unspoken < self.keep_alive {
            return self.keep_alive - unspoken;
        }
        if output.waiting() == 0 {
            output.bytes.extend_from_slice(&packet::PINGREQ);
            self.spoke_at = now;
        }
        self.keep_alive
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
        // A broker wants to hear of us within the keep-alive, however much it says itself.
        let unspoken = now.duration_since(self.spoke_at);
        if silent >= probe_after || unspoken >= self.keep_alive {
            output.bytes.extend_from_slice(&packet::PINGREQ);
            self.asked_at = Some(now);
            self.spoke_at = now;
            return Ok(SIGN_WAIT_MAX);
        }
        Ok((probe_after - silent).min(self.keep_alive - unspoken))
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
                    #[cfg(test)]
                    Stream::Memory(stream) => Pin::new(stream).poll_shutdown(context),
                });
                Poll::Ready(())
            })
            .await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }

    async fn hello(
        &mut self,
        client: &str,
        login: Option<(&str, &str)>,
        will: Option<&Will>,
        inbox: Option<&Inbox>,
    ) -> Result<(), LinkError> {
        let keep_alive = u16::try_from(self.keep_alive.as_secs()).unwrap_or(u16::MAX).max(5);
        let bytes = packet::connect(self.protocol, client, keep_alive, login, will, inbox)?;
        // Once it is sent, or cannot be, the password in it is overwritten.
        let mut output = Zeroizing::new(Output { bytes, written: 0 });
        let deadline = tokio::time::sleep(dial::HANDSHAKE_WAIT_MAX);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => {
                    return Err(LinkError::Silent(dial::HANDSHAKE_WAIT_MAX));
                }
                moved = self.exchange(&mut output) => moved?,
            }
            // Messages may follow in the same segment: they stay where they are.
            match packet::read(&mut self.input, self.protocol)? {
                None => {}
                Some(Answer::Connected { limits, keep_alive, is_resumed }) => {
                    self.limits = limits;
                    self.is_resumed = is_resumed;
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
