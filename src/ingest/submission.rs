//! What a source hands in, and what it gets back.

use super::route::Route;
use crate::event::{Attribute, Timestamp, text};
use crate::journal::{Durable, Receipt, Ticket};

/// The longest media type, in bytes.
pub const MEDIA_TYPE_BYTES_MAX: usize = 256;

/// An event that a source hands in.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// Contract and origin of the event.
    pub route: &'a Route,
    /// The payload as it arrived.
    pub payload: &'a [u8],
    /// What the source knows besides the payload.
    pub metadata: EventMetadata<'a>,
    pub arrived: Timestamp,
    /// Why the source cannot accept the event, starting with the field: it becomes a dead letter.
    pub refusal: Option<&'a str>,
}

impl<'a> Submission<'a> {
    /// An event that its source accepts, without metadata.
    pub fn new(route: &'a Route, payload: &'a [u8], arrived: Timestamp) -> Self {
        Self { route, payload, metadata: EventMetadata::default(), arrived, refusal: None }
    }
}

/// Data of an event that its source provides in addition to the payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventMetadata<'a> {
    pub trace_parent: Option<&'a str>,
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
    /// Id, used if the contract finds none in the payload. It has 1 to `ID_BYTES_MAX` bytes.
    pub id: Option<&'a str>,
    /// Time, used if the contract finds none in the payload.
    pub time: Option<Timestamp>,
    /// Key, used if the contract sets none. It has at most `KEY_BYTES_MAX` bytes.
    pub key: Option<&'a str>,
    /// Session and packet id of a QoS 2 exchange; session 0 needs no record of it.
    pub exchange: Option<(u64, u16)>,
    /// Block of properties of the PUBLISH, empty without any; `None` if the event did not arrive over MQTT.
    pub properties: Option<&'a [u8]>,
    /// What distinguishes the event from others of its device, as a part of the origin.
    pub part: Option<&'a str>,
}

impl<'a> EventMetadata<'a> {
    /// The attributes of the record. What is no trace context or no media type is left out, whatever source it is from.
    pub(super) fn attributes(&self) -> Vec<Attribute<'a>> {
        let trace_parent = self.trace_parent.filter(|text| text::is_trace_parent(text)).map(Attribute::TraceParent);
        let content_type = self.content_type.filter(|text| text::check(text, MEDIA_TYPE_BYTES_MAX).is_ok());
        trace_parent.into_iter().chain(content_type.map(Attribute::ContentType)).collect()
    }

    pub(super) fn exchange(&self) -> Option<Attribute<'a>> {
        let (session, packet_id) = self.exchange.filter(|(session, _)| *session > 0)?;
        Some(Attribute::Exchange { session, packet_id })
    }
}

/// An accepted event whose write is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    pub(super) lane: usize,
    pub(super) ticket: Ticket,
    pub(super) is_dead: bool,
    pub(super) clock_offset: Option<i64>,
    /// Number of the Sparkplug save that must complete before the receipt; 0 for none.
    pub(super) sparkplug_save: u64,
}

impl Submitted {
    /// Whether the event is durable, given the durable positions of all lanes, with the dead letters last.
    pub fn is_durable(&self, durable: &[Durable]) -> bool {
        durable.get(self.lane).is_some_and(|durable| durable.holds(self.ticket))
    }

    /// Whether the event became a dead letter.
    pub fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Offset of the time in the payload from the arrival, in microseconds, if the payload has a time.
    pub fn clock_offset(&self) -> Option<i64> {
        self.clock_offset
    }
}

/// An event that is durable.
#[derive(Debug)]
pub struct Accepted {
    /// Proof that the event, or its dead letter, is on the disk.
    pub receipt: Receipt,
    /// Whether the event became a dead letter.
    pub is_dead: bool,
}

/// The journal is closed: it accepts no more events, and events without a receipt will never get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;
