//! A write timeout for a stream: ends connections to peers that read nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A bidirectional byte stream: a socket with or without TLS.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

pub type Stream = Box<dyn Duplex>;

/// A stream whose writes fail with `TimedOut` when the peer has read nothing for `unread_max`. A local socket has no
/// such option; TCP has `TCP_USER_TIMEOUT`.
struct WriteTimeout {
    stream: Stream,
    unread_max: Duration,
    /// Runs while the peer reads nothing.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Wraps a stream whose writes fail when the peer has read nothing for `unread_max`.
pub fn with_write_timeout(stream: Stream, unread_max: Duration) -> Stream {
    Box::new(WriteTimeout { stream, unread_max, deadline: None })
}

impl WriteTimeout {
    fn with_deadline<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.deadline = None;
            return polled;
        }
        let unread_max = self.unread_max;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(unread_max)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.with_deadline(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.with_deadline(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.with_deadline(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.with_deadline(polled, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        const UNREAD_MAX: Duration = Duration::from_millis(400);
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = with_write_timeout(Box::new(ours), UNREAD_MAX);
        let slow = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(UNREAD_MAX / 2).await;
                theirs.read_exact(&mut [0; 16]).await.expect("read");
            }
            // Then it reads nothing more.
            std::future::pending::<()>().await;
            drop(theirs);
        });
        ours.write_all(&[1; 80]).await.expect("a slow one takes it");
        let error = ours.write_all(&[1; 16]).await.expect_err("nobody takes it");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        slow.abort();
    }
}
