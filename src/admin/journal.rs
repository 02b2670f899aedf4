//! What is asked of the journal as a whole while the gateway runs: export, verify, backup.
//!
//! Each answer is a row of lines as long as the work takes: `#` and how far it is as JSON, `!` and why
//! it ends early, and anything else is what was asked for. An answer that just ends was cut short.
//!
//! Promise: one who reads slowly slows the work down, and holds no page of a file meanwhile.

use super::{Answered, App, Refused, given, refuse};
use crate::clock;
use crate::http;
use crate::journal::{Counting, Export, History, Selection};
use crate::task::{apart, spawn};
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
/// Pieces of an answer that wait for their reader.
const WAITING_MAX: usize = 2;
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
    let export = Export::new(lanes(&app), &publications, ask.selection, ask.with_offsets);
    let mut export = export.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
    stepped(app, permit, move |out| match export.step(out) {
        Ok(more) => {
            push_json(out, "#", export.progress());
            more
        }
        Err(error) => {
            push_error(out, &error);
            false
        }
    })
}

pub(super) fn verify(app: App) -> Answered {
    let permit = permit()?;
    let mut counting = Some(Counting::new(lanes(&app)));
    stepped(app, permit, move |out| {
        let Some(under_way) = &mut counting else { return false };
        match under_way.step() {
            Ok(true) => {
                push_json(out, "#", &under_way.counted());
                true
            }
            Ok(false) => {
                if let Some(done) = counting.take() {
                    push_json(out, "", &done.finish());
                }
                false
            }
            Err(error) => {
                push_error(out, &error);
                false
            }
        }
    })
}

/// Appends what comes next to an answer, and says whether there is more.
type Step = dyn FnMut(&mut Vec<u8>) -> bool + Send;

/// An answer that grows step by step, each away from the threads that serve.
fn stepped(
    app: App,
    permit: SemaphorePermit<'static>,
    step: impl FnMut(&mut Vec<u8>) -> bool + Send + 'static,
) -> Answered {
    let (mut sender, reply) = http::growing(WAITING_MAX);
    let mut shutdown = app.shutdown;
    let mut step: Box<Step> = Box::new(step);
    spawn(async move {
        let _permit = permit;
        loop {
            let done = apart(move || {
                let mut out = Vec::new();
                let more = step(&mut out);
                (step, out, more)
            });
            // A step that panicked, or the runtime's end: the answer ends without its last line.
            let Ok((back, out, more)) = done.await else { return };
            step = back;
            let is_sent = tokio::select! {
                () = shutdown.begun() => false,
                sent = sender.send_data(out.into()) => sent.is_ok(),
            };
            if !is_sent || !more {
                return;
            }
        }
    });
    Ok(reply)
}

pub(super) async fn backup(app: App, body: Incoming) -> Answered {
    let ask: BackupAsk = given(body).await?;
    let permit = permit()?;
    if !ask.to.is_absolute() {
        let text = format!("{} is no whole path; the gateway has another folder of its own", ask.to.display());
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let (lines, mut told) = mpsc::channel::<Vec<u8>>(WAITING_MAX);
    let journal = Arc::clone(&app.handles.journal);
    drop(apart(move || {
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
                push_json(&mut line, "", backup);
            }
            Err(error) => {
                tracing::warn!(%error, "a backup of the journal failed");
                push_error(&mut line, error);
            }
        }
        // Nobody may be there to hear it; the log says it.
        let _ = lines.blocking_send(line);
    }));
    let (mut sender, reply) = http::growing(WAITING_MAX);
    let mut shutdown = app.shutdown;
    spawn(async move {
        loop {
            let line = tokio::select! {
                () = shutdown.begun() => return,
                line = told.recv() => line,
            };
            let Some(line) = line else { return };
            if sender.send_data(line.into()).await.is_err() {
                return;
            }
        }
    });
    Ok(reply)
}
