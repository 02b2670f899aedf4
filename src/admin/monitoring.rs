//! Monitoring: `/metrics`, `/healthz` and `/readyz`, on an address of their own and on the command socket.
//!
//! Promise: nothing here stops collecting: an address that is taken is said and tried again; connections, their
//! number and their silence have bounds. Connections that say nothing keep no scraper out, and a page in somebody's
//! browser reads nothing here by giving its own name the gateway's address.

use super::{Answered, Handles, certificates, off_thread, refuse};
use crate::clock;
use crate::http::{self, ConnectionLimit, ConnectionSlot, Phase, Reply};
use crate::memory::Door;
use crate::origin::Origin;
use crate::shutdown::Shutdown;
use hyper::body::Incoming;
use hyper::http::uri::Authority;
use hyper::{Method, Request, StatusCode, header};
use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Connections at once; a scraper has one.
const CONNECTIONS_MAX: usize = 16;
/// What a connection takes: head and answer have 16 KiB each at most, beside the page that it is given.
const CONNECTION_BYTES: usize = 40 << 10;
/// How long a connection may be silent: longer than scrapers pause.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long a scraper may take nothing of an answer.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// The address is looked at that often, and tried again where it is taken.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Before everything is started, it is looked at more often.
const FIRST_LOOK: Duration = Duration::from_millis(20);
/// Certificates are looked at that often.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(86_400);

/// The format of the metrics.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The format of health: one JSON object a line.
const LINES: &str = "application/x-ndjson";

/// Whether metrics and health are served.
#[derive(Debug, Default)]
pub struct MonitoringState(Mutex<Option<String>>);

impl MonitoringState {
    /// Why they are not, though they should be.
    pub fn problem(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn set(&self, problem: Option<String>) {
        let mut known = self.0.lock();
        if *known != problem {
            problem.iter().for_each(|problem| tracing::error!("{problem}"));
            *known = problem;
        }
    }
}

/// Answers `metrics`, `healthz` or `readyz`.
pub(super) async fn answer(handles: Arc<Handles>, name: &str) -> Answered {
    let health = |health: super::Health| {
        let code = if health.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        http::reply(code, LINES, health.lines())
    };
    match name {
        "metrics" => off_thread(move || http::reply(StatusCode::OK, METRICS, handles.metrics())).await,
        "healthz" => off_thread(move || health(handles.health())).await,
        "readyz" => off_thread(move || health(handles.readiness())).await,
        _ => Err(refuse(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n")),
    }
}

/// Serves where the configuration says, and looks after certificates that expire, until the shutdown.
pub async fn monitor(handles: Arc<Handles>, mut shutdown: Shutdown) {
    let mut socket: Option<(SocketAddr, TcpListener)> = None;
    let mut connections = JoinSet::new();
    let crowd = ConnectionLimit::new(CONNECTIONS_MAX);
    let mut certificates_at = clock::instant();
    let door = Door::new();
    loop {
        let view = handles.view.load_full();
        let wanted = view.monitoring;
        if socket.as_ref().map(|(address, _)| *address) != wanted {
            // First what is left: it may be the same port at another address.
            drop(socket.take());
            let bound = match wanted {
                None => Ok(None),
                Some(address) => TcpListener::bind(address).await.map(|bound| Some((address, bound))).map_err(|error| {
                    format!("monitoring: {address} cannot be listened on ({error}); everything else works, and it is tried again; [monitoring] listen names another one")
                }),
            };
            handles.monitoring.set(bound.as_ref().err().cloned());
            socket = bound.ok().flatten();
        }
        if view.configured.is_some() && clock::instant() >= certificates_at {
            certificates_at = clock::instant() + CERTIFICATES_EVERY;
            // Should it fail, it is said in the status all the same.
            let _ = off_thread(move || certificates::warn(&view.certificates, &view.revocations)).await;
        }
        let is_started = handles.view.load().configured.is_some();
        let look_again = tokio::time::sleep(if is_started { LOOK_EVERY } else { FIRST_LOOK });
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
            () = look_again => {}
            () = crowd.changed(), if !has_room => {}
            accepted = accept => match accepted {
                Ok((stream, peer)) => {
                    let seat = crowd.acquire(Origin::of(peer.ip()));
                    match handles.budget.admit(CONNECTION_BYTES, peer.ip(), door) {
                        Ok(permit) => {
                            let served = serve(stream, seat, Arc::clone(&handles));
                            connections.spawn(async move { permit.eviction().cuts(served).await; });
                        }
                        // A scraper tries again, and sees in the metrics that there was no memory.
                        Err(error) => tracing::debug!(%peer, "monitoring: {error}"),
                    }
                }
                // Out of descriptors, mostly: a pause lets some connections end.
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
    // Whoever speaks no HTTP gets no answer, and a scraper that went away misses nothing.
    http::served(connection, end).await;
}

async fn answer_read(handles: Arc<Handles>, request: Request<Incoming>) -> Reply {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    let host = host(&request);
    if !host.as_deref().is_none_or(|host| is_own_name(host, &handles.view.load().monitoring_hosts)) {
        let text = "this gateway is not known by the name in the request; an address or a name without dots always works, and the setting `hosts` of [monitoring] allows others\n";
        return http::text(StatusCode::MISDIRECTED_REQUEST, text);
    }
    let name = request.uri().path().strip_prefix('/').unwrap_or_default();
    answer(handles, name).await.unwrap_or_else(Into::into)
}

/// The host that a request is for, without its port; `None` if it names none, which no browser does.
fn host<B>(request: &Request<B>) -> Option<String> {
    if let Some(host) = request.uri().host() {
        return Some(host.to_owned());
    }
    let written = request.headers().get(header::HOST)?.as_bytes();
    // What cannot be read is no name of this gateway.
    Some(Authority::try_from(written).map_or_else(|_| "..".to_owned(), |authority| authority.host().to_owned()))
}

/// Whether a host is this gateway's. A page from elsewhere gets past the browser's rules by giving its own name this
/// address; then the request still names the page's host, which is a name with dots.
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
