//! Forward: sends the events of a lane to one destination and settles those that central acknowledged.
//!
//! ```text
//! reader, resend/replay, resend/letters ──▶ outgoing ──▶ sender ══ link ══▶ central
//!              key_order ◀── refused ─────────────────┐                      │
//!                                 settler ◀── forwarder ◀── answers ◀────────┘
//! ```
//!
//! Promise: an event is settled only when central has acknowledged it, or when it is a durable dead letter;
//! first deliveries of one key are in order, as its contract says; one event that central refuses, or that makes it
//! disconnect, does not block the others.
//! Invariants:
//! - each pair of lane and destination has a forwarder and connection of its own, to isolate failures, or several that share
//!   its events by key;
//! - the window bounds the events in flight; after a disconnect they are read again from the journal;
//! - what central has answered is not sent again, except what it refused for now.
//!
//! Not here: the MQTT session and its reconnects (`link`), the storage of events (`journal`).

mod again;
mod answers;
mod batch;
mod client_id;
mod config;
mod followed;
mod forwarder;
mod in_flight;
mod key_order;
mod keys;
mod lane_link;
mod lane_sender;
mod line_room;
pub mod meter;
mod outgoing;
pub mod overtaken;
mod pace;
mod packet_sizes;
mod probe;
mod reader;
pub mod replays;
pub mod resend;
mod sender;
mod settler;
mod stats;
pub mod status;
mod throttle;

pub use batch::{BATCH, BATCH_ZSTD};
pub use client_id::{COMMANDS, CONNECTIONS, ClientIds};
pub use config::{Config, Envelope, Urls};
pub use forwarder::{Forwarder, ForwarderSpec};
pub use keys::Connection;
pub use pace::{Batch, BatchWhen, CatchUp, Compression, Hours, Pressure, Rate, Sending};
pub use stats::{LinkState, Stats};
