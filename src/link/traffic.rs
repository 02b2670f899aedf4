//! Counts the bytes that a link puts on the line, in both directions.
//!
//! Promise: every byte that the socket has taken or given is counted, those of TLS and WebSocket too. The headers of TCP
//! and IP are estimated.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes on the line since the process started, over all connections of a link.
#[derive(Debug, Default)]
pub struct Traffic(AtomicU64);

/// Largest content of a segment on an Ethernet or mobile line, in bytes.
const SEGMENT_BYTES: u64 = 1400;
/// Headers of a segment: IPv4 (20), TCP (20) and its time stamps (12); and of half an acknowledgement, because the peer
/// acknowledges every second segment.
const OVERHEAD_BYTES: u64 = 52 + 26;
/// Segments that open and close a TCP connection: three and four, without content.
const CONNECTION_BYTES: u64 = 7 * 52;

impl Traffic {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.0.fetch_add(bytes + bytes.div_ceil(SEGMENT_BYTES) * OVERHEAD_BYTES, Ordering::Relaxed);
    }
}

/// A TCP connection whose bytes are counted.
#[derive(Debug)]
pub(super) struct MeteredStream {
    stream: TcpStream,
    traffic: Arc<Traffic>,
}

impl MeteredStream {
    pub(super) fn new(stream: TcpStream, traffic: &Arc<Traffic>) -> Self {
        traffic.0.fetch_add(CONNECTION_BYTES, Ordering::Relaxed);
        Self { stream, traffic: Arc::clone(traffic) }
    }
}

impl MeteredStream {
    pub(super) fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn peer_address(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        self.traffic.count(into.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.traffic.count(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.traffic.count(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
