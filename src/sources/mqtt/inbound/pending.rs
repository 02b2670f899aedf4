//! Publishes of a client that are not answered yet, and replies that wait for a write of the session.

use crate::event::Timestamp;
use crate::ingest::{Route, Submitted};
use crate::mqtt::ReasonCode;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a publish that waits for its receipt.
pub(in super::super) const UNACKNOWLEDGED_BYTES: usize = 2 * size_of::<Unacknowledged>();
/// Bytes of an open QoS 2 exchange, in the session and in its stored state: 470 bytes measured.
pub(in super::super) const EXCHANGE_BYTES: usize = 512;
/// Overhead of a deferred reply, without its bytes.
pub(super) const REPLY_BYTES: usize = 2 * size_of::<DeferredReply>();

/// A publish that waits for its acknowledgement, or for room in its lane.
#[derive(Clone, Copy)]
pub(super) struct ReceivedPublish {
    /// 0 for QoS 0.
    pub packet_id: u16,
    pub is_qos2: bool,
    pub hash: u64,
    pub arrived: Instant,
}

/// A publish whose answer leaves after those of all earlier publishes.
pub(super) struct Unacknowledged {
    pub answer: Answer,
    pub publish: ReceivedPublish,
}

/// What decides the acknowledgement of a publish.
pub(super) enum Answer {
    /// Success, once the event or dead letter has its receipt.
    Taken(Submitted),
    /// A reason code of MQTT 5; nothing is stored.
    Refused(ReasonCode),
}

/// What becomes of a publish.
pub(super) enum Verdict {
    Event,
    /// It is kept with this reason, which starts with the field.
    DeadLetter(String),
    /// Its client gets a reason code; nothing is stored.
    Refused(ReasonCode),
}

impl Verdict {
    /// Returns the reason of a dead letter.
    pub(crate) fn reason(&self) -> Option<&str> {
        if let Self::DeadLetter(reason) = self { Some(reason) } else { None }
    }
}

/// A publish that waits for room in its lane.
pub(super) struct QueuedPublish {
    pub route: Arc<Route>,
    pub payload: Vec<u8>,
    /// The block of properties.
    pub properties: Vec<u8>,
    pub trace_parent: Option<String>,
    pub content_type: Option<String>,
    pub publish: ReceivedPublish,
    pub verdict: Verdict,
    /// Bytes that `Inbound::memory` holds for it.
    pub bytes: usize,
}

/// A reply that is sent once write number `wait_for` of the sessions is on the disk.
pub(super) struct DeferredReply {
    pub wait_for: u64,
    pub bytes: Vec<u8>,
}

/// The moment at which bytes arrived, on both clocks.
#[derive(Clone, Copy)]
pub(super) struct ArrivalTime {
    pub at: Instant,
    pub time: Timestamp,
}
