//! One MQTT session: writes packets and reads answers.
//!
//! Invariant: [`Session::exchange`] is safe to drop half-way; no byte is lost or written twice.
//!
//! Not here: when the connection counts as dead (`progress`).

use super::address::Address;
use super::config::Config;
use super::dial;
use super::error::LinkError;
use super::line::Line;
use super::peer::Peer;
use super::progress::{Progress, Step};
use super::stream::{self, Stream};
use crate::clock;
use crate::mqtt::Protocol;
use crate::mqtt::aliases::TopicAliases;
use crate::mqtt::client::{self, ConnectRequest, DISCONNECT, Inbox, Limits, PINGREQ, Reply, Will};
use crate::mqtt::inbox::{self, Delivery};
use crate::mqtt::rejection::Rejection;
use bytes::BytesMut;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::{Zeroize, Zeroizing};

/// How a client introduces itself to a broker.
#[derive(Clone, Debug)]
pub(crate) struct ConnectAs {
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

pub(crate) struct Session {
    stream: Stream,
    broker: String,
    pub(super) peer: Peer,
    index: usize,
    protocol: Protocol,
    limits: Limits,
    input: BytesMut,
    line: Arc<Line>,
    progress: Progress,
    /// TLS holds bytes that the socket has not taken.
    is_unflushed: bool,
    /// CONNECT to CONNACK.
    connect_time: Duration,
    /// Reads incoming messages, if the session has an inbox.
    inbox: Option<inbox::Parser>,
    is_resumed: bool,
}

/// What the broker says about one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    /// The broker accepted it, but its topic has no subscriber.
    NoSubscribers,
    Rejected(Rejection),
}

#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Encoded packets; the first [`Output::written`] bytes are already written.
    pub bytes: Vec<u8>,
    /// Aliases of the topics in these packets and in those before them: an output belongs to one session.
    pub aliases: TopicAliases,
    written: usize,
    /// Bytes that may be written for now; `None` for all.
    limit: Option<usize>,
    /// Nothing can be answered until more is written: the first unanswered packet is not complete.
    pub is_incomplete: bool,
}

impl Zeroize for Output {
    fn zeroize(&mut self) {
        self.bytes.zeroize();
    }
}

impl Output {
    /// Number of bytes that are not yet written.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Number of bytes that may be written for now.
    fn writable(&self) -> usize {
        self.limit.map_or(self.waiting(), |limit| limit.min(self.waiting()))
    }

    /// Has at most `bytes` written until the next call.
    pub(crate) fn limit_to(&mut self, bytes: usize) {
        self.limit = Some(bytes);
    }

    /// Removes what is written, once it is much.
    pub(crate) fn compact(&mut self) {
        if self.written >= COMPACT_BYTES {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }

    /// Adds a PINGREQ, and lets it pass if it is alone.
    fn ping(&mut self) {
        self.bytes.extend_from_slice(&PINGREQ);
        if let Some(limit) = self.limit.as_mut().filter(|limit| **limit == 0)
            && self.bytes.len() - self.written == PINGREQ.len()
        {
            *limit = PINGREQ.len();
        }
    }

    /// Number of written bytes at the start of [`Output::bytes`]; both are reset once everything is written.
    pub(crate) fn written(&self) -> usize {
        self.written
    }
}

const READ_BYTES: usize = 16 << 10;
/// Written bytes that are removed from the output at once.
const COMPACT_BYTES: usize = 64 << 10;

impl Session {
    pub(super) fn new(stream: Stream, (index, address): (usize, &Address), config: &Config, line: Arc<Line>) -> Self {
        Self {
            stream,
            broker: address.to_string(),
            peer: Peer::default(),
            index,
            protocol: config.protocol,
            limits: Limits::default(),
            input: BytesMut::new(),
            line,
            progress: Progress::new(config.keep_alive, config.answer_wait_max, clock::instant()),
            is_unflushed: false,
            connect_time: Duration::ZERO,
            inbox: None,
            is_resumed: false,
        }
    }

    /// Limits that the broker announced.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Host and port of the broker, for logs.
    pub(crate) fn broker(&self) -> &str {
        &self.broker
    }

    /// What tells this server from others.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// Time from CONNECT to CONNACK.
    pub(crate) fn broker_round_trip(&self) -> Duration {
        self.connect_time
    }

