//! Monitoring: `/metrics`, `/healthz` and `/readyz`, on an address of their own and on the command socket.
//!
//! Promise: nothing here stops collecting: an address that is taken is said and tried again; connections, their
//! number and their silence have bounds.

use super::{Answered, Handles, certificates, off_thread, refuse};
use crate::clock;
use crate::http::{self, Reply, Stream};
use crate::shutdown::Shutdown;
use crate::task::boxed;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Connections at once; a scraper has one.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may be silent: longer than scrapers pause.
const SILENCE_MAX: Duration = Duration::from_secs(120);
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, problem: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    let mut certificates_at = clock::instant();
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
        let has_room = connections.len() < CONNECTIONS_MAX;
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
            accepted = accept => match accepted {
                Ok((stream, _)) => {
                    let handles = Arc::clone(&handles);
                    connections.spawn(boxed(serve(stream, handles)));
                }
                // Out of descriptors, mostly: a pause lets some connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, handles: Arc<Handles>) {
    let mut stream: Stream = Box::new(stream);
    let answer = |request| answer_read(Arc::clone(&handles), request);
    let connection = http::connection(&mut stream, SILENCE_MAX, answer);
    // Whoever speaks no HTTP gets no answer, and a scraper that went away misses nothing. One that does not read
    // its answer is let go like one that is silent.
    let _ = tokio::time::timeout(SILENCE_MAX * 30, connection).await;
}

async fn answer_read(handles: Arc<Handles>, request: Request<Incoming>) -> Reply {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    let name = request.uri().path().strip_prefix('/').unwrap_or_default();
    answer(handles, name).await.unwrap_or_else(Into::into)
}
