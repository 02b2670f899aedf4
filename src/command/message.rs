//! What goes in and out of the inbox.

use super::row::{Request, StoredReceipt};
use crate::event::Timestamp;

/// Code of a command that came or began too late.
pub(super) const EXPIRED: &str = "expired";

/// A message on the topic of commands.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Levels after `{environment}/{site}/command/{gateway}/`.
    pub(super) levels: String,
    pub(super) payload: Vec<u8>,
    pub(super) is_retained: bool,
    pub(super) is_truncated: bool,
}

/// A confirmation from a device.
#[derive(Debug)]
pub(super) struct Confirmation {
    pub(super) stream: String,
    /// Key of the event: the target that reports.
    pub(super) key: String,
    pub(super) command: String,
    pub(super) is_done: bool,
    pub(super) text: Option<String>,
}

/// The time, and whether it is right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) time: Timestamp,
    pub(super) is_trusted: bool,
}

/// A record to hand in to the journal.
#[derive(Debug)]
pub(super) enum Outgoing {
    Receipt { target: String, receipt: StoredReceipt },
    ToDevice { name: String, request: Box<Request>, expires: Timestamp },
}
