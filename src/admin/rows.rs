//! Answers that grow while they are read: lists of any length, and work that takes its time.
//!
//! Promise: an answer never stands in memory as a whole. A few pieces of at most [`PIECE_BYTES`] and one item wait for a
//! reader; one who reads slowly slows the work down, and holds no page of a file meanwhile.

use super::{Answered, App};
use crate::http;
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use std::fmt::Display;

/// Pieces of an answer that wait for their reader.
pub(super) const PIECES_MAX: usize = 2;
/// A piece is sent once it is as large: large enough to cost little, small beside the memory of a small box.
const PIECE_BYTES: usize = 16 << 10;

/// Appends what comes next to an answer, and says whether there is more.
type Step = dyn FnMut(&mut Vec<u8>) -> bool + Send;
/// Items of a list, each as JSON.
pub(super) type Items = Box<dyn Iterator<Item = Result<Vec<u8>, String>> + Send>;

/// An answer that grows step by step, each away from the threads that serve. `permit` lasts as long as the work.
pub(super) fn stepped<P: Send + 'static>(
    mut shutdown: Shutdown,
    permit: P,
    step: impl FnMut(&mut Vec<u8>) -> bool + Send + 'static,
) -> Answered {
    let (mut pieces, reply) = http::streaming(PIECES_MAX);
    let mut step: Box<Step> = Box::new(step);
    tokio::spawn(async move {
        let _permit = permit;
        loop {
            let done = spawn_blocking(move || {
                let mut out = Vec::new();
                let more = step(&mut out);
                (step, out, more)
            });
            // A step that panicked, or the runtime's end: the answer ends without its last line.
            let Ok((back, out, more)) = done.await else { return };
            step = back;
            let is_sent = tokio::select! {
                () = shutdown.begun() => false,
                sent = pieces.send(out) => sent,
            };
            if !is_sent || !more {
                return;
            }
        }
    });
    Ok(reply)
}

/// A JSON array with one item a line. Where an item cannot be had the array stays open, so that no reader takes it for
/// whole.
pub(super) fn array(app: App, what: &'static str, items: Items) -> Answered {
    let mut items = items.fuse();
    let mut before: &[u8] = b"[\n";
    stepped(app.shutdown, (), move |out| {
        while out.len() < PIECE_BYTES {
            match items.next() {
                Some(Ok(item)) => {
                    out.extend_from_slice(before);
                    out.extend_from_slice(&item);
                    before = b",\n";
                }
                Some(Err(error)) => {
                    tracing::warn!(what, error, "an answer at the command socket ends early");
                    return false;
                }
                None => {
                    out.extend_from_slice(if before == b"[\n" { b"[]\n" } else { b"\n]\n" });
                    return false;
                }
            }
        }
        true
    })
}

/// An item as JSON.
pub(super) fn item(value: &impl serde::Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(text)
}

/// An error as text.
pub(super) fn text(error: impl Display) -> String {
    error.to_string()
}
