//! What is asked of the journal as a whole while the gateway runs: export, verify, backup.
//!
//! Each answer is a row of lines as long as the work takes: `#` and how far it is as JSON, `!` and why
//! it ends early, and anything else is what was asked for. An answer that just ends was cut short.
//!
//! Promise: one who reads slowly slows the work down, and holds no page of a file meanwhile.

use super::rows::{PIECES_MAX, stepped};
use super::{Answered, App, Refused, caller, given, refuse, tried};
use crate::clock;
use crate::http;
use crate::journal::{BEGUN, DONE, Export, History, Selection, Verification};
use crate::runtime::spawn_blocking;
use hyper::StatusCode;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

/// Works at the same time: each reads the disk as fast as it can.
static WORKS: Semaphore = Semaphore::const_new(WORKS_MAX);
const WORKS_MAX: usize = 2;
/// How often a backup says how far it is.
const TOLD_EVERY: Duration = Duration::from_millis(100);

/// What is to be exported.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExportAsk {
    /// Which events.
    pub selection: Selection,
    /// Whether with lane and offset.
    pub with_offsets: bool,
}

/// Where a backup goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupAsk {
    /// A folder that is not there yet, with its whole path.
    pub to: PathBuf,
}

fn permit() -> Result<SemaphorePermit<'static>, Refused> {
    WORKS.try_acquire().map_err(|_| {
        let text = format!("{WORKS_MAX} exports, counts or backups are under way; try again when one of them is done");
        refuse(StatusCode::TOO_MANY_REQUESTS, text)
    })
}

fn lanes(app: &App) -> Vec<Arc<dyn History>> {
    let journal = &app.handles.journal;
    let all = journal.lanes().iter().chain([journal.dead()]);
    all.map(|lane| Arc::clone(lane) as Arc<dyn History>).collect()
}

/// Appends a line of JSON behind its sign.
fn push_json<T: Serialize>(out: &mut Vec<u8>, sign: &str, value: &T) {
    out.extend_from_slice(sign.as_bytes());
    // Plain structs of numbers and text always encode.
    out.extend_from_slice(&serde_json::to_vec(value).unwrap_or_default());
    out.push(b'\n');
}

fn push_error(out: &mut Vec<u8>, error: &dyn std::error::Error) {
    out.extend_from_slice(format!("!{}\n", error.to_string().replace('\n', " ")).as_bytes());
}

pub(super) async fn export(app: App, body: Incoming) -> Answered {
    let ask: ExportAsk = given(body).await?;
    let permit = permit()?;
    let publications = app.handles.journal.publications();
    let what = serde_json::to_value(&ask).unwrap_or_default();
    let export = Export::new(lanes(&app), &publications, ask.selection, ask.with_offsets);
    let mut export = export.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
    // No event leaves before it is written down who takes it.
    let mut audit = Outcome::begin(&app, "export", what).await?;
    stepped(app.shutdown, permit, move |out| match export.step(out) {
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

/// What comes of work that is audited from its beginning: it is cut short where nobody says otherwise.
struct Outcome {
    app: App,
    action: &'static str,
    by: Option<u32>,
    is_over: bool,
}

impl Outcome {
    /// Audits that work begins; returns when that is on the disk.
    async fn begin(app: &App, action: &'static str, what: serde_json::Value) -> Result<Self, Refused> {
        let (ours, by) = (app.clone(), caller().0);
        tried(move || ours.handles.journal.audit(action, by, &what, BEGUN)).await?;
        Ok(Self { app: app.clone(), action, by, is_over: false })
    }

    /// Audits what came of it. Blocks the thread.
    fn end(&mut self, result: &str, what: serde_json::Value) {
        self.is_over = true;
        if let Err(error) = self.app.handles.journal.audit(self.action, self.by, &what, result) {
            tracing::error!(action = self.action, result, %error, "what came of this cannot be audited; that it began is");
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if !self.is_over {
            let (app, action, by) = (self.app.clone(), self.action, self.by);
            // Not awaited: the reader is gone, and the entry of the beginning is there.
            spawn_blocking(move || {
                let mut outcome = Self { app, action, by, is_over: false };
                outcome.end("cut short", serde_json::Value::Null);
            });
        }
    }
}

pub(super) async fn verify(app: App) -> Answered {
    let permit = permit()?;
    let mut audit = Outcome::begin(&app, "verify", serde_json::Value::Null).await?;
    let mut counting = Some(Verification::new(lanes(&app)));
    let journal = Arc::clone(&app.handles.journal);
    stepped(app.shutdown, permit, move |out| {
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

pub(super) async fn backup(app: App, body: Incoming) -> Answered {
    let ask: BackupAsk = given(body).await?;
    let permit = permit()?;
    if !ask.to.is_absolute() {
        let text = format!("{} is no whole path; the gateway has another folder of its own", ask.to.display());
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let mut audit = Outcome::begin(&app, "backup", serde_json::json!({"to": ask.to})).await?;
    let (lines, mut told) = mpsc::channel::<Vec<u8>>(PIECES_MAX);
    let journal = Arc::clone(&app.handles.journal);
    spawn_blocking(move || {
        let _permit = permit;
        let mut told_at = None;
        let outcome = journal.back_up(&ask.to, &mut |copied| {
            let now = clock::instant();
            if told_at.is_some_and(|at| now.duration_since(at) < TOLD_EVERY) {
                return if lines.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            }
            told_at = Some(now);
            let mut line = Vec::new();
            push_json(&mut line, "#", &copied);
            // Whoever asked went away.
            lines.blocking_send(line).map_or(ControlFlow::Break(()), |()| ControlFlow::Continue(()))
        });
        let mut line = Vec::new();
        match &outcome {
            Ok(backup) => {
                tracing::info!(folder = %backup.folder.display(), bytes = backup.bytes, "a backup of the journal is made");
                audit.end(DONE, serde_json::to_value(backup).unwrap_or_default());
                push_json(&mut line, "", backup);
            }
            Err(error) => {
                tracing::warn!(%error, "a backup of the journal failed");
                audit.end(&format!("failed: {error}"), serde_json::Value::Null);
                push_error(&mut line, error);
            }
        }
        // Nobody may be there to hear it; the log says it.
        let _ = lines.blocking_send(line);
    });
    let (mut pieces, reply) = http::streaming(PIECES_MAX);
    let mut shutdown = app.shutdown;
    tokio::spawn(async move {
        loop {
            let line = tokio::select! {
                () = shutdown.begun() => return,
                line = told.recv() => line,
            };
            let Some(line) = line else { return };
            if !pieces.send(line).await {
                return;
            }
        }
    });
    Ok(reply)
}
