//! One HTTP exchange with Odoo's server: connect, TLS, request, answer.
//!
//! Invariants: the size of an answer and the time for it are bounded; each exchange uses a new connection, because an
//! Odoo in threaded mode closes it anyway.

use super::error::OdooError;
use crate::event::Timestamp;
use crate::http::{self, Stream};
use crate::tls::{self, ClientFiles, TlsError};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Time limit for name resolution, TCP and TLS together.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);
/// Odoo ends a call after 120 s by default; its own retries after a collision are included.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(150);
/// 500 rows of ten fields take 100 kB.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// The parsed URL of an Odoo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    /// Prefix of every path: empty, or for example `/odoo` behind a proxy.
    pub(super) prefix: String,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        if let Some((_, host)) = url.rsplit_once('@') {
            return Err(format!("\"…@{host}\" contains a login; put the key into key_file"));
        }
        let wrong = || {
            format!(
                "\"{url}\" is no URL of Odoo; expected \"https://odoo.example.com\", or \"http://host:8069\" without TLS"
            )
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let is_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (authority, if is_tls { 443 } else { 80 }),
        };
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains([' ', '?', '#']) || path.contains([' ', '?', '#']) {
            return Err(wrong());
        }
        let path = path.trim_end_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { host: host.to_owned(), port, is_tls, prefix })
    }

    pub(super) fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }
}

/// Address and TLS settings of a server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    files: ClientFiles,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) is_page: bool,
    pub(super) body: Bytes,
    /// The server's clock, in whole seconds.
    pub(super) server_time: Option<Timestamp>,
}

impl Server {
    pub(super) fn new(address: Address, files: &ClientFiles) -> Result<Self, TlsError> {
        let tls = if address.is_tls {
            let config = tls::client(files)?;
            let name = files.server_name.as_deref().unwrap_or(&address.host).to_owned();
            let name = ServerName::try_from(name).map_err(|error| {
                TlsError::Unusable(format!("the host in url is no name for a certificate: {error}"))
            })?;
            Some((config, name))
        } else {
            None
        };
        Ok(Self { address, files: files.clone(), tls })
    }

    /// Sends a GET request, or a POST request if there is a body.
    pub(super) async fn exchange(
        &self,
        path: &str,
        headers: &[(header::HeaderName, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, OdooError> {
        let place = self.address.authority();
        let unreachable = |what: String| {
            OdooError::Unreachable(format!("cannot reach Odoo at {place}: {what}; check url, and whether Odoo runs"))
        };
        let connecting = async {
            let stream = TcpStream::connect((self.address.host.as_str(), self.address.port))
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            // Without this option only latency suffers.
            let _ = stream.set_nodelay(true);
            let Some((config, name)) = &self.tls else { return Ok(Box::new(stream) as Stream) };
            match TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => {
                    Err(OdooError::Unreachable(format!("TLS with {place}: {}", tls::explain(&error, &self.files))))
                }
            }
        };
        let stream = tokio::time::timeout(CONNECT_WAIT_MAX, connecting)
            .await
            .map_err(|_| unreachable("no answer within 10s".into()))??;
        let mut request = match &body {
            Some(_) => Request::post(format!("{}{path}", self.address.prefix)),
            None => Request::get(format!("{}{path}", self.address.prefix)),
        };
        request = request.header(header::HOST, self.address.authority());
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(|error| {
            OdooError::NotOdoo(format!("the request cannot be written ({error}); is key_file text?"))
        })?;
        match tokio::time::timeout(ANSWER_WAIT_MAX, ask(stream, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(OdooError::Unreachable(format!("the connection to {place} ended: {error}"))),
            Err(_) => Err(OdooError::Unreachable(format!("{place} did not answer within 150s"))),
        }
    }
}

type AskError = Box<dyn std::error::Error + Send + Sync>;

async fn ask(stream: Stream, request: Request<Full<Bytes>>) -> Result<Answer, AskError> {
    let (answer, driver) = http::ask(stream, request).await?;
    let asking = async {
        let (head, body) = answer.await?.into_parts();
        let text = |name: header::HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        let is_page = text(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"));
        let server_time = text(header::DATE).and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        let body = http::read(body, ANSWER_BYTES_MAX).await?;
        Ok::<_, AskError>(Answer {
            status: head.status,
            is_page,
            body,
            server_time: server_time.map(|at| Timestamp(at.timestamp().as_microsecond())),
        })
    };
    // Both futures run in this task: dropping it closes the connection too.
    tokio::pin!(driver, asking);
    tokio::select! {
        answer = &mut asking => answer,
        // The server closes the connection after its answer; the answer may still be in the buffer.
        () = &mut driver => asking.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused_with_an_example() {
        let check = |url: &str, host: &str, port: u16, is_tls: bool, prefix: &str| {
            let address = Address { host: host.into(), port, is_tls, prefix: prefix.into() };
            assert_eq!(Address::parse(url), Ok(address), "{url}");
        };
        check("https://odoo.example.com", "odoo.example.com", 443, true, "");
        check("http://127.0.0.1:8069/", "127.0.0.1", 8069, false, "");
        check("https://[::1]:8443/erp/odoo/", "::1", 8443, true, "/erp/odoo");
        for wrong in ["odoo:8069", "ftp://x", "https://", "http://a:b"] {
            let error = Address::parse(wrong).expect_err(wrong);
            assert!(error.contains(wrong) && error.contains("https://odoo.example.com"), "{error}");
        }
        let error = Address::parse("https://me:sesame@host").expect_err("a login");
        assert!(!error.contains("sesame"), "{error}");
    }
}
