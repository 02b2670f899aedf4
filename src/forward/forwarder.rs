//! The forwarder of one lane: the conversation on its link. It reads events, sends them, and settles them by central's
//! answers.
//!
//! Invariant: nothing that central has answered is sent again; what it refuses waits in `key_order`.

use super::answers::Answers;
use super::config::Config;
use super::keys::Connection;
use super::lane_link::LaneLink;
use super::lane_sender::{LaneSender, Pass};
use super::outgoing::Outgoing;
use super::pace::{Allowance, Pressure, Sending};
use super::probe::{Probe, ProbeStep};
use super::reader::{EventReader, Next};
use super::settler::Settler;
use super::stats::Stats;
use crate::clock;
use crate::event::Timestamp;
use crate::journal::{Lane, Outcome};
use crate::link::{
    Client, Conflict, ConnectAs, Conversation, CredentialRotation, End, LinkError, LostSession, Output, Session, Start,
    Target, Traffic, Turn,
};
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for outstanding acknowledgements at the shutdown, to avoid sending these events again.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(2);

/// Interval at which a connection that is ahead of the others looks whether they have followed.
const AHEAD_LOOK: Duration = Duration::from_millis(50);

/// The lane that goes first on a line.
const CRITICAL: &str = "critical";

/// The destination, settings and identity of a forwarder.
#[derive(Clone, Debug)]
pub struct ForwarderSpec {
    pub config: Arc<Config>,
    /// How the forwarder sends its lane.
    pub sending: Arc<Sending>,
    /// Backlogs of all lanes of the destination.
    pub pressure: Arc<Pressure>,
    pub client: String,
    /// The part of the events of the lane that it sends.
    pub connection: Connection,
    /// Signals new certificates and passwords.
    pub rotation: CredentialRotation,
    pub traffic: Arc<Traffic>,
}

/// Sends one lane to one destination.
#[derive(Debug)]
pub struct Forwarder {
    target: Arc<Target>,
    client: String,
    rotation: CredentialRotation,
    link: LaneLink,
    reader: EventReader,
    allowance: Allowance,
    sender: LaneSender,
    settler: Settler,
    probe: Probe,
    /// Whether more events may be read.
    has_room: bool,
    /// Delivered events before the session began.
    delivered_before: u64,
}

impl Forwarder {
    /// Creates a forwarder for `lane`; events that central rejects for good go to the log `dead`.
    pub fn new(spec: ForwarderSpec, lane: &Arc<Lane>, dead: &Arc<Lane>, stats: Arc<Stats>) -> Result<Self, String> {
        let ForwarderSpec { config, sending, pressure, client, connection, rotation, traffic } = spec;
        let target = Arc::new(config.target()?.counting(traffic).on(Arc::clone(pressure.line())));
        let share = pressure.line().share(rank(&lane.name, &sending));
        let link = LaneLink { lane: Arc::clone(lane), to: config, connection, stats };
        Ok(Self {
            target,
            client,
            rotation,
            reader: EventReader::new(link.clone(), Arc::clone(&sending)),
            allowance: Allowance::new((lane, connection), Arc::clone(&sending), pressure),
            sender: LaneSender::new(link.clone(), sending, share),
            settler: Settler::new(link.clone(), dead),
            probe: Probe::default(),
            has_room: false,
            delivered_before: 0,
            link,
        })
    }

    /// Runs until shutdown, then waits up to 2 s for outstanding acknowledgements.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let (target, connect_as) = (Arc::clone(&self.target), ConnectAs::client(self.client.clone()));
        Client::new(target, connect_as, self.rotation.clone()).run(&mut self, &mut shutdown).await;
        self.link.set_up(false, Some("the gateway is shutting down".into()));
    }
}

/// The order in which the lanes of a destination share its line.
fn rank(lane: &str, sending: &Sending) -> usize {
    match sending.yielding {
        _ if lane == CRITICAL => 0,
        None => 1,
        Some(_) => 2,
    }
}

impl Conversation for Forwarder {
    async fn prepare(&mut self, _connect_as: &mut ConnectAs) {
        self.rewind();
    }

