//! One session with the broker: one loop that receives messages, hands them in and acknowledges the durable ones.

use super::redelivery::PendingAck;
use super::{Blocked, Subscriber};
use crate::clock;
use crate::contract::{Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{EventMetadata, Ingest, Route, Submission, SubmitError, Submitted, dead};
use crate::link::{
    Conflict, Conversation, Delivery, End, Leave, LinkError, LostSession, Message, Output, Reply, Session, Start, Turn,
};
use crate::mqtt::client::{Head, push_publish};
use crate::mqtt::packet::{self, PUBACK};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A session that lasted this long resets the reconnect backoff.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// How long the source waits for receipts at shutdown.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes that the dead letter of a too large message keeps.
const CUT_BYTES: usize = 64 << 10;
/// Pause between two rebirth requests: otherwise all nodes would answer at once.
const REBIRTH_PAUSE: Duration = Duration::from_millis(50);
/// Bytes that may wait to be written.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Pause before a retry: a lane with free room may have too little for a large message.
const NO_ROOM_WAIT: Duration = Duration::from_millis(2);

impl Conversation for Subscriber {
    fn begin(&mut self, session: &Session, _start: Start, output: &mut Output) {
        self.stats.connects.add(1);
        self.stats.connections.set(1);
        tracing::info!(
            source = %self.config.name, broker = %self.target.name(), resumed = session.is_resumed(),
            "connected to the broker"
        );
        if !session.is_resumed() {
            self.redeliveries.forget();
        }
        if let Some(seconds) = session.limits().session_seconds
            && u64::from(seconds) < self.config.session_expiry.0.as_secs()
        {
            tracing::warn!(source = %self.config.name, seconds, "the broker keeps messages of a disconnected gateway for less than session_expiry");
        }
        self.subscriptions.begin(session, output);
        self.show_problem();
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, _may_send: bool) -> Result<Turn, End> {
        if self.ingest.is_closed() {
            return Err(End::Shutdown);
        }
        let mut may_read = self.take_in(session, output)?;
        while self.acknowledge(output) && !may_read {
            // There is room again for messages that have already arrived.
            may_read = self.take_in(session, output)?;
        }
        let retry_at = self.subscriptions.retry(session.protocol(), output);
        let rebirth_at = self.request_rebirth(session, output);
        let next = [retry_at, rebirth_at].into_iter().flatten().min();
        let wake_in = next.map_or(Duration::MAX, |at| at.saturating_duration_since(clock::instant()));
        Ok(Turn { may_read, wake_in })
    }

    /// Waits for receipts, or for room for the blocked message.
    async fn ready(&mut self) {
        let bell = self.producer.bell();
        let blocked_on = self.blocked.as_ref().map(|blocked| &*blocked.route);
        tokio::select! {
            biased;
            () = bell.rung() => {}
            () = room(&self.ingest, blocked_on) => self.take_blocked(),
        }
    }

    fn is_waiting(&self) -> bool {
        self.subscriptions.are_awaited()
    }

    /// `fill` takes messages in as far as there is room.
    async fn receive(&mut self, _session: &mut Session) -> Result<(), End> {
        Ok(())
    }

    async fn leave(&mut self, mut session: Session, mut output: Output, _why: Leave) {
        self.drain(&mut session, &mut output).await;
        session.close().await;
        self.await_redeliveries(&output);
        self.stats.connections.set(0);
    }

    async fn lost(&mut self, _error: &LinkError, lasted: Duration, output: &Output) -> LostSession {
        self.await_redeliveries(output);
        self.stats.connections.set(0);
        LostSession { was_good: lasted >= GOOD_AFTER, was_idle: false }
    }

    fn down(&mut self, error: &LinkError, _conflict: Option<Conflict>) {
        self.note_loss(error);
    }
}

impl Subscriber {
    fn show_problem(&self) {
        let problem = self.subscriptions.problem();
        let waiting =
            || self.subscriptions.are_awaited().then(|| "the broker has not answered SUBSCRIBE yet".to_owned());
        self.stats.set_problem(problem.or_else(waiting));
    }

    /// Hands in the messages that have arrived while there is room; returns whether more may be read.
    fn take_in(&mut self, session: &mut Session, output: &Output) -> Result<bool, End> {
        loop {
            // Stop reading from a broker that does not read its PUBACKs.
            let is_full = self.unacknowledged.len() >= usize::from(self.config.receive_maximum)
                || output.waiting() > OUTPUT_BYTES_MAX;
            if self.blocked.is_some() || is_full {
                return Ok(false);
            }
            match session.next_delivery() {
                Ok(None) => return Ok(true),
                Ok(Some(Delivery::Message(message))) => self.receive(message)?,
                Ok(Some(Delivery::Subscribed(_, codes))) => {
                    if let Err(broken) = self.subscriptions.answered(&codes) {
                        return Err(End::Lost(LinkError::Protocol(broken)));
                    }
                    self.show_problem();
                }
                Ok(Some(Delivery::Other(Reply::Disconnected(reason)))) => {
                    return Err(End::Lost(LinkError::Ended(reason)));
                }
                // The source sends nothing that has another answer.
                Ok(Some(Delivery::Unsubscribed | Delivery::Other(_))) => {}
                Err(error) => return Err(End::Lost(error)),
            }
        }
    }

    fn receive(&mut self, message: Message) -> Result<(), End> {
        self.stats.received.add(1);
        let arrived = clock::instant();
        if message.is_retained && !self.config.retained {
            self.unacknowledged.extend((message.packet_id > 0).then(|| PendingAck::new(&message, None, arrived)));
            return Ok(());
        }
        if message.packet_id > 0
            && let Some(taken) = self.redeliveries.recognise(&message)
        {
            self.stats.redelivered.add(1);
            self.unacknowledged.push_back(PendingAck::new(&message, Some(taken), arrived));
            return Ok(());
        }
        let route = self.route(&message.topic);
        self.accept(message, route, arrived)
    }

    fn accept(&mut self, message: Message, route: Arc<Route>, arrived: Instant) -> Result<(), End> {
        match self.hand_in(&message, &route) {
            Ok(taken) => {
                let pending = || PendingAck::new(&message, Some(taken), arrived);
                self.unacknowledged.extend((message.packet_id > 0).then(pending));
                Ok(())
            }
            Err(SubmitError::NoRoom) => {
                self.blocked = Some(Blocked { message, route, arrived });
                Ok(())
            }
            Err(SubmitError::Closed) => Err(End::Shutdown),
        }
    }

    fn hand_in(&mut self, message: &Message, route: &Route) -> Result<Submitted, SubmitError> {
        let now = Timestamp::from(clock::wall());
        if message.truncated > 0 {
            let bytes = message.payload.len() + message.truncated;
            let reason = dead::too_large(bytes as u64, message.payload.len() as u64);
            let kept = &message.payload[..message.payload.len().min(CUT_BYTES)];
            return self.producer.submit(&Submission { refusal: Some(&reason), ..Submission::new(route, kept, now) });
        }
        let metadata = EventMetadata {
            trace_parent: message.trace_parent.as_deref(),
            content_type: message.content_type.as_deref(),
            properties: Some(&message.properties),
            ..EventMetadata::default()
        };
        self.producer.submit(&Submission { metadata, ..Submission::new(route, &message.payload, now) })
    }

    /// Hands in the blocked message again.
    fn take_blocked(&mut self) {
        if let Some(Blocked { message, route, arrived }) = self.blocked.take() {
            let route = if self.ingest.is_current(&route) { route } else { self.route(&message.topic) };
            // The main loop detects a closed journal.
            let _ = self.accept(message, route, arrived);
        }
    }

    fn route(&mut self, topic: &str) -> Arc<Route> {
        let name = &self.config.name;
        // A broker does not report the publisher: the name of the source is used as the client.
        self.producer.route(SourceKind::Broker, name, topic, Sender { client: name, ..Sender::default() })
    }

    /// Writes the PUBACKs of durable messages, in order of arrival; returns whether there were any.
    fn acknowledge(&mut self, output: &mut Output) -> bool {
        if output.waiting() == 0 {
            self.pubacks_in_output.clear();
        }
        let before = self.unacknowledged.len();
        while let Some(first) = self.unacknowledged.front() {
            if first.taken.as_ref().is_some_and(|taken| self.ingest.receipt(taken).is_none()) {
                break;
            }
            let offset = output.bytes.len();
            packet::push_ack(&mut output.bytes, PUBACK, first.packet_id);
            self.stats.ack.record(clock::instant().duration_since(first.arrived), 1);
            self.pubacks_in_output.extend(self.unacknowledged.pop_front().map(|pending| (offset, pending)));
        }
        self.unacknowledged.len() < before
    }

    /// Publishes the next rebirth request; returns when to check again, if there may be more.
    fn request_rebirth(&mut self, session: &Session, output: &mut Output) -> Option<Instant> {
        let sparkplug = self.ingest.sparkplug().filter(|_| self.config.rebirth)?;
        sparkplug.allow_asking(&self.config.name);
        let now = clock::instant();
        if now < self.next_rebirth_request {
            return Some(self.next_rebirth_request);
        }
        let ask = sparkplug.next_ask(&self.config.name)?;
        tracing::info!(source = %self.config.name, topic = ask.topic, "requesting a rebirth of a Sparkplug node");
        push_publish(&mut output.bytes, session.protocol(), &Head::default(), ask.topic.as_bytes(), &ask.payload);
        self.next_rebirth_request = now + REBIRTH_PAUSE;
        Some(self.next_rebirth_request)
    }

    /// Waits for outstanding receipts at shutdown and writes their PUBACKs.
    async fn drain(&mut self, session: &mut Session, output: &mut Output) {
        let deadline = tokio::time::sleep(DRAIN_WAIT_MAX);
        tokio::pin!(deadline);
        let bell = self.producer.bell();
        loop {
            self.acknowledge(output);
            let has_output = output.waiting() > 0;
            if !has_output && (self.unacknowledged.is_empty() || self.ingest.is_closed()) {
                return;
            }
            tokio::select! {
                () = &mut deadline => return,
                () = bell.rung() => {}
                moved = session.write(output), if has_output => if moved.is_err() {
                    return;
                },
            }
        }
    }

    /// Remembers, after the end of a connection, the messages without a PUBACK: the broker will send them again.
    fn await_redeliveries(&mut self, output: &Output) {
        let written = output.written();
        let is_all_written = output.waiting() == 0;
        for (offset, pending) in self.pubacks_in_output.drain(..) {
            // A PUBACK whose first byte has left may have arrived.
            if !is_all_written && offset >= written {
                self.redeliveries.add(pending);
            }
        }
        for pending in self.unacknowledged.drain(..) {
            self.redeliveries.add(pending);
        }
        // It was not handed in, so its next delivery is treated as a new message.
        self.blocked = None;
    }
}

/// Waits until there may be room for the blocked message; never returns without one.
async fn room(ingest: &Ingest, blocked_on: Option<&Route>) {
    match blocked_on {
        Some(route) => {
            ingest.room(route).await;
            tokio::time::sleep(NO_ROOM_WAIT).await;
        }
        None => std::future::pending().await,
    }
}
