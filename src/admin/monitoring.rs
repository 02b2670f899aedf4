//! Monitoring: `/metrics`, `/healthz` and `/readyz`, on an address of their own and on the command socket.
//!
//! Promise: nothing here stops collecting: an address that is taken is said and tried again; connections, their
//! number and their silence have bounds.

use super::{App, Handles, certificates, off_thread};
use crate::clock;
use crate::shutdown::Shutdown;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
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
/// The largest head of a request.
const HEAD_BYTES_MAX: usize = 8 << 10;

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

/// Code, media type and body of an answer.
type Answer = (StatusCode, &'static str, String);

fn answer_to(handles: &Handles, path: &str) -> Answer {
    let health = |health: super::Health| {
        let code = if health.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (code, LINES, health.lines())
    };
    match path {
        "/metrics" => (StatusCode::OK, METRICS, handles.metrics()),
        "/healthz" => health(handles.health()),
        "/readyz" => health(handles.readiness()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /metrics, /healthz and /readyz\n".into()),
    }
}

pub(super) fn routes() -> Router<App> {
    let answer = |path: &'static str| {
        get(move |State(app): State<App>| async move {
            match off_thread(move || answer_to(&app.handles, path)).await {
                Ok((code, kind, body)) => (code, [(header::CONTENT_TYPE, kind)], body).into_response(),
                Err(code) => code.into_response(),
            }
        })
    };
    let recent = |State(_): State<App>| async { crate::telemetry::recent_lines().join("\n") };
    Router::new()
        .route("/metrics", answer("/metrics"))
        .route("/healthz", answer("/healthz"))
        .route("/readyz", answer("/readyz"))
        .route("/log", get(recent))
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
            let _ = off_thread(move || certificates::warn(&view.certificates)).await;
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
                    connections.spawn(serve(stream, handles));
                }
                // Out of descriptors, mostly: a pause lets some connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    connections.shutdown().await;
}

async fn serve(stream: tokio::net::TcpStream, handles: Arc<Handles>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handles = Arc::clone(&handles);
        async move { Ok::<_, Infallible>(answer(handles, &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // Whoever speaks no HTTP gets no answer, and a scraper that went away misses nothing. One that does not read
    // its answer is let go like one that is silent.
    let _ = tokio::time::timeout(SILENCE_MAX * 30, connection).await;
}

async fn answer(handles: Arc<Handles>, request: &Request<Incoming>) -> hyper::Response<Full<Bytes>> {
    let (code, kind, body) = if matches!(*request.method(), Method::GET | Method::HEAD) {
        let path = request.uri().path().to_owned();
        let answered = off_thread(move || answer_to(&handles, &path)).await;
        answered.unwrap_or_else(|code| (code, "text/plain", String::new()))
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is answered here\n".into())
    };
    let mut response: Response<Full<Bytes>> = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
