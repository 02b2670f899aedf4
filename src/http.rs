//! HTTP/1: how sources, monitoring, the command socket and the clients that ask them speak it.
//!
//! Promise: heads and bodies have bounds, and so has the wait for a head.
//!
//! All share one type of stream, of body and of answer: each further one is compiled anew by hyper, 50 kB of program.

mod crowd;
mod growing;
mod patient;

pub use crowd::{Crowd, Phase, Seat};
pub use growing::{Gone, Growing, Pieces, growing};
pub use patient::patient;

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
use tokio::io::{AsyncRead, AsyncWrite};

/// What is read and written: a socket, with TLS or without.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A stream of any kind.
pub type Stream = Box<dyn Duplex>;
/// A body that is there, or one that grows while it is sent.
pub type Body = Either<Full<Bytes>, Growing>;
/// An answer.
pub type Reply = Response<Body>;
/// An answer to come, as hyper awaits it.
type Answering<'a> = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send + 'a>>;
/// A connection that serves.
pub type Serving<'a> = Connection<TokioIo<&'a mut Stream>, Answers<'a>>;

/// The largest head of a request; a CloudEvent's attributes have room in it.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What answers the requests of a connection.
pub struct Answers<'a>(Box<dyn Fn(Request<Incoming>) -> Answering<'a> + Send + 'a>);

impl<'a> Service<Request<Incoming>> for Answers<'a> {
    type Response = Reply;
    type Error = Infallible;
    type Future = Answering<'a>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        (self.0)(request)
    }
}

/// A connection that serves: ends with its stream, or `wait` after a head was due.
pub fn connection<'a, F: Future<Output = Reply> + Send + 'a>(
    stream: &'a mut Stream,
    wait: Duration,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'a,
) -> Serving<'a> {
    let answers = move |request| -> Answering<'a> {
        let answering = answer(request);
        Box::pin(async move { Ok(answering.await) })
    };
    Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(wait)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), Answers(Box::new(answers)))
}

/// Serves until the connection has ended. From `end` on, which says how long that may take, a request in hand still gets
/// its answer, and an idle connection ends; `None` if it takes longer.
pub async fn served(connection: Serving<'_>, end: impl Future<Output = Duration>) -> Option<hyper::Result<()>> {
    let mut connection = pin!(connection);
    let drain_max = tokio::select! {
        ended = connection.as_mut() => return Some(ended),
        drain_max = end => drain_max,
    };
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(drain_max, connection).await.ok()
}

/// How long a connection that is cut for another one may take to write the rest of its last answer.
pub const CUT_WAIT_MAX: Duration = Duration::from_millis(250);

/// An answer in words: UTF-8 text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", text)
}

/// An answer of a media type.
pub fn reply(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body.into())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    reply
}

/// Why a body could not be read.
pub type Unread = Box<dyn std::error::Error + Send + Sync>;

/// A body of at most so many bytes.
pub async fn read(body: Incoming, bytes_max: usize) -> Result<Bytes, Unread> {
    Ok(Limited::new(body, bytes_max).collect().await?.to_bytes())
}

/// Whether a body has more bytes than are allowed; else its connection failed.
pub fn is_too_large(unread: &Unread) -> bool {
    unread.is::<http_body_util::LengthLimitError>()
}

/// Asks what is at the other end of a stream. The answer comes while the second future is awaited beside it.
pub async fn ask(
    stream: Stream,
    request: Request<Full<Bytes>>,
) -> hyper::Result<(impl Future<Output = hyper::Result<Response<Incoming>>>, impl Future<Output = ()> + Send + 'static)>
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move { sender.send_request(request).await };
    // An error here shows as an error of the answer.
    let driver = async move { drop(connection.await) };
    Ok((answer, driver))
}
