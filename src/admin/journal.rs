//! Export, verify and backup of the whole journal while the gateway runs.
//!
//! A response streams lines while the operation runs. `#` and JSON is progress, `!` and text is an error that ends the
//! operation, any other line is output. A response that ends without a final line is incomplete.
//!
//! Promise: a slow client slows the operation down, and pins no page of a file meanwhile.

use super::request::{ApiError, ApiResult, CommandRequest, read_json, refuse, try_blocking};
use super::streaming::{PIECES_MAX, stepped};
use crate::api::{BackupRequest, ExportRequest};
use crate::clock;
use crate::http;
use crate::journal::{BEGUN, DONE, Export, LaneLog, Verification};
use crate::runtime::spawn_blocking;
use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

/// Bounds simultaneous operations: each reads the disk as fast as it can.
static OPERATIONS: Semaphore = Semaphore::const_new(OPERATIONS_MAX);
const OPERATIONS_MAX: usize = 2;
/// Interval of progress lines of a backup.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

fn permit() -> Result<SemaphorePermit<'static>, ApiError> {
    OPERATIONS.try_acquire().map_err(|_| {
        let text =
            format!("{OPERATIONS_MAX} exports, counts or backups are under way; try again when one of them is done");
        refuse(StatusCode::TOO_MANY_REQUESTS, text)
    })
}

fn logs(request: &CommandRequest) -> Vec<Arc<LaneLog>> {
    let journal = &request.handles.journal;
    let all = journal.lanes().iter().chain([journal.dead()]);
    all.map(|lane| Arc::clone(lane.log())).collect()
}

/// Appends a line: the sign, then JSON.
fn push_json<T: Serialize>(out: &mut Vec<u8>, sign: &str, value: &T) {
    out.extend_from_slice(sign.as_bytes());
    // Plain structs of numbers and text always encode.
    out.extend_from_slice(&serde_json::to_vec(value).unwrap_or_default());
    out.push(b'\n');
}

fn push_error(out: &mut Vec<u8>, error: &dyn std::error::Error) {
    out.extend_from_slice(format!("!{}\n", error.to_string().replace('\n', " ")).as_bytes());
}

pub(super) async fn export(request: CommandRequest, body: Incoming) -> ApiResult {
    let wanted: ExportRequest = read_json(body).await?;
    let permit = permit()?;
    let publications = request.handles.journal.publications();
    let what = serde_json::to_value(&wanted).unwrap_or_default();
    let export = Export::new(logs(&request), &publications, wanted.selection, wanted.with_offsets);
    let mut export = export.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
    // The audit entry is durable before the first event is sent.
    let mut audit = AuditedOperation::begin(&request, "export", what).await?;
    stepped(request.shutdown, permit, move |out| match export.step(out) {
        Ok(more) => {
            push_json(out, "#", export.progress());
            if !more {
                audit.end(DONE, serde_json::to_value(export.progress()).unwrap_or_default());
            }
            more
        }
        Err(error) => {
            push_error(out, &error);
            audit.end(&format!("failed: {error}"), serde_json::Value::Null);
            false
        }
    })
}

/// Audits begin and result of an operation. Without a result, drop records it as cut short.
struct AuditedOperation {
    request: CommandRequest,
    action: &'static str,
    is_over: bool,
}

impl AuditedOperation {
    /// Audits the begin; returns when the entry is durable.
    async fn begin(request: &CommandRequest, action: &'static str, what: serde_json::Value) -> Result<Self, ApiError> {
        let ours = request.clone();
        try_blocking(move || ours.audit(action, &what, BEGUN)).await?;
        Ok(Self { request: request.clone(), action, is_over: false })
    }

    /// Audits the result. Blocks the thread.
    fn end(&mut self, result: &str, what: serde_json::Value) {
        self.is_over = true;
        if let Err(error) = self.request.audit(self.action, &what, result) {
            tracing::error!(action = self.action, result, %error, "could not audit the result of the operation; its begin is audited");
        }
    }
}

impl Drop for AuditedOperation {
    fn drop(&mut self) {
        if !self.is_over {
            let (request, action) = (self.request.clone(), self.action);
            // Not awaited: the client has disconnected, and the entry of the begin exists.
            spawn_blocking(move || {
                let mut operation = Self { request, action, is_over: false };
                operation.end("cut short", serde_json::Value::Null);
            });
        }
    }
}

pub(super) async fn verify(request: CommandRequest) -> ApiResult {
    let permit = permit()?;
    let mut audit = AuditedOperation::begin(&request, "verify", serde_json::Value::Null).await?;
    let mut counting = Some(Verification::new(logs(&request)));
    let journal = Arc::clone(&request.handles.journal);
    stepped(request.shutdown, permit, move |out| {
        let Some(under_way) = &mut counting else { return false };
        match under_way.step() {
            Ok(true) => {
                push_json(out, "#", &under_way.counted());
                true
            }
            Ok(false) => {
                if let Some(done) = counting.take() {
                    push_json(out, "", &done.finish(journal.recount_state()));
                }
                audit.end(DONE, serde_json::Value::Null);
                false
            }
            Err(error) => {
                push_error(out, &error);
                audit.end(&format!("failed: {error}"), serde_json::Value::Null);
                false
            }
        }
    })
}

pub(super) async fn backup(request: CommandRequest, body: Incoming) -> ApiResult {
    let wanted: BackupRequest = read_json(body).await?;
    let permit = permit()?;
    if !wanted.to.is_absolute() {
        let text =
            format!("{} is not an absolute path; the gateway runs in another working directory", wanted.to.display());
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let mut audit = AuditedOperation::begin(&request, "backup", serde_json::json!({"to": wanted.to})).await?;
    let (lines, mut progress) = mpsc::channel::<Vec<u8>>(PIECES_MAX);
    let journal = Arc::clone(&request.handles.journal);
    spawn_blocking(move || {
        let _permit = permit;
        let mut reported_at = None;
        let outcome = journal.back_up(&wanted.to, &mut |copied| {
            let now = clock::instant();
            if reported_at.is_some_and(|at| now.duration_since(at) < PROGRESS_INTERVAL) {
                return if lines.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            }
            reported_at = Some(now);
            let mut line = Vec::new();
            push_json(&mut line, "#", &copied);
            // An error means that the client has disconnected: stop.
            lines.blocking_send(line).map_or(ControlFlow::Break(()), |()| ControlFlow::Continue(()))
        });
        let mut line = Vec::new();
        match &outcome {
            Ok(backup) => {
                tracing::info!(folder = %backup.folder.display(), bytes = backup.bytes, "backup of the journal completed");
                audit.end(DONE, serde_json::to_value(backup).unwrap_or_default());
                push_json(&mut line, "", backup);
            }
            Err(error) => {
                tracing::warn!(%error, "could not complete the backup of the journal");
                audit.end(&format!("failed: {error}"), serde_json::Value::Null);
                push_error(&mut line, error);
            }
        }
        // The client may have disconnected; the result is in the log.
        let _ = lines.blocking_send(line);
    });
    let (mut pieces, reply) = http::streaming(PIECES_MAX);
    let mut shutdown = request.shutdown;
    tokio::spawn(async move {
        loop {
            let line = tokio::select! {
                () = shutdown.begun() => return,
                line = progress.recv() => line,
            };
            let Some(line) = line else { return };
            if !pieces.send(line).await {
                return;
            }
        }
    });
    Ok(reply)
}
