//! Monitoring: `/metrics`, `/healthz` and `/readyz`, on their own address and on the command socket.
//!
//! Promise: monitoring never stops the collection of events. An address in use is reported and retried. The number of
//! connections and their idle time are bounded; idle connections do not lock out a scraper. A web page cannot read
//! responses by DNS rebinding (a name of its own that resolves to the gateway's address).

use super::certificates;
use super::handles::Handles;
use super::health::Health;
use super::request::{ApiResult, blocking, refuse};
use crate::clock;
use crate::http::{self, ConnectionLimit, ConnectionSlot, Phase, Reply};
use crate::memory::ListenerId;
use crate::origin::Origin;
use crate::shutdown::Shutdown;
use hyper::body::Incoming;
use hyper::http::uri::Authority;
use hyper::{Method, Request, StatusCode, header};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Most simultaneous connections; a scraper uses one.
const CONNECTIONS_MAX: usize = 16;
/// Memory of a connection: at most 16 KiB each for request head and response, in addition to the page.
const CONNECTION_BYTES: usize = 40 << 10;
/// Longest idle time of a connection: longer than scrape intervals.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Longest time a scraper may read nothing of a response.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Interval of checks for a changed address, and of retries to bind it.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Shorter interval while the gateway starts.
const START_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Interval of warnings about certificates: daily.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(86_400);

/// Content type of the metrics.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Content type of health: one JSON object per line.
const LINES: &str = "application/x-ndjson";

/// Responds to `metrics`, `healthz` or `readyz`.
pub(super) async fn answer(handles: Arc<Handles>, name: &str) -> ApiResult {
    let health = |health: Health| {
        let code = if health.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        http::reply(code, LINES, health.lines())
    };
    match name {
        "metrics" => blocking(move || http::reply(StatusCode::OK, METRICS, handles.metrics())).await,
        "healthz" => blocking(move || health(handles.health())).await,
        "readyz" => blocking(move || health(handles.readiness())).await,
        _ => Err(refuse(StatusCode::NOT_FOUND, "unknown path; expected /metrics, /healthz or /readyz\n")),
    }
}

