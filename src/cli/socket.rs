//! Asking a running gateway over its socket.

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::path::Path;
use tokio::net::UnixStream;

async fn send(socket: &Path, path: &str) -> anyhow::Result<Response<Incoming>> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!("no gateway answers at {}; is it running, and may this user use the socket?", socket.display())
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // An error here shows as an error of the answer.
        let _ = connection.await;
    });
    let request = Request::get(path).header("host", "forebay").body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?)
}

/// The whole answer to a request.
pub(super) async fn get(socket: &Path, path: &str) -> anyhow::Result<Vec<u8>> {
    let answer = send(socket, path).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        bail!("{}", if text.is_empty() { status.to_string() } else { text.into_owned() });
    }
    Ok(body.to_vec())
}

/// Hands on every line of an answer that has no end.
pub(super) async fn lines(
    socket: &Path,
    path: &str,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut body = send(socket, path).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            each(&rest[..end])?;
            rest.drain(..=end);
        }
    }
    Ok(())
}
