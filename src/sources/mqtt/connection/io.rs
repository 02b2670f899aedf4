//! The bytes of one connection: its stream, and the buffers of what was read and of what is to be written.
//!
//! Invariant: a read passes its bytes on before it returns, so that a dropped read loses none.

use super::super::connection_memory::ConnectionMemory;
use super::super::state::ListenerState;
use crate::http::Duplex;
use crate::sources::handshake::Handshaking;
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Bytes of one read. Each thread has one buffer; connections have none.
const READ_BYTES: usize = 32 << 10;
/// Bytes of one read with many connections, since the bytes of one client delay the others: some
/// 60 publishes without a payload.
const READ_BYTES_MIN: usize = 1 << 10;
/// Number of connections that may read [`READ_BYTES`] each before one waits too long for the others: 1 MiB is an
/// estimated 10 ms of work.
const READERS: usize = 32;
/// Bytes that a client may send before its CONNACK while its password is checked: more than a SUBSCRIBE or two.
const AHEAD_BYTES_MAX: usize = 32 << 10;
/// The time within which a client has to read the bytes that the gateway sends.
pub(super) const WRITE_WAIT_MAX: Duration = Duration::from_secs(20);

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// The byte stream of a connection. It is one type (boxed), since the whole connection is compiled for it.
pub(super) trait Transport: Duplex + Sync {}

impl Transport for TcpStream {}

impl Transport for TlsStream<Handshaking> {}

/// The stream of a connection and its buffers.
pub(super) struct ConnectionIo {
    pub stream: Box<dyn Transport>,
    /// Bytes of a packet that is not complete yet.
    pub input: Vec<u8>,
    pub output: Vec<u8>,
}

/// What a read resulted in.
pub(super) enum Read<T> {
    Bytes(T),
    Eof,
}

impl ConnectionIo {
    pub(super) fn new(stream: Box<dyn Transport>) -> Self {
        Self { stream, input: Vec::new(), output: Vec::new() }
    }

    /// Writes the output to the socket. Returns `false` if the client does not read it in time.
    pub(super) async fn flush(&mut self) -> bool {
        let written = tokio::time::timeout(WRITE_WAIT_MAX, async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        });
        let is_written = matches!(written.await, Ok(Ok(())));
        self.output.clear();
        self.output.shrink_to(4096);
        is_written
    }

    /// Returns when a client has closed its connection before CONNACK. Buffers the bytes that it
    /// sends meanwhile, up to [`AHEAD_BYTES_MAX`].
    pub(super) async fn client_left(&mut self, memory: Option<&mut ConnectionMemory>) {
        let Some(memory) = memory else { return std::future::pending().await };
        while self.input.len() < AHEAD_BYTES_MAX {
            let (stream, input) = (&mut self.stream, &mut self.input);
            let read = poll_fn(|context| {
                poll_read_with(stream, context, READ_BYTES_MIN, |bytes| memory.buffer(input, bytes, None).is_ok())
            });
            match read.await {
                Ok(Read::Bytes(true)) => {}
                // Without memory for the bytes the connection ends.
                _ => return,
            }
        }
        std::future::pending().await
    }
}

/// Bytes of one read: fewer, the more clients are connected.
pub(super) fn read_bytes(shared: &ListenerState) -> usize {
    let connections = usize::try_from(shared.stats.connections.value()).unwrap_or(usize::MAX).max(1);
    (READ_BYTES * READERS / connections).clamp(READ_BYTES_MIN, READ_BYTES)
}

/// Reads into the buffer of the thread and passes the bytes to `then` before it returns, so that a drop loses none.
pub(super) fn poll_read_with<T>(
    stream: &mut Box<dyn Transport>,
    context: &mut Context<'_>,
    most: usize,
    then: impl FnOnce(&[u8]) -> T,
) -> Poll<std::io::Result<Read<T>>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(&mut scratch[..most]);
        match Pin::new(stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Ok(Read::Eof)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(Read::Bytes(then(buffer.filled())))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    })
}
