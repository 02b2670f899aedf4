//! MQTT over WebSocket (MQTT 5, section 6): a byte stream in binary messages.
//!
//! Invariants: at most one message waits to be written; a message of the broker is bounded.

use super::address::{Address, authority};
use super::error::LinkError;
use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream as _};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, http::Uri};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Largest message of the gateway: the size of a TLS record. Headers take 0.05 % of it.
const SENT_BYTES_MAX: usize = 16 << 10;
/// Largest message of the broker. Brokers put one MQTT packet into a message; a payload has 8 MiB at most.
const RECEIVED_BYTES_MAX: usize = 16 << 20;

pub(super) struct WebSocket<S> {
    inner: WebSocketStream<S>,
    /// Rest of the last message.
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    pub(super) fn inner(&self) -> &S {
        self.inner.get_ref()
    }
}

/// Opens the WebSocket at `path` of the server at the other end of `stream`.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    address: &Address,
    path: &str,
    stream: S,
) -> Result<WebSocket<S>, LinkError> {
    let failed = |reason: String| LinkError::WebSocket { address: address.to_string(), path: path.to_owned(), reason };
    let (scheme, default_port) = if address.is_tls { ("wss", 443) } else { ("ws", 80) };
    // The zone of an address means nothing to the server.
    let host = address.host.split('%').next().unwrap_or_default();
    let place = authority(host, address.port);
    let place = match address.port == default_port {
        true => place.rsplit_once(':').map_or(place.as_str(), |(host, _)| host),
        false => place.as_str(),
    };
    let uri: Uri = format!("{scheme}://{place}{path}").parse().map_err(|error| failed(format!("{error}")))?;
    let request = ClientRequestBuilder::new(uri).with_sub_protocol("mqtt");
    let config = WebSocketConfig::default()
        // Each message goes to the stream at once.
        .write_buffer_size(0)
        .max_write_buffer_size(4 * SENT_BYTES_MAX)
        .max_message_size(Some(RECEIVED_BYTES_MAX))
        .max_frame_size(Some(RECEIVED_BYTES_MAX));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((inner, _)) => Ok(WebSocket { inner, unread: Bytes::new() }),
        Err(WsError::Io(error)) => Err(LinkError::Broken(error)),
        Err(error) => Err(failed(reason(&error))),
    }
}

fn reason(error: &WsError) -> String {
    match error {
        WsError::Http(response) => {
            let status = response.status();
            let hint = match status.as_u16() {
                404 => ": there is no WebSocket at this path; most brokers have one at /mqtt, RabbitMQ at /ws",
                400 | 426 => ": the server opens no WebSocket here; check port and path",
                401 | 403 => ": something in front of the broker refuses; it must let WebSockets pass",
                301 | 302 | 303 | 307 | 308 => ": the gateway follows no redirection; put the final address into url",
                502..=504 => ": something in front of the broker cannot reach it",
                _ => "",
            };
            format!("the server answers {status}{hint}")
        }
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            "the server does not speak the subprotocol \"mqtt\"".into()
        }
        WsError::HttpFormat(_) | WsError::Protocol(_) => {
            format!("the server does not answer as a WebSocket does: {error}")
        }
        error => error.to_string(),
    }
}

fn broken(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        WsError::ConnectionClosed | WsError::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.unread.is_empty() {
                let length = self.unread.len().min(into.remaining());
                into.put_slice(&self.unread[..length]);
                self.unread.advance(length);
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.inner).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                // The library answers a ping.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message in MQTT")));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.inner).poll_ready(context)).map_err(broken)?;
        let length = bytes.len().min(SENT_BYTES_MAX);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..length]));
        Pin::new(&mut self.inner).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context).map_err(broken)
    }
}
