//! A tunnel through an HTTP proxy (CONNECT, RFC 9110, section 9.3.6).
//!
//! Promise: the stream that is returned carries the bytes of the target and nothing of the proxy.

use super::HEAD_BYTES_MAX;
use base64::Engine;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1::Builder;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::pin;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// Why a proxy opens no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The proxy wants a login, or another one; the text lists the methods that it offers.
    #[error("it wants a login (407{})", offered(.0))]
    Login(String),
    /// The proxy answers with another status than 2xx.
    #[error("it answers {0}{hint}", hint = hint(*.0))]
    Refused(StatusCode),
    #[error("{0}")]
    Broken(String),
}

fn offered(methods: &str) -> String {
    if methods.is_empty() { String::new() } else { format!(", it offers {methods}") }
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::FORBIDDEN => ": its rules forbid this host or port; its administrator can allow CONNECT to it",
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED | StatusCode::NOT_FOUND => {
            ": this is perhaps no proxy, or one without CONNECT"
        }
        // Tinyproxy answers 500 where others answer 502 to 504.
        StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => ": it does not resolve the name of the broker, or cannot reach it",
        _ => "",
    }
}

impl From<hyper::Error> for TunnelError {
    fn from(error: hyper::Error) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Broken(format!("{error}{cause}"))
    }
}

/// Asks the proxy at the other end of `stream` for a tunnel to `authority`, `host:port`. `login` is user and password,
/// which are sent with the method Basic. Safe to drop half-way.
pub async fn connect(
    stream: TcpStream,
    authority: &str,
    login: Option<(&str, &str)>,
) -> Result<TcpStream, TunnelError> {
    let mut request = Request::connect(authority).header(header::HOST, authority);
    if let Some((user, password)) = login {
        request = request.header(header::PROXY_AUTHORIZATION, basic(user, password)?);
    }
    let request =
        request.body(Empty::<Bytes>::new()).map_err(|error| TunnelError::Broken(format!("{authority}: {error}")))?;
    let (mut sender, connection) = Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        match response.status() {
            status if status.is_success() => Ok(hyper::upgrade::on(response).await?),
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(TunnelError::Login(methods(&response))),
            status => Err(TunnelError::Refused(status)),
        }
    };
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection.with_upgrades()));
    let mut is_over = false;
    let upgraded = loop {
        tokio::select! {
            upgraded = &mut exchange => break upgraded?,
            // Its error is the error of the exchange, too.
            _ = &mut connection, if !is_over => is_over = true,
        }
    };
    let parts = upgraded
        .downcast::<TokioIo<TcpStream>>()
        .map_err(|_| TunnelError::Broken("the stream of the tunnel is lost".into()))?;
    if !parts.read_buf.is_empty() {
        return Err(TunnelError::Broken("it sends data before the tunnel is used".into()));
    }
    Ok(parts.io.into_inner())
}

/// The header of a login with the method Basic (RFC 7617).
fn basic(user: &str, password: &str) -> Result<HeaderValue, TunnelError> {
    let login = Zeroizing::new(format!("{user}:{password}"));
    let encoded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(login.as_bytes()));
    let text = Zeroizing::new(format!("Basic {}", *encoded));
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| TunnelError::Broken(io::Error::from(io::ErrorKind::InvalidInput).to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The methods of a login that the proxy offers, such as `Basic, NTLM`.
fn methods<B>(response: &Response<B>) -> String {
    let offers = response.headers().get_all(header::PROXY_AUTHENTICATE).iter();
    let names = offers.filter_map(|offer| offer.to_str().ok()?.split(' ').next());
    names.collect::<Vec<_>>().join(", ")
}
