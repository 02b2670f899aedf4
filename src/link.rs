//! The link: one MQTT session with a broker, at central or in the plant.
//!
//! Promise: writes and reads are batched; a dead connection is detected within seconds, whether the broker refuses it,
//! hangs or vanishes.
//! Invariants:
//! - no state of outgoing publishes survives a connection; the journal is the only resend queue;
//! - incoming messages use a persistent session of the broker, opened with an [`Inbox`].
//!
//! The codec is rumqttc's; the driver is ours, because rumqttc's event loop flushes after every publish and reaches
//! only a fifth of this throughput.
//!
//! Not here: which events to send, and what a reply means for them (`forward`).

mod address;
mod answer;
mod client;
mod client_conflict;
mod dial;
mod error;
mod failback;
mod reconnect;
mod rotation;

pub use crate::mqtt::Protocol;
pub use crate::mqtt::client::{Head, Inbox, Limits, Rejection, Reply, Will, push_publish};
pub use crate::mqtt::inbox::{Delivery, Message, Subscription, push_subscribe, push_unsubscribe};
pub use address::Address;
pub(crate) use answer::Verdict;
pub(crate) use client::{Client, Conversation, End, Leave, LostSession, Start, Turn};
pub(crate) use client_conflict::{ClientIdConflict, Conflict};
pub use error::LinkError;
pub(crate) use failback::Failback;
pub(crate) use reconnect::{RECONNECT_MAX, Reconnect};
pub use rotation::CredentialRotation;

use crate::clock;
use crate::mqtt::client::{self as codec, ConnectRequest, DISCONNECT, PINGREQ};
use crate::mqtt::inbox;
use crate::secret::Secret;
use crate::tls::{self, ClientFiles};
use bytes::BytesMut;
use parking_lot::Mutex;
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

/// How to reach a broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS; the gateway tries several in their order.
    pub urls: Vec<String>,
    /// Files for TLS: authorities, client certificate and key.
    pub tls: ClientFiles,
    /// MQTT version.
    pub protocol: Protocol,
    /// User name.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Time without traffic after which the gateway sends a PINGREQ.
    pub keep_alive: Duration,
    /// Longest wait for an acknowledgement while the connection is alive.
    pub answer_wait_max: Duration,
}

/// How a client introduces itself to a broker.
#[derive(Clone, Debug)]
pub(crate) struct ConnectAs {
    /// The client id.
    pub(crate) client: String,
    pub(crate) will: Option<Will>,
    /// With an inbox, the broker resumes the persistent session of this client id.
    pub(crate) inbox: Option<Inbox>,
}

impl ConnectAs {
    /// A client that only publishes.
    pub(crate) fn client(client: String) -> Self {
        Self { client, will: None, inbox: None }
    }
}

/// The brokers of one destination or source, to connect to any number of times.
#[derive(Debug)]
pub struct Target {
    config: Config,
    addresses: Vec<Address>,
    /// The TLS configuration from the last readable certificates.
    tls: Mutex<Option<TlsConfig>>,
}

/// Time limit for connecting to one broker if there is another one to try.
const BROKER_WAIT_MAX: Duration = Duration::from_secs(5);

impl Target {
    /// Checks the URLs; there must be at least one.
    pub fn new(config: Config) -> Result<Self, String> {
        let addresses = config.urls.iter().map(|url| Address::parse(url)).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err("no URL is given; expected \"mqtts://host:8883\"".into());
        }
        Ok(Self { config, addresses, tls: Mutex::default() })
    }

    /// Host and port of the first address, for logs.
    pub fn name(&self) -> String {
        self.addresses.first().map(ToString::to_string).unwrap_or_default()
    }

    /// Connects: DNS lookup, TCP, TLS, CONNECT. Reads certificates and password each time, so a rotation needs no
    /// restart; while the certificates cannot be read, it uses the previous ones. Safe to drop half-way.
    pub(crate) async fn connect(&self, connect_as: &ConnectAs) -> Result<Session, LinkError> {
        self.connect_before(connect_as, self.addresses.len()).await
    }

    /// Connects to the first of the addresses before index `index` that accepts the connection. Safe to drop half-way.
    pub(crate) async fn connect_before(&self, connect_as: &ConnectAs, index: usize) -> Result<Session, LinkError> {
        let addresses = &self.addresses[..index.min(self.addresses.len())];
        if let [address] = addresses {
            return self.open_at(address, 0, connect_as).await;
        }
        let mut errors = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let attempt = self.open_at(address, index, connect_as);
            match tokio::time::timeout(BROKER_WAIT_MAX, attempt).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => errors.push(error.to_string()),
                Err(_) => errors.push(format!("{address} does not answer")),
            }
        }
        Err(LinkError::None(errors.join("; ")))
    }

    fn tls(&self) -> Result<TlsConfig, LinkError> {
        let mut cached = self.tls.lock();
        match (tls::client(&self.config.tls), &*cached) {
            (Ok(tls), _) => Ok(Arc::clone(cached.insert(tls))),
            (Err(error), Some(before)) => {
                tracing::warn!(broker = %self.name(), %error, "cannot use the certificates; continuing with the previous ones");
                Ok(Arc::clone(before))
            }
            (Err(error), None) => Err(error.into()),
        }
    }

    async fn open_at(&self, address: &Address, index: usize, connect_as: &ConnectAs) -> Result<Session, LinkError> {
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
            index,
            protocol: self.config.protocol,
            limits: Limits::default(),
            input: BytesMut::new(),
            keep_alive: self.config.keep_alive,
            answer_wait_max: self.config.answer_wait_max,
            received_at: now,
            sent_at: now,
            acknowledged_at: now,
            had_in_flight: false,
            pinged_at: None,
            inbox: connect_as.inbox.as_ref().map(inbox::Parser::new),
            is_resumed: false,
        };
        let password = password.as_ref().and_then(Secret::line).unwrap_or_default();
        let login = self.config.user.as_deref().map(|user| (user, password));
        session.send_connect(connect_as, login).await?;
        Ok(session)
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// A peer in the same process.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// Links without a network, for a single-threaded simulation.
#[cfg(test)]
pub(crate) mod memory {
    use super::{Stream, address::Address};
    use std::cell::RefCell;
    use std::io;
    use tokio::io::DuplexStream;

