//! A stream whose peer has to take what is written to it.

use super::Stream;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Fails with `TimedOut` when the peer has taken nothing of what is to be written for so long. A local socket has no
/// time limit of its own, as `TCP_USER_TIMEOUT` is one.
struct Patient {
    stream: Stream,
    unread_max: Duration,
    /// Runs while the peer takes nothing.
    runs_out: Option<Pin<Box<Sleep>>>,
}

/// Ends a stream whose peer takes nothing of what is written for `unread_max`.
pub fn patient(stream: Stream, unread_max: Duration) -> Stream {
    Box::new(Patient { stream, unread_max, runs_out: None })
}

impl Patient {
    fn judge<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.runs_out = None;
            return polled;
        }
        let unread_max = self.unread_max;
        let runs_out = self.runs_out.get_or_insert_with(|| Box::pin(tokio::time::sleep(unread_max)));
        ready!(runs_out.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.judge(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(polled, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        const UNREAD_MAX: Duration = Duration::from_millis(400);
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = patient(Box::new(ours), UNREAD_MAX);
        let slow = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(UNREAD_MAX / 2).await;
                theirs.read_exact(&mut [0; 16]).await.expect("read");
            }
            // And then nothing, for ever.
            std::future::pending::<()>().await;
            drop(theirs);
        });
        ours.write_all(&[1; 80]).await.expect("a slow one takes it");
        let error = ours.write_all(&[1; 16]).await.expect_err("nobody takes it");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        slow.abort();
    }
}
