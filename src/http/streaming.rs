//! Streaming responses: bodies that are produced while they are sent.

use http_body_util::channel::{Channel, Sender};
use http_body_util::{Either, Full};
use hyper::Response;
use hyper::body::{Body as HttpBody, Bytes, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::watch;

/// A complete body, or one that is produced while it is sent.
pub type Body = Either<Full<Bytes>, StreamingBody>;
/// A response with such a body.
pub type Reply = Response<Body>;

/// The body of a streaming response, as the connection reads it.
#[derive(Debug)]
pub struct StreamingBody {
    pieces: Channel<Bytes>,
    /// Dropped with the body; that ends [`ReaderGone::gone`].
    _is_read: watch::Sender<()>,
}

/// The producer's side of a streaming body.
pub struct BodySender {
    sender: Sender<Bytes>,
    gone: ReaderGone,
}

/// Waits for the end of the reader.
#[derive(Clone, Debug)]
pub struct ReaderGone(watch::Receiver<()>);

/// A streaming response, and the sender of its body. At most `pieces_max` pieces wait for the reader.
pub fn streaming(pieces_max: usize) -> (BodySender, Reply) {
    let (sender, pieces) = Channel::new(pieces_max);
    let (is_read, gone) = watch::channel(());
    let reply = Response::new(Either::Right(StreamingBody { pieces, _is_read: is_read }));
    (BodySender { sender, gone: ReaderGone(gone) }, reply)
}

impl HttpBody for StreamingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.pieces).poll_frame(context)
    }
}

impl BodySender {
    /// Waits for room and sends a piece; returns `false` if the reader is gone.
    pub async fn send(&mut self, piece: impl Into<Bytes>) -> bool {
        self.sender.send_data(piece.into()).await.is_ok()
    }

    /// A handle to wait for the end of the reader.
    pub fn reader(&self) -> ReaderGone {
        self.gone.clone()
    }
}

impl ReaderGone {
    /// Waits until the reader is gone, also while there is nothing to send. Cancel-safe.
    pub async fn gone(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}
