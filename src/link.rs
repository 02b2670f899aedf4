//! The link: one MQTT session with a broker, at central or in the plant.
//!
//! Promise: writes and reads are batched; a dead connection is left within a bounded time, whether the broker refuses it,
//! hangs or vanishes; a slow one is not dead.
//! Invariants:
//! - no state of outgoing publishes survives a connection; the journal is the only resend queue;
//! - incoming messages use a persistent session of the broker, opened with an [`Inbox`].
//!
//! The codec is rumqttc's; the driver is ours, because rumqttc's event loop flushes after every publish and reaches
//! only a fifth of this throughput.
//!
//! Not here: which events to send, and what a reply means for them (`forward`).

mod address;
mod client;
mod client_conflict;
mod config;
mod dial;
mod error;
mod failback;
mod line;
#[cfg(test)]
pub(crate) mod memory;
mod peer;
mod progress;
mod proxy;
mod reconnect;
mod rotation;
mod session;
mod stream;
mod target;
mod traffic;
mod websocket;

pub use crate::mqtt::Protocol;
pub(crate) use crate::mqtt::aliases::Alias;
pub use crate::mqtt::client::{Head, Inbox, Limits, Reply, Will, push_publish};
pub use crate::mqtt::inbox::{Delivery, Message, Subscription, push_subscribe, push_unsubscribe};
pub use crate::mqtt::rejection::Rejection;
pub use address::Address;
pub(crate) use address::authority;
pub(crate) use client::{Client, Conversation, End, Leave, LostSession, Start, Turn};
pub(crate) use client_conflict::Conflict;
pub use config::{Config, check_client_id};
pub use error::LinkError;
pub use line::{Line, LineFigures};
pub(crate) use line::{LineShare, SEGMENT_BYTES};
pub use peer::Peer;
pub use proxy::Proxy;
pub use rotation::CredentialRotation;
pub(crate) use session::{ConnectAs, Output, Session, Verdict};
pub use target::Target;
pub use traffic::Traffic;