    /// Sets the send buffer of the socket. A failure only costs latency.
    pub(crate) fn set_send_buffer(&self, bytes: usize) {
        if let Some(tcp) = self.stream.tcp() {
            let _ = socket2::SockRef::from(tcp).set_send_buffer_size(bytes);
        }
    }

    /// Marks the packets of this session with a DSCP from 0 to 63. Routers that do not know it ignore it; a failure costs no
    /// more than its priority.
    pub(crate) fn set_dscp(&self, dscp: u8) {
        if let Some(tcp) = self.stream.tcp() {
            stream::mark(tcp, dscp);
        }
    }

    /// Index of the broker in the target's list of addresses.
    pub(crate) fn broker_index(&self) -> usize {
        self.index
    }

    /// MQTT version of the session.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the broker resumed the persistent session, with its subscriptions and queued messages.
    pub(crate) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Writes pending output and reads available input. Returns when it has read something or written everything.
    /// Safe to drop half-way: `output` keeps track of the written bytes.
    pub(crate) async fn exchange(&mut self, output: &mut Output) -> Result<(), LinkError> {
        let had_output = output.writable() > 0 || self.is_unflushed;
        let result = poll_fn(|context| self.poll_exchange(context, output, had_output)).await;
        match result {
            Ok(0) => Ok(()),
            Ok(_) => {
                self.progress.received(clock::instant());
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
        // Dropping the future of a pending read loses no data.
        let polled = pin!(self.stream.read_buf(&mut self.input)).poll(context);
        match polled {
            Poll::Ready(Ok(0)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the broker")))
            }
            Poll::Ready(read) => Poll::Ready(read),
            Poll::Pending if had_output && is_flushed => Poll::Ready(Ok(0)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Writes and flushes what may be written now; returns whether that is done.
    fn poll_write(&mut self, context: &mut Context<'_>, output: &mut Output) -> io::Result<bool> {
        // TLS keeps what the socket does not take: no more is added to that.
        if self.is_unflushed && !self.poll_flush(context)? {
            return Ok(false);
        }
        while output.writable() > 0 {
            let end = output.written + output.writable();
            let polled = Pin::new(&mut self.stream).poll_write(context, &output.bytes[output.written..end]);
            match polled {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    output.written += written;
                    output.limit.iter_mut().for_each(|limit| *limit -= written);
                    self.is_unflushed = true;
                    self.progress.took(clock::instant);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.progress.blocked();
                    return Ok(false);
                }
            }
        }
        if output.waiting() == 0 {
            if !output.bytes.is_empty() {
                self.progress.sent(clock::instant());
            }
            output.bytes.clear();
            output.written = 0;
        }
        self.poll_flush(context)
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        match flushed {
            Poll::Ready(result) => {
                result?;
                self.is_unflushed = false;
                self.progress.took(clock::instant);
            }
            Poll::Pending => self.progress.blocked(),
        }
        Ok(!self.is_unflushed)
    }

    /// Returns the next complete packet from the input.
    pub(crate) fn next_reply(&mut self) -> Result<Option<Reply>, LinkError> {
        let reply = client::read(&mut self.input, self.protocol)?;
        if matches!(reply, Some(Reply::Acknowledged(_) | Reply::NoSubscribers(_) | Reply::Rejected(..))) {
            self.progress.acknowledged(clock::instant());
        }
        Ok(reply)
    }

    /// Returns the next answer that has arrived, with the packet id of its publish. A DISCONNECT is an error.
    pub(crate) fn next_answer(&mut self) -> Result<Option<(u16, Verdict)>, LinkError> {
        while let Some(reply) = self.next_reply()? {
            match reply {
                Reply::PingResponse | Reply::Connected { .. } => {}
                Reply::Acknowledged(id) => return Ok(Some((id, Verdict::Accepted))),
                Reply::NoSubscribers(id) => return Ok(Some((id, Verdict::NoSubscribers))),
                Reply::Rejected(id, rejection) => return Ok(Some((id, Verdict::Rejected(rejection)))),
                Reply::ConnectRejected(reason) | Reply::Disconnected(reason) => return Err(LinkError::Ended(reason)),
            }
        }
        Ok(None)
    }

    /// Returns the next complete delivery from the input of a session with an [`Inbox`].
    pub(crate) fn next_delivery(&mut self) -> Result<Option<Delivery>, LinkError> {
        match &mut self.inbox {
            Some(inbox) => Ok(inbox.next(&mut self.input, self.protocol)?),
            None => Ok(self.next_reply()?.map(Delivery::Other)),
        }
    }

    /// Writes pending output without reading: this applies back pressure to the broker. Safe to drop half-way.
    pub(crate) async fn write(&mut self, output: &mut Output) -> Result<(), LinkError> {
        poll_fn(|context| match self.poll_write(context, output) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(LinkError::Broken(error))),
        })
        .await
    }

    /// Keeps the connection alive while nothing is read: sends a PINGREQ when one is due, and does not count the time
    /// without input as silence. Returns the time until the next call.
    pub(crate) fn keep_alive_unread(&mut self, output: &mut Output) -> Duration {
        match self.progress.check_unread(output.waiting() > 0, clock::instant()) {
            Step::Wait(wait) => wait,
            Step::Ping(wait) => {
                output.ping();
                wait
            }
        }
    }

    /// Checks the connection: sends a PINGREQ when one is due, and returns the time until the next call. An error means
    /// that the connection is dead. `unanswered` is the size of the publishes in flight, in bytes.
    pub(crate) fn check(&mut self, unanswered: u64, output: &mut Output) -> Result<Duration, LinkError> {
        if output.is_incomplete && output.writable() == 0 && !self.is_unflushed {
            self.progress.held_back(clock::instant());
        }
        let carried = self.line.carried(unanswered.saturating_sub(output.waiting() as u64));
        match self.progress.check(unanswered > 0, carried, clock::instant())? {
            Step::Wait(wait) => Ok(wait),
            Step::Ping(wait) => {
                output.ping();
                Ok(wait)
            }
        }
    }

    pub(crate) fn ping(&mut self, output: &mut Output) {
        output.ping();
        self.progress.pinged(clock::instant());
    }

    /// Whether a PINGREQ is unanswered.
    pub(crate) fn is_ping_pending(&self) -> bool {
        self.progress.is_ping_pending()
    }

    /// Sends DISCONNECT, which makes the broker discard the will, and closes the connection.
    pub(crate) async fn close(mut self) {
        let mut output = Output { bytes: DISCONNECT.to_vec(), ..Output::default() };
        let disconnect = async {
            poll_fn(|context| match self.poll_write(context, &mut output) {
                Ok(true) | Err(_) => Poll::Ready(()),
                Ok(false) => Poll::Pending,
            })
            .await;
            // The broker may have closed already.
            let _ = self.stream.shutdown().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), disconnect).await;
    }

    /// Sends CONNECT and waits for CONNACK.
    pub(super) async fn connect(
        &mut self,
        connect_as: &ConnectAs,
        login: Option<(&str, &str)>,
    ) -> Result<(), LinkError> {
        let ConnectAs { client, will, inbox } = connect_as;
        self.inbox = inbox.as_ref().map(inbox::Parser::new);
        let keep_alive = u16::try_from(self.progress.keep_alive.as_secs()).unwrap_or(u16::MAX).max(5);
        let request = ConnectRequest { client, keep_alive, login, will: will.as_ref(), inbox: inbox.as_ref() };
        let bytes = request.encode(self.protocol)?;
        // The password in the packet is overwritten when `output` is dropped.
        let mut output = Zeroizing::new(Output { bytes, ..Output::default() });
        let begun = clock::instant();
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
            match client::read(&mut self.input, self.protocol)? {
                None => {}
                Some(Reply::Connected { limits, keep_alive, is_resumed }) => {
                    self.limits = limits;
                    self.is_resumed = is_resumed;
                    if let Some(wanted) = keep_alive {
                        self.progress.keep_alive = self.progress.keep_alive.min(wanted);
                    }
                    self.connect_time = clock::instant().duration_since(begun);
                    self.line.record_connect(self.connect_time);
                    return Ok(());
                }
                Some(Reply::ConnectRejected(reason)) => return Err(LinkError::Refused(reason)),
                Some(Reply::Disconnected(reason)) => return Err(LinkError::Ended(reason)),
                Some(_) => return Err(LinkError::Protocol("the first packet is not CONNACK".into())),
            }
        }
    }
}
