//! Opens connections to a broker: DNS lookup, TCP, proxy, TLS, WebSocket.

use super::address::Address;
use super::error::LinkError;
use super::proxy::{self, ProxyAddress};
use super::stream::Stream;
use super::traffic::MeteredStream;
use super::websocket;
use crate::setting::Span;
use crate::tls::{self, ClientFiles};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(super) type TlsConfig = Arc<rustls::ClientConfig>;

/// A SYN may be lost, and the kernel doubles the time before each retransmission: after this
/// time a parallel attempt starts.
const NEXT_ATTEMPT_AFTER: Duration = Duration::from_secs(1);
/// Largest number of parallel attempts.
const ATTEMPTS_MAX: usize = 4;
/// Time limit for all attempts; the next call looks up the name again.
const TCP_WAIT_MAX: Duration = Duration::from_secs(15);
/// Time limit for each of DNS lookup, tunnel, TLS handshake, WebSocket handshake and CONNACK. Four connections with client
/// certificates carry 20 kB, for which a line of 9.6 kbit/s needs 20 s.
pub(super) const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(30);

/// A proxy with its login.
pub(super) type ProxyWithLogin<'a> = (&'a ProxyAddress, Option<(&'a str, &'a str)>);

/// Opens a TCP connection to the broker, through the proxy if there is one.
pub(super) async fn connect(address: &Address, proxy: Option<ProxyWithLogin<'_>>) -> Result<TcpStream, LinkError> {
    let broker = (address.host.as_str(), address.port);
    let Some((proxy, login)) = proxy else { return connect_tcp(broker, &address.to_string()).await };
    let failed = |reason: String| LinkError::Proxy { proxy: proxy.to_string(), address: address.to_string(), reason };
    let stream = connect_tcp((&proxy.host, proxy.port), &proxy.to_string()).await;
    let stream = stream.map_err(|error| failed(error.to_string()))?;
    match tokio::time::timeout(HANDSHAKE_WAIT_MAX, proxy::tunnel(stream, proxy.kind, broker, login)).await {
        Ok(tunnel) => tunnel.map_err(failed),
        Err(_) => Err(failed(format!(
            "the proxy opens no tunnel within {}: it may be overloaded, or it is no proxy of the kind that url names",
            Span(HANDSHAKE_WAIT_MAX)
        ))),
    }
}

/// Opens a TCP connection to the first address of a host that answers. `place` is host and port, for errors.
async fn connect_tcp((host, port): (&str, u16), place: &str) -> Result<TcpStream, LinkError> {
    let found = tokio::time::timeout(HANDSHAKE_WAIT_MAX, tokio::net::lookup_host((host, port))).await;
    let unresolved = |error| LinkError::Name { host: host.to_owned(), error };
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(unresolved(error)),
        Err(_) => return Err(unresolved(std::io::ErrorKind::TimedOut.into())),
    };
    if addresses.is_empty() {
        return Err(unresolved(std::io::ErrorKind::NotFound.into()));
    }
    let unreachable = |reason: String| LinkError::Unreachable { address: place.to_owned(), reason };
    match tokio::time::timeout(TCP_WAIT_MAX, connect_any(&addresses)).await {
        Ok(Ok(stream)) => {
            // Sends small writes at once. A failure only costs latency.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(reason)) => Err(unreachable(reason)),
        Err(_) => Err(unreachable("no answer".into())),
    }
}

async fn connect_any(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut attempts: JoinSet<(SocketAddr, std::io::Result<TcpStream>)> = JoinSet::new();
    let mut next = addresses.iter().cycle();
    let mut failed = 0;
    let start = |attempts: &mut JoinSet<_>, address: Option<&SocketAddr>| {
        if let Some(&address) = address {
            attempts.spawn(async move { (address, TcpStream::connect(address).await) });
        }
    };
    start(&mut attempts, next.next());
    loop {
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((address, Err(error)))) => {
                    failed += 1;
                    if failed >= addresses.len() && attempts.is_empty() {
                        return Err(format!("{address}: {error}"));
                    }
                    start(&mut attempts, next.next());
                }
                Some(Err(_)) | None => return Err("the attempt was cancelled".into()),
            },
            () = tokio::time::sleep(NEXT_ATTEMPT_AFTER) => {
                if attempts.len() >= ATTEMPTS_MAX {
                    // A fresh SYN is more likely to succeed than the retransmissions of the old attempts.
                    attempts.abort_all();
                    while attempts.join_next().await.is_some() {}
                }
                start(&mut attempts, next.next());
            }
        }
    }
}

/// Performs the TLS handshake and checks the server's certificate.
pub(super) async fn handshake(
    address: &Address,
    files: &ClientFiles,
    config: TlsConfig,
    stream: MeteredStream,
) -> Result<TlsStream<MeteredStream>, LinkError> {
    let host = files.server_name.as_deref().unwrap_or(&address.host);
    let failed = |error: std::io::Error| {
        let reason = tls::explain(&error, files);
        LinkError::Handshake { host: host.to_owned(), reason }
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(std::io::Error::other(error)))?;
    match tokio::time::timeout(HANDSHAKE_WAIT_MAX, TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => {
            tls::check_server(files, stream.get_ref().1.peer_certificates())?;
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Opens the WebSocket of a broker whose URL names one; the stream of any other broker is ready.
pub(super) async fn websocket(address: &Address, stream: Stream) -> Result<Stream, LinkError> {
    let Some(path) = &address.path else { return Ok(stream) };
    match tokio::time::timeout(HANDSHAKE_WAIT_MAX, websocket::open(address, path, stream)).await {
        Ok(socket) => Ok(Stream::WebSocket(Box::new(socket?))),
        Err(_) => Err(LinkError::Silent(HANDSHAKE_WAIT_MAX)),
    }
}
