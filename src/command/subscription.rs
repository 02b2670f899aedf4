//! The subscription to the commands of central, on a connection of its own with a persistent session.
//!
//! Promise: a PUBACK leaves only after the message is durable in the inbox, in the order of the messages. A subscription
//! that the broker refuses is a problem in the status, and is tried again.
//! Invariant: nothing depends on retained messages, shared subscriptions or properties of MQTT 5.

use super::board::Board;
use super::message::Arrival;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::link::{
    Conflict, Conversation, Delivery, End, LinkError, LostSession, Message, Output, Reply, Session, Start,
    Subscription, Turn, push_subscribe,
};
use crate::mqtt::packet::{self, PUBACK};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Messages that may be unacknowledged.
pub(super) const RECEIVE_MAXIMUM: u16 = 64;
/// Largest payload of a command.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// A session that lasted this long resets the reconnect backoff.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Pause before the inbox, which had no room, is looked at again.
const FULL_WAIT: Duration = Duration::from_millis(50);
/// Packet id of SUBSCRIBE; the subscription sends no other packet with an id.
const SUBSCRIBE_ID: u16 = 1;
/// Pauses before a refused subscription is tried again.
const RETRIES: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(40), Jitter::UpToDouble);

/// A message, and who waits until it is durable.
pub(super) type Handover = (Arrival, oneshot::Sender<()>);

/// A message that is not acknowledged yet.
struct Pending {
    packet_id: u16,
    stored: oneshot::Receiver<()>,
    is_stored: bool,
}

/// The conversation with the broker of the destination that sends commands.
pub(super) struct Subscriber {
    filter: String,
    /// Start of the topics: `{environment}/{site}/command/{gateway}/`.
    prefix: String,
    inbox: mpsc::Sender<Handover>,
    pending: VecDeque<Pending>,
    board: Arc<Board>,
    is_requested: bool,
    retry_at: Option<Instant>,
    retries: Backoff,
}

impl Subscriber {
    pub(super) fn new(prefix: String, inbox: mpsc::Sender<Handover>, board: Arc<Board>) -> Self {
        board.set_link_problem(Some("not connected yet".into()));
        Self {
            filter: format!("{prefix}#"),
            prefix,
            inbox,
            pending: VecDeque::new(),
            board,
            is_requested: false,
            retry_at: None,
            retries: RETRIES,
        }
    }

    fn subscribe(&mut self, session: &Session, output: &mut Output) {
        // Retained commands are wanted, so that each gets its refusal.
        let subscription = Subscription { filter: self.filter.clone(), qos: 1, wants_retained: true };
        push_subscribe(&mut output.bytes, session.protocol(), SUBSCRIBE_ID, &[subscription]);
        (self.is_requested, self.retry_at) = (true, None);
    }

    fn subscribed(&mut self, codes: &[u8]) {
        self.is_requested = false;
        let problem = match codes {
            [1] => None,
            [code] if *code >= 0x80 => {
                Some(format!("the broker refuses to subscribe to \"{}\"; allow it in its ACL", self.filter))
            }
            _ => Some(format!("the broker does not grant \"{}\" with QoS 1; commands may be lost", self.filter)),
        };
        match &problem {
            None => {
                self.retries.reset();
                tracing::info!(filter = %self.filter, "subscribed to commands");
            }
            Some(problem) => {
                let wait = self.retries.next();
                tracing::warn!(?wait, "commands: {problem}; will try again");
                self.retry_at = Some(clock::instant() + wait);
            }
        }
        self.board.set_link_problem(problem);
    }

    /// Hands messages to the inbox as far as it has room; returns whether more may be read.
    fn take_in(&mut self, session: &mut Session) -> Result<bool, End> {
        loop {
            // Messages of an earlier connection may still be there.
            if self.pending.len() >= usize::from(RECEIVE_MAXIMUM) || self.inbox.capacity() == 0 {
                return Ok(false);
            }
            match session.next_delivery().map_err(End::Lost)? {
                None => return Ok(true),
                Some(Delivery::Message(message)) => self.receive(message)?,
                Some(Delivery::Subscribed(_, codes)) => self.subscribed(&codes),
                Some(Delivery::Other(Reply::Disconnected(reason))) => return Err(End::Lost(LinkError::Ended(reason))),
                // Nothing is sent that has another answer.
                Some(Delivery::Unsubscribed | Delivery::Other(_)) => {}
            }
        }
    }

    fn receive(&mut self, message: Message) -> Result<(), End> {
        let arrival = Arrival {
            levels: message.topic.strip_prefix(&self.prefix).unwrap_or_default().to_owned(),
            payload: message.payload[..message.payload.len().min(PAYLOAD_BYTES_MAX)].to_vec(),
            is_retained: message.is_retained,
            is_truncated: message.truncated > 0 || message.payload.len() > PAYLOAD_BYTES_MAX,
        };
        let (done, stored) = oneshot::channel();
        // `take_in` has seen a place; the worker ends with this part.
        self.inbox.try_send((arrival, done)).map_err(|_| End::Shutdown)?;
        self.pending.push_back(Pending { packet_id: message.packet_id, stored, is_stored: false });
        Ok(())
    }

    /// Writes the PUBACKs of durable messages, in order of arrival.
    fn acknowledge(&mut self, output: &mut Output) {
        while let Some(first) = self.pending.front_mut() {
            if !first.is_stored && first.stored.try_recv().is_err() {
                return;
            }
            if first.packet_id > 0 {
                packet::push_ack(&mut output.bytes, PUBACK, first.packet_id);
            }
            self.pending.pop_front();
        }
    }
}

impl Conversation for Subscriber {
    fn begin(&mut self, session: &Session, _start: Start, output: &mut Output) {
        // The broker sends them again.
        self.pending.clear();
        tracing::info!(broker = session.broker(), resumed = session.is_resumed(), "connected for commands");
        self.subscribe(session, output);
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, _may_send: bool) -> Result<Turn, End> {
        self.acknowledge(output);
        let may_read = self.take_in(session)?;
        if self.retry_at.is_some_and(|at| clock::instant() >= at) {
            self.subscribe(session, output);
        }
        let retry_in = self.retry_at.map(|at| at.saturating_duration_since(clock::instant()));
        let full_wait = (!may_read).then_some(FULL_WAIT);
        let wake_in = retry_in.into_iter().chain(full_wait).min().unwrap_or(Duration::MAX);
        Ok(Turn { may_read, wake_in })
    }

    /// Waits until the first unacknowledged message is durable.
    async fn ready(&mut self) {
        let Some(first) = self.pending.front_mut() else { return std::future::pending().await };
        if !first.is_stored && (&mut first.stored).await.is_err() {
            // The worker has ended, and this part ends with it.
            return std::future::pending().await;
        }
        first.is_stored = true;
    }

    fn is_waiting(&self) -> bool {
        self.is_requested
    }

    /// `fill` takes messages in.
    async fn receive(&mut self, _session: &mut Session) -> Result<(), End> {
        Ok(())
    }

    async fn lost(&mut self, _error: &LinkError, lasted: Duration, _output: &Output) -> LostSession {
        self.is_requested = false;
        LostSession { was_good: lasted >= GOOD_AFTER, was_idle: false }
    }

    fn down(&mut self, error: &LinkError, _conflict: Option<Conflict>) {
        if self.board.set_link_problem(Some(error.to_string())) {
            tracing::warn!(%error, "no connection for commands, will reconnect");
        }
    }
}
