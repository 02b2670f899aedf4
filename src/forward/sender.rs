//! The sender: publishes events on a session, keeps what is in flight, and finds what each answer is about.
//!
//! Invariant: a packet larger than the broker takes is never written.

use super::batch::OpenBatch;
use super::config::{Config, Envelope};
use super::in_flight::InFlight;
use super::outgoing::{Mark, Outgoing};
use super::pace::{Compression, Sending};
use crate::contract::Rendering;
use crate::link::{self, Alias, Head, LinkError, Output, Protocol, Rejection, Session, Verdict};

/// Publishes events; `T` is what the caller keeps for each publish in flight.
#[derive(Debug)]
pub(super) struct Sender<T> {
    pub in_flight: InFlight<T>,
    rendering: Rendering,
    is_compact: bool,
    require_subscriber: bool,
}

/// A publish with its answer.
#[derive(Debug)]
pub(super) struct Answered<T> {
    pub sent: T,
    /// Size of the packet.
    pub bytes: usize,
    /// `None` if central has accepted it.
    pub rejection: Option<Rejection>,
    /// Whether the topic has no subscriber.
    pub is_unheard: bool,
}

impl<T> Sender<T> {
    /// With the setting `require_subscriber`, an acknowledgement without a subscriber counts as a temporary rejection.
    pub(super) fn new(to: &Config) -> Self {
        let (is_compact, require_subscriber) = (to.envelope == Envelope::Compact, to.require_subscriber);
        Self { in_flight: InFlight::default(), rendering: Rendering::default(), is_compact, require_subscriber }
    }

    /// Publishes one event. The error says why the broker cannot take it.
    pub(super) fn publish(
        &mut self,
        event: &Outgoing<'_>,
        kept: T,
        session: &Session,
        output: &mut Output,
    ) -> Result<(), String> {
        let is_v5 = session.protocol() == Protocol::V5;
        let out = &mut self.rendering;
        out.takes_properties = is_v5;
        // A mark may change the topic, which the compact form refers to.
        out.is_compact = self.is_compact && event.mark.is_none();
        event.published.renderer.render(&event.record, event.sequence, event.recorded, out);
        if let Some(mark) = &event.mark {
            mark.apply(out, is_v5);
        }
        let out = &self.rendering;
        let content_type = out.content_type_own.as_deref().unwrap_or(out.content_type);
        let bytes = push(output, session, self.in_flight.next_id(), (content_type, out), &out.payload)?;
        self.in_flight.push(kept, bytes);
        Ok(())
    }

    /// Closes a batch and publishes it, and returns the size of the packet, which the caller puts in flight. The error
    /// says why the broker cannot take it.
    pub(super) fn publish_batch(
        &mut self,
        batch: &mut OpenBatch,
        sending: &Sending,
        session: &Session,
        output: &mut Output,
    ) -> Result<usize, String> {
        let compression = sending.batch.as_ref().map_or(Compression::None, |batch| batch.compression);
        let (packed, content_type) = batch.close(compression, session.protocol());
        let out = &mut self.rendering;
        out.properties.clear();
        out.topic = std::mem::take(&mut batch.topic);
        if batch.is_backfill {
            Mark::backfill(sending).apply(out, session.protocol() == Protocol::V5);
        }
        let payload = packed.as_ref().unwrap_or(&batch.payload);
        push(output, session, self.in_flight.next_id(), (content_type, &*out), payload)
    }

    /// Returns the next answer that has arrived.
    pub(super) fn next_answer(&mut self, session: &mut Session) -> Result<Option<Answered<T>>, LinkError> {
        let (sent, bytes, verdict) = loop {
            let Some((packet_id, verdict)) = session.next_answer()? else { return Ok(None) };
            match self.in_flight.take(packet_id) {
                Some((sent, bytes)) => break (sent, bytes, verdict),
                // A broker may acknowledge twice; that says nothing about what is in flight.
                None => tracing::debug!(packet_id, "central acknowledged a packet that is not in flight"),
            }
        };
        let is_unheard = verdict == Verdict::NoSubscribers;
        let rejection = match verdict {
            Verdict::Rejected(rejection) => Some(rejection),
            Verdict::NoSubscribers => self.require_subscriber.then_some(Rejection::NO_SUBSCRIBERS),
            Verdict::Accepted => None,
        };
        Ok(Some(Answered { sent, bytes, rejection, is_unheard }))
    }
}

/// Appends a QoS 1 PUBLISH, or nothing if it is larger than the broker takes, and returns its size.
fn push(
    output: &mut Output,
    session: &Session,
    packet_id: u16,
    (content_type, out): (&str, &Rendering),
    payload: &[u8],
) -> Result<usize, String> {
    let alias = output.aliases.choose(&out.topic, session.limits().topic_alias_max);
    let topic: &[u8] = if matches!(alias, Alias::Known(_)) { &[] } else { &out.topic };
    let head = Head {
        topic_alias: alias.number(),
        content_type: (!content_type.is_empty()).then_some(content_type),
        properties: &out.properties,
        ..Head::qos1(packet_id)
    };
    let (start, to) = (output.bytes.len(), &mut output.bytes);
    link::push_publish(to, session.protocol(), &head, topic, payload);
    let (bytes, bytes_max) = (to.len() - start, session.limits().packet_bytes_max);
    if bytes > bytes_max {
        to.truncate(start);
        return Err(format!("packet of {bytes} bytes: the broker takes {bytes_max} at most"));
    }
    output.aliases.record(&out.topic, alias);
    Ok(bytes)
}
