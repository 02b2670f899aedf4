//! The session of a connected client: one loop that reads packets, acknowledges events that are on the disk, and sends the
//! client the events of its subscriptions.

use super::super::faults::{CROWDED_OUT, KEEP_ALIVE_EXPIRED, MOST_MEMORY, SHUTTING_DOWN, TAKEN_OVER, TOO_SLOW};
use super::super::inbound::{Inbound, PacketOutcome};
use super::super::outbound::{Limits, Ready};
use super::super::state::{Attempt, ListenerState};
use super::io::{ConnectionIo, Read, poll_read_with, read_bytes};
use super::{ConnectedClient, Connection, ConnectionEnd};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::Route;
use crate::mqtt::{Fault, ReasonCode};
use crate::security::Cause;
use crate::shutdown::Shutdown;
use crate::sources::identity::Identity;
use crate::sources::socket;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Bytes that the kernel buffers for a client that does not read: the limit of a socket buffer.
const SEND_BUFFER_BYTES: usize = socket::BUFFER_BYTES;
/// Interval of the check of a subscriber: its backlog, and the progress to save.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// A subscriber is too slow when it is this many times `backlog_events_max` behind.
const BEHIND_TIMES_MAX: u64 = 2;

impl Connection<'_> {
    pub(super) fn limits(&self) -> Limits {
        let config = &self.shared.config;
        Limits { events: config.backlog_events_max, bytes: config.backlog_bytes_max.0, age: config.backlog_age_max.0 }
    }

    /// Runs the session until the connection ends: the main loop.
    pub(super) async fn run_session(
        &mut self,
        client: &mut ConnectedClient,
        shutdown: &mut Shutdown,
    ) -> Result<Infallible, ConnectionEnd> {
        let shared = self.shared;
        let ConnectedClient { slot, identity, inbound, silence_max } = client;
        let mut heard_at = clock::instant();
        let check = tokio::time::sleep(until_check(*silence_max, inbound, Duration::ZERO));
        tokio::pin!(check);
        let (mut checks_often, mut follows_config) = (false, true);
        let eviction = inbound.memory.permit().eviction();
        let bell = inbound.producer.bell();
        let mut written = shared.registry.written();
        self.resume(inbound).await?;
        loop {
            inbound.acknowledge(shared, *written.borrow_and_update(), &mut self.io.output);
            self.write(inbound).await?;
            let is_reading = inbound.has_room(shared);
            inbound.time_packet(is_reading);
            let blocked_on = inbound.blocked_on();
            let awaits_writes = inbound.awaits_writes();
            inbound.session.outbound.release_group_turn();
            if !checks_often && inbound.needs_checks() {
                checks_often = true;
                check.as_mut().reset((clock::instant() + CHECK_EVERY).into());
            }
            // Every arm is safe to drop half-way: a read handles its bytes before it returns.
            tokio::select! {
                biased;
                () = shutdown.begun() => return Err(SHUTTING_DOWN.into()),
                () = slot.taken_over() => return Err(TAKEN_OVER.into()),
                () = eviction.begun() => {
                    return Err(if eviction.is_for_memory() { MOST_MEMORY } else { CROWDED_OUT }.into());
                }
                changed = self.newest.changed(), if follows_config => match changed {
                    Ok(()) => self.recheck_rights(identity, inbound)?,
                    Err(_) => follows_config = false,
                },
                () = bell.rung() => self.check_open()?,
                changed = written.changed(), if awaits_writes => if changed.is_err() {
                    return Err(SHUTTING_DOWN.into());
                },
                () = lane_has_room(shared, blocked_on.as_deref()) => inbound.submit_queued(shared),
                event = self.io.next_event(shared, inbound, is_reading) => match event {
                    ConnectionEvent::Read(outcome, is_more) => {
                        heard_at = clock::instant();
                        inbound.memory.permit().heard(heard_at);
                        ConnectionEnd::check(outcome)?;
                        // Without it the runtime would let one connection read many times before another has its turn.
                        if is_more {
                            tokio::task::yield_now().await;
                        }
                    }
                    ConnectionEvent::Gone => return Err(ConnectionEnd::Gone),
                    ConnectionEvent::Send(ready) => self.send(inbound, ready)?,
                },
                () = &mut check => {
                    let silence = clock::instant().duration_since(heard_at);
                    // While the gateway does not read, it cannot notice packets of the client.
                    if silence_max.is_some_and(|limit| silence >= limit) && is_reading {
                        return Err(KEEP_ALIVE_EXPIRED.into());
                    }
                    self.check_client(inbound)?;
                    checks_often = inbound.needs_checks();
                    check.as_mut().reset((clock::instant() + until_check(*silence_max, inbound, silence)).into());
                }
            }
        }
    }

    /// Sends the publishes in flight of the last connection again, and handles the bytes that came with CONNECT.
    async fn resume(&mut self, inbound: &mut Inbound) -> Result<(), ConnectionEnd> {
        let Inbound { session, rights, options, .. } = &mut *inbound;
        let may = |topic: &str| rights.may_subscribe(topic);
        Box::pin(session.outbound.resend_in_flight(*options, &self.shared.local, &may, &mut self.io.output)).await;
        let first = std::mem::take(&mut self.io.input);
        inbound.memory.buffer_shrunk(0);
        ConnectionEnd::check(inbound.handle_bytes(self.shared, &mut self.io.input, &mut self.io.output, &first))
    }

    /// Applies a changed configuration to the connected client. The error says why its connection has to end.
    fn recheck_rights(&mut self, identity: &Identity, inbound: &mut Inbound) -> Result<(), Fault> {
        let newest = Arc::clone(&self.newest.borrow_and_update().shared);
        let checked = newest.check_access(identity, self.peer);
        let rights = checked.map_err(|text| {
            let attempt = Attempt { sender: identity.sender(&inbound.client), what: "" };
            newest.report(self.peer, Cause::Cut, attempt, text);
            Fault { code: ReasonCode::NotAuthorized, text }
        })?;
        inbound.set_rights(rights, self.shared);
        Ok(())
    }

    /// Writes events for the client into the output.
    fn send(&mut self, inbound: &mut Inbound, ready: Ready) -> Result<(), Fault> {
        let (options, limits) = (inbound.options, self.limits());
        let outbound = &mut inbound.session.outbound;
        match ready {
            Ready::Own => {
                let oldest = limits.oldest(Timestamp::from(clock::wall()));
                self.shared.stats.cut.add(outbound.fill(options, oldest, &self.shared.local, &mut self.io.output));
            }
            Ready::Shared(group, event) => outbound.fill_shared(options, &group, &event, &mut self.io.output),
        }
        inbound.hold_outbound(self.io.output.capacity()).inspect_err(|_| {
            // Events with QoS 1 are sent again when there is memory.
            self.io.output = Vec::new();
        })
    }

    /// Writes the output to the socket. While the client does not read, the send buffer of the kernel counts, too.
    async fn write(&mut self, inbound: &mut Inbound) -> Result<(), ConnectionEnd> {
        if self.io.output.is_empty() {
            return Ok(());
        }
        if let Err(fault) = inbound.hold_outbound(self.io.output.capacity()) {
            self.io.output = Vec::new();
            return Err(ConnectionEnd::Fault(fault));
        }
        let is_written = {
            let mut flush = pin!(self.io.flush());
            let at_once = poll_fn(|context| Poll::Ready(flush.as_mut().poll(context))).await;
            match at_once {
                Poll::Ready(is_written) => is_written,
                Poll::Pending => {
                    inbound.memory.reserve(SEND_BUFFER_BYTES)?;
                    let is_written = flush.await;
                    inbound.memory.release(SEND_BUFFER_BYTES);
                    is_written
                }
            }
        };
        // It cannot fail: the output only gets smaller.
        let _ = inbound.hold_outbound(self.io.output.capacity());
        if is_written { Ok(()) } else { Err(ConnectionEnd::Gone) }
    }

    /// Fails if the journal is closed.
    fn check_open(&self) -> Result<(), Fault> {
        if self.shared.ingest.is_closed() { Err(SHUTTING_DOWN) } else { Ok(()) }
    }

    /// Fails if the client reads too slowly, or sends its packet too slowly.
    fn check_client(&self, inbound: &mut Inbound) -> Result<(), Fault> {
        self.check_subscriber(inbound)?;
        inbound.check_progress(self.shared, self.io.input.len())
    }

    /// Saves the progress of a subscriber. The error is for one that is too slow.
    fn check_subscriber(&self, inbound: &mut Inbound) -> Result<(), Fault> {
        let outbound = &mut inbound.session.outbound;
        if outbound.is_idle() {
            return Ok(());
        }
        if inbound.session.number > 0
            && let Some(progress) = outbound.take_progress()
        {
            self.shared.registry.save_progress_later(&inbound.key, progress);
        }
        if outbound.behind() > self.limits().events.saturating_mul(BEHIND_TIMES_MAX) { Err(TOO_SLOW) } else { Ok(()) }
    }
}

