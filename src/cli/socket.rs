//! HTTP client for the command socket of a running gateway.

use crate::api::{VERSION, VERSION_HEADER};
use crate::http;
use crate::setting::check_socket_path;
use crate::telemetry::shown;
use anyhow::{anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use std::io::{Error, ErrorKind};
use std::path::Path;
use tokio::net::UnixStream;

async fn send(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Response<Incoming>> {
    let stream = UnixStream::connect(socket).await.map_err(|error| anyhow!("{}", unanswered(socket, &error)))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "forebay")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let (answer, driver) = http::ask(Box::new(stream), request).await?;
    tokio::spawn(driver);
    Ok(answer.await?)
}

/// Returns why the connection to a socket failed, and what to do.
fn unanswered(socket: &Path, error: &Error) -> String {
    let shown = socket.display();
    match error.kind() {
        ErrorKind::NotFound => {
            format!("no gateway answers at {shown}: there is no such socket; is the gateway running?")
        }
        ErrorKind::PermissionDenied => {
            format!("this user may not use {shown}; run this as the user of the gateway, or as a member of its group")
        }
        ErrorKind::ConnectionRefused if check_socket_path(socket).is_ok() => {
            format!("no gateway answers at {shown}: the gateway that created the socket has ended")
        }
        ErrorKind::ConnectionRefused => {
            format!("{shown} is no socket; use the path of the setting socket in the configuration")
        }
        _ => format!("no gateway answers at {shown}: {error}"),
    }
}

/// What a command reports when it cannot read the response of the gateway.
pub(super) const OTHER_FORMAT: &str = "the gateway responds in another format; it may have another version";

/// Fails unless the status is 200 and the response has the version of this program.
async fn require_ok(answer: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    if answer.headers().get(VERSION_HEADER).is_some_and(|version| version != VERSION) {
        bail!(OTHER_FORMAT);
    }
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let body = answer.into_body().collect().await?.to_bytes();
    let text = shown(&String::from_utf8_lossy(&body)).into_owned();
    bail!("{}", if text.is_empty() { status.to_string() } else { text })
}

/// Sends a GET request. Returns whether the status is 200, and the body whatever the status is.
pub(super) async fn get_any(socket: &Path, path: &str) -> anyhow::Result<(bool, String)> {
    let answer = send(socket, Method::GET, path, Vec::new()).await?;
    let is_good = answer.status() == StatusCode::OK;
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((is_good, String::from_utf8_lossy(&body).into_owned()))
}

/// Sends a request with a JSON or empty body and returns the body of the response.
pub(super) async fn call(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let answer = require_ok(send(socket, method, path, body).await?).await?;
    Ok(answer.into_body().collect().await?.to_bytes().to_vec())
}

/// Calls `each` for every line of a response that ends only with the gateway.
pub(super) async fn lines(
    socket: &Path,
    path: &str,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut body = require_ok(send(socket, Method::GET, path, Vec::new()).await?).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        // A broken connection means the same as a closed one.
        let Ok(frame) = frame else { break };
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            each(&rest[..end])?;
            rest.drain(..=end);
        }
    }
    bail!("the gateway has ended")
}

/// Starts an operation on the journal and calls `each` for every line of the response. Fails if the response contains
/// an error line or ends in the middle of a line.
pub(super) async fn stream_operation(
    socket: &Path,
    path: &str,
    request: &impl serde::Serialize,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let answer = send(socket, Method::POST, path, serde_json::to_vec(request)?).await?;
    let mut body = require_ok(answer).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| anyhow!("the gateway has ended meanwhile"))?.into_data() else { continue };
        rest.extend_from_slice(&data);
        let Some(last) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        for line in rest[..last].split(|byte| *byte == b'\n') {
            if let Some(why) = line.strip_prefix(b"!") {
                bail!("{}", shown(&String::from_utf8_lossy(why)));
            }
            each(line)?;
        }
        rest.drain(..=last);
    }
    Ok(())
}