    /// Opens a connection to a host and port.
    type Network = Box<dyn Fn(&str) -> io::Result<DuplexStream>>;

    thread_local! {
        static NETWORK: RefCell<Option<Network>> = const { RefCell::new(None) };
    }

    /// Directs all further links of this thread to `network`.
    pub(crate) fn begin(network: Network) {
        NETWORK.set(Some(network));
    }

    pub(super) fn connect(address: &Address) -> Option<io::Result<Stream>> {
        NETWORK.with_borrow(|network| Some(network.as_ref()?(&address.to_string()).map(Stream::Memory)))
    }
}

/// An open MQTT session.
pub struct Session {
    stream: Stream,
    broker: String,
    index: usize,
    protocol: Protocol,
    limits: Limits,
    input: BytesMut,
    keep_alive: Duration,
    answer_wait_max: Duration,
    received_at: Instant,
    sent_at: Instant,
    acknowledged_at: Instant,
    /// Whether there were publishes in flight at the last check.
    had_in_flight: bool,
    /// When the unanswered PINGREQ was sent.
    pinged_at: Option<Instant>,
    /// Reads incoming messages, if the session has an inbox.
    inbox: Option<inbox::Parser>,
    is_resumed: bool,
}

/// Packets to write.
#[derive(Debug, Default)]
pub struct Output {
    /// Encoded packets; the first [`Output::written`] bytes are already written.
    pub bytes: Vec<u8>,
    written: usize,
}

impl Zeroize for Output {
    fn zeroize(&mut self) {
        self.bytes.zeroize();
    }
}

impl Output {
    /// Number of bytes that are not yet written.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Number of written bytes at the start of [`Output::bytes`]; both are reset once everything is written.
    pub fn written(&self) -> usize {
        self.written
    }
}

/// Buffer space per read.
const READ_BYTES: usize = 16 << 10;
/// With publishes in flight, the gateway sends a PINGREQ after this time without incoming bytes.
const PING_AFTER: Duration = Duration::from_secs(2);
/// Time limit for any bytes after a PINGREQ. A line with a longer round trip is not usable anyway.
const PING_WAIT_MAX: Duration = Duration::from_secs(4);

impl Session {
    /// Limits that the broker announced.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Host and port of the broker, for logs.
    pub fn broker(&self) -> &str {
        &self.broker
    }

    /// Index of the broker in the target's list of addresses.
    pub fn broker_index(&self) -> usize {
        self.index
    }