    fn begin(&mut self, session: &Session, start: Start, _output: &mut Output) {
        let LaneLink { lane, to, stats, .. } = &self.link;
        self.link.set(|state| state.peer = Some(session.peer()));
        if let Some(dscp) = self.sender.dscp() {
            session.set_dscp(dscp);
        }
        match start {
            Start::Opened => {
                tracing::info!(lane = %lane.name, destination = %to.name, broker = %session.broker(), "link up");
                stats.connects.add(1);
                self.link.set_up(true, None);
                self.delivered_before = stats.delivered.value();
            }
            Start::Replaced(why) => {
                self.link.set(|state| state.note = None);
                tracing::info!(lane = %lane.name, destination = %to.name, broker = %session.broker(), "continuing on another session: {why}");
                self.rewind();
            }
        }
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End> {
        let LaneSender { room, publishes, .. } = &mut self.sender;
        room.measure(&publishes.in_flight, session, output);
        let turn = self.send(session, output, may_send).await?;
        let look = self.sender.room.limit(output, self.reader.has_more());
        Ok(Turn { wake_in: turn.wake_in.min(look.unwrap_or(Duration::MAX)), ..turn })
    }

    async fn ready(&mut self) {
        match self.has_room {
            true => self.reader.load_next().await,
            false => std::future::pending().await,
        }
    }

    fn is_waiting(&self) -> bool {
        !self.sender.publishes.in_flight.is_empty()
    }

    fn unanswered(&self) -> u64 {
        self.sender.publishes.in_flight.bytes()
    }

    fn drain_wait_max(&self) -> Duration {
        DRAIN_WAIT_MAX
    }

    async fn receive(&mut self, session: &mut Session) -> Result<(), End> {
        let (now, wall) = (clock::instant(), Timestamp::from(clock::wall()));
        let line = Arc::clone(self.sender.room.share().line());
        let mut carried = line.answers(now);
        let mut answers = Answers::new(now, wall);
        let (mut count, mut end) = (0, Ok(()));
        let end = loop {
            match self.sender.publishes.next_answer(session) {
                Ok(Some(answered)) => {
                    count += 1;
                    carried.add(answered.bytes, answered.sent.sent_at);
                    if answered.rejection.is_none() {
                        self.sender.sizes.record_passed(answered.bytes);
                    }
                    answers.take(answered, &mut self.sender, &mut self.settler.warnings);
                }
                Ok(None) => break end,
                // The answers behind a packet that cannot be understood count, too.
                Err(error) if end.is_ok() => end = Err(End::Lost(error)),
                Err(_) => break end,
            }
        };
        line.record(&carried);
        self.probe.record_passed(count);
        // What was answered before the connection broke counts.
        let Answers { settled, poison, overtaken, .. } = answers;
        self.settler.announce(&overtaken);
        if !settled.is_empty() {
            self.settler.settle(&settled);
            self.sender.followed.end(&settled);
            self.link.stats.delivered.add(settled.len() as u64);
        }
        self.write_dead_letters(&poison).await;
        end
    }

    async fn lost(&mut self, error: &LinkError, _lasted: Duration, _output: &Output) -> LostSession {
        let lowest = self.sender.publishes.in_flight.lowest();
        let bytes = self.sender.publishes.in_flight.bytes() as usize;
        match self.probe.guilty(error, lowest) {
            Some(offset) => {
                let reason = "central ends the connection whenever it is sent this event";
                self.write_dead_letters(&[(offset, reason.into())]).await;
                self.sender.sizes.record_failed(bytes, clock::instant());
                self.probe.clear();
                self.sender.publishes.in_flight.clear();
            }
            None => {
                let LaneSender { publishes, sizes, batcher, .. } = &mut self.sender;
                if let Some(events) = self.probe.record_end(error, &publishes.in_flight, sizes) {
                    sizes.record_failed(bytes, clock::instant());
                    batcher.halve_size(events);
                }
            }
        }
        if matches!(error, LinkError::Silent(_) | LinkError::Stuck(_)) {
            self.sender.room.share().line().forget();
        }
        self.sender.room.begin();
        self.report_progress();
        let was_good = self.link.stats.delivered.value() > self.delivered_before;
        LostSession { was_good, was_idle: self.sender.publishes.in_flight.is_empty() }
    }

    fn down(&mut self, error: &LinkError, conflict: Option<Conflict>) {
        let LaneLink { lane, to, stats, .. } = &self.link;
        stats.failures.add(1);
        let other_client = |how_sure: &str| {
            let client = &self.client;
            format!(
                "{how_sure}another client uses the client id \"{client}\": is there a second gateway of that name? ({error})"
            )
        };
        let reason = match conflict {
            None => error.to_string(),
            Some(Conflict::Suspected) => other_client("sessions end at once; perhaps "),
            Some(Conflict::Confirmed) => other_client(""),
        };
        if self.link.set_down(error, reason.clone()) {
            tracing::warn!(lane = %lane.name, destination = %to.name, error = %reason, "link down, will reconnect");
        }
    }

    fn keep_credentials(&mut self, why: &str) {
        let LaneLink { lane, to, .. } = &self.link;
        tracing::warn!(lane = %lane.name, destination = %to.name, error = %why, "cannot connect with the new certificates or password; continuing on the old session, will retry");
        self.link.set(|state| {
            state.note = Some(format!(
                "cannot connect with the new certificates or password ({why}); continuing on the old session"
            ));
        });
    }
}

impl Forwarder {
    /// Sends what may be sent now.
    async fn send(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End> {
        self.has_room = false;
        if self.reader.is_closed() {
            return Err(End::Shutdown);
        }
        if self.sender.order.end_strict(clock::instant()) {
            self.link.set(|state| state.refused = None);
        }
        if self.probe.due().is_some() {
            return Ok(self.probe(session, output, may_send));
        }
        // The jump to the live end waits for the publishes in flight. Refused events keep their pauses instead.
        let mut is_jumping = self.sender.order.waiting() == 0 && self.reader.is_live_lagging();
        if is_jumping && self.sender.publishes.in_flight.is_empty() {
            self.rewind();
            is_jumping = false;
        }
        let is_sending = may_send && !is_jumping;
        let window = self.link.to.window.min(session.limits().receive_maximum);
        let of_broker = session.limits().receive_maximum < self.link.to.window;
        let allowed = if is_sending { self.probe.window(usize::from(window)) } else { 0 };
        let turn = self.send_owed(session, output, allowed).await;
        self.link.set(|state| {
            (state.window, state.is_window_of_broker) = (window.into(), of_broker);
            state.in_flight = self.sender.publishes.in_flight.count();
        });
        self.report_progress();
        Ok(turn)
    }

    /// Begins again at the lowest unsettled event.
    fn rewind(&mut self) {
        self.link.stats.repeated.add(self.sender.publishes.in_flight.count() as u64);
        self.sender.clear();
        self.probe.step = ProbeStep::Off;
        self.reader.rewind();
        self.report_progress();
    }

    fn report_progress(&self) {
        self.allowance.report(self.reader.reached(self.sender.unsettled()));
    }

    /// Sends what window, output buffer, hours and rate limits allow.
    async fn send_owed(&mut self, session: &Session, output: &mut Output, window: usize) -> Turn {
        let now = clock::instant();
        self.reader.look_at_others();
        let wait = self.allowance.wait().max(self.sender.throttle.wait(now));
        if !wait.is_zero() {
            return Turn::in_time(wait);
        }
        let mut allowed = self.allowance.events();
        let written = output.bytes.len();
        let mut pass = Pass::new(session, output);
        let mut not_owed = Vec::new();
        self.sender.close_aged_batches(pass.now);
        while self.sender.has_room(window, pass.output) && self.sender.throttle.allows(pass.sent) {
            if self.sender.send_waiting(&mut pass).await || self.sender.send_ready_batch(&mut pass) {
                continue;
            }
            if allowed == 0 || !self.sender.may_read() {
                break;
            }
            // The backlog may use three quarters of the window.
            let may_backfill = self.sender.has_room(window - window / 4, pass.output);
            let Self { reader, sender, .. } = self;
            match reader.next(may_backfill, |event: Outgoing<'_>| sender.send(&event, &mut pass)) {
                Next::Nothing => {
                    if reader.has_more() || !sender.end_backlog() {
                        break;
                    }
                }
                Next::Skipped => {}
                Next::Event => allowed -= 1,
                Next::NotOwed(offset, stream) => not_owed.push((offset, stream, Outcome::NotOwed)),
                Next::Unreadable(offset) => {
                    pass.poison.push((offset, "the contract of this event is lost".to_owned()));
                }
            }
        }
        let Pass { now, events, sent, poison, output, .. } = pass;
        self.link.stats.sent.add(sent);
        self.allowance.spend(events, output.bytes.len().saturating_sub(written));
        self.sender.throttle.spend(sent);
        if !not_owed.is_empty() {
            self.settler.settle(&not_owed);
        }
        self.write_dead_letters(&poison).await;
        let has_room = self.sender.has_room(window, output);
        if !has_room && self.reader.has_more() {
            self.sender.begin_backlog();
        }
        self.has_room = allowed > 0 && has_room && self.sender.may_read() && self.sender.throttle.allows(0);
        let due = [
            self.sender.batch_due(window, now),
            self.sender.order.due_in(now).filter(|_| has_room),
            (allowed == 0).then(|| self.allowance.wait()),
            self.reader.is_ahead().then_some(AHEAD_LOOK),
            Some(self.sender.throttle.wait(now)).filter(|wait| !wait.is_zero()),
        ];
        Turn::in_time(due.into_iter().flatten().min().unwrap_or(Duration::MAX))
    }

    /// Takes the probe a step further.
    fn probe(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Turn {
        match self.probe.step {
            ProbeStep::Off if may_send => {
                self.rewind();
                session.ping(output);
                self.probe.step = ProbeStep::Pinged;
            }
            ProbeStep::Pinged if may_send && !session.is_ping_pending() => {
                if self.send_suspect(session, output) {
                    self.probe.step = ProbeStep::Sent;
                } else {
                    // The event is settled or cannot be read now: there is nothing to probe.
                    self.end_probe();
                    return Turn::in_time(Duration::ZERO);
                }
            }
            ProbeStep::Sent if self.sender.publishes.in_flight.is_empty() => {
                // Central answered the event: the disconnects have another reason.
                self.end_probe();
                return Turn::in_time(Duration::ZERO);
            }
            _ => {}
        }
        Turn::in_time(Duration::MAX)
    }

    fn end_probe(&mut self) {
        self.probe.clear();
        self.rewind();
    }

    /// Sends the suspect alone, regardless of batches, rate limits and hours; returns `false` if it must not be sent.
    fn send_suspect(&mut self, session: &Session, output: &mut Output) -> bool {
        let Some(offset) = self.probe.due().filter(|offset| !self.reader.is_settled(*offset)) else { return false };
        let lane = &self.link.lane;
        let mut walk = match lane.walk_at(offset) {
            Ok(Some(walk)) => walk,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(lane = %lane.name, %error, "cannot read the event to probe from the journal");
                return false;
            }
        };
        let recorded = walk.recorded();
        let Some(step) = walk.step_to(lane, offset) else { return false };
        let Some((published, sequence)) = step.numbered else { return false };
        let event = Outgoing { offset, record: step.record, published, sequence, recorded, mark: None };
        let is_sent = self.sender.publish_suspect(&event, &mut Pass::new(session, output)).is_ok();
        self.link.stats.sent.add(u64::from(is_sent));
        is_sent
    }

    /// Turns events into dead letters; those that could not become one are tried again.
    async fn write_dead_letters(&mut self, events: &[(u64, String)]) {
        if events.is_empty() {
            return;
        }
        let durable = self.settler.write_dead_letters(events).await;
        self.sender.followed.end(&durable);
        let now = clock::instant();
        for (offset, _) in events.iter().filter(|(offset, _)| durable.iter().all(|(known, ..)| known != offset)) {
            self.sender.put_back(*offset, now);
        }
    }
}