/// Serves the configured address until the shutdown, and logs warnings about certificates once a day.
pub async fn monitor(handles: Arc<Handles>, mut shutdown: Shutdown) {
    let mut socket: Option<(SocketAddr, TcpListener)> = None;
    let mut connections = JoinSet::new();
    let crowd = ConnectionLimit::new(CONNECTIONS_MAX);
    let mut certificates_at = clock::instant();
    let listener = ListenerId::new();
    loop {
        let view = handles.view.load_full();
        let wanted = view.monitoring;
        if socket.as_ref().map(|(address, _)| *address) != wanted {
            // Close the old listener first: the new address may have the same port.
            drop(socket.take());
            let bound = match wanted {
                None => Ok(None),
                Some(address) => TcpListener::bind(address).await.map(|bound| Some((address, bound))).map_err(|error| {
                    format!("monitoring: could not listen on {address} ({error}); everything else works, will retry; set another address with listen in [monitoring]")
                }),
            };
            handles.monitoring.set(bound.as_ref().err().cloned());
            socket = bound.ok().flatten();
        }
        if view.configured.is_some() && clock::instant() >= certificates_at {
            certificates_at = clock::instant() + CERTIFICATES_INTERVAL;
            // On failure the warnings are still in the status.
            let _ = blocking(move || certificates::log(&view.certificates, &view.revocations)).await;
        }
        let is_started = handles.view.load().configured.is_some();
        let check_again = tokio::time::sleep(if is_started { CHECK_INTERVAL } else { START_CHECK_INTERVAL });
        let has_room = crowd.has_room();
        let accept = async {
            match &socket {
                Some((_, socket)) if has_room => socket.accept().await,
                _ => std::future::pending().await,
            }
        };
        // Every arm is safe to drop half-way.
        tokio::select! {
            () = shutdown.begun() => break,
            Some(_) = connections.join_next() => {}
            () = check_again => {}
            () = crowd.changed(), if !has_room => {}
            accepted = accept => match accepted {
                Ok((stream, peer)) => {
                    let seat = crowd.acquire(Origin::of(peer.ip()));
                    match handles.budget.admit(CONNECTION_BYTES, peer.ip(), listener) {
                        Ok(permit) => {
                            let served = serve(stream, seat, Arc::clone(&handles));
                            connections.spawn(async move { permit.eviction().cuts(served).await; });
                        }
                        // The scraper retries, and the metrics show the lack of memory.
                        Err(error) => tracing::debug!(%peer, "monitoring: {error}"),
                    }
                }
                // Mostly out of file descriptors: wait for connections to close.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, seat: ConnectionSlot<Origin>, handles: Arc<Handles>) {
    let mut stream = http::with_write_timeout(Box::new(stream), UNREAD_WAIT_MAX);
    let answer = |request| {
        seat.enter(Phase::Answering);
        let (seat, handles) = (&seat, Arc::clone(&handles));
        async move {
            let reply = answer_read(handles, request).await;
            seat.enter(Phase::Waiting);
            reply
        }
    };
    let connection = http::connection(&mut stream, SILENCE_MAX, answer);
    let end = async {
        seat.cut().await;
        http::CUT_WAIT_MAX
    };
    // A peer that does not speak HTTP gets no response; errors of a disconnected scraper do not matter.
    http::served(connection, end).await;
}

async fn answer_read(handles: Arc<Handles>, request: Request<Incoming>) -> Reply {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n");
    }
    let host = host(&request);
    if !host.as_deref().is_none_or(|host| is_own_name(host, &handles.view.load().monitoring_hosts)) {
        let text = "the host name of the request is not accepted; an address or a name without dots always works, and the setting `hosts` of [monitoring] allows others\n";
        return http::text(StatusCode::MISDIRECTED_REQUEST, text);
    }
    let name = request.uri().path().strip_prefix('/').unwrap_or_default();
    answer(handles, name).await.unwrap_or_else(Into::into)
}

/// Returns the host of a request, without port; `None` if it names none, which no browser does.
fn host<B>(request: &Request<B>) -> Option<String> {
    if let Some(host) = request.uri().host() {
        return Some(host.to_owned());
    }
    let written = request.headers().get(header::HOST)?.as_bytes();
    // An unreadable name matches no name of this gateway.
    Some(Authority::try_from(written).map_or_else(|_| "..".to_owned(), |authority| authority.host().to_owned()))
}

/// Whether a host name belongs to this gateway. With DNS rebinding, a foreign page passes the same-origin policy, but
/// the request still names the page's host, which has dots.
fn is_own_name(host: &str, allowed: &[String]) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let is_same = |name: &str| name.trim_end_matches('.').eq_ignore_ascii_case(bare);
    bare.parse::<IpAddr>().is_ok()
        || (!bare.is_empty() && !bare.contains('.'))
        || bare.to_ascii_lowercase().ends_with(".localhost")
        || allowed.iter().any(|name| is_same(name))
        || rustix::system::uname().nodename().to_str().is_ok_and(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_names_are_answered() {
        let allowed = ["gw-01.plant.example".to_owned()];
        for host in ["127.0.0.1", "[::1]", "localhost", "gw-01", "GW-01.plant.example.", "a.localhost", "10.0.0.7"] {
            assert!(is_own_name(host, &allowed), "{host}");
        }
        for host in ["evil.example", "gw-01.evil.example", "127.0.0.1.evil.example", "", "..", "localhost.evil.example"]
        {
            assert!(!is_own_name(host, &allowed), "{host}");
        }
    }

    #[test]
    fn the_host_of_a_request_is_read_without_its_port() {
        let of = |uri: &str, written: &str| {
            let request = Request::builder().uri(uri).header(header::HOST, written).body(()).expect("a request");
            host(&request)
        };
        assert_eq!(of("/metrics", "gw-01:9110").as_deref(), Some("gw-01"));
        assert_eq!(of("/metrics", "[::1]:9110").as_deref(), Some("[::1]"));
        assert_eq!(
            of("http://evil.example/metrics", "gw-01").as_deref(),
            Some("evil.example"),
            "what the request is for"
        );
        assert!(of("/metrics", "a b").is_some_and(|host| !is_own_name(&host, &[])));
        assert_eq!(host(&Request::builder().uri("/").body(()).expect("a request")), None);
    }
}
