//! MQTT 3.1.1 and 5: bytes in, values out, no sockets.
//!
//! Promise: any bytes are parsed, refused with a reason, or reported as incomplete. Parsing a PUBLISH of a client copies
//! and allocates nothing.
//! Invariants:
//! - nothing here waits, holds a connection or asks for the time;
//! - packets of clients are parsed as strictly as the standards demand of a server (`packet`, `connect`); what a broker
//!   sends is parsed leniently (`client`, `inbox`), since a message must not end the session;
//! - rumqttc's codec is used in `client` alone, for the packets that are not on the path of an event.
//!
//! Not here: connections (`link`, `sources/mqtt`), and what a packet means.

pub(crate) mod aliases;
pub(crate) mod client;
pub(crate) mod connect;
pub(crate) mod inbox;
pub(crate) mod packet;
pub(crate) mod properties;
pub(crate) mod reason;
pub(crate) mod rejection;
pub(crate) mod topic;

pub use packet::{Frame, Publish, frame, publish};
pub use reason::{Fault, ReasonCode};
pub use topic::Filter;

use serde::Deserialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    #[default]
    #[serde(rename = "5")]
    V5,
    #[serde(rename = "3.1.1")]
    V3,
}