    /// MQTT version of the session.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the broker resumed the persistent session, with its subscriptions and queued messages.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Writes pending output and reads available input. Returns when it has read something or written everything.
    /// Safe to drop half-way: `output` keeps track of the written bytes.
    pub async fn exchange(&mut self, output: &mut Output) -> Result<(), LinkError> {
        let had_output = output.waiting() > 0;
        let result = poll_fn(|context| self.poll_exchange(context, output, had_output)).await;
        match result {
            Ok(0) => Ok(()),
            Ok(_) => {
                self.received_at = clock::instant();
                self.pinged_at = None;
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
        let is_flushed = self.poll_write(context, output)?;
        self.input.reserve(READ_BYTES);
        let polled = match &mut self.stream {
            // Dropping the future of a pending read loses no data.
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
            Poll::Pending if had_output && is_flushed => Poll::Ready(Ok(0)),
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
            self.sent_at = clock::instant();
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

    /// Returns the next complete packet from the input.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, LinkError> {
        let reply = codec::read(&mut self.input, self.protocol)?;
        if matches!(reply, Some(Reply::Acknowledged(_) | Reply::NoSubscribers(_) | Reply::Rejected(..))) {
            self.acknowledged_at = clock::instant();
        }
        Ok(reply)
    }

    /// Returns the next complete delivery from the input of a session with an [`Inbox`].
    pub fn next_delivery(&mut self) -> Result<Option<Delivery>, LinkError> {
        match &mut self.inbox {
            Some(inbox) => Ok(inbox.next(&mut self.input, self.protocol)?),
            None => Ok(self.next_reply()?.map(Delivery::Other)),
        }
    }

    /// Writes pending output without reading: this applies back pressure to the broker. Safe to drop half-way.
    pub async fn write(&mut self, output: &mut Output) -> Result<(), LinkError> {
        poll_fn(|context| match self.poll_write(context, output) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(LinkError::Broken(error))),
        })
        .await
    }

    /// Keeps the connection alive while nothing is read: sends a PINGREQ when one is due, and does not count the time
    /// without input as silence. Returns the time until the next call.
    pub fn keep_alive_unread(&mut self, output: &mut Output) -> Duration {
        let now = clock::instant();
        self.received_at = now;
        self.acknowledged_at = now;
        self.pinged_at = None;
        let unsent = now.duration_since(self.sent_at);
        if unsent < self.keep_alive {
            return self.keep_alive - unsent;
        }
        if output.waiting() == 0 {
            output.bytes.extend_from_slice(&PINGREQ);
            self.sent_at = now;
        }
        self.keep_alive
    }

    /// Checks the connection: sends a PINGREQ when one is due, and returns the time until the next call. An error means
    /// that the connection is dead.
    pub fn check(&mut self, has_in_flight: bool, output: &mut Output) -> Result<Duration, LinkError> {
        let now = clock::instant();
        // The first publish in flight has the whole time, however long ago the last answer came.
        if !has_in_flight || !self.had_in_flight {
            self.acknowledged_at = now;
        }
        self.had_in_flight = has_in_flight;
        let unacknowledged = now.duration_since(self.acknowledged_at);
        if unacknowledged >= self.answer_wait_max {
            return Err(LinkError::Stuck(unacknowledged));
        }
        if let Some(pinged) = self.pinged_at {
            let waited = now.duration_since(pinged);
            if waited >= PING_WAIT_MAX {
                return Err(LinkError::Silent(now.duration_since(self.received_at)));
            }
            return Ok(PING_WAIT_MAX - waited);
        }
        let ping_after = if has_in_flight { PING_AFTER.min(self.keep_alive) } else { self.keep_alive };
        let silent = now.duration_since(self.received_at);
        // The broker expects a packet within the keep-alive, regardless of what it sends itself.
        let unsent = now.duration_since(self.sent_at);
        if silent >= ping_after || unsent >= self.keep_alive {
            output.bytes.extend_from_slice(&PINGREQ);
            self.pinged_at = Some(now);
            self.sent_at = now;
            return Ok(PING_WAIT_MAX);
        }
        Ok((ping_after - silent).min(self.keep_alive - unsent))
    }

    /// Sends a PINGREQ now.
    pub fn ping(&mut self, output: &mut Output) {
        output.bytes.extend_from_slice(&PINGREQ);
        self.pinged_at = Some(clock::instant());
    }

    /// Whether a PINGREQ is unanswered.
    pub fn is_ping_pending(&self) -> bool {
        self.pinged_at.is_some()
    }

    /// Sends DISCONNECT, which makes the broker discard the will, and closes the connection.
    pub async fn close(mut self) {
        let mut output = Output { bytes: DISCONNECT.to_vec(), written: 0 };
        let disconnect = async {
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
        let _ = tokio::time::timeout(Duration::from_secs(1), disconnect).await;
    }

    async fn send_connect(&mut self, connect_as: &ConnectAs, login: Option<(&str, &str)>) -> Result<(), LinkError> {
        let ConnectAs { client, will, inbox } = connect_as;
        let keep_alive = u16::try_from(self.keep_alive.as_secs()).unwrap_or(u16::MAX).max(5);
        let request = ConnectRequest { client, keep_alive, login, will: will.as_ref(), inbox: inbox.as_ref() };
        let bytes = request.encode(self.protocol)?;
        // The password in the packet is overwritten when `output` is dropped.
        let mut output = Zeroizing::new(Output { bytes, written: 0 });
        let deadline = tokio::time::sleep(dial::HANDSHAKE_WAIT_MAX);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => {
                    return Err(LinkError::Silent(dial::HANDSHAKE_WAIT_MAX));
                }
                result = self.exchange(&mut output) => result?,
            }
            // Messages may follow in the same TCP segment: they stay in the input.
            match codec::read(&mut self.input, self.protocol)? {
                None => {}
                Some(Reply::Connected { limits, keep_alive, is_resumed }) => {
                    self.limits = limits;
                    self.is_resumed = is_resumed;
                    if let Some(wanted) = keep_alive {
                        self.keep_alive = self.keep_alive.min(wanted);
                    }
                    self.acknowledged_at = clock::instant();
                    return Ok(());
                }
                Some(Reply::ConnectRejected(reason)) => return Err(LinkError::Refused(reason)),
                Some(Reply::Disconnected(reason)) => return Err(LinkError::Ended(reason)),
                Some(_) => return Err(LinkError::Protocol("the first packet is not CONNACK".into())),
            }
        }
    }
}

type TlsConfig = Arc<rustls::ClientConfig>;
