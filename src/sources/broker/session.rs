//! One session with the broker: one loop that takes messages in and acknowledges what is on the disk.

use super::Source;
use super::owed::Pending;
use crate::clock;
use crate::contract::{Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{Beside, Ingest, Route, Taken};
use crate::journal::NotTaken;
use crate::link::{self, Delivery, LinkError, Message, Output, Reply, Session};
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Topics whose contract is remembered.
const ROUTES_MAX: usize = 4096;
/// How long receipts are awaited at the end.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How much of a message that is too large its dead letter keeps.
const CUT_BYTES: usize = 64 << 10;
/// Between two asks for a rebirth, so that not all nodes answer at once.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Bytes that may wait to be written.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// A lane that has room may still have too little for a large message.
const ROOM_AGAIN: Duration = Duration::from_millis(2);

/// Why a session is over.
pub(super) enum End {
    Shutdown,
    Lost(LinkError),
}

/// A message that found no room: nothing is read until it has some.
pub(super) struct Blocked {
    message: Message,
    route: Arc<Route>,
    arrived: Instant,
}

impl Source {
    /// Serves a session until it ends.
    pub(super) async fn serve(&mut self, mut session: Session, shutdown: &mut Shutdown) -> End {
        let mut output = Output::default();
        if !session.is_resumed() {
            self.owed.forget();
        }
        if let Some(seconds) = session.limits().session_seconds
            && u64::from(seconds) < self.config.session_expiry.0.as_secs()
        {
            tracing::warn!(source = %self.config.name, seconds, "the broker keeps messages for an absent gateway for less than session_expiry");
        }
        self.subscriptions.begin(&session, &mut output);
        self.show_problem();
        let end = self.work(&mut session, &mut output, shutdown).await;
        if matches!(end, End::Shutdown) {
            self.drain(&mut session, &mut output).await;
            session.close().await;
        }
        self.settle_debts(&output);
        end
    }

    fn show_problem(&self) {
        let problem = self.subscriptions.problem();
        let waiting =
            || self.subscriptions.are_awaited().then(|| "the broker has not answered SUBSCRIBE yet".to_owned());
        self.stats.set_problem(problem.or_else(waiting));
    }

    async fn work(&mut self, session: &mut Session, output: &mut Output, shutdown: &mut Shutdown) -> End {
        let bell = self.waiter.bell();
        loop {
            let is_reading = match self.take_in(session, output) {
                Ok(is_reading) => is_reading,
                Err(end) => return end,
            };
            if self.acknowledge(output) && !is_reading {
                // There is room again for what has arrived already.
                continue;
            }
            let now = clock::instant();
            let mut look_again = match is_reading {
                true => match session.check(self.subscriptions.are_awaited(), output) {
                    Ok(wait) => wait,
                    Err(error) => return End::Lost(error),
                },
                false => session.keep_alive_unread(output),
            };
            let retry_at = self.subscriptions.retry(session.protocol(), output);
            let ask_at = self.ask_rebirths(session, output);
            for at in [retry_at, ask_at].into_iter().flatten() {
                look_again = look_again.min(at.saturating_duration_since(now));
            }
            let blocked_on = self.blocked.as_ref().map(|blocked| Arc::clone(&blocked.route));
            let ingest = &self.ingest;
            // Every arm is safe to drop half-way.
            tokio::select! {
                biased;
                () = shutdown.begun() => return End::Shutdown,
                () = bell.rung() => if ingest.is_closed() {
                    return End::Shutdown;
                },
                () = room(ingest, blocked_on.as_deref()) => self.take_blocked(),
                moved = exchange(session, output, is_reading) => if let Err(error) = moved {
                    return End::Lost(error);
                },
                () = tokio::time::sleep(look_again) => {}
            }
        }
    }

    /// Takes in what has arrived, as far as there is room; whether more may be read.
    fn take_in(&mut self, session: &mut Session, output: &Output) -> Result<bool, End> {
        loop {
            // A broker that reads no PUBACK is not read either.
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
                // Nothing of ours asks for another answer.
                Ok(Some(Delivery::Unsubscribed | Delivery::Other(_))) => {}
                Err(error) => return Err(End::Lost(error)),
            }
        }
    }

    fn receive(&mut self, message: Message) -> Result<(), End> {
        self.stats.received.add(1);
        let arrived = clock::instant();
        if message.is_retained && !self.config.retained {
            self.unacknowledged.extend((message.packet_id > 0).then(|| Pending::new(&message, None, arrived)));
            return Ok(());
        }
        if message.packet_id > 0
            && let Some(taken) = self.owed.recognise(&message)
        {
            self.stats.redelivered.add(1);
            self.unacknowledged.push_back(Pending::new(&message, Some(taken), arrived));
            return Ok(());
        }
        let route = self.route(&message.topic);
        self.accept(message, route, arrived)
    }

    fn accept(&mut self, message: Message, route: Arc<Route>, arrived: Instant) -> Result<(), End> {
        match self.hand_in(&message, &route) {
            Ok(taken) => {
                let pending = || Pending::new(&message, Some(taken), arrived);
                self.unacknowledged.extend((message.packet_id > 0).then(pending));
                Ok(())
            }
            Err(NotTaken::NoRoom) => {
                self.blocked = Some(Blocked { message, route, arrived });
                Ok(())
            }
            Err(NotTaken::Closed) => Err(End::Shutdown),
        }
    }

    fn hand_in(&mut self, message: &Message, route: &Route) -> Result<Taken, NotTaken> {
        let now = Timestamp::from(clock::wall());
        if message.truncated > 0 {
            let bytes = message.payload.len() + message.truncated;
            let reason =
                format!("payload: is {bytes} bytes long; the largest that is taken has {}", message.payload.len());
            let kept = &message.payload[..message.payload.len().min(CUT_BYTES)];
            return self.ingest.refuse(route, &reason, kept, now, &mut self.waiter);
        }
        let beside = Beside {
            trace_parent: message.trace_parent.as_deref(),
            content_type: message.content_type.as_deref(),
            ..Beside::default()
        };
        self.ingest.accept(route, &message.payload, beside, now, &mut self.waiter)
    }

    /// Tries again to take in what had found no room.
    fn take_blocked(&mut self) {
        if let Some(Blocked { message, route, arrived }) = self.blocked.take() {
            let route = if self.ingest.is_current(&route) { route } else { self.route(&message.topic) };
            // Whether the journal is closed shows in the loop.
            let _ = self.accept(message, route, arrived);
        }
    }

    fn route(&mut self, topic: &str) -> Arc<Route> {
        if let Some(route) = self.routes.get(topic)
            && self.ingest.is_current(route)
        {
            return Arc::clone(route);
        }
        let name = &self.config.name;
        // A broker does not say who published: the source stands for the client.
        let route =
            Arc::new(self.ingest.route(SourceKind::Broker, name, topic, Sender { client: name, ..Sender::default() }));
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert(topic.to_owned(), Arc::clone(&route));
        route
    }

    /// Acknowledges what is on the disk, in order of arrival; whether there was something.
    fn acknowledge(&mut self, output: &mut Output) -> bool {
        if output.waiting() == 0 {
            self.leaving.clear();
        }
        let before = self.unacknowledged.len();
        while let Some(first) = self.unacknowledged.front() {
            if first.taken.as_ref().is_some_and(|taken| self.ingest.receipt(taken).is_none()) {
                break;
            }
            let place = output.bytes.len();
            link::push_puback(&mut output.bytes, first.packet_id);
            self.stats.ack.record(clock::instant().duration_since(first.arrived), 1);
            self.leaving.extend(self.unacknowledged.pop_front().map(|pending| (place, pending)));
        }
        self.unacknowledged.len() < before
    }

    /// Publishes the next ask for a rebirth; says when to look again, if there may be more.
    fn ask_rebirths(&mut self, session: &Session, output: &mut Output) -> Option<Instant> {
        let sparkplug = self.ingest.sparkplug().filter(|_| self.config.rebirth)?;
        sparkplug.allow_asking(&self.config.name);
        let now = clock::instant();
        if now < self.next_ask {
            return Some(self.next_ask);
        }
        let ask = sparkplug.next_ask(&self.config.name)?;
        tracing::info!(source = %self.config.name, topic = ask.topic, "asking a Sparkplug node for a rebirth");
        link::push_publish_qos0(&mut output.bytes, session.protocol(), &ask.topic, &ask.payload);
        self.next_ask = now + ASK_EVERY;
        Some(self.next_ask)
    }

    /// A last moment for receipts that are on their way.
    async fn drain(&mut self, session: &mut Session, output: &mut Output) {
        let deadline = tokio::time::sleep(DRAIN_WAIT_MAX);
        tokio::pin!(deadline);
        let bell = self.waiter.bell();
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

    /// The connection is gone: what is without a PUBACK will come again.
    fn settle_debts(&mut self, output: &Output) {
        let written = output.written();
        let is_over = output.waiting() == 0;
        for (place, pending) in self.leaving.drain(..) {
            // One whose first byte has left may have arrived.
            if !is_over && place >= written {
                self.owed.add(pending);
            }
        }
        for pending in self.unacknowledged.drain(..) {
            self.owed.add(pending);
        }
        // It is not taken in: it is a message like any other when it comes again.
        self.blocked = None;
    }
}

/// Moves bytes both ways, or only out where nothing is to be read.
async fn exchange(session: &mut Session, output: &mut Output, is_reading: bool) -> Result<(), LinkError> {
    match is_reading {
        true => session.exchange(output).await,
        false if output.waiting() > 0 => session.write(output).await,
        false => std::future::pending().await,
    }
}

/// Returns when what blocks may find room; never if nothing blocks.
async fn room(ingest: &Ingest, blocked_on: Option<&Route>) {
    match blocked_on {
        Some(route) => {
            ingest.room(route).await;
            tokio::time::sleep(ROOM_AGAIN).await;
        }
        None => std::future::pending().await,
    }
}
