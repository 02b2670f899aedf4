//! Answers that grow while they are sent.

use super::Reply;
use http_body_util::Either;
use http_body_util::channel::{Channel, Sender};
use hyper::Response;
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::watch;

/// The body of such an answer, as it is read by the connection.
#[derive(Debug)]
pub struct Growing {
    pieces: Channel<Bytes>,
    /// Dropped with the body: whoever makes the pieces hears of it.
    _is_read: watch::Sender<()>,
}

/// What the pieces are sent with.
pub struct Pieces {
    sender: Sender<Bytes>,
    gone: Gone,
}

/// Tells when nobody reads the answer any more.
#[derive(Clone, Debug)]
pub struct Gone(watch::Receiver<()>);

/// An answer that grows while it is sent, and what to send it with: at most so many pieces wait for their reader.
pub fn growing(pieces_max: usize) -> (Pieces, Reply) {
    let (sender, pieces) = Channel::new(pieces_max);
    let (is_read, gone) = watch::channel(());
    let reply = Response::new(Either::Right(Growing { pieces, _is_read: is_read }));
    (Pieces { sender, gone: Gone(gone) }, reply)
}

impl Body for Growing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.pieces).poll_frame(context)
    }
}

impl Pieces {
    /// Sends a piece, once there is room for it; `false` if nobody reads it.
    pub async fn send(&mut self, piece: impl Into<Bytes>) -> bool {
        self.sender.send_data(piece.into()).await.is_ok()
    }

    /// What tells when the reader has gone.
    pub fn reader(&self) -> Gone {
        self.gone.clone()
    }
}

impl Gone {
    /// Returns when the reader has gone, also while there is nothing to send. Safe to drop half-way.
    pub async fn gone(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}