/// Time until the next check of the keep-alive or of the subscriber.
fn until_check(silence_max: Option<Duration>, inbound: &Inbound, silence: Duration) -> Duration {
    let until_silent = silence_max.map(|limit| limit.saturating_sub(silence).max(Duration::from_secs(1)));
    let until_progress = inbound.needs_checks().then_some(CHECK_EVERY);
    until_silent.into_iter().chain(until_progress).min().unwrap_or(Duration::from_secs(3600))
}

/// Waits for room in the lane of `route`; for ever without one.
async fn lane_has_room(shared: &ListenerState, route: Option<&Route>) {
    match route {
        Some(route) => shared.ingest.room(route).await,
        None => std::future::pending().await,
    }
}

/// An event of a connection.
enum ConnectionEvent {
    /// Bytes were read and handled; `true` if there may be more.
    Read(PacketOutcome, bool),
    /// The client closed the connection.
    Gone,
    /// There may be events to send.
    Send(Ready),
}

impl ConnectionIo {
    /// Waits for packets of the client and for events to send to it. Safe to drop half-way.
    async fn next_event(&mut self, shared: &ListenerState, inbound: &mut Inbound, is_reading: bool) -> ConnectionEvent {
        let most = read_bytes(shared);
        let Self { stream, input, output } = self;
        poll_fn(|context| {
            if is_reading {
                let handle_bytes =
                    |bytes: &[u8]| (inbound.handle_bytes(shared, input, output, bytes), bytes.len() == most);
                match poll_read_with(stream, context, most, handle_bytes) {
                    Poll::Ready(Ok(Read::Bytes((outcome, is_more)))) => {
                        return Poll::Ready(ConnectionEvent::Read(outcome, is_more));
                    }
                    Poll::Ready(Ok(Read::Eof) | Err(_)) => return Poll::Ready(ConnectionEvent::Gone),
                    Poll::Pending => {}
                }
            }
            // SUBACK precedes the events of the subscription.
            if inbound.awaits_writes() {
                return Poll::Pending;
            }
            inbound.session.outbound.poll_ready(context, output, &shared.local).map(ConnectionEvent::Send)
        })
        .await
    }
}
