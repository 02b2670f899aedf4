//! HTTP/1 for the sources, monitoring, the command socket and their clients, on top of hyper.
//!
//! Promise: heads and bodies are bounded, and so is the wait for a head.
//!
//! All users share one type of stream, body and response: hyper is compiled again for each further type, which adds
//! 50 kB to the program.

mod connection_limit;
mod streaming;
mod tunnel;
mod write_timeout;

pub use connection_limit::{ConnectionLimit, ConnectionSlot, Phase};
pub use streaming::{Body, BodySender, ReaderGone, Reply, StreamingBody, streaming};
pub use tunnel::{TunnelError, connect};
pub use write_timeout::{Duplex, Stream, with_write_timeout};

use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::time::Duration;

/// The future of a response, as hyper polls it.
type ReplyFuture<'a> = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send + 'a>>;
pub type ServerConnection<'a> = Connection<TokioIo<&'a mut Stream>, Handler<'a>>;

/// The largest head of a request; large enough for the attributes of a CloudEvent.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The service that answers the requests of a connection.
pub struct Handler<'a>(Box<dyn Fn(Request<Incoming>) -> ReplyFuture<'a> + Send + 'a>);

impl<'a> Service<Request<Incoming>> for Handler<'a> {
    type Response = Reply;
    type Error = Infallible;
    type Future = ReplyFuture<'a>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        (self.0)(request)
    }
}

/// A server connection. It ends with its stream, or if a head is not complete within `wait`.
pub fn connection<'a, F: Future<Output = Reply> + Send + 'a>(
    stream: &'a mut Stream,
    wait: Duration,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'a,
) -> ServerConnection<'a> {
    let answers = move |request| -> ReplyFuture<'a> {
        let answering = answer(request);
        Box::pin(async move { Ok(answering.await) })
    };
    Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(wait)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), Handler(Box::new(answers)))
}

/// Serves until the connection has ended. When `end` completes, the connection is shut down gracefully: a request in
/// progress is answered within the duration that `end` returns, an idle connection ends. `None` if that time is exceeded.
pub async fn served(
    connection: ServerConnection<'_>,
    end: impl Future<Output = Duration>,
) -> Option<hyper::Result<()>> {
    let mut connection = pin!(connection);
    let drain_max = tokio::select! {
        ended = connection.as_mut() => return Some(ended),
        drain_max = end => drain_max,
    };
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(drain_max, connection).await.ok()
}

/// Time that a connection, closed in favour of another one, has to write the rest of its last answer.
pub const CUT_WAIT_MAX: Duration = Duration::from_millis(250);

/// A response with plain text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", text)
}

/// A response with a body of this media type.
pub fn reply(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body.into())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    reply
}

/// Why a body could not be read.
pub type Unread = Box<dyn std::error::Error + Send + Sync>;

/// Reads a body of at most `bytes_max` bytes.
pub async fn read(body: Incoming, bytes_max: usize) -> Result<Bytes, Unread> {
    Ok(Limited::new(body, bytes_max).collect().await?.to_bytes())
}

/// Whether a body was larger than allowed. Otherwise its connection failed.
pub fn is_too_large(unread: &Unread) -> bool {
    unread.is::<http_body_util::LengthLimitError>()
}

/// Sends a request over a stream. Returns the future of the response, and a driver future: the caller must poll the
/// driver concurrently, or the response makes no progress.
pub async fn ask(
    stream: Stream,
    request: Request<Full<Bytes>>,
) -> hyper::Result<(impl Future<Output = hyper::Result<Response<Incoming>>>, impl Future<Output = ()> + Send + 'static)>
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move { sender.send_request(request).await };
    // An error here also becomes an error of the response.
    let driver = async move { drop(connection.await) };
    Ok((answer, driver))
}
