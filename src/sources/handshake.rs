//! TLS handshakes: bounds the bytes that an unauthenticated client may send.
//!
//! Promise: the bytes of a handshake are bounded. The permit grows before they exceed the memory that it covers.

use crate::memory::Permit;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of a handshake that the fixed cost of a TLS connection covers, since there is no session yet: a
/// ClientHello and a typical chain.
const INCLUDED: usize = 16 << 10;
/// Bytes that a client may send before its handshake is done: a ClientHello of 64 KiB (the most that the library takes)
/// and a certificate chain of half that size.
const BYTES_MAX: usize = 96 << 10;
/// Step by which the permit grows.
const STEP: usize = 4 << 10;

/// A connection during its TLS handshake: counts the received bytes and covers them by a permit.
#[derive(Debug)]
pub(super) struct Handshaking {
    stream: TcpStream,
    /// `None` once the handshake is done.
    metered: Option<Metered>,
}

#[derive(Debug)]
struct Metered {
    permit: Permit,
    /// Bytes that the permit covered at the beginning.
    fixed: usize,
    read: usize,
}

impl Handshaking {
    pub(super) fn new(stream: TcpStream, permit: Permit) -> Self {
        let fixed = permit.bytes();
        Self { stream, metered: Some(Metered { permit, fixed, read: 0 }) }
    }

    /// Stops counting; the permit covers only the fixed cost of a connection again.
    pub(super) fn done(&mut self) -> Option<Permit> {
        let Metered { mut permit, fixed, .. } = self.metered.take()?;
        permit.shrink(permit.bytes().saturating_sub(fixed));
        Some(permit)
    }

    fn count(&mut self, read: usize) -> io::Result<()> {
        let Some(Metered { permit, fixed, read: bytes }) = &mut self.metered else { return Ok(()) };
        *bytes += read;
        if *bytes > BYTES_MAX {
            return Err(io::Error::other(format!(
                "the client sent more than {BYTES_MAX} bytes before the end of the handshake"
            )));
        }
        let needed = *fixed + bytes.saturating_sub(INCLUDED).next_multiple_of(STEP);
        match needed.checked_sub(permit.bytes()) {
            Some(more) => permit.grow(more).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

impl AsyncRead for Handshaking {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        Poll::Ready(this.count(buffer.filled().len() - before))
    }
}

impl AsyncWrite for Handshaking {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
