//! Streaming responses: lists of any length, and progress of long operations.
//!
//! Promise: a response is never in memory as a whole. At most [`PIECES_MAX`] pieces of [`PIECE_BYTES`] plus one item wait
//! for the client. A slow client slows the operation down, and pins no page of a file meanwhile.

use super::request::ApiResult;
use crate::http;
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use std::fmt::Display;

/// Pieces of a response that wait for the client.
pub(super) const PIECES_MAX: usize = 2;
/// A piece is sent at this size: large enough for a low overhead, small for the memory of a small device.
const PIECE_BYTES: usize = 16 << 10;

/// Appends the next part of a response; returns whether more follows.
type Producer = dyn FnMut(&mut Vec<u8>) -> bool + Send;
/// Items of a list, each encoded as JSON.
pub(super) type Items = Box<dyn Iterator<Item = Result<Vec<u8>, String>> + Send>;

/// Streams the output of `step`, which runs on the blocking pool until it returns `false`. Holds `permit` meanwhile.
pub(super) fn stepped<P: Send + 'static>(
    mut shutdown: Shutdown,
    permit: P,
    step: impl FnMut(&mut Vec<u8>) -> bool + Send + 'static,
) -> ApiResult {
    let (mut pieces, reply) = http::streaming(PIECES_MAX);
    let mut step: Box<Producer> = Box::new(step);
    tokio::spawn(async move {
        let _permit = permit;
        loop {
            let done = spawn_blocking(move || {
                let mut out = Vec::new();
                let more = step(&mut out);
                (step, out, more)
            });
            // The step panicked or the runtime ends: the response ends without its last line.
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

/// Streams a JSON array with one item per line. After an error the array stays unterminated, so no
/// client takes it as complete.
pub(super) fn array(shutdown: Shutdown, what: &'static str, items: Items) -> ApiResult {
    let mut items = items.fuse();
    let mut before: &[u8] = b"[\n";
    stepped(shutdown, (), move |out| {
        while out.len() < PIECE_BYTES {
            match items.next() {
                Some(Ok(item)) => {
                    out.extend_from_slice(before);
                    out.extend_from_slice(&item);
                    before = b",\n";
                }
                Some(Err(error)) => {
                    tracing::warn!(
                        what,
                        error,
                        "could not read all items; the response at the command socket is incomplete"
                    );
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

/// Encodes an item as JSON.
pub(super) fn item(value: &impl serde::Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(text)
}

pub(super) fn text(error: impl Display) -> String {
    error.to_string()
}
