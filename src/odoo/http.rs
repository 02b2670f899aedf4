//! One HTTP exchange with Odoo's server: connect, TLS, request, answer.
//!
//! Invariants: the size of an answer and the time for it are bounded; each exchange uses a new connection, because an
//! Odoo in threaded mode closes it anyway.

use super::error::{OdooError, RETRY_AFTER_MAX};
use crate::clock;
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
/// A page of 200 rows takes 50 to 200 kB, unless a field holds long texts. A page that is larger is read in parts.
const ANSWER_BYTES_MAX: usize = 8 << 20;

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
    pub(super) is_html: bool,
    /// Whether it is JSON by its type or by its first letter.
    pub(super) is_json: bool,
    pub(super) body: Bytes,
    /// The server's clock, in whole seconds.
    pub(super) server_time: Option<Timestamp>,
    /// Where it redirects to.
    pub(super) location: Option<String>,
    /// The pause that it asks for, if it is no success.
    pub(super) pause: Option<Duration>,
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
            Ok(Err(error)) if http::is_too_large(&error) => Err(OdooError::Unreadable(format!(
                "an answer of Odoo at {place} has more than {} MiB",
                ANSWER_BYTES_MAX >> 20
            ))),
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
        let kind = text(header::CONTENT_TYPE).unwrap_or_default();
        let (is_html, is_json) = (kind.starts_with("text/html"), kind.contains("json"));
        let server_time = text(header::DATE).and_then(http_date);
        let now = server_time.unwrap_or_else(|| Timestamp::from(clock::wall()));
        let asked = text(header::RETRY_AFTER).filter(|_| !head.status.is_success());
        let pause = asked.and_then(|asked| retry_after(asked, now));
        let location = text(header::LOCATION).map(str::to_owned);
        let body = http::read(body, ANSWER_BYTES_MAX).await?;
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        let is_json = is_json || matches!(first, Some(b'{' | b'['));
        Ok::<_, AskError>(Answer { status: head.status, is_html, is_json, body, server_time, location, pause })
    };
    // Both futures run in this task: dropping it closes the connection too.
    tokio::pin!(driver, asking);
    tokio::select! {
        answer = &mut asking => answer,
        // The server closes the connection after its answer; the answer may still be in the buffer.
        () = &mut driver => asking.await,
    }
}

fn http_date(text: &str) -> Option<Timestamp> {
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(Timestamp(date.timestamp().as_microsecond()))
}

/// The pause of `Retry-After`: seconds, or a date. `None` for none, or for a value that cannot be read.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let pause = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        Duration::from_micros(u64::try_from(http_date(text)?.0 - now.0).ok()?)
    };
    Some(pause.min(RETRY_AFTER_MAX)).filter(|pause| !pause.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_that_a_server_asks_for_is_read_in_both_forms_and_bounded() {
        let now = http_date("Mon, 23 Nov 2026 03:18:40 GMT").expect("a date");
        let check = |text: &str, seconds: Option<u64>| {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        };
        check("60", Some(60));
        check(" 1 ", Some(1));
        check("Mon, 23 Nov 2026 03:20:10 GMT", Some(90));
        check("Mon, 23 Nov 2026 03:18:40 GMT", None);
        check("Mon, 23 Nov 2020 03:18:40 GMT", None);
        check("0", None);
        check("soon", None);
        check("-5", None);
        check("99999999999", Some(3600));
        check("99999999999999999999999999", Some(3600));
        check("Fri, 01 Jan 2038 00:00:00 GMT", Some(3600));
    }

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
