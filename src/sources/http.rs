//! The HTTP source: programs post events, as CloudEvents or as plain payloads.
//!
//! Promise: the server answers 202 only with a receipt for every event of the request. Any other answer gives the
//! reason. If it asks the client to retry, a repeat with the same ids makes no second event.
//! Invariants:
//! - no client can stop another client or the process, or make memory grow without bound: heads, bodies, connections,
//!   rates and waits are limited;
//! - the server authenticates a caller before it reads the body;
//! - connections, memory for bodies and wrong tokens have a limit for each address or caller.
//!
//! `POST /events/{source}`: the source is the program or device that reports, `{client}` in
//! contracts. A plain payload has the topic `{source}`, a CloudEvent `{source}/{type}`.
//!
//! Not here: the meaning of an event (`ingest`, `contract`).

mod cloudevents;
mod config;
mod context;
mod refusal;
mod request;
mod request_memory;
mod server;
mod source;
mod tokens;

pub use config::Config;
pub use context::CannotServe;
pub use server::Server;
pub use tokens::{Tokens, put_token, remove_token};
